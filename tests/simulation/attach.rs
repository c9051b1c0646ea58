//! Disks that are detached and attached while the resource is up (with two nodes, whose Primary goes on
//! without one), and what of that the oracle is told.

use crate::rng::Rng;
use crate::world::World;
use twinblk_engine::command::Command;
use twinblk_engine::config::{OnIoError, OnNoData};
use twinblk_engine::event::{DiskState, Role};
use twinblk_engine::input::Input;

/// What a seed decides about it. From a stream of its own, so that other plans stay as they are.
#[derive(Clone, Debug)]
pub struct DisklessPlan {
    /// A failed disk is attached rather than the node taken down, and people detach disks: of a
    /// thousand times.
    pub attach: u64,
    /// `on-no-data-accessible`.
    pub on_no_data: OnNoData,
    /// `on-io-error`.
    pub on_io_error: OnIoError,
}

impl DisklessPlan {
    /// Of this seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::stream(seed, 11);
        Self {
            attach: rng.pick(&[0, 0, 300, 800]),
            on_no_data: rng.pick(&[OnNoData::IoError, OnNoData::SuspendIo]),
            on_io_error: rng.pick(&[
                OnIoError::Detach,
                OnIoError::Detach,
                OnIoError::CallLocalIoError,
                OnIoError::PassOn,
            ]),
        }
    }
}

impl World {
    /// A failed disk is mended and attached. False: the node is to be taken down and up instead.
    pub(crate) fn attaches(&mut self, n: usize) -> bool {
        let chance = self.plan.diskless.attach;
        if !self.admin.rng_of_disks.per_mille(chance) {
            return false;
        }
        // Alone it would wait for a node that is lost.
        let alone = self.lost.is_some() && self.ending;
        if alone || self.nodes[n].disk_state != DiskState::Diskless {
            return self.nodes[n].disk_state != DiskState::Diskless && !alone;
        }
        self.attach(n);
        true
    }

    /// A disk is attached to a running engine.
    pub fn attach(&mut self, n: usize) {
        self.trace.count("attach");
        self.trace
            .line(self.now, || format!("{n}: a disk is attached"));
        self.resyncs = 0;
        self.nodes[n].faults = crate::node::DiskFaults::default();
        self.open_again(n);
    }

    /// An engine attaches a disk again that has failed, which nobody has mended.
    pub(crate) fn attach_again(&mut self, n: usize) {
        self.trace.count("attached by itself");
        self.trace
            .line(self.now, || format!("{n}: the disk is attached again"));
        let volume = crate::node::VOLUME;
        if self.nodes[n].faults.dead {
            let reason = "no such device".to_owned();
            return self.feed(n, Input::AttachFailed { volume, reason });
        }
        self.open_again(n);
    }

    fn open_again(&mut self, n: usize) {
        match self.nodes[n].recover() {
            Ok(recovered) => {
                let input = Input::Attached {
                    volume: crate::node::VOLUME,
                    recovered: Box::new(recovered),
                    no_volatile_cache: self.plan.write_through,
                };
                self.feed(n, input);
            }
            Err(text) => self.violate("metadata_survive", format!("node {n}: {text}")),
        }
    }

    /// People take disks away and bring them back.
    pub(crate) fn detach_or_attach(&mut self) -> bool {
        let chance = self.plan.diskless.attach / 4;
        if !self.admin.rng_of_disks.per_mille(chance) {
            return false;
        }
        let n = self.admin.rng_of_disks.index(self.plan.nodes);
        if self.nodes[n].paused_until > self.now || self.nodes[n].engine.is_none() {
            return true;
        }
        if self.nodes[n].disk_state == DiskState::Diskless && !self.nodes[n].stopped {
            self.attach(n);
        } else {
            let force = self.admin.rng_of_disks.per_mille(200);
            self.order(n, Command::Detach { force });
        }
        true
    }

    /// Of two nodes one goes on with the other's copy from here on: that one has, stable, all that was
    /// completed on the first.
    pub(crate) fn copy_is_served(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if self.plan.nodes == 2
            && core::mem::take(&mut node.gave_up_disk)
            && node.role == Role::Primary
        {
            self.trace.count("a Primary went on without a disk");
            self.oracle.taken_over(n, 1 - n);
        }
    }
}

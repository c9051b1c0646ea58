//! A disk goes out of use: it failed, or an administrator detaches it. And the way back, `attach`, whose
//! beginning is [`crate::attach`].
//!
//! Invariants:
//! * a disk that failed stays out of use until somebody attaches it (or [`crate::pass_on`] does), and
//!   nothing is written to it;
//! * it is closed, and can be attached, only when nothing on it is in flight any more: until then it is
//!   Failed (or Detaching), from then on Diskless. No time limit gives up an operation: what the kernel
//!   may still read or write is never used for anything else;
//! * an order takes no disk away that clients need: unless it is forced, a Primary's disk goes only when
//!   a peer serves its copy.

use crate::command::{Refusal, RefusalKind};
use crate::config::OnIoError;
use crate::event::{DiskState, Role};
use crate::handler::{HandlerKind, Then};
use crate::ids::{CommandId, VolumeId};
use crate::left_behind::Lacks;
use crate::metadata::superblock::MdFlags;
use crate::output::Output;
use crate::remote::Access;
use crate::resource::{Op, Resource};
use crate::volume::Waiter;
use alloc::format;
use alloc::string::{String, ToString};

impl Resource {
    /// A disk reported an error: out of use until an administrator attaches it again. Nothing more
    /// is written to its metadata, so that the next attach finds what a crash would have left.
    pub(crate) fn disk_failed(&mut self, v: usize, errno: i32, doing: &str) {
        let stays = if self.may_pass_on() { "is" } else { "stays" };
        let reason = format!("{doing} failed with errno {errno}; the disk {stays} out of use");
        self.disk_out_of_use(v, reason, true);
    }

    /// See [`Self::disk_failed`].
    pub(crate) fn disk_out_of_use(&mut self, v: usize, reason: String, error: bool) {
        if matches!(
            self.volumes[v].disk,
            DiskState::Failed | DiskState::Diskless
        ) {
            return;
        }
        let served = self.volumes[v].remote.is_some();
        let goes_on = !served && self.volumes[v].is_up_to_date() && self.may_go_remote();
        self.volumes[v].again.failed |= error;
        let primary = |p: &crate::peer::Peer| {
            p.is_agreed() && p.role == Role::Primary && !p.volumes[v].serves
        };
        self.volumes[v].missed |= self.peers.iter().any(primary);
        self.set_disk(v, DiskState::Failed, reason.clone());
        if goes_on {
            self.go_remote(v);
        }
        self.volumes[v].log_writer.fail();
        let waiters = self.volumes[v].meta.fail();
        self.commit_failed(v, waiters, &reason);
        let id = self.volumes[v].id;
        if error && self.role == Role::Primary && self.volumes[v].remote.is_none() {
            // Its clients are served from no other copy.
            self.call_handler(HandlerKind::PriOnInconDegr, None, Some(id), Then::Nothing);
        }
        let told = error
            && self.cfg.options.on_io_error == OnIoError::CallLocalIoError
            && self.call_handler(
                HandlerKind::LocalIoError,
                None,
                Some(id),
                Then::DiskFailed(id),
            );
        if told {
            if let Some(remote) = &mut self.volumes[v].remote {
                remote.quiet = true;
            }
        } else if self.volumes[v].remote.as_ref().is_none_or(|r| !r.quiet) {
            self.tell_disk_failed(id);
        }
    }

    /// A disk was attached under clients that are served from the peer's copy, and cannot be brought up
    /// to that.
    pub(crate) fn reject_disk(&mut self, v: usize) {
        if self.volumes[v].remote.is_some() && self.volumes[v].has_disk() {
            let reason = "the attached disk holds other data than the peer's copy, from which \
                          clients are served";
            self.disk_out_of_use(v, reason.to_string(), false);
        }
    }

    /// A disk was attached to a Primary that has not gone on without one (of more than two nodes): nothing
    /// says what it missed, nor does its disk say that it is the Primary's.
    pub(crate) fn refuse_disk(&mut self, v: usize) -> bool {
        let refused = self.role == Role::Primary && self.volumes[v].remote.is_none();
        if refused {
            let reason = "attached while this node was Primary: run `twinblk secondary RES` first";
            self.disk_out_of_use(v, reason.to_string(), false);
        }
        // What it may lack must be with the peer, confirmed, and its metadata must say that it is behind.
        let flag = MdFlags::WAS_UP_TO_DATE;
        let current = |l: &crate::volume::Local| l.superblock.flags.contains(flag);
        let behind = self.volumes[v].remote.is_some() && !self.nothing_missed(v);
        if !refused
            && behind
            && (self.is_handing_over(v) || self.volumes[v].local.as_ref().is_some_and(current))
        {
            let reason = "attached before the peer had confirmed what was under way when the disk went \
                          out of use: run `twinblk attach RES` again";
            self.disk_out_of_use(v, reason.to_string(), false);
            return true;
        }
        refused
    }

    /// `local-io-error` has ended, unless an order has come before it.
    pub(crate) fn disk_handler_ended(&mut self, id: VolumeId) {
        let remote = self
            .volume_index(id)
            .and_then(|v| self.volumes[v].remote.as_ref());
        if remote.is_none_or(|r| r.quiet) {
            self.tell_disk_failed(id);
        }
    }

    /// This node is to be Secondary: what waits for `local-io-error` does not wait any longer.
    pub(crate) fn end_quiet(&mut self) {
        for v in 0..self.volumes.len() {
            if self.volumes[v].remote.as_ref().is_some_and(|r| r.quiet) {
                self.tell_disk_failed(self.volumes[v].id);
            }
        }
    }

    /// The peers are told; a Primary's clients go on with the peer.
    pub(crate) fn tell_disk_failed(&mut self, id: VolumeId) {
        let Some(v) = self.volume_index(id) else {
            return;
        };
        if let Some(remote) = &mut self.volumes[v].remote {
            remote.quiet = false;
        }
        self.tell_state();
        if self.volumes[v].remote.is_some() && self.access(v) == Access::Later {
            self.take_over(v);
        }
        // Errors that were kept from clients until now.
        self.release_held();
    }

    /// What of an operation's volume is known: `None` if it may be any.
    fn volume_of(&self, op: &Op) -> Option<usize> {
        match *op {
            Op::ClientRead(key) | Op::ClientWrite(key) | Op::ClientFlush(key) => {
                self.requests.get(key).map(|r| r.volume)
            }
            Op::PeerWrite(key) | Op::PeerDigest(key) => {
                self.peer_requests.get(key).map(|r| r.volume)
            }
            Op::EpochFlush(_, id) => self.volume_index(id),
            Op::ResyncRead(key) => self.chunks.get(key).map(|c| c.volume),
            Op::VerifyRead(key) => self.ranges.get(key).map(|r| r.volume()),
            Op::ServedRead(ref read) => Some(Self::volume_of_read(read)),
            Op::Lingering(v)
            | Op::AttachFlush(v)
            | Op::DemoteFlush(v)
            | Op::LogBlock(v)
            | Op::LogPage(v)
            | Op::LogFlush(v)
            | Op::MetaPage(v)
            | Op::MetaFlush(v)
            | Op::MetaSuperblock(v) => Some(v),
        }
    }

    fn in_flight(&self, v: usize) -> usize {
        let of = |op: &Op| self.volume_of(op).is_none_or(|w| w == v);
        self.ops.iter().filter(|(_, op)| of(op)).count()
    }

    /// Disks that are out of use and have nothing in flight are closed.
    pub(crate) fn close_disks(&mut self) {
        for v in 0..self.volumes.len() {
            self.detach_progress(v);
            if self.volumes[v].disk != DiskState::Failed || self.in_flight(v) > 0 {
                continue;
            }
            let reason = self.volumes[v].disk_reason.clone();
            let reason = self.plan_to_attach(v, &reason);
            self.set_disk(v, DiskState::Diskless, reason);
            let volume = self.volumes[v].id;
            self.out.push(Output::CloseDisk { volume });
            self.tell_state();
        }
        self.answer_detach();
    }

    /// `detach`.
    pub(crate) fn order_detach(&mut self, id: CommandId, force: bool) {
        let refuse = |kind, reason: String, way_out: String| Refusal {
            kind,
            reason,
            way_out,
        };
        let name = self.cfg.name.clone();
        for (v, volume) in self.volumes.iter().enumerate() {
            if volume.disk == DiskState::Attaching || volume.detaching.is_some() {
                let text = format!("{} is {:?}", volume.id, volume.disk);
                let way_out = "try again when `twinblk status` shows that this is over";
                let refusal = refuse(RefusalKind::State, text, way_out.to_string());
                return self.done(id, Err(refusal));
            }
            if force || !volume.has_disk() {
                continue;
            }
            let needs = self.role == Role::Primary && volume.is_up_to_date();
            if let Some(p) = self.server(v).filter(|_| needs)
                && self.lacks_now(v) == Lacks::Unknown
            {
                let peer = &self.peers[p];
                let text = format!(
                    "{} is in use from this disk, and the copy of {} is known to differ in {} bytes",
                    volume.id,
                    peer.name,
                    volume.out_of_sync(peer.node)
                );
                let way_out = format!(
                    "make it equal first: `twinblk disconnect {name}`, `twinblk connect {name}`, \
                     `twinblk wait-sync {name}`; or `twinblk detach --force {name}`"
                );
                return self.done(id, Err(refuse(RefusalKind::NoUpToDateData, text, way_out)));
            }
            if needs && self.server(v).is_none() {
                let text = format!(
                    "{} is in use from this disk, and no connected peer could serve it instead{}",
                    volume.id,
                    if self.is_group() {
                        " (with more than two nodes none does)"
                    } else {
                        ""
                    }
                );
                let way_out = format!(
                    "connect a peer and wait for it (`twinblk wait-sync {name}`), or demote this \
                     node first (`twinblk secondary {name}`); `twinblk detach --force {name}` takes \
                     the disk away: clients get errors, or wait, as `on-no-data-accessible` says"
                );
                return self.done(id, Err(refuse(RefusalKind::NoUpToDateData, text, way_out)));
            }
            if let Some(peer) = self.peers.iter().find(|p| p.volumes[v].serves) {
                let text = format!(
                    "clients of {} are served from the copy of {} here",
                    peer.name, volume.id
                );
                let way_out = format!(
                    "on {} run `twinblk attach {name}` and wait for the resync, or stop what uses the \
                     device and run `twinblk secondary {name}`",
                    peer.name
                );
                return self.done(id, Err(refuse(RefusalKind::InUse, text, way_out)));
            }
        }
        for v in 0..self.volumes.len() {
            self.not_again(v);
            if !self.volumes[v].has_disk() {
                continue;
            }
            self.volumes[v].detaching = Some(id);
            self.volumes[v].detach_written = false;
            if force {
                let reason = "detached by force".to_string();
                self.disk_out_of_use(v, reason, false);
            } else {
                self.begin_detach(v);
            }
        }
        if self.volumes.iter().all(|v| v.detaching != Some(id)) {
            let text = "no disk is attached".to_string();
            self.done(id, Ok(text));
        }
    }

    fn begin_detach(&mut self, v: usize) {
        let serves = self.volumes[v].is_up_to_date() && self.may_go_remote();
        let reason = "detached by an administrator".to_string();
        self.set_disk(v, DiskState::Detaching, reason);
        if serves {
            self.go_remote(v);
            self.tell_state();
            self.take_over(v);
        } else {
            // Nothing more comes from the peers, and what they sent is finished.
            self.renegotiate("a disk is detached");
        }
    }

    /// A disk that is being detached: when clients do not need it any more, what it knows is written.
    fn detach_progress(&mut self, v: usize) {
        let volume = &self.volumes[v];
        if volume.disk != DiskState::Detaching || volume.detach_written {
            return;
        }
        let served = volume.remote.is_none() || matches!(self.access(v), Access::Remote(_));
        let idle = self.receivers_idle() && self.chunks.len() + self.ranges.len() == 0;
        if !served || !idle {
            return;
        }
        if self.volumes[v].remote.is_some() {
            // Still the disk of a Primary: writes that were under way may have failed here, and what is in
            // its cache may be lost. The extents of the log are copied when it comes back.
            self.set_flags(v, MdFlags::WAS_UP_TO_DATE, false);
        }
        self.volumes[v].detach_written = true;
        self.commit(v, true, Some(Waiter::Detached));
    }

    /// What a detached disk knows is on it.
    pub(crate) fn detached(&mut self, v: usize) {
        let reason = self.volumes[v].disk_reason.clone();
        self.set_disk(v, DiskState::Failed, reason.clone());
        self.volumes[v].log_writer.fail();
        let waiters = self.volumes[v].meta.fail();
        self.commit_failed(v, waiters, &reason);
    }

    /// The peer that was to serve instead of a disk that is being detached is lost: the disk keeps what
    /// a crash would have left.
    pub(crate) fn detach_without_peer(&mut self, v: usize) {
        if self.volumes[v].disk == DiskState::Detaching {
            self.detached(v);
        }
    }

    fn answer_detach(&mut self) {
        for v in 0..self.volumes.len() {
            let Some(id) = self.volumes[v].detaching else {
                continue;
            };
            let ends = |w: &crate::volume::Volume| {
                w.detaching != Some(id) || w.disk == DiskState::Diskless
            };
            let hangs = |w: &crate::volume::Volume| w.disk == DiskState::Failed;
            let text = if self.volumes.iter().all(ends) {
                "detached".to_string()
            } else if self.volumes.iter().all(|w| ends(w) || hangs(w)) {
                let count: usize = (0..self.volumes.len()).map(|v| self.in_flight(v)).sum();
                format!(
                    "out of use; {count} operation(s) on the disk have not ended yet: it can be \
                     attached when they have (`twinblk status` shows Diskless then)"
                )
            } else {
                continue;
            };
            for w in &mut self.volumes {
                if w.detaching == Some(id) {
                    w.detaching = None;
                }
            }
            self.done(id, Ok(text));
        }
    }
}

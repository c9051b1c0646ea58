//! `on-io-error = "pass-on"`: one bad block does not cost the whole disk.
//!
//! * A Primary whose clients no peer could serve answers a failed read or write of data with an error,
//!   and keeps its disk. What failed to be written is marked for the peers: anything may be in it.
//! * Otherwise the disk goes out of use as under `detach`, and is attached again by itself, a few times.
//!   What it misses, and what could not be read, comes from the peer: most disks keep what is written anew
//!   in another place.
//!
//! (DRBD's policy of this name sets the disk Inconsistent, marks the block and asks the peer. The way over
//! an attach costs a resync of what was written meanwhile, and needs no state of its own.)
//!
//! Invariants:
//! * only errors of reads and writes of data are passed on. After a failed flush or write of metadata
//!   nothing that this disk says of itself can be relied upon;
//! * a disk that was detached by an order, or failed once too often, stays out of use until somebody
//!   attaches it.

use crate::config::OnIoError;
use crate::event::{ConnState, DiskState, ReplState, Role, Severity};
use crate::ids::VolumeId;
use crate::output::Output;
use crate::resource::Resource;
use crate::time::{Duration, Instant};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// How long a disk that failed is left alone before each attempt.
const WAITS: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
];
/// After so long without an error a disk is given all attempts again.
const FORGIVEN: Duration = Duration::from_secs(3600);
/// How often errors that are passed on are told at most.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// When a block that a resync could not read is tried again.
const TRIED_AGAIN: Duration = Duration::from_secs(10);
/// Blocks that could not be read, beyond which the rest is not remembered.
const MOST_UNREADABLE: usize = 1024;

/// What is to become of a disk that failed.
#[derive(Debug, Default)]
pub(crate) struct Again {
    /// It reported an error (rather than was taken away).
    pub(crate) failed: bool,
    /// It is attached again then.
    due: Option<Instant>,
    /// It is being attached by itself.
    asked: bool,
    /// Attempts since it was last forgiven.
    tries: usize,
    /// The last one.
    last: Option<Instant>,
    /// Ranges (offset, length) that could not be read.
    unreadable: Vec<(u64, u64)>,
    /// Errors that clients were given, and when that was told last.
    passed: u64,
    told: Option<Instant>,
}

impl Again {
    /// Errors that clients were given, since the disk was attached.
    pub(crate) fn errors(&self) -> u64 {
        self.passed
    }

    /// Until it is attached again.
    pub(crate) fn seconds_left(&self, now: Instant) -> Option<u64> {
        self.due.map(|at| {
            let left = at.since(now);
            left.as_secs() + u64::from(left.subsec_nanos() > 0)
        })
    }
}

impl Resource {
    pub(crate) fn may_pass_on(&self) -> bool {
        self.cfg.options.on_io_error == OnIoError::PassOn && !self.is_group()
    }

    /// An error of this volume's data is its clients' affair: nobody else could serve them.
    fn passes_on(&self, v: usize) -> bool {
        self.may_pass_on()
            && self.role == Role::Primary
            && self.volumes[v].remote.is_none()
            && self.volumes[v].is_up_to_date()
            && self.server(v).is_none()
    }

    /// A client is given an error, and the disk stays in use.
    fn passed_on(&mut self, v: usize, errno: i32, doing: &str, range: (u64, u64)) {
        let now = self.now;
        let volume = &mut self.volumes[v];
        volume.again.passed += 1;
        let text = format!(
            "{doing} of {} bytes at byte {} failed with errno {errno}, and was answered so: no other copy \
             could be reached (on-io-error = \"pass-on\"; {} such error(s) so far)",
            range.1, range.0, volume.again.passed
        );
        volume.disk_reason.clone_from(&text);
        let due = volume.again.told.is_none_or(|at| at + TOLD_EVERY <= now);
        if due {
            volume.again.told = Some(now);
            let text = format!("{}: {text}", volume.id);
            self.incident(Severity::Error, text);
        }
    }

    /// A read for a client failed.
    pub(crate) fn read_error(&mut self, v: usize, errno: i32, range: (u64, u64)) {
        if self.passes_on(v) {
            return self.passed_on(v, errno, "a read", range);
        }
        self.note_unreadable(v, range);
        self.disk_failed(v, errno, "a read");
    }

    /// A write for a client failed.
    pub(crate) fn write_error(&mut self, v: usize, errno: i32, range: (u64, u64)) {
        if !self.passes_on(v) {
            return self.disk_failed(v, errno, "a write");
        }
        self.passed_on(v, errno, "a write", range);
        for p in 0..self.peers.len() {
            let node = self.peers[p].node;
            if let Some(bitmap) = self.volumes[v].bitmap_mut(node) {
                bitmap.set_bytes(range.0, range.1);
            }
            // Whoever has this write, or will, is brought to what is here: by the resync that runs, or anew.
            let pv = &self.peers[p].volumes[v];
            let runs = pv.resync.as_ref().is_some_and(|r| !r.finish_sent());
            if runs && pv.replication == ReplState::SyncSource {
                self.overtake(p, v, range.0, range.1);
            } else if self.peers[p].receives(v) {
                self.renegotiate_peer(p, "a block could not be written");
            }
        }
    }

    /// A block that a resync needs cannot be read here. Answers whether this disk stays in use all the same:
    /// somebody's clients have no other. `live`: the resync is still wanted.
    pub(crate) fn resync_read_fails(
        &mut self,
        p: usize,
        v: usize,
        errno: i32,
        range: (u64, u64),
        live: bool,
    ) -> bool {
        if self.may_pass_on() && self.is_serving(v) {
            self.passed_on(v, errno, "a read for the resync", range);
            let again = self.now + TRIED_AGAIN;
            if let Some(resync) = self.peers[p].volumes[v].resync.as_mut().filter(|_| live) {
                resync.block_failed(self.now, range.1, again);
            }
            return true;
        }
        if !self.passes_on(v) {
            self.note_unreadable(v, range);
            return false;
        }
        if !live {
            return true;
        }
        let name = self.peers[p].name.clone();
        let res = self.cfg.name.clone();
        let text = format!(
            "{} at byte {} cannot be read (errno {errno}): {name} cannot be brought up to date from \
             this disk; write that block anew or replace the disk, then run `twinblk connect {res}`",
            self.volumes[v].id, range.0
        );
        self.incident(Severity::Error, text.clone());
        self.peers[p].want = false;
        self.close_link(p, ConnState::TearDown, text);
        true
    }

    /// The clients of a Primary without a disk are served from this copy, or about to be.
    fn is_serving(&self, v: usize) -> bool {
        let serves = |p: &crate::peer::Peer| p.volumes[v].serves || p.volumes[v].will_serve;
        self.peers.iter().any(serves)
    }

    /// A read for the clients of the peer failed. Answers whether the disk stays in use: they have no
    /// other.
    pub(crate) fn served_read_fails(&mut self, v: usize, errno: i32, range: (u64, u64)) -> bool {
        let keeps = self.may_pass_on() && self.is_serving(v);
        if keeps {
            self.passed_on(v, errno, "a read for the peer", range);
        } else {
            self.note_unreadable(v, range);
        }
        keeps
    }

    fn note_unreadable(&mut self, v: usize, range: (u64, u64)) {
        let list = &mut self.volumes[v].again.unreadable;
        if list.len() < MOST_UNREADABLE && !list.contains(&range) {
            list.push(range);
        }
    }

    /// A disk is out of use and closed: what happens next, in words.
    pub(crate) fn plan_to_attach(&mut self, v: usize, reason: &str) -> String {
        let now = self.now;
        let name = self.cfg.name.clone();
        let wanted = self.may_pass_on() && self.stopping.is_none();
        let again = &mut self.volumes[v].again;
        (again.due, again.asked) = (None, false);
        if !wanted || !again.failed {
            return reason.to_string();
        }
        if again.last.is_some_and(|at| at + FORGIVEN <= now) {
            again.tries = 0;
        }
        match WAITS.get(again.tries) {
            Some(&wait) => {
                again.due = Some(now + wait);
                format!(
                    "{reason}; it is attached again in {} s by itself (attempt {} of {})",
                    wait.as_secs(),
                    again.tries + 1,
                    WAITS.len()
                )
            }
            None => format!(
                "{reason}; it was attached {} times by itself and failed again: mend it and run \
                 `twinblk attach {name}`",
                again.tries
            ),
        }
    }

    /// Nobody wants it back.
    pub(crate) fn not_again(&mut self, v: usize) {
        let again = &mut self.volumes[v].again;
        (again.failed, again.due, again.asked) = (false, None, false);
    }

    /// Changed options: a disk that is to come back by itself does so no longer.
    pub(crate) fn pass_on_changed(&mut self) {
        if self.may_pass_on() {
            return;
        }
        let name = self.cfg.name.clone();
        for v in &mut self.volumes {
            if v.again.due.take().is_some() || core::mem::take(&mut v.again.asked) {
                v.disk_reason = format!(
                    "the disk failed; `on-io-error` is not \"pass-on\" any more: mend it and run \
                     `twinblk attach {name}`"
                );
            }
        }
    }

    /// The disk of this volume is still wanted back as [`Output::AttachDisk`] asked for it: nobody has
    /// ordered anything else meanwhile.
    pub fn wants_disk(&self, volume: VolumeId) -> bool {
        let v = self.volume_index(volume).map(|v| &self.volumes[v]);
        let down = self.stopping.is_some();
        v.is_some_and(|v| v.again.asked && v.disk == DiskState::Diskless && !down)
    }

    /// Disks that are due are attached.
    pub(crate) fn attach_tick(&mut self) {
        for v in 0..self.volumes.len() {
            let now = self.now;
            let Some(at) = self.volumes[v].again.due else {
                continue;
            };
            if self.stopping.is_some() || self.volumes[v].disk != DiskState::Diskless {
                self.volumes[v].again.due = None;
                continue;
            }
            if at > now {
                continue;
            }
            // What it may lack is to be with the peer, confirmed.
            let early = self.is_handing_over(v);
            let again = &mut self.volumes[v].again;
            if early {
                again.due = Some(now + WAITS[0]);
                continue;
            }
            (again.due, again.asked) = (None, true);
            again.tries += 1;
            again.last = Some(now);
            let volume = self.volumes[v].id;
            self.out.push(Output::AttachDisk { volume });
        }
    }

    /// When [`Self::attach_tick`] has something to do.
    pub(crate) fn attach_deadline(&self) -> Option<Instant> {
        self.volumes.iter().filter_map(|v| v.again.due).min()
    }

    /// A disk that was to be attached by itself cannot be opened.
    pub(crate) fn attach_failed(&mut self, volume: VolumeId, why: &str) {
        let Some(v) = self.volume_index(volume) else {
            return;
        };
        if self.volumes[v].disk != DiskState::Diskless || !self.volumes[v].again.asked {
            return;
        }
        let reason = self.plan_to_attach(v, &format!("the disk cannot be attached: {why}"));
        self.volumes[v].disk_reason.clone_from(&reason);
        self.incident(Severity::Error, format!("{volume}: {reason}"));
    }

    /// A disk is attached, and will be brought up to date from a peer (`behind`): with what could not be
    /// read of it.
    pub(crate) fn attached_again(&mut self, v: usize, behind: bool) {
        let again = &mut self.volumes[v].again;
        if !core::mem::take(&mut again.asked) {
            again.tries = 0;
        }
        (again.due, again.passed, again.told) = (None, 0, None);
        let unreadable = core::mem::take(&mut again.unreadable);
        if !behind {
            return;
        }
        for p in 0..self.peers.len() {
            let node = self.peers[p].node;
            if let Some(bitmap) = self.volumes[v].bitmap_mut(node) {
                for &(offset, len) in &unreadable {
                    bitmap.set_bytes(offset, len);
                }
            }
        }
    }
}

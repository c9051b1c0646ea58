//! Resync. The source walks its bitmap: it locks a range against application writes, reads it, sends
//! it behind everything sent before, and unlocks. The target applies in order of arrival under its
//! own overlap lock, so a resync block can never land over a newer write. Bits are cleared when the
//! block is *stable* on the target (the ack of its epoch's barrier), never earlier.
//!
//! Application writes are mirrored all the while. When no bit is left and nothing is unconfirmed the
//! source tells the target its generations; the target adopts them on disk and is UpToDate.

use crate::event::{DiskState, ReplState, Severity};
use crate::generations::same;
use crate::handler::{HandlerKind, Then};
use crate::ids::{BufId, VolumeId};
use crate::metadata::superblock::MdFlags;
use crate::output::{Channel, Output, SendBody};
use crate::overlap::{Acquired, LockId, Mode};
use crate::resource::{Op, Resource};
use crate::resync_rate::RateControl;
use crate::resync_watch::Watch;
use crate::slots::Key;
use crate::time::{Duration, Instant};
use crate::transfer_log::Entry;
use crate::volume::{LockOwner, Waiter};
use alloc::format;
use alloc::string::ToString;
use twinblk_protocol::control::{Generations as WireGenerations, Message};
use twinblk_protocol::frame::{Header, Kind};

/// Largest resync block in bytes.
const MAX_CHUNK: u64 = 256 << 10;
/// Progress after which the target writes its bitmap to disk, so that an interrupted resync resumes.
const CHECKPOINT_BYTES: u64 = 256 << 20;
/// … or after so much time, if there was any progress.
const CHECKPOINT_TIME: Duration = Duration::from_secs(1);

/// Names a [`Chunk`].
pub(crate) type ChunkKey = Key<Chunk>;

/// A range the source is about to send.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) peer: usize,
    pub(crate) link: u64,
    pub(crate) volume: usize,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) lock: Option<LockId>,
    /// A write came over it: it is sent again.
    pub(crate) overtaken: bool,
}

/// A running resync of one volume, on either side.
#[derive(Debug)]
pub(crate) struct Resync {
    /// Where the walk over the bitmap is (source).
    cursor: u64,
    /// Bytes being read or sent and not acknowledged (source).
    in_flight: u64,
    /// Blocks sent and not stable (source).
    unstable: u64,
    /// The generations were told; waiting for the target to adopt them (source).
    finish_sent: bool,
    /// The current one of them.
    told: u64,
    /// The target, a Primary, sends no writes until the end (source).
    pub(crate) writes_held: bool,
    /// It was adopted in memory; the disk has yet to say so (target).
    is_adopting: bool,
    /// Adoption is on its way to the disk (target).
    adopting: Option<(WireGenerations, u16)>,
    /// Bytes out of sync at the start.
    pub(crate) total: u64,
    pub(crate) rate: RateControl,
    /// A block could not be read: nothing more is until then (source).
    retry_at: Option<Instant>,
    /// Whether it gets on.
    pub(crate) watch: Watch,
    /// Bytes left at the last checkpoint, and when it was (target).
    checkpoint: (u64, Instant),
}

impl Resync {
    /// A block is no longer under way (source).
    fn came_back(&mut self, now: Instant, len: u64) {
        self.in_flight = self.in_flight.saturating_sub(len);
        if self.in_flight == 0 {
            self.rate.idle(now);
        }
    }

    /// A block could not be read, and stays marked; it is tried again (source).
    pub(crate) fn block_failed(&mut self, now: Instant, len: u64, again: Instant) {
        self.came_back(now, len);
        self.unstable = self.unstable.saturating_sub(1);
        self.retry_at = Some(again);
    }

    /// The target sends no more writes (source).
    pub(crate) fn hold_writes(&mut self) {
        self.writes_held = true;
    }

    /// Source: the target may have been told that nothing is missing.
    pub(crate) fn finish_sent(&self) -> bool {
        self.finish_sent
    }

    /// The target has the source's generations, and its disk may not have them yet.
    pub(crate) fn is_adopting(&self) -> bool {
        self.is_adopting
    }

    /// Source: bytes under way, and whether only the end is missing.
    pub(crate) fn under_way(&self) -> (u64, bool) {
        (self.in_flight, self.finish_sent)
    }
}

impl Resource {
    /// The resync of a volume begins, on either side.
    pub(crate) fn begin_resync(&mut self, p: usize, v: usize) {
        let node = self.peers[p].node;
        let total = self.volumes[v].out_of_sync(node);
        let peer = self.peers[p].name.clone();
        let role = self.peers[p].volumes[v].replication;
        let text = format!("resync with {peer} begins as {role:?}: {total} bytes are out of sync");
        self.incident(Severity::Info, text);
        let stale = crate::sabotage::is(crate::sabotage::Mistake::ResumeFromStalePosition);
        self.peers[p].volumes[v].resync = Some(Resync {
            cursor: if stale { self.volumes[v].size() / 2 } else { 0 },
            in_flight: 0,
            unstable: 0,
            finish_sent: false,
            told: 0,
            writes_held: false,
            is_adopting: false,
            adopting: None,
            total,
            rate: RateControl::new(self.now),
            watch: Watch::new(self.now, total),
            retry_at: None,
            checkpoint: (total, self.now),
        });
    }

    /// The link is lost, or the disk is.
    pub(crate) fn drop_resync(&mut self, p: usize, v: usize) {
        if self.peers[p].volumes[v].resync.take().is_some() {
            let left = self.volumes[v].out_of_sync(self.peers[p].node);
            let text = format!("resync interrupted; {left} bytes are still out of sync");
            self.incident(Severity::Warning, text);
        }
    }

    /// Source: starts as many blocks as window and rate allow. What clients have in the send queue does not
    /// count: where they keep it full, a resync would starve.
    pub(crate) fn pump_resync(&mut self, p: usize) {
        for v in 0..self.volumes.len() {
            if self.peers[p].volumes[v].replication != ReplState::SyncSource {
                continue;
            }
            while self.resync_step(p, v) {}
        }
    }

    fn resync_step(&mut self, p: usize, v: usize) -> bool {
        let node = self.peers[p].node;
        let pv = &self.peers[p].volumes[v];
        // A Primary that this copy serves writes no faster than its own copy is filled.
        let app_busy = self.clients_are_busy() && !(pv.serves || pv.will_serve);
        let options = &self.cfg.options;
        let (window, cap) = (options.resync_window, options.resync_max_rate);
        let Some(resync) = &mut self.peers[p].volumes[v].resync else {
            return false;
        };
        if resync.finish_sent {
            return false;
        }
        if resync.retry_at.is_some_and(|at| at > self.now) {
            return false;
        }
        resync.retry_at = None;
        let window = resync.rate.window(self.now, window, app_busy);
        if resync.in_flight >= window.max(MAX_CHUNK) {
            return false;
        }
        if !resync.rate.may_send(self.now, cap) {
            return false;
        }
        let Some(bitmap) = self.volumes[v].bitmap(node) else {
            return false;
        };
        if let Some((offset, len)) = bitmap.next_run(resync.cursor, MAX_CHUNK) {
            resync.cursor = offset + len;
            resync.in_flight += len;
            resync.unstable += 1;
            resync.rate.sent(self.now, len);
            self.start_chunk(p, v, offset, len);
            return true;
        }
        if resync.unstable > 0 {
            // The pass is over; the bits of its last blocks fall with their barrier's ack.
            if resync.in_flight == 0 && self.peers[p].log.open_count() > 0 {
                self.send_barrier(p, false);
            }
            return false;
        }
        if bitmap.count_set() > 0 {
            resync.cursor = 0;
            if crate::sabotage::is(crate::sabotage::Mistake::ResumeFromStalePosition)
                && let Some(bitmap) = self.volumes[v].bitmap_mut(node)
            {
                bitmap.clear_all();
            }
            return true;
        }
        let pv = &self.peers[p].volumes[v];
        let held = pv.resync.as_ref().is_some_and(|r| r.writes_held);
        if !(pv.serves || pv.will_serve) || held {
            self.finish_source(p, v);
        }
        false
    }

    fn start_chunk(&mut self, p: usize, v: usize, offset: u64, len: u64) {
        let link = self.peers[p].link_number().unwrap_or(0);
        let chunk = Chunk {
            peer: p,
            link,
            volume: v,
            offset,
            len,
            lock: None,
            overtaken: false,
        };
        let key = self.chunks.insert(chunk);
        let owner = LockOwner::Resync(key);
        if crate::sabotage::is(crate::sabotage::Mistake::ResyncIgnoresWrites) {
            return self.read_chunk_unlocked(key);
        }
        match self.volumes[v]
            .lock
            .acquire(offset, len, Mode::Shared, owner)
        {
            Acquired::Granted(lock) => self.read_chunk(key, lock),
            Acquired::Waiting(_) => {}
        }
    }

    /// Source: the range is locked, read it.
    pub(crate) fn read_chunk(&mut self, key: ChunkKey, lock: LockId) {
        if let Some(chunk) = self.chunks.get_mut(key) {
            chunk.lock = Some(lock);
        }
        self.read_chunk_unlocked(key);
    }

    fn read_chunk_unlocked(&mut self, key: ChunkKey) {
        let op = self.new_op(Op::ResyncRead(key));
        let Some(chunk) = self.chunks.get_mut(key) else {
            return;
        };
        let (v, offset) = (chunk.volume, chunk.offset);
        let len = u32::try_from(chunk.len).expect("chunks are small");
        let volume = self.volumes[v].id;
        self.out.push(Output::DiskRead {
            op,
            volume,
            offset,
            len,
            buf: None,
        });
    }

    /// Source: the range is read; send it behind everything sent so far, then unlock.
    pub(crate) fn chunk_read(
        &mut self,
        key: ChunkKey,
        result: Result<(), i32>,
        zero: bool,
        buf: Option<BufId>,
    ) {
        let Some(chunk) = self.chunks.remove(key) else {
            return;
        };
        let p = chunk.peer;
        let live = self.peers[p].link_number() == Some(chunk.link)
            && self.peers[p].volumes[chunk.volume].resync.is_some();
        match result {
            Ok(()) if live => self.send_chunk(&chunk, zero, buf),
            Ok(()) => {}
            Err(errno) => {
                let range = (chunk.offset, chunk.len);
                if !self.resync_read_fails(p, chunk.volume, errno, range, live) {
                    self.disk_failed(chunk.volume, errno, "a resync read");
                }
            }
        }
        if let Some(buf) = buf {
            self.out.push(Output::ReleaseBuf(buf));
        }
        if let Some(lock) = chunk.lock {
            self.release_lock(chunk.volume, lock);
        }
    }

    fn send_chunk(&mut self, chunk: &Chunk, zero: bool, buf: Option<BufId>) {
        let p = chunk.peer;
        let id = self.volumes[chunk.volume].id;
        let (seq, epoch) = self.peers[p].log.push(Entry {
            volume: id,
            offset: chunk.offset,
            len: chunk.len,
            epoch: 0,
            sent: self.now,
            request: None,
            resync: true,
            acked: false,
            tag: self.next_tag + 1,
            stable: false,
            remote: false,
            overtaken: chunk.overtaken,
        });
        let (kind, body) = match buf {
            Some(buf) if !zero => {
                let len = u32::try_from(chunk.len).expect("chunks are small");
                (Kind::ResyncData, SendBody::Buf { buf, len })
            }
            _ => (Kind::ResyncZeroes, SendBody::None),
        };
        let mut header = Header::new(kind);
        (header.volume, header.seq, header.epoch) = (id.0, seq, epoch);
        (header.offset, header.size) = (chunk.offset, chunk.len);
        self.send(p, Channel::Data, header, body);
        self.close_full_epoch(p);
    }

    /// Source: the target has written a block.
    pub(crate) fn resync_acked(&mut self, p: usize, volume: VolumeId, len: u64) {
        let Some(v) = self.volume_index(volume) else {
            return;
        };
        if let Some(resync) = &mut self.peers[p].volumes[v].resync {
            resync.came_back(self.now, len);
            resync.rate.acked(self.now, len);
        }
    }

    /// Source: a block is stable on the target.
    pub(crate) fn resync_stable(&mut self, p: usize, entry: &Entry) {
        let early = crate::sabotage::is(crate::sabotage::Mistake::BitsBeforeStable);
        if !(early && entry.acked) {
            self.bits_fall(p, entry);
        }
        if !entry.acked {
            self.resync_acked(p, entry.volume, entry.len);
        }
    }

    /// Source: a block is in order on the target.
    pub(crate) fn bits_fall(&mut self, p: usize, entry: &Entry) {
        let node = self.peers[p].node;
        let Some(v) = self.volume_index(entry.volume) else {
            return;
        };
        if !entry.overtaken
            && let Some(bitmap) = self.volumes[v].bitmap_mut(node)
        {
            bitmap.clear_bytes(entry.offset, entry.len);
        }
        if let Some(resync) = &mut self.peers[p].volumes[v].resync {
            resync.unstable -= 1;
        }
    }

    /// Source: no bit is left and nothing is unconfirmed. From here on the target counts as having
    /// our generation: a write it misses makes a new one. That is on the disk before the target is
    /// told: otherwise a crash could leave a source that believes the target to be behind, while it
    /// has become Primary and gone on from this very generation.
    fn finish_source(&mut self, p: usize, v: usize) {
        let node = self.peers[p].node;
        let Some(link) = self.peers[p].link_number() else {
            return;
        };
        let pv = &mut self.peers[p].volumes[v];
        if let Some(resync) = &mut pv.resync {
            resync.finish_sent = true;
        }
        pv.lacks_current = false;
        self.volumes[v].generations.resync_finished_with(node);
        self.commit(v, true, Some(Waiter::ResyncFinished(node, link)));
    }

    /// Source: that the target is in step is on the disk, so it may be told.
    pub(crate) fn tell_resync_finished(&mut self, p: usize, v: usize) {
        let volume = &self.volumes[v];
        let generations = WireGenerations {
            current: volume.generations.current,
            history: volume.generations.history().collect(),
            bases: volume.generations.bases().collect(),
        };
        let in_step = self.in_step(v);
        if let Some(resync) = &mut self.peers[p].volumes[v].resync {
            resync.told = generations.current;
        }
        let message = Message::ResyncFinished {
            volume: volume.id.0,
            generations,
            in_step,
        };
        self.send_message(p, Channel::Data, &message);
    }

    /// Target: the source says that nothing is missing any more.
    pub(crate) fn resync_finished_received(
        &mut self,
        p: usize,
        v: usize,
        generations: WireGenerations,
        in_step: u16,
    ) {
        let node = self.peers[p].node;
        let left = self.volumes[v].bitmap(node).map_or(0, |b| b.count_set());
        let state = self.peers[p].volumes[v].replication;
        let stale = crate::sabotage::is(crate::sabotage::Mistake::ResumeFromStalePosition);
        if stale && let Some(bitmap) = self.volumes[v].bitmap_mut(node) {
            bitmap.clear_all();
        }
        if state != ReplState::SyncTarget || left > 0 && !stale {
            let text = format!("resync finished while {state:?} with {left} blocks out of sync");
            return self.protocol_error(p, text);
        }
        if let Some(resync) = &mut self.peers[p].volumes[v].resync {
            resync.adopting = Some((generations, in_step));
        }
    }

    /// Target: adopts the source's generations. The resynced blocks are on the disk and flushed: a
    /// bit falls only with the flush of its epoch, and none is left.
    pub(crate) fn try_adopt(&mut self, p: usize) {
        let node = self.peers[p].node;
        let Some(link) = self.peers[p].link_number() else {
            return;
        };
        // Its promise to the Primary goes before.
        if self.peers[p].link.as_ref().is_none_or(|l| l.stays_behind) {
            return;
        }
        for v in 0..self.volumes.len() {
            let Some(resync) = &mut self.peers[p].volumes[v].resync else {
                continue;
            };
            let Some((generations, in_step)) = resync.adopting.take() else {
                continue;
            };
            resync.is_adopting = true;
            let volume = &mut self.volumes[v];
            volume.generations.adopt(
                node,
                generations.current,
                &generations.history,
                &generations.bases,
            );
            self.peers[p].volumes[v].lacks_current = false;
            let worth = self.worth_of_source(p, v);
            self.set_flags(v, MdFlags::CONSISTENT, true);
            self.set_flags(v, MdFlags::WAS_UP_TO_DATE, worth > DiskState::Outdated);
            self.reconciled(p, v);
            if self.is_group() {
                if worth == DiskState::UpToDate {
                    self.all_fenced(v);
                    self.no_doubt(v);
                }
                let (primary, secondary) = self.peers[p].volumes[v].start.peer_crashed;
                self.set_flags(v, MdFlags::CRASHED_PRIMARY, primary);
                self.set_flags(v, MdFlags::CRASHED_SECONDARY, secondary);
                // A Primary says it again, when what is on its way to the others has arrived.
                if !self.peers[p].leads() {
                    self.others_in_step(p, v, in_step);
                }
            }
            self.begin_local_reign(v);
            self.commit(v, true, Some(Waiter::ResyncAdopted(node, link)));
        }
    }

    /// Target: what its copy is worth when it equals the source's. With two nodes the source is
    /// current by definition; a third may have newer data.
    pub(crate) fn worth_of_source(&self, p: usize, v: usize) -> DiskState {
        if self.is_group() {
            self.peers[p].volumes[v]
                .disk
                .clamp(DiskState::Outdated, DiskState::UpToDate)
        } else {
            DiskState::UpToDate
        }
    }

    /// Target: the adopted generations are on the disk.
    pub(crate) fn resync_adopted(&mut self, p: usize, v: usize) {
        let name = self.peers[p].name.clone();
        self.peers[p].volumes[v].resync = None;
        if self.is_group() {
            // What was to be given up is gone.
            for peer in &mut self.peers {
                peer.discard_my_data = false;
            }
        }
        let reason = format!("resync from {name} finished");
        let worth = self.worth_of_source(p, v);
        self.set_disk(v, worth, reason.clone());
        self.set_replication(p, v, ReplState::Established, &reason);
        self.serve_locally(v);
        let message = Message::ResyncFinishedAck {
            volume: self.volumes[v].id.0,
            current: self.volumes[v].generations.current,
        };
        self.send_message(p, Channel::Data, &message);
        self.tell_state();
        self.call_handler(
            HandlerKind::AfterResyncTarget,
            Some(p),
            Some(self.volumes[v].id),
            Then::Nothing,
        );
        self.compare_with_others(p);
    }

    /// Source: the target has adopted.
    pub(crate) fn resync_finished_ack_received(&mut self, p: usize, v: usize, current: u64) {
        // A new generation may have followed the end of the resync: the target is at one or the other.
        let mine = self.volumes[v].generations.current;
        let told = self.peers[p].volumes[v]
            .resync
            .as_ref()
            .is_some_and(|r| r.finish_sent && (same(current, r.told) || same(current, mine)));
        if !told {
            let text = "a resync was confirmed that was not finished".to_string();
            return self.protocol_error(p, text);
        }
        self.peers[p].volumes[v].resync = None;
        let reason = format!("resync to {} finished", self.peers[p].name);
        self.incident(Severity::Info, reason.clone());
        self.set_peer_disk(p, v, DiskState::UpToDate, &reason);
        self.set_replication(p, v, ReplState::Established, &reason);
        self.serve_no_more(p, v);
        self.reconciled(p, v);
        self.commit(v, true, None);
    }

    /// Target: writes the bitmap to the disk every so often.
    pub(crate) fn resync_checkpoint(&mut self, p: usize) {
        let node = self.peers[p].node;
        for v in 0..self.volumes.len() {
            if self.peers[p].volumes[v].replication != ReplState::SyncTarget {
                continue;
            }
            let left = self.volumes[v].out_of_sync(node);
            let now = self.now;
            let Some(resync) = &mut self.peers[p].volumes[v].resync else {
                continue;
            };
            resync
                .rate
                .target_progress(now, resync.total.max(left) - left);
            let (before, at) = resync.checkpoint;
            let due = left + CHECKPOINT_BYTES <= before
                || left < before && now.since(at) >= CHECKPOINT_TIME;
            if due && self.volumes[v].meta.is_idle() {
                resync.checkpoint = (left, now);
                self.commit(v, true, None);
            }
        }
    }

    /// When a block that could not be read is tried again, or the rate allows the next.
    pub(crate) fn resync_deadline(&self, p: usize) -> Option<Instant> {
        let cap = self.cfg.options.resync_max_rate;
        self.peers[p]
            .volumes
            .iter()
            .filter(|v| v.replication == ReplState::SyncSource)
            .filter_map(|v| {
                let resync = v.resync.as_ref().filter(|r| !r.finish_sent)?;
                resync.retry_at.or(resync.rate.deadline(self.now, cap))
            })
            .min()
    }
}

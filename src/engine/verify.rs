//! Online verify: both copies are compared block by block, by digests, while the device is in use.
//!
//! One side *leads*: the Primary, else the one where the order was given. It walks the volume. For
//! each range it takes the overlap lock, asks the peer for its digests *in the stream of writes*, and
//! reads its own; then it unlocks. The peer takes its lock for that range in order of arrival among
//! the writes. So both read the range at the same place in the order of writes, with none of them
//! under way on either side: what differs, differs. Before it is believed and told, it is asked for
//! and read once more.
//!
//! Invariants:
//! * application writes wait for one read of a range on each disk, never for the other side's digests;
//! * a difference is told only if two comparisons in a row found it, each with the range quiet on
//!   both sides;
//! * both sides mark what is told, so that neither forgets it: the next resync copies it;
//! * what is under way is bounded like a resync, and by [`MAX_WINDOW`];
//! * a verify ends with its connection, a change of a role or of a disk, and never holds them up.
//!
//! How it begins, ends and repairs is in [`crate::verify_order`].

use crate::event::{ReplState, Severity};
use crate::ids::VolumeId;
use crate::output::{Channel, Output, SendBody};
use crate::overlap::{Acquired, LockId, Mode};
use crate::peer_request::{PeerRequest, PeerRequestKey};
use crate::resource::{Op, Resource};
use crate::resync_rate::RateControl;
use crate::slots::Key;
use crate::time::Instant;
use crate::volume::LockOwner;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use twinblk_protocol::digest::{DIGEST_BLOCK, DIGEST_LEN, digests_len};
use twinblk_protocol::frame::{Header, Kind};

/// Bytes of a range: what a write may have to wait for is one read of it.
pub(crate) const RANGE: u64 = 128 << 10;
/// Bytes under way at most, whatever `resync_window` says.
const MAX_WINDOW: u64 = 32 << 20;
/// Ranges a peer may ask for at once: twice what one that leads asks for.
const MAX_ASKED: usize = 512;
/// Differences that are told one by one; the summary counts the others.
const TOLD: u32 = 32;

/// Names a [`Range`].
pub(crate) type RangeKey = Key<Range>;

/// A range the leading side compares.
#[derive(Debug)]
pub(crate) struct Range {
    peer: usize,
    link: u64,
    run: u64,
    volume: usize,
    offset: u64,
    len: u64,
    /// It differed once.
    again: bool,
    lock: Option<LockId>,
    /// Own digests; `None` until they are read.
    mine: Option<Box<[u8]>>,
    theirs: Option<Box<[u8]>>,
}

impl Range {
    /// Index of its volume.
    pub(crate) fn volume(&self) -> usize {
        self.volume
    }
}

/// A running verify of one volume, on either side.
#[derive(Debug)]
pub(crate) struct Verify {
    /// Its number, the same on both sides.
    pub(crate) run: u64,
    /// This side walks and compares.
    pub(crate) leads: bool,
    /// What differs is repaired at the end.
    pub(crate) repair: bool,
    /// Bytes of the volume.
    pub(crate) total: u64,
    /// Next byte to ask for (leading), or end of what was asked for.
    pub(crate) cursor: u64,
    /// Bytes compared.
    pub(crate) checked: u64,
    /// Bytes that differ.
    pub(crate) different: u64,
    pub(crate) rate: RateControl,
    /// Ranges under way (leading).
    open: u64,
    /// The difference found last, not told yet: it may go on in the next block.
    found: Option<(u64, u64)>,
    told: u32,
    /// Marks that are not on their way to the disk.
    unsaved: bool,
}

impl Verify {
    pub(crate) fn new(run: u64, leads: bool, repair: bool, total: u64, now: Instant) -> Self {
        Self {
            run,
            leads,
            repair,
            total,
            cursor: 0,
            checked: 0,
            different: 0,
            rate: RateControl::new(now),
            open: 0,
            found: None,
            told: 0,
            unsaved: false,
        }
    }

    /// Bytes under way (leading).
    #[cfg(test)]
    pub(crate) fn under_way(&self) -> u64 {
        self.open * RANGE
    }
}

impl Resource {
    /// Leading: asks for as many ranges as window and rate allow.
    pub(crate) fn pump_verify(&mut self, p: usize) {
        for v in 0..self.volumes.len() {
            self.check_verify(p, v);
            self.save_verify_marks(p, v);
            while self.verify_step(p, v) {}
        }
    }

    fn verify_step(&mut self, p: usize, v: usize) -> bool {
        let app_busy = self.clients_are_busy();
        let (window, cap) = {
            let options = &self.cfg.options;
            let window = options.resync_window.min(MAX_WINDOW);
            (window, options.resync_max_rate)
        };
        let Some(verify) = &mut self.peers[p].volumes[v].verify else {
            return false;
        };
        if !verify.leads {
            return false;
        }
        if verify.cursor >= verify.total {
            if verify.open == 0 {
                self.finish_verify(p, v);
            }
            return false;
        }
        let window = verify.rate.window(self.now, window, app_busy).max(RANGE);
        if verify.open * RANGE >= window {
            return false;
        }
        if !verify.rate.may_send(self.now, cap) {
            return false;
        }
        let offset = verify.cursor;
        let len = RANGE.min(verify.total - offset);
        verify.cursor += len;
        self.compare(p, v, offset, len, false);
        true
    }

    /// Leading: begins to compare a range.
    fn compare(&mut self, p: usize, v: usize, offset: u64, len: u64, again: bool) {
        let link = self.peers[p].link_number().unwrap_or(0);
        let now = self.now;
        let Some(verify) = &mut self.peers[p].volumes[v].verify else {
            return;
        };
        verify.open += 1;
        verify.rate.sent(now, len);
        let key = self.ranges.insert(Range {
            peer: p,
            link,
            run: verify.run,
            volume: v,
            offset,
            len,
            again,
            lock: None,
            mine: None,
            theirs: None,
        });
        let owner = LockOwner::Verify(key);
        match self.volumes[v]
            .lock
            .acquire(offset, len, Mode::Shared, owner)
        {
            Acquired::Granted(lock) => self.read_range(key, lock),
            Acquired::Waiting(_) => {}
        }
    }

    /// Leading: no write is under way in the range. The peer is asked behind all that were, and
    /// nothing is written here until it is read.
    pub(crate) fn read_range(&mut self, key: RangeKey, lock: LockId) {
        let Some(range) = self.ranges.get_mut(key) else {
            return;
        };
        range.lock = Some(lock);
        let (p, v, link) = (range.peer, range.volume, range.link);
        let (offset, len, run) = (range.offset, range.len, range.run);
        if self.current_run(p, v, link) != Some(run) {
            self.ranges.remove(key);
            return self.release_lock(v, lock);
        }
        let volume = self.volumes[v].id;
        let mut ask = Header::new(Kind::VerifyAsk);
        (ask.volume, ask.seq, ask.epoch) = (volume.0, key.raw(), run);
        (ask.offset, ask.size) = (offset, len);
        self.send(p, Channel::Data, ask, SendBody::None);
        let op = self.new_op(Op::VerifyRead(key));
        self.push_digest(op, volume, offset, len);
    }

    fn push_digest(&mut self, op: crate::ids::OpId, volume: VolumeId, offset: u64, len: u64) {
        self.out.push(Output::DiskDigest {
            op,
            volume,
            offset,
            len: u32::try_from(len).expect("ranges are small"),
        });
    }

    /// Number of the verify that runs, if the link still is this one.
    fn current_run(&self, p: usize, v: usize, link: u64) -> Option<u64> {
        if self.peers[p].link_number() != Some(link) {
            return None;
        }
        self.peers[p].volumes[v].verify.as_ref().map(|v| v.run)
    }

    /// Leading: the own digests of a range.
    pub(crate) fn range_read(&mut self, key: RangeKey, result: Result<Box<[u8]>, i32>) {
        let Some(range) = self.ranges.get_mut(key) else {
            return;
        };
        let (p, v, link, run) = (range.peer, range.volume, range.link, range.run);
        if let Some(lock) = range.lock.take() {
            self.release_lock(v, lock);
        }
        match result {
            Ok(digests) if self.current_run(p, v, link) == Some(run) => {
                if let Some(range) = self.ranges.get_mut(key) {
                    range.mine = Some(digests);
                }
                self.compare_digests(key);
            }
            Ok(_) => {
                self.ranges.remove(key);
            }
            Err(errno) => {
                self.ranges.remove(key);
                self.disk_failed(v, errno, "a read for verify");
            }
        }
    }

    /// Of a verify frame: the volume, or `None` when the frame is to be left alone: the verify it
    /// belongs to has ended here, or it is a mistake of the peer.
    fn verify_frame(&mut self, p: usize, header: &Header, for_leader: bool) -> Option<usize> {
        let known = self.volume_index(VolumeId(header.volume));
        if let Some(v) = known
            && self.peers[p].is_agreed()
        {
            let pv = &self.peers[p].volumes[v];
            let end = header.offset.checked_add(header.size);
            let fits = header.size > 0
                && header.size <= RANGE
                && header.offset.is_multiple_of(DIGEST_BLOCK as u64);
            match &pv.verify {
                Some(run)
                    if run.run == header.epoch
                        && run.leads == for_leader
                        && fits
                        && end.is_some_and(|end| end <= run.total) =>
                {
                    return Some(v);
                }
                // It was on its way when this side ended the verify.
                None if pv.ended_verify == Some(header.epoch) => return None,
                _ => {}
            }
        }
        let text = format!(
            "a {:?} frame of verify {} for {} bytes at byte {} that nobody asked for",
            header.kind, header.epoch, header.size, header.offset
        );
        self.protocol_error(p, text);
        None
    }

    /// Following: the peer asks for digests. The question keeps its place among the peer's writes.
    pub(crate) fn verify_asked(&mut self, p: usize, header: Header) {
        let Some(v) = self.verify_frame(p, &header, false) else {
            return;
        };
        if self.peers[p].asked_ranges >= MAX_ASKED {
            let text = format!("more than {MAX_ASKED} ranges asked for at once");
            return self.protocol_error(p, text);
        }
        self.peers[p].asked_ranges += 1;
        let now = self.now;
        if let Some(verify) = &mut self.peers[p].volumes[v].verify {
            let end = header.offset + header.size;
            if end > verify.cursor {
                verify.checked += end - verify.cursor;
                verify.rate.acked(now, end - verify.cursor);
                verify.cursor = end;
            }
        }
        let link = self.peers[p].link_number().unwrap_or(0);
        let key = self.peer_requests.insert(PeerRequest {
            peer: p,
            link,
            volume: v,
            header,
            buf: None,
            lock: None,
        });
        match self.peers[p].receiver.holds_now() {
            Some(epoch) => self.peers[p].receiver.hold(epoch, key),
            None => self.lock_peer_write(key),
        }
    }

    /// Following: the range is held, its digests are read.
    pub(crate) fn read_asked(&mut self, key: PeerRequestKey) {
        let Some(r) = self.peer_requests.get(key) else {
            return;
        };
        let h = r.header;
        let op = self.new_op(Op::PeerDigest(key));
        self.push_digest(op, VolumeId(h.volume), h.offset, h.size);
    }

    /// Following: the digests of a range are answered.
    pub(crate) fn asked_read(&mut self, key: PeerRequestKey, result: Result<Box<[u8]>, i32>) {
        let Some(r) = self.peer_requests.remove(key) else {
            return;
        };
        if let Some(lock) = r.lock {
            self.release_lock(r.volume, lock);
        }
        let p = r.peer;
        self.peers[p].asked_ranges = self.peers[p].asked_ranges.saturating_sub(1);
        match result {
            Ok(digests) => {
                if self.current_run(p, r.volume, r.link) == Some(r.header.epoch) {
                    let mut header = r.header;
                    header.kind = Kind::VerifyDigests;
                    let body = SendBody::Bytes(digests.into_vec());
                    self.send(p, Channel::Data, header, body);
                }
            }
            Err(errno) => self.disk_failed(r.volume, errno, "a read for verify"),
        }
        self.flush_ready_epochs(p);
    }

    /// Leading: the peer's digests of a range.
    pub(crate) fn digests_received(&mut self, p: usize, header: &Header, digests: Box<[u8]>) {
        if self.verify_frame(p, header, true).is_none() {
            return;
        }
        let key = RangeKey::from_raw(header.seq);
        let asked = self.ranges.get_mut(key).filter(|r| {
            r.peer == p
                && r.run == header.epoch
                && (r.offset, r.len) == (header.offset, header.size)
                && r.theirs.is_none()
        });
        let Some(range) = asked else {
            let text = format!("digests that were not asked for: {header:?}");
            return self.protocol_error(p, text);
        };
        range.theirs = Some(digests);
        self.compare_digests(key);
    }

    /// Leading: compares, once both have told theirs.
    fn compare_digests(&mut self, key: RangeKey) {
        let both = |r: &&Range| r.mine.is_some() && r.theirs.is_some();
        if self.ranges.get(key).filter(both).is_none() {
            return;
        }
        let Some(range) = self.ranges.remove(key) else {
            return;
        };
        let (p, v, offset, len) = (range.peer, range.volume, range.offset, range.len);
        let now = self.now;
        let Some(verify) = &mut self.peers[p].volumes[v].verify else {
            return;
        };
        verify.open -= 1;
        let equal = range.mine == range.theirs;
        // Part of the same burst: with a rest begun before it, it would go in that.
        if !equal && !range.again {
            return self.compare(p, v, offset, len, true);
        }
        if verify.open == 0 {
            verify.rate.idle(now);
        }
        verify.checked += len;
        verify.rate.acked(now, len);
        if equal {
            return;
        }
        let (mine, theirs) = (
            range.mine.unwrap_or_default(),
            range.theirs.unwrap_or_default(),
        );
        debug_assert_eq!(mine.len() as u64, digests_len(len));
        let blocks = mine.chunks(DIGEST_LEN).zip(theirs.chunks(DIGEST_LEN));
        let mut from = None;
        let mut at = offset;
        let mut runs = Vec::new();
        for (mine, theirs) in blocks {
            if mine == theirs {
                runs.extend(from.take().map(|from| (from, at - from)));
            } else {
                from.get_or_insert(at);
            }
            at = (at + DIGEST_BLOCK as u64).min(offset + len);
        }
        runs.extend(from.map(|from| (from, at - from)));
        let id = self.volumes[v].id.0;
        for (offset, len) in runs {
            let mut header = Header::new(Kind::OutOfSync);
            (header.volume, header.epoch) = (id, range.run);
            (header.offset, header.size) = (offset, len);
            self.send(p, Channel::Data, header, SendBody::None);
            self.differs(p, v, offset, len);
        }
    }

    /// Following: the leading side found a difference.
    pub(crate) fn out_of_sync_received(&mut self, p: usize, header: &Header) {
        if let Some(v) = self.verify_frame(p, header, false) {
            self.differs(p, v, header.offset, header.size);
        }
    }

    /// Marks a difference. Neighbours are told together.
    fn differs(&mut self, p: usize, v: usize, offset: u64, len: u64) {
        let node = self.peers[p].node;
        if let Some(bitmap) = self.volumes[v].bitmap_mut(node) {
            bitmap.set_bytes(offset, len);
        }
        let Some(verify) = &mut self.peers[p].volumes[v].verify else {
            return;
        };
        verify.different += len;
        verify.unsaved = true;
        match &mut verify.found {
            Some((from, there)) if *from + *there == offset => *there += len,
            Some((from, there)) if offset + len == *from => {
                *from = offset;
                *there += len;
            }
            found => {
                let before = found.replace((offset, len));
                self.tell_difference(p, v, before);
            }
        }
    }

    fn tell_difference(&mut self, p: usize, v: usize, found: Option<(u64, u64)>) {
        let Some((offset, len)) = found else { return };
        let (name, id) = (self.peers[p].name.clone(), self.volumes[v].id);
        let Some(verify) = &mut self.peers[p].volumes[v].verify else {
            return;
        };
        verify.told += 1;
        let more = match verify.told {
            1..TOLD => "",
            TOLD => "; further differences are only counted",
            _ => return,
        };
        let text = format!(
            "verify: {id} differs from {name} in {len} bytes at byte {offset}; they are marked out \
             of sync{more}"
        );
        self.incident(Severity::Warning, text);
    }

    /// The difference found last is told, all marks go to the disk.
    pub(crate) fn flush_differences(&mut self, p: usize, v: usize) {
        let found = self.peers[p].volumes[v]
            .verify
            .as_mut()
            .and_then(|run| run.found.take());
        self.tell_difference(p, v, found);
        if let Some(verify) = &mut self.peers[p].volumes[v].verify
            && core::mem::take(&mut verify.unsaved)
        {
            self.commit(v, true, None);
        }
    }

    /// Marks go to the disk as the verify goes on, many at a time.
    fn save_verify_marks(&mut self, p: usize, v: usize) {
        let idle = self.volumes[v].meta.is_idle();
        if let Some(verify) = &mut self.peers[p].volumes[v].verify
            && idle
            && core::mem::take(&mut verify.unsaved)
        {
            self.commit(v, true, None);
        }
    }

    /// Leading: ranges that wait for nothing but the peer are forgotten.
    pub(crate) fn forget_ranges(&mut self, p: usize, v: usize) {
        let waits = |r: &Range| r.peer == p && r.volume == v && r.mine.is_some();
        let gone: Vec<RangeKey> = self
            .ranges
            .iter()
            .filter(|(_, r)| waits(r))
            .map(|(key, _)| key)
            .collect();
        for key in gone {
            self.ranges.remove(key);
        }
    }

    /// When the rate allows the next range.
    pub(crate) fn verify_deadline(&self, p: usize) -> Option<Instant> {
        let cap = self.cfg.options.resync_max_rate;
        self.peers[p]
            .volumes
            .iter()
            .filter_map(|v| {
                v.verify
                    .as_ref()
                    .filter(|run| run.leads)?
                    .rate
                    .deadline(self.now, cap)
            })
            .min()
    }

    /// Whether a verify runs with this peer.
    pub(crate) fn is_verifying(&self, p: usize) -> bool {
        self.peers[p].volumes.iter().any(|v| v.verify.is_some())
    }

    /// How far it is, in words.
    pub(crate) fn verify_words(verify: &Verify) -> String {
        let different = match verify.different {
            0 => "no difference".to_string(),
            bytes => format!("{bytes} bytes that differ"),
        };
        format!(
            "{} of {} bytes compared, {different}",
            verify.checked, verify.total
        )
    }
}

/// The states of a verify: it mirrors as `Established` does.
pub(crate) const fn is_verify(state: ReplState) -> bool {
    matches!(state, ReplState::VerifyS | ReplState::VerifyT)
}

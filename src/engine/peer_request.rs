//! The receiving side of replication: a peer's write or resync block, from its frame to its ack.
//!
//! received → (held behind an ordered barrier) → holds its range in the overlap lock, in order of
//! arrival → written → acknowledged as the protocol asks → counted in its epoch, whose barrier is
//! acknowledged once everything in it is flushed.

use crate::event::DiskState;
use crate::ids::{BufId, VolumeId};
use crate::input::Body;
use crate::output::{Channel, Output, SendBody, ZeroMode};
use crate::overlap::{Acquired, LockId, Mode};
use crate::resource::{Op, Resource};
use crate::slots::Key;
use crate::volume::LockOwner;
use alloc::format;
use alloc::string::String;
use twinblk_protocol::control::{Protocol, ReplState};
use twinblk_protocol::frame::{Header, Kind, flags};

/// Names a [`PeerRequest`].
pub(crate) type PeerRequestKey = Key<PeerRequest>;

/// A write that came from a peer, or its question for the digests of a range.
#[derive(Debug)]
pub(crate) struct PeerRequest {
    /// Index of the peer.
    pub(crate) peer: usize,
    /// The link it came on.
    pub(crate) link: u64,
    /// Index of the volume.
    pub(crate) volume: usize,
    pub(crate) header: Header,
    pub(crate) buf: Option<BufId>,
    pub(crate) lock: Option<LockId>,
}

impl PeerRequest {
    /// A client of the peer waits for it.
    pub(crate) fn is_of_a_client(&self) -> bool {
        !self.is_resync() && self.header.kind != Kind::VerifyAsk
    }

    fn is_resync(&self) -> bool {
        matches!(self.header.kind, Kind::ResyncData | Kind::ResyncZeroes)
    }
}

impl Resource {
    /// A write, discard, zeroes or resync frame arrived.
    pub(crate) fn peer_write(&mut self, peer: usize, header: Header, body: Body) {
        let buf = match body {
            Body::Buf(buf) => Some(buf),
            _ => None,
        };
        if let Err(text) = self.check_peer_write(peer, &header, buf.is_some()) {
            if let Some(buf) = buf {
                self.out.push(Output::ReleaseBuf(buf));
            }
            return self.protocol_error(peer, text);
        }
        let volume = VolumeId(header.volume);
        let hold = match self.peers[peer].receiver.received(header.epoch, volume) {
            Ok(hold) => hold,
            Err(error) => {
                if let Some(buf) = buf {
                    self.out.push(Output::ReleaseBuf(buf));
                }
                return self.protocol_error(peer, format!("{error:?}"));
            }
        };
        let resync = matches!(header.kind, Kind::ResyncData | Kind::ResyncZeroes);
        if let Some(v) = self.volume_index(volume) {
            self.note_peer_write(peer, v, header.offset, header.size, resync);
            if !resync {
                self.mark_served(peer, v, header.offset, header.size);
                self.volumes[v].lineage = 0;
            }
        }
        if self.cfg.options.protocol == Protocol::B && !resync {
            let mut ack = Header::new(Kind::RecvAck);
            (ack.seq, ack.volume) = (header.seq, header.volume);
            self.send(peer, Channel::Control, ack, SendBody::None);
        }
        let link = self.peers[peer].link_number().unwrap_or(0);
        let index = self.volume_index(volume).unwrap_or(0);
        let key = self.peer_requests.insert(PeerRequest {
            peer,
            link,
            volume: index,
            header,
            buf,
            lock: None,
        });
        if hold {
            self.peers[peer].receiver.hold(header.epoch, key);
        } else {
            self.lock_peer_write(key);
        }
    }

    /// What a peer may not send: nothing of it reaches the disk.
    fn check_peer_write(&self, peer: usize, header: &Header, has_buf: bool) -> Result<(), String> {
        let Some(volume) = self.volume_index(VolumeId(header.volume)) else {
            return Err(format!(
                "a write for volume {}, which does not exist",
                header.volume
            ));
        };
        let state = self.peers[peer].volumes[volume].replication;
        let resync = matches!(header.kind, Kind::ResyncData | Kind::ResyncZeroes);
        let serves = self.peers[peer].volumes[volume].serves && !resync;
        let allowed = match state {
            ReplState::WFBitMapS | ReplState::SyncSource => serves,
            ReplState::SyncTarget | ReplState::PausedSyncT => true,
            ReplState::Established | ReplState::VerifyS | ReplState::VerifyT => !resync,
            _ => false,
        };
        if !allowed || !self.peers[peer].is_agreed() || self.peers[peer].is_parked() {
            return Err(format!(
                "a {:?} frame while the replication is {state:?}",
                header.kind
            ));
        }
        let mended = resync && self.volumes[volume].remote.is_some();
        if self.role == crate::event::Role::Primary && !mended {
            return Err(format!(
                "a {:?} frame although this node is Primary",
                header.kind
            ));
        }
        let v = &self.volumes[volume];
        let block = u64::from(v.block_size);
        let fits = header
            .offset
            .checked_add(header.size)
            .is_some_and(|end| end <= v.device_size());
        let aligned = header.offset.is_multiple_of(block) && header.size.is_multiple_of(block);
        let bulk = matches!(header.kind, Kind::Write | Kind::ResyncData);
        if !fits || !aligned || header.size == 0 || bulk != has_buf {
            return Err(format!(
                "a {:?} frame of {} bytes at byte {} does not fit {}",
                header.kind, header.size, header.offset, v.id
            ));
        }
        Ok(())
    }

    pub(crate) fn lock_peer_write(&mut self, key: PeerRequestKey) {
        let Some(r) = self.peer_requests.get(key) else {
            return;
        };
        let (volume, offset, size) = (r.volume, r.header.offset, r.header.size);
        let mode = if r.header.kind == Kind::VerifyAsk {
            Mode::Shared
        } else {
            Mode::Exclusive
        };
        let owner = LockOwner::Peer(key);
        match self.volumes[volume].lock.acquire(offset, size, mode, owner) {
            Acquired::Granted(lock) => self.start_peer_write(key, lock),
            Acquired::Waiting(_) => {}
        }
    }

    /// The range is held: write. Not to a disk that has failed: it lacks an earlier write, and with
    /// a later one it would be no disk the Primary's could ever have been.
    pub(crate) fn start_peer_write(&mut self, key: PeerRequestKey, lock: LockId) {
        let Some(r) = self.peer_requests.get_mut(key) else {
            return;
        };
        r.lock = Some(lock);
        if r.header.kind == Kind::VerifyAsk {
            return self.read_asked(key);
        }
        if matches!(
            self.volumes[r.volume].disk,
            DiskState::Failed | DiskState::Diskless
        ) {
            return self.doomed.push_back(key);
        }
        if !r.is_resync() {
            let (peer, volume, h) = (r.peer, r.volume, r.header);
            self.mark_served(peer, volume, h.offset, h.size);
        }
        let op = self.new_op(Op::PeerWrite(key));
        let Some(r) = self.peer_requests.get_mut(key) else {
            return;
        };
        let (h, buf) = (r.header, r.buf);
        let volume = VolumeId(h.volume);
        let fua = h.flags & flags::FUA != 0;
        self.out.push(match buf {
            Some(buf) => {
                let len = u32::try_from(h.size).expect("frames are smaller than 4 GiB");
                Output::DiskWrite {
                    op,
                    volume,
                    offset: h.offset,
                    len,
                    buf,
                    fua,
                }
            }
            None => {
                let allocate = h.flags & flags::NO_HOLE != 0;
                let mode = if allocate {
                    ZeroMode::Allocate
                } else {
                    ZeroMode::Punch
                };
                Output::DiskZero {
                    op,
                    volume,
                    offset: h.offset,
                    len: h.size,
                    mode,
                    fua,
                }
            }
        });
    }

    /// Ends the writes that never were started.
    pub(crate) fn end_doomed(&mut self) {
        while let Some(key) = self.doomed.pop_front() {
            self.peer_write_done(key, Err(crate::request::errno::EIO));
        }
    }

    /// The disk has it, or not.
    pub(crate) fn peer_write_done(&mut self, key: PeerRequestKey, result: Result<(), i32>) {
        let Some(r) = self.peer_requests.remove(key) else {
            return;
        };
        if let Some(buf) = r.buf {
            self.out.push(Output::ReleaseBuf(buf));
        }
        if let Some(lock) = r.lock {
            self.release_lock(r.volume, lock);
        }
        let live = self.peers[r.peer].link_number() == Some(r.link);
        let h = r.header;
        let resynced =
            (r.is_resync() && result.is_ok()).then_some((VolumeId(h.volume), h.offset, h.size));
        match result {
            Ok(()) if live => self.ack_peer_write(&r),
            Ok(()) => {}
            Err(errno) => {
                if live {
                    let mut nack = Header::new(Kind::NegAck);
                    (nack.seq, nack.volume) = (h.seq, h.volume);
                    nack.size = u64::from(errno.unsigned_abs());
                    self.send(r.peer, Channel::Control, nack, SendBody::None);
                }
                self.disk_failed(r.volume, errno, "a write from a peer");
            }
        }
        if crate::sabotage::is(crate::sabotage::Mistake::BitsBeforeStable) && resynced.is_some() {
            let node = self.peers[r.peer].node;
            if let Some(bitmap) = self.volumes[r.volume].bitmap_mut(node) {
                bitmap.clear_bytes(h.offset, h.size);
            }
        }
        self.peers[r.peer].receiver.written(h.epoch, resynced);
        self.flush_ready_epochs(r.peer);
    }

    fn ack_peer_write(&mut self, r: &PeerRequest) {
        let mut ack = Header::new(if r.is_resync() {
            Kind::ResyncAck
        } else {
            Kind::WriteAck
        });
        (ack.seq, ack.volume, ack.size) = (r.header.seq, r.header.volume, r.header.size);
        if r.header.flags & flags::FUA != 0 || self.volumes[r.volume].no_volatile_cache {
            ack.flags |= flags::STABLE;
        }
        let asked = r.header.flags & flags::ACK != 0;
        if r.is_resync() || asked || self.cfg.options.protocol == Protocol::C {
            self.send(r.peer, Channel::Control, ack, SendBody::None);
        }
    }

    /// A barrier arrived.
    pub(crate) fn barrier_received(&mut self, peer: usize, header: &Header) {
        let ordered = header.flags & flags::ORDERED != 0;
        if let Err(e) = self.peers[peer]
            .receiver
            .barrier(header.epoch, header.size, ordered)
        {
            return self.protocol_error(peer, format!("{e:?}"));
        }
        self.flush_ready_epochs(peer);
    }

    /// Flushes epochs whose writes are all on the disk, acknowledges flushed ones, and lets go what
    /// they held.
    pub(crate) fn flush_ready_epochs(&mut self, peer: usize) {
        loop {
            if let Some(volumes) = self.peers[peer].receiver.start_flush() {
                for &volume in &volumes {
                    let op = self.new_op(Op::EpochFlush(peer, volume));
                    self.out.push(Output::DiskFlush { op, volume });
                }
                self.peers[peer].receiver.give_back(volumes);
            }
            let Some(flushed) = self.peers[peer].receiver.take_flushed() else {
                break;
            };
            let node = self.peers[peer].node;
            for (volume, offset, len) in flushed.resynced {
                if let Some(v) = self.volume_index(volume)
                    && let Some(bitmap) = self.volumes[v].bitmap_mut(node)
                {
                    bitmap.clear_bytes(offset, len);
                }
            }
            if !flushed.orphan {
                let mut ack = Header::new(Kind::BarrierAck);
                (ack.epoch, ack.size) = (flushed.epoch, flushed.count);
                self.send(peer, Channel::Control, ack, SendBody::None);
            }
            self.release_held_peer_writes(peer);
        }
    }

    /// Starts what was held and may go to the disk now.
    pub(crate) fn release_held_peer_writes(&mut self, peer: usize) {
        while let Some(key) = self.peers[peer].receiver.next_released() {
            self.lock_peer_write(key);
        }
    }

    /// The flush of an epoch ended.
    pub(crate) fn epoch_flush_done(
        &mut self,
        peer: usize,
        volume: VolumeId,
        result: Result<(), i32>,
    ) {
        if let Err(errno) = result
            && let Some(v) = self.volume_index(volume)
        {
            // Never acknowledge what could not be flushed: the disk is out of use from here, and
            // the link is closed so that the sender marks everything unconfirmed.
            self.disk_failed(v, errno, "a flush");
            let text = format!("this node's disk failed to flush (errno {errno})");
            self.close_link(peer, crate::event::ConnState::ProtocolError, text);
        }
        self.peers[peer].receiver.flush_done();
        self.flush_ready_epochs(peer);
    }

    /// Nothing a peer sent is unfinished.
    pub(crate) fn receivers_idle(&self) -> bool {
        self.peer_requests.len() == 0 && self.peers.iter().all(|p| p.receiver.is_idle())
    }
}

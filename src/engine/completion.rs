//! When may a client be answered, and what each acknowledgement changes.
//!
//! | protocol | a write waits, besides the local disk, for each receiving peer's |
//! |---|---|
//! | A | place in the send queue (that is: nothing more) |
//! | B | RecvAck |
//! | C | WriteAck |
//!
//! A flush waits for the local flush and, under C, for the ack of its barrier. While a new
//! generation is on its way to the disk no write or flush of the volume is answered at all.

use crate::input::RequestKind;
use crate::output::{Output, ReplyError};
use crate::remote::Access;
use crate::request::{LocalPart, Request, RequestKey, errno};
use crate::resource::Resource;
use crate::transfer_log::Entry;
use alloc::vec::Vec;
use twinblk_protocol::control::Protocol;
use twinblk_protocol::frame::{Header, Kind, flags};

impl Resource {
    /// The local disk finished its part of a client's write or flush.
    pub(crate) fn local_part_done(&mut self, key: RequestKey, result: Result<(), i32>) {
        let Some(r) = self.requests.get_mut(key) else {
            return;
        };
        r.local = match result {
            Ok(()) => LocalPart::Done,
            Err(e) => LocalPart::Failed(e),
        };
        let volume = r.volume;
        // A write with FUA ends with a flush on most disks.
        let flush = r.kind == RequestKind::Flush || r.fua;
        let range = (r.offset, r.len);
        let lock = if r.rest > 0 && result.is_ok() {
            None
        } else {
            r.lock.take()
        };
        self.release_extents(key);
        // The range is free for the next write as soon as the local disk has this one: the peers
        // keep the order of the stream.
        if let Some(lock) = lock {
            self.release_lock(volume, lock);
        }
        if let Err(e) = result {
            if self.volumes[volume].remote.is_none() && !self.may_go_remote() {
                self.release_extents(key);
            }
            if flush {
                self.disk_failed(volume, e, "a flush, or a write with one,");
            } else {
                self.write_error(volume, e, range);
            }
        }
        self.try_complete(key);
    }

    /// A write that holds its range but was never started, and never will be, gets an error. Unlike
    /// a failed write it says nothing about the disk.
    pub(crate) fn fail_unstarted(&mut self, key: RequestKey) {
        self.started += 1;
        let Some(r) = self.requests.get_mut(key) else {
            return;
        };
        r.local = LocalPart::Refused;
        let (volume, lock) = (r.volume, r.lock.take());
        self.release_extents(key);
        if let Some(lock) = lock {
            self.release_lock(volume, lock);
        }
        self.try_complete(key);
    }

    /// A read ended.
    pub(crate) fn read_done(&mut self, key: RequestKey, result: Result<(), i32>) {
        if let (Err(e), Some(r)) = (result, self.requests.get(key)) {
            let (volume, range) = (r.volume, (r.offset, r.len));
            self.read_error(volume, e, range);
        }
        // Or it begins anew when the handler has ended.
        if let (Err(e), Some(r)) = (result, self.requests.get_mut(key))
            && self.volumes[r.volume]
                .remote
                .as_ref()
                .is_some_and(|x| x.quiet)
        {
            r.local = LocalPart::Failed(e);
            return;
        }
        // It may have begun anew, from the peer's copy.
        let Some(r) = self.requests.remove(key) else {
            return;
        };
        let result = match result {
            Ok(()) => Ok(()),
            Err(_) => Err(ReplyError {
                errno: errno::EIO,
                text: "the local disk failed to read",
            }),
        };
        self.out.push(Output::Reply { tag: r.tag, result });
    }

    /// Answers the client if everything it waits for has come.
    pub(crate) fn try_complete(&mut self, key: RequestKey) {
        let Some(r) = self.requests.get(key) else {
            return;
        };
        let remote = self.volumes[r.volume].remote.is_some();
        let failed = !self.volumes[r.volume].has_disk() && !remote;
        let outdated = self.volumes[r.volume].disk == crate::event::DiskState::Outdated;
        let error = match r.local {
            LocalPart::NotStarted | LocalPart::InFlight => return,
            // Neither a generation nor a mark of a disk that failed can be relied upon: what was not
            // answered before is not answered with success.
            _ if r.given_up => Some(ReplyError {
                errno: errno::EIO,
                text: "I/O was held back, and was given up by an order",
            }),
            LocalPart::Done if failed => Some(ReplyError {
                errno: errno::EIO,
                text: "the local disk has failed",
            }),
            // Another node has gone on without this write.
            LocalPart::Done if outdated => Some(ReplyError {
                errno: errno::EIO,
                text: "the local disk is Outdated: another node is Primary",
            }),
            LocalPart::Done => None,
            LocalPart::Refused => Some(ReplyError {
                errno: errno::EIO,
                text: "no current copy could be written to (see `twinblk why`)",
            }),
            LocalPart::Failed(_) => Some(ReplyError {
                errno: errno::EIO,
                text: match r.kind {
                    RequestKind::Flush => "the local disk failed to flush",
                    _ => "the local disk failed to write",
                },
            }),
        };
        if r.awaiting != 0 && !crate::sabotage::is(crate::sabotage::Mistake::AckBeforePeer) {
            return;
        }
        // What the own copy lacks is confirmed only when the generations say so.
        // While a handler runs before the peer is told, nothing is decided.
        let quiet = self.volumes[r.volume]
            .remote
            .as_ref()
            .is_some_and(|r| r.quiet);
        let open = error.is_none() || quiet && !r.given_up;
        let waits = remote && open && !matches!(self.access(r.volume), Access::Remote(_));
        let v = &self.volumes[r.volume];
        let held = v.bump_running || v.bump_owed || self.suspended.any() || waits;
        // Nothing could change what a request gets that has changed nothing.
        if held && r.local != LocalPart::Refused {
            return self.hold(key);
        }
        if r.rest > 0 && error.is_none() {
            return self.next_part(key);
        }
        let (tag, volume) = (r.tag, r.volume);
        let (lock, buf) = self
            .requests
            .remove(key)
            .map_or((None, None), |r| (r.lock, r.buf));
        self.started -= 1;
        if let Some(buf) = buf {
            self.out.push(Output::ReleaseBuf(buf));
        }
        if let Some(lock) = lock {
            self.release_lock(volume, lock);
        }
        self.out.push(Output::Reply {
            tag,
            result: error.map_or(Ok(()), Err),
        });
    }

    /// A part of a long request is done everywhere: the next one stands at the gate.
    fn next_part(&mut self, key: RequestKey) {
        let Some(r) = self.requests.get_mut(key) else {
            return;
        };
        let v = r.volume;
        r.offset += r.len;
        r.len = r.rest;
        r.rest = 0;
        r.local = LocalPart::NotStarted;
        self.started -= 1;
        if self.volumes[v].remote.is_some() {
            // Its range is not locked any more: what came later and overlaps is in this queue.
            self.gated.push_front(key);
        } else {
            self.gated.push_back(key);
        }
    }

    /// The answer waits.
    fn hold(&mut self, key: RequestKey) {
        if let Some(r) = self.requests.get_mut(key)
            && !core::mem::replace(&mut r.held, true)
        {
            self.held.push(key);
        }
    }

    /// The new generation is on the disk: what waited for it may be answered.
    pub(crate) fn release_held(&mut self) {
        for key in core::mem::take(&mut self.held) {
            if let Some(r) = self.requests.get_mut(key) {
                r.held = false;
            }
            self.try_complete(key);
        }
    }

    /// What has not begun gets an error.
    pub(crate) fn give_up_waiting(&mut self) {
        let waits = |r: &Request| r.local == LocalPart::NotStarted;
        let all = self.requests.iter().filter(|(_, r)| waits(r));
        for key in all.map(|(key, _)| key).collect::<Vec<_>>() {
            if let Some(r) = self.requests.get_mut(key) {
                r.given_up = true;
            }
        }
        for v in 0..self.volumes.len() {
            self.fail_gated(v);
        }
    }

    /// What waits for its answer, or would when it is done, gets an error.
    pub(crate) fn give_up_started(&mut self) {
        let keys: Vec<RequestKey> = self.requests.iter().map(|(key, _)| key).collect();
        for key in keys {
            if let Some(r) = self.requests.get_mut(key) {
                r.given_up = r.kind != RequestKind::Read;
            }
        }
    }

    /// A peer no longer counts for this request (it acknowledged, or is gone).
    pub(crate) fn peer_part_done(&mut self, key: RequestKey, peer: usize) {
        let bit = 1u16 << self.peers[peer].node.0;
        if let Some(r) = self.requests.get_mut(key) {
            r.awaiting &= !bit;
        }
        self.try_complete(key);
    }

    /// An ack of a write or resync block.
    pub(crate) fn ack_received(&mut self, peer: usize, header: &Header) {
        let enough = match self.cfg.options.protocol {
            Protocol::A => true,
            Protocol::B => matches!(header.kind, Kind::RecvAck | Kind::WriteAck),
            Protocol::C => header.kind == Kind::WriteAck,
        };
        let entry = match self.peers[peer].log.entry(header.seq) {
            Ok(entry) => entry,
            Err(error) => return self.protocol_error(peer, alloc::format!("{error:?}")),
        };
        let enough = match entry.remote {
            true => header.kind == Kind::WriteAck,
            false => enough,
        };
        if entry.resync != (header.kind == Kind::ResyncAck) {
            return self.protocol_error(peer, alloc::format!("wrong kind of ack: {header:?}"));
        }
        entry.stable |= header.flags & flags::STABLE != 0;
        if entry.resync {
            if !core::mem::replace(&mut entry.acked, true) {
                let entry = *entry;
                self.resync_acked(peer, entry.volume, entry.len);
                if crate::sabotage::is(crate::sabotage::Mistake::BitsBeforeStable) {
                    self.bits_fall(peer, &entry);
                }
            }
        } else if enough && !core::mem::replace(&mut entry.acked, true) {
            let request = entry.request;
            if crate::sabotage::is(crate::sabotage::Mistake::ReleaseExtentAtAck) {
                let entry = Entry {
                    acked: false,
                    ..*entry
                };
                self.release_entry(&entry);
            }
            if let Some(key) = request {
                self.peer_part_done(key, peer);
            }
        }
    }

    /// The peer could not write a block: from now on it has no current copy.
    pub(crate) fn nack_received(&mut self, peer: usize, header: &Header) {
        let entry = match self.peers[peer].log.entry(header.seq) {
            Ok(entry) => entry,
            Err(error) => return self.protocol_error(peer, alloc::format!("{error:?}")),
        };
        let volume = entry.volume;
        let text = alloc::format!(
            "the peer's disk failed to write {volume} at byte {} (errno {})",
            entry.offset,
            header.size
        );
        // Everything not stable is marked out of sync and answered the way a lost link is: the copy
        // cannot be trusted beyond what was flushed.
        self.close_link(peer, crate::event::ConnState::ProtocolError, text);
    }

    /// A barrier's ack: its epoch is stable on the peer.
    pub(crate) fn barrier_ack_received(&mut self, peer: usize, epoch: u64, count: u64) {
        if let Err(error) = self.peers[peer].log.barrier_acked(epoch, count) {
            return self.protocol_error(peer, alloc::format!("{error:?}"));
        }
        while let Some(entry) = self.peers[peer].log.pop_stable(epoch) {
            if entry.resync {
                self.resync_stable(peer, &entry);
                continue;
            }
            self.release_entry(&entry);
            if let (false, Some(key)) = (entry.acked, entry.request) {
                // The peer may save a WriteAck when the barrier's ack says more.
                self.peer_part_done(key, peer);
            }
        }
        let mut i = 0;
        while i < self.peers[peer].flush_waiters.len() {
            if self.peers[peer].flush_waiters[i].0 <= epoch {
                let (_, key) = self.peers[peer].flush_waiters.swap_remove(i);
                self.peer_part_done(key, peer);
            } else {
                i += 1;
            }
        }
    }
}

//! A Secondary whose copy is what the clients of a Primary without one of its own are served from. The
//! Primary's side is [`crate::remote`].
//!
//! Invariants:
//! * the generation the Primary relies upon is on this disk before it is confirmed, together with the
//!   flag SERVED;
//! * every write of it is marked for it: before it is written, and again when it begins, for a resync
//!   may have read the block in between. A block of the resync that a write has overtaken stays marked;
//! * a resync of the Primary's copy does not end between its question and the answer: what clients write
//!   when they have that would be missing on a copy that is taken for whole;
//! * the marks are in memory: should this node crash while the flag is on its disk, every block is
//!   marked when it comes back.

use crate::event::{DiskState, Role, Severity};
use crate::generations::same;
use crate::ids::{BufId, VolumeId};
use crate::metadata::superblock::{MdFlags, PeerFlags};
use crate::output::{Channel, Output, SendBody};
use crate::resource::{Op, Resource};
use crate::sabotage::{self, Mistake};
use crate::volume::Waiter;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use twinblk_protocol::control::Message;
use twinblk_protocol::frame::{Header, Kind};

/// Reads of one peer under way at once.
const MOST_READS: usize = 16 * 1024;

/// A read for a client of the peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServedRead {
    peer: usize,
    link: u64,
    volume: usize,
    seq: u64,
    offset: u64,
    size: u64,
}

impl Resource {
    /// The Primary asks for this copy.
    pub(crate) fn serve_received(&mut self, p: usize, v: usize, previous: u64, current: u64) {
        let node = self.peers[p].node;
        let Some(link) = self.peers[p].link_number() else {
            return;
        };
        let mine = self.volumes[v].generations.current;
        let fits = previous == 0 || same(mine, previous) || same(mine, current);
        let fits = fits || sabotage::is(Mistake::ServeOtherGeneration);
        let worth = match previous {
            0 => DiskState::UpToDate,
            _ => DiskState::Outdated,
        };
        let agreed = self.peers[p].is_agreed() && !self.peers[p].is_parked();
        let free = self.role == Role::Secondary && self.stopping.is_none() && !self.is_group();
        let usable = agreed && free && self.volumes[v].disk >= worth;
        if !fits || !usable {
            let name = self.peers[p].name.clone();
            let text = format!(
                "{name} has no disk in use and asks for this node's copy, which it cannot have: it is \
                 {:?}, of generation {mine:016x}, and {previous:016x} is wanted",
                self.volumes[v].disk
            );
            self.incident(Severity::Error, text);
            return self.send_serving(p, v, 0);
        }
        if !same(mine, current) {
            self.volumes[v]
                .generations
                .follow(current, core::iter::once(node));
        }
        self.set_flags(v, MdFlags::WAS_UP_TO_DATE, true);
        self.set_peer_flag(v, node, PeerFlags::SERVED, true);
        self.peers[p].volumes[v].will_serve = true;
        self.commit(v, true, Some(Waiter::Serves(node, link)));
    }

    fn send_serving(&mut self, p: usize, v: usize, current: u64) {
        let volume = self.volumes[v].id.0;
        self.send_message(p, Channel::Data, &Message::Serving { volume, current });
    }

    /// The generation is on the disk.
    pub(crate) fn serves(&mut self, p: usize, v: usize) {
        self.peers[p].volumes[v].serves = true;
        self.peers[p].volumes[v].will_serve = false;
        // It relies on this very generation: should this node be promoted, it begins another.
        self.peers[p].volumes[v].lacks_current = false;
        if self.volumes[v].disk != DiskState::UpToDate {
            let reason = "the Primary vouches for it, and is served from it".to_string();
            self.set_disk(v, DiskState::UpToDate, reason);
            self.tell_state();
        }
        let current = self.volumes[v].generations.current;
        let name = self.peers[p].name.clone();
        let text = format!("clients of {name} are served from this node's copy");
        self.incident(Severity::Warning, text);
        self.send_serving(p, v, current);
    }

    /// The Primary has its own copy again, is none any more, or is lost: the marks go to the disk.
    pub(crate) fn serve_no_more(&mut self, p: usize, v: usize) {
        let node = self.peers[p].node;
        self.peers[p].volumes[v].serves = false;
        self.peers[p].volumes[v].will_serve = false;
        if self.peer_flags(v, node).contains(PeerFlags::SERVED) {
            self.set_peer_flag(v, node, PeerFlags::SERVED, false);
            self.commit(v, true, None);
        }
    }

    /// This node crashed while it served a peer: what that one lacks was known in memory only.
    pub(crate) fn mark_after_serving(&mut self, v: usize) {
        for x in 0..self.peers.len() {
            let node = self.peers[x].node;
            if !self.peer_flags(v, node).contains(PeerFlags::SERVED) {
                continue;
            }
            if let Some(bitmap) = self.volumes[v].bitmap_mut(node) {
                bitmap.set_all();
            }
            self.set_peer_flag(v, node, PeerFlags::SERVED, false);
            let text = format!(
                "{}: this node went down while clients of {} were served from its copy; all blocks are \
                 marked for it",
                self.volumes[v].id, self.peers[x].name
            );
            self.incident(Severity::Warning, text);
        }
    }

    /// A write of a Primary that has no copy of its own.
    pub(crate) fn mark_served(&mut self, p: usize, v: usize, offset: u64, len: u64) {
        if !self.peers[p].volumes[v].serves {
            return;
        }
        let node = self.peers[p].node;
        if let Some(bitmap) = self.volumes[v].bitmap_mut(node) {
            bitmap.set_bytes(offset, len);
        }
        if sabotage::is(Mistake::ForgetOvertaken) {
            return;
        }
        self.overtake(p, v, offset, len);
    }

    /// What a resync to this peer has under way of these bytes is not what they are any more: their marks
    /// stay.
    pub(crate) fn overtake(&mut self, p: usize, v: usize, offset: u64, len: u64) {
        let id = self.volumes[v].id;
        let meets = |at: u64, n: u64| at < offset + len && offset < at + n;
        for entry in self.peers[p].log.of_volume(id) {
            entry.overtaken |= entry.resync && meets(entry.offset, entry.len);
        }
        let chunks: Vec<_> = self.chunks.iter().map(|(key, _)| key).collect();
        for key in chunks {
            if let Some(chunk) = self.chunks.get_mut(key)
                && chunk.peer == p
                && chunk.volume == v
            {
                chunk.overtaken |= meets(chunk.offset, chunk.len);
            }
        }
    }

    /// The Primary sends no write until the resync has ended.
    pub(crate) fn writes_held_received(&mut self, p: usize, v: usize) {
        if let Some(resync) = &mut self.peers[p].volumes[v].resync {
            resync.hold_writes();
        }
    }

    /// A client of the Primary wants to read.
    pub(crate) fn read_asked_remotely(&mut self, p: usize, header: &Header) {
        let volume = VolumeId(header.volume);
        let v = self.volume_index(volume);
        let Some(v) = v.filter(|&v| self.peers[p].volumes[v].serves) else {
            let text = "a read from a node that is not served".to_string();
            return self.protocol_error(p, text);
        };
        let block = u64::from(self.volumes[v].block_size);
        let fits = header
            .offset
            .checked_add(header.size)
            .is_some_and(|end| end <= self.volumes[v].device_size());
        let size = u32::try_from(header.size)
            .ok()
            .filter(|&n| n > 0 && n <= twinblk_protocol::frame::MAX_PAYLOAD);
        let aligned = header.offset.is_multiple_of(block) && header.size.is_multiple_of(block);
        let (Some(len), true, true) = (size, fits, aligned) else {
            let text = format!("a read of {} bytes at byte {}", header.size, header.offset);
            return self.protocol_error(p, text);
        };
        if self.peers[p].reads_served >= MOST_READS {
            return self.protocol_error(p, "too many reads at once".to_string());
        }
        self.peers[p].reads_served += 1;
        let op = self.new_op(Op::ServedRead(ServedRead {
            peer: p,
            link: self.peers[p].link_number().unwrap_or(0),
            volume: v,
            seq: header.seq,
            offset: header.offset,
            size: header.size,
        }));
        self.out.push(Output::DiskRead {
            op,
            volume,
            offset: header.offset,
            len,
            buf: None,
        });
    }

    /// It is read, or cannot be.
    pub(crate) fn served_read_done(
        &mut self,
        read: ServedRead,
        result: Result<(), i32>,
        buf: Option<BufId>,
    ) {
        let p = read.peer;
        self.peers[p].reads_served = self.peers[p].reads_served.saturating_sub(1);
        let id = self.volumes[read.volume].id;
        if self.peers[p].link_number() == Some(read.link) {
            let mut header = Header::new(Kind::ReadFailed);
            (header.volume, header.seq) = (id.0, read.seq);
            header.offset = read.offset;
            let body = match (result, buf) {
                (Ok(()), Some(buf)) => {
                    header.kind = Kind::ReadData;
                    header.size = read.size;
                    let len = u32::try_from(read.size).unwrap_or(0);
                    SendBody::Buf { buf, len }
                }
                _ => {
                    header.size = u64::from(result.err().unwrap_or(5).unsigned_abs());
                    SendBody::None
                }
            };
            self.send(p, Channel::Data, header, body);
        }
        if let Some(buf) = buf {
            self.out.push(Output::ReleaseBuf(buf));
        }
        if let Err(errno) = result
            && !self.served_read_fails(read.volume, errno, (read.offset, read.size))
        {
            self.disk_failed(read.volume, errno, "a read for the peer");
        }
    }

    /// The volume of a served read.
    pub(crate) fn volume_of_read(read: &ServedRead) -> usize {
        read.volume
    }
}

//! From the decision to resync to its first block: both sides' bitmaps are exchanged and merged, the
//! merged bitmap and the right generations are on both disks, then blocks may flow.
//!
//! Invariants:
//! * the target's superblock says Inconsistent, and its current UUID is the generation its bitmap is
//!   relative to, *before* the first write or resync block of the source reaches its disk;
//! * from the decision on until the target is ready, writes on the source set bits and are not sent.

use crate::event::{DiskState, ReplState, Role};
use crate::generations::same;
use crate::handshake::{Amount, Decision, Direction};
use crate::metadata::superblock::MdFlags;
use crate::output::{Channel, SendBody};
use crate::resource::Resource;
use crate::volume::Waiter;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use twinblk_protocol::bitmap_rle;
use twinblk_protocol::control::Message;
use twinblk_protocol::frame::{Header, Kind, flags};

/// Largest piece of a bitmap in a frame.
const PIECE_BYTES: usize = 32 * 1024;
/// Unsent bytes at which sending the bitmap pauses.
const SEND_AHEAD: u64 = 1 << 20;

impl Resource {
    /// The decision says resync: prepare.
    pub(crate) fn start_sync(&mut self, p: usize, v: usize, decision: &Decision) {
        let node = self.peers[p].node;
        if decision.split_brain && decision.direction == Direction::Target {
            let own = self.volumes[v].bitmap(node).map(|b| b.snapshot());
            self.peers[p].volumes[v].start.own = own;
            self.plan_save(p, v, decision);
        }
        if decision.amount == Amount::Full {
            if let Some(bitmap) = self.volumes[v].bitmap_mut(node) {
                bitmap.set_all();
            }
            let start = &mut self.peers[p].volumes[v].start;
            start.bitmap_sent = true;
            start.bitmap_merged = true;
        } else if let Some(link) = &mut self.peers[p].link
            && link.bitmap_cursor.is_none()
        {
            link.bitmap_cursor = Some((v, 0));
        }
    }

    /// The link is lost. A target of a split brain that has not begun yet marks again what it has changed
    /// itself, and not what it was about to take: else the next handshake would see other numbers, and a
    /// policy might choose the other node.
    pub(crate) fn take_merged_back(&mut self, p: usize, v: usize) {
        let node = self.peers[p].node;
        let pv = &mut self.peers[p].volumes[v];
        if pv.replication != ReplState::WFBitMapT || pv.start.committing {
            return;
        }
        if let (Some(own), Some(bitmap)) = (pv.start.own.take(), self.volumes[v].bitmap_mut(node)) {
            bitmap.go_back_to(&own);
        }
    }

    /// Sends more of the bitmap, as far as the send queue allows.
    pub(crate) fn pump_bitmap(&mut self, p: usize) {
        let node = self.peers[p].node;
        while self.peers[p].unsent() < SEND_AHEAD {
            let Some(link) = &self.peers[p].link else {
                return;
            };
            let Some((v, bit)) = link.bitmap_cursor else {
                return;
            };
            let volume = &self.volumes[v];
            let Some(bitmap) = volume.bitmap(node) else {
                return;
            };
            let mut bytes = Vec::new();
            let total = bitmap.bits();
            let covered =
                bitmap_rle::encode(bitmap.words(), bit, total - bit, PIECE_BYTES, &mut bytes);
            let mut header = Header::new(Kind::Bitmap);
            (header.volume, header.offset, header.size) = (volume.id.0, bit, covered);
            let next = bit + covered;
            if next >= total {
                header.flags |= flags::LAST;
            }
            self.send(p, Channel::Data, header, SendBody::Bytes(bytes));
            let cursor = if next < total {
                Some((v, next))
            } else {
                self.peers[p].volumes[v].start.bitmap_sent = true;
                let waits = |w: usize| {
                    let pv = &self.peers[p].volumes[w];
                    matches!(pv.replication, ReplState::WFBitMapS | ReplState::WFBitMapT)
                        && !pv.start.bitmap_sent
                };
                (0..self.volumes.len()).find(|&w| waits(w)).map(|w| (w, 0))
            };
            if let Some(link) = &mut self.peers[p].link {
                link.bitmap_cursor = cursor;
            }
        }
    }

    /// A piece of the peer's bitmap.
    pub(crate) fn bitmap_received(&mut self, p: usize, header: &Header, bytes: &[u8]) {
        let node = self.peers[p].node;
        let Some(v) = self.volume_index(crate::ids::VolumeId(header.volume)) else {
            return self.protocol_error(p, "a bitmap for an unknown volume".to_string());
        };
        let state = self.peers[p].volumes[v].replication;
        if !matches!(state, ReplState::WFBitMapS | ReplState::WFBitMapT) {
            return self.protocol_error(p, format!("a bitmap while the replication is {state:?}"));
        }
        let Some(bitmap) = self.volumes[v].bitmap_mut(node) else {
            return;
        };
        let first = header.offset;
        if first
            .checked_add(header.size)
            .is_none_or(|end| end > bitmap.bits())
        {
            return self.protocol_error(p, "a bitmap longer than the device".to_string());
        }
        let mut merge = |at: u64, len: u64| bitmap.merge_run(first + at, len);
        if let Err(error) = bitmap_rle::decode(bytes, header.size, &mut merge) {
            return self.protocol_error(p, format!("a broken bitmap: {error}"));
        }
        if header.flags & flags::LAST != 0 {
            self.peers[p].volumes[v].start.bitmap_merged = true;
        }
        self.sync_start_progress(p);
    }

    /// Takes the next step of starting a resync, for every volume that is ready for it.
    pub(crate) fn sync_start_progress(&mut self, p: usize) {
        self.pump_bitmap(p);
        let node = self.peers[p].node;
        let Some(link) = self.peers[p].link_number() else {
            return;
        };
        for v in 0..self.volumes.len() {
            let pv = &mut self.peers[p].volumes[v];
            let exchanged = pv.start.bitmap_sent && pv.start.bitmap_merged;
            if !exchanged || pv.start.committing {
                continue;
            }
            match (pv.replication, pv.start.peer_base) {
                // One new generation after the other.
                (ReplState::WFBitMapS, _) if self.volumes[v].bump_running => continue,
                (ReplState::WFBitMapS, _) => {
                    pv.start.committing = true;
                    self.name_resync(p, v);
                }
                (ReplState::WFBitMapT, Some(_)) if !self.is_saved(p, v) => continue,
                (ReplState::WFBitMapT, Some(base)) => {
                    if !self.resync_allowed(p) {
                        continue;
                    }
                    self.peers[p].volumes[v].start.committing = true;
                    self.peers[p].split_brain = None;
                    self.mark_for_others(p, v);
                    let others: Vec<_> = self.peers.iter().map(|x| x.node).collect();
                    let others = others.into_iter().filter(|&x| x != node);
                    let (toward, theirs) = {
                        let start = &self.peers[p].volumes[v].start;
                        (start.toward, start.peer_current)
                    };
                    if !same(theirs, self.volumes[v].generations.current) {
                        // What it brings, others have written.
                        self.volumes[v].lineage = 0;
                    }
                    self.volumes[v]
                        .generations
                        .begin_target(node, base, toward, others);
                    self.remember_role(v, p, self.role);
                    self.set_flags(v, MdFlags::CONSISTENT, false);
                    self.set_flags(v, MdFlags::WAS_UP_TO_DATE, false);
                    let text = "resync target: not usable until the resync ends".to_string();
                    self.set_disk(v, DiskState::Inconsistent, text);
                }
                _ => continue,
            }
            self.commit(v, true, Some(Waiter::ResyncReady(node, link)));
        }
    }

    /// Source: gives the peer's bitmap the generation it is relative to. If the peer has the current
    /// one, the source begins a new one first, and no write is answered until that is on the disk:
    /// from here on there are writes the peer does not get.
    fn name_resync(&mut self, p: usize, v: usize) {
        let node = self.peers[p].node;
        let fresh = self.rng.uuid();
        let theirs = self.peers[p].volumes[v].start.peer_current;
        let shared = same(theirs, self.volumes[v].generations.current);
        if shared && self.is_group() {
            // The others follow the new generation; who is not Primary needs none: it does not write,
            // and if it is promoted, its first write begins one.
            self.volumes[v].generations.resync_finished_with(node);
            if self.role == Role::Primary && !self.volumes[v].generations.is_just_created() {
                self.start_new_generation(v);
            }
            return self.volumes[v].generations.begin_source(node, fresh);
        }
        let volume = &mut self.volumes[v];
        if shared && !volume.generations.is_just_created() {
            volume.bump_from = volume.generations.current;
            volume.generations.part_from(node, fresh);
            volume.bump_running = true;
            volume.bump_committed = false;
            self.peers[p].volumes[v].lacks_current = true;
            self.commit(v, true, Some(Waiter::NewGeneration));
        } else {
            volume.generations.begin_source(node, fresh);
        }
    }

    /// Own metadata for the resync are on the disk.
    pub(crate) fn resync_ready(&mut self, p: usize, v: usize) {
        let node = self.peers[p].node;
        let volume = self.volumes[v].id.0;
        match self.peers[p].volumes[v].replication {
            ReplState::WFBitMapS => {
                let base = self.volumes[v].generations.base_for(node);
                let current = self.volumes[v].generations.current;
                let message = Message::BitmapReady {
                    volume,
                    base,
                    current,
                };
                self.send_message(p, Channel::Data, &message);
                self.peers[p].volumes[v].start.toward = current;
                self.peers[p].volumes[v].start.ready = true;
            }
            ReplState::WFBitMapT => {
                let base = self.volumes[v].generations.current;
                self.peers[p].volumes[v].start.ready = true;
                let reason = "the source sends what is out of sync";
                self.peers[p].save_to = None;
                self.set_replication(p, v, ReplState::SyncTarget, reason);
                self.begin_resync(p, v);
                self.tell_state();
                let message = Message::BitmapReady {
                    volume,
                    base,
                    current: base,
                };
                self.send_message(p, Channel::Data, &message);
            }
            _ => {}
        }
    }

    /// The peer is ready.
    pub(crate) fn bitmap_ready_received(&mut self, p: usize, v: usize, base: u64, current: u64) {
        let state = self.peers[p].volumes[v].replication;
        let ready = self.peers[p].volumes[v].start.ready;
        match state {
            ReplState::WFBitMapT => {
                self.peers[p].volumes[v].start.peer_base = Some(base);
                self.peers[p].volumes[v].start.toward = current;
                self.sync_start_progress(p);
            }
            ReplState::WFBitMapS if ready => {
                self.set_peer_disk(p, v, DiskState::Inconsistent, "it is the resync target");
                self.peers[p].split_brain = None;
                if self.remember_role(v, p, self.role) {
                    self.commit(v, false, None);
                }
                let reason = "sending what is out of sync";
                self.set_replication(p, v, ReplState::SyncSource, reason);
                self.begin_resync(p, v);
                self.tell_target(p, v);
            }
            _ => self.protocol_error(p, format!("ready for a resync while {state:?}")),
        }
    }
}

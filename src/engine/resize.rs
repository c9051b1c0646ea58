//! `resize`: the device takes another size on both nodes while it is in use.
//!
//! 1. This node measures its disk; what it can carry now is on its disk (the layout) before the peer
//!    is asked.
//! 2. The peer measures, too, and decides the size: what was ordered, else what both disks carry. It
//!    refuses, or takes the size down (unless it is the Primary) and answers it.
//! 3. This node takes the size down, and says so. A Primary that was asked does it now.
//! 4. The nodes compare their generations anew: what is new is marked on both sides and resynced.
//!
//! Invariants:
//! * what a copy holds beyond the old size is unknown: it is marked for every peer in the same commit
//!   that makes the device larger;
//! * clients see the new size when it is on this node's disk, and then the peer's disk has it too;
//! * it may end anywhere: of two sizes the larger one counts as soon as both disks carry it
//!   ([`larger_if_possible`]), so whoever has not taken it down does so at the next connect;
//! * what clients use is never cut off: a device gets smaller only by force, and while nobody holds it.

use crate::command::{Refusal, RefusalKind};
use crate::event::{ReplState, Role, Severity};
use crate::ids::{CommandId, NodeId, VolumeId};
use crate::metadata::BLOCK64;
use crate::metadata::layout::Placement;
use crate::output::{Channel, Output};
use crate::peer::AskedWhat;
use crate::resource::Resource;
use crate::volume::Waiter;
use alloc::format;
use alloc::string::{String, ToString};
use twinblk_protocol::control::{Change, Message};

/// A resize that waits for the size of this node's disk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Measuring {
    /// Ordered here: command, size wanted, by force.
    Mine(CommandId, Option<u64>, bool),
    /// Asked for by a peer: node, link, transaction, bytes it can carry, size wanted, by force.
    Peers(NodeId, u64, u64, u64, Option<u64>, bool),
}

/// The size two sides agree on that remember different ones: the larger, if both can carry it.
pub(crate) fn larger_if_possible(sizes: [u64; 2], disks: [u64; 2]) -> u64 {
    let larger = sizes[0].max(sizes[1]);
    if disks.iter().all(|&disk| disk >= larger) {
        larger
    } else {
        sizes[0].min(sizes[1])
    }
}

fn refusal(kind: RefusalKind, reason: String, way_out: &str) -> Refusal {
    Refusal {
        kind,
        reason,
        way_out: way_out.to_string(),
    }
}

impl Resource {
    /// `resize [--size BYTES] [--force]`.
    pub(crate) fn order_resize(&mut self, id: CommandId, size: Option<u64>, force: bool) {
        match self.may_resize() {
            Err(refusal) => self.done(id, Err(refusal)),
            Ok(()) => self.measure(0, Measuring::Mine(id, size, force)),
        }
    }

    fn may_resize(&self) -> Result<(), Refusal> {
        let state = |reason: String, way_out| Err(refusal(RefusalKind::State, reason, way_out));
        if self.volumes.len() > 1 || self.is_group() {
            let text =
                "not yet possible for a resource with several volumes, or with more than two \
                        nodes"
                    .to_string();
            return Err(refusal(RefusalKind::Other, text, ""));
        }
        if self.volumes[0].measuring.is_some() || self.volumes[0].clients_see.is_some() {
            let text = "another resize is under way".to_string();
            return state(text, "wait until `twinblk status RES` shows the new size");
        }
        if !self.volumes[0].has_disk() {
            let text = format!("no usable disk: {}", self.volumes[0].disk_reason);
            return Err(refusal(
                RefusalKind::NoDisk,
                text,
                "mend the disk and run `twinblk attach RES` first",
            ));
        }
        for peer in &self.peers {
            if !peer.is_agreed() {
                let text = format!("{} is not connected: its disk may be too small", peer.name);
                return state(text, "connect first (`twinblk connect RES`)");
            }
            let replication = peer.volumes[0].replication;
            if replication != ReplState::Established {
                let text = format!("the replication with {} is {replication:?}", peer.name);
                let way_out = "wait for its end (`twinblk wait-sync RES`), or end a verify with \
                               `twinblk verify --stop RES`";
                return state(text, way_out);
            }
        }
        Ok(())
    }

    fn measure(&mut self, v: usize, why: Measuring) {
        self.volumes[v].measuring = Some(why);
        let volume = self.volumes[v].id;
        self.out.push(Output::MeasureDisk { volume });
    }

    /// The sizes of disk and metadata device now.
    pub(crate) fn measured(&mut self, volume: VolumeId, disk: Result<u64, i32>, meta: Option<u64>) {
        let Some(v) = self.volume_index(volume) else {
            return;
        };
        let Some(why) = self.volumes[v].measuring.take() else {
            return;
        };
        let limit = disk
            .map_err(|errno| format!("the disk's size cannot be read (errno {errno})"))
            .and_then(|disk| self.take_room(v, disk, meta));
        if limit.is_ok() {
            // The layout may have grown: no superblock may say so before its new pages are there.
            self.commit(v, true, None);
        }
        match (why, limit) {
            (Measuring::Mine(id, ..), Err(text)) => {
                let refusal = refusal(
                    RefusalKind::NoDisk,
                    text,
                    "mend the disk and run `twinblk attach RES`, then try again",
                );
                self.done(id, Err(refusal));
            }
            (Measuring::Mine(id, size, force), Ok(limit)) => {
                if let Err(refusal) = self.fits(v, size, force, limit.as_deref()) {
                    return self.done(id, Err(refusal));
                }
                self.commit(v, true, Some(Waiter::Measured(id, size, force)));
            }
            (Measuring::Peers(node, link, tid, offer, size, force), limit) => {
                if let Some(p) = self.live_peer(node, link) {
                    self.answer_resize(p, v, tid, [offer, size.unwrap_or(0)], force, limit);
                }
            }
        }
    }

    /// Makes the layout cover what the disk has now. Answers what limits it, in words.
    fn take_room(
        &mut self,
        v: usize,
        disk: u64,
        meta: Option<u64>,
    ) -> Result<Option<String>, String> {
        let Some(local) = &mut self.volumes[v].local else {
            return Err("no disk is attached".to_string());
        };
        let old = local.layout.clone();
        if old.placement == Placement::Internal {
            let grown = disk / BLOCK64 * BLOCK64 > old.disk_size;
            return Ok(grown.then(|| {
                "the disk has grown, but its metadata lie at its old end: `twinblk down RES`, \
                 `twinblk move-md RES` and `twinblk up RES`, on one node after the other, then \
                 `twinblk resize RES`"
                    .to_string()
            }));
        }
        if disk < local.superblock.agreed_size {
            return Err(format!(
                "the disk has {disk} bytes, fewer than the {} of the device: it has shrunk",
                local.superblock.agreed_size
            ));
        }
        let (layout, limit) = old.grown(disk, meta);
        if layout != old {
            for bitmap in &mut local.bitmaps {
                bitmap.rewrite_pages(old.bitmap_pages_per_slot..layout.bitmap_pages_per_slot);
            }
            local.superblock.layout = layout.clone();
            local.layout = layout;
        }
        Ok(limit)
    }

    /// Whether this node's disk carries the size that is wanted.
    fn fits(
        &self,
        v: usize,
        size: Option<u64>,
        force: bool,
        limit: Option<&str>,
    ) -> Result<(), Refusal> {
        let (now, most) = (self.volumes[v].device_size(), self.volumes[v].data_size());
        if now == 0
            || self.volumes[v]
                .local
                .as_ref()
                .is_none_or(|l| l.superblock.agreed_size == 0)
        {
            let text = "the size of the device was never agreed with the peer".to_string();
            return Err(refusal(RefusalKind::State, text, "connect first"));
        }
        let Some(size) = size else {
            return match limit {
                Some(limit) if most <= now => {
                    let text = format!("the device keeps its {now} bytes on {}", self.cfg.me.name);
                    Err(refusal(RefusalKind::State, text, limit))
                }
                _ => Ok(()),
            };
        };
        if size == 0 || !size.is_multiple_of(BLOCK64) {
            let text = format!("{size} bytes are not a multiple of {BLOCK64}, or nothing");
            return Err(refusal(RefusalKind::Other, text, "give another size"));
        }
        if size > most {
            let text = format!("the disk of {} carries {most} bytes", self.cfg.me.name);
            let way_out = limit.unwrap_or("make the disk larger first");
            return Err(refusal(RefusalKind::State, text, way_out));
        }
        if size < now && !force {
            let text = format!("{size} bytes are fewer than the {now} the device has now");
            let way_out = "make what is on it smaller first, then add --force: the rest is cut off";
            return Err(refusal(RefusalKind::State, text, way_out));
        }
        if size < now {
            return self.nobody_uses_it();
        }
        Ok(())
    }

    fn nobody_uses_it(&self) -> Result<(), Refusal> {
        if let Some(used) = self.in_use() {
            let (name, me) = (&self.cfg.name, &self.cfg.me.name);
            let way_out = format!(
                "`twinblk secondary {name}` on {me}, which takes the kernel device away or says who holds \
                 it, and disconnects nobody: end other NBD clients yourself; then try again"
            );
            return Err(Refusal { way_out, ..used });
        }
        if self.started > 0 || self.requests.len() > 0 {
            let text = "requests of a client are still under way".to_string();
            return Err(refusal(RefusalKind::InUse, text, "try again"));
        }
        Ok(())
    }

    /// What the own disk carries is on the disk: ask the peer.
    pub(crate) fn ask_resize(&mut self, v: usize, id: CommandId, size: Option<u64>, force: bool) {
        if let Err(refusal) = self.may_resize() {
            return self.done(id, Err(refusal));
        }
        let change = Change::Resize {
            volume: self.volumes[v].id.0,
            offer: self.volumes[v].data_size(),
            size,
            force,
        };
        self.ask(0, AskedWhat::Resize(id), change);
    }

    /// A peer asks.
    pub(crate) fn resize_asked(&mut self, p: usize, tid: u64, change: &Change) {
        let &Change::Resize {
            volume,
            offer,
            size,
            force,
        } = change
        else {
            return;
        };
        let (node, link) = (self.peers[p].node, self.peers[p].link_number().unwrap_or(0));
        let obstacle = self.may_resize().err().map(|refusal| refusal.reason);
        match (self.volume_index(VolumeId(volume)), obstacle) {
            (Some(v), None) => {
                self.measure(v, Measuring::Peers(node, link, tid, offer, size, force));
            }
            (None, _) => self.protocol_error(p, "unknown volume".to_string()),
            (_, Some(text)) => self.reply(p, tid, Some(text)),
        }
    }

    /// A peer asked, and the own disk is measured. `wanted`: what the peer carries, what was ordered.
    fn answer_resize(
        &mut self,
        p: usize,
        v: usize,
        tid: u64,
        wanted: [u64; 2],
        force: bool,
        limit: Result<Option<String>, String>,
    ) {
        let limit = match limit {
            Ok(limit) => limit,
            Err(text) => return self.reply(p, tid, Some(text)),
        };
        let [offer, ordered] = wanted;
        let now = self.volumes[v].device_size();
        let size = match ordered {
            0 => offer.min(self.volumes[v].data_size()).max(now),
            ordered => ordered,
        };
        let wanted = (ordered != 0).then_some(size);
        let obstacle = self.fits(v, wanted, force, limit.as_deref());
        if let Err(refusal) = obstacle {
            let text = format!("{}; {}", refusal.reason, refusal.way_out);
            return self.reply(p, tid, Some(text));
        }
        if size > offer {
            let name = self.peers[p].name.clone();
            let text = format!("{name} offers {offer} bytes and wants {size}");
            return self.reply(p, tid, Some(text));
        }
        let (node, link) = (self.peers[p].node, self.peers[p].link_number().unwrap_or(0));
        if self.role != Role::Primary {
            self.take_size(v, size);
        }
        self.volumes[v].resize_to = Some((tid, size));
        self.commit(v, true, Some(Waiter::ResizeReady(node, link, tid)));
    }

    /// Asked: this node is ready for the size, on its disk.
    pub(crate) fn resize_ready(&mut self, p: usize, v: usize, tid: u64) {
        self.volumes[v].clients_see = None;
        if let Some((t, size)) = self.volumes[v].resize_to
            && t == tid
        {
            let volume = self.volumes[v].id.0;
            let message = Message::ResizeReady { tid, volume, size };
            self.send_message(p, Channel::Data, &message);
        }
    }

    /// The peer is ready: this node takes the size down.
    pub(crate) fn resize_ready_received(&mut self, p: usize, tid: u64, volume: u16, size: u64) {
        let Some(v) = self.volume_index(VolumeId(volume)) else {
            return self.protocol_error(p, "unknown volume".to_string());
        };
        let Some(link) = &mut self.peers[p].link else {
            return;
        };
        let asked = link.asked.take_if(|a| a.tid == tid);
        let Some(AskedWhat::Resize(id)) = asked.map(|a| a.what) else {
            return; // an answer to something given up
        };
        let now = self.volumes[v].device_size();
        let used = size < now && self.nobody_uses_it().is_err();
        if used || size > self.volumes[v].data_size() || size == 0 {
            // The peer may have taken it down already: the next handshake evens it out.
            let text = match used {
                true => "a client holds the device now".to_string(),
                false => format!("the peer wants {size} bytes, which this disk cannot carry"),
            };
            self.done(id, Err(refusal(RefusalKind::InUse, text, "try again")));
            return self.renegotiate("a resize was given up");
        }
        self.take_size(v, size);
        let node = self.peers[p].node;
        let number = self.peers[p].link_number().unwrap_or(0);
        self.commit(v, true, Some(Waiter::Resized(id, node, number, tid, now)));
    }

    /// Ordered here: the size is on both disks, or the peer, a Primary, waits to take it down.
    pub(crate) fn resized(
        &mut self,
        p: Option<usize>,
        v: usize,
        id: CommandId,
        tid: u64,
        was: u64,
    ) {
        self.volumes[v].clients_see = None;
        let size = self.volumes[v].device_size();
        let name = &self.cfg.name;
        let text = if size == was {
            format!("{name} keeps its {size} bytes: that is what both disks carry")
        } else {
            format!(
                "{name} has {size} bytes now (it had {was}). Clients that are connected see the \
                 size they connected with: they must connect again to see the new one"
            )
        };
        self.done(id, Ok(text));
        let Some(p) = p else { return };
        let commit = true;
        self.send_message(p, Channel::Data, &Message::Finish { tid, commit });
        if size != was && self.peers[p].role != Role::Primary {
            self.renegotiate("the device was resized");
        }
    }

    /// Asked, and Primary: the other side has the size on its disk.
    pub(crate) fn resize_finished(&mut self, p: usize, tid: u64, commit: bool) {
        let (node, link) = (self.peers[p].node, self.peers[p].link_number().unwrap_or(0));
        for v in 0..self.volumes.len() {
            let Some((_, size)) = self.volumes[v].resize_to.take_if(|(t, _)| *t == tid) else {
                continue;
            };
            if self.role != Role::Primary || !commit || size == self.volumes[v].device_size() {
                continue;
            }
            if size < self.volumes[v].device_size() && self.nobody_uses_it().is_err() {
                let text = "a client holds the device now: it does not get smaller";
                self.incident(Severity::Warning, text.to_string());
                return self.renegotiate(text);
            }
            self.take_size(v, size);
            self.commit(v, true, Some(Waiter::SizeTaken(node, link)));
        }
    }

    /// A size that was agreed by a handshake or with a peer's order is on the disk.
    pub(crate) fn size_taken(&mut self, p: Option<usize>, v: usize) {
        self.volumes[v].clients_see = None;
        if p.is_some() {
            self.renegotiate("the device was resized");
        }
    }

    /// Changes the size in memory; the next commit takes it down. Until then clients see the smaller
    /// of both.
    pub(crate) fn take_size(&mut self, v: usize, size: u64) {
        let old = self.volumes[v].device_size();
        if size == old {
            return;
        }
        self.volumes[v].clients_see = Some(self.volumes[v].size().min(size));
        self.set_agreed_size(v, size);
        if let Some(local) = &mut self.volumes[v].local
            && size > old
        {
            for bitmap in &mut local.bitmaps {
                bitmap.set_bytes(old, size - old);
            }
        }
        let id = self.volumes[v].id;
        let text = format!("{id} has {size} bytes now, it had {old}");
        self.incident(Severity::Info, text);
    }
}

//! More than two nodes: what a Primary tells its peers of one another, and what Secondaries make of
//! it. With one peer none of this does anything.
//!
//! Writes go from the Primary to every node it is connected with, never from Secondary to Secondary.
//! So while a node follows a Primary, its connections to other Secondaries are *parked*: settings are
//! compared and questions are answered, but generations are not compared, and nothing is resynced.
//! When the Primary is gone the Secondaries compare anew, and bring each other up to date.
//!
//! Invariants:
//! * on every node, for every other node X: the bits for X cover all blocks in which the own copy may
//!   differ from the copy X had at the generation its bitmap UUID names (0: from the copy it has).
//!   A Secondary marks for X what the Primary does not send to X, what a resync brings it, and, when
//!   the Primary is lost, what may have reached only some ([`crate::unsettled`]);
//! * they are cleared only by the word of the node they both follow that X lacks nothing;
//! * a new generation is relied upon (writes start, answers go out) only when every peer that gets the
//!   writes has it on its disk; until then each may still be at the old one, and the bitmap UUIDs say so;
//! * a survivor of a lost Primary is Consistent, not UpToDate, until it has met every node that may
//!   have got more than it.

use crate::event::{ConnState, DiskState, ReplState, Role, Severity};
use crate::generations::same;
use crate::ids::NodeId;
use crate::metadata::superblock::{MdFlags, PeerFlags};
use crate::output::Channel;
use crate::peer::{Peer, PeerVolume, Phase};
use crate::resource::Resource;
use crate::volume::Waiter;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use twinblk_protocol::control::{Message, Params, Reach};

/// Settled writes that are worth a message of their own while more are under way.
const SETTLED_STEP: u64 = 256;

fn bit(node: NodeId) -> u16 {
    1 << node.0
}

/// Neither end is Primary, and one of them gets its data from elsewhere.
pub(crate) fn parks(a: Reach, b: Reach) -> bool {
    let elsewhere = |r| matches!(r, Reach::Follows(_) | Reach::SyncsFrom(_));
    a != Reach::Primary && b != Reach::Primary && (elsewhere(a) || elsewhere(b))
}

impl Resource {
    /// More than one peer.
    pub(crate) fn is_group(&self) -> bool {
        self.peers.len() > 1
    }

    /// The connected Primary this node gets its writes from.
    pub(crate) fn leader(&self) -> Option<usize> {
        self.peers.iter().position(|p| p.leads())
    }

    /// Where this node's data come from, as a peer is told.
    pub(crate) fn reach(&self) -> Reach {
        // No data come from a Primary whose disk has failed: its peers look after one another.
        let whole = self.volumes.iter().all(|v| v.is_up_to_date());
        if self.role == Role::Primary && whole {
            return Reach::Primary;
        }
        let target = |p: &&Peer| {
            let from = |v: &PeerVolume| {
                matches!(
                    v.replication,
                    ReplState::WFBitMapT | ReplState::SyncTarget | ReplState::PausedSyncT
                ) && !v.later
            };
            p.is_agreed() && p.volumes.iter().any(from)
        };
        if let Some(p) = self.leader() {
            Reach::Follows(self.peers[p].node.0)
        } else if let Some(p) = self.peers.iter().find(target) {
            Reach::SyncsFrom(p.node.0)
        } else {
            Reach::None
        }
    }

    /// A peer that does not fit what this node is doing now: why.
    pub(crate) fn follows_another(&self, p: usize, theirs: &Params) -> Option<String> {
        let mine = self.peers[p].link.as_ref().map(|l| l.said)?;
        let name = &self.peers[p].name;
        match (mine, theirs.reach) {
            (Reach::Primary, Reach::Follows(n)) if n != self.cfg.me.id.0 => Some(format!(
                "{name} is connected to another Primary, node {n}; this connection waits until one of \
                 the two is Secondary or gone"
            )),
            (Reach::Follows(n), Reach::Primary) if n != self.peers[p].node.0 => Some(format!(
                "{name} is Primary, and so is node {n}, which this node is connected to; this \
                 connection waits until one of the two is Secondary or gone"
            )),
            _ => None,
        }
    }

    /// Settings fit, and the generations are not compared: see the module.
    pub(crate) fn park(&mut self, p: usize) {
        if let Some(link) = &mut self.peers[p].link {
            link.phase = Phase::Agreed;
            link.parked = true;
            link.frozen_at = None;
        }
        let name = self.peers[p].name.clone();
        if core::mem::take(&mut self.peers[p].discard_my_data) {
            // An order for a moment, not for the day on which the Primary is lost.
            let text = format!(
                "--discard-my-data is not carried out: while data come from another node the copies \
                 here and on {name} are not compared"
            );
            self.incident(Severity::Warning, text);
        }
        let reason = format!("connected to {name}; data come from another node");
        self.set_connection(p, ConnState::Connected, reason);
        self.set_peer_role(p, Role::Secondary, "told by the peer");
        for v in 0..self.volumes.len() {
            self.show_parked(p, v);
        }
        self.tell_state();
    }

    /// What is shown of a parked peer: in step, if the Primary says so of both.
    fn show_parked(&mut self, x: usize, v: usize) {
        if !self.peers[x].is_parked() {
            return;
        }
        let me = self
            .leader()
            .is_some_and(|p| self.peers[p].volumes[v].mirrors());
        let state = if me && self.peers[x].volumes[v].fed {
            ReplState::Established
        } else {
            ReplState::Off
        };
        self.set_replication(x, v, state, "told by the Primary");
    }

    /// Connections to other Secondaries that are of no use any more are made anew.
    fn renegotiate_others(&mut self, p: usize, why: &str, stale: impl Fn(&Peer) -> bool) {
        for x in 0..self.peers.len() {
            if x != p && self.peers[x].link.is_some() && stale(&self.peers[x]) {
                self.renegotiate_peer(x, why);
            }
        }
    }

    /// This node became Primary: connections that were not in step are of no use.
    pub(crate) fn leads_now(&mut self) {
        if !self.is_group() {
            return;
        }
        for p in 0..self.peers.len() {
            self.peers[p].forget_told();
            self.peers[p].count_settled_anew();
            // While this node was Secondary, a third may have brought it to this very generation.
            for v in &mut self.peers[p].volumes {
                v.lacks_current = false;
            }
            let useful = |v: &PeerVolume| {
                matches!(
                    v.replication,
                    ReplState::Established | ReplState::SyncSource
                )
            };
            let peer = &self.peers[p];
            if peer.link.is_some() && (peer.is_parked() || !peer.volumes.iter().all(useful)) {
                self.renegotiate_peer(p, "this node is Primary now");
            }
        }
    }

    /// A connected peer is Primary, or is about to be agreed with as one.
    pub(crate) fn leader_appeared(&mut self, p: usize) {
        if !self.is_group() || self.role == Role::Primary {
            return;
        }
        if let Some(link) = &mut self.peers[p].link {
            link.leads = true;
        }
        for x in (0..self.peers.len()).filter(|&x| x != p) {
            for v in &mut self.peers[x].volumes {
                v.fed = false;
                v.lacks_current = false;
            }
        }
        self.peers[p].unsettled.take();
        let node = self.peers[p].node;
        for v in 0..self.volumes.len() {
            self.set_peer_flag(v, node, PeerFlags::FOLLOWED, true);
            self.commit(v, false, None);
        }
        let in_step =
            |x: &Peer| x.is_parked() || x.is_agreed() && x.volumes.iter().all(PeerVolume::mirrors);
        self.renegotiate_others(p, "a Primary is connected", |x| !in_step(x));
    }

    /// The Primary this node followed is none any more (`clean`), or is lost.
    pub(crate) fn leader_gone(&mut self, p: usize, clean: bool) {
        if !self.is_group() {
            return;
        }
        let node = self.peers[p].node;
        let left = self.peers[p].unsettled.take();
        for v in 0..self.volumes.len() {
            for x in (0..self.peers.len()).filter(|&x| x != p) {
                let other = self.peers[x].node;
                if clean {
                    continue;
                }
                if let Some(bitmap) = self.volumes[v].bitmap_mut(other) {
                    for &(volume, offset, len) in &left {
                        if volume == v {
                            bitmap.set_bytes(offset, len);
                        }
                    }
                }
                let behind = self.volumes[v].generations.base_for(other) != 0
                    && self.peers[x].volumes[v].lacks_current;
                if !behind && self.volumes[v].disk > DiskState::Outdated {
                    self.set_peer_flag(v, other, PeerFlags::UNRECONCILED, true);
                }
            }
            self.set_peer_flag(v, node, PeerFlags::FOLLOWED, false);
            self.doubt(v);
            self.commit(v, true, None);
        }
        let stale = |x: &Peer| !clean || x.is_parked() || x.volumes.iter().any(|v| !v.fed);
        self.renegotiate_others(p, "the Primary is gone: the copies are compared", stale);
        for x in 0..self.peers.len() {
            for v in 0..self.volumes.len() {
                self.peers[x].volumes[v].fed = false;
            }
        }
    }

    /// Another survivor may have more than this copy: it is not served before they have met.
    pub(crate) fn doubt(&mut self, v: usize) {
        if self.volumes[v].disk != DiskState::UpToDate || !self.is_unreconciled(v) {
            return;
        }
        let names: Vec<&str> = self
            .peers
            .iter()
            .filter(|x| self.peer_flags(v, x.node).contains(PeerFlags::UNRECONCILED))
            .map(|x| x.name.as_str())
            .collect();
        let reason = format!(
            "the Primary is lost, and {} may have got more from it: this copy counts as current when \
             they have met",
            names.join(", ")
        );
        self.set_disk(v, DiskState::Consistent, reason);
        self.tell_state();
    }

    fn is_unreconciled(&self, v: usize) -> bool {
        self.peers
            .iter()
            .any(|x| self.peer_flags(v, x.node).contains(PeerFlags::UNRECONCILED))
    }

    /// This copy and the peer's were compared and are in step, or will be when a resync ends.
    pub(crate) fn reconciled(&mut self, p: usize, v: usize) {
        if !self.is_group() {
            return self.set_flags(v, MdFlags::CRASHED_PRIMARY, false);
        }
        let in_step = |x: &Peer| x.volumes[v].mirrors();
        if self.peers.iter().all(in_step) {
            self.crash_is_over(v);
        }
        let node = self.peers[p].node;
        self.set_peer_flag(v, node, PeerFlags::UNRECONCILED, false);
        if self.volumes[v].disk == DiskState::Consistent && !self.is_unreconciled(v) {
            let reason = "all that may have got more from the lost Primary were met".to_string();
            self.set_disk(v, DiskState::UpToDate, reason);
        }
    }

    /// What a crash may have cost this copy, some other copy may still have, until all have met. A
    /// copy made from this one inherits that.
    fn crash_is_over(&mut self, v: usize) {
        self.set_flags(v, MdFlags::CRASHED_PRIMARY, false);
        self.set_flags(v, MdFlags::CRASHED_SECONDARY, false);
    }

    /// No other copy can have more: somebody who must know has said so.
    pub(crate) fn no_doubt(&mut self, v: usize) {
        for x in 0..self.peers.len() {
            let node = self.peers[x].node;
            self.set_peer_flag(v, node, PeerFlags::UNRECONCILED, false);
        }
    }

    fn is_marked_as_crashed(&self, v: usize) -> bool {
        self.volumes[v].local.as_ref().is_some_and(|l| {
            let flags = l.superblock.flags;
            flags.contains(MdFlags::CRASHED_PRIMARY) || flags.contains(MdFlags::CRASHED_SECONDARY)
        })
    }

    pub(crate) fn peer_flags(&self, v: usize, node: NodeId) -> PeerFlags {
        self.volumes[v]
            .local
            .as_ref()
            .map_or(PeerFlags::default(), |l| {
                l.superblock.peers[node.slot()].flags
            })
    }

    pub(crate) fn set_peer_flag(&mut self, v: usize, node: NodeId, flag: PeerFlags, on: bool) {
        if let Some(local) = &mut self.volumes[v].local {
            let flags = &mut local.superblock.peers[node.slot()].flags;
            if on {
                flags.insert(flag);
            } else {
                flags.remove(flag);
            }
        }
    }

    /// Nodes that get all writes and lack nothing, this one included.
    pub(crate) fn in_step(&self, v: usize) -> u16 {
        let complete = |p: &&Peer| {
            p.receives(v) && p.volumes[v].mirrors() && p.volumes[v].disk == DiskState::UpToDate
        };
        self.peers
            .iter()
            .filter(complete)
            .fold(bit(self.cfg.me.id), |mask, p| mask | bit(p.node))
    }

    /// Primary: every peer that gets writes is told who else does, when that changes.
    pub(crate) fn tell_members(&mut self) {
        if !self.is_group() || self.role != Role::Primary {
            return;
        }
        for v in 0..self.volumes.len() {
            if self.volumes[v].bump_running || !self.volumes[v].is_up_to_date() {
                continue;
            }
            let (mask, current) = (self.in_step(v), self.volumes[v].generations.current);
            let all = mask.count_ones() as usize == self.peers.len() + 1;
            if all && self.is_marked_as_crashed(v) {
                self.crash_is_over(v);
                self.commit(v, false, None);
            }
            for p in 0..self.peers.len() {
                if self.peers[p].receives(v) && self.peers[p].volumes[v].told_in_step != Some(mask)
                {
                    self.send_generation(p, v, current, mask);
                }
            }
        }
    }

    /// Tells a peer the current generation, which it has (`previous` equal) or is to follow.
    pub(crate) fn send_generation(&mut self, p: usize, v: usize, previous: u64, in_step: u16) {
        self.peers[p].volumes[v].told_in_step = Some(in_step);
        let message = Message::NewCurrentUuid {
            volume: self.volumes[v].id.0,
            previous,
            current: self.volumes[v].generations.current,
            in_step,
        };
        self.send_message(p, Channel::Data, &message);
    }

    /// Secondary: the Primary tells who gets its writes from here on, and in which generation.
    pub(crate) fn new_current_received(
        &mut self,
        p: usize,
        v: usize,
        previous: u64,
        current: u64,
        in_step: u16,
    ) {
        if !self.is_group() || !self.peers[p].leads() {
            let text = "a new generation from a node that is not the Primary".to_string();
            return self.protocol_error(p, text);
        }
        let mine = self.volumes[v].generations.current;
        let whole = self.peers[p].volumes[v].mirrors();
        self.members_told(p, v, in_step);
        if same(previous, current) {
            if whole && same(mine, current) {
                self.others_in_step(p, v, in_step);
            }
            return;
        }
        let Some(link) = self.peers[p].link_number() else {
            return;
        };
        let node = self.peers[p].node;
        if same(mine, previous) && (whole || self.peers[p].volumes[v].adopts()) {
            let others: Vec<NodeId> = self
                .peers
                .iter()
                .map(|x| x.node)
                .filter(|&x| x != node)
                .collect();
            self.volumes[v]
                .generations
                .follow(current, others.into_iter());
            for x in (0..self.peers.len()).filter(|&x| x != p) {
                let outside = in_step & bit(self.peers[x].node) == 0;
                self.peers[x].volumes[v].lacks_current = outside;
            }
            self.commit(v, true, Some(Waiter::Follows(node, link)));
        } else if same(mine, current) || !whole {
            self.confirm_generation(p, v);
        } else {
            self.renegotiate_peer(p, "the generations have parted");
        }
    }

    /// The generation this node follows is on its disk (or it is a resync target, and stays at its
    /// base until it adopts).
    pub(crate) fn confirm_generation(&mut self, p: usize, v: usize) {
        let message = Message::NewCurrentUuidAck {
            volume: self.volumes[v].id.0,
            current: self.volumes[v].generations.current,
        };
        self.send_message(p, Channel::Data, &message);
    }

    /// Who gets the writes that follow. For a node that gets them no more, what may not have reached
    /// it is marked now; what follows is marked as it arrives.
    fn members_told(&mut self, p: usize, v: usize, in_step: u16) {
        for x in (0..self.peers.len()).filter(|&x| x != p) {
            let node = self.peers[x].node;
            let now = in_step & bit(node) != 0;
            let before = core::mem::replace(&mut self.peers[x].volumes[v].fed, now);
            if before && !now {
                let left: Vec<_> = self.peers[p].unsettled.iter().copied().collect();
                if let Some(bitmap) = self.volumes[v].bitmap_mut(node) {
                    for (volume, offset, len) in left {
                        if volume == v {
                            bitmap.set_bytes(offset, len);
                        }
                    }
                }
            }
            if self.peers[x].is_parked() {
                self.show_parked(x, v);
            } else if !now && self.peers[x].link.is_some() {
                self.renegotiate_peer(x, "the Primary does not reach it");
            }
        }
    }

    /// The Primary says that these nodes have its generation and lack nothing; so do we.
    pub(crate) fn others_in_step(&mut self, p: usize, v: usize, in_step: u16) {
        let mut changed = false;
        if in_step.count_ones() as usize == self.peers.len() + 1 && self.is_marked_as_crashed(v) {
            self.crash_is_over(v);
            changed = true;
        }
        for x in (0..self.peers.len()).filter(|&x| x != p) {
            let node = self.peers[x].node;
            if in_step & bit(node) == 0 {
                continue;
            }
            self.peers[x].volumes[v].lacks_current = false;
            let marked = self.volumes[v]
                .bitmap(node)
                .is_some_and(|b| b.count_set() > 0);
            let doubted = self.peer_flags(v, node).contains(PeerFlags::UNRECONCILED);
            let behind = self.volumes[v].generations.base_for(node) != 0;
            if marked && let Some(bitmap) = self.volumes[v].bitmap_mut(node) {
                bitmap.clear_all();
            }
            self.volumes[v].generations.in_step_with(node);
            self.set_peer_flag(v, node, PeerFlags::UNRECONCILED, false);
            changed |= marked || doubted || behind;
        }
        if changed {
            self.commit(v, true, None);
        }
        for x in 0..self.peers.len() {
            self.show_parked(x, v);
        }
    }

    /// Primary: a peer has the new generation on its disk.
    pub(crate) fn new_current_ack_received(&mut self, p: usize, v: usize, current: u64) {
        let pv = &mut self.peers[p].volumes[v];
        if pv.ack_due.is_none() {
            let text = "a generation was confirmed that was not told".to_string();
            return self.protocol_error(p, text);
        }
        pv.ack_due = None;
        let follows = same(current, self.volumes[v].generations.current);
        let node = self.peers[p].node;
        if follows {
            self.volumes[v].generations.in_step_with(node);
        }
        self.bump_progress(v);
    }

    /// A write of the Primary arrived: it may be lost before all have it, and some do not get it. Or a
    /// block of a resync: nobody else gets it (what the source marked after the bitmaps were merged is
    /// among them).
    pub(crate) fn note_peer_write(
        &mut self,
        p: usize,
        v: usize,
        offset: u64,
        len: u64,
        resync: bool,
    ) {
        if !self.is_group() {
            return;
        }
        if !resync {
            self.peers[p].unsettled.push(v, offset, len);
        }
        for x in (0..self.peers.len()).filter(|&x| x != p) {
            if resync || !self.peers[x].volumes[v].fed {
                let node = self.peers[x].node;
                if let Some(bitmap) = self.volumes[v].bitmap_mut(node) {
                    bitmap.set_bytes(offset, len);
                }
            }
        }
    }

    /// A resync onto this copy begins: what it changes, no third node has by that.
    pub(crate) fn mark_for_others(&mut self, p: usize, v: usize) {
        let source = self.peers[p].node;
        for x in (0..self.peers.len()).filter(|&x| x != p) {
            let node = self.peers[x].node;
            let mut at = 0;
            while let Some((offset, len)) = self.volumes[v]
                .bitmap(source)
                .and_then(|b| b.next_run(at, u64::MAX))
            {
                if let Some(bitmap) = self.volumes[v].bitmap_mut(node) {
                    bitmap.set_bytes(offset, len);
                }
                at = offset + len;
            }
        }
    }

    /// This copy becomes a resync target: it is in step with nobody, and no source.
    pub(crate) fn part_from_others(&mut self, p: usize) {
        if self.is_group() {
            let stale = |x: &Peer| !x.is_parked();
            self.renegotiate_others(p, "this node is brought up to date by another", stale);
        }
    }

    /// The target has adopted: with whom else the two are not in step is to be found out.
    pub(crate) fn compare_with_others(&mut self, p: usize) {
        if self.is_group() && self.leader().is_none() {
            let in_step = |x: &Peer| !x.is_parked() && x.volumes.iter().all(PeerVolume::mirrors);
            self.renegotiate_others(p, "a resync is over", |x| !in_step(x));
        }
    }

    /// Primary: tells peers how many of their writes are stable everywhere.
    pub(crate) fn tell_settled(&mut self) {
        if !self.is_group() || self.role != Role::Primary {
            return;
        }
        if self.volumes.iter().any(|v| v.bump_running) {
            return;
        }
        let horizon = self
            .peers
            .iter()
            .filter_map(|p| p.log.front())
            .map(|e| e.tag)
            .min()
            .unwrap_or(u64::MAX);
        for p in 0..self.peers.len() {
            let peer = &mut self.peers[p];
            while peer.settling.front().is_some_and(|&tag| tag < horizon) {
                peer.settling.pop_front();
                peer.settled += 1;
            }
            let news = peer.settled - peer.settled_told;
            if news >= SETTLED_STEP || news > 0 && peer.settling.is_empty() {
                peer.settled_told = peer.settled;
                let writes = peer.settled;
                self.send_message(p, Channel::Data, &Message::Settled { writes });
            }
        }
    }

    /// Secondary: so many writes are stable everywhere.
    pub(crate) fn settled_received(&mut self, p: usize, writes: u64) {
        if !self.peers[p].unsettled.settle(writes) {
            let text = format!("{writes} writes cannot be settled");
            self.protocol_error(p, text);
        }
    }

    /// A copy that went down while it followed a Primary: it cannot know which of the last writes the
    /// others got.
    pub(crate) fn mark_after_following(&mut self, v: usize) {
        let followed: Vec<NodeId> = self
            .peers
            .iter()
            .map(|p| p.node)
            .filter(|&n| self.peer_flags(v, n).contains(PeerFlags::FOLLOWED))
            .collect();
        let (Some(&leader), true) = (followed.first(), self.is_group()) else {
            return;
        };
        let text = format!(
            "{}: this node went down while it followed {leader}; blocks are marked for the others",
            self.volumes[v].id
        );
        self.incident(Severity::Warning, text);
        for x in 0..self.peers.len() {
            let node = self.peers[x].node;
            if (!followed.contains(&node) || followed.len() > 1)
                && let Some(bitmap) = self.volumes[v].bitmap_mut(node)
            {
                bitmap.set_all();
            }
            self.set_peer_flag(v, node, PeerFlags::FOLLOWED, false);
        }
        self.set_flags(v, MdFlags::CRASHED_SECONDARY, true);
    }
}

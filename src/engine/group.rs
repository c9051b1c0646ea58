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
use crate::metadata::superblock::PeerFlags;
use crate::output::Channel;
use crate::peer::{Peer, PeerVolume, Phase};
use crate::resource::Resource;
use crate::sabotage::{self, Mistake};
use crate::volume::Waiter;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use twinblk_protocol::control::{Message, Params, Reach};

/// Settled writes that are worth a message of their own while more are under way.
const SETTLED_STEP: u64 = 256;

/// What a peer is told of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Members {
    /// Bit per node that gets all writes and lacks nothing, the Primary included.
    pub(crate) in_step: u16,
    /// Bit per node that is known to lack the current generation.
    pub(crate) behind: u16,
    /// Everything sent up to now is stable on those in step: marks for them may be cleared.
    pub(crate) settled: bool,
}

fn bit(node: NodeId) -> u16 {
    1 << node.0
}

/// Neither end is Primary, and one of them gets its data from elsewhere.
pub(crate) fn parks(a: Reach, b: Reach) -> bool {
    if sabotage::is(Mistake::TwoSources) {
        return false;
    }
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
        self.no_longer_outdated(p);
        self.fence_met(p);
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
                v.lacks_current &= sabotage::is(Mistake::BehindForEver);
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

    /// A peer that has the current generation was out of sight: while it was, it may have brought others
    /// to it, so that none of those who get no writes is known any more to lack it.
    pub(crate) fn others_may_have_caught_up(&mut self, p: usize, v: usize) {
        for x in (0..self.peers.len()).filter(|&x| x != p) {
            if !self.peers[x].receives(v) {
                self.peers[x].volumes[v].lacks_current &= sabotage::is(Mistake::BehindForEver);
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
                v.lacks_current &= sabotage::is(Mistake::BehindForEver);
            }
        }
        self.peers[p].unsettled.take();
        self.peers[p].unfollow = false;
        // Until the disk says whom this node follows, nothing of that one is written: a crash would
        // leave differences that nobody suspects.
        let node = self.peers[p].node;
        for v in 0..self.volumes.len() {
            self.set_peer_flag(v, node, PeerFlags::FOLLOWED, true);
            self.peers[p].receiver.freeze();
            self.commit(v, false, Some(Waiter::Following(node)));
        }
        let in_step =
            |x: &Peer| x.is_parked() || x.is_agreed() && x.volumes.iter().all(PeerVolume::mirrors);
        self.renegotiate_others(p, "a Primary is connected", |x| !in_step(x));
    }

    /// The disk says whom this node follows: its writes may go there.
    pub(crate) fn following(&mut self, node: NodeId) {
        let waits = |w: &Waiter| matches!(w, Waiter::Following(n) if *n == node);
        if self.volumes.iter().any(|v| v.meta.has_waiter(waits)) {
            return;
        }
        if let Some(p) = self.peers.iter().position(|p| p.node == node) {
            self.peers[p].receiver.thaw();
            self.release_held_peer_writes(p);
        }
    }

    /// All that a former Primary sent is on the disk, and flushed: it is not followed any more.
    pub(crate) fn unfollow(&mut self) {
        for p in 0..self.peers.len() {
            if !self.peers[p].unfollow || !self.peers[p].receiver.is_idle() {
                continue;
            }
            self.peers[p].unfollow = false;
            let node = self.peers[p].node;
            for v in 0..self.volumes.len() {
                self.set_peer_flag(v, node, PeerFlags::FOLLOWED, false);
                self.commit(v, true, None);
            }
        }
    }

    /// The node that brought this one up to date is lost: another may go on.
    pub(crate) fn source_gone(&mut self, p: usize) {
        if self.is_group() && self.leader().is_none() {
            let waits = |x: &Peer| x.is_parked() || x.volumes.iter().any(|v| v.later);
            self.renegotiate_others(p, "the source of the resync is lost", waits);
        }
    }

    /// The Primary this node followed is none any more (`clean`), or is lost.
    pub(crate) fn leader_gone(&mut self, p: usize, clean: bool) {
        if !self.is_group() {
            return;
        }
        let mut left = self.peers[p].unsettled.take();
        if sabotage::is(Mistake::ForgetUnsettled) {
            left.clear();
        }
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
                let behind = self.peers[x].volumes[v].lacks_current;
                let half = self.peers[x].volumes[v].disk == DiskState::Inconsistent;
                let doubt = !half && !sabotage::is(Mistake::SurvivorWithoutDoubt);
                if doubt && !behind && self.volumes[v].disk > DiskState::Outdated {
                    self.set_peer_flag(v, other, PeerFlags::UNRECONCILED, true);
                }
            }
            self.doubt(v);
            self.commit(v, true, None);
        }
        self.peers[p].unfollow = true;
        let stale = |x: &Peer| !clean || x.is_parked() || x.volumes.iter().any(|v| !v.fed);
        self.renegotiate_others(p, "the Primary is gone: the copies are compared", stale);
        for x in 0..self.peers.len() {
            for v in 0..self.volumes.len() {
                self.peers[x].volumes[v].fed = false;
            }
        }
    }

    /// Nodes that get all writes and lack nothing, this one included.
    pub(crate) fn in_step(&self, v: usize) -> u16 {
        // What a verify found to differ is marked: such a peer is not in step.
        let clean = |p: &Peer| {
            self.volumes[v]
                .bitmap(p.node)
                .is_none_or(|b| b.count_set() == 0)
        };
        // Among Secondaries copies may be equal that none may serve.
        let worth = |disk| {
            disk == DiskState::UpToDate
                || self.role != Role::Primary
                    && matches!(disk, DiskState::Outdated | DiskState::Consistent)
        };
        let complete = |p: &&Peer| {
            p.receives(v) && p.volumes[v].mirrors() && worth(p.volumes[v].disk) && clean(p)
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
            let want = self.members(v);
            let all = want.in_step.count_ones() as usize == self.peers.len() + 1;
            if all && self.is_marked_as_crashed(v) {
                self.crash_is_over(v);
                self.commit(v, false, None);
            }
            for p in 0..self.peers.len() {
                if self.peers[p].receives(v) && self.peers[p].volumes[v].told != Some(want) {
                    self.tell_member(p, v, want);
                }
            }
        }
    }

    /// That a node is out of step is told at once. That one is in step counts for all writes up to
    /// now, also those that a peer may have got on an earlier connection and has marked: so it is told
    /// when they are stable everywhere.
    fn tell_member(&mut self, p: usize, v: usize, want: Members) {
        let current = self.volumes[v].generations.current;
        if let Some(old) = self.peers[p].volumes[v].told
            && old.in_step & !want.in_step != 0
        {
            let fewer = Members {
                in_step: old.in_step & want.in_step,
                settled: false,
                ..want
            };
            self.send_generation(p, v, current, fewer);
        }
        let tag = match self.peers[p].volumes[v].to_tell {
            Some((same, tag)) if same == want => tag,
            _ => self.next_tag,
        };
        if self.horizon() > tag {
            self.peers[p].volumes[v].to_tell = None;
            self.send_generation(p, v, current, want);
        } else {
            self.peers[p].volumes[v].to_tell = Some((want, tag));
        }
    }

    /// Writes with lower tags are stable on every peer that got them.
    fn horizon(&self) -> u64 {
        let oldest = |p: &Peer| p.log.front().map(|e| e.tag);
        self.peers
            .iter()
            .filter_map(oldest)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// A resync target gets the writes from here on. If a generation began while it made ready it has to
    /// know, for its half copy tells others that there is something newer.
    pub(crate) fn tell_target(&mut self, p: usize, v: usize) {
        let told = self.peers[p].volumes[v].start.toward;
        let current = self.volumes[v].generations.current;
        if !self.is_group() || self.role != Role::Primary || same(told, current) {
            return;
        }
        if self.volumes[v].bump_running && !self.volumes[v].bump_committed {
            // It will be told with all others.
            return;
        }
        self.volumes[v].bump_running = true;
        self.volumes[v].bump_committed = true;
        self.peers[p].volumes[v].ack_due = Some(self.now);
        let members = self.members(v);
        self.send_generation(p, v, told, members);
    }

    /// Who is in step, and who is known not to be.
    pub(crate) fn members(&self, v: usize) -> Members {
        let behind = |p: &&Peer| p.volumes[v].lacks_current && !p.receives(v);
        Members {
            in_step: self.in_step(v),
            behind: self
                .peers
                .iter()
                .filter(behind)
                .fold(0, |mask, p| mask | bit(p.node)),
            settled: true,
        }
    }

    /// Tells a peer the current generation, which it has (`previous` equal) or is to follow.
    pub(crate) fn send_generation(&mut self, p: usize, v: usize, previous: u64, members: Members) {
        let current = self.volumes[v].generations.current;
        // A new generation is told at once; what it says of others is settled by a later message.
        let settled = members.settled && same(previous, current);
        self.peers[p].volumes[v].told = Some(Members { settled, ..members });
        let message = Message::NewCurrentUuid {
            volume: self.volumes[v].id.0,
            previous,
            current,
            in_step: members.in_step,
            behind: members.behind,
            settled,
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
        members: Members,
    ) {
        let Members {
            in_step,
            behind,
            settled,
        } = members;
        if !self.is_group() || !self.peers[p].leads() {
            let text = "a new generation from a node that is not the Primary".to_string();
            return self.protocol_error(p, text);
        }
        let mine = self.volumes[v].generations.current;
        let whole = self.peers[p].volumes[v].mirrors();
        self.members_told(p, v, in_step);
        for x in (0..self.peers.len()).filter(|&x| x != p) {
            let known = behind & bit(self.peers[x].node) != 0;
            self.peers[x].volumes[v].lacks_current = known;
        }
        if same(previous, current) {
            if settled && whole && same(mine, current) {
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
            self.crash_is_over(v);
            self.commit(v, true, Some(Waiter::Follows(node, link)));
        } else if !whole {
            // A resync target stays at its base, but is brought to the new generation from here on.
            self.volumes[v].generations.toward = current & !1;
            self.commit(v, false, Some(Waiter::Follows(node, link)));
        } else if same(mine, current) {
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
        let forgets = match resync {
            true => Mistake::ResyncNotMarkedForThird,
            false => Mistake::NoMarksForThird,
        };
        if !self.is_group() || sabotage::is(forgets) {
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
        if sabotage::is(Mistake::ResyncNotMarkedForThird) {
            return;
        }
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
        let horizon = self.horizon();
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
}

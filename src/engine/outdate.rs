//! `outdate`: this copy is declared older than another, so that nobody promotes it by mistake. Handlers
//! order it from the other node. And leaving a Primary: a copy that stays behind says so on its disk
//! before the Primary relies on it.
//!
//! Invariant: a copy whose peer is connected is not outdated. Whether it is, a dead link does not tell: a
//! ping asks, and the order waits for the answer, or for the end of the link.

use crate::command::{Refusal, RefusalKind};
use crate::event::{DiskState, Role};
use crate::generations::same;
use crate::handshake::{Decision, Direction, Rule};
use crate::ids::{CommandId, NodeId};
use crate::output::{Channel, SendBody};
use crate::resource::Resource;
use crate::volume::Waiter;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use twinblk_protocol::frame::{Header, Kind};

/// An order that waits for peers to show that they live: number of each link, and of the ping.
#[derive(Debug)]
pub(crate) struct Outdating {
    id: CommandId,
    asked: Vec<(NodeId, u64, u64)>,
}

fn refusal(kind: RefusalKind, reason: String, way_out: String) -> Refusal {
    Refusal {
        kind,
        reason,
        way_out,
    }
}

impl Resource {
    /// Clients of the peer, a Primary without a current disk, rely on a generation that this copy never
    /// had: it lacks what they were told, or may.
    pub(crate) fn note_relied_upon(&mut self, p: usize, decisions: &[Decision]) {
        if self.role != Role::Secondary || self.role_change.is_some() {
            // Both have gone on.
            return;
        }
        for (v, decision) in decisions.iter().enumerate() {
            let facts = self.peers[p].link.as_ref().and_then(|l| l.facts.as_ref());
            let relies = facts.and_then(|f| f.volumes.get(v)).map_or(0, |f| f.relies);
            let known = &self.volumes[v].generations;
            let knows = same(known.current, relies) || known.history().any(|g| same(g, relies));
            if decision.rule != Rule::OtherGeneration || relies == 0 || knows {
                continue;
            }
            let name = self.peers[p].name.clone();
            self.outdate(v, format!("clients of {name} rely on newer data"));
            self.commit(v, false, None);
        }
    }

    /// With two nodes: both have found that this copy is the older one. From now on the other may be
    /// relied upon: its clients may be answered before this disk says that a resync onto it has begun.
    /// (What a person or a policy gives up after a split brain is not older, and stays what it is until it
    /// is overwritten.)
    pub(crate) fn is_older(&mut self, p: usize, v: usize, decision: &Decision) {
        if decision.direction != Direction::Target || decision.split_brain || self.is_group() {
            return;
        }
        if crate::sabotage::is(crate::sabotage::Mistake::CurrentUntilOverwritten) {
            return;
        }
        let name = self.peers[p].name.clone();
        self.outdate(v, format!("{name} has newer data"));
        self.commit(v, false, None);
    }

    /// `outdate`.
    pub(crate) fn order_outdate(&mut self, id: CommandId) {
        if let Err(refusal) = self.may_be_outdated() {
            return self.done(id, Err(refusal));
        }
        let mut asked = Vec::new();
        for p in 0..self.peers.len() {
            if !self.peers[p].is_agreed() {
                continue;
            }
            let (node, now) = (self.peers[p].node, self.now);
            let Some(link) = &mut self.peers[p].link else {
                continue;
            };
            link.ping_sequence += 1;
            let (number, sequence) = (link.number, link.ping_sequence);
            link.ping.get_or_insert((sequence, now));
            let mut ping = Header::new(Kind::Ping);
            ping.seq = sequence;
            self.send(p, Channel::Control, ping, SendBody::None);
            asked.push((node, number, sequence));
        }
        self.outdating.push(Outdating { id, asked });
    }

    fn may_be_outdated(&self) -> Result<(), Refusal> {
        let (me, name) = (&self.cfg.me.name, &self.cfg.name);
        if self.role == Role::Primary {
            return Err(refusal(
                RefusalKind::NoUpToDateData,
                format!("{me} is Primary: its data are in use, and are the current ones"),
                format!("run `twinblk secondary {name}` first"),
            ));
        }
        for volume in &self.volumes {
            if !volume.has_disk() {
                return Err(refusal(
                    RefusalKind::NoDisk,
                    format!(
                        "{} has no usable disk here: {}",
                        volume.id, volume.disk_reason
                    ),
                    "see `twinblk status`".to_string(),
                ));
            }
            if volume.disk < DiskState::Outdated {
                return Err(refusal(
                    RefusalKind::LowerThanOutdated,
                    format!(
                        "{} is {:?}, which is worse than Outdated",
                        volume.id, volume.disk
                    ),
                    "nothing is to be done: it cannot be promoted".to_string(),
                ));
            }
        }
        Ok(())
    }

    /// Goes on with orders that know enough.
    pub(crate) fn outdate_progress(&mut self) {
        let mut i = 0;
        while i < self.outdating.len() {
            let lives = |&(node, number, sequence): &(NodeId, u64, u64)| {
                let p = self.live_peer(node, number)?;
                let link = self.peers[p].link.as_ref()?;
                Some((p, link.ponged >= sequence))
            };
            let states: Vec<_> = self.outdating[i].asked.iter().filter_map(lives).collect();
            if let Some(&(p, _)) = states.iter().find(|&&(_, ponged)| ponged) {
                let id = self.outdating.remove(i).id;
                let text = format!(
                    "{} is connected: the copies are in step",
                    self.peers[p].name
                );
                let way_out = format!("leave it first: `twinblk disconnect {}`", self.cfg.name);
                self.done(id, Err(refusal(RefusalKind::State, text, way_out)));
            } else if states.is_empty() && self.role_change.is_none() {
                let id = self.outdating.remove(i).id;
                self.outdate_now(id);
            } else {
                i += 1;
            }
        }
    }

    fn outdate_now(&mut self, id: CommandId) {
        // The world may have changed while peers were asked.
        if let Err(refusal) = self.may_be_outdated() {
            return self.done(id, Err(refusal));
        }
        for v in 0..self.volumes.len() {
            self.outdate(
                v,
                "outdated by an administrator, or by a handler".to_string(),
            );
            self.commit(v, true, Some(Waiter::Outdated(id)));
        }
    }

    /// That a volume is Outdated is on its disk.
    pub(crate) fn outdated(&mut self, id: CommandId) {
        let this = |w: &Waiter| matches!(w, Waiter::Outdated(i) if *i == id);
        if !self.volumes.iter().any(|v| v.meta.has_waiter(this)) {
            self.done(id, Ok("this copy is Outdated now".to_string()));
        }
    }

    /// A Secondary was told that it may leave a Primary: first its disk says that it stays behind.
    /// Answers whether that has to be waited for.
    pub(crate) fn outdates_before_leaving(&mut self, p: usize) -> bool {
        if self.role == Role::Primary || self.peers[p].role != Role::Primary {
            return false;
        }
        let Some(link) = self.peers[p].link_number() else {
            return false;
        };
        let (node, name) = (self.peers[p].node, self.peers[p].name.clone());
        let mut waits = false;
        for v in 0..self.volumes.len() {
            let disk = self.volumes[v].disk;
            if matches!(disk, DiskState::UpToDate | DiskState::Consistent) {
                self.outdate(
                    v,
                    format!("disconnected on purpose while {name} was Primary"),
                );
                self.commit(v, true, Some(Waiter::Left(node, link)));
                waits = true;
            }
        }
        waits
    }

    /// That this copy stays behind is on the disk: the Primary is told, and left.
    pub(crate) fn left_outdated(&mut self, p: usize) {
        let node = self.peers[p].node;
        let this = |w: &Waiter| matches!(w, Waiter::Left(n, _) if *n == node);
        if !self.volumes.iter().any(|v| v.meta.has_waiter(this)) {
            self.tell_state();
            self.peers[p].fence.leaves = true;
            self.leave(p);
            self.peers[p].fence.leaves = false;
        }
    }
}

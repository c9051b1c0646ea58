//! A policy has chosen whose copy is given up, and that node is Primary: it stops being it first. Then
//! both nodes talk anew, with the promise of the victim in its facts, and the resync starts like one
//! that was ordered by `connect --discard-my-data`.
//!
//! Invariants:
//! * no block of a node is overwritten by a resync while it is Primary: whoever used it has an error
//!   before;
//! * a node that has been promoted again promises nothing.

use crate::event::{ConnState, Role, Severity};
use crate::handler::{HandlerKind, Then};
use crate::handshake::{Decision, Demotion, Direction, Policy, Settled};
use crate::output::Output;
use crate::resource::Resource;
use crate::role::{RoleChange, Step};
use crate::slots::Slots;
use alloc::format;

impl Resource {
    /// Handlers that hear of what a handshake has found.
    pub(crate) fn call_split_brain_handlers(&mut self, p: usize, decisions: &[Decision]) {
        let parted = |d: &&Decision| d.split_brain;
        // One that was ordered, or is resolved by a promise, was found before.
        let link = self.peers[p].link.as_ref();
        let facts = link.and_then(|l| Some([l.my_facts.as_ref()?, l.facts.as_ref()?]));
        let ordered = facts.is_some_and(|f| f.iter().any(|f| f.discard_my_data));
        if decisions.iter().any(|d| d.split_brain) && !ordered {
            self.call_handler(HandlerKind::InitialSplitBrain, Some(p), None, Then::Nothing);
        }
        let refused = |d: &&Decision| parted(d) && d.direction == Direction::Refuse;
        if decisions.iter().any(|d| refused(&d)) {
            self.call_handler(HandlerKind::SplitBrain, Some(p), None, Then::Nothing);
        }
        let me = self.cfg.me.id;
        let lost = decisions.iter().filter_map(|d| d.settled);
        let lost = lost.filter(|s| s.victim == me && s.demotion == Demotion::Handler);
        if let Some(settled) = lost.into_iter().next() {
            self.call_pri_lost(p, settled);
        }
    }

    fn call_pri_lost(&mut self, p: usize, settled: Settled) {
        let kind = match settled.policy {
            Policy::Conflict(_) => HandlerKind::PriLost,
            _ => HandlerKind::PriLostAfterSb,
        };
        if !self.call_handler(kind, Some(p), None, Then::Nothing) {
            let text = format!(
                "{} is not configured: this node stays Primary, and apart from {}",
                kind.name(),
                self.peers[p].name
            );
            self.incident(Severity::Warning, text);
        }
    }

    /// What both sides decided asks for the demotion of one. Answers whether that is so.
    pub(crate) fn yields(&mut self, p: usize, decisions: &[Decision]) -> bool {
        let Some(decision) = decisions.iter().find(|d| d.direction == Direction::Yield) else {
            return false;
        };
        let Some(settled) = decision.settled else {
            return false;
        };
        let text = decision.reason.clone();
        self.incident(Severity::Warning, format!("giving way: {text}"));
        if settled.victim == self.cfg.me.id {
            if settled.demotion == Demotion::Forced {
                self.evict("a split-brain policy gave this node's data up");
            } else {
                self.demote(None);
            }
            if self.role_change.is_none() {
                // Somebody has begun to use it meanwhile, or I/O is suspended.
                self.call_pri_lost(p, settled);
                self.peers[p].want = false;
                let text = format!("{text}; it could not be demoted");
                self.close_link(p, ConnState::StandAlone, text);
                return true;
            }
            self.peers[p].gives_up = decision.split_brain;
            self.peers[p].gives_way = true;
        }
        self.renegotiate_peer(p, &text);
        true
    }

    /// Makes this node Secondary whoever uses it: their requests get errors from now on, their
    /// connections are closed.
    pub(crate) fn evict(&mut self, cause: &str) {
        if self.role != Role::Primary || self.role_change.is_some() {
            return;
        }
        self.incident(
            Severity::Error,
            format!("{cause}: it is demoted, and its clients get errors"),
        );
        self.out.push(Output::CloseClients);
        self.clients = Slots::default();
        self.evicting = true;
        self.fail_suspended(cause);
        for v in 0..self.volumes.len() {
            self.fail_gated(v);
        }
        self.role_change = Some(RoleChange {
            command: None,
            step: Step::Draining,
        });
    }
}

//! A promotion under a fencing policy: every peer that is not connected, and not known to be outdated,
//! is fenced first. Meanwhile nothing else is held up; the promotion goes on, or is refused, when the
//! last handler has ended.

use crate::command::{Refusal, RefusalKind};
use crate::event::{DiskState, Role, Severity};
use crate::fencing::{Step, words};
use crate::ids::CommandId;
use crate::resource::Resource;
use crate::sabotage::{self, Mistake};
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

/// A promotion that waits for handlers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitingPromotion {
    pub(crate) command: CommandId,
    pub(crate) force: bool,
}

impl Resource {
    /// Peers that have to be fenced before this node is promoted.
    fn to_be_fenced(&self) -> Vec<usize> {
        let missing = |&p: &usize| !self.peers[p].is_agreed() && !self.is_harmless(p);
        let forgets = sabotage::is(Mistake::PromoteUnfenced);
        match self.cfg.options.fencing.calls() && !forgets {
            true => (0..self.peers.len()).filter(missing).collect(),
            false => Vec::new(),
        }
    }

    fn is_whole(&self) -> bool {
        let whole = |d| matches!(d, DiskState::UpToDate | DiskState::Consistent);
        self.volumes.iter().all(|v| whole(v.disk))
    }

    /// What handlers do counts only for a copy that was current in this life: to have a peer fenced for
    /// another would take the only current copy out of service and help nobody.
    fn slept(&self, peers: &[usize]) -> Option<Refusal> {
        if sabotage::is(Mistake::FenceForSlept) {
            return None;
        }
        let late = |v: &&crate::volume::Volume| v.disk == DiskState::Consistent && !v.was_current;
        let v = self.volumes.iter().find(late)?;
        let name = &self.peers[*peers.first()?].name;
        Some(Refusal {
            kind: RefusalKind::NoUpToDateData,
            reason: format!(
                "{} has not met {name} since this node was started: {name} may have gone on before",
                v.id
            ),
            way_out: format!(
                "connect {name}, or, if you know that it has no newer data, `twinblk primary --force {}`",
                self.cfg.name
            ),
        })
    }

    fn promoted_already(&self) -> Refusal {
        Refusal {
            kind: RefusalKind::State,
            reason: format!("{} is being promoted already", self.cfg.me.name),
            way_out: "wait until its peers are fenced: `twinblk status`".to_string(),
        }
    }

    /// Refuses a promotion while another waits for handlers. Answers whether.
    pub(crate) fn promotes_already(&mut self, command: CommandId) -> bool {
        if self.waiting_promotion.is_some() {
            self.done(command, Err(self.promoted_already()));
        }
        self.waiting_promotion.is_some()
    }

    /// What `primary` would come to now, as far as this node knows: what stands against it, and, when
    /// nothing does, for which peers the handler `fence-peer` would be called first.
    pub(crate) fn promotion_outlook(&self) -> (Result<(), Refusal>, Vec<usize>) {
        let calls = match self.role {
            Role::Primary => Vec::new(),
            _ => self.to_be_fenced(),
        };
        let stands = if self.waiting_promotion.is_some() {
            Err(self.promoted_already())
        } else if calls.is_empty() || !self.is_whole() {
            return (self.may_promote(false, true), Vec::new());
        } else if let Some(refusal) = self.slept(&calls) {
            Err(refusal)
        } else {
            self.may_promote_when(false, true, true)
        };
        match stands {
            Ok(()) => (Ok(()), calls),
            Err(refusal) => (Err(refusal), Vec::new()),
        }
    }

    /// Whether a promotion has to wait for a peer to be fenced; then it goes on by itself.
    pub(crate) fn fences_first(&mut self, command: CommandId, force: bool) -> bool {
        let peers = self.to_be_fenced();
        if peers.is_empty() {
            return false;
        }
        if !self.is_whole() {
            // By force a copy is declared current that nobody asks handlers about.
            for p in peers.into_iter().filter(|_| force) {
                self.peers[p].fence.overridden = true;
            }
            return false;
        }
        if let (Some(refusal), false) = (self.slept(&peers), force) {
            self.done(command, Err(refusal));
            return true;
        }
        self.waiting_promotion = Some(WaitingPromotion { command, force });
        for p in peers {
            if matches!(
                self.peers[p].fence.step,
                Step::Idle | Step::Failed(_) | Step::Due(_)
            ) {
                self.peers[p].fence.step = Step::Due(self.now);
            }
        }
        true
    }

    /// Goes on with a promotion when no handler is missing any more.
    pub(crate) fn promotion_fenced(&mut self) {
        let Some(waiting) = self.waiting_promotion else {
            return;
        };
        let busy = |p: &crate::peer::Peer| {
            let fences = !matches!(p.fence.step, Step::Idle | Step::Failed(_));
            fences && !p.is_agreed() || p.link.is_some() && !p.is_agreed()
        };
        if self.role_change.is_some() || self.peers.iter().any(busy) {
            return;
        }
        self.waiting_promotion = None;
        for p in 0..self.peers.len() {
            let fence = &mut self.peers[p].fence;
            let Step::Failed(_) = &fence.step else {
                continue;
            };
            let step = core::mem::take(&mut fence.step);
            if waiting.force {
                fence.overridden = true;
                let text = format!(
                    "promoted by force although {} is not fenced: if it is promoted too, the two \
                     are split",
                    self.peers[p].name
                );
                self.incident(Severity::Error, text);
                continue;
            }
            let refusal = self.not_fenced(p, &step);
            return self.done(waiting.command, Err(refusal));
        }
        self.promote(waiting.command, waiting.force);
    }

    fn not_fenced(&self, p: usize, step: &Step) -> Refusal {
        let name = &self.peers[p].name;
        let current = self.volumes.iter().all(|v| v.is_up_to_date());
        Refusal {
            kind: if current {
                RefusalKind::State
            } else {
                RefusalKind::NoUpToDateData
            },
            reason: format!(
                "{name} is not connected and could not be fenced: {}",
                words(step)
            ),
            way_out: format!(
                "connect {name}, or mend what stands against fencing it and try again; \
                 `twinblk primary --force {}` promotes all the same, and splits the two if {name} \
                 is, or was, promoted too",
                self.cfg.name
            ),
        }
    }

    /// A promotion that waits comes to nothing: the resource goes down, or something else was ordered.
    pub(crate) fn forget_waiting_promotion(&mut self, reason: &str, way_out: &str) {
        if let Some(waiting) = self.waiting_promotion.take() {
            let refusal = Refusal {
                kind: RefusalKind::State,
                reason: reason.to_string(),
                way_out: way_out.to_string(),
            };
            self.done(waiting.command, Err(refusal));
        }
    }

    /// What a promotion was granted against the policy counts for that reign only, and only a Primary, or
    /// who is about to be one, has peers fenced.
    pub(crate) fn reign_is_over(&mut self) {
        let waits = self.waiting_promotion.is_some();
        for peer in &mut self.peers {
            peer.fence.overridden = false;
            if !waits && matches!(peer.fence.step, Step::Failed(_) | Step::Due(_)) {
                peer.fence.step = Step::Idle;
            }
        }
    }

    /// Consent was given, and a peer was lost since then: it is fenced first. Answers whether.
    pub(crate) fn fences_after_all(&mut self, force: bool) -> bool {
        // Who goes down is not promoted at all.
        let over = self.role == Role::Primary || self.stopping.is_some();
        if over || self.to_be_fenced().is_empty() {
            return false;
        }
        let Some(command) = self.role_change.as_ref().and_then(|c| c.command) else {
            return false;
        };
        if !self.fences_first(command, force) {
            return false;
        }
        self.role_change = None;
        self.finish_asked(crate::peer::AskedWhat::Promote, false);
        true
    }
}

//! Fencing: a peer that is lost and could be promoted is made harmless before this node goes on as if
//! it were alone (`resource-and-stonith`), or while it does (`resource-only`). The handler `fence-peer`
//! does it; its exit code says what came of it.
//!
//! Invariants:
//! * under `resource-and-stonith` no write that a lost peer may lack is answered, and no generation
//!   begins for it, before the peer is known to be harmless or is back: until then both copies are of
//!   one generation, and whichever goes on, the other can follow;
//! * that a peer is harmless is on the disk (`OUTDATED`) only as long as it is not met: it is taken
//!   back, on the disk, before the peer can learn anything from this node;
//! * a Secondary that loses a Primary is Consistent until it has met it, or has fenced it;
//! * a copy that was not current in this life does not become current because another was fenced: that
//!   one may have gone on before.

use crate::event::{DiskState, ReplState, Role, Severity};
use crate::handler::{HandlerKind, HandlerResult, Then};
use crate::metadata::superblock::{MdFlags, PeerFlags};
use crate::peer::{Link, Phase};
use crate::resource::Resource;
use crate::sabotage::{self, Mistake};
use crate::suspend::Reason;
use crate::time::{Duration, Instant};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A peer that parted to talk anew is given so long to come back before it is fenced.
const COMES_BACK: Duration = Duration::from_secs(10);

/// What is done when a peer is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fencing {
    /// Nothing.
    #[default]
    DontCare,
    /// `fence-peer` is called; I/O goes on.
    ResourceOnly,
    /// I/O waits until `fence-peer` has succeeded.
    ResourceAndStonith,
}

impl Fencing {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::DontCare, Self::ResourceOnly, Self::ResourceAndStonith];

    /// Its name in the configuration, as in DRBD.
    pub fn name(self) -> &'static str {
        match self {
            Self::DontCare => "dont-care",
            Self::ResourceOnly => "resource-only",
            Self::ResourceAndStonith => "resource-and-stonith",
        }
    }

    /// The handler is called.
    pub(crate) fn calls(self) -> bool {
        self != Self::DontCare
    }
}

/// How far the fencing of a peer is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing is to be done.
    #[default]
    Idle,
    /// The handler is to be called then.
    Due(Instant),
    /// It runs: which run.
    Running(u64),
    /// It has ended; a handshake is under way, which goes first.
    Answered(HandlerResult),
    /// The peer could not be fenced: why.
    Failed(String),
}

/// Fencing of one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fence {
    pub(crate) step: Step,
    /// I/O is suspended because of this peer.
    pub(crate) awaited: bool,
    /// An administrator promoted this node by force, whatever that peer does.
    pub(crate) overridden: bool,
    /// The peer parts only to talk anew.
    pub(crate) comes_back: bool,
    /// The peer has made itself Outdated, and parts.
    pub(crate) parted: bool,
    /// This node has made itself Outdated, and parts.
    pub(crate) leaves: bool,
    /// Counts runs of the handler.
    runs: u64,
    /// Both copies were current when this was looked at last.
    both_current: bool,
    /// The policy of the peer, and that it differs was told.
    told_policy: Option<(String, Fencing)>,
}

/// What becomes of writes that were under way to a lost peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caught {
    /// They are answered when a new generation tells the peer apart.
    Answered,
    /// They wait until the peer is fenced, or back.
    Wait,
    /// They get an error: this node is ending its reign, and nobody waits for them.
    Failed,
}

impl Resource {
    /// A link is gone: what that means for the peer, and for this copy. Before anything else is done
    /// about it.
    pub(crate) fn contact_lost(&mut self, p: usize, link: &Link, refused: bool) -> Caught {
        let policy = self.cfg.options.fencing;
        let comes_back = core::mem::take(&mut self.peers[p].fence.comes_back);
        let parted = core::mem::take(&mut self.peers[p].fence.parted);
        // From its own verdict on, the peer may have agreed.
        let met = !link.parked
            && !refused
            && (link.phase == Phase::Agreed || link.phase == Phase::Verdicts);
        let told_primary = link.facts.as_ref().is_some_and(|f| f.role == Role::Primary);
        let led = self.peers[p].role == Role::Primary || link.granted.is_some() || told_primary;
        let mut caught = Caught::Answered;
        if !met {
            self.as_outdated_as_before(p, link);
            if self.peers[p].fence.awaited {
                caught = Caught::Wait;
            }
            return caught;
        }
        if link.phase == Phase::Verdicts {
            for (v, decision) in link.decisions.iter().enumerate() {
                self.is_older(p, v, decision);
            }
        }
        let node = self.peers[p].node;
        let mut harmless = true;
        for v in 0..self.volumes.len() {
            if parted {
                self.set_peer_flag(v, node, PeerFlags::OUTDATED, true);
                self.commit(v, false, None);
            }
            harmless &= parted || self.is_half_copied(p, v);
            if led && self.role == Role::Secondary && policy.calls() {
                self.peers[p].volumes[v].unfenced = true;
                self.doubt(v);
            }
        }
        if self.role != Role::Primary
            && policy.calls()
            && matches!(
                self.peers[p].fence.step,
                Step::Running(_) | Step::Answered(_)
            )
        {
            // It may have become current since the handler was called: what that did counts no more.
            self.peers[p].fence.step = match self.waiting_promotion {
                Some(_) => Step::Due(self.now),
                None => Step::Idle,
            };
        }
        // Without a copy of its own a Primary confirms nothing without the peer, and fencing that one would
        // take the only current copy out of service.
        if self.role != Role::Primary || harmless || !policy.calls() || self.is_remote() {
            return caught;
        }
        let ending = self.stopping.is_some() || self.role_change.is_some();
        if policy == Fencing::ResourceAndStonith && ending {
            return Caught::Failed;
        }
        let wait = if comes_back {
            COMES_BACK
        } else {
            Duration::ZERO
        };
        self.fence_lost(p, wait);
        if self.peers[p].fence.awaited {
            caught = Caught::Wait;
        }
        caught
    }

    /// A resync target with blocks left: nobody can promote it.
    fn is_half_copied(&self, p: usize, v: usize) -> bool {
        let pv = &self.peers[p].volumes[v];
        let under_way = match pv.replication {
            ReplState::SyncSource => pv.resync.as_ref().is_some_and(|r| !r.finish_sent()),
            ReplState::WFBitMapS => pv.disk == DiskState::Inconsistent,
            _ => false,
        };
        !self.is_group() && under_way
    }

    /// As Primary: fences a peer that is not there.
    pub(crate) fn fence_lost(&mut self, p: usize, wait: Duration) {
        let policy = self.cfg.options.fencing;
        let name = self.peers[p].name.clone();
        self.peers[p].fence.step = Step::Due(self.now + wait);
        if policy == Fencing::ResourceAndStonith {
            self.peers[p].fence.awaited = true;
            let cause = format!("contact to {name} is lost, and it is not known to be outdated");
            self.suspend(Reason::Fencing, cause);
        }
    }

    /// This node has become Primary: peers that were lost on the way are fenced.
    pub(crate) fn fence_missing(&mut self) {
        if !self.cfg.options.fencing.calls() || self.stopping.is_some() || self.is_remote() {
            return;
        }
        for p in 0..self.peers.len() {
            if !self.peers[p].is_agreed() && !self.is_harmless(p) {
                self.fence_lost(p, Duration::ZERO);
            }
        }
    }

    /// The peer is not there, and may be promoted without this node's doing.
    pub(crate) fn is_harmless(&self, p: usize) -> bool {
        let node = self.peers[p].node;
        let outdated = |v: usize| self.peer_flags(v, node).contains(PeerFlags::OUTDATED);
        self.peers[p].fence.overridden || (0..self.volumes.len()).all(outdated)
    }

    /// A handshake begins in which the peer may learn that it is current: that it was Outdated is taken
    /// back. The facts are sent when that is on the disk.
    pub(crate) fn no_longer_outdated(&mut self, p: usize) {
        let node = self.peers[p].node;
        let mut was = Vec::new();
        for v in 0..self.volumes.len() {
            was.push(self.peer_flags(v, node).contains(PeerFlags::OUTDATED));
            if was[v] && !sabotage::is(Mistake::KeepOutdatedMark) {
                self.set_peer_disk(p, v, DiskState::DUnknown, "it is being talked to");
                self.set_peer_flag(v, node, PeerFlags::OUTDATED, false);
                self.commit(v, false, None);
            }
        }
        if let Some(link) = &mut self.peers[p].link {
            link.was_outdated = was;
        }
    }

    /// The handshake came to nothing: the peer is what it was.
    fn as_outdated_as_before(&mut self, p: usize, link: &Link) {
        let node = self.peers[p].node;
        for (v, _) in link
            .was_outdated
            .iter()
            .enumerate()
            .filter(|&(_, &was)| was)
        {
            // What it has just said of itself is newer than what was known.
            let went_on = link.facts.as_ref().is_some_and(|f| {
                let disk = f.volumes.get(v).map_or(DiskState::DUnknown, |f| f.disk);
                f.role == Role::Primary || disk > DiskState::Outdated
            });
            if went_on {
                continue;
            }
            self.set_peer_flag(v, node, PeerFlags::OUTDATED, true);
            self.commit(v, false, None);
        }
    }

    /// The state shown of a lost peer's disk.
    pub(crate) fn lost_disk_state(&self, p: usize, v: usize) -> DiskState {
        let node = self.peers[p].node;
        if self.peer_flags(v, node).contains(PeerFlags::OUTDATED) {
            DiskState::Outdated
        } else {
            DiskState::DUnknown
        }
    }

    /// Both nodes should do the same when they lose each other; to refuse the connection for it would leave
    /// them without a mirror, so it is only said: once, and again when it has changed.
    pub(crate) fn compare_fencing(&mut self, p: usize, theirs: &str) {
        let ours = self.cfg.options.fencing;
        let met = (theirs.to_string(), ours);
        if theirs == ours.name() || self.peers[p].fence.told_policy.as_ref() == Some(&met) {
            return;
        }
        let name = &self.peers[p].name;
        let text = format!(
            "fencing is {} here and {theirs} on {name}: whichever of them is Primary when they lose each \
             other acts by its own; make the configuration files equal and run `twinblk adjust {}` on \
             both nodes",
            ours.name(),
            self.cfg.name
        );
        self.incident(Severity::Warning, text);
        self.peers[p].fence.told_policy = Some(met);
    }

    /// The peer is back, and agreed with.
    pub(crate) fn fence_met(&mut self, p: usize) {
        let fence = &mut self.peers[p].fence;
        if fence.step != Step::Idle {
            let text = format!("{} is back: it is not fenced", self.peers[p].name);
            self.incident(Severity::Info, text);
        }
        let fence = &mut self.peers[p].fence;
        (fence.step, fence.overridden) = (Step::Idle, false);
        let name = self.peers[p].name.clone();
        self.no_longer_awaited(p, format!("{name} is back"));
    }

    fn no_longer_awaited(&mut self, p: usize, cause: String) {
        self.peers[p].fence.awaited = false;
        if !self.peers.iter().any(|p| p.fence.awaited) {
            self.resume(Reason::Fencing, cause);
        }
    }

    /// Calls handlers that are due, and takes up answers.
    pub(crate) fn fence_progress(&mut self) {
        for p in 0..self.peers.len() {
            // A handshake under way decides by itself, and changes nothing it has told.
            let talks = self.peers[p].link.is_some();
            let needed = self.role == Role::Primary || self.waiting_promotion.is_some();
            if !needed && matches!(self.peers[p].fence.step, Step::Due(_)) {
                self.peers[p].fence.step = Step::Idle;
            }
            match &self.peers[p].fence.step {
                Step::Due(at) if *at <= self.now && !talks => self.call_fence_peer(p),
                Step::Answered(result) if !talks && !self.peers.iter().any(|p| p.freezes()) => {
                    let result = result.clone();
                    self.peers[p].fence.step = Step::Idle;
                    self.fence_result(p, &result);
                }
                _ => {}
            }
        }
        self.pay_generations();
        self.promotion_fenced();
        self.unfence();
    }

    /// I/O waits for this peer although its handler has failed: why it has.
    pub(crate) fn waits_in_vain_for(&self, p: usize) -> Option<String> {
        match &self.peers[p].fence.step {
            Step::Failed(why) if self.peers[p].fence.awaited => Some(why.clone()),
            _ => None,
        }
    }

    /// When [`Self::fence_progress`] has something to do.
    pub(crate) fn fence_deadline(&self, p: usize) -> Option<Instant> {
        match self.peers[p].fence.step {
            Step::Due(at) if self.peers[p].link.is_none() => Some(at),
            _ => None,
        }
    }

    fn call_fence_peer(&mut self, p: usize) {
        let fence = &mut self.peers[p].fence;
        fence.runs += 1;
        let then = Then::Fence(fence.runs);
        fence.step = Step::Running(fence.runs);
        if !self.call_handler(HandlerKind::FencePeer, Some(p), None, then) {
            let why = String::from("the handler fence-peer is not configured");
            self.peers[p].fence.step = Step::Answered(HandlerResult::Broken(why));
        }
    }

    /// `fence-peer` has ended.
    pub(crate) fn fence_answered(&mut self, p: usize, run: u64, result: &HandlerResult) {
        if self.peers[p].fence.step == Step::Running(run) {
            self.peers[p].fence.step = Step::Answered(result.clone());
        } else {
            let text = format!(
                "what the handler fence-peer did about {} does not count: it is back, or another \
                 run has begun",
                self.peers[p].name
            );
            self.incident(Severity::Info, text);
        }
    }

    fn fence_result(&mut self, p: usize, result: &HandlerResult) {
        let name = self.peers[p].name.clone();
        let me = self.cfg.me.name.clone();
        let current = self.volumes.iter().all(|v| v.is_up_to_date());
        // As long as it lives it has seen that nobody went on without it.
        let lately = self.volumes.iter().all(|v| v.was_current);
        let code = match result {
            HandlerResult::Exited(code) => *code,
            HandlerResult::Broken(why) => {
                return self.fence_failed(p, format!("the handler fence-peer {why}"));
            }
        };
        match code {
            3 => self.fenced(p, DiskState::Inconsistent, "its disk is Inconsistent"),
            4 | 7 if self.volumes.iter().any(|v| v.disk < DiskState::Consistent) => {
                let text = format!(
                    "{name} is fenced now (exit code {code}), but meanwhile this copy is not fit \
                     either: connect the two"
                );
                self.fence_failed(p, text);
            }
            4 | 7 if !lately && !sabotage::is(Mistake::FenceForSlept) => {
                let text = format!(
                    "{name} is fenced now (exit code {code}), but it may have gone on before: \
                     this copy has not been current since {me} was started"
                );
                self.fence_failed(p, text);
            }
            4 => self.fenced(p, DiskState::Outdated, "it is Outdated"),
            5 if current => self.fenced(p, DiskState::Outdated, "it cannot be reached"),
            5 => {
                let text = format!(
                    "{name} cannot be reached (exit code 5), and this copy is not known to be current"
                );
                self.fence_failed(p, text);
            }
            6 => {
                for v in 0..self.volumes.len() {
                    self.outdate(v, format!("{name} is Primary, as fence-peer found out"));
                    self.commit(v, true, None);
                }
                self.fence_failed(p, format!("{name} is Primary (exit code 6)"));
            }
            7 => self.fenced(p, DiskState::Outdated, "it was fenced off the cluster"),
            code => {
                let text = format!("the handler fence-peer is broken: exit code {code}");
                self.fence_failed(p, text);
            }
        }
    }

    fn fenced(&mut self, p: usize, disk: DiskState, how: &str) {
        let name = self.peers[p].name.clone();
        let node = self.peers[p].node;
        for v in 0..self.volumes.len() {
            self.set_peer_flag(v, node, PeerFlags::OUTDATED, true);
            self.set_peer_disk(p, v, disk, "told by the handler fence-peer");
            self.commit(v, false, None);
            self.peers[p].volumes[v].unfenced = false;
            self.no_more_doubt(v, format!("{name} is fenced: {how}"));
        }
        self.no_longer_awaited(p, format!("{name} is fenced: {how}"));
    }

    fn fence_failed(&mut self, p: usize, why: String) {
        if sabotage::is(Mistake::ThawUnfenced) {
            self.no_longer_awaited(p, why.clone());
        }
        let mut text = format!("{} is not fenced: {why}", self.peers[p].name);
        if self.peers[p].fence.awaited {
            text.push_str(
                "; I/O waits until it is back, or `twinblk resume-io RES` says that it cannot be \
                 promoted (`twinblk secondary --force RES` gives clients errors)",
            );
        }
        self.incident(Severity::Error, text);
        self.peers[p].fence.step = Step::Failed(why);
    }

    /// This copy is known to be older than another, or may be from now on.
    pub(crate) fn outdate(&mut self, v: usize, reason: String) {
        let disk = self.volumes[v].disk;
        if matches!(disk, DiskState::UpToDate | DiskState::Consistent) {
            self.set_flags(v, MdFlags::WAS_UP_TO_DATE, false);
            self.set_disk(v, DiskState::Outdated, reason);
        }
    }

    /// A new generation that was put off begins as soon as it may.
    fn pay_generations(&mut self) {
        let comparing = self.peers.iter().any(|p| p.freezes());
        if self.suspended.has(Reason::Fencing) || comparing {
            return;
        }
        for v in 0..self.volumes.len() {
            if !self.volumes[v].bump_owed || self.volumes[v].bump_running {
                continue;
            }
            self.volumes[v].bump_owed = false;
            let current = self.volumes[v].is_up_to_date() && self.role == Role::Primary;
            if current && self.needs_new_generation(v) {
                self.start_new_generation(v);
            } else {
                self.release_held();
            }
        }
    }

    /// Both copies have just become current again: what `fence-peer` did may be undone.
    fn unfence(&mut self) {
        for p in 0..self.peers.len() {
            let peer = &self.peers[p];
            let current = |v: usize| {
                let pv = &peer.volumes[v];
                self.volumes[v].is_up_to_date() && pv.disk == DiskState::UpToDate && pv.mirrors()
            };
            let both = peer.is_agreed() && (0..self.volumes.len()).all(current);
            let before = core::mem::replace(&mut self.peers[p].fence.both_current, both);
            if both && !before && self.cfg.options.fencing.calls() {
                self.call_handler(HandlerKind::UnfencePeer, Some(p), None, Then::Nothing);
            }
        }
    }

    /// Changed options: what was begun under another policy ends.
    pub(crate) fn fencing_changed(&mut self, old: Fencing) {
        let new = self.cfg.options.fencing;
        if old == new {
            return;
        }
        for p in 0..self.peers.len() {
            if new != Fencing::ResourceAndStonith {
                self.peers[p].fence.awaited = false;
            }
            if new.calls() {
                continue;
            }
            self.peers[p].fence.step = Step::Idle;
            for v in 0..self.volumes.len() {
                self.peers[p].volumes[v].unfenced = false;
            }
        }
        let cause = format!("`fencing` is {} now", new.name());
        for v in 0..self.volumes.len() {
            self.no_more_doubt(v, cause.clone());
        }
        if !self.peers.iter().any(|p| p.fence.awaited) {
            self.resume(Reason::Fencing, cause);
        }
        // A node that is being demoted or promoted fences when that is over, or need not.
        if self.role == Role::Primary && self.role_change.is_none() && self.stopping.is_none() {
            self.fence_as_ordered_now(old);
        }
    }

    /// A Primary has come under a policy that asks for more: peers that are lost already are fenced, too.
    fn fence_as_ordered_now(&mut self, old: Fencing) {
        if self.cfg.options.fencing <= old || self.is_remote() {
            return;
        }
        for p in 0..self.peers.len() {
            if self.peers[p].is_agreed() || self.is_harmless(p) {
                continue;
            }
            // What is under way goes on; I/O waits for it from now on.
            let step = core::mem::take(&mut self.peers[p].fence.step);
            self.fence_lost(p, Duration::ZERO);
            if matches!(step, Step::Due(_) | Step::Running(_) | Step::Answered(_)) {
                self.peers[p].fence.step = step;
            }
        }
    }

    /// A metadata flag says of every peer that was not met since the start whether it is harmless. Under
    /// a fencing policy this copy is current only if all are.
    pub(crate) fn doubt_at_start(&mut self, v: usize) {
        let calls = self.cfg.options.fencing.calls();
        for p in 0..self.peers.len() {
            let node = self.peers[p].node;
            let outdated = self.peer_flags(v, node).contains(PeerFlags::OUTDATED);
            self.peers[p].volumes[v].unfenced = calls && !outdated && !self.peers[p].is_agreed();
            if outdated {
                let cause = "known since before the start";
                self.set_peer_disk(p, v, DiskState::Outdated, cause);
            }
        }
    }
}

/// Why a peer is not fenced, for a refusal.
pub(crate) fn words(step: &Step) -> String {
    match step {
        Step::Failed(why) => why.clone(),
        Step::Due(_) | Step::Running(_) | Step::Answered(_) => "it is being fenced".to_string(),
        Step::Idle => "it was not fenced".to_string(),
    }
}

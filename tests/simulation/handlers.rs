//! Handlers, and what fencing must keep from happening.
//!
//! `fence-peer` does to the world what it says it does: it switches the other machine off (exit code 7),
//! orders `outdate` there (4, 3, 6), or finds that machine off (5). Some runs of it break, or hang. What
//! it says may come late; the world goes on meanwhile.

use crate::node::name;
use crate::plan::{MS, SECOND};
use crate::rng::Rng;
use crate::world::{Due, World};
use std::collections::BTreeMap;
use twinblk_engine::command::{Command, CommandResult, RefusalKind};
use twinblk_engine::event::Role;
use twinblk_engine::fencing::Fencing;
use twinblk_engine::handler::{HandlerKind, HandlerResult, HandlerSet};
use twinblk_engine::ids::{HandlerId, NodeId};
use twinblk_engine::input::Input;
use twinblk_engine::suspend::Reason;

/// How long a handler may take.
const HANDLER_TIME: u64 = 20 * SECOND;

/// How a plan's `fence-peer` works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// Switches the peer's machine off.
    Power,
    /// Orders `outdate` on the peer.
    Outdate,
}

/// What a seed decides about fencing, handlers and suspension: from a stream of its own, so that other
/// things stay as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FencePlan {
    /// The policy.
    pub fencing: Fencing,
    /// How the handler works.
    pub agent: Agent,
    /// Handlers are configured.
    pub handlers: bool,
    /// Handlers break or hang in so many of 1000 runs.
    pub broken: u64,
    /// An administrator suspends and resumes I/O, outdates copies, and demotes by force.
    pub suspends: bool,
    /// Failover daemons that hear nothing of the other node promote their own.
    pub fails_over: bool,
}

impl FencePlan {
    /// What this seed decides.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::stream(seed, 20);
        let fencing = rng.pick(&[
            Fencing::DontCare,
            Fencing::DontCare,
            Fencing::DontCare,
            Fencing::ResourceOnly,
            Fencing::ResourceAndStonith,
            Fencing::ResourceAndStonith,
        ]);
        Self {
            fencing,
            agent: rng.pick(&[Agent::Power, Agent::Outdate]),
            handlers: fencing != Fencing::DontCare || rng.per_mille(200),
            broken: rng.pick(&[0, 0, 200]),
            suspends: rng.per_mille(250),
            fails_over: fencing != Fencing::DontCare && Rng::stream(seed, 23).per_mille(400),
        }
    }

    /// Nothing of it.
    pub fn none() -> Self {
        Self {
            fencing: Fencing::DontCare,
            agent: Agent::Power,
            handlers: false,
            broken: 0,
            suspends: false,
            fails_over: false,
        }
    }

    /// For the engine.
    pub fn handler_set(&self) -> HandlerSet {
        let none = HandlerSet::default();
        match self.handlers {
            true => HandlerKind::ALL.into_iter().fold(none, HandlerSet::with),
            false => none,
        }
    }
}

/// A handler that runs.
#[derive(Debug)]
struct Run {
    node: usize,
    life: u64,
    id: HandlerId,
    kind: HandlerKind,
    peer: Option<usize>,
    answer: Option<HandlerResult>,
    /// The order it gave on the peer.
    order: Option<u64>,
}

/// All that run.
#[derive(Debug)]
pub struct Handlers {
    rng: Rng,
    next: u64,
    runs: BTreeMap<u64, Run>,
    /// Somebody has overruled fencing: from here on it promises nothing.
    pub overruled: bool,
    /// In a story: the handlers of this node break.
    pub breaks_on: Option<usize>,
}

impl Handlers {
    /// None run.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng::stream(seed, 21),
            next: 0,
            runs: BTreeMap::new(),
            overruled: false,
            breaks_on: None,
        }
    }
}

impl World {
    /// An engine wants a handler.
    pub(crate) fn handler(
        &mut self,
        n: usize,
        id: HandlerId,
        kind: HandlerKind,
        peer: Option<NodeId>,
    ) {
        if !self.plan.fence.handlers {
            let text = format!("node {n} asks for {}, which is not configured", kind.name());
            return self.violate("handlers_are_configured", text);
        }
        self.trace.count(&format!("handler {}", kind.name()));
        self.trace.line(self.now, || {
            format!("{n}: handler {} {peer:?}", kind.name())
        });
        let handlers = &mut self.handlers;
        handlers.next += 1;
        let number = handlers.next;
        let run = Run {
            node: n,
            life: self.nodes[n].life,
            id,
            kind,
            peer: peer.map(|p| usize::from(p.0)),
            answer: None,
            order: None,
        };
        handlers.runs.insert(number, run);
        let delay = handlers.rng.between(MS, 2 * SECOND);
        self.after(delay, Due::Handler(number));
        self.after(HANDLER_TIME, Due::HandlerLate(number));
    }

    /// It acts, or ends.
    pub(crate) fn handler_goes_on(&mut self, number: u64) {
        let Some(run) = self.handlers.runs.get(&number) else {
            return;
        };
        if run.answer.is_some() {
            return self.handler_ends(number);
        }
        if run.order.is_some() {
            return;
        }
        let (kind, peer) = (run.kind, run.peer);
        if self.handlers.breaks_on == Some(run.node) {
            return self.handler_says(number, HandlerResult::Exited(1));
        }
        let broken = !self.ending && self.handlers.rng.per_mille(self.plan.fence.broken);
        let answer = match (kind, peer) {
            (_, _) if broken => {
                if self.handlers.rng.per_mille(500) {
                    // It hangs until its time is over.
                    self.trace.count("handler hangs");
                    return;
                }
                HandlerResult::Exited(1)
            }
            (HandlerKind::FencePeer, Some(m)) => match self.fence(number, m) {
                Some(answer) => answer,
                None => return,
            },
            _ => HandlerResult::Exited(0),
        };
        self.handler_says(number, answer);
    }

    /// Does what `fence-peer` is for. `None`: an order is on its way.
    fn fence(&mut self, number: u64, m: usize) -> Option<HandlerResult> {
        let node = &self.nodes[m];
        if node.engine.is_none() {
            let off = self.handlers.rng.pick(&[5, 7]);
            return Some(HandlerResult::Exited(off));
        }
        match self.plan.fence.agent {
            Agent::Power => {
                self.trace.count("fault Fenced");
                self.kill(m, true);
                Some(HandlerResult::Exited(7))
            }
            Agent::Outdate if node.stopped || node.paused_until > self.now => {
                Some(HandlerResult::Exited(1))
            }
            Agent::Outdate => {
                // The answer may come in the same step.
                let order = self.admin.next_order();
                if let Some(run) = self.handlers.runs.get_mut(&number) {
                    run.order = Some(order);
                }
                self.order(m, Command::Outdate);
                None
            }
        }
    }

    /// The order a handler gave is answered.
    pub(crate) fn handler_hears(&mut self, order: u64, result: &CommandResult) {
        let found = self
            .handlers
            .runs
            .iter()
            .find(|(_, r)| r.order == Some(order));
        let Some((&number, _)) = found else { return };
        let code = match result {
            Ok(_) => 4,
            Err(r) if r.kind == RefusalKind::NoUpToDateData => 6,
            Err(r) if r.kind == RefusalKind::LowerThanOutdated => 3,
            Err(_) => 1,
        };
        self.handler_says(number, HandlerResult::Exited(code));
    }

    fn handler_says(&mut self, number: u64, answer: HandlerResult) {
        if let Some(run) = self.handlers.runs.get_mut(&number) {
            run.answer = Some(answer);
        }
        let delay = self.handlers.rng.between(MS, 3 * SECOND);
        self.after(delay, Due::Handler(number));
    }

    fn handler_ends(&mut self, number: u64) {
        let Some(run) = self.handlers.runs.remove(&number) else {
            return;
        };
        let (n, id) = (run.node, run.id);
        // Its daemon may have died.
        if self.nodes[n].life != run.life || self.nodes[n].engine.is_none() {
            return;
        }
        let result = run.answer.unwrap_or_else(|| {
            let text = String::from("took too long");
            HandlerResult::Broken(text)
        });
        let name = run.kind.name();
        self.trace.count(&match &result {
            HandlerResult::Exited(code) => format!("handler {name} exit {code}"),
            HandlerResult::Broken(_) => format!("handler {name} too late"),
        });
        self.trace
            .line(self.now, || format!("{n}: handler {name}: {result:?}"));
        self.feed(n, Input::HandlerDone { id, result });
    }

    /// Its time is over.
    pub(crate) fn handler_is_late(&mut self, number: u64) {
        if self.handlers.runs.contains_key(&number) {
            self.handler_ends(number);
        }
    }

    /// An administrator who suspends and resumes, outdates, and demotes by force.
    pub(crate) fn suspend_at_random(&mut self) {
        if self.ending {
            return;
        }
        let delay = self.handlers.rng.between(100 * MS, 5 * SECOND);
        self.after(delay, Due::Suspend);
        let n = self.handlers.rng.index(self.plan.nodes);
        let command = match self.handlers.rng.below(10) {
            0..=3 => Command::SuspendIo,
            4..=6 => Command::ResumeIo,
            7 | 8 => Command::SecondaryByForce,
            _ => Command::Outdate,
        };
        if self.nodes[n].paused_until <= self.now {
            self.order(n, command);
        }
    }

    /// Suspended I/O is looked after: who waits for an order gets one; who waits for a peer that is off for
    /// good is told so.
    pub(crate) fn someone_is_suspended(&mut self) -> bool {
        for n in 0..self.plan.nodes {
            let node = &self.nodes[n];
            if node.stopped || node.paused_until > self.now {
                continue;
            }
            let Some(engine) = &node.engine else { continue };
            let status = engine.status(node.clock(self.now));
            let suspended = status.suspended_for;
            if !suspended.any() {
                continue;
            }
            let fences = self.handlers.runs.values().any(|r| r.node == n);
            if suspended.has(Reason::Fencing) && !fences {
                use twinblk_engine::event::DiskState;
                let outdated = status.volumes[0].disk == DiskState::Outdated;
                let off = |m: usize| self.nodes[m].engine.is_none();
                let away = |p: &&twinblk_engine::status::PeerStatus| {
                    p.connection != twinblk_engine::event::ConnState::Connected
                };
                let all_off = status
                    .peers
                    .iter()
                    .filter(away)
                    .all(|p| off(usize::from(p.node.0)));
                if outdated {
                    self.order(n, Command::SecondaryByForce);
                    return true;
                } else if all_off {
                    self.order(n, Command::ResumeIo);
                    return true;
                }
            }
            if suspended.has(Reason::User) && self.ending && !suspended.has(Reason::Fencing) {
                self.order(n, Command::ResumeIo);
                return true;
            }
        }
        false
    }

    /// An order that overrules fencing.
    pub(crate) fn overrules(&mut self, n: usize, command: &Command) {
        let node = &self.nodes[n];
        let frozen = node.engine.as_ref().is_some_and(|e| {
            let suspended = e.status(node.clock(self.now)).suspended_for;
            suspended.has(Reason::Fencing)
        });
        let overrules = match command {
            Command::Primary { force: true } => self.admin.begun,
            Command::ResumeIo if frozen => {
                // Whoever is off when it is said may be on again, and has not gone on.
                let alive = |m: usize| m != n && self.nodes[m].engine.is_some();
                (0..self.plan.nodes).any(alive)
            }
            _ => false,
        };
        self.handlers.overruled |= overrules;
    }

    fn fencing_is_complete(&self) -> bool {
        self.plan.fence.fencing == Fencing::ResourceAndStonith && !self.handlers.overruled
    }

    /// With complete fencing and handlers that tell the truth, nobody is promoted beside a Primary that
    /// goes on.
    pub(crate) fn fencing_keeps_one_primary(&mut self, n: usize) {
        if !self.fencing_is_complete() {
            return;
        }
        for m in (0..self.plan.nodes).filter(|&m| m != n) {
            let node = &self.nodes[m];
            let Some(engine) = &node.engine else { continue };
            let status = engine.status(node.clock(self.now));
            if node.role == Role::Primary && !status.suspended_for.has(Reason::Fencing) {
                let text = format!("{} is promoted, {} is Primary", name(n), name(m));
                self.violate("fencing_keeps_one_primary", text);
            }
        }
    }

    /// The same, seen from its end: no two copies were both written since they parted.
    pub(crate) fn fencing_keeps_from_split_brain(&mut self, n: usize, cause: &str) {
        if cause.starts_with("split brain") {
            self.trace.count("split brain told");
            if self.fencing_is_complete() {
                let text = format!("{}: {cause}", name(n));
                self.violate("fencing_keeps_from_split_brain", text);
            }
        }
    }
}

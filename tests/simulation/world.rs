//! The world: time, what is due next, and the nodes. One event after the other, in order of time and
//! then of their making; nothing else decides the course of a run.

use crate::admin::Admin;
use crate::clients::Clients;
use crate::handlers::Handlers;
use crate::links::Death;
use crate::net::{Link, Wire};
use crate::node::Node;
use crate::oracle::Oracle;
use crate::plan::{Fault, Plan, SECOND};
use crate::rng::Rng;
use crate::trace::Trace;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use twinblk_engine::ids::NodeId;
use twinblk_engine::input::Input;
use twinblk_engine::output::Output;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Due {
    /// A disk operation ends: node, life, operation.
    Disk(usize, u64, u64),
    /// An engine wants to know how large its disk is: node, life.
    Measured(usize, u64),
    /// An engine wants to know the time: node, life.
    Tick(usize, u64),
    /// A frame arrives: link, sender's side, channel.
    Arrive(usize, usize, usize),
    /// The kernel took bytes: link, sender's side.
    Progress(usize, usize),
    /// A socket pair is closed for good at one end: link, side.
    Gone(usize, usize),
    /// Two nodes try to connect (lower, higher).
    Dial(usize, usize),
    /// A client acts.
    Client(usize),
    /// The administrator acts at random.
    Order,
    /// The operator looks after things.
    Operator,
    /// Something is disturbed.
    Disturb,
    /// A machine loses power: node, life.
    PowerCut(usize, u64),
    /// A disk is attached again by itself: node, life.
    AttachAgain(usize, u64),
    /// A reconnect storm strikes: lower node, higher node.
    Storm(usize, usize),
    /// A direction is open again: lower node, higher node, sender's side.
    Unblock(usize, usize, usize),
    /// A node is started.
    Boot(usize, u64),
    /// A node ends for ever.
    Lose(usize),
    /// What is given up is saved: node, life, number.
    Saved(usize, u64, u64),
    /// A handler acts, or ends: which run.
    Handler(u64),
    /// The time of a handler is over.
    HandlerLate(u64),
    /// An administrator suspends I/O, or lets it go on.
    Suspend,
    /// A failover daemon looks whether its node should be promoted.
    Failover,
    /// A client for whose sake a node is promoted comes, or does not.
    AutoPromote,
}

/// A broken promise: which, and how.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Name of the invariant.
    pub invariant: &'static str,
    /// What happened.
    pub text: String,
}

/// See the module.
#[derive(Debug)]
pub struct World {
    /// What this run is.
    pub plan: Plan,
    /// Simulated nanoseconds since the start.
    pub now: u64,
    due: BinaryHeap<Reverse<(u64, u64, Due)>>,
    made: u64,
    /// The machines.
    pub nodes: Vec<Node>,
    /// All connections ever made.
    pub links: Vec<Link>,
    /// Between each two nodes: `wires[lower][higher]`.
    pub wires: Vec<Vec<Wire>>,
    /// Clients.
    pub clients: Clients,
    /// People.
    pub admin: Admin,
    /// Handlers.
    pub handlers: Handlers,
    /// What may be.
    pub oracle: Oracle,
    /// What was.
    pub trace: Trace,
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// Sectors of copies (node, sector) that changed by themselves.
    pub rotten: BTreeSet<(usize, usize)>,
    /// Ended for ever.
    pub lost: Option<usize>,
    /// Disturbances are over: everything has to heal.
    pub ending: bool,
    /// Resyncs begun since somebody gave an order that changed something, or a node was started.
    pub(crate) resyncs: usize,
    /// Disturbances so far.
    pub disturbances: u64,
    pub(crate) disk_rng: Rng,
    pub(crate) net_rng: Rng,
    pub(crate) fault_rng: Rng,
    pub(crate) boot_rng: Rng,
    pub(crate) failover_rng: Rng,
}

impl World {
    /// A world in which nothing has happened: all nodes down, all disks fresh.
    pub fn new(plan: Plan) -> Self {
        let nodes: Vec<Node> = (0..plan.nodes).map(|n| Node::new(&plan, n)).collect();
        let sectors = nodes[0].disk.data().len();
        let wires = (0..plan.nodes)
            .map(|_| (0..plan.nodes).map(|_| Wire::default()).collect())
            .collect();
        Self {
            now: 0,
            due: BinaryHeap::new(),
            made: 0,
            nodes,
            links: Vec::new(),
            wires,
            clients: Clients::new(&plan),
            admin: Admin::new(&plan),
            handlers: Handlers::new(plan.seed),
            oracle: Oracle::new(plan.nodes, sectors),
            trace: Trace::default(),
            violation: None,
            rotten: BTreeSet::new(),
            lost: None,
            ending: false,
            resyncs: 0,
            disturbances: 0,
            disk_rng: Rng::stream(plan.seed, 2),
            net_rng: Rng::stream(plan.seed, 3),
            fault_rng: Rng::stream(plan.seed, 4),
            boot_rng: Rng::stream(plan.seed, 5),
            failover_rng: Rng::stream(plan.seed, 24),
            plan,
        }
    }

    /// Something is due after `delay` ns.
    pub fn after(&mut self, delay: u64, due: Due) {
        self.at(self.now + delay, due);
    }

    /// Something is due at `time`.
    pub fn at(&mut self, time: u64, due: Due) {
        self.made += 1;
        self.due.push(Reverse((time.max(self.now), self.made, due)));
    }

    /// A promise is broken. The first one counts.
    pub fn violate(&mut self, invariant: &'static str, text: String) {
        let line = format!("BROKEN {invariant}: {text}");
        self.trace.line(self.now, || line);
        if self.violation.is_none() {
            self.violation = Some(Violation { invariant, text });
        }
    }

    /// Judges what an invariant says.
    pub fn judge(&mut self, invariant: &'static str, verdict: Result<(), String>) {
        if let Err(text) = verdict {
            self.violate(invariant, text);
        }
    }

    /// The next thing happens. False when nothing is due, or a promise is broken.
    pub fn step(&mut self) -> bool {
        if self.violation.is_some() {
            return false;
        }
        let Some(Reverse((time, _, due))) = self.due.pop() else {
            return false;
        };
        self.now = time;
        self.trace.steps += 1;
        if let Some(n) = self.whose(due)
            && self.nodes[n].paused_until > self.now
        {
            let later = self.nodes[n].paused_until;
            self.at(later, due);
            return true;
        }
        self.happen(due);
        self.watch();
        true
    }

    /// Runs until then.
    pub fn run_until(&mut self, time: u64) {
        while let Some(Reverse((next, ..))) = self.due.peek()
            && *next <= time
        {
            if !self.step() {
                return;
            }
        }
        self.now = self.now.max(time);
    }

    /// The node that has to do something.
    fn whose(&self, due: Due) -> Option<usize> {
        match due {
            Due::Disk(n, life, _)
            | Due::Tick(n, life)
            | Due::Measured(n, life)
            | Due::Saved(n, life, _) => (self.nodes[n].life == life).then_some(n),
            Due::Arrive(link, side, _) => Some(self.links[link].ends[1 - side]),
            Due::Progress(link, side) | Due::Gone(link, side) => Some(self.links[link].ends[side]),
            _ => None,
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Disk(n, life, op) => self.disk_done(n, life, op),
            Due::Measured(n, life) => self.measured(n, life),
            Due::Saved(n, life, id) => self.saved(n, life, id),
            Due::Tick(n, life) => {
                let node = &mut self.nodes[n];
                if node.life == life && node.tick_at.is_some_and(|at| at <= self.now) {
                    node.tick_at = None;
                    self.feed(n, Input::Tick);
                }
            }
            Due::Arrive(link, side, channel) => self.arrive(link, side, channel),
            Due::Progress(link, side) => self.progress(link, side),
            Due::Gone(link, side) => self.gone(link, side),
            Due::Dial(a, b) => self.dial(a, b),
            Due::Client(c) => self.client_acts(c),
            Due::Order => self.order_at_random(),
            Due::Operator => self.operate(),
            Due::Disturb => self.disturb(),
            Due::PowerCut(n, life) => {
                if self.nodes[n].life == life {
                    self.kill(n, true);
                }
            }
            Due::AttachAgain(n, life) => {
                if self.nodes[n].life == life && !self.nodes[n].stopped {
                    self.attach_again(n);
                }
            }
            Due::Storm(a, b) => self.reset(a, b, [true; 2]),
            Due::Unblock(a, b, side) => self.unblock(a, b, side),
            Due::Boot(n, life) => {
                if self.nodes[n].life == life {
                    self.boot(n);
                }
            }
            Due::Handler(number) => self.handler_goes_on(number),
            Due::HandlerLate(number) => self.handler_is_late(number),
            Due::Suspend => self.suspend_at_random(),
            Due::Failover => self.fail_over(),
            Due::AutoPromote => self.auto_promote_at_random(),
            Due::Lose(n) => {
                self.trace.count("a node is lost for ever");
                self.kill(n, self.now.is_multiple_of(2));
                self.lost = Some(n);
            }
        }
    }

    /// An engine hears of something; what it wants is carried out.
    pub fn feed(&mut self, n: usize, input: Input) {
        let node = &mut self.nodes[n];
        let clock = node.clock(self.now);
        let Some(engine) = &mut node.engine else {
            return;
        };
        self.trace.mix(self.now ^ (n as u64) << 56);
        let mut out = Vec::new();
        engine.handle(clock, input, &mut out);
        self.log_progress(n);
        self.carry_out_all(n, out);
    }

    /// Carries out what an engine wants, unless its process ends in between.
    pub fn carry_out_all(&mut self, n: usize, out: Vec<Output>) {
        let life = self.nodes[n].life;
        for output in out {
            if let Some(left) = &mut self.nodes[n].dies_after_outputs {
                if *left == 0 {
                    self.trace.count("fault KillBetweenOutputs");
                    return self.kill(n, false);
                }
                *left -= 1;
            }
            self.carry_out(n, output);
            if self.nodes[n].life != life || self.nodes[n].engine.is_none() {
                return;
            }
        }
        self.schedule_tick(n);
    }

    fn schedule_tick(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some(deadline) = node.engine.as_ref().and_then(|e| e.next_deadline()) else {
            return;
        };
        let at = deadline.0.saturating_sub(node.clock + 1);
        // As the driver does: a deadline in the past costs a millisecond.
        let at = if at > self.now {
            at
        } else {
            self.now + 1_000_000
        };
        if node.tick_at.is_none_or(|old| at < old || old <= self.now) {
            node.tick_at = Some(at);
            let due = Due::Tick(n, node.life);
            self.at(at, due);
        }
    }

    /// The daemon of a node is started.
    pub fn boot(&mut self, n: usize) {
        if self.nodes[n].engine.is_some() || self.lost == Some(n) {
            return;
        }
        self.resyncs = 0;
        self.trace.line(self.now, || format!("{n}: started"));
        self.trace.count("boot");
        match self.nodes[n].boot(&self.plan, &mut self.boot_rng) {
            Ok(input) => {
                let bounds = self.marks_of_a_crash(&input);
                self.feed(n, input);
                self.resync_is_bounded(n, bounds);
            }
            Err(text) => self.violate("metadata_survive", format!("node {n}: {text}")),
        }
    }

    /// The process of a node ends without a word; with `power`, so does the machine.
    pub fn kill(&mut self, n: usize, power: bool) {
        let how = if power { "loses power" } else { "is killed" };
        self.trace.line(self.now, || format!("{n}: {how}"));
        if self.nodes[n].engine.is_none() && !power {
            return;
        }
        self.check_order(n);
        let whole = self.has_a_whole_copy(n);
        self.clients.node_died(n);
        self.admin.node_died(n);
        self.nodes[n].die(power, &mut self.disk_rng);
        if power {
            self.nodes[n].disk.power_cut(&mut self.disk_rng);
            let content = self.nodes[n].disk.data();
            self.oracle.unpowered(n, content);
        } else {
            self.oracle.killed(n);
        }
        if whole {
            let verdict = self.oracle.order_holds(n, self.nodes[n].disk.data());
            self.judge("order_is_kept", verdict);
        }
        for m in 0..self.plan.nodes {
            if m != n {
                let how = if power {
                    Death::PowerCut
                } else {
                    Death::Killed
                };
                self.ends_of_dead(n, m, how);
            }
        }
        let delay = self.boot_rng.between(SECOND / 100, 4 * SECOND);
        let due = Due::Boot(n, self.nodes[n].life);
        self.after(delay, due);
    }

    /// Disturbances begin.
    pub fn start(&mut self) {
        for n in 0..self.plan.nodes {
            self.boot(n);
        }
        for c in 0..self.plan.clients {
            self.after(SECOND / 10, Due::Client(c));
        }
        self.after(SECOND / 20, Due::Operator);
        if self.plan.order_every > 0 {
            self.after(self.plan.order_every, Due::Order);
        }
        if self.plan.fence.suspends {
            self.after(SECOND, Due::Suspend);
        }
        if self.plan.fence.fails_over {
            self.after(SECOND, Due::Failover);
        }
        if self.plan.auto_promotes {
            self.after(SECOND, Due::AutoPromote);
        }
        if !self.plan.faults.is_empty() {
            self.after(SECOND, Due::Disturb);
        }
        if let Some((n, at)) = self.plan.lost {
            self.at(at, Due::Lose(n));
        }
    }

    /// Nodes that were not lost for ever.
    pub(crate) fn left(&self) -> impl Iterator<Item = usize> + use<> {
        let lost = self.lost;
        (0..self.plan.nodes).filter(move |&n| lost != Some(n))
    }

    /// A number for a node.
    pub fn id(n: usize) -> NodeId {
        NodeId(u8::try_from(n).expect("few"))
    }

    /// Counts a disturbance; false if it is to be left out.
    pub(crate) fn counts(&mut self, fault: Fault) -> bool {
        self.disturbances += 1;
        let number = self.disturbances;
        let out = self.plan.without.contains(&number) || number > self.plan.most;
        if !out {
            self.trace.count(&format!("fault {fault:?}"));
            self.trace
                .line(self.now, || format!("disturbance {number}: {fault:?}"));
        }
        !out
    }
}

//! People: an operator who keeps the pair in service as one does, and an administrator who orders
//! whatever comes to mind, legal or not.

use crate::links::Death;
use crate::node::name;
use crate::plan::{MS, Plan, SECOND};
use crate::rng::Rng;
use crate::world::{Due, World};
use std::collections::BTreeMap;
use twinblk_engine::command::{Command, CommandResult};
use twinblk_engine::event::{ConnState, DiskState, Role};
use twinblk_engine::ids::CommandId;
use twinblk_engine::input::Input;
use twinblk_engine::status::Status;

/// So long nobody had current data when somebody forces a copy that is not.
const A_WHILE: u64 = 100 * SECOND;

/// See the module.
#[derive(Debug)]
pub struct Admin {
    rng: Rng,
    next: u64,
    /// Orders not answered yet: node, when, what.
    open: BTreeMap<u64, (usize, u64, Command)>,
    /// Nodes that were told to stop.
    stops: Vec<bool>,
    /// Nodes that get new metadata before they are started again.
    starts_over: Vec<bool>,
    /// Somebody has forced the first promotion.
    begun: bool,
    /// Disturbances are over, all are up, and nobody has had current data since.
    nobody_since: Option<u64>,
    /// Answers, by order.
    pub answers: BTreeMap<u64, CommandResult>,
    /// Keep answers.
    pub keeps_answers: bool,
}

impl Admin {
    /// Nothing ordered yet.
    pub fn new(plan: &Plan) -> Self {
        Self {
            rng: Rng::stream(plan.seed, 7),
            next: 0,
            open: BTreeMap::new(),
            stops: vec![false; plan.nodes],
            starts_over: vec![false; plan.nodes],
            begun: false,
            nobody_since: None,
            answers: BTreeMap::new(),
            keeps_answers: false,
        }
    }

    /// It was told to stop.
    pub fn stopping(&self, n: usize) -> bool {
        self.stops[n]
    }

    /// Its answers will never come.
    pub fn node_died(&mut self, n: usize) {
        self.open.retain(|_, (node, ..)| *node != n);
        self.stops[n] = false;
    }

    /// The oldest order without an answer.
    pub fn oldest(&self) -> Option<(usize, u64, &Command)> {
        self.open
            .values()
            .map(|(n, at, c)| (*n, *at, c))
            .min_by_key(|(_, at, _)| *at)
    }
}

impl World {
    /// Gives an order. Answers its number.
    pub fn order(&mut self, n: usize, command: Command) -> u64 {
        self.admin.next += 1;
        let id = self.admin.next;
        if self.nodes[n].engine.is_none() || self.nodes[n].stopped {
            return id;
        }
        self.trace
            .line(self.now, || format!("{n}: order {id} {command:?}"));
        self.trace.count(&format!("order {}", word(&command)));
        // To promote somebody who is not fit changes nothing.
        if !matches!(command, Command::Primary { force: false }) {
            self.resyncs = 0;
        }
        match &command {
            Command::Invalidate => self.oracle.expendable(n),
            Command::Connect {
                discard_my_data: true,
                dry_run: false,
                ..
            } => self.oracle.expendable(n),
            Command::InvalidateRemote { .. } => {
                for m in 0..self.plan.nodes {
                    if m != n {
                        self.oracle.expendable(m);
                    }
                }
            }
            Command::Primary { force: true } => {
                // What it holds is declared current, if it is not anyway.
                if self.nodes[n].disk_state != DiskState::UpToDate {
                    let content = self.nodes[n].disk.data().to_vec();
                    self.nodes[n].syncing_from = None;
                    if self.admin.begun {
                        self.oracle.declared_current(n, &content);
                    }
                }
                self.admin.begun = true;
            }
            Command::Stop { .. } => self.admin.stops[n] = true,
            _ => {}
        }
        self.admin.open.insert(id, (n, self.now, command.clone()));
        self.feed(
            n,
            Input::Command {
                id: CommandId(id),
                command,
            },
        );
        id
    }

    pub(crate) fn command_done(&mut self, n: usize, id: CommandId, result: CommandResult) {
        let Some((node, _, command)) = self.admin.open.remove(&id.0) else {
            let text = format!("{} answers order {} which is not open", name(n), id.0);
            return self.violate("an_order_is_answered_once", text);
        };
        self.trace
            .line(self.now, || format!("{n}: order {} → {result:?}", id.0));
        let how = if result.is_ok() { "done" } else { "refused" };
        self.trace.count(&format!("order {} {how}", word(&command)));
        if node != n {
            self.violate(
                "an_order_is_answered_once",
                format!("by {} instead", name(n)),
            );
        }
        if let Err(refusal) = &result {
            if refusal.reason.is_empty() {
                self.violate("refusals_have_a_reason", format!("{command:?}"));
            }
            if matches!(command, Command::Stop { .. }) {
                self.admin.stops[n] = false;
            }
        }
        if self.admin.keeps_answers {
            self.admin.answers.insert(id.0, result);
        }
    }

    /// The engine has stopped: the daemon ends, and is started again later.
    pub(crate) fn stopped(&mut self, n: usize) {
        self.trace.count("stopped");
        // What was under way when a disk failed is left to the driver, which waits for it.
        let node = &self.nodes[n];
        if !node.ops.is_empty() && node.disk_state != DiskState::Failed {
            let text = format!("{} has stopped with {:?} under way", name(n), node.ops);
            self.violate("a_stop_is_complete", text);
        }
        let delay = self.admin.rng.between(SECOND / 10, 3 * SECOND);
        let life = self.nodes[n].life;
        self.after(delay, Due::Boot(n, life + 1));
        // The process ends after this turn: nothing is under way any more.
        self.end_process(n);
        if core::mem::take(&mut self.admin.starts_over[n]) {
            self.oracle.expendable(n);
            self.nodes[n].create_metadata(&self.plan);
        }
    }

    fn end_process(&mut self, n: usize) {
        self.clients.node_died(n);
        self.admin.node_died(n);
        self.nodes[n].die(false, &mut self.disk_rng);
        self.oracle.killed(n);
        for m in 0..self.plan.nodes {
            if m != n {
                self.ends_of_dead(n, m, Death::Stopped);
            }
        }
    }

    pub(crate) fn order_at_random(&mut self) {
        if self.ending {
            return;
        }
        let delay = self.admin.rng.between(10 * MS, self.plan.order_every);
        self.after(delay, Due::Order);
        let n = self.admin.rng.index(self.plan.nodes);
        let dice = self.admin.rng.below(100);
        let force = self.plan.careless && self.admin.rng.per_mille(300);
        let command = match dice {
            0..=14 => Command::Primary { force },
            15..=29 => {
                if self.admin.rng.per_mille(700) {
                    self.clients_leave(n);
                }
                Command::Secondary
            }
            30..=41 => Command::Disconnect { peer: None },
            42..=57 => Command::Connect {
                peer: None,
                discard_my_data: force,
                dry_run: false,
            },
            58..=65 => Command::Connect {
                peer: None,
                discard_my_data: self.admin.rng.per_mille(500),
                dry_run: true,
            },
            66..=71 => Command::Invalidate,
            72..=76 => Command::InvalidateRemote { peer: None },
            77..=78 => Command::NewCurrentUuid {
                clear_bitmap: self.admin.rng.per_mille(700),
            },
            79..=85 => Command::Verify {
                peer: None,
                repair: self.admin.rng.per_mille(500),
            },
            86 => Command::VerifyStop { peer: None },
            87..=89 => self.some_size(),
            90..=92 => Command::SetOptions(Box::new(self.some_options())),
            _ => Command::Stop {
                force: self.admin.rng.per_mille(700),
            },
        };
        if self.nodes[n].paused_until <= self.now {
            self.order(n, command);
        }
    }

    /// A size that leaves alone what the clients use.
    fn some_size(&mut self) -> Command {
        let block = 8;
        let least = self.plan.span.max(self.plan.sectors / 4).div_ceil(block);
        let most = self.plan.sectors / block;
        let blocks = least + self.admin.rng.index(most.saturating_sub(least) + 1);
        let size = (blocks * block) as u64 * 512;
        Command::Resize {
            size: self.admin.rng.per_mille(700).then_some(size),
            force: self.admin.rng.per_mille(900),
        }
    }

    fn some_options(&mut self) -> twinblk_engine::config::Options {
        let mut options = crate::node::options(&self.plan);
        let rng = &mut self.admin.rng;
        options.max_epoch_size = rng.pick(&[1, 3, 100, 2048]);
        options.resync_max_rate = rng.pick(&[0, 64 << 10, 1 << 20, self.plan.resync_rate]);
        options.resync_window = rng.pick(&[64 << 10, 4 << 20]);
        options.send_queue = rng.pick(&[8 << 10, 1 << 20]);
        options
    }

    fn state(&self, n: usize) -> Option<Status> {
        let node = &self.nodes[n];
        if node.stopped || node.paused_until > self.now {
            return None;
        }
        Some(node.engine.as_ref()?.status(node.clock(self.now)))
    }

    /// Looks after things, as a person or a failover daemon does.
    pub(crate) fn operate(&mut self) {
        let longest = if self.ending { SECOND } else { 3 * SECOND };
        let delay = self.admin.rng.between(50 * MS, longest);
        self.after(delay, Due::Operator);
        let states: Vec<Option<Status>> = (0..self.plan.nodes).map(|n| self.state(n)).collect();
        for (n, state) in states.iter().enumerate() {
            // A disk that failed is mended: down and up.
            let failed = |s: &Status| s.volumes[0].disk == DiskState::Failed;
            if state.as_ref().is_some_and(failed) && (self.ending || self.admin.rng.per_mille(300))
            {
                self.nodes[n].faults = crate::node::DiskFaults::default();
                self.order(n, Command::Stop { force: true });
                return;
            }
        }
        if self.someone_is_alone(&states) {
            return;
        }
        let primaries = self
            .nodes
            .iter()
            .filter(|n| n.role == Role::Primary)
            .count();
        let careless = self.plan.careless && !self.ending;
        if primaries == 0 || careless && self.admin.rng.per_mille(100) {
            let n = if self.admin.begun {
                self.admin.rng.index(self.plan.nodes)
            } else {
                self.left().next().unwrap_or(0)
            };
            if states[n].is_some() {
                let fresh = !self.admin.begun;
                let all = self.left().all(|n| states[n].is_some());
                if !fresh || all {
                    // Half a copy too, and one that others have left behind.
                    let force = fresh || careless && self.admin.rng.per_mille(300);
                    self.order(n, Command::Primary { force });
                }
            }
        }
        if self.ending {
            self.nobody_is_current(&states);
        }
    }

    /// A node that stands alone is connected again; a split brain is resolved.
    fn someone_is_alone(&mut self, states: &[Option<Status>]) -> bool {
        let patient = !self.ending && self.admin.rng.per_mille(600);
        if patient {
            return false;
        }
        for (n, state) in states.iter().enumerate() {
            let Some(state) = state else { continue };
            for peer in &state.peers {
                let m = usize::from(peer.node.0);
                if peer.connection != ConnState::StandAlone || states[m].is_none() {
                    continue;
                }
                if peer.reason.starts_with("split brain") {
                    return self.resolve(n, m, states);
                }
                if ["two-primaries", "role-conflict"]
                    .iter()
                    .any(|r| peer.reason.contains(r))
                {
                    // As the refusal says: the one in use steps back.
                    let primary = if self.nodes[m].role == Role::Primary {
                        m
                    } else {
                        n
                    };
                    if self.nodes[primary].role == Role::Primary {
                        self.clients_leave(primary);
                        self.order(primary, Command::Secondary);
                        return true;
                    }
                }
                let half = |x: usize| self.nodes[x].disk_state == DiskState::Inconsistent;
                let fresh = |x: usize| {
                    let created = |s: &Status| s.volumes[0].current_uuid & !1 == 4;
                    states[x].as_ref().is_some_and(created)
                };
                let both = half(n) && half(m);
                if peer.reason.contains("unrelated") && !both && !fresh(n) && !fresh(m) {
                    return self.start_over(n, m);
                }
                if peer.reason.contains("nconsistent") {
                    self.keep_one(n, m, states);
                    return true;
                }
                let command = Command::Connect {
                    peer: Some(peer.node),
                    discard_my_data: false,
                    dry_run: false,
                };
                self.order(n, command);
                return true;
            }
        }
        false
    }

    /// One of two copies that parted ways is given up.
    fn resolve(&mut self, n: usize, m: usize, states: &[Option<Status>]) -> bool {
        self.trace.count("split brain resolved");
        let usable = |x: usize| {
            states[x]
                .as_ref()
                .is_some_and(|s| s.volumes[0].disk > DiskState::Inconsistent)
        };
        let victim = match (usable(n), usable(m)) {
            (true, false) => m,
            (false, true) => n,
            _ if self.nodes[n].role == Role::Primary => m,
            _ => n,
        };
        let keeper = n + m - victim;
        if self.nodes[victim].role == Role::Primary {
            self.clients_leave(victim);
            self.order(victim, Command::Secondary);
            return true;
        }
        for (x, discard_my_data) in [(keeper, false), (victim, true)] {
            let other = n + m - x;
            self.order(
                x,
                Command::Connect {
                    peer: Some(Self::id(other)),
                    discard_my_data,
                    dry_run: false,
                },
            );
        }
        true
    }

    /// Two copies that have nothing in common: one gets new metadata, as the refusal says.
    fn start_over(&mut self, n: usize, m: usize) -> bool {
        self.trace.count("create-md");
        let half = |x: usize| self.nodes[x].disk_state == DiskState::Inconsistent;
        let victim = match (half(n), half(m)) {
            (true, false) => n,
            (false, true) => m,
            _ if self.nodes[n].role == Role::Primary => m,
            _ => n,
        };
        self.clients_leave(victim);
        self.order(victim, Command::Stop { force: true });
        self.admin.starts_over[victim] = true;
        true
    }

    /// Neither copy is usable: one of them is declared current.
    fn keep_one(&mut self, n: usize, m: usize, states: &[Option<Status>]) {
        self.trace.count("one declared current");
        let disk = |x: usize| states[x].as_ref().map(|s| s.volumes[0].disk);
        let keeper = if disk(n) >= disk(m) { n } else { m };
        if disk(keeper) < Some(DiskState::UpToDate) {
            self.order(keeper, Command::Primary { force: true });
        }
        for (x, y) in [(keeper, n + m - keeper), (n + m - keeper, keeper)] {
            self.order(
                x,
                Command::Connect {
                    peer: Some(Self::id(y)),
                    discard_my_data: x != keeper,
                    dry_run: false,
                },
            );
        }
    }

    /// At the end nobody has current data, and nobody who is left will get them from elsewhere: the best
    /// copy is declared current. That is seen when all are connected and wait; and when time passes and
    /// nothing comes of it.
    fn nobody_is_current(&mut self, states: &[Option<Status>]) {
        let left: Vec<usize> = self.left().collect();
        let all: Vec<(DiskState, usize)> = left
            .iter()
            .filter_map(|&n| Some((states[n].as_ref()?.volumes[0].disk, n)))
            .collect();
        let current = all.iter().any(|&(disk, _)| disk == DiskState::UpToDate);
        if all.len() < left.len() || current {
            self.admin.nobody_since = None;
            return;
        }
        let since = *self.admin.nobody_since.get_or_insert(self.now);
        let waits = |s: &Status| {
            let peers = &mut s
                .peers
                .iter()
                .filter(|p| self.lost != Some(usize::from(p.node.0)));
            peers.all(|p| {
                p.connection == ConnState::Connected && p.volumes.iter().all(|v| v.resync.is_none())
            })
        };
        if states.iter().flatten().all(waits) || self.now - since > A_WHILE {
            let best = all.iter().rev().max_by_key(|&&(disk, _)| disk);
            self.trace.count("one declared current");
            if let Some(&(_, n)) = best {
                self.order(n, Command::Primary { force: true });
            }
        }
    }
}

fn word(command: &Command) -> &'static str {
    match command {
        Command::Primary { force: false } => "primary",
        Command::Primary { force: true } => "primary --force",
        Command::Secondary => "secondary",
        Command::Connect { dry_run: true, .. } => "connect --dry-run",
        Command::Connect {
            discard_my_data: true,
            ..
        } => "connect --discard-my-data",
        Command::Connect { .. } => "connect",
        Command::Disconnect { .. } => "disconnect",
        Command::Invalidate => "invalidate",
        Command::InvalidateRemote { .. } => "invalidate-remote",
        Command::Verify { repair: false, .. } => "verify",
        Command::Verify { repair: true, .. } => "verify --repair",
        Command::VerifyStop { .. } => "verify --stop",
        Command::Resize { .. } => "resize",
        Command::NewCurrentUuid { .. } => "new-current-uuid",
        Command::SetOptions(_) => "adjust",
        Command::Stop { .. } => "down",
    }
}

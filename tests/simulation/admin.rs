//! Orders and their answers, and an administrator who orders whatever comes to mind, legal or not.

use crate::links::Death;
use crate::node::name;
use crate::plan::{MS, Plan, SECOND};
use crate::rng::Rng;
use crate::world::{Due, World};
use std::collections::BTreeMap;
use twinblk_engine::command::{Command, CommandResult};
use twinblk_engine::event::DiskState;
use twinblk_engine::ids::CommandId;
use twinblk_engine::input::Input;

/// See the module.
#[derive(Debug)]
pub struct Admin {
    pub(crate) rng: Rng,
    pub(crate) rng_of_disks: Rng,
    next: u64,
    /// Orders not answered yet: node, when, what.
    open: BTreeMap<u64, (usize, u64, Command)>,
    /// Nodes that were told to stop.
    stops: Vec<bool>,
    /// What is being saved.
    pub(crate) saves: Vec<crate::saving::Save>,
    /// Nodes whose clients were driven away and that are not Secondary yet.
    pub(crate) evicted: Vec<bool>,
    /// Nodes that get new metadata before they are started again.
    pub(crate) starts_over: Vec<bool>,
    /// Somebody has forced the first promotion.
    pub(crate) begun: bool,
    /// Disturbances are over, all are up, and nobody has had current data since.
    pub(crate) nobody_since: Option<u64>,
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
            rng_of_disks: Rng::stream(plan.seed, 12),
            next: 0,
            open: BTreeMap::new(),
            stops: vec![false; plan.nodes],
            saves: Vec::new(),
            evicted: vec![false; plan.nodes],
            starts_over: vec![false; plan.nodes],
            begun: false,
            nobody_since: None,
            answers: BTreeMap::new(),
            keeps_answers: false,
        }
    }

    /// The number of the next order.
    pub(crate) fn next_order(&self) -> u64 {
        self.next + 1
    }

    /// It was told to stop.
    pub fn stopping(&self, n: usize) -> bool {
        self.stops[n]
    }

    /// Its answers will never come.
    pub fn node_died(&mut self, n: usize) {
        self.open.retain(|_, (node, ..)| *node != n);
        self.stops[n] = false;
        self.evicted[n] = false;
        self.saves.retain(|s| s.node() != n);
    }

    /// `secondary --force` was ordered there and is not answered yet.
    pub fn demotes_by_force(&self, n: usize) -> bool {
        let force = |c: &Command| matches!(c, Command::SecondaryByForce);
        self.open
            .values()
            .any(|(node, _, c)| *node == n && force(c))
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
        self.overrules(n, &command);
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
                        let stable = self.nodes[n].disk.after_power_cut();
                        self.oracle.declared_current(n, &content, &stable);
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
        self.handler_hears(id.0, &result);
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
        if self.detach_or_attach() {
            return;
        }
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
        Command::DiscardSaving { .. } => "connect --save-discarded",
        Command::Disconnect { .. } => "disconnect",
        Command::Invalidate => "invalidate",
        Command::InvalidateRemote { .. } => "invalidate-remote",
        Command::Verify { repair: false, .. } => "verify",
        Command::Verify { repair: true, .. } => "verify --repair",
        Command::VerifyStop { .. } => "verify --stop",
        Command::Resize { .. } => "resize",
        Command::NewCurrentUuid { .. } => "new-current-uuid",
        Command::Detach { force: false } => "detach",
        Command::Detach { force: true } => "detach --force",
        Command::AutoPromote => "auto-promote",
        Command::AutoDemote => "auto-demote",
        Command::SecondaryByForce => "secondary --force",
        Command::Outdate => "outdate",
        Command::SuspendIo => "suspend-io",
        Command::ResumeIo => "resume-io",
        Command::SetOptions(_) => "adjust",
        Command::Stop { .. } => "down",
    }
}

//! What named scenarios are told with: a quiet world under many seeds, orders that are answered,
//! conditions that are waited for, wires that are parted and joined by hand.
//!
//! A broken invariant ends a story at once, wherever it stands; the failure names the seed and the
//! protocol. `TWINBLK_SEED=17` tells only that seed, and every step of it.

use crate::plan::{MS, Plan, SECOND};
use crate::rng::Rng;
use crate::world::World;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use twinblk_engine::command::{Command, CommandResult};
use twinblk_engine::config::Protocol;
use twinblk_engine::event::{ConnState, DiskState, ReplState, Role};
use twinblk_engine::input::RequestKind;
use twinblk_engine::status::{PeerStatus, Status};

const SEEDS: Range<u64> = 1..120;
/// A story that fails is told under so many seeds before it is given up.
const ENOUGH: usize = if cfg!(sabotage) { 1 } else { 5 };

pub(crate) const PRIMARY: Command = Command::Primary { force: false };
pub(crate) const ALL: [Protocol; 3] = [Protocol::A, Protocol::B, Protocol::C];

fn the_seed() -> Option<u64> {
    let seed = std::env::var("TWINBLK_SEED").ok()?;
    Some(seed.parse().expect("TWINBLK_SEED is a number"))
}

/// What only many seeds together show can be asked for.
pub(crate) fn all_seeds() -> bool {
    the_seed().is_none()
}

/// Tells a story under many seeds and all protocols given, in a world that is `adapted` before
/// anything happens in it.
pub(crate) fn tell(
    nodes: usize,
    protocols: &[Protocol],
    adapted: impl Fn(&mut Plan),
    story: impl Fn(&mut World),
) {
    let only = the_seed();
    let seeds = only.map_or(SEEDS, |seed| seed..seed + 1);
    let mut failed = Vec::new();
    for seed in seeds {
        for &protocol in protocols {
            let mut plan = Plan::quiet(seed, nodes, protocol);
            adapted(&mut plan);
            let mut world = World::new(plan);
            world.admin.keeps_answers = true;
            world.trace.verbose = only.is_some();
            let told = catch_unwind(AssertUnwindSafe(|| {
                for n in 0..nodes {
                    world.boot(n);
                }
                story(&mut world);
                world.all_is_well();
            }));
            if told.is_err() {
                for line in &world.trace.lines {
                    eprintln!("{line}");
                }
                if !cfg!(sabotage) {
                    eprintln!("this was seed {seed} with {protocol:?}");
                }
                failed.push(format!("{seed} {protocol:?}"));
            }
            assert!(failed.len() < ENOUGH, "fails with {}", failed.join(", "));
        }
    }
    assert!(failed.is_empty(), "fails with {}", failed.join(", "));
}

/// Tells a story of so many nodes, with disks and links of every speed.
pub(crate) fn tell_varied(nodes: usize, protocols: &[Protocol], story: impl Fn(&mut World)) {
    let varied = |plan: &mut Plan| {
        let mut rng = Rng::stream(plan.seed, 9);
        plan.link_delay = rng.pick(&[MS / 10, MS, 5 * MS]);
        plan.disk_delay = rng.pick(&[MS / 20, MS, 5 * MS]);
        plan.external = rng.per_mille(300);
        plan.write_through = rng.per_mille(200);
        plan.tight = rng.per_mille(300);
    };
    tell(nodes, protocols, varied, story);
}

impl World {
    /// Ends the story when a promise is broken.
    pub(crate) fn all_is_well(&self) {
        if let Some(violation) = &self.violation {
            panic!("{violation:?}\n{}", self.picture());
        }
    }

    pub(crate) fn after_a_while(&mut self, time: u64) {
        let until = self.now + time;
        self.run_until(until);
        self.all_is_well();
    }

    /// A moment of at most so many nanoseconds.
    pub(crate) fn a_moment(&mut self, longest: u64) {
        let pause = self.net_rng.below(longest);
        self.after_a_while(pause);
    }

    pub(crate) fn told_by(&self, n: usize) -> Status {
        let node = &self.nodes[n];
        node.engine
            .as_ref()
            .expect("it runs")
            .status(node.clock(self.now))
    }

    /// What `n` says of `m`.
    pub(crate) fn told_of(&self, n: usize, m: usize) -> PeerStatus {
        let mut peers = self.told_by(n).peers.into_iter();
        peers
            .find(|p| p.node == Self::id(m))
            .expect("it is configured")
    }

    pub(crate) fn is_connected(&self, n: usize, m: usize) -> bool {
        self.nodes[n].engine.is_some() && self.told_of(n, m).connection == ConnState::Connected
    }

    pub(crate) fn runs(&self, n: usize) -> bool {
        self.nodes[n].engine.is_some()
    }

    /// The disk of a node as it says itself.
    pub(crate) fn disk_of(&self, n: usize) -> DiskState {
        self.nodes[n].disk_state
    }

    /// Waits until it holds, for two simulated minutes at most: looks closely at first.
    pub(crate) fn wait(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        for step in [MS / 2, 5 * MS, 50 * MS] {
            for _ in 0..2000 {
                if holds(self) {
                    return;
                }
                self.after_a_while(step);
            }
        }
        panic!("never: {what}\n{}", self.picture());
    }

    /// Gives an order and waits for the answer.
    pub(crate) fn ordered(&mut self, n: usize, command: Command) -> CommandResult {
        assert!(self.runs(n), "who is ordered {command:?} is there");
        let id = self.order(n, command);
        self.wait("an answer", |w| w.admin.answers.contains_key(&id));
        self.admin.answers[&id].clone()
    }

    /// All UpToDate, the first Primary.
    pub(crate) fn in_step(&mut self) {
        self.wait("attached", |w| {
            (0..w.plan.nodes).all(|n| w.disk_of(n) == DiskState::Inconsistent)
        });
        self.ordered(0, Command::Primary { force: true })
            .expect("forced");
        self.wait("in step", Self::has_converged);
    }

    pub(crate) fn write(&mut self, n: usize, first: usize, count: usize) -> u64 {
        self.ask(0, n, RequestKind::Write, first..first + count, false)
    }

    pub(crate) fn write_and_wait(&mut self, n: usize, first: usize, count: usize) {
        let tag = self.write(n, first, count);
        self.wait("an answer to a client", |w| {
            !w.clients.requests.contains_key(&tag)
        });
    }

    pub(crate) fn connect(&mut self, n: usize) {
        self.order_connect(n, false);
    }

    /// Gives up what this node has written in a split brain.
    pub(crate) fn connect_and_discard(&mut self, n: usize) {
        self.order_connect(n, true);
    }

    fn order_connect(&mut self, n: usize, discard_my_data: bool) {
        let command = Command::Connect {
            peer: None,
            discard_my_data,
            dry_run: false,
        };
        self.ordered(n, command).expect("it may");
    }

    /// Makes a node Secondary; those it is connected with have heard of it.
    pub(crate) fn demote(&mut self, n: usize) {
        self.ordered(n, Command::Secondary).expect("no clients");
        self.wait("the word is out", |w| {
            let others = (0..w.plan.nodes).filter(|&m| m != n && w.is_connected(m, n));
            let mut roles = others.map(|m| w.told_of(m, n).role);
            roles.all(|role| role == Role::Secondary)
        });
    }

    /// A promotion that nothing stands against; what another one left behind may do so for a while.
    pub(crate) fn promoted_in_time(&mut self, n: usize) {
        let until = self.now + 20 * SECOND;
        while let Err(refusal) = self.ordered(n, PRIMARY) {
            assert!(self.now < until, "{refusal:?}\n{}", self.picture());
            self.after_a_while(SECOND / 2);
        }
    }

    /// Nothing gets through between two nodes from now on. `cut`: and their connection breaks at once.
    pub(crate) fn part(&mut self, n: usize, m: usize, cut: bool) {
        self.wire(n, m).blocked = [true; 2];
        if cut {
            self.reset(n, m, [true; 2]);
        }
    }

    /// Two nodes reach each other again.
    pub(crate) fn join(&mut self, n: usize, m: usize) {
        let (a, b) = (n.min(m), n.max(m));
        for side in 0..2 {
            self.unblock(a, b, side);
        }
    }

    /// All nodes reach each other again.
    pub(crate) fn join_all(&mut self) {
        for b in 0..self.plan.nodes {
            for a in 0..b {
                self.join(a, b);
            }
        }
    }

    /// It ends without a word, and is not started again by itself.
    pub(crate) fn falls(&mut self, n: usize, power: bool) {
        self.kill(n, power);
        self.nodes[n].life += 1;
    }

    /// What the disks hold when nothing is under way.
    pub(crate) fn contents(&mut self) -> Vec<Vec<u64>> {
        self.wait("nothing is under way", |w| {
            let quiet = |n: usize| {
                let peers = w.told_by(n).peers;
                w.nodes[n].ops.is_empty() && peers.iter().all(|p| p.transfer_log == 0)
            };
            let running = (0..w.plan.nodes).filter(|&n| w.runs(n));
            running.into_iter().all(quiet)
        });
        let all = self.nodes.iter();
        all.map(|n| n.disk.data().to_vec()).collect()
    }

    /// Generation of a node, without the mark of a Primary.
    pub(crate) fn generation(&self, n: usize) -> u64 {
        self.told_by(n).volumes[0].current_uuid & !1
    }

    /// Waits until `n` knows that it has lost `m`.
    pub(crate) fn notices(&mut self, n: usize, m: usize) {
        self.wait("the loss is noticed", |w| !w.is_connected(n, m));
    }

    /// Two nodes are connected, both UpToDate, and nothing is marked between them.
    pub(crate) fn are_in_step(&self, n: usize, m: usize) -> bool {
        [(n, m), (m, n)].into_iter().all(|(n, m)| {
            let whole = self.runs(n) && self.disk_of(n) == DiskState::UpToDate;
            let peer = whole.then(|| self.told_of(n, m));
            peer.is_some_and(|p| {
                let v = &p.volumes[0];
                p.connection == ConnState::Connected
                    && v.replication == ReplState::Established
                    && v.out_of_sync == 0
            })
        })
    }

    /// Waits until all is in step, by itself: nobody may refuse anybody meanwhile.
    pub(crate) fn heals_by_itself(&mut self) {
        self.wait("in step by itself", |w| {
            w.nobody_refuses();
            w.has_converged()
        });
        self.copies_in_step_are_equal();
        self.all_is_well();
    }

    pub(crate) fn nobody_refuses(&self) {
        for n in (0..self.plan.nodes).filter(|&n| self.runs(n)) {
            for peer in self.told_by(n).peers {
                let alone = peer.connection == ConnState::StandAlone;
                assert!(
                    !alone || peer.reason.contains("not connected yet"),
                    "{}",
                    self.picture()
                );
            }
        }
    }

    /// The victims of a split brain give up what they have written, all others keep it. Orders are
    /// repeated, as a person does, until all is in step.
    pub(crate) fn give_up(&mut self, victims: &[usize]) {
        for &n in victims {
            self.demote(n);
        }
        for _ in 0..10 {
            for n in 0..self.plan.nodes {
                let alone = |p: &PeerStatus| p.connection == ConnState::StandAlone;
                if !self.told_by(n).peers.iter().any(alone) {
                    continue;
                }
                if victims.contains(&n) {
                    self.connect_and_discard(n);
                } else {
                    self.connect(n);
                }
            }
            self.after_a_while(10 * SECOND);
            if self.has_converged() {
                return self.copies_in_step_are_equal();
            }
        }
        panic!("never in step\n{}", self.picture());
    }

    /// It stands alone and says why.
    pub(crate) fn refuses(&self, n: usize, m: usize, why: &[&str]) -> bool {
        if !self.runs(n) {
            return false;
        }
        let peer = self.told_of(n, m);
        peer.connection == ConnState::StandAlone && why.iter().any(|w| peer.reason.contains(w))
    }

    /// Both stand alone for a split brain.
    pub(crate) fn split_brain(&self, n: usize, m: usize) -> bool {
        [(n, m), (m, n)]
            .iter()
            .all(|&(n, m)| self.refuses(n, m, &["split brain"]))
    }
}

//! What went wrong for others, in shape: faults that other replicators had to mend, told to two nodes
//! under many seeds. The named invariants watch all the while; each story adds what only it can say.

use crate::plan::{Fault, MS, Plan, SECOND};
use crate::world::World;
use twinblk_engine::command::{Command, CommandResult};
use twinblk_engine::config::Protocol;
use twinblk_engine::event::{ConnState, DiskState, Role};
use twinblk_engine::input::RequestKind;
use twinblk_engine::status::Status;

const SEEDS: std::ops::Range<u64> = 1..120;

/// Runs a story under many seeds and all protocols given.
fn each(protocols: &[Protocol], story: impl Fn(&mut World)) {
    for seed in SEEDS {
        for &protocol in protocols {
            let mut world = World::new(Plan::quiet(seed, 2, protocol));
            world.admin.keeps_answers = true;
            for n in 0..2 {
                world.boot(n);
            }
            story(&mut world);
            if let Some(violation) = &world.violation {
                panic!(
                    "seed {seed} {protocol:?}: {violation:?}\n{}",
                    world.picture()
                );
            }
        }
    }
}

impl World {
    fn after_a_while(&mut self, time: u64) {
        let until = self.now + time;
        self.run_until(until);
    }

    fn told_by(&self, n: usize) -> Status {
        let node = &self.nodes[n];
        node.engine
            .as_ref()
            .expect("it runs")
            .status(node.clock(self.now))
    }

    /// Waits until it holds.
    fn wait(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..60_000 {
            if holds(self) || self.violation.is_some() {
                return;
            }
            self.after_a_while(MS);
        }
        panic!("never: {what}\n{}", self.picture());
    }

    fn ordered(&mut self, n: usize, command: Command) -> CommandResult {
        let id = self.order(n, command);
        self.wait("an answer", |w| w.admin.answers.contains_key(&id));
        match self.admin.answers.get(&id) {
            Some(answer) => answer.clone(),
            None => panic!("seed {}: {:?}", self.plan.seed, self.violation),
        }
    }

    /// Both UpToDate, the first Primary.
    fn in_step(&mut self) {
        self.wait("attached", |w| {
            (0..2).all(|n| w.nodes[n].disk_state == DiskState::Inconsistent)
        });
        self.ordered(0, Command::Primary { force: true })
            .expect("forced");
        self.wait("in step", Self::has_converged);
    }

    fn write(&mut self, n: usize, first: usize, count: usize) -> u64 {
        self.ask(0, n, RequestKind::Write, first..first + count, false)
    }

    fn write_and_wait(&mut self, n: usize, first: usize, count: usize) {
        let tag = self.write(n, first, count);
        self.wait("an answer", |w| !w.clients.requests.contains_key(&tag));
    }

    fn connect(&mut self, n: usize) {
        let command = Command::Connect {
            peer: None,
            discard_my_data: false,
            dry_run: false,
        };
        self.ordered(n, command).expect("it may");
    }
}

const PRIMARY: Command = Command::Primary { force: false };
const ALL: [Protocol; 3] = [Protocol::A, Protocol::B, Protocol::C];

/// A new generation that the peer was believed to have and never got: the link is cut as it begins.
#[test]
fn a_generation_the_peer_never_heard_of_is_not_taken_for_granted() {
    each(&ALL, |w| {
        w.in_step();
        w.write(0, 0, 8);
        let pause = w.net_rng.below(3 * MS);
        w.after_a_while(pause);
        w.inject(Fault::HalfOpen, 0, 1, 0, 0);
        w.after_a_while(SECOND / 2);
        // Alone now, or about to be.
        w.write_and_wait(0, 8, 8);
        w.inject(Fault::Kill, 0, 1, 0, 0);
        // Unless the first is back before the second has noticed anything.
        w.wait("the link is lost", |w| {
            let lost = w.told_by(1).peers[0].connection != ConnState::Connected;
            lost || w.nodes[0].engine.is_some() && w.has_converged()
        });
        if w.ordered(1, PRIMARY).is_ok() {
            w.write_and_wait(1, 16, 8);
            // Either the first was not alone yet, or it waits for a person: a split brain, or the
            // second has not written yet when they meet.
            w.wait("they met", |w| {
                let stands_alone = |n: usize| {
                    let peer = &w.told_by(n).peers[0];
                    peer.connection == ConnState::StandAlone
                        && ["split brain", "role-conflict"]
                            .iter()
                            .any(|why| peer.reason.contains(why))
                };
                let back = w.nodes[0].engine.is_some();
                back && (w.has_converged() || stands_alone(0) && stands_alone(1))
            });
        }
    });
}

/// Equal generations with bits still set: the difference is copied, not dropped.
#[test]
fn marks_between_equal_generations_are_not_dropped() {
    each(&ALL, |w| {
        w.in_step();
        for i in 0..6 {
            w.write(0, i * 8, 8);
            let pause = w.net_rng.below(2 * MS);
            w.after_a_while(pause);
        }
        // Everything is under way, and everything ends.
        w.inject(Fault::Blackout, 0, 1, 0, 0);
        w.wait("both are back", |w| {
            (0..2).all(|n| w.nodes[n].disk_state == DiskState::UpToDate)
        });
        w.wait("in step", World::has_converged);
        w.copies_in_step_are_equal();
    });
}

/// A change of two phases whose peer cannot prepare is given up on both sides.
#[test]
fn a_promotion_the_peer_does_not_answer_is_given_up() {
    each(&[Protocol::C], |w| {
        w.in_step();
        w.ordered(0, Command::Secondary).expect("no clients");
        w.inject(Fault::Pause, 1, 0, 20 * SECOND, 0);
        let answer = w.ordered(0, PRIMARY);
        w.wait("it is awake", |w| w.nodes[1].paused_until <= w.now);
        w.wait("connected", |w| {
            w.told_by(1).peers[0].connection == ConnState::Connected
        });
        // Whatever came of it, the other is not barred for ever by a promise half made.
        if answer.is_ok() {
            w.ordered(0, Command::Secondary).expect("no clients");
        }
        w.after_a_while(30 * SECOND);
        w.ordered(1, PRIMARY).expect("nothing stands against it");
    });
}

/// Both ask at the same moment: never both.
#[test]
fn of_two_promotions_at_once_at_most_one_wins() {
    each(&ALL, |w| {
        w.in_step();
        w.ordered(0, Command::Secondary).expect("no clients");
        let first = w.order(0, PRIMARY);
        let pause = w.net_rng.below(3 * MS);
        w.after_a_while(pause);
        let second = w.order(1, PRIMARY);
        w.wait("answers", |w| {
            [first, second]
                .iter()
                .all(|id| w.admin.answers.contains_key(id))
        });
        let wins = [first, second]
            .iter()
            .filter(|id| w.admin.answers[id].is_ok())
            .count();
        assert!(wins <= 1, "{:?}", w.admin.answers);
        let primaries = w.nodes.iter().filter(|n| n.role == Role::Primary).count();
        assert_eq!(primaries, wins);
    });
}

/// A throttled resync does not lose ground to writes, and does not stall at the last blocks.
#[test]
fn a_throttled_resync_finishes_under_writes() {
    each(&[Protocol::C, Protocol::A], |w| {
        w.plan.resync_rate = 256 << 10;
        w.in_step();
        w.inject(Fault::Kill, 1, 0, 0, 0);
        w.wait("noticed", |w| {
            w.told_by(0).peers[0].connection != ConnState::Connected
        });
        for i in 0..16 {
            w.write_and_wait(0, i * 8, 8);
        }
        for round in 0..600 {
            w.write(0, round * 8 % 128, 8);
            w.after_a_while(5 * MS);
            if w.clients.requests.is_empty() && w.has_converged() {
                return;
            }
        }
        w.wait("in step under writes", World::has_converged);
    });
}

/// The end of a resync is cut at every moment: bits, generations and states still agree.
#[test]
fn the_end_of_a_resync_may_be_cut_anywhere() {
    each(&[Protocol::C, Protocol::A], |w| {
        w.in_step();
        w.inject(Fault::Kill, 1, 0, 0, 0);
        w.wait("noticed", |w| {
            w.told_by(0).peers[0].connection != ConnState::Connected
        });
        w.write_and_wait(0, 0, 32);
        w.wait("a resync", |w| w.nodes[1].syncing_from.is_some());
        let pause = w.net_rng.below(60 * MS);
        w.after_a_while(pause);
        let (fault, n) = w.net_rng.pick(&[
            (Fault::Cut, 0),
            (Fault::Kill, 0),
            (Fault::Kill, 1),
            (Fault::PowerCut, 0),
            (Fault::PowerCut, 1),
        ]);
        w.inject(fault, n, 1 - n, 0, 0);
        w.wait("both are back", |w| {
            w.nodes.iter().all(|n| n.engine.is_some())
        });
        w.wait("in step", World::has_converged);
        w.copies_in_step_are_equal();
    });
}

/// A survivor that was left behind is promoted before it met the other: seen as what it is.
#[test]
fn a_stale_survivor_that_is_promoted_is_a_split_brain_and_overwrites_nothing() {
    each(&ALL, |w| {
        w.in_step();
        w.inject(Fault::Partition, 0, 1, 60 * SECOND, 0);
        w.wait("alone", |w| {
            w.told_by(0).peers[0].connection != ConnState::Connected
        });
        w.write_and_wait(0, 0, 16);
        w.wait("noticed", |w| {
            w.told_by(1).peers[0].connection != ConnState::Connected
        });
        w.ordered(1, PRIMARY).expect("a person says so");
        w.write_and_wait(1, 8, 16);
        let before: Vec<_> = w.nodes.iter().map(|n| n.disk.data().to_vec()).collect();
        w.wait("they met", |w| {
            (0..2).all(|n| w.told_by(n).peers[0].connection == ConnState::StandAlone)
        });
        for (n, before) in before.iter().enumerate() {
            assert!(w.nodes[n].disk.data() == before, "nothing is overwritten");
        }
        for n in 0..2 {
            w.ordered(n, Command::Secondary).expect("no clients");
        }
        w.connect(0);
        w.connect(1);
        w.after_a_while(5 * SECOND);
        assert_eq!(w.told_by(1).peers[0].connection, ConnState::StandAlone);
    });
}

fn verify(repair: bool) -> Command {
    Command::Verify { peer: None, repair }
}

impl World {
    /// A copy changes by itself, and nobody is told.
    fn rot(&mut self, n: usize, sector: usize) {
        self.nodes[n].disk.rot(sector);
        self.rotten.insert((n, sector));
        self.trace.count("rot");
    }

    fn verify_is_over(&self) -> bool {
        (0..2).all(|n| {
            self.nodes[n].engine.is_some() && self.told_by(n).peers[0].volumes[0].verify.is_none()
        })
    }

    fn marked(&self, n: usize) -> u64 {
        self.told_by(n).peers[0].volumes[0].out_of_sync
    }
}

/// A sector of the Secondary's copy rots while clients write elsewhere: verify finds its block, on both
/// nodes, and no other; repair mends it.
#[test]
fn a_rotten_sector_is_found_and_mended_and_nothing_else_is_touched() {
    each(&ALL, |w| {
        w.in_step();
        // In two parts: a write over more extents than the log has is refused.
        for half in [0, 64] {
            w.write_and_wait(0, half, 64);
        }
        // A peer under A writes at its own pace.
        w.wait("in step", World::has_converged);
        let sector = w.net_rng.index(64);
        w.rot(1, sector);
        let ordered = w.net_rng.index(2);
        let id = w.order(ordered, verify(true));
        // Writes go on, but not where it is rotten: they would mend it.
        for i in 0..8 {
            w.write(0, 64 + i * 8, 8);
            let pause = w.net_rng.below(3 * MS);
            w.after_a_while(pause);
        }
        w.wait("an answer", |w| w.admin.answers.contains_key(&id));
        assert!(w.admin.answers[&id].is_ok(), "{:?}", w.admin.answers);
        w.wait("it is over", World::verify_is_over);
        w.wait("mended", World::has_converged);
        for n in 0..2 {
            let found = w.told_by(n).peers[0].volumes[0].verified.clone();
            let text = found.unwrap_or_default();
            assert!(text.contains("4096 bytes that differ"), "{text}");
        }
        assert!(w.nodes[0].disk.data() == w.nodes[1].disk.data());
        w.rotten.clear();
        w.copies_in_step_are_equal();
    });
}

/// Without repair the marks stay until the next connect, and nobody calls the copies the same.
#[test]
fn what_verify_marks_is_copied_by_the_next_connect() {
    each(&ALL, |w| {
        w.in_step();
        w.write_and_wait(0, 0, 64);
        w.wait("in step", World::has_converged);
        let sector = w.net_rng.index(128);
        w.rot(1, sector);
        w.ordered(0, verify(false)).expect("both are current");
        w.wait("it is over", World::verify_is_over);
        assert_eq!((w.marked(0), w.marked(1)), (4096, 4096));
        assert!(!w.has_converged());
        let (fault, n) = w
            .net_rng
            .pick(&[(Fault::Cut, 0), (Fault::Kill, 1), (Fault::PowerCut, 1)]);
        w.inject(fault, n, 1 - n, 0, 0);
        w.wait("mended", World::has_converged);
        assert!(w.nodes[0].disk.data() == w.nodes[1].disk.data());
        w.rotten.clear();
    });
}

/// The connection, a node or a disk goes in the middle of a verify, with writes under way: nobody
/// stays in it, nothing false is told, and the next one runs to its end.
#[test]
fn a_verify_may_be_cut_anywhere() {
    each(&ALL, |w| {
        w.plan.resync_rate = w.net_rng.pick(&[0, 1 << 20]);
        w.in_step();
        let ordered = w.net_rng.index(2);
        let repair = w.net_rng.per_mille(500);
        w.order(ordered, verify(repair));
        for i in 0..4 {
            w.write(0, i * 20, 16);
        }
        let pause = w.net_rng.below(12 * MS);
        w.after_a_while(pause);
        let (fault, n) = w.net_rng.pick(&[
            (Fault::Cut, 0),
            (Fault::HalfOpen, 0),
            (Fault::Kill, 0),
            (Fault::Kill, 1),
            (Fault::PowerCut, 0),
            (Fault::PowerCut, 1),
            (Fault::Blackout, 0),
            (Fault::Pause, 1),
            (Fault::ReadError, 1),
        ]);
        w.inject(fault, n, 1 - n, SECOND, 1);
        w.after_a_while(5 * SECOND);
        for n in 0..2 {
            w.wait("it is up", |w| w.nodes[n].engine.is_some());
            if w.told_by(n).volumes[0].disk == DiskState::Failed {
                w.ordered(n, Command::Stop { force: true }).expect("it may");
            }
        }
        w.wait("both are back", |w| {
            w.nodes.iter().all(|n| n.engine.is_some())
        });
        w.wait("in step", World::has_converged);
        assert!(w.verify_is_over());
        w.ordered(ordered, verify(false)).expect("both are current");
        w.wait("it is over", World::verify_is_over);
        let told = w.told_by(ordered).peers[0].volumes[0].verified.clone();
        let text = told.unwrap_or_default();
        assert!(text.contains("no difference"), "{text}");
    });
}

/// The device shrinks and grows while clients write, links break, nodes die and metadata are written:
/// afterwards both have one size and the same content, and what was written in what is new is there.
#[test]
fn a_resize_may_meet_every_metadata_transaction() {
    let outcomes = std::cell::RefCell::new([0; 2]);
    each(&ALL, |w| {
        w.in_step();
        let full = w.told_by(0).volumes[0].size;
        let half = full / 8192 * 4096;
        let small = Command::Resize {
            size: Some(half),
            force: true,
        };
        w.ordered(0, small).expect("nobody holds it");
        w.wait("in step", World::has_converged);
        let size = |w: &World, n: usize| w.told_by(n).volumes[0].size;
        assert_eq!((size(w, 0), size(w, 1)), (half, half));
        // Nobody knows what is there.
        for n in 0..2 {
            let sector = half as usize / 512 + 8 + n;
            w.rot(n, sector);
            let there = w.nodes[n].disk.data()[sector];
            w.oracle.unknown(sector, there);
        }
        w.order(
            w.plan.seed as usize % 2,
            Command::Resize {
                size: None,
                force: false,
            },
        );
        for i in 0..6 {
            w.write(0, i * 8 % 32, 8);
            let pause = w.net_rng.below(2 * MS);
            w.after_a_while(pause);
        }
        let (fault, n) = w.net_rng.pick(&[
            (Fault::Cut, 0),
            (Fault::HalfOpen, 0),
            (Fault::Kill, 0),
            (Fault::Kill, 1),
            (Fault::PowerCut, 0),
            (Fault::PowerCut, 1),
            (Fault::PowerCutInMetadata, 0),
            (Fault::PowerCutInMetadata, 1),
            (Fault::Blackout, 0),
        ]);
        w.inject(fault, n, 1 - n, SECOND, 1);
        w.after_a_while(5 * SECOND);
        w.nodes[n].faults = crate::node::DiskFaults::default();
        w.wait("both are back", |w| {
            w.nodes.iter().all(|n| n.engine.is_some())
        });
        w.wait("in step", World::has_converged);
        assert_eq!(size(w, 0), size(w, 1), "{}", w.picture());
        outcomes.borrow_mut()[usize::from(size(w, 0) == full)] += 1;
        // Once more: now it has the full size in any case, and it can be used.
        let whole = Command::Resize {
            size: None,
            force: false,
        };
        for command in [PRIMARY, whole] {
            // A link that is half open may still break.
            let mut tries = 0;
            while let Err(refusal) = w.ordered(0, command.clone()) {
                tries += 1;
                assert!(tries < 10, "{refusal:?} {:?}", w.violation);
                w.after_a_while(SECOND);
                w.wait("in step", World::has_converged);
            }
            w.wait("in step", World::has_converged);
        }
        assert_eq!((size(w, 0), size(w, 1)), (full, full));
        w.write_and_wait(0, full as usize / 512 - 8, 8);
        w.wait("in step", World::has_converged);
        assert!(w.nodes[0].disk.data() == w.nodes[1].disk.data());
    });
    assert!(outcomes.borrow().iter().all(|&n| n > 0), "{outcomes:?}");
}

//! What went wrong for others, in shape, of two nodes: while both copies are compared, and while the
//! device gets another size.

use crate::plan::{Fault, MS, Plan, SECOND};
use crate::story::{ALL, PRIMARY, all_seeds, tell};
use crate::world::World;
use std::cell::Cell;
use twinblk_engine::command::Command;
use twinblk_engine::config::Protocol;
use twinblk_engine::event::{DiskState, Role};

/// Tells a story of two nodes.
fn each(protocols: &[Protocol], story: impl Fn(&mut World)) {
    tell(2, protocols, |_| {}, story);
}

/// What may happen to any two nodes, whatever they are at: (what, to whom).
const ANYWHERE: [(Fault, usize); 7] = [
    (Fault::Cut, 0),
    (Fault::HalfOpen, 0),
    (Fault::Kill, 0),
    (Fault::Kill, 1),
    (Fault::PowerCut, 0),
    (Fault::PowerCut, 1),
    (Fault::Blackout, 0),
];

const IN_METADATA: [(Fault, usize); 2] = [
    (Fault::PowerCutInMetadata, 0),
    (Fault::PowerCutInMetadata, 1),
];

/// One of these happens, or of those that may happen anywhere. Answers to whom.
fn something_strikes(w: &mut World, others: &[(Fault, usize)]) -> usize {
    let all: Vec<(Fault, usize)> = ANYWHERE.iter().chain(others).copied().collect();
    let (fault, n) = w.net_rng.pick(&all);
    w.inject(fault, n, 1 - n, SECOND, 1);
    n
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
    let throttled = |plan: &mut Plan| plan.resync_rate = (plan.seed % 2) << 20;
    tell(2, &ALL, throttled, |w| {
        w.in_step();
        let ordered = w.net_rng.index(2);
        let repair = w.net_rng.per_mille(500);
        w.order(ordered, verify(repair));
        for i in 0..4 {
            w.write(0, i * 20, 16);
        }
        let pause = w.net_rng.below(12 * MS);
        w.after_a_while(pause);
        something_strikes(w, &[(Fault::Pause, 1), (Fault::ReadError, 1)]);
        w.after_a_while(5 * SECOND);
        for n in 0..2 {
            w.wait("it is up", |w| w.nodes[n].engine.is_some());
            if w.told_by(n).volumes[0].disk <= DiskState::Failed {
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
        let n = something_strikes(w, &IN_METADATA);
        w.after_a_while(5 * SECOND);
        w.nodes[n].faults = crate::node::DiskFaults::default();
        w.wait("both are back", |w| {
            w.nodes.iter().all(|n| n.engine.is_some())
        });
        w.wait("in step", World::has_converged);
        assert_eq!(size(w, 0), size(w, 1), "{}", w.picture());
        outcomes.borrow_mut()[usize::from(size(w, 0) == full)] += 1;
        has_the_full_size(w, full);
    });
    if all_seeds() {
        assert!(outcomes.borrow().iter().all(|&n| n > 0), "{outcomes:?}");
    }
}

/// Once more: now it has the full size in any case, and it can be used.
fn has_the_full_size(w: &mut World, full: u64) {
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
    let size = |w: &World, n: usize| w.told_by(n).volumes[0].size;
    assert_eq!((size(w, 0), size(w, 1)), (full, full));
    w.write_and_wait(0, full as usize / 512 - 8, 8);
    w.wait("in step", World::has_converged);
    assert!(w.nodes[0].disk.data() == w.nodes[1].disk.data());
}

/// Extents of one block, and one or two of them: nearly every write is a transaction of the log.
fn tiny_log(plan: &mut Plan) {
    plan.extent_size = 4096;
    plan.al_extents = 1 + u32::try_from(plan.seed % 2).expect("small");
}

fn transactions(w: &World) -> u64 {
    let count = w.trace.counts.get("log transaction");
    count.copied().unwrap_or(0)
}

/// Somebody disconnects in the middle of a verify, while every write is a transaction of the log: it is
/// over on both nodes, and the next one runs to its end.
#[test]
fn a_verify_may_be_ended_by_a_disconnect() {
    let (cut, logged) = (Cell::new(0), Cell::new(0));
    let slow = |plan: &mut Plan| {
        tiny_log(plan);
        plan.resync_rate = 1 << 20;
        plan.sectors = 512;
    };
    tell(2, &ALL, slow, |w| {
        w.in_step();
        let (verifies, leaves) = (w.net_rng.index(2), w.net_rng.index(2));
        let before = transactions(w);
        let repair = w.net_rng.per_mille(500);
        w.order(verifies, verify(repair));
        for i in 0..8 {
            w.write(0, i * 8, 8);
            w.a_moment(2 * MS);
        }
        logged.set(logged.get() + transactions(w) - before);
        cut.set(cut.get() + u64::from(!w.verify_is_over()));
        w.ordered(leaves, Command::Disconnect { peer: None })
            .expect("it may");
        w.write(0, 64, 8);
        w.wait("parted", |w| !w.is_connected(0, 1) && !w.is_connected(1, 0));
        assert!(w.verify_is_over());
        w.connect(leaves);
        w.heals_by_itself();
        w.ordered(verifies, verify(false))
            .expect("both are current");
        w.wait("it is over", World::verify_is_over);
        let told = w.told_by(verifies).peers[0].volumes[0].verified.clone();
        let text = told.unwrap_or_default();
        assert!(text.contains("no difference"), "{text}");
    });
    if all_seeds() {
        assert!(cut.get() > 50, "{cut:?}");
        assert!(logged.get() > 500, "{logged:?}");
    }
}

/// The device shrinks and grows while every write is a transaction of the log, and links break and
/// machines lose power meanwhile: what the log names and what is marked belongs to the size it has.
#[test]
fn a_resize_may_meet_every_transaction_of_the_log() {
    let (shrinking, growing) = (Cell::new(0), Cell::new(0));
    tell(2, &ALL, tiny_log, |w| {
        w.in_step();
        let full = w.told_by(0).volumes[0].size;
        let half = full / 8192 * 4096;
        let sectors = half as usize / 512;
        let small = Command::Resize {
            size: Some(half),
            force: true,
        };
        let before = transactions(w);
        let ordered = w.net_rng.index(2);
        let id = w.order(ordered, small.clone());
        writes_below(w, sectors);
        w.wait("an answer", |w| w.admin.answers.contains_key(&id));
        if let Err(refusal) = &w.admin.answers[&id] {
            // The writes came first: it does not get smaller under them.
            assert!(refusal.reason.contains("under way"), "{refusal:?}");
            w.wait("answers", |w| w.clients.requests.is_empty());
            w.ordered(ordered, small).expect("nobody holds it");
        }
        w.wait("in step", World::has_converged);
        shrinking.set(shrinking.get() + transactions(w) - before);
        let before = transactions(w);
        w.order(
            ordered,
            Command::Resize {
                size: None,
                force: false,
            },
        );
        writes_below(w, sectors);
        growing.set(growing.get() + transactions(w) - before);
        let n = something_strikes(w, &IN_METADATA);
        for _ in 0..4 {
            if w.runs(0) && w.nodes[0].role == Role::Primary {
                writes_below(w, sectors);
            }
        }
        w.after_a_while(5 * SECOND);
        w.nodes[n].faults = crate::node::DiskFaults::default();
        w.wait("both are back", |w| w.runs(0) && w.runs(1));
        w.wait("in step", World::has_converged);
        has_the_full_size(w, full);
    });
    if all_seeds() {
        assert!(shrinking.get() > 300, "{shrinking:?}");
        assert!(growing.get() > 300, "{growing:?}");
    }
}

/// Writes here and there, each in an extent of its own.
fn writes_below(w: &mut World, sectors: usize) {
    for _ in 0..6 {
        if !w.runs(0) {
            return;
        }
        let first = w.net_rng.index(sectors / 8) * 8;
        w.write(0, first, 8);
        w.a_moment(2 * MS);
    }
}

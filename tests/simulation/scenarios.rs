//! What went wrong for others, in shape: faults that other replicators had to mend, told to two nodes
//! under many seeds. The named invariants watch all the while; each story adds what only it can say.

use crate::plan::{Fault, MS, Plan, SECOND};
use crate::story::{ALL, PRIMARY, tell};
use crate::world::World;
use twinblk_engine::command::Command;
use twinblk_engine::config::Protocol;
use twinblk_engine::event::{ConnState, DiskState, Role};

/// Tells a story of two nodes.
fn each(protocols: &[Protocol], story: impl Fn(&mut World)) {
    tell(2, protocols, |_| {}, story);
}

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
    let throttled = |plan: &mut Plan| plan.resync_rate = 256 << 10;
    tell(2, &[Protocol::C, Protocol::A], throttled, |w| {
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

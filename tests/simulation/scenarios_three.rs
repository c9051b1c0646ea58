//! What went wrong for others, in shape, of three nodes and more: generations that somebody was
//! believed to have, that were not begun, that were forgotten; and split brains nobody saw.

use crate::plan::{Fault, MS, SECOND};
use crate::story::{ALL, PRIMARY, all_seeds, tell_varied};
use crate::world::World;
use std::cell::RefCell;
use twinblk_engine::command::Command;
use twinblk_engine::config::Protocol;
use twinblk_engine::event::{ConnState, DiskState};

/// The Primary tells one peer of a new generation because it has lost the other, and is cut off as it
/// does: nobody takes for granted that the word arrived.
#[cfg_attr(test, test)]
pub(crate) fn a_generation_that_was_told_and_never_received_is_not_taken_for_granted() {
    let outcomes = RefCell::new([0; 4]);
    tell_varied(3, &ALL, |w| {
        w.in_step();
        w.part(0, 2, true);
        // Something is on its way to the other when the loss is noticed.
        for i in 0.. {
            w.write(0, i % 4 * 8, 8);
            w.a_moment(2 * MS);
            if !w.is_connected(0, 2) {
                break;
            }
        }
        if w.net_rng.per_mille(500) {
            w.write(0, 32, 8);
        }
        let trip = w.plan.link_delay + 4 * w.plan.disk_delay;
        w.a_moment(2 * trip);
        w.part(0, 1, true);
        let told = w.plan.seed % 4;
        let power = w.net_rng.per_mille(500);
        if told == 1 {
            w.falls(0, power);
        }
        if told > 0 && w.net_rng.per_mille(600) {
            // What was received and not yet flushed may be gone, and the word may be there.
            w.falls(1, true);
            w.boot(1);
        }
        match told {
            0 => {
                // Nobody else writes: whatever arrived, it heals.
                w.a_moment(SECOND);
                w.write(0, 40, 8);
                w.a_moment(SECOND);
                w.join_all();
                w.heals_by_itself();
            }
            1 | 2 => {
                // It is lost, or answers what is under way and no more: what nobody else has is found.
                the_survivors_go_on(w);
                w.join_all();
                w.boot(0);
                let refused = |w: &World| {
                    w.split_brain(0, 1) || w.refuses(0, 1, &["two-primaries", "role-conflict"])
                };
                w.wait("they met", |w| w.has_converged() || refused(w));
                let parted = w.split_brain(0, 1);
                outcomes.borrow_mut()[usize::from(parted)] += 1;
                if parted {
                    w.give_up(&[0]);
                }
            }
            _ => {
                w.notices(0, 1);
                // What is completed now nobody else has.
                w.write_and_wait(0, 0, 8);
                the_survivors_go_on(w);
                let before = w.contents();
                w.join_all();
                w.wait("they see it", |w| w.split_brain(0, 1));
                w.after_a_while(5 * SECOND);
                assert!(w.split_brain(0, 1), "{}", w.picture());
                assert!(w.contents() == before, "nothing is overwritten");
                let victims: &[usize] = w.net_rng.pick(&[&[0], &[1, 2]]);
                outcomes.borrow_mut()[1 + victims.len()] += 1;
                w.give_up(victims);
                let kept = if victims[0] == 0 { 1 } else { 0 };
                assert!(w.nodes[kept].disk.data() == before[kept]);
            }
        }
    });
    if all_seeds() {
        assert!(outcomes.borrow().iter().all(|&n| n > 0), "{outcomes:?}");
    }
}

/// The first is lost: the second and the third meet, the second becomes Primary and writes.
fn the_survivors_go_on(w: &mut World) {
    w.notices(1, 0);
    w.notices(2, 0);
    w.wait("the survivors met", |w| w.are_in_step(1, 2));
    w.ordered(1, PRIMARY).expect("they have met");
    w.write_and_wait(1, 48, 8);
}

/// The Primary knows one peer as behind; meanwhile the other brings that one to the very generation.
/// Before the Primary writes without it again, a new generation begins.
#[cfg_attr(test, test)]
pub(crate) fn a_peer_that_a_third_node_brought_up_to_date_is_left_behind_by_a_new_generation() {
    tell_varied(3, &ALL, |w| {
        w.in_step();
        w.part(0, 2, true);
        w.part(1, 2, true);
        w.notices(0, 2);
        w.notices(2, 0);
        w.write_and_wait(0, 0, 16);
        w.wait("in step", |w| w.are_in_step(0, 1));
        let demoted = w.plan.seed.is_multiple_of(2);
        if demoted {
            w.demote(0);
        } else {
            w.part(0, 1, true);
            w.notices(0, 1);
            w.notices(1, 0);
        }
        w.join(1, 2);
        w.wait("brought up to date", |w| {
            w.are_in_step(1, 2) && w.generation(1) == w.generation(2)
        });
        if demoted {
            w.ordered(0, PRIMARY).expect("nothing stands against it");
        } else {
            w.join(0, 1);
        }
        w.wait("in step", |w| w.are_in_step(0, 1));
        w.write_and_wait(0, 8, 16);
        assert_ne!(
            w.generation(0),
            w.generation(2),
            "it writes without the third in the third's generation\n{}",
            w.picture()
        );
        // So that the third can be promoted, and it does not pass unseen.
        w.part(1, 2, true);
        w.notices(2, 1);
        w.ordered(2, PRIMARY).expect("it cannot know");
        w.write_and_wait(2, 12, 16);
        let before = w.contents();
        w.join_all();
        w.wait("they see it", |w| w.split_brain(0, 2));
        w.after_a_while(3 * SECOND);
        assert!(w.contents() == before, "nothing is overwritten");
        w.give_up(&[2]);
    });
}

/// Many generations, peers that come and go, resyncs from different nodes, and never two that write
/// apart: nobody is refused, neither as a split brain nor as unrelated.
#[cfg_attr(test, test)]
pub(crate) fn one_lineage_is_known_as_one_however_long_somebody_was_away() {
    tell_varied(3, &[Protocol::C, Protocol::A], |w| {
        w.in_step();
        let mut primary = 0;
        for _ in 0..2 {
            let away = w.net_rng.index(3);
            if away == primary {
                w.demote(primary);
                primary = (away + 1) % 3;
                w.promoted_in_time(primary);
            }
            for n in (0..3).filter(|&n| n != away) {
                w.part(n, away, true);
                w.notices(n, away);
                w.notices(away, n);
            }
            // More than a history has room for.
            let rounds = w.net_rng.pick(&[1, 2, 5, 20]);
            for _ in 0..rounds {
                let other = 3 - away - primary;
                w.part(primary, other, true);
                w.notices(primary, other);
                w.notices(other, primary);
                let first = w.net_rng.index(15) * 8;
                w.write_and_wait(primary, first, 16 - first % 16);
                w.join(primary, other);
                w.wait("the two are in step", |w| w.are_in_step(primary, other));
                if w.net_rng.per_mille(500) {
                    w.demote(primary);
                    w.promoted_in_time(other);
                    primary = other;
                }
            }
            // Back, by way of any of the two, with a Primary there or without.
            if w.net_rng.per_mille(500) {
                w.demote(primary);
                let by = (away + 1 + w.net_rng.index(2)) % 3;
                w.join(by, away);
                w.wait("brought up to date by one", |w| {
                    w.nobody_refuses();
                    w.are_in_step(by, away)
                });
                primary = w.net_rng.index(3);
                w.join_all();
                w.heals_by_itself();
                w.promoted_in_time(primary);
            }
            w.join_all();
            w.heals_by_itself();
        }
    });
}

/// However long a disk takes to be attached, nobody connects to a node that has no generations yet.
#[cfg_attr(test, test)]
pub(crate) fn a_slow_attach_never_lets_a_handshake_pass_without_generations() {
    tell_varied(3, &ALL, |w| {
        w.in_step();
        w.falls(2, false);
        w.notices(0, 2);
        w.write_and_wait(0, 0, 16);
        let mut looks = 0;
        for killed_in_between in [true, false] {
            let delay = core::mem::replace(&mut w.plan.disk_delay, SECOND);
            w.boot(2);
            w.plan.disk_delay = delay;
            w.nodes[2].faults.slow = Some((100, w.now + 3 * SECOND));
            let attaching = |w: &World| w.disk_of(2) < DiskState::Inconsistent;
            let until = w.now + w.net_rng.below(SECOND);
            while attaching(w) && (!killed_in_between || w.now < until) {
                w.write(0, 16, 8);
                w.after_a_while(5 * MS);
                looks += 1;
                if !attaching(w) {
                    break;
                }
                for m in 0..2 {
                    assert!(!w.nodes[2].want[m], "{}", w.picture());
                    assert_ne!(w.told_of(2, m).connection, ConnState::Connected);
                    assert_ne!(w.told_of(m, 2).connection, ConnState::Connected);
                    assert!(w.wires[m][2].link[1].is_none());
                }
            }
            if killed_in_between {
                w.falls(2, true);
            }
        }
        assert!(looks > 10, "the attach was slow");
        w.heals_by_itself();
        assert!(!w.trace.counts.contains_key("row diskless"));
    });
}

/// A node whose disk failed in a split brain, and is attached anew, goes through the whole comparison.
#[cfg_attr(test, test)]
pub(crate) fn a_split_brain_is_seen_by_a_disk_that_is_attached_later() {
    tell_varied(3, &ALL, |w| {
        w.in_step();
        w.part(0, 1, true);
        w.part(0, 2, true);
        w.notices(0, 1);
        w.notices(0, 2);
        w.write_and_wait(0, 0, 16);
        the_survivors_go_on(w);
        w.wait("in step", |w| w.are_in_step(1, 2));
        let kept = w.contents();
        w.inject(Fault::DeadDisk, 1, 1, 0, 0);
        w.write(1, 64, 8);
        w.wait("it has failed", |w| w.disk_of(1) <= DiskState::Failed);
        // They reach each other before it is attached again, or only then.
        let early = w.net_rng.per_mille(500);
        if early {
            w.join(0, 1);
            w.a_moment(3 * SECOND);
        }
        w.nodes[1].faults = crate::node::DiskFaults::default();
        w.ordered_to_stop(1);
        w.wait("it is attached", |w| w.disk_of(1) > DiskState::Inconsistent);
        w.join_all();
        if early {
            // It was refused while the other was Primary without a disk.
            w.connect(0);
        }
        w.wait("they see it", |w| w.split_brain(0, 1));
        w.after_a_while(3 * SECOND);
        assert!(w.split_brain(0, 1), "{}", w.picture());
        assert!(w.nodes[0].disk.data() == kept[0], "nothing is overwritten");
        let only_the_last = |n: usize| {
            let now = w.nodes[n].disk.data();
            (0..now.len()).all(|s| (64..72).contains(&s) || now[s] == kept[n][s])
        };
        assert!(only_the_last(1) && only_the_last(2));
    });
}

impl World {
    /// `down`, and up again.
    fn ordered_to_stop(&mut self, n: usize) {
        let life = self.nodes[n].life;
        self.order(n, Command::Stop { force: true });
        self.wait("it is up again", |w| w.nodes[n].life > life && w.runs(n));
    }
}

/// Two pairs, parted, each with a Primary: when they meet all is refused and nothing overwritten; by
/// order one side gives up what it wrote, and all four are in step.
#[cfg_attr(test, test)]
pub(crate) fn two_pairs_that_parted_lose_nothing_that_was_not_given_up() {
    tell_varied(4, &ALL, |w| {
        w.in_step();
        // With a Primary, the other side does not know what the Primary's side got last.
        let forced = w.plan.seed.is_multiple_of(2);
        if forced {
            for i in 0..4 {
                w.write(0, i * 8, 8);
            }
        } else {
            w.demote(0);
        }
        for (n, m) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
            w.part(n, m, true);
        }
        for (n, m) in [(0, 2), (0, 3), (2, 0), (3, 0), (2, 1), (3, 1)] {
            w.notices(n, m);
        }
        if forced {
            w.wait("the other pair met", |w| w.is_connected(2, 3));
            w.after_a_while(2 * SECOND);
            w.ordered(2, PRIMARY).expect_err("others may have got more");
            w.ordered(2, Command::Primary { force: true })
                .expect("by order");
        } else {
            w.ordered(0, PRIMARY).expect("nothing stands against it");
            w.ordered(2, PRIMARY).expect("nothing stands against it");
        }
        for (n, m) in [(0, 1), (2, 3)] {
            for i in 0..3 {
                w.write_and_wait(n, 32 + i * 8 + n * 4, 8);
            }
            w.wait("each pair is in step", |w| w.are_in_step(n, m));
        }
        let before = w.contents();
        assert!(before[0] == before[1] && before[2] == before[3] && before[0] != before[2]);
        w.join_all();
        w.wait("they see it", |w| w.split_brain(0, 2));
        w.after_a_while(5 * SECOND);
        assert!(w.split_brain(0, 2), "{}", w.picture());
        assert!(w.contents() == before, "nothing is overwritten unasked");
        let (victims, kept) = w.net_rng.pick(&[([2, 3], 0), ([0, 1], 2)]);
        w.give_up(&victims);
        for n in 0..4 {
            assert!(w.nodes[n].disk.data() == before[kept], "{n}");
        }
    });
}

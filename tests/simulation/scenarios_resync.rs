//! What went wrong for others, in shape, of three nodes: a resync that depends on a third node, which
//! dies in the middle.

use crate::plan::{MS, Plan, SECOND};
use crate::story::{PRIMARY, all_seeds, tell};
use crate::world::World;
use std::cell::Cell;
use twinblk_engine::config::Protocol;
use twinblk_engine::event::{DiskState, Role};

/// Room for a resync that takes a while.
fn slow_resync(plan: &mut Plan) {
    plan.sectors = 1024;
    plan.span = 1024;
    plan.resync_rate = 256 << 10;
}

impl World {
    /// The third was away and lacks most blocks.
    fn third_is_behind(&mut self) {
        self.in_step();
        self.falls(2, false);
        self.notices(0, 2);
        for i in 0..24 {
            self.write_and_wait(0, i * 40, 32);
        }
        self.wait("in step", |w| w.are_in_step(0, 1));
    }

    /// The Primary, if there is one, is written to.
    fn somebody_writes(&mut self) {
        let primary = (0..3).find(|&n| self.nodes[n].role == Role::Primary);
        if let Some(n) = primary {
            let first = self.net_rng.index(120) * 8;
            self.write(n, first, 8);
        }
    }
}

/// The third is behind both others and syncs from one, which dies in the middle: it goes on from the
/// other by itself, again and again, while the Primary, if there is one, is written to.
#[test]
fn a_resync_whose_source_dies_goes_on_from_another() {
    let protocols = [Protocol::C, Protocol::A];
    let deaths = Cell::new(0);
    tell(3, &protocols, slow_resync, |w| {
        w.third_is_behind();
        if w.plan.seed.is_multiple_of(2) {
            w.demote(0);
        }
        w.boot(2);
        for _ in 0..4 {
            w.wait("it syncs", |w| {
                w.nodes[2].syncing_from.is_some() || w.has_converged()
            });
            let Some(source) = w.nodes[2].syncing_from else {
                break;
            };
            let until = w.now + w.net_rng.below(SECOND);
            while w.now < until {
                w.somebody_writes();
                w.after_a_while(10 * MS);
            }
            if w.nodes[2].syncing_from != Some(source) {
                break;
            }
            let other = 1 - source;
            if w.disk_of(other) == DiskState::Inconsistent {
                // It was Primary and crashed: what that has cost is copied to it first. Without a
                // whole copy left all would wait.
                w.wait("the other is whole", |w| w.are_in_step(source, other));
                continue;
            }
            deaths.set(deaths.get() + 1);
            let power = w.net_rng.per_mille(300);
            w.falls(source, power);
            w.notices(2, source);
            w.wait("it goes on by itself", |w| {
                w.nobody_refuses();
                w.nodes[2].syncing_from == Some(other) || w.are_in_step(2, other)
            });
            w.boot(source);
            w.wait("it is back", |w| {
                w.disk_of(source) > DiskState::Inconsistent
                    && (w.is_connected(source, other) || w.is_connected(source, 2))
            });
        }
        for _ in 0..100 {
            w.somebody_writes();
            w.after_a_while(10 * MS);
        }
        w.heals_by_itself();
    });
    if all_seeds() {
        assert!(deaths.get() > 100, "{deaths:?}");
    }
}

/// The same, and nobody comes back: what is left is enough.
#[test]
fn a_resync_whose_source_is_gone_for_good_ends_with_what_is_left() {
    tell(3, &[Protocol::C, Protocol::B], slow_resync, |w| {
        w.third_is_behind();
        if w.plan.seed.is_multiple_of(2) {
            w.demote(0);
        }
        w.boot(2);
        w.wait("it syncs", |w| w.nodes[2].syncing_from.is_some());
        let source = w.nodes[2].syncing_from.expect("it does");
        let other = 1 - source;
        // At the last blocks too.
        w.a_moment(3 * SECOND);
        w.falls(source, false);
        w.notices(2, source);
        w.wait("in step with what is left", |w| w.are_in_step(2, other));
        let n = w.net_rng.pick(&[2, other]);
        if w.nodes[other].role != Role::Primary {
            w.ordered(n, PRIMARY).expect("it is current");
        }
        w.somebody_writes();
        w.boot(source);
        w.heals_by_itself();
    });
}

/// A chain: the third reaches only the second, which is behind itself and syncs from the first; and the
/// first dies in the middle, and comes back.
#[test]
fn a_chain_of_resyncs_runs_to_its_end() {
    tell(3, &[Protocol::C], slow_resync, |w| {
        w.in_step();
        for n in [1, 2] {
            w.falls(n, false);
            w.notices(0, n);
        }
        for i in 0..24 {
            w.write_and_wait(0, i * 40, 32);
        }
        w.demote(0);
        w.part(0, 2, true);
        for n in [1, 2] {
            w.boot(n);
        }
        w.wait("the second syncs", |w| w.nodes[1].syncing_from == Some(0));
        w.a_moment(2 * SECOND);
        if w.net_rng.per_mille(700) {
            let power = w.net_rng.per_mille(300);
            w.falls(0, power);
            w.a_moment(3 * SECOND);
            w.boot(0);
        }
        w.wait("all of the chain", |w| {
            w.nobody_refuses();
            w.are_in_step(0, 1) && w.are_in_step(1, 2)
        });
        w.join_all();
        w.heals_by_itself();
    });
}

//! Both nodes are written to while they are apart: every way into it, found whenever they meet, and
//! resolved by policy where one is set.

use crate::plan::{Plan, SECOND};
use crate::story::{ALL, PRIMARY, tell};
use crate::world::World;
use twinblk_engine::split_brain::{AfterSb0Pri, AfterSb1Pri, Policies};

/// Both lose sight of each other, the second is promoted, both write: the first less.
fn part(w: &mut World) {
    w.in_step();
    w.write_and_wait(0, 0, 8);
    w.part(0, 1, true);
    w.notices(0, 1);
    w.notices(1, 0);
    assert!(w.ordered(1, PRIMARY).is_ok());
    w.write_and_wait(0, 8, 8);
    w.write_and_wait(1, 24, 40);
}

/// Falls, comes back, is promoted and writes, while still alone.
fn goes_on_alone(w: &mut World, n: usize, power: bool) {
    w.falls(n, power);
    w.boot(n);
    w.promoted_in_time(n);
    w.write_and_wait(n, 8 + 16 * n, 8);
}

fn found(w: &mut World) {
    w.join(0, 1);
    w.wait("both say split brain", |w| {
        w.split_brain(0, 1) && w.split_brain(1, 0)
    });
}

#[test]
fn both_promoted_apart() {
    tell(
        2,
        &ALL,
        |_| {},
        |w| {
            part(w);
            let before = w.contents();
            found(w);
            assert!(w.contents() == before, "nothing is overwritten");
        },
    );
}

#[test]
fn after_the_power_loss_of_one() {
    tell(
        2,
        &ALL,
        |_| {},
        |w| {
            part(w);
            goes_on_alone(w, 0, true);
            found(w);
        },
    );
}

#[test]
fn three_generations_apart_and_late() {
    tell(
        2,
        &ALL,
        |_| {},
        |w| {
            part(w);
            for _ in 0..3 {
                goes_on_alone(w, 0, false);
                goes_on_alone(w, 1, true);
            }
            w.after_a_while(60 * SECOND);
            found(w);
        },
    );
}

fn zero(zero_primaries: AfterSb0Pri) -> impl Fn(&mut Plan) {
    move |plan| {
        plan.policies.zero_primaries = zero_primaries;
        plan.save_discarded = plan.seed.is_multiple_of(2);
    }
}

/// The winner's data are on both, and what the other had written is gone.
fn resolved(w: &mut World, winner: usize) {
    let kept = w.contents().swap_remove(winner);
    w.join(0, 1);
    w.wait("in step again, or it could not be saved", |w| {
        w.has_converged()
            || w.told_by(1).peers[0].reason.contains("could not be saved")
            || w.told_by(0).peers[0].reason.contains("could not be saved")
    });
    if w.has_converged() {
        assert!(w.contents().iter().all(|c| *c == kept), "the winner's");
    }
}

#[test]
fn without_a_primary_by_policy() {
    use AfterSb0Pri as P;
    for (policy, winner) in [
        (P::DiscardYoungerPrimary, 0),
        (P::DiscardOlderPrimary, 1),
        (P::DiscardLeastChanges, 1),
    ] {
        tell(2, &ALL, zero(policy), |w| {
            part(w);
            w.demote(0);
            w.demote(1);
            resolved(w, winner);
        });
    }
}

#[test]
fn the_primary_keeps_its_data_and_serves_on() {
    let adapted = |plan: &mut Plan| {
        plan.policies = Policies {
            one_primary: AfterSb1Pri::DiscardSecondary,
            ..Policies::default()
        };
    };
    tell(2, &ALL, adapted, |w| {
        part(w);
        w.demote(1);
        w.join(0, 1);
        w.write_and_wait(0, 48, 8);
        w.wait("in step again", World::has_converged);
        assert!(w.contents()[0] == w.contents()[1]);
    });
}

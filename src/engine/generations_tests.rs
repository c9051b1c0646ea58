//! Generations: what each event does to the UUIDs.

use super::{Generations, is_created, same};
use crate::ids::NodeId;
use crate::metadata::{HISTORY, UUID_JUST_CREATED};
use core::iter::{empty, once};
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};

const P1: NodeId = NodeId(1);
const P2: NodeId = NodeId(2);
const X: u64 = 0x1000;
const Y: u64 = 0x2000;
const Z: u64 = 0x3000;

fn at(current: u64) -> Generations {
    Generations::from_parts(current, [0; 16], [])
}

fn history(g: &Generations) -> Vec<u64> {
    g.history().collect()
}

#[test]
fn the_lowest_bit_takes_no_part_in_comparisons() {
    assert!(same(X, X | 1) && !same(X, Y));
    assert!(is_created(0) && is_created(1) && is_created(4) && is_created(5) && !is_created(X));
}

#[test]
fn a_peer_that_missed_a_write_keeps_its_base() {
    let mut g = at(X | 1);
    g.force_new_current(Y, once(P1));
    assert_eq!((g.current, g.base_for(P1)), (Y | 1, X));
    g.force_new_current(Z, once(P1));
    assert_eq!((g.current, g.base_for(P1)), (Z | 1, X));
    assert_eq!(history(&g), [Y, X]);
}

#[test]
fn a_second_absent_peer_gets_its_own_base() {
    let mut g = at(X);
    g.force_new_current(Y, once(P1));
    g.force_new_current(Z, [P1, P2].into_iter());
    assert_eq!((g.current, g.base_for(P1), g.base_for(P2)), (Z | 1, X, Y));
}

#[test]
fn a_peer_that_follows_is_in_step_again() {
    let mut g = at(X);
    g.force_new_current(Y, [P1, P2].into_iter());
    g.in_step_with(P2);
    assert_eq!((g.base_for(P1), g.base_for(P2)), (X, 0));
    assert_eq!(history(&g), [X]);
}

#[test]
fn a_slot_that_equals_the_current_generation_takes_part() {
    let mut g = at(X | 1);
    g.bitmap[P1.slot()] = X;
    g.force_new_current(Y, once(P1));
    assert_eq!((g.current, g.base_for(P1)), (Y | 1, X));
}

#[test]
fn forcing_a_just_created_copy_leaves_nothing_in_common() {
    let mut g = Generations::default();
    assert!(g.is_just_created());
    g.force_new_current(X, once(P1));
    assert_eq!((g.current, g.base_for(P1)), (X | 1, UUID_JUST_CREATED));
    assert_eq!(history(&g), []);
    g.begin_source(P1, Y);
    assert_eq!(
        g.base_for(P1),
        Y,
        "no target could tell this resync by the UUID 4"
    );
    g.resync_finished_with(P1);
    assert_eq!((g.base_for(P1), history(&g)), (0, vec![Y]));
}

#[test]
fn forcing_always_begins_a_generation() {
    let mut g = at(Y);
    g.bitmap[P1.slot()] = X;
    g.force_new_current(Z, once(P1));
    assert_eq!(
        (g.current, g.base_for(P1), history(&g)),
        (Z | 1, X, vec![Y])
    );
}

#[test]
fn a_resync_leaves_both_sides_with_the_same_generation() {
    let mut source = at(X);
    source.force_new_current(Y, once(P2));
    let mut target = at(X);
    source.begin_source(P2, Z);
    assert_eq!(source.base_for(P2), X, "an existing base is kept");
    target.begin_target(P1, source.base_for(P2), Z, empty());
    assert_eq!(
        (target.current, target.toward),
        (X, Z),
        "it already is at the base"
    );
    source.resync_finished_with(P2);
    target.adopt(P1, source.current, &history(&source), &[]);
    assert_eq!(
        (target.current, target.base_for(P1)),
        (Y, 0),
        "the source's, but not Primary"
    );
    assert_eq!(target.toward, 0);
    assert_eq!((source.current, source.base_for(P2)), (Y | 1, 0));
    assert_eq!((history(&source), history(&target)), (vec![X], vec![X]));
}

#[test]
fn a_target_that_gives_up_its_own_generation_is_at_the_base() {
    let mut target = at(Y);
    target.bitmap[P1.slot()] = X;
    target.begin_target(P1, X, Z, empty());
    assert_eq!(
        (target.current, target.base_for(P1), history(&target)),
        (X, 0, vec![Y])
    );
    let mut equal = at(X);
    equal.begin_target(P1, Y, Z, once(P2));
    assert_eq!(
        equal.base_for(P2),
        X,
        "what was in step with it stays there"
    );
    assert_eq!((equal.current, history(&equal)), (Y, vec![X]));
}

#[test]
fn a_copy_that_was_given_up_leaves_no_base_for_others() {
    let mut g = Generations::from_parts(Y, [0; 16], [X]);
    g.begin_target(P1, X, Z, once(P2));
    assert_eq!(g.base_for(P2), Y, "it is at what this copy was");
    let mut parted = g.clone();
    parted.adopt(P1, Z, &[X], &[]);
    assert_eq!(parted.base_for(P2), 0, "the source never was at Y");
    g.adopt(P1, Z, &[Y, X], &[]);
    assert_eq!(g.base_for(P2), Y, "the source went on from Y");
}

#[test]
fn a_base_equal_to_the_current_generation_is_replaced() {
    let mut g = at(X | 1);
    g.bitmap[P1.slot()] = X;
    g.begin_source(P1, Y);
    assert_eq!(
        g.base_for(P1),
        Y,
        "else a target would pass for being in step while it is not"
    );
}

#[test]
fn following_a_primary_keeps_the_old_generation_in_memory() {
    let mut g = at(X);
    g.follow(Y | 1, empty());
    assert_eq!((g.current, history(&g)), (Y, vec![X]));
    g.follow(Z, once(P2));
    assert_eq!((g.current, g.base_for(P2), history(&g)), (Z, Y, vec![Y, X]));
    g.follow(Z | 1, once(P2));
    assert_eq!(
        g.base_for(P2),
        Y,
        "the same generation again changes nothing"
    );
}

#[test]
fn declared_equal_copies_are_in_step_with_everybody() {
    let mut g = Generations::default();
    g.declare_equal(X | 1);
    assert_eq!((g.current, g.bitmap, history(&g)), (X, [0; 16], vec![]));
}

#[test]
fn the_oldest_generation_falls_off_the_end() {
    let mut g = at(X);
    for n in 1..=HISTORY as u64 + 3 {
        g.begin_source(P1, n << 20);
        g.resync_finished_with(P1);
    }
    let expected: Vec<u64> = (1..=HISTORY as u64 + 3)
        .rev()
        .take(HISTORY)
        .map(|n| n << 20)
        .collect();
    assert_eq!(history(&g), expected);
}

/// A node may be away for more generations than the history holds.
#[test]
fn a_base_that_fell_off_the_history_is_the_oldest_there_is() {
    let mut g = at(X);
    for n in 1..=HISTORY as u64 + 3 {
        g.force_new_current(n << 20, once(P1));
    }
    assert_eq!(g.base_for(P1), X);
    assert!(!history(&g).contains(&X));
    let mut other = Generations::from_parts(X, [0; 16], []);
    other.force_new_current(Y, once(P1));
    let mut created = Generations::default();
    created.bitmap[P1.slot()] = UUID_JUST_CREATED;
    for (copy, why) in [
        (
            &mut other,
            "P1 is behind this copy, however long ago it was left",
        ),
        (
            &mut created,
            "every block is marked for it, so this base will do",
        ),
    ] {
        let bases: Vec<_> = g.bases().collect();
        copy.adopt(P2, g.current, &history(&g), &bases);
        assert_eq!(copy.base_for(P1), X, "{why}");
    }
    let newer = history(&g)[..HISTORY - 1].to_vec();
    g.resync_finished_with(P1);
    assert_eq!(history(&g)[..HISTORY - 1], newer);
    assert_eq!(history(&g)[HISTORY - 1], X);
}

#[test]
fn a_broken_history_is_mended_when_read() {
    let g = Generations::from_parts(X, [0; 16], [Y, 0, Y | 1, X | 1, 4, Z]);
    assert_eq!(history(&g), [Y, Z]);
}

#[derive(Clone, Debug)]
enum Step {
    Force {
        fresh: u64,
        peers: Vec<u8>,
    },
    Follow {
        current: u64,
        absent: Vec<u8>,
    },
    BeginSource {
        peer: u8,
        fresh: u64,
    },
    PartFrom {
        peer: u8,
        fresh: u64,
    },
    BeginTarget {
        peer: u8,
        base: u64,
        others: Vec<u8>,
    },
    Adopt {
        peer: u8,
        current: u64,
        history: Vec<u64>,
    },
    Finished {
        peer: u8,
    },
    DeclareEqual {
        current: u64,
    },
    PrimaryBit(bool),
}

/// Few generations, so that they meet again and again (in life they are random and do not).
fn uuid() -> impl Strategy<Value = u64> {
    prop_oneof![1 => Just(0u64), 1 => Just(4), 20 => (1u64..24).prop_map(|n| n << 8)]
        .prop_flat_map(|base| any::<bool>().prop_map(move |bit| base | u64::from(bit)))
}

fn real() -> impl Strategy<Value = u64> {
    (1u64..24).prop_map(|n| n << 8)
}

fn nodes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0u8..16, 0..4)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (real(), nodes()).prop_map(|(fresh, peers)| Step::Force { fresh, peers }),
        (real(), nodes()).prop_map(|(current, absent)| Step::Follow { current, absent }),
        (0u8..16, real()).prop_map(|(peer, fresh)| Step::BeginSource { peer, fresh }),
        (0u8..16, real()).prop_map(|(peer, fresh)| Step::PartFrom { peer, fresh }),
        (0u8..16, real(), nodes()).prop_map(|(peer, base, others)| Step::BeginTarget {
            peer,
            base,
            others
        }),
        (0u8..16, real(), prop::collection::vec(uuid(), 0..24)).prop_map(
            |(peer, current, history)| Step::Adopt {
                peer,
                current,
                history
            }
        ),
        (0u8..16).prop_map(|peer| Step::Finished { peer }),
        real().prop_map(|current| Step::DeclareEqual { current }),
        any::<bool>().prop_map(Step::PrimaryBit),
    ]
}

fn ids(nodes: &[u8]) -> impl Iterator<Item = NodeId> + '_ {
    nodes.iter().map(|&n| NodeId(n))
}

fn apply(g: &mut Generations, step: &Step) {
    match step {
        Step::Force { fresh, peers } => {
            let before = g.clone();
            g.force_new_current(*fresh, ids(peers));
            for n in 0..16 {
                let (old, new) = (before.bitmap[n], g.bitmap[n]);
                let kept = old != 0 && !same(old, before.current);
                assert!(!kept || old == new, "another base stays");
            }
        }
        Step::Follow { current, absent } => g.follow(*current, ids(absent)),
        Step::BeginSource { peer, fresh } => g.begin_source(NodeId(*peer), *fresh),
        Step::PartFrom { peer, fresh } => {
            // As the engine uses it: for a real generation, with one nobody has seen.
            if !g.is_just_created() && !same(g.current, *fresh) {
                let old = g.current & !1;
                g.part_from(NodeId(*peer), *fresh);
                assert!(same(g.current, *fresh) && g.base_for(NodeId(*peer)) == old);
            }
        }
        Step::BeginTarget { peer, base, others } => {
            g.begin_target(NodeId(*peer), *base, 0x100, ids(others));
            assert!(same(g.current, *base));
        }
        Step::Adopt {
            peer,
            current,
            history,
        } => {
            g.adopt(NodeId(*peer), *current, history, &[]);
            assert!(same(g.current, *current) && g.base_for(NodeId(*peer)) == 0);
        }
        Step::Finished { peer } => {
            let base = g.base_for(NodeId(*peer));
            g.resync_finished_with(NodeId(*peer));
            assert_eq!(g.base_for(NodeId(*peer)), 0);
            if !is_created(base) && !same(base, g.current) {
                assert!(
                    g.history.contains(&(base & !1)),
                    "the old base is remembered"
                );
            }
        }
        Step::DeclareEqual { current } => g.declare_equal(*current),
        Step::PrimaryBit(primary) => {
            let before = g.current;
            g.set_primary_bit(*primary);
            assert!(same(before, g.current) && (g.current & 1 == 1) == *primary);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn invariants_hold_after_every_step(steps in prop::collection::vec(step(), 1..60)) {
        let mut g = Generations::default();
        for step in &steps {
            apply(&mut g, step);
            let history: Vec<u64> = g.history().collect();
            prop_assert!(g.history[history.len()..].iter().all(|&h| h == 0), "no gaps: {g:?}");
            for (n, &h) in history.iter().enumerate() {
                prop_assert!(!is_created(h), "real generations only: {g:?}");
                prop_assert!(h & 1 == 0 && !same(h, g.current), "not the current one: {g:?}");
                prop_assert!(!history[..n].contains(&h), "no duplicates: {g:?}");
            }
            prop_assert!(g.bitmap.iter().all(|b| b & 1 == 0), "{g:?}");
            let mut again = Generations::from_parts(g.current, g.bitmap, history);
            again.toward = g.toward;
            prop_assert_eq!(&again, &g);
        }
    }
}

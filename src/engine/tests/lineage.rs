//! Whether what a copy holds is still what it held when it was attached. Invariant: it is not said of a copy
//! over which any write of another node has come; it is said after a resync that only settles what a crash
//! left open.

use super::pair::Pair;
use crate::command::Command;
use crate::event::DiskState;
use crate::generations::same;
use twinblk_protocol::control::Protocol;

/// What alpha says: the generation it was attached with, or 0.
fn lineage(pair: &Pair) -> u64 {
    pair.status(0).volumes[0].lineage
}

fn current(pair: &Pair) -> u64 {
    pair.status(0).volumes[0].current_uuid
}

/// Alpha was Primary, wrote, and crashed.
fn crashed(seed: u64) -> (Pair, u64) {
    let mut pair = Pair::in_sync(seed, Protocol::C);
    pair.order(0, Command::Primary { force: false })
        .expect("promoted");
    pair.write(0, 0, 8192, 1);
    pair.settle();
    let base = current(&pair);
    pair.crash(0);
    (pair, base)
}

#[test]
fn a_resync_of_what_a_crash_left_open_changes_nothing() {
    for seed in 0..20 {
        let (mut pair, base) = crashed(seed);
        pair.start(0);
        pair.settle();
        pair.expect_in_sync();
        assert_eq!(pair.disk(0), DiskState::UpToDate);
        assert!(!same(current(&pair), base), "seed {seed}: it was a resync");
        assert!(same(lineage(&pair), base), "seed {seed}");
    }
}

#[test]
fn what_a_promoted_peer_wrote_is_another_matter() {
    for seed in 0..20 {
        let (mut pair, _) = crashed(seed);
        pair.settle();
        pair.pass_time();
        pair.order(1, Command::Primary { force: false })
            .expect("promoted");
        pair.write(1, 4096, 4096, 2);
        pair.order(1, Command::Secondary).expect("demoted");
        pair.start(0);
        pair.settle();
        pair.expect_in_sync();
        assert_eq!(lineage(&pair), 0, "seed {seed}");
    }
}

#[test]
fn so_is_what_comes_from_a_primary_that_is_followed() {
    for seed in 0..20 {
        let mut pair = Pair::in_sync(seed, Protocol::C);
        pair.order(0, Command::Primary { force: false })
            .expect("promoted");
        pair.write(0, 0, 4096, 1);
        pair.order(0, Command::Secondary).expect("demoted");
        assert_ne!(
            lineage(&pair),
            0,
            "seed {seed}: its own writes do not count"
        );
        pair.order(1, Command::Primary { force: false })
            .expect("promoted");
        assert_ne!(lineage(&pair), 0, "seed {seed}: nothing was written");
        pair.write(1, 0, 4096, 2);
        pair.settle();
        assert_eq!(lineage(&pair), 0, "seed {seed}");
    }
}

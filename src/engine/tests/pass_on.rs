//! `on-io-error = "pass-on"`: a bad block of the only current copy is its clients' affair; a disk that a
//! peer can stand in for is attached again by itself, a few times.

use super::pair::{CONNECT, Fault, Pair, V};
use crate::command::Command;
use crate::config::OnIoError;
use crate::event::{ConnState, DiskState, Role};
use crate::input::{Input, RequestKind};
use twinblk_protocol::control::Protocol;

const BLOCK: u64 = 64 << 10;
const ONCE: Fault = Fault { after: 0, bad: 1 };
const FOR_EVER: Fault = Fault {
    after: 0,
    bad: u64::MAX,
};

fn pair(seed: u64) -> Pair {
    let mut pair = Pair::in_sync(seed, Protocol::C);
    pair.change_options(|options| options.on_io_error = OnIoError::PassOn);
    pair
}

fn read(pair: &mut Pair, offset: u64) -> bool {
    let tag = pair.submit(0, RequestKind::Read, offset, &[0; 4096], 4096, false);
    pair.wait_reply(0, tag).is_ok()
}

fn write(pair: &mut Pair, offset: u64, value: u8) -> bool {
    let tag = pair.submit_write(0, offset, 4096, value);
    pair.wait_reply(0, tag).is_ok()
}

/// Time passes until the engine of node 0 wants its disk back.
fn wait_for_wish(pair: &mut Pair) {
    for _ in 0..200 {
        if pair.nodes[0].wants_disk > 0 {
            pair.nodes[0].wants_disk = 0;
            return;
        }
        pair.settle();
        pair.pass_time();
    }
    panic!("it does not want its disk: {}", pair.dump());
}

/// Alone a failed block costs an answer, and nothing else; the peer is brought to what is here.
#[test]
fn alone_clients_get_the_error_of_the_block_and_no_other() {
    for seed in 1..40 {
        let mut pair = pair(seed);
        assert!(write(&mut pair, BLOCK, 3));
        pair.cut();
        assert!(write(&mut pair, 2 * BLOCK, 4));
        pair.nodes[0].faults[1] = Some(ONCE);
        assert!(!read(&mut pair, BLOCK), "the disk failed to read it");
        assert_eq!(pair.read(0, BLOCK, 4096), vec![3; 4096]);
        pair.nodes[0].faults[1] = Some(ONCE);
        assert!(
            !write(&mut pair, 3 * BLOCK, 5),
            "the disk failed to write it"
        );
        assert_eq!(pair.disk(0), DiskState::UpToDate, "{}", pair.dump());
        assert_eq!(pair.status(0).volumes[0].errors_passed_on, 2);
        assert!(pair.status(0).volumes[0].reason.contains("pass-on"));
        // What a failed write has left behind.
        pair.rot(0, 3 * BLOCK, 9);
        assert!(write(&mut pair, 4 * BLOCK, 6));
        pair.cable = true;
        pair.settle();
        pair.expect_in_sync();
    }
}

/// A block that failed to be written while the peer was being brought up to date differs on it for no
/// longer than it takes.
#[test]
fn a_failed_write_during_a_resync_ends_equal() {
    let mut met = 0;
    for seed in 1..80 {
        let mut pair = pair(seed);
        pair.cut();
        for block in 0..12 {
            assert!(write(&mut pair, block * BLOCK, 7));
        }
        pair.cable = true;
        let begun = |pair: &Pair| {
            let peers = pair.status(0).peers;
            peers[0].volumes[0].replication == crate::event::ReplState::SyncSource
        };
        while !begun(&pair) {
            if !pair.step() {
                pair.pass_time();
            }
        }
        for _ in 0..pair.rng() % 20 {
            pair.step();
        }
        let passes = begun(&pair);
        let tag = pair.submit_write(0, 2 * BLOCK, 4096, 8);
        // Before the disk has it, what reads there are under way must not take the error.
        pair.nodes[0].faults[1] = Some(ONCE);
        let failed = pair.wait_reply(0, tag).is_err();
        pair.nodes[0].faults = [None; 3];
        if !(passes && failed) || pair.connection(0) == ConnState::StandAlone {
            continue;
        }
        met += 1;
        pair.rot(0, 2 * BLOCK, 1);
        pair.settle();
        pair.expect_in_sync();
        assert_eq!(pair.disk(0), DiskState::UpToDate, "{}", pair.dump());
    }
    assert!(met > 10, "met {met} times");
}

/// With a peer clients notice nothing, and the disk comes back by itself, together with what it could not
/// read.
#[test]
fn a_disk_that_fails_once_comes_back_by_itself() {
    for seed in 1..40 {
        let mut pair = pair(seed);
        assert!(write(&mut pair, BLOCK, 3));
        pair.settle();
        pair.nodes[0].faults[1] = Some(ONCE);
        assert_eq!(pair.read(0, BLOCK, 4096), vec![3; 4096]);
        pair.settle();
        let told = &pair.status(0).volumes[0];
        assert_eq!(told.disk, DiskState::Diskless);
        assert!(told.reason.contains("attempt 1 of 3"), "{told:?}");
        assert!(told.attach_in.is_some());
        pair.rot(0, BLOCK, 1);
        assert!(write(&mut pair, 2 * BLOCK, 4));
        wait_for_wish(&mut pair);
        pair.attach(0);
        pair.settle();
        pair.expect_in_sync();
        assert_eq!(pair.content(0)[usize::try_from(BLOCK).expect("small")], 3);
        assert_eq!(pair.role(0), Role::Primary);
    }
}

/// A disk that goes on failing is left alone in the end, until somebody attaches it.
#[test]
fn a_disk_that_goes_on_failing_is_left_alone() {
    let mut pair = pair(5);
    assert!(write(&mut pair, BLOCK, 3));
    pair.settle();
    let fail = |pair: &mut Pair| {
        pair.nodes[0].faults[1] = Some(ONCE);
        assert_eq!(pair.read(0, BLOCK, 4096), vec![3; 4096]);
        pair.settle();
        assert_eq!(pair.disk(0), DiskState::Diskless);
    };
    for wait in [1, 10, 60] {
        let from = pair.now;
        fail(&mut pair);
        let told = pair.status(0).volumes[0].reason.clone();
        assert!(told.contains(&format!("again in {wait} s")), "{told}");
        wait_for_wish(&mut pair);
        assert!(pair.now.since(from).as_secs() >= wait);
        pair.attach(0);
        pair.settle();
        pair.expect_in_sync();
    }
    fail(&mut pair);
    let told = &pair.status(0).volumes[0];
    assert!(told.reason.contains("twinblk attach"), "{told:?}");
    assert_eq!(told.attach_in, None);
    for _ in 0..50 {
        pair.settle();
        pair.pass_time();
    }
    assert_eq!(pair.nodes[0].wants_disk, 0);
    // By hand, and then it has all attempts again.
    pair.attach(0);
    pair.settle();
    pair.expect_in_sync();
    fail(&mut pair);
    wait_for_wish(&mut pair);
}

/// What cannot be opened is tried again, and a disk that was taken away is not.
#[test]
fn only_a_disk_that_failed_comes_back() {
    let mut pair = pair(6);
    pair.nodes[0].faults[1] = Some(ONCE);
    assert!(read(&mut pair, BLOCK), "the peer has it");
    pair.settle();
    wait_for_wish(&mut pair);
    let reason = "no such device".to_string();
    pair.feed(0, Input::AttachFailed { volume: V, reason });
    let told = &pair.status(0).volumes[0].reason;
    assert!(told.contains("no such device"), "{told}");
    assert!(told.contains("attempt 2 of 3"), "{told}");
    wait_for_wish(&mut pair);
    pair.attach(0);
    pair.settle();
    pair.expect_in_sync();
    pair.order(0, Command::Detach { force: false })
        .expect("the peer serves");
    for _ in 0..50 {
        pair.settle();
        pair.pass_time();
    }
    assert_eq!(pair.disk(0), DiskState::Diskless);
    assert_eq!(pair.nodes[0].wants_disk, 0);
}

/// After a failed flush, or a failed write of metadata, nothing the disk says can be relied upon.
#[test]
fn a_failed_flush_or_failed_metadata_are_not_passed_on() {
    for kind in [0, 1] {
        let mut pair = pair(7);
        pair.cut();
        assert!(write(&mut pair, BLOCK, 3));
        pair.nodes[0].faults[kind] = Some(FOR_EVER);
        if kind == 1 {
            let tag = pair.submit(0, RequestKind::Flush, 0, &[], 0, false);
            pair.wait_reply(0, tag).expect_err("it failed");
        } else {
            // Its extent is cold: a transaction of the log is due.
            let tag = pair.submit_write(0, 50 * BLOCK, 4096, 8);
            let _ = pair.wait_reply(0, tag);
        }
        let disk = pair.disk(0);
        assert!(
            matches!(disk, DiskState::Failed | DiskState::Diskless),
            "kind {kind}: {}",
            pair.dump()
        );
    }
}

/// A source that cannot read a block goes on serving; the peer stays behind, and says why.
#[test]
fn a_source_with_a_bad_block_goes_on_serving() {
    let mut pair = pair(8);
    pair.cut();
    for block in 0..6 {
        assert!(write(&mut pair, block * BLOCK, 7));
    }
    pair.nodes[0].faults[1] = Some(FOR_EVER);
    pair.cable = true;
    pair.settle();
    assert_eq!(pair.connection(0), ConnState::StandAlone, "{}", pair.dump());
    assert!(pair.logged(0, "cannot be brought up to date"));
    pair.nodes[0].faults = [None; 3];
    assert_eq!(pair.disk(0), DiskState::UpToDate);
    assert_eq!(pair.read(0, BLOCK, 4096), vec![7; 4096]);
    // Mended, and connected by order.
    pair.order(0, CONNECT).expect("it may");
    pair.settle();
    pair.expect_in_sync();
}

/// The last copy, which serves a Primary without a disk, is not given up for one block.
#[test]
fn the_last_copy_serves_on_with_a_bad_block() {
    let mut pair = pair(9);
    assert!(write(&mut pair, BLOCK, 3));
    pair.settle();
    pair.order(0, Command::Detach { force: false })
        .expect("the peer serves");
    pair.nodes[1].faults[1] = Some(ONCE);
    assert!(!read(&mut pair, BLOCK), "no disk can read it");
    assert_eq!(pair.disk(1), DiskState::UpToDate, "{}", pair.dump());
    assert_eq!(pair.read(0, BLOCK, 4096), vec![3; 4096]);
}

/// Most disks flush at the end of such a write: what failed may be what was answered before.
#[test]
fn a_failed_write_with_fua_is_not_passed_on() {
    let mut pair = pair(10);
    pair.cut();
    assert!(write(&mut pair, BLOCK, 3));
    pair.nodes[0].faults[1] = Some(ONCE);
    let tag = pair.submit(0, RequestKind::Write, BLOCK, &[4; 4096], 4096, true);
    pair.wait_reply(0, tag).expect_err("it failed");
    pair.settle();
    assert_eq!(pair.disk(0), DiskState::Diskless, "{}", pair.dump());
}

/// One bad block of the copy that serves stops neither the service nor the rest of the resync.
#[test]
fn the_last_copy_serves_on_when_a_resync_meets_a_bad_block() {
    let mut met = 0;
    for after in 0..16 {
        let mut pair = pair(11);
        for block in 0..6 {
            assert!(write(&mut pair, block * BLOCK, 3));
        }
        pair.settle();
        pair.order(0, Command::Detach { force: false })
            .expect("the peer serves");
        for block in 0..6 {
            assert!(write(&mut pair, block * BLOCK, 4));
        }
        pair.settle();
        pair.nodes[1].faults[1] = Some(Fault { after, bad: 1 });
        pair.attach(0);
        pair.settle();
        if pair.status(1).volumes[0].errors_passed_on == 0 {
            // It was a flush.
            continue;
        }
        met += 1;
        assert_eq!(pair.disk(1), DiskState::UpToDate, "{}", pair.dump());
        // What could not be read once is read the next time.
        for _ in 0..30 {
            pair.settle();
            pair.pass_time();
        }
        pair.expect_in_sync();
    }
    assert!(met > 0, "met {met} times");
}

//! A Primary whose disk fails or is taken away goes on with the peer's copy, and comes back to its own:
//! nothing that was acknowledged is lost, nothing stale is read, whoever crashes meanwhile.

use super::pair::{CONNECT, Fault, Pair};
use crate::command::Command;
use crate::config::OnNoData;
use crate::event::{ConnState, DiskState, Role};
use crate::input::RequestKind;
use std::collections::BTreeMap;
use twinblk_protocol::control::Protocol;

pub(super) const BLOCK: u64 = 64 << 10;
const PROTOCOLS: [Protocol; 3] = [Protocol::A, Protocol::B, Protocol::C];

/// Blocks that were acknowledged, and their values.
pub(super) type Acked = BTreeMap<u64, u8>;

fn pair(seed: u64, protocol: Protocol, on_no_data: OnNoData) -> Pair {
    let mut pair = Pair::in_sync(seed, protocol);
    pair.options.on_no_data = on_no_data;
    let options = Box::new(pair.options.clone());
    for n in 0..2 {
        let order = Command::SetOptions(options.clone());
        pair.order(n, order).expect("options are taken over");
    }
    pair
}

/// Writes and reads, some under way together; each must succeed.
pub(super) fn load(pair: &mut Pair, acked: &mut Acked, count: u64) {
    let mut tags: Vec<(u64, u8, u64)> = Vec::new();
    for _ in 0..count {
        let block = pair.rng() % 24;
        let value = u8::try_from(pair.rng() % 250 + 1).expect("small");
        if tags.iter().any(|&(b, ..)| b == block) {
            continue;
        }
        let offset = block * BLOCK;
        tags.push((block, value, pair.submit_write(0, offset, 4096, value)));
        for _ in 0..pair.rng() % 12 {
            pair.step();
        }
        if pair.rng().is_multiple_of(4) {
            let ask = |b: &u64| tags.iter().all(|(t, ..)| t != b);
            let Some((&b, &v)) = acked.iter().find(|(b, _)| ask(b)) else {
                continue;
            };
            let found = pair.read(0, b * BLOCK, 4096);
            assert_eq!(found, vec![v; 4096], "stale: {}", pair.dump());
        }
        if pair.rng().is_multiple_of(6) {
            pair.flush(0);
        }
    }
    for (block, value, tag) in tags {
        let result = pair.wait_reply(0, tag);
        assert!(result.is_ok(), "{result:?}: {}", pair.dump());
        acked.insert(block, value);
    }
}

pub(super) fn expect_kept(pair: &Pair, n: usize, acked: &Acked, seed: u64) {
    for (&block, &value) in acked {
        let found = pair.content(n)[usize::try_from(block * BLOCK).expect("small")];
        assert_eq!(found, value, "seed {seed}, node {n}: {}", pair.dump());
    }
}

/// The disk is mended and attached; clients go on while their copy is brought up to date.
fn mend(pair: &mut Pair, acked: &mut Acked, seed: u64) {
    pair.settle();
    assert_eq!(pair.disk(0), DiskState::Diskless, "{}", pair.dump());
    pair.nodes[0].faults = [None; 3];
    pair.attach(0);
    load(pair, acked, 20);
    pair.settle();
    load(pair, acked, 6);
    pair.settle();
    pair.expect_in_sync();
    assert_eq!(pair.role(0), Role::Primary);
    for n in 0..2 {
        expect_kept(pair, n, acked, seed);
    }
}

#[test]
fn clients_do_not_notice_that_a_primarys_disk_fails() {
    let mut failed = 0;
    for seed in 1..80 {
        let mut pair = pair(seed, PROTOCOLS[(seed % 3) as usize], OnNoData::IoError);
        let mut acked = Acked::new();
        load(&mut pair, &mut acked, 12);
        let kind = (seed / 3 % 2) as usize;
        let after = pair.rng() % 12;
        let bad = [1, u64::MAX][(seed / 6 % 2) as usize];
        pair.nodes[0].faults[kind] = Some(Fault { after, bad });
        load(&mut pair, &mut acked, 20);
        pair.settle();
        if pair.disk(0) != DiskState::Diskless {
            continue;
        }
        failed += 1;
        assert!(
            pair.out_of_sync(1) > 0 || acked.is_empty(),
            "{}",
            pair.dump()
        );
        expect_kept(&pair, 1, &acked, seed);
        mend(&mut pair, &mut acked, seed);
    }
    assert!(failed > 40, "the faults were met only {failed} times");
}

/// Whatever happens to the peer or the link while it serves, clients wait and lose nothing.
#[test]
fn a_peer_that_serves_and_crashes_lacks_nothing_when_it_returns() {
    let mut waited = 0;
    for seed in 1..80 {
        let mut pair = pair(seed, PROTOCOLS[(seed % 3) as usize], OnNoData::SuspendIo);
        let mut acked = Acked::new();
        load(&mut pair, &mut acked, 6);
        pair.settle();
        pair.order(0, Command::Detach { force: false })
            .expect("the peer serves");
        load(&mut pair, &mut acked, 8);
        let mut tags = Vec::new();
        for block in 30..36 {
            tags.push((block, pair.submit_write(0, block * BLOCK, 4096, 7)));
            for _ in 0..pair.rng() % 10 {
                pair.step();
            }
        }
        if seed % 2 == 0 {
            pair.crash(1);
            pair.start(1);
        } else {
            pair.cut();
            pair.cable = true;
        }
        waited += u32::from(pair.status(0).suspended_for.any());
        for (block, tag) in tags {
            pair.wait_reply(0, tag).expect("it waited");
            acked.insert(block, 7);
        }
        pair.settle();
        assert!(!pair.status(0).suspended_for.any(), "{}", pair.dump());
        load(&mut pair, &mut acked, 8);
        expect_kept(&pair, 1, &acked, seed);
        mend(&mut pair, &mut acked, seed);
    }
    assert!(waited > 60, "only {waited} waited");
}

/// The resync under clients is interrupted, by either node or the link, and goes on.
#[test]
fn a_resync_under_clients_may_be_interrupted() {
    for seed in 1..80 {
        let mut pair = pair(seed, PROTOCOLS[(seed % 3) as usize], OnNoData::SuspendIo);
        let mut acked = Acked::new();
        load(&mut pair, &mut acked, 6);
        pair.settle();
        pair.order(0, Command::Detach { force: false })
            .expect("the peer serves");
        load(&mut pair, &mut acked, 20);
        pair.attach(0);
        for _ in 0..pair.rng() % 120 {
            pair.step();
        }
        let tag = pair.submit_write(0, 40 * BLOCK, 4096, 9);
        for _ in 0..pair.rng() % 40 {
            pair.step();
        }
        if seed % 2 == 0 {
            pair.crash(1);
            pair.start(1);
        } else {
            pair.cut();
            pair.cable = true;
        }
        pair.wait_reply(0, tag).expect("it waited");
        acked.insert(40, 9);
        load(&mut pair, &mut acked, 10);
        pair.settle();
        pair.expect_in_sync();
        for n in 0..2 {
            expect_kept(&pair, n, &acked, seed);
        }
    }
}

/// The Primary without a disk crashes: the peer has all that was acknowledged, and takes over.
#[test]
fn whoever_served_a_primary_that_crashed_can_be_promoted() {
    for seed in 1..60 {
        let mut pair = pair(seed, PROTOCOLS[(seed % 3) as usize], OnNoData::IoError);
        let mut acked = Acked::new();
        load(&mut pair, &mut acked, 6);
        pair.nodes[0].faults[1] = Some(Fault {
            after: 1,
            bad: u64::MAX,
        });
        load(&mut pair, &mut acked, 12);
        pair.crash(0);
        pair.nodes[0].faults = [None; 3];
        pair.order(1, Command::Primary { force: false })
            .expect("it is UpToDate");
        expect_kept(&pair, 1, &acked, seed);
        pair.write(1, 50 * BLOCK, 4096, 3);
        acked.insert(50, 3);
        pair.start(0);
        pair.settle();
        pair.expect_in_sync();
        expect_kept(&pair, 0, &acked, seed);
    }
}

/// A peer that went on by itself has what clients here never saw, and may lack what they were told.
#[test]
fn a_peer_of_another_generation_is_not_served() {
    for seed in 1..60 {
        let mut pair = pair(seed, PROTOCOLS[(seed % 3) as usize], OnNoData::IoError);
        let mut acked = Acked::new();
        load(&mut pair, &mut acked, 6);
        pair.settle();
        pair.order(0, Command::Detach { force: false })
            .expect("the peer serves");
        load(&mut pair, &mut acked, 6);
        pair.cut();
        let tag = pair.submit(0, RequestKind::Read, 0, &[0; 4096], 4096, false);
        pair.wait_reply(0, tag).expect_err("there is no copy");
        pair.order(1, Command::Primary { force: false })
            .expect("it is UpToDate");
        pair.write(1, 0, 4096, 77);
        pair.order(1, Command::Secondary).expect("nobody holds it");
        pair.cable = true;
        pair.settle();
        assert!(pair.logged(0, "other-generation"), "{}", pair.dump());
        assert_eq!(pair.connection(0), ConnState::StandAlone);
        let tag = pair.submit(0, RequestKind::Read, 0, &[0; 4096], 4096, false);
        pair.wait_reply(0, tag).expect_err("there is no copy");
        // The way out that is told.
        pair.order(0, Command::Secondary).expect("nobody holds it");
        for n in 0..2 {
            pair.order(n, CONNECT).expect("it is allowed");
        }
        pair.settle();
        pair.attach(0);
        pair.settle();
        pair.expect_in_sync();
    }
}

/// A disk is taken away only when nobody needs it.
#[test]
fn detach_is_refused_while_clients_need_the_disk() {
    let mut pair = pair(1, Protocol::C, OnNoData::IoError);
    let detach = || Command::Detach { force: false };
    pair.cut();
    let refusal = pair.order(0, detach()).expect_err("no peer");
    assert!(refusal.way_out.contains("--force"), "{refusal:?}");
    pair.write(0, 0, 4096, 5);
    pair.cable = true;
    pair.settle();
    pair.order(0, detach()).expect("the peer serves");
    let refusal = pair.order(1, detach()).expect_err("it serves");
    assert!(refusal.reason.contains("alpha"), "{refusal:?}");
    assert_eq!(pair.nodes[0].closed, 1);
    assert_eq!(pair.read(0, 0, 4096), vec![5; 4096]);
    // Nothing was written since: by bitmap, and of the generation that is the newer one.
    pair.attach(0);
    pair.settle();
    pair.expect_in_sync();
    pair.order(1, detach()).expect("nobody needs it");
    pair.settle();
    assert_eq!(pair.disk(1), DiskState::Diskless);
    assert_eq!(pair.connection(0), ConnState::Connected, "{}", pair.dump());
    pair.write(0, BLOCK, 4096, 6);
    pair.attach(1);
    pair.settle();
    pair.expect_in_sync();
}

/// Copies that a verify found to differ do not take each other's place under clients.
#[test]
fn detach_is_refused_while_the_copies_are_known_to_differ() {
    let mut pair = pair(1, Protocol::C, OnNoData::IoError);
    let detach = || Command::Detach { force: false };
    pair.write(0, 0, 4096, 5);
    pair.settle();
    pair.rot(1, 100, 1);
    let verify = Command::Verify {
        peer: None,
        repair: false,
    };
    pair.order(0, verify).expect("both are current");
    pair.settle();
    let refusal = pair.order(0, detach()).expect_err("they differ");
    assert!(refusal.reason.contains("4096 bytes"), "{refusal:?}");
    assert_eq!(pair.disk(0), DiskState::UpToDate);
    // The way out that it names.
    pair.order(0, Command::Disconnect { peer: None })
        .expect("it may");
    for n in 0..2 {
        pair.order(n, CONNECT).expect("it may");
    }
    pair.settle();
    pair.order(0, detach()).expect("they are equal");
    assert_eq!(pair.read(0, 0, 4096), vec![5; 4096]);
}

/// Alone, a failed disk is an error, or clients wait for the disk.
#[test]
fn alone_clients_get_errors_or_wait_for_the_disk() {
    for seed in 1..60 {
        for policy in [OnNoData::IoError, OnNoData::SuspendIo] {
            let mut pair = pair(seed, Protocol::C, policy);
            pair.cut();
            pair.write(0, 0, 4096, 5);
            pair.nodes[0].faults[1] = Some(Fault {
                after: 0,
                bad: u64::MAX,
            });
            let tag = pair.submit_write(0, BLOCK, 4096, 6);
            for _ in 0..20 {
                pair.step();
            }
            if policy == OnNoData::IoError {
                pair.wait_reply(0, tag).expect_err("there is no copy");
                continue;
            }
            assert!(!pair.nodes[0].replies.contains_key(&tag));
            assert_eq!(pair.disk(0), DiskState::Diskless, "{}", pair.dump());
            pair.nodes[0].faults = [None; 3];
            pair.attach(0);
            pair.wait_reply(0, tag).expect("it waited");
            assert_eq!(pair.read(0, 0, 4096), vec![5; 4096]);
            pair.cable = true;
            pair.settle();
            pair.expect_in_sync();
            assert_eq!(pair.content(1)[usize::try_from(BLOCK).expect("small")], 6);
        }
    }
}

/// A node without a disk is promoted, and served.
#[test]
fn a_node_without_a_disk_can_be_promoted_when_a_peer_serves_it() {
    for seed in 1..60 {
        let mut pair = pair(seed, PROTOCOLS[(seed % 3) as usize], OnNoData::IoError);
        let mut acked = Acked::new();
        load(&mut pair, &mut acked, 6);
        pair.order(0, Command::Secondary).expect("nobody holds it");
        pair.order(0, Command::Detach { force: false })
            .expect("nobody needs it");
        pair.settle();
        pair.order(0, Command::Primary { force: false })
            .expect("the peer serves");
        load(&mut pair, &mut acked, 8);
        expect_kept(&pair, 1, &acked, seed);
        mend(&mut pair, &mut acked, seed);
    }
}

/// A disk that never answers: given up by order, its clients go on; nothing of it is used again before
/// it has answered.
#[test]
fn a_disk_that_hangs_is_given_up_by_order() {
    for seed in 1..60 {
        let mut pair = pair(seed, PROTOCOLS[(seed % 3) as usize], OnNoData::IoError);
        let mut acked = Acked::new();
        load(&mut pair, &mut acked, 6);
        pair.settle();
        pair.nodes[0].hangs = true;
        let (&block, &value) = acked.iter().next().expect("there is one");
        let read = pair.submit(0, RequestKind::Read, block * BLOCK, &[0; 4096], 4096, false);
        let write = pair.submit_write(0, 60 * BLOCK, 4096, 8);
        for _ in 0..400 {
            pair.step();
        }
        assert!(!pair.nodes[0].replies.contains_key(&read));
        assert!(!pair.nodes[0].replies.contains_key(&write));
        let text = pair
            .order(0, Command::Detach { force: true })
            .expect("by force");
        assert!(text.contains("have not ended"), "{text}");
        pair.wait_reply(0, read).expect("the peer has it");
        pair.wait_reply(0, write).expect("the peer has it");
        assert_eq!(pair.disk(0), DiskState::Failed);
        assert_eq!(pair.nodes[0].closed, 0);
        assert_eq!(pair.read(0, block * BLOCK, 4096), vec![value; 4096]);
        acked.insert(60, 8);
        pair.nodes[0].hangs = false;
        for input in core::mem::take(&mut pair.nodes[0].hung) {
            pair.feed(0, input);
        }
        assert_eq!(pair.nodes[0].closed, 1);
        mend(&mut pair, &mut acked, seed);
    }
}

/// Answers that waited for a new generation when the disk failed are not forgotten: whoever gives the
/// suspension up gives every client an answer, and the order ends.
#[test]
fn a_stop_of_a_primary_that_waits_for_a_copy_answers_everybody() {
    let mut waited = 0;
    for seed in 1..200 {
        let mut pair = pair(seed, Protocol::C, OnNoData::SuspendIo);
        let mut tags: Vec<u64> = (0..3)
            .map(|block| pair.submit_write(0, block * BLOCK, 4096, 9))
            .collect();
        for _ in 0..pair.rng() % 60 {
            pair.step();
        }
        let bad = u64::MAX;
        pair.nodes[1].faults[1] = Some(Fault { after: 0, bad });
        let kind = (seed % 2) as usize;
        let after = pair.rng() % 2;
        pair.nodes[0].faults[kind] = Some(Fault { after, bad });
        tags.push(pair.submit_write(0, 2 * BLOCK, 4096, 9));
        pair.settle();
        waited += u32::from(pair.status(0).suspended_for.any());
        pair.order(0, Command::Stop { force: true })
            .expect("it was told to");
        for tag in tags {
            assert!(pair.nodes[0].replies.contains_key(&tag), "{}", pair.dump());
        }
    }
    assert!(waited > 60, "only {waited} waited");
}

/// Nobody is left who could wait for a copy: a demotion needs no force.
#[test]
fn a_primary_without_a_copy_and_without_clients_can_be_demoted() {
    let mut pair = pair(1, Protocol::C, OnNoData::SuspendIo);
    pair.order(0, Command::Detach { force: false })
        .expect("the peer serves");
    pair.cut();
    assert!(pair.status(0).suspended_for.any(), "{}", pair.dump());
    pair.order(0, Command::Secondary).expect("nobody holds it");
    assert!(!pair.status(0).suspended_for.any());
    assert_eq!(pair.role(0), Role::Secondary);
}

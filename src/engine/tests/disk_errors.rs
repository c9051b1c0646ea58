//! Disks that fail: nothing that was acknowledged is lost, no copy passes for what it is not, and the
//! resource can always be taken down.

use super::pair::{Fault, Pair};
use crate::command::Command;
use crate::event::{DiskState, Role};
use crate::handler::HandlerKind;
use crate::input::RequestKind;
use std::collections::BTreeMap;
use twinblk_protocol::control::Protocol;

const BLOCK: u64 = 64 << 10;

/// Blocks that were written and acknowledged, each once, and their values.
type Acked = BTreeMap<u64, u8>;

/// Writes with distinct values, some under way together; the cable may be cut in between.
fn load(pair: &mut Pair, from: u64, acked: &mut Acked) {
    let mut tags = Vec::new();
    for block in from..from + 12 {
        let value = u8::try_from(block + 1).expect("few");
        tags.push((
            block,
            value,
            pair.submit_write(0, block * BLOCK, 4096, value),
        ));
        for _ in 0..pair.rng() % 12 {
            pair.step();
        }
        if pair.rng().is_multiple_of(20) {
            pair.cut();
        }
    }
    for (block, value, tag) in tags {
        if pair.wait_reply(0, tag).is_ok() {
            acked.insert(block, value);
        }
    }
}

fn down_and_up(pair: &mut Pair, n: usize) {
    let answer = pair.order(n, Command::Stop { force: true });
    assert!(pair.nodes[n].stopped, "{answer:?}: {}", pair.dump());
    pair.nodes[n].faults = [None; 3];
    pair.start(n);
    pair.settle();
}

fn expect_nothing_lost(pair: &Pair, acked: &Acked, seed: u64) {
    for (&block, &value) in acked {
        for n in 0..2 {
            let found = pair.content(n)[usize::try_from(block * BLOCK).expect("small")];
            assert_eq!(found, value, "seed {seed}, node {n}: {}", pair.dump());
        }
    }
}

/// The Primary's metadata or data fail at some moment, once or for good; it is demoted or taken
/// down, mended and brought back.
#[test]
fn a_primary_whose_disk_fails_loses_nothing_and_can_be_taken_down() {
    let mut failed = 0;
    for seed in 1..600 {
        let protocol = [Protocol::A, Protocol::B, Protocol::C][(seed % 3) as usize];
        let mut pair = Pair::in_sync(seed, protocol);
        let mut acked = Acked::new();
        load(&mut pair, 0, &mut acked);
        let kind = (seed / 3 % 2) as usize;
        let bad = [1, 2, u64::MAX][(seed / 6 % 3) as usize];
        let after = pair.rng() % 8;
        pair.nodes[0].faults[kind] = Some(Fault { after, bad });
        load(&mut pair, 20, &mut acked);
        let client = pair.submit(0, RequestKind::Flush, 0, &[], 0, false);
        let _ = pair.wait_reply(0, client);
        for _ in 0..seed % 3 {
            let answer = pair.order(0, Command::Secondary);
            assert_eq!(pair.role(0), Role::Secondary, "{answer:?}: {}", pair.dump());
        }
        failed += u32::from(matches!(
            pair.disk(0),
            DiskState::Failed | DiskState::Diskless
        ));
        down_and_up(&mut pair, 0);
        pair.cable = true;
        pair.settle();
        pair.expect_in_sync();
        expect_nothing_lost(&pair, &acked, seed);
    }
    assert!(failed > 300, "the faults were met only {failed} times");
}

/// The same on the Secondary: the Primary goes on alone, and brings it up to date afterwards.
#[test]
fn a_secondary_whose_disk_fails_is_brought_up_to_date_again() {
    for seed in 1..300 {
        let protocol = [Protocol::A, Protocol::B, Protocol::C][(seed % 3) as usize];
        let mut pair = Pair::in_sync(seed, protocol);
        let mut acked = Acked::new();
        let kind = (seed / 3 % 2) as usize;
        let after = pair.rng() % 8;
        let bad = [1, u64::MAX][(seed / 6 % 2) as usize];
        pair.nodes[1].faults[kind] = Some(Fault { after, bad });
        load(&mut pair, 0, &mut acked);
        pair.flush(0);
        assert_eq!(acked.len(), 12, "a client does not notice: {}", pair.dump());
        down_and_up(&mut pair, 1);
        pair.cable = true;
        pair.settle();
        pair.expect_in_sync();
        expect_nothing_lost(&pair, &acked, seed);
    }
}

/// A stop in the middle of anything comes to its end.
#[test]
fn a_stop_ends_whatever_is_under_way() {
    for seed in 1..400 {
        let mut pair = Pair::in_sync(seed, Protocol::C);
        if seed % 2 == 0 {
            pair.order(0, Command::Secondary).expect("no clients");
            pair.order_async(0, Command::Primary { force: false });
        } else {
            // Overlapping writes: all but one wait for their range.
            for i in 0..6u8 {
                pair.submit_write(0, 0, 4096, i + 1);
            }
        }
        for _ in 0..pair.rng() % 20 {
            pair.step();
        }
        if seed % 5 == 0 {
            pair.cut();
        }
        pair.order(0, Command::Stop { force: true })
            .expect("it ends");
        assert!(pair.nodes[0].stopped);
        pair.start(0);
        pair.cable = true;
        pair.settle();
        pair.expect_in_sync();
    }
}

/// Clients went away and left overlapping writes behind: a demotion lets them end.
#[test]
fn a_demotion_waits_for_writes_that_wait_for_each_other() {
    for seed in 1..100 {
        let mut pair = Pair::in_sync(seed, Protocol::C);
        let tags: Vec<u64> = (0..6)
            .map(|i| pair.submit_write(0, 0, 4096, i + 1))
            .collect();
        for _ in 0..pair.rng() % 10 {
            pair.step();
        }
        pair.order(0, Command::Secondary).expect("nobody holds it");
        for tag in tags {
            pair.wait_reply(0, tag).expect("it was accepted");
        }
        pair.settle();
        pair.expect_in_sync();
        assert_eq!(pair.content(0)[0], 6, "the last one stays");
    }
}

#[test]
fn a_primary_that_reaches_no_copy_says_so_to_its_handler() {
    for (n, alone) in [(0, true), (0, false), (1, false)] {
        let mut pair = Pair::in_sync(9, Protocol::C);
        pair.change_options(|o| o.handlers = o.handlers.with(HandlerKind::PriOnInconDegr));
        if alone {
            pair.cut();
        }
        pair.nodes[n].faults[1] = Some(Fault { after: 0, bad: 1 });
        let tag = pair.submit_write(0, 0, 4096, 1);
        let _ = pair.wait_reply(0, tag);
        pair.settle();
        assert_eq!(pair.disk(n), DiskState::Diskless, "{}", pair.dump());
        let called: Vec<_> = pair.nodes[n].handlers.iter().map(|h| h.1).collect();
        let wanted: &[HandlerKind] = match alone {
            true => &[HandlerKind::PriOnInconDegr],
            // The peer serves; or the node is a Secondary, which serves nobody.
            false => &[],
        };
        assert_eq!(called, wanted);
    }
}

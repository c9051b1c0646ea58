//! The stories, one test each.

use super::pair::{DATA, EXTENT, Pair, V};
use crate::command::{Command, RefusalKind};
use crate::event::{ConnState, DiskState, Role};
use crate::input::{Input, RequestKind};
use twinblk_protocol::control::Protocol;

const ALL: [Protocol; 3] = [Protocol::A, Protocol::B, Protocol::C];
const SEEDS: u64 = 12;

fn each(mut story: impl FnMut(u64, Protocol)) {
    for seed in 0..SEEDS {
        for protocol in ALL {
            story(seed, protocol);
        }
    }
}

fn connect() -> Command {
    Command::Connect {
        peer: None,
        discard_my_data: false,
        dry_run: false,
    }
}

fn discard() -> Command {
    Command::Connect {
        peer: None,
        discard_my_data: true,
        dry_run: false,
    }
}

fn fill(pair: &mut Pair, n: usize, salt: u64) {
    for i in 0..24u64 {
        let offset = (i * 37 + salt * 11) % (DATA / 4096 - 16) * 4096;
        pair.write(
            n,
            offset,
            4096 * (1 + i % 16),
            u8::try_from(1 + (i + salt) % 250).unwrap(),
        );
    }
}

#[test]
fn fresh_disks_wait_for_a_decision_and_then_sync_in_full() {
    each(|seed, protocol| {
        let mut pair = Pair::new(seed, protocol);
        pair.start(0);
        pair.start(1);
        pair.settle();
        assert_eq!(pair.connection(0), ConnState::Connected, "{}", pair.dump());
        assert_eq!(pair.disk(0), DiskState::Inconsistent);
        let refusal = pair
            .order(0, Command::Primary { force: false })
            .expect_err("no data yet");
        assert_eq!(refusal.kind, RefusalKind::NoUpToDateData);
        assert!(refusal.way_out.contains("--force"), "{refusal:?}");
        pair.order(0, Command::Primary { force: true })
            .expect("forced");
        fill(&mut pair, 0, seed);
        pair.settle();
        pair.expect_in_sync();
        assert_eq!(pair.role(0), Role::Primary);
    });
}

#[test]
fn clear_bitmap_skips_the_initial_sync() {
    each(|seed, protocol| {
        let mut pair = Pair::new(seed, protocol);
        pair.start(0);
        pair.start(1);
        pair.settle();
        pair.order(1, Command::NewCurrentUuid { clear_bitmap: true })
            .expect("both are fresh");
        pair.settle();
        pair.expect_in_sync();
        assert!(!pair.logged(0, "resync with"), "no resync: {}", pair.dump());
        pair.order(0, Command::Primary { force: false })
            .expect("UpToDate");
        fill(&mut pair, 0, seed);
        pair.settle();
        pair.expect_in_sync();
    });
}

#[test]
fn writes_trims_and_zeroes_reach_the_peer() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        fill(&mut pair, 0, seed);
        let tag = pair.submit(0, RequestKind::Trim, 8192, &[], 65536, false);
        pair.wait_reply(0, tag).expect("trim");
        let zeroes = RequestKind::WriteZeroes { no_hole: true };
        let tag = pair.submit(0, zeroes, 1 << 20, &[], 4096, true);
        pair.wait_reply(0, tag).expect("zeroes");
        assert!(pair.read(0, 8192, 65536).iter().all(|&b| b == 0));
        pair.settle();
        pair.expect_in_sync();
    });
}

#[test]
fn overlapping_writes_land_in_one_order_everywhere() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        let tags: Vec<u64> = (0..60u8)
            .map(|i| {
                let offset = (pair.rng() % 8) * 512;
                pair.submit_write(0, offset, 512 * (1 + u64::from(i % 7)), i + 1)
            })
            .collect();
        for tag in tags {
            pair.wait_reply(0, tag).expect("write");
        }
        pair.settle();
        pair.expect_in_sync();
    });
}

/// Promise 4 orders what is confirmed before the next is sent, not what is under way together.
#[test]
fn a_write_that_waits_for_the_activity_log_is_overtaken_by_one_that_need_not() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        let (hot, cold) = (0, 10 * u64::from(EXTENT));
        pair.write(0, hot, 4096, 1);
        pair.settle();
        let waits = pair.submit_write(0, cold, 4096, 2);
        let log = pair.take_completions(0);
        let named = matches!(log[..], [Input::Meta { .. }]);
        assert!(named, "the block of the log that names the extent: {log:?}");
        let passes = pair.submit_write(0, hot, 4096, 3);
        pair.settle();
        assert_eq!(
            pair.nodes[0].replies.get(&passes),
            Some(&Ok(())),
            "{}",
            pair.dump()
        );
        assert_eq!(pair.nodes[0].replies.get(&waits), None);
        let at = |offset: u64| usize::try_from(offset).expect("small");
        assert_eq!(pair.content(1)[at(hot)], 3);
        assert_eq!(pair.content(1)[at(cold)], 0);
        for input in log {
            pair.feed(0, input);
        }
        pair.wait_reply(0, waits).expect("a good disk");
        pair.settle();
        assert_eq!(pair.content(1)[at(cold)], 2);
    });
}

#[test]
fn after_a_link_blip_only_what_may_be_missing_is_resynced() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        fill(&mut pair, 0, seed);
        pair.cut();
        pair.settle();
        pair.cable = true;
        pair.settle();
        pair.expect_in_sync();
        pair.cut();
        pair.write(0, 0, 4096, 9);
        pair.write(0, 1 << 20, 8192, 8);
        assert_eq!(pair.out_of_sync(0), 4096 + 8192);
        pair.cable = true;
        pair.settle();
        pair.expect_in_sync();
    });
}

#[test]
fn a_cut_in_the_middle_of_writes_loses_nothing() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        let tags: Vec<u64> = (0..40u8)
            .map(|i| pair.submit_write(0, u64::from(i) * 8192, 8192, i + 1))
            .collect();
        for _ in 0..pair.rng() % 200 {
            pair.step();
        }
        pair.cut();
        for tag in tags {
            pair.wait_reply(0, tag).expect("the Primary goes on alone");
        }
        for i in 0..40u8 {
            assert!(
                pair.read(0, u64::from(i) * 8192, 8192)
                    .iter()
                    .all(|&b| b == i + 1)
            );
        }
        pair.cable = true;
        pair.settle();
        pair.expect_in_sync();
    });
}

#[test]
fn a_crashed_secondary_is_brought_up_to_date() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        fill(&mut pair, 0, seed);
        pair.crash(1);
        fill(&mut pair, 0, seed + 1);
        pair.start(1);
        pair.settle();
        pair.expect_in_sync();
    });
}

#[test]
fn a_crashed_primary_returns_as_target_of_the_promoted_survivor() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        fill(&mut pair, 0, seed);
        pair.settle();
        pair.crash(0);
        pair.order(1, Command::Primary { force: false })
            .expect("the survivor is UpToDate");
        fill(&mut pair, 1, seed + 5);
        let expected = pair.content(1).to_vec();
        pair.start(0);
        pair.settle();
        pair.expect_in_sync();
        assert_eq!(pair.role(0), Role::Secondary);
        assert!(pair.content(0) == expected, "the survivor's data won");
    });
}

#[test]
fn a_crashed_primary_that_comes_back_alone_serves_again_and_syncs_its_peer() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        fill(&mut pair, 0, seed);
        pair.flush(0);
        pair.crash(0);
        pair.start(0);
        pair.settle();
        pair.expect_in_sync();
        pair.order(0, Command::Primary { force: false })
            .expect("in sync again");
        fill(&mut pair, 0, seed + 3);
        pair.settle();
        pair.expect_in_sync();
    });
}

#[test]
fn both_down_and_up_again_converge() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        for i in 0..10u8 {
            pair.submit_write(0, u64::from(i) * 4096, 4096, i + 1);
        }
        for _ in 0..pair.rng() % 60 {
            pair.step();
        }
        pair.crash(0);
        pair.crash(1);
        pair.start(1);
        pair.start(0);
        pair.settle();
        pair.expect_in_sync();
    });
}

#[test]
fn roles_swap_without_a_resync() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        for round in 0..4u64 {
            let (from, to) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
            fill(&mut pair, from, seed + round);
            let refusal = pair
                .order(to, Command::Primary { force: false })
                .expect_err("taken");
            assert_eq!(refusal.kind, RefusalKind::State, "{refusal:?}");
            pair.order(from, Command::Secondary)
                .expect("nobody holds the export");
            pair.order(to, Command::Primary { force: false })
                .expect("the other demoted");
            pair.settle();
            pair.expect_in_sync();
        }
        let resyncs = pair.nodes[0]
            .log
            .iter()
            .filter(|l| l.contains("resync with"))
            .count();
        assert_eq!(resyncs, 1, "only the initial one");
    });
}

#[test]
fn both_promoted_apart_is_a_split_brain_and_nothing_is_overwritten() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        fill(&mut pair, 0, seed);
        pair.settle();
        pair.cut();
        pair.order(1, Command::Primary { force: false })
            .expect("alone and UpToDate");
        pair.write(0, 0, 4096, 0xaa);
        pair.write(1, 4096, 4096, 0xbb);
        let before = [pair.content(0).to_vec(), pair.content(1).to_vec()];
        pair.cable = true;
        pair.settle();
        for (n, before) in before.iter().enumerate() {
            assert_eq!(pair.connection(n), ConnState::StandAlone, "{}", pair.dump());
            assert!(
                pair.logged(n, "split brain"),
                "node {n} says it: {}",
                pair.dump()
            );
            assert!(pair.content(n) == before, "nothing is overwritten");
        }
        // The way out: the victim says so, the other connects.
        let refusal = pair
            .order(1, discard())
            .expect_err("a Primary does not discard");
        assert_eq!(refusal.kind, RefusalKind::State);
        pair.order(1, Command::Secondary).expect("no clients");
        let text = pair.order(1, discard()).expect("now it may");
        assert!(
            text.contains("4096 bytes changed here will be overwritten"),
            "{text}"
        );
        pair.order(0, connect()).expect("the winner connects");
        pair.settle();
        pair.expect_in_sync();
        assert!(
            pair.content(1) == before[0],
            "the winner's data are everywhere"
        );
    });
}

#[test]
fn a_split_brain_of_demoted_nodes_is_one_too() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        pair.cut();
        pair.write(0, 0, 4096, 0xaa);
        pair.order(0, Command::Secondary).expect("demote");
        pair.order(1, Command::Primary { force: false })
            .expect("promote");
        pair.write(1, 0, 4096, 0xbb);
        pair.order(1, Command::Secondary).expect("demote");
        pair.cable = true;
        pair.settle();
        assert!(pair.logged(0, "split brain") && pair.logged(1, "split brain"));
    });
}

#[test]
fn a_promotion_without_a_write_changes_nothing() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        pair.settle();
        pair.cut();
        pair.order(0, Command::Secondary).expect("demote");
        pair.order(1, Command::Primary { force: false })
            .expect("promote");
        pair.order(1, Command::Secondary).expect("demote");
        pair.cable = true;
        pair.settle();
        pair.expect_in_sync();
    });
}

#[test]
fn simultaneous_promotions_never_both_win() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        pair.order(0, Command::Secondary).expect("demote");
        pair.settle();
        pair.order_async(0, Command::Primary { force: false });
        for _ in 0..pair.rng() % 4 {
            pair.step();
        }
        pair.order_async(1, Command::Primary { force: false });
        pair.settle();
        let primaries = (0..2).filter(|&n| pair.role(n) == Role::Primary).count();
        assert_eq!(primaries, 1, "{}", pair.dump());
        pair.expect_in_sync();
    });
}

#[test]
fn an_interrupted_resync_goes_on_and_the_target_cannot_be_promoted() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        pair.cut();
        for i in 0..64u64 {
            pair.write(0, i * 65536, 4096, u8::try_from(i + 1).unwrap());
        }
        pair.cable = true;
        let mut steps = 0;
        while pair.disk(1) != DiskState::Inconsistent {
            assert!(pair.step(), "the resync starts: {}", pair.dump());
        }
        while pair.step() && steps < pair.rng() % 400 {
            steps += 1;
        }
        pair.cut();
        if pair.disk(1) == DiskState::Inconsistent {
            let refusal = pair
                .order(1, Command::Primary { force: false })
                .expect_err("half done");
            assert_eq!(refusal.kind, RefusalKind::NoUpToDateData);
            pair.crash(1);
            pair.start(1);
            assert_ne!(pair.disk(1), DiskState::UpToDate);
        }
        pair.write(0, 0, 4096, 0x77);
        pair.cable = true;
        pair.settle();
        pair.expect_in_sync();
    });
}

#[test]
fn writes_during_a_resync_win_over_resync_blocks() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        pair.cut();
        for i in 0..128u64 {
            pair.write(0, i * 16384, 16384, 1);
        }
        pair.cable = true;
        for i in 0..200u64 {
            for _ in 0..pair.rng() % 12 {
                pair.step();
            }
            let block = pair.rng() % 512;
            pair.submit_write(0, block * 4096, 4096, u8::try_from(2 + i % 250).unwrap());
        }
        pair.settle();
        pair.expect_in_sync();
    });
}

#[test]
fn disconnect_outdates_the_secondary_and_connect_heals_it() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        pair.order(0, Command::Disconnect { peer: None })
            .expect("disconnect");
        pair.settle();
        assert_eq!(pair.connection(0), ConnState::StandAlone);
        assert_eq!(pair.disk(1), DiskState::Outdated, "{}", pair.dump());
        let refusal = pair
            .order(1, Command::Primary { force: false })
            .expect_err("outdated");
        assert_eq!(refusal.kind, RefusalKind::NoUpToDateData);
        fill(&mut pair, 0, seed);
        pair.order(0, connect()).expect("connect");
        pair.settle();
        pair.expect_in_sync();
    });
}

#[test]
fn invalidate_either_side_syncs_in_full() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        fill(&mut pair, 0, seed);
        let refusal = pair
            .order(0, Command::Invalidate)
            .expect_err("it is Primary");
        assert_eq!(refusal.kind, RefusalKind::State);
        pair.order(1, Command::Invalidate).expect("invalidate");
        pair.settle();
        pair.expect_in_sync();
        pair.order(0, Command::InvalidateRemote { peer: None })
            .expect("invalidate-remote");
        pair.settle();
        pair.expect_in_sync();
        let total = format!("{} bytes are out of sync", pair.status(0).volumes[0].size);
        let full = pair.nodes[0]
            .log
            .iter()
            .filter(|l| l.contains(&total))
            .count();
        assert!(
            full >= 3,
            "initial, invalidate, invalidate-remote: {}",
            pair.dump()
        );
    });
}

#[test]
fn stop_writes_everything_and_the_next_start_needs_no_resync() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        fill(&mut pair, 0, seed);
        pair.order(0, Command::Stop { force: false })
            .expect("no clients");
        pair.order(1, Command::Stop { force: false })
            .expect("no clients");
        assert!(pair.nodes[0].stopped && pair.nodes[1].stopped);
        pair.crash(0);
        pair.crash(1);
        pair.start(0);
        pair.start(1);
        pair.settle();
        pair.expect_in_sync();
        assert!(
            !pair.logged(0, "was Primary when it went down"),
            "{}",
            pair.dump()
        );
        let resyncs = pair.nodes[0]
            .log
            .iter()
            .filter(|l| l.contains("resync with"))
            .count();
        assert_eq!(resyncs, 1, "only the initial one: {}", pair.dump());
    });
}

#[test]
fn an_open_export_stands_against_demotion_and_stop() {
    let mut pair = Pair::in_sync(1, Protocol::C);
    let engine = pair.nodes[0].engine.as_mut().expect("it runs");
    let client = engine
        .open_export(V, "pid 7 (fio)".into())
        .expect("it is Primary");
    for command in [Command::Secondary, Command::Stop { force: false }] {
        let refusal = pair.order(0, command).expect_err("in use");
        assert_eq!(refusal.kind, RefusalKind::InUse);
        assert!(refusal.reason.contains("pid 7 (fio)"), "{refusal:?}");
    }
    let now = pair.now;
    let engine = pair.nodes[1].engine.as_mut().expect("it runs");
    let refusal = engine.open_export(V, "x".into()).expect_err("Secondary");
    assert!(
        refusal
            .reason
            .contains("Secondary on bravo; alpha is Primary"),
        "{refusal:?}"
    );
    let engine = pair.nodes[0].engine.as_mut().expect("it runs");
    engine.close_export(client, now, &mut Vec::new());
    pair.order(0, Command::Secondary).expect("closed");
}

#[test]
fn a_dry_run_tells_and_changes_nothing() {
    let mut pair = Pair::in_sync(3, Protocol::C);
    pair.order(0, Command::Disconnect { peer: None })
        .expect("disconnect");
    pair.write(0, 0, 8192, 5);
    let dry = Command::Connect {
        peer: None,
        discard_my_data: false,
        dry_run: true,
    };
    let text = pair.order(0, dry).expect("the peer answers");
    assert!(text.contains("alpha would overwrite bravo"), "{text}");
    assert!(text.contains("8192"), "{text}");
    pair.settle();
    assert_eq!(pair.connection(0), ConnState::StandAlone, "as before");
    assert_eq!(pair.disk(1), DiskState::Outdated, "as before");
}

#[test]
fn a_stop_answers_what_waits_and_blames_no_disk() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        pair.cut();
        // It waits for the new generation, which the stop does not wait for.
        let tag = pair.submit_write(0, 0, 4096, 0xaa);
        pair.order(0, Command::Stop { force: true })
            .expect("it is forced");
        let result = pair.nodes[0].replies.get(&tag).cloned();
        assert!(result.is_some(), "answered: {}", pair.dump());
        assert!(pair.nodes[0].stopped);
        assert!(!pair.logged(0, "out of use"), "{}", pair.dump());
        pair.crash(0);
        pair.cable = true;
        pair.start(0);
        pair.settle();
        pair.expect_in_sync();
    });
}

/// Alpha crashed as Primary and is Primary again; some steps into the start of the resync.
fn crashed_primary_meets_its_peer(seed: u64, protocol: Protocol) -> Pair {
    let mut pair = Pair::in_sync(seed, protocol);
    fill(&mut pair, 0, seed);
    pair.flush(0);
    pair.settle();
    pair.cable = false;
    pair.crash(0);
    pair.start(0);
    pair.settle();
    pair.order(0, Command::Primary { force: false })
        .expect("alone");
    pair.cable = true;
    while pair.connection(0) != ConnState::Connected {
        if !pair.step() {
            pair.pass_time();
        }
    }
    for _ in 0..seed % 40 {
        pair.step();
    }
    pair
}

#[test]
fn a_write_at_the_start_of_a_resync_survives_the_next_crash() {
    for seed in 1..200 {
        for protocol in [Protocol::A, Protocol::B, Protocol::C] {
            let mut pair = crashed_primary_meets_its_peer(seed, protocol);
            let data = [0xee; 4096];
            let tag = pair.submit(0, RequestKind::Write, 40_960, &data, 4096, true);
            pair.wait_reply(0, tag).expect("a write succeeds");
            pair.crash(0);
            pair.start(0);
            pair.settle();
            for n in 0..2 {
                let byte = pair.content(n)[40_960];
                assert_eq!(byte, 0xee, "seed {seed} {protocol:?}: {}", pair.dump());
            }
        }
    }
}

#[test]
fn writes_after_a_cut_at_the_start_of_a_resync_survive_or_split() {
    for seed in 1..200 {
        let alone = |promote: bool| {
            let mut pair = crashed_primary_meets_its_peer(seed, Protocol::C);
            pair.cut();
            pair.settle();
            for i in 0..10 {
                pair.write(0, 40_960 + i * 4096, 4096, 0xee);
            }
            pair.flush(0);
            pair.settle();
            let target = pair.disk(1);
            if promote && target == DiskState::UpToDate {
                pair.order(0, Command::Secondary).expect("demoted");
                pair.order(1, Command::Primary { force: false })
                    .expect("promoted");
                pair.write(1, 0, 4096, 0xdd);
            } else if !promote {
                pair.crash(0);
                pair.start(0);
            }
            pair.cable = true;
            pair.settle();
            (pair, target)
        };
        let (pair, _) = alone(false);
        assert_eq!(
            pair.content(0)[40_960],
            0xee,
            "seed {seed}: {}",
            pair.dump()
        );
        let (pair, target) = alone(true);
        if target == DiskState::UpToDate {
            assert_eq!(pair.connection(0), ConnState::StandAlone, "seed {seed}");
            assert!(
                pair.logged(0, "split brain"),
                "seed {seed}: {}",
                pair.dump()
            );
        }
    }
}

#[test]
fn a_dry_run_leaves_no_order_behind() {
    let mut pair = Pair::in_sync(3, Protocol::C);
    pair.cut();
    pair.settle();
    pair.order(1, Command::Primary { force: false })
        .expect("alone");
    pair.write(0, 0, 4096, 0xaa);
    pair.write(1, 4096, 4096, 0xbb);
    pair.order(1, Command::Secondary).expect("no clients");
    let dry_run = Command::Connect {
        peer: None,
        discard_my_data: true,
        dry_run: true,
    };
    let refusal = pair.order(1, dry_run).expect_err("nobody is there");
    assert_eq!(refusal.kind, RefusalKind::Timeout);
    let before = pair.content(1).to_vec();
    pair.cable = true;
    pair.settle();
    assert_eq!(pair.connection(1), ConnState::StandAlone, "{}", pair.dump());
    assert!(pair.content(1) == before, "nothing was discarded");
}

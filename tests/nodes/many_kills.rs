//! Primaries are killed again and again under load, on a device much larger than its activity log.
//! Invariants: no write that the protocol promises is lost, both disks end up equal; and no resync after
//! a crash is larger than what the log named, at most `al-extents` × 4 MiB, and what was marked before.
//! A Secondary that was killed gets what was not stable on it and what it missed, and nothing else;
//! one that was shut down in order gets nothing.
//!
//! `TWINBLK_KILLS=1000` goes on longer; `--nocapture` shows a line for each kill.

use crate::harness::load::{BLOCK, Habits, History, Load, wait_for_writes};
use crate::harness::nbd::Client;
use crate::harness::node::{Events, Node};
use crate::harness::seeds::{Rng, seeds_side_by_side};
use crate::harness::stage::{Plan, Stage};
use crate::harness::wait_for;
use std::io::Write;
use std::sync::{Arc, Mutex};

/// Extents in the activity log: the fewest that can be configured.
const EXTENTS: u64 = 67;
const EXTENT: u64 = 4 << 20;
/// Bytes of the disks: four times what the log can name.
const SIZE: u64 = 1 << 30;
/// Kills in a row of one pair, which is one seed.
const KILLS_OF_A_SEED: u64 = 10;
/// Pairs side by side.
const PAIRS: usize = 4;

fn rounds(kills: u64) -> u64 {
    let wanted = std::env::var("TWINBLK_KILLS").ok();
    let kills = wanted.map_or(kills, |text| {
        text.parse().expect("TWINBLK_KILLS is a number")
    });
    kills.div_ceil(KILLS_OF_A_SEED)
}

fn plan(seed: u64) -> Plan {
    let mut plan = Plan::seeded(seed);
    plan.tmpfs = true;
    plan.sizes = [SIZE; 2];
    plan.more = format!("[disk]\nal-extents = {EXTENTS}\n");
    plan
}

/// What one crash of a Primary cost, in bytes.
struct Cost {
    /// Named by the log.
    marked: u64,
    /// Marked on the survivor when the other came back.
    before: u64,
    resynced: u64,
}

/// Depth, size and place of the writes.
fn habits(rng: &mut Rng, history: &Mutex<History>) -> Habits {
    let blocks = history.lock().unwrap().blocks();
    // Everywhere, or so close together that the log never changes, or in between.
    let part = blocks >> rng.below(8);
    let start = rng.below(blocks - part + 1);
    Habits {
        depth: 1 + rng.below(64) as usize,
        flush: [1, 4, 32, 1000][rng.below(4) as usize],
        fua: [1, 16, 1000][rng.below(3) as usize],
        largest: [1, 4, 16, 64][rng.below(4) as usize],
        area: start..start + part,
        ..Habits::default()
    }
}

fn start_load(node: &Node, history: &Arc<Mutex<History>>, seed: u64, habits: &Habits) -> Load {
    let client = Client::unix(&node.export).expect("the Primary serves");
    Load::over(client, history, seed, habits.clone())
}

/// Events from now on: the first of them has come.
fn listen(node: &Node) -> Events {
    let events = node.events();
    events.wait("the listener", |e| e["kind"] == "role");
    events
}

/// The bytes of every resync that has begun.
fn resyncs(events: &Events) -> Vec<u64> {
    let sizes = events.lines().into_iter().filter_map(|e| {
        let (_, text) = e["cause"].as_str()?.split_once(" begins as Sync")?;
        let (_, text) = text.split_once(": ")?;
        let (bytes, _) = text.split_once(" bytes are out of sync")?;
        Some(bytes.parse().expect("bytes"))
    });
    sizes.collect()
}

fn has_begun(events: &Events) {
    events.wait("the resync", |e| {
        e["cause"]
            .as_str()
            .is_some_and(|c| c.contains(" begins as Sync"))
    });
}

/// A resync has begun and is over. (To ask for the state until then would cost more than all the rest.)
fn has_ended(events: &Events) {
    has_begun(events);
    wait_for(
        "the end of the resync",
        || {
            let lines = events.lines();
            let last = lines.iter().rev().find(|e| e["kind"] == "replication");
            last.is_some_and(|e| e["to"] == "Established").then_some(())
        },
        || format!("{:#?}", events.lines()),
    );
}

fn out_of_sync(node: &Node) -> u64 {
    let status = node.status();
    let bytes = &status["peers"][0]["volumes"][0]["out_of_sync"];
    bytes.as_u64().expect("bytes")
}

/// The Primary `at` dies under load, and comes back; perhaps the other one takes over. Answers who is
/// Primary then.
fn one_kill(
    stage: &mut Stage,
    history: &Arc<Mutex<History>>,
    rng: &mut Rng,
    at: usize,
) -> (usize, Cost, String) {
    let habits = habits(rng, history);
    let load = start_load(&stage.nodes[at], history, rng.next(), &habits);
    wait_for_writes(history, 10 + rng.below(240) as usize);
    stage.nodes[at].kill();
    load.broken();
    let other = 1 - at;
    let events = listen(&stage.nodes[other]);
    let takes_over = rng.below(2) == 0;
    let mut before = 0;
    if takes_over {
        stage.takes_over(other, history);
        let load = start_load(&stage.nodes[other], history, rng.next(), &habits);
        wait_for_writes(history, rng.below(100) as usize);
        load.finish();
        before = out_of_sync(&stage.nodes[other]);
    }
    stage.nodes[at].start();
    let marked = |s: &serde_json::Value| s["volumes"][0]["marked_after_crash"].as_u64();
    let status = stage.nodes[at].wait("attached after a crash", |s| marked(s) > Some(0));
    let marked = marked(&status).expect("bytes");
    match rng.below(4) {
        0 => {
            // Once more, wherever it is.
            if rng.below(2) == 0 {
                has_begun(&events);
            }
            stage.nodes[at].kill();
            stage.nodes[at].start();
        }
        1 if takes_over => {
            has_begun(&events);
            let load = start_load(&stage.nodes[other], history, rng.next(), &habits);
            wait_for_writes(history, 20);
            load.finish();
        }
        _ => {}
    }
    has_ended(&events);
    let content = stage.compare_quiet();
    history.lock().unwrap().judge_blocks(&content);
    let resyncs = resyncs(&events);
    assert!(
        marked <= EXTENTS * EXTENT,
        "the log named no more than it has room for: {marked}"
    );
    for &bytes in &resyncs {
        assert!(
            bytes <= marked + before,
            "only what the log named ({marked}) and what was marked before ({before}): {resyncs:?}"
        );
    }
    let cost = Cost {
        marked,
        before,
        resynced: resyncs[0],
    };
    let story = format!(
        "protocol {}, depth {}, writes of up to {} KiB in {} MiB; {}: {marked} bytes named by the log, \
         {before} marked before, {} resynced",
        stage.plan.protocol,
        habits.depth,
        habits.largest * BLOCK as u64 / 1024,
        ((habits.area.end - habits.area.start) * BLOCK as u64) >> 20,
        if takes_over {
            "the other took over"
        } else {
            "it came back"
        },
        cost.resynced,
    );
    (if takes_over { other } else { at }, cost, story)
}

#[test]
fn what_a_killed_primary_costs_is_bounded_by_its_log() {
    let costs = Mutex::new(Vec::new());
    seeds_side_by_side(rounds(20), PAIRS, |seed| {
        let mut rng = Rng(seed ^ 0x4111);
        let mut stage = Stage::declared_equal(plan(seed));
        let history = History::new(seed, stage.nodes[0].data_size());
        let mut primary = rng.below(2) as usize;
        for number in 1..=KILLS_OF_A_SEED {
            stage.nodes[primary].ok(&["primary", "r0"]);
            let (cost, story);
            (primary, cost, story) = one_kill(&mut stage, &history, &mut rng, primary);
            println!("seed {seed}, kill {number}: {story}");
            costs.lock().unwrap().push(cost);
        }
        assert_eq!(out_of_sync(&stage.nodes[0]), 0);
    });
    let costs = costs.into_inner().unwrap();
    let mib = |value: fn(&Cost) -> u64| {
        let mut all: Vec<u64> = costs.iter().map(value).collect();
        all.sort_unstable();
        [0, all.len() / 2, all.len() - 1].map(|n| all[n] as f64 / f64::from(1 << 20))
    };
    let text = format!(
        "{} kills of a Primary; least, median and most MiB: named by the log {:.1?} (at most {}), marked \
         before {:.1?}, resynced {:.1?} of {}\n",
        costs.len(),
        mib(|c| c.marked),
        (EXTENTS * EXTENT) >> 20,
        mib(|c| c.before),
        mib(|c| c.resynced),
        SIZE >> 20,
    );
    // Past the test program, which shows what is printed only of tests that fail.
    std::io::stderr()
        .write_all(text.as_bytes())
        .expect("stderr");
}

#[test]
fn a_killed_secondary_costs_what_it_missed() {
    seeds_side_by_side(20, 2, |seed| {
        let mut rng = Rng(seed ^ 0x5ec);
        let mut stage = Stage::declared_equal(plan(seed));
        let history = History::new(seed, stage.nodes[0].data_size());
        stage.nodes[0].ok(&["primary", "r0"]);
        let habits = habits(&mut rng, &history);
        let load = start_load(&stage.nodes[0], &history, seed, &habits);
        wait_for_writes(&history, 100 + rng.below(400) as usize);
        let load = if stage.plan.protocol == "C" {
            // A disk in memory has what it was given: all that was confirmed.
            history.lock().unwrap().peer_has(true);
            load
        } else {
            load.finish();
            stage.compare_quiet();
            history.lock().unwrap().peer_has(true);
            start_load(&stage.nodes[0], &history, seed + 100, &habits)
        };
        if stage.plan.protocol != "C" {
            wait_for_writes(&history, 50);
        }
        stage.nodes[1].kill();
        wait_for_writes(&history, rng.below(100) as usize);
        load.finish();
        stage.nodes[0].wait("the peer is lost", |s| {
            s["peers"][0]["connection"] != "Connected"
        });
        let missed = history.lock().unwrap().missed();
        let marked = out_of_sync(&stage.nodes[0]);
        let events = listen(&stage.nodes[0]);
        stage.nodes[1].start();
        has_ended(&events);
        let content = stage.compare_quiet();
        history.lock().unwrap().judge_blocks(&content);
        let resyncs = resyncs(&events);
        println!("seed {seed}: resynced {resyncs:?}, at most {missed} missed");
        assert_eq!(resyncs, [marked], "what was marked");
        assert!(0 < marked && marked <= missed, "{marked} <= {missed}");
    });
}

#[test]
fn who_was_shut_down_in_order_gets_nothing() {
    for protocol in ["A", "B", "C"] {
        let mut plan = plan(1);
        plan.protocol = protocol;
        let mut stage = Stage::declared_equal(plan);
        let history = History::new(1, stage.nodes[0].data_size());
        stage.nodes[0].ok(&["primary", "r0"]);
        Load::burst(&stage.nodes[0].export, &history, 1, 500);
        stage.compare_quiet();
        let seen = [0, 1].map(|n| listen(&stage.nodes[n]));
        // The Secondary; then both, the Primary last, by order and by signal.
        stage.nodes[1].ok(&["down", "r0"]);
        stage.nodes[1].ok(&["up", "r0"]);
        stage.wait_in_sync();
        for n in [1, 0] {
            stage.nodes[n].ok(&["down", "r0", "--force"]);
        }
        for n in [0, 1] {
            stage.nodes[n].ok(&["up", "r0"]);
        }
        stage.wait_in_sync();
        for events in &seen {
            assert!(resyncs(events).is_empty(), "{:#?}", events.lines());
        }
        stage.nodes[0].ok(&["primary", "r0"]);
        Load::burst(&stage.nodes[0].export, &history, 2, 500);
        stage.compare_quiet();
        for n in [1, 0] {
            stage.nodes[n].terminate();
        }
        for n in [1, 0] {
            stage.nodes[n].start();
        }
        stage.wait_in_sync();
        for node in &stage.nodes {
            assert_eq!(node.status()["volumes"][0]["marked_after_crash"], 0);
            let log = node.log_text();
            assert!(!log.contains("begins as Sync"), "{log}");
        }
        let content = stage.compare_quiet();
        history.lock().unwrap().judge_blocks(&content);
    }
}

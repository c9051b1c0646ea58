//! The Primary dies under load; the other takes over; the old one returns and is brought up to date.
//! Invariants: no confirmed write is lost under B and C; the survivor's disk has no write without those
//! confirmed before it was sent; the returned node becomes SyncTarget, never source, and ends up equal.

use crate::harness::load::{History, Load, wait_for_writes};
use crate::harness::nbd::Client;
use crate::harness::seeds::{Rng, each_seed};
use crate::harness::stage::{Plan, Stage};

#[test]
fn the_primary_is_killed_under_load_and_the_survivor_takes_over() {
    each_seed(|seed| {
        let mut rng = Rng(seed);
        let mut stage = Stage::in_sync(Plan::seeded(seed));
        let size = stage.nodes[0].data_size();
        let history = History::new(seed, size);
        let depth = 1 + rng.below(48) as usize;
        let load = Load::start(&stage.nodes[0].export, &history, seed, depth);
        wait_for_writes(&history, 50 + rng.below(200) as usize);
        stage.nodes[0].kill();
        load.broken();

        stage.takes_over(1, &history);
        let bravo = &stage.nodes[1];
        let load = Load::start(&bravo.export, &history, seed + 1000, depth);
        wait_for_writes(&history, 50 + rng.below(100) as usize);
        let events = bravo.events();
        stage.nodes[0].start();
        events.wait("alpha is brought up to date by bravo", |e| {
            e["kind"] == "replication" && e["to"] == "SyncSource"
        });
        wait_for_writes(&history, 20);
        load.finish();
        stage.wait_in_sync();
        let all = events.lines();
        assert!(!all.iter().any(|e| e["to"] == "SyncTarget"), "{all:#?}");
        assert_eq!(stage.nodes[0].status()["role"], "Secondary");
        assert_eq!(stage.nodes[1].status()["role"], "Primary");
        let content = stage.stop_and_compare();
        history.lock().unwrap().judge_blocks(&content);
    });
}

/// Nobody takes over: the Primary's machine comes back, and so does the Primary.
#[test]
fn the_primary_is_killed_and_returns_as_primary() {
    each_seed(|seed| {
        let mut rng = Rng(seed ^ 0x77);
        let mut stage = Stage::in_sync(Plan::seeded(seed + 1));
        let size = stage.nodes[0].data_size();
        let history = History::new(seed, size);
        let depth = 1 + rng.below(48) as usize;
        let load = Load::start(&stage.nodes[0].export, &history, seed, depth);
        wait_for_writes(&history, 50 + rng.below(200) as usize);
        stage.nodes[0].kill();
        load.broken();
        stage.nodes[0].start();
        stage.wait_in_sync();
        stage.nodes[0].ok(&["primary", "r0"]);
        let mut client = Client::unix(&stage.nodes[0].export).expect("alpha serves");
        let content = client.read_all().expect("reads");
        client.disconnect();
        history.lock().unwrap().judge_blocks(&content);
        let again = stage.stop_and_compare();
        assert!(again == content, "what was read is on both disks");
    });
}

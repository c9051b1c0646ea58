//! The cable is pulled under load and put back. Invariants: the client sees no error; only what was
//! written meanwhile is copied, not the whole disk; both disks end up equal.

use crate::harness::load::{History, Load, wait_for_writes};
use crate::harness::seeds::{Rng, each_seed};
use crate::harness::stage::{Plan, Stage};
use std::time::Duration;

/// Dead peers are found by time: short times for a short test.
pub(crate) const IMPATIENT: &str =
    "connect-int = 1\nping-int = 2\nping-timeout = \"1s\"\ntimeout = \"1s\"\n";

#[test]
fn the_cable_is_pulled_under_load_and_put_back() {
    each_seed(|seed| {
        let mut rng = Rng(seed ^ 0xcab1e);
        let mut plan = Plan::seeded(seed);
        plan.namespaces = true;
        plan.net = IMPATIENT.into();
        plan.sizes = [256 << 20; 2];
        let mut stage = Stage::in_sync(plan);
        // All writes go to the first 32 MiB.
        let history = History::new(seed, 32 << 20);
        let depth = 1 + rng.below(48) as usize;
        let load = Load::start(&stage.nodes[0].export, &history, seed, depth);
        wait_for_writes(&history, 50 + rng.below(200) as usize);
        let events = stage.nodes[0].events();
        stage.cable.as_ref().unwrap().cut();
        // What is under way now is answered once the peer is given up; a little more follows. Little
        // enough that it does not cover up what was under way.
        load.finish();
        for node in &stage.nodes {
            node.wait("the peer is lost", |s| {
                s["peers"][0]["connection"] != "Connected"
            });
        }
        let count = 50 + rng.below(200) as usize;
        Load::burst(&stage.nodes[0].export, &history, seed + 1, count);
        let missed = stage.nodes[0].status();
        let missed = missed["peers"][0]["volumes"][0]["out_of_sync"]
            .as_u64()
            .unwrap();
        assert!(missed > 0, "writes were missed");
        stage.cable.as_ref().unwrap().mend();
        events.wait("the resync", |e| {
            e["kind"] == "replication" && e["to"] == "SyncSource"
        });
        Load::burst(&stage.nodes[0].export, &history, seed + 2, 20);
        stage.wait_in_sync();
        let all = events.lines();
        let starts = all.iter().filter(|e| e["to"] == "SyncSource");
        assert_eq!(starts.count(), 1, "one resync: {all:#?}");
        assert!(missed <= 33 << 20, "not the whole disk: {missed}");
        let content = stage.stop_and_compare();
        let written = content.len().min(32 << 20);
        history.lock().unwrap().judge_blocks(&content[..written]);
    });
}

/// The cable is pulled, and the Primary dies before it has given its peer up: what it confirmed until
/// then, under B and C, the survivor has.
#[test]
fn the_primary_dies_before_it_knows_that_the_cable_is_pulled() {
    each_seed(|seed| {
        let mut rng = Rng(seed ^ 0xdead);
        let mut plan = Plan::seeded(seed);
        plan.namespaces = true;
        plan.net = IMPATIENT.into();
        plan.tmpfs = true;
        let mut stage = Stage::in_sync(plan);
        let size = stage.nodes[0].data_size();
        let history = History::new(seed, size);
        let depth = 1 + rng.below(48) as usize;
        let load = Load::start(&stage.nodes[0].export, &history, seed, depth);
        wait_for_writes(&history, 50 + rng.below(200) as usize);
        stage.cable.as_ref().unwrap().cut();
        // Time for a wrong confirmation to show; the peer is given up only after seconds.
        std::thread::sleep(Duration::from_millis(200 + rng.below(300)));
        assert_eq!(stage.nodes[0].ok(&["cstate", "r0"]).trim(), "Connected");
        stage.nodes[0].kill();
        load.broken();
        stage.takes_over(1, &history);
        stage.cable.as_ref().unwrap().mend();
        stage.nodes[0].start();
        stage.wait_in_sync();
        let content = stage.stop_and_compare();
        history.lock().unwrap().judge_blocks(&content);
    });
}

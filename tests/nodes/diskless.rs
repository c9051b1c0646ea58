//! A Primary whose disk fails, or is detached, under load. Invariants: clients do not notice, before,
//! during or after the resync of the disk that comes back; both disks end up equal and hold every
//! confirmed write.

use crate::harness::faults::break_writes;
use crate::harness::load::{History, Load, wait_for_writes};
use crate::harness::nbd::{Client, WRITE};
use crate::harness::seeds::{Rng, each_seed, some_seeds};
use crate::harness::stage::{Plan, Stage};
use serde_json::Value;
use std::sync::{Arc, Mutex};

fn disk_is(state: &'static str) -> impl Fn(&Value) -> bool {
    move |s| s["volumes"][0]["disk"] == state
}

/// The load ends: clients always had a current copy, both disks are equal and hold what was confirmed.
fn finish(mut stage: Stage, load: Load, history: &Arc<Mutex<History>>) {
    load.finish();
    stage.wait_in_sync();
    assert!(!stage.nodes[0].log_text().contains("no current copy"));
    let content = stage.stop_and_compare();
    history.lock().unwrap().judge_blocks(&content);
}

#[test]
fn the_disk_of_the_primary_fails_under_load() {
    each_seed(|seed| {
        let mut rng = Rng(seed);
        let stage = Stage::in_sync(Plan::seeded(seed));
        let size = stage.nodes[0].data_size();
        let history = History::new(seed, size);
        let depth = 1 + rng.below(32) as usize;
        let load = Load::start(&stage.nodes[0].export, &history, seed, depth);
        wait_for_writes(&history, 50 + rng.below(200) as usize);
        break_writes(stage.nodes[0].pid(), Some(1 << 20));
        stage.nodes[0].wait("its disk is out of use", disk_is("Diskless"));
        wait_for_writes(&history, 50 + rng.below(100) as usize);
        let mut client = Client::unix(&stage.nodes[0].export).expect("it serves");
        client.read(size / 2, 65536).expect("reads from the peer");
        client.disconnect();
        break_writes(stage.nodes[0].pid(), None);
        stage.nodes[0].ok(&["attach", "r0"]);
        wait_for_writes(&history, 50 + rng.below(100) as usize);
        stage.wait_in_sync();
        wait_for_writes(&history, 50);
        finish(stage, load, &history);
    });
}

#[test]
fn disks_are_detached_and_attached_under_load() {
    each_seed(|seed| {
        let mut rng = Rng(seed);
        let stage = Stage::in_sync(Plan::seeded(seed));
        let size = stage.nodes[0].data_size();
        let history = History::new(seed, size);
        let load = Load::start(&stage.nodes[0].export, &history, seed, 16);
        for node in [0, 1, 0] {
            wait_for_writes(&history, 50 + rng.below(100) as usize);
            stage.nodes[node].ok(&["detach", "r0"]);
            stage.nodes[node].wait("it has no disk", disk_is("Diskless"));
            wait_for_writes(&history, 50 + rng.below(100) as usize);
            if node == 0 {
                let text = stage.nodes[1].refused(12, &["detach", "r0"]);
                assert!(text.contains("twinblk attach r0"), "{text}");
            }
            stage.nodes[node].ok(&["attach", "r0"]);
            stage.wait_in_sync();
        }
        finish(stage, load, &history);
    });
}

fn passing_on(mut plan: Plan) -> Plan {
    plan.more = "[disk]\non-io-error = \"pass-on\"\n".into();
    plan
}

/// No `attach` is ordered.
#[test]
fn with_pass_on_a_disk_that_failed_comes_back_by_itself() {
    some_seeds(4, |seed| {
        let mut rng = Rng(seed);
        let stage = Stage::in_sync(passing_on(Plan::seeded(seed)));
        let size = stage.nodes[0].data_size();
        let history = History::new(seed, size);
        let load = Load::start(&stage.nodes[0].export, &history, seed, 8);
        wait_for_writes(&history, 50 + rng.below(200) as usize);
        break_writes(stage.nodes[0].pid(), Some(1 << 20));
        let told = stage.nodes[0].wait("its disk is out of use", disk_is("Diskless"));
        assert!(told["volumes"][0]["attach_in_seconds"].is_u64(), "{told:#}");
        let why = stage.nodes[0].ok(&["why", "r0"]);
        assert!(why.contains("attached again by itself"), "{why}");
        break_writes(stage.nodes[0].pid(), None);
        stage.wait_in_sync();
        wait_for_writes(&history, 50);
        finish(stage, load, &history);
    });
}

/// Metadata can be written, and some data cannot.
#[test]
fn with_pass_on_a_bad_block_of_the_only_copy_costs_one_answer() {
    let mut plan = passing_on(Plan::new("C"));
    plan.external_meta = true;
    let mut stage = Stage::in_sync(plan);
    stage.nodes[1].ok(&["down", "r0"]);
    let mut client = Client::unix(&stage.nodes[0].export).expect("it serves");
    let block = vec![7; 65536];
    client.write(0, &block).expect("the disk is well");
    break_writes(stage.nodes[0].pid(), Some(8 << 20));
    let error = client.write(16 << 20, &block).expect_err("it failed");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    client.write(65536, &block).expect("elsewhere it works");
    assert_eq!(client.read(0, 65536).expect("it reads"), block);
    let status = stage.nodes[0].status();
    assert_eq!(status["volumes"][0]["disk"], "UpToDate");
    assert_eq!(status["volumes"][0]["errors_passed_on"], 1);
    let text = stage.nodes[0].ok(&["status", "r0"]);
    assert!(
        text.contains("1 I/O error(s) were given to clients"),
        "{text}"
    );
    let why = stage.nodes[0].ok(&["why", "r0"]);
    assert!(
        why.contains("cannot read or write all of its blocks"),
        "{why}"
    );
    break_writes(stage.nodes[0].pid(), None);
    client.disconnect();
    stage.nodes[1].ok(&["up", "r0"]);
    stage.wait_in_sync();
    stage.stop_and_compare();
}

/// Its requests wait for a copy, and nobody would read the answers.
#[test]
fn a_client_that_hung_up_does_not_hold_the_export() {
    let mut plan = Plan::new("C");
    plan.more = "[options]\non-no-data-accessible = \"suspend-io\"\n".into();
    let mut stage = Stage::in_sync(plan);
    stage.nodes[0].ok(&["detach", "r0"]);
    stage.nodes[1].kill();
    stage.nodes[0].wait("I/O waits for a copy", |s| {
        s["suspended_for"][0] == "no-data"
    });
    let mut client = Client::unix(&stage.nodes[0].export).expect("it serves");
    client
        .send(WRITE, 0, 7, 0, 4096, &[7; 4096])
        .expect("it is sent");
    stage.nodes[0].wait("the client is there", |s| {
        s["open_clients"].as_array().is_some_and(|c| c.len() == 1)
    });
    stage.nodes[0].refused(12, &["secondary", "r0"]);
    drop(client);
    stage.nodes[0].wait("the client is gone", |s| {
        s["open_clients"].as_array().is_some_and(Vec::is_empty)
    });
    stage.nodes[0].ok(&["secondary", "r0"]);
}

//! Both are promoted while apart. Invariants: on reconnect both say split brain and stay apart; nothing
//! is overwritten; after `connect --discard-my-data` the victim is an exact copy of the other.

use super::link_cut::IMPATIENT;
use crate::harness::load::{History, Load, wait_for_writes};
use crate::harness::nbd::Client;
use crate::harness::seeds::{Rng, each_seed};
use crate::harness::stage::{Plan, Stage};

#[test]
fn both_are_promoted_while_apart() {
    each_seed(|seed| {
        let mut rng = Rng(seed ^ 0x5b);
        let mut plan = Plan::seeded(seed);
        plan.namespaces = true;
        plan.net = IMPATIENT.into();
        let mut stage = Stage::in_sync(plan);
        let size = stage.nodes[0].data_size();
        let history = History::new(seed, size);
        let load = Load::start(&stage.nodes[0].export, &history, seed, 8);
        wait_for_writes(&history, 50);
        stage.cable.as_ref().unwrap().cut();
        for node in &stage.nodes {
            node.wait("the peer is lost", |s| {
                s["peers"][0]["connection"] != "Connected"
            });
        }
        let bravo = &stage.nodes[1];
        bravo.ok(&["primary", "r0"]);
        wait_for_writes(&history, 20);
        let mut client = Client::unix(&bravo.export).expect("bravo serves");
        let mine = vec![0xb5; 4096 * (1 + rng.below(16) as usize)];
        client
            .write(4096 * rng.below(1000), &mine)
            .expect("bravo takes it");
        client.flush().expect("flush");
        let theirs = client.read_all().expect("reads");
        client.disconnect();

        stage.cable.as_ref().unwrap().mend();
        for node in &stage.nodes {
            let status = node.wait_connection("StandAlone");
            let reason = status["peers"][0]["reason"].as_str().unwrap();
            assert!(reason.contains("split brain"), "{status:#}");
            assert_eq!(status["role"], "Primary");
        }
        // The client of alpha goes on all the while.
        wait_for_writes(&history, 20);
        load.finish();
        let mut alpha = Client::unix(&stage.nodes[0].export).expect("alpha serves");
        let content = alpha.read_all().expect("reads");
        history.lock().unwrap().judge_blocks(&content);
        let mut client = Client::unix(&stage.nodes[1].export).expect("bravo serves");
        assert!(
            client.read_all().expect("reads") == theirs,
            "bravo's data are as they were"
        );
        client.disconnect();
        alpha.disconnect();

        // The way out, with either of them as the victim.
        let victim = rng.below(2) as usize;
        let winner = 1 - victim;
        let refusal = stage.nodes[victim].refused(11, &["connect", "r0", "--discard-my-data"]);
        assert!(refusal.contains("Primary"), "{refusal}");
        stage.nodes[victim].ok(&["secondary", "r0"]);
        let told = stage.nodes[victim].ok(&["connect", "r0", "--discard-my-data"]);
        assert!(
            told.contains("bytes changed here will be overwritten"),
            "{told}"
        );
        stage.nodes[winner].ok(&["connect", "r0"]);
        stage.wait_in_sync();
        let equal = stage.stop_and_compare();
        let kept = if winner == 0 { content } else { theirs };
        assert!(equal == kept, "the winner's data are on both disks");
    });
}

//! Online verify with real daemons. Invariants: a byte that changed behind the daemons' backs is found
//! in a device in use, and nothing else; repair mends it from the Primary.

use crate::harness::load::{History, Load};
use crate::harness::nbd::Client;
use crate::harness::seeds;
use crate::harness::stage::{Plan, Stage};
use serde_json::Value;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

const MIB: u64 = 1 << 20;

/// Past the page cache, as the daemon itself reads.
fn rot(stage: &Stage, node: usize, offset: u64) {
    const O_DIRECT: i32 = 0o40000;
    let mut block = vec![0u8; 3 * 4096];
    let start = block.as_ptr().align_offset(4096);
    let disk = std::fs::File::options()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(&stage.nodes[node].disk)
        .expect("its disk");
    let block = &mut block[start..start + 4096];
    let at = offset / 4096 * 4096;
    disk.read_exact_at(block, at).expect("reads");
    block[(offset % 4096) as usize] ^= 1;
    disk.write_all_at(block, at).expect("writes");
}

fn verified(status: &Value) -> String {
    let text = &status["peers"][0]["volumes"][0]["verified"];
    text.as_str().unwrap_or_default().to_owned()
}

/// Waits for the end and answers what came of it on both nodes.
fn outcome(stage: &Stage) -> [String; 2] {
    [0, 1].map(|n| {
        let over =
            |s: &Value| !verified(s).is_empty() && s["peers"][0]["volumes"][0]["verify"].is_null();
        verified(&stage.nodes[n].wait("the verify is over", over))
    })
}

#[test]
fn verify_finds_a_byte_that_changed_and_repair_mends_it() {
    seeds::each_seed(|seed| {
        let mut stage = Stage::in_sync(Plan::seeded(seed));
        let mut client = Client::unix(&stage.nodes[0].export).expect("it serves");
        client.write(4 * MIB, &[7; 65536]).expect("writes");
        client.flush().expect("flush");
        client.disconnect();
        let ordered = (seed % 2) as usize;
        let text = stage.nodes[ordered].ok(&["verify", "r0"]);
        assert!(text.contains("verify with"), "{text}");
        for text in outcome(&stage) {
            assert!(text.contains("no difference"), "{text}");
        }
        rot(&stage, 1, 4 * MIB + 5000);
        rot(&stage, 1, 20 * MIB + 1);
        let events = stage.nodes[0].events();
        stage.nodes[ordered].ok(&["verify", "r0"]);
        events.wait("a difference", |e| {
            let cause = e["cause"].as_str().unwrap_or_default();
            cause.contains(&format!("4096 bytes at byte {};", 4 * MIB + 4096))
        });
        for text in outcome(&stage) {
            assert!(text.contains(" 8192 bytes that differ"), "{text}");
        }
        for node in &stage.nodes {
            let text = node.ok(&["status", "r0"]);
            assert!(text.contains("oos:8.0KiB"), "{text}");
            assert!(text.contains("known to differ"), "{text}");
        }
        let text = stage.nodes[0].refused(11, &["wait-sync", "r0", "--timeout", "60"]);
        assert!(text.contains("twinblk disconnect r0"), "{text}");
        stage.nodes[ordered].ok(&["verify", "r0", "--repair"]);
        stage.nodes[0].wait("it is mended", |s| {
            verified(s).contains("repaired") && s["peers"][0]["volumes"][0]["out_of_sync"] == 0
        });
        stage.wait_in_sync();
        let content = stage.stop_and_compare();
        assert!(content[4 << 20..][..65536].iter().all(|&b| b == 7));
        assert_eq!(content[20 << 20 | 1], 0);
    });
}

#[test]
fn writes_meanwhile_are_no_difference_and_a_stop_tells_where_it_was() {
    seeds::each_seed(|seed| {
        let mut stage = Stage::in_sync(Plan::seeded(seed));
        let history = History::new(seed, stage.nodes[0].data_size());
        let load = Load::start(&stage.nodes[0].export, &history, seed, 16);
        for round in 0..3 {
            stage.nodes[round % 2].ok(&["verify", "r0"]);
            for text in outcome(&stage) {
                assert!(text.contains("finished: "), "{text}");
                assert!(text.contains("no difference"), "{text}");
            }
        }
        load.finish();
        let text = stage.config_text() + "\n[disk]\nc-max-rate = \"256K\"\n";
        stage.configure(&text);
        for node in &stage.nodes {
            node.ok(&["adjust", "r0"]);
        }
        stage.nodes[0].ok(&["verify", "r0"]);
        let text = stage.nodes[1].refused(11, &["verify", "r0"]);
        assert!(text.contains("verify --stop r0"), "{text}");
        let text = stage.nodes[1].ok(&["verify", "--stop", "r0"]);
        assert!(text.contains("bytes compared"), "{text}");
        for text in outcome(&stage) {
            assert!(text.contains("stopped by an administrator"), "{text}");
        }
        stage.wait_in_sync();
        stage.stop_and_compare();
    });
}

//! The commands of an administrator, one after the other, on a real pair.

use crate::harness::nbd::Client;
use crate::harness::seeds::Rng;
use crate::harness::stage::{Plan, Stage};
use serde_json::Value;
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn write_all(stage: &Stage, node: usize, byte: u8) {
    let mut client = Client::unix(&stage.nodes[node].export).expect("it serves");
    for at in 0..client.info.size / MIB {
        client
            .write(at * MIB, &vec![byte; MIB as usize])
            .expect("writes");
    }
    client.flush().expect("flush");
    client.disconnect();
    stage.nodes[node].wait("nobody holds it", |s| {
        s["open_clients"] == serde_json::json!([])
    });
}

#[test]
fn up_answers_when_the_disk_can_be_used() {
    let stage = Stage::in_sync(Plan::new("C"));
    stage.nodes[0].ok(&["secondary", "r0"]);
    for _ in 0..20 {
        stage.nodes[0].ok(&["down", "r0"]);
        stage.nodes[0].ok(&["up", "r0"]);
        let disk = &stage.nodes[0].status()["volumes"][0]["disk"];
        assert_eq!(disk, "UpToDate");
    }
}

#[test]
fn fresh_disks_can_be_declared_equal() {
    let mut stage = Stage::new(Plan::new("C"));
    for node in &mut stage.nodes {
        node.ok(&["create-md", "r0"]);
        node.start();
        node.ok(&["up", "r0"]);
    }
    stage.nodes[0].ok(&["wait-connect", "r0", "--timeout", "60"]);
    assert_eq!(
        stage.nodes[0].ok(&["dstate", "r0"]).trim(),
        "Inconsistent/Inconsistent"
    );
    let text = stage.nodes[0].refused(17, &["primary", "r0"]);
    assert!(text.contains("--force"), "the way out: {text}");
    let text = stage.nodes[0].refused(17, &["wait-sync", "r0", "--timeout", "60"]);
    assert!(text.contains("UpToDate"), "{text}");
    let events = stage.nodes[0].events();
    stage.nodes[0].ok(&["new-current-uuid", "r0", "--clear-bitmap"]);
    stage.wait_in_sync();
    stage.nodes[1].ok(&["primary", "r0"]);
    events.wait("the new Primary", |e| e["to"] == "Primary");
    let all = events.lines();
    assert!(
        !all.iter().any(|e| e["to"] == "SyncSource"),
        "no sync: {all:#?}"
    );
    write_all(&stage, 1, 7);
    stage.wait_in_sync();
    let content = stage.stop_and_compare();
    let whole = content.len() as u64 / MIB * MIB;
    assert!(whole > 0 && content[..whole as usize].iter().all(|&b| b == 7));
}

#[test]
fn either_side_can_be_declared_worthless() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    write_all(&stage, 0, 1);
    let size = stage.nodes[0].data_size();
    // Damage bravo's copy behind its back, as a bad controller would.
    stage.nodes[1].ok(&["down", "r0"]);
    use std::os::unix::fs::FileExt;
    let disk = std::fs::File::options()
        .write(true)
        .open(&stage.nodes[1].disk)
        .unwrap();
    disk.write_all_at(&vec![0xbd; 3 << 20], MIB).unwrap();
    stage.nodes[1].ok(&["up", "r0"]);
    stage.wait_in_sync();
    assert_ne!(
        stage.nodes[0].disk_content(size),
        stage.nodes[1].disk_content(size)
    );
    stage.nodes[1].ok(&["invalidate", "r0"]);
    stage.nodes[1].ok(&["wait-sync", "r0", "--timeout", "60"]);
    stage.wait_in_sync();
    assert!(stage.nodes[0].disk_content(size) == stage.nodes[1].disk_content(size));
    disk.write_all_at(&vec![0xbd; 3 << 20], MIB).unwrap();
    stage.nodes[0].ok(&["invalidate-remote", "r0"]);
    stage.nodes[0].ok(&["wait-sync", "r0", "--timeout", "60"]);
    stage.wait_in_sync();
    // The Primary's own data are not for throwing away.
    let text = stage.nodes[0].refused(11, &["invalidate", "r0"]);
    assert!(text.contains("Primary"), "{text}");
    let text = stage.nodes[1].refused(13, &["invalidate-remote", "r0"]);
    assert!(text.contains("Primary"), "{text}");
    stage.stop_and_compare();
}

#[test]
fn a_dry_run_tells_decision_rule_and_amount_and_does_nothing() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    stage.nodes[1].ok(&["disconnect", "r0"]);
    stage.nodes[0].wait("apart", |s| s["peers"][0]["connection"] != "Connected");
    let mut client = Client::unix(&stage.nodes[0].export).expect("alpha serves");
    client.write(8 * MIB, &vec![4; 5 * 65536]).expect("writes");
    client.disconnect();
    let before = stage.nodes[1].disk_content(16 * MIB);
    let text = stage.nodes[1].ok(&["connect", "r0", "--dry-run"]);
    assert!(
        text.contains("alpha would overwrite bravo: 327680 bytes"),
        "{text}"
    );
    assert!(text.contains("rule: bitmap"), "{text}");
    assert_eq!(stage.nodes[1].ok(&["cstate", "r0"]).trim(), "StandAlone");
    assert!(stage.nodes[1].disk_content(16 * MIB) == before);
    stage.nodes[1].ok(&["connect", "r0"]);
    stage.wait_in_sync();
    stage.stop_and_compare();
}

#[test]
fn the_same_is_told_by_status_json_and_words() {
    let stage = Stage::in_sync(Plan::new("B"));
    let text = stage.nodes[0].ok(&["status"]);
    for word in [
        "r0 role:Primary",
        "disk:UpToDate",
        "bravo role:Secondary",
        "Established",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let all: Value = serde_json::from_str(&stage.nodes[0].ok(&["status", "--json"])).unwrap();
    let r0 = &all[0];
    assert_eq!(r0["role"], "Primary");
    assert_eq!(r0["peers"][0]["name"], "bravo");
    assert!(
        r0["volumes"][0]["disk_engine"]
            .as_str()
            .unwrap()
            .contains("ring"),
        "{r0:#}"
    );
    let dump = stage.nodes[0].ok(&["dump", "r0"]);
    assert!(
        dump.contains("protocol = \"B\"") && !dump.contains("swordfish"),
        "{dump}"
    );
    let metadata = stage.nodes[0].ok(&["dump-md", "r0", "--json"]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    assert_eq!(metadata[0]["in_use"], true);
    assert_eq!(
        metadata[0]["metadata"]["current_uuid"],
        r0["volumes"][0]["current_uuid"]
    );
}

#[test]
fn adjust_applies_what_changed() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    assert!(stage.nodes[0].ok(&["adjust", "r0"]).contains("nothing"));
    let rate = stage.config_text() + "\n[disk]\nc-max-rate = \"20M\"\n";
    stage.configure(&rate);
    let text = stage.nodes[0].ok(&["adjust", "r0", "--dry-run"]);
    assert!(text.contains("c-max-rate"), "{text}");
    let text = stage.nodes[0].ok(&["adjust", "r0"]);
    assert!(text.contains("c-max-rate"), "{text}");
    assert!(stage.nodes[0].ok(&["dump", "r0"]).contains("20M"));
    // The protocol takes a new connection, which adjust makes.
    stage.configure(&rate.replace("protocol = \"C\"", "protocol = \"A\""));
    stage.nodes[1].ok(&["adjust", "r0"]);
    let text = stage.nodes[0].ok(&["adjust", "r0"]);
    assert!(text.contains("protocol"), "{text}");
    for node in &stage.nodes {
        node.ok(&["connect", "r0"]);
    }
    stage.wait_in_sync();
    write_all(&stage, 0, 3);
    // A disk cannot change under a running resource.
    let moved = stage.config_text().replace("alpha.img", "other.img");
    stage.configure(&moved);
    let text = stage.nodes[0].refused(11, &["adjust", "r0"]);
    assert!(text.contains("disk") && text.contains("down"), "{text}");
    stage.configure(&stage.config_text());
    stage.stop_and_compare();
}

#[test]
fn a_daemon_that_is_restarted_brings_back_what_was_up() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    write_all(&stage, 0, 1);
    for n in [0, 1] {
        stage.nodes[n].terminate();
        stage.nodes[n].start();
    }
    stage.nodes[0].ok(&["wait-connect", "r0", "--timeout", "60"]);
    stage.wait_in_sync();
    // What was taken down stays down.
    stage.nodes[1].ok(&["down", "r0"]);
    stage.nodes[1].terminate();
    stage.nodes[1].start();
    let text = stage.nodes[1].refused(10, &["role", "r0"]);
    assert!(text.contains("twinblk up r0"), "{text}");
    stage.nodes[1].ok(&["up", "r0"]);
    stage.wait_in_sync();
    stage.stop_and_compare();
}

/// Who gives an order and goes away, or kills the command, leaves no half-done thing behind.
#[test]
fn an_order_whose_giver_goes_away_is_carried_out() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    let mut random = Rng(7);
    for _ in 0..20 {
        let node = &stage.nodes[1];
        for verb in ["down", "up"] {
            let mut order = node.command(&[verb, "r0"]).spawn().expect("it runs");
            std::thread::sleep(Duration::from_millis(random.below(30)));
            let _ = order.kill();
            order.wait().expect("a child");
        }
        // Whatever came of these two, the next orders find a state they can work with.
        node.ok(&["down", "r0"]);
        node.ok(&["up", "r0"]);
    }
    stage.wait_in_sync();
    stage.stop_and_compare();
}

/// A resource that could not be brought back is not forgotten: it comes up when it can.
#[test]
fn what_could_not_be_brought_back_comes_back_as_soon_as_it_can() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    let (disk, away) = (stage.nodes[1].disk.clone(), stage.path().join("away"));
    stage.nodes[1].terminate();
    std::fs::rename(&disk, &away).unwrap();
    // Also the next daemon knows of it.
    for _ in 0..2 {
        stage.nodes[1].start();
        stage.nodes[1].wait("says why it is not up, and what comes of it", |s| {
            let why = s["suspended"].as_str().unwrap_or_default();
            why.contains("bravo.img") && why.contains("tried again")
        });
        let text = stage.nodes[1].refused(10, &["role", "r0"]);
        assert!(text.contains("bravo.img"), "{text}");
        stage.nodes[1].terminate();
    }
    stage.nodes[1].start();
    std::fs::rename(&away, &disk).unwrap();
    stage.wait_in_sync();
    stage.stop_and_compare();
}

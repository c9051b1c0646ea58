//! Split brains of real daemons that are resolved by policy, and what is saved of the copy that is given
//! up. Invariants: both disks end up with exactly what the node has that the policy keeps; the saved file
//! holds exactly what the other had, and nothing is overwritten when it cannot be written.

use super::link_cut::IMPATIENT;
use crate::harness::nbd::Client;
use crate::harness::node::Node;
use crate::harness::seeds::Rng;
use crate::harness::stage::{Plan, Stage};
use serde_json::Value;
use std::path::Path;

const BLOCK: usize = 4096;

/// What each node had when the two were parted.
struct Parted {
    stage: Stage,
    had: [Vec<u8>; 2],
}

fn write_blocks(node: &Node, rng: &mut Rng, count: u64, byte: u8) -> Vec<u8> {
    let mut client = Client::unix(&node.export).expect("it serves");
    for _ in 0..count {
        let at = rng.below(client.info.size / BLOCK as u64) * BLOCK as u64;
        client.write(at, &[byte; BLOCK]).expect("it takes it");
    }
    client.flush().expect("flush");
    let content = client.read_all().expect("reads");
    client.disconnect();
    content
}

/// Alpha is Primary when the cable is cut, bravo is promoted then; alpha changes less.
fn parted(seed: u64, policies: &str) -> Parted {
    let mut plan = Plan::seeded(seed);
    plan.namespaces = true;
    plan.net = format!("{IMPATIENT}{policies}\n");
    let stage = Stage::in_sync(plan);
    let mut rng = Rng(seed ^ 0x5b0);
    write_blocks(&stage.nodes[0], &mut rng, 100, 0x11);
    stage.cable.as_ref().unwrap().cut();
    for node in &stage.nodes {
        node.wait("the peer is lost", |s| {
            s["peers"][0]["connection"] != "Connected"
        });
    }
    stage.nodes[1].ok(&["primary", "r0"]);
    let alpha = write_blocks(&stage.nodes[0], &mut rng, 10, 0xaa);
    let bravo = write_blocks(&stage.nodes[1], &mut rng, 200, 0xbb);
    Parted {
        stage,
        had: [alpha, bravo],
    }
}

impl Parted {
    fn demote(&self, nodes: &[usize]) {
        for &n in nodes {
            self.stage.nodes[n].ok(&["secondary", "r0"]);
        }
    }

    fn meet(&self) {
        self.stage.cable.as_ref().unwrap().mend();
    }

    fn expect_winner(mut self, winner: usize) {
        self.stage.wait_in_sync();
        let equal = self.stage.stop_and_compare();
        assert!(equal == self.had[winner], "node {winner} was to be kept");
    }
}

#[test]
fn each_policy_without_a_primary() {
    // Alpha was Primary when they parted, and has changed less.
    let rows = [
        ("discard-younger-primary", 0),
        ("discard-older-primary", 1),
        ("discard-least-changes", 1),
        ("discard-node-bravo", 0),
    ];
    for (seed, (policy, winner)) in rows.into_iter().enumerate() {
        let parted = parted(seed as u64, &format!("after-sb-0pri = \"{policy}\""));
        parted.demote(&[0, 1]);
        parted.meet();
        parted.expect_winner(winner);
    }
}

#[test]
fn each_policy_with_one_primary() {
    let rows = [
        ("disconnect", "discard-secondary", 0),
        ("discard-younger-primary", "consensus", 0),
        ("discard-least-changes", "call-pri-lost-after-sb", 1),
        ("discard-least-changes", "violently-as0p", 1),
    ];
    for (seed, (zero, one, winner)) in rows.into_iter().enumerate() {
        let policies = format!("after-sb-0pri = \"{zero}\"\nafter-sb-1pri = \"{one}\"");
        let parted = parted(seed as u64, &policies);
        parted.demote(&[1]);
        parted.meet();
        parted.stage.nodes[winner].wait_connection("Connected");
        let role = if winner == 0 { "Primary" } else { "Secondary" };
        parted.stage.nodes[0].wait("its role", |s| s["role"] == role);
        parted.expect_winner(winner);
    }
}

#[test]
fn a_client_of_a_primary_that_is_given_up_violently_gets_errors() {
    let policies =
        "after-sb-0pri = \"discard-younger-primary\"\nafter-sb-2pri = \"violently-as0p\"";
    let parted = parted(3, policies);
    let mut client = Client::unix(&parted.stage.nodes[1].export).expect("bravo serves");
    client.read(0, BLOCK).expect("it reads");
    parted.meet();
    parted.stage.nodes[1].wait("bravo is demoted", |s| s["role"] == "Secondary");
    assert!(client.read(0, BLOCK).is_err(), "it is not served any more");
    parted.stage.nodes[0].wait("alpha serves on", |s| s["role"] == "Primary");
    parted.expect_winner(0);
}

#[test]
fn a_primary_in_use_is_not_given_up_and_both_stand_alone() {
    let policies =
        "after-sb-0pri = \"discard-younger-primary\"\nafter-sb-2pri = \"call-pri-lost-after-sb\"";
    let parted = parted(4, policies);
    let mut client = Client::unix(&parted.stage.nodes[1].export).expect("bravo serves");
    parted.meet();
    for node in &parted.stage.nodes {
        let status = node.wait_connection("StandAlone");
        let split = &status["peers"][0]["split_brain"]["volumes"][0];
        let changed = |side: &str| split[side]["changed"].as_u64().expect("told");
        assert!(changed("here") >= BLOCK as u64, "{status:#}");
        assert!(changed("there") >= BLOCK as u64, "{status:#}");
        let alpha = if node.name == "alpha" {
            "here"
        } else {
            "there"
        };
        assert_eq!(split[alpha]["primary_when_parted"], true, "{status:#}");
        let told = node.ok(&["status", "r0"]);
        assert!(told.contains("was Primary when they parted"), "{told}");
    }
    let content = client.read_all().expect("it is served");
    assert!(content == parted.had[1], "and has its data");
    client.disconnect();
}

/// Only a forced promotion of an Outdated copy parts two nodes of which one has changed nothing.
#[test]
fn zero_changes_are_given_up_and_one_is_not() {
    for changes in [0, 5] {
        let mut plan = Plan::seeded(7);
        plan.net = "connect-int = 1\nafter-sb-0pri = \"discard-zero-changes\"\n".into();
        let stage = Stage::in_sync(plan);
        let mut rng = Rng(0x2e0);
        write_blocks(&stage.nodes[0], &mut rng, 100, 0x11);
        stage.nodes[0].ok(&["disconnect", "r0"]);
        let alpha = write_blocks(&stage.nodes[0], &mut rng, 10, 0xaa);
        stage.nodes[1].ok(&["primary", "--force", "r0"]);
        let bravo = write_blocks(&stage.nodes[1], &mut rng, changes, 0xbb);
        let parted = Parted {
            stage,
            had: [alpha, bravo],
        };
        parted.demote(&[0, 1]);
        // Bravo, which was left, tries all the while.
        parted.stage.nodes[0].ok(&["connect", "r0"]);
        if changes == 0 {
            parted.expect_winner(0);
            continue;
        }
        for (node, had) in parted.stage.nodes.iter().zip(&parted.had) {
            let status = node.wait("it stands alone", |s| {
                let peer = &s["peers"][0];
                peer["connection"] == "StandAlone" && !peer["split_brain"].is_null()
            });
            assert_eq!(status["volumes"][0]["disk"], "UpToDate", "{status:#}");
            let mut content = node.disk_content(node.data_size());
            content.truncate(had.len());
            assert!(content == *had, "{} has what it had", node.name);
        }
    }
}

/// Bravo is promoted while alpha, which has gone on, is away: what it has is old, and it is in use.
fn in_conflict(seed: u64, conflict: &str, more: &str) -> Parted {
    let mut plan = Plan::seeded(seed);
    plan.namespaces = true;
    plan.net = format!("{IMPATIENT}rr-conflict = \"{conflict}\"\n");
    plan.more = more.to_owned();
    let stage = Stage::in_sync(plan);
    let mut rng = Rng(seed ^ 0xc0f);
    let bravo = write_blocks(&stage.nodes[0], &mut rng, 100, 0x11);
    stage.cable.as_ref().unwrap().cut();
    for node in &stage.nodes {
        node.wait("the peer is lost", |s| {
            s["peers"][0]["connection"] != "Connected"
        });
    }
    let alpha = write_blocks(&stage.nodes[0], &mut rng, 40, 0xaa);
    stage.nodes[0].ok(&["secondary", "r0"]);
    stage.nodes[1].ok(&["primary", "r0"]);
    Parted {
        stage,
        had: [alpha, bravo],
    }
}

#[test]
fn a_primary_that_is_to_be_overwritten_goes_by_rr_conflict() {
    for conflict in ["disconnect", "retry-connect"] {
        let parted = in_conflict(8, conflict, "");
        let mut client = Client::unix(&parted.stage.nodes[1].export).expect("bravo serves");
        parted.meet();
        let bravo = &parted.stage.nodes[1];
        bravo.wait("it is said", |s| {
            let reason = s["peers"][0]["reason"].as_str().unwrap_or_default();
            reason.contains("role-conflict")
        });
        let content = client.read_all().expect("it serves on");
        assert!(content == parted.had[1], "nothing was overwritten under it");
        client.disconnect();
        parted.demote(&[1]);
        if conflict == "disconnect" {
            for node in &parted.stage.nodes {
                node.wait_connection("StandAlone");
                node.ok(&["connect", "r0"]);
            }
        }
        parted.expect_winner(0);
    }
    // Whoever is not in use is demoted by itself.
    let parted = in_conflict(9, "call-pri-lost", "");
    parted.meet();
    parted.stage.nodes[1].wait("bravo is demoted", |s| s["role"] == "Secondary");
    parted.expect_winner(0);
}

#[test]
fn a_primary_in_use_is_lost_only_violently() {
    let told = tempfile::tempdir().expect("a directory");
    let file = told.path().join("pri-lost");
    let handler = format!("[handlers]\npri-lost = \"touch {}\"\n", file.display());
    let parted = in_conflict(10, "call-pri-lost", &handler);
    let bravo = &parted.stage.nodes[1];
    let events = bravo.events();
    let mut client = Client::unix(&bravo.export).expect("bravo serves");
    parted.meet();
    events.wait("the end of pri-lost", |e| {
        let cause = e["cause"].as_str().unwrap_or_default();
        e["kind"] == "handler" && cause.contains("pri-lost after")
    });
    assert!(file.exists(), "its handler has run");
    assert_eq!(bravo.wait_connection("StandAlone")["role"], "Primary");
    let content = client.read_all().expect("it is served");
    assert!(content == parted.had[1], "and nothing has changed under it");
    drop(parted);

    let parted = in_conflict(11, "violently", "");
    let mut client = Client::unix(&parted.stage.nodes[1].export).expect("bravo serves");
    client.read(0, BLOCK).expect("it reads");
    parted.meet();
    parted.stage.nodes[1].wait("bravo is demoted", |s| s["role"] == "Secondary");
    assert!(client.read(0, BLOCK).is_err(), "it is not served any more");
    parted.expect_winner(0);
}

// Saving.

fn discarded(node: &Node, args: &[&str]) -> String {
    let all: Vec<&str> = std::iter::once("discarded")
        .chain(args.iter().copied())
        .collect();
    node.ok(&all)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

/// With the file and a copy of the disk as it is now, the device is as the victim had it.
fn expect_saved(parted: &Parted, victim: usize, file: &Path) {
    let node = &parted.stage.nodes[victim];
    discarded(node, &["verify", text(file)]);
    let shown = discarded(node, &["show", text(file), "--list"]);
    assert!(shown.contains("given up:  bravo"), "{shown}");
    let image = parted.stage.path().join("image");
    let had = &parted.had[victim];
    std::fs::write(&image, &parted.had[1 - victim]).expect("a copy");
    discarded(node, &["extract", text(file), "--to", text(&image)]);
    let restored = std::fs::read(&image).expect("the image");
    assert!(restored == *had, "the device as {} had it", node.name);
    // Only what it had changed itself: less, and not the same.
    std::fs::write(&image, &parted.had[1 - victim]).expect("a copy");
    discarded(
        node,
        &["extract", text(file), "--own-only", "--to", text(&image)],
    );
    let own = std::fs::read(&image).expect("the image");
    assert!(own != *had && own != parted.had[1 - victim]);
    let differs = (0..had.len())
        .step_by(BLOCK)
        .find(|&at| had[at..at + BLOCK] != parted.had[1 - victim][at..at + BLOCK]);
    let at = differs.expect("they differ");
    let output = node.run(&[
        "discarded",
        "extract",
        text(file),
        "--offset",
        &at.to_string(),
        "--length",
        "4096",
    ]);
    assert!(output.stdout == had[at..at + BLOCK], "{output:?}");
}

#[test]
fn what_is_given_up_by_order_is_saved_first() {
    let parted = parted(5, "");
    parted.meet();
    for node in &parted.stage.nodes {
        node.wait_connection("StandAlone");
    }
    let [alpha, bravo] = &parted.stage.nodes;
    parted.demote(&[1]);
    let file = parted.stage.path().join("given-up");
    let order = |file: &Path| {
        let file = text(file).to_owned();
        [
            "connect",
            "r0",
            "--discard-my-data",
            "--save-discarded",
            &file,
        ]
        .map(str::to_owned)
    };
    let words = |all: &[String; 5]| all.each_ref().map(String::clone);
    let refused = |path: &Path| {
        let all = words(&order(path));
        bravo.refused(11, &all.each_ref().map(String::as_str))
    };
    std::fs::write(&file, "mine").expect("a file");
    assert!(refused(&file).contains("exists already"));
    std::fs::remove_file(&file).expect("removed");

    // A place where nothing can be written: nothing is overwritten either.
    let nowhere = parted.stage.path().join("nowhere/file");
    let all = order(&nowhere);
    bravo.ok(&all.each_ref().map(String::as_str));
    alpha.ok(&["connect", "r0"]);
    let status = bravo.wait("it cannot be saved", |s| {
        let reason = s["peers"][0]["reason"].as_str().unwrap_or_default();
        reason.contains("could not be saved")
    });
    assert_eq!(status["peers"][0]["connection"], "StandAlone", "{status:#}");
    assert_eq!(status["volumes"][0]["disk"], Value::from("UpToDate"));
    let size = bravo.data_size();
    let mut content = bravo.disk_content(size);
    content.truncate(parted.had[1].len());
    assert!(content == parted.had[1], "bravo's data are as they were");

    let all = order(&file);
    bravo.ok(&all.each_ref().map(String::as_str));
    alpha.ok(&["connect", "r0"]);
    parted.stage.wait_in_sync();
    expect_saved(&parted, 1, &file);
    parted.expect_winner(0);
}

#[test]
fn what_a_policy_gives_up_is_saved_in_the_directory() {
    let saved = tempfile::tempdir().expect("a directory");
    let policies = format!(
        "after-sb-0pri = \"discard-younger-primary\"\n[options]\nsave-discarded-dir = \"{}\"",
        saved.path().display()
    );
    let parted = parted(6, &policies);
    parted.demote(&[0, 1]);
    parted.meet();
    parted.stage.wait_in_sync();
    let files: Vec<_> = std::fs::read_dir(saved.path()).expect("there").collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let file = files[0].as_ref().expect("an entry").path();
    expect_saved(&parted, 1, &file);
    parted.expect_winner(0);
}

//! `hook`, as failover daemons call it: again and again, at the wrong time, several at once. It
//! promotes by data and by the peer's consent, never by being told to.

use crate::harness::nbd::Client;
use crate::harness::stage::{Plan, Stage};
use std::process::{Child, Stdio};

fn start(stage: &Stage, node: usize, args: &[&str]) -> Child {
    let mut command = stage.nodes[node].command(&[&["hook", "r0"], args].concat());
    command.stderr(Stdio::piped()).spawn().expect("it runs")
}

fn role(stage: &Stage, node: usize) -> String {
    stage.nodes[node].ok(&["role", "r0"]).trim().to_owned()
}

fn code(mut child: Child) -> i32 {
    child.wait().expect("it ends").code().expect("a code")
}

#[test]
fn up_and_down_may_be_repeated_and_status_tells() {
    let stage = Stage::in_sync(Plan::new("C"));
    let [alpha, bravo] = &stage.nodes;
    for _ in 0..3 {
        alpha.ok(&["hook", "r0", "up"]);
        assert_eq!(alpha.ok(&["hook", "r0", "status"]).trim(), "Primary");
    }
    let text = bravo.run(&["hook", "r0", "status"]);
    assert_eq!(text.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&text.stdout).trim(), "Secondary");
    assert!(text.stderr.is_empty(), "there is nothing to complain about");
    bravo.refused(11, &["hook", "r0", "up", "--timeout", "1"]);
    for _ in 0..3 {
        alpha.ok(&["hook", "r0", "down"]);
    }
    bravo.ok(&["hook", "r0", "up"]);
    assert_eq!(bravo.ok(&["hook", "r0", "score"]).trim(), "10000");
    bravo.ok(&["hook", "r0", "promotable"]);
    alpha.refused(1, &["hook", "all", "up"]);
}

#[test]
fn down_waits_for_who_holds_the_export_and_says_who() {
    let stage = Stage::in_sync(Plan::new("C"));
    let client = Client::unix(&stage.nodes[0].export).expect("it serves");
    let text = stage.nodes[0].refused(12, &["hook", "r0", "down", "--timeout", "1"]);
    assert!(text.contains("client"), "{text}");
    let waiting = start(&stage, 0, &["down", "--timeout", "60"]);
    client.disconnect();
    assert_eq!(code(waiting), 0);
    assert_eq!(role(&stage, 0), "Secondary");
}

#[test]
fn up_starts_what_is_down_and_waits_for_a_daemon_that_starts() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    stage.nodes[0].ok(&["down", "r0"]);
    let text = stage.nodes[0].run(&["hook", "r0", "status"]);
    assert_eq!(
        (text.status.code(), text.stdout.as_slice()),
        (Some(3), &b"down\n"[..])
    );
    stage.nodes[0].ok(&["hook", "r0", "up"]);
    assert_eq!(role(&stage, 0), "Primary");
    stage.nodes[0].terminate();
    let text = stage.nodes[0].run(&["hook", "r0", "status"]);
    assert_eq!(
        (text.status.code(), text.stdout.as_slice()),
        (Some(4), &b"unknown\n"[..])
    );
    stage.nodes[0].refused(20, &["hook", "r0", "up", "--timeout", "1"]);
    let waiting = start(&stage, 0, &["up", "--timeout", "60"]);
    stage.nodes[0].start();
    assert_eq!(code(waiting), 0);
    assert_eq!(role(&stage, 0), "Primary");
}

/// Who is told "no daemon" lets another node take over.
#[test]
fn a_daemon_that_hangs_is_not_taken_for_dead_and_nobody_waits_for_it() {
    let stage = Stage::in_sync(Plan::new("C"));
    let alpha = &stage.nodes[0];
    alpha.signal("STOP");
    for action in ["down", "up", "health", "promotable", "score"] {
        let text = alpha.refused(5, &["hook", "r0", action, "--timeout", "1"]);
        assert!(text.contains("did not answer"), "{action}: {text}");
    }
    let text = alpha.run(&["hook", "r0", "status", "--timeout", "1"]);
    assert_eq!(
        (text.status.code(), text.stdout.as_slice()),
        (Some(4), &b"unknown\n"[..])
    );
    alpha.signal("CONT");
    alpha.ok(&["hook", "r0", "down"]);
}

#[test]
fn stale_data_are_not_promoted_however_often_it_is_asked_for() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    // bravo is left behind on purpose, and knows it.
    stage.nodes[0].ok(&["disconnect", "r0"]);
    stage.nodes[0].kill();
    for _ in 0..3 {
        let text = stage.nodes[1].refused(17, &["hook", "r0", "up", "--wait-peer", "1"]);
        assert!(text.contains("Outdated"), "{text}");
    }
    stage.nodes[1].refused(17, &["hook", "r0", "promotable"]);
    assert_eq!(stage.nodes[1].ok(&["hook", "r0", "score"]).trim(), "none");
}

/// The classic split brain at boot: the address daemon says "master" to both, takes it back, says it
/// again. Whatever order the calls end in, there are never two Primaries, and the last word counts.
#[test]
fn a_flapping_daemon_on_both_nodes_makes_no_two_primaries() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    stage.nodes[0].ok(&["secondary", "r0"]);
    for round in 0..6 {
        for node in &mut stage.nodes {
            node.terminate();
        }
        // Called before the daemons are there, and while they look for one another.
        let mut calls: Vec<Child> = Vec::new();
        for _ in 0..3 {
            for node in 0..2 {
                calls.push(start(
                    &stage,
                    node,
                    &["up", "--timeout", "40", "--wait-peer", "30"],
                ));
                calls.push(start(&stage, node, &["down", "--timeout", "40"]));
            }
        }
        let last = round % 2;
        for node in &mut stage.nodes {
            node.start();
        }
        for call in calls {
            // Overtaken, refused or done: each ends.
            code(call);
        }
        assert_eq!(
            code(start(&stage, 1 - last, &["down", "--timeout", "40"])),
            0
        );
        assert_eq!(
            code(start(&stage, last, &["up", "--timeout", "40"])),
            0,
            "round {round}"
        );
        let roles = [role(&stage, 0), role(&stage, 1)];
        assert_eq!(roles[last], "Primary", "round {round}: {roles:?}");
        assert_eq!(roles[1 - last], "Secondary", "round {round}: {roles:?}");
        stage.wait_in_sync();
        stage.nodes[last].ok(&["secondary", "r0"]);
    }
    // Nobody wrote while parted: had two been Primary at once, or data been promoted that were not
    // current, there would be a split brain or a resync to tell of.
    for node in &stage.nodes {
        assert!(
            !node.log_text().contains("split brain"),
            "{}",
            node.log_text()
        );
    }
}

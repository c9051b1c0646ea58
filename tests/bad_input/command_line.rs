//! Commands that make no sense, and commands nobody can carry out.

use crate::harness::node::{TWINBLK, texts};
use crate::harness::stage::{Plan, Stage};
use std::process::Command;

#[test]
fn usage_errors_exit_with_1_and_show_the_right_way() {
    for args in [
        &[][..],
        &["prmary", "r0"],
        &["primary"],
        &["primary", "r0", "--froce"],
        &["wait-sync", "r0", "--timeout", "soon"],
        &["create-md", "r0", "--max-peers", "16"],
    ] {
        let output = Command::new(TWINBLK).args(args).output().expect("it runs");
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {out}{err}");
        assert!(
            err.contains("Usage") || err.contains("--help"),
            "{args:?}: {err}"
        );
    }
    let output = Command::new(TWINBLK)
        .arg("--help")
        .output()
        .expect("it runs");
    assert!(output.status.success());
}

#[test]
fn a_command_while_the_daemon_is_down() {
    let mut stage = Stage::new(Plan::new("C"));
    let verbs = [
        "up",
        "down",
        "status",
        "role",
        "primary",
        "secondary",
        "connect",
        "wait-sync",
    ];
    for verb in verbs {
        let text = stage.nodes[0].refused(20, &[verb, "r0"]);
        assert!(
            text.contains("daemon") && text.contains("alpha.ctl"),
            "{verb}: {text}"
        );
    }
    // The same when the daemon was killed and its socket still lies there.
    stage.nodes[0].ok(&["create-md", "r0"]);
    stage.nodes[0].start();
    stage.nodes[0].kill();
    let text = stage.nodes[0].refused(20, &["status", "r0"]);
    assert!(text.contains("daemon"), "{text}");
}

#[test]
fn a_resource_that_is_not_there_or_not_up() {
    let mut stage = Stage::new(Plan::new("C"));
    let text = stage.nodes[0].refused(10, &["create-md", "r1"]);
    assert!(text.contains("r1") && text.contains("r0"), "{text}");
    stage.nodes[0].start();
    let text = stage.nodes[0].refused(10, &["up", "r1"]);
    assert!(text.contains("r1") && text.contains("r0"), "{text}");
    for verb in [
        "primary",
        "secondary",
        "connect",
        "disconnect",
        "role",
        "wait-connect",
    ] {
        let text = stage.nodes[0].refused(10, &[verb, "r0"]);
        assert!(
            text.contains("not up") && text.contains("twinblk up r0"),
            "{verb}: {text}"
        );
    }
    // Without metadata there is nothing to bring up.
    let text = stage.nodes[0].refused(22, &["up", "r0"]);
    assert!(text.contains("create-md"), "{text}");
}

#[test]
fn waits_end_when_their_time_has_passed() {
    let mut stage = Stage::new(Plan::new("C"));
    stage.nodes[0].ok(&["create-md", "r0"]);
    stage.nodes[0].start();
    stage.nodes[0].ok(&["up", "r0"]);
    let text = stage.nodes[0].refused(5, &["wait-connect", "r0", "--timeout", "1"]);
    assert!(text.contains("bravo"), "says for whom: {text}");
    let text = stage.nodes[0].refused(5, &["wait-sync", "r0", "--timeout", "1"]);
    assert!(text.contains("bravo"), "says for whom: {text}");
}

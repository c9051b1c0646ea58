//! How a daemon ends when it is told to: in order; at once when it is told twice.

use crate::harness::stage::{Plan, Stage};
use crate::harness::wait_for;
use rustix::fs::{FlockOperation, flock};

/// Whether the daemon wrote this.
fn says(stage: &Stage, node: usize, text: &str) {
    let node = &stage.nodes[node];
    let found = || {
        let log = std::fs::read_to_string(&node.log).unwrap_or_default();
        log.contains(text).then_some(())
    };
    wait_for(text, found, || node.log_text());
}

#[test]
fn a_signal_while_resources_are_brought_back_ends_the_daemon_in_order() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    stage.nodes[1].terminate();
    // Somebody else has the disk: the daemon waits for it, and meanwhile answers.
    let disk = std::fs::File::open(&stage.nodes[1].disk).expect("the disk");
    flock(&disk, FlockOperation::LockExclusive).expect("a lock");
    stage.nodes[1].start();
    stage.nodes[1].terminate();
    drop(disk);
    // What shall be up is not forgotten.
    stage.nodes[1].start();
    stage.wait_in_sync();
    stage.stop_and_compare();
}

#[test]
fn a_second_signal_ends_the_daemon_at_once() {
    let mut plan = Plan::new("C");
    // A peer that hangs is waited for, longer than this test takes.
    plan.net =
        "connect-int = 1\nping-int = \"2m\"\nping-timeout = \"30s\"\ntimeout = \"1m\"\n".into();
    let mut stage = Stage::in_sync(plan);
    stage.nodes[1].signal("STOP");
    for signal in ["TERM", "INT"] {
        stage.nodes[0].signal(signal);
        says(&stage, 0, &format!("SIG{signal}"));
    }
    let status = stage.nodes[0].wait_end();
    assert_eq!(status.code(), Some(130), "{}", stage.nodes[0].log_text());
    assert!(!stage.nodes[0].control.exists(), "the socket is removed");
    stage.nodes[1].signal("CONT");
    stage.nodes[0].start();
    stage.wait_in_sync();
    stage.stop_and_compare();
}

//! Fencing with real handlers, and suspended I/O. Invariants: under `resource-and-stonith` nothing that
//! the lost peer lacks is confirmed before its handler has succeeded; a handler that is missing, dies or
//! hangs is an answer; whatever waits can be ended by an order.

use super::link_cut::IMPATIENT;
use crate::harness::nbd::Client;
use crate::harness::stage::{Plan, Stage};
use serde_json::Value;
use std::path::PathBuf;
use std::thread::JoinHandle;

/// A pair whose `fence-peer` is the script that `script` writes.
pub(crate) fn fenced(policy: &str, more: &str) -> Stage {
    let mut plan = Plan::new("C");
    plan.namespaces = true;
    plan.net = format!("{IMPATIENT}fencing = \"{policy}\"\n");
    // The directory is known only when the stage is there.
    plan.more = format!("[handlers]\nfence-peer = \"exit 1\"\n{more}");
    let mut stage = Stage::in_sync(plan);
    let command = format!("\"exec {}\"", fence_script(&stage).display());
    stage.plan.more = stage.plan.more.replace("\"exit 1\"", &command);
    script(&stage, "exit 1");
    stage.configure(&stage.config_text());
    for node in &stage.nodes {
        let text = node.ok(&["adjust", "r0"]);
        assert!(text.contains("handlers.fence-peer"), "{text}");
    }
    stage
}

fn fence_script(stage: &Stage) -> PathBuf {
    stage.path().join("fence-peer.sh")
}

/// What `fence-peer` does from now on, besides writing down what it finds.
pub(crate) fn script(stage: &Stage, body: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = fence_script(stage);
    let text = format!(
        "#!/bin/sh\nenv | sort > {0}/env.$TWINBLK_NODE\necho about to act\n{body}\n",
        stage.path().display()
    );
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("a script");
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    std::fs::rename(&new, &path).expect("in one step");
}

pub(crate) fn is_frozen(status: &Value) -> bool {
    status["suspended_for"] == serde_json::json!(["fencing"])
}

/// A write that is answered when it is.
fn write(stage: &Stage, node: usize, value: u8) -> JoinHandle<Result<(), String>> {
    let mut client = Client::unix(&stage.nodes[node].export).expect("it serves");
    std::thread::spawn(move || {
        let result = client.write(0, &[value; 4096]);
        result.map_err(|e| e.to_string())
    })
}

/// Waits until the end of a run of `fence-peer` is told.
pub(crate) fn wait_run(events: &crate::harness::node::Events, words: &str) -> Value {
    events.wait(words, |e| {
        let cause = e["cause"].as_str().unwrap_or_default();
        e["kind"] == "handler" && cause.contains("fence-peer after") && cause.contains(words)
    })
}

#[test]
fn the_exit_code_of_a_real_handler_decides() {
    for code in [3, 4, 5, 7] {
        let mut stage = fenced("resource-and-stonith", "");
        script(&stage, &format!("exit {code}"));
        let events = stage.nodes[0].events();
        stage.cable.as_ref().unwrap().cut();
        write(&stage, 0, 7)
            .join()
            .expect("it ends")
            .expect("it is confirmed");
        let run = wait_run(&events, &format!("exit code {code}"));
        assert!(
            run["cause"].as_str().unwrap().contains("about to act"),
            "{run}"
        );
        assert_eq!(run["peer"], "bravo");
        events.wait("the freeze", |e| {
            e["kind"] == "suspended" && e["to"] == "fencing"
        });
        let status = stage.nodes[0].status();
        let known = status["peers"][0]["volumes"][0]["peer_disk"].clone();
        assert_eq!(
            known,
            if code == 3 {
                "Inconsistent"
            } else {
                "Outdated"
            }
        );
        assert_eq!(status["suspended_for"], serde_json::json!([]));
        // What the handler is told.
        let env = std::fs::read_to_string(stage.path().join("env.alpha")).expect("it ran");
        for line in [
            "TWINBLK_HANDLER=fence-peer",
            "TWINBLK_RESOURCE=r0",
            "TWINBLK_NODE=alpha",
            "TWINBLK_NODE_ID=0",
            "TWINBLK_PEER=bravo",
            "TWINBLK_PEER_ID=1",
            "TWINBLK_ROLE=Primary",
            "TWINBLK_PEER_ROLE=Unknown",
            "TWINBLK_VOLUME=0",
            "TWINBLK_DISK_STATE=UpToDate",
            "TWINBLK_PEER_DISK_STATE=DUnknown",
            "DRBD_RESOURCE=r0",
            "DRBD_PEER=bravo",
            "DRBD_MY_NODE_ID=0",
            "DRBD_PEER_NODE_ID=1",
            "DRBD_NODE_ID_1=bravo",
        ] {
            assert!(env.lines().any(|l| l == line), "{line} in {env}");
        }
        for name in [
            "TWINBLK_CONFIG=",
            "TWINBLK_CONTROL=",
            "TWINBLK_DISK=",
            "PATH=",
        ] {
            assert!(env.lines().any(|l| l.starts_with(name)), "{name} in {env}");
        }
        stage.cable.as_ref().unwrap().mend();
        stage.wait_in_sync();
        stage.stop_and_compare();
    }
}

#[test]
fn a_handler_that_fails_leaves_io_waiting_until_the_peer_is_back_or_somebody_orders() {
    let cases = [
        ("exit 1", "exit code 1"),
        ("exit 0", "exit code 0"),
        ("kill -9 $$", "killed by signal 9"),
        ("exec /nonexistent/program", "exit code 127"),
    ];
    for (round, (body, words)) in cases.into_iter().enumerate() {
        let mut stage = fenced("resource-and-stonith", "");
        script(&stage, body);
        let events = stage.nodes[0].events();
        let write = write(&stage, 0, 7);
        write.join().expect("it ends").expect("the peer is there");
        stage.cable.as_ref().unwrap().cut();
        stage.nodes[0].wait("the freeze", is_frozen);
        let waits = self::write(&stage, 0, 8);
        wait_run(&events, words);
        assert!(is_frozen(&stage.nodes[0].status()));
        assert!(!waits.is_finished(), "nothing is confirmed");
        stage.nodes[1].wait("in doubt", |s| s["volumes"][0]["disk"] == "Consistent");
        if round % 2 == 0 {
            stage.nodes[0].ok(&["resume-io", "r0"]);
        } else {
            stage.cable.as_ref().unwrap().mend();
        }
        waits.join().expect("it ends").expect("it is confirmed");
        stage.cable.as_ref().unwrap().mend();
        stage.wait_in_sync();
        let content = stage.stop_and_compare();
        assert_eq!(content[0], 8);
    }
}

#[test]
fn a_handler_that_hangs_is_ended_with_all_it_has_started() {
    let mut stage = fenced("resource-and-stonith", "[options]\nhandler-timeout = 1\n");
    let mark = stage.path().join("child");
    let body = format!(
        "trap '' TERM\nsh -c 'trap \"\" TERM; echo $$ > {}; while :; do sleep 1; done' &\nwait; wait",
        mark.display()
    );
    script(&stage, &body);
    let events = stage.nodes[0].events();
    stage.cable.as_ref().unwrap().cut();
    wait_run(&events, "took longer than 1.0 s");
    assert!(is_frozen(&stage.nodes[0].status()));
    let child = std::fs::read_to_string(&mark).expect("it was started");
    let process = PathBuf::from(format!("/proc/{}/cmdline", child.trim()));
    // A zombie has no command line.
    let lives = || std::fs::read(&process).is_ok_and(|words| !words.is_empty());
    crate::harness::wait_for(
        "its child to be gone",
        || (!lives()).then_some(()),
        String::new,
    );
    stage.cable.as_ref().unwrap().mend();
    stage.nodes[0].wait("I/O to go on", |s| {
        s["suspended_for"] == serde_json::json!([])
    });
    stage.wait_in_sync();
    stage.stop_and_compare();
}

#[test]
fn resource_only_goes_on_while_the_handler_runs() {
    let mut stage = fenced("resource-only", "");
    let go = stage.path().join("go");
    script(
        &stage,
        &format!(
            "while ! test -e {}; do sleep 0.1; done; exit 4",
            go.display()
        ),
    );
    let events = stage.nodes[0].events();
    stage.cable.as_ref().unwrap().cut();
    events.wait("the run", |e| e["kind"] == "handler");
    write(&stage, 0, 7)
        .join()
        .expect("it ends")
        .expect("it goes on");
    std::fs::write(&go, "").expect("a file");
    wait_run(&events, "exit code 4");
    stage.nodes[0].wait("it is known to be outdated", |s| {
        s["peers"][0]["volumes"][0]["peer_disk"] == "Outdated"
    });
    stage.cable.as_ref().unwrap().mend();
    stage.wait_in_sync();
    stage.stop_and_compare();
}

/// The handlers outdate the other node, as over a second network.
#[test]
fn cut_apart_and_both_ordered_to_be_primary_never_both_are() {
    let mut stage = fenced("resource-and-stonith", "");
    let [alpha, bravo] = [0, 1].map(|n| stage.nodes[n].control.display().to_string());
    let program = env!("CARGO_BIN_EXE_twinblk");
    script(
        &stage,
        &format!(
            "case $TWINBLK_PEER in alpha) control={alpha};; *) control={bravo};; esac\n\
             {program} --control $control outdate r0\n\
             case $? in 0) exit 4;; 17) exit 6;; 18) exit 3;; *) exit 1;; esac"
        ),
    );
    for round in 0..5 {
        for node in &stage.nodes {
            node.ok(&["secondary", "r0"]);
        }
        stage.cable.as_ref().unwrap().cut();
        for node in &stage.nodes {
            node.wait("the peer is lost", |s| {
                s["peers"][0]["connection"] != "Connected"
            });
        }
        let mut children: Vec<_> = stage
            .nodes
            .iter()
            .map(|n| n.command(&["primary", "r0"]).spawn().expect("it runs"))
            .collect();
        let good = children
            .iter_mut()
            .filter_map(|c| c.wait().expect("it ends").success().then_some(()))
            .count();
        assert!(good <= 1, "round {round}");
        stage.cable.as_ref().unwrap().mend();
        stage.wait_in_sync();
    }
    stage.stop_and_compare();
}

#[test]
fn a_secondary_is_promoted_when_its_lost_primary_is_fenced() {
    let mut stage = fenced("resource-and-stonith", "");
    write(&stage, 0, 7)
        .join()
        .expect("it ends")
        .expect("written");
    stage.nodes[0].kill();
    let status = stage.nodes[1].wait("in doubt", |s| s["volumes"][0]["disk"] == "Consistent");
    let reason = status["volumes"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("alpha"), "{reason}");
    script(&stage, "exit 5");
    let text = stage.nodes[1].refused(17, &["primary", "r0"]);
    assert!(
        text.contains("cannot be reached") && text.contains("--force"),
        "{text}"
    );
    script(&stage, "exit 7");
    stage.nodes[1].ok(&["primary", "r0"]);
    write(&stage, 1, 9)
        .join()
        .expect("it ends")
        .expect("it serves");
    stage.nodes[0].start();
    stage.wait_in_sync();
    let content = stage.stop_and_compare();
    assert_eq!(content[0], 9);
}

#[test]
fn suspended_io_waits_and_can_be_given_up() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    stage.nodes[0].ok(&["suspend-io", "r0"]);
    let text = stage.nodes[0].ok(&["status", "r0"]);
    assert!(text.contains("suspended:user"), "{text}");
    let waits = write(&stage, 0, 7);
    stage.nodes[0].wait("the client", |s| s["open_clients"] != serde_json::json!([]));
    assert!(!waits.is_finished());
    stage.nodes[0].ok(&["resume-io", "r0"]);
    waits.join().expect("it ends").expect("it goes on");
    stage.nodes[0].ok(&["suspend-io", "r0"]);
    let waits = write(&stage, 0, 8);
    stage.nodes[0].wait("the client", |s| s["open_clients"] != serde_json::json!([]));
    stage.nodes[0].refused(12, &["secondary", "r0"]);
    let events = stage.nodes[0].events();
    stage.nodes[0].ok(&["secondary", "r0", "--force"]);
    waits.join().expect("it ends").expect_err("it is given up");
    assert_eq!(stage.nodes[0].ok(&["role", "r0"]).trim(), "Secondary");
    events.wait("the end", |e| e["kind"] == "suspended" && e["to"] == "no");
    stage.nodes[1].ok(&["primary", "r0"]);
    write(&stage, 1, 9)
        .join()
        .expect("it ends")
        .expect("it serves");
    stage.wait_in_sync();
    let content = stage.stop_and_compare();
    assert_eq!(content[0], 9);
}

#[test]
fn outdate_is_refused_where_it_would_do_harm() {
    let stage = Stage::in_sync(Plan::new("C"));
    let text = stage.nodes[0].refused(17, &["outdate", "r0"]);
    assert!(text.contains("Primary"), "{text}");
    let text = stage.nodes[1].refused(11, &["outdate", "r0"]);
    assert!(text.contains("connected"), "{text}");
    stage.nodes[1].ok(&["disconnect", "r0"]);
    stage.nodes[1].wait("outdated", |s| s["volumes"][0]["disk"] == "Outdated");
    stage.nodes[1].ok(&["outdate", "r0"]);
    stage.nodes[0].wait("alpha knows", |s| {
        s["peers"][0]["volumes"][0]["peer_disk"] == "Outdated"
    });
}

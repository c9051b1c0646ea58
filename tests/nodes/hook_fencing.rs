//! What failover daemons are told where a promotion depends on `fence-peer`, and what is left of an order
//! when they have given up.

use super::fencing::{fenced, is_frozen, script, wait_run};
use crate::harness::nbd::Client;
use crate::harness::node::Node;
use crate::harness::stage::Stage;
use std::process::{Command, Output, Stdio};
use std::time::SystemTime;

/// Alpha is gone, and bravo cannot know whether it went on.
fn bravo_is_alone(policy: &str, more: &str) -> Stage {
    let mut stage = fenced(policy, more);
    stage.nodes[0].kill();
    stage.nodes[1].wait("in doubt", |s| s["volumes"][0]["disk"] == "Consistent");
    stage
}

/// `fence-peer` says that the peer is off, but not before it is told to.
fn waits_for_go(stage: &Stage) {
    let go = stage.path().join("go");
    let body = format!(
        "while [ ! -e {} ]; do sleep 0.1; done\nexit 7",
        go.display()
    );
    script(stage, &body);
}

fn goes(stage: &Stage) {
    std::fs::write(stage.path().join("go"), "").expect("a file");
}

fn has_run(stage: &Stage, node: &Node) -> bool {
    stage.path().join(format!("env.{}", node.name)).exists()
}

fn is_promoting(node: &Node) {
    node.wait("the handler runs", |s| {
        let refusal = s["promotion_refused"]["reason"].as_str();
        refusal.is_some_and(|text| text.contains("being promoted already"))
    });
}

#[test]
fn it_is_foretold_that_a_handler_decides_and_none_is_called_for_that() {
    let mut stage = bravo_is_alone("resource-and-stonith", "");
    let bravo = &stage.nodes[1];
    let text = bravo.ok(&["hook", "r0", "promotable"]);
    assert!(
        text.contains("alpha") && text.contains("3, 4 or 7"),
        "{text}"
    );
    let text = bravo.ok(&["why", "r0", "promote"]);
    assert!(
        text.contains("call the fence-peer handler for alpha"),
        "{text}"
    );
    assert!(!text.contains("--force"), "{text}");
    assert!(!has_run(&stage, bravo), "to ask calls nobody");
    // It comes true, either way.
    script(&stage, "exit 5");
    bravo.refused(
        17,
        &["hook", "r0", "up", "--timeout", "1", "--wait-peer", "0"],
    );
    assert!(has_run(&stage, bravo));
    script(&stage, "exit 7");
    bravo.ok(&["hook", "r0", "up", "--wait-peer", "0"]);
    assert!(bravo.ok(&["hook", "r0", "promotable"]).is_empty());
    stage.nodes[0].start();
    stage.wait_in_sync();
}

#[test]
fn what_was_not_done_in_time_is_not_done_later() {
    let stage = bravo_is_alone("resource-and-stonith", "");
    let bravo = &stage.nodes[1];
    waits_for_go(&stage);
    let events = bravo.events();
    let up = ["hook", "r0", "up", "--timeout", "2", "--wait-peer", "0"];
    let text = bravo.refused(5, &up);
    assert!(text.contains("taken back"), "{text}");
    goes(&stage);
    wait_run(&events, "exit code 7");
    // What the handler did counts; that the node be promoted does not any more.
    bravo.wait("it is fenced", |s| s["volumes"][0]["disk"] == "UpToDate");
    assert_eq!(bravo.ok(&["role", "r0"]).trim(), "Secondary");
}

#[test]
fn down_ends_an_up_that_waits_for_a_handler() {
    let stage = bravo_is_alone("resource-and-stonith", "");
    let bravo = &stage.nodes[1];
    waits_for_go(&stage);
    let up = bravo
        .command(&["hook", "r0", "up", "--timeout", "600", "--wait-peer", "0"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    is_promoting(bravo);
    bravo.ok(&["hook", "r0", "down"]);
    let up = up.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&up.stderr);
    assert_eq!(up.status.code(), Some(11), "{text}");
    assert!(text.contains("overtaken"), "{text}");
    goes(&stage);
    bravo.wait("it is fenced", |s| s["volumes"][0]["disk"] == "UpToDate");
    assert_eq!(bravo.ok(&["role", "r0"]).trim(), "Secondary");
}

#[test]
fn io_that_stands_still_is_not_healthy() {
    let stage = fenced("resource-and-stonith", "");
    let alpha = &stage.nodes[0];
    waits_for_go(&stage);
    let events = alpha.events();
    stage.cable.as_ref().unwrap().cut();
    alpha.wait("the freeze", is_frozen);
    // The handler may yet succeed.
    alpha.ok(&["hook", "r0", "health"]);
    script(&stage, "exit 1");
    goes(&stage);
    wait_run(&events, "exit code 7");
    alpha.wait("the thaw", |s| !is_frozen(s));
    stage.cable.as_ref().unwrap().mend();
    stage.wait_in_sync();
    stage.cable.as_ref().unwrap().cut();
    wait_run(&events, "exit code 1");
    alpha.wait("it is told", |s| !s["peers"][0]["not_fenced"].is_null());
    let text = alpha.refused(11, &["hook", "r0", "health"]);
    assert!(
        text.contains("stands still") && text.contains("exit code 1"),
        "{text}"
    );
    let text = alpha.ok(&["why", "r0"]);
    assert!(text.contains("not called again"), "{text}");
    stage.cable.as_ref().unwrap().mend();
    stage.wait_in_sync();
    alpha.ok(&["hook", "r0", "health"]);
}

/// keepalived's check, as keepalived calls it.
fn check(stage: &Stage, node: &Node) -> Output {
    let settings = format!(
        "PROGRAM={}\nCONTROL={}\nRUN={}\n",
        env!("CARGO_BIN_EXE_twinblk"),
        node.control.display(),
        stage.path().display()
    );
    std::fs::write(stage.path().join("r0.conf"), settings).expect("a file");
    Command::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/cluster/keepalived/check"
    ))
    .arg("r0")
    .env("TWINBLK_CLUSTER", stage.path())
    .output()
    .expect("it runs")
}

/// A node whose handler has failed is no candidate for a while, and not for ever.
#[test]
fn a_promotion_that_only_a_handler_stood_against_is_tried_again() {
    let stage = bravo_is_alone("resource-and-stonith", "");
    let bravo = &stage.nodes[1];
    assert!(check(&stage, bravo).status.success(), "it may take over");
    let refused = stage.path().join("stack-r0.refused");
    std::fs::write(&refused, "").expect("a file");
    assert!(
        !check(&stage, bravo).status.success(),
        "it was refused just now"
    );
    let long_ago = SystemTime::now() - std::time::Duration::from_secs(180);
    let file = std::fs::File::options().write(true).open(&refused);
    file.and_then(|f| f.set_modified(long_ago))
        .expect("its time");
    assert!(
        check(&stage, bravo).status.success(),
        "it may be tried again"
    );
    assert!(!refused.exists());
    // What more than a handler stands against stays refused.
    bravo.ok(&["outdate", "r0"]);
    std::fs::write(&refused, "").expect("a file");
    let file = std::fs::File::options().write(true).open(&refused);
    file.and_then(|f| f.set_modified(long_ago))
        .expect("its time");
    assert!(!check(&stage, bravo).status.success(), "it is Outdated");
    assert!(refused.exists());
}

#[test]
fn a_client_has_a_node_promoted_whose_peer_is_fenced_first() {
    let mut stage = bravo_is_alone("resource-and-stonith", "[options]\nauto-promote = true\n");
    let bravo = &stage.nodes[1];
    script(&stage, "exit 1");
    let text = format!("{:?}", Client::unix(&bravo.export).expect_err("not fenced"));
    assert!(text.contains("could not be fenced"), "{text}");
    script(&stage, "exit 7");
    let mut client = Client::unix(&bravo.export).expect("it is promoted");
    client.write(0, &[9; 512]).expect("it serves");
    client.disconnect();
    bravo.wait("it is Secondary again", |s| s["role"] == "Secondary");
    stage.nodes[0].start();
    stage.wait_in_sync();
    assert_eq!(stage.stop_and_compare()[0], 9);
}

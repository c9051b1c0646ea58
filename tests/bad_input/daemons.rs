//! Two daemons that want the same: disk, state directory, control socket, port, export.

use crate::harness::node::texts;
use crate::harness::stage::{Plan, Stage};
use std::net::TcpListener;
use std::process::{Command, Stdio};

#[test]
fn the_port_is_in_use() {
    let mut stage = Stage::new(Plan::new("C"));
    let taken = TcpListener::bind(stage.address(0)).expect("nobody else does");
    let address = stage.address(0);
    stage.nodes[0].ok(&["create-md", "r0"]);
    stage.nodes[0].start();
    let err = stage.nodes[0].refused(10, &["up", "r0"]);
    assert!(err.contains(&address) && err.contains("stop it"), "{err}");
    let text = stage.nodes[0].ok(&["status"]);
    assert!(text.contains(&address), "it is told later as well: {text}");
    drop(taken);
    stage.nodes[0].ok(&["up", "r0"]);
}

/// What belongs to one resource, with a disk, an address and an export of its own.
fn another_resource(stage: &Stage, address: &str) -> String {
    stage
        .config_text()
        .replace("name = \"r0\"", "name = \"r1\"")
        .replace(&stage.address(0), address)
        .replace(&stage.address(1), "192.0.2.2:7790")
        .replace(".img", ".img2")
        .replace(".nbd", ".nbd2")
}

#[test]
fn an_address_this_machine_does_not_have_is_the_trouble_of_its_resource_alone() {
    let mut stage = Stage::new(Plan::new("C"));
    let wrong = another_resource(&stage, "192.0.2.1:7790");
    std::fs::write(stage.config_dir().join("r1.toml"), wrong).expect("a file");
    for node in &mut stage.nodes {
        node.ok(&["create-md", "r0"]);
        node.start();
        node.ok(&["up", "r0"]);
    }
    let err = stage.nodes[0].refused(10, &["up", "r1"]);
    assert!(
        err.contains("192.0.2.1:7790") && err.contains("--node"),
        "{err}"
    );
    stage.nodes[0].ok(&["wait-connect", "r0", "--timeout", "60"]);
}

/// At boot an address may come after the daemon.
#[test]
fn an_address_that_comes_later_is_waited_for() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    stage.nodes[0].terminate();
    let taken = TcpListener::bind(stage.address(0)).expect("nobody else does");
    stage.nodes[0].start();
    let why = |s: &serde_json::Value| s["suspended"].as_str().unwrap_or_default().to_owned();
    let address = stage.address(0);
    stage.nodes[0].wait("says what it lacks", |s| {
        s["up"] == false && why(s).contains(&address) && why(s).contains("tried again")
    });
    drop(taken);
    stage.wait_in_sync();
    stage.nodes[0].ok(&["primary", "r0"]);
    crate::still_works(&mut stage);
    stage.stop_and_compare();
}

#[test]
fn the_export_cannot_be_listened_on() {
    let mut stage = Stage::new(Plan::new("C"));
    let gone = stage.path().join("no-such-directory/r0.nbd");
    let export = stage.nodes[0].export.display().to_string();
    let wrong = stage
        .config_text()
        .replace(&export, &gone.display().to_string());
    stage.configure(&wrong);
    stage.nodes[0].ok(&["create-md", "r0"]);
    stage.nodes[0].start();
    let output = stage.nodes[0].run(&["up", "r0"]);
    let (_, err) = texts(&output);
    assert!(!output.status.success());
    assert!(err.contains("no-such-directory"), "{err}");
    // Nothing of the attempt stays: the disk is free, the next one works.
    stage.configure(&stage.config_text());
    stage.nodes[0].terminate();
    stage.nodes[0].start();
    stage.nodes[0].ok(&["up", "r0"]);
}

#[test]
fn a_second_daemon_for_the_same_node() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    // All the same.
    let output = stage.nodes[0].daemon_command().output().expect("it runs");
    let (_, err) = texts(&output);
    assert_eq!(output.status.code(), Some(12), "{err}");
    assert!(
        err.contains("alpha.state") && err.contains("--state"),
        "{err}"
    );
    // Another state directory, the same control socket.
    let other = stage.path().join("other.state");
    let mut command = Command::new(crate::harness::node::TWINBLK);
    let alpha = &stage.nodes[0];
    command
        .args(["daemon", "--node", "alpha", "--config"])
        .arg(&alpha.config)
        .arg("--state")
        .arg(&other)
        .arg("--control")
        .arg(&alpha.control);
    let output = command.output().expect("it runs");
    let (_, err) = texts(&output);
    assert_eq!(output.status.code(), Some(12), "{err}");
    assert!(err.contains("alpha.ctl"), "{err}");
    crate::still_works(&mut stage);
    stage.stop_and_compare();
}

#[test]
fn a_second_daemon_on_the_same_disk() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    // Another configuration that names alpha's disk, with everything else of its own.
    let other = stage.path().join("other");
    std::fs::create_dir(&other).expect("a directory");
    let export = stage.nodes[0].export.display().to_string();
    let text = stage
        .config_text()
        .replace(&stage.address(0), "127.0.0.1:17790")
        .replace(&export, &format!("{export}2"));
    std::fs::write(other.join("r0.toml"), text).expect("a file");
    let control = stage.path().join("second.ctl");
    let mut second = Command::new(crate::harness::node::TWINBLK)
        .args(["daemon", "--node", "alpha", "--config"])
        .arg(&other)
        .arg("--state")
        .arg(stage.path().join("second.state"))
        .arg("--control")
        .arg(&control)
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
    let ask = |args: &[&str]| {
        Command::new(crate::harness::node::TWINBLK)
            .arg("--control")
            .arg(&control)
            .args(args)
            .output()
            .expect("it runs")
    };
    crate::harness::wait_for(
        "the second daemon",
        || ask(&["status"]).status.success().then_some(()),
        String::new,
    );
    let output = ask(&["up", "r0"]);
    let (_, err) = texts(&output);
    assert_eq!(output.status.code(), Some(12), "{err}");
    assert!(err.contains("alpha.img") && err.contains("in use"), "{err}");
    // Nor are its metadata written anew.
    let text = stage.nodes[0].refused(12, &["create-md", "r0", "--force"]);
    assert!(text.contains("alpha.img"), "{text}");
    second.kill().expect("it can be killed");
    let _ = second.wait();
    crate::still_works(&mut stage);
    stage.stop_and_compare();
}

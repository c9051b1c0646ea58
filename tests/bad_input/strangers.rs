//! Peers that are not whom they should be: another secret, another resource, another version.

use crate::harness::stage::{Plan, Stage};
use crate::harness::wait_for;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use twinblk_protocol::hello::{Dialler, HelloProgress, PeerHello, SocketRole};

/// Magic, type, length: what comes before the body of a hello packet.
const HEAD: usize = 11;

pub(crate) fn hello(socket: SocketRole) -> PeerHello {
    PeerHello {
        version_min: 0,
        version_max: 0,
        features: 0,
        resource: "r0".into(),
        node_id: 0,
        node_name: "alpha".into(),
        wants_node: 1,
        socket,
        connection_id: 42,
        nonce: [7; 32],
    }
}

fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"TWINBLK\0".to_vec();
    bytes.push(kind);
    bytes.extend(u16::try_from(body.len()).expect("short").to_le_bytes());
    bytes.extend(body);
    bytes
}

/// Only bravo runs; the test plays alpha.
pub(crate) fn bravo_alone() -> Stage {
    let mut stage = Stage::new(Plan::new("C"));
    let bravo = &mut stage.nodes[1];
    bravo.ok(&["create-md", "r0"]);
    bravo.start();
    bravo.ok(&["up", "r0"]);
    stage
}

/// Dials bravo and goes through the hello with `secret`; the socket if it got in.
pub(crate) fn enter(stage: &Stage, socket: SocketRole, secret: &[u8]) -> Result<TcpStream, String> {
    let mut stream = TcpStream::connect(stage.address(1)).expect("bravo listens");
    stream
        .set_read_timeout(Some(crate::harness::PATIENCE))
        .expect("a limit");
    let mut dialler = Dialler::new(hello(socket), secret);
    stream.write_all(&dialler.start()).expect("sent");
    let mut bytes = [0; 4096];
    loop {
        let n = stream.read(&mut bytes).expect("an answer");
        if n == 0 {
            return Err("closed".into());
        }
        let mut out = Vec::new();
        let progress = dialler.feed(&bytes[..n], &mut out);
        stream.write_all(&out).expect("sent");
        match progress {
            HelloProgress::NeedMore => {}
            HelloProgress::Done(_) => return Ok(stream),
            HelloProgress::Failed(e) => return Err(e.to_string()),
        }
    }
}

#[test]
fn two_nodes_with_different_secrets_both_say_so() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    stage.nodes[1].ok(&["down", "r0"]);
    stage.nodes[1].terminate();
    let other = stage.path().join("other");
    std::fs::create_dir(&other).expect("a directory");
    let text = stage.config_text().replace("swordfish", "sardine");
    std::fs::write(other.join("r0.toml"), text).expect("a file");
    let right = std::mem::replace(&mut stage.nodes[1].config, other);
    stage.nodes[1].start();
    stage.nodes[1].ok(&["up", "r0"]);
    for node in &stage.nodes {
        node.wait("says that the secrets differ", |s| {
            let reason = s["peers"][0]["reason"].as_str().unwrap_or_default();
            reason.contains("secret") && s["peers"][0]["connection"] != "Connected"
        });
        let text = node.refused(5, &["wait-connect", "r0", "--timeout", "1"]);
        assert!(text.contains("secret"), "{text}");
    }
    stage.nodes[1].ok(&["down", "r0"]);
    stage.nodes[1].terminate();
    stage.nodes[1].config = right;
    stage.nodes[1].start();
    stage.nodes[1].ok(&["up", "r0"]);
    stage.wait_in_sync();
    crate::still_works(&mut stage);
    stage.stop_and_compare();
}

#[test]
fn a_peer_that_has_another_resource() {
    let mut stage = Stage::new(Plan::new("C"));
    let other = stage.path().join("other");
    std::fs::create_dir(&other).expect("a directory");
    let text = stage
        .config_text()
        .replace("name = \"r0\"", "name = \"r1\"");
    std::fs::write(other.join("r1.toml"), text).expect("a file");
    stage.nodes[1].config = other;
    stage.nodes[1].start();
    stage.nodes[0].ok(&["create-md", "r0"]);
    stage.nodes[0].start();
    stage.nodes[0].ok(&["up", "r0"]);
    stage.nodes[0].wait("says what bravo lacks", |s| {
        let reason = s["peers"][0]["reason"].as_str().unwrap_or_default();
        reason.contains("bravo has no resource r0")
    });
}

#[test]
fn a_dialler_of_a_newer_version_is_told_what_is_spoken_here() {
    let stage = bravo_alone();
    let mut stream = TcpStream::connect(stage.address(1)).expect("bravo listens");
    let mut bytes = Dialler::new(hello(SocketRole::Data), b"swordfish").start();
    // The body begins with the oldest and the newest version it speaks.
    (bytes[HEAD], bytes[HEAD + 1]) = (98, 99);
    stream.write_all(&bytes).expect("sent");
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .expect("an answer, then the end");
    let text = String::from_utf8_lossy(&answer[HEAD..]).into_owned();
    assert_eq!(answer[8], 5, "refused: {text}");
    assert!(text.contains("version") && text.contains("98"), "{text}");
    stage.nodes[1].wait("says so", |s| {
        let reason = s["peers"][0]["reason"].as_str().unwrap_or_default();
        reason.contains("version") && reason.contains("98 to 99")
    });
}

#[test]
fn an_acceptor_of_a_newer_version_is_reported_with_its_words() {
    let mut stage = Stage::new(Plan::new("C"));
    let listener = TcpListener::bind(stage.address(1)).expect("nobody else does");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&packet(5, b"no common protocol version: here 98 to 99"));
        }
    });
    stage.nodes[0].ok(&["create-md", "r0"]);
    stage.nodes[0].start();
    stage.nodes[0].ok(&["up", "r0"]);
    stage.nodes[0].wait("says so", |s| {
        let reason = s["peers"][0]["reason"].as_str().unwrap_or_default();
        reason.contains("no common protocol version: here 98 to 99")
    });
    assert_eq!(stage.nodes[0].ok(&["cstate", "r0"]).trim(), "Connecting");
}

#[test]
fn a_stranger_who_knows_all_but_the_secret_learns_nothing() {
    let stage = bravo_alone();
    let error = enter(&stage, SocketRole::Data, b"sardine").expect_err("not with this secret");
    assert!(error.contains("secret"), "{error}");
    // With it, it gets in: the test can tell the difference.
    enter(&stage, SocketRole::Data, b"swordfish").expect("with the right one it gets in");
    wait_for(
        "bravo to be alive",
        || {
            stage.nodes[1]
                .run(&["status"])
                .status
                .success()
                .then_some(())
        },
        || stage.nodes[1].log_text(),
    );
}

/// Nothing an unknown node says gets unchanged to where people read it.
#[test]
fn names_of_unknown_nodes_are_shown_tamed_and_short() {
    let stage = bravo_alone();
    let mut wild = hello(SocketRole::Data);
    wild.node_name = format!("\u{1b}[2Jalpha\n{}", "x".repeat(1000));
    let mut stream = TcpStream::connect(stage.address(1)).expect("bravo listens");
    let mut dialler = Dialler::new(wild, b"sardine");
    stream.write_all(&dialler.start()).expect("sent");
    let mut answer = [0; 4096];
    let n = stream.read(&mut answer).expect("an answer");
    let mut out = Vec::new();
    dialler.feed(&answer[..n], &mut out);
    stream.write_all(&out).expect("sent");
    let status = stage.nodes[1].wait("says who it was", |s| {
        let reason = s["peers"][0]["reason"].as_str().unwrap_or_default();
        reason.contains("tried to connect")
    });
    let reason = status["peers"][0]["reason"].as_str().expect("a text");
    assert!(reason.contains("\\u{1b}[2Jalpha\\nxxx"), "{reason}");
    assert!(reason.len() < 400, "{reason}");
    let log = std::fs::read_to_string(&stage.nodes[1].log).expect("the log");
    assert!(!log.contains('\u{1b}') && !log.contains("\nx"), "{log}");
}

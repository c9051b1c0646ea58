//! Bytes that mean nothing, on every port, before and after a handshake.

use super::strangers::enter;
use crate::harness::nbd::{Client, WRITE, request};
use crate::harness::seeds::Rng;
use crate::harness::stage::{Plan, Stage};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use twinblk_protocol::hello::SocketRole;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Rng(seed).fill(&mut bytes);
    bytes
}

/// Sends what it can, then reads until the other side closes.
fn pour(mut stream: impl Read + Write, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
    let mut sink = [0; 65536];
    while matches!(stream.read(&mut sink), Ok(n) if n > 0) {}
}

#[test]
fn garbage_on_the_peers_port() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    for seed in 0..10 {
        for node in [0, 1] {
            let stream = TcpStream::connect(stage.address(node)).expect("it listens");
            pour(&stream, &noise(seed, 10_000));
            // The right beginning, then nonsense, of any length.
            let mut bytes = b"TWINBLK\0\x01".to_vec();
            bytes.extend(noise(seed, 1 + seed as usize * 500));
            let stream = TcpStream::connect(stage.address(node)).expect("it listens");
            stream.shutdown_after(&bytes);
        }
    }
    assert_eq!(stage.nodes[0].ok(&["cstate", "r0"]).trim(), "Connected");
    crate::still_works(&mut stage);
    stage.stop_and_compare();
}

trait ShutdownAfter {
    fn shutdown_after(self, bytes: &[u8]);
}

impl ShutdownAfter for TcpStream {
    fn shutdown_after(mut self, bytes: &[u8]) {
        let _ = self.write_all(bytes);
        let _ = self.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = self.read_to_end(&mut rest);
    }
}

#[test]
fn garbage_on_the_export() {
    let mut plan = Plan::new("C");
    plan.tcp_export = true;
    let mut stage = Stage::in_sync(plan);
    for seed in 0..10 {
        pour(
            UnixStream::connect(&stage.nodes[0].export).expect("it listens"),
            &noise(seed, 10_000),
        );
        let stream = TcpStream::connect(stage.tcp_export(0)).expect("it listens");
        pour(&stream, &noise(seed, 100));
        // After the handshake.
        let mut client = Client::unix(&stage.nodes[0].export).expect("alpha serves");
        let _ = client.socket.write_all(&noise(seed, 5_000));
        let mut rest = Vec::new();
        let _ = client.socket.read_to_end(&mut rest);
        // In the middle of a write's payload it falls silent and goes.
        let mut client = Client::unix(&stage.nodes[0].export).expect("alpha serves");
        let write = request(WRITE, 0, 1, 0, 1 << 20, &noise(seed, 1000));
        client.socket.write_all(&write).expect("sent");
    }
    stage.nodes[0].wait("nobody holds it", |s| {
        s["open_clients"] == serde_json::json!([])
    });
    crate::still_works(&mut stage);
    stage.stop_and_compare();
}

#[test]
fn garbage_on_the_control_socket() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    for seed in 0..5 {
        let stream = UnixStream::connect(&stage.nodes[0].control).expect("it listens");
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(1)))
            .expect("a limit");
        pour(stream, &noise(seed, 10_000));
        let stream = UnixStream::connect(&stage.nodes[0].control).expect("it listens");
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(1)))
            .expect("a limit");
        let body = "POST /v1/resources/r0/primary HTTP/1.1\r\nHost: x\r\n\
                    Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{\"force\":";
        pour(stream, body.as_bytes());
    }
    crate::still_works(&mut stage);
    stage.stop_and_compare();
}

/// A peer that proves the secret and then talks nonsense is dropped, with a reason; no byte of it gets
/// to the disk; the resource is ready for the real one.
#[test]
fn garbage_from_an_authenticated_peer() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    crate::still_works(&mut stage);
    let size = stage.nodes[1].data_size();
    stage.nodes[0].ok(&["down", "r0"]);
    let before = stage.nodes[1].disk_content(size);
    for seed in 0..10 {
        let data = enter(&stage, SocketRole::Data, b"swordfish").expect("it has the secret");
        let control = enter(&stage, SocketRole::Control, b"swordfish").expect("it has the secret");
        let (one, other) = if seed % 2 == 0 {
            (&data, &control)
        } else {
            (&control, &data)
        };
        pour(one, &noise(seed, 100 + 700 * seed as usize));
        // The other socket is closed as well.
        pour(other, &[]);
    }
    stage.nodes[1].wait("says why", |s| {
        let reason = s["peers"][0]["reason"].as_str().unwrap_or_default();
        s["peers"][0]["connection"] == "Connecting" && !reason.is_empty()
    });
    assert!(
        stage.nodes[1].disk_content(size) == before,
        "nothing was written"
    );
    stage.nodes[0].ok(&["up", "r0"]);
    stage.nodes[0].ok(&["primary", "r0"]);
    stage.wait_in_sync();
    crate::still_works(&mut stage);
    stage.stop_and_compare();
}

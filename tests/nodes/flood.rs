//! Memory is bounded: a client that never reads its answers, clients without number, a peer that stops
//! reading. Invariants: clients wait; the process does not grow beyond its buffers; when the reason is
//! gone everything goes on and the copies end up equal.

use crate::harness::load::{History, Load, wait_for_writes};
use crate::harness::nbd::{Client, READ, WRITE};
use crate::harness::stage::{Plan, Stage};
use crate::harness::wait_for;
use std::io::Write;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// Buffers (32 MiB), send queue (16 MiB), bitmaps, the program itself, the sockets' share.
const BOUND: u64 = 96 * MIB;

/// Sends until the server takes nothing more for a while; returns the bytes it took.
fn flood(client: &mut Client, request: &[u8], most: u64) -> u64 {
    client.socket.limit(Some(Duration::from_millis(700)));
    let mut taken = 0;
    while taken < most {
        match client.socket.write(request) {
            // A partial write ends the flood: the server waits.
            Ok(n) if n < request.len() => return taken + n as u64,
            Ok(n) => taken += n as u64,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return taken,
            Err(e) => panic!("{e}"),
        }
    }
    taken
}

#[test]
fn a_client_that_reads_no_answers_waits() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    // Reads whose answers nobody takes: 100 GiB of them if nobody stopped the clients.
    let mut clients: Vec<Client> = (0..8)
        .map(|_| Client::unix(&stage.nodes[0].export).expect("alpha serves"))
        .collect();
    let read = crate::harness::nbd::request(READ, 0, 1, 0, 256 << 10, &[]);
    for client in &mut clients {
        let taken = flood(client, &read, 28 * 50_000);
        assert!(taken < 28 * 50_000, "the client had to wait");
        let memory = stage.nodes[0].memory();
        assert!(memory < BOUND, "{} MiB", memory / MIB);
    }
    // Another client is served all the same.
    let mut other = Client::unix(&stage.nodes[0].export).expect("alpha serves");
    other
        .write(0, &[1; 4096])
        .expect("there is room for others");
    assert_eq!(other.read(0, 4096).expect("reads"), [1; 4096]);
    // They go without a word; nothing of them stays.
    drop(clients);
    other.disconnect();
    stage.nodes[0].wait("all buffers are free", |s| {
        s["driver"]["buffers_used"] == 0 && s["driver"]["nbd_connections"] == 0
    });
    stage.stop_and_compare();
}

/// Clients that are stopped, or gone without a word, hold the buffers: unread answers on one half of
/// them, announced and unsent payloads on the other. Others wait, but not for ever.
#[test]
fn stopped_clients_do_not_hold_up_the_export() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    let largest = 4 << 20;
    let _stopped: Vec<Client> = (0..8)
        .map(|n| {
            let mut client = Client::unix(&stage.nodes[0].export).expect("alpha serves");
            let kind = if n % 2 == 0 { READ } else { WRITE };
            client
                .send(kind, 0, 1, 0, largest, &[])
                .expect("it is taken");
            client
        })
        .collect();
    stage.nodes[0].wait("no buffer is left", |s| {
        s["driver"]["buffers_used"].as_u64() >= s["driver"]["buffers_total"].as_u64().map(|n| n / 2)
    });
    let mut other = Client::unix(&stage.nodes[0].export).expect("alpha serves");
    other.write(0, &[1; 4096]).expect("room is made");
    assert_eq!(other.read(0, 4096).expect("reads"), [1; 4096]);
    other.disconnect();
    stage.stop_and_compare();
}

#[test]
fn many_clients_that_write_without_end_share_the_buffers() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    let mut clients: Vec<Client> = (0..64)
        .map(|_| Client::unix(&stage.nodes[0].export).expect("alpha serves"))
        .collect();
    let data = vec![3; 64 << 10];
    let write = crate::harness::nbd::request(WRITE, 0, 1, 0, data.len() as u32, &data);
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| flood(client, &write, 40 * MIB));
        }
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            let memory = stage.nodes[0].memory().max(stage.nodes[1].memory());
            assert!(memory < BOUND, "{} MiB", memory / MIB);
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    drop(clients);
    stage.nodes[0].wait("all buffers are free", |s| {
        s["driver"]["buffers_used"] == 0 && s["driver"]["nbd_connections"] == 0
    });
    stage.wait_in_sync();
    stage.stop_and_compare();
}

/// Under every protocol: a peer that stops (SIGSTOP) holds clients back before memory runs out. With
/// patient timeouts it is not given up, and goes on where it stood.
#[test]
fn a_peer_that_stops_reading_makes_clients_wait() {
    for protocol in ["A", "B", "C"] {
        let mut plan = Plan::new(protocol);
        plan.net += "ping-int = 120\ntimeout = \"1m\"\nko-count = 100\n";
        plan.sizes = [256 * MIB; 2];
        plan.tmpfs = true;
        let mut stage = Stage::in_sync(plan);
        stage.nodes[1].signal("STOP");
        let size = stage.nodes[0].data_size();
        let mut client = Client::unix(&stage.nodes[0].export).expect("alpha serves");
        let data = vec![5; MIB as usize];
        let mut request = Vec::new();
        let mut taken = 0;
        for n in 0..size / MIB - 1 {
            let len = MIB as u32;
            request.clear();
            request.extend(crate::harness::nbd::request(
                WRITE,
                0,
                n,
                n * MIB,
                len,
                &data,
            ));
            let now = flood(&mut client, &request, request.len() as u64);
            taken += now;
            if now < request.len() as u64 {
                // The rest of this request, once the peer goes on.
                request.drain(..usize::try_from(now).expect("fits"));
                break;
            }
            request.clear();
        }
        assert!(!request.is_empty(), "{protocol}: the client had to wait");
        assert!(
            taken < 128 * MIB,
            "{protocol}: {} MiB were taken",
            taken / MIB
        );
        let memory = stage.nodes[0].memory();
        assert!(memory < BOUND, "{protocol}: {} MiB", memory / MIB);
        stage.nodes[1].signal("CONT");
        client.socket.limit(Some(crate::harness::PATIENCE));
        client.socket.write_all(&request).expect("it goes on");
        for _ in 0..taken.div_ceil(MIB) {
            assert_eq!(client.receive().expect("an answer").1, 0);
        }
        client.disconnect();
        stage.wait_in_sync();
        stage.stop_and_compare();
    }
}

/// With ordinary timeouts the same peer is given up, and the clients go on without it.
#[test]
fn a_peer_that_hangs_is_given_up_and_caught_up_later() {
    let mut plan = Plan::new("C");
    plan.net = super::link_cut::IMPATIENT.into();
    let mut stage = Stage::in_sync(plan);
    let history = History::new(1, stage.nodes[0].data_size());
    let load = Load::start(&stage.nodes[0].export, &history, 1, 16);
    wait_for_writes(&history, 50);
    stage.nodes[1].signal("STOP");
    let status = wait_for(
        "the peer to be given up",
        || {
            let status = stage.nodes[0].status();
            (status["peers"][0]["connection"] != "Connected").then_some(status)
        },
        || stage.nodes[0].log_text(),
    );
    assert!(
        status["peers"][0]["reason"]
            .as_str()
            .is_some_and(|r| !r.is_empty())
    );
    wait_for_writes(&history, 50);
    stage.nodes[1].signal("CONT");
    load.finish();
    stage.wait_in_sync();
    let content = stage.stop_and_compare();
    history.lock().unwrap().judge_blocks(&content);
}

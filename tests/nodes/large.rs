//! A device of 16 TiB, thin, in memory. Invariants: a bitmap takes a bit per 4 KiB and peer and less than
//! 5 % more, clean or full; and what is done to it ends within the patience of these tests. The times
//! are printed (`--nocapture`), not judged.

use crate::harness::nbd::Client;
use crate::harness::seeds::Rng;
use crate::harness::stage::{Plan, Stage};
use serde_json::Value;
use std::time::Instant;

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

fn plan(size: u64) -> Plan {
    let mut plan = Plan::new("C");
    plan.tmpfs = true;
    plan.sizes = [size; 2];
    plan
}

/// Says how long a step took, and the memory of alpha after it.
struct Clock(Instant);

impl Clock {
    fn step(&mut self, stage: &Stage, what: &str) {
        let time = self.0.elapsed();
        let memory: Vec<String> = stage
            .nodes
            .iter()
            .filter(|n| n.runs())
            .map(|n| {
                format!(
                    "{} {} MiB, at most {}",
                    n.name,
                    n.memory() >> 20,
                    n.peak_memory() >> 20
                )
            })
            .collect();
        println!("{time:8.3?} {what}; {}", memory.join("; "));
        self.0 = Instant::now();
    }
}

/// The life of a device of this size; answers the most memory each daemon ever had.
fn life(size: u64) -> [u64; 2] {
    let mut stage = Stage::new(plan(size));
    let mut clock = Clock(Instant::now());
    for n in 0..2 {
        stage.nodes[n].ok(&["create-md", "r0"]);
        clock.step(&stage, "create-md");
    }
    for n in 0..2 {
        stage.nodes[n].start();
        stage.nodes[n].ok(&["up", "r0"]);
        clock.step(&stage, "start, up");
    }
    stage.nodes[0].ok(&["wait-connect", "r0", "--timeout", "60"]);
    clock.step(&stage, "connect");
    stage.nodes[0].ok(&["new-current-uuid", "r0", "--clear-bitmap"]);
    stage.wait_in_sync();
    clock.step(&stage, "declare equal");
    stage.nodes[0].ok(&["primary", "r0"]);
    clock.step(&stage, "primary");
    stage.nodes[1].kill();
    let mut client = Client::unix(&stage.nodes[0].export).expect("alpha serves");
    let size = client.info.size;
    let mut rng = Rng(16);
    for _ in 0..10_000 {
        let block = rng.below(size / 4096);
        client.write(block * 4096, &[7; 4096]).expect("writes");
    }
    clock.step(&stage, "10000 writes all over it, the peer gone");
    stage.nodes[1].start();
    stage.nodes[1].wait_connection("Connected");
    clock.step(&stage, "the peer starts, attaches, connects");
    stage.wait_in_sync();
    clock.step(&stage, "bitmap exchange and resync");
    client.disconnect();
    stage.nodes[0].kill();
    stage.nodes[0].start();
    stage.nodes[0].wait_connection("Connected");
    clock.step(&stage, "crash of the Primary: start, attach, connect");
    stage.wait_in_sync();
    clock.step(&stage, "bitmap exchange and resync");
    stage.nodes[0].ok(&["primary", "r0"]);
    let events = stage.nodes[1].events();
    events.wait("the listener", |e| e["kind"] == "role");
    stage.nodes[0].ok(&["invalidate-remote", "r0"]);
    events.wait("a full resync", |e| e["to"] == "SyncTarget");
    clock.step(&stage, "mark everything, begin a full resync");
    let peaks = stage.nodes.each_ref().map(|n| n.peak_memory());
    // The target has written all marks down before the first block came.
    stage.nodes[1].kill();
    stage.nodes[0].kill();
    let text = stage.nodes[1].ok(&["dump-md", "r0", "--json"]);
    clock.step(&stage, "dump-md");
    let md: Value = serde_json::from_str(&text).expect("JSON");
    let bits = md[0]["metadata"]["peers"][0]["bits_set"].as_u64();
    let bits = bits.expect("bits");
    // What was copied since may be missing, and that is not much.
    assert!(size < 16 * TIB || bits > size / 4096 / 10 * 9, "{bits}");
    peaks
}

#[test]
fn a_device_of_16_tib_needs_memory_for_its_bits_and_little_more() {
    let tiny = life(64 * MIB);
    let large = life(16 * TIB + 600 * MIB);
    let bits = 16 * TIB / 4096 / 8;
    for (large, tiny) in large.into_iter().zip(tiny) {
        let grown = large.saturating_sub(tiny);
        println!(
            "{large} bytes at most, {tiny} of a tiny device: {grown} more for {bits} of bitmap"
        );
        assert!(grown < bits + bits / 20, "{grown} for {bits} of bitmap");
        assert!(
            grown > bits / 2,
            "all is marked, and the tiny device had the same life"
        );
    }
}

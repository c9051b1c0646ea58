//! Writes that overlap, from several connections at once, with many in flight. Nobody can say which of
//! them wins; but both disks must agree, and no byte may hold what nobody wrote there.

use crate::harness::nbd::{Client, WRITE, WRITE_ZEROES};
use crate::harness::seeds::Rng;
use crate::harness::stage::{Plan, Stage};

const BLOCKS: u64 = 64;
const WRITERS: u64 = 6;
const WRITES: u64 = 1500;

/// A sector of a write: who, which write, which sector.
fn sector(writer: u64, number: u64, at: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    Rng(writer << 40 ^ number << 8 ^ at).fill(&mut bytes[24..]);
    bytes[..8].copy_from_slice(&(writer + 1).to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..24].copy_from_slice(&at.to_le_bytes());
    bytes
}

fn write_on_the_same_blocks(export: &std::path::Path, writer: u64) {
    let mut client = Client::unix(export).expect("alpha serves");
    let mut rng = Rng(writer);
    let (mut sent, mut answered) = (0, 0);
    while answered < WRITES {
        if sent < WRITES && sent - answered < 32 {
            let count = 1 + rng.below(32);
            let first = rng.below(BLOCKS * 8 - count);
            let (offset, len) = (first * 512, count as u32 * 512);
            if rng.below(10) == 0 {
                client
                    .send(WRITE_ZEROES, 0, sent, offset, len, &[])
                    .expect("sent");
            } else {
                let data: Vec<u8> = (0..count)
                    .flat_map(|at| sector(writer, sent, first + at))
                    .collect();
                client
                    .send(WRITE, 0, sent, offset, len, &data)
                    .expect("sent");
            }
            sent += 1;
        } else {
            assert_eq!(client.receive().expect("an answer").1, 0);
            answered += 1;
        }
    }
    client.disconnect();
}

fn fight(protocol: &'static str, tmpfs: bool) {
    let mut plan = Plan::new(protocol);
    plan.tmpfs = tmpfs;
    let mut stage = Stage::in_sync(plan);
    let export = stage.nodes[0].export.clone();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let export = &export;
            scope.spawn(move || write_on_the_same_blocks(export, writer));
        }
    });
    stage.wait_in_sync();
    let content = stage.stop_and_compare();
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().expect("eight"));
    let mut written = 0;
    for (at, bytes) in content[..(BLOCKS * 4096) as usize].chunks(512).enumerate() {
        if bytes.iter().all(|&b| b == 0) {
            continue;
        }
        let (writer, write) = (number(bytes) - 1, number(&bytes[8..]));
        assert!(
            writer < WRITERS && write < WRITES,
            "sector {at} was never written so"
        );
        assert!(
            bytes == sector(writer, write, at as u64),
            "sector {at} is torn"
        );
        written += 1;
    }
    assert!(written > BLOCKS, "most sectors hold a write");
}

#[test]
fn overlapping_writes_end_the_same_on_both_disks_under_a() {
    fight("A", true);
}

#[test]
fn overlapping_writes_end_the_same_on_both_disks_under_b() {
    fight("B", false);
}

#[test]
fn overlapping_writes_end_the_same_on_both_disks_under_c() {
    fight("C", false);
    fight("C", true);
}

//! The ring against a plain table: whatever one write does to the block it was made for, the state
//! before or after it is found.

use super::*;
use proptest::prelude::*;

const ID: Identity = Identity {
    device_uuid: 77,
    reign: 0x1234_5678_9abc_def0,
};

/// A log as its writer sees it.
struct Log {
    ring: Vec<u8>,
    table: Vec<u32>,
    sequence: u64,
    part: usize,
    identity: Identity,
}

impl Log {
    fn new(blocks: usize, slots: usize, part: usize) -> Self {
        let mut log = Self {
            ring: vec![0; blocks * BLOCK],
            table: vec![NO_EXTENT; slots],
            sequence: 0,
            part,
            identity: ID,
        };
        log.write(&[]);
        log
    }

    /// The next block, and its place.
    fn next(&mut self, updates: &[(u16, u32)]) -> (usize, Box<[u8; BLOCK]>) {
        self.sequence += 1;
        for &(slot, extent) in updates {
            self.table[usize::from(slot)] = extent;
        }
        let new = NewBlock {
            identity: self.identity,
            sequence: self.sequence,
            node: 3,
            slots: self.table.len() as u16,
            part: self.part,
        };
        let block = new.encode(updates.iter().copied(), |slot| self.table[slot]);
        let place = self.sequence as usize % (self.ring.len() / BLOCK);
        (place * BLOCK, block)
    }

    fn write(&mut self, updates: &[(u16, u32)]) {
        let (at, block) = self.next(updates);
        self.ring[at..at + BLOCK].copy_from_slice(&block[..]);
    }

    fn active(&self) -> Vec<u32> {
        let mut list: Vec<u32> = self
            .table
            .iter()
            .copied()
            .filter(|&e| e != NO_EXTENT)
            .collect();
        list.sort_unstable();
        list.dedup();
        list
    }

    fn recovered(&self) -> Result<Vec<u32>, LogError> {
        recover(&self.ring, &self.identity)
    }
}

/// Blocks, slots, part of the table in a block: as tight as is allowed, or with room.
fn sizes() -> impl Strategy<Value = (usize, usize, usize)> {
    (2usize..8, 1usize..6)
        .prop_flat_map(|(blocks, part)| (Just(blocks), 1..=(blocks - 1) * part, Just(part)))
}

/// A writer changes a slot once in a block.
fn changes() -> impl Strategy<Value = Vec<Vec<(u16, u32)>>> {
    let one = prop::collection::vec((any::<u16>(), 0u32..50), 0..4);
    prop::collection::vec(one, 1..60)
}

fn once(updates: Vec<(u16, u32)>, slots: usize) -> Vec<(u16, u32)> {
    let mut updates: Vec<_> = updates
        .into_iter()
        .map(|(slot, extent)| (slot % slots as u16, extent))
        .collect();
    updates.sort_unstable();
    updates.dedup_by_key(|u| u.0);
    updates
}

proptest! {
    #[test]
    fn every_torn_block_leaves_the_state_before_or_after(
        (blocks, slots, part) in sizes(), changes in changes(), cut in 0usize..=8, garbage: bool,
    ) {
        let mut log = Log::new(blocks, slots, part);
        for updates in changes {
            let updates: Vec<_> =
                once(updates, slots);
            let before = log.active();
            let (at, block) = log.next(&updates);
            let mut torn = log.ring.clone();
            torn[at..at + cut * 512].copy_from_slice(&block[..cut * 512]);
            if garbage && cut < 8 {
                torn[at + cut * 512..at + (cut + 1) * 512].fill(0xa5);
            }
            let found = recover(&torn, &ID).expect("one torn block costs nothing");
            prop_assert!(found == before || found == log.active(), "{found:?}");
            log.ring[at..at + BLOCK].copy_from_slice(&block[..]);
            prop_assert_eq!(log.recovered(), Ok(log.active()));
        }
    }

    #[test]
    fn a_damaged_block_is_noticed_or_was_not_needed(
        (blocks, slots, part) in sizes(), changes in changes(), which: usize, byte in 0..BLOCK,
    ) {
        let mut log = Log::new(blocks, slots, part);
        let mut states = vec![log.active()];
        for updates in changes {
            let updates: Vec<_> =
                once(updates, slots);
            log.write(&updates);
            states.push(log.active());
        }
        let newest = log.sequence as usize % blocks;
        let block = which % blocks;
        log.ring[block * BLOCK + byte] ^= 0x40;
        match log.recovered() {
            Err(_) => {}
            // The newest one cannot be told from one that was being written.
            Ok(found) if block == newest => prop_assert_eq!(&found, &states[states.len() - 2]),
            Ok(found) => prop_assert_eq!(&found, &states[states.len() - 1]),
        }
    }

    #[test]
    fn garbage_never_panics(mut ring in prop::collection::vec(any::<u8>(), 3 * BLOCK..=3 * BLOCK)) {
        for block in ring.chunks_exact_mut(BLOCK) {
            put(block, 0, &MAGIC.to_le_bytes());
            put(block, 4, &VERSION.to_le_bytes());
            put(block, 8, &u64::from(block[8] % 4).to_le_bytes());
            put(block, 24, &ID.device_uuid.to_le_bytes());
            put(block, 32, &ID.reign.to_le_bytes());
            let crc = block_crc(block, CRC_AT);
            put(block, CRC_AT, &crc.to_le_bytes());
        }
        let _ = recover(&ring, &ID);
    }
}

#[test]
fn all_slots_of_the_largest_table_are_found() {
    let slots = most_slots(super::super::layout::ACTIVITY_LOG_LEN);
    assert_eq!(slots, 12_240, "said in docs/configuration.md");
    let mut log = Log::new(16, slots, usize::MAX);
    for first in (0..slots).step_by(MAX_UPDATES) {
        let updates: Vec<_> = (first..slots.min(first + MAX_UPDATES))
            .map(|slot| (slot as u16, 1_000_000 + slot as u32))
            .collect();
        log.write(&updates);
    }
    assert_eq!(log.recovered().map(|e| e.len()), Ok(slots));
    for _ in 0..40 {
        let (at, _) = log.next(&[]);
        log.ring[at..at + BLOCK].fill(0);
        assert_eq!(log.recovered().map(|e| e.len()), Ok(slots));
        log.sequence -= 1;
        log.write(&[]);
    }
}

#[test]
fn another_reign_counts_for_nothing_and_none_is_told() {
    let mut log = Log::new(16, 67, usize::MAX);
    for i in 0..40 {
        log.write(&[(i % 67, u32::from(i))]);
    }
    let other = Identity { reign: 5, ..ID };
    assert_eq!(recover(&log.ring, &other), Err(LogError::NoBlock));
    let none = Identity { reign: 0, ..ID };
    assert_eq!(recover(&log.ring, &none), Err(LogError::NotKept));
    // A new reign, with another number of slots, in the same ring.
    (log.identity, log.sequence, log.table) = (other, 0, vec![NO_EXTENT; 3]);
    log.write(&[]);
    assert_eq!(log.recovered(), Ok(vec![]));
    log.write(&[(1, 9)]);
    assert_eq!(log.recovered(), Ok(vec![9]));
}

#[test]
fn every_changed_byte_of_a_block_is_noticed() {
    let mut log = Log::new(2, 5, usize::MAX);
    log.write(&[(1, 2), (2, 7)]);
    let whole = log.ring.clone();
    for byte in 0..BLOCK {
        log.ring.clone_from(&whole);
        log.ring[byte] ^= 0x10;
        assert_eq!(belongs(&log.ring[..BLOCK], &ID), None, "byte {byte}");
    }
}

//! A block of the activity log on disk, and what a ring of them says.
//!
//! ```text
//!    0 magic u32 "TWAL"   4 version u16   6 node u8   7 reserved
//!    8 sequence u64      16 crc u32      20 slots u16  22 updates u16
//!   24 device_uuid u64   32 reign u64    40 first u16  42 count u16  44 reserved
//!   64 slots of the updates [128 × u16]
//!  320 extents of the updates [128 × u32]
//!  832 extents of the slots first, first + 1, … (modulo slots) [816 × u32]
//! ```
//!
//! A reign is the time from a promotion to its end; its blocks carry its random number, which the
//! superblock names, and count from 1. Block `n` lies at place `n` modulo the blocks of the ring.
//! Each says which slots changed, and a part of the whole table that moves on from block to block,
//! so that the ring always holds the whole table, even while one block of it is being overwritten.
//!
//! Only one block is written at a time. So at most the one after the newest may be torn, and what it
//! would have said was not relied upon. Anything else that is not as it should be makes the log
//! unusable, and the caller takes every block of the device as possibly different.

use super::{BLOCK, VERSION, block_crc, get_u16, get_u32, get_u64, put};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

const MAGIC: u32 = u32::from_le_bytes(*b"TWAL");
const CRC_AT: usize = 16;
const SLOTS_AT: usize = 64;
const EXTENTS_AT: usize = 320;
const TABLE_AT: usize = 832;
/// Changes in one block at most.
pub const MAX_UPDATES: usize = (EXTENTS_AT - SLOTS_AT) / 2;
/// Slots of the table in one block at most.
pub const TABLE_PART: usize = (BLOCK - TABLE_AT) / 4;
/// A slot without an extent.
pub const NO_EXTENT: u32 = u32::MAX;

/// Slots a ring of so many bytes can carry: without the block that is being overwritten the others
/// must still hold the whole table.
pub const fn most_slots(ring_len: u64) -> usize {
    let blocks = (ring_len / BLOCK as u64) as usize;
    let most = blocks.saturating_sub(1) * TABLE_PART;
    if most > u16::MAX as usize - 1 {
        u16::MAX as usize - 1
    } else {
        most
    }
}

/// What all blocks of a reign say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Of the metadata.
    pub device_uuid: u64,
    /// Random, from the superblock; 0: none.
    pub reign: u64,
}

/// Why a log cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The superblock names no reign: a version without an activity log was Primary last.
    #[error("it was not kept: a version of twinblk without an activity log was Primary last")]
    NotKept,
    /// Not even the first block of the reign is there.
    #[error("no block of it belongs to the last time this node was Primary")]
    NoBlock,
    /// A block that is needed is missing.
    #[error("block {0} of it is missing or damaged")]
    Missing(u64),
    /// A block contradicts the others or itself.
    #[error("block {0} of it makes no sense")]
    Senseless(u64),
    /// Not readable at all.
    #[error("it cannot be read (errno {0})")]
    Read(i32),
}

/// A block to be written.
#[derive(Clone, Copy, Debug)]
pub struct NewBlock {
    /// Whose.
    pub identity: Identity,
    /// Its number in the reign, from 1.
    pub sequence: u64,
    /// Node whose writes it covers.
    pub node: u8,
    /// Slots of the table.
    pub slots: u16,
    /// Slots of the table in one block; `usize::MAX`: as many as fit. Fewer only in tests.
    pub part: usize,
}

impl NewBlock {
    /// First slot of the table's part, and how many.
    fn window(&self) -> (u16, u16) {
        let slots = u64::from(self.slots.max(1));
        let part = self.part.min(TABLE_PART).min(usize::from(self.slots)) as u64;
        let first = (self.sequence.wrapping_sub(1) % slots) * part % slots;
        (first as u16, part as u16)
    }

    /// Encodes it. `updates` are at most [`MAX_UPDATES`] (slot, extent); `extent_of` tells the table
    /// as it is with them.
    pub fn encode(
        &self,
        updates: impl Iterator<Item = (u16, u32)>,
        extent_of: impl Fn(usize) -> u32,
    ) -> Box<[u8; BLOCK]> {
        let mut block = Box::new([0u8; BLOCK]);
        let b = &mut block[..];
        put(b, 0, &MAGIC.to_le_bytes());
        put(b, 4, &VERSION.to_le_bytes());
        b[6] = self.node;
        put(b, 8, &self.sequence.to_le_bytes());
        put(b, 20, &self.slots.to_le_bytes());
        let mut count = 0u16;
        for (i, (slot, extent)) in updates.take(MAX_UPDATES).enumerate() {
            put(b, SLOTS_AT + i * 2, &slot.to_le_bytes());
            put(b, EXTENTS_AT + i * 4, &extent.to_le_bytes());
            count += 1;
        }
        put(b, 22, &count.to_le_bytes());
        put(b, 24, &self.identity.device_uuid.to_le_bytes());
        put(b, 32, &self.identity.reign.to_le_bytes());
        let (first, part) = self.window();
        put(b, 40, &first.to_le_bytes());
        put(b, 42, &part.to_le_bytes());
        let slots = usize::from(self.slots.max(1));
        for i in 0..usize::from(part) {
            let slot = (usize::from(first) + i) % slots;
            put(b, TABLE_AT + i * 4, &extent_of(slot).to_le_bytes());
        }
        let crc = block_crc(b, CRC_AT);
        put(b, CRC_AT, &crc.to_le_bytes());
        block
    }
}

/// A whole block of the reign in its place: (sequence, slots). `None` for anything else.
fn belongs(block: &[u8], identity: &Identity) -> Option<(u64, u16)> {
    let whole = get_u32(block, 0) == MAGIC && get_u32(block, CRC_AT) == block_crc(block, CRC_AT);
    let ours = whole
        && get_u16(block, 4) == VERSION
        && get_u64(block, 24) == identity.device_uuid
        && get_u64(block, 32) == identity.reign;
    ours.then(|| (get_u64(block, 8), get_u16(block, 20)))
}

/// The extents a ring says are active, ascending. `ring` is a whole number of blocks.
pub fn recover(ring: &[u8], identity: &Identity) -> Result<Vec<u32>, LogError> {
    if identity.reign == 0 {
        return Err(LogError::NotKept);
    }
    let blocks = ring.len() / BLOCK;
    let at = |sequence: u64| {
        let place = (sequence % blocks as u64) as usize;
        &ring[place * BLOCK..(place + 1) * BLOCK]
    };
    let newest = ring
        .chunks_exact(BLOCK)
        .filter_map(|block| belongs(block, identity))
        .max();
    let Some((newest, slots)) = newest else {
        return Err(LogError::NoBlock);
    };
    let slots = usize::from(slots);
    if slots == 0 || newest == 0 {
        return Err(LogError::Senseless(newest));
    }
    // Newest first: what is known of a slot already is newer.
    let mut table: Vec<Option<u32>> = vec![None; slots];
    let mut known = 0;
    let oldest = newest.saturating_sub(blocks as u64 - 1).max(1);
    // From the beginning of the reign on, what was never named is empty.
    let mut from_the_beginning = false;
    for sequence in (oldest..=newest).rev() {
        if known == slots {
            break;
        }
        let block = at(sequence);
        match belongs(block, identity) {
            Some((found, count)) if found == sequence => {
                if usize::from(count) != slots {
                    return Err(LogError::Senseless(sequence));
                }
            }
            // The place after the newest block: it may be torn, and its old content gone.
            _ if sequence + blocks as u64 == newest + 1 => break,
            _ => return Err(LogError::Missing(sequence)),
        }
        from_the_beginning = sequence == 1;
        let updates = usize::from(get_u16(block, 22));
        let (first, part) = (get_u16(block, 40), get_u16(block, 42));
        let (first, part) = (usize::from(first), usize::from(part));
        if updates > MAX_UPDATES || part > TABLE_PART.min(slots) || first >= slots {
            return Err(LogError::Senseless(sequence));
        }
        let changed = (0..updates).map(|i| {
            let slot = usize::from(get_u16(block, SLOTS_AT + i * 2));
            (slot, get_u32(block, EXTENTS_AT + i * 4))
        });
        let part = (0..part).map(|i| ((first + i) % slots, get_u32(block, TABLE_AT + i * 4)));
        for (slot, extent) in changed.chain(part) {
            let Some(entry) = table.get_mut(slot) else {
                return Err(LogError::Senseless(sequence));
            };
            if entry.is_none() {
                *entry = Some(extent);
                known += 1;
            }
        }
    }
    if known < slots && !from_the_beginning {
        return Err(LogError::Missing(oldest));
    }
    let mut extents: Vec<u32> = table
        .into_iter()
        .flatten()
        .filter(|&extent| extent != NO_EXTENT)
        .collect();
    extents.sort_unstable();
    extents.dedup();
    Ok(extents)
}

#[cfg(test)]
#[path = "log_block_tests.rs"]
mod tests;

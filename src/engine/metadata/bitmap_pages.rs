//! A page of a bitmap on disk: 64 bytes of header, then the bits.
//!
//! ```text
//!  0 magic u32 "TWBP"   4 version u16   6 slot u8   7 reserved
//!  8 page u64          16 crc u32      20 reserved
//! 64 bits, least significant first
//! ```

use super::{BLOCK, VERSION, block_crc, get_u16, get_u32, get_u64, put};
use alloc::boxed::Box;

const MAGIC: u32 = u32::from_le_bytes(*b"TWBP");
const HEADER: usize = 64;
const CRC_AT: usize = 16;
/// Words of 64 bits in a page.
pub const WORDS_PER_PAGE: usize = (BLOCK - HEADER) / 8;
/// Bits in a page.
pub const BITS_PER_PAGE: u64 = WORDS_PER_PAGE as u64 * 64;

/// What is wrong with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Not a bitmap page at all.
    #[error("not a bitmap page")]
    Magic,
    /// Written by another version.
    #[error("bitmap page of version {0}")]
    Version(u16),
    /// Damaged or half written.
    #[error("checksum mismatch")]
    Checksum,
    /// A page of another place.
    #[error("page {page} of slot {slot} found in its place")]
    Misplaced {
        /// Slot it says.
        slot: u8,
        /// Page it says.
        page: u64,
    },
}

/// Encodes a page; words beyond `words` are zero.
pub fn encode(slot: u8, page: u64, words: &[u64]) -> Box<[u8; BLOCK]> {
    let mut block = Box::new([0u8; BLOCK]);
    put(&mut block[..], 0, &MAGIC.to_le_bytes());
    put(&mut block[..], 4, &VERSION.to_le_bytes());
    block[6] = slot;
    put(&mut block[..], 8, &page.to_le_bytes());
    for (i, word) in words.iter().take(WORDS_PER_PAGE).enumerate() {
        put(&mut block[..], HEADER + i * 8, &word.to_le_bytes());
    }
    let crc = block_crc(&block[..], CRC_AT);
    put(&mut block[..], CRC_AT, &crc.to_le_bytes());
    block
}

/// Whether this is a whole page, of whatever slot.
pub fn is_page(block: &[u8]) -> bool {
    block.len() >= BLOCK
        && get_u32(block, 0) == MAGIC
        && get_u32(block, CRC_AT) == block_crc(&block[..BLOCK], CRC_AT)
}

/// Checks a page and yields its words.
pub fn decode(block: &[u8], slot: u8, page: u64) -> Result<impl Iterator<Item = u64>, PageError> {
    if block.len() < BLOCK || get_u32(block, 0) != MAGIC {
        return Err(PageError::Magic);
    }
    let block = &block[..BLOCK];
    if get_u32(block, CRC_AT) != block_crc(block, CRC_AT) {
        return Err(PageError::Checksum);
    }
    if get_u16(block, 4) != VERSION {
        return Err(PageError::Version(get_u16(block, 4)));
    }
    if block[6] != slot || get_u64(block, 8) != page {
        return Err(PageError::Misplaced {
            slot: block[6],
            page: get_u64(block, 8),
        });
    }
    Ok((0..WORDS_PER_PAGE).map(move |i| get_u64(block, HEADER + i * 8)))
}

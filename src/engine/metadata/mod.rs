//! What is on the disk beside the data, byte for byte (see `docs/formats.md`): two superblocks, space
//! for the activity log, and one bitmap per peer. All blocks are 4 KiB, little endian, with magic,
//! version and CRC32C. Pure: bytes in, facts out.

pub mod bitmap_pages;
pub mod check;
pub mod create;
pub mod image;
pub mod layout;
pub mod log_block;
pub mod open;
pub mod search;
pub mod superblock;

/// Bytes of a metadata block.
pub const BLOCK: usize = 4096;
/// [`BLOCK`] for arithmetic on offsets.
pub const BLOCK64: u64 = 4096;
/// Version of all formats here.
pub const VERSION: u16 = 1;
/// Older generations kept.
pub const HISTORY: usize = 16;

/// Name of a generation; the lowest bit says "was Primary" and is masked in comparisons; 0 = none.
pub type Uuid = u64;
/// Generation of a disk that was never synchronised.
pub const UUID_JUST_CREATED: Uuid = 4;

pub(crate) fn get_u16(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

pub(crate) fn get_u32(block: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&block[at..at + 4]);
    u32::from_le_bytes(bytes)
}

pub(crate) fn get_u64(block: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[at..at + 8]);
    u64::from_le_bytes(bytes)
}

pub(crate) fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

/// CRC32C of a block whose checksum field (4 bytes at `at`) counts as zero.
pub(crate) fn block_crc(block: &[u8], at: usize) -> u32 {
    let crc = twinblk_protocol::checksum::crc32c(&block[..at]);
    let crc = twinblk_protocol::checksum::crc32c_append(crc, &[0; 4]);
    twinblk_protocol::checksum::crc32c_append(crc, &block[at + 4..])
}

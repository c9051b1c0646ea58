//! Digests by which two nodes compare blocks without sending them.
//!
//! Equal digests are taken for equal blocks, so a mere checksum will not do: a CRC of 32 bits lets one
//! damaged block in four thousand million pass, and lets it pass every time. The first 128 bits of
//! SHA-256 do not. The digest of zeroes is known beforehand: holes cost a look at their bytes.

use alloc::vec::Vec;
use sha2::{Digest, Sha256};

/// Bytes of a block that has a digest of its own.
pub const DIGEST_BLOCK: usize = 4096;
/// Bytes of a digest.
pub const DIGEST_LEN: usize = 16;

/// The digest of a whole block of zeroes.
const OF_ZEROES: [u8; DIGEST_LEN] = [
    0xad, 0x7f, 0xac, 0xb2, 0x58, 0x6f, 0xc6, 0xe9, 0x66, 0xc0, 0x04, 0xd7, 0xd1, 0xd1, 0x6b, 0x02,
];

/// Bytes of the digests of `len` bytes.
pub const fn digests_len(len: u64) -> u64 {
    len.div_ceil(DIGEST_BLOCK as u64) * DIGEST_LEN as u64
}

/// The digests of all blocks of `bytes`, one after the other; the last block may be short.
pub fn digests(bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::with_capacity(bytes.len().div_ceil(DIGEST_BLOCK) * DIGEST_LEN);
    for block in bytes.chunks(DIGEST_BLOCK) {
        if block.len() == DIGEST_BLOCK && is_zero(block) {
            all.extend_from_slice(&OF_ZEROES);
        } else {
            all.extend_from_slice(&Sha256::digest(block)[..DIGEST_LEN]);
        }
    }
    all
}

/// Every byte is zero. Most data show it at once; the rest goes in steps the compiler makes wide.
fn is_zero(block: &[u8]) -> bool {
    block
        .chunks(128)
        .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_the_beginning_of_sha_256() {
        let mut bytes = alloc::vec![0; 2 * DIGEST_BLOCK];
        bytes.extend_from_slice(b"abc");
        let all = digests(&bytes);
        assert_eq!(all.len() as u64, digests_len(bytes.len() as u64));
        let of_zeroes = &Sha256::digest([0; DIGEST_BLOCK])[..DIGEST_LEN];
        assert_eq!(&all[..DIGEST_LEN], of_zeroes);
        assert_eq!(&all[DIGEST_LEN..2 * DIGEST_LEN], of_zeroes);
        // FIPS 180-2, appendix B.1.
        assert_eq!(&all[2 * DIGEST_LEN..][..4], &[0xba, 0x78, 0x16, 0xbf]);
    }

    #[test]
    fn one_bit_anywhere_changes_its_blocks_digest_and_no_other() {
        let bytes: Vec<u8> = (0..3 * DIGEST_BLOCK).map(|i| (i / 7) as u8).collect();
        let all = digests(&bytes);
        for at in [0, DIGEST_BLOCK - 1, DIGEST_BLOCK, 3 * DIGEST_BLOCK - 1] {
            let mut other = bytes.clone();
            other[at] ^= 0x10;
            let differ: Vec<usize> = all
                .chunks(DIGEST_LEN)
                .zip(digests(&other).chunks(DIGEST_LEN))
                .enumerate()
                .filter(|(_, (a, b))| a != b)
                .map(|(i, _)| i)
                .collect();
            assert_eq!(differ, [at / DIGEST_BLOCK]);
        }
    }
}

//! Run-length form of a piece of a bitmap. Memory is bounded on both sides: a piece ends when it
//! covers all bits asked for or is as long as the caller allows.
//!
//! A piece is a sequence of items, each a LEB128 number `n`:
//! * `n & 3 == 0`: `n >> 2` clear bits;
//! * `n & 3 == 1`: `n >> 2` set bits;
//! * `n & 3 == 2`: `n >> 2` (1 to 512) words of 64 bits follow, little endian; the last may be partly
//!   beyond the piece, those bits are zero.

use alloc::vec::Vec;

/// Words in one literal item.
const MAX_WORDS: u64 = 512;
/// Changes of polarity within a word above which plain words are shorter than runs.
const RAGGED: u32 = 6;

/// A piece that breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RleError {
    /// Ends in the middle of an item.
    #[error("the piece is cut off")]
    Truncated,
    /// Unknown item, or one of no length.
    #[error("an item that does not exist")]
    Item,
    /// More or fewer bits than announced.
    #[error("covers {got} bits instead of {expected}")]
    Length {
        /// Covered.
        got: u64,
        /// Announced.
        expected: u64,
    },
}

fn word(words: &[u64], bit: u64) -> u64 {
    // 64 bits from `bit` on, zero beyond the end.
    let at = usize::try_from(bit / 64).unwrap_or(usize::MAX);
    let low = words.get(at).copied().unwrap_or(0) >> (bit % 64);
    let high = match bit % 64 {
        0 => 0,
        shift => words.get(at.saturating_add(1)).copied().unwrap_or(0) << (64 - shift),
    };
    low | high
}

fn run(words: &[u64], first: u64, end: u64) -> (bool, u64) {
    let value = word(words, first) & 1 == 1;
    let mut bit = first;
    while bit < end {
        let w = word(words, bit);
        let same = if value {
            w.trailing_ones()
        } else {
            w.trailing_zeros()
        };
        bit += u64::from(same);
        if same < 64 {
            break;
        }
    }
    (value, bit.min(end) - first)
}

fn put(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Encodes up to `nbits` bits from `first_bit` on into at most about `max_bytes` bytes; answers how
/// many bits the piece covers. Bit `i` is `words[i / 64] >> (i % 64) & 1`.
pub fn encode(
    words: &[u64],
    first_bit: u64,
    nbits: u64,
    max_bytes: usize,
    out: &mut Vec<u8>,
) -> u64 {
    let start = out.len();
    let end = first_bit + nbits;
    let mut bit = first_bit;
    // An item is at most 10 bytes, or 3 + 4096 for words.
    while bit < end && out.len() - start + 10 <= max_bytes.max(10) {
        let ragged = |bit: u64| {
            let w = word(words, bit);
            end - bit >= 64 && (w ^ w >> 1).count_ones() > RAGGED
        };
        if ragged(bit) {
            let room = (max_bytes.saturating_sub(out.len() - start + 3) / 8) as u64;
            let most = MAX_WORDS.min(room.max(1));
            let mut count = 1;
            while count < most && ragged(bit + count * 64) {
                count += 1;
            }
            put(out, count << 2 | 2);
            for i in 0..count {
                out.extend_from_slice(&word(words, bit + i * 64).to_le_bytes());
            }
            bit += count * 64;
        } else {
            let (value, len) = run(words, bit, end);
            put(out, len << 2 | u64::from(value));
            bit += len;
        }
    }
    bit - first_bit
}

/// Decodes a piece of exactly `nbits` bits; calls `set(first, len)` for each run of set bits,
/// relative to the piece's first bit.
pub fn decode(bytes: &[u8], nbits: u64, set: &mut dyn FnMut(u64, u64)) -> Result<(), RleError> {
    let mut rest = bytes.iter();
    let mut bit = 0u64;
    while !rest.as_slice().is_empty() {
        let mut n = 0u64;
        for shift in (0..).step_by(7) {
            let &b = rest.next().ok_or(RleError::Truncated)?;
            if shift > 63 || shift == 63 && b > 1 {
                return Err(RleError::Item);
            }
            n |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                break;
            }
        }
        let (kind, len) = (n & 3, n >> 2);
        let covered = if kind == 2 {
            len.min(MAX_WORDS + 1) * 64
        } else {
            len
        };
        if len == 0 || kind == 3 || kind == 2 && len > MAX_WORDS {
            return Err(RleError::Item);
        }
        let next = bit.saturating_add(covered);
        if next > nbits {
            return Err(RleError::Length {
                got: next,
                expected: nbits,
            });
        }
        match kind {
            1 => set(bit, len),
            2 => {
                for i in 0..len {
                    let mut w = [0; 8];
                    for b in &mut w {
                        *b = *rest.next().ok_or(RleError::Truncated)?;
                    }
                    literal(u64::from_le_bytes(w), bit + i * 64, set);
                }
            }
            _ => {}
        }
        bit = next;
    }
    if bit == nbits {
        Ok(())
    } else {
        Err(RleError::Length {
            got: bit,
            expected: nbits,
        })
    }
}

fn literal(mut w: u64, first: u64, set: &mut dyn FnMut(u64, u64)) {
    let mut at = 0;
    while w != 0 {
        let skip = w.trailing_zeros();
        w >>= skip;
        let len = w.trailing_ones();
        set(first + u64::from(at + skip), u64::from(len));
        at += skip + len;
        w = if len == 64 { 0 } else { w >> len };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(words: &[u64], nbits: u64, max: usize) {
        let mut back = vec![0u64; words.len()];
        let mut first = 0;
        while first < nbits {
            let mut bytes = Vec::new();
            let covered = encode(words, first, nbits - first, max, &mut bytes);
            assert!(covered > 0, "progress");
            assert!(bytes.len() <= max.max(16), "{} > {max}", bytes.len());
            decode(&bytes, covered, &mut |at, len| {
                for b in first + at..first + at + len {
                    back[(b / 64) as usize] |= 1 << (b % 64);
                }
            })
            .expect("own encoding");
            first += covered;
        }
        for b in 0..nbits {
            let (i, s) = ((b / 64) as usize, b % 64);
            assert_eq!(words[i] >> s & 1, back[i] >> s & 1, "bit {b}");
        }
    }

    proptest! {
        #[test]
        fn any_bitmap_survives(
            words in prop::collection::vec(prop_oneof![
                Just(0u64), Just(u64::MAX), any::<u64>(), (0u32..64).prop_map(|s| 1u64 << s),
            ], 1..200),
            cut in 0u64..64, max in 12usize..300,
        ) {
            round_trip(&words, words.len() as u64 * 64 - cut, max);
        }

        #[test]
        fn garbage_is_refused_or_decoded_but_never_more_than_announced(
            bytes in prop::collection::vec(any::<u8>(), 0..200), nbits in 0u64..100_000,
        ) {
            let mut most = 0;
            let _ = decode(&bytes, nbits, &mut |at, len| most = most.max(at + len));
            prop_assert!(most <= nbits);
        }
    }

    #[test]
    fn a_clean_terabyte_is_a_few_bytes() {
        let words = vec![0u64; 1 << 22];
        let mut bytes = Vec::new();
        assert_eq!(encode(&words, 0, 1 << 28, 1024, &mut bytes), 1 << 28);
        assert!(bytes.len() < 8);
    }
}

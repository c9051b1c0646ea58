//! Answers to BLOCK_STATUS ("Metadata querying").

use crate::constants::reply_type;
use crate::reply::chunk;

/// `base:allocation`: the range takes no space.
pub const STATE_HOLE: u32 = 1;
/// `base:allocation`: the range reads as zeroes.
pub const STATE_ZERO: u32 = 2;
/// Most extents in an answer.
pub const MAX_EXTENTS: usize = 1024;

/// A range with one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub length: u32,
    /// Flags as the context defines them.
    pub flags: u32,
}

/// Builds an answer from consecutive ranges: merges equal neighbours, stops at the end of the request,
/// at [`MAX_EXTENTS`], or after one extent if the client wants only that.
#[derive(Debug)]
pub struct Extents {
    left: u64,
    one: bool,
    list: Vec<Extent>,
}

impl Extents {
    /// For a request over `length` bytes.
    pub fn new(length: u32, one: bool) -> Self {
        Self {
            left: u64::from(length),
            one,
            list: Vec::new(),
        }
    }

    /// Adds the next range. Answers whether more are wanted.
    pub fn push(&mut self, length: u64, flags: u32) -> bool {
        let length = length.min(self.left);
        if length == 0 {
            return self.left > 0;
        }
        let step = u32::try_from(length).unwrap_or(u32::MAX);
        let full = self.one || self.list.len() >= MAX_EXTENTS;
        match self.list.last_mut() {
            // The sum stays within the request, which is below 4 GiB.
            Some(last) if last.flags == flags => last.length += step,
            Some(_) if full => {
                self.left = 0;
                return false;
            }
            _ => self.list.push(Extent {
                length: step,
                flags,
            }),
        }
        self.left -= length;
        self.left > 0
    }

    /// The extents; never empty for a request of at least one byte that got any range.
    pub fn finish(self) -> Vec<Extent> {
        self.list
    }
}

/// Appends a BLOCK_STATUS chunk.
pub fn block_status(
    out: &mut Vec<u8>,
    cookie: u64,
    context_id: u32,
    extents: &[Extent],
    last: bool,
) {
    let len = u32::try_from(4 + 8 * extents.len()).unwrap_or(0);
    chunk(out, reply_type::BLOCK_STATUS, last, cookie, len);
    out.extend_from_slice(&context_id.to_be_bytes());
    for extent in extents {
        out.extend_from_slice(&extent.length.to_be_bytes());
        out.extend_from_slice(&extent.flags.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_merged_and_the_request_is_the_limit() {
        let mut e = Extents::new(1000, false);
        assert!(e.push(100, 0));
        assert!(e.push(100, 0));
        assert!(e.push(300, 3));
        assert!(!e.push(5000, 0));
        let want = [(200, 0), (300, 3), (500, 0)].map(|(length, flags)| Extent { length, flags });
        assert_eq!(e.finish(), want);
    }

    #[test]
    fn one_means_one() {
        let mut e = Extents::new(1000, true);
        assert!(e.push(100, 0));
        assert!(!e.push(100, 1));
        assert_eq!(
            e.finish(),
            [Extent {
                length: 100,
                flags: 0
            }]
        );
    }
}

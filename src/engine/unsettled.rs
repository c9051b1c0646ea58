//! Writes that came from a Primary and of which it is not known yet that every node in step has them
//! on stable storage. Should the Primary be lost, these are the blocks in which the survivors may
//! differ. Only kept in resources of three and more nodes.
//!
//! Invariant: entries are in the order of the stream; what has left was settled, by the Primary's word.

use alloc::collections::VecDeque;

/// One write: volume index, offset, length.
pub(crate) type Range = (usize, u64, u64);

/// The writes of one connection.
#[derive(Debug, Default)]
pub(crate) struct Unsettled {
    entries: VecDeque<Range>,
    /// Writes settled since the connection began.
    settled: u64,
}

impl Unsettled {
    /// A write arrived.
    pub(crate) fn push(&mut self, volume: usize, offset: u64, len: u64) {
        self.entries.push_back((volume, offset, len));
    }

    /// So many writes of this connection are settled. False if that cannot be.
    pub(crate) fn settle(&mut self, writes: u64) -> bool {
        let Some(more) = writes.checked_sub(self.settled) else {
            return false;
        };
        if more > self.entries.len() as u64 {
            return false;
        }
        for _ in 0..more {
            self.entries.pop_front();
        }
        self.settled = writes;
        true
    }

    /// What is left.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Range> {
        self.entries.iter()
    }

    /// The connection is over; answers what is left.
    pub(crate) fn take(&mut self) -> VecDeque<Range> {
        self.settled = 0;
        core::mem::take(&mut self.entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_settled_leaves_in_order() {
        let mut u = Unsettled::default();
        for n in 0..4 {
            u.push(0, n * 4096, 4096);
        }
        assert!(u.settle(1) && u.settle(3));
        assert_eq!(u.iter().copied().collect::<Vec<_>>(), [(0, 12288, 4096)]);
        assert!(!u.settle(2), "never less");
        assert!(!u.settle(5), "never more than there were");
        assert_eq!(u.take().len(), 1);
        u.push(0, 0, 512);
        assert!(u.settle(1), "a new connection counts anew");
    }
}

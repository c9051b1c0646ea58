//! Out-of-sync bitmap of one volume towards one peer: one bit per block, in memory in full, with a
//! mark per 4 KiB disk page whose content the disk does not have yet.
//!
//! Invariants: bits beyond the device are never set; the count always equals the number of set bits.

use crate::metadata::BLOCK;
use crate::metadata::bitmap_pages::{self, BITS_PER_PAGE, WORDS_PER_PAGE};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

/// See the module.
#[derive(Debug)]
pub struct Bitmap {
    words: Vec<u64>,
    bits: u64,
    set: u64,
    size: u64,
    shift: u32,
    /// One bit per disk page.
    dirty: Vec<u64>,
}

fn index(bit: u64) -> usize {
    usize::try_from(bit / 64).unwrap_or(usize::MAX)
}

impl Bitmap {
    /// All clear, for a volume of `size` bytes with `block` bytes (a power of two) per bit.
    pub fn new(size: u64, block: u32) -> Self {
        let mut bitmap = Self {
            words: Vec::new(),
            bits: 0,
            set: 0,
            size: 0,
            shift: block.trailing_zeros(),
            dirty: Vec::new(),
        };
        bitmap.resize(size);
        bitmap
    }

    /// Bits it has.
    pub fn bits(&self) -> u64 {
        self.bits
    }

    /// Bits set.
    pub fn count_set(&self) -> u64 {
        self.set
    }

    /// Bytes per bit.
    pub fn block_size(&self) -> u32 {
        1 << self.shift
    }

    /// The bits, least significant first.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// A copy of the bits, to go back to. Where nothing is marked it takes no memory.
    pub fn snapshot(&self) -> Vec<u64> {
        let mut copy = vec![0; self.words.len()];
        for (to, &from) in copy.iter_mut().zip(&self.words) {
            if from != 0 {
                *to = from;
            }
        }
        copy
    }

    /// Makes the bits what they were; one of another size is not taken.
    pub fn go_back_to(&mut self, snapshot: &[u64]) {
        if snapshot.len() != self.words.len() {
            return;
        }
        for (i, (word, &old)) in self.words.iter_mut().zip(snapshot).enumerate() {
            if *word != old {
                self.set = self.set - u64::from(word.count_ones()) + u64::from(old.count_ones());
                *word = old;
                let page = i / WORDS_PER_PAGE;
                self.dirty[page / 64] |= 1 << (page % 64);
            }
        }
    }

    /// Changes the volume's size; new blocks are clear.
    pub fn resize(&mut self, size: u64) {
        let bits = size.div_ceil(1 << self.shift);
        if bits < self.bits {
            self.change_bits(bits, self.bits, false);
        }
        self.size = size;
        self.bits = bits;
        let words = usize::try_from(bits.div_ceil(64)).unwrap_or(usize::MAX);
        if self.words.is_empty() {
            // Fresh from the system: as long as nothing is marked it takes no memory.
            self.words = vec![0; words];
        } else {
            self.words.resize(words, 0);
        }
        let pages = bits.div_ceil(BITS_PER_PAGE);
        // A page mark beyond a shrunk device stays: its cleared bits still go to the disk.
        let words = usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX);
        if words > self.dirty.len() {
            self.dirty.resize(words, 0);
        }
    }

    /// Marks the blocks a byte range touches; answers how many were clear.
    pub fn set_bytes(&mut self, offset: u64, len: u64) -> u64 {
        let end = offset.saturating_add(len).min(self.size);
        if offset >= end {
            return 0;
        }
        self.change_bits(offset >> self.shift, end.div_ceil(1 << self.shift), true)
    }

    /// Clears the blocks that lie wholly in a byte range (the device's last block counts as whole);
    /// answers how many were set.
    pub fn clear_bytes(&mut self, offset: u64, len: u64) -> u64 {
        let end = offset.saturating_add(len);
        let first = offset.div_ceil(1 << self.shift);
        let last = if end >= self.size {
            self.bits
        } else {
            end >> self.shift
        };
        if first >= last {
            return 0;
        }
        self.change_bits(first, last.min(self.bits), false)
    }

    /// Marks everything.
    pub fn set_all(&mut self) {
        self.change_bits(0, self.bits, true);
    }

    /// Clears everything.
    pub fn clear_all(&mut self) {
        self.change_bits(0, self.bits, false);
    }

    /// Marks `len` bits from `first` (from the peer's bitmap).
    pub fn merge_run(&mut self, first: u64, len: u64) {
        let end = first.saturating_add(len).min(self.bits);
        if first < end {
            self.change_bits(first, end, true);
        }
    }

    /// Whether any block the range touches is marked.
    pub fn any_set_bytes(&self, offset: u64, len: u64) -> bool {
        self.next_run(offset, len)
            .is_some_and(|(at, _)| at < offset.saturating_add(len))
    }

    fn change_bits(&mut self, first: u64, end: u64, value: bool) -> u64 {
        let mut changed = 0;
        let mut bit = first;
        while bit < end {
            let from = bit % 64;
            let upto = (end - (bit - from)).min(64);
            let mask = (u64::MAX >> (64 - (upto - from))) << from;
            let word = &mut self.words[index(bit)];
            let delta = if value { mask & !*word } else { mask & *word };
            if delta != 0 {
                *word ^= delta;
                changed += u64::from(delta.count_ones());
                let page = index(bit) / WORDS_PER_PAGE;
                self.dirty[page / 64] |= 1 << (page % 64);
            }
            bit += upto - from;
        }
        if value {
            self.set += changed;
        } else {
            self.set -= changed;
        }
        changed
    }

    fn next_set(&self, from: u64) -> Option<u64> {
        if from >= self.bits {
            return None;
        }
        let mut i = index(from);
        let mut word = self.words[i] & (u64::MAX << (from % 64));
        loop {
            if word != 0 {
                return Some(i as u64 * 64 + u64::from(word.trailing_zeros()));
            }
            i += 1;
            word = *self.words.get(i)?;
        }
    }

    /// The next run of marked blocks at or after byte `from`, in bytes, at most `max_len` long
    /// (at least one block), clipped to the device.
    pub fn next_run(&self, from: u64, max_len: u64) -> Option<(u64, u64)> {
        let first = self.next_set(from >> self.shift)?;
        let limit = (max_len >> self.shift).max(1);
        let mut end = first + 1;
        while end - first < limit
            && end < self.bits
            && self.words[index(end)] >> (end % 64) & 1 == 1
        {
            end += 1;
        }
        let offset = first << self.shift;
        Some((offset, (end << self.shift).min(self.size) - offset))
    }

    /// These pages go to the disk, whatever is in them: there was no room for them before.
    pub fn rewrite_pages(&mut self, pages: core::ops::Range<u64>) {
        for page in pages {
            let page = usize::try_from(page).unwrap_or(usize::MAX);
            if page / 64 >= self.dirty.len() {
                self.dirty.resize(page / 64 + 1, 0);
            }
            self.dirty[page / 64] |= 1 << (page % 64);
        }
    }

    /// Takes the first page from `from` on that the disk does not have yet.
    pub fn take_dirty_page(&mut self, from: u64) -> Option<u64> {
        let first = index(from);
        let mut mask = u64::MAX << (from % 64);
        for (i, word) in self.dirty.iter_mut().enumerate().skip(first) {
            let found = *word & mask;
            mask = u64::MAX;
            if found != 0 {
                let bit = found.trailing_zeros();
                *word &= !(1 << bit);
                return Some(i as u64 * 64 + u64::from(bit));
            }
        }
        None
    }

    /// The same, of those that hold the marks of a byte range.
    pub fn take_dirty_page_of(&mut self, offset: u64, len: u64) -> Option<u64> {
        let end = offset.saturating_add(len).min(self.size);
        if offset >= end {
            return None;
        }
        let first = (offset >> self.shift) / BITS_PER_PAGE;
        let last = ((end - 1) >> self.shift) / BITS_PER_PAGE;
        for page in first..=last {
            let word = &mut self.dirty[index(page)];
            if *word >> (page % 64) & 1 == 1 {
                *word &= !(1 << (page % 64));
                return Some(page);
            }
        }
        None
    }

    /// Whether the disk lacks anything.
    pub fn has_dirty_pages(&self) -> bool {
        self.dirty.iter().any(|&w| w != 0)
    }

    /// The page as it goes to the disk.
    pub fn encode_page(&self, slot: u8, page: u64) -> Box<[u8; BLOCK]> {
        let at = usize::try_from(page)
            .unwrap_or(usize::MAX)
            .saturating_mul(WORDS_PER_PAGE);
        let words = self.words.get(at..).unwrap_or(&[]);
        bitmap_pages::encode(slot, page, &words[..words.len().min(WORDS_PER_PAGE)])
    }

    /// Takes a page read from the disk.
    pub fn load_page(&mut self, page: u64, words: impl Iterator<Item = u64>) {
        let at = usize::try_from(page)
            .unwrap_or(usize::MAX)
            .saturating_mul(WORDS_PER_PAGE);
        for (i, word) in words.enumerate() {
            let Some(mine) = self.words.get_mut(at.saturating_add(i)) else {
                return;
            };
            let first = (at + i) as u64 * 64;
            let valid = if self.bits - first >= 64 {
                u64::MAX
            } else {
                u64::MAX >> (64 - (self.bits - first))
            };
            let word = word & valid;
            if word != *mine {
                self.set -= u64::from(mine.count_ones());
                self.set += u64::from(word.count_ones());
                *mine = word;
            }
        }
    }

    /// Marks all blocks of a page that could not be read.
    pub fn set_page(&mut self, page: u64) {
        let first = page.saturating_mul(BITS_PER_PAGE).min(self.bits);
        self.change_bits(first, (first + BITS_PER_PAGE).min(self.bits), true);
    }
}

/// For tests and tools: the marked blocks as a list.
impl Bitmap {
    /// Every run of marked bits: the first, and how many.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut at = 0;
        core::iter::from_fn(move || {
            let first = self.next_set(at)?;
            at = self.next_clear(first);
            Some((first, at - first))
        })
    }

    fn next_clear(&self, from: u64) -> u64 {
        let mut at = from;
        while at < self.bits {
            let clear = !self.words[index(at)] >> (at % 64);
            if clear != 0 {
                return (at + u64::from(clear.trailing_zeros())).min(self.bits);
            }
            at = (at / 64 + 1) * 64;
        }
        self.bits
    }

    /// Every marked bit.
    pub fn marked(&self) -> Vec<u64> {
        let mut list = vec![];
        let mut at = 0;
        while let Some(bit) = self.next_set(at) {
            list.push(bit);
            at = bit + 1;
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_merged_can_be_taken_back() {
        let mut bitmap = Bitmap::new(1 << 30, 4096);
        bitmap.set_bytes(0, 8192);
        while bitmap.take_dirty_page(0).is_some() {}
        let before = bitmap.snapshot();
        bitmap.merge_run(1, 200_000);
        while bitmap.take_dirty_page(0).is_some() {}
        bitmap.go_back_to(&before);
        assert_eq!(bitmap.marked(), [0, 1]);
        assert_eq!(bitmap.count_set(), 2);
        assert!(bitmap.has_dirty_pages(), "the disk hears of it");
        let other = Bitmap::new(1 << 20, 4096).snapshot();
        bitmap.go_back_to(&other);
        assert_eq!(bitmap.count_set(), 2, "of another device");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u64, u64),
        Clear(u64, u64),
        Merge(u64, u64),
        All(bool),
        Write,
    }

    proptest! {
        #[test]
        fn behaves_like_a_list_of_bools(
            size in 1u64..40_000_000,
            steps in prop::collection::vec(prop_oneof![
                (any::<u64>(), 1u64..3_000_000).prop_map(|(a, b)| Step::Set(a, b)),
                (any::<u64>(), 1u64..3_000_000).prop_map(|(a, b)| Step::Clear(a, b)),
                (any::<u64>(), 1u64..500).prop_map(|(a, b)| Step::Merge(a, b)),
                any::<bool>().prop_map(Step::All),
                Just(Step::Write),
            ], 1..30),
        ) {
            let bits = size.div_ceil(4096);
            let mut real = Bitmap::new(size, 4096);
            let mut naive = vec![false; usize::try_from(bits).unwrap()];
            let mut disk: Vec<Box<[u8; BLOCK]>> = (0..bits.div_ceil(BITS_PER_PAGE))
                .map(|page| bitmap_pages::encode(1, page, &[])).collect();
            for step in steps {
                match step {
                    Step::Set(o, l) => {
                        let (o, e) = (o % size, (o % size + l).min(size));
                        for b in o / 4096..e.div_ceil(4096) { naive[b as usize] = true; }
                        real.set_bytes(o, l);
                    }
                    Step::Clear(o, l) => {
                        let o = o % size;
                        let last = if o + l >= size { bits } else { (o + l) / 4096 };
                        for b in o.div_ceil(4096)..last { naive[b as usize] = false; }
                        real.clear_bytes(o, l);
                    }
                    Step::Merge(f, l) => {
                        let f = f % bits;
                        for b in f..(f + l).min(bits) { naive[b as usize] = true; }
                        real.merge_run(f, l);
                    }
                    Step::All(v) => {
                        naive.fill(v);
                        if v { real.set_all() } else { real.clear_all() }
                    }
                    Step::Write => while let Some(page) = real.take_dirty_page(0) {
                        disk[page as usize] = real.encode_page(1, page);
                    },
                }
                let want: Vec<u64> = (0..bits).filter(|&b| naive[b as usize]).collect();
                prop_assert_eq!(real.count_set(), want.len() as u64);
                prop_assert_eq!(real.marked(), want);
            }
            // What was written since, with the pages marked dirty written last, is what is read.
            let mut from = 0;
            while let Some(page) = real.take_dirty_page(from) {
                from = page + 1;
                disk[page as usize] = real.encode_page(1, page);
            }
            let mut back = Bitmap::new(size, 4096);
            for (page, block) in disk.iter().enumerate() {
                let words = bitmap_pages::decode(&block[..], 1, page as u64).expect("whole");
                back.load_page(page as u64, words);
            }
            prop_assert_eq!(back.marked(), real.marked());
            let mut from_runs = Bitmap::new(size, 4096);
            let mut end = None;
            for (first, count) in real.runs() {
                prop_assert!(end.is_none_or(|e| e < first) && count > 0, "longest runs, in order");
                end = Some(first + count);
                from_runs.merge_run(first, count);
            }
            prop_assert_eq!(from_runs.marked(), real.marked());
        }
    }

    #[test]
    fn runs_are_clipped_to_limit_and_device() {
        let mut b = Bitmap::new(10 * 4096 + 512, 4096);
        b.set_bytes(4096, 3 * 4096);
        b.set_bytes(10 * 4096, 512);
        assert_eq!(b.next_run(0, 1 << 20), Some((4096, 3 * 4096)));
        assert_eq!(b.next_run(0, 2 * 4096), Some((4096, 2 * 4096)));
        assert_eq!(b.next_run(5 * 4096, 1 << 20), Some((10 * 4096, 512)));
        assert_eq!(
            b.clear_bytes(10 * 4096, 512),
            1,
            "the last, short block is whole"
        );
        assert_eq!(
            b.clear_bytes(4096 + 1, 4096),
            0,
            "half a block is not cleared"
        );
    }

    #[test]
    fn pages_without_bits_are_written_when_there_is_room_for_them() {
        let mut b = Bitmap::new(4096 * BITS_PER_PAGE, 4096);
        b.rewrite_pages(1..130);
        for page in 1..130 {
            assert_eq!(b.take_dirty_page(page / 2), Some(page));
            let block = b.encode_page(0, page);
            let mut words = bitmap_pages::decode(&block[..], 0, page).expect("whole");
            assert!(words.all(|word| word == 0));
        }
        assert_eq!(b.take_dirty_page(0), None);
        b.rewrite_pages(70..71);
        assert_eq!(b.take_dirty_page(71), None, "only what comes after");
        assert_eq!(b.take_dirty_page(70), Some(70));
    }

    #[test]
    fn memory_is_one_bit_per_block_and_little_more() {
        let b = Bitmap::new(1 << 40, 4096);
        let bytes = b.words.capacity() * 8 + b.dirty.capacity() * 8;
        assert!((bytes as u64) < (1 << 40) / 4096 / 8 * 105 / 100, "{bytes}");
    }
}

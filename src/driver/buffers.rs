//! The buffer pool: one page-aligned arena for all payloads of a resource.
//!
//! Invariants:
//! * the arena is divided among three classes of use, once and for all: a flood of client writes can
//!   take no page from resync or from a peer's writes, nor the other way round;
//! * a buffer is a run of 4 KiB pages with a count of holds (the engine or a link, queued sends,
//!   disk jobs); its pages are free only when the last hold is gone, so memory that any operation
//!   still names is never handed out again;
//! * a [`BufId`] carries a generation: one that was released is recognised, never mistaken for its
//!   successor;
//! * who did not get a buffer stands in line, and nobody overtakes the head of the line, so that a
//!   large request is not starved by small ones.

use super::slab::Key;
use rustix::mm::{MapFlags, ProtFlags};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use twinblk_engine::ids::BufId;
use twinblk_protocol::checksum::crc32c;
use twinblk_protocol::frame::MAX_PAYLOAD;

/// Granularity of the pool and alignment of every buffer.
pub(crate) const PAGE: usize = 4096;
/// Pages whose free bits share a word; parts of the arena begin at such borders.
const WORD: usize = 64;
/// Bytes of zeroes at the end of the arena, for disks that must be zeroed by writing.
const ZERO_BYTES: usize = 256 * 1024;
/// Buffers of more pages are taken from the upper end, so that small ones do not break up the space
/// for large ones.
const SMALL_PAGES: usize = 16;
/// Bits of a [`BufId`] that name the first page; the rest is the generation.
const PAGE_BITS: u32 = 20;

/// What a buffer is used for. Each class has its own part of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Reads and writes of NBD clients: half of the arena.
    Client,
    /// Writes and resync blocks that come from a peer: a quarter.
    Peer,
    /// Resync reads: a quarter.
    Resync,
}

/// What is known of the buffer that begins at a page.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// 0 = no buffer begins here.
    holds: u32,
    pages: u32,
    generation: u32,
    /// CRC32C of the first so many bytes.
    crc: Option<(u32, u32)>,
}

#[derive(Debug)]
struct Part {
    pages: Range<usize>,
    /// All pages of the part below this one are in use.
    low: usize,
    used_pages: usize,
    line: VecDeque<Key>,
}

/// The pool.
#[derive(Debug)]
pub(crate) struct Pool {
    base: *mut u8,
    map_len: usize,
    slots: Vec<Slot>,
    /// One bit per page, set = free.
    free: Vec<u64>,
    parts: [Part; 3],
    used_pages: usize,
    /// Pages became free since this was last cleared.
    pub(crate) freed: bool,
    /// Nothing is in flight and nothing will be.
    quiet: bool,
}

impl Pool {
    /// Smallest arena: a peer may send the largest frame, and two clients the largest request.
    pub(crate) const MIN_BYTES: usize = 4 * MAX_PAYLOAD as usize;
    /// Largest arena.
    pub(crate) const MAX_BYTES: usize = (1 << PAGE_BITS) * PAGE / 2;

    /// Maps an arena of about `bytes` (kept within what makes sense). Pages cost nothing until they
    /// are used.
    pub(crate) fn new(bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let quarter = bytes.clamp(Self::MIN_BYTES, Self::MAX_BYTES) / 4 / (PAGE * WORD) * WORD;
        let pages = quarter * 4;
        let map_len = pages * PAGE + ZERO_BYTES;
        // SAFETY: a new anonymous mapping overlaps nothing.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                map_len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let part = |pages: Range<usize>| Part {
            low: pages.start,
            used_pages: 0,
            pages,
            line: VecDeque::new(),
        };
        Ok(Self {
            base: base.cast(),
            map_len,
            slots: vec![Slot::default(); pages],
            free: vec![u64::MAX; pages / WORD],
            parts: [
                part(0..2 * quarter),
                part(2 * quarter..3 * quarter),
                part(3 * quarter..4 * quarter),
            ],
            used_pages: 0,
            freed: false,
            quiet: false,
        })
    }

    /// Largest buffer a class can ever provide, in bytes.
    pub(crate) fn largest(&self, class: Class) -> usize {
        self.parts[class as usize].pages.len() * PAGE
    }

    /// Bytes a class has free, in one piece or many.
    pub(crate) fn room_left(&self, class: Class) -> usize {
        let part = &self.parts[class as usize];
        (part.pages.len() - part.used_pages) * PAGE
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> u64 {
        (self.used_pages * PAGE) as u64
    }

    /// Bytes in all.
    pub(crate) fn total(&self) -> u64 {
        (self.slots.len() * PAGE) as u64
    }

    /// The whole arena, to register it with the ring.
    pub(crate) fn iovec(&self) -> libc::iovec {
        libc::iovec {
            iov_base: self.base.cast(),
            iov_len: self.map_len,
        }
    }

    /// Address and length of memory that is always zero.
    pub(crate) fn zeroes(&self) -> (*const u8, usize) {
        // SAFETY: the zeroes lie behind the pages, inside the mapping.
        (
            unsafe { self.base.add(self.slots.len() * PAGE) },
            ZERO_BYTES,
        )
    }

    /// A buffer of at least `len` bytes with one hold, or `None` when the class has no room now.
    /// Its content is whatever was there.
    pub(crate) fn alloc(&mut self, class: Class, len: usize) -> Option<BufId> {
        let pages = len.div_ceil(PAGE).max(1);
        let part = &self.parts[class as usize];
        let range = part.pages.clone();
        let first = if pages <= SMALL_PAGES {
            self.find_low(part.low..range.end, pages)?
        } else {
            self.find_high(range, pages)?
        };
        self.mark(first, pages, false);
        let part = &mut self.parts[class as usize];
        if part.low == first {
            part.low = first + pages;
        }
        part.used_pages += pages;
        self.used_pages += pages;
        let slot = &mut self.slots[first];
        slot.holds = 1;
        slot.pages = u32::try_from(pages).ok()?;
        slot.generation = (slot.generation + 1) & (u32::MAX >> PAGE_BITS);
        slot.crc = None;
        Some(BufId(
            slot.generation << PAGE_BITS | u32::try_from(first).ok()?,
        ))
    }

    /// Like [`Self::alloc`], but in turn: `who` waits in line when there is no room or somebody else
    /// waits already, and has to call again when [`Self::freed`] says so, or [`Self::leave`].
    pub(crate) fn alloc_in_turn(&mut self, class: Class, who: Key, len: usize) -> Option<BufId> {
        let line = &self.parts[class as usize].line;
        let first = line.front().is_none_or(|&head| head == who);
        let buf = if first { self.alloc(class, len) } else { None };
        let line = &mut self.parts[class as usize].line;
        match (buf, line.contains(&who)) {
            (Some(_), true) => {
                line.pop_front();
                // The next in line may fit as well.
                self.freed |= !self.parts[class as usize].line.is_empty();
            }
            (None, false) => line.push_back(who),
            _ => {}
        }
        buf
    }

    /// `who` does not want a buffer any more.
    pub(crate) fn leave(&mut self, class: Class, who: Key) {
        let line = &mut self.parts[class as usize].line;
        let before = line.len();
        line.retain(|&other| other != who);
        self.freed |= line.len() != before;
    }

    /// Somebody stands in line.
    pub(crate) fn has_line(&self, class: Class) -> bool {
        !self.parts[class as usize].line.is_empty()
    }

    /// One more hold on a buffer.
    pub(crate) fn hold(&mut self, buf: BufId) {
        let first = self.first_page(buf);
        self.slots[first].holds += 1;
    }

    /// One hold less; with the last one the pages are free.
    pub(crate) fn release(&mut self, buf: BufId) {
        let first = self.first_page(buf);
        let slot = &mut self.slots[first];
        slot.holds -= 1;
        if slot.holds > 0 {
            return;
        }
        let pages = slot.pages as usize;
        self.mark(first, pages, true);
        self.used_pages -= pages;
        self.freed = true;
        for part in &mut self.parts {
            if part.pages.contains(&first) {
                part.low = part.low.min(first);
                part.used_pages -= pages;
            }
        }
    }

    /// Checks that the buffer is alive.
    ///
    /// # Panics
    /// If it is not: going on would mean to write somebody else's data to a disk.
    fn first_page(&self, buf: BufId) -> usize {
        let first = (buf.0 & ((1 << PAGE_BITS) - 1)) as usize;
        let slot = self.slots.get(first).copied().unwrap_or_default();
        let alive = slot.holds > 0 && slot.generation == buf.0 >> PAGE_BITS;
        assert!(alive, "a buffer was used after it was released");
        first
    }

    /// Address of the buffer, for an operation that holds it.
    pub(crate) fn address(&self, buf: BufId) -> *mut u8 {
        let first = self.first_page(buf);
        // SAFETY: every page lies inside the mapping.
        unsafe { self.base.add(first * PAGE) }
    }

    /// Bytes the buffer has room for.
    pub(crate) fn room(&self, buf: BufId) -> usize {
        self.slots[self.first_page(buf)].pages as usize * PAGE
    }

    /// The first `len` bytes. Not to be looked at while an operation fills them.
    pub(crate) fn bytes(&self, buf: BufId, len: usize) -> &[u8] {
        assert!(len <= self.room(buf));
        // SAFETY: the range is inside the buffer, which lives as long as `self` is borrowed; by the
        // caller's promise the kernel does not write to it now.
        unsafe { std::slice::from_raw_parts(self.address(buf), len) }
    }

    /// A range of bytes to fill in. Not to be touched while an operation names them.
    pub(crate) fn bytes_mut(&mut self, buf: BufId, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.room(buf));
        // SAFETY: as in `bytes`, and `self` is borrowed mutably, so there is no other reference.
        unsafe { std::slice::from_raw_parts_mut(self.address(buf).add(range.start), range.len()) }
    }

    /// CRC32C of the first `len` bytes: computed once, because a payload that entered the pool does
    /// not change.
    pub(crate) fn crc(&mut self, buf: BufId, len: u32) -> u32 {
        let first = self.first_page(buf);
        if let Some((known, crc)) = self.slots[first].crc
            && known == len
        {
            return crc;
        }
        let crc = crc32c(self.bytes(buf, len as usize));
        self.slots[first].crc = Some((len, crc));
        crc
    }

    /// Declares every buffer free: nothing is in flight and nobody will ask for one again.
    pub(crate) fn forget_all(&mut self) {
        self.used_pages = 0;
        self.quiet = true;
    }

    fn mark(&mut self, first: usize, pages: usize, free: bool) {
        let mut at = first;
        while at < first + pages {
            let take = (WORD - at % WORD).min(first + pages - at);
            let mask = (u64::MAX >> (WORD - take)) << (at % WORD);
            let word = &mut self.free[at / WORD];
            debug_assert_eq!(*word & mask, if free { 0 } else { mask });
            *word ^= mask;
            at += take;
        }
    }

    /// First run of `pages` free pages in `range`.
    fn find_low(&self, range: Range<usize>, pages: usize) -> Option<usize> {
        let mut at = range.start;
        while at + pages <= range.end {
            let word = self.free[at / WORD] >> (at % WORD);
            if word == 0 {
                at = (at / WORD + 1) * WORD;
                continue;
            }
            at += word.trailing_zeros() as usize;
            let run = self.run_from(at, pages);
            if run >= pages {
                return (at + pages <= range.end).then_some(at);
            }
            at += run;
        }
        None
    }

    /// Free pages in a row from `at`; counts no further than `limit`.
    fn run_from(&self, at: usize, limit: usize) -> usize {
        let mut run = 0;
        while run < limit {
            let page = at + run;
            let Some(&word) = self.free.get(page / WORD) else {
                break;
            };
            let ones = (word >> (page % WORD)).trailing_ones() as usize;
            run += ones;
            if ones < WORD - page % WORD {
                break;
            }
        }
        run
    }

    /// Last run of `pages` free pages in `range`, whose borders are words.
    fn find_high(&self, range: Range<usize>, pages: usize) -> Option<usize> {
        // `end` is where a run would end; `run` free pages lie in front of it up to `at`.
        let (mut at, mut run) = (range.end, 0);
        while at > range.start {
            let inside = if at % WORD == 0 { WORD } else { at % WORD };
            let word = self.free[(at - 1) / WORD] << (WORD - inside);
            let ones = (word.leading_ones() as usize).min(inside);
            run += ones;
            at -= ones;
            if run >= pages {
                return Some(at + run - pages);
            }
            if ones < inside {
                let used = ((word << ones).leading_zeros() as usize).min(inside - ones);
                at -= used;
                run = 0;
            }
        }
        None
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // The kernel may still write to a buffer, or read the zeroes, which nobody holds: only who
        // knows that nothing is in flight lets the memory go. After an error it is leaked.
        if self.quiet && self.used_pages == 0 {
            // SAFETY: the mapping made in `new`, which nothing refers to any more.
            let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.map_len) };
        }
    }
}

#[cfg(test)]
#[path = "tests/buffers.rs"]
mod tests;

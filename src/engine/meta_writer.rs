//! Writes a volume's metadata in the only safe order: bitmap pages, flush, superblock (stable), one
//! commit after the other.
//!
//! Invariants:
//! * the superblock of a commit is the picture taken when the commit began; what changes later is
//!   in the next commit, so that no flag can reach the disk before the pages it promises;
//! * a waiter is told only when its commit is stable on the disk;
//! * once the disk has failed nothing is written any more: what the disk holds then is what a crash
//!   at that moment would have left, and the next attach takes it as just that. In particular a
//!   Primary that is demoted after its disk failed still counts as crashed on that disk, and marks
//!   that did not reach the disk cannot be followed by a commit that claims they did.

use crate::metadata::BLOCK;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// A place among the bitmap pages: slot and page.
pub(crate) type PagePlace = (usize, u64);

/// Where a running commit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Bitmap pages are being written; so many writes are in flight.
    Pages(u32),
    /// The metadata device is being flushed.
    Flush,
    /// The superblock is being written.
    Superblock,
}

/// The writer of one volume; `W` names who waits.
#[derive(Debug)]
pub(crate) struct MetaWriter<W> {
    stage: Option<Stage>,
    /// Picture of the superblock of the running commit: (offset, block).
    superblock: Option<(u64, Box<[u8; BLOCK]>)>,
    waiters: Vec<W>,
    /// Where the pages begin that are to be written after those in flight.
    rest: Option<PagePlace>,
    next_wanted: bool,
    next_pages: bool,
    next_waiters: Vec<W>,
    /// The disk failed: no commit until it is attached anew.
    failed: bool,
    /// No flush since the disk was attached. What was read from it may be in its cache only, written
    /// by a process that was killed: pages found as they should be are not stable for that.
    never_flushed: bool,
}

impl<W> Default for MetaWriter<W> {
    fn default() -> Self {
        Self {
            stage: None,
            superblock: None,
            waiters: Vec::new(),
            rest: None,
            next_wanted: false,
            next_pages: false,
            next_waiters: Vec::new(),
            failed: false,
            never_flushed: true,
        }
    }
}

impl<W> MetaWriter<W> {
    /// Asks for a commit that begins after this call. `pages`: with all dirty bitmap pages.
    pub(crate) fn request(&mut self, pages: bool, waiter: Option<W>) {
        self.next_wanted = true;
        self.next_pages |= pages;
        self.next_waiters.extend(waiter);
    }

    /// Somebody like this waits for a commit.
    pub(crate) fn has_waiter(&self, like: impl Fn(&W) -> bool) -> bool {
        self.waiters.iter().chain(&self.next_waiters).any(like)
    }

    /// Commits are asked for that can never be: [`Self::fail`] tells whose.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.failed && self.next_wanted
    }

    /// Nothing is running and nothing is asked for.
    pub(crate) fn is_idle(&self) -> bool {
        self.stage.is_none() && !self.next_wanted
    }

    /// If a commit can begin now: whether pages are to be written. Call [`Self::begin`] next.
    pub(crate) fn wants_begin(&self) -> Option<bool> {
        (self.stage.is_none() && self.next_wanted && !self.failed).then_some(self.next_pages)
    }

    /// Bitmap pages are being written, or not yet stable; or a commit with pages is asked for.
    pub(crate) fn needs_pages(&self) -> bool {
        self.next_pages || matches!(self.stage, Some(Stage::Pages(_) | Stage::Flush))
    }

    /// The superblock of a commit without pages may be written at once.
    pub(crate) fn needs_no_flush(&self) -> bool {
        !self.never_flushed
    }

    /// Begins the commit with this picture of the superblock. Not all pages need be in the first
    /// writes: from `rest` on they come later ([`Self::go_on`]).
    pub(crate) fn begin(
        &mut self,
        superblock: (u64, Box<[u8; BLOCK]>),
        page_writes: u32,
        rest: Option<PagePlace>,
    ) {
        debug_assert!(self.stage.is_none());
        self.rest = rest;
        self.superblock = Some(superblock);
        self.waiters = core::mem::take(&mut self.next_waiters);
        self.next_wanted = false;
        self.next_pages = false;
        self.stage = Some(Stage::Pages(page_writes));
    }

    /// All page writes are done: where the next ones begin, if there are more.
    pub(crate) fn take_rest(&mut self) -> Option<PagePlace> {
        self.rest.take()
    }

    /// So many more writes of pages, and what is left after them.
    pub(crate) fn go_on(&mut self, page_writes: u32, rest: Option<PagePlace>) {
        self.stage = Some(Stage::Pages(page_writes));
        self.rest = rest;
    }

    /// A page write is done. Answers whether it was the last of those in flight: more of them, or the
    /// flush, are due.
    pub(crate) fn page_done(&mut self) -> bool {
        if let Some(Stage::Pages(n)) = &mut self.stage {
            *n = n.saturating_sub(1);
            if *n == 0 {
                self.stage = Some(Stage::Flush);
                return true;
            }
        }
        false
    }

    /// The flush is done, or there were no pages: the superblock to write now.
    pub(crate) fn superblock_due(&mut self) -> Option<(u64, Box<[u8; BLOCK]>)> {
        let superblock = self.superblock.take()?;
        self.never_flushed = false;
        self.stage = Some(Stage::Superblock);
        Some(superblock)
    }

    /// The superblock is stable: who waited for it.
    pub(crate) fn committed(&mut self) -> Vec<W> {
        // The completion of a commit that was given up names nobody: `fail` has told them.
        self.stage = None;
        core::mem::take(&mut self.waiters)
    }

    /// The metadata cannot be written any more: everybody who waits.
    pub(crate) fn fail(&mut self) -> Vec<W> {
        self.failed = !crate::sabotage::is(crate::sabotage::Mistake::CommitAfterFailure);
        self.stage = None;
        self.rest = None;
        self.superblock = None;
        self.next_wanted = false;
        self.next_pages = false;
        let mut all = core::mem::take(&mut self.waiters);
        all.append(&mut self.next_waiters);
        all
    }
}

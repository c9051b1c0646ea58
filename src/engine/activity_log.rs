//! The activity log in memory: which extents of the device may be written now, because the log on
//! the disk names them. Whatever may differ between the copies after a crash of the Primary lies in
//! an extent the log on the disk names, or in a block whose bit is on the disk.
//!
//! Pure: it decides, others write ([`crate::log_writer`]). Whoever is about to make copies differ
//! *holds* the range; it need not be a client's request. An extent may be held by many.
//!
//! A slot's life: free → pending (given to an extent; a transaction is to name it) → active (the
//! transaction is on the disk) → cleaning (nobody holds it; its bitmap pages and its data are being
//! made stable) → retired, which is free again. The log on the disk names a retired extent until a
//! transaction gives its slot away, so until then it comes back without one.
//!
//! Invariants:
//! * a range is held only while all its extents are pending, active, or were brought back; what it
//!   is held for starts only when all are active ([`ActivityLog::is_active`]);
//! * a slot changes its extent only when it is free, that is: nobody holds it, and all that the old
//!   extent's writes left in memory (bits) or in a cache (data) is on the disk;
//! * those who wait for slots get them in the order in which they asked: nobody starves.
//!
//! Nothing is allocated after [`ActivityLog::begin`], a hold costs a look into a hash table per
//! extent, and memory is by slot: the size of the device does not matter.

use crate::metadata::log_block::{MAX_UPDATES, NO_EXTENT};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

/// Extents retired together at most, unless a request needs more at once.
const CLEAN_BATCH: usize = 64;
/// No slot.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the list of free ones. With an extent: retired.
    Free,
    Pending,
    /// In the list of idle ones when nobody holds it.
    Active,
    Cleaning,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    extent: u32,
    holds: u32,
    state: State,
    prev: u32,
    next: u32,
}

/// A list of slots, linked through them.
#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
    len: usize,
}

impl List {
    const EMPTY: Self = Self {
        head: NONE,
        tail: NONE,
        len: 0,
    };

    fn push_back(&mut self, slots: &mut [Slot], at: u32) {
        slots[at as usize].prev = self.tail;
        slots[at as usize].next = NONE;
        match self.tail {
            NONE => self.head = at,
            tail => slots[tail as usize].next = at,
        }
        self.tail = at;
        self.len += 1;
    }

    fn remove(&mut self, slots: &mut [Slot], at: u32) {
        let Slot { prev, next, .. } = slots[at as usize];
        match prev {
            NONE => self.head = next,
            prev => slots[prev as usize].next = next,
        }
        match next {
            NONE => self.tail = prev,
            next => slots[next as usize].prev = prev,
        }
        self.len -= 1;
    }
}

/// From extent to slot: open addressing, at most half full.
#[derive(Debug, Default)]
struct Index {
    table: Vec<u32>,
}

impl Index {
    fn reset(&mut self, slots: usize) {
        self.table.clear();
        self.table.resize((slots * 2).next_power_of_two(), NONE);
    }

    fn home(&self, extent: u32) -> usize {
        // Multiplication spreads neighbours; the upper bits are the good ones.
        let hash = u64::from(extent).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        hash as usize & (self.table.len() - 1)
    }

    fn place(&self, slots: &[Slot], extent: u32) -> Result<usize, usize> {
        let mut at = self.home(extent);
        loop {
            match self.table[at] {
                NONE => return Err(at),
                slot if slots[slot as usize].extent == extent => return Ok(at),
                _ => at = (at + 1) & (self.table.len() - 1),
            }
        }
    }

    fn get(&self, slots: &[Slot], extent: u32) -> Option<u32> {
        if self.table.is_empty() {
            return None;
        }
        self.place(slots, extent).ok().map(|at| self.table[at])
    }

    fn insert(&mut self, slots: &[Slot], extent: u32, slot: u32) {
        if let Err(at) = self.place(slots, extent) {
            self.table[at] = slot;
        }
    }

    /// Closes the gap, so that a search never stops before what it looks for.
    fn remove(&mut self, slots: &[Slot], extent: u32) {
        let Ok(mut gap) = self.place(slots, extent) else {
            return;
        };
        let mask = self.table.len() - 1;
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            let slot = self.table[at];
            if slot == NONE {
                break;
            }
            let home = self.home(slots[slot as usize].extent);
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(gap) & mask {
                self.table[gap] = slot;
                gap = at;
            }
        }
        self.table[gap] = NONE;
    }
}

/// What came of [`ActivityLog::reserve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserved {
    /// Held; it may be used once [`ActivityLog::is_active`].
    Yes,
    /// Not held: too few slots are free. Ask again when something was released or retired.
    NotYet,
}

/// What it has done since the resource was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Transactions written.
    pub transactions: u64,
    /// Extents that got a slot.
    pub activated: u64,
    /// Extents whose slot was given to another.
    pub evicted: u64,
    /// Writes that waited for an extent.
    pub waited: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ActivityLog {
    /// Bytes of an extent are 1 << shift.
    shift: u32,
    slots: Vec<Slot>,
    index: Index,
    free: List,
    /// Active and held by nobody, least recently used first.
    idle: List,
    /// Given to extents no transaction names yet, in order.
    pending: VecDeque<u32>,
    /// In the transaction that is being written.
    writing: Vec<u32>,
    /// Cleaning was begun and has not ended; some of its slots may have been taken back.
    batch: Vec<u32>,
    cleaning: usize,
    held: usize,
    /// Slots the first who waits needs; 0: nobody waits for slots.
    short: usize,
    /// A slot was given away since cleaning began last.
    missed: bool,
    pub(crate) counts: Counts,
}

impl Default for ActivityLog {
    fn default() -> Self {
        Self {
            shift: 22,
            slots: Vec::new(),
            index: Index::default(),
            free: List::EMPTY,
            idle: List::EMPTY,
            pending: VecDeque::new(),
            writing: Vec::new(),
            batch: Vec::new(),
            cleaning: 0,
            held: 0,
            short: 0,
            missed: false,
            counts: Counts::default(),
        }
    }
}

impl ActivityLog {
    /// Empties it: `slots` extents (at least one) of `extent_size` bytes (a power of two).
    pub(crate) fn begin(&mut self, slots: usize, extent_size: u32) {
        let counts = self.counts;
        let mut fresh = Self {
            shift: extent_size.trailing_zeros(),
            counts,
            ..Self::default()
        };
        let slot = Slot {
            extent: NO_EXTENT,
            holds: 0,
            state: State::Free,
            prev: NONE,
            next: NONE,
        };
        fresh.slots.resize(slots.max(1), slot);
        for at in 0..fresh.slots.len() as u32 {
            fresh.free.push_back(&mut fresh.slots, at);
        }
        fresh.index.reset(fresh.slots.len());
        fresh.pending.reserve(fresh.slots.len());
        fresh.writing.reserve(MAX_UPDATES);
        fresh.batch.reserve(fresh.slots.len());
        *self = fresh;
    }

    /// Extents it has room for; 0 before [`Self::begin`].
    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Extents that are active or about to be.
    pub(crate) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len
    }

    /// Extents somebody holds.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// The extents a range touches.
    pub(crate) fn extents(&self, offset: u64, len: u64) -> RangeInclusive<u32> {
        let number = |at: u64| u32::try_from(at >> self.shift).unwrap_or(NO_EXTENT - 1);
        number(offset)..=number(offset.saturating_add(len.max(1)) - 1)
    }

    /// Byte range of an extent.
    pub(crate) fn bytes(&self, extent: u32) -> (u64, u64) {
        (u64::from(extent) << self.shift, 1 << self.shift)
    }

    /// Extents one request may hold: more could starve the others, or never be free at once.
    pub(crate) fn most(&self) -> usize {
        (self.slots.len() / 2).clamp(1, MAX_UPDATES)
    }

    /// Whether a range could be held if nothing else were.
    pub(crate) fn can_hold(&self, offset: u64, len: u64) -> bool {
        self.extents(offset, len).count() <= self.slots.len()
    }

    /// How much of a range may be held at once: all of it, or its beginning up to the end of an
    /// extent.
    pub(crate) fn part(&self, offset: u64, len: u64) -> u64 {
        let end = ((offset >> self.shift) + self.most() as u64) << self.shift;
        len.min(end - offset)
    }

    /// Holds a range whose extents are all active: it may be used at once. False if it has to wait
    /// ([`Self::reserve`]): an extent is not active, or others wait for slots and this one would
    /// take theirs.
    pub(crate) fn hold(&mut self, offset: u64, len: u64) -> bool {
        let waits = self.short > 0;
        if waits && self.free.len + self.cleaning < self.short {
            return false;
        }
        for extent in self.extents(offset, len) {
            match self.index.get(&self.slots, extent) {
                Some(at) => match self.slots[at as usize].state {
                    State::Active => {}
                    State::Free | State::Cleaning if !waits => {}
                    _ => return false,
                },
                None => return false,
            }
        }
        self.hold_again(offset, len);
        true
    }

    /// One more hold on a range that is held.
    pub(crate) fn hold_again(&mut self, offset: u64, len: u64) {
        for extent in self.extents(offset, len) {
            if let Some(at) = self.index.get(&self.slots, extent) {
                self.take(at);
            }
        }
    }

    /// Holds a range, giving slots to extents that have none. Those who wait call this in their
    /// order, the first until it succeeds.
    pub(crate) fn reserve(&mut self, offset: u64, len: u64) -> Reserved {
        let (mut absent, mut returning) = (0, 0);
        for extent in self.extents(offset, len) {
            match self.index.get(&self.slots, extent) {
                None => absent += 1,
                Some(at) => {
                    returning += usize::from(self.slots[at as usize].state == State::Free);
                }
            }
        }
        if absent + returning > self.free.len {
            self.short = absent + returning;
            return Reserved::NotYet;
        }
        self.short = 0;
        // First those that have a slot: none of them is given away for the others.
        self.hold_again(offset, len);
        if absent > 0 {
            for extent in self.extents(offset, len) {
                if self.index.get(&self.slots, extent).is_none() {
                    self.give_slot(extent);
                }
            }
        }
        Reserved::Yes
    }

    /// Nobody waits for slots any more (the one who did was given up).
    pub(crate) fn nobody_waits(&mut self) {
        self.short = 0;
    }

    /// Somebody waits for slots, and only releases can help.
    pub(crate) fn starves(&self) -> bool {
        self.short > self.free.len + self.cleaning + self.idle.len
    }

    fn take(&mut self, at: u32) {
        let slot = self.slots[at as usize];
        if slot.holds == 0 {
            self.held += 1;
            match slot.state {
                State::Free => {
                    self.free.remove(&mut self.slots, at);
                    self.slots[at as usize].state = State::Active;
                }
                State::Active => self.idle.remove(&mut self.slots, at),
                State::Cleaning => {
                    self.cleaning -= 1;
                    self.slots[at as usize].state = State::Active;
                }
                State::Pending => {}
            }
        }
        self.slots[at as usize].holds += 1;
    }

    fn give_slot(&mut self, extent: u32) {
        let at = self.free.head;
        self.free.remove(&mut self.slots, at);
        let old = self.slots[at as usize].extent;
        if old != NO_EXTENT {
            self.index.remove(&self.slots, old);
            self.counts.evicted += 1;
        }
        let slot = &mut self.slots[at as usize];
        slot.extent = extent;
        slot.holds = 1;
        slot.state = State::Pending;
        self.held += 1;
        self.missed = true;
        self.counts.activated += 1;
        self.index.insert(&self.slots, extent, at);
        self.pending.push_back(at);
    }

    /// The log on the disk names all extents of a range.
    pub(crate) fn is_active(&self, offset: u64, len: u64) -> bool {
        self.extents(offset, len).all(|extent| {
            self.index
                .get(&self.slots, extent)
                .is_some_and(|at| self.slots[at as usize].state == State::Active)
        })
    }

    /// Gives back one hold on a range.
    pub(crate) fn release(&mut self, offset: u64, len: u64) {
        for extent in self.extents(offset, len) {
            let Some(at) = self.index.get(&self.slots, extent) else {
                continue;
            };
            let slot = &mut self.slots[at as usize];
            debug_assert!(slot.holds > 0, "extent {extent} is held by nobody");
            slot.holds = slot.holds.saturating_sub(1);
            if slot.holds == 0 {
                self.held -= 1;
                if slot.state == State::Active {
                    self.idle.push_back(&mut self.slots, at);
                }
            }
        }
    }

    /// A transaction is to be written, and none is under way.
    pub(crate) fn wants_transaction(&self) -> bool {
        self.writing.is_empty() && !self.pending.is_empty()
    }

    /// Begins it. [`Self::updates`] and [`Self::extent_of`] tell what it says.
    pub(crate) fn begin_transaction(&mut self) {
        debug_assert!(self.writing.is_empty());
        let count = self.pending.len().min(MAX_UPDATES);
        self.writing.extend(self.pending.drain(..count));
        self.counts.transactions += 1;
    }

    /// What the transaction under way changes: (slot, extent).
    pub(crate) fn updates(&self) -> impl ExactSizeIterator<Item = (u16, u32)> + '_ {
        self.writing
            .iter()
            .map(|&at| (at as u16, self.slots[at as usize].extent))
    }

    /// The extent a slot has.
    pub(crate) fn extent_of(&self, slot: usize) -> u32 {
        self.slots.get(slot).map_or(NO_EXTENT, |s| s.extent)
    }

    /// The transaction is on the disk: its extents are active.
    pub(crate) fn end_transaction(&mut self) {
        for &at in &self.writing {
            let slot = &mut self.slots[at as usize];
            slot.state = State::Active;
            if slot.holds == 0 {
                self.idle.push_back(&mut self.slots, at);
            }
        }
        self.writing.clear();
    }

    /// Extents should be retired now: somebody waits for slots, or few are left.
    pub(crate) fn wants_cleaning(&self) -> bool {
        let usual = self.usual_batch();
        self.batch.is_empty()
            && self.idle.len > 0
            && (self.short > self.free.len || self.missed && self.free.len < usual.div_ceil(2))
    }

    /// Extents retired at once: enough that a flush is shared by many, few enough that the log
    /// stays nearly as large as it was made.
    fn usual_batch(&self) -> usize {
        (self.slots.len() / 16).clamp(1, CLEAN_BATCH)
    }

    /// Begins to retire the least recently used; answers which.
    pub(crate) fn begin_cleaning(&mut self) -> impl Iterator<Item = u32> + '_ {
        let missing = self.short.saturating_sub(self.free.len);
        let count = self.usual_batch().max(missing).min(self.idle.len);
        self.missed = false;
        for _ in 0..count {
            let at = self.idle.head;
            self.idle.remove(&mut self.slots, at);
            self.slots[at as usize].state = State::Cleaning;
            self.batch.push(at);
        }
        self.cleaning = count;
        self.batch.iter().map(|&at| self.slots[at as usize].extent)
    }

    /// Bits and data of the extents that are being retired are on the disk.
    pub(crate) fn end_cleaning(&mut self) {
        for &at in &self.batch {
            // Not those that were held meanwhile: what came since is not on the disk.
            if self.slots[at as usize].state == State::Cleaning {
                self.slots[at as usize].state = State::Free;
                self.free.push_back(&mut self.slots, at);
            }
        }
        self.batch.clear();
        self.cleaning = 0;
    }

    /// Nothing is to be written or being written.
    pub(crate) fn is_idle(&self) -> bool {
        self.writing.is_empty() && self.pending.is_empty() && self.batch.is_empty()
    }
}

#[cfg(test)]
#[path = "activity_log_tests.rs"]
mod tests;

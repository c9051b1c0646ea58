//! The interval lock: orders overlapping application, peer, resync and verify I/O on one volume.
//!
//! Two ranges *conflict* if they overlap and are not both [`Mode::Shared`]. A range is granted once
//! every earlier one that conflicts with it, held or waiting, is gone. So among conflicting ranges
//! the order of arrival is the order of grants (strict FIFO: nobody starves, and writes to the same
//! block reach every disk in the order they were admitted), and ranges that do not conflict never
//! wait for each other. Waiting always points to an earlier arrival, so there is no deadlock.
//!
//! Shared ranges may overtake waiting shared ones: nothing orders reads.
//!
//! Structure: entries in a slab; the places of all entries, held and waiting alike, in one sorted
//! vector per class of lengths (powers of two), so that a query looks only at a window of at most
//! one length before its own start. A trim of the whole device is alone in its class and costs
//! the small ones nothing. Each entry counts the earlier conflicting ones; at zero it is granted.
//! Acquiring and releasing cost O(c · log n + k) and a memmove within one class, for k overlapping
//! ranges and c classes in use; nothing is allocated once the vectors have grown.

use crate::slots::{Key, Slots};
use alloc::vec::Vec;

/// Names a range that is held or waiting. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockId(u64);

/// What else may hold an overlapping range at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Nothing: writes.
    Exclusive,
    /// Other shared ones: reads of resync and verify.
    Shared,
}

/// Answer to [`OverlapLock::acquire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// The range is held.
    Granted(LockId),
    /// It will be in the list a later `release` or `cancel` fills.
    Waiting(LockId),
}

#[derive(Debug)]
struct Entry<T> {
    start: u64,
    end: u64,
    mode: Mode,
    /// Order of arrival.
    ticket: u64,
    /// Earlier ranges present that conflict; 0 = granted.
    blockers: u32,
    token: T,
}

/// What a query needs to know of an entry, without a look into the slab.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: u64,
    end: u64,
    ticket: u64,
    mode: Mode,
    id: LockId,
}

/// Classes of lengths: class c holds lengths above 2^(c-1) and up to 2^c.
const CLASSES: usize = 65;

fn class_of(len: u64) -> usize {
    (u64::BITS - (len - 1).leading_zeros()) as usize
}

/// Longest range in a class.
fn reach(class: usize) -> u64 {
    1u64.checked_shl(u32::try_from(class).unwrap_or(u32::MAX))
        .unwrap_or(u64::MAX)
}

/// The lock of one volume. `T` tells the caller who is granted.
#[derive(Debug)]
pub struct OverlapLock<T> {
    entries: Slots<Entry<T>>,
    /// By class, sorted by (start, ticket). Grows to the largest class seen.
    classes: Vec<Vec<Place>>,
    /// Bit c: class c is not empty.
    in_use: u128,
    next_ticket: u64,
    held: usize,
    waiting: usize,
    /// Scratch for `release`: granted (ticket, id, token).
    ready: Vec<(u64, LockId, T)>,
}

impl<T> Default for OverlapLock<T> {
    fn default() -> Self {
        Self {
            entries: Slots::default(),
            classes: Vec::new(),
            in_use: 0,
            next_ticket: 0,
            held: 0,
            waiting: 0,
            ready: Vec::new(),
        }
    }
}

impl<T: Copy> OverlapLock<T> {
    /// Takes a range, or queues for it.
    ///
    /// # Panics
    /// If the range is empty or ends beyond 2^64.
    pub fn acquire(&mut self, offset: u64, len: u64, mode: Mode, token: T) -> Acquired {
        assert!(len > 0, "an empty range cannot be locked");
        let end = offset
            .checked_add(len)
            .expect("the range ends within 64 bits");
        let mut blockers = 0u32;
        for place in overlapping(&self.classes, self.in_use, offset, end) {
            blockers += u32::from(conflicts(place.mode, mode));
        }
        if crate::sabotage::is(crate::sabotage::Mistake::NoOverlapLock) {
            blockers = 0;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let entry = Entry {
            start: offset,
            end,
            mode,
            ticket,
            blockers,
            token,
        };
        let id = LockId(self.entries.insert(entry).raw());
        self.insert_place(Place {
            start: offset,
            end,
            ticket,
            mode,
            id,
        });
        if blockers == 0 {
            self.held += 1;
            Acquired::Granted(id)
        } else {
            self.waiting += 1;
            Acquired::Waiting(id)
        }
    }

    /// Gives a held range back and adds those it was in the way of to `granted`, in order of
    /// arrival.
    pub fn release(&mut self, id: LockId, granted: &mut Vec<(LockId, T)>) {
        debug_assert!(
            self.entries
                .get(Key::from_raw(id.0))
                .is_some_and(|entry| entry.blockers == 0),
            "only what is held can be released"
        );
        self.cancel(id, granted);
    }

    /// Gives a range back, held or waiting. A range that is gone already is left alone.
    pub fn cancel(&mut self, id: LockId, granted: &mut Vec<(LockId, T)>) {
        let Some(gone) = self.entries.remove(Key::from_raw(id.0)) else {
            return;
        };
        if gone.blockers == 0 {
            self.held -= 1;
        } else {
            self.waiting -= 1;
        }
        self.remove_place(&gone);
        let Self {
            entries,
            classes,
            ready,
            ..
        } = self;
        for place in overlapping(classes, self.in_use, gone.start, gone.end) {
            if place.ticket < gone.ticket || !conflicts(place.mode, gone.mode) {
                continue;
            }
            let entry = entries
                .get_mut(Key::from_raw(place.id.0))
                .expect("every place has one");
            entry.blockers -= 1;
            if entry.blockers == 0 {
                ready.push((place.ticket, place.id, entry.token));
            }
        }
        self.held += self.ready.len();
        self.waiting -= self.ready.len();
        self.ready.sort_unstable_by_key(|&(ticket, ..)| ticket);
        granted.extend(self.ready.drain(..).map(|(_, id, token)| (id, token)));
    }

    /// Nothing is held and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.held == 0 && self.waiting == 0
    }

    /// Ranges held.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Ranges waiting.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether anything held or waiting overlaps this range. An empty range overlaps nothing.
    pub fn any_overlap(&self, offset: u64, len: u64) -> bool {
        len > 0
            && overlapping(
                &self.classes,
                self.in_use,
                offset,
                offset.saturating_add(len),
            )
            .next()
            .is_some()
    }

    fn insert_place(&mut self, place: Place) {
        let class = class_of(place.end - place.start);
        while self.classes.len() <= class {
            self.classes.push(Vec::new());
        }
        let places = &mut self.classes[class];
        // Tickets only grow: behind all that start here already.
        let at = places.partition_point(|p| p.start <= place.start);
        places.insert(at, place);
        self.in_use |= 1 << class;
    }

    fn remove_place(&mut self, gone: &Entry<T>) {
        let class = class_of(gone.end - gone.start);
        let places = &mut self.classes[class];
        let key = (gone.start, gone.ticket);
        let at = places
            .binary_search_by_key(&key, |p| (p.start, p.ticket))
            .expect("every entry has a place");
        places.remove(at);
        if places.is_empty() {
            self.in_use &= !(1 << class);
        }
    }
}

fn conflicts(a: Mode, b: Mode) -> bool {
    a == Mode::Exclusive || b == Mode::Exclusive
}

/// All places that overlap `start..end`.
fn overlapping(
    classes: &[Vec<Place>],
    mut in_use: u128,
    start: u64,
    end: u64,
) -> impl Iterator<Item = &Place> {
    debug_assert!(classes.len() <= CLASSES);
    core::iter::from_fn(move || {
        let class = in_use.trailing_zeros() as usize;
        in_use &= in_use.wrapping_sub(1);
        classes.get(class).map(|places| (class, places))
    })
    .flat_map(move |(class, places)| {
        // Nothing in this class that starts earlier than its longest length can reach `start`.
        let earliest = start.saturating_sub(reach(class));
        let first = places.partition_point(|p| p.start < earliest);
        places[first..]
            .iter()
            .take_while(move |p| p.start < end)
            .filter(move |p| p.end > start)
    })
}

#[cfg(test)]
#[path = "overlap_tests.rs"]
mod tests;

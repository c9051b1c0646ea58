//! A slab whose keys never name a later occupant of the same place: a completion that arrives after
//! its request is gone finds nothing instead of a stranger. Allocates only while it grows.

use alloc::vec::Vec;
use core::marker::PhantomData;

/// Names an entry of a [`Slots<T>`]: generation in the upper half, place in the lower.
#[derive(Debug)]
pub(crate) struct Key<T>(u64, PhantomData<fn() -> T>);

// Not derived: that would ask the same of `T`, which is only a name here.
impl<T> PartialEq for Key<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> Eq for Key<T> {}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Key<T> {}

impl<T> Key<T> {
    /// The key as a plain number, for ids that leave the engine.
    pub(crate) fn raw(self) -> u64 {
        self.0
    }

    /// The key a plain number stands for; it may name nothing.
    pub(crate) fn from_raw(raw: u64) -> Self {
        Self(raw, PhantomData)
    }

    fn place(self) -> usize {
        // Lossless: the lower half is a u32 by construction, and truncation only makes a miss.
        (self.0 & 0xffff_ffff) as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// The slab.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slots<T> {
    /// Adds an entry and names it.
    pub(crate) fn insert(&mut self, value: T) -> Key<T> {
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.entries.push(Entry {
                    generation: 0,
                    value: None,
                });
                u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 entries")
            }
        };
        let entry = &mut self.entries[place as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.value = Some(value);
        Key::from_raw(u64::from(entry.generation) << 32 | u64::from(place))
    }

    /// The entry, if it still is the one named.
    pub(crate) fn get(&self, key: Key<T>) -> Option<&T> {
        let entry = self.entries.get(key.place())?;
        if entry.generation == key.generation() {
            entry.value.as_ref()
        } else {
            None
        }
    }

    /// The entry, if it still is the one named.
    pub(crate) fn get_mut(&mut self, key: Key<T>) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.place())?;
        if entry.generation == key.generation() {
            entry.value.as_mut()
        } else {
            None
        }
    }

    /// Takes the entry out.
    pub(crate) fn remove(&mut self, key: Key<T>) -> Option<T> {
        let entry = self.entries.get_mut(key.place())?;
        if entry.generation != key.generation() {
            return None;
        }
        let value = entry.value.take()?;
        self.free.push(key.place() as u32);
        Some(value)
    }

    /// Entries present.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// All entries with their keys, in order of place.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key<T>, &T)> {
        self.entries
            .iter()
            .enumerate()
            .filter_map(|(place, entry)| {
                let value = entry.value.as_ref()?;
                Some((
                    Key::from_raw(u64::from(entry.generation) << 32 | place as u64),
                    value,
                ))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::Slots;

    #[test]
    fn a_stale_key_finds_nothing() {
        let mut slots = Slots::default();
        let old = slots.insert("old");
        assert_eq!(slots.remove(old), Some("old"));
        let new = slots.insert("new");
        assert_eq!(slots.get(old), None, "the place is reused, the name is not");
        assert_eq!(slots.remove(old), None);
        assert_eq!(slots.get(new), Some(&"new"));
        assert_eq!(slots.len(), 1);
    }
}

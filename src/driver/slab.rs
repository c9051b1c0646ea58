//! A slab whose keys carry a generation: what is named by a key that was removed is never found
//! again, even when its place is taken by another. Keys fit into the `user_data` of the ring.

/// Names an entry of a [`Slab`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Place in the slab, less than 2^24.
    pub(crate) slot: u32,
    /// Counts the occupants of the place.
    pub(crate) generation: u32,
}

impl Key {
    /// Places a slab may have.
    pub(crate) const MAX_SLOTS: u32 = 1 << 24;

    /// Both numbers in one.
    pub(crate) fn raw(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// The opposite of [`Self::raw`]. A number that never was a key names nothing.
    pub(crate) fn from_raw(raw: u64) -> Self {
        // Truncation is the point: the lower half is the place.
        Self {
            slot: (raw & 0xffff_ffff) as u32,
            generation: (raw >> 32) as u32,
        }
    }
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// The slab. Allocates only while it grows.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    /// Adds an entry.
    ///
    /// # Panics
    /// With 2^24 entries; everything kept in a slab is bounded far below that.
    pub(crate) fn insert(&mut self, value: T) -> Key {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry {
                generation: 0,
                value: None,
            });
            u32::try_from(self.entries.len() - 1).expect("fewer than 2^24 entries")
        });
        assert!(slot < Key::MAX_SLOTS, "a slab grew beyond its keys");
        let entry = &mut self.entries[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.value = Some(value);
        Key {
            slot,
            generation: entry.generation,
        }
    }

    /// The entry, if it still is the one named.
    #[cfg(test)]
    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let entry = self.entries.get(key.slot as usize)?;
        if entry.generation == key.generation {
            entry.value.as_ref()
        } else {
            None
        }
    }

    /// The entry, if it still is the one named.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        if entry.generation == key.generation {
            entry.value.as_mut()
        } else {
            None
        }
    }

    /// Takes the entry out, if it still is the one named.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        self.free.push(key.slot);
        Some(value)
    }

    /// Entries present.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Places ever used; the keys of all entries are below.
    pub(crate) fn slots(&self) -> usize {
        self.entries.len()
    }

    /// The key of the entry at a place, if there is one.
    pub(crate) fn key_at(&self, slot: usize) -> Option<Key> {
        let entry = self.entries.get(slot)?;
        entry.value.as_ref()?;
        let slot = u32::try_from(slot).ok()?;
        Some(Key {
            slot,
            generation: entry.generation,
        })
    }

    /// All entries.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries
            .iter_mut()
            .filter_map(|entry| entry.value.as_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::{Key, Slab};

    #[test]
    fn a_stale_key_finds_nothing() {
        let mut slab = Slab::default();
        let old = slab.insert("old");
        assert_eq!(slab.remove(old), Some("old"));
        let new = slab.insert("new");
        assert_eq!(old.slot, new.slot, "the place is used again");
        assert_eq!(slab.get(old), None, "but the old name is not");
        assert_eq!(slab.remove(old), None);
        assert_eq!(slab.get(new), Some(&"new"));
        assert_eq!(slab.key_at(0), Some(new));
        assert_eq!(Key::from_raw(new.raw()), new);
    }
}

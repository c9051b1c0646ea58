//! The disk of a node in the box: what is read back, what survives a power cut, and what is between.

use crate::metadata::open::{ReadAt, ReadError};
use crate::rng::Rng;

/// A disk with a volatile cache.
#[derive(Default)]
pub(super) struct Disk {
    /// What is read back now.
    pub(super) now: Vec<u8>,
    /// What survives a power cut.
    pub(super) stable: Vec<u8>,
    /// Unflushed writes in order.
    cache: Vec<(u64, Vec<u8>)>,
}

impl Disk {
    pub(super) fn new(len: u64) -> Self {
        let zeros = vec![0; usize::try_from(len).expect("small")];
        Self {
            now: zeros.clone(),
            stable: zeros,
            cache: Vec::new(),
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8], fua: bool) {
        let at = usize::try_from(offset).expect("small");
        self.now[at..at + data.len()].copy_from_slice(data);
        if fua {
            self.stable[at..at + data.len()].copy_from_slice(data);
        } else {
            self.cache.push((offset, data.to_vec()));
        }
    }

    pub(super) fn flush(&mut self) {
        self.cache.clear();
        self.stable.copy_from_slice(&self.now);
    }

    pub(super) fn power_cut(&mut self, rng: &mut Rng) {
        for (offset, data) in core::mem::take(&mut self.cache) {
            if rng.next().is_multiple_of(2) {
                let at = usize::try_from(offset).expect("small");
                self.stable[at..at + data.len()].copy_from_slice(&data);
            }
        }
        self.now.copy_from_slice(&self.stable);
    }
}

/// Reads a disk as a starting daemon does.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl ReadAt for Reader<'_> {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let at = usize::try_from(offset).expect("small");
        buf.copy_from_slice(&self.0[at..at + buf.len()]);
        Ok(())
    }
}

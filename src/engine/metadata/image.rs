//! All metadata of a disk in memory, to be written to another place: restored from a dump, or moved
//! to the new end of a disk that has grown.
//!
//! Invariants:
//! * a superblock is written only when everything it promises is stable, so that metadata are either
//!   found and whole or not found;
//! * moved metadata never touch the place of the old ones: the old ones stay valid until the new
//!   ones are.

use super::layout::{Layout, LayoutError, Placement};
use super::open::{OpenError, ReadAt, ReadError, Recovered, open};
use super::superblock::Superblock;
use super::{BLOCK, BLOCK64};
use crate::bitmap::Bitmap;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// Bytes written at once.
const CHUNK: usize = 1 << 20;

/// All metadata of a disk.
#[derive(Debug)]
pub struct Image {
    /// State and places.
    pub superblock: Superblock,
    /// By slot.
    pub bitmaps: Vec<Bitmap>,
    /// The activity log's blocks, as they are on the disk. They name parts of the data by their
    /// distance from the start of the data, so they mean the same wherever they lie.
    pub activity_log: Vec<u8>,
}

/// What is to be done to a disk, one after the other.
#[derive(Debug)]
pub enum Step<'a> {
    /// Bytes for an offset in the metadata device.
    Write(u64, &'a [u8]),
    /// Everything so far must be stable before the next step.
    Flush,
}

/// Carries out steps.
pub type Sink<'a, E> = &'a mut dyn FnMut(Step<'_>) -> Result<(), E>;

/// Why metadata are not moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// They have a device of their own.
    #[error("the metadata are external: they do not lie at the end of the disk")]
    External,
    /// They are where they belong.
    #[error("the metadata are at the end of the disk already")]
    InPlace,
    /// The end of the disk is gone.
    #[error("the disk has shrunk from {was} to {now} bytes")]
    Shrunk {
        /// Bytes then.
        was: u64,
        /// Bytes now.
        now: u64,
    },
    /// New and old metadata would overlap.
    #[error(
        "the disk has grown by {grown} bytes only: the metadata at the new end would overwrite those \
         at the old one"
    )]
    TooLittle {
        /// Bytes it has grown.
        grown: u64,
        /// Size it needs, bytes.
        needed: u64,
    },
    /// There is no layout for this size.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl Image {
    /// Reads everything there is, and what was wrong with it in words. Sizes as for [`open`].
    pub fn read(
        dev: &mut dyn ReadAt,
        meta_size: u64,
        disk_size: u64,
        placement: Placement,
    ) -> Result<(Self, Vec<String>), OpenError> {
        let recovered = open(dev, meta_size, disk_size, placement)?;
        let activity_log = read_activity_log(dev, &recovered.layout)?;
        let Recovered {
            superblock,
            bitmaps,
            warnings,
            ..
        } = recovered;
        let image = Self {
            superblock,
            bitmaps,
            activity_log,
        };
        Ok((image, warnings))
    }

    /// Writes it to where its layout says. Until the last but one flush is done the disk has no
    /// valid metadata there. The two superblocks get the present sequence number, which is at
    /// least 1, and the one before it.
    pub fn write<E>(&self, sink: Sink<'_, E>) -> Result<(), E> {
        let layout = &self.superblock.layout;
        for at in layout.superblock_offsets {
            sink(Step::Write(at, &[0; BLOCK]))?;
        }
        sink(Step::Flush)?;
        sink(Step::Write(layout.activity_log_offset, &self.activity_log))?;
        for (slot, bitmap) in (0..layout.slots).zip(&self.bitmaps) {
            let mut chunk: Vec<u8> = Vec::with_capacity(CHUNK);
            let mut start = layout.bitmap_page_offset(slot, 0);
            for page in 0..layout.bitmap_pages_per_slot {
                chunk.extend_from_slice(&bitmap.encode_page(slot, page)[..]);
                if chunk.len() == CHUNK || page + 1 == layout.bitmap_pages_per_slot {
                    sink(Step::Write(start, &chunk))?;
                    start += chunk.len() as u64;
                    chunk.clear();
                }
            }
        }
        sink(Step::Flush)?;
        let last = self.superblock.sequence.max(1);
        for sequence in [last - 1, last] {
            let mut superblock = self.superblock.clone();
            superblock.sequence = sequence;
            let at = layout.superblock_offsets[superblock.next_slot()];
            sink(Step::Write(at, &superblock.encode()[..]))?;
            sink(Step::Flush)?;
        }
        Ok(())
    }

    /// The same for a disk that has grown to `disk_size` bytes. The device keeps its agreed size.
    /// All beyond it counts as out of sync for every peer: nobody ever compared it.
    pub fn moved(&self, disk_size: u64) -> Result<Self, MoveError> {
        let old = &self.superblock.layout;
        let end = disk_size / BLOCK64 * BLOCK64;
        if old.placement == Placement::External {
            return Err(MoveError::External);
        }
        if end == old.disk_size {
            return Err(MoveError::InPlace);
        }
        if end < old.disk_size {
            return Err(MoveError::Shrunk {
                was: old.disk_size,
                now: disk_size,
            });
        }
        let layout = Layout::internal(disk_size, old.bitmap_block, old.slots)?;
        if layout.data_size < old.disk_size {
            return Err(MoveError::TooLittle {
                grown: end - old.disk_size,
                needed: enough_for(old)?,
            });
        }
        let mut superblock = self.superblock.clone();
        // Both new copies are newer than both old ones.
        superblock.sequence += 2;
        let known = match superblock.agreed_size {
            0 => old.data_size,
            agreed => agreed,
        };
        let bitmaps = self.bitmaps.iter().map(|bitmap| {
            let mut moved = Bitmap::new(layout.data_size, old.bitmap_block);
            for (first, count) in bitmap.runs() {
                moved.merge_run(first, count);
            }
            moved.set_bytes(known, layout.data_size - known);
            moved
        });
        let bitmaps = bitmaps.collect();
        superblock.layout = layout;
        Ok(Self {
            superblock,
            bitmaps,
            activity_log: self.activity_log.clone(),
        })
    }
}

/// Moves metadata: writes what [`Image::moved`] made of them, then takes the old ones away. After a
/// power cut at any moment the old ones or the new ones are found.
pub fn write_moved<E>(moved: &Image, old: &Layout, sink: Sink<'_, E>) -> Result<(), E> {
    moved.write(sink)?;
    erase(old, sink)
}

/// Takes old metadata away, so that they are not found again should the disk ever have this size.
pub fn erase<E>(old: &Layout, sink: Sink<'_, E>) -> Result<(), E> {
    for at in old.superblock_offsets {
        sink(Step::Write(at, &[0; BLOCK]))?;
    }
    sink(Step::Flush)
}

/// The least size of a disk on which the metadata that are laid out like this can be moved.
fn enough_for(old: &Layout) -> Result<u64, LayoutError> {
    let mut size = old.disk_size;
    loop {
        let data = Layout::internal(size, old.bitmap_block, old.slots)?.data_size;
        if data >= old.disk_size {
            return Ok(size);
        }
        size += old.disk_size - data;
    }
}

/// What the activity log's region holds.
pub fn read_activity_log(dev: &mut dyn ReadAt, layout: &Layout) -> Result<Vec<u8>, ReadError> {
    let mut log = vec![0; usize::try_from(layout.activity_log_len).unwrap_or(0)];
    dev.read_at(layout.activity_log_offset, &mut log)?;
    Ok(log)
}

#[cfg(test)]
#[path = "image_tests.rs"]
pub(super) mod tests;

//! Internal metadata that are not at the end of the disk, where they belong, because its size has
//! changed: finding them, or what is left of them.
//!
//! Invariant: a superblock counts only at the place it names itself. A copy of a disk that is kept as
//! a file within the data is at another place, and is no metadata of this disk.

use super::bitmap_pages;
use super::layout::{ACTIVITY_LOG_LEN, Placement};
use super::open::{OpenError, ReadAt, read_superblock};
use super::superblock::{MAGIC, Superblock};
use super::{BLOCK, BLOCK64};
use alloc::boxed::Box;
use alloc::vec;

/// Bytes read at once.
const CHUNK: u64 = 1 << 20;
/// Every start of a resource may look at this many bytes before the end of the disk.
const NEAR: u64 = 64 << 20;
/// [`nearby`] looks at the places that belong to these sizes: multiples of this, in bytes …
const STEP: u64 = 256 << 20;
/// … as many below the end.
const STEPS: u64 = 1024;

/// What lies on a disk that has no metadata at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trace {
    /// Whole metadata, for a smaller disk.
    Superblock(Box<Superblock>),
    /// Bitmap pages, at the offset of the last one, and nothing behind them.
    Pages(u64),
}

/// The superblock at the end of the disk as it was when it had `old_size` bytes.
pub fn at_old_size(dev: &mut dyn ReadAt, old_size: u64) -> Result<Superblock, OpenError> {
    let (superblock, _) = read_superblock(dev, old_size, Placement::Internal)?;
    let layout = &superblock.layout;
    let end = old_size / BLOCK64 * BLOCK64;
    if layout.placement == Placement::Internal && layout.disk_size == end {
        Ok(superblock)
    } else {
        Err(OpenError::NoMetadata)
    }
}

/// Looks at every block from `end` back to `start` (offsets in bytes), the last one first, and
/// stops at the first trace that `accept` takes. A block that cannot be read is passed over.
pub fn scan(
    dev: &mut dyn ReadAt,
    start: u64,
    end: u64,
    accept: &mut dyn FnMut(&Trace) -> bool,
) -> Option<Trace> {
    let mut end = end / BLOCK64 * BLOCK64;
    let mut buf = vec![0u8; CHUNK as usize];
    while end > start {
        let from = end
            .saturating_sub(CHUNK)
            .max(start.next_multiple_of(BLOCK64));
        if from >= end {
            return None;
        }
        let chunk = &mut buf[..usize::try_from(end - from).ok()?];
        if dev.read_at(from, chunk).is_err() {
            for (at, block) in (from..).step_by(BLOCK).zip(chunk.chunks_exact_mut(BLOCK)) {
                if dev.read_at(at, block).is_err() {
                    block.fill(0);
                }
            }
        }
        for (i, block) in chunk.chunks_exact(BLOCK).enumerate().rev() {
            let found = trace(dev, from + i as u64 * BLOCK64, block);
            if let Some(found) = found.filter(|found| accept(found)) {
                return Some(found);
            }
        }
        end = from;
    }
    None
}

fn trace(dev: &mut dyn ReadAt, at: u64, block: &[u8]) -> Option<Trace> {
    if block.starts_with(MAGIC) {
        // At the place it names: its other copy may be the newer one, and it may be a copy itself.
        let layout = Superblock::decode(block).ok()?.layout;
        let newest = at_old_size(dev, layout.disk_size).ok()?;
        return Some(Trace::Superblock(Box::new(newest)));
    }
    bitmap_pages::is_page(block).then_some(Trace::Pages(at))
}

/// Looks at the last `near` bytes of a disk of `disk_size` bytes, and at the ends that round sizes
/// would have had.
pub fn nearby(dev: &mut dyn ReadAt, disk_size: u64, near: u64) -> Option<Trace> {
    let start = disk_size.saturating_sub(near);
    if let Some(found) = scan(dev, start, disk_size, &mut |_| true) {
        return Some(found);
    }
    let largest = disk_size / STEP;
    (largest.saturating_sub(STEPS) + 1..=largest)
        .rev()
        .find_map(|n| at_old_size(dev, n * STEP).ok())
        .map(|superblock| Trace::Superblock(Box::new(superblock)))
}

/// Why nothing usable is found at the end of a disk of `disk_size` bytes, if there is more to tell
/// than `error`. Superblocks that were just being moved there may be half written.
pub(super) fn explain(dev: &mut dyn ReadAt, disk_size: u64, error: OpenError) -> OpenError {
    match nearby(dev, disk_size, NEAR) {
        Some(Trace::Superblock(superblock)) => grown(&superblock, disk_size),
        Some(Trace::Pages(at)) if error == OpenError::NoMetadata => {
            let end = disk_size / BLOCK64 * BLOCK64;
            if at + 3 * BLOCK64 + ACTIVITY_LOG_LEN == end {
                OpenError::Overwritten
            } else {
                OpenError::CutOff { now: disk_size }
            }
        }
        _ => error,
    }
}

/// Why a superblock at the end of a disk of `disk_size` bytes was made for a smaller one. After the
/// disk has grown by one block, the last copy lies where the first belongs.
pub(super) fn explain_stranger(
    dev: &mut dyn ReadAt,
    superblock: &Superblock,
    disk_size: u64,
) -> OpenError {
    let expected = superblock.layout.disk_size;
    match at_old_size(dev, expected) {
        Ok(old) if old.device_uuid == superblock.device_uuid => grown(&old, disk_size),
        _ => OpenError::NotItsOwn {
            found: disk_size,
            expected,
        },
    }
}

fn grown(superblock: &Superblock, disk_size: u64) -> OpenError {
    OpenError::Grown {
        resource: superblock.resource.clone(),
        was: superblock.layout.disk_size,
        now: disk_size,
    }
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;

//! Where things are. Internal metadata sit at the end of the disk with the superblocks last, so that
//! they are found from the size alone:
//!
//! ```text
//! internal:  data … | bitmaps | activity log | superblock 0 | superblock 1 | end of disk
//! external:  superblock 0 | superblock 1 | activity log | bitmaps
//! ```

use super::bitmap_pages::BITS_PER_PAGE;
use super::{BLOCK, BLOCK64};
use alloc::format;
use alloc::string::{String, ToString};

/// Bytes reserved for the activity log.
pub const ACTIVITY_LOG_LEN: u64 = 64 << 10;
/// Largest bitmap granularity in bytes.
pub const MAX_BITMAP_BLOCK: u32 = 1 << 20;

/// Where the metadata live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// At the end of the data disk.
    Internal,
    /// On a device or file of their own.
    External,
}

/// Offsets are in the metadata device (for internal metadata that is the disk itself), all in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Internal or external.
    pub placement: Placement,
    /// Bytes of the backing disk (rounded down to 4096).
    pub disk_size: u64,
    /// Bytes usable for data, a multiple of 4096.
    pub data_size: u64,
    /// Bytes per bitmap bit: a power of two from 4096 to 1 MiB.
    pub bitmap_block: u32,
    /// Bitmap slots, one per possible peer, 1 to 15.
    pub slots: u8,
    /// Offsets of the two superblock copies.
    pub superblock_offsets: [u64; 2],
    /// Offset of the activity log.
    pub activity_log_offset: u64,
    /// Bytes of the activity log.
    pub activity_log_len: u64,
    /// Offset of the first bitmap slot.
    pub bitmap_offset: u64,
    /// 4 KiB pages of one slot.
    pub bitmap_pages_per_slot: u64,
}

/// Why there is no layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Nothing would be left for data.
    #[error("{size} bytes are too small: the metadata alone need {needed} bytes")]
    TooSmall {
        /// Bytes there are.
        size: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// Not a power of two from 4 KiB to 1 MiB.
    #[error("a bitmap granularity of {0} bytes is not a power of two from 4096 to 1048576")]
    BitmapBlock(u32),
    /// Not 1 to 15.
    #[error("{0} bitmap slots: 1 to 15 are possible")]
    Slots(u8),
}

fn pages(data_size: u64, bitmap_block: u32) -> u64 {
    data_size
        .div_ceil(u64::from(bitmap_block))
        .div_ceil(BITS_PER_PAGE)
}

fn checked(bitmap_block: u32, slots: u8) -> Result<(), LayoutError> {
    if !bitmap_block.is_power_of_two() || !(4096..=MAX_BITMAP_BLOCK).contains(&bitmap_block) {
        return Err(LayoutError::BitmapBlock(bitmap_block));
    }
    if !(1..=15).contains(&slots) {
        return Err(LayoutError::Slots(slots));
    }
    Ok(())
}

impl Layout {
    /// Metadata at the end of a disk of `disk_size` bytes.
    pub fn internal(disk_size: u64, bitmap_block: u32, slots: u8) -> Result<Self, LayoutError> {
        checked(bitmap_block, slots)?;
        let disk_size = disk_size / BLOCK64 * BLOCK64;
        // Sized for the whole disk: a little more than the data need, and simple.
        let per_slot = pages(disk_size, bitmap_block);
        let bitmap_len = per_slot * u64::from(slots) * BLOCK64;
        let needed = bitmap_len + ACTIVITY_LOG_LEN + 2 * BLOCK64;
        let data_size =
            disk_size
                .checked_sub(needed)
                .filter(|&d| d > 0)
                .ok_or(LayoutError::TooSmall {
                    size: disk_size,
                    needed: needed + BLOCK64,
                })?;
        Ok(Self {
            placement: Placement::Internal,
            disk_size,
            data_size,
            bitmap_block,
            slots,
            superblock_offsets: Self::superblocks(Placement::Internal, disk_size),
            activity_log_offset: disk_size - 2 * BLOCK64 - ACTIVITY_LOG_LEN,
            activity_log_len: ACTIVITY_LOG_LEN,
            bitmap_offset: data_size,
            bitmap_pages_per_slot: per_slot,
        })
    }

    /// Metadata on a device of their own, for a disk of `disk_size` bytes. `meta_size` is checked
    /// where it is known (a block device, not a file that can grow).
    pub fn external(
        disk_size: u64,
        meta_size: Option<u64>,
        bitmap_block: u32,
        slots: u8,
    ) -> Result<Self, LayoutError> {
        checked(bitmap_block, slots)?;
        let disk_size = disk_size / BLOCK64 * BLOCK64;
        if disk_size == 0 {
            return Err(LayoutError::TooSmall {
                size: 0,
                needed: BLOCK64,
            });
        }
        let layout = Self {
            placement: Placement::External,
            disk_size,
            data_size: disk_size,
            bitmap_block,
            slots,
            superblock_offsets: Self::superblocks(Placement::External, 0),
            activity_log_offset: 2 * BLOCK64,
            activity_log_len: ACTIVITY_LOG_LEN,
            bitmap_offset: 2 * BLOCK64 + ACTIVITY_LOG_LEN,
            bitmap_pages_per_slot: pages(disk_size, bitmap_block),
        };
        match meta_size {
            Some(size) if size < layout.metadata_len() => Err(LayoutError::TooSmall {
                size,
                needed: layout.metadata_len(),
            }),
            _ => Ok(layout),
        }
    }

    /// The same metadata for a disk that has `disk_size` bytes now, and a metadata device of
    /// `meta_size` (checked where it is known). Never smaller than it was. Answers what keeps it from
    /// covering the whole disk, in words. Bitmaps behind the first one cannot move: with several
    /// slots there is room for what their last pages hold.
    ///
    /// Only for external metadata: internal ones lie at the end of the disk and do not grow.
    pub fn grown(&self, disk_size: u64, meta_size: Option<u64>) -> (Self, Option<String>) {
        let disk_size = disk_size / BLOCK64 * BLOCK64;
        let per_page = BITS_PER_PAGE * u64::from(self.bitmap_block);
        let slots = u64::from(self.slots);
        let mut most = disk_size;
        let mut limit = None;
        if self.slots > 1 && most > self.bitmap_pages_per_slot * per_page {
            most = self.bitmap_pages_per_slot * per_page;
            limit = Some(format!(
                "the metadata were made for {slots} peers and have room for {most} bytes: take the \
                 resource down, make new metadata with `twinblk create-md --force RES`, and let \
                 this node be synced in full"
            ));
        }
        if let Some(size) = meta_size {
            let pages = size.saturating_sub(self.bitmap_offset) / BLOCK64 / slots;
            if most > pages * per_page {
                most = pages * per_page;
                limit = Some(format!(
                    "the metadata device of {size} bytes has room for {most} bytes of data: make it \
                     larger, too"
                ));
            }
        }
        if self.placement == Placement::Internal || most <= self.disk_size {
            return (self.clone(), limit);
        }
        match Self::external(most, meta_size, self.bitmap_block, self.slots) {
            Ok(layout) => (layout, limit),
            Err(error) => (self.clone(), Some(error.to_string())),
        }
    }

    /// Where the superblocks are, before anything else is known. `meta_size`: bytes of the metadata
    /// device.
    pub fn superblocks(placement: Placement, meta_size: u64) -> [u64; 2] {
        match placement {
            Placement::External => [0, BLOCK64],
            Placement::Internal => {
                let end = meta_size / BLOCK64 * BLOCK64;
                [end.saturating_sub(2 * BLOCK64), end.saturating_sub(BLOCK64)]
            }
        }
    }

    /// Bytes of all metadata.
    pub fn metadata_len(&self) -> u64 {
        2 * BLOCK64
            + self.activity_log_len
            + self.bitmap_pages_per_slot * u64::from(self.slots) * BLOCK64
    }

    /// Offset of a bitmap page.
    pub fn bitmap_page_offset(&self, slot: u8, page: u64) -> u64 {
        debug_assert!(slot < self.slots && page < self.bitmap_pages_per_slot);
        self.bitmap_offset + (u64::from(slot) * self.bitmap_pages_per_slot + page) * BLOCK as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_overlaps(
            size in (1u64 << 20)..(16 << 40), shift in 12u32..=20, slots in 1u8..=15, ext: bool,
        ) {
            let layout = if ext {
                Layout::external(size, None, 1 << shift, slots)
            } else {
                Layout::internal(size, 1 << shift, slots)
            };
            let Ok(l) = layout else {
                prop_assert!(size < 2 << 20, "only tiny disks are refused");
                return Ok(());
            };
            let bitmaps = l.bitmap_pages_per_slot * u64::from(slots) * BLOCK64;
            let mut areas = vec![
                (l.superblock_offsets[0], BLOCK64),
                (l.superblock_offsets[1], BLOCK64),
                (l.activity_log_offset, l.activity_log_len),
                (l.bitmap_offset, bitmaps),
            ];
            if !ext {
                areas.push((0, l.data_size));
            }
            areas.sort_unstable();
            for pair in areas.windows(2) {
                prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
            }
            let end = if ext { l.metadata_len() } else { size };
            prop_assert!(areas.iter().all(|a| a.0 + a.1 <= end && a.0 % BLOCK64 == 0));
            let bits = l.data_size.div_ceil(u64::from(l.bitmap_block));
            prop_assert!(bits <= l.bitmap_pages_per_slot * BITS_PER_PAGE);
        }
    }

    #[test]
    fn external_metadata_grow_with_the_disk_as_far_as_there_is_room() {
        let made = |slots| Layout::external(100 << 20, None, 4096, slots).expect("sane");
        // One bitmap, the last thing there: it may become longer.
        let (grown, limit) = made(1).grown(1 << 30, None);
        assert_eq!((grown.data_size, limit), (1 << 30, None));
        assert_eq!(Layout::external(1 << 30, None, 4096, 1), Ok(grown));
        // A second one lies behind the first.
        let (grown, limit) = made(2).grown(1 << 30, None);
        assert_eq!(grown.data_size, BITS_PER_PAGE * 4096);
        assert_eq!(grown.bitmap_pages_per_slot, made(2).bitmap_pages_per_slot);
        assert!(limit.expect("not all").contains("create-md --force"));
        // The metadata device ends.
        let room = made(1).metadata_len() + 2 * BLOCK64;
        let (grown, limit) = made(1).grown(1 << 30, Some(room));
        assert_eq!(grown.data_size, 3 * BITS_PER_PAGE * 4096);
        assert!(grown.metadata_len() <= room && limit.is_some());
        // Never smaller, and internal ones not at all.
        assert_eq!(made(1).grown(50 << 20, None), (made(1), None));
        let internal = Layout::internal(100 << 20, 4096, 1).expect("sane");
        assert_eq!(internal.grown(1 << 30, None).0, internal);
    }

    #[test]
    fn impossible_wishes_are_refused() {
        assert!(matches!(
            Layout::internal(64 << 10, 4096, 1),
            Err(LayoutError::TooSmall { .. })
        ));
        assert!(matches!(
            Layout::internal(1 << 30, 5000, 1),
            Err(LayoutError::BitmapBlock(_))
        ));
        assert!(matches!(
            Layout::internal(1 << 30, 4096, 16),
            Err(LayoutError::Slots(16))
        ));
    }
}

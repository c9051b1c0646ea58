//! Reading the metadata of a disk, and saying in words why they cannot be used.

use super::layout::{Layout, Placement};
use super::log_block::{self, Identity, LogError};
use super::superblock::{Superblock, SuperblockError, choose};
use super::{BLOCK, BLOCK64, bitmap_pages, search};
use crate::bitmap::Bitmap;
use crate::ids::{NodeId, VolumeId};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

/// Pages read at once.
const READ_PAGES: u64 = 256;

/// A device that can be read.
pub trait ReadAt {
    /// Fills `buf` from `offset`; both are multiples of 4096.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError>;
}

/// Reading failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read error (errno {errno})")]
pub struct ReadError {
    /// errno.
    pub errno: i32,
}

/// What was found.
#[derive(Debug)]
pub struct Recovered {
    /// The newer whole superblock.
    pub superblock: Superblock,
    /// Where things are.
    pub layout: Layout,
    /// By slot.
    pub bitmaps: Vec<Bitmap>,
    /// Extents that may differ from the peers if this node went down as Primary, ascending; without
    /// the indicator of that it means nothing.
    pub log: Result<Vec<u32>, LogError>,
    /// What was damaged and how it was made good, in words.
    pub warnings: Vec<String>,
}

/// Why there is nothing usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No superblock anywhere it should be.
    #[error(
        "no twinblk metadata found; create them with `twinblk create-md`, or put a dump back with \
         `twinblk restore-md`. Or has the disk changed its size? Internal metadata are looked for at \
         its end: `twinblk move-md` finds those of a disk that has grown"
    )]
    NoMetadata,
    /// Internal metadata lie where the end of the disk was.
    #[error(
        "the disk has grown from {was} to {now} bytes, and its metadata (of resource {resource}) lie \
         where its end was: `twinblk move-md {resource}` moves them; nothing is lost"
    )]
    Grown {
        /// Whose they are.
        resource: String,
        /// Bytes then.
        was: u64,
        /// Bytes now.
        now: u64,
    },
    /// Only the beginning of internal metadata is there.
    #[error(
        "the metadata are cut off: the disk seems to have shrunk, to {now} bytes. What lay behind \
         that is lost: the superblocks and the end of the data. Give the disk its old size again and \
         see whether they come back; else `twinblk create-md` and a full sync from the peer"
    )]
    CutOff {
        /// Bytes now.
        now: u64,
    },
    /// The bitmaps are where they belong and the superblocks are not.
    #[error(
        "both superblocks are gone, overwritten by something else; the bitmaps before them are still \
         there. `twinblk restore-md` puts a dump back; else `twinblk create-md` and a full sync from \
         the peer"
    )]
    Overwritten,
    /// From an older program than can still be read.
    #[error(
        "metadata of format version {found}; this program reads {oldest} and newer: use the twinblk \
         that wrote them, or overwrite them with `twinblk create-md --force`, after which this copy \
         needs a full sync from the peer"
    )]
    OlderVersion {
        /// Found.
        found: u32,
        /// Oldest that can be read.
        oldest: u32,
    },
    /// Both copies are there and broken.
    #[error("both superblocks are damaged: first: {0}; second: {1}")]
    BothDamaged(SuperblockError, SuperblockError),
    /// From a newer program.
    #[error(
        "metadata of format version {found}; this program knows up to {known}: use a newer twinblk"
    )]
    NewerVersion {
        /// Found.
        found: u32,
        /// Known.
        known: u32,
    },
    /// The disk is smaller than the metadata say.
    #[error(
        "the disk has {found} bytes, its metadata were made for {expected}: it is another disk, or it \
         has shrunk and the end of the data is lost. Give it its size again; else `twinblk create-md \
         --force` and a full sync from the peer"
    )]
    DiskShrunk {
        /// Bytes now.
        found: u64,
        /// Bytes then.
        expected: u64,
    },
    /// Internal metadata at the end of the disk that were made for a smaller one.
    #[error(
        "the metadata at the end of this disk of {found} bytes were made for one of {expected}: they \
         were copied here from another disk"
    )]
    NotItsOwn {
        /// Bytes of the disk.
        found: u64,
        /// Bytes they name.
        expected: u64,
    },
    /// The metadata say internal and the configuration external, or the reverse.
    #[error("the metadata found are {0}, the configuration says otherwise")]
    Placement(&'static str),
    /// Belongs to something else.
    #[error("the metadata belong to {found}, not to {expected}: this is another resource's disk")]
    OtherDevice {
        /// Found.
        found: String,
        /// Expected.
        expected: String,
    },
    /// The disk fails.
    #[error("the metadata cannot be read: {0}")]
    Read(#[from] ReadError),
}

/// Reads the two superblocks and chooses.
pub fn read_superblock(
    dev: &mut dyn ReadAt,
    meta_size: u64,
    placement: Placement,
) -> Result<(Superblock, Vec<String>), OpenError> {
    if meta_size < 2 * BLOCK64 {
        return Err(OpenError::NoMetadata);
    }
    let mut copies = [[0u8; BLOCK]; 2];
    let mut warnings = Vec::new();
    let mut failed = None;
    for (i, at) in Layout::superblocks(placement, meta_size)
        .into_iter()
        .enumerate()
    {
        if let Err(e) = dev.read_at(at, &mut copies[i]) {
            copies[i] = [0; BLOCK];
            warnings.push(format!("superblock {i} cannot be read: {e}"));
            failed = Some(e);
        }
    }
    match choose(&copies[0], &copies[1]) {
        Ok(chosen) => {
            if let Some(error) = chosen.other {
                let i = 1 - chosen.from;
                warnings.push(format!("superblock {i}: {error}; the other copy is used"));
            }
            Ok((chosen.superblock, warnings))
        }
        Err(errors) => Err(match (failed, errors) {
            (Some(e), _) => OpenError::Read(e),
            (None, [SuperblockError::NewerVersion { found, known }, _])
            | (None, [_, SuperblockError::NewerVersion { found, known }]) => {
                OpenError::NewerVersion { found, known }
            }
            (None, [SuperblockError::OlderVersion { found, oldest }, _])
            | (None, [_, SuperblockError::OlderVersion { found, oldest }]) => {
                OpenError::OlderVersion { found, oldest }
            }
            (None, [SuperblockError::Magic, SuperblockError::Magic]) => OpenError::NoMetadata,
            (None, [a, b]) => OpenError::BothDamaged(a, b),
        }),
    }
}

/// Reads everything. `meta_size` and `disk_size` in bytes (equal for internal metadata).
pub fn open(
    dev: &mut dyn ReadAt,
    meta_size: u64,
    disk_size: u64,
    placement: Placement,
) -> Result<Recovered, OpenError> {
    let (superblock, mut warnings) = match read_superblock(dev, meta_size, placement) {
        Err(e @ (OpenError::NoMetadata | OpenError::BothDamaged(..)))
            if placement == Placement::Internal =>
        {
            return Err(search::explain(dev, disk_size, e));
        }
        result => result?,
    };
    let layout = superblock.layout.clone();
    if layout.placement != placement {
        return Err(OpenError::Placement(match layout.placement {
            Placement::Internal => "internal",
            Placement::External => "external",
        }));
    }
    if disk_size < layout.disk_size {
        return Err(OpenError::DiskShrunk {
            found: disk_size,
            expected: layout.disk_size,
        });
    }
    if placement == Placement::Internal && disk_size / BLOCK64 * BLOCK64 != layout.disk_size {
        return Err(search::explain_stranger(dev, &superblock, disk_size));
    }
    let mut bitmaps = Vec::new();
    for slot in 0..layout.slots {
        bitmaps.push(read_bitmap(dev, &layout, slot, &mut warnings));
    }
    let log = read_log(dev, &superblock);
    Ok(Recovered {
        superblock,
        layout,
        bitmaps,
        log,
        warnings,
    })
}

fn read_log(dev: &mut dyn ReadAt, superblock: &Superblock) -> Result<Vec<u32>, LogError> {
    let layout = &superblock.layout;
    let mut ring = vec![0u8; usize::try_from(layout.activity_log_len).unwrap_or(0)];
    dev.read_at(layout.activity_log_offset, &mut ring)
        .map_err(|e| LogError::Read(e.errno))?;
    let identity = Identity {
        device_uuid: superblock.device_uuid,
        reign: superblock.reign,
    };
    log_block::recover(&ring, &identity)
}

/// A page that cannot be read or believed counts as all set: its blocks are resynced.
fn read_bitmap(
    dev: &mut dyn ReadAt,
    layout: &Layout,
    slot: u8,
    warnings: &mut Vec<String>,
) -> Bitmap {
    let mut bitmap = Bitmap::new(layout.data_size, layout.bitmap_block);
    let mut page = 0;
    let mut bad = 0u64;
    let mut first_error = None;
    let mut buf = vec![0u8; usize::try_from(READ_PAGES).unwrap_or(0) * BLOCK];
    while page < layout.bitmap_pages_per_slot {
        let count = READ_PAGES.min(layout.bitmap_pages_per_slot - page);
        let buf = &mut buf[..usize::try_from(count).unwrap_or(0) * BLOCK];
        let read = dev.read_at(layout.bitmap_page_offset(slot, page), buf);
        for (i, block) in (page..).zip(buf.chunks_exact(BLOCK)) {
            let result = match read {
                Ok(()) => bitmap_pages::decode(block, slot, i)
                    .map(|words| bitmap.load_page(i, words))
                    .map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            };
            if let Err(error) = result {
                bad += 1;
                bitmap.set_page(i);
                first_error.get_or_insert(error);
            }
        }
        page += count;
    }
    if let Some(error) = first_error {
        warnings.push(format!(
            "{bad} page(s) of bitmap {slot} are unusable ({error}); their blocks count as out of sync"
        ));
    }
    bitmap
}

/// Whether the metadata belong to this volume of this resource on this node.
pub fn verify_identity(
    superblock: &Superblock,
    resource: &str,
    volume: VolumeId,
    node: NodeId,
) -> Result<(), OpenError> {
    let found = (
        superblock.resource.as_str(),
        superblock.volume,
        superblock.node,
    );
    if found == (resource, volume, node) {
        return Ok(());
    }
    let text = |(r, v, n): (&str, VolumeId, NodeId)| format!("resource {r}, {v}, node id {}", n.0);
    Err(OpenError::OtherDevice {
        found: text(found),
        expected: text((resource, volume, node)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::create::{CreateParams, create};
    use proptest::prelude::*;

    struct Mem(Vec<u8>);

    impl ReadAt for Mem {
        fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
            let at = usize::try_from(offset).expect("small");
            let from = self
                .0
                .get(at..at + buf.len())
                .ok_or(ReadError { errno: 5 })?;
            buf.copy_from_slice(from);
            Ok(())
        }
    }

    const SIZE: u64 = 8 << 20;

    fn disk() -> Mem {
        let mut mem = Mem(vec![0xa5; SIZE as usize]);
        let params = CreateParams {
            layout: Layout::internal(SIZE, 4096, 2).expect("large enough"),
            resource: "r0",
            volume: VolumeId(0),
            node: NodeId(1),
            peers: &[NodeId(0)],
            device_uuid: 7,
            block_size: 512,
            extent_size: 4 << 20,
        };
        create(params, &mut |at, data: &[u8]| {
            let at = usize::try_from(at).expect("small");
            mem.0[at..at + data.len()].copy_from_slice(data);
            Ok::<(), ()>(())
        })
        .expect("memory");
        mem
    }

    #[test]
    fn what_was_created_is_found() {
        let found = open(&mut disk(), SIZE, SIZE, Placement::Internal).expect("whole");
        assert_eq!(found.warnings, Vec::<String>::new());
        assert_eq!(found.bitmaps.len(), 2);
        assert_eq!(found.bitmaps[0].count_set(), 0);
        let sb = &found.superblock;
        assert!(verify_identity(sb, "r0", VolumeId(0), NodeId(1)).is_ok());
        for (r, v, n) in [("r1", 0, 1), ("r0", 1, 1), ("r0", 0, 0)] {
            let error = verify_identity(sb, r, VolumeId(v), NodeId(n)).expect_err("another");
            assert!(matches!(error, OpenError::OtherDevice { .. }));
        }
    }

    #[test]
    fn damage_is_made_good_on_the_safe_side() {
        let mut mem = disk();
        let layout = Layout::internal(SIZE, 4096, 2).expect("large enough");
        let at = usize::try_from(layout.bitmap_page_offset(0, 0)).expect("small");
        mem.0[at + 100] ^= 1;
        let one = usize::try_from(layout.superblock_offsets[0]).expect("small");
        mem.0[one + 50] ^= 1;
        let found = open(&mut mem, SIZE, SIZE, Placement::Internal).expect("one superblock left");
        assert_eq!(found.warnings.len(), 2, "{:?}", found.warnings);
        assert_eq!(
            found.bitmaps[0].count_set(),
            found.bitmaps[0].bits(),
            "all set"
        );
        let two = usize::try_from(layout.superblock_offsets[1]).expect("small");
        mem.0[two + 50] ^= 1;
        let error = open(&mut mem, SIZE, SIZE, Placement::Internal).expect_err("none left");
        assert!(matches!(error, OpenError::BothDamaged(..)), "{error}");
    }

    #[test]
    fn other_sizes_are_told() {
        let mut mem = disk();
        let error = open(&mut mem, SIZE - 4096, SIZE - 4096, Placement::Internal);
        assert!(error.is_err(), "not where it should be");
        let mut empty = Mem(vec![0; 1 << 20]);
        let error = open(&mut empty, 1 << 20, 1 << 20, Placement::Internal).expect_err("empty");
        assert_eq!(error, OpenError::NoMetadata);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn garbage_never_panics(damage in prop::collection::vec((0usize..80 << 10, any::<u8>()), 0..40)) {
            let mut mem = disk();
            let len = mem.0.len();
            for (back, value) in damage {
                mem.0[len - 1 - back] = value;
            }
            let _ = open(&mut mem, SIZE, SIZE, Placement::Internal);
        }
    }
}

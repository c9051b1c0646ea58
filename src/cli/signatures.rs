//! What is on a disk already: file systems, partition tables and the like by their signatures.
//! `create-md` must not overwrite somebody's data, so it asks here first.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// A disk to look at.
#[derive(Debug)]
pub(super) struct Probe<'f> {
    file: &'f File,
    /// Bytes.
    pub(super) size: u64,
}

/// Something found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// "an ext4 file system (label home)".
    pub(super) what: String,
    /// Bytes from the start of the disk it takes.
    pub(super) end: u64,
    /// How to make a file system end earlier; empty when there is no way.
    pub(super) shrink: &'static str,
}

impl<'f> Probe<'f> {
    /// Looks at `size` bytes of `file`.
    pub(super) fn new(file: &'f File, size: u64) -> Self {
        Self { file, size }
    }

    /// Bytes at an offset; `None` beyond the end or where the disk cannot be read.
    fn bytes<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        let mut buffer = [0; N];
        self.file.read_exact_at(&mut buffer, offset).ok()?;
        Some(buffer)
    }

    fn is(&self, offset: u64, magic: &[u8]) -> bool {
        let mut buffer = vec![0; magic.len()];
        self.file.read_exact_at(&mut buffer, offset).is_ok() && buffer == magic
    }

    fn le16(&self, offset: u64) -> Option<u64> {
        self.bytes(offset).map(u16::from_le_bytes).map(u64::from)
    }

    fn le32(&self, offset: u64) -> Option<u64> {
        self.bytes(offset).map(u32::from_le_bytes).map(u64::from)
    }

    fn le64(&self, offset: u64) -> Option<u64> {
        self.bytes(offset).map(u64::from_le_bytes)
    }

    fn be32(&self, offset: u64) -> Option<u64> {
        self.bytes(offset).map(u32::from_be_bytes).map(u64::from)
    }

    fn be64(&self, offset: u64) -> Option<u64> {
        self.bytes(offset).map(u64::from_be_bytes)
    }

    /// A file system with a label field of N bytes.
    fn file_system<const N: usize>(
        &self,
        kind: &str,
        label: u64,
        end: Option<u64>,
        shrink: &'static str,
    ) -> Found {
        let label = self.bytes::<N>(label).unwrap_or([0; N]);
        let label = String::from_utf8_lossy(&label);
        let label = label.split('\0').next().unwrap_or("").trim();
        let label = if label.is_empty() {
            String::new()
        } else {
            format!(" (label {label:?})")
        };
        let an = if kind.starts_with(['a', 'e', 'N', 'x']) {
            "an"
        } else {
            "a"
        };
        let what = format!("{an} {kind} file system{label}");
        Found {
            what,
            end: end.unwrap_or(self.size),
            shrink,
        }
    }

    /// Something that takes the whole disk or cannot be made smaller.
    fn other(&self, what: impl Into<String>, end: Option<u64>) -> Found {
        Found {
            what: what.into(),
            end: end.unwrap_or(self.size),
            shrink: "",
        }
    }
}

/// The table: each row looks for one family.
type Look = fn(&Probe<'_>) -> Option<Found>;
const TABLE: [Look; 13] = [
    ext, xfs, btrfs, swap, lvm, luks, md_raid, drbd, zfs, ntfs, fat, gpt, // in front of:
    mbr,
];

/// Everything found, most specific first. A boot sector that belongs to a file system or a GPT is
/// not reported as a partition table as well.
pub(super) fn find(probe: &Probe<'_>) -> Vec<Found> {
    let mut found = Vec::new();
    for (i, look) in TABLE.iter().enumerate() {
        let is_mbr = i + 1 == TABLE.len();
        if !is_mbr || found.is_empty() {
            found.extend(look(probe));
        }
    }
    found
}

fn ext(p: &Probe<'_>) -> Option<Found> {
    const SB: u64 = 1024;
    if p.le16(SB + 0x38)? != 0xEF53 {
        return None;
    }
    let (compat, incompat) = (p.le32(SB + 0x5C)?, p.le32(SB + 0x60)?);
    // Extents, 64bit, flex_bg and what came later; then the journal.
    let kind = match (incompat & !0x3F != 0, compat & 0x4 != 0) {
        (true, _) => "ext4",
        (false, true) => "ext3",
        (false, false) => "ext2",
    };
    let high = if incompat & 0x80 != 0 {
        p.le32(SB + 0x150)?
    } else {
        0
    };
    let blocks = p.le32(SB + 0x04)? | high << 32;
    let block = 1024u64.checked_shl(u32::try_from(p.le32(SB + 0x18)?).ok()?);
    let end = block.and_then(|b| blocks.checked_mul(b));
    Some(p.file_system::<16>(kind, SB + 0x78, end, "resize2fs"))
}

fn xfs(p: &Probe<'_>) -> Option<Found> {
    if !p.is(0, b"XFSB") {
        return None;
    }
    let end = p.be64(8)?.checked_mul(p.be32(4)?);
    // XFS cannot be made smaller.
    Some(p.file_system::<12>("xfs", 108, end, ""))
}

fn btrfs(p: &Probe<'_>) -> Option<Found> {
    const SB: u64 = 0x1_0000;
    if !p.is(SB + 0x40, b"_BHRfS_M") {
        return None;
    }
    // Size of this device, from the device item in the superblock.
    let end = p.le64(SB + 0xC9 + 8);
    Some(p.file_system::<256>("btrfs", SB + 0x12B, end, "btrfs filesystem resize"))
}

fn swap(p: &Probe<'_>) -> Option<Found> {
    for page in [4096, 8192, 16_384, 65_536] {
        let magic = p.bytes::<10>(page - 10)?;
        if magic == *b"SWAPSPACE2" || magic == *b"SWAP-SPACE" {
            let last = p.le32(1024 + 4)?;
            return Some(p.other("swap space", Some((last + 1) * page)));
        }
        if magic == *b"S1SUSPEND\0" {
            return Some(p.other("a hibernated system in swap space", None));
        }
    }
    None
}

fn lvm(p: &Probe<'_>) -> Option<Found> {
    for sector in (0..4).map(|n| n * 512) {
        if p.is(sector, b"LABELONE") && p.is(sector + 24, b"LVM2 001") {
            let header = sector + p.le32(sector + 20)?;
            let what = "an LVM2 physical volume";
            let size = p.le64(header + 32).filter(|size| *size != 0);
            return Some(Found {
                shrink: "pvresize",
                ..p.other(what, size)
            });
        }
    }
    None
}

fn luks(p: &Probe<'_>) -> Option<Found> {
    let version = p.bytes::<2>(6).map(u16::from_be_bytes)?;
    let first = p.is(0, b"LUKS\xba\xbe");
    // The second header of LUKS2 survives when the first is lost.
    let second = p.is(0x4000, b"SKUL\xba\xbe");
    match (first, second) {
        (true, _) => Some(p.other(format!("a LUKS{version} encrypted volume"), None)),
        (false, true) => Some(p.other("a LUKS2 encrypted volume (second header)", None)),
        (false, false) => None,
    }
}

fn md_raid(p: &Probe<'_>) -> Option<Found> {
    const MAGIC: u64 = 0xa92b_4efc;
    let at_end = p.size.checked_sub(8192).map(|at| at & !4095);
    for (offset, version) in [(Some(0), "1.1"), (Some(4096), "1.2"), (at_end, "1.0")] {
        if let Some(offset) = offset
            && p.le32(offset) == Some(MAGIC)
            && p.le32(offset + 4) == Some(1)
        {
            return Some(p.other(format!("a Linux RAID member (md {version})"), None));
        }
    }
    let old = (p.size & !0xFFFF).checked_sub(0x1_0000)?;
    // Version 0.90 is in the byte order of the machine that wrote it.
    let magic = [p.le32(old)?, p.be32(old)?];
    magic
        .contains(&MAGIC)
        .then(|| p.other("a Linux RAID member (md 0.90)", None))
}

fn drbd(p: &Probe<'_>) -> Option<Found> {
    let end = (p.size & !4095).checked_sub(4096)?;
    // Internal metadata have their superblock in the last 4 KiB, external ones in the first.
    for (offset, place) in [(end, "internal"), (0, "external")] {
        let version = match p.be32(offset + 60) {
            Some(0x8374_026a) => "0.7",
            Some(0x8374_026b | 0x8374_026c) => "8.4",
            Some(0x8374_026d) => "9",
            _ => continue,
        };
        return Some(p.other(format!("DRBD {version} metadata ({place})"), None));
    }
    None
}

fn zfs(p: &Probe<'_>) -> Option<Found> {
    const LABEL: u64 = 256 << 10;
    const MAGIC: u64 = 0x00ba_b10c;
    let last = (p.size & !(LABEL - 1)).checked_sub(2 * LABEL)?;
    for label in [0, LABEL, last, last + LABEL] {
        // Each label ends with a ring of uberblocks of 1 KiB or more.
        for offset in (0..128).map(|n| label + (128 << 10) + n * 1024) {
            if p.le64(offset) == Some(MAGIC) || p.be64(offset) == Some(MAGIC) {
                return Some(p.other("a ZFS pool member", None));
            }
        }
    }
    None
}

fn ntfs(p: &Probe<'_>) -> Option<Found> {
    if !p.is(3, b"NTFS    ") {
        return None;
    }
    // The last sector is a copy of the first and not counted.
    let end = p.le64(0x28)?.checked_add(1)?.checked_mul(p.le16(0x0B)?);
    Some(p.file_system::<0>("NTFS", 0, end, "ntfsresize"))
}

fn fat(p: &Probe<'_>) -> Option<Found> {
    let (kind, label) = if p.is(0x52, b"FAT32   ") {
        ("FAT32", 0x47)
    } else if p.is(0x36, b"FAT16   ") || p.is(0x36, b"FAT12   ") || p.is(0x36, b"FAT     ") {
        ("FAT", 0x2B)
    } else {
        return None;
    };
    let sectors = match p.le16(0x13)? {
        0 => p.le32(0x20)?,
        small => small,
    };
    let end = sectors.checked_mul(p.le16(0x0B)?);
    Some(p.file_system::<11>(kind, label, end, "fatresize"))
}

fn gpt(p: &Probe<'_>) -> Option<Found> {
    for sector in [512, 4096] {
        if p.is(sector, b"EFI PART") {
            // The other header, in the last sector.
            let end = p
                .le64(sector + 32)
                .and_then(|lba| lba.checked_add(1)?.checked_mul(sector));
            return Some(p.other("a GPT partition table", end));
        }
    }
    let backup = p.size.checked_sub(512)?;
    p.is(backup, b"EFI PART")
        .then(|| p.other("the backup of a GPT partition table", None))
}

fn mbr(p: &Probe<'_>) -> Option<Found> {
    if !p.is(510, b"\x55\xAA") {
        return None;
    }
    let (mut end, mut used) = (512, false);
    for entry in (0..4).map(|n| 446 + n * 16) {
        let [status] = p.bytes::<1>(entry)?;
        let [kind] = p.bytes::<1>(entry + 4)?;
        if status & 0x7F != 0 {
            // A boot sector of something else.
            return None;
        }
        used |= kind != 0;
        end = end.max((p.le32(entry + 8)? + p.le32(entry + 12)?) * 512);
    }
    used.then(|| p.other("an MBR partition table", Some(end)))
}

#[cfg(test)]
#[path = "signatures_tests.rs"]
mod tests;

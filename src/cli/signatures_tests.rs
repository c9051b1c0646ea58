//! Signatures are found on what the real programs (mkfs and the like) write.

use super::*;
use std::process::Command;

const SIZE: u64 = 4 << 20;

/// A file of [`SIZE`] zeroes with these bytes in it.
fn image(parts: &[(u64, &[u8])]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(SIZE).expect("set the size");
    for (offset, bytes) in parts {
        file.as_file().write_all_at(bytes, *offset).expect("write");
    }
    file
}

fn found(parts: &[(u64, &[u8])]) -> Vec<Found> {
    let image = image(parts);
    find(&Probe::new(image.as_file(), SIZE))
}

/// The only thing found.
fn only(parts: &[(u64, &[u8])]) -> (String, u64) {
    let mut found = found(parts);
    assert_eq!(found.len(), 1, "{found:?}");
    let found = found.remove(0);
    (found.what, found.end)
}

fn made_by(program: &str, args: &[&str], size: u64) -> Option<Vec<Found>> {
    let image = image(&[]);
    image.as_file().set_len(size).expect("set the size");
    let path = image.path().to_str().expect("a path").to_owned();
    let output = Command::new(program)
        .args(args)
        .arg(path)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output();
    let output = match output {
        Ok(output) => output,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
        Err(e) => panic!("{program}: {e}"),
    };
    assert!(output.status.success(), "{program}: {output:?}");
    Some(find(&Probe::new(image.as_file(), size)))
}

#[test]
fn an_empty_disk_has_nothing_on_it() {
    assert_eq!(found(&[]), []);
    // Nor has a tiny one.
    let file = tempfile::NamedTempFile::new().unwrap();
    for size in [0, 1, 511, 512, 4096, 8191, 65_536] {
        file.as_file().set_len(size).unwrap();
        assert_eq!(find(&Probe::new(file.as_file(), size)), [], "{size}");
    }
    // Nor has noise.
    let noise: Vec<u8> = (0..SIZE)
        .map(|i| ((i * 2_654_435_761) >> 13) as u8)
        .collect();
    assert_eq!(found(&[(0, &noise)]), []);
}

#[test]
fn real_ext_file_systems() {
    for (kind, size) in [("ext2", 2 << 20), ("ext3", 8 << 20), ("ext4", 8 << 20)] {
        let found = made_by("mkfs.ext4", &["-q", "-F", "-t", kind, "-L", "home"], size)
            .expect("e2fsprogs is needed for the tests");
        let what = format!("an {kind} file system (label \"home\")");
        assert_eq!(
            found,
            [Found {
                what,
                end: size,
                shrink: "resize2fs"
            }]
        );
    }
}

#[test]
fn an_ext4_smaller_than_its_disk() {
    let image = image(&[]);
    let path = image.path().to_str().unwrap().to_owned();
    let status = Command::new("/usr/sbin/mkfs.ext4")
        .args(["-q", "-F", &path, "3M"])
        .status();
    assert!(status.expect("e2fsprogs is needed for the tests").success());
    let found = find(&Probe::new(image.as_file(), SIZE));
    assert_eq!((found.len(), found[0].end), (1, 3 << 20));
}

#[test]
fn real_swap_space() {
    let found = made_by("mkswap", &["-q"], SIZE).expect("util-linux is needed for the tests");
    assert_eq!(
        found,
        [Found {
            what: "swap space".into(),
            end: SIZE,
            shrink: ""
        }]
    );
}

#[test]
fn a_real_xfs_where_there_is_mkfs() {
    let size = 512 << 20;
    let Some(found) = made_by("mkfs.xfs", &["-q", "-f", "-L", "data"], size) else {
        return;
    };
    assert_eq!(found[0].what, "an xfs file system (label \"data\")");
    assert_eq!(found[0].end, size);
}

#[test]
fn ext_by_hand() {
    let sb = |compat: u32, incompat: u32| {
        let mut sb = vec![0; 1024];
        sb[0x04..0x08].copy_from_slice(&1000u32.to_le_bytes());
        sb[0x18..0x1C].copy_from_slice(&2u32.to_le_bytes());
        sb[0x38..0x3A].copy_from_slice(&0xEF53u16.to_le_bytes());
        sb[0x5C..0x60].copy_from_slice(&compat.to_le_bytes());
        sb[0x60..0x64].copy_from_slice(&incompat.to_le_bytes());
        sb[0x150..0x154].copy_from_slice(&1u32.to_le_bytes());
        sb
    };
    let size = 1000 * 4096;
    assert_eq!(
        only(&[(1024, &sb(0, 2))]),
        ("an ext2 file system".into(), size)
    );
    assert_eq!(
        only(&[(1024, &sb(4, 6))]),
        ("an ext3 file system".into(), size)
    );
    assert_eq!(
        only(&[(1024, &sb(4, 0x40))]),
        ("an ext4 file system".into(), size)
    );
    let large = size + (4096 << 32);
    assert_eq!(
        only(&[(1024, &sb(4, 0xC0))]),
        ("an ext4 file system".into(), large)
    );
}

#[test]
fn xfs_by_hand() {
    let mut sb = b"XFSB\0\0\x10\0".to_vec();
    sb.extend(700u64.to_be_bytes());
    let what = "an xfs file system (label \"data\")".to_owned();
    assert_eq!(only(&[(0, &sb), (108, b"data")]), (what, 700 * 4096));
}

#[test]
fn btrfs_by_hand() {
    let size = (3u64 << 20).to_le_bytes();
    let parts: [(u64, &[u8]); 3] = [
        (0x1_0040, b"_BHRfS_M"),
        (0x1_00C9 + 8, &size),
        (0x1_012B, b"pool"),
    ];
    assert_eq!(
        only(&parts),
        ("a btrfs file system (label \"pool\")".into(), 3 << 20)
    );
}

#[test]
fn swap_by_hand() {
    let last = 99u32.to_le_bytes();
    let parts: [(u64, &[u8]); 2] = [(1028, &last), (65_536 - 10, b"SWAPSPACE2")];
    assert_eq!(only(&parts), ("swap space".into(), 100 * 65_536));
    let what = "a hibernated system in swap space".to_owned();
    assert_eq!(only(&[(4086, b"S1SUSPEND\0")]), (what, SIZE));
}

#[test]
fn containers_by_hand() {
    let size = (2u64 << 20).to_le_bytes();
    let lvm: [(u64, &[u8]); 4] = [
        (512, b"LABELONE"),
        (512 + 20, &32u32.to_le_bytes()),
        (512 + 24, b"LVM2 001"),
        (512 + 64, &size),
    ];
    assert_eq!(only(&lvm), ("an LVM2 physical volume".into(), 2 << 20));
    assert_eq!(
        only(&[(0, b"LUKS\xba\xbe\0\x01")]).0,
        "a LUKS1 encrypted volume"
    );
    assert_eq!(
        only(&[(0, b"LUKS\xba\xbe\0\x02")]).0,
        "a LUKS2 encrypted volume"
    );
    let what = "a LUKS2 encrypted volume (second header)";
    assert_eq!(only(&[(0x4000, b"SKUL\xba\xbe")]).0, what);
    let uber = 0x00ba_b10cu64;
    for at in [128 << 10, (256 << 10) + (255 << 10), SIZE - (128 << 10)] {
        assert_eq!(only(&[(at, &uber.to_le_bytes())]).0, "a ZFS pool member");
        assert_eq!(only(&[(at, &uber.to_be_bytes())]).0, "a ZFS pool member");
    }
}

#[test]
fn raid_members_by_hand() {
    let one: [u8; 8] = [0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0];
    assert_eq!(only(&[(0, &one)]).0, "a Linux RAID member (md 1.1)");
    assert_eq!(only(&[(4096, &one)]).0, "a Linux RAID member (md 1.2)");
    assert_eq!(
        only(&[(SIZE - 8192, &one)]).0,
        "a Linux RAID member (md 1.0)"
    );
    for magic in [0xa92b_4efcu32.to_le_bytes(), 0xa92b_4efcu32.to_be_bytes()] {
        assert_eq!(
            only(&[(SIZE - 65_536, &magic)]).0,
            "a Linux RAID member (md 0.90)"
        );
    }
}

#[test]
fn drbd_by_hand() {
    let end = SIZE - 4096 + 60;
    assert_eq!(
        only(&[(end, b"\x83\x74\x02\x6b")]).0,
        "DRBD 8.4 metadata (internal)"
    );
    assert_eq!(
        only(&[(end, b"\x83\x74\x02\x6c")]).0,
        "DRBD 8.4 metadata (internal)"
    );
    assert_eq!(
        only(&[(end, b"\x83\x74\x02\x6d")]).0,
        "DRBD 9 metadata (internal)"
    );
    assert_eq!(
        only(&[(60, b"\x83\x74\x02\x6d")]).0,
        "DRBD 9 metadata (external)"
    );
}

#[test]
fn what_other_systems_write() {
    let ntfs: [(u64, &[u8]); 4] = [
        (3, b"NTFS    "),
        (0x0B, b"\0\x02"),
        (0x28, &999u64.to_le_bytes()),
        (510, b"\x55\xAA"),
    ];
    assert_eq!(only(&ntfs), ("an NTFS file system".into(), 1000 * 512));
    let fat32: [(u64, &[u8]); 5] = [
        (0x52, b"FAT32   "),
        (0x0B, b"\0\x02"),
        (0x20, &2000u32.to_le_bytes()),
        (0x47, b"STICK      "),
        (510, b"\x55\xAA"),
    ];
    assert_eq!(
        only(&fat32),
        ("a FAT32 file system (label \"STICK\")".into(), 2000 * 512)
    );
    let fat16: [(u64, &[u8]); 3] = [
        (0x36, b"FAT16   "),
        (0x0B, b"\0\x02"),
        (0x13, &500u16.to_le_bytes()),
    ];
    assert_eq!(only(&fat16), ("a FAT file system".into(), 500 * 512));
}

#[test]
fn partition_tables() {
    let mut entry = [0; 16];
    entry[0] = 0x80;
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&2048u32.to_le_bytes());
    entry[12..16].copy_from_slice(&1000u32.to_le_bytes());
    let mbr: [(u64, &[u8]); 2] = [(446, &entry), (510, b"\x55\xAA")];
    assert_eq!(only(&mbr), ("an MBR partition table".into(), 3048 * 512));
    // The protective MBR in front of a GPT is part of it.
    let gpt: [(u64, &[u8]); 4] = [
        (446, &entry),
        (510, b"\x55\xAA"),
        (512, b"EFI PART"),
        (544, &8191u64.to_le_bytes()),
    ];
    assert_eq!(only(&gpt), ("a GPT partition table".into(), SIZE));
    let what = "the backup of a GPT partition table".to_owned();
    assert_eq!(only(&[(SIZE - 512, b"EFI PART")]), (what, SIZE));
    // A boot sector without partitions, or with nonsense in their place, is no table.
    assert_eq!(found(&[(510, b"\x55\xAA")]), []);
    assert_eq!(found(&[(446, &[0x33; 16]), (510, b"\x55\xAA")]), []);
}

#[test]
fn several_things_are_all_reported() {
    let parts: [(u64, &[u8]); 2] = [
        (0, b"LUKS\xba\xbe\0\x02"),
        (SIZE - 4096 + 60, b"\x83\x74\x02\x6d"),
    ];
    let found = found(&parts);
    assert_eq!(found.len(), 2, "{found:?}");
}

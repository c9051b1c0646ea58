//! What is saved comes back; what is damaged is told; nothing panics.

use super::format::{Damage, HEADER, Header, RECORD, Side};
use super::read::{Reader, Total};
use super::write::{Blocks, save};
use proptest::prelude::*;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

fn side(node: u8, name: &str) -> Side {
    Side {
        node,
        name: name.to_owned(),
        current: 0xabc0 + u64::from(node),
        base: 0x770,
        changed: 8192,
        parted_as_primary: node == 0,
    }
}

fn header(size: u64) -> Header {
    Header {
        resource: "r0".to_owned(),
        volume: 0,
        device_size: size,
        block: 4096,
        created: 1_764_000_000,
        victim: side(1, "bravo"),
        kept: side(0, "alpha"),
    }
}

fn blocks(own: &[u64], all: &[u64]) -> Blocks {
    let words = |bits: &[u64]| {
        let mut words = vec![0u64; 16];
        for bit in bits {
            words[usize::try_from(bit / 64).unwrap()] |= 1 << (bit % 64);
        }
        words
    };
    Blocks {
        own: words(own),
        all: words(all),
    }
}

/// A disk whose block `n` is full of `n`, of a last block that is not whole.
fn disk(dir: &Path) -> (PathBuf, Vec<u8>) {
    let content: Vec<u8> = (0..300 * 4096 + 512u32)
        .map(|i| u8::try_from(i / 4096 % 251).unwrap())
        .collect();
    let path = dir.join("disk");
    std::fs::write(&path, &content).unwrap();
    (path, content)
}

fn saved(dir: &Path) -> (PathBuf, Vec<u8>) {
    let (path, content) = disk(dir);
    let file = dir.join("saved");
    let blocks = blocks(&[2, 3, 300], &[0, 2, 3, 4, 64, 65, 66, 299, 300]);
    let header = header(content.len() as u64);
    let disk = File::open(path).unwrap().into();
    save(&file, disk, &header, &blocks, &AtomicBool::new(false)).unwrap();
    (file, content)
}

fn read(bytes: &[u8]) -> Result<(Header, Total), Damage> {
    let mut reader = Reader::new(bytes)?;
    let total = reader.each(|_, _| Ok(()))?;
    Ok((reader.header().clone(), total))
}

#[test]
fn what_is_saved_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (file, content) = saved(dir.path());
    let bytes = std::fs::read(&file).unwrap();
    let mut reader = Reader::new(&bytes[..]).unwrap();
    let mut own = Vec::new();
    let total = reader
        .each(|record, data| {
            let at = usize::try_from(record.offset).unwrap();
            let there = &content[at..at + usize::try_from(record.len).unwrap()];
            if data.is_empty() {
                assert!(there.iter().all(|&b| b == 0));
            } else {
                assert!(data == there);
            }
            if record.own {
                own.push((record.offset / 4096, record.len));
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(own, [(2, 8192), (300, 512)]);
    assert_eq!((total.saved, total.own), (8 * 4096 + 512, 8192 + 512));
    assert_eq!(*reader.header(), header(content.len() as u64));
    let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "it holds what the device held");
}

#[test]
fn an_existing_file_is_left_alone_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (path, content) = disk(dir.path());
    let file = dir.path().join("saved");
    std::fs::write(&file, "mine").unwrap();
    let save = |file: &Path, size: u64, cancelled: bool| {
        let disk = File::open(&path).unwrap().into();
        let blocks = blocks(&[1], &[1, 2]);
        save(
            file,
            disk,
            &header(size),
            &blocks,
            &AtomicBool::new(cancelled),
        )
    };
    let size = content.len() as u64;
    assert!(
        save(&file, size, false)
            .unwrap_err()
            .contains("exists already")
    );
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    let other = dir.path().join("other");
    assert!(save(&other, size, true).unwrap_err().contains("connection"));
    // A disk that is shorter than it should be.
    std::fs::write(&path, [0; 4096]).unwrap();
    assert!(
        save(&other, size, false)
            .unwrap_err()
            .contains("cannot be read")
    );
    let missing = dir.path().join("nowhere/file");
    assert!(
        save(&missing, size, false)
            .unwrap_err()
            .contains("cannot be made")
    );
    let names = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names, 2, "the disk and my file");
}

#[test]
fn every_cut_and_every_changed_byte_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = saved(dir.path());
    let bytes = std::fs::read(&file).unwrap();
    read(&bytes).unwrap();
    for len in (0..bytes.len())
        .step_by(61)
        .chain([bytes.len() - 1, bytes.len() - RECORD])
    {
        assert!(read(&bytes[..len]).is_err(), "cut to {len}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(read(&longer), Err(Damage::Trailing(_))));
    for at in (0..bytes.len()).step_by(53) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(read(&changed).is_err(), "byte {at}");
    }
    // A record that is left out, whole.
    let mut reader = Reader::new(&bytes[..]).unwrap();
    let mut data = Vec::new();
    let first = reader.next(&mut data).unwrap().unwrap();
    let gone = RECORD + data.len();
    assert!(first.len > 0);
    let without = [&bytes[..HEADER], &bytes[HEADER + gone..]].concat();
    assert!(read(&without).is_err());
    let mut newer = header(1 << 20).encode();
    newer[8] = 9;
    assert!(read(&newer).is_err());
}

proptest! {
    #[test]
    fn garbage_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..6000),
        whole in any::<bool>(),
    ) {
        let mut file = if whole { header(1 << 20).encode() } else { Vec::new() };
        file.extend(bytes);
        prop_assert!(read(&file).is_err());
    }

    #[test]
    fn ranges_are_the_marked_blocks(
        own in prop::collection::btree_set(0u64..300, 0..40),
        all in prop::collection::btree_set(0u64..300, 0..60),
        short in 0u64..4096,
    ) {
        let (own, all): (Vec<u64>, Vec<u64>) = (own.into_iter().collect(), all.into_iter().collect());
        let size = 300 * 4096 - short;
        let mut found = Vec::new();
        let mut end = 0;
        let blocks = blocks(&own, &all);
        for (offset, len, mine) in blocks.ranges(size, 4096) {
            prop_assert!(offset >= end && len > 0 && offset + len <= size);
            end = offset + len;
            for bit in offset / 4096..end.div_ceil(4096) {
                prop_assert_eq!(own.contains(&bit), mine);
                found.push(bit);
            }
        }
        prop_assert_eq!(found, all);
    }
}

//! Holes are told where they are, and data everywhere else.

use super::*;
use crate::driver::disk::{Engine, Target};
use std::cell::Cell;
use std::os::unix::fs::FileExt;

fn disk(place: &std::path::Path) -> Option<(tempfile::TempDir, std::fs::File, Disk)> {
    let directory = tempfile::tempdir_in(place).ok()?;
    let path = directory.path().join("disk");
    let file = std::fs::File::create_new(&path).ok()?;
    file.set_len(1 << 20).ok()?;
    let target = Target {
        file: std::fs::File::open(&path).ok()?.into(),
        backing: Backing::File,
        part: 0..1 << 20,
        unit: 1,
        fast_zero: true,
        grown_to: Cell::new(0),
        zero_method: [Cell::new(0), Cell::new(0)],
    };
    Some((directory, file, Disk::new(Engine::Ring, target)))
}

fn map(disk: &Disk, offset: u64, len: u32, one: bool) -> Vec<(u32, bool)> {
    let mut extents = Extents::new(len, one);
    allocation(disk, offset, len, &mut extents);
    extents
        .finish()
        .into_iter()
        .map(|e| (e.length, e.flags == HOLE))
        .collect()
}

#[test]
fn holes_and_data() {
    for place in [std::env::temp_dir(), "/dev/shm".into()] {
        let Some((_directory, file, disk)) = disk(&place) else {
            continue;
        };
        assert_eq!(map(&disk, 4096, 8192, false), [(8192, true)]);
        file.write_all_at(&[1; 8192], 65536).expect("write");
        let all = map(&disk, 0, 1 << 20, false);
        assert_eq!(all.iter().map(|e| e.0).sum::<u32>(), 1 << 20, "{all:?}");
        assert_eq!(all[0], (65536, true));
        assert!(!all[1].1);
        assert!(all[1].0 >= 8192);
        assert_eq!(
            map(&disk, 65536 + 512, 4096, false),
            [(4096, false)],
            "from the middle"
        );
        assert_eq!(map(&disk, 0, 1 << 20, true).len(), 1, "no more than wanted");
    }
}

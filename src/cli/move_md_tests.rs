//! move-md: what it moves, what it leaves alone, what it says.

use super::*;
use crate::cli::check_md::check;
use crate::cli::dump_md;
use crate::cli::md_bench::{Bench, words};
use std::os::unix::fs::FileExt;

const SIZE: u64 = 4 << 20;

fn run(bench: &Bench, old_size: Option<u64>) -> Result<String, CliError> {
    move_all(bench.path(), Some("alpha"), "r0", old_size)
}

fn refused(bench: &Bench, old_size: Option<u64>, code: u8) -> String {
    let before = bench.content();
    let error = run(bench, old_size).unwrap_err();
    assert!(bench.content() == before, "nothing was written");
    assert_eq!(error.code, code, "{error}");
    words(&error)
}

fn verdict(bench: &Bench) -> Option<CliError> {
    check(bench.path(), Some("alpha"), "r0").unwrap().1
}

#[test]
fn the_metadata_of_a_disk_that_has_grown_are_moved() {
    for old_size in [None, Some(SIZE)] {
        let bench = Bench::new(SIZE, "internal");
        let before = bench.live();
        let data = before.superblock.layout.data_size;
        bench
            .file()
            .write_all_at(&vec![0x5a; data as usize], 0)
            .unwrap();
        bench.resize(10 << 20);
        // It is told what to do, and nobody is led to overwrite what is there.
        let looked = dump_md::look(bench.path(), Some("alpha"), "r0").unwrap();
        let error = dump_md::text(&looked[0]).1.unwrap();
        assert!(
            error.what.contains("`twinblk move-md r0` moves them"),
            "{error}"
        );
        let text = words(
            &crate::cli::create_md::create(bench.path(), Some("alpha"), "r0", false, 1)
                .unwrap_err(),
        );
        assert!(text.contains("move-md"), "{text}");
        let text = run(&bench, old_size).unwrap();
        assert!(text.contains("moved from byte 4194304"), "{text}");
        assert!(text.contains("keeps its agreed size"), "{text}");
        let after = bench.image();
        let (a, b) = (&after.superblock, &before.superblock);
        assert_eq!((a.current, a.flags, a.peers), (b.current, b.flags, b.peers));
        assert_eq!(a.agreed_size, b.agreed_size);
        assert_eq!(a.layout.disk_size, 10 << 20);
        assert_eq!(after.activity_log, before.activity_log);
        let (old_bits, bits) = (data / 4096, after.bitmaps[0].bits());
        let mut want = before.bitmaps[0].marked();
        want.extend(old_bits..bits);
        assert_eq!(after.bitmaps[0].marked(), want);
        assert!(bench.content()[..data as usize].iter().all(|b| *b == 0x5a));
        assert_eq!(verdict(&bench), None);
        // Again: there is nothing to do.
        assert!(run(&bench, old_size).unwrap().contains("already"));
        // The old ones are gone: at its old size the disk is not taken for what it was.
        bench.resize(SIZE);
        assert!(
            dump_md::look(bench.path(), Some("alpha"), "r0").unwrap()[0]
                .opened
                .is_err()
        );
    }
}

#[test]
fn a_disk_that_has_shrunk_or_grown_too_little() {
    let bench = Bench::new(SIZE, "internal");
    bench.live();
    bench.resize(SIZE - (80 << 10));
    let text = refused(&bench, None, 22);
    assert!(
        text.contains("there are bitmap pages") || text.contains("no metadata"),
        "{text}"
    );
    let text = refused(&bench, Some(SIZE), 22);
    assert!(text.contains("the last 81920 bytes"), "{text}");
    bench.resize(SIZE / 2);
    assert!(refused(&bench, None, 22).contains("restore-md"));
    let bench = Bench::new(SIZE, "internal");
    bench.resize(SIZE + 8192);
    let text = refused(&bench, None, 22);
    let needed = text.split("grow the disk to ").nth(1).unwrap();
    let needed = needed.split(' ').next().unwrap().parse().unwrap();
    bench.resize(needed);
    run(&bench, None).unwrap();
}

#[test]
fn what_is_not_this_volumes_is_left_alone() {
    let bench = Bench::new(SIZE, "internal");
    bench.resize(10 << 20);
    bench.configure("internal", 4);
    let text = refused(&bench, None, 22);
    assert!(text.contains("resource r0, volume 0, node id 3"), "{text}");
    let text = refused(&bench, Some(SIZE), 22);
    assert!(text.contains("node id 3"), "{text}");
    assert!(refused(&bench, Some(SIZE - 4096), 22).contains("no metadata end at"));
    bench.configure("internal", 3);
    let held = open_exclusive(&bench.disk(), "").unwrap();
    refused(&bench, None, 12);
    drop(held);
    let external = tempfile::NamedTempFile::new().unwrap();
    bench.configure(external.path().to_str().unwrap(), 3);
    assert!(refused(&bench, None, 11).contains("external"));
}

/// Power was lost after the new metadata became valid: the old ones can still be taken away.
#[test]
fn what_an_interrupted_move_left_over_is_erased() {
    let bench = Bench::new(SIZE, "internal");
    let layout = bench.live().superblock.layout;
    let old = bench.content();
    bench.resize(10 << 20);
    run(&bench, None).unwrap();
    for at in layout.superblock_offsets {
        let copy = &old[at as usize..at as usize + 4096];
        bench.file().write_all_at(copy, at).unwrap();
    }
    assert!(run(&bench, Some(SIZE)).unwrap().contains("left over"));
    bench.resize(SIZE);
    assert!(
        dump_md::look(bench.path(), Some("alpha"), "r0").unwrap()[0]
            .opened
            .is_err()
    );
}

#[test]
fn check_md_tells_good_from_bad_and_does_not_write() {
    let bench = Bench::new(SIZE, "internal");
    bench.live();
    let checked = || check(bench.path(), Some("alpha"), "r0");
    let (text, error) = checked().unwrap();
    assert_eq!(error, None, "{text}");
    assert!(text.contains("sound") && text.contains("5 of"), "{text}");
    // A configuration with another peer.
    let config = std::fs::read_to_string(bench.path().join("r0.toml")).unwrap();
    std::fs::write(
        bench.path().join("r0.toml"),
        config.replace("id = 5", "id = 6"),
    )
    .unwrap();
    assert!(words(&verdict(&bench).unwrap()).contains("node id 6"));
    bench.configure("internal", 3);
    bench
        .file()
        .write_all_at(&[1], bench.image().superblock.layout.bitmap_offset + 77)
        .unwrap();
    let before = bench.content();
    let (text, error) = checked().unwrap();
    let error = error.unwrap();
    assert_eq!(error.code, 22, "{error}");
    assert!(text.contains("WRONG: 1 page(s) of bitmap 0"), "{text}");
    assert!(text.contains("copied again"), "{text}");
    assert!(bench.content() == before);
    let held = open_exclusive(&bench.disk(), "").unwrap();
    let error = checked().unwrap_err();
    assert_eq!(error.code, 12);
    assert!(error.next.contains("worth nothing"), "{error}");
    drop(held);
    bench.damage();
    assert!(words(&verdict(&bench).unwrap()).contains("restore-md"));
}

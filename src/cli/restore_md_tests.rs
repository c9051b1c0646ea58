//! restore-md: what it puts back, what it claims, what it refuses.

use super::*;
use crate::cli::md_bench::{Bench, words};
use std::fs::File;
use std::os::unix::fs::FileExt;

const SIZE: u64 = 4 << 20;
const EXACT: How = How {
    force: false,
    exact: true,
};
const FORCE: How = How {
    force: true,
    exact: false,
};

fn run(bench: &Bench, file: &Path, how: How) -> Result<String, CliError> {
    restore(bench.path(), Some("alpha"), "r0", file, how)
}

fn refused(bench: &Bench, file: &Path, how: How, code: u8) -> String {
    let before = bench.content();
    let error = run(bench, file, how).unwrap_err();
    assert!(bench.content() == before, "nothing was written");
    assert_eq!(error.code, code, "{error}");
    assert!(!error.next.is_empty(), "{error}");
    words(&error)
}

#[test]
fn an_exact_restore_gives_the_same_metadata() {
    let external = tempfile::NamedTempFile::new().unwrap();
    for meta in ["internal", external.path().to_str().unwrap()] {
        let bench = Bench::new(SIZE, meta);
        let before = bench.live();
        let dump = bench.dump();
        if meta == "internal" {
            bench.damage();
        } else {
            external.as_file().set_len(0).unwrap();
        }
        let text = run(&bench, &dump, EXACT).unwrap();
        assert!(text.contains("20KiB out of sync"), "{text}");
        let after = bench.image();
        assert_eq!(after.superblock, before.superblock);
        assert_eq!(after.activity_log, before.activity_log);
        assert_eq!(after.bitmaps[0].marked(), before.bitmaps[0].marked());
    }
}

#[test]
fn a_restored_copy_claims_nothing_unless_told_to() {
    let bench = Bench::new(SIZE, "internal");
    let before = bench.live();
    let dump = bench.dump();
    bench.damage();
    let text = run(&bench, &dump, How::default()).unwrap();
    assert!(text.contains("counts as Inconsistent"), "{text}");
    let after = bench.image();
    let flags = after.superblock.flags;
    assert!(!flags.contains(MdFlags::CONSISTENT) && !flags.contains(MdFlags::WAS_UP_TO_DATE));
    let bitmap = &after.bitmaps[0];
    assert_eq!(bitmap.count_set(), bitmap.bits(), "all of it is marked");
    // What is known for good is kept.
    let (a, b) = (&after.superblock, &before.superblock);
    assert_eq!(
        (a.current, a.history, a.peers),
        (b.current, b.history, b.peers)
    );
    assert_eq!(
        (a.agreed_size, a.device_uuid),
        (b.agreed_size, b.device_uuid)
    );
    assert_eq!(after.activity_log, before.activity_log);
}

#[test]
fn the_data_are_not_touched() {
    let bench = Bench::new(SIZE, "internal");
    let usable = bench.live().superblock.layout.data_size;
    let dump = bench.dump();
    bench.damage();
    bench
        .file()
        .write_all_at(&vec![0x5a; usable as usize], 0)
        .unwrap();
    run(&bench, &dump, How::default()).unwrap();
    assert!(
        bench.content()[..usable as usize]
            .iter()
            .all(|b| *b == 0x5a)
    );
}

#[test]
fn valid_metadata_need_force() {
    let bench = Bench::new(SIZE, "internal");
    bench.live();
    let dump = bench.dump();
    let text = refused(&bench, &dump, EXACT, 22);
    for part in ["resource r0, volume 0, node id 3", "sequence 20", "--force"] {
        assert!(text.contains(part), "{text}");
    }
    let text = run(&bench, &dump, FORCE).unwrap();
    assert!(text.contains("by force: "), "{text}");
    // Half damaged is not lost: `up` knows how to use the other half.
    let at = bench.image().superblock.layout.superblock_offsets[0];
    bench.file().write_all_at(b"garbage", at + 100).unwrap();
    refused(&bench, &dump, EXACT, 22);
}

#[test]
fn a_disk_in_use_is_refused() {
    let bench = Bench::new(SIZE, "internal");
    let dump = bench.dump();
    let held = open_exclusive(&bench.disk(), "").unwrap();
    assert!(refused(&bench, &dump, FORCE, 12).contains("twinblk down"));
    drop(held);
}

#[test]
fn a_dump_of_another_node_or_resource_is_refused() {
    let bench = Bench::new(SIZE, "internal");
    let dump = bench.dump();
    bench.configure("internal", 4);
    let text = refused(&bench, &dump, FORCE, 22);
    assert!(
        text.contains("no metadata of resource r0, volume 0, node id 4"),
        "{text}"
    );
    assert!(
        text.contains("has those of resource r0, volume 0, node id 3"),
        "{text}"
    );
    bench.configure("internal", 3);
    let text = std::fs::read_to_string(&dump).unwrap();
    std::fs::write(&dump, text.replace("\"r0\"", "\"r1\"")).unwrap();
    assert!(refused(&bench, &dump, FORCE, 22).contains("resource r1"));
}

#[test]
fn a_disk_of_another_size_is_refused() {
    let bench = Bench::new(SIZE, "internal");
    let dump = bench.dump();
    bench.resize(SIZE - (1 << 20));
    let text = refused(&bench, &dump, FORCE, 22);
    assert!(
        text.contains("3145728 bytes") && text.contains("of 4194304"),
        "{text}"
    );
    bench.resize(SIZE + (1 << 20));
    assert!(refused(&bench, &dump, FORCE, 22).contains("move-md"));
}

#[test]
fn metadata_do_not_change_their_place() {
    let external = tempfile::NamedTempFile::new().unwrap();
    let bench = Bench::new(SIZE, "internal");
    let dump = bench.dump();
    bench.configure(external.path().to_str().unwrap(), 3);
    let text = refused(&bench, &dump, FORCE, 22);
    assert!(
        text.contains("internal metadata, the configuration says external"),
        "{text}"
    );
}

#[test]
fn a_dump_in_motion_or_of_damaged_metadata_is_not_believed() {
    let bench = Bench::new(SIZE, "internal");
    bench.live();
    let held = open_exclusive(&bench.disk(), "").unwrap();
    let dump = bench.dump();
    drop(held);
    let force_exact = How {
        force: true,
        exact: true,
    };
    assert!(refused(&bench, &dump, force_exact, 22).contains("while a daemon used"));
    run(&bench, &dump, FORCE).unwrap();
    let at = bench.image().superblock.layout.bitmap_offset;
    bench.file().write_all_at(b"garbage", at + 100).unwrap();
    let dump = bench.dump();
    assert!(refused(&bench, &dump, force_exact, 22).contains("damaged when it was taken"));
    run(&bench, &dump, FORCE).unwrap();
}

#[test]
fn files_that_are_no_dump() {
    let bench = Bench::new(SIZE, "internal");
    let dump = bench.dump();
    let good = std::fs::read_to_string(&dump).unwrap();
    let file = bench.path().join("other");
    assert!(refused(&bench, &file, FORCE, 10).contains("cannot be read"));
    let metadata = |text: &str| good.replacen("\"format\": 1", text, 1);
    for (text, part) in [
        (String::new(), "no dump"),
        ("\0\u{1}garbage".to_owned(), "no dump"),
        ("{}".to_owned(), "no dump"),
        (good[..good.len() / 2].to_owned(), "no dump"),
        ("[]".to_owned(), "no metadata at all"),
        ("[{\"metadata\": null}]".to_owned(), "no metadata at all"),
        (metadata("\"format\": 7"), "`format` is 7"),
        (metadata("\"format\": 1, \"more\": 0"), "more"),
        (
            good.replace("\"bitmap_block\": 4096", "\"bitmap_block\": 4097"),
            "4097",
        ),
        (
            good.replace("\"node_id\": 5", "\"node_id\": 6"),
            "node id 5",
        ),
        (
            format!("[{0},{0}]", &good[1..good.rfind(']').unwrap()]),
            "twice",
        ),
    ] {
        std::fs::write(&file, &text).unwrap();
        let said = refused(&bench, &file, FORCE, 22);
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn what_reaches_into_the_place_of_the_metadata_is_noticed() {
    let bench = Bench::new(16 << 20, "internal");
    let dump = bench.dump();
    let mkfs = |more: &[&str]| {
        let mut mkfs = std::process::Command::new("/usr/sbin/mkfs.ext4");
        let status = mkfs
            .args(["-q", "-F"])
            .arg(bench.disk())
            .args(more)
            .status();
        assert!(status.expect("e2fsprogs is needed for the tests").success());
    };
    // The volume's own file system ends before the metadata.
    mkfs(&["12M"]);
    bench.damage();
    run(&bench, &dump, EXACT).unwrap();
    // Somebody used the disk for something else.
    bench.damage();
    File::create(bench.disk())
        .unwrap()
        .set_len(16 << 20)
        .unwrap();
    mkfs(&[]);
    assert!(refused(&bench, &dump, EXACT, 22).contains("reaches into"));
    let text = run(&bench, &dump, FORCE).unwrap();
    assert!(text.contains("by force") && text.contains("ext4"), "{text}");
}

//! Opening disks: locks, sizes, thin files, wrong ones.

use super::kit::{create_disk, create_metadata, open, spec};
use crate::driver::disk::Engine;
use crate::driver::{MetaDisk, OpenVolumeError, open_volume};
use std::os::unix::fs::MetadataExt;
use twinblk_engine::metadata::layout::Layout;

const SIZE: u64 = 8 << 20;

#[test]
fn a_disk_opens_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    create_disk(&path, SIZE, 0);
    let volume = open(&path, 0).expect("it opens");
    assert_eq!(volume.recovered.warnings, Vec::<String>::new());
    let text = open(&path, 0).expect_err("a second time").to_string();
    assert!(
        text.contains("in use") && text.contains("another daemon"),
        "{text}"
    );
    drop(volume);
    open(&path, 0).expect("it is free again");
}

#[test]
fn the_disk_engine_fits_the_file_system() {
    for (place, memory) in [
        (std::env::temp_dir(), None),
        ("/dev/shm".into(), Some(Engine::Inline)),
    ] {
        let Ok(directory) = tempfile::tempdir_in(place) else {
            continue;
        };
        let path = directory.path().join("disk");
        create_disk(&path, SIZE, 0);
        let volume = open(&path, 0).expect("it opens");
        assert_eq!(volume.data.0, volume.meta.0);
        if let Some(engine) = memory {
            assert_eq!(volume.data.0, engine, "{}", volume.note);
            assert!(volume.no_volatile_cache);
        }
        assert!(volume.data.1.fast_zero);
        assert_eq!(volume.data.1.part.end, volume.meta.1.part.start);
        assert_eq!(volume.meta.1.part.end, SIZE);
    }
}

#[test]
fn thin_files_get_their_space() {
    let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let path = directory.path().join("disk");
    create_disk(&path, SIZE, 0);
    let blocks = || std::fs::metadata(&path).expect("stat").blocks() * 512;
    assert!(blocks() < SIZE);
    let volume = open(&path, 0).expect("it opens");
    assert!(blocks() >= SIZE, "{} of {SIZE}", blocks());
    assert_eq!(std::fs::metadata(&path).expect("stat").len(), SIZE);
    drop(volume);
}

#[test]
fn a_file_that_is_not_ours_is_left_as_it_is() {
    let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let state = |path: &std::path::Path| {
        let m = std::fs::metadata(path).expect("stat");
        (
            m.blocks(),
            m.len(),
            m.mtime(),
            m.mtime_nsec(),
            m.ctime_nsec(),
        )
    };
    // Nobody's, and another node's.
    let (nobody, other) = (
        directory.path().join("nobody"),
        directory.path().join("other"),
    );
    let file = std::fs::File::create_new(&nobody).expect("a file");
    file.set_len(SIZE).expect("its size");
    create_disk(&other, SIZE, 1);
    for path in [nobody, other] {
        let before = state(&path);
        assert!(before.0 * 512 < SIZE, "it is thin");
        open(&path, 0).expect_err("it is not ours");
        assert_eq!(state(&path), before, "{}", path.display());
    }
}

#[test]
fn a_disk_beyond_the_free_space_is_not_allocated() {
    let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let path = directory.path().join("disk");
    create_disk(&path, 8 << 40, 0);
    let volume = open(&path, 0).expect("it opens");
    let warning = volume.recovered.warnings.join(" ");
    assert!(warning.contains("thin file"), "{warning}");
    assert!(std::fs::metadata(&path).expect("stat").blocks() * 512 < 1 << 40);
}

#[test]
fn metadata_may_be_elsewhere() {
    let directory = tempfile::tempdir().expect("a directory");
    let (disk, meta) = (directory.path().join("disk"), directory.path().join("meta"));
    std::fs::File::create_new(&disk)
        .and_then(|f| f.set_len(SIZE))
        .expect("a disk");
    let layout = Layout::external(SIZE, None, 4096, 1).expect("a layout");
    create_metadata(
        &std::fs::File::create_new(&meta).expect("a file"),
        layout.clone(),
        0,
    );
    let mut wish = spec(&disk, 0);
    wish.meta = MetaDisk::External(meta.clone());
    let volume = open_volume(wish.clone()).expect("it opens");
    assert_eq!(volume.data.1.part, 0..SIZE);
    assert_eq!(volume.meta.1.part, 0..layout.metadata_len());
    let text = open_volume(wish).expect_err("locked").to_string();
    assert!(text.contains("in use"), "{text}");
    // The metadata alone are locked as well.
    let other = directory.path().join("other");
    std::fs::File::create_new(&other)
        .and_then(|f| f.set_len(SIZE))
        .expect("a disk");
    let mut wish = spec(&other, 0);
    wish.meta = MetaDisk::External(meta);
    assert!(matches!(
        open_volume(wish),
        Err(OpenVolumeError::InUse { .. })
    ));
}

#[test]
fn wrong_disks_are_refused_in_words() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    let text = open(&path, 0).expect_err("nothing there").to_string();
    assert!(
        text.contains("cannot be opened") && text.contains("No such file"),
        "{text}"
    );
    let text = open(directory.path(), 0)
        .expect_err("a directory")
        .to_string();
    assert!(
        text.contains("neither a block device nor a regular file"),
        "{text}"
    );
    std::fs::write(&path, vec![0; SIZE as usize]).expect("a file");
    let text = open(&path, 0).expect_err("no metadata").to_string();
    assert!(text.contains("create-md"), "{text}");
    std::fs::remove_file(&path).expect("remove");
    create_disk(&path, SIZE, 1);
    let text = open(&path, 0).expect_err("the other node's").to_string();
    assert!(text.contains("another resource's disk"), "{text}");
    std::fs::write(&path, []).expect("empty");
    assert!(open(&path, 0).is_err());
}

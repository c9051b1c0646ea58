//! create-md: what it writes, what it refuses, what it says.

use super::*;
use crate::cli::dump_md;
use std::process::Command;

/// A directory with a configuration of r0 and a disk of `bytes` for alpha.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(bytes: u64) -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        File::create(bench.disk()).unwrap().set_len(bytes).unwrap();
        bench.configure("internal");
        bench
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("r0.img")
    }

    fn configure(&self, meta: &str) {
        let node = |name: &str, id: u8, disk: PathBuf| {
            format!(
                "[node.{name}]\nid = {id}\naddress = \"127.0.0.{}\"\ndisk = \"{}\"\n\
                 meta-disk = \"{meta}\"\n",
                id + 1,
                disk.display()
            )
        };
        let text = format!(
            "[resource]\nname = \"r0\"\nshared-secret = \"x\"\n{}{}",
            node("alpha", 3, self.disk()),
            node("bravo", 5, self.dir.path().join("none.img"))
        );
        std::fs::write(self.dir.path().join("r0.toml"), text).unwrap();
    }

    fn create(&self, force: bool) -> Result<Vec<Created>, CliError> {
        create(self.dir.path(), Some("alpha"), "r0", force, 1).map(|(_, created)| created)
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(self.disk()).unwrap()
    }

    fn mkfs(&self, more: &[&str]) {
        let mut mkfs = Command::new("/usr/sbin/mkfs.ext4");
        mkfs.args(["-q", "-F"]).arg(self.disk()).args(more);
        assert!(
            mkfs.status()
                .expect("e2fsprogs is needed for the tests")
                .success()
        );
    }
}

#[test]
fn fresh_metadata_on_an_empty_disk() {
    let bench = Bench::new(64 << 20);
    let created = bench.create(false).unwrap();
    assert_eq!(created.len(), 1);
    let layout = &created[0].layout;
    assert_eq!(layout.data_size + layout.metadata_len(), 64 << 20);
    let file = File::open(bench.disk()).unwrap();
    let found = open(&mut Device(&file), 64 << 20, 64 << 20, Placement::Internal).unwrap();
    let sb = &found.superblock;
    assert_eq!(verify_identity(sb, "r0", VolumeId(0), NodeId(3)), Ok(()));
    assert_eq!(sb.peers[5].slot, Some(0));
    assert_ne!(sb.device_uuid, 0);
    let config = config::load(bench.dir.path(), Some("alpha")).unwrap();
    let text = report(&config.resources[0], &created);
    assert!(text.contains("room for 1 peer\n"), "{text}");
    assert!(
        text.contains("next: the same on bravo; `twinblk up r0` on both"),
        "{text}"
    );
}

#[test]
fn the_data_are_not_touched() {
    let bench = Bench::new(4 << 20);
    std::fs::write(bench.disk(), vec![0x5A; 4 << 20]).unwrap();
    let usable = bench.create(false).unwrap()[0].layout.data_size as usize;
    assert!(bench.content()[..usable].iter().all(|b| *b == 0x5A));
}

#[test]
fn existing_metadata_need_force() {
    let bench = Bench::new(4 << 20);
    bench.create(false).unwrap();
    let before = bench.content();
    let error = bench.create(false).unwrap_err();
    assert_eq!(error.code, 22);
    assert!(
        error
            .what
            .contains("twinblk metadata of resource r0, volume 0, node id 3"),
        "{error}"
    );
    assert_eq!(bench.content(), before);
    let created = bench.create(true).unwrap();
    assert!(
        created[0].overwritten[0].contains("twinblk metadata"),
        "{created:?}"
    );
    assert_ne!(bench.content(), before);
}

#[test]
fn damaged_metadata_need_force_too() {
    let bench = Bench::new(4 << 20);
    bench.create(false).unwrap();
    let file = File::options().write(true).open(bench.disk()).unwrap();
    for copy in [8192, 4096] {
        file.write_all_at(b"garbage", (4 << 20) - copy + 100)
            .unwrap();
    }
    let error = bench.create(false).unwrap_err();
    assert!(error.what.contains("damaged twinblk metadata"), "{error}");
    bench.create(true).unwrap();
}

#[test]
fn a_file_system_that_fills_the_disk_is_refused_and_said() {
    let bench = Bench::new(8 << 20);
    bench.mkfs(&["-L", "home"]);
    let before = bench.content();
    let error = bench.create(false).unwrap_err();
    assert_eq!(error.code, 22);
    let text = error.to_string();
    assert!(
        text.contains("an ext4 file system (label \"home\") of 8.0MiB"),
        "{text}"
    );
    assert!(text.contains("reaches into the last"), "{text}");
    assert!(text.contains("resize2fs"), "{text}");
    assert_eq!(bench.content(), before);
    let created = bench.create(true).unwrap();
    assert!(
        created[0].overwritten[0].contains("reaches into"),
        "{created:?}"
    );
}

#[test]
fn a_file_system_that_leaves_room_stays_whole_with_force() {
    let bench = Bench::new(8 << 20);
    bench.mkfs(&["6M"]);
    let before = bench.content();
    let error = bench.create(false).unwrap_err();
    assert!(error.next.contains("its data stay"), "{error}");
    assert_eq!(bench.content(), before);
    bench.create(true).unwrap();
    assert_eq!(bench.content()[..6 << 20], before[..6 << 20]);
    let fsck = Command::new("/usr/sbin/e2fsck")
        .arg("-fn")
        .arg(bench.disk())
        .output()
        .unwrap();
    assert!(fsck.status.success(), "{fsck:?}");
}

#[test]
fn a_file_system_that_ends_inside_the_metadata_is_noticed() {
    let bench = Bench::new(8 << 20);
    bench.mkfs(&["8188k"]);
    let error = bench.create(false).unwrap_err();
    assert!(error.what.contains("reaches into the last"), "{error}");
}

#[test]
fn swap_is_refused() {
    let bench = Bench::new(8 << 20);
    let status = Command::new("/usr/sbin/mkswap")
        .arg("-q")
        .arg(bench.disk())
        .status();
    assert!(
        status
            .expect("util-linux is needed for the tests")
            .success()
    );
    assert!(bench.create(false).unwrap_err().what.contains("swap space"));
}

#[test]
fn external_metadata_leave_the_disk_alone() {
    let bench = Bench::new(8 << 20);
    bench.mkfs(&[]);
    let before = bench.content();
    let meta = bench.dir.path().join("r0.md");
    bench.configure(meta.to_str().unwrap());
    let error = bench.create(false).unwrap_err();
    assert_eq!(error.code, 16);
    assert!(error.next.contains("truncate -s 1M"), "{error}");
    File::create(&meta).unwrap();
    let created = bench.create(false).unwrap();
    assert_eq!(created[0].layout.data_size, 8 << 20);
    assert_eq!(bench.content(), before);
    assert!(
        bench
            .create(false)
            .unwrap_err()
            .what
            .contains("twinblk metadata")
    );
    // Metadata of another resource are found whatever the configuration says of their place.
    std::fs::copy(&meta, bench.disk()).unwrap();
    File::options()
        .write(true)
        .open(bench.disk())
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    bench.configure("internal");
    assert!(
        bench
            .create(false)
            .unwrap_err()
            .what
            .contains("twinblk metadata")
    );
}

#[test]
fn a_file_system_where_external_metadata_shall_go() {
    let bench = Bench::new(8 << 20);
    bench.mkfs(&[]);
    let data = bench.dir.path().join("data.img");
    std::fs::copy(bench.disk(), &data).unwrap();
    let text = std::fs::read_to_string(bench.dir.path().join("r0.toml")).unwrap();
    let text = text.replacen("r0.img", "data.img", 1).replacen(
        "\"internal\"",
        &format!("{:?}", bench.disk()),
        1,
    );
    std::fs::write(bench.dir.path().join("r0.toml"), text).unwrap();
    let error = bench.create(false).unwrap_err();
    assert!(error.next.contains("destroy it"), "{error}");
}

#[test]
fn a_disk_in_use_too_small_or_missing() {
    let bench = Bench::new(4 << 20);
    let held = open_exclusive(&bench.disk(), "").unwrap();
    assert_eq!(bench.create(true).unwrap_err().code, 12);
    drop(held);
    File::options()
        .write(true)
        .open(bench.disk())
        .unwrap()
        .set_len(64 << 10)
        .unwrap();
    let error = bench.create(false).unwrap_err();
    assert!(error.what.contains("too small"), "{error}");
    std::fs::remove_file(bench.disk()).unwrap();
    let error = bench.create(false).unwrap_err();
    assert!(error.next.contains("truncate -s 1G"), "{error}");
}

#[test]
fn an_unknown_resource_gets_the_list() {
    let bench = Bench::new(1 << 20);
    let error = names(bench.dir.path(), Some("alpha"), "r1").unwrap_err();
    assert_eq!(error.code, 10);
    assert_eq!(error.next, "did you mean `r0`? resources: r0");
    assert_eq!(
        names(bench.dir.path(), Some("alpha"), "all").unwrap(),
        ["r0"]
    );
}

#[test]
fn dump_md_tells_what_create_md_wrote() {
    let bench = Bench::new(64 << 20);
    let look = || {
        dump_md::look(bench.dir.path(), Some("alpha"), "r0")
            .unwrap()
            .remove(0)
    };
    let error = dump_md::text(&look()).1.unwrap();
    assert_eq!(error.code, 22);
    assert!(error.what.contains("no twinblk metadata found"), "{error}");
    bench.create(false).unwrap();
    let (text, wrong) = dump_md::text(&look());
    assert_eq!(wrong, None, "{text}");
    assert!(text.contains("resource r0, volume 0, node id 3"), "{text}");
    assert!(text.contains("0000000000000004 (just created)"), "{text}");
    assert!(
        text.contains("peer bravo (node id 5): bitmap slot 0"),
        "{text}"
    );
    let json = dump_md::json(&look());
    assert_eq!(json["resource"], "r0");
    assert_eq!(json["node_id"], 3);
    assert_eq!(json["metadata"]["current_uuid"], "0000000000000004");
    assert_eq!(json["metadata"]["peers"][0]["node_id"], 5);
    assert_eq!(json["in_use"], false);
    // A damaged copy: everything is still shown, and it is an error.
    let file = File::options().write(true).open(bench.disk()).unwrap();
    file.write_all_at(b"garbage", (64 << 20) - 4096 + 100)
        .unwrap();
    let (text, wrong) = dump_md::text(&look());
    assert_eq!(wrong.unwrap().code, 22);
    assert!(text.contains("superblock 1: checksum mismatch"), "{text}");
    assert!(text.contains("resource r0, volume 0"), "{text}");
    // In use: shown with a warning.
    let held = open_exclusive(&bench.disk(), "").unwrap();
    assert!(dump_md::text(&look()).0.contains("in use"));
    drop(held);
}

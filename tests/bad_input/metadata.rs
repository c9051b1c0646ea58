//! A bad day with metadata: lost and restored from a dump, a disk that has grown or shrunk, a
//! meta-disk that does not fit.

use crate::harness::stage::{Plan, Stage};
use crate::harness::tools::run;
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;

fn metadata(stage: &Stage, node: usize) -> Value {
    let text = stage.nodes[node].ok(&["dump-md", "r0", "--json"]);
    let list: Value = serde_json::from_str(&text).expect("JSON");
    list[0]["metadata"].clone()
}

fn dump(stage: &Stage, node: usize) -> PathBuf {
    let file = stage.path().join("r0.json");
    std::fs::write(&file, stage.nodes[node].ok(&["dump-md", "r0", "--json"])).unwrap();
    file
}

fn writable(path: &Path) -> File {
    File::options().write(true).open(path).unwrap()
}

/// Both superblocks and some bitmap pages are overwritten.
fn damage(stage: &Stage, node: usize) {
    let disk = writable(&stage.nodes[node].disk);
    let end = disk.metadata().unwrap().len();
    disk.write_all_at(&[0xee; 8192], end - 8192).unwrap();
    disk.write_all_at(&[0xee; 4096], end - 8192 - 65_536 - 4096)
        .unwrap();
}

fn write_through(stage: &mut Stage) {
    crate::still_works(stage);
}

#[test]
fn a_dump_brings_back_generations_and_bits_exactly() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    // Bravo misses something, alpha has it marked, and both stop in order.
    stage.nodes[1].ok(&["down", "r0"]);
    let client = crate::harness::nbd::Client::unix(&stage.nodes[0].export);
    let mut client = client.expect("alpha serves");
    client.write(8 * MIB, &vec![4; 5 * 65_536]).expect("writes");
    client.flush().expect("flush");
    client.disconnect();
    stage.nodes[0].wait("nobody holds it", |s| {
        s["open_clients"] == serde_json::json!([])
    });
    stage.nodes[0].ok(&["secondary", "r0"]);
    // In use nothing of this works, and it says why.
    let file = dump(&stage, 0);
    let file = file.to_str().unwrap();
    for verb in [
        &["check-md", "r0"][..],
        &["move-md", "r0"],
        &["restore-md", "r0", file, "--force"],
    ] {
        let text = stage.nodes[0].refused(12, verb);
        assert!(text.contains("twinblk down"), "{text}");
    }
    stage.nodes[0].ok(&["down", "r0"]);
    for node in &stage.nodes {
        let text = node.ok(&["check-md", "r0"]);
        assert!(text.contains("the metadata are sound"), "{text}");
    }
    dump(&stage, 0);
    let before = metadata(&stage, 0);
    assert_eq!(before["bitmaps"][0]["runs"], serde_json::json!(["2048+80"]));
    damage(&stage, 0);
    let text = stage.nodes[0].refused(22, &["up", "r0"]);
    assert!(text.contains("restore-md"), "{text}");
    let text = stage.nodes[0].refused(22, &["check-md", "r0"]);
    assert!(text.contains("restore-md"), "{text}");
    stage.nodes[0].ok(&["restore-md", "r0", file, "--exact"]);
    assert_eq!(metadata(&stage, 0), before);
    for node in &stage.nodes {
        node.ok(&["check-md", "r0"]);
        node.ok(&["up", "r0"]);
    }
    stage.wait_in_sync();
    stage.nodes[0].ok(&["primary", "r0"]);
    write_through(&mut stage);
    stage.stop_and_compare();
}

/// The dump is from before the data: it says UpToDate and in step, which is not true any more.
#[test]
fn an_old_dump_makes_no_old_data_current() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    stage.nodes[1].ok(&["down", "r0"]);
    let file = dump(&stage, 1);
    let file = file.to_str().unwrap();
    stage.nodes[1].ok(&["up", "r0"]);
    stage.wait_in_sync();
    write_through(&mut stage);
    let size = stage.nodes[0].data_size();
    stage.nodes[1].ok(&["down", "r0"]);
    // What the controller lost with the metadata.
    let disk = writable(&stage.nodes[1].disk);
    disk.write_all_at(&vec![0xbd; 3 * MIB as usize], MIB)
        .unwrap();
    damage(&stage, 1);
    let text = stage.nodes[1].ok(&["restore-md", "r0", file]);
    assert!(text.contains("Inconsistent"), "{text}");
    // Alone it is not believed.
    stage.nodes[0].ok(&["disconnect", "r0"]);
    stage.nodes[1].ok(&["up", "r0"]);
    let text = stage.nodes[1].refused(17, &["primary", "r0"]);
    assert!(text.contains("--force"), "{text}");
    stage.nodes[0].ok(&["connect", "r0"]);
    stage.wait_in_sync();
    assert!(stage.nodes[0].disk_content(size) == stage.nodes[1].disk_content(size));
    write_through(&mut stage);
    stage.stop_and_compare();
}

#[test]
fn a_disk_that_has_grown_is_moved_and_goes_on() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    let size = stage.nodes[0].data_size();
    stage.nodes[1].ok(&["down", "r0"]);
    let before = metadata(&stage, 1);
    write_through_alone(&stage);
    writable(&stage.nodes[1].disk).set_len(200 * MIB).unwrap();
    for verb in ["up", "dump-md", "check-md", "create-md"] {
        let text = stage.nodes[1].refused(22, &[verb, "r0"]);
        assert!(
            text.contains("gr") && text.contains("move-md"),
            "{verb}: {text}"
        );
    }
    let text = stage.nodes[1].ok(&["move-md", "r0"]);
    assert!(text.contains("moved"), "{text}");
    stage.nodes[1].ok(&["check-md", "r0"]);
    let after = metadata(&stage, 1);
    assert_eq!(after["current_uuid"], before["current_uuid"]);
    assert_eq!(after["agreed_size"], before["agreed_size"]);
    stage.nodes[1].ok(&["up", "r0"]);
    stage.wait_in_sync();
    assert_eq!(stage.nodes[1].data_size(), size, "until there is a resize");
    write_through(&mut stage);
    // Shrunk: refused, and nothing is lost when it gets its size back.
    stage.nodes[1].ok(&["down", "r0"]);
    let whole = std::fs::read(&stage.nodes[1].disk).unwrap();
    writable(&stage.nodes[1].disk).set_len(100 * MIB).unwrap();
    for verb in ["up", "check-md", "move-md"] {
        let text = stage.nodes[1].refused(22, &[verb, "r0"]);
        assert!(
            text.contains("no") && text.contains("create-md"),
            "{verb}: {text}"
        );
    }
    std::fs::write(&stage.nodes[1].disk, whole).unwrap();
    stage.nodes[1].ok(&["up", "r0"]);
    stage.wait_in_sync();
    stage.stop_and_compare();
}

/// Alpha takes writes that bravo misses.
fn write_through_alone(stage: &Stage) {
    let client = crate::harness::nbd::Client::unix(&stage.nodes[0].export);
    let mut client = client.expect("alpha serves");
    client
        .write(4 * MIB, &vec![9; MIB as usize])
        .expect("writes");
    client.flush().expect("flush");
    client.disconnect();
}

/// A loop device, gone when dropped.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Self {
        let name = run(Command::new("losetup").args(["-f", "--show"]).arg(file));
        Self(name.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn external_metadata_on_a_device_of_their_own() {
    let mut plan = Plan::new("C");
    plan.sizes = [256 * MIB; 2];
    let mut stage = Stage::new(plan);
    let file = |name: &str, size: u64| {
        let path = stage.path().join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    };
    let device = Loop::new(&file("meta", MIB));
    let small = Loop::new(&file("small", 64 << 10));
    let with = |meta: &str| {
        let text = stage.config_text();
        text.replacen(
            "meta-disk = \"internal\"",
            &format!("meta-disk = \"{meta}\""),
            1,
        )
    };
    stage.configure(&with(&small.0));
    let text = stage.nodes[0].refused(22, &["create-md", "r0"]);
    assert!(
        text.contains("65536 bytes: too small") && text.contains("need 86016 bytes"),
        "{text}"
    );
    stage.configure(&with(&device.0));
    stage.nodes[0].ok(&["create-md", "r0"]);
    // Another resource must not take it, neither side by side nor afterwards.
    let other = stage.config_dir().join("r1.toml");
    let text = with(&device.0)
        .replace("\"r0\"", "\"r1\"")
        .replace(".img", ".two")
        .replace(".nbd", ".two.nbd");
    std::fs::write(&other, &text).unwrap();
    let error = stage.nodes[0].refused(21, &["create-md", "r1"]);
    assert!(error.contains("already used"), "{error}");
    let link = stage.path().join("link");
    std::os::unix::fs::symlink(&device.0, &link).unwrap();
    std::fs::write(&other, text.replace(&device.0, link.to_str().unwrap())).unwrap();
    let error = stage.nodes[0].refused(21, &["create-md", "r1"]);
    assert!(error.contains("same disk"), "{error}");
    std::fs::remove_file(stage.config_dir().join("r0.toml")).unwrap();
    file("alpha.two", 256 * MIB);
    std::fs::write(&other, &text).unwrap();
    let error = stage.nodes[0].refused(22, &["create-md", "r1"]);
    assert!(error.contains("of resource r0"), "{error}");
    std::fs::remove_file(&other).unwrap();
    stage.configure(&with(&device.0));
    // It works, is seen to be in use, and comes back from a dump.
    stage.nodes[1].ok(&["create-md", "r0"]);
    for node in &mut stage.nodes {
        node.start();
        node.ok(&["up", "r0"]);
    }
    stage.nodes[0].ok(&["wait-connect", "r0", "--timeout", "60"]);
    stage.nodes[0].ok(&["new-current-uuid", "r0", "--clear-bitmap"]);
    stage.wait_in_sync();
    stage.nodes[0].ok(&["primary", "r0"]);
    write_through(&mut stage);
    stage.nodes[0].refused(12, &["check-md", "r0"]);
    for node in &stage.nodes {
        node.ok(&["down", "r0", "--force"]);
    }
    let saved = dump(&stage, 0);
    let before = metadata(&stage, 0);
    writable(Path::new(&device.0))
        .write_all_at(&[0; 8192], 0)
        .unwrap();
    stage.nodes[0].refused(22, &["up", "r0"]);
    stage.nodes[0].ok(&["restore-md", "r0", saved.to_str().unwrap(), "--exact"]);
    assert_eq!(metadata(&stage, 0), before);
    for node in &stage.nodes {
        node.ok(&["check-md", "r0"]);
        node.ok(&["up", "r0"]);
    }
    stage.wait_in_sync();
    stage.stop_and_compare();
}

//! Disks that are too small, belong to somebody else, are damaged or hold something already.

use crate::harness::stage::{Plan, Stage};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

const MIB: u64 = 1 << 20;

#[test]
fn disks_of_different_size_share_what_both_have() {
    for sizes in [[32 * MIB, 48 * MIB], [48 * MIB, 32 * MIB]] {
        let mut plan = Plan::new("C");
        plan.sizes = sizes;
        let mut stage = Stage::in_sync(plan);
        let size = stage.nodes[0].data_size();
        assert!(size < 32 * MIB && size > 31 * MIB, "{size}");
        assert_eq!(size, stage.nodes[1].data_size());
        crate::still_works(&mut stage);
        stage.stop_and_compare();
    }
}

#[test]
fn a_disk_too_small_for_the_data_is_refused() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    crate::still_works(&mut stage);
    let size = stage.nodes[0].data_size();
    let before = stage.nodes[0].disk_content(size);
    stage.nodes[1].ok(&["down", "r0"]);
    File::create(&stage.nodes[1].disk)
        .unwrap()
        .set_len(16 * MIB)
        .unwrap();
    stage.nodes[1].ok(&["create-md", "r0"]);
    stage.nodes[1].ok(&["up", "r0"]);
    for node in &stage.nodes {
        node.wait("says that the disk is too small", |s| {
            let reason = s["peers"][0]["reason"].as_str().unwrap();
            s["peers"][0]["connection"] == "Connecting" && reason.contains("at least as large")
        });
    }
    assert!(stage.nodes[0].disk_content(size) == before);
    assert_eq!(stage.nodes[0].data_size(), size);
    // A disk that is large enough mends it.
    stage.nodes[1].ok(&["down", "r0"]);
    File::create(&stage.nodes[1].disk)
        .unwrap()
        .set_len(32 * MIB)
        .unwrap();
    stage.nodes[1].ok(&["create-md", "r0"]);
    stage.nodes[1].ok(&["up", "r0"]);
    stage.wait_in_sync();
    crate::still_works(&mut stage);
    stage.stop_and_compare();
}

#[test]
fn metadata_of_another_node_or_resource_are_refused() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    for node in &mut stage.nodes {
        node.ok(&["down", "r0", "--force"]);
    }
    // Somebody exchanged the disks.
    let (alpha, bravo) = (stage.nodes[0].disk.clone(), stage.nodes[1].disk.clone());
    let spare = stage.path().join("spare");
    let swap = || {
        std::fs::rename(&alpha, &spare).unwrap();
        std::fs::rename(&bravo, &alpha).unwrap();
        std::fs::rename(&spare, &bravo).unwrap();
    };
    swap();
    for node in &stage.nodes {
        let text = node.refused(22, &["up", "r0"]);
        assert!(text.contains("node"), "{text}");
        let text = node.refused(10, &["role", "r0"]);
        assert!(text.contains("not up"), "{text}");
    }
    swap();
    // Another resource's.
    let renamed = stage
        .config_text()
        .replace("name = \"r0\"", "name = \"r1\"");
    stage.configure(&renamed);
    stage.nodes[0].terminate();
    stage.nodes[0].start();
    let text = stage.nodes[0].refused(22, &["up", "r1"]);
    assert!(text.contains("r0"), "{text}");
    stage.configure(&stage.config_text());
    stage.nodes[0].terminate();
    stage.nodes[0].start();
    for node in &stage.nodes {
        node.ok(&["up", "r0"]);
    }
    stage.nodes[0].ok(&["primary", "r0"]);
    stage.wait_in_sync();
    crate::still_works(&mut stage);
    stage.stop_and_compare();
}

fn superblocks(stage: &Stage, node: usize) -> Vec<u64> {
    let bytes = std::fs::read(&stage.nodes[node].disk).expect("the disk");
    let data = stage.nodes[node].data_size();
    // A superblock's magic, wherever the layout puts it.
    let magic = twinblk_engine::metadata::superblock::MAGIC;
    (data..bytes.len() as u64)
        .step_by(4096)
        .filter(|&at| bytes[at as usize..].starts_with(&magic[..]))
        .collect()
}

#[test]
fn one_damaged_superblock_is_survived_two_are_refused() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    crate::still_works(&mut stage);
    let places = superblocks(&stage, 1);
    assert_eq!(places.len(), 2, "two copies");
    let disk = File::options()
        .write(true)
        .open(&stage.nodes[1].disk)
        .unwrap();
    for &place in &places {
        stage.nodes[1].ok(&["down", "r0"]);
        // A torn write: the second half is of another time.
        disk.write_all_at(&[0xee; 2048], place + 2048).unwrap();
        let output = stage.nodes[1].run(&["dump-md", "r0"]);
        let (out, err) = crate::harness::node::texts(&output);
        assert!(
            format!("{out}{err}").contains("superblock"),
            "it is told: {out}{err}"
        );
        stage.nodes[1].ok(&["up", "r0"]);
        stage.wait_in_sync();
        crate::still_works(&mut stage);
    }
    stage.nodes[1].ok(&["down", "r0"]);
    for &place in &places {
        disk.write_all_at(&[0xee; 2048], place + 2048).unwrap();
    }
    let text = stage.nodes[1].refused(22, &["up", "r0"]);
    assert!(text.contains("superblock"), "{text}");
    let text = stage.nodes[1].refused(22, &["dump-md", "r0"]);
    assert!(text.contains("superblock"), "{text}");
    // Nothing is made up: new metadata, and a full sync.
    stage.nodes[1].ok(&["create-md", "r0", "--force"]);
    stage.nodes[1].ok(&["up", "r0"]);
    stage.wait_in_sync();
    stage.stop_and_compare();
}

#[test]
fn create_md_overwrites_nothing_without_force() {
    let stage = Stage::new(Plan::new("C"));
    let alpha = &stage.nodes[0];
    alpha.ok(&["create-md", "r0"]);
    let text = alpha.refused(22, &["create-md", "r0"]);
    assert!(text.contains("r0") && text.contains("--force"), "{text}");
    alpha.ok(&["create-md", "r0", "--force"]);
    // A real file system, made by the real program.
    let status = Command::new("mkfs.ext4")
        .arg("-q")
        .arg(&stage.nodes[1].disk)
        .status();
    assert!(status.expect("mkfs.ext4 runs").success());
    let before = std::fs::read(&stage.nodes[1].disk).unwrap();
    let text = stage.nodes[1].refused(22, &["create-md", "r0"]);
    assert!(text.contains("ext4") && text.contains("--force"), "{text}");
    assert!(
        std::fs::read(&stage.nodes[1].disk).unwrap() == before,
        "nothing was written"
    );
    stage.nodes[1].ok(&["create-md", "r0", "--force"]);
}

#[test]
fn a_disk_that_is_not_there() {
    let mut stage = Stage::new(Plan::new("C"));
    std::fs::remove_file(&stage.nodes[0].disk).unwrap();
    let text = stage.nodes[0].refused(16, &["create-md", "r0"]);
    assert!(text.contains("alpha.img"), "{text}");
    stage.nodes[0].start();
    let text = stage.nodes[0].refused(16, &["up", "r0"]);
    assert!(text.contains("alpha.img"), "{text}");
}

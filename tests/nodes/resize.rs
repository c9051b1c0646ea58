//! Resize with real daemons. Invariants: both nodes have one size; what was written stays; what is new
//! is equal on both; a client sees it when it connects again.

use crate::harness::nbd::Client;
use crate::harness::stage::{Plan, Stage};

const MIB: u64 = 1 << 20;

/// The metadata in files of their own.
fn external(stage: &Stage) -> String {
    let mut text = stage.config_text();
    for node in &stage.nodes {
        let meta = node.disk.with_extension("meta");
        std::fs::File::create(&meta).expect("a file for the metadata");
        let new = format!("meta-disk = \"{}\"", meta.display());
        text = text.replacen("meta-disk = \"internal\"", &new, 1);
    }
    text
}

fn grow_files(stage: &Stage, bytes: u64) {
    for node in &stage.nodes {
        let disk = std::fs::File::options().write(true).open(&node.disk);
        disk.and_then(|disk| disk.set_len(bytes)).expect("it grows");
    }
}

#[test]
fn files_that_grow_give_the_device_more_room_on_both_nodes() {
    for (round, protocol) in ["C", "A"].into_iter().enumerate() {
        let mut plan = Plan::new(protocol);
        plan.sizes = [100 * MIB; 2];
        plan.tmpfs = round == 1;
        let mut stage = Stage::new(plan);
        stage.configure(&external(&stage));
        for node in &mut stage.nodes {
            node.ok(&["create-md", "r0"]);
            node.start();
            node.ok(&["up", "r0"]);
        }
        stage.nodes[0].ok(&["wait-connect", "r0", "--timeout", "60"]);
        stage.nodes[0].ok(&["primary", "--force", "r0"]);
        stage.wait_in_sync();
        let mut client = Client::unix(&stage.nodes[0].export).expect("it serves");
        assert_eq!(client.info.size, 100 * MIB);
        client.write(99 * MIB, &[7; 4096]).expect("writes");
        let text = stage.nodes[round].ok(&["resize", "r0"]);
        assert!(text.contains("keeps its"), "nothing has grown: {text}");
        // Past what the pages of the bitmap had room for. What is there is not the same everywhere.
        grow_files(&stage, 200 * MIB);
        let disk = std::fs::File::options()
            .write(true)
            .open(&stage.nodes[1].disk);
        std::os::unix::fs::FileExt::write_all_at(&disk.unwrap(), &[0xbd; 8192], 150 * MIB)
            .expect("writes");
        let text = stage.nodes[round].ok(&["resize", "r0"]);
        assert!(text.contains("209715200 bytes now"), "{text}");
        assert!(text.contains("must connect again"), "{text}");
        for node in &stage.nodes {
            node.wait("the new size", |s| s["volumes"][0]["size"] == 200 * MIB);
        }
        stage.wait_in_sync();
        // The old connection goes on with the old size.
        client.write(0, &[8; 4096]).expect("writes");
        client.disconnect();
        let mut client = Client::unix(&stage.nodes[0].export).expect("it serves");
        assert_eq!(client.info.size, 200 * MIB);
        client.write(200 * MIB - 4096, &[9; 4096]).expect("writes");
        client.flush().expect("flush");
        let half = (100 * MIB).to_string();
        let text = stage.nodes[0].refused(11, &["resize", "r0", "--size", &half]);
        assert!(text.contains("--force"), "{text}");
        stage.nodes[0].refused(12, &["resize", "r0", "--size", &half, "--force"]);
        client.disconnect();
        // The size is on the disk.
        stage.nodes[1].kill();
        stage.nodes[1].start();
        stage.wait_in_sync();
        for node in &stage.nodes {
            node.wait("the new size", |s| s["volumes"][0]["size"] == 200 * MIB);
        }
        let content = stage.stop_and_compare();
        assert_eq!(content.len() as u64, 200 * MIB);
        assert_eq!(content[(99 * MIB) as usize..][..4096], [7; 4096]);
        assert_eq!(content[(200 * MIB) as usize - 4096..], [9; 4096]);
    }
}

#[test]
fn metadata_at_the_end_of_the_disk_have_to_move_first() {
    let stage = Stage::in_sync(Plan::new("C"));
    let text = stage.nodes[0].ok(&["resize", "r0"]);
    assert!(text.contains("keeps its"), "{text}");
    grow_files(&stage, 64 * MIB);
    let text = stage.nodes[0].refused(11, &["resize", "r0"]);
    assert!(text.contains("twinblk move-md r0"), "{text}");
    let smaller = (stage.nodes[0].data_size() / 8192 * 4096).to_string();
    stage.nodes[1].ok(&["resize", "r0", "--size", &smaller, "--force"]);
    stage.wait_in_sync();
    let client = Client::unix(&stage.nodes[0].export).expect("it serves");
    assert_eq!(client.info.size.to_string(), smaller);
}

//! QEMU as a client: qemu-io's commands and qemu-img's comparison of two nodes.

use crate::harness::stage::{Plan, Stage};
use crate::harness::tools;
use crate::uri;
use std::process::Command;

fn qemu_io(stage: &Stage, commands: &[&str]) -> String {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]);
    for c in commands {
        command.args(["-c", c]);
    }
    let out = tools::run(command.arg(uri(stage, 0)));
    for bad in ["failed", "error", "Pattern verification"] {
        assert!(!out.contains(bad), "{out}");
    }
    out
}

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_back() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    qemu_io(
        &stage,
        &[
            "write -P 0x11 0 1M",
            "write -f -P 0x22 512 512",
            "write -P 0x33 1000k 300k",
            "write -z 64k 64k",
            "write -z -u 256k 64k",
            "discard 512k 128k",
            "flush",
            "read -P 0x11 0 512",
            "read -P 0x22 512 512",
            "read -P 0x11 1k 63k",
            "read -P 0 64k 64k",
            "read -P 0x11 128k 128k",
            "read -P 0 256k 64k",
            "read -P 0x33 1000k 300k",
            "aio_write -P 0x44 2M 1M",
            "aio_write -P 0x55 3M 1M",
            "aio_flush",
            "read -P 0x44 2M 1M",
            "read -P 0x55 3M 1M",
        ],
    );
    let map = tools::run(
        Command::new("qemu-img")
            .args(["map", "--output=json"])
            .arg(uri(&stage, 0)),
    );
    assert!(
        map.contains("\"zero\": true"),
        "block status reaches QEMU: {map}"
    );
    stage.wait_in_sync();
    stage.stop_and_compare();
}

#[test]
fn qemu_img_converts_to_it_and_compares() {
    let mut stage = Stage::in_sync(Plan::new("B"));
    let size = stage.nodes[0].data_size();
    let image = stage.path().join("image.raw");
    crate::random_file(&image, size, 4);
    tools::run(
        Command::new("qemu-img")
            .args(["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8"])
            .arg(&image)
            .arg(uri(&stage, 0)),
    );
    let compare = |stage: &Stage, node| {
        tools::run(
            Command::new("qemu-img")
                .args(["compare", "-f", "raw", "-F", "raw"])
                .arg(&image)
                .arg(uri(stage, node)),
        )
    };
    assert!(compare(&stage, 0).contains("identical"));
    stage.nodes[0].wait("nobody holds it", |s| {
        s["open_clients"] == serde_json::json!([])
    });
    stage.nodes[0].ok(&["secondary", "r0"]);
    stage.nodes[1].ok(&["primary", "r0"]);
    assert!(compare(&stage, 1).contains("identical"));
    stage.wait_in_sync();
    stage.stop_and_compare();
}

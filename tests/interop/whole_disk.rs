//! nbdcopy moves whole disks in and out, over many connections.

use crate::harness::stage::{Plan, Stage};
use crate::harness::tools;
use crate::uri;
use std::process::Command;

#[test]
fn nbdcopy_in_and_out() {
    for protocol in ["A", "B", "C"] {
        let mut plan = Plan::new(protocol);
        plan.sizes = [96 << 20; 2];
        plan.tmpfs = protocol != "B";
        let mut stage = Stage::in_sync(plan);
        let size = stage.nodes[0].data_size();
        let [image, back] = ["image", "back"].map(|name| stage.path().join(name));
        crate::random_file(&image, size, 7);
        let copy = |from: &str, to: &str, more: &[&str]| {
            tools::run(Command::new("nbdcopy").args(more).args([from, to]));
        };
        let (image_name, back_name) = (image.display().to_string(), back.display().to_string());
        copy(
            &image_name,
            &uri(&stage, 0),
            &["--flush", "--connections=4", "--requests=64"],
        );
        copy(
            &uri(&stage, 0),
            &back_name,
            &["--connections=4", "--requests=64"],
        );
        assert!(std::fs::read(&image).unwrap() == std::fs::read(&back).unwrap());
        // Holes arrive as zeroes, on both disks.
        let hole = std::fs::File::create(&image).expect("a file");
        hole.set_len(size).expect("a sparse file");
        copy(
            &image_name,
            &uri(&stage, 0),
            &["--destination-is-zero", "--flush"],
        );
        copy(&image_name, &uri(&stage, 0), &["--flush"]);
        stage.wait_in_sync();
        let content = stage.stop_and_compare();
        assert!(content.iter().all(|&b| b == 0), "{protocol}");
    }
}

/// A disk full of holes stays thin on both nodes after a full sync and after zeroing.
#[test]
fn zeroes_take_no_space() {
    use std::os::unix::fs::MetadataExt;
    let mut plan = Plan::new("C");
    plan.tmpfs = true;
    plan.sizes = [64 << 20; 2];
    let mut stage = Stage::in_sync(plan);
    let image = stage.path().join("image");
    crate::random_file(&image, 32 << 20, 9);
    let image = image.display().to_string();
    tools::run(Command::new("nbdcopy").args([&image, &uri(&stage, 0)]));
    let used = |node: usize| {
        stage.nodes[node]
            .disk
            .metadata()
            .expect("metadata")
            .blocks()
            * 512
    };
    let full = [used(0), used(1)];
    crate::python(&uri(&stage, 0), "h.trim(32 << 20, 0)\nh.flush()\n");
    for node in [0, 1] {
        assert!(
            used(node) + (30 << 20) < full[node],
            "{} of {}",
            used(node),
            full[node]
        );
    }
    stage.wait_in_sync();
    stage.stop_and_compare();
}

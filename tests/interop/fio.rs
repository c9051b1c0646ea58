//! fio writes, reads back and verifies checksums: protocols A, B and C, depths 1 to 64, 512 bytes to
//! 1 MiB, with flushes and trims in between.

use crate::harness::stage::{Plan, Stage};
use crate::harness::tools;
use crate::uri;
use std::process::Command;

fn fio(stage: &Stage, name: &str, args: &[&str]) -> String {
    tools::run(
        Command::new("fio")
            .current_dir(stage.path())
            .args(["--ioengine=nbd", "--randrepeat=1", "--group_reporting"])
            .args([format!("--name={name}"), format!("--uri={}", uri(stage, 0))])
            .args(["--verify=crc32c", "--verify_fatal=1", "--verify_dump=0"])
            .args(args),
    )
}

fn verified(protocol: &'static str, tmpfs: bool) {
    let mut plan = Plan::new(protocol);
    plan.tmpfs = tmpfs;
    plan.sizes = [40 << 20; 2];
    let mut stage = Stage::in_sync(plan);
    for (size, depth, amount) in [
        ("512", 1, "512k"),
        ("512", 64, "4m"),
        ("4k", 1, "2m"),
        ("4k", 16, "16m"),
        ("4k", 64, "32m"),
        ("64k", 8, "32m"),
        ("1m", 4, "32m"),
        ("1m", 64, "32m"),
    ] {
        let out = fio(
            &stage,
            &format!("{protocol}-{size}-{depth}"),
            &[
                "--rw=randwrite",
                &format!("--bs={size}"),
                &format!("--iodepth={depth}"),
                &format!("--size={amount}"),
            ],
        );
        assert!(out.contains("err= 0"), "{out}");
    }
    // Mixed sizes, reads in between, a flush every few writes, the verification as it goes.
    fio(
        &stage,
        "mixed",
        &[
            "--rw=randrw",
            "--bsrange=512-256k",
            "--bs_unaligned=0",
            "--iodepth=32",
            "--size=32m",
            "--fsync=13",
            "--verify_backlog=64",
        ],
    );
    stage.wait_in_sync();
    stage.stop_and_compare();
}

#[test]
fn fio_verifies_under_protocol_a() {
    verified("A", true);
}

#[test]
fn fio_verifies_under_protocol_b() {
    verified("B", false);
}

#[test]
fn fio_verifies_under_protocol_c() {
    verified("C", true);
}

#[test]
fn fio_verifies_under_protocol_c_on_the_disk() {
    verified("C", false);
}

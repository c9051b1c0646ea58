//! fio writes, reads back and verifies checksums: protocols A, B and C, depths 1 to 64, 512 bytes to
//! 1 MiB, with flushes and trims in between.

use crate::harness::faults::break_writes;
use crate::harness::stage::{Plan, Stage};
use crate::harness::{PATIENCE, tools};
use crate::uri;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

fn fio(stage: &Stage, name: &str, args: &[&str]) -> String {
    fio_at(stage.path(), &uri(stage, 0), name, args)
}

fn fio_at(path: &Path, uri: &str, name: &str, args: &[&str]) -> String {
    tools::run(
        Command::new("fio")
            .current_dir(path)
            .args(["--ioengine=nbd", "--randrepeat=1", "--group_reporting"])
            .args([format!("--name={name}"), format!("--uri={uri}")])
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

/// One pass after the other, each verified as it goes and once more at its end, while the Primary's disk
/// breaks, is attached again, is detached and attached: no pass sees an error, nor anything stale.
#[test]
fn fio_verifies_while_the_primary_loses_its_disk() {
    for protocol in ["A", "C"] {
        let mut plan = Plan::new(protocol);
        plan.sizes = [40 << 20; 2];
        let mut stage = Stage::in_sync(plan);
        let (path, export) = (stage.path().to_owned(), uri(&stage, 0));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let passes = scope.spawn(|| {
                let start = Instant::now();
                let mut count = 0;
                while !over.load(Ordering::Relaxed) && start.elapsed() < 4 * PATIENCE {
                    count += 1;
                    let args = [
                        "--rw=randrw",
                        "--bsrange=4k-64k",
                        "--bs_unaligned=0",
                        "--iodepth=16",
                        "--size=32m",
                        "--fsync=29",
                        "--verify_backlog=64",
                    ];
                    fio_at(&path, &export, &format!("pass-{protocol}-{count}"), &args);
                }
                count
            });
            let node = &stage.nodes[0];
            let disk =
                |state: &'static str| move |s: &serde_json::Value| s["volumes"][0]["disk"] == state;
            // The peer marks what the Primary's disk lacks: fio goes on without it.
            let missed = |s: &serde_json::Value| {
                s["peers"][0]["volumes"][0]["out_of_sync"].as_u64() > Some(4 << 20)
            };
            break_writes(node.pid(), Some(1 << 20));
            node.wait("its disk is out of use", disk("Diskless"));
            stage.nodes[1].wait("fio goes on", missed);
            break_writes(node.pid(), None);
            node.ok(&["attach", "r0"]);
            node.wait("it is brought up to date", disk("UpToDate"));
            node.ok(&["detach", "r0"]);
            stage.nodes[1].wait("fio goes on", missed);
            node.ok(&["attach", "r0"]);
            node.wait("it is brought up to date", disk("UpToDate"));
            over.store(true, Ordering::Relaxed);
            assert!(passes.join().expect("every pass verified") > 0);
        });
        stage.wait_in_sync();
        stage.stop_and_compare();
    }
}

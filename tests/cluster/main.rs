//! Stories with real failover daemons: Pacemaker and Corosync, keepalived, ucarp, Heartbeat, each with two
//! machines made of namespaces, a floating address, and a service that holds the export. Needs root and
//! the packages that `tests/run cluster` installs.
//!
//! What is checked in every story: a client that goes to the floating address finds every write that was
//! ever confirmed to it, and there is one Primary. Without `TWINBLK_CLUSTER_ALL=1` each daemon tells its
//! main story only.

#![allow(unreachable_pub, reason = "a test program has no outside")]

#[path = "../harness/mod.rs"]
mod harness;

mod addresses;
mod agent;
mod fencing;
mod heartbeat;
mod keepalived;
mod lan;
mod machine;
mod pacemaker;
mod pair;
mod store;
mod ucarp;

/// The long form was asked for.
fn all() -> bool {
    let asked = std::env::var_os("TWINBLK_CLUSTER_ALL").is_some_and(|v| !v.is_empty() && v != "0");
    if !asked {
        println!("skipped: a story of the long form, TWINBLK_CLUSTER_ALL=1");
    }
    asked
}

/// Waits for a condition; longer than other tests do, because a cluster manager takes its time.
fn wait<T>(
    what: &str,
    mut done: impl FnMut() -> Option<T>,
    describe: impl FnOnce() -> String,
) -> T {
    let start = std::time::Instant::now();
    let patience = harness::PATIENCE * 3;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(
            start.elapsed() < patience,
            "waited {patience:?} for {what}\n{}",
            describe()
        );
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// This twinblk has fencing.
fn fencing() -> bool {
    let help = std::process::Command::new(harness::node::TWINBLK)
        .arg("--help")
        .output();
    let has = String::from_utf8_lossy(&help.expect("it runs").stdout).contains("outdate");
    if !has {
        println!("skipped: this twinblk has no fencing");
    }
    has
}

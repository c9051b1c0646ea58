//! What the tests that run real daemons share.
//!
//! * [`stage`]: a directory with two nodes in it, and their configuration;
//! * [`node`]: a daemon: start, kill, ask, wait for;
//! * [`nbd`]: an NBD client that keeps many requests in flight;
//! * [`load`]: writes that know what they wrote, and the judge of what survived;
//! * [`content`]: what a disk holds, without the holes;
//! * [`link`]: network namespaces and a cable between them that can be cut;
//! * [`faults`]: disks that break;
//! * [`tools`]: other people's programs; [`seeds`]: numbers that repeat.
//!
//! Tests wait for conditions, never for a time to pass; [`PATIENCE`] only bounds a test that hangs.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses its part of the harness"
)]

pub mod content;
pub mod faults;
pub mod link;
pub mod load;
pub mod nbd;
pub mod node;
pub mod seeds;
pub mod stage;
pub mod tools;

use std::time::{Duration, Instant};

/// Longer than anything takes on a slow and busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until `done` answers something; panics with `describe` when it never does.
pub fn wait_for<T>(
    what: &str,
    mut done: impl FnMut() -> Option<T>,
    describe: impl FnOnce() -> String,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        if start.elapsed() > PATIENCE {
            panic!("waited {PATIENCE:?} for {what}\n{}", describe());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

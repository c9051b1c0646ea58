//! Everything a person, a broken disk or a stranger can get wrong. Each case: a message that says what
//! happened, why and what to do next; a non-zero exit where somebody waits for one; nothing is lost,
//! nothing panics, nothing hangs.

#[path = "../harness/mod.rs"]
mod harness;

mod command_line;
mod configuration;
mod crowds;
mod daemons;
mod disks;
mod garbage;
mod metadata;
mod strangers;

use harness::load::{History, Load, wait_for_writes};
use harness::stage::Stage;

/// The pair works: it takes writes and has them on both disks.
fn still_works(stage: &mut Stage) {
    let history = History::new(1, stage.nodes[0].data_size());
    let load = Load::start(&stage.nodes[0].export, &history, 1, 8);
    wait_for_writes(&history, 200);
    load.finish();
    stage.wait_in_sync();
    for node in &stage.nodes {
        assert!(!node.log_text().contains("panicked"), "{}", node.log_text());
    }
}

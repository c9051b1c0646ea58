//! The Secondary dies under load and returns. Invariants: the client never notices; what the dead node
//! missed, and nothing less, is copied; both disks end up equal and hold every confirmed write.

use crate::harness::load::{History, Load, wait_for_writes};
use crate::harness::seeds::{Rng, each_seed};
use crate::harness::stage::{Plan, Stage};

#[test]
fn the_secondary_is_killed_under_load_and_returns() {
    each_seed(|seed| {
        let mut rng = Rng(seed);
        let mut stage = Stage::in_sync(Plan::seeded(seed));
        let size = stage.nodes[0].data_size();
        let history = History::new(seed, size);
        let depth = 1 + rng.below(48) as usize;
        let load = Load::start(&stage.nodes[0].export, &history, seed, depth);
        wait_for_writes(&history, 50 + rng.below(200) as usize);
        stage.nodes[1].kill();
        wait_for_writes(&history, 50 + rng.below(200) as usize);
        // The list of what was up brings the resource back.
        stage.nodes[1].start();
        wait_for_writes(&history, 50 + rng.below(100) as usize);
        if rng.below(2) == 0 {
            // A second time, wherever the resync is.
            stage.nodes[1].kill();
            wait_for_writes(&history, 20);
            stage.nodes[1].start();
        }
        if rng.below(2) == 0 {
            // Sometimes the load goes on while the resync runs to its end.
            stage.wait_in_sync();
        }
        load.finish();
        stage.wait_in_sync();
        let content = stage.stop_and_compare();
        history.lock().unwrap().judge_blocks(&content);
    });
}

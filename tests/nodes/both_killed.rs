//! Both nodes die at once under load (one power supply). Invariants: they find each other again without
//! help, end up equal, and hold every confirmed write.

use crate::harness::load::{History, Load, wait_for_writes};
use crate::harness::seeds::{Rng, each_seed};
use crate::harness::stage::{Plan, Stage};

#[test]
fn both_are_killed_under_load_and_return() {
    each_seed(|seed| {
        let mut rng = Rng(seed ^ 0xb07);
        let mut stage = Stage::in_sync(Plan::seeded(seed + 2));
        let size = stage.nodes[0].data_size();
        let history = History::new(seed, size);
        let depth = 1 + rng.below(48) as usize;
        let load = Load::start(&stage.nodes[0].export, &history, seed, depth);
        wait_for_writes(&history, 50 + rng.below(200) as usize);
        let first = rng.below(2) as usize;
        stage.nodes[first].kill();
        stage.nodes[1 - first].kill();
        load.broken();
        let first = rng.below(2) as usize;
        stage.nodes[first].start();
        stage.nodes[1 - first].start();
        stage.wait_in_sync();
        let content = stage.stop_and_compare();
        history.lock().unwrap().judge_blocks(&content);
    });
}

//! It can fail: every deliberate mistake must be noticed within a bounded number of seeds. A seed counts
//! only if it passes without the mistake: what is wrong anyway proves nothing.

use crate::campaign::Campaign;
use crate::plan::Plan;
use crate::run::run;
use std::process::ExitCode;
use twinblk_engine::sabotage::{MARK, Mistake, choose};

/// Makes every mistake in turn that so many nodes can notice; two when not given. `only`: that one.
pub fn all(seeds: u64, jobs: usize, nodes: Option<usize>, only: Option<&str>) -> ExitCode {
    println!("{MARK}");
    let nodes = nodes.unwrap_or(2);
    let mistakes: &[Mistake] = if nodes == 2 {
        &Mistake::ALL
    } else {
        &Mistake::OF_MANY
    };
    let (mut noticed, mut unnoticed) = (0, 0);
    for &mistake in mistakes {
        if only.is_some_and(|only| only != format!("{mistake:?}")) {
            continue;
        }
        match notice(mistake, seeds, jobs, nodes) {
            Some((seed, invariant)) => {
                noticed += 1;
                println!("{mistake:?}: noticed by {invariant} with seed {seed}");
            }
            None => {
                unnoticed += 1;
                println!("{mistake:?}: NOT NOTICED in {seeds} seeds");
            }
        }
    }
    println!(
        "test result: {}. {noticed} passed; {unnoticed} failed",
        if unnoticed == 0 { "ok" } else { "FAILED" },
    );
    if unnoticed == 0 && noticed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The first seed that breaks a promise with this mistake and none without it, and which promise.
fn notice(mistake: Mistake, seeds: u64, jobs: usize, nodes: usize) -> Option<(u64, &'static str)> {
    let mut next = 1;
    while next <= seeds {
        choose(Some(mistake));
        let report = Campaign {
            seeds: next..seeds + 1,
            jobs,
            time: None,
            first: true,
            talks: false,
            nodes: Some(nodes),
        }
        .run();
        choose(None);
        for failed in &report.failures {
            let seed = failed.plan.seed;
            if run(&Plan::new(seed).on(nodes), false).violation.is_none() {
                return Some((seed, failed.violation.as_ref()?.invariant));
            }
            println!("{mistake:?}: seed {seed} fails without it, too");
        }
        // Seeds are given out in order, and every one that was is in the report.
        next += report.runs.max(1);
    }
    None
}

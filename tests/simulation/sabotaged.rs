//! It can fail: every deliberate mistake must be noticed within a bounded number of seeds.

use crate::campaign::Campaign;
use std::process::ExitCode;
use twinblk_engine::sabotage::{MARK, Mistake, choose};

/// Makes every mistake in turn that so many nodes can notice; two when not given.
pub fn all(seeds: u64, jobs: usize, nodes: Option<usize>) -> ExitCode {
    println!("{MARK}");
    let mut unnoticed = 0;
    let nodes = nodes.unwrap_or(2);
    let mistakes: &[Mistake] = if nodes == 2 {
        &Mistake::ALL
    } else {
        &Mistake::OF_MANY
    };
    for &mistake in mistakes {
        choose(Some(mistake));
        let report = Campaign {
            seeds: 1..seeds + 1,
            jobs,
            time: None,
            first: true,
            talks: false,
            nodes: Some(nodes),
        }
        .run();
        match report.failures.first().and_then(|f| f.violation.as_ref()) {
            Some(violation) => {
                println!(
                    "{mistake:?}: noticed by {} after {} seeds",
                    violation.invariant, report.runs
                );
            }
            None => {
                unnoticed += 1;
                println!("{mistake:?}: NOT NOTICED in {seeds} seeds");
            }
        }
    }
    choose(None);
    println!(
        "test result: {}. {} passed; {unnoticed} failed",
        if unnoticed == 0 { "ok" } else { "FAILED" },
        mistakes.len() - unnoticed
    );
    if unnoticed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

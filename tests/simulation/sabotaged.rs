//! It can fail: every deliberate mistake must be noticed within a bounded number of seeds.

use crate::campaign::Campaign;
use std::process::ExitCode;
use twinblk_engine::sabotage::{MARK, Mistake, choose};

/// Makes every mistake in turn.
pub fn all(seeds: u64, jobs: usize) -> ExitCode {
    println!("{MARK}");
    let mut unnoticed = 0;
    for mistake in Mistake::ALL {
        choose(Some(mistake));
        let report = Campaign {
            seeds: 1..seeds + 1,
            jobs,
            time: None,
            first: true,
            talks: false,
            nodes: None,
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
        Mistake::ALL.len() - unnoticed
    );
    if unnoticed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

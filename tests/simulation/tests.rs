//! What the simulation itself promises.

use twinblk_simulation::kept::KEPT;
use twinblk_simulation::plan::Plan;
use twinblk_simulation::run::run;

/// One seed is one run, byte for byte: frames, metadata, answers and events in the same order at the
/// same times.
#[test]
fn a_seed_repeats() {
    let mut hashes = Vec::new();
    for seed in 1..60 {
        let plan = Plan::new(seed);
        let (first, second) = (run(&plan, false), run(&plan, true));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!((first.steps, first.time), (second.steps, second.time));
        hashes.push(first.hash);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert!(hashes.len() > 55, "seeds differ");
}

/// What was once wrong stays right.
#[test]
fn kept_seeds_break_no_promise() {
    for kept in KEPT {
        let plan = Plan::new(kept.seed);
        let plan = match kept.nodes {
            Some(nodes) => plan.on(nodes),
            None => plan,
        };
        let outcome = run(&plan, false);
        let violation = outcome.violation.map(|v| format!("{v:?}"));
        assert_eq!(violation, None, "seed {}: {}", kept.seed, kept.what);
    }
}

/// Leaving disturbances out changes only what they changed: a reduced run is still a run.
#[test]
fn disturbances_can_be_left_out() {
    let full = (1..200)
        .map(|seed| run(&Plan::new(seed), false))
        .find(|outcome| outcome.disturbances > 5)
        .expect("most seeds disturb");
    let mut plan = full.plan.clone();
    plan.most = 0;
    let quiet = run(&plan, false);
    assert!(quiet.violation.is_none());
    assert!(quiet.counts.keys().all(|what| !what.starts_with("fault ")));
}

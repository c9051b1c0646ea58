//! Many runs: on all cores, with progress.

use crate::coverage;
use crate::plan::Plan;
use crate::run::{Outcome, run};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What came of many runs.
#[derive(Debug, Default)]
pub struct Report {
    /// Runs.
    pub runs: u64,
    /// Events.
    pub steps: u64,
    /// Simulated nanoseconds.
    pub time: u128,
    /// Disturbances.
    pub disturbances: u64,
    /// Requests served.
    pub served: u64,
    /// Nodes of the largest run.
    pub most_nodes: usize,
    /// How often what occurred.
    pub counts: BTreeMap<String, u64>,
    /// What occurred although it cannot: which seed, what, and why it cannot.
    pub impossible: Vec<String>,
    /// Runs that broke a promise.
    pub failures: Vec<Outcome>,
}

/// How a campaign is run.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The next seed, and the one to stop at.
    pub seeds: std::ops::Range<u64>,
    /// Threads.
    pub jobs: usize,
    /// Stop after so long.
    pub time: Option<Duration>,
    /// Stop at the first failure.
    pub first: bool,
    /// Print progress.
    pub talks: bool,
    /// Nodes; as each seed says when not given.
    pub nodes: Option<usize>,
}

impl Campaign {
    /// Runs it.
    pub fn run(&self) -> Report {
        let plan = |seed| {
            let plan = Plan::new(seed);
            match self.nodes {
                Some(nodes) => plan.on(nodes),
                None => plan,
            }
        };
        let next = AtomicU64::new(self.seeds.start);
        let stop = AtomicBool::new(false);
        let report = Mutex::new(Report::default());
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..self.jobs {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        let late = self.time.is_some_and(|time| start.elapsed() >= time);
                        if seed >= self.seeds.end || late {
                            return;
                        }
                        let outcome = run(&plan(seed), false);
                        let failed = outcome.violation.is_some();
                        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                        report.take(outcome);
                        if failed && self.first {
                            stop.store(true, Ordering::Relaxed);
                        }
                        if self.talks && report.runs.is_multiple_of(500) {
                            println!("{}", report.summary(start.elapsed()));
                        }
                    }
                });
            }
        });
        report.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Report {
    fn take(&mut self, outcome: Outcome) {
        self.runs += 1;
        self.most_nodes = self.most_nodes.max(outcome.plan.nodes);
        self.steps += outcome.steps;
        self.time += u128::from(outcome.time);
        self.disturbances += outcome.disturbances;
        self.served += outcome.served;
        self.impossible.extend(coverage::impossible(&outcome));
        for (what, n) in &outcome.counts {
            *self.counts.entry(what.clone()).or_default() += n;
        }
        if outcome.violation.is_some() {
            self.failures.push(outcome);
        }
    }

    /// One line.
    pub fn summary(&self, elapsed: Duration) -> String {
        let seconds = elapsed.as_secs_f64().max(0.001);
        let simulated = self.time as f64 / 1e9;
        format!(
            "{} runs, {} failed; {} steps ({:.0}/s), {:.1} simulated hours ({:.0} s/s), {} \
             requests served, {} disturbances",
            self.runs,
            self.failures.len(),
            self.steps,
            self.steps as f64 / seconds,
            simulated / 3600.0,
            simulated / seconds,
            self.served,
            self.disturbances
        )
    }
}

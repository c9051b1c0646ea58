//! Makes a failing run as short as it can: the same promise must still be broken with fewer
//! disturbances, fewer clients, less time.

use crate::plan::Plan;
use crate::run::{Outcome, run};

/// Runs spent on it.
const TRIES: u32 = 300;

/// The shortest failing run found, and the number of disturbances it has left.
pub fn reduce(failed: &Outcome) -> (Plan, Outcome) {
    let mut search = Search {
        invariant: failed
            .violation
            .as_ref()
            .map_or("", |violation| violation.invariant),
        best: failed.plan.clone(),
        left: TRIES,
    };
    search.simpler();
    search.fewer_disturbances(failed.disturbances);
    search.simpler();
    let outcome = run(&search.best, true);
    (search.best, outcome)
}

struct Search {
    invariant: &'static str,
    best: Plan,
    left: u32,
}

impl Search {
    /// Takes over a plan that fails in the same way.
    fn fails(&mut self, plan: Plan) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        let outcome = run(&plan, false);
        let same = outcome
            .violation
            .is_some_and(|v| v.invariant == self.invariant);
        if same {
            self.best = plan;
        }
        same
    }

    fn simpler(&mut self) {
        let best = self.best.clone();
        for plan in [
            Plan {
                order_every: 0,
                ..best.clone()
            },
            Plan {
                careless: false,
                ..best.clone()
            },
            Plan {
                depth: 1,
                ..best.clone()
            },
            Plan { clients: 1, ..best },
        ] {
            self.fails(plan);
        }
        while self.best.duration > 1_000_000_000 {
            let plan = Plan {
                duration: self.best.duration * 2 / 3,
                ..self.best.clone()
            };
            if !self.fails(plan) {
                break;
            }
        }
    }

    fn fewer_disturbances(&mut self, all: u64) {
        // No more than the first so many…
        let (mut low, mut high) = (0, all);
        while low < high {
            let middle = (low + high) / 2;
            let plan = Plan {
                most: middle,
                ..self.best.clone()
            };
            if self.fails(plan) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        // … and without each that is not needed.
        for number in (1..=high).rev() {
            let mut plan = self.best.clone();
            plan.without.push(number);
            self.fails(plan);
        }
    }
}

//! One run from its seed: disturbances, then peace, then judgement.

use crate::plan::{Plan, SECOND};
use crate::world::{Violation, World};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Simulated time in which everything must have healed.
const HEALING: u64 = 300 * SECOND;
/// Simulated time in which every order must be answered.
const PATIENCE: u64 = 120 * SECOND;

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The plan it followed.
    pub plan: Plan,
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// Hash of everything that happened.
    pub hash: u64,
    /// Events.
    pub steps: u64,
    /// Simulated nanoseconds.
    pub time: u64,
    /// Disturbances.
    pub disturbances: u64,
    /// Requests served.
    pub served: u64,
    /// How often what occurred.
    pub counts: BTreeMap<String, u64>,
    /// The course of events, if it was wanted.
    pub lines: Vec<String>,
    /// The state at the end of a failed run.
    pub picture: String,
}

/// Runs a plan to its end or to the first broken promise.
pub fn run(plan: &Plan, verbose: bool) -> Outcome {
    let mut world = World::new(plan.clone());
    world.trace.verbose = verbose;
    let result = catch_unwind(AssertUnwindSafe(|| live(&mut world)));
    if let Err(panic) = result {
        let text = panic
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        world.violate("nothing_panics", text);
    }
    let picture = if world.violation.is_some() {
        world.picture()
    } else {
        String::new()
    };
    Outcome {
        plan: plan.clone(),
        violation: world.violation.take(),
        hash: world.trace.hash(),
        steps: world.trace.steps,
        time: world.now,
        disturbances: world.disturbances,
        served: world.clients.served,
        counts: core::mem::take(&mut world.trace.counts),
        lines: core::mem::take(&mut world.trace.lines),
        picture,
    }
}

fn live(world: &mut World) {
    world.start();
    world.run_until(world.plan.duration);
    world.heal();
    let end = world.now + HEALING;
    // Requests served when somebody last asked for one.
    let mut asked = None;
    while world.violation.is_none() && world.now < end {
        let next = world.now + SECOND / 2;
        world.run_until(next);
        if world.has_converged() {
            match asked {
                Some(before) if world.clients.served > before => return judge(world),
                _ => asked = world.ask_the_primary(),
            }
        }
        let waits = world
            .admin
            .oldest()
            .map(|(n, at, c)| (n, at, format!("{c:?}")));
        if let Some((n, at, command)) = waits
            && world.now - at > PATIENCE
        {
            let text = format!("node {n} never answers {command}");
            return world.violate("orders_are_answered", text);
        }
    }
    if world.violation.is_none() {
        let text = format!("not healed after {} s", HEALING / SECOND);
        world.violate("everything_heals", text);
    }
}

/// What must hold when everything has healed.
fn judge(world: &mut World) {
    world.copies_in_step_are_equal();
    let left: Vec<usize> = world.left().collect();
    for &n in &left {
        let content = world.nodes[n].disk.data().to_vec();
        if content != world.nodes[left[0]].disk.data() {
            let text = format!("nodes {} and {n} differ", left[0]);
            world.violate("copies_are_identical", text);
        }
        let verdict = world.oracle.content_fits(n, &content);
        world.judge("nothing_completed_is_lost", verdict);
        let verdict = world.nodes[n].recover().map(|_| ());
        world.judge("metadata_survive", verdict);
        world.check_order(n);
    }
}

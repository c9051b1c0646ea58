//! What many runs together must have met: every kind of fault, every row of the handshake, every change
//! of a state, every answer to an order. A list that nothing is missing from is worth nothing if the
//! list has holes: what the model cannot reach stands here with the reason, and a run that reaches it
//! all the same is an error.

use crate::campaign::Report;
use crate::plan::Fault;
use crate::run::Outcome;
use twinblk_engine::handshake::Rule;
use twinblk_engine::states::{self, Change};

/// What cannot occur with at most so many nodes, and why.
const UNREACHABLE: [(&str, usize, &str); 3] = [
    (
        "row unfinished-resync",
        2,
        "it takes a third node that a resync was begun from",
    ),
    (
        "row both-inconsistent",
        2,
        "half a copy comes only of a resync from a whole one, and of two nodes the source stays whole: \
         nobody here makes new metadata for the last whole copy, or overwrites it",
    ),
    (
        "row busy-elsewhere",
        usize::MAX,
        "whoever becomes a target parts from all others in the same step, and who connects to a target \
         is parked before generations are compared: the row stands behind these two and would catch \
         what they let through",
    ),
];

/// Changes of state that runs with at most so many nodes meet.
fn changes(nodes: usize) -> Vec<String> {
    fn of<T: std::fmt::Debug>(what: &str, table: &[Change<T>], nodes: usize) -> Vec<String> {
        let met = table
            .iter()
            .filter(|c| usize::from(c.nodes) <= nodes && !c.seldom);
        met.map(|c| format!("{what} {:?}→{:?}", c.from, c.to))
            .collect()
    }
    [
        of("role", states::ROLE_CHANGES, nodes),
        of("disk", states::DISK_CHANGES, nodes),
        of("connection", states::CONNECTION_CHANGES, nodes),
        of("replication", states::REPLICATION_CHANGES, nodes),
    ]
    .concat()
}

/// Orders that are carried out and refused.
const ORDERS: [&str; 12] = [
    "connect",
    "connect --discard-my-data",
    "connect --dry-run",
    "down",
    "invalidate",
    "invalidate-remote",
    "new-current-uuid",
    "primary",
    "primary --force",
    "resize",
    "secondary",
    "verify",
];

/// What a Primary without a disk and orders about disks bring about, with two nodes.
const DISKLESS: [&str; 11] = [
    "attach",
    "attached by itself",
    "an error was passed on",
    "order detach done",
    "order detach refused",
    "order detach --force done",
    "a Primary went on without a disk",
    "served without a disk",
    "served read without a disk",
    "a node went down while it served",
    "suspended no→no-data",
];

/// What only two nodes and more under a fencing policy meet.
const FENCING: [&str; 21] = [
    "handler fence-peer exit 1",
    "handler fence-peer exit 3",
    "handler fence-peer exit 4",
    "handler fence-peer exit 5",
    "handler fence-peer exit 6",
    "handler fence-peer exit 7",
    "handler fence-peer too late",
    "handler hangs",
    "handler unfence-peer",
    "handler before-resync-target",
    "handler after-resync-target",
    "order outdate done",
    "order outdate refused",
    "order secondary --force done",
    "order suspend-io done",
    "order resume-io done",
    "suspended no→fencing",
    "suspended fencing→no",
    "suspended no→user",
    "a failover daemon promotes",
    "suspended user→no",
];

const OTHERS: [&str; 21] = [
    "a node is lost for ever",
    "one declared current",
    "split brain resolved",
    "create-md",
    "verify finished",
    "verify ended early",
    "order adjust done",
    "order auto-promote done",
    "order auto-promote refused",
    "order auto-demote done",
    "order disconnect done",
    "order verify --repair done",
    "order verify --stop done",
    "log transaction",
    "extent evicted",
    "write waited for a cold extent",
    "a Primary's log was recovered",
    "extent marked after a crash",
    "reply error",
    "resync began",
    "resync ended",
];

/// What runs with at most so many nodes must meet.
fn expected(nodes: usize) -> Vec<String> {
    let mut all: Vec<String> = OTHERS.map(str::to_owned).into();
    all.extend(FENCING.map(str::to_owned));
    all.extend(DISKLESS.map(str::to_owned));
    all.extend(Fault::ALL.iter().map(|fault| format!("fault {fault:?}")));
    all.extend(Rule::ALL.iter().map(|rule| format!("row {}", rule.name())));
    all.extend(changes(nodes));
    if nodes > 2 {
        all.push("a Secondary went down while it followed".to_owned());
    } else {
        // A split brain of two is met often enough to see every policy resolve one; that two nodes keep no
        // base in common but their histories takes longer than their runs last.
        all.extend(crate::policies::effects());
        all.retain(|what| what != "row history-both");
    }
    for order in ORDERS {
        all.extend(["done", "refused"].map(|answer| format!("order {order} {answer}")));
    }
    let kinds = ["read", "write", "trim", "zeroes", "flush"];
    all.extend(kinds.map(|kind| format!("served {kind}")));
    let cannot = |what: &String| {
        UNREACHABLE
            .iter()
            .any(|u| u.0 == what.as_str() && nodes <= u.1)
    };
    all.retain(|what| !cannot(what));
    all
}

/// What a run met although it cannot.
pub(crate) fn impossible(outcome: &Outcome) -> Vec<String> {
    let nodes = outcome.plan.nodes;
    let met = UNREACHABLE
        .iter()
        .filter(|(what, most, _)| nodes <= *most && outcome.counts.contains_key(*what));
    met.map(|(what, _, why)| {
        let seed = outcome.plan.seed;
        format!("seed {seed} with {nodes} nodes met \"{what}\", which cannot be: {why}")
    })
    .collect()
}

impl Report {
    /// How often each kind of thing occurred, and what cannot.
    pub fn coverage(&self) -> String {
        let mut text = String::new();
        for (what, n) in &self.counts {
            text.push_str(&format!("{n:>12}  {what}\n"));
        }
        for (what, _, why) in UNREACHABLE.iter().filter(|u| self.most_nodes <= u.1) {
            text.push_str(&format!("       never  {what}: {why}\n"));
        }
        text
    }

    /// What a large enough campaign must have met and has not.
    pub fn missing(&self) -> Vec<String> {
        let mut all = expected(self.most_nodes);
        all.retain(|what| !self.counts.contains_key(what));
        all
    }
}

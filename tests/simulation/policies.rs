//! Split-brain policies: which a seed sets, and whether a copy that is given up without an order is one
//! that they allow to give up, by what the world knows and not by what the engines say of one another.

use crate::node::VOLUME;
use crate::rng::Rng;
use crate::world::World;
use twinblk_engine::event::Role;
use twinblk_engine::ids::NodeId;
use twinblk_engine::split_brain::{AfterSb0Pri, AfterSb1Pri, AfterSb2Pri, Policies, RrConflict};

/// What a seed sets. Two of five leave everything as it is by default.
pub(crate) fn draw(seed: u64) -> Policies {
    let mut rng = Rng::stream(seed, 21);
    if rng.per_mille(400) {
        return Policies::default();
    }
    some(&mut rng)
}

/// Any policies.
pub(crate) fn some(rng: &mut Rng) -> Policies {
    let victim = u8::try_from(rng.index(2)).expect("few");
    let mut zero = AfterSb0Pri::NAMED.to_vec();
    zero.push(AfterSb0Pri::DiscardNode(NodeId(victim)));
    Policies {
        zero_primaries: rng.pick(&zero),
        one_primary: rng.pick(AfterSb1Pri::ALL),
        two_primaries: rng.pick(AfterSb2Pri::ALL),
        conflict: rng.pick(RrConflict::ALL),
    }
}

/// A policy as `status` and the coverage call it.
fn zero_name(policy: AfterSb0Pri) -> String {
    match policy {
        AfterSb0Pri::DiscardNode(_) => "discard-node".to_owned(),
        _ => policy.name(),
    }
}

/// What many runs together must have met: every value that does something has done it.
pub(crate) fn effects() -> Vec<String> {
    let mut all = vec![
        "clients dropped".to_owned(),
        "saved before it was given up".to_owned(),
        "saving failed".to_owned(),
        "saving cancelled".to_owned(),
    ];
    let node = AfterSb0Pri::DiscardNode(NodeId(0));
    // Changes are zero only after a forced promotion without a write, and a consensus takes the right one of
    // two, and two Primaries with unused exports are few: here these are too rare to be asked for, two engines have tests of them
    // (`src/engine/tests/split_brain.rs`).
    let rare = |p: &AfterSb0Pri| *p != AfterSb0Pri::DiscardZeroChanges;
    let zero = AfterSb0Pri::NAMED.into_iter().chain([node]).filter(rare);
    all.extend(zero.map(|p| format!("after-sb-0pri {}", zero_name(p))));
    all.extend(
        AfterSb1Pri::ALL
            .iter()
            .filter(|p| **p != AfterSb1Pri::Consensus)
            .map(|p| format!("after-sb-1pri {}", p.name())),
    );
    all.extend(
        AfterSb2Pri::ALL
            .iter()
            .filter(|p| **p != AfterSb2Pri::CallPriLostAfterSb)
            .map(|p| format!("after-sb-2pri {}", p.name())),
    );
    all.extend(
        RrConflict::ALL
            .iter()
            .map(|p| format!("rr-conflict {}", p.name())),
    );
    all
}

impl World {
    /// A node stops being Primary whoever uses it.
    pub(crate) fn clients_dropped(&mut self, n: usize) {
        self.trace.count("clients dropped");
        self.admin.evicted[n] = true;
        self.clients_leave(n);
        let violently = self.plan.policies.one_primary == AfterSb1Pri::ViolentlyAs0p
            || self.plan.policies.two_primaries == AfterSb2Pri::ViolentlyAs0p
            || self.plan.policies.conflict == RrConflict::Violently;
        if !violently && !self.admin.demotes_by_force(n) {
            let text = format!("node {n} drops its clients, and no policy says so");
            self.violate("clients_are_dropped_by_policy_only", text);
        }
    }

    /// Looks at what an engine says of a split brain or a conflict of roles.
    pub(crate) fn policy_told(&mut self, n: usize, cause: &str) {
        let policies = self.plan.policies;
        if cause.starts_with("connection refused (role-conflict)") {
            let value = policies.conflict.name();
            return self.trace.count(&format!("rr-conflict {value}"));
        }
        if cause.starts_with("split brain (bitmap-both)") {
            // Somebody is told to give way, and does not: also an effect.
            let told = cause.contains("its handler is called");
            return self.count_policy(cause.matches("(Primary").count(), told);
        }
        let resolved = cause.starts_with("split brain with ");
        let gives_way = cause.starts_with("giving way: ");
        let by_order = resolved && !cause.contains(" are given up by after-sb-");
        if !resolved && !gives_way || by_order {
            return;
        }
        if cause.contains("rr-conflict = ") {
            let value = policies.conflict.name();
            return self.trace.count(&format!("rr-conflict {value}"));
        }
        let end = if resolved { " are given up" } else { " up" };
        let victim = cause
            .split(end)
            .next()
            .and_then(|text| text.rsplit("the data of node ").next())
            .and_then(|number| number.parse::<usize>().ok());
        let (Some(victim), Some(other)) = (victim, self.partner(n, cause)) else {
            let text = format!("node {n} says: {cause}");
            return self.violate("a_resolution_names_its_victim", text);
        };
        let keeper = if victim == n { other } else { n };
        // The first of the two to say it does so before anything has changed on the other.
        if !self.oracle.is_expendable(victim) {
            self.judge_policy(victim, keeper);
        }
    }

    /// The other node a text is about.
    fn partner(&self, n: usize, cause: &str) -> Option<usize> {
        (0..self.plan.nodes).find(|&m| m != n && cause.contains(&format!("node {m} (")))
    }

    /// A policy was asked. One that is there to resolve counts only when it has.
    fn count_policy(&mut self, primaries: usize, resolved: bool) {
        let policies = self.plan.policies;
        let value = match primaries {
            0 => format!("after-sb-0pri {}", zero_name(policies.zero_primaries)),
            1 => format!("after-sb-1pri {}", policies.one_primary.name()),
            _ => format!("after-sb-2pri {}", policies.two_primaries.name()),
        };
        let in_vain = !resolved && !value.ends_with(" disconnect");
        let suffix = if in_vain {
            ", which resolved nothing"
        } else {
            ""
        };
        self.trace.count(&format!("{value}{suffix}"));
    }

    /// A copy is given up by a policy: may it be?
    fn judge_policy(&mut self, victim: usize, keeper: usize) {
        let policies = self.plan.policies;
        let primary = |x: usize| self.nodes[x].role == Role::Primary;
        let roles = (primary(victim), primary(keeper));
        let primaries = usize::from(roles.0) + usize::from(roles.1);
        let changed = |x: usize, other: usize| {
            let status = self.nodes[x].engine.as_ref().map(|e| {
                let clock = self.nodes[x].clock(self.now);
                e.status(clock)
            });
            let peers = status.map(|s| s.peers).unwrap_or_default();
            let peer = peers.into_iter().find(|p| usize::from(p.node.0) == other);
            let volume = peer.and_then(|p| p.volumes.into_iter().find(|v| v.volume == VOLUME));
            volume.map_or(0, |v| v.out_of_sync)
        };
        let zero = match policies.zero_primaries {
            AfterSb0Pri::Disconnect => false,
            // Who was Primary when they parted is the engines' word; what they do with it is tested
            // with two engines.
            AfterSb0Pri::DiscardYoungerPrimary | AfterSb0Pri::DiscardOlderPrimary => true,
            AfterSb0Pri::DiscardZeroChanges => changed(victim, keeper) == 0,
            AfterSb0Pri::DiscardLeastChanges => changed(victim, keeper) <= changed(keeper, victim),
            AfterSb0Pri::DiscardNode(node) => usize::from(node.0) == victim,
        };
        let allowed = match primaries {
            0 => zero,
            1 => match policies.one_primary {
                AfterSb1Pri::Disconnect => false,
                AfterSb1Pri::Consensus => zero && roles.1,
                AfterSb1Pri::DiscardSecondary => roles.1,
                AfterSb1Pri::ViolentlyAs0p | AfterSb1Pri::CallPriLostAfterSb => zero,
            },
            _ => zero && policies.two_primaries != AfterSb2Pri::Disconnect,
        };
        self.count_policy(primaries, true);
        if !allowed {
            let text = format!(
                "the data of node {victim} are given up for those of node {keeper}, with {primaries} \
                 Primaries, under {policies:?}"
            );
            self.violate("a_policy_is_set_for_what_is_given_up", text);
        }
        self.oracle.expendable(victim);
    }
}

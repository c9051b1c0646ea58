//! An operator who keeps the resource in service, as a person or a failover daemon does: reads what each
//! node says of itself, and does what the refusals and the documentation say.

use crate::plan::{MS, SECOND};
use crate::world::{Due, World};
use twinblk_engine::command::Command;
use twinblk_engine::event::{ConnState, DiskState, Role};
use twinblk_engine::status::Status;
use twinblk_engine::suspend::Reason;

/// So long nobody had current data when somebody forces a copy that is not.
const A_WHILE: u64 = 100 * SECOND;

impl World {
    fn state(&self, n: usize) -> Option<Status> {
        let node = &self.nodes[n];
        if node.stopped || node.paused_until > self.now {
            return None;
        }
        Some(node.engine.as_ref()?.status(node.clock(self.now)))
    }

    /// Looks after things, as a person or a failover daemon does.
    pub(crate) fn operate(&mut self) {
        let longest = if self.ending { SECOND } else { 3 * SECOND };
        let delay = self.admin.rng.between(50 * MS, longest);
        self.after(delay, Due::Operator);
        let states: Vec<Option<Status>> = (0..self.plan.nodes).map(|n| self.state(n)).collect();
        for (n, state) in states.iter().enumerate() {
            // A disk that failed is mended: down and up.
            let failed =
                |s: &Status| matches!(s.volumes[0].disk, DiskState::Failed | DiskState::Diskless);
            if state.as_ref().is_some_and(failed) && (self.ending || self.admin.rng.per_mille(300))
            {
                self.nodes[n].faults = crate::node::DiskFaults::default();
                if self.attaches(n) {
                    return;
                }
                self.order(n, Command::Stop { force: true });
                return;
            }
        }
        if self.someone_is_suspended() {
            return;
        }
        if self.someone_is_alone(&states) {
            return;
        }
        let primaries = self
            .nodes
            .iter()
            .filter(|n| n.role == Role::Primary)
            .count();
        let careless = self.plan.careless && !self.ending;
        if primaries == 0 || careless && self.admin.rng.per_mille(100) {
            let n = if self.admin.begun {
                self.admin.rng.index(self.plan.nodes)
            } else {
                self.left().next().unwrap_or(0)
            };
            if states[n].is_some() {
                let fresh = !self.admin.begun;
                let all = self.left().all(|n| states[n].is_some());
                if !fresh || all {
                    // Half a copy too, and one that others have left behind.
                    let force = fresh || careless && self.admin.rng.per_mille(300);
                    self.order(n, Command::Primary { force });
                }
            }
        }
        if self.ending {
            self.nobody_is_current(&states);
        }
    }

    /// A node that stands alone is connected again; a split brain is resolved.
    fn someone_is_alone(&mut self, states: &[Option<Status>]) -> bool {
        let patient = !self.ending && self.admin.rng.per_mille(600);
        if patient {
            return false;
        }
        for (n, state) in states.iter().enumerate() {
            let Some(state) = state else { continue };
            for peer in &state.peers {
                let m = usize::from(peer.node.0);
                // Under `retry-connect` they try again and again.
                let tries = peer.connection == ConnState::Connecting
                    && peer.reason.contains("(role-conflict)");
                let alone = peer.connection == ConnState::StandAlone;
                if !(alone || tries) || states[m].is_none() {
                    continue;
                }
                if peer.reason.starts_with("split brain") {
                    return self.resolve(n, m, states);
                }
                if ["two-primaries", "role-conflict", "other-generation"]
                    .iter()
                    .any(|r| peer.reason.contains(r))
                {
                    // As the refusal says: the one in use steps back.
                    let primary = if self.nodes[m].role == Role::Primary {
                        m
                    } else {
                        n
                    };
                    if self.nodes[primary].role == Role::Primary {
                        self.clients_leave(primary);
                        let frozen = |s: &Status| s.suspended_for.has(Reason::Fencing);
                        let frozen = states[primary].as_ref().is_some_and(frozen);
                        let command = match frozen {
                            true => Command::SecondaryByForce,
                            false => Command::Secondary,
                        };
                        self.order(primary, command);
                        return true;
                    }
                }
                let half = |x: usize| self.nodes[x].disk_state == DiskState::Inconsistent;
                let fresh = |x: usize| {
                    let created = |s: &Status| s.volumes[0].current_uuid & !1 == 4;
                    states[x].as_ref().is_some_and(created)
                };
                let both = half(n) && half(m);
                if peer.reason.contains("unrelated") && !both && !fresh(n) && !fresh(m) {
                    return self.start_over(n, m);
                }
                if peer.reason.contains("nconsistent") {
                    self.keep_one(n, m, states);
                    return true;
                }
                let command = Command::Connect {
                    peer: Some(peer.node),
                    discard_my_data: false,
                    dry_run: false,
                };
                self.order(n, command);
                return true;
            }
        }
        false
    }

    /// One of two copies that parted ways is given up.
    fn resolve(&mut self, n: usize, m: usize, states: &[Option<Status>]) -> bool {
        self.trace.count("split brain resolved");
        let usable = |x: usize| {
            states[x]
                .as_ref()
                .is_some_and(|s| s.volumes[0].disk > DiskState::Inconsistent)
        };
        let victim = match (usable(n), usable(m)) {
            (true, false) => m,
            (false, true) => n,
            _ if self.nodes[n].role == Role::Primary => m,
            _ => n,
        };
        let keeper = n + m - victim;
        if self.nodes[victim].role == Role::Primary {
            self.clients_leave(victim);
            self.order(victim, Command::Secondary);
            return true;
        }
        for (x, discard_my_data) in [(keeper, false), (victim, true)] {
            let other = n + m - x;
            self.order(
                x,
                Command::Connect {
                    peer: Some(Self::id(other)),
                    discard_my_data,
                    dry_run: false,
                },
            );
        }
        true
    }

    /// Two copies that have nothing in common: one gets new metadata, as the refusal says.
    fn start_over(&mut self, n: usize, m: usize) -> bool {
        self.trace.count("create-md");
        let half = |x: usize| self.nodes[x].disk_state == DiskState::Inconsistent;
        let victim = match (half(n), half(m)) {
            (true, false) => n,
            (false, true) => m,
            _ if self.nodes[n].role == Role::Primary => m,
            _ => n,
        };
        self.clients_leave(victim);
        self.order(victim, Command::Stop { force: true });
        self.admin.starts_over[victim] = true;
        true
    }

    /// Neither copy is usable: one of them is declared current.
    fn keep_one(&mut self, n: usize, m: usize, states: &[Option<Status>]) {
        self.trace.count("one declared current");
        let disk = |x: usize| states[x].as_ref().map(|s| s.volumes[0].disk);
        let keeper = if disk(n) >= disk(m) { n } else { m };
        if disk(keeper) < Some(DiskState::UpToDate) {
            self.order(keeper, Command::Primary { force: true });
        }
        for (x, y) in [(keeper, n + m - keeper), (n + m - keeper, keeper)] {
            self.order(
                x,
                Command::Connect {
                    peer: Some(Self::id(y)),
                    discard_my_data: x != keeper,
                    dry_run: false,
                },
            );
        }
    }

    /// At the end nobody has current data, and nobody who is left will get them from elsewhere: the best
    /// copy is declared current. That is seen when all are connected and wait; and when time passes and
    /// nothing comes of it.
    fn nobody_is_current(&mut self, states: &[Option<Status>]) {
        let left: Vec<usize> = self.left().collect();
        let all: Vec<(DiskState, usize)> = left
            .iter()
            .filter_map(|&n| Some((states[n].as_ref()?.volumes[0].disk, n)))
            .collect();
        let current = all.iter().any(|&(disk, _)| disk == DiskState::UpToDate);
        if all.len() < left.len() || current {
            self.admin.nobody_since = None;
            return;
        }
        let since = *self.admin.nobody_since.get_or_insert(self.now);
        let waits = |s: &Status| {
            let peers = &mut s
                .peers
                .iter()
                .filter(|p| self.lost != Some(usize::from(p.node.0)));
            peers.all(|p| {
                p.connection == ConnState::Connected && p.volumes.iter().all(|v| v.resync.is_none())
            })
        };
        if states.iter().flatten().all(waits) || self.now - since > A_WHILE {
            let best = all.iter().rev().max_by_key(|&&(disk, _)| disk);
            self.trace.count("one declared current");
            if let Some(&(_, n)) = best {
                if self.nodes[n].role == Role::Primary {
                    // Without a copy that could be served, as the refusal says.
                    self.clients_leave(n);
                    self.order(n, Command::Secondary);
                    return;
                }
                self.order(n, Command::Primary { force: true });
            }
        }
    }
}

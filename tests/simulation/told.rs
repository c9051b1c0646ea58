//! What engines tell: their view of things, for the oracle and for coverage.

use crate::node::VOLUME;
use crate::world::World;
use twinblk_engine::event::{ConnState, DiskState, Event, ReplState, Role, What};
use twinblk_engine::states;

impl World {
    /// Counts what an activity log did.
    pub(crate) fn log_progress(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some(now) = node.engine.as_ref().and_then(|e| e.activity(VOLUME)) else {
            return;
        };
        let before = core::mem::replace(&mut node.activity, now);
        for (what, from, to) in [
            ("log transaction", before.transactions, now.transactions),
            ("extent evicted", before.evicted, now.evicted),
            ("write waited for a cold extent", before.waited, now.waited),
        ] {
            for _ in from..to {
                self.trace.count(what);
            }
        }
    }

    pub(crate) fn told(&mut self, n: usize, event: Event) {
        let text = format!("{:?} {:?}: {}", event.severity, event.what, event.cause);
        let log = &mut self.nodes[n].log;
        if log.len() >= 60 {
            log.pop_front();
        }
        log.push_back(format!("{:.6} {text}", self.now as f64 / 1e9));
        self.trace.line(self.now, || format!("{n}: {text}"));
        self.change_is_known(n, &event);
        match event.what {
            What::Role(from, to) => {
                self.trace.count(&format!("role {from:?}→{to:?}"));
                self.nodes[n].role = to;
                self.admin.evicted[n] &= to == Role::Primary;
                if to == Role::Primary {
                    self.promoted(n);
                    self.fencing_keeps_one_primary(n);
                }
            }
            What::Disk(_, from, to) => {
                self.trace.count(&format!("disk {from:?}→{to:?}"));
                self.nodes[n].disk_state = to;
                let gone = matches!(to, DiskState::Failed | DiskState::Detaching);
                if to == DiskState::Diskless {
                    self.nodes[n].syncing_from = None;
                }
                if from == DiskState::UpToDate && gone {
                    self.nodes[n].gave_up_disk = self.nodes[n].role == Role::Primary;
                }
                let source = self.nodes[n].syncing_from;
                if from == DiskState::Inconsistent
                    && to > DiskState::Inconsistent
                    && let Some(source) = source
                    && event.cause.contains("resync")
                {
                    self.nodes[n].syncing_from = None;
                    let content = self.nodes[n].disk.data();
                    self.oracle.resync_ended(n, source, content);
                    self.trace.count("resync ended");
                }
            }
            What::Connection(peer, from, to) => {
                self.trace.count(&format!("connection {from:?}→{to:?}"));
                if to == ConnState::Connected {
                    self.one_primary(n, usize::from(peer.0));
                }
            }
            What::Replication(peer, _, from, to) => {
                self.trace.count(&format!("replication {from:?}→{to:?}"));
                let m = usize::from(peer.0);
                self.nodes[n].replication[m].0 = to;
                if to == ReplState::Established {
                    // From a resync or a verify: sending went on all the while.
                    return;
                }
                match to {
                    ReplState::Off => self.nodes[n].replication[m].1 += 1,
                    ReplState::SyncSource => self.resync_begins(n, m),
                    ReplState::SyncTarget => self.nodes[n].syncing_from = Some(m),
                    _ => {}
                }
            }
            What::PeerRole(_, from, to) => self.trace.count(&format!("peer role {from:?}→{to:?}")),
            What::PeerDisk(peer, _, from, to) => {
                self.nodes[n].peer_disk[usize::from(peer.0)] = to;
                self.trace.count(&format!("peer disk {from:?}→{to:?}"));
            }
            What::Suspended(from, to) => {
                self.trace
                    .count(&format!("suspended {}→{}", from.words(), to.words()))
            }
            What::Incident => {
                if event.cause.contains("are served from the copy of") {
                    self.copy_is_served(n);
                }
                self.fencing_keeps_from_split_brain(n, &event.cause);
                self.verify_told(n, &event.cause);
                self.policy_told(n, &event.cause);
            }
        }
    }

    /// Each change of a state is one of those that are written down.
    fn change_is_known(&mut self, n: usize, event: &Event) {
        let known = match event.what {
            What::Role(from, to) => states::is_known(states::ROLE_CHANGES, &from, &to),
            What::Disk(_, from, to) => states::is_known(states::DISK_CHANGES, &from, &to),
            What::Connection(_, from, to) => {
                states::is_known(states::CONNECTION_CHANGES, &from, &to)
            }
            What::Replication(_, _, from, to) => {
                states::is_known(states::REPLICATION_CHANGES, &from, &to)
            }
            What::PeerRole(..) | What::PeerDisk(..) | What::Suspended(..) | What::Incident => true,
        };
        if !known {
            let text = format!("node {n}: {:?}: {}", event.what, event.cause);
            self.violate("every_change_of_state_is_known", text);
        }
    }

    /// A verify finds nothing but what an injected fault has put there.
    fn verify_told(&mut self, n: usize, cause: &str) {
        if !cause.starts_with("verify of ") {
            return;
        }
        let end = if cause.contains("ended early") {
            "verify ended early"
        } else {
            "verify finished"
        };
        self.trace.count(end);
        if !cause.contains("no difference") && self.rotten.is_empty() {
            let text = format!("node {n} says: {cause}");
            self.violate("a_difference_that_is_told_is_real", text);
        }
    }

    fn resync_begins(&mut self, source: usize, target: usize) {
        self.trace.count("resync began");
        self.resyncs_come_to_an_end();
        self.bits_cover_the_difference(source, target);
        let content = self.nodes[source].disk.data().to_vec();
        let verdict = self.oracle.resync_begins(target, source, &content);
        self.judge("nothing_completed_is_overwritten_unasked", verdict);
    }
}

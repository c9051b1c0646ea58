//! Who promotes nodes besides people: failover daemons that hear nothing of the other node any more, and
//! clients that open the export of a node with `auto-promote`. Both from a stream of their own, in some
//! seeds only, so that the others stay as they were.

use crate::plan::{MS, SECOND};
use crate::world::{Due, World};
use twinblk_engine::command::Command;
use twinblk_engine::event::{ConnState, Role};

impl World {
    /// A node that reaches no Primary is to become one, as its failover daemon sees it: the network it looks
    /// at may be the one that is cut. Whether it may is decided by its data, and by fencing.
    pub(crate) fn fail_over(&mut self) {
        if self.ending {
            return;
        }
        let delay = self.failover_rng.between(100 * MS, 2 * SECOND);
        self.after(delay, Due::Failover);
        let n = self.failover_rng.index(self.plan.nodes);
        let node = &self.nodes[n];
        if node.stopped || node.paused_until > self.now || !self.admin.begun {
            return;
        }
        let Some(engine) = &node.engine else { return };
        let status = engine.status(node.clock(self.now));
        let leads = |p: &twinblk_engine::status::PeerStatus| {
            p.connection == ConnState::Connected && p.role == Role::Primary
        };
        if status.role == Role::Primary || status.peers.iter().any(leads) {
            return;
        }
        self.trace.count("a failover daemon promotes");
        self.order(n, Command::Primary { force: false });
    }

    /// A client is announced; or one that was does not come. Whether one opens the export in between is up
    /// to the other clients.
    pub(crate) fn auto_promote_at_random(&mut self) {
        if self.ending {
            return;
        }
        let delay = self.failover_rng.between(50 * MS, 3 * SECOND);
        self.after(delay, Due::AutoPromote);
        let n = self.failover_rng.index(self.plan.nodes);
        let command = match self.failover_rng.per_mille(600) {
            true => Command::AutoPromote,
            false => Command::AutoDemote,
        };
        if self.nodes[n].paused_until <= self.now && self.admin.begun {
            self.order(n, command);
        }
    }
}

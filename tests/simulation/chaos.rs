//! Disturbances: what a seed's plan allows, at random moments.

use crate::plan::{Fault, MS, SECOND};
use crate::world::{Due, World};

impl World {
    pub(crate) fn disturb(&mut self) {
        if self.ending {
            return;
        }
        let delay = self.fault_rng.between(MS, self.plan.fault_every);
        self.after(delay, Due::Disturb);
        let kinds = self.plan.faults.clone();
        let fault = self.fault_rng.pick(&kinds);
        let n = self.fault_rng.index(self.plan.nodes);
        let m = (n + 1 + self.fault_rng.index(self.plan.nodes - 1)) % self.plan.nodes;
        let long = self.fault_rng.between(10 * MS, 6 * SECOND);
        let dice = self.fault_rng.next();
        if self.counts(fault) {
            self.inject(fault, n, m, long, dice);
        }
    }

    /// Does it: to node `n` or between `n` and `m`, for `long` ns where it lasts.
    pub fn inject(&mut self, fault: Fault, n: usize, m: usize, long: u64, dice: u64) {
        let until = self.now + long;
        let (a, b) = (n.min(m), n.max(m));
        match fault {
            Fault::Kill => self.kill(n, false),
            Fault::KillBetweenOutputs => self.nodes[n].dies_after_outputs = Some(dice % 400),
            Fault::PowerCut => self.kill(n, true),
            Fault::Blackout => {
                for n in 0..self.plan.nodes {
                    self.kill(n, true);
                }
            }
            Fault::Pause => self.nodes[n].paused_until = until,
            Fault::ClockJump => self.nodes[n].clock += long * (1 + dice % 20),
            Fault::Cut => self.reset(n, m, [true; 2]),
            Fault::HalfOpen => {
                let notices = dice.is_multiple_of(2);
                self.reset(n, m, [notices, !notices]);
            }
            Fault::OneWay => {
                let side = usize::from(dice.is_multiple_of(2));
                self.wire(a, b).blocked[side] = true;
                self.at(until, Due::Unblock(a, b, side));
            }
            Fault::Partition => {
                self.wire(a, b).blocked = [true; 2];
                for side in 0..2 {
                    self.at(until, Due::Unblock(a, b, side));
                }
            }
            Fault::ReconnectStorm => {
                self.wire(a, b).storm_until = until;
                self.reset(a, b, [true; 2]);
            }
            Fault::SlowLink => self.wire(a, b).slow = Some((2 + dice % 50, until)),
            Fault::SlowDisk => self.nodes[n].faults.slow = Some((2 + dice % 50, until)),
            Fault::ReadError => self.nodes[n].faults.read = true,
            Fault::WriteError => self.nodes[n].faults.write = true,
            Fault::FlushError => self.nodes[n].faults.flush = true,
            Fault::MetaError => self.nodes[n].faults.meta = true,
            Fault::PowerCutInMetadata => self.nodes[n].faults.power_cut_in_metadata = true,
            Fault::DeadDisk => self.nodes[n].faults.dead = true,
        }
    }

    /// Disturbances are over.
    pub(crate) fn heal(&mut self) {
        self.ending = true;
        self.resyncs = 0;
        for a in 0..self.plan.nodes {
            self.nodes[a].dies_after_outputs = None;
            self.nodes[a].paused_until = self.now;
            self.nodes[a].faults = crate::node::DiskFaults::default();
            for b in a + 1..self.plan.nodes {
                self.wire(a, b).slow = None;
                self.wire(a, b).storm_until = 0;
                for side in 0..2 {
                    self.unblock(a, b, side);
                }
            }
        }
    }
}

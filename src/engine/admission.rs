//! The gate: may a write that holds its range start now? It keeps its range while it waits, so the
//! order among overlapping writes stays the order of arrival. A write whose extents are not active
//! steps aside until they are, and others pass.

use crate::peer::{Peer, Phase};
use crate::remote::Access;
use crate::request::RequestKey;
use crate::resource::Resource;
use crate::role::Step;
use crate::volume::Waiter;

/// Entries in a transfer log at which clients wait for the peer's barrier acks.
const LOG_LIMIT: usize = 16 * 1024;

impl Resource {
    /// Why writes wait, or `None` when they may start.
    pub(crate) fn gate_closed(&self) -> Option<&'static str> {
        // A handshake that has not sent its facts waits for a demotion that drains, so that one must
        // not wait for it. Otherwise it compares what must not change.
        let draining = self
            .role_change
            .as_ref()
            .is_some_and(|change| change.step == Step::Draining);
        let waits = |p: &Peer| draining && p.link.as_ref().is_some_and(|l| l.phase == Phase::Drain);
        if self.peers.iter().any(|p| p.freezes() && !waits(p)) {
            return Some("a peer is connecting: the generations are being compared");
        }
        // While a demotion drains what clients left behind, that goes on.
        if self.role_change.is_some() && !draining {
            return Some("the role is changing");
        }
        if self.suspended.any() {
            return Some("I/O is suspended");
        }
        if self.volumes.iter().any(|v| v.bump_running) {
            return Some("a new generation is being written");
        }
        if let Some(reason) = self.remote_gate() {
            return Some(reason);
        }
        for peer in &self.peers {
            if peer.unsent() > self.cfg.options.send_queue {
                return Some("the send queue to the peer is full");
            }
            if peer.log.len() >= LOG_LIMIT {
                return Some("the peer has not yet confirmed earlier writes as stable");
            }
        }
        None
    }

    /// Starts what may start.
    pub(crate) fn run_gate(&mut self) {
        while let Some((key, logged)) = self.at_the_gate() {
            let Some(request) = self.requests.get(key) else {
                self.leave_gate(logged);
                continue;
            };
            let volume = request.volume;
            let leaving = self.stopping.is_some() || self.evicting;
            // Whatever became of the disk: who waits is told when the suspension ends.
            if self.suspended.any() && !leaving {
                return;
            }
            let access = self.access(volume);
            if access == Access::None || leaving {
                // The disk went out of use while the write waited, or the resource is going down.
                self.leave_gate(logged);
                self.fail_unstarted(key);
                continue;
            }
            if self.gate_closed().is_some() {
                return;
            }
            if let Access::Remote(p) = access {
                self.leave_gate(logged);
                self.write_remotely(key, p);
                continue;
            }
            if self.needs_new_generation(volume) {
                return self.start_new_generation(volume);
            }
            self.leave_gate(logged);
            if !logged {
                self.prepare_local(key);
            }
            if logged || self.hold_extents(key) {
                self.start_write(key);
            }
        }
    }

    /// The next write, and whether its extents are active already: such a one came earlier.
    fn at_the_gate(&self) -> Option<(RequestKey, bool)> {
        let logged = self.logged.front().map(|&key| (key, true));
        logged.or_else(|| self.gated.front().map(|&key| (key, false)))
    }

    fn leave_gate(&mut self, logged: bool) {
        if logged {
            self.logged.pop_front();
        } else {
            self.gated.pop_front();
        }
    }

    /// A write now would make a peer fall behind that the generations do not show as behind for
    /// certain: its bitmap UUID is zero ("in sync with us") although it does not get the write, or it
    /// is not known that it lacks the current generation.
    pub(crate) fn needs_new_generation(&self, volume: usize) -> bool {
        if crate::sabotage::is(crate::sabotage::Mistake::NoNewGeneration) {
            return false;
        }
        // Whoever was not met since a crash, and may have more than this copy, is told apart.
        if self.is_group() && self.is_marked_as_crashed(volume) {
            return true;
        }
        self.peers.iter().any(|p| {
            let slot = self.volumes[volume].generations.bitmap[p.node.slot()];
            !p.receives(volume) && (slot == 0 || !p.volumes[volume].lacks_current)
        })
    }

    /// Mints a new generation and writes it to the disk; until it is there writes and the answers
    /// to writes wait (the safety rule of the metadata).
    pub(crate) fn start_new_generation(&mut self, volume: usize) {
        let fresh = self.rng.uuid();
        let v = &mut self.volumes[volume];
        let previous = v.generations.current;
        // Also for those that are told: they may still be at the old one until they confirm.
        v.generations
            .force_new_current(fresh, self.peers.iter().map(|p| p.node));
        v.bump_running = true;
        v.bump_committed = false;
        v.bump_from = previous;
        v.meta.request(false, Some(Waiter::NewGeneration));
        for p in &mut self.peers {
            p.volumes[volume].lacks_current = !p.receives(volume);
        }
    }

    /// A new generation is on the disk here: those that get the writes are told. Not earlier: should the
    /// disk fail instead, a peer that follows would pass for newer than this copy, and under protocols A
    /// and B it may have less.
    pub(crate) fn new_generation_stable(&mut self, volume: usize) {
        self.volumes[volume].bump_committed = true;
        let previous = self.volumes[volume].bump_from;
        let members = self.members(volume);
        for p in 0..self.peers.len() {
            if self.peers[p].receives(volume) && self.is_group() {
                self.peers[p].volumes[volume].ack_due = Some(self.now);
                self.send_generation(p, volume, previous, members);
            }
        }
        self.bump_progress(volume);
    }

    /// Goes on when a new generation is on the disk here and on every peer that gets writes.
    pub(crate) fn bump_progress(&mut self, volume: usize) {
        let due = self
            .peers
            .iter()
            .any(|p| p.volumes[volume].ack_due.is_some());
        let due = due && !crate::sabotage::is(crate::sabotage::Mistake::RelyOnUntoldGeneration);
        let v = &mut self.volumes[volume];
        if !v.bump_running || !v.bump_committed || due {
            return;
        }
        v.bump_running = false;
        v.bump_committed = false;
        if core::mem::take(&mut v.bump_again) {
            return self.start_new_generation(volume);
        }
        if self.is_group() {
            self.crash_is_over(volume);
            // Who has confirmed needs no bitmap UUID; and the peers are told of one another.
            self.commit(volume, false, None);
        }
        self.release_held();
    }
}

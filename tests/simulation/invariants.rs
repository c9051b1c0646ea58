//! The promises, as functions that look at the world. Each names the promise it serves.

use crate::node::{VOLUME, name};
use crate::world::World;
use twinblk_engine::event::{ConnState, DiskState, ReplState, Role};
use twinblk_engine::input::Input;
use twinblk_engine::metadata::superblock::{MdFlags, PeerFlags, PeerSlot};
use twinblk_engine::status::PeerStatus;

impl World {
    /// What is looked at after every step.
    pub(crate) fn watch(&mut self) {
        if self.trace.steps.is_multiple_of(64) {
            self.nothing_is_stuck();
        }
        if self.trace.steps.is_multiple_of(256) {
            self.copies_in_step_are_equal();
            for n in 0..self.plan.nodes {
                self.check_order(n);
            }
        }
    }

    /// Promise 2, one truth: two nodes that are connected are never both Primary.
    pub(crate) fn one_primary(&mut self, n: usize, m: usize) {
        let agreed = |w: &Self, n: usize, m: usize| {
            w.nodes[n].engine.as_ref().is_some_and(|e| {
                let s = e.status(w.nodes[n].clock(w.now));
                s.peers
                    .iter()
                    .any(|p| usize::from(p.node.0) == m && p.connection == ConnState::Connected)
            })
        };
        let both = self.nodes[n].role == Role::Primary && self.nodes[m].role == Role::Primary;
        if both && agreed(self, n, m) && agreed(self, m, n) {
            let text = format!("{} and {} are connected and both Primary", name(n), name(m));
            self.violate("one_primary", text);
        }
    }

    /// Promises 1 and 2: a node becomes Primary only with a copy that holds everything it must hold,
    /// and promise 4: in an order the Primary's own disk could have had.
    pub(crate) fn promoted(&mut self, n: usize) {
        self.resyncs = 0;
        for m in 0..self.plan.nodes {
            if m != n {
                self.one_primary(n, m);
            }
        }
        if self.nodes[n].syncing_from.is_some() && self.nodes[n].disk_state != DiskState::UpToDate {
            let text = format!("{} is promoted in the middle of a resync", name(n));
            return self.violate("no_half_copy_is_served", text);
        }
        let others = (0..self.plan.nodes).any(|m| m != n && self.nodes[m].role == Role::Primary);
        self.oracle.lineages_mixed |= others;
        self.oracle.reign_begins();
        let n = self.serves_for(n);
        let content = self.nodes[n].disk.data().to_vec();
        let verdict = self.oracle.content_fits(n, &content);
        self.judge("a_promoted_copy_is_current", verdict);
        self.check_order(n);
    }

    /// Promise 4, order: a copy that has a write submitted after a flush has everything the flush
    /// covered, at every moment.
    pub(crate) fn check_order(&mut self, n: usize) {
        if !self.has_a_whole_copy(n) {
            return;
        }
        let node = &self.nodes[n];
        let verdict = self.oracle.order_holds(n, node.disk.data());
        self.judge("order_is_kept", verdict);
    }

    /// It says of its copy that it is whole.
    pub(crate) fn has_a_whole_copy(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let whole = matches!(
            node.disk_state,
            DiskState::UpToDate | DiskState::Outdated | DiskState::Consistent
        );
        whole && node.syncing_from.is_none()
    }

    /// Promise 3, convergence: two copies that both sides call equal are equal whenever nothing is under
    /// way that could make them so, whatever is with the other nodes.
    pub(crate) fn copies_in_step_are_equal(&mut self) {
        for a in 0..self.plan.nodes {
            for b in a + 1..self.plan.nodes {
                let equal = self.nodes[a].disk.data() == self.nodes[b].disk.data();
                if equal || !self.calls_equal(a, b) || !self.calls_equal(b, a) {
                    continue;
                }
                if !self.is_quiet_between(a, b) {
                    continue;
                }
                let mut differ = self.difference(a, b);
                let rotten = |s| [a, b].iter().any(|&n| self.rotten.contains(&(n, s)));
                differ.retain(|&s| !rotten(s));
                if differ.is_empty() {
                    continue;
                }
                let text = format!(
                    "{} and {} call each other UpToDate and differ in sectors {differ:?}",
                    name(a),
                    name(b)
                );
                self.violate("copies_in_step_are_equal", text);
            }
        }
    }

    /// `n` says that its copy and the one of `m` are current, and that they are in step or nothing is
    /// marked between them.
    fn calls_equal(&self, n: usize, m: usize) -> bool {
        let node = &self.nodes[n];
        if node.disk_state != DiskState::UpToDate || node.peer_disk[m] != DiskState::UpToDate {
            return false;
        }
        let Some(engine) = &node.engine else {
            return false;
        };
        let status = engine.status(node.clock(self.now));
        status.peers.iter().any(|p| {
            let nothing_marked = p.volumes[0].replication == ReplState::Off
                && p.volumes[0].out_of_sync == 0
                && p.connection == ConnState::Connected;
            usize::from(p.node.0) == m
                && (p.volumes[0].replication == ReplState::Established || nothing_marked)
        })
    }

    /// Nothing is under way between two nodes, nor from any other one to either of them; and whom they
    /// believe to be connected with they are.
    fn is_quiet_between(&self, a: usize, b: usize) -> bool {
        let asked = |r: &crate::clients::Request| r.node == a || r.node == b;
        let idle = [a, b].iter().all(|&n| self.nodes[n].ops.is_empty());
        idle && !self.clients.requests.values().any(asked)
            && self.link_is_whole_and_empty(a, b)
            && (0..self.plan.nodes)
                .filter(|&m| m != a && m != b)
                .all(|m| self.sends_nothing(m, a) && self.sends_nothing(m, b))
    }

    /// Nothing of `m` is on its way to `n`, or will be because a client has asked for it.
    fn sends_nothing(&self, m: usize, n: usize) -> bool {
        let side = usize::from(n > m);
        if self.wires[n.min(m)][n.max(m)].link[side].is_none() {
            return true;
        }
        let asked = self.clients.requests.values().any(|r| r.node == m);
        !asked && self.link_is_whole_and_empty(n.min(m), n.max(m))
    }

    /// Both ends use the same link, it works, and nothing is on its way.
    fn link_is_whole_and_empty(&self, a: usize, b: usize) -> bool {
        let [Some(x), Some(y)] = self.wires[a][b].link else {
            return false;
        };
        let link = &self.links[x];
        x == y
            && link.broken == [false; 2]
            && link.closed == [false; 2]
            && link.streams.iter().flatten().all(|s| s.frames.is_empty())
    }

    fn difference(&self, a: usize, b: usize) -> Vec<usize> {
        let (x, y) = (self.nodes[a].disk.data(), self.nodes[b].disk.data());
        (0..x.len()).filter(|&s| x[s] != y[s]).take(20).collect()
    }

    /// Promises 1 and 3: when a resync begins, everything in which the copies differ is marked.
    pub(crate) fn bits_cover_the_difference(&mut self, source: usize, target: usize) {
        let differ: Vec<usize> = {
            let (x, y) = (
                self.nodes[source].disk.data(),
                self.nodes[target].disk.data(),
            );
            (0..x.len()).filter(|&s| x[s] != y[s]).collect()
        };
        let Some(engine) = &self.nodes[source].engine else {
            return;
        };
        let size = self.nodes[source].disk.data().len() as u64 * 512;
        let marked = engine.dirty_ranges(VOLUME, 0, size, usize::MAX);
        // What lies behind the end of the device is nobody's.
        let status = engine.status(self.nodes[source].clock(self.now));
        let end = status.volumes[0].size;
        for s in differ.into_iter().filter(|&s| (s as u64) * 512 < end) {
            let at = s as u64 * 512;
            let covered = marked
                .iter()
                .any(|&(offset, len, dirty)| dirty && offset <= at && at < offset + len);
            if !covered {
                let text = format!(
                    "the resync from {} to {} leaves out sector {s}, in which they differ",
                    name(source),
                    name(target)
                );
                return self.violate("bits_cover_the_difference", text);
            }
        }
    }

    /// What is marked on a disk that is about to be attached, and what its activity log adds if the
    /// node went down as Primary: byte ranges.
    pub(crate) fn marks_of_a_crash(&mut self, input: &Input) -> Vec<(u64, u64)> {
        let Input::Attached { recovered, .. } = input else {
            return Vec::new();
        };
        let mut marks = Vec::new();
        for bitmap in &recovered.bitmaps {
            let mut at = 0;
            while let Some((offset, len)) = bitmap.next_run(at, u64::MAX) {
                marks.push((offset, len));
                at = offset + len;
            }
        }
        // A Secondary keeps no log: of more than two nodes it marks everything for the others.
        let followed = |p: &PeerSlot| p.flags.contains(PeerFlags::FOLLOWED);
        if recovered.superblock.peers.iter().any(followed) {
            self.trace.count("a Secondary went down while it followed");
            marks.push((0, u64::MAX));
        }
        // What a peer lacks that was served from here was marked in memory only.
        let served = |p: &PeerSlot| p.flags.contains(PeerFlags::SERVED);
        if recovered.superblock.peers.iter().any(served) {
            self.trace.count("a node went down while it served");
            marks.push((0, u64::MAX));
        }
        let flags = recovered.superblock.flags;
        if !flags.contains(MdFlags::PRIMARY_INDICATOR) {
            return marks;
        }
        let size = u64::from(recovered.superblock.extent_size);
        match &recovered.log {
            Ok(extents) => {
                if extents.len() > self.plan.al_extents as usize {
                    let text = format!("{} extents are hot", extents.len());
                    self.violate("the_resync_is_bounded", text);
                }
                self.trace.count("a Primary's log was recovered");
                for &extent in extents {
                    self.trace.count("extent marked after a crash");
                    marks.push((u64::from(extent) * size, size));
                }
            }
            Err(error) => self.violate("the_log_survives", error.to_string()),
        }
        marks
    }

    /// After a crash as Primary nothing is marked but what was marked before and what was hot.
    pub(crate) fn resync_is_bounded(&mut self, n: usize, bounds: Vec<(u64, u64)>) {
        let size = self.nodes[n].disk.data().len() as u64 * 512;
        let Some(engine) = &self.nodes[n].engine else {
            return;
        };
        for (offset, len, dirty) in engine.dirty_ranges(VOLUME, 0, size, usize::MAX) {
            let blocks = (offset..offset + len).step_by(4096);
            let within = |at: u64| bounds.iter().any(|&(o, l)| o <= at && at < o + l);
            if dirty && let Some(at) = blocks.into_iter().find(|&at| !within(at)) {
                let text = format!("{} marks byte {at}, which was not hot", name(n));
                return self.violate("the_resync_is_bounded", text);
            }
        }
    }

    /// Promise 3, no state is a trap: an engine that has something under way is driven by something.
    pub(crate) fn nothing_is_stuck(&mut self) {
        for n in 0..self.plan.nodes {
            let node = &self.nodes[n];
            let Some(engine) = &node.engine else { continue };
            if node.stopped || !node.ops.is_empty() {
                continue;
            }
            let suspended = engine.status(node.clock(self.now)).suspended_for.any();
            if !suspended && !engine.is_idle() && engine.next_deadline().is_none() {
                let text = format!("{} waits for something that will never come", name(n));
                self.violate("nothing_is_stuck", text);
            }
        }
    }

    /// Promise 3: resyncs come to an end. Copies that nobody writes to are in step after each pair has
    /// been compared a few times, unless somebody orders something or a node is started.
    pub(crate) fn resyncs_come_to_an_end(&mut self) {
        self.resyncs += 1;
        let pairs = self.plan.nodes * (self.plan.nodes - 1);
        if self.ending && self.resyncs > 4 * pairs {
            let text = format!("{} resyncs since the last order", self.resyncs);
            self.violate("resyncs_come_to_an_end", text);
        }
    }

    /// Promise 3 at the end, of the nodes that are left: connected, UpToDate, in step, nothing marked.
    pub(crate) fn has_converged(&self) -> bool {
        let left = |p: &&PeerStatus| self.lost != Some(usize::from(p.node.0));
        self.left().all(|n| {
            let node = &self.nodes[n];
            let Some(engine) = &node.engine else {
                return false;
            };
            let s = engine.status(node.clock(self.now));
            !node.stopped
                && node.ops.is_empty()
                && s.volumes.iter().all(|v| v.disk == DiskState::UpToDate)
                && s.peers.iter().filter(left).all(|p| {
                    p.connection == ConnState::Connected
                        && p.transfer_log == 0
                        && p.volumes.iter().all(|v| {
                            v.replication == ReplState::Established
                                && v.peer_disk == DiskState::UpToDate
                                && v.out_of_sync == 0
                        })
                })
        }) && self.clients.requests.is_empty()
    }

    /// The state of all nodes, for people.
    pub fn picture(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let n = usize::from(node.id.0);
            text.push_str(&format!(
                "{}: life {} want {:?} ops {} paused {} stopped {}\n",
                name(n),
                node.life,
                node.want,
                node.ops.len(),
                node.paused_until > self.now,
                node.stopped
            ));
            if let Some(engine) = &node.engine {
                text.push_str(&format!("{:#?}\n", engine.status(node.clock(self.now))));
            }
            for (tag, r) in self.clients.requests.iter().filter(|(_, r)| r.node == n) {
                text.push_str(&format!(
                    "    not answered: tag {tag} {:?} {:?}\n",
                    r.kind, r.range
                ));
            }
            for line in &node.log {
                text.push_str(&format!("    {line}\n"));
            }
        }
        text
    }
}

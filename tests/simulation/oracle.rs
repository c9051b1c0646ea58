//! What may be on each copy. For every node and sector the oracle holds the values that can still be
//! there: as the process runs on, after it was killed, and after its machine lost power. A completed
//! write narrows these sets as far as the protocol promises, a crash widens them again; a read or a
//! surviving copy that holds anything else is a broken promise.
//!
//! Order: overlapping writes take effect in the order in which the engine got them, so the number of
//! a write is its place in the order of its sector.

use crate::disk::{Stamp, origin, stamp};
use std::ops::Range;

/// A value with the write it came from. Zeroes carry no stamp on the disk, but have a place too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// Number of the write, 0: never written.
    pub write: u32,
    /// What the disk holds.
    pub stamp: Stamp,
}

/// What may be there, in no order.
type Set = Vec<Value>;

/// A write that must not be overwritten by a resync nobody ordered: it was completed while the peer
/// was known to lack it, or to have it under protocol C.
#[derive(Clone, Copy, Debug, Default)]
struct Firm {
    write: u32,
    /// Completed without any peer.
    alone: bool,
}

/// One copy as the oracle knows it.
#[derive(Clone, Debug)]
struct Copy {
    running: Vec<Set>,
    killed: Vec<Set>,
    unpowered: Vec<Set>,
    firm: Vec<Firm>,
    firm_unpowered: Vec<Firm>,
    /// Newest write of each sector this node completed as Primary, whatever the peers had. It may be
    /// given up only if another node became Primary since.
    own: Vec<u32>,
    own_unpowered: Vec<u32>,
    /// Lost power since its last resync: writes it once had may be gone.
    lost_power: bool,
    /// Somebody ordered that its data may be overwritten.
    expendable: bool,
}

/// A write (or zeroing) as the oracle follows it.
#[derive(Clone, Debug)]
pub struct Write {
    /// Sectors.
    pub range: Range<usize>,
    /// Zeroes instead of data.
    pub zero: bool,
    /// Flushes of this reign completed before it was submitted.
    after_flush: usize,
    /// Promotions before it.
    reign: u32,
}

/// For each sector the newest write that is covered.
type Covered = Vec<u32>;

/// What a flush covers: of all times, and of this reign.
#[derive(Clone, Debug, Default)]
pub struct Cover {
    all: Covered,
    reign: (u32, Covered),
}

/// See the module.
#[derive(Debug)]
pub struct Oracle {
    copies: Vec<Copy>,
    /// By number; 0 stands for "never written".
    writes: Vec<Write>,
    /// Newest completed write of each sector, per node that served it.
    completed: Vec<Covered>,
    /// The same, since the last promotion.
    in_reign: Covered,
    /// Flushes completed since the last promotion.
    flushes: Vec<Covered>,
    /// Promotions so far.
    reign: u32,
    /// Two nodes were Primary at once, or somebody gave up data on purpose: order means nothing.
    pub lineages_mixed: bool,
}

/// What a broken promise says.
pub type Verdict = Result<(), String>;

impl Oracle {
    /// All copies zero.
    pub fn new(nodes: usize, sectors: usize) -> Self {
        let empty = vec![vec![Value { write: 0, stamp: 0 }]; sectors];
        let copy = Copy {
            running: empty.clone(),
            killed: empty.clone(),
            unpowered: empty,
            firm: vec![Firm::default(); sectors],
            firm_unpowered: vec![Firm::default(); sectors],
            own: vec![0; sectors],
            own_unpowered: vec![0; sectors],
            lost_power: false,
            expendable: false,
        };
        Self {
            copies: vec![copy; nodes],
            writes: vec![Write {
                range: 0..sectors,
                zero: true,
                after_flush: 0,
                reign: 0,
            }],
            completed: vec![vec![0; sectors]; nodes],
            in_reign: vec![0; sectors],
            flushes: Vec::new(),
            reign: 0,
            lineages_mixed: false,
        }
    }

    /// A write was handed to a node. Answers its number.
    pub fn submitted(&mut self, range: Range<usize>, zero: bool) -> u32 {
        let write = u32::try_from(self.writes.len()).expect("few");
        for copy in &mut self.copies {
            for s in range.clone() {
                let stamp = if zero { 0 } else { stamp(write, s) };
                let value = Value { write, stamp };
                copy.running[s].push(value);
                copy.killed[s].push(value);
                copy.unpowered[s].push(value);
            }
        }
        let after_flush = self.flushes.len();
        self.writes.push(Write {
            range,
            zero,
            after_flush,
            reign: self.reign,
        });
        write
    }

    /// A write was completed on `node`; under C these `peers` had to have it, under B these have it
    /// in memory. `alone`: no peer was being sent to.
    pub fn completed(&mut self, node: usize, write: u32, done: &Completion) {
        let range = self.writes[write as usize].range.clone();
        for s in range {
            let covered = &mut self.completed[node][s];
            *covered = (*covered).max(write);
            if self.writes[write as usize].reign == self.reign {
                self.in_reign[s] = self.in_reign[s].max(write);
            }
            narrow(&mut self.copies[node].running[s], write);
            narrow(&mut self.copies[node].killed[s], write);
            if done.stable {
                narrow(&mut self.copies[node].unpowered[s], write);
            }
            let firm = Firm {
                write,
                alone: done.alone,
            };
            let copy = &mut self.copies[node];
            copy.own[s] = copy.own[s].max(write);
            if done.stable {
                copy.own_unpowered[s] = copy.own_unpowered[s].max(write);
            }
            if done.alone || !done.on_disk.is_empty() {
                raise(&mut self.copies[node].firm[s], firm);
                if done.stable {
                    raise(&mut self.copies[node].firm_unpowered[s], firm);
                }
            }
            for &peer in &done.in_memory {
                narrow(&mut self.copies[peer].running[s], write);
            }
            for &peer in &done.on_disk {
                let copy = &mut self.copies[peer];
                narrow(&mut copy.running[s], write);
                narrow(&mut copy.killed[s], write);
                raise(&mut copy.firm[s], firm);
                if done.stable {
                    narrow(&mut copy.unpowered[s], write);
                    raise(&mut copy.firm_unpowered[s], firm);
                }
            }
        }
    }

    /// What a flush that is submitted on `node` now will cover.
    pub fn to_cover(&self, node: usize) -> Cover {
        Cover {
            all: self.completed[node].clone(),
            reign: (self.reign, self.in_reign.clone()),
        }
    }

    /// A node became Primary: what it lacks of what others completed does not count any more for the
    /// order of what it does.
    pub fn reign_begins(&mut self) {
        self.reign += 1;
        self.flushes.clear();
        self.in_reign.fill(0);
    }

    /// A flush was completed on `node`; under C these `peers` flushed too.
    pub fn flushed(&mut self, node: usize, covered: Cover, peers: &[usize]) {
        for n in core::iter::once(node).chain(peers.iter().copied()) {
            let copy = &mut self.copies[n];
            for (s, &write) in covered.all.iter().enumerate() {
                narrow(&mut copy.unpowered[s], write);
                if copy.own[s] <= write {
                    copy.own_unpowered[s] = copy.own[s];
                }
                if copy.firm[s].write <= write {
                    let firm = copy.firm[s];
                    raise(&mut copy.firm_unpowered[s], firm);
                }
            }
        }
        if covered.reign.0 == self.reign {
            self.flushes.push(covered.reign.1);
        }
    }

    /// The values a read that is submitted now may return, per sector.
    pub fn may_read(&self, node: usize, range: Range<usize>) -> Vec<Vec<Stamp>> {
        range
            .map(|s| {
                self.copies[node].running[s]
                    .iter()
                    .map(|v| v.stamp)
                    .collect()
            })
            .collect()
    }

    /// A read ended. `may` is what [`Self::may_read`] said when it was submitted, `since` the number
    /// of the first write submitted later, `quiet` whether no write on the range is under way.
    pub fn read(
        &mut self,
        node: usize,
        first: usize,
        found: &[Stamp],
        may: &[Vec<Stamp>],
        since: u32,
        quiet: bool,
    ) -> Verdict {
        for (i, &value) in found.iter().enumerate() {
            let s = first + i;
            let running = &mut self.copies[node].running[s];
            let fits = may[i].contains(&value)
                || running.iter().any(|v| v.stamp == value)
                || origin(value, s).is_some_and(|w| {
                    w >= since
                        && self
                            .writes
                            .get(w as usize)
                            .is_some_and(|w| w.range.contains(&s))
                })
                || value == 0 && self.was_zeroed(s, since);
            if !fits {
                return Err(format!(
                    "node {node} read {} from sector {s}; possible: {}",
                    self.tell(value, s),
                    self.tell_set(node, s)
                ));
            }
            // What was once read is there: it cannot change again by itself.
            let running = &mut self.copies[node].running[s];
            if quiet && running.len() > 1 && running.iter().any(|v| v.stamp == value) {
                running.retain(|v| v.stamp == value);
                let seen = running.clone();
                self.copies[node].killed[s] = seen;
            }
        }
        Ok(())
    }

    /// Zeroes bear no number: some were written there since.
    fn was_zeroed(&self, s: usize, since: u32) -> bool {
        let later = self.writes.get(since as usize..).unwrap_or_default();
        later.iter().any(|w| w.zero && w.range.contains(&s))
    }

    /// A node's process is gone.
    pub fn killed(&mut self, node: usize) {
        let copy = &mut self.copies[node];
        copy.running = copy.killed.clone();
    }

    /// A node's machine lost power; this is what its disk holds now.
    pub fn unpowered(&mut self, node: usize, content: &[Stamp]) {
        // A later flush covers what is there, not what was.
        let there = |(s, &value)| origin(value, s).unwrap_or(0);
        self.completed[node] = content.iter().enumerate().map(there).collect();
        let copy = &mut self.copies[node];
        copy.killed = copy.unpowered.clone();
        copy.running = copy.unpowered.clone();
        copy.firm = copy.firm_unpowered.clone();
        copy.own = copy.own_unpowered.clone();
        copy.lost_power = true;
    }

    /// Somebody ordered that the data of a node may be overwritten.
    pub fn expendable(&mut self, node: usize) {
        self.copies[node].expendable = true;
    }

    /// Whether somebody did.
    pub fn is_expendable(&self, node: usize) -> bool {
        self.copies[node].expendable
    }

    /// A sector behind the end of the device holds this on some copy: if the device grows, that may
    /// come to be its content.
    pub fn unknown(&mut self, s: usize, stamp: Stamp) {
        let value = Value { write: 0, stamp };
        for copy in &mut self.copies {
            copy.running[s].push(value);
            copy.killed[s].push(value);
            copy.unpowered[s].push(value);
        }
    }

    /// An administrator declared this node's content current, whatever it is. `stable`: what each sector
    /// may hold after a power cut, for what an interrupted resync brought need not be stable.
    pub fn declared_current(&mut self, node: usize, content: &[Stamp], stable: &[Vec<Stamp>]) {
        self.lineages_mixed = true;
        for (s, &value) in content.iter().enumerate() {
            let known = |stamp: Stamp| Value {
                write: origin(stamp, s).unwrap_or(0),
                stamp,
            };
            let copy = &mut self.copies[node];
            copy.running[s].push(known(value));
            copy.killed[s].push(known(value));
            copy.unpowered[s].extend(stable[s].iter().copied().map(known));
            // A later flush covers what is there, not what was.
            self.completed[node][s] = known(value).write;
        }
        for other in 0..self.copies.len() {
            if other != node {
                self.copies[other].expendable = true;
            }
        }
    }

    /// A resync of `target` from `source` begins: the target may hold from now on what the source
    /// may hold. Breaks a promise if that gives up a write nobody ordered to be given up.
    pub fn resync_begins(&mut self, target: usize, source: usize, content: &[Stamp]) -> Verdict {
        let mut verdict = Ok(());
        if !self.copies[target].expendable {
            for (s, &value) in content.iter().enumerate() {
                let firm = self.copies[target].firm[s];
                let found = self.newest_like(source, s, value);
                let gone = self.copies[source].lost_power && !firm.alone;
                let own = self.copies[target].own[s];
                let of_this_reign = self.writes[own as usize].reign == self.reign;
                if own > found && of_this_reign && !gone {
                    verdict = Err(format!(
                        "the resync of node {target} from node {source} gives up write {own} of \
                         sector {s}, which node {target} completed as the last Primary; node \
                         {source} has {}",
                        self.tell(value, s)
                    ));
                    break;
                }
                if firm.write > found && !gone {
                    verdict = Err(format!(
                        "the resync of node {target} from node {source} gives up write {} of \
                         sector {s}, which was completed{}; node {source} has {}",
                        firm.write,
                        if firm.alone {
                            " while no peer was connected"
                        } else {
                            " and replicated under C"
                        },
                        self.tell(value, s)
                    ));
                    break;
                }
            }
        } else {
            self.lineages_mixed = true;
        }
        let from = self.copies[source].clone();
        let copy = &mut self.copies[target];
        copy.running.clone_from(&from.running);
        copy.killed.clone_from(&from.running);
        copy.unpowered.clone_from(&from.running);
        copy.firm = vec![Firm::default(); copy.firm.len()];
        copy.firm_unpowered = copy.firm.clone();
        copy.own.fill(0);
        copy.own_unpowered.fill(0);
        verdict
    }

    /// A resync ended: the target has what the source has, but for writes under way.
    pub fn resync_ended(&mut self, target: usize, source: usize, content: &[Stamp]) {
        // Both have it now.
        for firm in &mut self.copies[source].firm {
            firm.alone = false;
        }
        let firm = self.copies[source].firm.clone();
        // With a third node, what the source lost the target lacks too.
        let lost_power = self.copies.len() > 2 && self.copies[source].lost_power;
        let there = |(s, &value)| origin(value, s).unwrap_or(0);
        self.completed[target] = content.iter().enumerate().map(there).collect();
        let copy = &mut self.copies[target];
        copy.firm = firm;
        copy.expendable = false;
        copy.lost_power = lost_power;
    }

    /// `from` was Primary, and its clients go on with the copy of `to`: that has, stable, what was completed.
    pub fn taken_over(&mut self, from: usize, to: usize) {
        for s in 0..self.in_reign.len() {
            let write = self.completed[from][s];
            let covered = &mut self.completed[to][s];
            *covered = (*covered).max(write);
            let copy = &mut self.copies[to];
            narrow(&mut copy.running[s], write);
            narrow(&mut copy.killed[s], write);
            narrow(&mut copy.unpowered[s], write);
        }
    }

    /// The newest write of a sector whose content is `value`.
    fn newest_like(&self, node: usize, s: usize, value: Stamp) -> u32 {
        match origin(value, s) {
            Some(0) | None => self.copies[node].running[s]
                .iter()
                .filter(|v| v.stamp == value)
                .map(|v| v.write)
                .max()
                .unwrap_or(0),
            Some(write) => write,
        }
    }

    /// A copy that is served, or was left by a crash, holds only what it may hold.
    pub fn content_fits(&self, node: usize, content: &[Stamp]) -> Verdict {
        for (s, &value) in content.iter().enumerate() {
            if !self.copies[node].running[s]
                .iter()
                .any(|v| v.stamp == value)
            {
                return Err(format!(
                    "node {node} holds {} in sector {s}; possible: {}",
                    self.tell(value, s),
                    self.tell_set(node, s)
                ));
            }
        }
        Ok(())
    }

    /// Promise 4: if a copy has a write that was submitted after a flush ended, it has everything
    /// that flush covered.
    pub fn order_holds(&self, node: usize, content: &[Stamp]) -> Verdict {
        if self.lineages_mixed {
            return Ok(());
        }
        let after = |(s, &value): (usize, &Stamp)| {
            let write = origin(value, s).filter(|&w| w > 0)?;
            let known = self.writes.get(write as usize)?;
            (known.reign == self.reign).then_some((known.after_flush, write, s))
        };
        let newest = content.iter().enumerate().filter_map(after).max();
        let Some((flushes, newest, at)) = newest.filter(|n| n.0 > 0) else {
            return Ok(());
        };
        let covered = &self.flushes[flushes - 1];
        for (s, &value) in content.iter().enumerate() {
            let zeroed = self.writes[covered[s] as usize].zero || value == 0;
            if !zeroed && origin(value, s).is_none_or(|w| w < covered[s]) {
                return Err(format!(
                    "node {node} has write {newest} (sector {at}), which was submitted after a \
                     flush that covered write {} of sector {s}; there it holds {}",
                    covered[s],
                    self.tell(value, s)
                ));
            }
        }
        Ok(())
    }

    /// Number the next write will get.
    pub fn next_write(&self) -> u32 {
        u32::try_from(self.writes.len()).expect("few")
    }

    fn tell(&self, value: Stamp, s: usize) -> String {
        match origin(value, s) {
            Some(0) => "zeroes".to_owned(),
            Some(write) => format!("write {write}"),
            None => format!("something else's data ({value:#x})"),
        }
    }

    fn tell_set(&self, node: usize, s: usize) -> String {
        let values: Vec<String> = self.copies[node].running[s]
            .iter()
            .map(|v| match v.stamp {
                0 => format!("zeroes (of {})", v.write),
                _ => format!("write {}", v.write),
            })
            .collect();
        values.join(", ")
    }
}

/// What is known when a write is completed.
#[derive(Debug, Default)]
pub struct Completion {
    /// It was FUA.
    pub stable: bool,
    /// No peer was being sent to.
    pub alone: bool,
    /// Peers that must have it in memory (B).
    pub in_memory: Vec<usize>,
    /// Peers that must have it on disk (C).
    pub on_disk: Vec<usize>,
}

/// Everything older than `write` is out of the question.
fn narrow(set: &mut Set, write: u32) {
    set.retain(|v| v.write >= write);
}

fn raise(firm: &mut Firm, to: Firm) {
    if to.write >= firm.write {
        *firm = to;
    }
}

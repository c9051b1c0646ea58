//! What a disk may hold after what happened to it:
//!
//! * after any loss ([`History::judge_blocks`]): in each block the last confirmed write, or one that
//!   was under way after it;
//! * on a peer that stayed alive when the Primary died ([`History::judge_order`]): every write whole or
//!   not at all, and none without all that were confirmed before it was sent; under B and C every
//!   confirmed one (promise 4). Writes that were under way together have no order: one that waits for
//!   the activity log is overtaken by those that need not;
//! * after a loss of power on all disks ([`History::judge_stable`]): in each block the last write that a
//!   completed flush covers (or that was confirmed with FUA), or a later one, or sectors of several.

use super::{History, Written};
use crate::harness::content::Blocks;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Why a write must be there.
#[derive(Debug, Clone, Copy)]
enum Because {
    Confirmed,
    /// A block is its own for certain.
    Seen,
    /// It was confirmed before this one was sent, which is there.
    Of(u64),
}

impl History {
    /// For each block that was written to, the writes that may be in it, oldest first: not those that one
    /// which `must` be there has covered.
    fn candidates(&self, must: impl Fn(&Written) -> bool) -> HashMap<u64, Vec<u64>> {
        let mut may: HashMap<u64, Vec<u64>> = HashMap::new();
        for w in &self.recent {
            for block in w.first..w.first + w.blocks {
                let list = may
                    .entry(block)
                    .or_insert_with(|| vec![self.settled[block as usize]]);
                if must(w) {
                    list.clear();
                }
                list.push(w.number);
            }
        }
        may
    }

    /// The content is what a peer may have that got the stream of writes up to some point and lived on:
    /// see the head of this file. `confirmed`: nothing that was confirmed may be missing. Returns how many
    /// writes did not get through.
    ///
    /// Writes of zeroes cannot be told from each other, nor from a block never written. So what each block
    /// may hold is narrowed down until nothing more follows; what is left accuses nobody.
    pub fn judge_order(&mut self, content: &(impl Blocks + ?Sized), confirmed: bool) -> usize {
        let mut may = self.candidates(|_| false);
        for block in 0..self.blocks() {
            let Some(list) = may.get_mut(&block) else {
                let settled = self.settled[block as usize];
                if !self.holds(content, settled, block) {
                    self.foreign(content, block, &[settled]);
                }
                continue;
            };
            let all = list.clone();
            list.retain(|&number| self.holds(content, number, block));
            if list.is_empty() {
                self.foreign(content, block, &all);
            }
        }
        let mut there: BTreeMap<u64, Because> = self
            .recent
            .iter()
            .filter(|w| confirmed && w.confirmed)
            .map(|w| (w.number, Because::Confirmed))
            .collect();
        let mut missing = BTreeSet::new();
        loop {
            let known = (there.len(), missing.len());
            for list in may.values() {
                if let [only] = list[..] {
                    there.entry(only).or_insert(Because::Seen);
                }
            }
            let last = there.keys().next_back().copied().unwrap_or(0);
            for w in &self.recent {
                if w.confirmed && w.followers <= last {
                    there.entry(w.number).or_insert(Because::Of(last));
                }
                let blocks = w.first..w.first + w.blocks;
                if let Some(why) = there.get(&w.number) {
                    for block in blocks {
                        let list = may.get_mut(&block).expect("written to");
                        list.retain(|&number| number >= w.number);
                        assert!(!list.is_empty(), "{}", self.accuse(w, *why));
                    }
                } else if blocks.clone().any(|b| may[&b].last() < Some(&w.number)) {
                    missing.insert(w.number);
                    for block in blocks {
                        let list = may.get_mut(&block).expect("written to");
                        list.retain(|&number| number != w.number);
                        assert!(!list.is_empty(), "{}", self.accuse(w, Because::Seen));
                    }
                }
            }
            if known == (there.len(), missing.len()) {
                break;
            }
        }
        for (block, list) in may {
            self.settled[block as usize] = *list.last().expect("never empty");
        }
        self.recent.clear();
        missing.len()
    }

    fn accuse(&self, w: &Written, why: Because) -> String {
        let what = match why {
            Because::Confirmed => "is missing, and was confirmed".to_string(),
            Because::Seen => "is there in part".to_string(),
            Because::Of(later) => format!(
                "is missing, was confirmed before write {} was sent, and write {later} is there",
                w.followers
            ),
        };
        format!("seed {}: write {} {what}", self.seed, w.number)
    }

    fn foreign(&self, content: &(impl Blocks + ?Sized), block: u64, candidates: &[u64]) -> ! {
        panic!(
            "seed {}: block {block} holds {}; it must be one of the writes {candidates:?}",
            self.seed,
            self.name(content, block),
        );
    }

    /// Each block is one of those it may be; what it is holds from now on.
    pub fn judge_blocks(&mut self, content: &(impl Blocks + ?Sized)) {
        self.judge(content, |w| w.confirmed, false);
    }

    /// The same when every disk lost its power: only what is stable must be there, and a block may hold
    /// sectors of several writes. Returns how many confirmed blocks are not the last that was written.
    pub fn judge_stable(&mut self, content: &(impl Blocks + ?Sized)) -> usize {
        let mut last: HashMap<u64, u64> = HashMap::new();
        for w in self.recent.iter().filter(|w| w.confirmed) {
            last.extend((w.first..w.first + w.blocks).map(|block| (block, w.number)));
        }
        self.judge(content, |w| w.stable, true);
        let older = |(block, number): &(&u64, &u64)| {
            let now = self.settled[**block as usize];
            now < **number || self.torn.contains_key(&now)
        };
        last.iter().filter(older).count()
    }

    fn judge(
        &mut self,
        content: &(impl Blocks + ?Sized),
        must: impl Fn(&Written) -> bool,
        may_tear: bool,
    ) {
        let may = self.candidates(must);
        for block in 0..self.blocks() {
            let known = [self.settled[block as usize]];
            let candidates = may.get(&block).map_or(&known[..], Vec::as_slice);
            let found = candidates
                .iter()
                .rev()
                .find(|&&n| self.holds(content, n, block));
            if found.is_none() && may_tear && self.is_mix(content, candidates, block) {
                self.torn.insert(self.next, content.block(block).to_vec());
                self.settled[block as usize] = self.next;
                self.next += 1;
                continue;
            }
            let Some(&number) = found else {
                self.foreign(content, block, candidates);
            };
            self.settled[block as usize] = number;
        }
        self.recent.clear();
    }

    /// Each sector of the block is that of one of `candidates`.
    fn is_mix(&self, content: &(impl Blocks + ?Sized), candidates: &[u64], block: u64) -> bool {
        const SECTOR: usize = 512;
        let whole: Vec<Vec<u8>> = candidates.iter().map(|&n| self.content(n, block)).collect();
        content
            .block(block)
            .chunks(SECTOR)
            .enumerate()
            .all(|(n, sector)| whole.iter().any(|w| w[n * SECTOR..][..SECTOR] == *sector))
    }

    fn name(&self, content: &(impl Blocks + ?Sized), block: u64) -> String {
        let bytes = content.block(block);
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        format!("write {} of block {}", number(0), number(8))
    }
}

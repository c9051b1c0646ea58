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
use std::collections::{BTreeSet, HashMap};

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
    /// Writes of zeroes cannot be told from each other, nor from a block never written. A block of zeroes
    /// counts as whichever of them accuses nobody.
    pub fn judge_order(&mut self, content: &(impl Blocks + ?Sized), confirmed: bool) -> usize {
        let mut newest = Vec::new();
        // Writes of which a block is there that can be of no other.
        let mut there = BTreeSet::new();
        let may = self.candidates(|_| false);
        for block in 0..self.blocks() {
            let known = [self.settled[block as usize]];
            let candidates = may.get(&block).map_or(&known[..], Vec::as_slice);
            let mut found = candidates.to_vec();
            found.retain(|&number| self.holds(content, number, block));
            match found[..] {
                [] => self.foreign(content, block, candidates),
                [only] => _ = there.insert(only),
                _ => {}
            }
            newest.extend(found.last());
        }
        let lacks = |w: &&Written| {
            (w.first..w.first + w.blocks).any(|block| newest[block as usize] < w.number)
        };
        let missing: Vec<&Written> = self.recent.iter().filter(lacks).collect();
        for w in &missing {
            let (seed, number) = (self.seed, w.number);
            assert!(
                !there.contains(&number),
                "seed {seed}: write {number} is there in part"
            );
            if w.confirmed {
                assert!(
                    !confirmed,
                    "seed {seed}: write {number} is missing, and was confirmed"
                );
                if let Some(later) = there.range(w.followers..).next() {
                    panic!(
                        "seed {seed}: write {later} is there without write {number}, which was confirmed \
                         before write {} was sent",
                        w.followers
                    );
                }
            }
        }
        let lost = missing.len();
        self.settled = newest;
        self.recent.clear();
        lost
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

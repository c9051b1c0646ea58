//! Generations of one volume: which state of the data this copy has, and which state each peer had
//! when it was last in step.
//!
//! A generation is a random 64-bit UUID. Its lowest bit says "was Primary" and takes no part in any
//! comparison; only the current UUID carries it. 0 means none, 4 "just created": both mean "no data
//! yet" and are equal to no real generation.
//!
//! Invariants:
//! * the history holds real generations only, newest first, without duplicates and without gaps,
//!   and never the current one; every generation this copy has left is in it, also one that a bitmap
//!   UUID names (a peer that is at it, and is met by a third node, must not pass for unrelated);
//! * the bitmap UUID of a peer is never changed from one base to another while its bits are relative
//!   to the first: it is set when it was 0, and goes to the history when the peer is in step.
//!
//! Nothing here is durable by itself: the caller writes the superblock and waits for it *before*
//! it relies on a change (a new current UUID before the write that needed it, an adopted one before
//! it is confirmed).

use crate::ids::NodeId;
use crate::metadata::superblock::Superblock;
use crate::metadata::{HISTORY, UUID_JUST_CREATED};

/// "Was Primary".
pub const PRIMARY_BIT: u64 = 1;

/// The same generation: all but the lowest bit are equal.
pub fn same(a: u64, b: u64) -> bool {
    a & !PRIMARY_BIT == b & !PRIMARY_BIT
}

/// No data yet: 0 or 4.
pub fn is_created(uuid: u64) -> bool {
    matches!(uuid & !PRIMARY_BIT, 0 | UUID_JUST_CREATED)
}

/// The generations of a volume on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generations {
    /// What this copy holds.
    pub current: u64,
    /// By node: the generation this node's bitmap for it is relative to; 0 = in step.
    pub bitmap: [u64; NodeId::MAX_NODES],
    /// Older generations, newest first; 0 from the first free place on.
    pub history: [u64; HISTORY],
    /// While this copy is the target of a resync: the generation it is being brought to. Should the
    /// source be lost, whoever has that generation can finish it.
    pub toward: u64,
}

impl Default for Generations {
    fn default() -> Self {
        Self {
            current: UUID_JUST_CREATED,
            bitmap: [0; NodeId::MAX_NODES],
            history: [0; HISTORY],
            toward: 0,
        }
    }
}

impl Generations {
    /// From what a superblock or a peer says; a history that breaks the invariants is mended.
    pub fn from_parts(
        current: u64,
        bitmap: [u64; NodeId::MAX_NODES],
        history: impl IntoIterator<Item = u64>,
    ) -> Self {
        let mut generations = Self {
            current,
            bitmap,
            ..Self::default()
        };
        generations.set_history(history);
        generations
    }

    /// From what is on the disk.
    pub fn load(&mut self, superblock: &Superblock) {
        let bitmap = superblock.peers.each_ref().map(|peer| peer.bitmap);
        *self = Self::from_parts(superblock.current, bitmap, superblock.history);
        self.toward = superblock.toward;
    }

    /// Into what will be on the disk.
    pub fn store(&self, superblock: &mut Superblock) {
        superblock.current = self.current;
        superblock.history = self.history;
        superblock.toward = self.toward;
        for (peer, bitmap) in superblock.peers.iter_mut().zip(self.bitmap) {
            peer.bitmap = bitmap;
        }
    }

    /// This copy has never held data.
    pub fn is_just_created(&self) -> bool {
        is_created(self.current)
    }

    /// Older generations, newest first.
    pub fn history(&self) -> impl Iterator<Item = u64> + '_ {
        self.history.iter().copied().take_while(|&h| h != 0)
    }

    /// The generation the bitmap for this peer is relative to; 0 = in step with it.
    pub fn base_for(&self, peer: NodeId) -> u64 {
        self.bitmap[peer.slot()]
    }

    /// A new generation begins here, whatever the slots say: a Primary is about to write something that
    /// some peer will not get, or this copy is declared the current one (`primary --force`). The old
    /// current UUID becomes the bitmap UUID of each of `peers` that has none yet (or has just this
    /// one). A peer whose slot holds another generation missed writes already: its bits are relative
    /// to that older base, and stay so. A peer that gets the new generation told keeps the old one as
    /// its base until it has confirmed it ([`Self::in_step_with`]).
    ///
    /// On a copy that was just created every peer gets "just created" as its base: there is nothing in
    /// common.
    pub fn force_new_current(&mut self, fresh: u64, peers: impl Iterator<Item = NodeId>) {
        let old = self.current;
        self.toward = 0;
        self.rotate(peers);
        self.set_current(fresh, true);
        self.push_history(old);
    }

    /// A connected peer, the Primary, has begun a new generation and this node follows it. Until the
    /// Primary says of another node that it follows too, that node may still be where this one was.
    pub fn follow(&mut self, current: u64, others: impl Iterator<Item = NodeId>) {
        if same(current, self.current) {
            return;
        }
        let old = self.current;
        self.rotate(others);
        self.set_current(current, false);
        self.push_history(old);
    }

    /// This peer has the current generation and lacks nothing but what is still on its way to it.
    pub fn in_step_with(&mut self, peer: NodeId) {
        self.clear_slot(peer);
    }

    /// A resync starts to a peer that has this very generation, and yet lacks what is marked (after a
    /// crash, or because its copy was declared worthless). From now on it is the one that is behind:
    /// this copy goes on as `fresh`, the peer stays at the old generation, which its bits are
    /// relative to. Otherwise a write that the peer does not get would leave no trace in the
    /// generations, and a crash could make the peer the source.
    pub fn part_from(&mut self, peer: NodeId, fresh: u64) {
        let (old, primary) = (self.current, self.current & PRIMARY_BIT != 0);
        self.clear_slot(peer);
        self.set_current(fresh, primary);
        self.push_history(old);
        self.bitmap[peer.slot()] = old & !PRIMARY_BIT;
    }

    /// A resync to this peer starts: makes sure its bitmap is relative to a generation that names
    /// this resync, so that it can go on by bitmap after an interruption. An existing base is
    /// kept; `fresh` is used if there is none, or none a target could have as its current UUID.
    pub fn begin_source(&mut self, peer: NodeId, fresh: u64) {
        let base = self.bitmap[peer.slot()];
        if is_created(base) || same(base, self.current) {
            self.bitmap[peer.slot()] = fresh & !PRIMARY_BIT;
            self.push_history(fresh);
        }
    }

    /// A resync from this peer starts: while it runs, this copy is "at `base`, but for the marked
    /// blocks". What it was before is over; `others` that were in step with it stay there.
    pub fn begin_target(
        &mut self,
        peer: NodeId,
        base: u64,
        toward: u64,
        others: impl Iterator<Item = NodeId>,
    ) {
        let old = self.current;
        self.toward = toward & !PRIMARY_BIT;
        self.clear_slot(peer);
        self.rotate(others);
        self.set_current(base, false);
        self.push_history(old);
    }

    /// A resync from this peer ended: this copy is now what the peer's is. A third node that was left
    /// at a generation which is none of the peer's is not behind this copy: the two have parted, and
    /// that must be seen when they meet. `bases` are the peer's bitmap UUIDs, by node: a generation so
    /// old that the history has lost it is still one of the peer's. To a copy that was just created,
    /// and so has every block marked for that node, its base is news.
    pub fn adopt(&mut self, peer: NodeId, current: u64, history: &[u64], bases: &[(u8, u64)]) {
        self.toward = 0;
        self.bitmap[peer.slot()] = 0;
        self.current = current & !PRIMARY_BIT;
        self.set_history(history.iter().copied());
        for (node, slot) in self.bitmap.iter_mut().enumerate() {
            let known = bases.iter().any(|(_, base)| same(*base, *slot));
            if !is_created(*slot) && !self.history.contains(slot) && !known {
                *slot = 0;
            }
            let theirs = bases.iter().find(|(n, _)| usize::from(*n) == node);
            if *slot == UUID_JUST_CREATED
                && let Some((_, base)) = theirs
            {
                *slot = base & !PRIMARY_BIT;
            }
        }
    }

    /// The bitmap UUIDs, by node.
    pub fn bases(&self) -> impl Iterator<Item = (u8, u64)> + '_ {
        let numbered = (0u8..).zip(self.bitmap);
        numbered.filter(|&(_, base)| !is_created(base))
    }

    /// This peer is in step: no block is marked for it any more.
    pub fn resync_finished_with(&mut self, peer: NodeId) {
        self.clear_slot(peer);
    }

    /// All copies are declared equal to this generation, without comparing them.
    pub fn declare_equal(&mut self, current: u64) {
        self.toward = 0;
        let old = self.current;
        self.bitmap = [0; NodeId::MAX_NODES];
        self.set_current(current, false);
        self.push_history(old);
    }

    /// Marks the current generation as one of a Primary, or not.
    pub fn set_primary_bit(&mut self, primary: bool) {
        self.current = self.current & !PRIMARY_BIT | u64::from(primary);
    }

    /// The current UUID becomes the base for those without another one.
    fn rotate(&mut self, peers: impl Iterator<Item = NodeId>) {
        let old = self.current & !PRIMARY_BIT;
        for peer in peers {
            let slot = &mut self.bitmap[peer.slot()];
            if *slot == 0 || same(*slot, old) {
                *slot = if is_created(old) {
                    UUID_JUST_CREATED
                } else {
                    old
                };
            }
        }
    }

    fn set_current(&mut self, uuid: u64, primary: bool) {
        self.current = uuid;
        self.set_primary_bit(primary);
        self.forget(uuid);
    }

    /// A base was in the history when it was set. If it has fallen off the end by now it is older than
    /// all that is there, and comes back as the oldest: a node may still be met at it.
    fn clear_slot(&mut self, peer: NodeId) {
        let old = core::mem::take(&mut self.bitmap[peer.slot()]);
        if is_created(old) || same(old, self.current) || self.history.contains(&old) {
            return;
        }
        let end = self.history().count().min(HISTORY - 1);
        self.history[end] = old;
    }

    /// Puts a superseded generation at the front; the oldest may fall off the end. One that is there
    /// keeps its place: the order is that of the generations.
    fn push_history(&mut self, uuid: u64) {
        let uuid = uuid & !PRIMARY_BIT;
        if is_created(uuid) || same(uuid, self.current) || self.history.contains(&uuid) {
            return;
        }
        self.history.rotate_right(1);
        self.history[0] = uuid;
    }

    /// Takes a generation out of the history and closes the gap.
    fn forget(&mut self, uuid: u64) {
        if is_created(uuid) {
            return;
        }
        if let Some(at) = self.history.iter().position(|&h| h != 0 && same(h, uuid)) {
            self.history[at..].rotate_left(1);
            self.history[HISTORY - 1] = 0;
        }
    }

    fn set_history(&mut self, newest_first: impl IntoIterator<Item = u64>) {
        self.history = [0; HISTORY];
        let mut len = 0;
        for uuid in newest_first {
            let uuid = uuid & !PRIMARY_BIT;
            let known = self.history[..len].contains(&uuid);
            if len < HISTORY && !known && !is_created(uuid) && !same(uuid, self.current) {
                self.history[len] = uuid;
                len += 1;
            }
        }
    }
}

#[cfg(test)]
#[path = "generations_tests.rs"]
mod tests;

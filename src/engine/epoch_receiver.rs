//! The receiving side of epochs: which writes of a peer may go to the disk now, and when a barrier
//! may be acknowledged.
//!
//! Invariants:
//! * within an epoch writes go to the disk at once and in any order (overlaps aside);
//! * a write of an epoch that follows an *ordered* barrier (a client's flush on the Primary) is held
//!   until every earlier epoch is written and flushed: the disk is at every moment one that the
//!   Primary's could have been after a power cut;
//! * a barrier is acknowledged only when its epoch and all before it are written and flushed;
//! * when the link is lost nothing received is dropped: under protocol B the client was answered
//!   because this node had the write in memory.

use crate::ids::VolumeId;
use crate::peer_request::PeerRequestKey;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// The peer broke the rules of epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EpochError {
    /// A write of an epoch that is closed, or of one not opened yet.
    Unexpected { epoch: u64, open: u64 },
    /// The barrier's count is not what was received.
    Count {
        epoch: u64,
        said: u64,
        received: u64,
    },
}

/// A barrier ready to be acknowledged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flushed {
    pub(crate) epoch: u64,
    pub(crate) count: u64,
    /// Resync ranges that are stable now: their bits may be cleared.
    pub(crate) resynced: Vec<(VolumeId, u64, u64)>,
    /// The link it belonged to is gone: nobody waits for the ack.
    pub(crate) orphan: bool,
}

#[derive(Debug, Default)]
struct Epoch {
    number: u64,
    received: u64,
    pending: u64,
    /// `Some(ordered)` once its barrier has come.
    barrier: Option<bool>,
    /// Flushes in flight; `None` before they are started.
    flushing: Option<u32>,
    volumes: Vec<VolumeId>,
    resynced: Vec<(VolumeId, u64, u64)>,
    orphan: bool,
}

/// Epochs of one peer that are not finished.
#[derive(Debug, Default)]
pub(crate) struct EpochReceiver {
    epochs: VecDeque<Epoch>,
    /// Number of the epoch the peer is sending now.
    open: u64,
    held: VecDeque<(u64, PeerRequestKey)>,
    /// Nothing goes to the disk for now.
    frozen: bool,
    /// Empty lists for the next epochs, so that none is allocated per epoch.
    spare: Vec<Vec<VolumeId>>,
}

/// Lists kept in [`EpochReceiver::spare`]; there are seldom more epochs at once.
const MAX_SPARE: usize = 8;

impl EpochReceiver {
    /// Starts over for a new connection; everything of the old one must be finished.
    pub(crate) fn reset(&mut self) {
        assert!(
            self.is_idle(),
            "a new connection starts with nothing left of the old one"
        );
        self.open = 1;
    }

    /// Nothing is unfinished.
    pub(crate) fn is_idle(&self) -> bool {
        self.epochs.is_empty() && self.held.is_empty()
    }

    /// A write of `epoch` arrived. Answers whether it must be held; then [`Self::hold`] it.
    pub(crate) fn received(&mut self, epoch: u64, volume: VolumeId) -> Result<bool, EpochError> {
        if epoch != self.open {
            return Err(EpochError::Unexpected {
                epoch,
                open: self.open,
            });
        }
        let fresh = self.epochs.back().is_none_or(|e| e.number != epoch);
        if fresh {
            self.begin(epoch);
        }
        if let Some(current) = self.epochs.back_mut() {
            current.received += 1;
            current.pending += 1;
            if !current.volumes.contains(&volume) {
                current.volumes.push(volume);
            }
        }
        Ok(self.must_hold(epoch))
    }

    fn begin(&mut self, number: u64) {
        let volumes = self.spare.pop().unwrap_or_default();
        self.epochs.push_back(Epoch {
            number,
            volumes,
            ..Epoch::default()
        });
    }

    fn must_hold(&self, epoch: u64) -> bool {
        if crate::sabotage::is(crate::sabotage::Mistake::IgnoreOrderedBarrier) {
            return false;
        }
        self.frozen
            || self
                .epochs
                .iter()
                .any(|e| e.number < epoch && e.barrier == Some(true))
    }

    /// From here on every write is held.
    pub(crate) fn freeze(&mut self) {
        self.frozen = true;
    }

    /// Held writes may go on; see [`Self::next_released`].
    pub(crate) fn thaw(&mut self) {
        self.frozen = false;
    }

    /// If a write that arrived now had to be held: the epoch to hold it under.
    pub(crate) fn holds_now(&self) -> Option<u64> {
        self.must_hold(self.open).then_some(self.open)
    }

    /// Keeps a write back.
    pub(crate) fn hold(&mut self, epoch: u64, request: PeerRequestKey) {
        self.held.push_back((epoch, request));
    }

    /// The next held write that may go to the disk now.
    pub(crate) fn next_released(&mut self) -> Option<PeerRequestKey> {
        let &(epoch, request) = self.held.front()?;
        if self.must_hold(epoch) {
            return None;
        }
        self.held.pop_front();
        Some(request)
    }

    /// A write of `epoch` is on the disk (not flushed). `resynced` names the range of a resync block.
    pub(crate) fn written(&mut self, epoch: u64, resynced: Option<(VolumeId, u64, u64)>) {
        let Some(e) = self.epochs.iter_mut().find(|e| e.number == epoch) else {
            debug_assert!(false, "an epoch with a pending write is never dropped");
            return;
        };
        e.pending -= 1;
        e.resynced.extend(resynced);
    }

    /// The barrier of `epoch` arrived.
    pub(crate) fn barrier(
        &mut self,
        epoch: u64,
        count: u64,
        ordered: bool,
    ) -> Result<(), EpochError> {
        if epoch != self.open {
            return Err(EpochError::Unexpected {
                epoch,
                open: self.open,
            });
        }
        if self.epochs.back().is_none_or(|e| e.number != epoch) {
            self.begin(epoch);
        }
        if let Some(e) = self.epochs.back_mut() {
            if e.received != count {
                return Err(EpochError::Count {
                    epoch,
                    said: count,
                    received: e.received,
                });
            }
            e.barrier = Some(ordered);
        }
        self.open += 1;
        Ok(())
    }

    /// The link is lost: what was received is finished, nobody is told.
    pub(crate) fn orphan(&mut self) {
        for e in &mut self.epochs {
            e.orphan = true;
            e.barrier.get_or_insert(false);
        }
    }

    /// If the oldest epoch is complete and not being flushed: the volumes to flush now. An empty
    /// list means that nothing was written in it and it is stable already. The list is to be given
    /// back ([`Self::give_back`]).
    pub(crate) fn start_flush(&mut self) -> Option<Vec<VolumeId>> {
        let front = self.epochs.front_mut()?;
        if front.barrier.is_none() || front.pending > 0 || front.flushing.is_some() {
            return None;
        }
        let mut volumes = core::mem::take(&mut front.volumes);
        if crate::sabotage::is(crate::sabotage::Mistake::AckBarrierUnflushed) {
            volumes.clear();
        }
        front.flushing = Some(u32::try_from(volumes.len()).unwrap_or(u32::MAX));
        Some(volumes)
    }

    /// Takes back a list that [`Self::start_flush`] lent.
    pub(crate) fn give_back(&mut self, mut volumes: Vec<VolumeId>) {
        if self.spare.len() < MAX_SPARE {
            volumes.clear();
            self.spare.push(volumes);
        }
    }

    /// A flush started for the oldest epoch is done.
    pub(crate) fn flush_done(&mut self) {
        if let Some(Epoch {
            flushing: Some(n), ..
        }) = self.epochs.front_mut()
        {
            *n = n.saturating_sub(1);
        }
    }

    /// Takes the oldest epoch if it is flushed.
    pub(crate) fn take_flushed(&mut self) -> Option<Flushed> {
        if self.epochs.front()?.flushing != Some(0) {
            return None;
        }
        let e = self.epochs.pop_front()?;
        Some(Flushed {
            epoch: e.number,
            count: e.received,
            resynced: e.resynced,
            orphan: e.orphan,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Key;

    const V: VolumeId = VolumeId(0);

    fn rx() -> EpochReceiver {
        let mut rx = EpochReceiver::default();
        rx.reset();
        rx
    }

    #[test]
    fn an_ordered_barrier_holds_later_writes_until_the_flush() {
        let mut rx = rx();
        assert_eq!(rx.received(1, V), Ok(false));
        rx.barrier(1, 1, true).expect("count matches");
        assert_eq!(
            rx.received(2, V),
            Ok(true),
            "behind a flush that is not done"
        );
        rx.hold(2, Key::from_raw(7));
        assert_eq!(rx.start_flush(), None, "the write is not on the disk yet");
        rx.written(1, None);
        assert_eq!(rx.start_flush(), Some(alloc::vec![V]));
        assert_eq!(rx.next_released(), None, "flush still running");
        rx.flush_done();
        let flushed = rx.take_flushed().expect("epoch 1 is stable");
        assert_eq!((flushed.epoch, flushed.count), (1, 1));
        assert_eq!(rx.next_released().map(Key::raw), Some(7));
    }

    #[test]
    fn an_unordered_barrier_holds_nothing() {
        let mut rx = rx();
        assert_eq!(rx.received(1, V), Ok(false));
        rx.barrier(1, 1, false).expect("count matches");
        assert_eq!(rx.received(2, V), Ok(false));
    }

    #[test]
    fn broken_rules_are_told() {
        let mut rx = rx();
        assert_eq!(
            rx.received(2, V),
            Err(EpochError::Unexpected { epoch: 2, open: 1 })
        );
        assert_eq!(rx.received(1, V), Ok(false));
        assert_eq!(
            rx.barrier(1, 2, false),
            Err(EpochError::Count {
                epoch: 1,
                said: 2,
                received: 1
            })
        );
    }

    #[test]
    fn after_the_link_is_lost_everything_received_is_still_finished() {
        let mut rx = rx();
        assert_eq!(rx.received(1, V), Ok(false));
        rx.orphan();
        rx.written(1, None);
        assert_eq!(rx.start_flush(), Some(alloc::vec![V]));
        rx.flush_done();
        assert!(rx.take_flushed().expect("flushed").orphan);
        assert!(rx.is_idle());
    }
}

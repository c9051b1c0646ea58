//! What one peer still owes: every write and resync block sent to it, until it has said that they
//! are on stable storage. Split into epochs by barriers.
//!
//! Invariants:
//! * entries are in the order they were sent; `seq` is contiguous, `epoch` never falls;
//! * an entry leaves only by the ack of the barrier that closed its epoch (or a later one), so that
//!   whatever is in here when the link is lost is exactly what may be missing on the peer's disk.

use crate::ids::VolumeId;
use crate::request::RequestKey;
use crate::time::Instant;
use alloc::collections::VecDeque;

/// One write on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) volume: VolumeId,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) epoch: u64,
    pub(crate) sent: Instant,
    /// The client's request; `None` for a resync block.
    pub(crate) request: Option<RequestKey>,
    /// A resync block: its stable ack clears bits.
    pub(crate) resync: bool,
    /// The peer said what its protocol promises (RecvAck, WriteAck, ResyncAck).
    pub(crate) acked: bool,
    /// Place among all writes of this node, whichever peers get them.
    pub(crate) tag: u64,
    /// Stable by itself (FUA, or no volatile cache): not marked out of sync on disconnect.
    pub(crate) stable: bool,
    /// The own disk has no part in it: the peer's copy is the one that serves ([`crate::remote`]). It
    /// holds nothing in the activity log.
    pub(crate) remote: bool,
    /// A resync block over which a write came before it was stable: it is sent again.
    pub(crate) overtaken: bool,
}

/// The peer broke the rules of acks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AckError {
    UnknownSequence(u64),
    UnknownEpoch(u64),
    WrongCount { epoch: u64, said: u64, sent: u64 },
}

/// The log of one connection.
#[derive(Debug, Default)]
pub(crate) struct TransferLog {
    entries: VecDeque<Entry>,
    /// Entries that are not resync blocks.
    writes: u64,
    /// Sequence number of `entries[0]`.
    first_seq: u64,
    /// Number of the open epoch.
    epoch: u64,
    /// Entries and bytes in the open epoch, and when it got its first.
    open_count: u64,
    open_bytes: u64,
    opened: Option<Instant>,
    /// Closed epochs whose ack is due: (number, writes in it).
    closed: VecDeque<(u64, u64)>,
}

impl TransferLog {
    /// Empties it for a new connection.
    pub(crate) fn reset(&mut self) {
        self.entries.clear();
        self.writes = 0;
        self.closed.clear();
        self.first_seq = 1;
        self.epoch = 1;
        self.open_count = 0;
        self.open_bytes = 0;
        self.opened = None;
    }

    /// Appends a write; answers (sequence number, epoch) for its frame.
    pub(crate) fn push(&mut self, mut entry: Entry) -> (u64, u64) {
        entry.epoch = self.epoch;
        self.writes += u64::from(!entry.resync);
        self.open_count += 1;
        self.open_bytes += entry.len;
        self.opened.get_or_insert(entry.sent);
        self.entries.push_back(entry);
        (self.first_seq + self.entries.len() as u64 - 1, self.epoch)
    }

    /// Closes the open epoch (also an empty one, for a flush); answers its number and count for the
    /// barrier frame.
    pub(crate) fn close_epoch(&mut self) -> (u64, u64) {
        let closed = (self.epoch, self.open_count);
        self.closed.push_back(closed);
        self.epoch += 1;
        self.open_count = 0;
        self.open_bytes = 0;
        self.opened = None;
        closed
    }

    /// The entry with this sequence number, for an ack.
    pub(crate) fn entry(&mut self, seq: u64) -> Result<&mut Entry, AckError> {
        let index = seq
            .checked_sub(self.first_seq)
            .ok_or(AckError::UnknownSequence(seq))? as usize;
        self.entries
            .get_mut(index)
            .ok_or(AckError::UnknownSequence(seq))
    }

    /// A barrier's ack: checks number and count. Afterwards [`Self::pop_stable`] yields the entries
    /// that are stable now.
    pub(crate) fn barrier_acked(&mut self, epoch: u64, count: u64) -> Result<(), AckError> {
        match self.closed.front() {
            Some(&(e, sent)) if e == epoch => {
                if sent != count {
                    return Err(AckError::WrongCount {
                        epoch,
                        said: count,
                        sent,
                    });
                }
                self.closed.pop_front();
                Ok(())
            }
            _ => Err(AckError::UnknownEpoch(epoch)),
        }
    }

    /// Takes the next entry of an epoch up to `epoch`.
    pub(crate) fn pop_stable(&mut self, epoch: u64) -> Option<Entry> {
        if self.entries.front()?.epoch > epoch {
            return None;
        }
        self.first_seq += 1;
        let entry = self.entries.pop_front()?;
        self.writes -= u64::from(!entry.resync);
        Some(entry)
    }

    /// Takes everything, oldest first: the link is lost.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Entry> {
        let entries = core::mem::take(&mut self.entries);
        self.reset();
        entries.into_iter()
    }

    /// All entries of a volume, to be changed.
    pub(crate) fn of_volume(&mut self, volume: VolumeId) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().filter(move |e| e.volume == volume)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The oldest entry.
    pub(crate) fn front(&self) -> Option<&Entry> {
        self.entries.front()
    }

    /// Entries in the open epoch.
    pub(crate) fn open_count(&self) -> u64 {
        self.open_count
    }

    /// Bytes in the open epoch.
    pub(crate) fn open_bytes(&self) -> u64 {
        self.open_bytes
    }

    /// When the open epoch got its first entry.
    pub(crate) fn opened(&self) -> Option<Instant> {
        self.opened
    }

    /// Application writes (not resync blocks) in it.
    pub(crate) fn application_writes(&self) -> u64 {
        self.writes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(offset: u64) -> Entry {
        Entry {
            volume: VolumeId(0),
            offset,
            len: 4096,
            epoch: 0,
            sent: Instant(0),
            request: None,
            resync: false,
            acked: false,
            tag: 0,
            stable: false,
            remote: false,
            overtaken: false,
        }
    }

    fn log() -> TransferLog {
        let mut log = TransferLog::default();
        log.reset();
        log
    }

    #[test]
    fn entries_stay_until_the_barrier_of_their_epoch_is_acked() {
        let mut log = log();
        let (a, first) = log.push(entry(0));
        log.entry(a).expect("it is there").acked = true;
        assert_eq!(log.close_epoch(), (first, 1));
        let (_, second) = log.push(entry(4096));
        assert_eq!(log.len(), 2, "an ack alone does not release an entry");
        log.barrier_acked(first, 1).expect("number and count match");
        assert_eq!(log.pop_stable(first).map(|e| e.offset), Some(0));
        assert!(
            log.pop_stable(first).is_none(),
            "the next epoch is not covered"
        );
        assert_eq!(log.close_epoch(), (second, 1));
        assert_eq!(log.drain().map(|e| e.offset).collect::<Vec<_>>(), [4096]);
    }

    #[test]
    fn wrong_acks_are_told_apart() {
        let mut log = log();
        let (seq, epoch) = log.push(entry(0));
        assert_eq!(
            log.entry(seq + 1).err(),
            Some(AckError::UnknownSequence(seq + 1))
        );
        assert_eq!(log.entry(0).err(), Some(AckError::UnknownSequence(0)));
        assert_eq!(
            log.barrier_acked(epoch, 1),
            Err(AckError::UnknownEpoch(epoch)),
            "not closed"
        );
        log.close_epoch();
        assert_eq!(
            log.barrier_acked(epoch, 2),
            Err(AckError::WrongCount {
                epoch,
                said: 2,
                sent: 1
            })
        );
        log.barrier_acked(epoch, 1).expect("now right");
        assert_eq!(
            log.barrier_acked(epoch, 1),
            Err(AckError::UnknownEpoch(epoch)),
            "only once"
        );
    }
}

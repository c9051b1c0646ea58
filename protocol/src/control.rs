//! Control messages between two engines that are connected and authenticated: serde + postcard in
//! the payload of a [`crate::frame::Kind::Message`] frame. Enum variants are only ever appended.

use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Role of a node for a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Not known (peer not connected).
    Unknown,
    /// Does not serve I/O.
    Secondary,
    /// Serves I/O.
    Primary,
}

/// State of a disk, ordered from worst to best as in DRBD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DiskState {
    /// No disk attached.
    Diskless,
    /// Reading metadata.
    Attaching,
    /// Writing out metadata before leaving.
    Detaching,
    /// An I/O error took it out of use; stays so until attached by hand.
    Failed,
    /// Attached while connected; the peers are deciding what it is worth.
    Negotiating,
    /// Not usable: fresh, or a resync target midway.
    Inconsistent,
    /// Usable, known to be older than another copy.
    Outdated,
    /// State of a peer's disk that cannot be seen now.
    DUnknown,
    /// Usable; not known whether a newer copy exists.
    Consistent,
    /// Current.
    UpToDate,
}

/// State of replication with one peer for one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReplState {
    /// Not connected.
    Off,
    /// Mirroring, nothing to catch up.
    Established,
    /// Full sync about to start, this side is the source.
    StartingSyncS,
    /// Full sync about to start, this side is the target.
    StartingSyncT,
    /// Source waiting for the target's bitmap.
    WFBitMapS,
    /// Target waiting for the source's bitmap.
    WFBitMapT,
    /// Target waiting for the source's generation.
    WFSyncUUID,
    /// Sending blocks.
    SyncSource,
    /// Receiving blocks.
    SyncTarget,
    /// Source, paused.
    PausedSyncS,
    /// Target, paused.
    PausedSyncT,
    /// Online verify, source.
    VerifyS,
    /// Online verify, target.
    VerifyT,
    /// Primary ahead of a congested link.
    Ahead,
    /// Peer of a node that is Ahead.
    Behind,
}

/// Replication protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// Asynchronous: a write completes when it is in the bounded send queue.
    A,
    /// Memory synchronous: when the peer has received it.
    B,
    /// Synchronous: when the peer's disk has written it.
    C,
}

/// Facts about a volume that both sides must agree on before generations are compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeParams {
    /// Volume number.
    pub volume: u16,
    /// Usable size of this node's disk in bytes; 0 without a disk.
    pub disk_size: u64,
    /// Size the resource had when last agreed, in bytes; 0 if never.
    pub agreed_size: u64,
    /// Smallest I/O in bytes.
    pub block_size: u32,
    /// Bytes per bitmap bit.
    pub bitmap_block: u32,
}

/// Whether a node gets writes, and from where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reach {
    /// No Primary is connected.
    #[default]
    None,
    /// A Primary is connected: the node with this id.
    Follows(u8),
    /// The node with this id, a Secondary, brings it up to date.
    SyncsFrom(u8),
    /// It is Primary itself.
    Primary,
}

/// First message of each engine: who speaks and under which settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Params {
    /// Protocol of this connection as configured on the sender's side.
    pub protocol: Protocol,
    /// Random number of this engine's life: differs after every start of the daemon.
    pub incarnation: u64,
    /// The incarnation of the receiver the sender last was connected to (0 if none): lets both see
    /// that only the link was lost.
    pub last_seen_incarnation: u64,
    /// `allow-two-primaries`.
    pub allow_two_primaries: bool,
    /// `after-sb-0pri`, `-1pri`, `-2pri` and `rr-conflict` by their DRBD names, a node by its number;
    /// must match on both ends.
    pub policies: [String; 4],
    /// `fencing` by its name; when it differs that is said, and no more.
    pub fencing: String,
    /// Where the sender's writes come from.
    pub reach: Reach,
    /// Volumes in ascending order.
    pub volumes: Vec<VolumeParams>,
}

/// What a node knows about the history of one volume, seen towards the receiving peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFacts {
    /// Volume number.
    pub volume: u16,
    /// Current generation; lowest bit says "was Primary"; 0 or 4 = just created.
    pub current: u64,
    /// Generation last shared with the receiver; 0 = in sync with it.
    pub bitmap: u64,
    /// Older generations, newest first.
    pub history: Vec<u64>,
    /// Generation an unfinished resync was bringing the sender's copy to; 0: none.
    pub toward: u64,
    /// Disk state of the sender.
    pub disk: DiskState,
    /// Bits set towards the receiver.
    pub dirty_bits: u64,
    /// The sender was Primary when it crashed, and has not reconciled since.
    pub crashed_primary: bool,
    /// Bits were marked because the sender cannot know what differs (full bitmap after a crash).
    pub full_bitmap: bool,
    /// The sender went down while it followed a Primary, and has not reconciled since. Only in
    /// resources of three and more nodes.
    pub crashed_secondary: bool,
    /// The sender's disk is the target of a resync from another node than the receiver.
    pub busy: bool,
    /// The sender is Primary and its clients are served from the receiver's copy, because its own
    /// cannot be: the generation that copy must have; 0: they are not.
    pub relies: u64,
    /// The generation it was told to begin, and has not confirmed; 0: none.
    pub relies_next: u64,
    /// The sender was Primary when it was last in touch with the receiver.
    pub parted_as_primary: bool,
}

/// Second message, sent with application writes frozen and drained: the facts the decision rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Role of the sender now.
    pub role: Role,
    /// The administrator said `connect --discard-my-data` on the sender.
    pub discard_my_data: bool,
    /// A client holds the sender's export.
    pub in_use: bool,
    /// `connect --dry-run`: tell the decision, then part.
    pub dry_run: bool,
    /// Volumes in ascending order.
    pub volumes: Vec<VolumeFacts>,
}

/// What one side computed from both sides' facts. Both must have come to mirror images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Volume number.
    pub volume: u16,
    /// Name of the rule that hit.
    pub rule: String,
    /// −1: the sender becomes target; 0: no resync; 1: the sender becomes source; 2: refuse.
    pub direction: i8,
    /// All blocks rather than those in the bitmaps.
    pub full: bool,
}

/// Generations of one volume as the source holds them at the end of a resync.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generations {
    /// Current UUID.
    pub current: u64,
    /// History, newest first.
    pub history: Vec<u64>,
    /// Real bitmap UUIDs, by node number: they may be older than what the history holds.
    pub bases: Vec<(u8, u64)>,
}

/// A change that needs the peer's consent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The sender wants to become Primary.
    Promote,
    /// The sender leaves on purpose; the receiver's disk becomes Outdated if the sender is Primary.
    Disconnect,
    /// The receiver's disk shall become a full sync target (`invalidate-remote`).
    InvalidatePeer,
    /// The sender's disk shall become a full sync target (`invalidate`).
    InvalidateMe,
    /// Both just created: declare the copies equal (`new-current-uuid --clear-bitmap`).
    DeclareEqual {
        /// Volume number.
        volume: u16,
        /// The generation both start from.
        current: u64,
    },
    /// Compare all volumes block by block (`verify`).
    Verify {
        /// Number of the verify; every frame of it carries it.
        run: u64,
        /// The receiver walks the device and compares; otherwise the sender does. A Primary always
        /// does.
        you_lead: bool,
        /// What differs is to be repaired at the end.
        repair: bool,
    },
    /// The device shall get another size. Answered by `ResizeReady`, or refused.
    Resize {
        /// Volume number.
        volume: u16,
        /// Bytes the sender's disk carries.
        offer: u64,
        /// Bytes wanted; as many as both disks carry when absent.
        size: Option<u64>,
        /// It may get smaller.
        force: bool,
    },
}

/// What a node sees of the receiver, of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    /// Volume number.
    pub volume: u16,
    /// Replication state on the sender's side.
    pub replication: ReplState,
    /// What the sender takes the receiver's disk for.
    pub disk: DiskState,
    /// Bytes the sender has marked as out of sync towards the receiver.
    pub out_of_sync: u64,
}

/// What a node sees of the receiver. For people: nothing is decided by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// What the sender takes the receiver's role for.
    pub role: Role,
    /// Volumes in ascending order.
    pub volumes: Vec<VolumeView>,
}

/// Messages. Those marked (data) travel on the data socket because they are ordered with writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// (data) First message.
    Params(Params),
    /// (data) Second message.
    Facts(Facts),
    /// (data) The sender's decision, one per volume.
    Verdicts(Vec<Verdict>),
    /// (data) The sender's bitmap is complete, merged and on its disk; the resync may start.
    BitmapReady {
        /// Volume number.
        volume: u16,
        /// The generation the bitmap is relative to (the source says it, the target repeats it):
        /// the target's current UUID while it is a target.
        base: u64,
        /// The sender's current UUID: the generation the target is brought to.
        current: u64,
    },
    /// (data) Role and disk state of the sender changed.
    State {
        /// Role of the sender.
        role: Role,
        /// (volume, disk state) of the sender.
        disks: Vec<(u16, DiskState)>,
    },
    /// (data) Writes after this message belong to this generation and go to these nodes. Only in
    /// resources of three and more nodes.
    NewCurrentUuid {
        /// Volume number.
        volume: u16,
        /// The current UUID so far. Equal to `current` when only the set of nodes has changed; then no
        /// answer is due.
        previous: u64,
        /// The current UUID from here on.
        current: u64,
        /// Bit per node id: the sender, and those that get all its writes and lack nothing.
        in_step: u16,
        /// Bit per node id: those that are known to lack this generation.
        behind: u16,
        /// Everything sent up to here is stable on those in step: marks for them may be cleared.
        settled: bool,
    },
    /// (data) The receiver of `NewCurrentUuid` has it on its disk.
    NewCurrentUuidAck {
        /// Volume number.
        volume: u16,
        /// The UUID confirmed.
        current: u64,
    },
    /// (data) No bit is left: the target may adopt these generations.
    ResyncFinished {
        /// Volume number.
        volume: u16,
        /// What the target adopts.
        generations: Generations,
        /// Bit per node id: the sender, and the nodes that are in step with it.
        in_step: u16,
    },
    /// (data) The target has adopted the generations on its disk.
    ResyncFinishedAck {
        /// Volume number.
        volume: u16,
        /// The current UUID adopted.
        current: u64,
    },
    /// (data) The target asks to be paused or continued (`pause-sync`, `resume-sync`), or the source says so.
    ResyncPause {
        /// Paused or not.
        paused: bool,
    },
    /// (data) Phase one of a change: may I?
    Prepare {
        /// Number of the transaction, chosen by the sender.
        tid: u64,
        /// What is asked.
        change: Change,
    },
    /// (data) Answer to `Prepare`.
    PrepareReply {
        /// Number of the transaction.
        tid: u64,
        /// `None`: yes. Otherwise the reason for the refusal in words.
        refusal: Option<String>,
    },
    /// (data) Phase two: done, or not.
    Finish {
        /// Number of the transaction.
        tid: u64,
        /// Carried out (true) or given up (false).
        commit: bool,
    },
    /// (data) The whole volume has been compared.
    VerifyFinished {
        /// Volume number.
        volume: u16,
        /// Number of the verify.
        run: u64,
        /// Bytes compared.
        checked: u64,
        /// Bytes that differ.
        different: u64,
    },
    /// (data) The verify ends before its time, or is not begun.
    VerifyEnded {
        /// Number of the verify.
        run: u64,
        /// Why, in words.
        reason: String,
    },
    /// (data) The sender is ready for a resize it was asked for: unless it is the Primary, the size is
    /// on its disk.
    ResizeReady {
        /// Number of the transaction.
        tid: u64,
        /// Volume number.
        volume: u16,
        /// Bytes.
        size: u64,
    },
    /// (data) So many of the application writes sent on this connection are stable on every node that
    /// is in step. Only in resources of three and more nodes.
    Settled {
        /// Writes since the connection was agreed on.
        writes: u64,
    },
    /// (data) The sender, Primary or about to be, has no current copy of its own: its clients are to be
    /// served from the receiver's, which is to go on as this generation.
    Serve {
        /// Volume number.
        volume: u16,
        /// The generation the receiver must have; 0: whatever it has.
        previous: u64,
        /// The generation from here on; may be the same.
        current: u64,
    },
    /// (data) Answer to `Serve`.
    Serving {
        /// Volume number.
        volume: u16,
        /// The generation that is on the sender's disk now; 0: the sender cannot serve.
        current: u64,
    },
    /// (data) The sender is Primary, served by the receiver and brought up to date by it: it sends no
    /// write until the resync has ended.
    WritesHeld {
        /// Volume number.
        volume: u16,
    },
    /// (data) What the sender sees of the receiver; told when it has changed.
    View(View),
}

/// Largest encoded message in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

/// A message that cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Longer than any message.
    #[error("a control message of {0} bytes, more than {MAX_MESSAGE}")]
    TooLong(usize),
    /// Not a message of this version.
    #[error("a control message that cannot be decoded")]
    Malformed,
    /// Bytes left over.
    #[error("a control message with {0} bytes too many")]
    Trailing(usize),
}

impl Message {
    /// Encodes it.
    pub fn encode(&self) -> Vec<u8> {
        // Encoding into memory cannot fail for these types.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// Decodes a whole message. What a hostile peer can make us allocate is bounded by
    /// [`MAX_MESSAGE`]: postcard reserves no more than the bytes that are there.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(MessageError::TooLong(bytes.len()));
        }
        match postcard::take_from_bytes(bytes) {
            Ok((message, [])) => Ok(message),
            Ok((_, rest)) => Err(MessageError::Trailing(rest.len())),
            Err(_) => Err(MessageError::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn round_trip_and_nothing_may_follow() {
        let message = Message::Prepare {
            tid: 7,
            change: Change::Promote,
        };
        let mut bytes = message.encode();
        assert_eq!(Message::decode(&bytes), Ok(message));
        bytes.push(0);
        assert_eq!(Message::decode(&bytes), Err(MessageError::Trailing(1)));
        assert_eq!(Message::decode(&[]), Err(MessageError::Malformed));
        assert!(matches!(
            Message::decode(&[0; MAX_MESSAGE + 1]),
            Err(MessageError::TooLong(_))
        ));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = Message::decode(&bytes);
        }
    }
}

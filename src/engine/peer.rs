//! What is known of one peer: the link, where its handshake stands, its log of sent writes, and what
//! it is sending.

use crate::epoch_receiver::EpochReceiver;
use crate::event::{ConnState, DiskState, ReplState, Role};
use crate::fencing::Fence;
use crate::group::Members;
use crate::handshake::Decision;
use crate::ids::{CommandId, NodeId, VolumeId};
use crate::left_behind::Lacks;
use crate::peer_view::Views;
use crate::request::RequestKey;
use crate::resync::Resync;
use crate::save_discarded::Saving;
use crate::status::SplitBrain;
use crate::time::Instant;
use crate::transfer_log::TransferLog;
use crate::unsettled::Unsettled;
use crate::verify::{Verify, is_verify};
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use twinblk_protocol::control::{Facts, Params, Reach, Verdict};

/// Where the handshake on a link stands, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Waiting for the peer's parameters.
    Params,
    /// Application writes are frozen; waiting until nothing is in flight.
    Drain,
    /// Own facts are sent; waiting for the peer's.
    Facts,
    /// Own decision is sent; waiting for the peer's.
    Verdicts,
    /// Agreed. Resync may still be starting.
    Agreed,
}

/// A live link.
#[derive(Debug)]
pub(crate) struct Link {
    /// Counts links to this peer; what was started under an older one is stale.
    pub(crate) number: u64,
    pub(crate) phase: Phase,
    /// Agreed on nothing but the settings: data come from a third node ([`crate::group`]).
    pub(crate) parked: bool,
    /// Where this node said its data come from when the link came up.
    pub(crate) said: Reach,
    /// The peer is the Primary this node gets its writes from.
    pub(crate) leads: bool,
    /// When it came up.
    pub(crate) up_since: Instant,
    /// When the writes were frozen for the handshake.
    pub(crate) frozen_at: Option<Instant>,
    pub(crate) params: Option<Params>,
    pub(crate) my_facts: Option<Facts>,
    pub(crate) facts: Option<Facts>,
    pub(crate) decisions: Vec<Decision>,
    pub(crate) verdicts: Option<Vec<Verdict>>,
    pub(crate) last_received: Instant,
    pub(crate) ping: Option<(u64, Instant)>,
    pub(crate) ping_sequence: u64,
    /// Bytes queued on the data socket in all, and handed to the kernel.
    pub(crate) queued: u64,
    pub(crate) sent: u64,
    pub(crate) progress_at: Instant,
    /// Position of the bitmap being sent: volume index and next bit.
    pub(crate) bitmap_cursor: Option<(usize, u64)>,
    /// The peer asked to promote itself and was told yes: the transaction.
    pub(crate) granted: Option<u64>,
    /// The peer said yes to our promotion: the transaction to finish.
    pub(crate) granted_to_me: Option<u64>,
    /// The Primary at the other end was told that this copy stays behind: no resync ends any more.
    pub(crate) stays_behind: bool,
    /// Something we asked the peer for.
    pub(crate) asked: Option<Asked>,
    /// By volume: the peer was known to be outdated when this link came up.
    pub(crate) was_outdated: Vec<bool>,
    /// Sequence number of the last pong.
    pub(crate) ponged: u64,
    /// The handler `before-resync-target` was asked on this connection; whether it has allowed it.
    pub(crate) before_resync: Option<bool>,
    /// A request of the peer that waits until everything it sent before is on the disk.
    pub(crate) deferred: Option<(u64, twinblk_protocol::control::Change)>,
}

/// A `Prepare` that waits for its answer.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) tid: u64,
    pub(crate) deadline: Instant,
    pub(crate) what: AskedWhat,
}

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AskedWhat {
    Promote,
    Disconnect,
    InvalidatePeer(CommandId),
    DeclareEqual(CommandId, u64),
    Resize(CommandId),
    /// Number of the verify, whether this side leads, whether it repairs.
    Verify(CommandId, u64, bool, bool),
}

/// How far the start of a resync of one volume is.
#[derive(Debug, Default)]
pub(crate) struct SyncStart {
    /// The peer's current UUID when both agreed to resync.
    pub(crate) peer_current: u64,
    /// The peer's copy may lack what a crash has cost: as Primary, as Secondary.
    pub(crate) peer_crashed: (bool, bool),
    /// Own bitmap is sent, or not needed.
    pub(crate) bitmap_sent: bool,
    /// Peer's bitmap is merged, or not needed.
    pub(crate) bitmap_merged: bool,
    /// Own metadata commit was asked for.
    pub(crate) committing: bool,
    /// Own metadata are on the disk and told.
    pub(crate) ready: bool,
    /// Source's current UUID when its metadata were ready: what the target is brought to.
    pub(crate) toward: u64,
    /// Target in a split brain: what it has changed itself, before the source's marks were merged in.
    pub(crate) own: Option<Vec<u64>>,
    /// Whether what is given up has to be saved first.
    pub(crate) saving: Saving,
    /// Base generation the peer told.
    pub(crate) peer_base: Option<u64>,
}

/// One volume towards the peer.
#[derive(Debug)]
pub(crate) struct PeerVolume {
    pub(crate) id: VolumeId,
    pub(crate) replication: ReplState,
    /// Since when.
    pub(crate) since: Instant,
    pub(crate) disk: DiskState,
    pub(crate) start: SyncStart,
    pub(crate) resync: Option<Resync>,
    pub(crate) verify: Option<Verify>,
    /// What came of the last verify, in words.
    pub(crate) verified: Option<String>,
    /// The verify that ended last on this link: frames of it may still be on their way.
    pub(crate) ended_verify: Option<u64>,
    /// The last verify found something that is to be repaired here.
    pub(crate) repair_due: bool,
    /// The peer is known not to have our current generation. A bitmap UUID alone does not prove it:
    /// the end of a resync, or of a leftover, may not have reached the disk before a crash, and the
    /// peer may have our generation and may have gone on from it.
    pub(crate) lacks_current: bool,
    /// What it may lack although it has this node's generation ([`crate::left_behind`]).
    pub(crate) lacks: Lacks,
    /// The Primary this node follows sends its writes to this peer too, and it lacks nothing.
    pub(crate) fed: bool,
    /// A resync is due, and waits for another one to end.
    pub(crate) later: bool,
    /// The peer is Primary, and its clients are served from this node's copy ([`crate::serving`]).
    pub(crate) serves: bool,
    /// It has asked for that, and what makes it so is on its way to the disk here.
    pub(crate) will_serve: bool,
    /// A new generation was sent; the peer has not confirmed it.
    pub(crate) ack_due: Option<Instant>,
    /// Who is in step, as the peer was told last.
    pub(crate) told: Option<Members>,
    /// Under a fencing policy: this peer may have gone on, or go on, without this copy.
    pub(crate) unfenced: bool,
    /// What it is to be told when all writes up to this tag are stable everywhere.
    pub(crate) to_tell: Option<(Members, u64)>,
}

impl PeerVolume {
    /// The copies are in step but for what is under way (a verify changes nothing in that).
    pub(crate) fn mirrors(&self) -> bool {
        self.replication == ReplState::Established || is_verify(self.replication)
    }

    /// The end of a resync from this peer is on its way to the disk.
    pub(crate) fn adopts(&self) -> bool {
        self.resync.as_ref().is_some_and(Resync::is_adopting)
    }
}

/// A peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) state: ConnState,
    pub(crate) reason: String,
    pub(crate) since: Instant,
    /// Keep a connection to it.
    pub(crate) want: bool,
    pub(crate) link: Option<Link>,
    pub(crate) links: u64,
    pub(crate) role: Role,
    pub(crate) volumes: Vec<PeerVolume>,
    /// The peer's incarnation at the last agreed connection, 0 = none in this life.
    pub(crate) seen_incarnation: u64,
    pub(crate) discard_my_data: bool,
    /// A policy gave this node's copy up, and it stopped being Primary for that.
    pub(crate) gives_up: bool,
    /// This node has stopped being Primary, or is about to, because that peer's copy counts.
    pub(crate) gives_way: bool,
    /// If this node's copy is given up in the next handshake, it is saved to this file first.
    pub(crate) save_to: Option<String>,
    /// The refusal that was told last.
    pub(crate) told_refusal: String,
    /// The split brain found when the two met last, while it is not resolved.
    pub(crate) split_brain: Option<SplitBrain>,
    pub(crate) dry_run: Option<(CommandId, Instant)>,
    /// What `want` and `discard_my_data` were before a dry run, which must leave no trace.
    pub(crate) before_dry_run: (bool, bool),
    pub(crate) log: TransferLog,
    /// Flushes that wait for a barrier's ack: (epoch, request).
    pub(crate) flush_waiters: Vec<(u64, RequestKey)>,
    pub(crate) receiver: EpochReceiver,
    /// Writes of this peer, the Primary, that may not be everywhere yet.
    pub(crate) unsettled: Unsettled,
    /// It was followed, and is not any more; its last writes are still on their way to the disk.
    pub(crate) unfollow: bool,
    /// Tags of the writes sent to this peer that are not settled, how many are, and how many it knows.
    pub(crate) settling: VecDeque<u64>,
    pub(crate) settled: u64,
    pub(crate) settled_told: u64,
    /// What both ends see of each other.
    pub(crate) views: Views,
    /// Ranges the peer asked to have the digests of.
    pub(crate) asked_ranges: usize,
    /// Reads of this node's copy for clients of the peer.
    pub(crate) reads_served: usize,
    /// The link that is about to go is replaced at once: the generations are compared anew.
    pub(crate) renegotiates: bool,
    /// What is done to make sure that it cannot be promoted.
    pub(crate) fence: Fence,
}

impl Peer {
    pub(crate) fn new(node: NodeId, name: String, volumes: &[VolumeId]) -> Self {
        Self {
            node,
            name,
            state: ConnState::StandAlone,
            reason: String::from("not connected yet"),
            since: Instant::default(),
            want: false,
            link: None,
            links: 0,
            role: Role::Unknown,
            volumes: volumes
                .iter()
                .map(|&id| PeerVolume {
                    id,
                    replication: ReplState::Off,
                    since: Instant::default(),
                    disk: DiskState::DUnknown,
                    start: SyncStart::default(),
                    resync: None,
                    verify: None,
                    verified: None,
                    ended_verify: None,
                    repair_due: false,
                    lacks_current: false,
                    lacks: Lacks::Unknown,
                    fed: false,
                    later: false,
                    serves: false,
                    will_serve: false,
                    ack_due: None,
                    told: None,
                    unfenced: false,
                    to_tell: None,
                })
                .collect(),
            seen_incarnation: 0,
            discard_my_data: false,
            gives_up: false,
            gives_way: false,
            save_to: None,
            told_refusal: String::new(),
            split_brain: None,
            dry_run: None,
            before_dry_run: (false, false),
            log: TransferLog::default(),
            flush_waiters: Vec::new(),
            receiver: EpochReceiver::default(),
            unsettled: Unsettled::default(),
            unfollow: false,
            settling: VecDeque::new(),
            settled: 0,
            settled_told: 0,
            views: Views::default(),
            asked_ranges: 0,
            reads_served: 0,
            renegotiates: false,
            fence: Fence::default(),
        }
    }

    /// Whether writes of this volume are sent to the peer now (otherwise they set bits).
    pub(crate) fn receives(&self, volume: usize) -> bool {
        let pv = &self.volumes[volume];
        let sent = pv.mirrors()
            || matches!(
                pv.replication,
                ReplState::SyncSource | ReplState::PausedSyncS
            );
        let compared = |l: &Link| l.phase == Phase::Agreed && !l.parked;
        sent && !pv.later
            && self.link.as_ref().is_some_and(compared)
            && pv.disk >= DiskState::Inconsistent
            && pv.disk != DiskState::DUnknown
    }

    /// Ends a dry run: everything is as before it. Answers who ordered it.
    pub(crate) fn end_dry_run(&mut self) -> Option<CommandId> {
        let (id, _) = self.dry_run.take()?;
        (self.want, self.discard_my_data) = self.before_dry_run;
        Some(id)
    }

    /// It is the Primary this node gets its writes from.
    pub(crate) fn leads(&self) -> bool {
        self.link.as_ref().is_some_and(|l| l.leads)
    }

    /// Connected, and the generations were not compared.
    pub(crate) fn is_parked(&self) -> bool {
        self.link.as_ref().is_some_and(|l| l.parked)
    }

    /// A new connection, or a new reign, counts settled writes from the beginning.
    pub(crate) fn count_settled_anew(&mut self) {
        self.settling.clear();
        (self.settled, self.settled_told) = (0, 0);
    }

    /// What the peer was told counts no more: it is told anew.
    pub(crate) fn forget_told(&mut self) {
        for v in &mut self.volumes {
            (v.told, v.to_tell) = (None, None);
        }
    }

    /// Connected and agreed.
    pub(crate) fn is_agreed(&self) -> bool {
        self.link.as_ref().is_some_and(|l| l.phase == Phase::Agreed)
    }

    /// A handshake holds application writes back.
    pub(crate) fn freezes(&self) -> bool {
        self.link
            .as_ref()
            .is_some_and(|l| matches!(l.phase, Phase::Drain | Phase::Facts | Phase::Verdicts))
    }

    /// Number of the live link, or `None`.
    pub(crate) fn link_number(&self) -> Option<u64> {
        self.link.as_ref().map(|l| l.number)
    }

    /// Bytes queued and not yet handed to the kernel.
    pub(crate) fn unsent(&self) -> u64 {
        self.link
            .as_ref()
            .map_or(0, |l| l.queued.saturating_sub(l.sent))
    }
}

//! A picture of the resource for `status`, `role`, `cstate`, `dstate` and their JSON form.

use crate::command::Refusal;
use crate::event::{ConnState, DiskState, ReplState, Role};
use crate::ids::{NodeId, VolumeId};
use crate::time::Instant;
use alloc::string::String;
use alloc::vec::Vec;
use twinblk_protocol::control::VolumeView;

/// Progress of a resync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResyncProgress {
    /// Bytes out of sync when it began (grows if writes dirty more).
    pub total: u64,
    /// Bytes still to go.
    pub left: u64,
    /// Bytes per second of the last seconds.
    pub rate: u64,
    /// Seconds to go at that rate; `None` when it cannot be told.
    pub eta: Option<u64>,
    /// What limits it, in words.
    pub limited_by: &'static str,
}

/// Progress of an online verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyProgress {
    /// How far, how fast.
    pub progress: ResyncProgress,
    /// Bytes found to differ so far.
    pub different: u64,
}

/// A volume towards one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerVolumeStatus {
    /// Volume.
    pub volume: VolumeId,
    /// Replication state.
    pub replication: ReplState,
    /// The peer's disk.
    pub peer_disk: DiskState,
    /// Bytes marked out of sync towards this peer.
    pub out_of_sync: u64,
    /// This copy has begun a generation that the peer does not have.
    pub behind: bool,
    /// Running resync.
    pub resync: Option<ResyncProgress>,
    /// Running verify.
    pub verify: Option<VerifyProgress>,
    /// What came of the last verify, in words.
    pub verified: Option<String>,
    /// Since when the replication state is what it is.
    pub since: Instant,
    /// What the peer sees of this node; `None` while it has not told.
    pub seen_by_peer: Option<VolumeView>,
    /// Since when the resync has made no progress, and why, once that is no matter of seconds.
    pub standstill: Option<(Instant, String)>,
}

/// What one side of a split brain holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitSide {
    /// Bytes it has changed since the two parted, at most.
    pub changed: u64,
    /// Its current generation.
    pub current: u64,
    /// The generation those changes are relative to; 0: unknown.
    pub base: u64,
    /// It was Primary when they parted.
    pub parted_as_primary: bool,
}

/// A volume whose copies have changed independently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitVolume {
    /// Volume.
    pub volume: VolumeId,
    /// Rule of the handshake that found it.
    pub rule: &'static str,
    /// This node's copy.
    pub here: SplitSide,
    /// The peer's.
    pub there: SplitSide,
}

/// A split brain that nothing has resolved yet, as it was when the two met last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitBrain {
    /// When they met.
    pub found: Instant,
    /// Volumes.
    pub volumes: Vec<SplitVolume>,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Number.
    pub node: NodeId,
    /// Name.
    pub name: String,
    /// Connection state.
    pub connection: ConnState,
    /// Its role.
    pub role: Role,
    /// Why it is as it is, in words.
    pub reason: String,
    /// Since when.
    pub since: Instant,
    /// Bytes queued for it and not yet handed to the kernel.
    pub unsent: u64,
    /// Writes it has not confirmed as stable.
    pub transfer_log: u64,
    /// In what both ends' views of the connection disagree, once that is no matter of seconds.
    pub disagreement: Option<String>,
    /// The copies have parted, and nothing has resolved it yet.
    pub split_brain: Option<SplitBrain>,
    /// I/O waits for this peer, and nothing is under way that would end that: why it could not be fenced.
    pub not_fenced: Option<String>,
    /// Volumes.
    pub volumes: Vec<PeerVolumeStatus>,
}

/// The activity log of a volume: what it holds, and what it has done since the resource was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Extents it has room for; 0: this node was not Primary yet.
    pub capacity: u64,
    /// Bytes of an extent.
    pub extent_size: u64,
    /// Extents that are active.
    pub active: u64,
    /// Extents in which something is not yet stable everywhere.
    pub held: u64,
    /// Transactions written.
    pub transactions: u64,
    /// Extents that became active.
    pub activated: u64,
    /// Extents that were forgotten for others.
    pub evicted: u64,
    /// Writes that waited for an extent.
    pub waited: u64,
    /// Bytes marked out of sync when the disk was attached, because this node had gone down as
    /// Primary.
    pub marked_after_crash: u64,
}

/// One local volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Volume.
    pub volume: VolumeId,
    /// Disk state.
    pub disk: DiskState,
    /// Why, in words.
    pub reason: String,
    /// Since when.
    pub since: Instant,
    /// Usable size in bytes (agreed with the peers where known).
    pub size: u64,
    /// Smallest I/O in bytes.
    pub block_size: u32,
    /// Current generation.
    pub current_uuid: u64,
    /// The generation of the disk when it was attached, as long as no other node's writes have come
    /// over it since; then 0. A resync of what a crash left open, from a peer of that same
    /// generation, changes nothing that was confirmed.
    pub lineage: u64,
    /// Activity log.
    pub activity: Activity,
    /// Errors of the disk that clients were given while it stayed in use (`on-io-error = "pass-on"`).
    pub errors_passed_on: u64,
    /// Clients are served from the copy of the peer of this name.
    pub served_by: Option<String>,
    /// The disk is attached again by itself in so many seconds.
    pub attach_in: Option<u64>,
}

/// The resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Name.
    pub resource: String,
    /// This node's number.
    pub node: NodeId,
    /// This node's name.
    pub node_name: String,
    /// Role.
    pub role: Role,
    /// Since when.
    pub role_since: Instant,
    /// What stands against `primary` here and now, as far as this node knows.
    pub may_promote: Result<(), Refusal>,
    /// Peers for which `primary` would call the handler `fence-peer` first; what that answers decides.
    pub fences_first: Vec<String>,
    /// What stands against `secondary`.
    pub may_demote: Result<(), Refusal>,
    /// Writes are held back, for this reason.
    pub suspended: Option<String>,
    /// Reasons for which all I/O is suspended.
    pub suspended_for: crate::suspend::Suspended,
    /// Clients that hold the export.
    pub open_clients: Vec<String>,
    /// Volumes.
    pub volumes: Vec<VolumeStatus>,
    /// Peers.
    pub peers: Vec<PeerStatus>,
}

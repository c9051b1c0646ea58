//! The control API's data: what travels as JSON over the control socket. Shared by the daemon and
//! the command line, and documented for everybody else in `docs/api.md`.
//!
//! * `GET  /v1/resources`              → [`Vec<ResourceStatus>`]
//! * `GET  /v1/resources/NAME`         → [`ResourceStatus`]
//! * `POST /v1/resources/NAME/VERB`    with [`Order`] → [`Answer`], or a 4xx/5xx with [`ErrorBody`]
//! * `GET  /v1/resources/NAME/why`     → [`Why`]; `?about=promote`, `?about=demote`
//! * `GET  /v1/events`                 → a stream of JSON lines, [`EventLine`]
//! * `GET  /v1/version`                → [`Version`]
//!
//! Verbs: up, down, connect, disconnect, primary, secondary, suspend-io,
//! resume-io, outdate, invalidate, invalidate-remote, verify, resize,
//! new-current-uuid, adjust, dump (the configuration as the daemon understood it).

use serde::{Deserialize, Serialize};

/// Arguments of a verb; those a verb does not know are errors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Order {
    /// `primary --force`, `secondary --force`, `down --force`, `resize --force`.
    pub(crate) force: bool,
    /// Name of the peer for connect, disconnect, invalidate-remote, verify; all when absent.
    pub(crate) peer: Option<String>,
    /// `connect --discard-my-data`.
    pub(crate) discard_my_data: bool,
    /// `connect --discard-my-data --save-discarded`: an absolute path on the daemon's machine.
    pub(crate) save_discarded: Option<String>,
    /// `connect --dry-run`, `adjust --dry-run`.
    pub(crate) dry_run: bool,
    /// `new-current-uuid --clear-bitmap`.
    pub(crate) clear_bitmap: bool,
    /// `verify --repair`.
    pub(crate) repair: bool,
    /// `verify --stop`.
    pub(crate) stop: bool,
    /// `resize --size`, bytes.
    pub(crate) size: Option<u64>,
}

/// A verb was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// For the person; may be empty.
    pub(crate) text: String,
}

/// A verb was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ErrorBody {
    /// Stable word: state, no-disk, no-up-to-date-data, lower-than-outdated, in-use, peer-refused, unknown, timeout,
    /// config, metadata, device, not-up, other.
    pub(crate) kind: String,
    /// What happened and why.
    pub(crate) reason: String,
    /// What to do next; may be empty.
    pub(crate) way_out: String,
    /// The exit code the command line ends with.
    pub(crate) exit_code: u8,
}

/// Version of daemon and API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    /// Program version.
    pub(crate) version: String,
    /// API version, 1.
    pub(crate) api: u32,
}

/// One resource.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ResourceStatus {
    /// Name.
    pub(crate) name: String,
    /// This node's name.
    pub(crate) node: String,
    /// Whether `up` has been done. When false the other fields are empty, except `suspended`.
    pub(crate) up: bool,
    /// Primary, Secondary, Unknown.
    pub(crate) role: String,
    /// Seconds since the role is what it is.
    pub(crate) role_since_seconds: Option<u64>,
    /// What stands against `primary` here and now; `null` when nothing does.
    pub(crate) promotion_refused: Option<ErrorBody>,
    /// Peers for which `primary` would call the handler `fence-peer` first: what it answers decides.
    #[serde(default)]
    pub(crate) promotion_fences: Vec<String>,
    /// What stands against `secondary`; `null` when nothing does.
    pub(crate) demotion_refused: Option<ErrorBody>,
    /// Reasons for which all I/O is suspended: user, no-data, fencing.
    pub(crate) suspended_for: Vec<String>,
    /// Why writes are held back at the moment, if they are. Of a resource that is not up: why, if
    /// it should be.
    pub(crate) suspended: Option<String>,
    /// Clients that hold the export.
    pub(crate) open_clients: Vec<String>,
    /// Where the export listens ("unix:/run/…").
    pub(crate) exports: Vec<String>,
    /// Local volumes.
    pub(crate) volumes: Vec<VolumeStatus>,
    /// Peers.
    pub(crate) peers: Vec<PeerStatus>,
    /// Driver counters.
    pub(crate) driver: Option<DriverStatus>,
}

/// A local volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeStatus {
    /// Number.
    pub(crate) volume: u16,
    /// Disk state by DRBD's name.
    pub(crate) disk: String,
    /// Why.
    pub(crate) reason: String,
    /// Seconds since the last change; `null` when there was none since the start.
    pub(crate) since_seconds: Option<u64>,
    /// Bytes.
    pub(crate) size: u64,
    /// Bytes.
    pub(crate) block_size: u32,
    /// Current generation, 16 hex digits.
    pub(crate) current_uuid: String,
    /// How the disk is driven.
    pub(crate) disk_engine: String,
    /// Activity log; `null` as long as the node has not been Primary.
    pub(crate) activity_log: Option<ActivityLog>,
    /// Bytes marked out of sync at the start, because the node had gone down as Primary.
    pub(crate) marked_after_crash: u64,
    /// Errors of the disk that clients were given while it stayed in use, since it was attached.
    #[serde(default)]
    pub(crate) errors_passed_on: u64,
    /// Clients are served from the copy of the peer of this name; `null`: from this disk, or not at all.
    #[serde(default)]
    pub(crate) served_by: Option<String>,
    /// The disk failed and is attached again by itself in so many seconds; `null`: it is not.
    #[serde(default)]
    pub(crate) attach_in_seconds: Option<u64>,
    /// The kernel device; `null` when none is configured.
    pub(crate) device: Option<DeviceStatus>,
}

/// The kernel device of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceStatus {
    /// "/dev/nbd0"; "auto" as long as none was chosen.
    pub(crate) path: String,
    /// attached, detached, waiting (in the kernel, not served yet), given-up (in the kernel, not served
    /// any more).
    pub(crate) state: String,
    /// Why, if something stands in its way.
    pub(crate) reason: String,
}

/// What the activity log of a volume holds, and what it has done since the last start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ActivityLog {
    /// Extents it has room for.
    pub(crate) extents: u64,
    /// Bytes of an extent.
    pub(crate) extent_size: u64,
    /// Extents in use.
    pub(crate) active: u64,
    /// Extents with writes that are not stable everywhere.
    pub(crate) held: u64,
    /// Metadata writes it cost.
    pub(crate) transactions: u64,
    /// Writes that waited for one.
    pub(crate) waited: u64,
}

/// A peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PeerStatus {
    /// Name.
    pub(crate) name: String,
    /// Number.
    pub(crate) node_id: u8,
    /// Connection state by DRBD's name.
    pub(crate) connection: String,
    /// Role by DRBD's name.
    pub(crate) role: String,
    /// Why it is so.
    pub(crate) reason: String,
    /// Seconds since the last change.
    pub(crate) since_seconds: u64,
    /// Bytes queued and not sent.
    pub(crate) unsent: u64,
    /// Writes not confirmed stable.
    pub(crate) transfer_log: u64,
    /// In what the two ends' views disagree, for longer than a few seconds.
    pub(crate) disagreement: Option<String>,
    /// The copies have parted and nothing has resolved it yet: what each side holds, as it was when the
    /// two met last.
    #[serde(default)]
    pub(crate) split_brain: Option<SplitBrain>,
    /// I/O waits for this peer, and `fence-peer` has failed: why. `null` otherwise.
    #[serde(default)]
    pub(crate) not_fenced: Option<String>,
    /// Volumes towards this peer.
    pub(crate) volumes: Vec<PeerVolumeStatus>,
}

/// A split brain that nothing has resolved yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SplitBrain {
    /// Seconds since it was found.
    pub(crate) since_seconds: u64,
    /// Volumes whose copies have parted.
    pub(crate) volumes: Vec<SplitVolume>,
}

/// One volume of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SplitVolume {
    /// Number.
    pub(crate) volume: u16,
    /// Rule that found it.
    pub(crate) rule: String,
    /// This node's copy.
    pub(crate) here: SplitSide,
    /// The peer's.
    pub(crate) there: SplitSide,
}

/// One copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SplitSide {
    /// Bytes it has changed since they parted, at most.
    pub(crate) changed: u64,
    /// Its generation.
    pub(crate) current_uuid: String,
    /// The generation those changes are relative to; zeroes: unknown.
    pub(crate) base_uuid: String,
    /// It was Primary when they parted.
    pub(crate) primary_when_parted: bool,
}

/// A volume towards a peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PeerVolumeStatus {
    /// Number.
    pub(crate) volume: u16,
    /// Replication state by DRBD's name.
    pub(crate) replication: String,
    /// The peer's disk state.
    pub(crate) peer_disk: String,
    /// Bytes out of sync.
    pub(crate) out_of_sync: u64,
    /// Running resync.
    pub(crate) resync: Option<ResyncStatus>,
    /// Running verify.
    pub(crate) verify: Option<VerifyStatus>,
    /// What came of the last verify, in words.
    pub(crate) verified: Option<String>,
    /// Seconds since the replication state is what it is.
    pub(crate) since_seconds: Option<u64>,
    /// What the peer sees of this node; `null` while it is not connected.
    pub(crate) seen_by_peer: Option<SeenByPeer>,
    /// A resync that makes no progress: why.
    pub(crate) standstill: Option<String>,
}

/// What the peer sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeenByPeer {
    /// Replication state on its side.
    pub(crate) replication: String,
    /// What it takes this node's disk for.
    pub(crate) disk: String,
    /// Bytes it has marked as out of sync.
    pub(crate) out_of_sync: u64,
}

/// Progress of a resync.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ResyncStatus {
    /// Bytes at the start.
    pub(crate) total: u64,
    /// Bytes left.
    pub(crate) left: u64,
    /// Per cent done, 0 to 100.
    pub(crate) percent: f64,
    /// Bytes per second.
    pub(crate) rate: u64,
    /// Seconds to go.
    pub(crate) eta_seconds: Option<u64>,
    /// What limits it.
    pub(crate) limited_by: String,
}

/// Progress of a verify.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct VerifyStatus {
    /// Bytes found to differ so far.
    pub(crate) different: u64,
    /// How far it is: `total` is the volume's size.
    #[serde(flatten)]
    pub(crate) progress: ResyncStatus,
}

/// Driver counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DriverStatus {
    /// Bytes of buffers in use.
    pub(crate) buffers_used: u64,
    /// Bytes of buffers in all.
    pub(crate) buffers_total: u64,
    /// "yes", or why not.
    pub(crate) buffers_registered: String,
    /// NBD connections being served.
    pub(crate) nbd_connections: u64,
    /// io_uring_enter calls.
    pub(crate) enters: u64,
    /// Other system calls made for I/O.
    #[serde(default)]
    pub(crate) calls: u64,
    /// `sched_yield` calls, made while looking for what comes next before sleeping (`poll-us`).
    #[serde(default)]
    pub(crate) yields: u64,
    /// Requests answered.
    pub(crate) requests: u64,
}

/// One line of the event stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventLine {
    /// Milliseconds since the Unix epoch.
    pub(crate) time_ms: u64,
    /// Resource.
    pub(crate) resource: String,
    /// role, disk, connection, replication, peer-role, peer-disk, suspended, handler, incident; exists: the
    /// present state is told, changes follow.
    pub(crate) kind: String,
    /// Peer's name where one is concerned.
    pub(crate) peer: Option<String>,
    /// Volume where one is concerned.
    pub(crate) volume: Option<u16>,
    /// State before.
    pub(crate) from: Option<String>,
    /// State after.
    pub(crate) to: Option<String>,
    /// info, warning, error.
    pub(crate) severity: String,
    /// Why.
    pub(crate) cause: String,
}

/// The answer to "why?".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Why {
    /// Resource.
    pub(crate) resource: String,
    /// The node that was asked.
    pub(crate) node: String,
    /// Nothing is to be done.
    pub(crate) healthy: bool,
    /// One sentence.
    pub(crate) summary: String,
    /// What is to be said, most urgent first.
    pub(crate) findings: Vec<Finding>,
}

/// Something that is not as it should be, or that was asked about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// What it is about: the resource, a volume, a peer.
    pub(crate) about: String,
    /// What is the case.
    pub(crate) state: String,
    /// Why; with the peer's own words where it said any.
    pub(crate) cause: String,
    /// Since when.
    pub(crate) since_seconds: Option<u64>,
    /// What is at risk while it stays so; may be empty.
    pub(crate) risk: String,
    /// What happens next by itself.
    pub(crate) next: String,
    /// What a person can do.
    pub(crate) commands: Vec<Suggestion>,
}

/// A command, and what it would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Suggestion {
    /// As it is typed.
    pub(crate) command: String,
    /// The node to type it on.
    pub(crate) node: String,
    /// What it would do.
    pub(crate) effect: String,
}

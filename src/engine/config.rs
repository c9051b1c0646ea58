//! What the engine must know of the configuration. Files and their syntax are the daemon's affair.

use crate::fencing::Fencing;
use crate::handler::HandlerSet;
use crate::ids::{NodeId, VolumeId};
use crate::split_brain::Policies;
use crate::time::Duration;
use alloc::string::String;
use alloc::vec::Vec;
pub use twinblk_protocol::control::Protocol;

/// `on-io-error`: what a disk that reports an error means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnIoError {
    /// It is out of use from then on.
    #[default]
    Detach,
    /// The handler `local-io-error` is called, before any peer is told; then as `Detach`.
    CallLocalIoError,
    /// Clients of a Primary that no peer could serve are given the error, and the disk stays in use;
    /// otherwise as `Detach`, and the disk is attached again by itself, a few times.
    PassOn,
}

/// `on-no-data-accessible`: what clients of a Primary that reaches no current copy get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnNoData {
    /// Errors.
    #[default]
    IoError,
    /// Nothing, until there is one.
    SuspendIo,
}

/// Options that may change while the resource runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Replication protocol.
    pub protocol: Protocol,
    /// Silence after which a ping is sent.
    pub ping_int: Duration,
    /// Silence after a ping after which the peer is given up.
    pub ping_timeout: Duration,
    /// A request the peer leaves unanswered for `timeout` × `ko_count` ends the connection.
    pub timeout: Duration,
    /// See `timeout`; 0 = never.
    pub ko_count: u32,
    /// Writes in one epoch, 1 to 20000.
    pub max_epoch_size: u32,
    /// Bytes of writes in one epoch.
    pub max_epoch_bytes: u64,
    /// Longest time an epoch with writes stays open.
    pub max_epoch_time: Duration,
    /// Bytes of unsent data per peer at which clients wait.
    pub send_queue: u64,
    /// Upper bound of the resync speed in bytes per second; 0 = none.
    pub resync_max_rate: u64,
    /// Bytes of resync data under way at once.
    pub resync_window: u64,
    /// Extents of the activity log; what the space on the disk does not hold is cut off. Taken up
    /// at the next promotion.
    pub al_extents: u32,
    /// `allow-two-primaries`; refused for now when true.
    pub allow_two_primaries: bool,
    /// What is done when a peer is lost.
    pub fencing: Fencing,
    /// What gives way when copies have parted, or the roles stand against a resync.
    pub policies: Policies,
    /// Every copy that is given up in a split brain is saved first (`save-discarded-dir`).
    pub save_discarded: bool,
    /// Handlers that are configured.
    pub handlers: HandlerSet,
    /// `on-io-error`.
    pub on_io_error: OnIoError,
    /// `on-no-data-accessible`.
    pub on_no_data: OnNoData,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            protocol: Protocol::C,
            ping_int: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(6),
            ko_count: 7,
            max_epoch_size: 2048,
            max_epoch_bytes: 64 << 20,
            max_epoch_time: Duration::from_secs(1),
            send_queue: 16 << 20,
            resync_max_rate: 0,
            resync_window: 4 << 20,
            al_extents: 1237,
            allow_two_primaries: false,
            fencing: Fencing::default(),
            policies: Policies::default(),
            save_discarded: false,
            handlers: HandlerSet::default(),
            on_io_error: OnIoError::default(),
            on_no_data: OnNoData::default(),
        }
    }
}

/// A volume of the resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeConfig {
    /// Its number.
    pub volume: VolumeId,
    /// Smallest I/O in bytes: 512 or 4096.
    pub block_size: u32,
}

/// A node of the resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its number.
    pub id: NodeId,
    /// Its name, for messages.
    pub name: String,
}

/// The resource as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceConfig {
    /// Its name.
    pub name: String,
    /// This node.
    pub me: NodeConfig,
    /// All other nodes.
    pub peers: Vec<NodeConfig>,
    /// At least one.
    pub volumes: Vec<VolumeConfig>,
    /// Options.
    pub options: Options,
    /// Random number of this life of the engine (not 0).
    pub incarnation: u64,
    /// Seed of the engine's random numbers (new generations).
    pub seed: u64,
}

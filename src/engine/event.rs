//! What is told to the outside: every change of a state with its cause, and incidents.

use crate::ids::{NodeId, VolumeId};
use crate::suspend::Suspended;
use alloc::string::String;
pub use twinblk_protocol::control::{DiskState, ReplState, Role};

/// State of the connection to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnState {
    /// Not trying.
    StandAlone,
    /// Being closed on purpose.
    Disconnecting,
    /// Link lost, about to try again.
    Unconnected,
    /// The peer was silent too long.
    Timeout,
    /// The link broke.
    BrokenPipe,
    /// The peer did not answer pings.
    NetworkFailure,
    /// The peer said something it must not say.
    ProtocolError,
    /// The peer left on purpose.
    TearDown,
    /// Trying.
    Connecting,
    /// Connected and agreed.
    Connected,
}

/// How much attention an event deserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Normal life.
    Info,
    /// Look at it when you can.
    Warning,
    /// Somebody must act.
    Error,
}

/// What changed or happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Own role.
    Role(Role, Role),
    /// Own disk state (from, to).
    Disk(VolumeId, DiskState, DiskState),
    /// Connection state to a peer (from, to).
    Connection(NodeId, ConnState, ConnState),
    /// Replication state with a peer (from, to).
    Replication(NodeId, VolumeId, ReplState, ReplState),
    /// Role of a peer (from, to).
    PeerRole(NodeId, Role, Role),
    /// Disk state of a peer (from, to).
    PeerDisk(NodeId, VolumeId, DiskState, DiskState),
    /// Reasons for which I/O is suspended (from, to).
    Suspended(Suspended, Suspended),
    /// Something without a state of its own.
    Incident,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What changed.
    pub what: What,
    /// How bad.
    pub severity: Severity,
    /// The cause, in words.
    pub cause: String,
}

//! What an administrator can order, and what can come of it.

use crate::config::Options;
use crate::ids::NodeId;
use alloc::boxed::Box;
use alloc::string::String;

/// An order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Become Primary.
    Primary {
        /// Declare the local data current, whatever is known of them.
        force: bool,
    },
    /// Become Primary for a client that is about to open the export (`auto-promote`).
    AutoPromote,
    /// That client did not come.
    AutoDemote,
    /// Become Secondary. Refused while a client holds the export.
    Secondary,
    /// Become Secondary also when clients hold the export or I/O is suspended: they get errors.
    SecondaryByForce,
    /// Connect to one peer or all.
    Connect {
        /// One peer, or all.
        peer: Option<NodeId>,
        /// In a split brain, this node's changes shall be overwritten.
        discard_my_data: bool,
        /// Only tell what would happen.
        dry_run: bool,
    },
    /// Connect; in a split brain this node's changes shall be overwritten, but saved first.
    DiscardSaving {
        /// One peer, or all.
        peer: Option<NodeId>,
        /// File that is written on this node.
        file: String,
    },
    /// Leave one peer or all and stay StandAlone.
    Disconnect {
        /// One peer, or all.
        peer: Option<NodeId>,
    },
    /// Declare the local data worthless: full sync from the peer.
    Invalidate,
    /// Declare the peer's data worthless: full sync to it.
    InvalidateRemote {
        /// One peer, or the only one.
        peer: Option<NodeId>,
    },
    /// Compare both copies block by block.
    Verify {
        /// One peer, or the only one.
        peer: Option<NodeId>,
        /// Copy what differs at the end.
        repair: bool,
    },
    /// End a running verify.
    VerifyStop {
        /// One peer, or all.
        peer: Option<NodeId>,
    },
    /// Give the device another size.
    Resize {
        /// Bytes; as many as both disks carry when absent.
        size: Option<u64>,
        /// It may get smaller.
        force: bool,
    },
    /// Start a new generation.
    NewCurrentUuid {
        /// Both copies are declared equal: skip the initial sync.
        clear_bitmap: bool,
    },
    /// Declare the local data older than another copy's.
    Outdate,
    /// Let clients' requests wait.
    SuspendIo,
    /// Let them go on.
    ResumeIo,
    /// Put the disks out of use.
    Detach {
        /// At once, whatever is under way with them and whoever needs them.
        force: bool,
    },
    /// Take over changed options (`adjust`).
    SetOptions(Box<Options>),
    /// Demote if possible, leave the peers, write out metadata, stop (`down`).
    Stop {
        /// Also when clients hold the export: they get errors from now on.
        force: bool,
    },
}

/// A refusal: what stands against the order, and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which kind; decides the exit code.
    pub kind: RefusalKind,
    /// What happened and why, in a sentence.
    pub reason: String,
    /// What to do next, in a sentence; may be empty.
    pub way_out: String,
}

/// Kinds of refusal. Exit codes are those scripts written for drbdsetup know where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The state does not allow it (exit 11).
    State,
    /// No disk attached (exit 16).
    NoDisk,
    /// Needs access to UpToDate data (exit 17).
    NoUpToDateData,
    /// The disk is worse than Outdated (exit 18).
    LowerThanOutdated,
    /// A client holds the export (exit 12).
    InUse,
    /// The peer said no (exit 13).
    PeerRefused,
    /// No such peer or volume (exit 10).
    Unknown,
    /// It took too long (exit 5).
    Timeout,
    /// Something else (exit 10).
    Other,
}

/// Text for the person, or a refusal.
pub type CommandResult = Result<String, Refusal>;

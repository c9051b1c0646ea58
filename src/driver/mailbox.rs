//! What the control plane and a resource's loop say to each other. The loop's side wakes by an
//! eventfd; the control plane's side is a tokio channel. Nothing on the data path passes here.

use std::os::fd::OwnedFd;
use std::sync::mpsc;
use twinblk_engine::command::{Command, CommandResult};
use twinblk_engine::event::Event;
use twinblk_engine::handler::{HandlerKind, HandlerResult};
use twinblk_engine::ids::{CommandId, HandlerId, NodeId, SaveId, VolumeId};
use twinblk_engine::save_discarded::SaveDiscarded;
use twinblk_engine::status::Status;
use userspace_nbd::negotiation::Session;

/// From the control plane to the loop.
#[derive(Debug)]
pub(crate) enum ToLoop {
    /// A negotiated NBD connection; the loop serves its transmission phase until it ends.
    NbdClient {
        /// The connected socket (unix or TCP).
        socket: OwnedFd,
        /// What was negotiated, with bytes already received.
        session: Session,
        /// Volume the export stands for.
        volume: VolumeId,
        /// Who it is, for messages ("unix client, pid 812 (fio)", "192.0.2.7:51234").
        client: String,
        /// Kept as long as anything of the connection is left: a request, or bytes not looked at.
        kept: Option<tokio::sync::oneshot::Sender<()>>,
    },
    /// Both sockets to a peer, authenticated. Replaces an older link to the same peer.
    PeerLink {
        /// The peer.
        peer: NodeId,
        /// Data socket and bytes already received on it.
        data: (OwnedFd, Vec<u8>),
        /// Control socket and bytes already received on it.
        control: (OwnedFd, Vec<u8>),
    },
    /// Dialling a peer failed, or its hello was refused.
    DialFailed {
        /// The peer.
        peer: NodeId,
        /// In words.
        reason: String,
    },
    /// An administrator's command.
    Command(CommandId, Command),
    /// A disk that was opened anew, for a volume that has none; the answer tells whether it has not.
    Attach(Box<super::OpenedVolume>, tokio::sync::oneshot::Sender<bool>),
    /// The answer to [`FromLoop::AttachDisk`]; closed at once when it is not wanted any more.
    AttachAgain(Box<super::OpenedVolume>),
    /// A disk that was to be opened again ([`FromLoop::AttachDisk`]) cannot be; why, in words.
    AttachFailed(VolumeId, String),
    /// A handler ended, or could not be run.
    HandlerDone(HandlerId, HandlerResult),
    /// What was to be saved is durable in this file, or cannot be saved, in words.
    DiscardedSaved(SaveId, Result<String, String>),
    /// Ask for a picture of the state.
    Status(tokio::sync::oneshot::Sender<StatusReply>),
}

/// Answer to [`ToLoop::Status`].
#[derive(Debug, Clone)]
pub(crate) struct StatusReply {
    /// The engine's state.
    pub(crate) status: Status,
    /// Facts about the driver: disk engine, O_DIRECT, buffers, counters.
    pub(crate) driver: DriverStatus,
    /// The engine's clock when the picture was taken (nanoseconds, for ages of `since`).
    pub(crate) now: twinblk_engine::time::Instant,
}

/// What `status` tells of the driver.
#[derive(Debug, Clone)]
pub(crate) struct DriverStatus {
    /// One entry per volume: how its disk is driven, in words
    /// ("io_uring, O_DIRECT", "inline pwrite (tmpfs)", "buffered: the file system refuses O_DIRECT").
    pub(crate) disks: Vec<(VolumeId, String)>,
    /// Buffers in use and in all, bytes.
    pub(crate) buffers_used: u64,
    /// See `buffers_used`.
    pub(crate) buffers_total: u64,
    /// Whether the buffers are registered with the ring; otherwise why not.
    pub(crate) buffers_registered: Result<(), String>,
    /// NBD connections being served.
    pub(crate) nbd_connections: u64,
    /// Turns of the loop, i.e. io_uring_enter calls.
    pub(crate) enters: u64,
    /// Other system calls made for I/O: sends, and reads and writes of disks driven inline.
    pub(crate) calls: u64,
    /// `sched_yield` calls while looking for completions before sleeping (`poll-us`).
    pub(crate) yields: u64,
    /// Client requests answered.
    pub(crate) requests: u64,
}

impl Default for DriverStatus {
    fn default() -> Self {
        Self {
            disks: Vec::new(),
            buffers_used: 0,
            buffers_total: 0,
            buffers_registered: Ok(()),
            nbd_connections: 0,
            enters: 0,
            calls: 0,
            yields: 0,
            requests: 0,
        }
    }
}

/// From the loop to the control plane.
#[derive(Debug)]
pub(crate) enum FromLoop {
    /// The engine reported an event.
    Event(Event),
    /// Run a handler; the answer is [`ToLoop::HandlerDone`].
    Handler {
        /// Comes back in the answer.
        id: HandlerId,
        /// Which.
        kind: HandlerKind,
        /// The peer it is about.
        peer: Option<NodeId>,
        /// The volume it is about.
        volume: Option<VolumeId>,
    },
    /// Open the disk of this volume again; the answer is [`ToLoop::AttachAgain`] or [`ToLoop::AttachFailed`].
    AttachDisk(VolumeId),
    /// Save these blocks of this disk, which nothing writes to; the answer is
    /// [`ToLoop::DiscardedSaved`]. The descriptor is a copy of the loop's own.
    SaveDiscarded(Box<SaveDiscarded>, OwnedFd),
    /// That is not needed any more.
    CancelSave(SaveId),
    /// A command ended.
    CommandDone(CommandId, CommandResult),
    /// Keep a link to this peer or not; `now` = dial at once.
    WantLink {
        /// The peer.
        peer: NodeId,
        /// Keep trying.
        want: bool,
        /// Without the usual delay.
        now: bool,
    },
    /// The link to a peer went down (dial again if wanted).
    LinkDown {
        /// The peer.
        peer: NodeId,
    },
    /// The loop ended: by `Stop`, or by an error in words.
    Ended(Result<(), String>),
}

/// The control plane's handle of a loop: send, then wake.
#[derive(Debug, Clone)]
pub(crate) struct LoopHandle {
    pub(crate) sender: mpsc::Sender<ToLoop>,
    pub(crate) wake: std::sync::Arc<OwnedFd>,
}

impl LoopHandle {
    /// Hands `message` to the loop. Fails only when the loop has ended.
    pub(crate) fn send(&self, message: ToLoop) -> Result<(), LoopGone> {
        self.sender.send(message).map_err(|_| LoopGone)?;
        // An eventfd write can only fail when the counter is full, and then the loop wakes anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        Ok(())
    }
}

/// The loop has ended; its last words came as [`FromLoop::Ended`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the resource is not running")]
pub(crate) struct LoopGone;

/// Longest payload of an NBD read or write in bytes, as offered to clients.
pub(crate) const MAX_NBD_PAYLOAD: u32 = 4 << 20;

/// NBD connections a resource serves at once. Every one costs a descriptor, and a daemon without
/// descriptors can neither dial its peers nor take orders. Clients that open many (QEMU, nbdcopy,
/// the kernel's driver) open some 16.
pub(crate) const MAX_NBD_CONNECTIONS: u64 = 256;

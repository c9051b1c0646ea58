//! Everything that can happen to a resource. Each input comes with the current time; the engine
//! learns nothing in any other way.

use crate::command::Command;
use crate::handler::HandlerResult;
use crate::ids::{BufId, CommandId, HandlerId, NodeId, OpId, ReqTag, SaveId, VolumeId};
use crate::metadata::open::Recovered;
use alloc::boxed::Box;
use alloc::string::String;
use twinblk_protocol::control::Message;
use twinblk_protocol::frame::Header;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// Fill the buffer.
    Read,
    /// Write the buffer.
    Write,
    /// The range shall read as zeroes and need not keep its space.
    Trim,
    /// The range shall read as zeroes.
    WriteZeroes {
        /// Space must stay allocated (NBD `NO_HOLE`).
        no_hole: bool,
    },
    /// Everything answered so far must be stable (offset and length are 0).
    Flush,
}

/// A request of a client of the export. Ranges are already checked against the export's size and
/// block size by the NBD front end; the engine checks again and answers `EINVAL`.
#[derive(Clone, Copy, Debug)]
pub struct ClientRequest {
    /// Comes back in the reply.
    pub tag: ReqTag,
    /// Volume it is for.
    pub volume: VolumeId,
    /// What is asked.
    pub kind: RequestKind,
    /// Bytes from the start of the volume.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Must be stable before it is answered.
    pub fua: bool,
    /// The data of a write, the space for a read. The engine gives it back by
    /// [`crate::output::Output::ReleaseBuf`] for a write; a read's buffer stays the driver's, which
    /// sends it with the reply.
    pub buf: Option<BufId>,
}

/// What follows the header of a frame that came from a peer.
#[derive(Debug)]
pub enum Body {
    /// Nothing.
    None,
    /// Bulk data, checksum already verified, in a buffer that now belongs to the engine.
    Buf(BufId),
    /// A control message, checksum verified and decoded.
    Message(Message),
    /// Other bytes (bitmap pieces, a goodbye), checksum verified.
    Bytes(Box<[u8]>),
}

/// Result of a disk operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskDone {
    /// The operation.
    pub op: OpId,
    /// `Err` carries the errno.
    pub result: Result<(), i32>,
    /// For a read: every byte read is zero. May be left `false` when not looked at.
    pub zero: bool,
    /// The buffer the driver provided for a read that named none; belongs to the engine now.
    pub buf: Option<BufId>,
}

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// A volume's disk was opened and its metadata read.
    Attached {
        /// Volume.
        volume: VolumeId,
        /// What [`crate::metadata::open::open`] found.
        recovered: Box<Recovered>,
        /// The disk has no volatile cache: every completed write is stable.
        no_volatile_cache: bool,
    },
    /// A disk that was to be opened again ([`crate::output::Output::AttachDisk`]) cannot be.
    AttachFailed {
        /// Volume.
        volume: VolumeId,
        /// In words.
        reason: String,
    },
    /// A client's request.
    Client(ClientRequest),
    /// A read, write, zero or flush on the data disk ended.
    Disk(DiskDone),
    /// The answer to [`crate::output::Output::DiskDigest`].
    Digest {
        /// The operation.
        op: OpId,
        /// [`twinblk_protocol::digest::digests`] of what was read, or the errno.
        result: Result<Box<[u8]>, i32>,
    },
    /// The answer to [`crate::output::Output::MeasureDisk`].
    Measured {
        /// Volume.
        volume: VolumeId,
        /// Bytes of the disk, or the errno.
        disk: Result<u64, i32>,
        /// Bytes of a metadata device of its own that ends where it ends (no file, which grows).
        meta: Option<u64>,
    },
    /// A metadata write or flush ended.
    Meta {
        /// The operation.
        op: OpId,
        /// `Err` carries the errno.
        result: Result<(), i32>,
    },
    /// Both sockets to a peer are connected and authenticated.
    LinkUp {
        /// The peer.
        peer: NodeId,
    },
    /// The sockets of a peer are closed, for whatever reason. After this no `SendProgress` or
    /// `Frame` of the old link may come.
    LinkDown {
        /// The peer.
        peer: NodeId,
        /// In words.
        reason: String,
    },
    /// An attempt to connect failed; kept for `status` and `why`.
    DialFailed {
        /// The peer.
        peer: NodeId,
        /// In words.
        reason: String,
    },
    /// A frame from a peer, whole and verified.
    Frame {
        /// The peer.
        peer: NodeId,
        /// Its header.
        header: Header,
        /// What followed it.
        body: Body,
    },
    /// Bytes handed to the kernel on a peer's data socket since its link came up, in total.
    SendProgress {
        /// The peer.
        peer: NodeId,
        /// Total bytes (headers and payloads).
        sent: u64,
    },
    /// An administrator's command.
    Command {
        /// Comes back in the answer.
        id: CommandId,
        /// What to do.
        command: Command,
    },
    /// A handler ended, or could not be run.
    HandlerDone {
        /// Which run.
        id: HandlerId,
        /// What came of it.
        result: HandlerResult,
    },
    /// What was to be saved is durable in this file, or cannot be saved, in words.
    DiscardedSaved {
        /// Which.
        id: SaveId,
        /// What came of it.
        result: Result<String, String>,
    },
    /// Time passed (a deadline the engine asked for has come).
    Tick,
}

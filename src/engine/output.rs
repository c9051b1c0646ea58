//! Everything the engine asks for. Outputs are in order: a driver carries them out in this order
//! (it may let them overlap: the engine never relies on two outputs finishing in order).

use crate::command::CommandResult;
use crate::event::Event;
use crate::handler::HandlerKind;
use crate::ids::{BufId, CommandId, HandlerId, NodeId, OpId, ReqTag, SaveId, VolumeId};
use crate::save_discarded::SaveDiscarded;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use twinblk_protocol::frame::Header;

/// One of the two sockets of a peer link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Writes, barriers, resync data, ordered messages.
    Data,
    /// Acks, pings.
    Control,
}

/// What follows the header. The driver fills `payload_len`, `payload_crc` and `header_crc`.
#[derive(Debug)]
pub enum SendBody {
    /// Nothing.
    None,
    /// `len` bytes of a pool buffer. The driver keeps its own hold on the buffer until the bytes
    /// are sent; the engine may release it at once.
    Buf {
        /// The buffer.
        buf: BufId,
        /// Bytes.
        len: u32,
    },
    /// These bytes.
    Bytes(Vec<u8>),
}

/// An error answered to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyError {
    /// Linux errno (EIO, EINVAL, EPERM, ESHUTDOWN …).
    pub errno: i32,
    /// Why, in words; goes into the NBD error text.
    pub text: &'static str,
}

/// How zeroes are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroMode {
    /// Space may be given back, but the range must read as zeroes.
    Punch,
    /// Space must stay allocated.
    Allocate,
}

/// Something to do.
#[derive(Debug)]
pub enum Output {
    /// Read from the data disk. With `buf: None` the driver provides a buffer (of its resync share)
    /// and returns it in the completion.
    DiskRead {
        /// Comes back in the completion.
        op: OpId,
        /// Volume.
        volume: VolumeId,
        /// Bytes from the start.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Where to.
        buf: Option<BufId>,
    },
    /// Read from the data disk and tell the digests of what is there
    /// ([`crate::input::Input::Digest`]); the data go nowhere.
    DiskDigest {
        /// Comes back in the completion.
        op: OpId,
        /// Volume.
        volume: VolumeId,
        /// Bytes from the start.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Look how large the disk is now, and let all of it be used from now on (of a disk with internal
    /// metadata: only look).
    MeasureDisk {
        /// Volume.
        volume: VolumeId,
    },
    /// Write to the data disk.
    DiskWrite {
        /// Comes back in the completion.
        op: OpId,
        /// Volume.
        volume: VolumeId,
        /// Bytes from the start.
        offset: u64,
        /// Bytes.
        len: u32,
        /// From where.
        buf: BufId,
        /// Stable before completion (RWF_DSYNC).
        fua: bool,
    },
    /// Make a range of the data disk read as zeroes.
    DiskZero {
        /// Comes back in the completion.
        op: OpId,
        /// Volume.
        volume: VolumeId,
        /// Bytes from the start.
        offset: u64,
        /// Bytes; may be the whole device.
        len: u64,
        /// How.
        mode: ZeroMode,
        /// Stable before completion.
        fua: bool,
    },
    /// Flush the data disk.
    DiskFlush {
        /// Comes back in the completion.
        op: OpId,
        /// Volume.
        volume: VolumeId,
    },
    /// Write metadata (whole 4 KiB blocks) at `offset` of the metadata device.
    MetaWrite {
        /// Comes back in the completion.
        op: OpId,
        /// Volume.
        volume: VolumeId,
        /// Bytes from the start of the metadata device.
        offset: u64,
        /// The blocks.
        data: Box<[u8]>,
        /// Stable before completion.
        fua: bool,
    },
    /// Flush the metadata device.
    MetaFlush {
        /// Comes back in the completion.
        op: OpId,
        /// Volume.
        volume: VolumeId,
    },
    /// Send a frame to a peer.
    Send {
        /// The peer.
        peer: NodeId,
        /// Which socket.
        channel: Channel,
        /// Header, without lengths and checksums of the payload.
        header: Header,
        /// What follows.
        body: SendBody,
    },
    /// Answer a client. A read's data are in the buffer given with the request.
    Reply {
        /// The request's tag.
        tag: ReqTag,
        /// Success or error.
        result: Result<(), ReplyError>,
    },
    /// Answer a read with what is in this buffer, which is given away: the buffer that came with the
    /// request is not needed (and may still be in the hands of a disk that failed).
    ReplyWith {
        /// The request's tag.
        tag: ReqTag,
        /// As many bytes as were asked for.
        buf: BufId,
    },
    /// The disk of a volume is out of use, and nothing on it is in flight: close it.
    CloseDisk {
        /// Volume.
        volume: VolumeId,
    },
    /// Open the disk of a volume again, as for the order `attach`; the answer is
    /// [`crate::input::Input::Attached`] or [`crate::input::Input::AttachFailed`].
    AttachDisk {
        /// Volume.
        volume: VolumeId,
    },
    /// The engine is done with this buffer.
    ReleaseBuf(BufId),
    /// Close the sockets of a peer once what was queued on them is sent (at most a second is given
    /// to that). The driver answers with `LinkDown` unless the link is gone already.
    CloseLink {
        /// The peer.
        peer: NodeId,
        /// In words.
        reason: String,
    },
    /// Whether the control plane shall keep trying to connect to this peer.
    WantLink {
        /// The peer.
        peer: NodeId,
        /// Dial and accept (true) or refuse (false).
        want: bool,
        /// Dial at once instead of after the usual delay.
        now: bool,
    },
    /// A command ended.
    CommandDone {
        /// The command's id.
        id: CommandId,
        /// What came of it.
        result: CommandResult,
    },
    /// Close all clients' connections; what is under way for them may still be answered.
    CloseClients,
    /// Run a handler that is configured; the answer is [`crate::input::Input::HandlerDone`].
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
    /// Save what is on these blocks of a disk that nothing writes to, durably; the answer is
    /// [`crate::input::Input::DiscardedSaved`].
    SaveDiscarded(Box<SaveDiscarded>),
    /// That is not needed any more; no answer is needed either.
    CancelSave {
        /// Which.
        id: SaveId,
    },
    /// Something happened that a person or a script may want to know.
    Event(Event),
    /// The answer to [`crate::command::Command::Stop`]: all metadata are written, nothing is in
    /// flight; the driver may close everything.
    Stopped,
}

//! One volume: its disk, generations, bitmaps, overlap lock and metadata.

use crate::activity_log::ActivityLog;
use crate::bitmap::Bitmap;
use crate::event::DiskState;
use crate::generations::Generations;
use crate::ids::{CommandId, NodeId, VolumeId};
use crate::log_writer::{Cold, LogWriter};
use crate::meta_writer::MetaWriter;
use crate::metadata::layout::Layout;
use crate::metadata::superblock::Superblock;
use crate::overlap::OverlapLock;
use crate::pass_on::Again;
use crate::peer_request::PeerRequestKey;
use crate::request::RequestKey;
use crate::resize::Measuring;
use crate::resync::ChunkKey;
use crate::status::Activity;
use crate::time::Instant;
use crate::verify::RangeKey;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

/// Who holds or waits for a range.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LockOwner {
    /// A client's write.
    Client(RequestKey),
    /// A peer's write or resync block.
    Peer(PeerRequestKey),
    /// A resync read.
    Resync(ChunkKey),
    /// A range that is compared.
    Verify(RangeKey),
}

/// What is to be done when a metadata commit is stable.
#[derive(Clone, Debug)]
pub(crate) enum Waiter {
    /// The disk is attached.
    Attached,
    /// The new generation may be relied on.
    NewGeneration,
    /// The promotion may be told.
    Promoted,
    /// The demotion may be told.
    Demoted,
    /// The resource may stop.
    Stopped,
    /// A resync with this peer may start (link number).
    ResyncReady(NodeId, u64),
    /// The target of a resync may be told that it is finished (link number).
    ResyncFinished(NodeId, u64),
    /// The resync's generations are adopted (link number).
    ResyncAdopted(NodeId, u64),
    /// A change a peer asked for is on the disk: answer yes (link number, transaction).
    PeerChange(NodeId, u64, u64),
    /// Whom this node follows is on the disk: that one's writes may go there.
    Following(NodeId),
    /// The Primary's new generation is on the disk: confirm it (link number).
    Follows(NodeId, u64),
    /// That this copy is to be repaired is on the disk (link number).
    Repair(NodeId, u64),
    /// What the own disk carries is on it: the order, the size wanted, by force.
    Measured(CommandId, Option<u64>, bool),
    /// A peer that asked for a resize may be told that this node is ready (link, transaction).
    ResizeReady(NodeId, u64, u64),
    /// A resize ordered here is on the disk (order, peer, link, transaction, size before).
    Resized(CommandId, NodeId, u64, u64, u64),
    /// A size is on the disk; the peer, if any, is talked to anew (link).
    SizeTaken(NodeId, u64),
    /// The generation a diskless Primary wants this copy to go on as is on the disk (link).
    Serves(NodeId, u64),
    /// What a disk that is being detached knows is on it.
    Detached,
    /// A disk that was attached under a Primary says so: it serves again.
    ServesAgain,
    /// That this copy is Outdated is on the disk: answer the order.
    Outdated(CommandId),
    /// The same, and this Primary may be left (link number).
    Left(NodeId, u64),
    /// A change of our own is on the disk: finish the command and talk to the peers anew.
    Renegotiate(CommandId, &'static str),
}

/// Disk and metadata of a volume that has them.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) superblock: Superblock,
    pub(crate) layout: Layout,
    /// By bitmap slot.
    pub(crate) bitmaps: Vec<Bitmap>,
}

/// A volume.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    pub(crate) block_size: u32,
    pub(crate) disk: DiskState,
    pub(crate) disk_reason: String,
    pub(crate) disk_since: Instant,
    pub(crate) local: Option<Local>,
    pub(crate) generations: Generations,
    pub(crate) lock: OverlapLock<LockOwner>,
    pub(crate) meta: MetaWriter<Waiter>,
    /// A new generation is on its way to the disk: writes wait, answers wait.
    pub(crate) bump_running: bool,
    /// It is on the disk here; peers may still have to confirm it.
    pub(crate) bump_committed: bool,
    /// The generation before it.
    pub(crate) bump_from: u64,
    /// Another one is needed, and is put off until a lost peer is fenced, or back: answers wait.
    pub(crate) bump_owed: bool,
    /// Another one is needed as soon as this one is through.
    pub(crate) bump_again: bool,
    pub(crate) no_volatile_cache: bool,
    /// A resize waits for the size of the disk.
    pub(crate) measuring: Option<Measuring>,
    /// A peer asked for this size (transaction, bytes).
    pub(crate) resize_to: Option<(u64, u64)>,
    /// A new size is not on the disk yet: clients see this one.
    pub(crate) clients_see: Option<u64>,
    pub(crate) activity: ActivityLog,
    pub(crate) log_writer: LogWriter,
    /// Writes that passed the gate and wait for their extents, in order of arrival.
    pub(crate) cold: VecDeque<Cold>,
    /// Bytes marked out of sync when the disk was attached, because this node had gone down as
    /// Primary.
    pub(crate) marked_after_crash: u64,
    /// The generation of the disk when it was attached, as long as no other node's writes have come
    /// over it since; then 0.
    pub(crate) lineage: u64,
    /// This node is Primary, and its clients are served from a peer's copy.
    pub(crate) remote: Option<crate::remote::Remote>,
    /// An order to detach the disk that has not ended.
    pub(crate) detaching: Option<CommandId>,
    /// Its last commit was asked for.
    pub(crate) detach_written: bool,
    /// The disk was attached while the resource was in use.
    pub(crate) anew: bool,
    /// While the disk was out of use a connected peer was Primary: it lacks what that wrote, or may. (Not if
    /// that Primary had no other copy than this one.)
    pub(crate) missed: bool,
    /// Whether a disk that failed comes back by itself.
    pub(crate) again: Again,
    /// In this life this copy was the current one, and nothing is known to be newer since.
    pub(crate) was_current: bool,
}

impl Volume {
    pub(crate) fn new(id: VolumeId, block_size: u32) -> Self {
        Self {
            id,
            block_size,
            disk: DiskState::Diskless,
            disk_reason: String::from("no disk is attached"),
            disk_since: Instant::default(),
            local: None,
            generations: Generations::default(),
            lock: OverlapLock::default(),
            meta: MetaWriter::default(),
            bump_running: false,
            bump_committed: false,
            bump_from: 0,
            bump_owed: false,
            bump_again: false,
            no_volatile_cache: false,
            measuring: None,
            resize_to: None,
            clients_see: None,
            activity: ActivityLog::default(),
            log_writer: LogWriter::default(),
            cold: VecDeque::new(),
            marked_after_crash: 0,
            lineage: 0,
            remote: None,
            detaching: None,
            detach_written: false,
            anew: false,
            missed: false,
            again: Again::default(),
            was_current: false,
        }
    }

    /// The activity log for people.
    pub(crate) fn activity_status(&self) -> Activity {
        let (log, counts) = (&self.activity, self.activity.counts);
        Activity {
            capacity: log.capacity() as u64,
            extent_size: self
                .local
                .as_ref()
                .map_or(0, |l| u64::from(l.superblock.extent_size)),
            active: log.in_use() as u64,
            held: log.held() as u64,
            transactions: counts.transactions,
            activated: counts.activated,
            evicted: counts.evicted,
            waited: counts.waited,
            marked_after_crash: self.marked_after_crash,
        }
    }

    /// Nothing is on its way into the activity log, or ever will be.
    pub(crate) fn log_is_idle(&self) -> bool {
        !self.has_disk()
            || self.cold.is_empty() && self.activity.is_idle() && self.log_writer.is_idle()
    }

    /// The bitmap towards a peer.
    pub(crate) fn bitmap(&self, peer: NodeId) -> Option<&Bitmap> {
        let local = self.local.as_ref()?;
        let slot = local.superblock.peers[peer.slot()].slot?;
        local.bitmaps.get(usize::from(slot))
    }

    /// The bitmap towards a peer.
    pub(crate) fn bitmap_mut(&mut self, peer: NodeId) -> Option<&mut Bitmap> {
        let local = self.local.as_mut()?;
        let slot = local.superblock.peers[peer.slot()].slot?;
        local.bitmaps.get_mut(usize::from(slot))
    }

    /// Bytes marked out of sync towards a peer.
    pub(crate) fn out_of_sync(&self, peer: NodeId) -> u64 {
        self.bitmap(peer).map_or(0, |b| {
            (b.count_set() * u64::from(b.block_size())).min(self.data_size())
        })
    }

    /// Usable bytes of this node's disk.
    pub(crate) fn data_size(&self) -> u64 {
        self.local.as_ref().map_or(0, |l| l.layout.data_size)
    }

    /// Size of the device in bytes as clients see it.
    pub(crate) fn size(&self) -> u64 {
        self.clients_see.unwrap_or_else(|| self.device_size())
    }

    /// Size of the device in bytes: what was agreed with the peers, else this disk's.
    pub(crate) fn device_size(&self) -> u64 {
        self.local
            .as_ref()
            .map_or(0, |l| match l.superblock.agreed_size {
                0 => l.layout.data_size,
                agreed => agreed,
            })
    }

    /// The local copy may be read and served.
    pub(crate) fn is_up_to_date(&self) -> bool {
        self.disk == DiskState::UpToDate
    }

    /// The disk takes writes at all.
    pub(crate) fn has_disk(&self) -> bool {
        self.disk >= DiskState::Inconsistent && self.disk != DiskState::DUnknown
    }
}

//! One simulated machine: engine, disk, buffers, and the operations its kernel has under way.

use crate::disk::{Disk, SECTOR, Stamp};
use crate::plan::Plan;
use crate::rng::Rng;
use std::collections::{BTreeMap, VecDeque};
use twinblk_engine::config::{NodeConfig, Options, ResourceConfig, VolumeConfig};
use twinblk_engine::event::{DiskState, ReplState, Role};
use twinblk_engine::ids::{ClientId, NodeId, VolumeId};
use twinblk_engine::input::Input;
use twinblk_engine::metadata::layout::{Layout, Placement};
use twinblk_engine::metadata::open::{ReadAt, ReadError, Recovered};
use twinblk_engine::metadata::{create, open};
use twinblk_engine::resource::Resource;
use twinblk_engine::status::Activity;
use twinblk_engine::time::{Duration, Instant};

/// The volume of all runs.
pub const VOLUME: VolumeId = VolumeId(0);

/// An operation the kernel has under way.
#[derive(Debug, Clone)]
pub enum Op {
    /// A read into a buffer (a new one for a resync read).
    Read {
        /// First sector.
        first: usize,
        /// Sectors.
        count: usize,
        /// Buffer given.
        buf: Option<u32>,
    },
    /// A read of which only the digests are wanted.
    Digest {
        /// First sector.
        first: usize,
        /// Sectors.
        count: usize,
    },
    /// A write or zeroing.
    Write {
        /// First sector.
        first: usize,
        /// Content.
        content: Vec<Stamp>,
        /// Stable at once.
        fua: bool,
    },
    /// A flush of the data.
    Flush,
    /// A metadata write.
    MetaWrite {
        /// Offset, bytes.
        offset: u64,
        /// Blocks.
        bytes: Box<[u8]>,
        /// Stable at once.
        fua: bool,
    },
    /// A flush of the metadata.
    MetaFlush,
}

/// What shall go wrong with the next operations.
#[derive(Debug, Clone, Default)]
pub struct DiskFaults {
    /// The next read fails.
    pub read: bool,
    /// The next write fails.
    pub write: bool,
    /// The next flush fails.
    pub flush: bool,
    /// The next metadata operation fails.
    pub meta: bool,
    /// Everything fails.
    pub dead: bool,
    /// The power is cut in the middle of the next metadata write.
    pub power_cut_in_metadata: bool,
    /// Operations take so many times longer, until then (ns).
    pub slow: Option<(u64, u64)>,
}

/// See the module.
#[derive(Debug)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// `None` while it is down.
    pub engine: Option<Resource>,
    /// Counts starts: what belongs to an earlier life is stale.
    pub life: u64,
    /// The disk.
    pub disk: Disk,
    /// Under way, by the engine's number.
    pub ops: BTreeMap<u64, Op>,
    /// Payloads.
    pub bufs: BTreeMap<u32, Vec<Stamp>>,
    next_buf: u32,
    /// Wants a connection, by node.
    pub want: Vec<bool>,
    /// How far its clock is ahead, ns.
    pub clock: u64,
    /// Stands still until then.
    pub paused_until: u64,
    /// A tick is scheduled for then.
    pub tick_at: Option<u64>,
    /// The engine said `Stopped`.
    pub stopped: bool,
    /// Shall go wrong.
    pub faults: DiskFaults,
    /// The process ends after so many more outputs.
    pub dies_after_outputs: Option<u64>,
    /// Replication with each node as this engine told it last, and how often it ended.
    pub replication: Vec<(ReplState, u64)>,
    /// Disk of each node as this engine told it last.
    pub peer_disk: Vec<DiskState>,
    /// Disk state as told last.
    pub disk_state: DiskState,
    /// It was Primary when its disk went out of use, and nobody serves it yet.
    pub gave_up_disk: bool,
    /// Role as told last.
    pub role: Role,
    /// Clients that hold the export: (client, engine's number).
    pub holders: Vec<(usize, ClientId)>,
    /// Last events, for people.
    pub log: VecDeque<String>,
    /// The generation a resync as target began from, by node.
    pub syncing_from: Option<usize>,
    /// Where its metadata are.
    pub placement: Placement,
    /// What its activity log had done when it was last looked at.
    pub activity: Activity,
}

struct Reader<'a>(&'a Disk);

impl ReadAt for Reader<'_> {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.0.read_meta(offset, buf);
        Ok(())
    }
}

/// Name of a node.
pub fn name(n: usize) -> &'static str {
    ["alpha", "bravo", "carol", "david"][n]
}

/// Layout of a disk with at least so much room for data.
pub fn layout(sectors: usize, peers: u8, external: bool) -> Layout {
    let data = sectors as u64 * SECTOR;
    if external {
        return Layout::external(data, None, 4096, peers).expect("a sane size");
    }
    let mut size = data + (64 << 10);
    loop {
        let layout = Layout::internal(size, 4096, peers).expect("a sane size");
        if layout.data_size >= data {
            return layout;
        }
        size += 4096;
    }
}

impl Node {
    /// A machine with fresh metadata, down.
    pub fn new(plan: &Plan, n: usize) -> Self {
        let peers: Vec<NodeId> = (0..plan.nodes)
            .filter(|&m| m != n)
            .map(|m| NodeId(u8::try_from(m).expect("few")))
            .collect();
        let slots = u8::try_from(peers.len()).expect("few");
        let layout = layout(plan.sectors, slots, plan.external);
        let base = if plan.external { 0 } else { layout.data_size };
        let mut disk = Disk::new(layout.data_size, layout.metadata_len(), base);
        let placement = layout.placement;
        let params = create::CreateParams {
            layout,
            resource: "r0",
            volume: VOLUME,
            node: NodeId(u8::try_from(n).expect("few")),
            peers: &peers,
            device_uuid: 0x77 + n as u64,
            block_size: 512,
            extent_size: plan.extent_size,
        };
        create::create(params, &mut |offset, bytes: &[u8]| {
            disk.write_meta(offset, bytes, true);
            Ok::<(), ()>(())
        })
        .expect("memory does not fail");
        Self {
            id: NodeId(u8::try_from(n).expect("few")),
            engine: None,
            life: 0,
            disk,
            ops: BTreeMap::new(),
            bufs: BTreeMap::new(),
            next_buf: 0,
            want: vec![false; plan.nodes],
            clock: 0,
            paused_until: 0,
            tick_at: None,
            stopped: false,
            faults: DiskFaults::default(),
            dies_after_outputs: None,
            replication: vec![(ReplState::Off, 0); plan.nodes],
            peer_disk: vec![DiskState::DUnknown; plan.nodes],
            disk_state: DiskState::Diskless,
            gave_up_disk: false,
            role: Role::Secondary,
            holders: Vec::new(),
            log: VecDeque::new(),
            syncing_from: None,
            placement,
            activity: Activity::default(),
        }
    }

    /// Reads the metadata as a starting daemon does.
    pub fn recover(&self) -> Result<Recovered, String> {
        let (meta, disk) = (self.disk.meta_size(), self.disk.disk_size());
        open::open(&mut Reader(&self.disk), meta, disk, self.placement).map_err(|e| e.to_string())
    }

    /// New metadata, as `create-md --force` writes them.
    pub fn create_metadata(&mut self, plan: &Plan) {
        let n = usize::from(self.id.0);
        let disk = Self::new(plan, n).disk;
        self.disk.take_metadata_of(&disk);
    }

    /// A new process: its first input is the attached disk.
    pub fn boot(&mut self, plan: &Plan, rng: &mut Rng) -> Result<Input, String> {
        let recovered = self.recover()?;
        let n = usize::from(self.id.0);
        let config = |m: usize| NodeConfig {
            id: NodeId(u8::try_from(m).expect("few")),
            name: name(m).to_owned(),
        };
        self.engine = Some(Resource::new(ResourceConfig {
            name: "r0".to_owned(),
            me: config(n),
            peers: (0..plan.nodes).filter(|&m| m != n).map(config).collect(),
            volumes: vec![VolumeConfig {
                volume: VOLUME,
                block_size: 512,
            }],
            options: options(plan),
            incarnation: rng.next() | 1,
            seed: rng.next(),
        }));
        self.stopped = false;
        self.faults = DiskFaults::default();
        self.activity = Activity::default();
        Ok(Input::Attached {
            volume: VOLUME,
            recovered: Box::new(recovered),
            no_volatile_cache: plan.write_through,
        })
    }

    /// The process is gone. What the kernel had under way is done or not, in part or whole. When the
    /// power goes with it, a sector of metadata that was just being written may be unreadable.
    pub fn die(&mut self, power: bool, rng: &mut Rng) {
        self.engine = None;
        self.life += 1;
        for op in core::mem::take(&mut self.ops).into_values() {
            match op {
                Op::Write { first, content, .. } => {
                    let from = rng.index(content.len() + 1);
                    let to = from + rng.index(content.len() + 1 - from);
                    let (from, to) = rng.pick(&[(0, content.len()), (from, to), (0, 0)]);
                    if from < to {
                        self.disk.write(first + from, &content[from..to], false);
                    }
                }
                Op::MetaWrite {
                    offset, mut bytes, ..
                } => {
                    if power && rng.per_mille(300) {
                        let at = rng.index(bytes.len() / 512) * 512;
                        bytes[at..at + 512].fill(0xa5);
                        self.disk.write_meta(offset, &bytes, true);
                    } else if rng.per_mille(500) {
                        self.disk.write_meta(offset, &bytes, false);
                    }
                }
                Op::Read { .. } | Op::Digest { .. } | Op::Flush | Op::MetaFlush => {}
            }
        }
        self.bufs.clear();
        self.want.fill(false);
        self.tick_at = None;
        self.dies_after_outputs = None;
        self.holders.clear();
        for (state, ends) in &mut self.replication {
            (*state, *ends) = (ReplState::Off, *ends + 1);
        }
        self.peer_disk.fill(DiskState::DUnknown);
        self.disk_state = DiskState::Diskless;
        self.gave_up_disk = false;
        self.role = Role::Secondary;
        self.syncing_from = None;
        self.paused_until = 0;
    }

    /// The clock the engine sees.
    pub fn clock(&self, now: u64) -> Instant {
        Instant(now + self.clock + 1)
    }

    /// A new buffer.
    pub fn new_buf(&mut self, content: Vec<Stamp>) -> u32 {
        self.next_buf += 1;
        self.bufs.insert(self.next_buf, content);
        self.next_buf
    }

    /// This node is sending its writes to that one.
    pub fn sends_to(&self, n: usize) -> bool {
        let gone = [DiskState::DUnknown, DiskState::Failed, DiskState::Diskless];
        let (state, disk) = (self.replication[n].0, self.peer_disk[n]);
        let mirrors = matches!(
            state,
            ReplState::Established
                | ReplState::SyncSource
                | ReplState::VerifyS
                | ReplState::VerifyT
        );
        mirrors && !gone.contains(&disk)
    }
}

/// Options of a run.
pub fn options(plan: &Plan) -> Options {
    let mut options = Options {
        protocol: plan.protocol,
        ping_int: Duration::from_secs(2),
        ping_timeout: Duration::from_millis(500),
        timeout: Duration::from_secs(1),
        ko_count: 3,
        resync_max_rate: plan.resync_rate,
        al_extents: plan.al_extents,
        on_no_data: plan.diskless.on_no_data,
        on_io_error: plan.diskless.on_io_error,
        policies: plan.policies,
        save_discarded: plan.save_discarded,
        fencing: plan.fence.fencing,
        handlers: plan.fence.handler_set(),
        ..Options::default()
    };
    if plan.tight {
        options.max_epoch_size = 3;
        options.max_epoch_time = Duration::from_millis(20);
        options.send_queue = 16 << 10;
        options.resync_window = 128 << 10;
    }
    options
}

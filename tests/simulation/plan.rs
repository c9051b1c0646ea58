//! What kind of run a seed is: how many nodes, which protocol, how fast disks and links are, and which
//! disturbances occur how often. Every seed leaves most kinds of disturbance out, so that rare ones
//! are not hidden behind frequent ones.

use crate::attach::DisklessPlan;
use crate::handlers::FencePlan;
use crate::rng::Rng;
use twinblk_engine::config::{OnIoError, OnNoData, Protocol};
use twinblk_engine::fencing::Fencing;
use twinblk_engine::split_brain::Policies;

/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;
/// Nanoseconds in a second.
pub const SECOND: u64 = 1000 * MS;

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The process is killed; what the kernel has stays.
    Kill,
    /// The process is killed between two outputs of the engine.
    KillBetweenOutputs,
    /// The machine loses power: unflushed writes are kept, lost or torn.
    PowerCut,
    /// The process stands still for a while.
    Pause,
    /// The clock of a node jumps ahead.
    ClockJump,
    /// A connection is reset; both sides notice, at different moments.
    Cut,
    /// A connection is reset; only one side notices.
    HalfOpen,
    /// Nothing gets through in one direction.
    OneWay,
    /// Nothing gets through at all.
    Partition,
    /// Connections break again and again for a while.
    ReconnectStorm,
    /// A link is slow for a while.
    SlowLink,
    /// A disk is slow for a while.
    SlowDisk,
    /// One read fails.
    ReadError,
    /// One write fails.
    WriteError,
    /// One flush fails, and loses what it should have written.
    FlushError,
    /// One metadata operation fails.
    MetaError,
    /// Everything a disk is asked for fails, until the node is started anew.
    DeadDisk,
    /// Both machines lose power at once.
    Blackout,
    /// The machine loses power while metadata are being written.
    PowerCutInMetadata,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::Kill,
        Self::KillBetweenOutputs,
        Self::PowerCut,
        Self::Pause,
        Self::ClockJump,
        Self::Cut,
        Self::HalfOpen,
        Self::OneWay,
        Self::Partition,
        Self::ReconnectStorm,
        Self::SlowLink,
        Self::SlowDisk,
        Self::ReadError,
        Self::WriteError,
        Self::FlushError,
        Self::MetaError,
        Self::DeadDisk,
        Self::Blackout,
        Self::PowerCutInMetadata,
    ];
}

/// Everything a seed decides before the run begins.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// Protocol.
    pub protocol: Protocol,
    /// Sectors of the device.
    pub sectors: usize,
    /// Clients.
    pub clients: usize,
    /// Requests a client has under way at most.
    pub depth: usize,
    /// Sectors of the device the clients touch; small: everything overlaps.
    pub span: usize,
    /// Longest pause between two requests of a client, ns.
    pub think: u64,
    /// How long disturbances go on, ns.
    pub duration: u64,
    /// Disturbances of this seed.
    pub faults: Vec<Fault>,
    /// Longest time between two of them, ns.
    pub fault_every: u64,
    /// Longest time between two orders of the administrator, ns; 0: none.
    pub order_every: u64,
    /// The administrator promotes a node although the other may be in use.
    pub careless: bool,
    /// Longest delay of a frame, ns.
    pub link_delay: u64,
    /// Longest time of a disk operation, ns.
    pub disk_delay: u64,
    /// Metadata lie on a device of their own: a flush of the one is none of the other.
    pub external: bool,
    /// Disks without a volatile cache.
    pub write_through: bool,
    /// Bytes per second of a resync at most, 0: as fast as it can.
    pub resync_rate: u64,
    /// Bytes of an extent of the activity log, and how many it has.
    pub extent_size: u32,
    /// See `extent_size`.
    pub al_extents: u32,
    /// Short time limits and small queues.
    pub tight: bool,
    /// What gives way after a split brain.
    pub policies: Policies,
    /// A copy that is given up is saved first.
    pub save_discarded: bool,
    /// A node that ends for ever, and when: the others have to heal and serve without it.
    pub lost: Option<(usize, u64)>,
    /// Disks that come and go.
    pub diskless: DisklessPlan,
    /// Fencing, handlers, suspension.
    pub fence: FencePlan,
    /// Clients that have a node promoted for them.
    pub auto_promotes: bool,
    /// Disturbances (by number) that are left out: how a failure is reduced.
    pub without: Vec<u64>,
    /// Nothing disturbs after this many disturbances.
    pub most: u64,
}

impl Plan {
    /// Sectors a client may write at once: what touches more extents than the log has is refused.
    pub fn longest_write(&self) -> usize {
        let extent = self.extent_size as usize / 512;
        // Wherever it begins.
        ((self.al_extents as usize - 1) * extent + 1).min(64)
    }

    /// What this seed decides.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::stream(seed, 1);
        let protocol = rng.pick(&[
            Protocol::A,
            Protocol::B,
            Protocol::C,
            Protocol::C,
            Protocol::C,
        ]);
        let sectors = rng.pick(&[64usize, 64, 128, 128, 256, 256, 1024, 1024, 8192]);
        let kinds = rng.between(0, 6);
        let faults = (0..kinds).map(|_| rng.pick(&Fault::ALL)).collect();
        let nodes = Rng::stream(seed, 8).pick(&[2usize, 2, 2, 3, 3, 4]);
        let al_extents = rng.pick(&[1, 2, 3, 3, 16, 64, 1237]);
        let think = rng.pick(&[MS, 10 * MS, 50 * MS, 300 * MS]);
        let plan = Self {
            seed,
            nodes,
            protocol,
            sectors,
            clients: usize::try_from(rng.between(1, 4)).expect("few"),
            depth: usize::try_from(rng.pick(&[1, 2, 4, 16])).expect("few"),
            span: rng.pick(&[16, 64, sectors]),
            // With a tiny log on a slow disk a write takes long: what clients leave behind must end
            // before patience does.
            think: if al_extents < 16 {
                think.max(10 * MS)
            } else {
                think
            },
            duration: rng.pick(&[3 * SECOND, 10 * SECOND, 30 * SECOND]),
            faults,
            fault_every: rng.pick(&[SECOND / 2, 2 * SECOND, 8 * SECOND]),
            order_every: rng.pick(&[0, SECOND, 5 * SECOND, 5 * SECOND]),
            careless: rng.per_mille(250),
            link_delay: rng.pick(&[MS / 10, MS, 20 * MS]),
            disk_delay: rng.pick(&[MS / 20, MS, 15 * MS]),
            external: rng.per_mille(400),
            write_through: rng.per_mille(100),
            resync_rate: rng.pick(&[0, 0, 64 << 10, 512 << 10, 1 << 20]),
            extent_size: rng.pick(&[4096, 4096, 16 << 10, 64 << 10, 4 << 20]),
            al_extents,
            tight: rng.per_mille(400),
            policies: crate::policies::draw(seed),
            save_discarded: Rng::stream(seed, 22).per_mille(500),
            lost: None,
            diskless: DisklessPlan::new(seed),
            fence: FencePlan::new(seed),
            auto_promotes: Rng::stream(seed, 25).per_mille(100),
            without: Vec::new(),
            most: u64::MAX,
        };
        plan.with_disks_that_fail_under_fencing()
            .with_split_brains()
            .on(nodes)
    }

    /// Some seeds are there for split brains and what policies make of them: somebody promotes whatever he
    /// can, and the two lose each other often.
    fn with_split_brains(mut self) -> Self {
        let mut rng = Rng::stream(self.seed, 27);
        if self.fence.fencing != Fencing::DontCare || rng.per_mille(850) {
            return self;
        }
        self.faults.extend([Fault::Partition, Fault::Partition]);
        self.fault_every = SECOND;
        self.order_every = SECOND;
        self.duration = self.duration.max(10 * SECOND);
        self.careless = true;
        self.policies = crate::policies::some(&mut rng);
        self
    }

    /// Of the seeds with a fencing policy half have disks that fail and come back, too: what waits for a
    /// peer and what waits for a disk meet.
    fn with_disks_that_fail_under_fencing(mut self) -> Self {
        let mut rng = Rng::stream(self.seed, 26);
        if self.fence.fencing == Fencing::DontCare || rng.per_mille(500) {
            return self;
        }
        let disk = [Fault::ReadError, Fault::WriteError, Fault::MetaError];
        self.faults.push(rng.pick(&disk));
        self.faults.push(rng.pick(&[Fault::Cut, Fault::Partition]));
        self.diskless.attach = rng.pick(&[300, 800]);
        self
    }

    /// The same on so many nodes.
    pub fn on(self, nodes: usize) -> Self {
        let mut rng = Rng::stream(self.seed, 10);
        let lost = rng.per_mille(150).then(|| {
            (
                rng.index(nodes),
                rng.between(self.duration / 2, self.duration),
            )
        });
        Self {
            nodes,
            lost,
            ..self
        }
    }

    /// A quiet run: nothing disturbs. For named scenarios.
    pub fn quiet(seed: u64, nodes: usize, protocol: Protocol) -> Self {
        Self {
            seed,
            nodes,
            protocol,
            sectors: 128,
            clients: 0,
            depth: 1,
            span: 128,
            think: MS,
            duration: 0,
            faults: Vec::new(),
            fault_every: SECOND,
            order_every: 0,
            careless: false,
            link_delay: MS,
            disk_delay: MS,
            external: false,
            write_through: false,
            resync_rate: 0,
            extent_size: 16 << 10,
            al_extents: 3,
            tight: false,
            policies: Policies::default(),
            save_discarded: false,
            lost: None,
            diskless: DisklessPlan {
                attach: 0,
                on_no_data: OnNoData::IoError,
                on_io_error: OnIoError::Detach,
            },
            fence: FencePlan::none(),
            auto_promotes: false,
            without: Vec::new(),
            most: 0,
        }
    }
}

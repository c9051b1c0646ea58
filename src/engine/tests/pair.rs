//! Two engines in a box. Nothing is real and nothing is random: a seed decides which of the waiting
//! completions and frames arrives next.
//!
//! Disk model: a write is in the volatile cache until a flush (or stable at once with FUA); a crash
//! keeps each unflushed write or loses it, as the seed says. Link model: two ordered streams each way,
//! which may be cut at any moment; what was not delivered is lost.

mod uses;

use super::disk::{Disk, Reader};
use crate::command::{Command, CommandResult};
use crate::config::{NodeConfig, Options, ResourceConfig, VolumeConfig};
use crate::event::{ConnState, DiskState, ReplState, Role};
use crate::ids::{BufId, CommandId, NodeId, OpId, ReqTag, VolumeId};
use crate::input::{Body, ClientRequest, DiskDone, Input, RequestKind};
use crate::metadata::layout::Layout;
use crate::metadata::{create, open};
use crate::output::{Channel, Output, ReplyError, SendBody};
use crate::resource::Resource;
use crate::rng::Rng;
use crate::status::Status;
use crate::time::{Duration, Instant};
use std::collections::{BTreeMap, VecDeque};
use twinblk_protocol::control::{Message, Protocol};
use twinblk_protocol::digest::digests;
use twinblk_protocol::frame::{Header, Kind};

pub(crate) const DATA: u64 = 4 << 20;
pub(crate) const V: VolumeId = VolumeId(0);
/// `twinblk connect RES`.
pub(super) const CONNECT: Command = Command::Connect {
    peer: None,
    discard_my_data: false,
    dry_run: false,
};

/// A machine.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) engine: Option<Resource>,
    disk: Disk,
    incarnation: u64,
    bufs: BTreeMap<u32, Vec<u8>>,
    next_buf: u32,
    /// Disk and metadata completions that wait to be delivered, in any order.
    completions: Vec<Input>,
    want: bool,
    pub(crate) replies: BTreeMap<u64, Result<(), ReplyError>>,
    pub(crate) answers: BTreeMap<u64, CommandResult>,
    pub(crate) log: Vec<String>,
    reads: BTreeMap<u64, u32>,
    pub(crate) stopped: bool,
    /// How often clients were thrown out.
    pub(crate) closed_clients: u32,
    /// What was to be saved and has not been answered, and what need not be any more.
    pub(crate) saves: Vec<crate::save_discarded::SaveDiscarded>,
    pub(crate) cancelled: Vec<crate::ids::SaveId>,
    /// Handlers that were asked for and have not been answered.
    pub(crate) handlers: Vec<(crate::ids::HandlerId, crate::handler::HandlerKind)>,
    /// How many metadata, data and comparing operations succeed before some fail.
    pub(crate) faults: [Option<Fault>; 3],
    /// The next block that is compared is read wrong, once.
    pub(crate) misreads: bool,
    /// Reads and writes of the disk do not end, and those that have not.
    pub(crate) hangs: bool,
    pub(crate) hung: Vec<Input>,
    /// How often a disk was closed.
    pub(crate) closed: usize,
    /// How often the engine wanted its disk attached again, and nobody has done so yet.
    pub(crate) wants_disk: usize,
}

/// Operations that fail: after so many good ones, so many bad ones.
#[derive(Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) after: u64,
    pub(crate) bad: u64,
}

impl Node {
    /// Whether the next metadata (0), data (1) or comparing (2) operation works.
    fn outcome(&mut self, kind: usize) -> Result<(), i32> {
        let Some(fault) = &mut self.faults[kind] else {
            return Ok(());
        };
        if fault.after > 0 {
            fault.after -= 1;
            return Ok(());
        }
        if fault.bad == 0 {
            return Ok(());
        }
        fault.bad -= 1;
        Err(5)
    }
}

/// One direction of one socket.
#[derive(Default)]
struct Stream(VecDeque<(Header, Vec<u8>)>);

/// The box.
pub(crate) struct Pair {
    pub(crate) nodes: [Node; 2],
    pub(crate) now: Instant,
    rng: Rng,
    pub(crate) options: Options,
    /// streams[from][channel]
    streams: [[Stream; 2]; 2],
    sent: [u64; 2],
    up: bool,
    /// The cable.
    pub(crate) cable: bool,
    closing: [bool; 2],
    next_tag: u64,
    next_command: u64,
    /// Bytes the disks have grown by.
    pub(crate) grown: u64,
}

fn done(op: OpId, result: Result<(), i32>) -> Input {
    let (zero, buf) = (false, None);
    Input::Disk(DiskDone {
        op,
        result,
        zero,
        buf,
    })
}

/// Bytes of an extent of the activity log.
pub(crate) const EXTENT: u32 = 64 << 10;

fn layout() -> Layout {
    // Internal metadata behind DATA bytes of data.
    let mut size = DATA + (64 << 10);
    loop {
        let layout = Layout::internal(size, 4096, 1).expect("a sane size");
        if layout.data_size >= DATA {
            return layout;
        }
        size += 4096;
    }
}

/// A disk that was just created for a node.
fn new_disk(id: u8) -> Disk {
    let layout = layout();
    let mut disk = Disk::new(layout.disk_size);
    let params = create::CreateParams {
        layout,
        resource: "r0",
        volume: V,
        node: NodeId(id),
        peers: &[NodeId(1 - id)],
        device_uuid: 77 + u64::from(id),
        block_size: 512,
        extent_size: EXTENT,
    };
    create::create(params, &mut |offset, data: &[u8]| {
        disk.write(offset, data, true);
        Ok::<(), ()>(())
    })
    .expect("memory does not fail");
    disk
}

impl Pair {
    pub(crate) fn new(seed: u64, protocol: Protocol) -> Self {
        let node = |id: u8| {
            let disk = new_disk(id);
            Node {
                id: NodeId(id),
                engine: None,
                disk,
                incarnation: 0,
                bufs: BTreeMap::new(),
                next_buf: 0,
                completions: Vec::new(),
                want: false,
                replies: BTreeMap::new(),
                answers: BTreeMap::new(),
                log: Vec::new(),
                reads: BTreeMap::new(),
                stopped: false,
                closed_clients: 0,
                saves: Vec::new(),
                cancelled: Vec::new(),
                handlers: Vec::new(),
                faults: [None; 3],
                misreads: false,
                hangs: false,
                hung: Vec::new(),
                closed: 0,
                wants_disk: 0,
            }
        };
        let options = Options {
            protocol,
            al_extents: 8,
            ..Options::default()
        };
        Self {
            nodes: [node(0), node(1)],
            now: Instant(1),
            rng: Rng::new(seed),
            options,
            streams: Default::default(),
            sent: [0; 2],
            up: false,
            cable: true,
            closing: [false; 2],
            next_tag: 0,
            next_command: 0,
            grown: 0,
        }
    }

    /// Two nodes, connected, the first Primary, in sync.
    pub(crate) fn in_sync(seed: u64, protocol: Protocol) -> Self {
        let mut pair = Self::new(seed, protocol);
        pair.start(0);
        pair.start(1);
        pair.settle();
        pair.order(0, Command::Primary { force: true })
            .expect("the first promotion is forced");
        pair.settle();
        pair.expect_in_sync();
        pair
    }

    /// Changes the options of both nodes.
    pub(crate) fn change_options(&mut self, change: impl FnOnce(&mut Options)) {
        change(&mut self.options);
        for n in 0..2 {
            let options = Command::SetOptions(Box::new(self.options.clone()));
            self.order(n, options).expect("they are taken over");
        }
    }

    /// A node is gone, and its peer does not notice: nothing arrives, no link is reported down.
    pub(crate) fn crash_quietly(&mut self, n: usize) {
        self.up = false;
        self.cable = false;
        self.streams = Default::default();
        self.crash(n);
    }

    pub(crate) fn rng(&mut self) -> u64 {
        self.rng.next()
    }

    /// Starts the engine on a node: attaches the disk.
    pub(crate) fn start(&mut self, n: usize) {
        let seed = self.rng.next();
        let incarnation = self.rng.next() | 1;
        let node = &mut self.nodes[n];
        let name = |id: u8| if id == 0 { "alpha" } else { "bravo" }.to_string();
        let id = node.id;
        node.incarnation = incarnation;
        node.stopped = false;
        node.engine = Some(Resource::new(ResourceConfig {
            name: "r0".into(),
            me: NodeConfig {
                id,
                name: name(id.0),
            },
            peers: vec![NodeConfig {
                id: NodeId(1 - id.0),
                name: name(1 - id.0),
            }],
            volumes: vec![VolumeConfig {
                volume: V,
                block_size: 512,
            }],
            options: self.options.clone(),
            incarnation,
            seed,
        }));
        self.attach(n);
    }

    /// Another disk takes the place of the one that has failed.
    pub(crate) fn replace_disk(&mut self, n: usize) {
        self.nodes[n].disk = new_disk(self.nodes[n].id.0);
    }

    /// A disk is opened and its metadata are read, also while the resource is in use.
    pub(crate) fn attach(&mut self, n: usize) {
        let node = &self.nodes[n];
        let size = node.disk.now.len() as u64;
        let mut reader = Reader(&node.disk.now);
        let recovered = open::open(
            &mut reader,
            size,
            size,
            crate::metadata::layout::Placement::Internal,
        )
        .expect("metadata survive everything this box does to them");
        self.feed(
            n,
            Input::Attached {
                volume: V,
                recovered: Box::new(recovered),
                no_volatile_cache: false,
            },
        );
    }

    /// Power cut: the engine is gone, unflushed writes are kept or lost at random.
    pub(crate) fn crash(&mut self, n: usize) {
        self.nodes[n].engine = None;
        self.nodes[n].completions.clear();
        self.nodes[n].bufs.clear();
        self.nodes[n].reads.clear();
        self.nodes[n].hung.clear();
        self.nodes[n].want = false;
        let mut rng = Rng::new(self.rng.next());
        self.nodes[n].disk.power_cut(&mut rng);
        self.drop_link("the peer crashed");
    }

    /// The cable is cut; both sides notice.
    pub(crate) fn cut(&mut self) {
        self.cable = false;
        self.drop_link("the cable was cut");
    }

    pub(crate) fn drop_link(&mut self, reason: &str) {
        self.streams = Default::default();
        if core::mem::take(&mut self.up) {
            for n in 0..2 {
                let peer = NodeId(1 - self.nodes[n].id.0);
                self.feed(
                    n,
                    Input::LinkDown {
                        peer,
                        reason: reason.into(),
                    },
                );
            }
        }
        self.closing = [false; 2];
    }

    pub(crate) fn feed(&mut self, n: usize, input: Input) {
        let mut out = Vec::new();
        let now = self.now;
        if let Some(engine) = &mut self.nodes[n].engine {
            engine.handle(now, input, &mut out);
        }
        // A generation that was committed once says nothing of the next one.
        if let Some(engine) = &self.nodes[n].engine {
            let stale = |v: &crate::volume::Volume| v.bump_committed && !v.bump_running;
            assert!(!engine.volumes.iter().any(stale), "{}", self.dump());
        }
        for output in out {
            self.carry_out(n, output);
        }
    }

    /// Completions that are due are not delivered: the disk hangs.
    pub(crate) fn take_completions(&mut self, n: usize) -> Vec<Input> {
        core::mem::take(&mut self.nodes[n].completions)
    }

    /// What a call other than [`Self::feed`] asked for.
    pub(crate) fn carry_out_all(&mut self, n: usize, outputs: Vec<Output>) {
        for output in outputs {
            self.carry_out(n, output);
        }
    }

    fn carry_out(&mut self, n: usize, output: Output) {
        let node = &mut self.nodes[n];
        match output {
            Output::DiskRead {
                op,
                offset,
                len,
                buf,
                ..
            } => {
                let at = usize::try_from(offset).expect("small");
                let data = node.disk.now[at..at + len as usize].to_vec();
                let result = node.outcome(1);
                let zero = data.iter().all(|&b| b == 0);
                let given = buf.unwrap_or_else(|| {
                    node.next_buf += 1;
                    BufId(node.next_buf)
                });
                node.bufs.insert(given.0, data);
                let new = buf.is_none().then_some(given);
                let done = DiskDone {
                    op,
                    result,
                    zero,
                    buf: new,
                };
                if node.hangs {
                    node.hung.push(Input::Disk(done));
                } else {
                    node.completions.push(Input::Disk(done));
                }
            }
            Output::DiskDigest {
                op, offset, len, ..
            } => {
                let at = usize::try_from(offset).expect("small");
                let bytes = &node.disk.now[at..at + len as usize];
                let mut digests = digests(bytes).into_boxed_slice();
                if core::mem::take(&mut node.misreads) {
                    digests[0] ^= 1;
                }
                let result = node.outcome(2).map(|()| digests);
                node.completions.push(Input::Digest { op, result });
            }
            Output::DiskWrite {
                op,
                offset,
                len,
                buf,
                fua,
                ..
            } => {
                let data = node
                    .bufs
                    .get(&buf.0)
                    .expect("the engine holds the buffer")
                    .clone();
                assert_eq!(data.len(), len as usize);
                assert!(
                    offset + u64::from(len) <= layout().data_size,
                    "data stay in the data area"
                );
                let result = node.outcome(1);
                if result.is_ok() {
                    node.disk.write(offset, &data, fua);
                }
                if node.hangs {
                    node.hung.push(done(op, result));
                } else {
                    node.completions.push(done(op, result));
                }
            }
            Output::DiskZero {
                op,
                offset,
                len,
                fua,
                ..
            } => {
                node.disk
                    .write(offset, &vec![0; usize::try_from(len).expect("small")], fua);
                if node.hangs {
                    node.hung.push(done(op, Ok(())));
                } else {
                    node.completions.push(done(op, Ok(())));
                }
            }
            Output::DiskFlush { op, .. } => {
                let result = node.outcome(1);
                if result.is_ok() {
                    node.disk.flush();
                }
                node.completions.push(done(op, result));
            }
            Output::MeasureDisk { volume } => {
                let (disk, meta) = (Ok(layout().disk_size + self.grown), None);
                node.completions
                    .push(Input::Measured { volume, disk, meta });
            }
            Output::MetaWrite {
                op,
                offset,
                data,
                fua,
                ..
            } => {
                assert!(
                    offset >= layout().data_size,
                    "metadata stay in the metadata area"
                );
                let result = node.outcome(0);
                if result.is_ok() {
                    node.disk.write(offset, &data, fua);
                }
                node.completions.push(Input::Meta { op, result });
            }
            Output::MetaFlush { op, .. } => {
                let result = node.outcome(0);
                if result.is_ok() {
                    node.disk.flush();
                }
                node.completions.push(Input::Meta { op, result });
            }
            Output::Send {
                channel,
                header,
                body,
                ..
            } => {
                let bytes = match body {
                    SendBody::None => Vec::new(),
                    SendBody::Buf { buf, .. } => {
                        node.bufs.get(&buf.0).expect("not yet released").clone()
                    }
                    SendBody::Bytes(bytes) => bytes,
                };
                if self.up {
                    let c = usize::from(channel == Channel::Control);
                    self.streams[n][c].0.push_back((header, bytes));
                }
            }
            Output::Reply { tag, result } => {
                let old = node.replies.insert(tag.0, result);
                assert!(old.is_none(), "a request is answered once");
            }
            Output::ReplyWith { tag, buf } => {
                let own = node.reads.insert(tag.0, buf.0).expect("it was a read");
                assert!(node.bufs.remove(&own).is_some(), "it was the driver's");
                let old = node.replies.insert(tag.0, Ok(()));
                assert!(old.is_none(), "a request is answered once");
            }
            Output::CloseDisk { .. } => node.closed += 1,
            Output::AttachDisk { .. } => node.wants_disk += 1,
            Output::ReleaseBuf(buf) => {
                assert!(
                    node.bufs.remove(&buf.0).is_some(),
                    "a buffer is released once"
                );
            }
            Output::CloseLink { .. } => self.closing[n] = self.up,
            Output::WantLink { want, .. } => node.want = want,
            Output::CommandDone { id, result } => {
                node.answers.insert(id.0, result);
            }
            Output::Event(event) => {
                node.log.push(format!(
                    "{:?} {:?}: {}",
                    event.severity, event.what, event.cause
                ));
            }
            Output::SaveDiscarded(request) => node.saves.push(*request),
            Output::CancelSave { id } => node.cancelled.push(id),
            Output::Handler { id, kind, .. } => node.handlers.push((id, kind)),
            Output::CloseClients => node.closed_clients += 1,
            Output::Stopped => node.stopped = true,
        }
    }

    /// Delivers one thing that waits. Answers whether there was any.
    pub(crate) fn step(&mut self) -> bool {
        if !self.up
            && self.cable
            && self
                .nodes
                .iter()
                .all(|n| n.want && n.engine.is_some() && !n.stopped)
        {
            self.up = true;
            self.closing = [false; 2];
            self.sent = [0; 2];
            for n in 0..2 {
                let peer = NodeId(1 - self.nodes[n].id.0);
                self.feed(n, Input::LinkUp { peer });
            }
            return true;
        }
        // (kind, node): 0 completion, 1 data from node, 2 control from node.
        let mut choices = Vec::new();
        for n in 0..2 {
            if !self.nodes[n].completions.is_empty() {
                choices.push((0, n));
            }
            for c in 0..2 {
                if !self.streams[n][c].0.is_empty() {
                    choices.push((1 + c, n));
                }
            }
        }
        if choices.is_empty() {
            if self.up && self.closing.iter().any(|&c| c) {
                self.drop_link("closed by the peer");
                return true;
            }
            return false;
        }
        let pick = usize::try_from(self.rng.next() % choices.len() as u64).expect("small");
        let (kind, n) = choices[pick];
        if kind == 0 {
            let list = &mut self.nodes[n].completions;
            let i = usize::try_from(self.rng.next() % list.len() as u64).expect("small");
            let input = list.swap_remove(i);
            self.feed(n, input);
        } else {
            let (header, bytes) = self.streams[n][kind - 1].0.pop_front().expect("chosen");
            self.deliver(n, kind - 1, header, bytes);
        }
        self.now = self.now + Duration::from_micros(10);
        true
    }

    fn deliver(&mut self, from: usize, channel: usize, header: Header, bytes: Vec<u8>) {
        let to = 1 - from;
        let peer = self.nodes[from].id;
        if channel == 0 {
            self.sent[from] += 64 + bytes.len() as u64;
            let sent = self.sent[from];
            let towards = self.nodes[to].id;
            self.feed(
                from,
                Input::SendProgress {
                    peer: towards,
                    sent,
                },
            );
        }
        let body = match header.kind {
            Kind::Write | Kind::ResyncData | Kind::ReadData => {
                let node = &mut self.nodes[to];
                node.next_buf += 1;
                node.bufs.insert(node.next_buf, bytes);
                Body::Buf(BufId(node.next_buf))
            }
            Kind::Message => Body::Message(Message::decode(&bytes).expect("own encoding")),
            _ if bytes.is_empty() => Body::None,
            _ => Body::Bytes(bytes.into_boxed_slice()),
        };
        self.feed(to, Input::Frame { peer, header, body });
    }

    /// Runs until nothing waits, letting time pass where only timers are left (up to a minute).
    pub(crate) fn settle(&mut self) {
        let end = self.now + Duration::from_secs(60);
        let mut steps = 0u64;
        loop {
            while self.step() {
                steps += 1;
                assert!(steps < 30_000, "no end: {}", self.dump());
            }
            let epoch_due = self.nodes.iter().any(|n| {
                n.engine.as_ref().is_some_and(|e| {
                    let s = e.status(self.now);
                    s.peers
                        .iter()
                        .any(|p| p.transfer_log > 0 || p.volumes.iter().any(|v| v.resync.is_some()))
                })
            });
            let waits = self
                .nodes
                .iter()
                .any(|n| n.engine.as_ref().is_some_and(|e| !e.is_idle()));
            if self.now >= end || !(epoch_due || waits) {
                return;
            }
            self.pass_time();
        }
    }

    /// Jumps to the next deadline.
    ///
    /// # Panics
    /// If an engine has something under way that nothing will ever drive: no operation is in
    /// flight, no frame is, and no deadline is set.
    pub(crate) fn pass_time(&mut self) {
        for node in &self.nodes {
            if let Some(engine) = &node.engine
                && !node.stopped
            {
                let driven = engine.is_idle() || engine.next_deadline().is_some();
                assert!(driven, "stuck for ever: {}", self.dump());
            }
        }
        let next = self
            .nodes
            .iter()
            .filter_map(|n| n.engine.as_ref()?.next_deadline())
            .min()
            .unwrap_or(self.now + Duration::from_secs(1));
        self.now = self.now.max(next) + Duration::from_micros(1);
        for n in 0..2 {
            self.feed(n, Input::Tick);
        }
    }
}

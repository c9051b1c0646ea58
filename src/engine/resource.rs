//! The central struct: it owns all parts and passes each input on to the file that knows what to do
//! with it. No mechanism lives here.

use crate::auto_promote::Auto;
use crate::command::Command;
use crate::config::ResourceConfig;
use crate::event::{DiskState, Event, ReplState, Role, Severity, What};
use crate::fence_promotion::WaitingPromotion;
use crate::handler::Call;
use crate::ids::{CommandId, NodeId, OpId, VolumeId};
use crate::input::{ClientRequest, DiskDone, Input};
use crate::metadata::superblock::MdFlags;
use crate::outdate::Outdating;
use crate::output::{Channel, Output};
use crate::overlap::LockId;
use crate::peer::Peer;
use crate::peer_request::{PeerRequest, PeerRequestKey};
use crate::request::{Request, RequestKey};
use crate::resync::{Chunk, ChunkKey};
use crate::rng::Rng;
use crate::role::RoleChange;
use crate::serving::ServedRead;
use crate::slots::{Key, Slots};
use crate::states;
use crate::suspend::Suspended;
use crate::time::Instant;
use crate::verify::{Range, RangeKey};
use crate::volume::{LockOwner, Volume};
use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use twinblk_protocol::control::{Message, Protocol};

/// What a disk or metadata operation was for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    ClientRead(RequestKey),
    ClientWrite(RequestKey),
    ClientFlush(RequestKey),
    PeerWrite(PeerRequestKey),
    /// Flush of a peer's epoch (peer index, volume).
    EpochFlush(usize, VolumeId),
    ResyncRead(ChunkKey),
    /// Digests of a range this side compares, and of one the peer asked for.
    VerifyRead(RangeKey),
    PeerDigest(PeerRequestKey),
    /// A read for a client of a peer.
    ServedRead(ServedRead),
    /// What a request no longer waits for: its disk (of the volume by index) is out of use.
    Lingering(usize),
    /// Flush of a volume's data when it is attached (by index).
    AttachFlush(usize),
    /// Flush of a volume's data (by index) before this node is Secondary.
    DemoteFlush(usize),
    /// Operations of a volume's activity log (by index): a transaction, and what goes before an
    /// extent may be forgotten: bitmap pages, flushes.
    LogBlock(usize),
    LogPage(usize),
    LogFlush(usize),
    /// Metadata operations of a volume (by index).
    MetaPage(usize),
    MetaFlush(usize),
    MetaSuperblock(usize),
}

/// A client that holds the export.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) name: String,
}

/// The resource is going down.
#[derive(Debug)]
pub(crate) struct Stopping {
    pub(crate) command: CommandId,
    pub(crate) parted: bool,
    pub(crate) written: bool,
    pub(crate) left: usize,
}

/// One replicated resource as one node sees it. See the crate's documentation for how to call it.
#[derive(Debug)]
pub struct Resource {
    pub(crate) cfg: ResourceConfig,
    pub(crate) now: Instant,
    pub(crate) rng: Rng,
    pub(crate) role: Role,
    /// Since when.
    pub(crate) role_since: Instant,
    pub(crate) role_change: Option<RoleChange>,
    /// What clients have to do with it.
    pub(crate) auto: Auto,
    pub(crate) stopping: Option<Stopping>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) clients: Slots<Client>,
    /// This node stops being Primary whoever uses it: requests get errors.
    pub(crate) evicting: bool,
    pub(crate) requests: Slots<Request>,
    pub(crate) peer_requests: Slots<PeerRequest>,
    pub(crate) chunks: Slots<Chunk>,
    pub(crate) ranges: Slots<Range>,
    pub(crate) ops: Slots<Op>,
    /// Writes that hold their range and wait for the gate, in order of arrival.
    pub(crate) gated: VecDeque<RequestKey>,
    /// Writes whose extents are active: next at the gate, which they passed once.
    pub(crate) logged: VecDeque<RequestKey>,
    /// Finished writes and flushes whose answer waits for a new generation.
    pub(crate) held: Vec<RequestKey>,
    /// A peer's writes that will never be started: their disk has failed.
    pub(crate) doomed: VecDeque<PeerRequestKey>,
    /// Reasons for which I/O is suspended, and requests that wait for them to go.
    pub(crate) suspended: Suspended,
    pub(crate) frozen: VecDeque<ClientRequest>,
    /// Handlers that run.
    pub(crate) handlers: Slots<Call>,
    /// Writes and flushes started and not answered.
    pub(crate) started: usize,
    pub(crate) waiting_commands: VecDeque<(CommandId, Command)>,
    /// `disconnect` orders to answer when the links are gone.
    pub(crate) leaving: Vec<CommandId>,
    /// A promotion that waits until missing peers are fenced.
    pub(crate) waiting_promotion: Option<WaitingPromotion>,
    /// `outdate` orders that wait for peers to show that they live.
    pub(crate) outdating: Vec<Outdating>,
    pub(crate) next_tid: u64,
    /// Place of the last request in order of arrival.
    pub(crate) next_order: u64,
    pub(crate) next_save: u64,
    /// Tag of the last write started.
    pub(crate) next_tag: u64,
    pub(crate) out: Vec<Output>,
    granted: Vec<(LockId, LockOwner)>,
}

impl Resource {
    /// A resource with no disk attached and no peer connected: Secondary, Diskless, StandAlone.
    pub fn new(cfg: ResourceConfig) -> Self {
        let ids: Vec<VolumeId> = cfg.volumes.iter().map(|v| v.volume).collect();
        Self {
            now: Instant::default(),
            rng: Rng::new(cfg.seed),
            role: Role::Secondary,
            role_since: Instant::default(),
            role_change: None,
            auto: Auto::default(),
            stopping: None,
            volumes: cfg
                .volumes
                .iter()
                .map(|v| Volume::new(v.volume, v.block_size))
                .collect(),
            peers: cfg
                .peers
                .iter()
                .map(|p| Peer::new(p.id, p.name.clone(), &ids))
                .collect(),
            clients: Slots::default(),
            evicting: false,
            requests: Slots::default(),
            peer_requests: Slots::default(),
            chunks: Slots::default(),
            ranges: Slots::default(),
            ops: Slots::default(),
            gated: VecDeque::new(),
            logged: VecDeque::new(),
            held: Vec::new(),
            doomed: VecDeque::new(),
            suspended: Suspended::default(),
            frozen: VecDeque::new(),
            handlers: Slots::default(),
            started: 0,
            waiting_commands: VecDeque::new(),
            leaving: Vec::new(),
            waiting_promotion: None,
            outdating: Vec::new(),
            next_tid: 0,
            next_order: 0,
            next_save: 0,
            next_tag: 0,
            out: Vec::new(),
            granted: Vec::new(),
            cfg,
        }
    }

    /// Something happened at `now`: what is to be done is appended to `out`.
    pub fn handle(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        self.now = self.now.max(now);
        core::mem::swap(&mut self.out, out);
        self.dispatch(input);
        self.settle();
        core::mem::swap(&mut self.out, out);
    }

    fn dispatch(&mut self, input: Input) {
        match input {
            Input::Attached {
                volume,
                recovered,
                no_volatile_cache,
            } => {
                self.attached(volume, *recovered, no_volatile_cache);
            }
            Input::AttachFailed { volume, reason } => self.attach_failed(volume, &reason),
            Input::Client(request) => self.client_request(request),
            Input::Disk(done) => self.disk_done(done),
            Input::Digest { op, result } => match self.ops.remove(Key::from_raw(op.0)) {
                Some(Op::VerifyRead(key)) => self.range_read(key, result),
                Some(Op::PeerDigest(key)) => self.asked_read(key, result),
                _ => {}
            },
            Input::Measured { volume, disk, meta } => self.measured(volume, disk, meta),
            Input::Meta { op, result } => match self.ops.remove(Key::from_raw(op.0)) {
                Some(Op::MetaPage(v)) => self.meta_page_done(v, result),
                Some(Op::MetaFlush(v)) => self.meta_flush_done(v, result),
                Some(Op::MetaSuperblock(v)) => self.superblock_done(v, result),
                Some(Op::LogBlock(v)) => self.log_block_done(v, result),
                Some(Op::LogPage(v)) => self.log_page_done(v, result),
                Some(Op::LogFlush(v)) => self.log_flush_done(v, result),
                _ => {}
            },
            Input::LinkUp { peer } => self.with_peer(peer, Self::link_up),
            Input::LinkDown { peer, reason } => {
                self.with_peer(peer, |this, p| this.link_down(p, reason));
            }
            Input::DialFailed { peer, reason } => {
                self.with_peer(peer, |this, p| this.dial_failed(p, reason));
            }
            Input::Frame { peer, header, body } => {
                self.with_peer(peer, |this, p| this.frame(p, header, body));
            }
            Input::SendProgress { peer, sent } => {
                self.with_peer(peer, |this, p| this.send_progress(p, sent));
            }
            Input::Command { id, command } => self.command(id, command),
            Input::HandlerDone { id, result } => self.handler_done(id, &result),
            Input::DiscardedSaved { id, result } => self.discarded_saved(id, result),
            Input::Tick => {
                self.remote_tick();
                self.attach_tick();
                for p in 0..self.peers.len() {
                    self.link_tick(p);
                    self.view_tick(p);
                    self.watch_tick(p);
                    self.orders_tick(p);
                }
            }
        }
    }

    /// Cheap steps after every input, again and again until none has anything to do: whatever can go
    /// on without waiting has gone on before the next input comes, for there may be none.
    fn settle(&mut self) {
        loop {
            let before = self.progress();
            self.settle_once();
            if before == self.progress() && self.doomed.is_empty() {
                return;
            }
        }
    }

    /// What tells whether a round of [`Self::settle_once`] has moved anything that another step may
    /// wait for.
    fn progress(&self) -> (usize, Option<crate::role::Step>, usize, usize, usize, usize) {
        (
            self.out.len(),
            self.role_change.as_ref().map(|c| c.step),
            self.volumes.iter().filter(|v| v.bump_running).count(),
            self.gated.len() + self.held.len(),
            self.volumes.iter().map(|v| v.cold.len()).sum(),
            self.waiting_commands.len(),
        )
    }

    fn settle_once(&mut self) {
        self.end_doomed();
        self.fence_progress();
        self.outdate_progress();
        self.promotion_consent();
        self.run_gate();
        for v in 0..self.volumes.len() {
            self.run_log(v);
        }
        self.demotion_progress();
        self.auto_progress();
        self.answer_deferred();
        for p in 0..self.peers.len() {
            self.pump_bitmap(p);
            self.sync_start_progress(p);
            self.try_adopt(p);
            self.resync_checkpoint(p);
            self.pump_resync(p);
            self.pump_verify(p);
        }
        self.try_send_facts();
        self.tell_members();
        self.tell_settled();
        self.unfollow();
        self.run_waiting_commands();
        self.finish_leaving();
        self.stop_progress();
        self.ask_to_serve();
        self.hold_writes();
        self.close_disks();
        self.run_commits();
    }

    fn disk_done(&mut self, done: DiskDone) {
        match self.ops.remove(Key::from_raw(done.op.0)) {
            Some(Op::ClientRead(key)) => self.read_done(key, done.result),
            Some(Op::ClientWrite(key) | Op::ClientFlush(key)) => {
                self.local_part_done(key, done.result);
            }
            Some(Op::PeerWrite(key)) => self.peer_write_done(key, done.result),
            Some(Op::EpochFlush(p, volume)) => self.epoch_flush_done(p, volume, done.result),
            Some(Op::ResyncRead(key)) => self.chunk_read(key, done.result, done.zero, done.buf),
            Some(Op::AttachFlush(v)) => self.attach_flushed(v, done.result),
            Some(Op::DemoteFlush(v)) => self.demote_flushed(v, done.result),
            Some(Op::LogFlush(v)) => self.log_flush_done(v, done.result),
            Some(Op::ServedRead(read)) => self.served_read_done(read, done.result, done.buf),
            Some(
                Op::VerifyRead(_)
                | Op::Lingering(_)
                | Op::PeerDigest(_)
                | Op::MetaPage(_)
                | Op::MetaFlush(_)
                | Op::MetaSuperblock(_)
                | Op::LogBlock(_)
                | Op::LogPage(_),
            )
            | None => {}
        }
    }

    /// A control message arrived.
    pub(crate) fn message(&mut self, p: usize, message: Message) {
        let volume = |this: &Self, n: u16| this.volume_index(VolumeId(n));
        match message {
            Message::Params(params) => self.params_received(p, params),
            Message::Facts(facts) => self.facts_received(p, facts),
            Message::Verdicts(verdicts) => self.verdicts_received(p, verdicts),
            Message::State { role, disks } => self.state_received(p, role, &disks),
            Message::Prepare { tid, change } => self.prepare_received(p, tid, change),
            Message::PrepareReply { tid, refusal } => self.prepare_reply_received(p, tid, refusal),
            Message::Finish { tid, commit } => self.finish_received(p, tid, commit),
            Message::BitmapReady {
                volume: n,
                base,
                current,
            } => match volume(self, n) {
                Some(v) => self.bitmap_ready_received(p, v, base, current),
                None => self.protocol_error(p, "unknown volume".to_string()),
            },
            Message::ResyncFinished {
                volume: n,
                generations,
                in_step,
            } => match volume(self, n) {
                Some(v) => self.resync_finished_received(p, v, generations, in_step),
                None => self.protocol_error(p, "unknown volume".to_string()),
            },
            Message::ResyncFinishedAck { volume: n, current } => match volume(self, n) {
                Some(v) => self.resync_finished_ack_received(p, v, current),
                None => self.protocol_error(p, "unknown volume".to_string()),
            },
            Message::NewCurrentUuid {
                volume: n,
                previous,
                current,
                in_step,
                behind,
                settled,
            } => match volume(self, n) {
                Some(v) => {
                    let members = crate::group::Members {
                        in_step,
                        behind,
                        settled,
                    };
                    self.new_current_received(p, v, previous, current, members);
                }
                None => self.protocol_error(p, "unknown volume".to_string()),
            },
            Message::NewCurrentUuidAck { volume: n, current } => match volume(self, n) {
                Some(v) => self.new_current_ack_received(p, v, current),
                None => self.protocol_error(p, "unknown volume".to_string()),
            },
            Message::View(view) => self.view_received(p, view),
            Message::Settled { writes } => self.settled_received(p, writes),
            Message::VerifyFinished {
                volume: n,
                run,
                checked,
                different,
            } => match volume(self, n) {
                Some(v) => self.verify_finished_received(p, v, run, checked, different),
                None => self.protocol_error(p, "unknown volume".to_string()),
            },
            Message::VerifyEnded { run, reason } => self.verify_ended_received(p, run, &reason),
            Message::ResizeReady { tid, volume, size } => {
                self.resize_ready_received(p, tid, volume, size);
            }
            Message::Serve {
                volume: n,
                previous,
                current,
            } => match volume(self, n) {
                Some(v) => self.serve_received(p, v, previous, current),
                None => self.protocol_error(p, "unknown volume".to_string()),
            },
            Message::Serving { volume: n, current } => match volume(self, n) {
                Some(v) => self.serving_received(p, v, current),
                None => self.protocol_error(p, "unknown volume".to_string()),
            },
            Message::WritesHeld { volume: n } => match volume(self, n) {
                Some(v) => self.writes_held_received(p, v),
                None => self.protocol_error(p, "unknown volume".to_string()),
            },
            Message::ResyncPause { .. } => {
                let text = "a message of a feature that was not negotiated".to_string();
                self.protocol_error(p, text);
            }
        }
    }

    /// When `handle(Input::Tick)` is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        (0..self.peers.len())
            .flat_map(|p| {
                [
                    self.link_deadline(p),
                    self.view_deadline(p),
                    self.watch_deadline(p),
                    self.orders_deadline(p),
                    self.resync_deadline(p),
                    self.verify_deadline(p),
                    self.fence_deadline(p),
                ]
            })
            .flatten()
            .chain(self.remote_deadline())
            .chain(self.attach_deadline())
            .min()
    }

    /// Nothing is in flight and nothing is being negotiated: only timers or new inputs can change
    /// anything.
    pub fn is_idle(&self) -> bool {
        // Suspended I/O waits for an order, a handler or a peer; so does what a failed disk has left behind
        // until its handler has ended.
        let quiet = |v: &Volume| v.remote.as_ref().is_some_and(|r| r.quiet);
        let quiet = self.volumes.iter().any(quiet);
        let waits = self.suspended.any() || quiet;
        (self.started == 0 || quiet || waits && self.started == self.held.len())
            && (waits
                || self.gated.is_empty()
                    && self.logged.is_empty()
                    && self.volumes.iter().all(|v| v.cold.is_empty()))
            && self.ops.len() == 0
            && self.receivers_idle()
            && self.role_change.is_none()
            && !self.peers.iter().any(|p| p.freezes())
            && self.volumes.iter().all(|v| v.meta.is_idle())
    }

    /// What a client's write waits for. A driver may order its work by it.
    pub fn protocol(&self) -> Protocol {
        self.cfg.options.protocol
    }

    /// Whether clients' requests are under way that this node's disks or links carry: its own clients', unless
    /// they are suspended, and the peers' as writes and reads that come from there.
    pub(crate) fn clients_are_busy(&self) -> bool {
        self.requests.len() > 0 && !self.suspended.any()
            || self.peers.iter().any(|p| p.reads_served > 0)
            || self.peer_requests.len() > 0
                && self.peer_requests.iter().any(|(_, r)| r.is_of_a_client())
    }

    /// Whether clients' requests have begun and are not answered.
    pub fn has_requests(&self) -> bool {
        self.requests.len() > 0
    }

    /// Own role.
    pub fn role(&self) -> Role {
        self.role
    }

    fn with_peer(&mut self, node: NodeId, f: impl FnOnce(&mut Self, usize)) {
        if let Some(p) = self.peers.iter().position(|p| p.node == node) {
            f(self, p);
        }
    }

    /// Index of the peer if `link` still is its link.
    pub(crate) fn live_peer(&self, node: NodeId, link: u64) -> Option<usize> {
        let p = self.peers.iter().position(|p| p.node == node)?;
        (self.peers[p].link_number() == Some(link)).then_some(p)
    }

    /// Index of a volume.
    pub(crate) fn volume_index(&self, id: VolumeId) -> Option<usize> {
        self.volumes.iter().position(|v| v.id == id)
    }

    /// Numbers an operation.
    pub(crate) fn new_op(&mut self, op: Op) -> OpId {
        OpId(self.ops.insert(op).raw())
    }

    /// A client's write no longer needs its range, which it may still be waiting for. Those of other
    /// writes of clients that wait for it are given back as well by the caller.
    pub(crate) fn give_back_lock(&mut self, key: RequestKey) {
        let Some(r) = self.requests.get_mut(key) else {
            return;
        };
        let (v, Some(lock)) = (r.volume, r.lock.take()) else {
            return;
        };
        let mut granted = core::mem::take(&mut self.granted);
        self.volumes[v].lock.cancel(lock, &mut granted);
        for (lock, owner) in granted.drain(..) {
            match owner {
                LockOwner::Client(_) => {}
                LockOwner::Peer(key) => self.start_peer_write(key, lock),
                LockOwner::Resync(key) => self.read_chunk(key, lock),
                LockOwner::Verify(key) => self.read_range(key, lock),
            }
        }
        self.granted = granted;
    }

    /// Releases a range and starts what waited for it.
    pub(crate) fn release_lock(&mut self, v: usize, lock: LockId) {
        let mut granted = core::mem::take(&mut self.granted);
        self.volumes[v].lock.release(lock, &mut granted);
        for (lock, owner) in granted.drain(..) {
            match owner {
                LockOwner::Client(key) => self.gated.push_back(key),
                LockOwner::Peer(key) => self.start_peer_write(key, lock),
                LockOwner::Resync(key) => self.read_chunk(key, lock),
                LockOwner::Verify(key) => self.read_range(key, lock),
            }
        }
        self.granted = granted;
    }

    /// Reports a change with its cause.
    pub(crate) fn event(&mut self, what: What, severity: Severity, cause: String) {
        self.out.push(Output::Event(Event {
            what,
            severity,
            cause,
        }));
    }

    /// Tells all agreed peers role and disk states.
    pub(crate) fn tell_state(&mut self) {
        let disks: Vec<(u16, DiskState)> = self.volumes.iter().map(|v| (v.id.0, v.disk)).collect();
        for p in 0..self.peers.len() {
            if self.peers[p].is_agreed() {
                let message = Message::State {
                    role: self.role,
                    disks: disks.clone(),
                };
                self.send_message(p, Channel::Data, &message);
            }
        }
    }

    fn state_received(&mut self, p: usize, role: Role, disks: &[(u16, DiskState)]) {
        let led = self.peers[p].leads();
        if role == Role::Primary && self.peers[p].role != Role::Primary {
            for v in 0..self.volumes.len() {
                let serves = self.peers[p].volumes[v].serves;
                self.volumes[v].missed |= !self.volumes[v].has_disk() && !serves;
            }
        }
        self.set_peer_role(p, role, "told by the peer");
        if role == Role::Secondary {
            for v in 0..self.volumes.len() {
                self.serve_no_more(p, v);
            }
        }
        let whole = disks.iter().all(|&(_, d)| d == DiskState::UpToDate);
        match (led, role) {
            (false, Role::Primary) if whole => self.leader_appeared(p),
            (true, Role::Secondary) => {
                if let Some(link) = &mut self.peers[p].link {
                    link.leads = false;
                }
                self.leader_gone(p, true);
            }
            _ => {}
        }
        if let Some(link) = &mut self.peers[p].link
            && role == Role::Primary
        {
            link.granted = None;
        }
        for &(n, disk) in disks {
            if let Some(v) = self.volume_index(VolumeId(n)) {
                self.peer_disk_told(p, v, disk);
            }
        }
    }

    fn peer_disk_told(&mut self, p: usize, v: usize, disk: DiskState) {
        let lost = |disk| {
            matches!(
                disk,
                DiskState::Failed | DiskState::Diskless | DiskState::Detaching
            )
        };
        let had = !lost(self.peers[p].volumes[v].disk);
        self.set_peer_disk(p, v, disk, "told by the peer");
        // A Primary whose clients go on with this copy.
        let goes_on = lost(disk)
            && !self.is_group()
            && self.peers[p].role == Role::Primary
            && self.role == Role::Secondary
            && self.volumes[v].is_up_to_date()
            && self.peers[p].volumes[v].mirrors();
        if goes_on {
            let verify = self.peers[p].volumes[v].replication != ReplState::Established;
            if verify {
                self.drop_verify(p, v, "the Primary's disk is out of use");
                self.set_replication(p, v, ReplState::Established, "the verify ended");
            }
            return;
        }
        // A peer that had no disk when the two met has none to lose: the connection stays.
        if had && lost(disk) {
            // Unconfirmed writes may be lost with it: treat it as gone, marks and generation
            // included. It comes back through a new handshake.
            let text = "the peer lost its disk".to_string();
            return self.renegotiate_peer(p, &text);
        }
        // Its data were declared worthless, and whoever ordered it does not wait any more: only a
        // new handshake starts the resync.
        if disk == DiskState::Inconsistent
            && self.volumes[v].is_up_to_date()
            && self.peers[p].volumes[v].replication == ReplState::Established
            && !self.peers[p].is_parked()
        {
            return self.renegotiate_peer(p, "the peer's data are invalid");
        }
        // In step with a copy that is current, this one is too.
        let pv = &self.peers[p].volumes[v];
        let doubted = matches!(
            self.volumes[v].disk,
            DiskState::Consistent | DiskState::Outdated
        );
        if self.is_group()
            && doubted
            && disk == DiskState::UpToDate
            && pv.replication == ReplState::Established
            && !self.peers[p].is_parked()
        {
            self.no_doubt(v);
            self.all_fenced(v);
            self.set_flags(v, MdFlags::WAS_UP_TO_DATE, true);
            let reason = "in step with a peer that is UpToDate".to_string();
            self.set_disk(v, DiskState::UpToDate, reason);
            self.commit(v, false, None);
            self.tell_state();
        }
    }

    pub(crate) fn set_peer_disk(&mut self, p: usize, v: usize, state: DiskState, cause: &str) {
        let pv = &mut self.peers[p].volumes[v];
        let old = core::mem::replace(&mut pv.disk, state);
        if old != state {
            let (node, id) = (self.peers[p].node, self.volumes[v].id);
            let what = What::PeerDisk(node, id, old, state);
            self.event(what, Severity::Info, cause.to_string());
        }
    }

    pub(crate) fn set_peer_role(&mut self, p: usize, role: Role, cause: &str) {
        let old = core::mem::replace(&mut self.peers[p].role, role);
        if old != role {
            let node = self.peers[p].node;
            self.event(
                What::PeerRole(node, old, role),
                Severity::Info,
                cause.to_string(),
            );
        }
    }

    pub(crate) fn set_replication(&mut self, p: usize, v: usize, state: ReplState, cause: &str) {
        let now = self.now;
        let pv = &mut self.peers[p].volumes[v];
        let old = core::mem::replace(&mut pv.replication, state);
        if old != state {
            pv.since = now;
            debug_assert!(
                states::is_known(states::REPLICATION_CHANGES, &old, &state),
                "{old:?} to {state:?}: {cause}"
            );
            let (node, id) = (self.peers[p].node, self.volumes[v].id);
            let what = What::Replication(node, id, old, state);
            self.event(what, Severity::Info, cause.to_string());
        }
    }
}

//! The turn, again and again: completions, mailbox and time become inputs of the engine, its outputs
//! are carried out, everything is submitted in one call that also waits, or in one of its own
//! if it pays to look for completions before sleeping (see `polling.rs`).
//!
//! Invariant: the mailbox is looked at only when the engine has seen every input, so that a new link
//! to a peer is never taken for the old one.

use super::buffers::Pool;
use super::counters::{Counters, driver_status};
use super::disk::{Core, Disk, Engine, run_inline};
use super::disk_ring;
use super::mailbox::{FromLoop, MAX_NBD_CONNECTIONS, StatusReply, ToLoop};
use super::nbd_links::NbdLinks;
use super::peers::Peers;
use super::polling::{Looked, Polling, Wait};
use super::ring::{Completion, Kind, Ring, Token};
use super::slab::{Key, Slab};
use super::timers::{Clock, sleep};
use super::{OpenedVolume, StartConfig, StartError};
use io_uring::{opcode, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use twinblk_engine::command::{Command, Refusal, RefusalKind};
use twinblk_engine::config::Protocol;
use twinblk_engine::ids::{CommandId, OpId, VolumeId};
use twinblk_engine::input::Input;
use twinblk_engine::metadata::layout::Placement;
use twinblk_engine::output::Output;
use twinblk_engine::resource::Resource;
use twinblk_engine::time::Instant;

/// A volume's disks.
#[derive(Debug)]
pub(crate) struct VolumeIo {
    pub(crate) volume: VolumeId,
    pub(crate) data: Rc<Disk>,
    pub(crate) meta: Rc<Disk>,
    pub(crate) placement: Placement,
    /// How it is driven, in words.
    pub(crate) note: String,
}

/// A read that waits for a buffer of the resync class.
#[derive(Debug)]
pub(crate) struct WaitingRead {
    pub(crate) op: OpId,
    pub(crate) volume: VolumeId,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    /// Only the digests are wanted.
    pub(crate) digest: bool,
}

/// Everything the thread owns. The ring comes first: it is closed before what it refers to.
pub(crate) struct Turn {
    pub(crate) core: Core,
    pub(crate) engine: Resource,
    pub(crate) volumes: Vec<VolumeIo>,
    pub(crate) peers: Peers,
    pub(crate) nbd: NbdLinks,
    pub(crate) waiting_reads: VecDeque<WaitingRead>,
    pub(crate) to_daemon: UnboundedSender<FromLoop>,
    pub(crate) now: Instant,
    /// The engine is done; what is left is to close everything.
    pub(crate) stopped: bool,
    outputs: Vec<Output>,
    completions: Vec<Completion>,
    mailbox: mpsc::Receiver<ToLoop>,
    wake: Arc<OwnedFd>,
    wake_armed: bool,
    clock: Clock,
    /// When the engine wants to be told the time.
    deadline: Option<Instant>,
    polling: Polling,
}

impl Turn {
    /// Sets everything up for the calling thread.
    pub(crate) fn new(
        config: StartConfig,
        mailbox: mpsc::Receiver<ToLoop>,
        wake: Arc<OwnedFd>,
    ) -> Result<Self, StartError> {
        let StartConfig {
            engine,
            volumes,
            options,
            to_daemon,
        } = config;
        let pool = Pool::new(options.buffer_bytes)?;
        let by_ring = volumes.iter().any(|v| v.data.0 == Engine::Ring);
        // SAFETY: the arena is unmapped only when no operation can refer to it (see `Pool::drop`).
        let ring = unsafe { Ring::new(by_ring.then(|| pool.iovec())) }?;
        let clock = Clock::new();
        let mut turn = Self {
            core: Core {
                ring,
                pool,
                jobs: Slab::default(),
                inline: VecDeque::new(),
                inputs: VecDeque::new(),
            },
            engine: Resource::new(engine),
            volumes: Vec::new(),
            peers: Peers::default(),
            nbd: NbdLinks::default(),
            waiting_reads: VecDeque::new(),
            to_daemon,
            now: clock.now(),
            stopped: false,
            outputs: Vec::new(),
            completions: Vec::new(),
            mailbox,
            wake,
            wake_armed: false,
            clock,
            deadline: None,
            polling: Polling::new(Duration::from_micros(options.poll_us)),
        };
        for opened in volumes {
            turn.attach(opened);
        }
        Ok(turn)
    }

    fn attach(&mut self, opened: OpenedVolume) {
        let OpenedVolume {
            volume,
            data,
            meta,
            recovered,
            no_volatile_cache,
            note,
        } = opened;
        self.volumes.push(VolumeIo {
            volume,
            placement: recovered.layout.placement,
            data: Rc::new(Disk::new(data.0, data.1)),
            meta: Rc::new(Disk::new(meta.0, meta.1)),
            note,
        });
        self.core.inputs.push_back(Input::Attached {
            volume,
            recovered,
            no_volatile_cache,
        });
    }

    /// Turns until the engine has stopped and nothing is in flight.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        self.settle();
        while !(self.stopped && self.is_quiet()) {
            self.wait()?;
            self.now = self.clock.now();
            let mut completions = std::mem::take(&mut self.completions);
            for completion in completions.drain(..) {
                self.completed(completion);
            }
            self.completions = completions;
            self.feed_engine();
            if !self.wake_armed {
                self.read_mailbox();
            }
            if self.deadline.is_some_and(|at| at <= self.now) {
                self.core.inputs.push_back(Input::Tick);
            }
            self.settle();
            if self.nbd.end_stalled(&mut self.core, self.now) {
                self.settle();
            }
        }
        // Nothing is in flight: what the engine still held is of no use to anybody.
        self.core.pool.forget_all();
        Ok(())
    }

    fn is_quiet(&self) -> bool {
        self.core.jobs.is_empty() && self.peers.is_empty() && self.nbd.is_empty()
    }

    /// Submits, sleeps if there is nothing to do, and reaps.
    fn wait(&mut self) -> io::Result<()> {
        if !self.wake_armed {
            self.wake_armed = true;
            let fd = types::Fd(self.wake.as_raw_fd());
            let entry = opcode::PollAdd::new(fd, libc::POLLIN.cast_unsigned().into()).build();
            let key = Key {
                slot: 0,
                generation: 0,
            };
            // SAFETY: a poll names no memory; the descriptor lives as long as `self`.
            unsafe {
                self.core.ring.push(
                    &entry,
                    Token {
                        kind: Kind::Wake,
                        key,
                    },
                )
            }
        }
        self.deadline = self.engine.next_deadline();
        let wait = match self.engine.has_requests() {
            true => Wait::Answer,
            false => Wait::Other,
        };
        let deadlines = [self.deadline, self.peers.deadline(), self.nbd.deadline()];
        let deadline = deadlines.into_iter().flatten().min();
        let start = self.clock.now();
        let ring = &mut self.core.ring;
        let looked = self.polling.look(ring, self.clock, wait, deadline)?;
        let now = self.clock.now();
        // What came due while it looked is not slept over.
        let due = deadline.is_some_and(|deadline| start < deadline && deadline <= now);
        if looked != Looked::Found && !due {
            ring.enter(true, sleep(now, deadline))?;
            if looked == Looked::No {
                self.polling.slept(start, self.clock.now(), wait);
            }
        }
        ring.reap(&mut self.completions);
        Ok(())
    }

    fn completed(&mut self, completion: Completion) {
        let Completion { token, result } = completion;
        match token.kind {
            Kind::Wake => self.wake_armed = false,
            Kind::Disk => disk_ring::completed(&mut self.core, token.key, result),
            Kind::NbdRecv | Kind::NbdSend => self.nbd.completed(&mut self.core, completion),
            Kind::DataRecv | Kind::DataSend | Kind::ControlRecv | Kind::ControlSend => {
                self.peers.completed(&mut self.core, self.now, completion);
            }
        }
    }

    /// The engine sees every input, and what it wants is carried out.
    fn feed_engine(&mut self) {
        while let Some(input) = self.core.inputs.pop_front() {
            let mut outputs = std::mem::take(&mut self.outputs);
            self.engine.handle(self.now, input, &mut outputs);
            for output in outputs.drain(..) {
                self.carry_out(output);
            }
            self.outputs = outputs;
        }
    }

    /// Goes on until nothing more can be done without waiting.
    fn settle(&mut self) {
        loop {
            self.feed_engine();
            self.core.pool.freed = false;
            self.start_waiting_reads();
            self.peers.pump(&mut self.core, self.now);
            self.nbd.pump(&mut self.core);
            self.answer_block_status();
            if !self.core.inputs.is_empty() {
                continue;
            }
            // Who is waited for hears first: the peers, so that all disks work at the same time; under
            // protocol A nobody waits for them, but they would compete with the client for a
            // processor.
            let clients_first = self.engine.protocol() == Protocol::A;
            if !clients_first {
                self.peers.flush(&mut self.core, self.now, &self.to_daemon);
            }
            if !self.core.inline.is_empty() {
                run_inline(&mut self.core);
                continue;
            }
            self.nbd.flush(&mut self.core);
            if clients_first {
                self.peers.flush(&mut self.core, self.now, &self.to_daemon);
            }
            while let Some(client) = self.nbd.closed.pop() {
                let mut outputs = std::mem::take(&mut self.outputs);
                self.engine.close_export(client, self.now, &mut outputs);
                for output in outputs.drain(..) {
                    self.carry_out(output);
                }
                self.outputs = outputs;
            }
            let core = &self.core;
            if core.inputs.is_empty() && core.inline.is_empty() && !core.pool.freed {
                return;
            }
        }
    }

    fn read_mailbox(&mut self) {
        let mut count = [0; 8];
        // Nothing to read is no harm: the poll is armed again.
        let _ = rustix::io::read(&*self.wake, &mut count);
        while let Ok(message) = self.mailbox.try_recv() {
            self.message(message);
            self.feed_engine();
        }
    }

    fn message(&mut self, message: ToLoop) {
        match message {
            ToLoop::NbdClient {
                socket,
                session,
                volume,
                client,
                kept,
            } => {
                // Refused: dropping the socket closes it. Those that are too many were told so while
                // they negotiated; here end those that negotiated at the same moment.
                // The kernel's own device has its place in any case.
                if (kept.is_some() || self.nbd.connections() < MAX_NBD_CONNECTIONS)
                    && let Ok(id) = self.engine.open_export(volume, client)
                {
                    let io = self.volumes.iter().find(|io| io.volume == volume);
                    let fast_zero = io.is_some_and(|io| io.data.target().fast_zero);
                    self.nbd.add((id, kept), volume, socket, session, fast_zero);
                }
            }
            ToLoop::PeerLink {
                peer,
                data,
                control,
            } => {
                if !self.stopped {
                    self.peers
                        .add(&mut self.core, self.now, peer, data, control);
                }
            }
            ToLoop::AttachAgain(opened) => {
                let free = self.volumes.iter().all(|io| io.volume != opened.volume);
                if free && !self.stopped && self.engine.wants_disk(opened.volume) {
                    self.attach(*opened);
                }
            }
            ToLoop::AttachFailed(volume, reason) => {
                let failed = Input::AttachFailed { volume, reason };
                self.core.inputs.push_back(failed);
            }
            ToLoop::HandlerDone(id, result) => {
                let done = Input::HandlerDone { id, result };
                self.core.inputs.push_back(done);
            }
            ToLoop::DiscardedSaved(id, result) => {
                let saved = Input::DiscardedSaved { id, result };
                self.core.inputs.push_back(saved);
            }
            ToLoop::DialFailed { peer, reason } => {
                self.core
                    .inputs
                    .push_back(Input::DialFailed { peer, reason });
            }
            ToLoop::Attach(opened, answer) => {
                let free =
                    !self.stopped && self.volumes.iter().all(|io| io.volume != opened.volume);
                if free {
                    self.attach(*opened);
                }
                // Whoever asked may have given up.
                let _ = answer.send(free);
            }
            ToLoop::Command(id, command) => self.command(id, command),
            ToLoop::Status(answer) => {
                let counters = Counters {
                    requests: self.nbd.answered,
                    connections: self.nbd.connections(),
                };
                let reply = StatusReply {
                    status: self.engine.status(self.now),
                    driver: driver_status(counters, &self.core, &self.volumes),
                    now: self.now,
                };
                // Whoever asked may have given up.
                let _ = answer.send(reply);
            }
        }
    }

    fn command(&mut self, id: CommandId, command: Command) {
        if !self.stopped {
            return self.core.inputs.push_back(Input::Command { id, command });
        }
        let refusal = Refusal {
            kind: RefusalKind::State,
            reason: String::from("the resource is going down"),
            way_out: String::new(),
        };
        let _ = self.to_daemon.send(FromLoop::CommandDone(id, Err(refusal)));
    }
}

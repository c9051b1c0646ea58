//! A resource that is up: its loop, its listeners, orders waiting for their answer.

use super::convert;
use super::dial::DialState;
use super::handlers::{self, Place};
use super::kernel_device::KernelDevice;
use super::save_discarded::{self, Saves};
use crate::api::EventLine;
use crate::config;
use crate::driver::mailbox::{FromLoop, LoopHandle, StatusReply, ToLoop};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, oneshot, watch};
use tokio::task::JoinHandle;
use twinblk_engine::command::{Command, CommandResult, Refusal, RefusalKind};
use twinblk_engine::event::{DiskState, Event, Role, Severity, What};
use twinblk_engine::ids::{CommandId, VolumeId};

/// How long the loop may take to tell its state; it does so between two turns.
const STATUS_TIME: Duration = Duration::from_secs(2);

/// Where the answer to an order arrives. Fails when the loop ended first.
pub(crate) type Answer = oneshot::Receiver<CommandResult>;

/// Why there is no picture of the state.
#[derive(Debug)]
pub(crate) enum NoStatus {
    /// The loop has ended.
    Gone,
    /// The loop does not answer.
    Silent,
}

/// What is known of the life of a loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It has told its role.
    Role(Role),
    /// It has ended.
    Ended,
    /// It does not answer.
    Silent,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) config: Mutex<config::Resource>,
    pub(crate) handle: LoopHandle,
    /// The kernel device, if one is configured.
    pub(crate) device: Option<Arc<KernelDevice>>,
    /// By node id of the peer.
    pub(crate) peers: BTreeMap<u8, watch::Sender<DialState>>,
    /// Listeners and diallers; they end with the resource.
    pub(crate) tasks: Mutex<Vec<JoinHandle<()>>>,
    pub(crate) ended: watch::Sender<Option<Result<(), String>>>,
    /// Its end is known to the supervisor, which does not list it any more.
    pub(crate) told: watch::Sender<bool>,
    orders: Mutex<BTreeMap<u64, oneshot::Sender<CommandResult>>>,
    next_order: AtomicU64,
    /// Volumes whose disk has been taken into use, or has failed.
    attached: watch::Sender<BTreeSet<u16>>,
    /// Held while a disk is opened again by itself.
    pub(crate) opening: tokio::sync::Mutex<()>,
    pub(crate) saves: Saves,
    last_event: Mutex<String>,
    last_picture: Mutex<Option<(Instant, StatusReply)>>,
    /// What an `adjust` that was not through has changed already and still needs a new connection.
    pub(crate) owed: Mutex<Vec<config::diff::Change>>,
}

impl Running {
    pub(crate) fn new(config: config::Resource, handle: LoopHandle) -> Self {
        let peers = config
            .peers
            .iter()
            .map(|p| (p.id, watch::Sender::new(DialState::default())))
            .collect();
        Self {
            config: Mutex::new(config),
            handle,
            device: None,
            peers,
            tasks: Mutex::new(Vec::new()),
            ended: watch::Sender::new(None),
            told: watch::Sender::new(false),
            orders: Mutex::new(BTreeMap::new()),
            next_order: AtomicU64::new(0),
            attached: watch::Sender::new(BTreeSet::new()),
            opening: tokio::sync::Mutex::default(),
            saves: Saves::default(),
            last_event: Mutex::new(String::new()),
            last_picture: Mutex::new(None),
            owed: Mutex::new(Vec::new()),
        }
    }

    /// Gives an order to the engine. Its answer comes, unless the loop ends first.
    pub(crate) fn give(&self, command: Command) -> Answer {
        let id = self.next_order.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let mut orders = lock(&self.orders);
        // Whoever gave up waiting needs no answer.
        orders.retain(|_, waiter| !waiter.is_closed());
        orders.insert(id, sender);
        let message = ToLoop::Command(CommandId(id), command);
        if self.handle.send(message).is_err() {
            orders.remove(&id);
        }
        receiver
    }

    /// Gives an order to the engine and waits for its answer, at most `limit`.
    pub(crate) async fn order(&self, command: Command, limit: Duration) -> CommandResult {
        self.answer_within(&mut self.give(command), limit).await
    }

    /// Waits for the answer to an order, at most `limit`; it may come later still.
    pub(crate) async fn answer_within(
        &self,
        answer: &mut Answer,
        limit: Duration,
    ) -> CommandResult {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Refusal {
                kind: RefusalKind::Other,
                reason: "the resource stopped before it answered".to_string(),
                way_out: "look at the daemon's log, then `twinblk up`".to_string(),
            }),
            Err(_) => Err(self.too_slow(limit).await),
        }
    }

    /// What is said of an order that has not been answered within `limit`.
    pub(crate) async fn too_slow(&self, limit: Duration) -> Refusal {
        let waits = match self.status().await {
            Ok(reply) => reply
                .status
                .suspended
                .unwrap_or_else(|| "the disk or a peer".into()),
            Err(_) => "the resource's loop, which does not answer".into(),
        };
        Refusal {
            kind: RefusalKind::Timeout,
            reason: format!(
                "no answer within {} s; it waits for: {waits}",
                limit.as_secs()
            ),
            way_out: "look at `twinblk status`; the order goes on by itself".to_string(),
        }
    }

    /// A picture of the state. The loop may be held up by the kernel, in a call that waits for the
    /// disk; whoever asks is not.
    pub(crate) async fn status(&self) -> Result<StatusReply, NoStatus> {
        let (sender, receiver) = oneshot::channel();
        self.handle
            .send(ToLoop::Status(sender))
            .map_err(|_| NoStatus::Gone)?;
        match tokio::time::timeout(STATUS_TIME, receiver).await {
            Ok(Ok(reply)) => {
                *lock(&self.last_picture) = Some((Instant::now(), reply.clone()));
                Ok(reply)
            }
            Ok(Err(_)) => Err(NoStatus::Gone),
            Err(_) => Err(NoStatus::Silent),
        }
    }

    /// Asks the loop whether it lives; it has `limit` for its answer.
    pub(crate) async fn life(&self, limit: Duration) -> Life {
        let (sender, receiver) = oneshot::channel();
        if self.handle.send(ToLoop::Status(sender)).is_err() {
            return Life::Ended;
        }
        match tokio::time::timeout(limit, receiver).await {
            Ok(Ok(reply)) => Life::Role(reply.status.role),
            Ok(Err(_)) => Life::Ended,
            Err(_) => Life::Silent,
        }
    }

    /// Waits until the disks of all volumes are attached, or have failed, or the resource has ended; at
    /// most `limit`. Answers whether that is so.
    pub(crate) async fn attached(&self, limit: Duration) -> bool {
        let volumes = lock(&self.config).me.volumes.len();
        let (mut attached, mut ended) = (self.attached.subscribe(), self.ended.subscribe());
        let waited = tokio::time::timeout(limit, async {
            tokio::select! {
                _ = attached.wait_for(|all| all.len() >= volumes) => {}
                _ = ended.wait_for(Option::is_some) => {}
            }
        });
        waited.await.is_ok()
    }

    /// Disks of these volumes are about to be attached again.
    pub(crate) fn attaches_again(&self, volumes: &[VolumeId]) {
        self.attached
            .send_modify(|all| all.retain(|n| !volumes.contains(&VolumeId(*n))));
    }

    /// What the loop told last, and when.
    pub(crate) fn last_picture(&self) -> Option<(Instant, StatusReply)> {
        lock(&self.last_picture).clone()
    }

    /// Something came from the loop. Answers `false` after its last word.
    pub(super) fn hear(
        self: &Arc<Self>,
        message: FromLoop,
        events: &broadcast::Sender<EventLine>,
        place: &Place,
    ) -> bool {
        match message {
            FromLoop::Event(event) => {
                if let What::Disk(volume, DiskState::Attaching, _) = event.what {
                    self.attached.send_modify(|all| {
                        all.insert(volume.0);
                    });
                }
                if let Some(device) = &self.device {
                    device.wake();
                }
                let line = convert::event_line(&lock(&self.config), &event);
                self.log(&line, event.severity);
                // Nobody may be listening.
                let _ = events.send(line);
            }
            FromLoop::Handler {
                id,
                kind,
                peer,
                volume,
            } => {
                let run = handlers::Run {
                    id,
                    kind,
                    peer,
                    volume,
                };
                let (place, events) = (place.clone(), events.clone());
                tokio::spawn(handlers::run(place, Arc::clone(self), run, events));
            }
            FromLoop::AttachDisk(volume) => {
                tokio::spawn(super::attach_disk::again(Arc::clone(self), volume));
            }
            FromLoop::SaveDiscarded(request, disk) => save_discarded::begin(self, *request, disk),
            FromLoop::CancelSave(id) => self.saves.cancel(id),
            FromLoop::CommandDone(id, result) => {
                if let Some(waiter) = lock(&self.orders).remove(&id.0) {
                    let _ = waiter.send(result);
                }
            }
            FromLoop::WantLink { peer, want, now } => {
                if let Some(state) = self.peers.get(&peer.0) {
                    state.send_modify(|s| {
                        s.want = want;
                        s.kicks += u64::from(now);
                    });
                }
            }
            FromLoop::LinkDown { peer } => {
                if let Some(state) = self.peers.get(&peer.0) {
                    state.send_modify(|s| s.linked = false);
                }
            }
            FromLoop::Ended(result) => {
                self.saves.cancel_all();
                if let Err(reason) = &result {
                    let _ = events.send(self.end_line(reason));
                }
                lock(&self.orders).clear();
                for task in lock(&self.tasks).drain(..) {
                    task.abort();
                }
                for export in &lock(&self.config).me.exports {
                    if let config::Export::Unix(path) = export {
                        // Best effort: a stale one is recognised by the next `up` as well.
                        let _ = std::fs::remove_file(path);
                    }
                }
                self.ended.send_replace(Some(result));
                return false;
            }
        }
        true
    }

    /// The last event of a resource whose loop ended by an error.
    fn end_line(&self, reason: &str) -> EventLine {
        let event = Event {
            what: What::Incident,
            severity: Severity::Error,
            cause: format!("the resource has stopped: {reason}"),
        };
        convert::event_line(&lock(&self.config), &event)
    }

    /// Events go to the log once: a peer that flaps does not flood it with the same line.
    pub(super) fn log(&self, line: &EventLine, severity: Severity) {
        let text = convert::event_text(line);
        let mut last = lock(&self.last_event);
        if *last == text {
            return;
        }
        last.clone_from(&text);
        let resource = &line.resource;
        match severity {
            Severity::Info => tracing::info!(%resource, "{text}"),
            Severity::Warning => tracing::warn!(%resource, "{text}"),
            Severity::Error => tracing::error!(%resource, "{text}"),
        }
    }
}

/// A mutex whose holder panicked still protects whole data here: all changes are single steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

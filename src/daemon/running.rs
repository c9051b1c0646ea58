//! A resource that is up: its loop, its listeners, orders waiting for their answer.

use super::convert;
use super::peers::DialState;
use crate::api::EventLine;
use crate::config;
use crate::driver::mailbox::{FromLoop, LoopGone, LoopHandle, StatusReply, ToLoop};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{broadcast, oneshot, watch};
use tokio::task::JoinHandle;
use twinblk_engine::command::{Command, CommandResult, Refusal, RefusalKind};
use twinblk_engine::event::Severity;
use twinblk_engine::ids::CommandId;

/// See the module.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) config: Mutex<config::Resource>,
    pub(crate) handle: LoopHandle,
    /// By node id of the peer.
    pub(crate) peers: BTreeMap<u8, watch::Sender<DialState>>,
    /// Listeners and diallers; they end with the resource.
    pub(crate) tasks: Mutex<Vec<JoinHandle<()>>>,
    pub(crate) ended: watch::Sender<Option<Result<(), String>>>,
    /// Its end is known to the supervisor, which does not list it any more.
    pub(crate) told: watch::Sender<bool>,
    orders: Mutex<BTreeMap<u64, oneshot::Sender<CommandResult>>>,
    next_order: AtomicU64,
    last_event: Mutex<String>,
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
            peers,
            tasks: Mutex::new(Vec::new()),
            ended: watch::Sender::new(None),
            told: watch::Sender::new(false),
            orders: Mutex::new(BTreeMap::new()),
            next_order: AtomicU64::new(0),
            last_event: Mutex::new(String::new()),
        }
    }

    /// Gives an order to the engine and waits for its answer, at most `limit`.
    pub(crate) async fn order(
        &self,
        command: Command,
        limit: std::time::Duration,
    ) -> CommandResult {
        let id = self.next_order.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.orders).insert(id, sender);
        let gone = |reason: &str| Refusal {
            kind: RefusalKind::Other,
            reason: reason.to_string(),
            way_out: "look at the daemon's log, then `twinblk up`".to_string(),
        };
        if self
            .handle
            .send(ToLoop::Command(CommandId(id), command))
            .is_err()
        {
            return Err(gone("the resource has stopped"));
        }
        match tokio::time::timeout(limit, receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(gone("the resource stopped before it answered")),
            Err(_) => {
                lock(&self.orders).remove(&id);
                let waits = match self.status().await {
                    Ok(reply) => reply
                        .status
                        .suspended
                        .unwrap_or_else(|| "the disk or a peer".into()),
                    Err(_) => "the resource's loop".into(),
                };
                Err(Refusal {
                    kind: RefusalKind::Timeout,
                    reason: format!(
                        "no answer within {} s; it waits for: {waits}",
                        limit.as_secs()
                    ),
                    way_out: "look at `twinblk status`; the order goes on by itself".to_string(),
                })
            }
        }
    }

    /// A picture of the state.
    pub(crate) async fn status(&self) -> Result<StatusReply, LoopGone> {
        let (sender, receiver) = oneshot::channel();
        self.handle.send(ToLoop::Status(sender))?;
        receiver.await.map_err(|_| LoopGone)
    }

    /// Something came from the loop. Answers `false` after its last word.
    pub(crate) fn hear(&self, message: FromLoop, events: &broadcast::Sender<EventLine>) -> bool {
        match message {
            FromLoop::Event(event) => {
                let line = convert::event_line(&lock(&self.config), &event);
                self.log(&line, event.severity);
                // Nobody may be listening.
                let _ = events.send(line);
            }
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

    /// Events go to the log once: a peer that flaps does not flood it with the same line.
    fn log(&self, line: &EventLine, severity: Severity) {
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

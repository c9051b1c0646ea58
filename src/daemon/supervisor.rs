//! The owner of the list of resources: up, down, adjust, and what happens when a loop ends. A resource
//! that fails does not touch the others.

use super::handlers::Place;
use super::kernel_device::{KernelDevice, LeftOver};
use super::running::{Answer, NoStatus, Running, lock};
use super::state::StateDir;
use super::why::{self, About};
use super::{DaemonOptions, convert, dial, exports, peers, volumes};
use crate::api::{ErrorBody, EventLine, ResourceStatus, Why};
use crate::config::{self, Config};
use crate::driver;
use crate::driver::mailbox::FromLoop;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};
use twinblk_engine::command::Command;
use twinblk_engine::metadata::superblock::MdFlags;

/// Lines an event listener may lag behind before it is dropped.
const EVENT_BACKLOG: usize = 4096;
/// How long `up` waits for the disks; the order goes on by itself.
const ATTACH_TIME: Duration = Duration::from_secs(20);
/// How long a stop waits for a resource.
const STOP_TIME: Duration = Duration::from_secs(60);
/// How long the end of the daemon waits for all resources: service managers kill after 90 s.
pub(crate) const STOP_ALL_TIME: Duration = Duration::from_secs(45);
/// How long the end of the daemon waits for an order under way. What that order may still start is
/// refused by then.
const LAST_ORDER_TIME: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct Supervisor {
    options: DaemonOptions,
    config: Mutex<Config>,
    pub(super) state: Arc<StateDir>,
    running: Mutex<BTreeMap<String, Arc<Running>>>,
    /// The resources that shall be up, also after a restart: what `up` brought up and no `down`
    /// took down, whether or not they could be brought back.
    pub(super) wanted: Mutex<BTreeSet<String>>,
    /// Why a resource that should be up is not.
    pub(super) failed: Mutex<BTreeMap<String, Failed>>,
    pub(crate) events: broadcast::Sender<EventLine>,
    listening: Mutex<BTreeSet<String>>,
    /// One `up`, `down` or `adjust` at a time.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// The daemon is about to end: nothing is brought up any more.
    pub(super) ending: AtomicBool,
}

/// Why a resource is not up.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) reason: String,
    /// It is tried again by itself (`come_back`).
    pub(super) retried: bool,
}

pub(crate) fn error(kind: &str, exit_code: u8, reason: String, way_out: &str) -> ErrorBody {
    ErrorBody {
        kind: kind.to_string(),
        reason,
        way_out: way_out.to_string(),
        exit_code,
    }
}

impl Supervisor {
    pub(crate) fn new(options: DaemonOptions, config: Config, state: StateDir) -> Self {
        Self {
            options,
            config: Mutex::new(config),
            state: Arc::new(state),
            running: Mutex::new(BTreeMap::new()),
            wanted: Mutex::new(BTreeSet::new()),
            failed: Mutex::new(BTreeMap::new()),
            events: broadcast::Sender::new(EVENT_BACKLOG),
            listening: Mutex::new(BTreeSet::new()),
            changing: tokio::sync::Mutex::new(()),
            ending: AtomicBool::new(false),
        }
    }

    pub(crate) fn node_name(&self) -> String {
        lock(&self.config).node_name.clone()
    }

    /// Listens on every address peers reach this node at, so that peers are told also of resources
    /// that are not up. An address that cannot be listened on is the trouble of its resources alone,
    /// when they are brought up.
    pub(crate) async fn listen_for_peers(self: &Arc<Self>) {
        let _one = self.changing.lock().await;
        let addresses: BTreeSet<String> = lock(&self.config)
            .resources
            .iter()
            .map(|r| r.me.address.to_string())
            .collect();
        for address in addresses {
            if let Err(e) = self.listen(&address).await {
                tracing::warn!("{e}");
            }
        }
    }

    /// Listens on an address, if it does not yet. One at a time (`changing`).
    async fn listen(self: &Arc<Self>, address: &str) -> Result<(), peers::ListenError> {
        if !lock(&self.listening).contains(address) {
            peers::listen(Arc::clone(self), address).await?;
            lock(&self.listening).insert(address.to_string());
        }
        Ok(())
    }

    /// Names of all resources: those in the files, and those that run although their file is gone.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: BTreeSet<String> = lock(&self.running).keys().cloned().collect();
        names.extend(lock(&self.config).resources.iter().map(|r| r.name.clone()));
        names.into_iter().collect()
    }

    /// A configured resource.
    pub(crate) fn configured(&self, name: &str) -> Result<config::Resource, ErrorBody> {
        if let Some(resource) = lock(&self.config).resource(name) {
            return Ok(resource.clone());
        }
        if let Some(running) = self.running(name) {
            return Ok(lock(&running.config).clone());
        }
        let known = self.names().join(", ");
        let reason = format!("no resource is called {name}; known are: {known}");
        let way_out = format!("check the files in {}", self.options.config_dir.display());
        Err(error("unknown", 10, reason, &way_out))
    }

    /// A resource that is up.
    pub(crate) fn running(&self, name: &str) -> Option<Arc<Running>> {
        lock(&self.running).get(name).cloned()
    }

    /// A resource that must be up for an order.
    pub(crate) fn must_run(&self, name: &str) -> Result<Arc<Running>, ErrorBody> {
        self.configured(name)?;
        self.running(name).ok_or_else(|| {
            let mut reason = format!("{name} is not up");
            if let Some(why) = self.why_down(name) {
                reason.push_str(&format!(": {why}"));
            }
            error("not-up", 10, reason, &format!("run `twinblk up {name}`"))
        })
    }

    /// Status of a resource, up or not.
    pub(crate) async fn status(&self, name: &str) -> Result<ResourceStatus, ErrorBody> {
        let config = self.configured(name)?;
        Ok(match self.running(name) {
            Some(running) => convert::status(&running).await,
            None => {
                let mut status = convert::down(&config);
                let left_over = LeftOver::find(&config, &self.state).map(|device| device.text());
                let why: Vec<String> = self.why_down(name).into_iter().chain(left_over).collect();
                status.suspended = (!why.is_empty()).then(|| why.join("\n"));
                status
            }
        })
    }

    /// `why`.
    pub(crate) async fn why(&self, name: &str, about: Option<About>) -> Result<Why, ErrorBody> {
        let config = self.configured(name)?;
        if let Some(running) = self.running(name) {
            let answer = running.status().await;
            let config = lock(&running.config).clone();
            let device = running.device.as_ref().map(|device| device.status());
            match answer {
                Ok(reply) => {
                    return Ok(match about {
                        Some(about) => why::about(about, &config, &reply, device),
                        None => why::why(&config, &reply, device),
                    });
                }
                Err(NoStatus::Silent) => return Ok(why::why_silent(&config)),
                Err(NoStatus::Gone) => {}
            }
        }
        let words = self.status(name).await?.suspended;
        Ok(why::why_down(&config, words.as_deref()))
    }

    /// Why a resource that is not up should be, or was to be.
    fn why_down(&self, name: &str) -> Option<String> {
        let failed = lock(&self.failed);
        let Failed { reason, retried } = failed.get(name)?;
        Some(match retried {
            true => format!(
                "{reason}\nit is tried again every few seconds, until it is up or `twinblk down \
                 {name}` is ordered"
            ),
            false => reason.clone(),
        })
    }

    /// `up`.
    pub(crate) async fn up(self: &Arc<Self>, name: &str) -> Result<String, ErrorBody> {
        let result = {
            let _one = self.changing.lock().await;
            let result = self.bring_up(name).await;
            if let Err(e) = &result
                && self.configured(name).is_ok()
                && self.running(name).is_none()
            {
                // Whoever ordered it knows now, and goes on.
                self.note_failure(name, e, false);
            }
            result
        };
        let mut text = result?;
        // The next order may be a promotion, which needs the disk.
        if let Some(running) = self.running(name)
            && !running.attached(ATTACH_TIME).await
        {
            text.push_str("; its disk is still being attached: see `twinblk status`");
        }
        Ok(text)
    }

    /// Remembers why a resource could not be brought up; logs what is new.
    pub(super) fn note_failure(&self, name: &str, error: &ErrorBody, retried: bool) {
        let mut reason = error.reason.clone();
        if !error.way_out.is_empty() {
            reason.push_str(&format!("; {}", error.way_out));
        }
        let failed = Failed { reason, retried };
        let old = lock(&self.failed).get(name).map(|f| f.reason.clone());
        if retried && old.as_ref() != Some(&failed.reason) {
            let reason = &failed.reason;
            tracing::error!(resource = %name, "cannot be brought up, is tried again: {reason}");
        }
        lock(&self.failed).insert(name.to_string(), failed);
    }

    /// Brings a resource up. One at a time (`changing`).
    pub(super) async fn bring_up(self: &Arc<Self>, name: &str) -> Result<String, ErrorBody> {
        self.reload()?;
        let config = self.configured(name)?;
        if self.running(name).is_some() {
            if lock(&self.wanted).contains(name) {
                return Ok(format!("{name} is already up"));
            }
            let reason = format!("{name} is still going down, as was ordered");
            let way_out = format!("wait until `twinblk status {name}` says down, then try again");
            return Err(error("state", 11, reason, &way_out));
        }
        self.listen(&config.me.address.to_string())
            .await
            .map_err(|e| error("config", 10, e.what, e.fix))?;
        let volumes = volumes::open(&config).await?;
        let exports = exports::bind(&config).await?;
        let device = KernelDevice::of(&config, &self.state, |number| {
            let volume = volumes.iter().find(|v| v.volume.0 == number);
            let superblock = volume.map(|v| &v.recovered.superblock);
            superblock.map_or((0, false), |s| {
                let was_primary = s.flags.contains(MdFlags::PRIMARY_INDICATOR);
                (s.current, was_primary)
            })
        });
        // From here on nothing waits: what is started is also on the list.
        if self.ending.load(Ordering::Relaxed) {
            let reason = format!("the daemon is stopping; {name} is not brought up any more");
            return Err(error("state", 11, reason, "start the daemon again"));
        }
        let (to_daemon, from_loop) = mpsc::unbounded_channel();
        let start = driver::StartConfig {
            engine: config.to_engine(random() | 1, random()),
            volumes,
            options: driver::DriverOptions {
                buffer_bytes: config.buffer_bytes(),
                poll_us: u64::try_from(config.poll().as_micros()).unwrap_or(0),
            },
            to_daemon,
        };
        let (handle, _thread) =
            driver::start(start).map_err(|e| error("other", 10, e.to_string(), ""))?;
        let mut running = Running::new(config.clone(), handle);
        running.device = device;
        let running = Arc::new(running);
        self.adopt(name, &running, from_loop);
        let mut tasks = dial::dial(&running);
        tasks.extend(exports::serve(&running, exports));
        lock(&running.tasks).append(&mut tasks);
        if let Some(device) = &running.device {
            // Not one of the tasks that are cut off at the end: it does things by halves then.
            tokio::spawn(Arc::clone(device).watch(Arc::clone(&running)));
        }
        self.remember(name, true);
        Ok(format!("{name} is up"))
    }

    /// Puts a resource whose loop runs on the list and listens to it.
    pub(super) fn adopt(
        self: &Arc<Self>,
        name: &str,
        running: &Arc<Running>,
        from_loop: mpsc::UnboundedReceiver<FromLoop>,
    ) {
        lock(&self.running).insert(name.to_string(), Arc::clone(running));
        lock(&self.failed).remove(name);
        let (supervisor, running) = (Arc::clone(self), Arc::clone(running));
        tokio::spawn(hear(supervisor, name.to_string(), running, from_loop));
    }

    /// `down`.
    pub(crate) async fn down(
        self: &Arc<Self>,
        name: &str,
        force: bool,
    ) -> Result<String, ErrorBody> {
        let _one = self.changing.lock().await;
        let Some(running) = self.running(name) else {
            let config = self.configured(name)?;
            let ended = match LeftOver::find(&config, &self.state) {
                Some(device) => format!("; {}", device.end(&self.state, force).await?),
                None => String::new(),
            };
            lock(&self.failed).remove(name);
            self.remember(name, false);
            return Ok(format!("{name} is not up{ended}"));
        };
        let released = match &running.device {
            Some(device) => Some(device.release_for_down(&running, force).await?),
            None => None,
        };
        // The wish counts from now on: however long the stop takes, the resource does not come back
        // by itself. Only the engine's refusal takes it back.
        let was_wanted = self.remember(name, false);
        let mut answer = running.give(Command::Stop { force });
        if let Some(released) = released {
            answer = released.until_ended(answer, &running);
        }
        let stopped = self.wait_stopped(&running, &mut answer).await;
        match stopped {
            Ok(()) => {}
            Err(NotStopped::Refused(e)) => {
                if was_wanted {
                    self.remember(name, true);
                }
                return Err(e);
            }
            Err(NotStopped::Late(e)) => {
                if was_wanted {
                    tokio::spawn(late_refusal(Arc::clone(self), running, answer));
                }
                return Err(e);
            }
        }
        drop(running.opening.lock().await);
        if let Some(Err(reason)) = &*running.ended.borrow() {
            let reason = format!("{name} is down, but not in order: {reason}");
            return Err(error("other", 10, reason, "look at the daemon's log"));
        }
        Ok(format!("{name} is down"))
    }

    /// Waits until a resource that was ordered to stop has ended.
    async fn wait_stopped(&self, running: &Running, order: &mut Answer) -> Result<(), NotStopped> {
        let mut ended = running.told.subscribe();
        let config = lock(&running.config).clone();
        match tokio::time::timeout(STOP_TIME, order).await {
            Ok(Ok(Err(refusal))) => {
                return Err(NotStopped::Refused(convert::error(&config, &refusal)));
            }
            Err(_) => {
                let refusal = running.too_slow(STOP_TIME).await;
                return Err(NotStopped::Late(convert::error(&config, &refusal)));
            }
            // It has stopped, or ends otherwise.
            Ok(Ok(Ok(_)) | Err(_)) => {}
        }
        let waited = tokio::time::timeout(STOP_TIME, ended.wait_for(|told| *told)).await;
        if waited.is_err() {
            let reason = format!("{} does not end", config.name);
            let e = error("timeout", 5, reason, "look at the daemon's log");
            return Err(NotStopped::Late(e));
        }
        Ok(())
    }

    /// The end of the daemon: everything goes down at the same time, within `limit` in all, so that
    /// one resource that is stuck does not cost the others their orderly end. The list of what was up
    /// stays.
    pub(crate) async fn stop_all(self: &Arc<Self>, limit: Duration) {
        self.ending.store(true, Ordering::Relaxed);
        let end = tokio::time::Instant::now() + limit;
        let order_end = tokio::time::Instant::now() + LAST_ORDER_TIME.min(limit / 4);
        // An order that hangs must not keep the others from ending.
        let _one = tokio::time::timeout_at(order_end, self.changing.lock()).await;
        let all = lock(&self.running).clone();
        let mut stops = tokio::task::JoinSet::new();
        for (name, running) in all {
            let supervisor = Arc::clone(self);
            stops.spawn(async move {
                if let Some(device) = &running.device {
                    device.leave().await;
                }
                let mut answer = running.give(Command::Stop { force: true });
                let stopped = supervisor.wait_stopped(&running, &mut answer).await;
                if let Err(NotStopped::Refused(e) | NotStopped::Late(e)) = stopped {
                    tracing::error!(resource = %name, "{}", e.reason);
                }
            });
        }
        let ended = async { while stops.join_next().await.is_some() {} };
        if tokio::time::timeout_at(end, ended).await.is_err() {
            let left = self.running_names().join(", ");
            tracing::error!(
                "not down within {} s: {left}; the daemon ends all the same, and a Primary among \
                 them counts as crashed: it resyncs more than needed at the next start",
                limit.as_secs()
            );
        }
    }

    /// Names of the resources that are up.
    pub(crate) fn running_names(&self) -> Vec<String> {
        lock(&self.running).keys().cloned().collect()
    }

    /// Remembers whether a resource shall be up. Answers whether that is new.
    pub(super) fn remember(&self, name: &str, up: bool) -> bool {
        let mut wanted = lock(&self.wanted);
        let changed = if up {
            wanted.insert(name.to_string())
        } else {
            wanted.remove(name)
        };
        if changed {
            self.state.remember(&wanted);
        }
        changed
    }

    /// Reads the configuration again. Resources that run keep theirs until `adjust`.
    pub(crate) fn reload(&self) -> Result<(), ErrorBody> {
        let node = self.node_name();
        match config::load(&self.options.config_dir, Some(&node)) {
            Ok(config) => {
                *lock(&self.config) = config;
                Ok(())
            }
            Err(e) => Err(error(
                "config",
                21,
                e.to_string(),
                "correct the file and try again",
            )),
        }
    }
}

/// Why a resource that was ordered to stop has not.
#[derive(Debug)]
enum NotStopped {
    /// The engine said no.
    Refused(ErrorBody),
    /// It has not said anything yet, or takes its time: the order goes on by itself.
    Late(ErrorBody),
}

/// Takes the wish of a `down` back that was refused after nobody waited for its answer any more.
async fn late_refusal(supervisor: Arc<Supervisor>, running: Arc<Running>, answer: Answer) {
    let Ok(Err(refusal)) = answer.await else {
        return;
    };
    let config = lock(&running.config).clone();
    let e = convert::error(&config, &refusal);
    tracing::warn!(resource = %config.name, "it was not taken down: {}", e.reason);
    if supervisor
        .running(&config.name)
        .is_some_and(|r| Arc::ptr_eq(&r, &running))
    {
        supervisor.remember(&config.name, true);
    }
}

/// Listens to a loop until its last word.
async fn hear(
    supervisor: Arc<Supervisor>,
    name: String,
    running: Arc<Running>,
    mut from_loop: mpsc::UnboundedReceiver<FromLoop>,
) {
    let place = Place {
        config_dir: supervisor.options.config_dir.clone(),
        control: supervisor.options.control.clone(),
    };
    while let Some(message) = from_loop.recv().await {
        if !running.hear(message, &supervisor.events, &place) {
            break;
        }
    }
    lock(&supervisor.running).remove(&name);
    let result = running.ended.borrow().clone();
    if let Some(Err(reason)) = result {
        tracing::error!(resource = %name, "stopped: {reason}");
        let failed = Failed {
            reason,
            retried: false,
        };
        lock(&supervisor.failed).insert(name.clone(), failed);
    }
    running.told.send_replace(true);
}

/// A random number.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;

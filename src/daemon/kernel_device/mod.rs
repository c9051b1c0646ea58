//! The kernel device of a volume, /dev/nbdN: there while the node is Primary, gone when it is not, and in
//! between waiting for a daemon that was restarted.
//!
//! Invariants:
//! * the kernel's device outlives the daemon, so the kernel itself remembers that there is one: its backend
//!   identifier says whose it is. A reboot forgets it, as it should;
//! * a device that waits is served again only with the data its holders know ([`resume`]);
//! * a device is ended only when nobody holds it ([`holders`]), or when that is ordered by force;
//! * there is one connection, and it is replaced when nothing is left of it ([`link`]).
//!
//! [`attach`] makes it and connects it; [`release`] is what `secondary`, `down` and the end of the daemon do
//! with it, [`hold`] keeps it away meanwhile; [`left_over`] is one without a resource; [`trouble`] says why
//! there is none; [`orders`], [`netlink`] and [`sysfs`] speak with the kernel; [`links`] makes the names
//! under /dev/twinblk.

mod attach;
pub(crate) mod claimant;
mod hold;
mod holders;
mod left_over;
mod link;
mod links;
mod netlink;
mod open_files;
mod orders;
mod release;
mod resume;
mod sysfs;
#[cfg(test)]
mod tests;
mod trouble;

use super::running::{Running, lock};
use super::state::{GIVEN_UP, StateDir};
use crate::api::{DeviceStatus, ErrorBody};
use crate::config::{self, Device};
use crate::driver::mailbox::StatusReply;
use claimant::Claimant;
use hold::Hold;
use holders::Claim;
pub(crate) use left_over::LeftOver;
use link::Link;
use netlink::NetlinkError;
use orders::{blocking, disconnect, holders_of, ordered};
use resume::Verdict;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use trouble::Trouble;
use twinblk_engine::command::Command;
use twinblk_engine::event::Role;
use twinblk_engine::ids::VolumeId;
use userspace_nbd::kernel::Timeouts;

/// How backend identifiers of ours begin.
const BACKEND: &str = "twinblk ";
/// Time between two looks while a device waits, or something stands in its way.
const RETRY: Duration = Duration::from_secs(2);
/// How long the kernel may take to notice that a connection has ended.
const LINK_PATIENCE: Duration = Duration::from_secs(10);
/// How long a promotion may take.
const PROMOTION_TIME: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(crate) struct KernelDevice {
    resource: String,
    volume: u16,
    wanted: Device,
    /// What the kernel is told of who serves the device.
    backend: String,
    store: Arc<StateDir>,
    state: tokio::sync::Mutex<State>,
    /// For `status`.
    told: Mutex<DeviceStatus>,
    wake: Arc<Notify>,
    /// Orders that take the device away: nothing brings it back meanwhile.
    held_back: Arc<Hold>,
    /// `secondary` was ordered while the device waited: only `primary` lets it go on.
    stays_down: AtomicBool,
}

/// Where the device stands.
#[derive(Debug)]
enum State {
    /// There is none.
    Detached,
    /// The kernel has it; this process serves it, or did until its connection broke.
    Attached(Attached),
    /// The kernel has it from an earlier process.
    Waiting { index: u32, base: u64 },
    /// The kernel has it, and whoever holds it must not go on with it.
    GivenUp { index: u32, why: String },
}

#[derive(Debug)]
struct Attached {
    index: u32,
    link: Link,
    /// What the kernel was told; 0: it was not told yet.
    size: u64,
    timeouts: Timeouts,
    since: Instant,
    /// That the connection is gone was logged.
    gone_noted: bool,
}

/// What a step came to.
type Step = (State, Result<(), Trouble>);

impl KernelDevice {
    /// The device of the first volume that has one. If the kernel has a device of ours from an earlier
    /// process, it is found here. `left` says of a volume which generation is on its disk, and whether
    /// the node was Primary when it went down.
    pub(crate) fn of(
        config: &config::Resource,
        store: &Arc<StateDir>,
        left: impl Fn(u16) -> (u64, bool),
    ) -> Option<Arc<Self>> {
        let with_device = config.me.volumes.iter().find(|v| v.device.is_some());
        let Some((volume, wanted)) = with_device.and_then(|v| Some((v, v.device?))) else {
            if let Some(left) = LeftOver::find(config, store) {
                // From here on its holders do not learn what becomes of the data.
                store.remember_waiting(&config.name, Some(GIVEN_UP));
                tracing::error!(
                    resource = %config.name,
                    "/dev/nbd{0} is in the kernel from before, but `device` is configured no more: it is \
                     not served; unmount what is mounted there, then `nbd-client -d /dev/nbd{0}`",
                    left.index()
                );
            }
            return None;
        };
        io_flusher();
        let backend = backend(config, volume.number, store);
        let found = sysfs::find(Path::new(sysfs::BLOCK), &backend);
        let state = match found {
            Some(index) => {
                let base = resume::base(store.waiting_since(&config.name), left(volume.number));
                store.remember_waiting(&config.name, Some(base));
                tracing::info!(
                    resource = %config.name,
                    "/dev/nbd{index} is in the kernel and waits to be served again"
                );
                State::Waiting { index, base }
            }
            None => {
                store.remember_waiting(&config.name, None);
                remove_stale_names(&config.name, volume.number);
                State::Detached
            }
        };
        let device = Self {
            resource: config.name.clone(),
            volume: volume.number,
            wanted,
            backend,
            store: Arc::clone(store),
            told: Mutex::new(DeviceStatus::default()),
            state: tokio::sync::Mutex::new(State::Detached),
            wake: Arc::new(Notify::new()),
            held_back: Arc::default(),
            stays_down: AtomicBool::new(false),
        };
        device.tell(&state, None);
        let device = Self {
            state: tokio::sync::Mutex::new(state),
            ..device
        };
        Some(Arc::new(device))
    }

    /// Which volume it is the device of.
    pub(crate) fn volume(&self) -> u16 {
        self.volume
    }

    /// For `status`.
    pub(crate) fn status(&self) -> DeviceStatus {
        lock(&self.told).clone()
    }

    /// Something has changed that may concern the device.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Looks after the device as long as the resource's loop runs.
    pub(crate) async fn watch(self: Arc<Self>, running: Arc<Running>) {
        let mut ended = running.ended.subscribe();
        let mut last = None;
        self.wake();
        loop {
            let pause = tokio::time::sleep(RETRY);
            tokio::select! {
                _ = ended.wait_for(Option::is_some) => return,
                () = self.wake.notified() => {}
                () = pause, if self.is_restless() => {}
            }
            let trouble = self.reconcile(&running).await.err();
            if let Some(trouble) = &trouble
                && last.as_ref() != Some(trouble)
            {
                tracing::warn!(resource = %self.resource, "{}", trouble.text());
            }
            last = trouble;
        }
    }

    /// Something is to be tried again.
    fn is_restless(&self) -> bool {
        let told = lock(&self.told);
        !matches!(told.state.as_str(), "detached" | "attached") || !told.reason.is_empty()
    }

    /// Makes the device what the resource's state asks for.
    async fn reconcile(&self, running: &Arc<Running>) -> Result<(), Trouble> {
        let mut state = self.state.lock().await;
        if self.held_back.is_held() {
            return Ok(());
        }
        // A loop that does not answer is asked again.
        let Ok(reply) = running.status().await else {
            return Ok(());
        };
        let old = std::mem::replace(&mut *state, State::Detached);
        let (new, result) = self.step(old, running, reply).await;
        self.tell(&new, result.as_ref().err());
        *state = new;
        result
    }

    async fn step(&self, state: State, running: &Arc<Running>, reply: StatusReply) -> Step {
        let primary = reply.status.role == Role::Primary;
        match state {
            State::Detached if primary => self.attach(running, &reply).await,
            State::Detached => (State::Detached, Ok(())),
            State::Attached(attached) if !primary => {
                // Demoted without being asked for: who holds the device cannot be spared.
                let why = "this node is not Primary any more";
                tracing::warn!(resource = %self.resource, "{why}: /dev/nbd{} ends", attached.index);
                let step = self.end(attached.index, why).await;
                // If the kernel has kept it, it is not served any more all the same.
                attached.link.cut();
                step
            }
            State::Attached(attached)
                if attached.link.is_gone() && attached.since.elapsed() < RETRY =>
            {
                // One that dies at once is not replaced without a pause.
                let index = attached.index;
                (State::Attached(attached), Err(Trouble::NotServed { index }))
            }
            State::Attached(mut attached) if attached.link.is_gone() => {
                if !std::mem::replace(&mut attached.gone_noted, true) {
                    tracing::warn!(
                        resource = %self.resource,
                        "the kernel gave its connection up (a request took longer than \
                         device-timeout, or the connection broke); /dev/nbd{} gets a new one",
                        attached.index
                    );
                }
                let index = attached.index;
                match self.relink(index, running, &reply).await {
                    Ok(attached) => (State::Attached(attached), Ok(())),
                    Err(trouble @ Trouble::Gone { .. }) => {
                        (self.given_up(index, &trouble.reason()), Err(trouble))
                    }
                    Err(trouble) => (State::Attached(attached), Err(trouble)),
                }
            }
            State::Attached(attached) => self.keep(attached, running, &reply).await,
            State::Waiting { index, base } if primary => {
                self.serve_again(index, base, running, &reply).await
            }
            State::Waiting { index, base } => self.resume(index, base, running, &reply).await,
            State::GivenUp { index, why } => {
                self.clear_away(index, why, running, primary.then_some(&reply))
                    .await
            }
        }
    }

    /// Becomes Primary again for a device that waits, if that may be.
    async fn resume(
        &self,
        index: u32,
        base: u64,
        running: &Arc<Running>,
        reply: &StatusReply,
    ) -> Step {
        let verdict = if self.stays_down.load(Ordering::Relaxed) {
            Verdict::Wait("`secondary` was ordered; `twinblk primary` lets it go on".to_owned())
        } else if !self.store.remember_waiting(&self.resource, Some(base)) {
            let path = self.store.path().display();
            Verdict::Wait(format!(
                "the state directory {path} cannot be written to (see the log): what its holders know \
                 would be forgotten"
            ))
        } else {
            resume::may_resume(&reply.status, VolumeId(self.volume), base)
        };
        match verdict {
            Verdict::Now => {}
            Verdict::Wait(why) => {
                self.note_waiting(&why);
                return (State::Waiting { index, base }, Ok(()));
            }
            Verdict::Never(why) => return (self.given_up(index, &why), Ok(())),
        }
        if holders_of(index).await.is_empty() {
            // Nobody needs this node to be Primary for it.
            let why = "nobody held it when the daemon came back".to_owned();
            return self.clear_away(index, why, running, None).await;
        }
        let order = Command::Primary { force: false };
        if let Err(refusal) = running.order(order, PROMOTION_TIME).await {
            self.note_waiting(&refusal.reason);
            return (State::Waiting { index, base }, Ok(()));
        }
        match running.status().await {
            Ok(reply) if reply.status.role == Role::Primary => {
                self.serve_again(index, base, running, &reply).await
            }
            _ => (State::Waiting { index, base }, Ok(())),
        }
    }

    /// The node is Primary: if it has the data that the holders know, they go on. That does not change any
    /// more while it is Primary.
    async fn serve_again(
        &self,
        index: u32,
        base: u64,
        running: &Arc<Running>,
        reply: &StatusReply,
    ) -> Step {
        if !resume::is_unchanged(&reply.status, VolumeId(self.volume), base) {
            return (self.given_up(index, resume::OTHER_DATA), Ok(()));
        }
        // What follows are this Primary's own generations: if it is killed, its disk says that it was one.
        self.store.remember_waiting(&self.resource, None);
        match self.relink(index, running, reply).await {
            Ok(attached) => {
                tracing::info!(resource = %self.resource, "/dev/nbd{index} is served again");
                // If its time was over, the kernel will not wait another time: without anybody who
                // needs this very device, a fresh one is better.
                let claim = blocking(move || holders::claim(index));
                if let Ok(Ok(Claim::Free(claim))) = tokio::time::timeout(LINK_PATIENCE, claim).await
                    && let Ok(true) = self.disconnect(index, Some(claim)).await
                {
                    return self.attach(running, reply).await;
                }
                self.name(index);
                (State::Attached(attached), Ok(()))
            }
            Err(trouble @ Trouble::Gone { .. }) => {
                (self.given_up(index, &trouble.reason()), Err(trouble))
            }
            Err(trouble) => {
                // Not served after all. Should this node be demoted, others may write.
                self.store.remember_waiting(&self.resource, Some(base));
                (State::Waiting { index, base }, Err(trouble))
            }
        }
    }

    /// The size may have changed: the kernel knows it when this returns, or `status` says why not.
    pub(crate) async fn after_resize(&self, running: &Arc<Running>) {
        let _ = self.reconcile(running).await;
    }

    /// Before somebody promotes the node by hand: a device that waits for other data than those that will
    /// be served stays without a server.
    pub(crate) async fn before_promotion(&self, running: &Arc<Running>) {
        let mut state = self.state.lock().await;
        self.stays_down.store(false, Ordering::Relaxed);
        let State::Waiting { index, base } = *state else {
            return;
        };
        let Ok(reply) = running.status().await else {
            return;
        };
        let volume = VolumeId(self.volume);
        let never = match resume::may_resume(&reply.status, volume, base) {
            Verdict::Now => return,
            Verdict::Never(why) => why,
            Verdict::Wait(_) => {
                let same = reply.status.volumes.iter().any(|v| {
                    let current = twinblk_engine::event::DiskState::UpToDate;
                    v.volume == volume && v.disk == current
                });
                if same || reply.status.role == Role::Primary {
                    return;
                }
                "its holders do not know the data that are to be declared current".to_owned()
            }
        };
        *state = self.given_up(index, &never);
        self.tell(&state, None);
    }

    /// Remembered for good: the next daemon does not take it up either.
    fn given_up(&self, index: u32, why: &str) -> State {
        self.store.remember_waiting(&self.resource, Some(GIVEN_UP));
        tracing::error!(
            resource = %self.resource,
            "/dev/nbd{index} is not served any more: {why}; whoever holds it gets I/O errors, after \
             device-dead-timeout at the latest; unmount what is mounted there"
        );
        State::GivenUp {
            index,
            why: why.to_owned(),
        }
    }

    /// A device that was given up goes as soon as nobody holds it; then there may be a new one.
    async fn clear_away(
        &self,
        index: u32,
        why: String,
        running: &Arc<Running>,
        primary: Option<&StatusReply>,
    ) -> Step {
        // What cannot be remembered must be over before another daemon starts.
        let at_once = !self.store.remember_waiting(&self.resource, Some(GIVEN_UP));
        let holders = match self.is_ours(index) {
            false => None,
            true => {
                let holders = holders_of(index).await;
                let ends = holders.is_empty() || at_once;
                // It may be that somebody unseen holds it: what he gets are the errors he gets anyway.
                match ends && self.disconnect(index, None).await == Ok(true) {
                    true => None,
                    false => Some(holders),
                }
            }
        };
        let Some(holders) = holders else {
            self.store.remember_waiting(&self.resource, None);
            self.unname(index);
            return match primary {
                Some(reply) => self.attach(running, reply).await,
                None => (State::Detached, Ok(())),
            };
        };
        let result = match primary {
            Some(_) if holders.is_empty() => Ok(()),
            Some(_) => Err(Trouble::StillHeld {
                index,
                why: why.clone(),
                holders,
            }),
            None => Ok(()),
        };
        (State::GivenUp { index, why }, result)
    }

    /// Ends a device whatever is under way on it.
    async fn end(&self, index: u32, why: &str) -> Step {
        match self.disconnect(index, None).await {
            Ok(true) => {
                self.store.remember_waiting(&self.resource, None);
                self.unname(index);
                (State::Detached, Ok(()))
            }
            Ok(false) => (self.given_up(index, why), Ok(())),
            Err(error) => (
                self.given_up(index, why),
                Err(Trouble::of_order(index, error)),
            ),
        }
    }

    /// The kernel's device of this number is this one.
    fn is_ours(&self, index: u32) -> bool {
        sysfs::backend(Path::new(sysfs::BLOCK), index).as_ref() == Some(&self.backend)
    }

    /// See [`disconnect`].
    async fn disconnect(&self, index: u32, claim: Option<Claimant>) -> Result<bool, NetlinkError> {
        let backend = self.backend.clone();
        ordered(move || disconnect(index, &backend, claim)).await
    }

    fn name(&self, index: u32) {
        let directory = Path::new(links::DIRECTORY);
        if let Err(e) = links::make(directory, &self.resource, self.volume, index) {
            tracing::warn!(
                resource = %self.resource,
                "{}/{} cannot be made: {e}; use /dev/nbd{index}",
                links::DIRECTORY,
                self.resource
            );
        }
    }

    fn unname(&self, index: u32) {
        let directory = Path::new(links::DIRECTORY);
        links::remove(directory, &self.resource, self.volume, index);
    }

    /// Why a device waits, in the log when it is new.
    fn note_waiting(&self, why: &str) {
        let mut told = lock(&self.told);
        if told.reason != why {
            tracing::info!(
                resource = %self.resource,
                "{} waits; this node does not become Primary yet: {why}",
                told.path
            );
            told.reason = why.to_owned();
        }
    }

    /// Makes `status` say where it stands.
    fn tell(&self, state: &State, trouble: Option<&Trouble>) {
        let mut told = lock(&self.told);
        let (path, word, reason) = match state {
            State::Detached => (self.wanted.to_string(), "detached", String::new()),
            State::Attached(a) => (format!("/dev/nbd{}", a.index), "attached", String::new()),
            State::Waiting { index, .. } => {
                // What it waits for was noted by who found out.
                let known = (told.state == "waiting").then(|| told.reason.clone());
                (
                    format!("/dev/nbd{index}"),
                    "waiting",
                    known.unwrap_or_default(),
                )
            }
            State::GivenUp { index, why } => (format!("/dev/nbd{index}"), "given-up", why.clone()),
        };
        *told = DeviceStatus {
            path,
            state: word.to_owned(),
            reason: trouble.map_or(reason, Trouble::text),
        };
    }

    /// `primary` has succeeded: attaches the device, or says why there is none.
    pub(crate) async fn after_promotion(&self, running: &Arc<Running>) -> Result<(), ErrorBody> {
        let node = lock(&running.config).me.name.clone();
        let trouble = match self.reconcile(running).await {
            Err(trouble) => trouble,
            Ok(()) if self.status().state == "attached" => return Ok(()),
            // Another order keeps it away, or the loop did not say where it stands.
            Ok(()) => Trouble::NotTaken(self.wanted),
        };
        Err(trouble.after_promotion(&node))
    }
}

/// Memory that this process asks for must not wait for pages to be written to the device that it serves
/// itself. Threads that it starts from here on inherit this.
fn io_flusher() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if let Err(e) = rustix::process::configure_io_flusher_behavior(true) {
            tracing::warn!(
                "this process cannot be marked as one that writes pages out ({e}): with little memory left \
                 and a file system mounted on its own device it may come to a standstill"
            );
        }
    });
}

/// What the kernel is told of who serves a volume's device.
fn backend(config: &config::Resource, volume: u16, store: &StateDir) -> String {
    // The same from wherever the daemon is started.
    let directory = std::fs::canonicalize(store.path());
    let directory = directory.unwrap_or_else(|_| store.path().to_owned());
    let (node, resource) = (&config.me.name, &config.name);
    format!(
        "{BACKEND}{node} {resource} {volume} {}",
        directory.display()
    )
}

/// Names of a device that somebody else detached while no daemon ran: its number may be another's by now.
/// Those that lead to a device of another daemon of this machine are that one's.
fn remove_stale_names(resource: &str, volume: u16) {
    let directory = Path::new(links::DIRECTORY);
    if let Some(index) = links::target(directory, resource, volume) {
        let backend = sysfs::backend(Path::new(sysfs::BLOCK), index);
        if !backend.is_some_and(|b| b.starts_with(BACKEND)) {
            links::remove(directory, resource, volume, index);
        }
    }
}

//! Taking the device away: for `secondary`, for `down`, and when the daemon ends.

use super::claimant::Claimant;
use super::hold::Released;
use super::holders::{self, Claim};
use super::link::CLIENT;
use super::orders::{ORDER_TIME, blocking, holders_of};
use super::trouble::{self, Trouble};
use super::{Attached, KernelDevice, State};
use crate::api::ErrorBody;
use crate::daemon::running::Running;
use crate::daemon::state::JUST_STOPPED;
use crate::daemon::supervisor::error;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use twinblk_engine::event::Role;
use userspace_nbd::kernel::Timeouts;

/// How long those who only look at a device (udev) may hold it.
const PASSING: Duration = Duration::from_secs(5);
/// Time between two looks at them.
const LOOK: Duration = Duration::from_millis(50);
/// How long the last requests may take.
const LAST_REQUESTS: Duration = Duration::from_secs(20);
/// How long a request may be under way, when the daemon is about to end, until the kernel sends it again
/// to the next one.
const SHORT: Duration = Duration::from_secs(1);

impl KernelDevice {
    /// Detaches the device so that the node can be demoted. Refused while somebody holds it.
    pub(crate) async fn release(&self, running: &Arc<Running>) -> Result<Released, ErrorBody> {
        let mut state = self.state.lock().await;
        self.nobody_else(running).await?;
        let old = std::mem::replace(&mut *state, State::Detached);
        let (old, served) = self.served(old, running).await;
        let (new, result) = match old {
            old if served.is_err() => (old, served),
            State::Attached(attached) => self.detach(attached, false).await,
            State::Waiting { index, base } => {
                let held = self.waits_for_someone(index, running).await;
                if held.is_ok() {
                    self.stays_down.store(true, Ordering::Relaxed);
                }
                (State::Waiting { index, base }, held)
            }
            // The node is not Primary, or the device has no part in it.
            other => (other, Ok(())),
        };
        self.tell(&new, None);
        *state = new;
        result.map(|()| self.hold_back())
    }

    /// Detaches it, so that the resource can go down. By force, whoever holds it gets I/O errors.
    pub(crate) async fn release_for_down(
        &self,
        running: &Arc<Running>,
        force: bool,
    ) -> Result<Released, ErrorBody> {
        let mut state = self.state.lock().await;
        if !force {
            self.nobody_else(running).await?;
        }
        let old = std::mem::replace(&mut *state, State::Detached);
        let (old, served) = match force {
            true => (old, Ok(())),
            false => self.served(old, running).await,
        };
        let (new, result) = match old {
            old if served.is_err() => (old, served),
            State::Attached(attached) => self.detach(attached, force).await,
            State::Waiting { index, base } => match self.drop_unserved(index, force).await {
                Ok(new) => (new, Ok(())),
                Err(e) => (State::Waiting { index, base }, Err(e)),
            },
            State::GivenUp { index, why } => match self.drop_unserved(index, force).await {
                Ok(new) => (new, Ok(())),
                Err(e) => (State::GivenUp { index, why }, Err(e)),
            },
            State::Detached => (State::Detached, Ok(())),
        };
        self.tell(&new, None);
        *state = new;
        result.map(|()| self.hold_back())
    }

    pub(super) fn hold_back(&self) -> Released {
        Released::new(&self.held_back, &self.wake)
    }

    /// Other clients keep the node Primary: then the device stays too.
    async fn nobody_else(&self, running: &Arc<Running>) -> Result<(), ErrorBody> {
        let Ok(reply) = running.status().await else {
            return Ok(());
        };
        let mut others = reply.status.open_clients;
        others.retain(|name| name != CLIENT);
        if reply.status.role != Role::Primary || others.is_empty() {
            return Ok(());
        }
        let reason = format!(
            "{} client(s) hold the export: {}",
            others.len(),
            others.join(", ")
        );
        let way_out = "end them (disconnect the NBD client), then try again";
        Err(error("in-use", 12, reason, way_out))
    }

    /// Those who hold a device that is about to be served again keep the node Primary as any others do.
    async fn waits_for_someone(&self, index: u32, running: &Arc<Running>) -> Result<(), ErrorBody> {
        let primary = running.status().await;
        if !primary.is_ok_and(|reply| reply.status.role == Role::Primary) {
            return Ok(());
        }
        let holders = holders_of(index).await;
        if holders.is_empty() {
            return Ok(());
        }
        Err(trouble::in_use(index, &holders))
    }

    /// Gives a device whose connection is gone a new one: it can be claimed only while it is served.
    async fn served(&self, state: State, running: &Arc<Running>) -> (State, Result<(), ErrorBody>) {
        let State::Attached(attached) = state else {
            return (state, Ok(()));
        };
        if !attached.link.is_gone() {
            return (State::Attached(attached), Ok(()));
        }
        let index = attached.index;
        let linked = match running.status().await {
            Ok(reply) => self.relink(index, running, &reply).await,
            Err(_) => Err(Trouble::NotServed { index }),
        };
        match linked {
            Ok(attached) => (State::Attached(attached), Ok(())),
            // Nothing is left to claim.
            Err(trouble @ Trouble::Gone { .. }) => {
                (self.given_up(index, &trouble.reason()), Ok(()))
            }
            Err(trouble) => {
                let e = error("device", 10, trouble.reason(), &trouble.way_out());
                (State::Attached(attached), Err(e))
            }
        }
    }

    async fn detach(&self, attached: Attached, force: bool) -> (State, Result<(), ErrorBody>) {
        let index = attached.index;
        let mut link = attached.link.clone();
        let claim = tokio::select! {
            // Without a connection nothing can be claimed.
            biased;
            () = link.wait_gone() => {
                let reason = format!(
                    "/dev/nbd{index} lost its connection, without which nobody can tell whether \
                     it may go"
                );
                let way_out = "it gets a new one by itself: try again";
                Err(error("device", 10, reason, way_out))
            }
            claim = self.claim_free(index) => claim,
        };
        let claim = match claim {
            Ok(claim) => Some(claim),
            Err(_) if force => None,
            Err(e) => return (State::Attached(attached), Err(e)),
        };
        let ended = self.disconnect(index, claim).await;
        if ended.is_err() {
            // The kernel may have kept it: then it is not served any more.
            link.cut();
        }
        // The engine may go on only when its last request is answered.
        let waited = tokio::time::timeout(LAST_REQUESTS, link.wait_gone()).await;
        self.unname(index);
        match ended {
            Ok(true) => tracing::info!(resource = %self.resource, "/dev/nbd{index} is detached"),
            Ok(false) | Err(_) => {
                let why = "it was detached";
                let state = self.given_up(index, why);
                return match (ended, force) {
                    (Err(e), false) => {
                        let e = Trouble::of_order(index, e);
                        (state, Err(error("device", 10, e.reason(), &e.way_out())))
                    }
                    _ => (state, Ok(())),
                };
            }
        }
        if waited.is_err() {
            let reason = format!(
                "requests of /dev/nbd{index} are still under way after {} s",
                LAST_REQUESTS.as_secs()
            );
            let e = error("timeout", 5, reason, "look at `twinblk status`, try again");
            return (State::Detached, Err(e));
        }
        (State::Detached, Ok(()))
    }

    /// Claims the device, or says who holds it.
    async fn claim_free(&self, index: u32) -> Result<Claimant, ErrorBody> {
        let began = Instant::now();
        loop {
            // It ends by itself, unless to look for holders takes too long.
            let claim = blocking(move || holders::claim(index));
            let claim = tokio::time::timeout(holders::CLAIM_TIME + ORDER_TIME, claim).await;
            match claim.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
                Ok(Claim::Free(device)) => return Ok(device),
                Ok(Claim::Held(holders)) => {
                    let passing = holders.iter().all(holders::Holder::is_passing);
                    if !passing || began.elapsed() > PASSING {
                        return Err(trouble::in_use(index, &holders));
                    }
                    tokio::time::sleep(LOOK).await;
                }
                Err(e) if e.kind() == std::io::ErrorKind::TimedOut => {
                    let reason = format!(
                        "/dev/nbd{index} does not answer within {} s: writes are still on their way",
                        holders::CLAIM_TIME.as_secs()
                    );
                    return Err(error("timeout", 5, reason, "look at `twinblk status`"));
                }
                Err(e) => {
                    let reason = format!("/dev/nbd{index} cannot be opened: {e}");
                    let way_out = "if it is broken: `twinblk down --force`, which detaches it";
                    return Err(error("device", 10, reason, way_out));
                }
            }
        }
    }

    /// A device that nobody serves: it must not be opened, that would wait.
    async fn drop_unserved(&self, index: u32, force: bool) -> Result<State, ErrorBody> {
        let holders = holders_of(index).await;
        if !holders.is_empty() && !force {
            return Err(trouble::in_use(index, &holders));
        }
        let (state, result) = self.end(index, "it was taken down").await;
        result
            .map(|()| state)
            .map_err(|e| error("device", 10, e.reason(), &e.way_out()))
    }

    /// The daemon ends. A device that somebody holds stays in the kernel, where I/O waits for the next
    /// daemon; one that nobody holds goes.
    pub(crate) async fn leave(&self) {
        self.held_back.for_good();
        let mut state = self.state.lock().await;
        let old = std::mem::replace(&mut *state, State::Detached);
        let State::Attached(attached) = old else {
            // It waits already, or has ended.
            *state = old;
            return;
        };
        let (index, dead) = (attached.index, attached.timeouts.dead);
        if attached.link.is_gone() {
            // It cannot be claimed, and waits already.
            if holders_of(index).await.is_empty() {
                (*state, _) = self.end(index, "the daemon ended").await;
            } else {
                self.store
                    .remember_waiting(&self.resource, Some(JUST_STOPPED));
            }
            return;
        }
        // What is under way when the connection ends is sent again after this time, not the usual one.
        let request = attached.timeouts.request.min(SHORT);
        let short = self.order_change(index, None, Timeouts { request, dead });
        if let Err(trouble) = short.await {
            tracing::warn!(resource = %self.resource, "{}", trouble.text());
        }
        match self.detach(attached, false).await {
            (State::Attached(mut attached), held) => {
                if let Err(e) = held {
                    tracing::info!(
                        resource = %self.resource,
                        "{}; its I/O waits up to {} s for the daemon to be back",
                        e.reason,
                        dead.as_secs()
                    );
                }
                self.store
                    .remember_waiting(&self.resource, Some(JUST_STOPPED));
                attached.link.cut();
                let gone = attached.link.wait_gone();
                if tokio::time::timeout(LAST_REQUESTS, gone).await.is_err() {
                    tracing::warn!(
                        resource = %self.resource,
                        "requests of /dev/nbd{index} are still under way"
                    );
                }
            }
            (other, result) => {
                if let Err(e) = result {
                    tracing::warn!(resource = %self.resource, "{}", e.reason);
                }
                *state = other;
            }
        }
    }
}

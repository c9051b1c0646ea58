//! `hook`: what a failover daemon calls. Every action may be repeated, ends within its time, and may
//! be called by several daemons at once: of two that want different things the later one gets its
//! way, and the earlier one is told so.
//!
//! `up` never forces. Whether this node may be Primary is decided by its data and by its peers, not by
//! whoever says that it should be.

use super::args::{Hook, HookAction};
use super::client::Client;
use super::exit::{CliError, Code};
use super::hook_intent::Intent;
use super::hook_score::{reaches_current, score};
use super::print;
use crate::api::{Order, ResourceStatus};
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often to look whether something has changed.
const LOOK: Duration = Duration::from_millis(200);

/// How long the last attempt to promote may take.
const LAST_ATTEMPT: Duration = Duration::from_secs(2);

/// How long it may take to take an order back.
const GIVE_UP: Duration = Duration::from_secs(5);

/// Exit code of `status` for a node that is not Primary (LSB: not running).
const NOT_PRIMARY: u8 = 3;
/// Exit code of `status` when it cannot be told (LSB: unknown).
const UNKNOWN: u8 = 4;

/// Carries an action out.
pub(super) async fn run(client: &Client, control: &Path, args: &Hook) -> Result<(), CliError> {
    let name = args.resource.name.as_str();
    if name == "all" {
        return Err(CliError::new(
            Code::Usage,
            "`hook` takes one resource, not all of them",
            "call it once for each",
        ));
    }
    let call = Call {
        client,
        name,
        until: Instant::now() + Duration::from_secs(args.timeout),
    };
    match args.action {
        HookAction::Up => {
            let intent = Intent::declare(control, name, "up")?;
            let wait_peer = Instant::now() + Duration::from_secs(args.wait_peer.min(args.timeout));
            call.up(&intent, wait_peer).await
        }
        HookAction::Down => {
            let intent = Intent::declare(control, name, "down")?;
            call.down(&intent).await
        }
        HookAction::Status => call.status().await,
        HookAction::Promotable => call.promotable().await,
        HookAction::Health => call.health().await,
        HookAction::Score => {
            let status = call.look().await?;
            print(&format!("{}\n", score(&status, &args.scores)))
        }
    }
}

/// One call of the hook.
struct Call<'a> {
    client: &'a Client,
    name: &'a str,
    until: Instant,
}

impl Call<'_> {
    fn time_is_up(&self) -> bool {
        Instant::now() >= self.until
    }

    async fn order(&self, verb: &str) -> Result<String, CliError> {
        self.client.order(self.name, verb, &Order::default()).await
    }

    /// The state, in time.
    async fn look(&self) -> Result<ResourceStatus, CliError> {
        self.in_time(self.client.status(self.name)).await
    }

    /// An answer, unless the daemon is silent for longer than this call may take. What is asked when time is
    /// up is asked for a moment still.
    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        let until = self.until.max(Instant::now() + LAST_ATTEMPT);
        let silent = |_| {
            Err(CliError::new(
                Code::Timeout,
                format!(
                    "the daemon did not answer about {} in time; it is there, and may be serving",
                    self.name
                ),
                "look at its log; a daemon that stays silent must be ended before another node takes over",
            ))
        };
        let answer = tokio::time::timeout_at(until.into(), answer).await;
        answer.unwrap_or_else(silent)
    }

    /// Becomes Primary, however long it takes within the time: the daemon may be starting, the disk
    /// may be attaching, a peer that is Primary may be dead and not be noticed yet.
    async fn up(&self, intent: &Intent, wait_peer: Instant) -> Result<(), CliError> {
        loop {
            let error = match self.promote(intent, wait_peer).await {
                Ok(None) => return Ok(()),
                // Not yet.
                Ok(Some(error)) => error,
                Err(error) => return Err(error),
            };
            if self.time_is_up() {
                return Err(error);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One attempt: `None` when it is done, an error to be told if nothing better comes in time, or one
    /// that is final.
    async fn promote(
        &self,
        intent: &Intent,
        wait_peer: Instant,
    ) -> Result<Option<CliError>, CliError> {
        intent.still_holds()?;
        let status = match self.look().await {
            Ok(status) => status,
            Err(error) if error.code == Code::NoDaemon as u8 => return Ok(Some(error)),
            Err(error) => return Err(error),
        };
        if !status.up {
            // What cannot be brought up now may be in a moment (a disk that appears).
            let up = self.in_time(self.order("up")).await;
            return Ok(Some(up.err().unwrap_or_else(|| not_yet(&status))));
        }
        if status.role == "Primary" {
            return Ok(device_is_missing(&status));
        }
        if Instant::now() < wait_peer && status.peers.iter().any(may_come) {
            return Ok(Some(not_yet(&status)));
        }
        // In between somebody may have called the other way round.
        intent.still_holds()?;
        // An attempt that has begun in time gets its answer: a refusal says more than that time was up.
        let until = self.until.max(Instant::now() + LAST_ATTEMPT);
        let order = tokio::time::timeout_at(until.into(), self.order("primary"));
        let Ok(answer) = order.await else {
            // It must not come true after this call has said that it did not.
            let _ = tokio::time::timeout(GIVE_UP, self.order("secondary")).await;
            return Err(CliError::new(
                Code::Timeout,
                format!(
                    "{} was not promoted in time; the order was taken back",
                    self.name
                ),
                format!(
                    "look at `twinblk why {}`; fencing a peer may take longer than this --timeout",
                    self.name
                ),
            ));
        };
        if answer.is_ok()
            && let Err(overtaken) = intent.still_holds()
        {
            let _ = tokio::time::timeout(GIVE_UP, self.order("secondary")).await;
            return Err(overtaken);
        }
        match answer {
            Ok(_) => Ok(None),
            // Stale data do not get better by asking again; but a resync may be running.
            Err(error) if error.code == Code::NoUpToDateData as u8 && !catches_up(&status) => {
                Err(error)
            }
            Err(error) => Ok(Some(error)),
        }
    }

    /// Becomes Secondary. Whoever holds the device may be about to let it go.
    async fn down(&self, intent: &Intent) -> Result<(), CliError> {
        loop {
            intent.still_holds()?;
            let status = self.look().await?;
            if !status.up {
                return Ok(());
            }
            // Also on a Secondary: it may be about to be promoted, and is not any more after this.
            match self.in_time(self.order("secondary")).await {
                Ok(_) => return Ok(()),
                Err(error) if self.time_is_up() => return Err(error),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Prints the role.
    async fn status(&self) -> Result<(), CliError> {
        let code = |code| CliError {
            code,
            what: String::new(),
            next: String::new(),
        };
        match self.look().await {
            Err(error) => {
                print("unknown\n")?;
                Err(CliError {
                    code: UNKNOWN,
                    ..error
                })
            }
            Ok(status) if !status.up => {
                print("down\n")?;
                Err(code(NOT_PRIMARY))
            }
            Ok(status) => {
                print(&format!("{}\n", status.role))?;
                match status.role.as_str() {
                    "Primary" => Ok(()),
                    _ => Err(code(NOT_PRIMARY)),
                }
            }
        }
    }

    /// Whether this node is Primary, or could be made so now.
    async fn promotable(&self) -> Result<(), CliError> {
        let status = self.look().await?;
        if !status.up {
            return Err(not_yet(&status));
        }
        match &status.promotion_refused {
            Some(refusal) if status.role != "Primary" => Err(refusal.clone().into()),
            _ => match depends(&status) {
                Some(words) => print(&words),
                None => Ok(()),
            },
        }
    }

    /// Whether clients of this Primary get their data. I/O that is suspended counts as served as long as
    /// it waits for something that is under way: to fail over would not make it come sooner.
    async fn health(&self) -> Result<(), CliError> {
        let status = self.look().await?;
        unserved(&status).map_or(Ok(()), Err)
    }
}

/// What keeps a Primary from serving; a Secondary has nothing to serve.
fn unserved(status: &ResourceStatus) -> Option<CliError> {
    if status.role != "Primary" {
        return None;
    }
    let bad = |v: &&crate::api::VolumeStatus| !reaches_current(status, v);
    if let Some(volume) = status.volumes.iter().find(bad) {
        return Some(CliError::new(
            Code::NoUpToDateData,
            format!(
                "{} is Primary without access to current data: the disk of volume {} is {}, and no \
                 connected peer has them",
                status.name, volume.volume, volume.disk
            ),
            format!("look at `twinblk why {}`", status.name),
        ));
    }
    stands_still(status).or_else(|| device_is_missing(status))
}

/// I/O waits for a peer to be fenced, and the handler has failed: nothing is under way that would end it.
fn stands_still(status: &ResourceStatus) -> Option<CliError> {
    let failed = |p: &crate::api::PeerStatus| Some((p.name.clone(), p.not_fenced.clone()?));
    let (peer, why) = status.peers.iter().find_map(failed)?;
    let name = &status.name;
    Some(CliError::new(
        Code::State,
        format!("{name} is Primary, and its I/O stands still: {peer} could not be fenced: {why}"),
        format!(
            "connect {peer}; or, if you know that it cannot be promoted, `twinblk resume-io {name}`; or \
             give clients errors with `twinblk secondary --force {name}`"
        ),
    ))
}

/// A promotion that depends on a handler, in words.
fn depends(status: &ResourceStatus) -> Option<String> {
    let fenced = (status.role != "Primary" && !status.promotion_fences.is_empty())
        .then(|| status.promotion_fences.join(", "))?;
    let codes = match status.volumes.iter().all(|v| v.disk == "UpToDate") {
        true => "3, 4, 5 or 7",
        false => "3, 4 or 7",
    };
    Some(format!(
        "fence-peer would be called for {fenced} first, and must answer {codes}\n"
    ))
}

/// A peer that is not there yet, and may be in a moment.
fn may_come(peer: &crate::api::PeerStatus) -> bool {
    peer.connection == "Connecting" || peer.connection == "Unconnected"
}

/// This node is being brought up to date.
fn catches_up(status: &ResourceStatus) -> bool {
    let volumes = status.peers.iter().flat_map(|p| &p.volumes);
    let mut states = volumes.map(|v| v.replication.as_str());
    states.any(|s| matches!(s, "SyncTarget" | "WFBitMapT" | "PausedSyncT"))
        || status.volumes.iter().any(|v| v.disk == "Attaching")
}

fn not_yet(status: &ResourceStatus) -> CliError {
    let name = &status.name;
    let what = match status.up {
        false => format!("{name} is not up yet"),
        true => format!("{name} waits for its peer before it is promoted"),
    };
    CliError::new(
        Code::Other,
        what,
        format!("look at `twinblk why {name}`; it may take a longer --timeout"),
    )
}

/// Primary is not enough when a kernel device belongs to it.
fn device_is_missing(status: &ResourceStatus) -> Option<CliError> {
    let mut devices = status.volumes.iter().filter_map(|v| v.device.as_ref());
    let device = devices.find(|d| d.state != "attached")?;
    Some(CliError::new(
        Code::Other,
        format!(
            "{} is Primary, and its device {} is {}: {}",
            status.name, device.path, device.state, device.reason
        ),
        format!("look at `twinblk why {}`", status.name),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake_daemon::resource;

    #[test]
    fn what_depends_on_a_handler_is_said() {
        let words = |disk: &str, role: &str| {
            let mut r = resource("r0");
            r.role = role.into();
            r.volumes[0].disk = disk.into();
            r.promotion_fences = vec!["bravo".into()];
            depends(&r)
        };
        assert_eq!(words("UpToDate", "Primary"), None);
        let current = words("UpToDate", "Secondary").expect("it depends");
        assert!(current.contains("bravo") && current.contains("3, 4, 5 or 7"));
        let doubtful = words("Consistent", "Secondary").expect("it depends");
        assert!(doubtful.contains("3, 4 or 7"), "{doubtful}");
        let mut free = resource("r0");
        free.role = "Secondary".into();
        assert_eq!(depends(&free), None);
    }

    #[test]
    fn a_primary_without_data_or_device_is_not_healthy() {
        let code = |change: &dyn Fn(&mut ResourceStatus)| {
            let mut r = resource("r0");
            change(&mut r);
            unserved(&r).map(|e| e.code)
        };
        assert_eq!(code(&|_| {}), None);
        let lost_disk = |r: &mut ResourceStatus| r.volumes[0].disk = "Diskless".into();
        assert_eq!(code(&lost_disk), None, "the peer serves");
        let alone = |r: &mut ResourceStatus| r.peers[0].volumes[0].peer_disk = "DUnknown".into();
        assert_eq!(code(&alone), None, "the own disk serves");
        let neither = |r: &mut ResourceStatus| {
            lost_disk(r);
            alone(r);
        };
        assert_eq!(code(&neither), Some(Code::NoUpToDateData as u8));
        assert_eq!(
            code(&|r| {
                neither(r);
                r.role = "Secondary".into();
            }),
            None,
            "a Secondary serves nobody"
        );
        let frozen = |r: &mut ResourceStatus| r.suspended_for = vec!["fencing".into()];
        assert_eq!(code(&frozen), None, "the handler runs");
        let in_vain = |r: &mut ResourceStatus| {
            frozen(r);
            r.peers[0].not_fenced = Some("exit code 1".into());
        };
        assert_eq!(code(&in_vain), Some(Code::State as u8), "it has failed");
        let given_up = |r: &mut ResourceStatus| {
            r.volumes[0].device = Some(crate::api::DeviceStatus {
                path: "/dev/nbd0".into(),
                state: "given-up".into(),
                reason: "bravo was Primary meanwhile".into(),
            });
        };
        assert_eq!(code(&given_up), Some(Code::Other as u8));
    }
}

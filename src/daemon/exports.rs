//! NBD listeners of a resource and the negotiation; a client that has entered the export goes to the
//! loop. The exports listen on a Secondary too: clients are told there who is Primary.

use super::auto_promote;
use super::running::{NoStatus, Running, lock};
use super::socket_file::remove_stale;
use super::sockets;
use super::strangers::{Place, Seldom, Strangers, and_more, tame};
use super::supervisor::error;
use crate::api::ErrorBody;
use crate::config::{self, Export as Address};
use crate::driver::mailbox::{MAX_NBD_CONNECTIONS, MAX_NBD_PAYLOAD, StatusReply, ToLoop};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use twinblk_engine::event::Role;
use userspace_nbd::export::{BlockSize, Export, TransmissionFlags};
use userspace_nbd::negotiation::{Exports, Lookup, Negotiation, Progress, Session};

/// Time for a negotiation.
const NEGOTIATION_TIME: Duration = Duration::from_secs(30);
/// Time for the first bytes of a client.
const FIRST_BYTES_TIME: Duration = Duration::from_secs(10);
/// Clients of a resource that negotiate at once.
const MAX_NEGOTIATIONS: usize = 64;
/// A kind of failed negotiation is told of in the log this often at most.
const WARNING_PAUSE: Duration = Duration::from_secs(10);

/// A listener that is bound.
pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Binds all exports of a resource.
pub(crate) async fn bind(config: &config::Resource) -> Result<Vec<Listener>, ErrorBody> {
    let mut listeners = Vec::new();
    for address in &config.me.exports {
        let failed = |e: &std::io::Error, fix: &str| {
            error(
                "config",
                10,
                format!("the export {address} cannot be opened: {e}"),
                fix,
            )
        };
        listeners.push(match address {
            Address::Unix(path) => {
                remove_stale(path).await.map_err(|why| {
                    let reason = format!("the export {address} cannot be opened: {why}");
                    error("config", 10, reason, "")
                })?;
                let listener = UnixListener::bind(path).map_err(|e| {
                    let fix = match e.kind() {
                        std::io::ErrorKind::NotFound => "create the directory of the socket first",
                        std::io::ErrorKind::AddrInUse => "another program has the socket",
                        _ => "check path and permissions",
                    };
                    failed(&e, fix)
                })?;
                let _ = std::fs::set_permissions(path, PermissionsExt::from_mode(0o660));
                Listener::Unix(listener)
            }
            Address::Tcp(socket) => {
                Listener::Tcp(TcpListener::bind(socket).await.map_err(|e| {
                    failed(
                        &e,
                        "stop the program that listens there, or change `export`",
                    )
                })?)
            }
        });
    }
    Ok(listeners)
}

/// What the listeners of a resource share.
struct Door {
    running: Arc<Running>,
    strangers: Arc<Strangers>,
    warnings: Seldom,
}

/// Serves them.
pub(crate) fn serve(running: &Arc<Running>, listeners: Vec<Listener>) -> Vec<JoinHandle<()>> {
    let door = Arc::new(Door {
        running: Arc::clone(running),
        strangers: Strangers::new(MAX_NEGOTIATIONS),
        warnings: Seldom::new(WARNING_PAUSE),
    });
    listeners
        .into_iter()
        .map(|listener| tokio::spawn(accept(Arc::clone(&door), listener)))
        .collect()
}

async fn accept(door: Arc<Door>, listener: Listener) {
    loop {
        let result = match &listener {
            Listener::Unix(l) => l.accept().await.map(|(stream, _)| {
                let (door, place) = (Arc::clone(&door), door.strangers.admit());
                tokio::spawn(async move {
                    let client = unix_client(&stream);
                    if let Some((stream, session)) = negotiate(&door, &place, stream, &client).await
                        && let Ok(stream) = stream.into_std()
                        && stream.set_nonblocking(false).is_ok()
                    {
                        enter(&door.running, stream.into(), session, client);
                    }
                });
            }),
            Listener::Tcp(l) => l.accept().await.map(|(stream, from)| {
                let (door, place) = (Arc::clone(&door), door.strangers.admit());
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    sockets::prepare_client(&stream);
                    let client = from.to_string();
                    if let Some((stream, session)) = negotiate(&door, &place, stream, &client).await
                        && let Ok(stream) = stream.into_std()
                        && stream.set_nonblocking(false).is_ok()
                    {
                        enter(&door.running, stream.into(), session, client);
                    }
                });
            }),
        };
        if let Err(e) = result {
            tracing::warn!("accepting an NBD client failed: {e}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // It shall be heard before the next one may take its place.
        tokio::task::yield_now().await;
    }
}

fn enter(running: &Running, socket: OwnedFd, session: Session, client: String) {
    let volume = lock(&running.config)
        .me
        .volumes
        .first()
        .map_or(0, |v| v.number);
    let volume = twinblk_engine::ids::VolumeId(volume);
    let _ = running.handle.send(ToLoop::NbdClient {
        socket,
        session,
        volume,
        client,
        kept: None,
    });
}

fn unix_client(stream: &tokio::net::UnixStream) -> String {
    let pid = rustix::net::sockopt::socket_peercred(stream.as_fd())
        .map(|c| c.pid.as_raw_nonzero().get())
        .unwrap_or(0);
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    // A process calls itself what it likes.
    format!("pid {pid} ({})", tame(name.trim(), 64))
}

/// Negotiates with one client. `None`: it left, or did not get in.
async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    door: &Door,
    place: &Place,
    mut stream: S,
    client: &str,
) -> Option<(S, Session)> {
    let talk = tokio::time::timeout(NEGOTIATION_TIME, talk(door, place, &mut stream, client));
    let result = tokio::select! {
        biased;
        result = talk => result.unwrap_or(Err(TurnedAway::Slow)),
        () = place.displaced() => Err(TurnedAway::Displaced),
    };
    let error = match result {
        Ok(session) => return Some((stream, session)),
        Err(TurnedAway::Left) => return None,
        Err(error) => error,
    };
    if let Some(left_out) = door.warnings.may(error.kind(), Instant::now()) {
        let resource = lock(&door.running.config).name.clone();
        let (why, more) = (tame(&error.to_string(), 300), and_more(left_out));
        tracing::warn!(%resource, "an NBD client, {client}, was turned away: {why}{more}");
    }
    None
}

/// Why a client did not get in.
#[derive(Debug, thiserror::Error)]
enum TurnedAway {
    /// It left by itself: nothing to tell.
    #[error("it left")]
    Left,
    #[error("it said nothing")]
    Silent,
    #[error("it did not finish the negotiation in time")]
    Slow,
    #[error("too many others came while its negotiation was not finished")]
    Displaced,
    #[error("{0}")]
    Failed(String),
}

impl TurnedAway {
    /// Of each kind only one is logged in a while.
    fn kind(&self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Silent => "silent",
            Self::Slow => "slow",
            Self::Displaced => "displaced",
            Self::Failed(_) => "failed",
        }
    }
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    door: &Door,
    place: &Place,
    stream: &mut S,
    client: &str,
) -> Result<Session, TurnedAway> {
    let left = |_| TurnedAway::Left;
    let mut negotiation = Negotiation::new();
    let mut promoted = Promoted(None);
    stream
        .write_all(&negotiation.greeting())
        .await
        .map_err(left)?;
    let mut buf = vec![0; 8192];
    let first = tokio::time::timeout(FIRST_BYTES_TIME, stream.read(&mut buf)).await;
    let mut n = first.map_err(|_| TurnedAway::Silent)?.map_err(left)?;
    place.spoke();
    while n > 0 {
        let offer = Offer::of(&door.running).await;
        if offer.full
            && let Some(left_out) = door.warnings.may("full", Instant::now())
        {
            let (resource, more) = (&offer.name, and_more(left_out));
            tracing::warn!(
                %resource,
                "an NBD client, {client}, is refused: there are {MAX_NBD_CONNECTIONS} connections \
                 already{more}"
            );
        }
        let mut out = Vec::new();
        let before = offer.by_promotion.then(|| negotiation.clone());
        let mut progress = negotiation.feed(&buf[..n], &offer, &mut out);
        // It is let in when the node is Primary for it, and stays so; else it is told why not.
        if let (Progress::Done(_), Some(before)) = (&progress, before) {
            // Before the answer, too: whoever waits for it may be displaced.
            promoted.0 = Some(Arc::clone(&door.running));
            match auto_promote::promote(&door.running).await {
                Ok(()) => {}
                Err(refused) => {
                    if !refused.pending {
                        promoted.0 = None;
                    }
                    let policy_text = refused.text;
                    let refusing = Offer {
                        lookup: Lookup::Refused { policy_text },
                        ..offer
                    };
                    (negotiation, out) = (before, Vec::new());
                    progress = negotiation.feed(&buf[..n], &refusing, &mut out);
                }
            }
        }
        stream.write_all(&out).await.map_err(left)?;
        match progress {
            Progress::NeedMore => {}
            Progress::Done(session) => {
                promoted.0 = None;
                return Ok(*session);
            }
            Progress::Aborted => return Err(TurnedAway::Left),
            Progress::Failed(error) => return Err(TurnedAway::Failed(error.to_string())),
        }
        n = stream.read(&mut buf).await.map_err(left)?;
    }
    Err(TurnedAway::Left)
}

/// A client was announced that is not in yet; should it leave, that is taken back.
struct Promoted(Option<Arc<Running>>);

impl Drop for Promoted {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            tokio::spawn(async move { auto_promote::take_back(&running).await });
        }
    }
}

/// What is offered at this moment.
struct Offer {
    name: String,
    lookup: Lookup,
    /// There are as many connections as there may be.
    full: bool,
    /// Whoever enters is announced first, and the node promoted for it.
    by_promotion: bool,
}

impl Offer {
    async fn of(running: &Running) -> Self {
        let name = lock(&running.config).name.clone();
        let (lookup, full, by_promotion) = match running.status().await {
            Ok(reply) => {
                let full = reply.driver.nbd_connections >= MAX_NBD_CONNECTIONS;
                let by_promotion = auto_promote::lets_in(running, &reply);
                let lookup = match look(&name, &reply, by_promotion) {
                    Lookup::Found(_) if full => Lookup::Refused {
                        policy_text: format!(
                            "{name} serves {MAX_NBD_CONNECTIONS} connections already, as many as it \
                             may; close some first"
                        ),
                    },
                    lookup => lookup,
                };
                (lookup, full, by_promotion)
            }
            Err(why) => {
                let policy_text = match why {
                    NoStatus::Gone => format!("{name} is going down"),
                    NoStatus::Silent => {
                        format!("{name} does not answer at the moment; try again later")
                    }
                };
                (Lookup::Refused { policy_text }, false, false)
            }
        };
        Self {
            name,
            lookup,
            full,
            by_promotion,
        }
    }
}

/// The export at this moment, or why there is none.
pub(super) fn look(name: &str, reply: &StatusReply, by_promotion: bool) -> Lookup {
    let status = &reply.status;
    let here = &status.node_name;
    if status.role != Role::Primary && !by_promotion {
        let primary = status.peers.iter().find(|p| p.role == Role::Primary);
        let policy_text = match primary {
            Some(p) => format!("{name} is Secondary on {here}; {} is Primary", p.name),
            None => format!("{name} is Secondary on {here}; no Primary is known"),
        };
        return Lookup::Refused { policy_text };
    }
    let Some(volume) = status.volumes.first() else {
        return Lookup::Unknown;
    };
    let flags = [
        TransmissionFlags::SEND_FLUSH,
        TransmissionFlags::SEND_FUA,
        TransmissionFlags::SEND_TRIM,
        TransmissionFlags::SEND_WRITE_ZEROES,
        TransmissionFlags::SEND_FAST_ZERO,
        TransmissionFlags::SEND_DF,
        TransmissionFlags::SEND_CACHE,
        TransmissionFlags::CAN_MULTI_CONN,
    ];
    Lookup::Found(Export {
        name: name.to_string(),
        description: format!("twinblk resource {name} on {here}"),
        size: volume.size,
        flags: flags
            .into_iter()
            .fold(TransmissionFlags::HAS_FLAGS, |all, f| all | f),
        block_size: BlockSize {
            minimum: volume.block_size,
            preferred: 4096,
            maximum: MAX_NBD_PAYLOAD,
        },
        meta_contexts: vec!["base:allocation".to_string(), "twinblk:dirty".to_string()],
    })
}

impl Exports for Offer {
    fn lookup(&self, name: &str) -> Lookup {
        if name.is_empty() || name == self.name {
            self.lookup.clone()
        } else {
            Lookup::Unknown
        }
    }

    fn list(&self) -> Vec<(String, String)> {
        vec![(self.name.clone(), "twinblk resource".to_string())]
    }
}

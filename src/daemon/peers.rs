//! Listening for peers: one listener per address of this node for all resources. The two sockets of a
//! connection are paired by its random id. Who dials: [`super::dial`].
//!
//! Whoever connects is a stranger until it has proved that it knows the secret. Strangers cannot keep
//! a peer out ([`super::strangers`]), and nothing they say is repeated as it is.

use super::running::{Running, lock};
use super::sockets;
use super::strangers::{Place, Seldom, Strangers, and_more, tame};
use super::supervisor::Supervisor;
use crate::driver::mailbox::ToLoop;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use twinblk_engine::ids::NodeId;
use twinblk_protocol::hello::{
    AcceptAs, Acceptor, Established, HelloError, HelloProgress, PeerHello, SocketRole,
};

/// Time for a connection to be made and authenticated.
pub(super) const HELLO_TIME: Duration = Duration::from_secs(10);
/// Time for the first bytes of a hello: whoever dials sends them at once.
const FIRST_BYTES_TIME: Duration = Duration::from_secs(2);
/// Connections being authenticated at once.
const MAX_STRANGERS: usize = 64;
/// A kind of stranger is told of in the log this often at most.
const WARNING_PAUSE: Duration = Duration::from_secs(10);
/// What somebody who says to be a peer did wrong gets into the status this often at most.
const REPORT_PAUSE: Duration = Duration::from_millis(500);
/// Longest name of an unknown node that is repeated; ours are not longer.
const MAX_NAME: usize = 64;
/// Longest explanation by an unknown node that is repeated.
pub(super) const MAX_WORDS: usize = 300;

/// A socket that waits for its sibling.
struct Half {
    stream: OwnedFd,
    leftover: Vec<u8>,
    role: SocketRole,
    since: Instant,
}

type Halves = Mutex<BTreeMap<(String, u8, u64), Half>>;

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{what}; {fix}")]
pub(crate) struct ListenError {
    pub(crate) what: String,
    pub(crate) fix: &'static str,
}

/// Listens for peers on one address.
pub(crate) async fn listen(supervisor: Arc<Supervisor>, address: &str) -> Result<(), ListenError> {
    let listener = TcpListener::bind(address).await.map_err(|e| ListenError {
        what: format!("cannot listen for peers on {address}: {e}"),
        fix: match e.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another program listens there; stop it, or change `address` of this node"
            }
            std::io::ErrorKind::AddrNotAvailable => {
                "this machine does not have the address; correct `address` of this node, or use \
                 --node if this is another node"
            }
            _ => "correct `address` of this node",
        },
    })?;
    let door = Arc::new(Door {
        supervisor,
        halves: Halves::default(),
        warnings: Seldom::new(WARNING_PAUSE),
        reports: Seldom::new(REPORT_PAUSE),
    });
    tokio::spawn(async move {
        let strangers = Strangers::new(MAX_STRANGERS);
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let (door, place) = (Arc::clone(&door), strangers.admit());
                    tokio::spawn(async move {
                        accept(&door, &place, stream, &from.to_string()).await;
                    });
                    // It shall be heard before the next one may take its place.
                    tokio::task::yield_now().await;
                }
                Err(e) => {
                    tracing::warn!("accepting a peer failed: {e}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    });
    Ok(())
}

/// What the connections to one address share.
struct Door {
    supervisor: Arc<Supervisor>,
    halves: Halves,
    warnings: Seldom,
    reports: Seldom,
}

/// Why a stranger did not get in.
#[derive(Debug, thiserror::Error)]
enum Dropped {
    #[error("it said nothing")]
    Silent,
    #[error("it did not finish the hello in time")]
    Slow,
    #[error("too many others came while its hello was not finished")]
    Displaced,
    #[error("it closed the connection during the hello")]
    Left,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Hello(#[from] HelloError),
}

impl Dropped {
    /// Of each kind only one is logged in a while.
    fn kind(&self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Slow => "slow",
            Self::Displaced => "displaced",
            Self::Left => "left",
            Self::Io(_) => "io",
            Self::Hello(error) => match error {
                HelloError::NotTwinblk => "not twinblk",
                HelloError::Malformed => "malformed",
                HelloError::Version { .. } => "version",
                HelloError::RefusedByPeer(_) => "refused by the peer",
                HelloError::RefusedHere(_) => "refused here",
                HelloError::Secret => "secret",
            },
        }
    }
}

async fn accept(door: &Door, place: &Place, stream: TcpStream, from: &str) {
    let mut acceptor = Acceptor::new(nonce());
    let talk = tokio::time::timeout(HELLO_TIME, greet(door, place, &mut acceptor, stream));
    let result = tokio::select! {
        biased;
        result = talk => result.unwrap_or(Err(Dropped::Slow)),
        () = place.displaced() => Err(Dropped::Displaced),
    };
    let error = match result {
        Ok((stream, established)) => return pair(door, stream, established),
        Err(error) => error,
    };
    let words = tame(&error.to_string(), MAX_WORDS);
    if let Some(left_out) = door.warnings.may(error.kind(), Instant::now()) {
        let more = and_more(left_out);
        tracing::warn!(%from, "a connection on the peers' port was dropped: {words}{more}");
    }
    if let Some(hello) = acceptor.dialler() {
        report(door, hello, &words);
    }
}

/// Somebody says to be a peer and did not get in: the peer's status tells why. Nothing of it is
/// proved, so it can neither flood the resource nor put its own lines into what people read.
fn report(door: &Door, hello: &PeerHello, words: &str) {
    let Some(running) = door.supervisor.running(&hello.resource) else {
        return;
    };
    if !running.peers.contains_key(&hello.node_id) {
        return;
    }
    let whom = format!("{} {}", hello.resource, hello.node_id);
    if door.reports.may(&whom, Instant::now()).is_none() {
        return;
    }
    let name = tame(&hello.node_name, MAX_NAME);
    let reason = format!("{name} tried to connect, but: {words}");
    let _ = running.handle.send(ToLoop::DialFailed {
        peer: NodeId(hello.node_id),
        reason,
    });
}

async fn greet(
    door: &Door,
    place: &Place,
    acceptor: &mut Acceptor,
    mut stream: TcpStream,
) -> Result<(TcpStream, Established), Dropped> {
    sockets::prepare_peer(&stream);
    let mut buf = vec![0; 4096];
    let first = tokio::time::timeout(FIRST_BYTES_TIME, stream.read(&mut buf)).await;
    let mut n = first.map_err(|_| Dropped::Silent)??;
    place.spoke();
    loop {
        if n == 0 {
            return Err(Dropped::Left);
        }
        let mut out = Vec::new();
        let choose = |hello: &PeerHello| choose(&door.supervisor, hello);
        let progress = acceptor.feed(&buf[..n], &choose, &mut out);
        stream.write_all(&out).await?;
        match progress {
            HelloProgress::NeedMore => {}
            HelloProgress::Done(established) => return Ok((stream, established)),
            HelloProgress::Failed(error) => {
                // Let the refusal arrive before the socket goes.
                let _ = stream.shutdown().await;
                let _ = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut buf)).await;
                return Err(error.into());
            }
        }
        n = stream.read(&mut buf).await?;
    }
}

/// As whom a dialler is answered, or why not.
fn choose(supervisor: &Supervisor, hello: &PeerHello) -> Result<AcceptAs, String> {
    let here = supervisor.node_name();
    // What runs counts, not what a file may say by now: `adjust` brings the one to the other.
    let Some(running) = supervisor.running(&hello.resource) else {
        return Err(match supervisor.configured(&hello.resource) {
            Ok(config) => format!("{} is not up on {here}", config.name),
            Err(_) => {
                let name = tame(&hello.resource, MAX_NAME);
                format!("{here} has no resource {name}")
            }
        });
    };
    let config = lock(&running.config).clone();
    if config.me.id != hello.wants_node {
        return Err(format!(
            "{here} is node {}, not node {}",
            config.me.id, hello.wants_node
        ));
    }
    if !config.peers.iter().any(|p| p.id == hello.node_id) {
        return Err(format!(
            "{here} knows no node with id {} in {}",
            hello.node_id, config.name
        ));
    }
    Ok(AcceptAs {
        node_id: config.me.id,
        features: 0,
        secret: config.secret.to_vec(),
    })
}

/// Keeps the first socket of a connection until the second is there, then hands over both.
fn pair(door: &Door, stream: TcpStream, established: Established) {
    let Ok(fd) = into_fd(stream) else { return };
    let hello = established.hello;
    let key = (hello.resource.clone(), hello.node_id, hello.connection_id);
    let mine = Half {
        stream: fd,
        leftover: established.leftover,
        role: hello.socket,
        since: Instant::now(),
    };
    let mut map = lock(&door.halves);
    map.retain(|_, half| half.since.elapsed() < HELLO_TIME);
    let Some(other) = map.remove(&key) else {
        map.insert(key, mine);
        return;
    };
    drop(map);
    let (data, control) = match (mine.role, other.role) {
        (SocketRole::Data, SocketRole::Control) => (mine, other),
        (SocketRole::Control, SocketRole::Data) => (other, mine),
        _ => return tracing::warn!("two sockets of one kind for one connection"),
    };
    if let Some(running) = door.supervisor.running(&hello.resource) {
        hand_over(
            &running,
            hello.node_id,
            (data.stream, data.leftover),
            (control.stream, control.leftover),
        );
    }
}

pub(super) fn hand_over(
    running: &Running,
    peer: u8,
    data: (OwnedFd, Vec<u8>),
    control: (OwnedFd, Vec<u8>),
) {
    if let Some(state) = running.peers.get(&peer) {
        state.send_modify(|s| s.linked = true);
    }
    let _ = running.handle.send(ToLoop::PeerLink {
        peer: NodeId(peer),
        data,
        control,
    });
}

pub(super) fn into_fd(stream: TcpStream) -> std::io::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

pub(super) fn nonce() -> [u8; 32] {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).expect("the system has random numbers");
    nonce
}

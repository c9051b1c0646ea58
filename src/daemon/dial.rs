//! Dialling peers. The node with the lower id dials both sockets, the other accepts: so connections never
//! cross, and a broken link is dialled by exactly one side.

use super::peers::{HELLO_TIME, MAX_WORDS, hand_over, into_fd, nonce};
use super::running::{Running, lock};
use super::sockets;
use super::strangers::tame;
use super::supervisor::random;
use crate::config;
use crate::driver::mailbox::ToLoop;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use twinblk_engine::ids::NodeId;
use twinblk_protocol::hello::{Dialler, HelloError, HelloProgress, PeerHello, SocketRole};

/// A link that lived shorter is not redialled at once.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// Pause before the first new attempt after a link is lost.
const QUICK: Duration = Duration::from_millis(100);

/// What a dialler knows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DialState {
    /// The engine wants a link.
    pub(crate) want: bool,
    /// There is one.
    pub(crate) linked: bool,
    /// Grows when it shall be dialled at once.
    pub(crate) kicks: u64,
}

/// Starts a dialler for every peer with a higher node id.
pub(crate) fn dial(running: &Arc<Running>) -> Vec<JoinHandle<()>> {
    let config = lock(&running.config).clone();
    config
        .peers
        .iter()
        .filter(|peer| config.me.id < peer.id)
        .filter_map(|peer| {
            let state = running.peers.get(&peer.id)?.subscribe();
            Some(tokio::spawn(dialler(Arc::clone(running), peer.id, state)))
        })
        .collect()
}

async fn dialler(running: Arc<Running>, peer: u8, mut state: watch::Receiver<DialState>) {
    loop {
        if state.wait_for(|s| s.want && !s.linked).await.is_err() {
            return;
        }
        // The configuration may have been adjusted since the last attempt.
        let config = lock(&running.config).clone();
        let kicks = state.borrow().kicks;
        let started = Instant::now();
        let pause = match tokio::time::timeout(HELLO_TIME, connect(&config, peer)).await {
            Ok(Ok((data, control))) => {
                hand_over(&running, peer, data, control);
                if state.wait_for(|s| !s.linked).await.is_err() {
                    return;
                }
                if started.elapsed() < SHORT_LIFE {
                    config.connect_int()
                } else {
                    QUICK
                }
            }
            failed => {
                let reason = match failed {
                    Ok(Err(reason)) => reason,
                    _ => "no answer in time".to_string(),
                };
                let sent = running.handle.send(ToLoop::DialFailed {
                    peer: NodeId(peer),
                    reason,
                });
                if sent.is_err() {
                    return;
                }
                config.connect_int()
            }
        };
        // A little disorder keeps many resources from dialling in step.
        let jitter = Duration::from_millis(random() % (1 + pause.as_millis() as u64 / 10));
        let kicked = state.wait_for(|s| s.kicks != kicks);
        let _ = tokio::time::timeout(pause + jitter, kicked).await;
    }
}

type Sockets = ((OwnedFd, Vec<u8>), (OwnedFd, Vec<u8>));

async fn connect(config: &config::Resource, peer: u8) -> Result<Sockets, String> {
    let id = random();
    let data = connect_one(config, peer, id, SocketRole::Data).await?;
    let control = connect_one(config, peer, id, SocketRole::Control).await?;
    Ok((data, control))
}

async fn connect_one(
    config: &config::Resource,
    peer: u8,
    connection_id: u64,
    socket: SocketRole,
) -> Result<(OwnedFd, Vec<u8>), String> {
    let Some(node) = config.nodes().find(|n| n.id == peer) else {
        return Err("the peer is not configured any more".to_string());
    };
    let address = node.address.to_string();
    let mut stream = TcpStream::connect(&address)
        .await
        .map_err(|e| format!("{} ({address}) cannot be reached: {e}", node.name))?;
    sockets::prepare_peer(&stream);
    let hello = PeerHello {
        version_min: 0,
        version_max: 0,
        features: 0,
        resource: config.name.clone(),
        node_id: config.me.id,
        node_name: config.me.name.clone(),
        wants_node: peer,
        socket,
        connection_id,
        nonce: nonce(),
    };
    let mut dialler = Dialler::new(hello, &config.secret);
    let text = |e: std::io::Error| format!("{} ({address}): {e}", node.name);
    stream.write_all(&dialler.start()).await.map_err(text)?;
    let mut buf = vec![0; 4096];
    loop {
        let n = stream.read(&mut buf).await.map_err(text)?;
        if n == 0 {
            return Err(format!(
                "{} ({address}) closed the connection during the hello",
                node.name
            ));
        }
        let mut out = Vec::new();
        let progress = dialler.feed(&buf[..n], &mut out);
        stream.write_all(&out).await.map_err(text)?;
        match progress {
            HelloProgress::NeedMore => {}
            HelloProgress::Done(established) => {
                let fd = into_fd(stream).map_err(text)?;
                return Ok((fd, established.leftover));
            }
            HelloProgress::Failed(error) => return Err(explain(&node.name, &address, &error)),
        }
    }
}

/// The words of a node that has not proved itself either.
fn explain(name: &str, address: &str, error: &HelloError) -> String {
    let (verb, text) = match error {
        HelloError::RefusedByPeer(text) => (" refused", tame(text, MAX_WORDS)),
        other => ("", tame(&other.to_string(), MAX_WORDS)),
    };
    format!("{name} ({address}){verb}: {text}")
}

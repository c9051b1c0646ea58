//! Runs handlers for the engines: each in a task and a process of its own, several at once. Whatever
//! becomes of a run is an answer, and every run is an event when it begins and when it ends.
//!
//! What a program finds in its environment is in `docs/handlers.md`, to the letter.

use super::convert;
use super::handler_process::{End, HandlerProcess, words};
use super::running::{Running, lock};
use crate::api::EventLine;
use crate::config;
use crate::driver::mailbox::ToLoop;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use twinblk_engine::event::Severity;
use twinblk_engine::handler::{HandlerKind, HandlerResult};
use twinblk_engine::ids::{HandlerId, NodeId, VolumeId};
use twinblk_engine::status::Status;

/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What handlers are told of the daemon.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) config_dir: PathBuf,
    pub(super) control: PathBuf,
}

/// A run the engine asks for.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) id: HandlerId,
    pub(super) kind: HandlerKind,
    pub(super) peer: Option<NodeId>,
    pub(super) volume: Option<VolumeId>,
}

/// Runs it; the engine gets its answer.
pub(super) async fn run(
    place: Place,
    running: Arc<Running>,
    run: Run,
    events: broadcast::Sender<EventLine>,
) {
    let config = lock(&running.config).clone();
    let peer = peer_of(&config, run.peer);
    let tell = |severity, cause: String| {
        let line = EventLine {
            time_ms: convert::now_ms(),
            resource: config.name.clone(),
            kind: "handler".to_string(),
            peer: run.peer.and(peer).map(|p| p.name.clone()),
            volume: run.volume.map(|v| v.0),
            from: None,
            to: None,
            severity: convert::severity(severity).to_string(),
            cause,
        };
        running.log(&line, severity);
        // Nobody may be listening.
        let _ = events.send(line);
    };
    let name = run.kind.name();
    let Some(command) = config.handlers.command(run.kind) else {
        let why = format!("the handler {name} is not configured any more");
        tell(Severity::Error, why.clone());
        let answer = ToLoop::HandlerDone(run.id, HandlerResult::Broken(why));
        let _ = running.handle.send(answer);
        return;
    };
    // The loop is not busy: it has just asked. What it tells may be missing all the same.
    let status = running.status().await.ok().map(|reply| reply.status);
    let environment = environment(&place, &config, &run, status.as_ref(), device(&running));
    tell(Severity::Info, format!("{name} is run: {command}"));
    let began = std::time::Instant::now();
    let limit = config.handler_timeout();
    let (result, mut text) = match HandlerProcess::start(command, &environment) {
        Err(error) => {
            let text = format!("could not be started: {error}");
            (HandlerResult::Broken(text.clone()), text)
        }
        Ok(mut process) => {
            let mut ended = running.ended.subscribe();
            let cut = async {
                let _ = ended.wait_for(Option::is_some).await;
            };
            let (result, text) = match process.end(limit, cut).await {
                Err(error) => {
                    let text = format!("could not be waited for: {error}");
                    (HandlerResult::Broken(text.clone()), text)
                }
                Ok(End::Killed) => {
                    let why = match running.ended.borrow().is_some() {
                        true => "the resource has ended".to_string(),
                        false => format!("it took longer than {} s", seconds(limit)),
                    };
                    let text = format!("was killed: {why} (handler-timeout)");
                    (HandlerResult::Broken(text.clone()), text)
                }
                Ok(End::Exited(status)) => {
                    let text = words(status);
                    let result = match status.code() {
                        Some(code) => HandlerResult::Exited(code),
                        None => HandlerResult::Broken(text.clone()),
                    };
                    (result, text)
                }
            };
            let said = process.said();
            let said = if said.is_empty() {
                String::new()
            } else {
                format!("; it said: {said}")
            };
            (result, format!("{text}{said}"))
        }
    };
    text = format!("{name} after {} s: {text}", seconds(began.elapsed()));
    let severity = match result {
        HandlerResult::Exited(_) => Severity::Info,
        HandlerResult::Broken(_) => Severity::Error,
    };
    tell(severity, text);
    // The resource may have ended meanwhile.
    let _ = running.handle.send(ToLoop::HandlerDone(run.id, result));
}

fn seconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64())
}

/// The peer a run is about; the only one when it is about none.
fn peer_of(config: &config::Resource, peer: Option<NodeId>) -> Option<&config::Node> {
    match peer {
        Some(node) => config.peers.iter().find(|p| p.id == node.0),
        None => config.peers.first(),
    }
}

/// Path of the kernel device, if there is one now.
fn device(running: &Running) -> Option<String> {
    let device = running.device.as_ref()?.status();
    (device.path != "auto").then_some(device.path)
}

/// The environment of a program.
fn environment(
    place: &Place,
    config: &config::Resource,
    run: &Run,
    status: Option<&Status>,
    device: Option<String>,
) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| all.push((name.to_string(), value));
    let both = |set: &mut dyn FnMut(&str, String), name: &str, value: String| {
        set(&format!("TWINBLK_{name}"), value.clone());
        set(&format!("DRBD_{name}"), value);
    };
    set("PATH", PATH.to_string());
    set("HOME", "/".to_string());
    set("TERM", "linux".to_string());
    set("TWINBLK_HANDLER", run.kind.name().to_string());
    set("TWINBLK_CONFIG", place.config_dir.display().to_string());
    set("TWINBLK_CONTROL", place.control.display().to_string());
    set("TWINBLK_NODE", config.me.name.clone());
    set("TWINBLK_NODE_ID", config.me.id.to_string());
    set("DRBD_MY_NODE_ID", config.me.id.to_string());
    both(&mut set, "RESOURCE", config.name.clone());
    both(&mut set, "MY_ADDRESS", config.me.address.host.clone());
    for node in config.nodes() {
        set(&format!("DRBD_NODE_ID_{}", node.id), node.name.clone());
    }
    let names: Vec<&str> = config.peers.iter().map(|p| p.name.as_str()).collect();
    set("DRBD_PEERS", names.join(" "));
    if let Some(status) = status {
        set("TWINBLK_ROLE", format!("{:?}", status.role));
    }
    if let Some(peer) = peer_of(config, run.peer) {
        both(&mut set, "PEER", peer.name.clone());
        set("TWINBLK_PEER_ID", peer.id.to_string());
        set("DRBD_PEER_NODE_ID", peer.id.to_string());
        both(&mut set, "PEER_ADDRESS", peer.address.host.clone());
        set("TWINBLK_PEER_PORT", peer.address.port.to_string());
    }
    let volume = match run.volume {
        Some(volume) => config.me.volumes.iter().find(|v| v.number == volume.0),
        None => config.me.volumes.first(),
    };
    if let Some(volume) = volume {
        both(&mut set, "VOLUME", volume.number.to_string());
        let disk = volume.disk.display().to_string();
        set("TWINBLK_DISK", disk.clone());
        set("DRBD_LL_DISK", disk.clone());
        set("DRBD_BACKING_DEV", disk);
        let number = VolumeId(volume.number);
        if let Some(v) = status.and_then(|s| s.volumes.iter().find(|v| v.volume == number)) {
            set("TWINBLK_DISK_STATE", format!("{:?}", v.disk));
        }
        let peer = peer_of(config, run.peer);
        let known = status.and_then(|s| {
            s.peers
                .iter()
                .find(|p| peer.is_some_and(|peer| peer.id == p.node.0))
        });
        if let Some(p) = known {
            set("TWINBLK_PEER_ROLE", format!("{:?}", p.role));
            set("TWINBLK_CONNECTION", format!("{:?}", p.connection));
            set("DRBD_CSTATE", format!("{:?}", p.connection));
            if let Some(v) = p.volumes.iter().find(|v| v.volume == number) {
                set("TWINBLK_PEER_DISK_STATE", format!("{:?}", v.peer_disk));
            }
        }
    }
    if let Some(path) = device {
        if let Some(minor) = path.strip_prefix("/dev/nbd") {
            set("TWINBLK_MINOR", minor.to_string());
        }
        set("TWINBLK_DEVICE", path);
    }
    all
}

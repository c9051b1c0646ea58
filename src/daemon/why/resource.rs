//! What there is to say of the resource as a whole: suspended I/O, writes held back, the kernel device.

use super::Picture;
use crate::api::Finding;
use twinblk_engine::event::{ConnState, Role};
use twinblk_engine::suspend::Reason;

pub(super) fn findings(p: &Picture<'_>) -> Vec<Finding> {
    let mut all = Vec::new();
    for reason in Reason::ALL {
        if p.status.suspended_for.has(reason) {
            all.push(suspended(p, reason));
        }
    }
    if all.is_empty()
        && p.is_primary()
        && let Some(words) = &p.status.suspended
    {
        all.push(Finding {
            about: p.res().to_string(),
            state: format!("writes to {} are held back at this moment", p.res()),
            cause: words.clone(),
            risk: "none: clients wait".to_string(),
            next: "they go on by themselves when that is over".to_string(),
            ..Finding::default()
        });
    }
    all.extend(device(p));
    all
}

fn suspended(p: &Picture<'_>, reason: Reason) -> Finding {
    let (cause, risk, next, command) = match reason {
        Reason::User => (
            "somebody ordered `suspend-io`",
            "applications stand still",
            "nothing: it stays so until `resume-io`",
            p.here("resume-io RES", "I/O goes on"),
        ),
        Reason::Fencing => (
            "a peer was lost, and `fencing` is \"resource-and-stonith\": nothing may be confirmed to \
             clients before it is certain that the peer cannot serve its copy",
            "applications stand still",
            "it goes on when the `fence-peer` handler says that the peer is fenced, or when the peer is \
             connected again",
            p.here(
                "resume-io RES",
                "I/O goes on although nobody knows what the peer does: if it is promoted too, the \
                 copies part (split brain). Only when you know that the peer is off",
            ),
        ),
        Reason::NoData => (
            "this node has no current copy of its own and reaches none, and `on-no-data-accessible` is \
             \"suspend-io\"",
            "applications stand still",
            "it goes on when a peer with the current data is connected, or this node's disk is back",
            p.here(
                "secondary --force RES",
                "gives up: clients get errors, and this node becomes Secondary",
            ),
        ),
    };
    let failed = p
        .status
        .peers
        .iter()
        .find_map(|peer| Some((peer, peer.not_fenced.as_ref()?)))
        .filter(|_| reason == Reason::Fencing);
    let (cause, next) = match failed {
        None => (cause.to_string(), next.to_string()),
        Some((peer, why)) => (
            format!("{cause}; {} could not be fenced: {why}", peer.name),
            format!(
                "it goes on when {} is connected again. The handler is not called again by itself",
                peer.name
            ),
        ),
    };
    Finding {
        about: p.res().to_string(),
        state: format!(
            "I/O of {} is suspended ({}): clients wait, unanswered",
            p.res(),
            reason.name()
        ),
        cause,
        since_seconds: None,
        risk: risk.to_string(),
        next,
        commands: vec![command],
    }
}

fn device(p: &Picture<'_>) -> Option<Finding> {
    let device = p.device.as_ref().filter(|d| !d.reason.is_empty())?;
    let path = &device.path;
    let (risk, next, commands) = match device.state.as_str() {
        "waiting" => (
            "I/O on it waits, and fails when `device-dead-timeout` is over",
            "this node becomes Primary and serves it again by itself as soon as it may",
            vec![p.here(
                "primary RES",
                "makes this node Primary now, if its copy may be served; then the device goes on",
            )],
        ),
        "given-up" => (
            "what is mounted on it is not what is on the disks: its I/O fails",
            "it goes away as soon as nobody holds it: unmount it",
            vec![p.here(
                "primary RES",
                "attaches a new device, once the old one is gone",
            )],
        ),
        _ => (
            "clients of the kernel device have none; the socket exports work",
            "it is tried again every two seconds while this node is Primary",
            Vec::new(),
        ),
    };
    Some(Finding {
        about: path.clone(),
        state: format!("the kernel device {path} is {}", device.state),
        cause: device.reason.clone(),
        since_seconds: None,
        risk: risk.to_string(),
        next: next.to_string(),
        commands,
    })
}

/// The sentence for a resource of which nothing is to be said.
pub(super) fn all_is_well(p: &Picture<'_>) -> String {
    let peers: Vec<&str> = p.status.peers.iter().map(|p| p.name.as_str()).collect();
    let with = match peers.len() {
        0 => "there is no peer".to_string(),
        _ => format!("{} has the same data", peers.join(", ")),
    };
    let other = p
        .status
        .peers
        .iter()
        .find(|p| p.role == Role::Primary && p.connection == ConnState::Connected);
    match (p.status.role, other) {
        (Role::Primary, _) => format!(
            "{} is as it should be: {} is Primary and serves clients; {with}",
            p.res(),
            p.me()
        ),
        (_, Some(other)) => format!(
            "{} is as it should be: {} is Primary, and this node has the same data",
            p.res(),
            other.name
        ),
        (_, None) => format!(
            "{} is in order, and no node is Primary: nobody serves clients; {with}. `twinblk primary \
             {}` makes this node serve",
            p.res(),
            p.res()
        ),
    }
}

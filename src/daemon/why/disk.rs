//! What there is to say of this node's own disks.

use super::Picture;
use crate::api::{Finding, Suggestion};
use twinblk_engine::event::{ConnState, DiskState, ReplState};
use twinblk_engine::states::{DISKS, meaning};
use twinblk_engine::status::{PeerStatus, PeerVolumeStatus, VolumeStatus};

pub(super) fn findings(p: &Picture<'_>) -> Vec<Finding> {
    let alone = |v: &VolumeStatus| current_peer(p, v).is_none();
    let doubtful =
        |v: &&VolumeStatus| v.disk != DiskState::UpToDate || v.errors_passed_on > 0 && alone(v);
    p.status
        .volumes
        .iter()
        .filter(doubtful)
        .map(|v| finding(p, v))
        .collect()
}

fn finding(p: &Picture<'_>, v: &VolumeStatus) -> Finding {
    let mut state = format!(
        "{} is {:?} on {}: {}",
        v.volume,
        v.disk,
        p.me(),
        meaning(DISKS, &v.disk)
    );
    if let Some((peer, pv)) = source_of(p, v) {
        state.push_str(&format!("; {}", progress(peer, pv)));
    }
    Finding {
        about: v.volume.to_string(),
        state,
        cause: match v.reason.is_empty() {
            true => "nothing more is known".to_string(),
            false => v.reason.clone(),
        },
        since_seconds: p.ago(v.since),
        risk: risk(p, v),
        next: next(p, v),
        commands: commands(p, v),
    }
}

/// The peer this volume is being brought up to date from.
fn source_of<'a>(
    p: &'a Picture<'_>,
    v: &VolumeStatus,
) -> Option<(&'a PeerStatus, &'a PeerVolumeStatus)> {
    volumes_of(p, v).find(|(_, pv)| {
        matches!(
            pv.replication,
            ReplState::WFBitMapT | ReplState::SyncTarget | ReplState::PausedSyncT
        )
    })
}

fn volumes_of<'a>(
    p: &'a Picture<'_>,
    v: &VolumeStatus,
) -> impl Iterator<Item = (&'a PeerStatus, &'a PeerVolumeStatus)> {
    let id = v.volume;
    p.status
        .peers
        .iter()
        .flat_map(|peer| peer.volumes.iter().map(move |pv| (peer, pv)))
        .filter(move |(_, pv)| pv.volume == id)
}

/// How far a resync is, in words.
pub(super) fn progress(peer: &PeerStatus, pv: &PeerVolumeStatus) -> String {
    let Some(resync) = &pv.resync else {
        return format!("a resync with {} is about to begin", peer.name);
    };
    let eta = match resync.eta {
        Some(seconds) => format!("some {seconds} s to go"),
        None => "it cannot be told how long it will take".to_string(),
    };
    format!(
        "{} of {} bytes are left of the resync with {}, {eta}",
        resync.left, resync.total, peer.name
    )
}

fn current_peer<'a>(p: &'a Picture<'_>, v: &VolumeStatus) -> Option<&'a PeerStatus> {
    volumes_of(p, v)
        .find(|(_, pv)| pv.peer_disk == DiskState::UpToDate)
        .map(|(peer, _)| peer)
}

fn risk(p: &Picture<'_>, v: &VolumeStatus) -> String {
    if v.disk == DiskState::UpToDate {
        return format!(
            "this disk cannot read or write all of its blocks: {} error(s) were given to clients, and no \
             other current copy can be reached",
            v.errors_passed_on
        );
    }
    if v.disk == DiskState::Attaching {
        return "none: it lasts a moment".to_string();
    }
    match (current_peer(p, v), p.is_primary()) {
        (Some(peer), true) if v.served_by.is_none() => format!(
            "clients get no data: the copy on {} is not served (the log says why)",
            peer.name
        ),
        (Some(peer), true) => format!(
            "clients are served with the copy on {}: it is the only current one",
            peer.name
        ),
        (Some(peer), false) => format!(
            "the copy on {} is the only current one: this node cannot take over",
            peer.name
        ),
        (None, true) => "clients get no data: no current copy can be reached".to_string(),
        (None, false) => {
            "this node cannot serve, and it reaches no current copy: nothing is lost as long as the \
             node that has it is well"
                .to_string()
        }
    }
}

fn next(p: &Picture<'_>, v: &VolumeStatus) -> String {
    if source_of(p, v).is_some() {
        return "it is UpToDate when the resync is finished; should the connection break, the resync \
                goes on where it was"
            .to_string();
    }
    let connected = |peer: &&PeerStatus| peer.connection == ConnState::Connected;
    let trying = |peer: &&PeerStatus| peer.connection == ConnState::Connecting;
    match v.disk {
        DiskState::UpToDate => "nothing: it stays in use, and answers such errors to clients until a \
                                peer has a current copy"
            .to_string(),
        DiskState::Attaching | DiskState::Detaching => {
            "it goes on when the disk has answered".to_string()
        }
        DiskState::Failed => {
            "when nothing is under way on the disk any more it is closed; then it is left alone until \
             somebody attaches it (under `on-io-error = \"pass-on\"` it is attached again by itself)"
                .to_string()
        }
        DiskState::Diskless if v.attach_in.is_some() => format!(
            "in {} s the disk is attached again by itself, and what it misses is copied from the peer",
            v.attach_in.unwrap_or_default()
        ),
        DiskState::Diskless => {
            "nothing: a disk that is out of use is left alone until somebody attaches it".to_string()
        }
        _ if p.status.peers.iter().any(|peer| trying(&peer)) => {
            "when a peer with current data is connected, what differs is copied from it".to_string()
        }
        _ if p.status.peers.iter().any(|peer| connected(&peer)) => {
            "nothing: no connected peer has current data; somebody must say whose copy counts"
                .to_string()
        }
        _ => "nothing: this node does not try to connect".to_string(),
    }
}

fn commands(p: &Picture<'_>, v: &VolumeStatus) -> Vec<Suggestion> {
    let mut all = Vec::new();
    if source_of(p, v).is_some() {
        all.push(p.here("wait-sync RES", "waits until the resync is finished"));
        return all;
    }
    match v.disk {
        DiskState::Attaching | DiskState::Detaching => {}
        DiskState::UpToDate => all.push(p.here(
            "detach --force RES",
            "takes the disk away, to mend or replace it: clients get errors, or wait, as \
             `on-no-data-accessible` says",
        )),
        DiskState::Failed => all.push(p.here(
            "detach --force RES",
            "gives up what is under way on the disk, if it does not answer; a Primary's clients go on \
             with the peer's copy, or get errors if none is current",
        )),
        DiskState::Diskless => all.push(p.here(
            "attach RES",
            "opens the disk again, once it is mended; what it lacks is copied from the peer, and clients \
             are served meanwhile (a new disk needs `create-md` first)",
        )),
        _ => {
            if let Some(alone) = p
                .status
                .peers
                .iter()
                .find(|peer| peer.connection == ConnState::StandAlone)
            {
                all.push(p.here(
                    "connect RES",
                    format!("connects to {}; what differs is copied", alone.name),
                ));
            }
            all.push(p.here(
                "primary --force RES",
                "declares this copy current, whatever is known of it, and serves it. What another copy \
                 has that this one has not is given up: only when no better copy is left",
            ));
        }
    }
    all
}

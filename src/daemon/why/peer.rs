//! What there is to say of a peer: the connection, its disk, a resync, two views that disagree.

use super::Picture;
use super::disk::progress;
use crate::api::{Finding, Suggestion};
use twinblk_engine::event::{ConnState, DiskState, ReplState};
use twinblk_engine::states::{CONNECTIONS, DISKS, meaning};
use twinblk_engine::status::{PeerStatus, PeerVolumeStatus};

pub(super) fn findings(p: &Picture<'_>) -> Vec<Finding> {
    let mut all = Vec::new();
    for peer in &p.status.peers {
        if peer.connection == ConnState::Connected {
            all.extend(disagreement(p, peer));
            for pv in &peer.volumes {
                all.extend(volume(p, peer, pv));
            }
        } else {
            all.push(connection(p, peer));
        }
    }
    all
}

fn is_split_brain(peer: &PeerStatus) -> bool {
    peer.split_brain.is_some()
}

/// What each side has changed since the copies parted, in bytes: here, there.
fn changed(peer: &PeerStatus) -> (u64, u64) {
    let volumes = peer.split_brain.iter().flat_map(|split| &split.volumes);
    volumes.fold((0, 0), |(here, there), v| {
        (here + v.here.changed, there + v.there.changed)
    })
}

fn connection(p: &Picture<'_>, peer: &PeerStatus) -> Finding {
    let name = &peer.name;
    let lacks = p.out_of_sync(peer);
    let state = if is_split_brain(peer) {
        format!(
            "split brain: {} and {name} have both been written to since they parted; neither copy is \
             touched",
            p.me()
        )
    } else {
        format!(
            "{} is not connected to {name}: {:?}, {}",
            p.me(),
            peer.connection,
            meaning(CONNECTIONS, &peer.connection)
        )
    };
    let risk = if p.is_primary() {
        format!(
            "what is written here reaches no other node: {lacks} bytes are not on {name} so far, and \
             are gone if this node's disk is lost"
        )
    } else {
        format!(
            "this copy gets nothing of what is written on {name}; {lacks} bytes are marked here"
        )
    };
    Finding {
        about: name.clone(),
        state,
        cause: match peer.reason.is_empty() {
            true => "nothing more is known".to_string(),
            false => peer.reason.clone(),
        },
        since_seconds: p.ago(peer.since),
        risk,
        next: match peer.connection {
            ConnState::StandAlone => {
                "nothing: neither node tries before somebody orders it".to_string()
            }
            _ => format!(
                "this node tries again every {} s; once connected, what differs is copied from the \
                 newer copy to the older one",
                p.config
                    .settings
                    .time(crate::config::options::Key::ConnectInt)
                    .as_secs()
            ),
        },
        commands: connection_commands(p, peer),
    }
}

fn connection_commands(p: &Picture<'_>, peer: &PeerStatus) -> Vec<Suggestion> {
    let name = &peer.name;
    if is_split_brain(peer) {
        let (here, there) = changed(peer);
        let give_up = |node: &str, other: &str, bytes: u64| {
            p.on(
                node,
                "connect --discard-my-data --save-discarded FILE RES",
                format!(
                    "gives up what was written on {node} since the copies parted, {bytes} bytes at most, \
                     and saves it to FILE first: {other}'s data win ({node} must be Secondary, and \
                     {other} must `twinblk connect RES` too)"
                ),
            )
        };
        return vec![
            p.here(
                "connect --dry-run RES",
                "only tells what would happen, by which rule, and how much",
            ),
            give_up(p.me(), name, here),
            give_up(name, p.me(), there),
        ];
    }
    match peer.connection {
        ConnState::StandAlone => vec![
            p.here(
                "connect RES",
                "connects; if the generations do not allow it, says so and changes nothing",
            ),
            p.here(
                "connect --dry-run RES",
                "only tells what would happen, by which rule, and how much",
            ),
        ],
        _ => vec![
            p.on(
                name,
                "status RES",
                "tells what the other side sees; if it is not up there, `twinblk up RES`",
            ),
            p.here("disconnect RES", "stops trying, until `connect`"),
        ],
    }
}

fn disagreement(p: &Picture<'_>, peer: &PeerStatus) -> Option<Finding> {
    let text = peer.disagreement.as_ref()?;
    let name = &peer.name;
    Some(Finding {
        about: name.clone(),
        state: format!("{} and {name} see different things", p.me()),
        cause: text.clone(),
        since_seconds: None,
        risk: "one of them may wait for what the other does not do".to_string(),
        next: "nothing, if it lasts: it should not be so".to_string(),
        commands: vec![
            p.here(
                "disconnect RES",
                "ends the connection; `twinblk connect RES` after it makes both compare anew",
            ),
            p.on(name, "why RES", "tells the other side's story"),
        ],
    })
}

fn volume(p: &Picture<'_>, peer: &PeerStatus, pv: &PeerVolumeStatus) -> Vec<Finding> {
    let mut all = Vec::new();
    let name = &peer.name;
    let about = format!("{name}, {}", pv.volume);
    if let Some((since, why)) = &pv.standstill {
        all.push(Finding {
            about: about.clone(),
            state: format!("the resync of {} with {name} makes no progress", pv.volume),
            cause: why.clone(),
            since_seconds: p.ago(*since),
            risk: "there is one current copy only".to_string(),
            next: "it goes on by itself when that is over".to_string(),
            commands: vec![
                p.on(
                    name,
                    "why RES",
                    "tells what it looks like on the other side",
                ),
                p.here(
                    "disconnect RES",
                    "ends it; `twinblk connect RES` lets it go on where it was",
                ),
            ],
        });
    }
    match pv.replication {
        ReplState::SyncSource | ReplState::WFBitMapS | ReplState::PausedSyncS => {
            all.push(source(p, peer, pv, about));
        }
        _ if pv.peer_disk != DiskState::UpToDate => all.push(peer_disk(p, peer, pv, about)),
        ReplState::Established | ReplState::VerifyS | ReplState::VerifyT if pv.out_of_sync > 0 => {
            all.push(differs(p, peer, pv, about));
        }
        // What the target of a resync has to say is said of its disk.
        _ => {}
    }
    all
}

fn source(p: &Picture<'_>, peer: &PeerStatus, pv: &PeerVolumeStatus, about: String) -> Finding {
    let name = &peer.name;
    Finding {
        about,
        state: format!(
            "{} of {name} is being brought up to date from here ({:?}): {}",
            pv.volume,
            pv.replication,
            progress(peer, pv)
        ),
        cause: match &pv.resync {
            Some(resync) => format!(
                "its copy was the older one; {} bytes per second, limited by {}",
                resync.rate, resync.limited_by
            ),
            None => "its copy is the older one".to_string(),
        },
        since_seconds: p.ago(pv.since),
        risk: format!(
            "until it is finished, {name} cannot take over: this is the only current copy"
        ),
        next: "both copies are the same when it is finished".to_string(),
        commands: vec![
            p.here("wait-sync RES", "waits until it is finished"),
            p.here(
                "adjust RES",
                "takes up another `c-max-rate` or `resync-window` from the configuration",
            ),
        ],
    }
}

fn peer_disk(p: &Picture<'_>, peer: &PeerStatus, pv: &PeerVolumeStatus, about: String) -> Finding {
    let name = &peer.name;
    let lost = matches!(pv.peer_disk, DiskState::Failed | DiskState::Diskless);
    Finding {
        about,
        state: format!(
            "{} is {:?} on {name}: {}",
            pv.volume,
            pv.peer_disk,
            meaning(DISKS, &pv.peer_disk)
        ),
        cause: format!("{name} says so"),
        since_seconds: p.ago(pv.since),
        risk: if p
            .status
            .volumes
            .iter()
            .all(|v| v.disk == DiskState::UpToDate)
        {
            "this node has the only current copy".to_string()
        } else {
            "no current copy is known".to_string()
        },
        next: if lost {
            format!("nothing, before a disk is attached on {name}")
        } else {
            "nothing: somebody must say whose copy counts".to_string()
        },
        commands: vec![p.on(
            name,
            "why RES",
            format!("tells why it is so, and what can be done on {name}"),
        )],
    }
}

fn differs(p: &Picture<'_>, peer: &PeerStatus, pv: &PeerVolumeStatus, about: String) -> Finding {
    let name = &peer.name;
    Finding {
        about,
        state: format!(
            "{} is shown UpToDate on both nodes, and yet {} bytes are known to differ",
            pv.volume, pv.out_of_sync
        ),
        cause: pv
            .verified
            .clone()
            .unwrap_or_else(|| "a verify found differences, or a crash left marks".to_string()),
        since_seconds: None,
        risk: format!("reads on {name} after a failover may differ from reads here"),
        next:
            "they are copied with the next connect, from the Primary, or without one from the node \
               with the lower id"
                .to_string(),
        commands: vec![
            p.here(
                "verify --repair RES",
                "compares once more and copies what differs at its end",
            ),
            p.on(
                name,
                "invalidate RES",
                format!("declares {name}'s copy worthless: it is copied from here in full"),
            ),
        ],
    }
}

//! The engine's words in the form of the control API.

use super::running::{NoStatus, Running, lock};
use crate::api::{
    ActivityLog, DriverStatus, ErrorBody, EventLine, PeerStatus, PeerVolumeStatus, ResourceStatus,
    ResyncStatus, SeenByPeer, SplitBrain, SplitSide, SplitVolume, VerifyStatus, VolumeStatus,
};
use crate::config;
use crate::driver::mailbox::StatusReply;
use std::time::{SystemTime, UNIX_EPOCH};
use twinblk_engine::command::{Refusal, RefusalKind};
use twinblk_engine::event::{Event, Severity, What};
use twinblk_engine::ids::NodeId;
use twinblk_engine::status as engine;
use twinblk_engine::suspend::Reason;
use twinblk_engine::time::Instant;

/// A resource that is not up.
pub(crate) fn down(config: &config::Resource) -> ResourceStatus {
    ResourceStatus {
        name: config.name.clone(),
        node: config.me.name.clone(),
        up: false,
        role: "Unknown".to_string(),
        ..ResourceStatus::default()
    }
}

/// A resource that is up.
pub(crate) fn up(config: &config::Resource, reply: StatusReply) -> ResourceStatus {
    let StatusReply {
        status,
        driver,
        now,
    } = reply;
    let engine = |volume| {
        driver
            .disks
            .iter()
            .find(|d| d.0 == volume)
            .map_or(String::new(), |d| d.1.clone())
    };
    ResourceStatus {
        name: status.resource,
        node: status.node_name,
        up: true,
        role: format!("{:?}", status.role),
        role_since_seconds: ago(now, status.role_since),
        promotion_fences: status.fences_first,
        promotion_refused: status.may_promote.err().map(|r| error(config, &r)),
        demotion_refused: status.may_demote.err().map(|r| error(config, &r)),
        suspended_for: Reason::ALL
            .iter()
            .filter(|&&reason| status.suspended_for.has(reason))
            .map(|reason| reason.name().to_string())
            .collect(),
        suspended: status.suspended,
        open_clients: status.open_clients,
        exports: config.me.exports.iter().map(ToString::to_string).collect(),
        volumes: status
            .volumes
            .into_iter()
            .map(|v| VolumeStatus {
                volume: v.volume.0,
                disk: format!("{:?}", v.disk),
                reason: names(config, &v.reason),
                since_seconds: ago(now, v.since),
                size: v.size,
                block_size: v.block_size,
                current_uuid: format!("{:016x}", v.current_uuid),
                disk_engine: engine(v.volume),
                activity_log: activity_log(&v.activity),
                marked_after_crash: v.activity.marked_after_crash,
                errors_passed_on: v.errors_passed_on,
                served_by: v.served_by,
                attach_in_seconds: v.attach_in,
                device: None,
            })
            .collect(),
        peers: status
            .peers
            .into_iter()
            .map(|p| PeerStatus {
                name: p.name,
                node_id: p.node.0,
                connection: format!("{:?}", p.connection),
                role: format!("{:?}", p.role),
                reason: names(config, &p.reason),
                since_seconds: now.since(p.since).as_secs(),
                unsent: p.unsent,
                transfer_log: p.transfer_log,
                disagreement: p.disagreement.map(|text| names(config, &text)),
                split_brain: p.split_brain.map(|s| split_brain(&s, now)),
                not_fenced: p.not_fenced,
                volumes: p
                    .volumes
                    .into_iter()
                    .map(|v| peer_volume(config, v, now))
                    .collect(),
            })
            .collect(),
        driver: Some(DriverStatus {
            buffers_used: driver.buffers_used,
            buffers_total: driver.buffers_total,
            buffers_registered: match driver.buffers_registered {
                Ok(()) => "yes".to_string(),
                Err(why) => why,
            },
            nbd_connections: driver.nbd_connections,
            enters: driver.enters,
            calls: driver.calls,
            yields: driver.yields,
            requests: driver.requests,
        }),
    }
}

fn split_brain(found: &engine::SplitBrain, now: Instant) -> SplitBrain {
    let side = |side: &engine::SplitSide| SplitSide {
        changed: side.changed,
        current_uuid: format!("{:016x}", side.current),
        base_uuid: format!("{:016x}", side.base),
        primary_when_parted: side.parted_as_primary,
    };
    let volumes = found.volumes.iter().map(|v| SplitVolume {
        volume: v.volume.0,
        rule: v.rule.to_string(),
        here: side(&v.here),
        there: side(&v.there),
    });
    SplitBrain {
        since_seconds: now.since(found.found).as_secs(),
        volumes: volumes.collect(),
    }
}

fn activity_log(log: &twinblk_engine::status::Activity) -> Option<ActivityLog> {
    (log.capacity > 0).then_some(ActivityLog {
        extents: log.capacity,
        extent_size: log.extent_size,
        active: log.active,
        held: log.held,
        transactions: log.transactions,
        waited: log.waited,
    })
}

fn peer_volume(
    config: &config::Resource,
    v: twinblk_engine::status::PeerVolumeStatus,
    now: Instant,
) -> PeerVolumeStatus {
    PeerVolumeStatus {
        volume: v.volume.0,
        replication: format!("{:?}", v.replication),
        peer_disk: format!("{:?}", v.peer_disk),
        out_of_sync: v.out_of_sync,
        resync: v.resync.map(progress),
        verify: v.verify.map(|run| VerifyStatus {
            different: run.different,
            progress: progress(run.progress),
        }),
        verified: v.verified.map(|text| names(config, &text)),
        since_seconds: ago(now, v.since),
        seen_by_peer: v.seen_by_peer.map(|view| SeenByPeer {
            replication: format!("{:?}", view.replication),
            disk: format!("{:?}", view.disk),
            out_of_sync: view.out_of_sync,
        }),
        standstill: v.standstill.map(|(_, why)| names(config, &why)),
    }
}

/// Seconds since a moment of the engine's clock; what has been so from the beginning has no moment.
pub(crate) fn ago(now: Instant, since: Instant) -> Option<u64> {
    (since != Instant::default()).then(|| now.since(since).as_secs())
}

fn progress(r: twinblk_engine::status::ResyncProgress) -> ResyncStatus {
    ResyncStatus {
        percent: match r.total {
            0 => 100.0,
            total => 100.0 * (total - r.left.min(total)) as f64 / total as f64,
        },
        total: r.total,
        left: r.left,
        rate: r.rate,
        eta_seconds: r.eta,
        limited_by: r.limited_by.to_string(),
    }
}

/// Texts of the engine name nodes by number and the resource by `RES`; people know their names.
pub(crate) fn names(config: &config::Resource, text: &str) -> String {
    let mut text = text.replace(" RES`", &format!(" {}`", config.name));
    for node in config.nodes() {
        text = rename(&text, &NodeId(node.id).to_string(), &node.name);
    }
    text
}

/// Puts `new` where `old` stands, not where a longer number begins with it ("node 1" in "node 12").
fn rename(text: &str, old: &str, new: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(old) {
        let (before, after) = (&rest[..at], &rest[at + old.len()..]);
        out.push_str(before);
        let longer = after.starts_with(|c: char| c.is_ascii_digit());
        out.push_str(if longer { old } else { new });
        rest = after;
    }
    out + rest
}

/// A refusal.
pub(crate) fn error(config: &config::Resource, refusal: &Refusal) -> ErrorBody {
    let (kind, exit_code) = match refusal.kind {
        RefusalKind::State => ("state", 11),
        RefusalKind::NoDisk => ("no-disk", 16),
        RefusalKind::NoUpToDateData => ("no-up-to-date-data", 17),
        RefusalKind::LowerThanOutdated => ("lower-than-outdated", 18),
        RefusalKind::InUse => ("in-use", 12),
        RefusalKind::PeerRefused => ("peer-refused", 13),
        RefusalKind::Unknown => ("unknown", 10),
        RefusalKind::Timeout => ("timeout", 5),
        RefusalKind::Other => ("other", 10),
    };
    ErrorBody {
        kind: kind.to_string(),
        reason: names(config, &refusal.reason),
        way_out: names(config, &refusal.way_out),
        exit_code,
    }
}

/// An event as a line of the stream.
pub(crate) fn event_line(config: &config::Resource, event: &Event) -> EventLine {
    let peer_name = |node: NodeId| {
        config
            .nodes()
            .find(|n| n.id == node.0)
            .map_or(node.to_string(), |n| n.name.clone())
    };
    let (kind, peer, volume, states) = match event.what {
        What::Role(a, b) => (
            "role",
            None,
            None,
            Some((format!("{a:?}"), format!("{b:?}"))),
        ),
        What::Disk(v, a, b) => (
            "disk",
            None,
            Some(v.0),
            Some((format!("{a:?}"), format!("{b:?}"))),
        ),
        What::Connection(n, a, b) => (
            "connection",
            Some(n),
            None,
            Some((format!("{a:?}"), format!("{b:?}"))),
        ),
        What::Replication(n, v, a, b) => (
            "replication",
            Some(n),
            Some(v.0),
            Some((format!("{a:?}"), format!("{b:?}"))),
        ),
        What::PeerRole(n, a, b) => (
            "peer-role",
            Some(n),
            None,
            Some((format!("{a:?}"), format!("{b:?}"))),
        ),
        What::PeerDisk(n, v, a, b) => (
            "peer-disk",
            Some(n),
            Some(v.0),
            Some((format!("{a:?}"), format!("{b:?}"))),
        ),
        What::Suspended(a, b) => ("suspended", None, None, Some((a.words(), b.words()))),
        What::Incident => ("incident", None, None, None),
    };
    let (from, to) = states.unzip();
    EventLine {
        time_ms: now_ms(),
        resource: config.name.clone(),
        kind: kind.to_string(),
        peer: peer.map(peer_name),
        volume,
        from,
        to,
        severity: severity(event.severity).to_string(),
        cause: names(config, &event.cause),
    }
}

/// How much attention an event deserves, in the words of the stream.
pub(crate) fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

/// An event for the log.
pub(crate) fn event_text(line: &EventLine) -> String {
    let mut text = line.kind.clone();
    if let Some(peer) = &line.peer {
        text.push_str(&format!(" {peer}"));
    }
    if let Some(volume) = line.volume {
        text.push_str(&format!(" volume {volume}"));
    }
    if let (Some(from), Some(to)) = (&line.from, &line.to) {
        text.push_str(&format!(": {from} -> {to}"));
    }
    format!("{text}: {}", line.cause)
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The present state as the first lines of an event stream.
pub(crate) fn state_lines(status: &ResourceStatus) -> Vec<EventLine> {
    let line = |kind: &str, peer: Option<&str>, volume, to: &str, cause: &str| EventLine {
        time_ms: now_ms(),
        resource: status.name.clone(),
        kind: kind.to_string(),
        peer: peer.map(ToString::to_string),
        volume,
        from: None,
        to: Some(to.to_string()),
        severity: "info".to_string(),
        cause: cause.to_string(),
    };
    let mut lines = vec![line("role", None, None, &status.role, "present state")];
    lines.push(line(
        "suspended",
        None,
        None,
        &match status.suspended_for.is_empty() {
            true => "no".to_string(),
            false => status.suspended_for.join(","),
        },
        "present state",
    ));
    for v in &status.volumes {
        lines.push(line("disk", None, Some(v.volume), &v.disk, &v.reason));
    }
    for p in &status.peers {
        lines.push(line(
            "connection",
            Some(&p.name),
            None,
            &p.connection,
            &p.reason,
        ));
        lines.push(line(
            "peer-role",
            Some(&p.name),
            None,
            &p.role,
            "present state",
        ));
        for v in &p.volumes {
            let (name, number) = (Some(p.name.as_str()), Some(v.volume));
            lines.push(line(
                "replication",
                name,
                number,
                &v.replication,
                "present state",
            ));
            lines.push(line(
                "peer-disk",
                name,
                number,
                &v.peer_disk,
                "present state",
            ));
        }
    }
    lines
}

/// A running resource's status; that it is not up any more; or what is known of it while its loop does
/// not answer.
pub(crate) async fn status(running: &Running) -> ResourceStatus {
    let result = running.status().await;
    let config = lock(&running.config).clone();
    let words = "the resource's loop does not answer, it may wait for its disk";
    let mut status = match result {
        Ok(reply) => up(&config, reply),
        Err(NoStatus::Gone) => down(&config),
        Err(NoStatus::Silent) => match running.last_picture() {
            Some((when, reply)) => ResourceStatus {
                suspended: Some(format!(
                    "{words}; this is what it told {} s ago",
                    when.elapsed().as_secs()
                )),
                ..up(&config, reply)
            },
            None => ResourceStatus {
                up: true,
                suspended: Some(format!("{words}; nothing is known of it yet")),
                ..down(&config)
            },
        },
    };
    if let Some(device) = &running.device {
        for volume in &mut status.volumes {
            if volume.volume == device.volume() {
                volume.device = Some(device.status());
            }
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_not_taken_for_a_shorter_one() {
        let text = "node 1 and node 12, not node 1";
        assert_eq!(
            rename(text, "node 1", "bravo"),
            "bravo and node 12, not bravo"
        );
        assert_eq!(rename("", "node 1", "bravo"), "");
    }
}

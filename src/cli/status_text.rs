//! `status` for people: DRBD's lines, and below them in words what is not as it should be.

use super::human::{age, clock, size};
use crate::api::{
    PeerStatus, PeerVolumeStatus, ResourceStatus, ResyncStatus, SplitBrain, VerifyStatus,
    VolumeStatus,
};
use std::fmt::Write;

/// One resource, ending with a line feed.
pub(super) fn resource(r: &ResourceStatus) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_resource(&mut out, r);
    out
}

fn write_resource(out: &mut String, r: &ResourceStatus) -> std::fmt::Result {
    if !r.up {
        writeln!(out, "{} down", r.name)?;
        if let Some(why) = &r.suspended {
            return reason(out, "  ", why);
        }
        return writeln!(out, "  not started on this node: `twinblk up {}`", r.name);
    }
    write!(out, "{} role:{}", r.name, r.role)?;
    if !r.suspended_for.is_empty() {
        write!(out, " suspended:{}", r.suspended_for.join(","))?;
    }
    writeln!(out)?;
    if let Some(reason) = &r.suspended {
        writeln!(out, "  writes are held back: {reason}")?;
    }
    for volume in &r.volumes {
        write_volume(out, r, volume)?;
    }
    for peer in &r.peers {
        write_peer(out, peer)?;
    }
    Ok(())
}

fn write_volume(out: &mut String, r: &ResourceStatus, v: &VolumeStatus) -> std::fmt::Result {
    write!(out, "  volume:{} disk:{}", v.volume, v.disk)?;
    if v.size != 0 {
        write!(out, " size:{}", size(v.size))?;
    }
    if !r.open_clients.is_empty() {
        write!(out, " open:{}", r.open_clients.len())?;
    }
    if let Some(device) = &v.device
        && device.state == "attached"
    {
        write!(out, " device:{}", device.path)?;
    }
    writeln!(out)?;
    if let Some(device) = &v.device
        && !device.reason.is_empty()
    {
        let text = format!("{} is {}: {}", device.path, device.state, device.reason);
        reason(out, "    ", &text)?;
    }
    if v.disk != "UpToDate" {
        reason(out, "    ", &v.reason)?;
    } else if differs(r, v.volume) {
        // Two copies that differ cannot both be current, so never show it without a word.
        writeln!(
            out,
            "    both copies are shown UpToDate, and yet they are known to differ"
        )?;
    }
    if v.errors_passed_on > 0 {
        let text = format!(
            "{} I/O error(s) were given to clients: {}",
            v.errors_passed_on, v.reason
        );
        reason(out, "    ", &text)?;
    }
    if v.marked_after_crash > 0
        && r.peers
            .iter()
            .flat_map(|p| &p.volumes)
            .any(|p| p.out_of_sync > 0)
    {
        let marked = size(v.marked_after_crash);
        writeln!(
            out,
            "    was Primary when it went down: {marked} were marked out of sync at the start"
        )?;
    }
    Ok(())
}

/// Whether a peer's copy differs although it is shown UpToDate.
fn differs(r: &ResourceStatus, volume: u16) -> bool {
    let mut volumes = r
        .peers
        .iter()
        .flat_map(|p| &p.volumes)
        .filter(|v| v.volume == volume);
    volumes.any(|v| v.out_of_sync > 0 && v.peer_disk == "UpToDate")
}

fn write_peer(out: &mut String, p: &PeerStatus) -> std::fmt::Result {
    writeln!(
        out,
        "  {} role:{} connection:{}",
        p.name, p.role, p.connection
    )?;
    if p.connection != "Connected" {
        reason(out, "    ", &p.reason)?;
        if p.since_seconds > 0 {
            writeln!(out, "    since {}", age(p.since_seconds))?;
        }
    }
    if let Some(text) = &p.disagreement {
        writeln!(out, "    the two ends disagree: {text}")?;
    }
    if let Some(split) = &p.split_brain {
        write_split_brain(out, p, split)?;
    }
    for volume in &p.volumes {
        write_peer_volume(out, &p.name, volume)?;
        // Connected, and still something to tell (a refused resync, for instance).
        if p.connection == "Connected" && volume.peer_disk != "UpToDate" && volume.resync.is_none()
        {
            reason(out, "      ", &p.reason)?;
        }
    }
    Ok(())
}

/// What each side would lose, so that a person can choose.
fn write_split_brain(out: &mut String, p: &PeerStatus, split: &SplitBrain) -> std::fmt::Result {
    for v in &split.volumes {
        writeln!(out, "    split brain of volume {} ({}):", v.volume, v.rule)?;
        let sides = [("here", &v.here), (p.name.as_str(), &v.there)];
        for (who, side) in sides {
            let primary = if side.primary_when_parted {
                ", was Primary when they parted"
            } else {
                ""
            };
            writeln!(
                out,
                "      {who}: changed {} at most, generation {}{primary}",
                size(side.changed),
                side.current_uuid
            )?;
        }
    }
    Ok(())
}

fn write_peer_volume(out: &mut String, peer: &str, v: &PeerVolumeStatus) -> std::fmt::Result {
    let (replication, disk) = (&v.replication, &v.peer_disk);
    write!(
        out,
        "    volume:{} replication:{replication} peer-disk:{disk}",
        v.volume
    )?;
    let running = v.resync.as_ref().or(v.verify.as_ref().map(|v| &v.progress));
    if let Some(running) = running {
        write!(out, "{}", progress(running))?;
    }
    if v.out_of_sync > 0 {
        write!(out, " oos:{}", size(v.out_of_sync))?;
    }
    writeln!(out)?;
    if let Some(view) = &v.seen_by_peer
        && (view.replication != "Established" || view.out_of_sync > 0)
    {
        let oos = match view.out_of_sync {
            0 => String::new(),
            bytes => format!(" oos:{}", size(bytes)),
        };
        let (replication, disk) = (&view.replication, &view.disk);
        writeln!(
            out,
            "      seen by {peer}: replication:{replication} disk:{disk}{oos}"
        )?;
    }
    if let Some(why) = &v.standstill {
        writeln!(out, "      the resync makes no progress: {why}")?;
    }
    if let Some(resync) = &v.resync
        && !resync.limited_by.is_empty()
    {
        let rate = size(resync.rate);
        writeln!(
            out,
            "      resync at {rate}/s, limited by {}",
            resync.limited_by
        )?;
    }
    if let Some(verify) = &v.verify {
        write_verify(out, verify)?;
    }
    if let Some(text) = &v.verified {
        reason(out, "      ", text)?;
    }
    Ok(())
}

fn write_verify(out: &mut String, verify: &VerifyStatus) -> std::fmt::Result {
    let found = match verify.different {
        0 => "no difference so far".to_owned(),
        bytes => format!("{} differ so far", size(bytes)),
    };
    let rate = size(verify.progress.rate);
    let limit = &verify.progress.limited_by;
    writeln!(out, "      verify at {rate}/s, limited by {limit}: {found}")
}

fn progress(resync: &ResyncStatus) -> String {
    let eta = match resync.eta_seconds {
        Some(seconds) => clock(seconds),
        None => "unknown".to_owned(),
    };
    // Never 100.00 while something is left.
    let percent = if resync.left > 0 {
        resync.percent.clamp(0.0, 99.99)
    } else {
        100.0
    };
    format!(" done:{percent:.2} eta:{eta}")
}

fn reason(out: &mut String, indent: &str, text: &str) -> std::fmt::Result {
    for line in text.lines() {
        writeln!(out, "{indent}{line}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SeenByPeer;
    use crate::cli::fake_daemon::{down, resource as healthy};

    #[test]
    fn a_healthy_pair_is_four_lines() {
        let expected = "\
r0 role:Primary
  volume:0 disk:UpToDate size:1.0GiB
  bravo role:Secondary connection:Connected
    volume:0 replication:Established peer-disk:UpToDate
";
        assert_eq!(resource(&healthy("r0")), expected);
    }

    #[test]
    fn a_resync_shows_its_progress() {
        let mut r = healthy("r0");
        r.open_clients = vec!["fio".into()];
        r.peers[0].volumes[0] = PeerVolumeStatus {
            volume: 0,
            replication: "SyncSource".into(),
            peer_disk: "Inconsistent".into(),
            out_of_sync: 123 << 20,
            resync: Some(ResyncStatus {
                total: 213 << 20,
                left: 123 << 20,
                percent: 42.1,
                rate: 100 << 20,
                eta_seconds: Some(70),
                limited_by: "disks and link".into(),
            }),
            ..PeerVolumeStatus::default()
        };
        let expected = "\
r0 role:Primary
  volume:0 disk:UpToDate size:1.0GiB open:1
  bravo role:Secondary connection:Connected
    volume:0 replication:SyncSource peer-disk:Inconsistent done:42.10 eta:00:01:10 oos:123MiB
      resync at 100MiB/s, limited by disks and link
";
        assert_eq!(resource(&r), expected);
    }

    #[test]
    fn both_ends_are_shown_when_there_is_something_to_see() {
        let mut r = healthy("r0");
        r.suspended_for = vec!["user".into(), "fencing".into()];
        r.peers[0].disagreement = Some("this and that".into());
        let v = &mut r.peers[0].volumes[0];
        v.replication = "SyncSource".into();
        v.standstill = Some("nothing is under way".into());
        v.seen_by_peer = Some(SeenByPeer {
            replication: "SyncTarget".into(),
            disk: "UpToDate".into(),
            out_of_sync: 1 << 20,
        });
        let expected = "\
r0 role:Primary suspended:user,fencing
  volume:0 disk:UpToDate size:1.0GiB
  bravo role:Secondary connection:Connected
    the two ends disagree: this and that
    volume:0 replication:SyncSource peer-disk:UpToDate
      seen by bravo: replication:SyncTarget disk:UpToDate oos:1.0MiB
      the resync makes no progress: nothing is under way
";
        assert_eq!(resource(&r), expected);
    }

    #[test]
    fn a_verify_shows_how_far_it_is_and_what_it_found() {
        let mut r = healthy("r0");
        let v = &mut r.peers[0].volumes[0];
        v.replication = "VerifyS".into();
        v.out_of_sync = 4096;
        v.verify = Some(VerifyStatus {
            different: 4096,
            progress: ResyncStatus {
                total: 1 << 30,
                left: 1 << 29,
                percent: 50.0,
                rate: 100 << 20,
                eta_seconds: Some(5),
                limited_by: "disks and link".into(),
            },
        });
        let text = resource(&r);
        assert!(text.contains("known to differ"), "{text}");
        let lines = "\
    volume:0 replication:VerifyS peer-disk:UpToDate done:50.00 eta:00:00:05 oos:4.0KiB
      verify at 100MiB/s, limited by disks and link: 4.0KiB differ so far
";
        assert!(text.ends_with(lines), "{text}");
        let v = &mut r.peers[0].volumes[0];
        (v.verify, v.verified) = (None, Some("verify finished: 8192 bytes differ".into()));
        let text = resource(&r);
        assert!(
            text.ends_with("\n      verify finished: 8192 bytes differ\n"),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_normal_says_why() {
        let mut r = healthy("r0");
        r.role = "Secondary".into();
        r.suspended = Some("the new generation is being written".into());
        r.volumes[0].disk = "Inconsistent".into();
        r.volumes[0].reason = "never synchronised".into();
        let peer = &mut r.peers[0];
        peer.connection = "StandAlone".into();
        peer.role = "Unknown".into();
        peer.reason = "split brain: both copies have changed\n`twinblk connect …`".into();
        peer.since_seconds = 65;
        peer.volumes[0].replication = "Off".into();
        peer.volumes[0].peer_disk = "DUnknown".into();
        let expected = "\
r0 role:Secondary
  writes are held back: the new generation is being written
  volume:0 disk:Inconsistent size:1.0GiB
    never synchronised
  bravo role:Unknown connection:StandAlone
    split brain: both copies have changed
    `twinblk connect …`
    since 1m 5s
    volume:0 replication:Off peer-disk:DUnknown
";
        assert_eq!(resource(&r), expected);
    }

    #[test]
    fn up_to_date_on_both_sides_with_a_difference_is_said() {
        let mut r = healthy("r0");
        r.peers[0].volumes[0].out_of_sync = 4096;
        let text = resource(&r);
        assert!(text.contains("known to differ"), "{text}");
        assert!(text.contains("oos:4.0KiB"), "{text}");
    }

    #[test]
    fn never_done_before_it_is_done() {
        let mut resync = ResyncStatus {
            total: 1 << 40,
            left: 4096,
            percent: 99.9999,
            rate: 0,
            eta_seconds: None,
            limited_by: String::new(),
        };
        assert_eq!(progress(&resync), " done:99.99 eta:unknown");
        resync.left = 0;
        assert_eq!(progress(&resync), " done:100.00 eta:unknown");
        resync.percent = -3.0;
        resync.left = 1;
        assert_eq!(progress(&resync), " done:0.00 eta:unknown");
    }

    #[test]
    fn a_resource_that_is_down() {
        let expected = "r0 down\n  not started on this node: `twinblk up r0`\n";
        assert_eq!(resource(&down("r0")), expected);
        let mut failed = down("r0");
        failed.suspended = Some("/dev/vg/r0 does not exist\nit is tried again".into());
        let expected = "r0 down\n  /dev/vg/r0 does not exist\n  it is tried again\n";
        assert_eq!(resource(&failed), expected);
    }
}

//! What `wait-connect` and `wait-sync` make of a picture of the state: reached, on the way, or out
//! of reach. Pure, so that every case can be tested.

use super::exit::{CliError, Code};
use super::show::not_up;
use super::wait::Goal;
use crate::api::{PeerStatus, PeerVolumeStatus, ResourceStatus};

/// How far a resync is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes in all.
    pub(super) total: u64,
    /// Bytes left.
    pub(super) left: u64,
}

/// What a picture means for the one who waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Reached.
    Done,
    /// It may come; this is what it waits for.
    Waiting {
        what: String,
        progress: Option<Progress>,
    },
    /// It does not come by itself, unless the picture was taken in the middle of a change.
    Doubtful(CliError),
    /// It cannot come by itself.
    Hopeless(CliError),
}

/// Looks at one resource.
pub(super) fn verdict(goal: Goal, r: &ResourceStatus) -> Verdict {
    if !r.up {
        return Verdict::Hopeless(not_up(r));
    }
    if r.volumes.is_empty() {
        // The resource's loop has not told anything yet.
        let what = r
            .suspended
            .as_deref()
            .unwrap_or("nothing is known of it yet");
        return Verdict::Waiting {
            what: format!("{}: {what}", r.name),
            progress: None,
        };
    }
    if let Some(volume) = r.volumes.iter().find(|v| v.disk == "Attaching") {
        // Right after `up`: no peer is dialled before the disk is there.
        return Verdict::Waiting {
            what: format!(
                "{}: this node's disk is Attaching: {}",
                r.name, volume.reason
            ),
            progress: None,
        };
    }
    if let Some(peer) = r.peers.iter().find(|p| p.connection == "StandAlone") {
        return Verdict::Hopeless(stand_alone(r, peer));
    }
    if goal == Goal::Sync
        && let Some(volume) = r.volumes.iter().find(|v| no_disk(&v.disk))
    {
        let what = format!(
            "{}: this node's disk is {}: {}",
            r.name, volume.disk, volume.reason
        );
        let next = format!(
            "repair it, then `twinblk down {0}` and `twinblk up {0}`",
            r.name
        );
        return Verdict::Hopeless(CliError::new(Code::NoDisk, what, next));
    }
    if let Some(peer) = r.peers.iter().find(|p| p.connection != "Connected") {
        let mut what = format!(
            "{}: not connected to {}: {}",
            r.name, peer.name, peer.connection
        );
        if !peer.reason.is_empty() {
            what += &format!(" ({})", peer.reason.replace('\n', "; "));
        }
        return Verdict::Waiting {
            what,
            progress: None,
        };
    }
    match goal {
        Goal::Connect => Verdict::Done,
        Goal::Sync => in_sync(r),
    }
}

fn no_disk(state: &str) -> bool {
    matches!(state, "Diskless" | "Failed")
}

fn stand_alone(r: &ResourceStatus, peer: &PeerStatus) -> CliError {
    let mut what = format!("{}: StandAlone towards {}", r.name, peer.name);
    if !peer.reason.is_empty() {
        what += &format!(": {}", peer.reason);
    }
    let next = format!(
        "it does not try to connect by itself: `twinblk connect {0}`, or first \
         `twinblk connect --dry-run {0}` to see what would happen",
        r.name
    );
    CliError::new(Code::State, what, next)
}

/// All peers are connected; are the copies the same?
fn in_sync(r: &ResourceStatus) -> Verdict {
    let mut progress: Option<Progress> = None;
    let mut missing = None;
    for (peer, theirs) in r
        .peers
        .iter()
        .flat_map(|p| p.volumes.iter().map(move |v| (p, v)))
    {
        let Some(mine) = r.volumes.iter().find(|v| v.volume == theirs.volume) else {
            continue;
        };
        if let Some(resync) = &theirs.resync {
            let sum = progress.get_or_insert_default();
            sum.total += resync.total;
            sum.left += resync.left;
        }
        let mirrors = matches!(
            theirs.replication.as_str(),
            "Established" | "VerifyS" | "VerifyT"
        );
        let same = mirrors
            && mine.disk == "UpToDate"
            && theirs.peer_disk == "UpToDate"
            && theirs.out_of_sync == 0;
        if same {
            continue;
        }
        if let Some(error) = stuck(r, &mine.disk, peer, theirs) {
            return Verdict::Doubtful(error);
        }
        missing.get_or_insert_with(|| {
            format!(
                "{}: {} with {}: this node's disk {}, the peer's {}, {} out of sync",
                r.name,
                theirs.replication,
                peer.name,
                mine.disk,
                theirs.peer_disk,
                super::human::size(theirs.out_of_sync)
            )
        });
    }
    match missing {
        None => Verdict::Done,
        Some(what) => Verdict::Waiting { what, progress },
    }
}

/// Connected, and nothing is going on that would make the copies equal.
fn stuck(
    r: &ResourceStatus,
    mine: &str,
    peer: &PeerStatus,
    theirs: &PeerVolumeStatus,
) -> Option<CliError> {
    if !matches!(theirs.replication.as_str(), "Established" | "Off") {
        return None;
    }
    if no_disk(&theirs.peer_disk) {
        let what = format!(
            "{}: {} has no disk ({})",
            r.name, peer.name, theirs.peer_disk
        );
        let next = format!("see `twinblk status {}` on {}", r.name, peer.name);
        return Some(CliError::new(Code::NoDisk, what, next));
    }
    let current = |state: &str| state == "UpToDate";
    let settled = |state: &str| matches!(state, "Inconsistent" | "Outdated" | "Consistent");
    if !current(mine) && !current(&theirs.peer_disk) && settled(mine) && settled(&theirs.peer_disk)
    {
        let what = format!(
            "{}: neither copy is UpToDate ({mine}/{}): no resync can begin",
            r.name, theirs.peer_disk
        );
        let next = format!(
            "say which data count: `twinblk primary --force {0}` on the node that has them, or, \
             if both disks are equal already, `twinblk new-current-uuid --clear-bitmap {0}`",
            r.name
        );
        return Some(CliError::new(Code::NoUpToDateData, what, next));
    }
    if current(mine) && current(&theirs.peer_disk) && theirs.out_of_sync > 0 {
        let what = format!(
            "{}: both copies are UpToDate, and yet differ in {} (a verify found it)",
            r.name,
            super::human::size(theirs.out_of_sync)
        );
        let next = format!(
            "the next connect copies it: `twinblk disconnect {0}`, then `twinblk connect {0}`",
            r.name
        );
        return Some(CliError::new(Code::State, what, next));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ResyncStatus;
    use crate::cli::fake_daemon::{down, resource};

    fn with(change: impl Fn(&mut ResourceStatus)) -> ResourceStatus {
        let mut r = resource("r0");
        change(&mut r);
        r
    }

    fn code(verdict: &Verdict) -> u8 {
        match verdict {
            Verdict::Hopeless(e) | Verdict::Doubtful(e) => e.code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_healthy_pair_is_done() {
        assert_eq!(verdict(Goal::Connect, &resource("r0")), Verdict::Done);
        assert_eq!(verdict(Goal::Sync, &resource("r0")), Verdict::Done);
    }

    #[test]
    fn stand_alone_and_down_are_hopeless_at_once() {
        let r = with(|r| {
            r.peers[0].connection = "StandAlone".into();
            r.peers[0].reason = "split brain".into();
        });
        for goal in [Goal::Connect, Goal::Sync] {
            let Verdict::Hopeless(error) = verdict(goal, &r) else {
                panic!()
            };
            assert_eq!(error.code, 11);
            assert!(
                error.what.contains("StandAlone towards bravo: split brain"),
                "{error}"
            );
            assert_eq!(code(&verdict(goal, &down("r0"))), 10);
        }
    }

    #[test]
    fn what_has_only_just_begun_is_waited_for() {
        for goal in [Goal::Connect, Goal::Sync] {
            let attaching = with(|r| {
                r.volumes[0].disk = "Attaching".into();
                r.peers[0].connection = "StandAlone".into();
            });
            let silent = with(|r| {
                r.suspended = Some("the resource's loop does not answer".into());
                (r.volumes, r.peers) = (Vec::new(), Vec::new());
            });
            for (picture, why) in [(attaching, "Attaching"), (silent, "does not answer")] {
                match verdict(goal, &picture) {
                    Verdict::Waiting { what, .. } => assert!(what.contains(why), "{what}"),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_peer_that_may_come_is_waited_for() {
        let r = with(|r| {
            r.peers[0].connection = "Connecting".into();
            r.peers[0].reason = "connection refused".into();
        });
        let Verdict::Waiting { what, .. } = verdict(Goal::Connect, &r) else {
            panic!()
        };
        assert_eq!(
            what,
            "r0: not connected to bravo: Connecting (connection refused)"
        );
    }

    #[test]
    fn without_a_disk_nothing_is_synchronised() {
        let r = with(|r| r.volumes[0].disk = "Failed".into());
        assert_eq!(code(&verdict(Goal::Sync, &r)), 16);
        assert_eq!(verdict(Goal::Connect, &r), Verdict::Done);
        let r = with(|r| r.peers[0].volumes[0].peer_disk = "Diskless".into());
        assert_eq!(code(&verdict(Goal::Sync, &r)), 16);
    }

    #[test]
    fn every_single_deviation_keeps_waiting() {
        let changes: [fn(&mut ResourceStatus); 4] = [
            |r| r.volumes[0].disk = "Outdated".into(),
            |r| r.peers[0].volumes[0].peer_disk = "Inconsistent".into(),
            |r| r.peers[0].volumes[0].replication = "WFBitMapS".into(),
            |r| r.peers[0].volumes[0].replication = "SyncSource".into(),
        ];
        for change in changes {
            let verdict = verdict(Goal::Sync, &with(change));
            assert!(matches!(verdict, Verdict::Waiting { .. }), "{verdict:?}");
        }
    }

    #[test]
    fn a_verify_is_no_resync_and_what_it_leaves_is_not_waited_for() {
        let verify = with(|r| r.peers[0].volumes[0].replication = "VerifyT".into());
        assert!(matches!(verdict(Goal::Sync, &verify), Verdict::Done));
        let differs = with(|r| r.peers[0].volumes[0].out_of_sync = 8192);
        match verdict(Goal::Sync, &differs) {
            Verdict::Doubtful(error) => {
                assert!(
                    error.to_string().contains("twinblk disconnect r0"),
                    "{error}"
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_resync_tells_how_far_it_is() {
        let r = with(|r| {
            r.peers[0].volumes[0].replication = "SyncSource".into();
            r.peers[0].volumes[0].resync = Some(ResyncStatus {
                total: 100,
                left: 40,
                percent: 60.0,
                rate: 1,
                eta_seconds: None,
                limited_by: String::new(),
            });
        });
        let Verdict::Waiting { progress, .. } = verdict(Goal::Sync, &r) else {
            panic!()
        };
        assert_eq!(
            progress,
            Some(Progress {
                total: 100,
                left: 40
            })
        );
    }

    #[test]
    fn two_fresh_disks_need_a_decision() {
        let fresh = with(|r| {
            r.volumes[0].disk = "Inconsistent".into();
            r.peers[0].volumes[0].peer_disk = "Inconsistent".into();
        });
        let found = verdict(Goal::Sync, &fresh);
        assert!(matches!(found, Verdict::Doubtful(_)), "{found:?}");
        assert_eq!(code(&found), 17);
        // While something is going on, it may still come.
        let busy = with(|r| {
            *r = fresh.clone();
            r.peers[0].volumes[0].replication = "WFBitMapT".into();
        });
        assert!(matches!(
            verdict(Goal::Sync, &busy),
            Verdict::Waiting { .. }
        ));
    }
}

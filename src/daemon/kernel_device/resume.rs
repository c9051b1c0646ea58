//! A daemon starts and finds its device in the kernel: somebody may have it mounted, and waits. May this
//! node be Primary again without being asked?
//!
//! Invariant: whoever goes on with the device finds what he left. So nobody else may have written since:
//! neither before this node met its peers again (then they have another generation), nor after (then it
//! followed a Primary). And a peer that was in step may have been promoted meanwhile: it must be there to say
//! that it was not. Of a peer that was behind already nothing is expected.

use crate::daemon::state::{GIVEN_UP, JUST_STOPPED};
use twinblk_engine::event::{ConnState, DiskState, Role};
use twinblk_engine::generations::same;
use twinblk_engine::ids::VolumeId;
use twinblk_engine::status::Status;

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Yes.
    Now,
    /// Not yet; what is waited for.
    Wait(String),
    /// Never: the data are not those that the holders of the device know.
    Never(String),
}

/// Why holders do not go on.
pub(super) const OTHER_DATA: &str = "while the device was not served, another node became Primary and wrote; \
     the data are not those its holders know";

/// What the holders of a device that was found in the kernel know. `remembered` is what an earlier process
/// wrote down; `left` the generation on the disk, and whether this node was Primary when it went down.
pub(super) fn base(remembered: Option<u64>, left: (u64, bool)) -> u64 {
    let (current, was_primary) = left;
    match remembered {
        Some(JUST_STOPPED) => current,
        Some(base) => base,
        // Killed while it served the device: what it was serving is what is there.
        None if was_primary => current,
        // Somebody has started since who knew nothing of the device.
        None => GIVEN_UP,
    }
}

/// The data are those of `base`, and what this node has written since.
pub(super) fn is_unchanged(status: &Status, volume: VolumeId, base: u64) -> bool {
    let volume = status.volumes.iter().find(|v| v.volume == volume);
    base != GIVEN_UP && volume.is_some_and(|v| same(v.lineage, base))
}

/// See the module. `base`: the generation the data had when the device was served last.
pub(super) fn may_resume(status: &Status, volume: VolumeId, base: u64) -> Verdict {
    let Some(v) = status.volumes.iter().find(|v| v.volume == volume) else {
        return Verdict::Wait("the disk is not there".to_owned());
    };
    // Before a disk is attached it has no generation yet.
    if matches!(v.disk, DiskState::Diskless | DiskState::Attaching) {
        return Verdict::Wait(format!("the disk is {:?}: {}", v.disk, v.reason));
    }
    if !is_unchanged(status, volume, base) {
        return Verdict::Never(OTHER_DATA.to_owned());
    }
    if let Some(peer) = status.peers.iter().find(|p| p.role == Role::Primary) {
        return match peer.connection {
            // This node follows it, and may be told of a write at any moment.
            ConnState::Connected => {
                let text = "became Primary while the device was not served";
                Verdict::Never(format!("{} {text}", peer.name))
            }
            _ => Verdict::Wait(format!("{} is Primary", peer.name)),
        };
    }
    if v.disk != DiskState::UpToDate {
        return Verdict::Wait(format!("the disk is {:?}: {}", v.disk, v.reason));
    }
    let silent = status.peers.iter().find(|p| {
        let behind = |p: &&twinblk_engine::status::PeerStatus| {
            p.volumes.iter().any(|v| v.volume == volume && v.behind)
        };
        p.connection != ConnState::Connected && !behind(p)
    });
    match silent {
        Some(peer) => Verdict::Wait(format!(
            "{} is not connected, and may have been promoted meanwhile (if it was not: `twinblk \
             primary {}`)",
            peer.name, status.resource
        )),
        None => Verdict::Now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::fake_status::healthy;

    const BASE: u64 = 0x1234_5678;

    fn picture() -> Status {
        let mut status = healthy();
        // The bit that tells of the role is no other generation.
        status.volumes[0].lineage = BASE ^ 1;
        status
    }

    fn asked(change: impl FnOnce(&mut Status)) -> Verdict {
        let mut status = picture();
        change(&mut status);
        may_resume(&status, VolumeId(0), BASE)
    }

    #[test]
    fn what_holders_know_is_what_was_served_to_them() {
        assert_eq!(base(None, (7, true)), 7, "killed");
        assert_eq!(base(Some(JUST_STOPPED), (7, false)), 7, "stopped in order");
        assert_eq!(
            base(Some(5), (7, true)),
            5,
            "killed again, before it was served"
        );
        assert_eq!(base(Some(GIVEN_UP), (7, true)), GIVEN_UP);
        assert_eq!(
            base(None, (7, false)),
            GIVEN_UP,
            "nobody wrote down what it served"
        );
        let status = picture();
        assert!(is_unchanged(&status, VolumeId(0), BASE));
        assert!(!is_unchanged(&status, VolumeId(0), BASE + 2));
        assert!(!is_unchanged(&status, VolumeId(1), BASE));
        assert!(!is_unchanged(
            &Status {
                volumes: Vec::new(),
                ..status
            },
            VolumeId(0),
            BASE
        ));
    }

    #[test]
    fn with_its_own_data_and_nobody_else_primary_it_goes_on() {
        assert_eq!(asked(|_| {}), Verdict::Now);
        let alone = |s: &mut Status| {
            s.peers[0].connection = ConnState::Connecting;
            s.peers[0].role = Role::Unknown;
            s.peers[0].volumes[0].behind = true;
        };
        assert_eq!(asked(alone), Verdict::Now);
    }

    #[test]
    fn what_may_become_right_is_waited_for() {
        let waits = |verdict| matches!(verdict, Verdict::Wait(_));
        assert!(waits(asked(|s| {
            s.peers[0].role = Role::Primary;
            s.peers[0].connection = ConnState::StandAlone;
        })));
        assert!(waits(asked(
            |s| s.peers[0].connection = ConnState::Connecting
        )));
        // The target of a resync.
        assert!(waits(
            asked(|s| s.volumes[0].disk = DiskState::Inconsistent)
        ));
        assert!(waits(asked(|s| {
            s.volumes[0].disk = DiskState::Attaching;
            s.volumes[0].lineage = 0;
        })));
        assert!(waits(asked(|s| s.volumes.clear())));
    }

    #[test]
    fn data_that_changed_are_never_put_under_a_mounted_file_system() {
        let never = |verdict| matches!(verdict, Verdict::Never(_));
        let changed = |s: &mut Status| s.volumes[0].lineage = 0xdead_beee;
        assert!(never(asked(changed)));
        assert!(never(asked(|s| s.volumes[0].lineage = 0)));
        assert!(never(asked(|s| s.peers[0].role = Role::Primary)));
        // What was given up once is not taken up by the next daemon.
        assert!(never(may_resume(&picture(), VolumeId(0), 0)));
        let alone = |s: &mut Status| {
            changed(s);
            s.peers[0].connection = ConnState::Connecting;
            s.peers[0].volumes[0].behind = true;
        };
        assert!(never(asked(alone)));
    }
}

//! For tests: the engine's picture of a healthy pair, to be changed as a test needs it.

use twinblk_engine::event::{ConnState, DiskState, ReplState, Role};
use twinblk_engine::ids::{NodeId, VolumeId};
use twinblk_engine::status::{Activity, PeerStatus, PeerVolumeStatus, Status, VolumeStatus};
use twinblk_engine::suspend::Suspended;
use twinblk_engine::time::Instant;

/// alpha, Secondary, in step with bravo, Secondary; 1 MiB.
pub(super) fn healthy() -> Status {
    Status {
        resource: "r0".into(),
        node: NodeId(0),
        node_name: "alpha".into(),
        role: Role::Secondary,
        role_since: Instant(0),
        may_promote: Ok(()),
        fences_first: Vec::new(),
        may_demote: Ok(()),
        suspended: None,
        suspended_for: Suspended::default(),
        open_clients: Vec::new(),
        volumes: vec![VolumeStatus {
            volume: VolumeId(0),
            disk: DiskState::UpToDate,
            reason: String::new(),
            since: Instant(0),
            size: 1 << 20,
            block_size: 512,
            current_uuid: 5,
            lineage: 0,
            activity: Activity::default(),
            errors_passed_on: 0,
            served_by: None,
            attach_in: None,
        }],
        peers: vec![PeerStatus {
            node: NodeId(1),
            name: "bravo".into(),
            connection: ConnState::Connected,
            role: Role::Secondary,
            reason: String::new(),
            since: Instant(0),
            unsent: 0,
            transfer_log: 0,
            disagreement: None,
            split_brain: None,
            not_fenced: None,
            volumes: vec![PeerVolumeStatus {
                volume: VolumeId(0),
                replication: ReplState::Established,
                peer_disk: DiskState::UpToDate,
                out_of_sync: 0,
                behind: false,
                resync: None,
                verify: None,
                verified: None,
                since: Instant(0),
                seen_by_peer: None,
                standstill: None,
            }],
        }],
    }
}

//! Getters: the state for people, and the out-of-sync map for the `twinblk:dirty` NBD context.

use crate::ids::VolumeId;
use crate::remote::Access;
use crate::resource::Resource;
use crate::status::{Activity, PeerStatus, PeerVolumeStatus, Status, VerifyProgress, VolumeStatus};
use crate::time::Instant;
use alloc::string::ToString;
use alloc::vec::Vec;

impl Resource {
    /// A picture of the state at `now`.
    pub fn status(&self, now: Instant) -> Status {
        // What the peers said last counts: nobody is asked.
        let (may_promote, calls) = self.promotion_outlook();
        Status {
            resource: self.cfg.name.clone(),
            node: self.cfg.me.id,
            node_name: self.cfg.me.name.clone(),
            role: self.role,
            role_since: self.role_since,
            may_promote,
            fences_first: calls.iter().map(|&p| self.peers[p].name.clone()).collect(),
            may_demote: self.may_demote(),
            suspended: self.gate_closed().map(ToString::to_string),
            suspended_for: self.suspended,
            open_clients: self.clients.iter().map(|(_, c)| c.name.clone()).collect(),
            volumes: self
                .volumes
                .iter()
                .enumerate()
                .map(|(index, v)| VolumeStatus {
                    volume: v.id,
                    disk: v.disk,
                    reason: v.disk_reason.clone(),
                    since: v.disk_since,
                    size: v.size(),
                    block_size: v.block_size,
                    current_uuid: v.generations.current,
                    lineage: v.lineage,
                    activity: v.activity_status(),
                    errors_passed_on: v.again.errors(),
                    served_by: match self.access(index) {
                        Access::Remote(p) => Some(self.peers[p].name.clone()),
                        _ => None,
                    },
                    attach_in: v.again.seconds_left(now),
                })
                .collect(),
            peers: (0..self.peers.len())
                .map(|p| self.peer_status(p, now))
                .collect(),
        }
    }

    /// The activity log of a volume.
    pub fn activity(&self, volume: VolumeId) -> Option<Activity> {
        let v = self.volume_index(volume)?;
        Some(self.volumes[v].activity_status())
    }

    fn peer_status(&self, p: usize, now: Instant) -> PeerStatus {
        let peer = &self.peers[p];
        PeerStatus {
            node: peer.node,
            name: peer.name.clone(),
            connection: peer.state,
            role: peer.role,
            reason: peer.reason.clone(),
            since: peer.since,
            unsent: peer.unsent(),
            transfer_log: peer.log.len() as u64,
            disagreement: peer.views.disagreement(now).map(ToString::to_string),
            split_brain: peer.split_brain.clone(),
            not_fenced: self.waits_in_vain_for(p),
            volumes: peer
                .volumes
                .iter()
                .enumerate()
                .map(|(v, pv)| {
                    let out_of_sync = self.volumes[v].out_of_sync(peer.node);
                    PeerVolumeStatus {
                        volume: pv.id,
                        replication: pv.replication,
                        peer_disk: pv.disk,
                        out_of_sync,
                        behind: self.volumes[v].generations.base_for(peer.node) != 0,
                        resync: pv
                            .resync
                            .as_ref()
                            .map(|r| r.rate.progress(now, r.total, out_of_sync)),
                        verify: pv.verify.as_ref().map(|run| VerifyProgress {
                            progress: run.rate.progress(now, run.total, run.total - run.checked),
                            different: run.different,
                        }),
                        verified: pv.verified.clone(),
                        since: pv.since,
                        seen_by_peer: peer.views.of_volume(pv.id.0),
                        standstill: self.standstill(p, v),
                    }
                })
                .collect(),
        }
    }

    /// Ranges of `[offset, offset + len)` in order, each with whether any peer lacks it; at most
    /// `max` of them.
    pub fn dirty_ranges(
        &self,
        volume: VolumeId,
        offset: u64,
        len: u64,
        max: usize,
    ) -> Vec<(u64, u64, bool)> {
        let mut ranges = Vec::new();
        let Some(v) = self.volume_index(volume) else {
            return ranges;
        };
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end && ranges.len() < max {
            // The nearest dirty range of any peer, widened by every other that touches it.
            let next = self
                .peers
                .iter()
                .filter_map(|p| self.volumes[v].bitmap(p.node)?.next_run(at, end - at))
                .filter(|&(o, _)| o < end)
                .min();
            match next {
                None => {
                    ranges.push((at, end - at, false));
                    at = end;
                }
                Some((o, _)) if o > at => {
                    ranges.push((at, o - at, false));
                    at = o;
                }
                Some((o, l)) => {
                    let stop = (o + l).min(end);
                    if stop <= at {
                        break;
                    }
                    ranges.push((at, stop - at, true));
                    at = stop;
                }
            }
        }
        ranges
    }
}

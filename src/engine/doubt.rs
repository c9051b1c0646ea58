//! What a copy is worth when others may have more: the doubts of a survivor, and what a crash may have
//! cost. Only in resources of three and more nodes, but for the one flag of a crashed Primary.
//!
//! Invariants:
//! * doubts are on the disk in flags of the peers' slots, so that a restart does not end them;
//! * a doubt ends when the two have met, or by the word of a node that must know.

use crate::event::{DiskState, Severity};
use crate::ids::NodeId;
use crate::metadata::superblock::{MdFlags, PeerFlags};
use crate::peer::Peer;
use crate::resource::Resource;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

impl Resource {
    /// The other node's half copy shows that there is a newer generation than this one's.
    pub(crate) fn is_outdated_by(&mut self, p: usize, v: usize) {
        if !matches!(
            self.volumes[v].disk,
            DiskState::UpToDate | DiskState::Consistent
        ) {
            return;
        }
        let name = &self.peers[p].name;
        let reason =
            format!("{name} was being brought to a generation that this copy does not have");
        self.set_flags(v, MdFlags::WAS_UP_TO_DATE, false);
        self.set_disk(v, DiskState::Outdated, reason);
        self.commit(v, true, None);
    }

    /// Another survivor may have more than this copy: it is not served before they have met.
    pub(crate) fn doubt(&mut self, v: usize) {
        if self.volumes[v].disk != DiskState::UpToDate {
            return;
        }
        let unfenced = self.peers.iter().find(|x| x.volumes[v].unfenced);
        if let (Some(peer), false) = (unfenced, self.is_unreconciled(v)) {
            let reason = format!(
                "{} may have gone on without this copy: it counts as current when they have met, or \
                 when {} is fenced",
                peer.name, peer.name
            );
            self.set_disk(v, DiskState::Consistent, reason);
            return self.tell_state();
        }
        if !self.is_unreconciled(v) {
            return;
        }
        let names: Vec<&str> = self
            .peers
            .iter()
            .filter(|x| self.peer_flags(v, x.node).contains(PeerFlags::UNRECONCILED))
            .map(|x| x.name.as_str())
            .collect();
        let reason = format!(
            "the Primary is lost, and {} may have got more from it: this copy counts as current when \
             they have met",
            names.join(", ")
        );
        self.set_disk(v, DiskState::Consistent, reason);
        self.tell_state();
    }

    pub(crate) fn is_unreconciled(&self, v: usize) -> bool {
        self.peers
            .iter()
            .any(|x| self.peer_flags(v, x.node).contains(PeerFlags::UNRECONCILED))
    }

    /// This copy and the peer's were compared and are in step, or will be when a resync ends.
    pub(crate) fn reconciled(&mut self, p: usize, v: usize) {
        self.peers[p].volumes[v].unfenced = false;
        if !self.is_group() {
            self.set_flags(v, MdFlags::CRASHED_PRIMARY, false);
            // There is no third that could have anything newer.
            if matches!(
                self.volumes[v].disk,
                DiskState::Consistent | DiskState::Outdated
            ) {
                self.set_flags(v, MdFlags::WAS_UP_TO_DATE, true);
                let reason = "both copies were compared, and are of one generation".to_string();
                self.set_disk(v, DiskState::UpToDate, reason);
                self.tell_state();
            }
            return;
        }
        let in_step = |x: &Peer| x.volumes[v].mirrors();
        if self.peers.iter().all(in_step) {
            self.crash_is_over(v);
        }
        let node = self.peers[p].node;
        self.set_peer_flag(v, node, PeerFlags::UNRECONCILED, false);
        let reason = "all that may have got more from the lost Primary were met".to_string();
        self.no_more_doubt(v, reason);
    }

    /// Nothing is left that speaks against this copy, if so: it is current.
    pub(crate) fn no_more_doubt(&mut self, v: usize, reason: String) {
        let unfenced = self.peers.iter().any(|x| x.volumes[v].unfenced);
        let doubted = unfenced || self.is_unreconciled(v);
        if self.volumes[v].disk == DiskState::Consistent && !doubted {
            self.set_disk(v, DiskState::UpToDate, reason);
            self.tell_state();
        }
    }

    /// A copy that is current is in step with this one: nobody has gone on without either.
    pub(crate) fn all_fenced(&mut self, v: usize) {
        for peer in &mut self.peers {
            peer.volumes[v].unfenced = false;
        }
    }

    /// The Primary that crashed is back, at the generation of this copy: it did not go on without it, for
    /// that would have begun a new one.
    pub(crate) fn met_the_crashed_primary(&mut self, p: usize, v: usize) {
        self.no_doubt(v);
        self.peers[p].volumes[v].unfenced = false;
        let unfenced = self.peers.iter().any(|x| x.volumes[v].unfenced);
        if self.volumes[v].disk == DiskState::Consistent && !unfenced {
            let reason = "the Primary is back, and did not go on without this copy".to_string();
            self.set_disk(v, DiskState::UpToDate, reason);
        }
    }

    /// What a crash may have cost this copy, some other copy may still have, until all have met, or
    /// until a new generation tells those that were not met apart. A copy made from this one inherits
    /// that.
    pub(crate) fn crash_is_over(&mut self, v: usize) {
        self.set_flags(v, MdFlags::CRASHED_PRIMARY, false);
        self.set_flags(v, MdFlags::CRASHED_SECONDARY, false);
    }

    /// No other copy can have more: somebody who must know has said so.
    pub(crate) fn no_doubt(&mut self, v: usize) {
        for x in 0..self.peers.len() {
            let node = self.peers[x].node;
            self.set_peer_flag(v, node, PeerFlags::UNRECONCILED, false);
        }
    }

    pub(crate) fn is_marked_as_crashed(&self, v: usize) -> bool {
        self.volumes[v].local.as_ref().is_some_and(|l| {
            let flags = l.superblock.flags;
            flags.contains(MdFlags::CRASHED_PRIMARY) || flags.contains(MdFlags::CRASHED_SECONDARY)
        })
    }

    /// A copy that went down while it followed a Primary: it cannot know which of the last writes the
    /// others got.
    pub(crate) fn mark_after_following(&mut self, v: usize) {
        let followed: Vec<NodeId> = self
            .peers
            .iter()
            .map(|p| p.node)
            .filter(|&n| self.peer_flags(v, n).contains(PeerFlags::FOLLOWED))
            .collect();
        let (Some(&leader), true) = (followed.first(), self.is_group()) else {
            return;
        };
        let text = format!(
            "{}: this node went down while it followed {leader}; blocks are marked for the others",
            self.volumes[v].id
        );
        self.incident(Severity::Warning, text);
        for x in 0..self.peers.len() {
            let node = self.peers[x].node;
            if (!followed.contains(&node) || followed.len() > 1)
                && let Some(bitmap) = self.volumes[v].bitmap_mut(node)
            {
                bitmap.set_all();
            }
            self.set_peer_flag(v, node, PeerFlags::FOLLOWED, false);
            // The Primary went on, and another may have all of it.
            if !followed.contains(&node) {
                self.set_peer_flag(v, node, PeerFlags::UNRECONCILED, true);
            }
        }
        self.set_flags(v, MdFlags::CRASHED_SECONDARY, true);
    }

    pub(crate) fn peer_flags(&self, v: usize, node: NodeId) -> PeerFlags {
        self.volumes[v]
            .local
            .as_ref()
            .map_or(PeerFlags::default(), |l| {
                l.superblock.peers[node.slot()].flags
            })
    }

    pub(crate) fn set_peer_flag(&mut self, v: usize, node: NodeId, flag: PeerFlags, on: bool) {
        if let Some(local) = &mut self.volumes[v].local {
            let flags = &mut local.superblock.peers[node.slot()].flags;
            if on {
                flags.insert(flag);
            } else {
                flags.remove(flag);
            }
        }
    }
}

//! What is known of how two nodes parted: who was Primary then, what each has changed since. The policies
//! `discard-younger-primary` and `discard-older-primary` rest on the first, and people on both.
//!
//! A node's clock proves nothing to another, so what is kept is no time but a flag per peer on the disk
//! ([`PeerFlags::PARTED_AS_PRIMARY`]): "when the two were last in touch, this node was Primary". It
//! changes only while they are: when they agree to be connected, and when the role changes meanwhile. A
//! split brain that is being resolved leaves it alone until the resync runs, so that the same victim is
//! chosen when that takes more than one attempt.

use crate::event::{Role, Severity};
use crate::handshake::{Context, Decision, Direction, Side};
use crate::ids::NodeId;
use crate::metadata::superblock::PeerFlags;
use crate::resource::Resource;
use crate::status::{SplitBrain, SplitSide, SplitVolume};
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use twinblk_protocol::control::{Facts, VolumeFacts};

impl Resource {
    /// Settings the decision looks at.
    pub(crate) fn handshake_context(&self) -> Context {
        Context {
            protocol: self.cfg.options.protocol,
            allow_two_primaries: self.cfg.options.allow_two_primaries,
            group: self.is_group(),
            policies: self.cfg.options.policies,
        }
    }

    /// Bytes a side has marked for the other.
    pub(crate) fn marked_bytes(&self, v: usize, p: usize, facts: &VolumeFacts) -> u64 {
        let bitmap = self.volumes[v].bitmap(self.peers[p].node);
        let block = bitmap.map_or(4096, |b| u64::from(b.block_size()));
        let size = self.volumes[v].device_size();
        facts.dirty_bits.saturating_mul(block).min(size)
    }

    /// The facts of one side, as the decision wants them. A resource has one victim, so what it looks
    /// at is the same for all its volumes.
    pub(crate) fn side(
        &self,
        p: usize,
        node: NodeId,
        facts: &Facts,
        v: usize,
        knows: bool,
    ) -> Side {
        let fact = &facts.volumes[v];
        let each = facts.volumes.iter().enumerate();
        let changed = each.map(|(v, f)| self.marked_bytes(v, p, f));
        Side {
            node,
            current: fact.current,
            bitmap: fact.bitmap,
            history: fact.history.clone(),
            toward: fact.toward,
            disk: fact.disk,
            role: facts.role,
            dirty_bits: fact.dirty_bits,
            crashed_primary: fact.crashed_primary,
            same_incarnation_seen: knows,
            full_bitmap: fact.full_bitmap,
            discard_my_data: facts.discard_my_data,
            crashed_secondary: fact.crashed_secondary,
            busy: fact.busy,
            relies: fact.relies,
            relies_next: fact.relies_next,
            changed: changed.fold(0, u64::saturating_add),
            parted_as_primary: facts.volumes.iter().any(|f| f.parted_as_primary),
            in_use: facts.in_use,
        }
    }

    /// What the flag on the disk says towards a peer.
    pub(crate) fn parted_as_primary(&self, v: usize, p: usize) -> bool {
        let slot = self.peers[p].node.slot();
        let local = self.volumes[v].local.as_ref();
        local.is_some_and(|l| {
            l.superblock.peers[slot]
                .flags
                .contains(PeerFlags::PARTED_AS_PRIMARY)
        })
    }

    /// In touch with a peer: what this node is now is what it was when they part. Answers whether that
    /// is news; a commit takes it to the disk.
    pub(crate) fn remember_role(&mut self, v: usize, p: usize, role: Role) -> bool {
        let primary = role == Role::Primary;
        let old = self.parted_as_primary(v, p);
        let slot = self.peers[p].node.slot();
        if let Some(local) = &mut self.volumes[v].local {
            let flags = &mut local.superblock.peers[slot].flags;
            if primary {
                flags.insert(PeerFlags::PARTED_AS_PRIMARY);
            } else {
                flags.remove(PeerFlags::PARTED_AS_PRIMARY);
            }
        }
        old != primary
    }

    /// The same towards all that are connected.
    pub(crate) fn remember_role_everywhere(&mut self, v: usize, role: Role) {
        for p in 0..self.peers.len() {
            if self.peers[p].is_agreed() {
                self.remember_role(v, p, role);
            }
        }
    }

    /// Keeps for `status` what a handshake has told of a split brain.
    pub(crate) fn note_split_brain(&mut self, p: usize, decisions: &[Decision]) {
        let link = self.peers[p].link.as_ref();
        let facts = link.and_then(|l| Some((l.my_facts.clone()?, l.facts.clone()?)));
        let (Some((mine, theirs)), true) = (facts, decisions.iter().any(|d| d.split_brain)) else {
            self.peers[p].split_brain = None;
            return;
        };
        let both = mine.volumes.iter().zip(&theirs.volumes).zip(decisions);
        let parted = both.enumerate().filter(|(_, (_, d))| d.split_brain);
        let volumes: Vec<SplitVolume> = parted
            .map(|(v, ((m, t), d))| SplitVolume {
                volume: self.volumes[v].id,
                rule: d.rule.name(),
                here: split_side(self.marked_bytes(v, p, m), m),
                there: split_side(self.marked_bytes(v, p, t), t),
            })
            .collect();
        self.peers[p].split_brain = Some(SplitBrain {
            found: self.now,
            volumes,
        });
    }

    /// Both sides agreed whose copy gives way in a split brain.
    pub(crate) fn tell_resolved(&mut self, p: usize, decisions: &[Decision]) {
        let resolved = |d: &&Decision| {
            d.split_brain && matches!(d.direction, Direction::Source | Direction::Target)
        };
        for decision in decisions.iter().filter(resolved) {
            let name = &self.peers[p].name;
            let text = format!(
                "split brain with {name} resolved ({}): {}",
                decision.rule.name(),
                decision.reason
            );
            self.incident(Severity::Warning, text.to_string());
        }
    }
}

fn split_side(changed: u64, facts: &VolumeFacts) -> SplitSide {
    SplitSide {
        changed,
        current: facts.current,
        base: facts.bitmap,
        parted_as_primary: facts.parted_as_primary,
    }
}

//! Before a resync overwrites a copy that a split brain costs, the node whose copy it is can save it
//! (`connect --discard-my-data --save-discarded`, `save-discarded-dir`): every block that is marked on
//! either node when they meet, as it is here, with whether this node has changed it. Those are the blocks
//! in which the copies may differ, and with which the resync begins. What the other node's clients write
//! from then on comes over blocks that are not saved, too: of those both copies were the same.
//!
//! The control plane does the work ([`Output::SaveDiscarded`]) while the resync waits at its door: both
//! bitmaps are merged, nothing is on the disk yet that says target, nothing is sent. The link stays up.
//!
//! Invariant: the resync begins only after the file is durable. If it cannot be written, or the link is
//! lost before, nothing has changed on the disk, nor in what is marked there.

use crate::event::{ConnState, Severity};
use crate::handshake::Decision;
use crate::ids::{NodeId, SaveId, VolumeId};
use crate::output::Output;
use crate::resource::Resource;
use crate::status::SplitSide;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// What is to be saved, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveDiscarded {
    /// Comes back in the answer.
    pub id: SaveId,
    /// Volume.
    pub volume: VolumeId,
    /// Whose copy stays.
    pub peer: NodeId,
    /// File to write; in the configured directory when absent.
    pub file: Option<String>,
    /// Bytes of the device.
    pub size: u64,
    /// Bytes per bit.
    pub block: u32,
    /// This node's copy.
    pub here: SplitSide,
    /// The peer's.
    pub there: SplitSide,
    /// Blocks this node has changed, least significant bit first.
    pub own: Vec<u64>,
    /// Blocks that either node has marked: the resync begins with overwriting them.
    pub all: Vec<u64>,
}

/// Where the saving of one volume stands.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum Saving {
    /// Nothing is to be saved.
    #[default]
    NotAsked,
    /// It is to be saved to this file, or in the configured directory.
    Due(Option<String>, SplitSide, SplitSide),
    /// The control plane is at it.
    Running(SaveId),
    /// It is durable.
    Done,
}

impl Resource {
    /// Both agreed that this node's copy is overwritten: is it to be saved first?
    pub(crate) fn plan_save(&mut self, p: usize, v: usize, decision: &Decision) {
        let file = self.peers[p].save_to.clone();
        if !decision.split_brain || file.is_none() && !self.cfg.options.save_discarded {
            return;
        }
        let several = self.volumes.len() > 1;
        let id = self.volumes[v].id;
        let found = self.peers[p].split_brain.as_ref();
        let Some(split) = found.and_then(|s| s.volumes.iter().find(|s| s.volume == id)) else {
            return;
        };
        let file = file.map(|f| {
            if several {
                format!("{f}.vol{}", id.0)
            } else {
                f
            }
        });
        self.peers[p].volumes[v].start.saving = Saving::Due(file, split.here, split.there);
    }

    /// Whether the resync may begin as far as this is concerned; asks for what is due.
    pub(crate) fn is_saved(&mut self, p: usize, v: usize) -> bool {
        let start = &mut self.peers[p].volumes[v].start;
        let (file, here, there) = match &start.saving {
            Saving::NotAsked | Saving::Done => return true,
            Saving::Running(_) => return false,
            Saving::Due(file, here, there) => (file.clone(), *here, *there),
        };
        let own = start.own.clone().unwrap_or_default();
        self.next_save += 1;
        let id = SaveId(self.next_save);
        start.saving = Saving::Running(id);
        let node = self.peers[p].node;
        let volume = &self.volumes[v];
        let Some(bitmap) = volume.bitmap(node) else {
            return false;
        };
        let request = SaveDiscarded {
            id,
            volume: volume.id,
            peer: node,
            file,
            size: volume.device_size(),
            block: bitmap.block_size(),
            here,
            there,
            own,
            all: bitmap.snapshot(),
        };
        let text = format!(
            "{}: saving {} bytes before they are overwritten from {}",
            volume.id,
            volume.out_of_sync(node),
            self.peers[p].name
        );
        self.incident(Severity::Info, text);
        self.out.push(Output::SaveDiscarded(Box::new(request)));
        false
    }

    /// The control plane is done with it: the name of the file, or why there is none.
    pub(crate) fn discarded_saved(&mut self, id: SaveId, result: Result<String, String>) {
        let running = Saving::Running(id);
        let place = (0..self.peers.len())
            .flat_map(|p| (0..self.volumes.len()).map(move |v| (p, v)))
            .find(|&(p, v)| self.peers[p].volumes[v].start.saving == running);
        let Some((p, v)) = place else {
            if let Ok(file) = result {
                // The connection was lost in the last moment.
                let text = format!(
                    "{file} holds what was to be given up, but nothing has been overwritten: remove it, \
                     and repeat the order with another file"
                );
                self.incident(Severity::Warning, text);
            }
            return;
        };
        let volume = self.volumes[v].id;
        match result {
            Ok(file) => {
                let text = format!("{volume}: saved what this node gives up to {file}");
                self.incident(Severity::Warning, text);
                self.peers[p].volumes[v].start.saving = Saving::Done;
                self.sync_start_progress(p);
            }
            Err(why) => {
                let text = format!(
                    "split brain not resolved: what this node has on {volume} could not be saved: {why}; \
                     nothing was overwritten; mend that and connect again with `twinblk connect \
                     --discard-my-data --save-discarded FILE RES`, or without `--save-discarded`"
                );
                self.incident(Severity::Error, text.clone());
                self.peers[p].volumes[v].start.saving = Saving::NotAsked;
                self.peers[p].want = false;
                self.close_link(p, ConnState::StandAlone, text);
            }
        }
    }

    /// The link is lost: what is being saved is not needed any more.
    pub(crate) fn cancel_save(&mut self, p: usize, v: usize) {
        let saving = core::mem::take(&mut self.peers[p].volumes[v].start.saving);
        if let Saving::Running(id) = saving {
            self.out.push(Output::CancelSave { id });
        }
    }
}

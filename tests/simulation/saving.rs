//! A copy that is given up is saved before it is overwritten, or cannot be. Invariant: nothing changes it
//! from the moment the engine asks until it has its answer, and without the answer it stays as it is.

use crate::disk::Stamp;
use crate::plan::{MS, SECOND};
use crate::world::{Due, World};
use twinblk_engine::ids::SaveId;
use twinblk_engine::input::Input;
use twinblk_engine::save_discarded::SaveDiscarded;

/// One that is under way.
#[derive(Debug)]
pub(crate) struct Save {
    node: usize,
    id: u64,
    content: Vec<Stamp>,
}

impl Save {
    pub(crate) fn node(&self) -> usize {
        self.node
    }
}

impl World {
    pub(crate) fn save_discarded(&mut self, n: usize, request: &SaveDiscarded) {
        let own = request.own.iter().zip(&request.all);
        if own.clone().any(|(own, all)| own & !all != 0) {
            let text = format!("node {n} changed blocks that are neither saved nor overwritten");
            self.violate("what_is_overwritten_is_saved", text);
        }
        let delay = self.admin.rng.between(MS, 3 * SECOND);
        self.admin.saves.push(Save {
            node: n,
            id: request.id.0,
            content: self.nodes[n].disk.data().to_vec(),
        });
        let life = self.nodes[n].life;
        self.after(delay, Due::Saved(n, life, request.id.0));
    }

    fn take_save(&mut self, n: usize, id: u64) -> Option<Save> {
        let saves = &mut self.admin.saves;
        let at = saves.iter().position(|s| (s.node, s.id) == (n, id))?;
        Some(saves.swap_remove(at))
    }

    pub(crate) fn cancel_save(&mut self, n: usize, id: SaveId) {
        self.trace.count("saving cancelled");
        // Half of them had just come to their end.
        if self.admin.rng.per_mille(500) {
            self.take_save(n, id.0);
        } else if let Some(save) = self.admin.saves.iter_mut().find(|s| s.id == id.0) {
            save.content.clear();
        }
    }

    pub(crate) fn saved(&mut self, n: usize, life: u64, id: u64) {
        let Some(save) = self.take_save(n, id) else {
            return;
        };
        if self.nodes[n].life != life {
            return;
        }
        if !save.content.is_empty() && save.content != self.nodes[n].disk.data() {
            let text = format!("node {n} writes to what it is about to save");
            self.violate("what_is_overwritten_is_saved", text);
        }
        let fails = self.admin.rng.per_mille(250);
        let result = if fails {
            self.trace.count("saving failed");
            Err("no space left on device".to_owned())
        } else {
            self.trace.count("saved before it was given up");
            Ok("/saved".to_owned())
        };
        let id = SaveId(id);
        self.feed(n, Input::DiscardedSaved { id, result });
    }
}

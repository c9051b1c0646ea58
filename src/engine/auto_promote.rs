//! `auto-promote`: the first client that opens the export makes this node Primary, the last one that
//! closes it makes it Secondary again. A node that an administrator made Primary stays so.

use crate::command::{Refusal, RefusalKind};
use crate::event::Role;
use crate::ids::CommandId;
use crate::resource::Resource;
use alloc::format;
use alloc::string::String;

/// What `auto-promote` has brought about.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Auto {
    /// This node is Primary for its clients' sake only.
    promoted: bool,
    /// Clients that were let in and have not opened the export yet.
    awaited: u32,
}

impl Resource {
    /// A client is about to open the export: it is awaited from now on, also when this node is Primary
    /// already, so that the last of the others may leave before it has come.
    pub(crate) fn auto_promote(&mut self, id: CommandId) {
        // A client that was just put out comes back at once, and would have the eviction begin anew.
        if let Some(peer) = self.peers.iter().find(|p| p.gives_way) {
            let refusal = Refusal {
                kind: RefusalKind::State,
                reason: format!(
                    "the copy on {} counts, and this node gives way to it: it is not promoted for clients",
                    peer.name
                ),
                way_out: format!(
                    "connect to the Primary, or wait until this copy is the same: `twinblk wait-sync \
                     {0}`; `twinblk why {0}` says more",
                    self.cfg.name
                ),
            };
            return self.done(id, Err(refusal));
        }
        let was = self.role;
        // Another one waits already: this one is refused.
        let refused = self.waiting_promotion.is_some();
        self.promote(id, false);
        // A promotion that was refused left nothing under way.
        let waits = self.role_change.is_some() || self.waiting_promotion.is_some();
        if self.role == Role::Primary || waits && !refused {
            self.auto.awaited += 1;
            self.auto.promoted |= was != Role::Primary;
        }
    }

    /// A client that was to open the export did not come.
    pub(crate) fn auto_demote(&mut self, id: CommandId) {
        self.auto_opened();
        self.done(id, Ok(String::new()));
    }

    /// A client opened the export.
    pub(crate) fn auto_opened(&mut self) {
        self.auto.awaited = self.auto.awaited.saturating_sub(1);
    }

    /// An administrator wants this node to be Primary, with clients or without.
    pub(crate) fn promoted_by_order(&mut self) {
        self.auto.promoted = false;
    }

    /// Demotes when the last client is gone.
    pub(crate) fn auto_progress(&mut self) {
        if self.role_change.is_some() || self.waiting_promotion.is_some() {
            return;
        }
        if self.role != Role::Primary {
            self.auto = Auto::default();
        } else if self.auto.promoted
            && self.auto.awaited == 0
            && self.clients.len() == 0
            && self.stopping.is_none()
            && self.may_demote().is_ok()
        {
            self.demote(None);
        }
    }
}

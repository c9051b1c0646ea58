//! `auto-promote`: the first client that opens the export makes this node Primary, the last one that
//! closes it makes it Secondary again. A node that an administrator made Primary stays so.

use crate::event::Role;
use crate::ids::CommandId;
use crate::resource::Resource;
use alloc::string::String;

/// Why this node is Primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Auto {
    /// It is not, or by an administrator's order.
    #[default]
    No,
    /// For a client that is about to open the export.
    Awaits,
    /// For the clients that hold it.
    Held,
}

impl Resource {
    /// A client is about to open the export.
    pub(crate) fn auto_promote(&mut self, id: CommandId) {
        let was = self.role;
        self.promote(id, false);
        // A promotion that was refused left nothing under way.
        if was != Role::Primary && (self.role_change.is_some() || self.role == Role::Primary) {
            self.auto = Auto::Awaits;
        }
    }

    /// A client that was to open the export did not come: nothing else keeps this node Primary.
    pub(crate) fn auto_demote(&mut self, id: CommandId) {
        if self.auto == Auto::Awaits && self.clients.len() == 0 {
            self.auto = Auto::Held;
        }
        self.done(id, Ok(String::new()));
    }

    /// A client opened the export.
    pub(crate) fn auto_opened(&mut self) {
        if self.auto == Auto::Awaits {
            self.auto = Auto::Held;
        }
    }

    /// Demotes when the last client is gone.
    pub(crate) fn auto_progress(&mut self) {
        if self.role_change.is_some() {
            return;
        }
        if self.role != Role::Primary {
            self.auto = Auto::No;
        } else if self.auto == Auto::Held
            && self.clients.len() == 0
            && self.stopping.is_none()
            && self.may_demote().is_ok()
        {
            self.demote(None);
        }
    }
}

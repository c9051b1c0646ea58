//! What the copy of a peer is worth to the clients of this Primary, should its own disk go out of use
//! before a new generation tells the two copies apart.
//!
//! Invariant: a copy of the generation that this node is at is served only if it is known to have all
//! that clients were told is done. As soon as a new generation is on the disk here the peer's is another
//! one, and that is told from the generations alone; before, and while it is put off until the peer is
//! fenced, what was in flight when the link was lost tells.

use crate::event::{DiskState, Role};
use crate::peer::{Link, Phase};
use crate::resource::Resource;
use crate::transfer_log::Entry;
use twinblk_protocol::control::Protocol;

/// What a peer at this node's generation may lack of what clients were told is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lacks {
    /// Nobody knows.
    #[default]
    Unknown,
    /// Nothing.
    Nothing,
    /// Nothing, as long as it is in the life with this number: what it confirmed need not be stable.
    WhatACrashTakes(u64),
}

impl Resource {
    /// The link to a peer is lost, with `entries` not confirmed as stable. Before anything else is done
    /// about it.
    pub(crate) fn note_what_is_left_behind(&mut self, p: usize, link: &Link, entries: &[Entry]) {
        if link.phase != Phase::Agreed {
            // Nothing was mirrored on it.
            return;
        }
        let weak = self.cfg.options.protocol != Protocol::C;
        for v in 0..self.volumes.len() {
            let lacks = if !self.was_in_step(p, v) {
                Lacks::Unknown
            } else if !self.has_answered(v, entries) {
                Lacks::Nothing
            } else if weak {
                Lacks::Unknown
            } else {
                Lacks::WhatACrashTakes(self.peers[p].seen_incarnation)
            };
            self.peers[p].volumes[v].lacks = lacks;
        }
    }

    /// As Primary with a disk: this peer gets all writes, and lacks nothing else.
    fn was_in_step(&self, p: usize, v: usize) -> bool {
        let pv = &self.peers[p].volumes[v];
        let volume = &self.volumes[v];
        self.role == Role::Primary
            && volume.remote.is_none()
            && volume.local.is_some()
            && pv.mirrors()
            && pv.disk == DiskState::UpToDate
            && volume.out_of_sync(self.peers[p].node) == 0
    }

    /// Some of these writes were answered to a client, and are not confirmed as stable.
    pub(crate) fn has_answered(&self, v: usize, entries: &[Entry]) -> bool {
        let id = self.volumes[v].id;
        let answered = |e: &Entry| e.request.is_none_or(|key| self.requests.get(key).is_none());
        entries
            .iter()
            .any(|e| e.volume == id && !e.stable && !e.resync && answered(e))
    }

    /// The own disk goes out of use: what a peer may lack that has this node's generation.
    pub(crate) fn lacks_now(&self, v: usize) -> Lacks {
        let connected = |p: &usize| self.peers[*p].is_agreed();
        let all = 0..self.peers.len();
        match all.clone().find(connected) {
            Some(p) if self.was_in_step(p, v) => Lacks::Nothing,
            Some(_) => Lacks::Unknown,
            None => all
                .map(|p| self.peers[p].volumes[v].lacks)
                .next()
                .unwrap_or_default(),
        }
    }
}

//! Changes that need the peer: asked for with `Prepare`, answered with `PrepareReply`, ended with
//! `Finish`. A peer answers only after everything sent before the question is on its disk.
//!
//! Two nodes that want to be promoted at the same moment: each finds the other's question while its
//! own is open. The one with the lower node id keeps its question and says no; the other gives up
//! and says yes. So never both, and not neither.

use crate::command::{Refusal, RefusalKind};
use crate::event::{ConnState, DiskState, Role};
use crate::ids::NodeId;
use crate::metadata::superblock::MdFlags;
use crate::output::{Channel, Output};
use crate::peer::{Asked, AskedWhat, Link, PeerVolume};
use crate::resource::Resource;
use crate::role::{RoleChange, Step};
use crate::time::Duration;
use crate::volume::Waiter;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use twinblk_protocol::control::{Change, Message};

impl Resource {
    /// Asks a peer.
    pub(crate) fn ask(&mut self, p: usize, what: AskedWhat, change: Change) {
        let open = self.peers[p].link.as_mut().and_then(|l| l.asked.take());
        if let Some(open) = open {
            // One question at a time. Parting does not wait for another answer; all else does.
            let text = "another change is being agreed with the peer";
            let new = Asked {
                what,
                ..open.clone()
            };
            if what != AskedWhat::Disconnect {
                if let Some(link) = &mut self.peers[p].link {
                    link.asked = Some(open);
                }
                return self.asked_failed(p, &new, RefusalKind::State, text);
            }
            if open.what != AskedWhat::Disconnect {
                let text = "the connection is being ended";
                self.asked_failed(p, &open, RefusalKind::State, text);
            }
        }
        self.next_tid += 1;
        let tid = self.next_tid;
        let deadline = self.now + self.consent_time();
        if let Some(link) = &mut self.peers[p].link {
            link.asked = Some(Asked {
                tid,
                deadline,
                what,
            });
        }
        self.send_message(p, Channel::Data, &Message::Prepare { tid, change });
    }

    fn consent_time(&self) -> Duration {
        (self.cfg.options.ping_timeout * 4).max(Duration::from_secs(10))
    }

    /// A peer asks.
    pub(crate) fn prepare_received(&mut self, p: usize, tid: u64, change: Change) {
        if let Some(link) = &mut self.peers[p].link {
            link.deferred = Some((tid, change));
        }
        self.answer_deferred();
    }

    /// Answers questions whose turn has come.
    pub(crate) fn answer_deferred(&mut self) {
        for p in 0..self.peers.len() {
            let comparing = self.peers.iter().any(|p| p.freezes());
            if !self.peers[p].receiver.is_idle() || comparing {
                continue;
            }
            // A resync that is about to end has ended first: who is left behind is then told as Outdated.
            let ends = self.peers[p].volumes.iter().any(PeerVolume::adopts);
            let Some(link) = &mut self.peers[p].link else {
                continue;
            };
            let leaves = matches!(link.deferred, Some((_, Change::Disconnect)));
            if leaves && ends {
                continue;
            }
            if let Some((tid, change)) = link.deferred.take() {
                self.answer(p, tid, &change);
            }
        }
    }

    pub(crate) fn reply(&mut self, p: usize, tid: u64, refusal: Option<String>) {
        self.send_message(p, Channel::Data, &Message::PrepareReply { tid, refusal });
    }

    fn answer(&mut self, p: usize, tid: u64, change: &Change) {
        let Some(link) = self.peers[p].link_number() else {
            return;
        };
        let node = self.peers[p].node;
        let me = self.cfg.me.name.clone();
        let peer_change = |this: &mut Self, v: usize| {
            this.commit(v, true, Some(Waiter::PeerChange(node, link, tid)));
        };
        match change {
            Change::Promote => {
                let refusal = self.consent_to_promotion(p);
                if refusal.is_none()
                    && let Some(link) = &mut self.peers[p].link
                {
                    link.granted = Some(tid);
                }
                self.reply(p, tid, refusal);
            }
            Change::Disconnect => {
                let mut waits = false;
                if self.peers[p].role == Role::Primary && self.role != Role::Primary {
                    waits = self.outdate_self(p, tid, link);
                }
                if !waits {
                    self.reply(p, tid, None);
                }
            }
            Change::InvalidatePeer => {
                if self.role == Role::Primary {
                    return self.reply(p, tid, Some(format!("{me} is Primary")));
                }
                if self.volumes.iter().any(|v| !v.has_disk()) {
                    return self.reply(p, tid, Some(format!("{me} has no disk")));
                }
                for v in 0..self.volumes.len() {
                    self.mark_worthless(v, p, "invalidated from the other node");
                    peer_change(self, v);
                }
            }
            Change::DeclareEqual { volume, current } => {
                let index = self.volume_index(crate::ids::VolumeId(*volume));
                let fresh = index.filter(|&v| {
                    self.volumes[v].has_disk() && self.volumes[v].generations.is_just_created()
                });
                match fresh {
                    Some(v) => {
                        self.declare_equal(v, *current);
                        peer_change(self, v);
                    }
                    None => {
                        let text = format!("the disk of {me} is not just created");
                        self.reply(p, tid, Some(text));
                    }
                }
            }
            Change::Resize { .. } => self.resize_asked(p, tid, change),
            Change::InvalidateMe => self.reply(p, tid, None),
            Change::Verify {
                run,
                you_lead,
                repair,
            } => {
                let refusal = self.consent_to_verify(p, *run, *you_lead, *repair);
                self.reply(p, tid, refusal);
            }
        }
    }

    fn consent_to_promotion(&mut self, p: usize) -> Option<String> {
        let me = self.cfg.me.name.clone();
        if self.role == Role::Primary {
            return Some(format!("{me} is Primary"));
        }
        for (x, other) in self.peers.iter().enumerate().filter(|&(x, _)| x != p) {
            if other.leads() || other.role == Role::Primary {
                return Some(format!("{} is Primary and connected to {me}", other.name));
            }
            let granted = other.link.as_ref().is_some_and(|l| l.granted.is_some());
            if granted && !crate::sabotage::is(crate::sabotage::Mistake::GrantTwice) {
                return Some(format!(
                    "{} is being promoted at this moment",
                    self.peers[x].name
                ));
            }
        }
        let promoting = matches!(
            self.role_change,
            Some(RoleChange {
                step: Step::Consent { .. } | Step::Promoting { .. },
                ..
            })
        );
        if !promoting {
            return None;
        }
        let committed = matches!(
            self.role_change,
            Some(RoleChange {
                step: Step::Promoting { .. },
                ..
            })
        );
        if committed || self.cfg.me.id < self.peers[p].node {
            return Some(format!("{me} is being promoted at the same moment"));
        }
        let name = self.peers[p].name.clone();
        self.end_role_change(Err(Refusal {
            kind: RefusalKind::State,
            reason: format!("{name} is being promoted at the same moment and has precedence"),
            way_out: "look at `twinblk status`".to_string(),
        }));
        None
    }

    /// A peer that stays behind on purpose is Outdated. Answers whether the reply waits for the disk.
    fn outdate_self(&mut self, p: usize, tid: u64, link: u64) -> bool {
        let node = self.peers[p].node;
        let name = self.peers[p].name.clone();
        let mut waits = false;
        if let Some(link) = &mut self.peers[p].link {
            link.stays_behind = true;
        }
        for v in 0..self.volumes.len() {
            if matches!(
                self.volumes[v].disk,
                DiskState::UpToDate | DiskState::Consistent
            ) {
                self.set_flags(v, MdFlags::WAS_UP_TO_DATE, false);
                let reason = format!("disconnected on purpose while {name} was Primary");
                self.set_disk(v, DiskState::Outdated, reason);
                self.commit(v, true, Some(Waiter::PeerChange(node, link, tid)));
                waits = true;
            }
        }
        waits
    }

    /// For whom everything is marked when this copy becomes worthless: whoever will be its source.
    fn marked_with(&self, p: usize) -> Vec<NodeId> {
        match self.is_group() {
            true => self.peers.iter().map(|x| x.node).collect(),
            false => vec![self.peers[p].node],
        }
    }

    /// A volume's disk becomes a full sync target.
    pub(crate) fn mark_worthless(&mut self, v: usize, p: usize, reason: &str) {
        self.set_flags(v, MdFlags::CONSISTENT, false);
        self.set_flags(v, MdFlags::WAS_UP_TO_DATE, false);
        for node in self.marked_with(p) {
            if let Some(bitmap) = self.volumes[v].bitmap_mut(node) {
                bitmap.set_all();
            }
        }
        self.set_disk(v, DiskState::Inconsistent, reason.to_string());
    }

    /// A volume's disk is declared equal to the peer's.
    pub(crate) fn declare_equal(&mut self, v: usize, current: u64) {
        self.volumes[v].generations.declare_equal(current);
        self.set_flags(v, MdFlags::CONSISTENT, true);
        self.set_flags(v, MdFlags::WAS_UP_TO_DATE, true);
        for p in 0..self.peers.len() {
            let node = self.peers[p].node;
            self.peers[p].volumes[v].lacks_current = false;
            if let Some(bitmap) = self.volumes[v].bitmap_mut(node) {
                bitmap.clear_all();
            }
        }
    }

    /// What a peer asked for is on the disk.
    pub(crate) fn peer_change_done(&mut self, p: usize, v: usize, tid: u64) {
        let consistent = self.volumes[v]
            .local
            .as_ref()
            .is_some_and(|l| l.superblock.flags.contains(MdFlags::WAS_UP_TO_DATE));
        if consistent && self.volumes[v].disk == DiskState::Inconsistent {
            let reason = "declared equal by `new-current-uuid --clear-bitmap`".to_string();
            self.set_disk(v, DiskState::UpToDate, reason);
        }
        // With several volumes the reply goes with the last one's commit.
        let this = |w: &Waiter| matches!(w, Waiter::PeerChange(_, _, t) if *t == tid);
        let more = self.volumes.iter().any(|v| v.meta.has_waiter(this));
        if !more {
            self.reply(p, tid, None);
            self.tell_state();
        }
    }

    /// The peer's answer.
    pub(crate) fn prepare_reply_received(&mut self, p: usize, tid: u64, refusal: Option<String>) {
        let name = self.peers[p].name.clone();
        let Some(link) = &mut self.peers[p].link else {
            return;
        };
        if link.asked.as_ref().is_none_or(|a| a.tid != tid) {
            return; // an answer to something given up
        }
        let Some(asked) = link.asked.take() else {
            return;
        };
        let promotion = asked.what == AskedWhat::Promote;
        let refusal = refusal.map(|text| Refusal {
            kind: if promotion {
                RefusalKind::State
            } else {
                RefusalKind::PeerRefused
            },
            reason: format!("{name} refused: {text}"),
            way_out: if promotion {
                format!("run `twinblk secondary {}` on {name} first", self.cfg.name)
            } else {
                String::new()
            },
        });
        match (asked.what, refusal) {
            (AskedWhat::Promote, Some(refusal)) => self.end_role_change(Err(refusal)),
            (AskedWhat::Promote, None) => {
                // Remembered, so that the grant is ended when the change is over.
                if let Some(link) = &mut self.peers[p].link {
                    link.granted_to_me = Some(tid);
                }
                self.promotion_consent();
            }
            (AskedWhat::Disconnect, None) if self.role == Role::Primary => {
                // It answers when its disk says that it stays behind.
                self.peers[p].fence.parted = true;
                self.leave(p);
            }
            (AskedWhat::Disconnect, None) if self.outdates_before_leaving(p) => {}
            (AskedWhat::Disconnect, _) => self.leave(p),
            (AskedWhat::InvalidatePeer(id), None) => {
                self.done(
                    id,
                    Ok(format!(
                        "the data on {name} are invalid now; a full sync starts"
                    )),
                );
                self.renegotiate_peer(p, "the peer's data were invalidated");
            }
            (AskedWhat::DeclareEqual(id, current), None) => {
                for v in 0..self.volumes.len() {
                    self.declare_equal(v, current);
                    let text = "declared equal by `new-current-uuid --clear-bitmap`";
                    self.commit(v, true, Some(Waiter::Renegotiate(id, text)));
                }
            }
            (AskedWhat::Resize(id), None) => {
                let text = "a consent to a resize without a size";
                self.asked_failed(p, &asked, RefusalKind::Other, text);
                self.protocol_error(p, format!("{text} (order {})", id.0));
            }
            (AskedWhat::Verify(id, run, leads, repair), None) => {
                self.verify_granted(p, id, run, leads, repair);
            }
            (
                AskedWhat::InvalidatePeer(id)
                | AskedWhat::DeclareEqual(id, _)
                | AskedWhat::Resize(id)
                | AskedWhat::Verify(id, ..),
                Some(refusal),
            ) => {
                self.done(id, Err(refusal));
            }
        }
    }

    /// The peer ended its change. A promotion that was granted binds until the peer says that it came
    /// to nothing, or that it is Primary (which it says next), or the link is lost: in between, another
    /// could be granted one, and both be Primary by this node's word.
    pub(crate) fn finish_received(&mut self, p: usize, tid: u64, commit: bool) {
        self.resize_finished(p, tid, commit);
        let Some(link) = &mut self.peers[p].link else {
            return;
        };
        if link.granted == Some(tid) && !commit {
            link.granted = None;
        }
        if link.deferred.as_ref().is_some_and(|(t, _)| *t == tid) {
            link.deferred = None;
        }
    }

    /// Tells peers that consented that the change is over.
    pub(crate) fn finish_asked(&mut self, what: AskedWhat, commit: bool) {
        for p in 0..self.peers.len() {
            let Some(link) = &mut self.peers[p].link else {
                continue;
            };
            let mut tid = link.granted_to_me.take();
            if link.asked.as_ref().is_some_and(|a| a.what == what) {
                tid = link.asked.take().map(|a| a.tid);
            }
            if let Some(tid) = tid {
                self.send_message(p, Channel::Data, &Message::Finish { tid, commit });
            }
        }
    }

    /// Time limits of questions.
    pub(crate) fn asked_tick(&mut self, p: usize) {
        let now = self.now;
        let Some(link) = &mut self.peers[p].link else {
            return;
        };
        if link.asked.as_ref().is_some_and(|a| now >= a.deadline) {
            let Some(asked) = link.asked.take() else {
                return;
            };
            let name = self.peers[p].name.clone();
            let text = format!("{name} did not answer in time");
            self.asked_failed(p, &asked, RefusalKind::Timeout, &text);
        }
    }

    pub(crate) fn asked_failed(&mut self, p: usize, asked: &Asked, kind: RefusalKind, text: &str) {
        let refusal = Refusal {
            kind,
            reason: text.to_string(),
            way_out: "try again".to_string(),
        };
        match asked.what {
            AskedWhat::Promote => {
                let (tid, commit) = (asked.tid, false);
                self.send_message(p, Channel::Data, &Message::Finish { tid, commit });
                self.end_role_change(Err(refusal));
            }
            AskedWhat::Disconnect => self.leave(p),
            AskedWhat::InvalidatePeer(id)
            | AskedWhat::DeclareEqual(id, _)
            | AskedWhat::Resize(id) => {
                self.done(id, Err(refusal));
            }
            AskedWhat::Verify(id, run, ..) => {
                self.verify_given_up(p, run, text);
                self.done(id, Err(refusal));
            }
        }
    }

    /// The link with an open question is gone.
    pub(crate) fn link_lost_commands(
        &mut self,
        p: usize,
        link: &Link,
        state: ConnState,
        reason: &str,
    ) {
        let Some(asked) = &link.asked else { return };
        if asked.what == AskedWhat::Promote && state == ConnState::TearDown {
            // It lives, and had something against this connection: perhaps that another is Primary.
            self.asked_failed(p, asked, RefusalKind::State, reason);
        } else if asked.what == AskedWhat::Promote {
            // The peer may have died: go on without its consent, as if it had not been connected.
            self.promotion_consent();
        } else if asked.what == AskedWhat::Disconnect {
            self.peers[p].want = false;
        } else {
            let text = format!("the connection was lost: {reason}");
            self.asked_failed(p, asked, RefusalKind::State, &text);
        }
    }

    /// The peer agreed to part, or could not be asked: part.
    pub(crate) fn leave(&mut self, p: usize) {
        let reason = if self.stopping.is_some() {
            format!("{} is taken down on {}", self.cfg.name, self.cfg.me.name)
        } else {
            "disconnected by an administrator".to_string()
        };
        self.peers[p].want = false;
        if self.role != Role::Primary && self.peers[p].role == Role::Primary {
            for v in 0..self.volumes.len() {
                let name = self.peers[p].name.clone();
                self.outdate(
                    v,
                    format!("disconnected on purpose while {name} was Primary"),
                );
                self.commit(v, true, None);
            }
        }
        if self.peers[p].link.is_some() {
            self.close_link(p, ConnState::Disconnecting, reason);
        } else {
            self.set_connection(p, ConnState::StandAlone, reason);
            let peer = self.peers[p].node;
            self.out.push(Output::WantLink {
                peer,
                want: false,
                now: false,
            });
        }
    }
}

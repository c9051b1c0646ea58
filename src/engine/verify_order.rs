//! A verify from the order to its end: the peer's consent, what ends it early, the summary, and the
//! repair of what differs.
//!
//! Invariants:
//! * whoever ends it tells the other side, so neither stays in VerifyS or VerifyT;
//! * it runs only while both copies are UpToDate and no role changes;
//! * a repair never overwrites the leading side's copy: the other one is Outdated, on its disk, before
//!   the nodes compare their generations anew.

use crate::command::{Refusal, RefusalKind};
use crate::event::{DiskState, ReplState, Role, Severity};
use crate::handler::{HandlerKind, Then};
use crate::ids::{CommandId, NodeId};
use crate::metadata::superblock::MdFlags;
use crate::output::Channel;
use crate::peer::AskedWhat;
use crate::resource::Resource;
use crate::verify::Verify;
use crate::volume::Waiter;
use alloc::format;
use alloc::string::{String, ToString};
use twinblk_protocol::control::{Change, Message};

fn refusal(kind: RefusalKind, reason: String, way_out: &str) -> Refusal {
    Refusal {
        kind,
        reason,
        way_out: way_out.to_string(),
    }
}

impl Resource {
    /// `verify [--repair]`.
    pub(crate) fn order_verify(&mut self, id: CommandId, peer: Option<NodeId>, repair: bool) {
        let result = self.agreed_peer(peer).and_then(|p| {
            if self.is_verifying(p) {
                let reason = format!("a verify with {} runs already", self.peers[p].name);
                let way_out = "see `twinblk status`; `twinblk verify --stop RES` ends it";
                return Err(refusal(RefusalKind::State, reason, way_out));
            }
            self.may_verify(p).map(|()| p)
        });
        match result {
            Err(refusal) => self.done(id, Err(refusal)),
            Ok(p) => {
                let run = self.rng.uuid();
                let you_lead = self.peers[p].role == Role::Primary;
                let change = Change::Verify {
                    run,
                    you_lead,
                    repair,
                };
                let leads = !you_lead;
                self.ask(p, AskedWhat::Verify(id, run, leads, repair), change);
            }
        }
    }

    fn may_verify(&self, p: usize) -> Result<(), Refusal> {
        let peer = &self.peers[p];
        for (pv, volume) in peer.volumes.iter().zip(&self.volumes) {
            if !volume.is_up_to_date() || pv.disk != DiskState::UpToDate {
                return Err(refusal(
                    RefusalKind::NoUpToDateData,
                    format!(
                        "{} is {:?} here and {:?} on {}: only current copies can be compared",
                        volume.id, volume.disk, pv.disk, peer.name
                    ),
                    "wait for the resync: `twinblk wait-sync RES`",
                ));
            }
            if pv.replication != ReplState::Established || peer.is_parked() {
                return Err(refusal(
                    RefusalKind::State,
                    format!("the replication of {} is {:?}", volume.id, pv.replication),
                    "wait for the resync: `twinblk wait-sync RES`",
                ));
            }
        }
        Ok(())
    }

    /// The peer wants to compare. Answers why not.
    pub(crate) fn consent_to_verify(
        &mut self,
        p: usize,
        run: u64,
        leads: bool,
        repair: bool,
    ) -> Option<String> {
        if let Err(refusal) = self.may_verify(p) {
            return Some(refusal.reason);
        }
        let obstacle = (0..self.volumes.len()).find_map(|v| self.verify_obstacle(p, v, leads));
        if obstacle.is_none() {
            self.begin_verify(p, run, leads, repair, ReplState::VerifyT);
        }
        obstacle
    }

    /// The peer consented to the order given here.
    pub(crate) fn verify_granted(
        &mut self,
        p: usize,
        id: CommandId,
        run: u64,
        leads: bool,
        repair: bool,
    ) {
        self.begin_verify(p, run, leads, repair, ReplState::VerifyS);
        let then = if repair {
            "; what differs is repaired at the end"
        } else {
            ""
        };
        let text = format!(
            "verify with {} runs{then}; `twinblk status` shows how far it is and what it found",
            self.peers[p].name
        );
        self.done(id, Ok(text));
    }

    fn begin_verify(&mut self, p: usize, run: u64, leads: bool, repair: bool, state: ReplState) {
        let who = if leads {
            &self.cfg.me.name
        } else {
            &self.peers[p].name
        };
        let cause = format!("online verify begins, {who} compares");
        for v in 0..self.volumes.len() {
            let total = self.volumes[v].device_size();
            let verify = Verify::new(run, leads, repair, total, self.now);
            let pv = &mut self.peers[p].volumes[v];
            pv.verify = Some(verify);
            pv.verified = None;
            pv.repair_due = false;
            self.set_replication(p, v, state, &cause);
        }
    }

    /// What a verify must not go on with.
    fn verify_obstacle(&self, p: usize, v: usize, leads: bool) -> Option<String> {
        let me = &self.cfg.me.name;
        let peer = &self.peers[p];
        if self.stopping.is_some() {
            return Some(format!("{} goes down on {me}", self.cfg.name));
        }
        if self.role_change.is_some() {
            return Some(format!("the role of {me} changes"));
        }
        if leads && peer.role == Role::Primary || !leads && self.role == Role::Primary {
            return Some("another node is Primary than when it began".to_string());
        }
        if !self.volumes[v].is_up_to_date() {
            let (id, disk) = (self.volumes[v].id, self.volumes[v].disk);
            return Some(format!("{id} is {disk:?} on {me}"));
        }
        let disk = peer.volumes[v].disk;
        let id = self.volumes[v].id;
        (disk != DiskState::UpToDate).then(|| format!("{id} is {disk:?} on {}", peer.name))
    }

    /// Ends a verify that must not go on.
    pub(crate) fn check_verify(&mut self, p: usize, v: usize) {
        let Some(verify) = &self.peers[p].volumes[v].verify else {
            return;
        };
        let leads = verify.leads;
        if let Some(reason) = self.verify_obstacle(p, v, leads) {
            self.end_verify(p, &reason);
        }
    }

    /// `verify --stop`.
    pub(crate) fn order_verify_stop(&mut self, id: CommandId, peer: Option<NodeId>) {
        let chosen = match self.chosen_peers(peer) {
            Ok(chosen) => chosen,
            Err(refusal) => return self.done(id, Err(refusal)),
        };
        let mut text = String::new();
        for p in chosen {
            if self.is_verifying(p) {
                self.end_verify(p, "stopped by an administrator");
                for pv in &self.peers[p].volumes {
                    text.push_str(pv.verified.as_deref().unwrap_or_default());
                    text.push('\n');
                }
            }
        }
        if text.is_empty() {
            text.push_str("no verify runs");
        }
        self.done(id, Ok(text.trim_end().to_string()));
    }

    /// Ends the verify with a peer before its time, and tells it.
    fn end_verify(&mut self, p: usize, reason: &str) {
        let run = self.peers[p]
            .volumes
            .iter()
            .find_map(|v| v.verify.as_ref().map(|v| v.run));
        if let Some(run) = run {
            self.tell_verify_ended(p, run, reason);
            self.break_verify(p, reason);
        }
    }

    /// The peer is to end this verify, or not to begin it.
    fn tell_verify_ended(&mut self, p: usize, run: u64, reason: &str) {
        let message = Message::VerifyEnded {
            run,
            reason: reason.to_string(),
        };
        self.send_message(p, Channel::Data, &message);
    }

    /// The order was not answered in time, or is given up: the peer may have begun all the same.
    pub(crate) fn verify_given_up(&mut self, p: usize, run: u64, reason: &str) {
        for pv in &mut self.peers[p].volumes {
            pv.ended_verify = Some(run);
        }
        self.tell_verify_ended(p, run, reason);
    }

    /// The peer ended it.
    pub(crate) fn verify_ended_received(&mut self, p: usize, run: u64, reason: &str) {
        if let Some(link) = &mut self.peers[p].link
            && matches!(&link.deferred, Some((_, Change::Verify { run: r, .. })) if *r == run)
        {
            link.deferred = None;
        }
        let runs = |pv: &crate::peer::PeerVolume| pv.verify.as_ref().is_some_and(|v| v.run == run);
        if self.peers[p].volumes.iter().any(runs) {
            let reason = format!("{} says: {reason}", self.peers[p].name);
            self.break_verify(p, &reason);
        }
    }

    fn break_verify(&mut self, p: usize, reason: &str) {
        for v in 0..self.volumes.len() {
            self.drop_verify(p, v, reason);
            if crate::verify::is_verify(self.peers[p].volumes[v].replication) {
                self.set_replication(p, v, ReplState::Established, reason);
            }
        }
    }

    /// The verify of a volume is over before its end: says where it was.
    pub(crate) fn drop_verify(&mut self, p: usize, v: usize, reason: &str) {
        self.flush_differences(p, v);
        self.forget_ranges(p, v);
        let pv = &mut self.peers[p].volumes[v];
        let Some(verify) = pv.verify.take() else {
            return;
        };
        pv.ended_verify = Some(verify.run);
        let text = format!(
            "verify of {} with {} ended early ({reason}): {}",
            self.volumes[v].id,
            self.peers[p].name,
            Self::verify_words(&verify)
        );
        self.peers[p].volumes[v].verified = Some(text.clone());
        self.incident(Severity::Warning, text);
    }

    /// Leading: everything is compared.
    pub(crate) fn finish_verify(&mut self, p: usize, v: usize) {
        let volume = self.volumes[v].id.0;
        let Some(verify) = &self.peers[p].volumes[v].verify else {
            return;
        };
        let message = Message::VerifyFinished {
            volume,
            run: verify.run,
            checked: verify.checked,
            different: verify.different,
        };
        self.send_message(p, Channel::Data, &message);
        self.verify_over(p, v);
    }

    /// Following: the leading side has compared everything.
    pub(crate) fn verify_finished_received(
        &mut self,
        p: usize,
        v: usize,
        run: u64,
        checked: u64,
        different: u64,
    ) {
        let pv = &self.peers[p].volumes[v];
        match &pv.verify {
            Some(verify) if verify.run == run && !verify.leads => {
                if (verify.checked, verify.different) != (checked, different) {
                    let text = format!(
                        "a verify of {checked} bytes with {different} that differ, of which {} and \
                         {} were told",
                        verify.checked, verify.different
                    );
                    return self.protocol_error(p, text);
                }
                let repair = verify.repair && different > 0;
                self.peers[p].volumes[v].repair_due = repair;
                self.verify_over(p, v);
                self.begin_repair(p);
            }
            _ if pv.ended_verify == Some(run) => {}
            _ => self.protocol_error(p, "the end of a verify that does not run".to_string()),
        }
    }

    fn verify_over(&mut self, p: usize, v: usize) {
        self.flush_differences(p, v);
        let Some(verify) = self.peers[p].volumes[v].verify.take() else {
            return;
        };
        let (id, name) = (self.volumes[v].id, self.peers[p].name.clone());
        let (severity, then) = match (verify.different, verify.repair) {
            (0, _) => (Severity::Info, ""),
            (_, true) => (Severity::Warning, "; they are repaired now"),
            (_, false) => (
                Severity::Warning,
                "; the next connect copies them: `twinblk disconnect RES`, then `twinblk connect RES`",
            ),
        };
        let text = format!(
            "verify of {id} with {name} finished: {}{then}",
            Self::verify_words(&verify)
        );
        if verify.leads && verify.different > 0 {
            self.call_handler(HandlerKind::OutOfSync, Some(p), Some(id), Then::Nothing);
        }
        let pv = &mut self.peers[p].volumes[v];
        pv.ended_verify = Some(verify.run);
        pv.verified = Some(text.clone());
        self.incident(severity, text.clone());
        self.set_replication(p, v, ReplState::Established, &text);
    }

    /// Following: this copy is the one to be repaired. That is on its disk before the nodes compare
    /// their generations anew, so that the resync goes this way and no other.
    fn begin_repair(&mut self, p: usize) {
        let due = |pv: &crate::peer::PeerVolume| pv.repair_due;
        if self.is_verifying(p) || !self.peers[p].volumes.iter().any(due) {
            return;
        }
        let name = self.peers[p].name.clone();
        let (node, link) = (self.peers[p].node, self.peers[p].link_number().unwrap_or(0));
        let moves = self.role_change.is_some() || self.role == Role::Primary;
        for v in 0..self.volumes.len() {
            let due = core::mem::take(&mut self.peers[p].volumes[v].repair_due);
            if !due || moves || !self.volumes[v].is_up_to_date() {
                continue;
            }
            self.set_flags(v, MdFlags::WAS_UP_TO_DATE, false);
            let reason = format!("verify found differences; they are repaired from {name}");
            self.set_disk(v, DiskState::Outdated, reason);
            self.commit(v, true, Some(Waiter::Repair(node, link)));
        }
        if moves {
            let text = "verify: the differences are not repaired: the role changes";
            self.incident(Severity::Warning, text.to_string());
        }
    }

    /// Following: that this copy is to be repaired is on its disk.
    pub(crate) fn repair_ready(&mut self) {
        let waits = |w: &Waiter| matches!(w, Waiter::Repair(..));
        if !self.volumes.iter().any(|v| v.meta.has_waiter(waits)) {
            self.renegotiate("the differences that verify found are repaired");
        }
    }
}

//! Becoming Primary and Secondary.
//!
//! Promotion: local checks → consent of every connected peer, and everything a lost Primary sent is
//! on the disk → the PrimaryIndicator is on the disk
//! of every volume → Primary. Demotion: no client holds the export → writes are drained, flushed
//! here and on the peers → bitmap and cleared indicator are on the disk → Secondary.

use crate::command::{CommandResult, Refusal, RefusalKind};
use crate::event::{DiskState, ReplState, Role, Severity, What};
use crate::ids::CommandId;
use crate::metadata::superblock::MdFlags;
use crate::output::Output;
use crate::peer::AskedWhat;
use crate::resource::{Op, Resource};
use crate::states;
use crate::suspend::Reason;
use crate::volume::Waiter;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use twinblk_protocol::control::Change;

/// A change of the role under way.
#[derive(Debug)]
pub(crate) struct RoleChange {
    pub(crate) command: Option<CommandId>,
    pub(crate) step: Step,
}

/// Where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Waiting for the peers' consent.
    Consent { force: bool },
    /// The indicator is on its way to the disks of so many volumes.
    Promoting { left: usize, force: bool },
    /// Started writes are ending.
    Draining,
    /// Local flushes and peers' barriers: so many local flushes left.
    Flushing { left: usize },
    /// Metadata on their way to the disks of so many volumes.
    Demoting { left: usize },
}

fn refuse(kind: RefusalKind, reason: impl Into<String>, way_out: impl Into<String>) -> Refusal {
    Refusal {
        kind,
        reason: reason.into(),
        way_out: way_out.into(),
    }
}

impl Resource {
    /// `primary [--force]`.
    pub(crate) fn promote(&mut self, id: CommandId, force: bool) {
        if self.role == Role::Primary && !self.has_access() {
            let name = &self.cfg.name;
            let attach = match self.volumes.iter().any(|v| v.disk == DiskState::Diskless) {
                true => format!("mend the disk and run `twinblk attach {name}`, or "),
                false => String::new(),
            };
            let refusal = refuse(
                RefusalKind::NoUpToDateData,
                format!(
                    "{} is Primary, and has no current copy within reach",
                    self.cfg.me.name
                ),
                format!(
                    "{attach}connect the peer that has it; or give it up: stop what uses the \
                     device, run `twinblk secondary {name}`, and promote the node whose copy is to \
                     count (`twinblk primary --force {name}`)"
                ),
            );
            return self.done(id, Err(refusal));
        }
        if self.role == Role::Primary {
            return self.done(id, Ok(format!("{} is already Primary", self.cfg.me.name)));
        }
        if self.promotes_already(id) {
            return;
        }
        if self.stopping.is_none() && self.fences_first(id, force) {
            return;
        }
        if let Err(refusal) = self.may_promote(force, false) {
            return self.done(id, Err(refusal));
        }
        self.role_change = Some(RoleChange {
            command: Some(id),
            step: Step::Consent { force },
        });
        for p in 0..self.peers.len() {
            if self.peers[p].is_agreed()
                && !crate::sabotage::is(crate::sabotage::Mistake::PromoteWithoutAsking)
            {
                self.ask(p, AskedWhat::Promote, Change::Promote);
            }
        }
        self.promotion_consent();
    }

    /// What stands against a promotion. Before a connected peer is `asked`, what it last said of its
    /// role does not count: it may just have been demoted, and will say so itself.
    pub(crate) fn may_promote(&self, force: bool, asked: bool) -> Result<(), Refusal> {
        self.may_promote_when(force, asked, false)
    }

    /// The same; when every peer that is missing is `fenced`, a copy that is Consistent is current.
    pub(crate) fn may_promote_when(
        &self,
        force: bool,
        asked: bool,
        fenced: bool,
    ) -> Result<(), Refusal> {
        let name = &self.cfg.name;
        if self.stopping.is_some() {
            return Err(refuse(
                RefusalKind::State,
                "the resource is going down",
                format!("when it is down: `twinblk up {name}`"),
            ));
        }
        for peer in &self.peers {
            if crate::sabotage::is(crate::sabotage::Mistake::PromoteWithoutAsking) {
                continue;
            }
            if peer.role == Role::Primary && (asked || !peer.is_agreed()) {
                return Err(refuse(
                    RefusalKind::State,
                    format!("{} is Primary", peer.name),
                    format!("run `twinblk secondary {name}` on {} first", peer.name),
                ));
            }
            if peer.link.as_ref().is_some_and(|l| l.granted.is_some()) {
                return Err(refuse(
                    RefusalKind::State,
                    format!("{} is being promoted at this moment", peer.name),
                    "look at `twinblk status` and try again if it did not become Primary",
                ));
            }
        }
        for (v, volume) in self.volumes.iter().enumerate() {
            if volume.disk == DiskState::Attaching {
                return Err(refuse(
                    RefusalKind::NoDisk,
                    format!("{} is still being attached", volume.id),
                    "try again when `twinblk status` shows its disk",
                ));
            }
            if !volume.has_disk() && self.server(v).is_none() {
                return Err(refuse(
                    RefusalKind::NoDisk,
                    format!(
                        "{} has no usable disk here: {}",
                        volume.id, volume.disk_reason
                    ),
                    format!(
                        "mend the disk and run `twinblk attach {name}`, or connect a peer that has \
                         current data"
                    ),
                ));
            }
            if !volume.has_disk() {
                continue;
            }
            if volume.disk == DiskState::UpToDate {
                self.not_about_to_be_overwritten(v)?;
                continue;
            }
            let better = self
                .peers
                .iter()
                .find(|p| p.volumes[v].disk == DiskState::UpToDate);
            if let Some(peer) = better {
                return Err(refuse(
                    RefusalKind::NoUpToDateData,
                    format!(
                        "{} is {:?} here, {} has current data",
                        volume.id, volume.disk, peer.name
                    ),
                    format!("wait for the resync: `twinblk wait-sync {name}`"),
                ));
            }
            let fenced = fenced || crate::sabotage::is(crate::sabotage::Mistake::PromoteUnfenced);
            if fenced && volume.disk == DiskState::Consistent {
                continue;
            }
            if !force {
                return Err(refuse(
                    RefusalKind::NoUpToDateData,
                    format!(
                        "{} is {:?} here and no UpToDate copy is in reach: {}",
                        volume.id, volume.disk, volume.disk_reason
                    ),
                    format!(
                        "connect a node that has current data, or, if there is none, declare this \
                         copy current with `twinblk primary --force {name}` (whatever another \
                         copy has that this one has not is given up)"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Both sides agreed that this disk is a resync target, and it does not say so yet.
    fn not_about_to_be_overwritten(&self, v: usize) -> Result<(), Refusal> {
        let waits = |p: &&crate::peer::Peer| p.volumes[v].replication == ReplState::WFBitMapT;
        let Some(source) = self.peers.iter().find(waits) else {
            return Ok(());
        };
        Err(refuse(
            RefusalKind::NoUpToDateData,
            format!(
                "{} is about to be brought up to date from {}",
                self.volumes[v].id, source.name
            ),
            format!("wait for the resync: `twinblk wait-sync {}`", self.cfg.name),
        ))
    }

    /// Goes on once no peer's answer is missing.
    pub(crate) fn promotion_consent(&mut self) {
        let Some(RoleChange {
            step: Step::Consent { force },
            ..
        }) = self.role_change
        else {
            return;
        };
        let waiting = self.peers.iter().any(|p| {
            p.link
                .as_ref()
                .and_then(|l| l.asked.as_ref())
                .is_some_and(|a| a.what == AskedWhat::Promote)
        });
        // What a lost Primary sent is still on its way to the disk: it belongs to the copy that is
        // promoted, and must not come over what clients write afterwards.
        let drained = self.receivers_idle()
            || crate::sabotage::is(crate::sabotage::Mistake::PromoteBeforeDrained);
        // Nothing of an earlier reign is still on its way into the log, nor an earlier attempt's indicator
        // on its way to the disk.
        let idle = |v: &crate::volume::Volume| v.log_is_idle() && v.meta.is_idle();
        if waiting || !drained || !self.volumes.iter().all(idle) {
            return;
        }
        if self.fences_after_all(force) {
            return;
        }
        // The world may have changed while the peers were asked.
        if let Err(refusal) = self.may_promote(force, true) {
            return self.end_role_change(Err(refusal));
        }
        let left = self.volumes.len();
        if let Some(change) = &mut self.role_change {
            change.step = Step::Promoting { left, force };
        }
        for v in 0..left {
            if !self.volumes[v].has_disk() {
                // Its clients are served from the peer's copy.
                self.volumes[v].remote = Some(crate::remote::Remote::default());
                continue;
            }
            if self.volumes[v].disk != DiskState::UpToDate {
                let fresh = self.rng.uuid();
                let peers = self.peers.iter().map(|p| p.node);
                self.volumes[v].generations.force_new_current(fresh, peers);
                for p in &mut self.peers {
                    p.volumes[v].lacks_current = true;
                }
                self.set_flags(v, MdFlags::CONSISTENT, true);
            }
            self.set_flags(v, MdFlags::WAS_UP_TO_DATE, true);
            self.set_flags(v, MdFlags::PRIMARY_INDICATOR, true);
            self.begin_reign(v);
            self.volumes[v].generations.set_primary_bit(true);
            self.remember_role_everywhere(v, Role::Primary);
            let size = self.volumes[v].device_size();
            self.set_agreed_size(v, size);
            self.commit(v, true, Some(Waiter::Promoted));
        }
    }

    /// The indicator of a volume is on its disk.
    pub(crate) fn promoted(&mut self) {
        let Some(change) = &mut self.role_change else {
            return;
        };
        let Step::Promoting { left, force } = &mut change.step else {
            return;
        };
        *left -= 1;
        if *left > 0 {
            return;
        }
        let force = *force;
        let mut renegotiate = false;
        for v in 0..self.volumes.len() {
            if self.volumes[v].disk != DiskState::UpToDate && self.volumes[v].remote.is_none() {
                renegotiate = true;
                let reason = "declared current by `primary --force`".to_string();
                self.set_disk(v, DiskState::UpToDate, reason);
            }
        }
        self.set_role(
            Role::Primary,
            if force { "primary --force" } else { "promoted" },
        );
        let text = format!("{} is Primary now", self.cfg.me.name);
        self.end_role_change(Ok(text));
        self.tell_state();
        self.fence_missing();
        self.leads_now();
        if renegotiate {
            self.renegotiate("the data of this node were declared current");
        }
    }

    /// `secondary`.
    pub(crate) fn demote(&mut self, id: Option<CommandId>) {
        if self.role != Role::Primary {
            // A promotion that waits for handlers would come later than this answer, and belie it.
            self.forget_waiting_promotion("`secondary` was ordered meanwhile", "");
            if let Some(id) = id {
                self.done(id, Ok(format!("{} is already Secondary", self.cfg.me.name)));
            }
            return;
        }
        if let Err(refusal) = self.may_demote() {
            if let Some(id) = id {
                self.done(id, Err(refusal));
            }
            return;
        }
        if self.suspended.only(Reason::NoData) {
            // Nobody is left who could wait for a copy.
            self.fail_suspended("this node is demoted");
        }
        self.end_quiet();
        self.role_change = Some(RoleChange {
            command: id,
            step: Step::Draining,
        });
    }

    /// What stands against a demotion.
    pub(crate) fn may_demote(&self) -> Result<(), Refusal> {
        if let Some(refusal) = self.in_use() {
            return Err(refusal);
        }
        // Who has no clients (see above) has nobody who could wait for a copy: what is left over was
        // answered to nobody, and is failed when the demotion begins.
        if self.suspended.any() && !self.suspended.only(Reason::NoData) {
            return Err(refuse(
                RefusalKind::State,
                format!("I/O is suspended ({})", self.suspended.words()),
                format!(
                    "end that first: `twinblk resume-io {0}`, or give clients errors with \
                     `twinblk secondary --force {0}`",
                    self.cfg.name
                ),
            ));
        }
        Ok(())
    }

    /// `secondary --force`: clients get errors, at once.
    pub(crate) fn demote_by_force(&mut self, id: CommandId) {
        if self.role == Role::Primary {
            self.clients = crate::slots::Slots::default();
            self.out.push(Output::CloseClients);
            self.fail_suspended("given up by `secondary --force`");
            // What has begun ends as it does; what waits for its turn gets an error.
            self.give_up_waiting();
        }
        self.demote(Some(id));
    }

    /// Who holds the export, as a refusal.
    pub(crate) fn in_use(&self) -> Option<Refusal> {
        let names: Vec<&str> = self.clients.iter().map(|(_, c)| c.name.as_str()).collect();
        if names.is_empty() {
            return None;
        }
        Some(refuse(
            RefusalKind::InUse,
            format!(
                "{} client(s) hold the export: {}",
                names.len(),
                names.join(", ")
            ),
            "end them (unmount the file system, disconnect the NBD client), then try again",
        ))
    }

    /// Drives a demotion.
    pub(crate) fn demotion_progress(&mut self) {
        match self.role_change.as_ref().map(|c| c.step) {
            Some(Step::Draining) if self.started == 0 && self.requests.len() == 0 => {
                let flushed: Vec<usize> = (0..self.volumes.len())
                    .filter(|&v| self.volumes[v].has_disk())
                    .collect();
                let left = flushed.len();
                for v in flushed {
                    let op = self.new_op(Op::DemoteFlush(v));
                    self.out.push(Output::DiskFlush {
                        op,
                        volume: self.volumes[v].id,
                    });
                }
                for p in 0..self.peers.len() {
                    if !self.peers[p].log.is_empty() {
                        self.send_barrier(p, true);
                    }
                }
                if let Some(change) = &mut self.role_change {
                    change.step = Step::Flushing { left };
                }
            }
            Some(Step::Flushing { left: 0 }) => {
                let owed = self.peers.iter().any(|p| p.log.application_writes() > 0);
                let bumping = self.volumes.iter().any(|v| v.bump_running);
                let logging = self.volumes.iter().any(|v| !v.log_is_idle());
                if owed || bumping || logging {
                    return;
                }
                let left = self.volumes.len();
                if let Some(change) = &mut self.role_change {
                    change.step = Step::Demoting { left };
                }
                for v in 0..left {
                    self.set_flags(v, MdFlags::PRIMARY_INDICATOR, false);
                    self.volumes[v].generations.set_primary_bit(false);
                    self.remember_role_everywhere(v, Role::Secondary);
                    let pages = !crate::sabotage::is(crate::sabotage::Mistake::DemoteWithoutBitmap);
                    self.commit(v, pages, Some(Waiter::Demoted));
                }
            }
            _ => {}
        }
    }

    /// A flush of the demotion ended.
    pub(crate) fn demote_flushed(&mut self, v: usize, result: Result<(), i32>) {
        if let Err(errno) = result {
            self.disk_failed(v, errno, "a flush");
        }
        if let Some(RoleChange {
            step: Step::Flushing { left },
            ..
        }) = &mut self.role_change
        {
            *left -= 1;
        }
    }

    /// The metadata of a volume say Secondary.
    pub(crate) fn demoted(&mut self) {
        let Some(RoleChange {
            step: Step::Demoting { left },
            ..
        }) = &mut self.role_change
        else {
            return;
        };
        *left -= 1;
        if *left > 0 {
            return;
        }
        self.set_role(Role::Secondary, "demoted");
        self.end_remote();
        let text = format!("{} is Secondary now", self.cfg.me.name);
        self.end_role_change(Ok(text));
        self.tell_state();
    }

    /// The change is over, one way or the other.
    pub(crate) fn end_role_change(&mut self, result: CommandResult) {
        let Some(change) = self.role_change.take() else {
            return;
        };
        self.evicting = false;
        let commit = result.is_ok();
        if !commit && self.role != Role::Primary {
            if matches!(change.step, Step::Promoting { .. }) {
                self.take_promotion_back();
            }
            self.reign_is_over();
        }
        self.finish_asked(AskedWhat::Promote, commit);
        if let Some(id) = change.command {
            self.done(id, result);
        }
    }

    /// Of several volumes some may say Primary on their disk already, or be about to be served from a
    /// peer: none of that is true any more.
    fn take_promotion_back(&mut self) {
        self.end_remote();
        for v in 0..self.volumes.len() {
            if !self.volumes[v].has_disk() {
                continue;
            }
            self.set_flags(v, MdFlags::PRIMARY_INDICATOR, false);
            self.volumes[v].generations.set_primary_bit(false);
            self.remember_role_everywhere(v, Role::Secondary);
            self.commit(v, true, None);
        }
        // A peer that was to serve need not.
        self.tell_state();
    }

    /// Metadata could not be written: the change cannot be carried out.
    pub(crate) fn fail_role_change(&mut self, reason: &str) {
        let way_out = "mend the disk, then `twinblk attach RES`";
        self.end_role_change(Err(refuse(RefusalKind::NoDisk, reason, way_out)));
    }

    pub(crate) fn set_role(&mut self, role: Role, cause: &str) {
        let old = core::mem::replace(&mut self.role, role);
        if role == Role::Primary {
            // Whoever is promoted writes what nobody has given up.
            let mut forgot = false;
            for peer in &mut self.peers {
                peer.gives_up = false;
                peer.gives_way = false;
                forgot |= core::mem::take(&mut peer.discard_my_data);
                peer.save_to = None;
            }
            if forgot {
                let text = "the order to discard this node's data does not count any more: it was promoted";
                self.incident(Severity::Warning, text.to_string());
            }
        } else {
            self.reign_is_over();
        }
        if old != role {
            self.role_since = self.now;
            debug_assert!(
                states::is_known(states::ROLE_CHANGES, &old, &role),
                "{old:?} to {role:?}: {cause}"
            );
            self.event(What::Role(old, role), Severity::Info, cause.to_string());
        }
    }
}

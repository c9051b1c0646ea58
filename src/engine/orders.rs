//! An administrator's orders, one function each. Orders that would change what a running handshake
//! has already told the peer wait until it is over.

use crate::command::{Command, CommandResult, Refusal, RefusalKind};
use crate::event::{DiskState, Role, Severity};
use crate::ids::{ClientId, CommandId, NodeId, VolumeId};
use crate::metadata::UUID_JUST_CREATED;
use crate::output::Output;
use crate::peer::AskedWhat;
use crate::resource::{Client, Resource, Stopping};
use crate::slots::Key;
use crate::time::{Duration, Instant};
use crate::volume::Waiter;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use twinblk_protocol::control::Change;

/// How long a dry run waits for the peer.
const DRY_RUN_TIME: Duration = Duration::from_secs(20);

fn refuse<T>(kind: RefusalKind, reason: String, way_out: &str) -> Result<T, Refusal> {
    Err(Refusal {
        kind,
        reason,
        way_out: way_out.to_string(),
    })
}

impl Resource {
    /// An order arrived.
    pub(crate) fn command(&mut self, id: CommandId, command: Command) {
        // A connection that is ordered while another order still parts from the peer would be parted with too.
        let parts = !self.leaving.is_empty()
            && matches!(
                command,
                Command::Connect { .. } | Command::DiscardSaving { .. }
            );
        let waits = self.peers.iter().any(|p| p.freezes()) || self.role_change.is_some() || parts;
        if waits && !matches!(command, Command::Stop { .. }) {
            self.waiting_commands.push_back((id, command));
            return;
        }
        let goes_on = matches!(
            command,
            Command::Stop { .. } | Command::SetOptions(_) | Command::VerifyStop { .. }
        );
        if self.stopping.is_some() && !goes_on {
            // A connection that is made now would have to be parted with again, and so on.
            let text = format!("{} is being taken down", self.cfg.name);
            let way_out = format!("when it is down, `twinblk up {}`", self.cfg.name);
            return self.done(id, refuse(RefusalKind::State, text, &way_out));
        }
        match command {
            Command::Primary { force } => {
                // Whoever orders it wants it to stay so.
                self.promoted_by_order();
                self.promote(id, force);
            }
            Command::AutoPromote => self.auto_promote(id),
            Command::AutoDemote => self.auto_demote(id),
            Command::Secondary => self.demote(Some(id)),
            Command::SecondaryByForce => self.demote_by_force(id),
            Command::Outdate => self.order_outdate(id),
            Command::Connect {
                peer,
                discard_my_data,
                dry_run,
            } => {
                self.order_connect(id, peer, discard_my_data, dry_run, None);
            }
            Command::DiscardSaving { peer, file } => {
                self.order_connect(id, peer, true, false, Some(file));
            }
            Command::Disconnect { peer } => self.order_disconnect(id, peer),
            Command::Invalidate => self.order_invalidate(id),
            Command::InvalidateRemote { peer } => self.order_invalidate_remote(id, peer),
            Command::Verify { peer, repair } => self.order_verify(id, peer, repair),
            Command::VerifyStop { peer } => self.order_verify_stop(id, peer),
            Command::Resize { size, force } => self.order_resize(id, size, force),
            Command::NewCurrentUuid { clear_bitmap } => self.order_new_uuid(id, clear_bitmap),
            Command::Detach { force } => self.order_detach(id, force),
            Command::SuspendIo => self.order_suspend(id),
            Command::ResumeIo => self.order_resume(id),
            Command::SetOptions(options) => {
                let fencing = self.cfg.options.fencing;
                self.cfg.options = *options;
                self.fencing_changed(fencing);
                self.pass_on_changed();
                self.done(id, Ok(String::new()));
            }
            Command::Stop { force } => self.order_stop(id, force),
        }
    }

    /// Takes up orders that waited.
    pub(crate) fn run_waiting_commands(&mut self) {
        while self.role_change.is_none()
            && self.leaving.is_empty()
            && !self.peers.iter().any(|p| p.freezes())
        {
            let Some((id, command)) = self.waiting_commands.pop_front() else {
                return;
            };
            self.command(id, command);
        }
    }

    /// Answers an order.
    pub(crate) fn done(&mut self, id: CommandId, result: CommandResult) {
        self.out.push(Output::CommandDone { id, result });
    }

    pub(crate) fn chosen_peers(&self, peer: Option<NodeId>) -> Result<Vec<usize>, Refusal> {
        let chosen: Vec<usize> = (0..self.peers.len())
            .filter(|&p| peer.is_none_or(|node| self.peers[p].node == node))
            .collect();
        if chosen.is_empty() {
            let text = "the resource has no such peer".to_string();
            return refuse(RefusalKind::Unknown, text, "see `twinblk status`");
        }
        Ok(chosen)
    }

    fn order_connect(
        &mut self,
        id: CommandId,
        peer: Option<NodeId>,
        discard: bool,
        dry_run: bool,
        save_to: Option<String>,
    ) {
        let chosen = match self.chosen_peers(peer) {
            Ok(chosen) => chosen,
            Err(refusal) => return self.done(id, Err(refusal)),
        };
        if let Some(v) = self
            .volumes
            .iter()
            .find(|v| v.disk == DiskState::Attaching || v.local.is_none())
        {
            let text = format!("{} has no usable disk: {}", v.id, v.disk_reason);
            let refusal = refuse(RefusalKind::NoDisk, text, "mend the disk first");
            return self.done(id, refusal);
        }
        if discard && self.role == Role::Primary && !dry_run {
            let text = format!("{} is Primary: its data are in use", self.cfg.me.name);
            let way_out = format!("run `twinblk secondary {}` first", self.cfg.name);
            return self.done(id, refuse(RefusalKind::State, text, &way_out));
        }
        if dry_run {
            let p = chosen[0];
            if self.peers[p].link.is_some() {
                let text = format!("already connected to {}: nothing to do", self.peers[p].name);
                return self.done(id, Ok(text));
            }
            let until = self.now + DRY_RUN_TIME;
            let peer = &mut self.peers[p];
            if peer.dry_run.is_some() {
                let text = "another dry run is under way".to_string();
                let way_out = "wait for its answer, then try again";
                return self.done(id, refuse(RefusalKind::State, text, way_out));
            }
            peer.before_dry_run = (peer.want, peer.discard_my_data);
            peer.discard_my_data = discard;
            peer.dry_run = Some((id, until));
            self.want_peer(p);
            return;
        }
        let mut text = String::new();
        for p in chosen {
            let name = self.peers[p].name.clone();
            if self.peers[p].link.is_some() {
                text.push_str(&format!("already connected to {name}\n"));
                continue;
            }
            self.peers[p].discard_my_data = discard;
            self.peers[p].gives_up = false;
            self.peers[p].gives_way = false;
            self.peers[p].save_to.clone_from(&save_to);
            if let Some(file) = &save_to {
                text.push_str(&format!("what is overwritten is saved to {file} first\n"));
            }
            if discard {
                let node = self.peers[p].node;
                let bytes: u64 = self.volumes.iter().map(|v| v.out_of_sync(node)).sum();
                text.push_str(&format!(
                    "if {name} and this node have both changed since they last were in sync, \
                     {bytes} bytes changed here will be overwritten\n"
                ));
            }
            self.peers[p].want = false;
            self.want_peer(p);
            text.push_str(&format!("connecting to {name}\n"));
        }
        self.done(id, Ok(text.trim_end().to_string()));
    }

    fn order_disconnect(&mut self, id: CommandId, peer: Option<NodeId>) {
        let chosen = match self.chosen_peers(peer) {
            Ok(chosen) => chosen,
            Err(refusal) => return self.done(id, Err(refusal)),
        };
        for p in chosen {
            self.peers[p].want = false;
            self.peers[p].gives_up = false;
            self.peers[p].gives_way = false;
            self.part(p);
        }
        self.leaving.push(id);
    }

    /// Parts with a peer: after asking it when connected, at once otherwise.
    fn part(&mut self, p: usize) {
        if self.peers[p].is_agreed() {
            self.ask(p, AskedWhat::Disconnect, Change::Disconnect);
        } else {
            self.leave(p);
        }
    }

    /// Answers `disconnect` orders once every peer that was to be left is left.
    pub(crate) fn finish_leaving(&mut self) {
        let still = self.peers.iter().any(|p| !p.want && p.link.is_some());
        if !still {
            for id in core::mem::take(&mut self.leaving) {
                self.done(id, Ok("disconnected".to_string()));
            }
        }
    }

    pub(crate) fn agreed_peer(&self, peer: Option<NodeId>) -> Result<usize, Refusal> {
        let chosen = self.chosen_peers(peer)?;
        let agreed = |p: &&usize| self.peers[**p].is_agreed();
        let compared = |p: &&usize| agreed(p) && !self.peers[**p].is_parked();
        match chosen.iter().find(compared).or(chosen.iter().find(agreed)) {
            Some(&p) => Ok(p),
            None => refuse(
                RefusalKind::State,
                "no peer is connected".to_string(),
                "connect first (`twinblk connect`, `twinblk wait-connect`)",
            ),
        }
    }

    fn order_invalidate(&mut self, id: CommandId) {
        let source = self
            .peers
            .iter()
            .find(|p| {
                let current = |v: &crate::peer::PeerVolume| v.disk == DiskState::UpToDate;
                p.is_agreed() && !p.is_parked() && p.volumes.iter().all(current)
            })
            .map(|p| p.node);
        let result = self.agreed_peer(source).and_then(|p| {
            if self.role == Role::Primary {
                let text = format!("{} is Primary: its data are in use", self.cfg.me.name);
                let way_out = format!("run `twinblk secondary {}` first", self.cfg.name);
                return refuse(RefusalKind::State, text, &way_out);
            }
            let bad = |v: &crate::peer::PeerVolume| v.disk != DiskState::UpToDate;
            if self.peers[p].volumes.iter().any(bad) {
                let text = format!("{} has no UpToDate data to sync from", self.peers[p].name);
                return refuse(RefusalKind::NoUpToDateData, text, "see `twinblk status`");
            }
            Ok(p)
        });
        match result {
            Err(refusal) => self.done(id, Err(refusal)),
            Ok(p) => {
                for v in 0..self.volumes.len() {
                    self.mark_worthless(v, p, "invalidated by an administrator");
                    let text = "the local data are invalid now; a full sync starts";
                    self.commit(v, true, Some(Waiter::Renegotiate(id, text)));
                }
            }
        }
    }

    fn order_invalidate_remote(&mut self, id: CommandId, peer: Option<NodeId>) {
        let result = self.agreed_peer(peer).and_then(|p| {
            if self.volumes.iter().any(|v| !v.is_up_to_date()) {
                let text = "this node has no UpToDate data to sync from".to_string();
                return refuse(RefusalKind::NoUpToDateData, text, "see `twinblk status`");
            }
            Ok(p)
        });
        match result {
            Err(refusal) => self.done(id, Err(refusal)),
            Ok(p) => self.ask(p, AskedWhat::InvalidatePeer(id), Change::InvalidatePeer),
        }
    }

    fn order_new_uuid(&mut self, id: CommandId, clear_bitmap: bool) {
        if !clear_bitmap {
            let text =
                "without --clear-bitmap there is nothing to do by hand: a new generation is \
                        made when one is needed"
                    .to_string();
            return self.done(id, refuse(RefusalKind::Other, text, "add --clear-bitmap"));
        }
        let result = self.agreed_peer(None).and_then(|p| {
            let created = self
                .volumes
                .iter()
                .all(|v| v.generations.current & !1 == UUID_JUST_CREATED);
            if !created || self.role == Role::Primary {
                let text =
                    "the disk is not just created: its copies cannot be declared equal".to_string();
                return refuse(
                    RefusalKind::State,
                    text,
                    "use `twinblk invalidate` or `invalidate-remote` for a full sync",
                );
            }
            if self.volumes.len() > 1 || self.is_group() {
                let text =
                    "not yet possible for a resource with several volumes, or with more than \
                            two nodes"
                        .to_string();
                return refuse(RefusalKind::Other, text, "let the initial sync run");
            }
            Ok(p)
        });
        match result {
            Err(refusal) => self.done(id, Err(refusal)),
            Ok(p) => {
                let current = self.rng.uuid();
                let volume = self.volumes[0].id.0;
                let change = Change::DeclareEqual { volume, current };
                self.ask(p, AskedWhat::DeclareEqual(id, current), change);
            }
        }
    }

    fn order_stop(&mut self, id: CommandId, force: bool) {
        if let (Some(refusal), false) = (self.in_use(), force) {
            return self.done(id, Err(refusal));
        }
        if force {
            // Clients get errors from now on; the driver closes their connections.
            self.clients = crate::slots::Slots::default();
        }
        self.stopping = Some(Stopping {
            command: id,
            parted: false,
            written: false,
            left: 0,
        });
        let way_out = format!("when it is down, `twinblk up {}`", self.cfg.name);
        self.forget_waiting_promotion("the resource is going down", &way_out);
        self.fail_suspended("the resource goes down");
        self.thaw();
        while let Some(key) = self.logged.pop_front().or_else(|| self.gated.pop_front()) {
            self.fail_unstarted(key);
        }
        for v in 0..self.volumes.len() {
            self.fail_cold(v);
        }
    }

    /// Drives a stop: demote → part → write → out.
    pub(crate) fn stop_progress(&mut self) {
        let Some(stopping) = &self.stopping else {
            return;
        };
        let attaching = |v: &crate::volume::Volume| v.disk == DiskState::Attaching;
        if self.role_change.is_some() || self.volumes.iter().any(attaching) {
            return;
        }
        if self.role == Role::Primary {
            // Also after a promotion that was under way when the order came.
            return self.demote(None);
        }
        if !stopping.parted {
            if let Some(stopping) = &mut self.stopping {
                stopping.parted = true;
            }
            for p in 0..self.peers.len() {
                self.peers[p].want = false;
                self.part(p);
            }
        }
        let linked = self.peers.iter().any(|p| p.link.is_some());
        if linked || !self.receivers_idle() || self.chunks.len() + self.ranges.len() > 0 {
            return;
        }
        let Some(stopping) = &mut self.stopping else {
            return;
        };
        if !stopping.written {
            stopping.written = true;
            stopping.left = self.volumes.len();
            for v in 0..self.volumes.len() {
                self.commit(v, true, Some(Waiter::Stopped));
            }
        }
    }

    /// The last metadata of a volume are on the disk.
    pub(crate) fn stop_written(&mut self) {
        let Some(stopping) = &mut self.stopping else {
            return;
        };
        stopping.left = stopping.left.saturating_sub(1);
        if stopping.left == 0 {
            let id = stopping.command;
            self.done(id, Ok(format!("{} is down", self.cfg.name)));
            self.out.push(Output::Stopped);
        }
    }

    /// Time limits of orders.
    pub(crate) fn orders_tick(&mut self, p: usize) {
        let peer = &mut self.peers[p];
        if peer.dry_run.is_some_and(|(_, until)| self.now >= until)
            && let Some(id) = peer.end_dry_run()
        {
            let text = format!("{} could not be reached: {}", peer.name, peer.reason);
            let way_out = "start the peer, or, if it is StandAlone, `twinblk connect` there; then \
                           try again";
            let refusal = refuse(RefusalKind::Timeout, text, way_out);
            self.done(id, refusal);
            if !self.peers[p].want {
                self.leave(p);
            }
        }
    }

    /// When [`Self::orders_tick`] has something to do.
    pub(crate) fn orders_deadline(&self, p: usize) -> Option<Instant> {
        self.peers[p].dry_run.map(|(_, until)| until)
    }

    /// A client opens the export of a volume. Refused while this node is not Primary.
    pub fn open_export(&mut self, volume: VolumeId, client: String) -> Result<ClientId, Refusal> {
        if self.volume_index(volume).is_none() {
            return refuse(RefusalKind::Unknown, format!("no {volume}"), "");
        }
        if self.role != Role::Primary || self.stopping.is_some() || self.role_change.is_some() {
            let primary = self.peers.iter().find(|p| p.role == Role::Primary);
            let text = match primary {
                Some(p) => {
                    format!(
                        "{} is Secondary on {}; {} is Primary",
                        self.cfg.name, self.cfg.me.name, p.name
                    )
                }
                None => format!("{} is Secondary on {}", self.cfg.name, self.cfg.me.name),
            };
            return refuse(
                RefusalKind::State,
                text,
                "connect to the Primary, or promote this node",
            );
        }
        self.auto_opened();
        Ok(ClientId(self.clients.insert(Client { name: client }).raw()))
    }

    /// A client closed the export.
    pub fn close_export(&mut self, id: ClientId, now: Instant, out: &mut Vec<Output>) {
        self.clients.remove(Key::from_raw(id.0));
        self.handle(now, crate::input::Input::Tick, out);
    }

    /// Something that has no state of its own.
    pub(crate) fn incident(&mut self, severity: Severity, cause: String) {
        self.event(crate::event::What::Incident, severity, cause);
    }
}

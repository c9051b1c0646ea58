//! The handshake of two engines on a fresh link: settings, then facts with application writes frozen
//! and drained, then the decision, which both compute and compare.
//!
//! Invariant: between sending its facts and agreeing (or parting) a node changes nothing the facts
//! say: no write is in flight, no metadata commit runs, no role changes, commands wait.

use crate::event::{ConnState, DiskState, ReplState, Role, Severity};
use crate::generations::same;
use crate::group::parks;
use crate::handshake::{Amount, Decision, Direction, Rule, decide};
use crate::metadata::superblock::MdFlags;
use crate::output::{Channel, Output};
use crate::peer::{Phase, SyncStart};
use crate::resize::larger_if_possible;
use crate::resource::Resource;
use crate::volume::Waiter;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use twinblk_protocol::control::{
    Facts, Message, Params, Reach, Verdict, VolumeFacts, VolumeParams,
};

impl Resource {
    /// Own settings towards a peer.
    pub(crate) fn my_params(&self, p: usize) -> Params {
        let options = &self.cfg.options;
        Params {
            protocol: options.protocol,
            incarnation: self.cfg.incarnation,
            last_seen_incarnation: self.peers[p].seen_incarnation,
            allow_two_primaries: options.allow_two_primaries,
            policies: options.policies.names(),
            fencing: options.fencing.name().to_string(),
            reach: self.reach(),
            volumes: self
                .volumes
                .iter()
                .map(|v| VolumeParams {
                    volume: v.id.0,
                    disk_size: v.data_size(),
                    agreed_size: v.local.as_ref().map_or(0, |l| l.superblock.agreed_size),
                    block_size: v.block_size,
                    bitmap_block: v.local.as_ref().map_or(0, |l| l.layout.bitmap_block),
                })
                .collect(),
        }
    }

    /// The peer's settings: compare, then freeze.
    pub(crate) fn params_received(&mut self, p: usize, params: Params) {
        if let Err(text) = self.check_params(p, &params) {
            let name = self.peers[p].name.clone();
            let text = format!("cannot connect to {name}: {text}");
            self.incident(Severity::Error, text.clone());
            return self.close_link(p, ConnState::ProtocolError, text);
        }
        if self.is_group() {
            if let Some(text) = self.follows_another(p, &params) {
                return self.close_link(p, ConnState::TearDown, text);
            }
            let said = self.peers[p].link.as_ref().map(|l| l.said);
            if said.is_some_and(|said| parks(said, params.reach)) {
                // What was said may be over: nobody would make a parked link anew for it.
                return if parks(self.reach(), params.reach) {
                    self.park(p)
                } else {
                    self.renegotiate_peer(p, "data do not come from another node any more")
                };
            }
            if params.reach == Reach::Primary {
                self.leader_appeared(p);
            }
        }
        self.no_longer_outdated(p);
        let now = self.now;
        if let Some(link) = &mut self.peers[p].link {
            link.params = Some(params);
            link.phase = Phase::Drain;
            link.frozen_at = Some(now);
        }
    }

    fn check_params(&self, p: usize, theirs: &Params) -> Result<(), String> {
        let ours = self.my_params(p);
        if theirs.incarnation == ours.incarnation {
            return Err("the address leads back to this very node".to_string());
        }
        if theirs.protocol != ours.protocol {
            return Err(format!(
                "protocol is {:?} here and {:?} there; make the configuration files equal and run \
                 `twinblk adjust` on both nodes",
                ours.protocol, theirs.protocol
            ));
        }
        same_policies(&ours, theirs)?;
        let numbers = |v: &[VolumeParams]| v.iter().map(|v| v.volume).collect::<Vec<_>>();
        if numbers(&theirs.volumes) != numbers(&ours.volumes) {
            return Err("the nodes disagree on which volumes the resource has".to_string());
        }
        for (ours, theirs) in ours.volumes.iter().zip(&theirs.volumes) {
            if ours.disk_size == 0 || theirs.disk_size == 0 {
                continue;
            }
            if ours.block_size != theirs.block_size || ours.bitmap_block != theirs.bitmap_block {
                return Err(format!(
                    "volume {}: block-size is {} here and {} there, bitmap granularity {} and {}; \
                     they must be equal",
                    ours.volume,
                    ours.block_size,
                    theirs.block_size,
                    ours.bitmap_block,
                    theirs.bitmap_block
                ));
            }
            self.check_sizes(ours, theirs)?;
        }
        Ok(())
    }

    fn check_sizes(&self, ours: &VolumeParams, theirs: &VolumeParams) -> Result<(), String> {
        let n = ours.volume;
        let agreed = agreed_size(ours, theirs);
        if ours.agreed_size != 0
            && theirs.agreed_size != 0
            && ours.agreed_size > agreed
            && self.role == Role::Primary
        {
            return Err(format!(
                "volume {n}: the device has {} bytes here, where it is in use, and {} bytes there, \
                 where the disk offers {}; give that node a disk at least as large, then `twinblk \
                 down RES` and `twinblk up RES` there",
                ours.agreed_size, theirs.agreed_size, theirs.disk_size
            ));
        }
        if theirs.disk_size < agreed {
            return Err(format!(
                "volume {n}: the peer's disk offers {} bytes, the device in use has {agreed}; \
                 give the peer a disk at least as large",
                theirs.disk_size
            ));
        }
        if ours.disk_size < agreed {
            return Err(format!(
                "volume {n}: this node's disk offers {} bytes, the device in use has {agreed}; \
                 give this node a disk at least as large",
                ours.disk_size
            ));
        }
        Ok(())
    }

    /// Sends the facts once nothing is in flight any more.
    pub(crate) fn try_send_facts(&mut self) {
        for p in 0..self.peers.len() {
            if self.peers[p]
                .link
                .as_ref()
                .is_some_and(|l| l.phase == Phase::Drain)
                && self.is_drained()
            {
                self.peers[p].receiver.reset();
                let facts = self.my_facts(p);
                let message = Message::Facts(facts.clone());
                self.send_message(p, Channel::Data, &message);
                if let Some(link) = &mut self.peers[p].link {
                    link.my_facts = Some(facts);
                    link.phase = Phase::Facts;
                }
                self.try_decide(p);
            }
        }
    }

    fn is_drained(&self) -> bool {
        // What is done, and waits for its answer, is not under way.
        self.started == self.held.len()
            && self.receivers_idle()
            && self.role_change.is_none()
            && self
                .volumes
                .iter()
                .all(|v| !v.bump_running && v.meta.is_idle())
    }

    fn my_facts(&self, p: usize) -> Facts {
        let peer = &self.peers[p];
        let busy = matches!(self.reach(), Reach::SyncsFrom(n) if n != peer.node.0);
        Facts {
            role: self.role,
            discard_my_data: peer.discard_my_data || peer.gives_up,
            in_use: self.clients.len() > 0,
            dry_run: peer.dry_run.is_some(),
            volumes: self
                .volumes
                .iter()
                .enumerate()
                .map(|(index, v)| VolumeFacts {
                    volume: v.id.0,
                    parted_as_primary: self.parted_as_primary(index, p),
                    current: v.generations.current,
                    bitmap: v.generations.bitmap[peer.node.slot()],
                    history: v.generations.history().collect(),
                    toward: v.generations.toward,
                    disk: v.disk,
                    dirty_bits: v.bitmap(peer.node).map_or(0, |b| b.count_set()),
                    crashed_primary: v
                        .local
                        .as_ref()
                        .is_some_and(|l| l.superblock.flags.contains(MdFlags::CRASHED_PRIMARY)),
                    full_bitmap: v
                        .bitmap(peer.node)
                        .is_some_and(|b| b.bits() > 0 && b.count_set() == b.bits()),
                    crashed_secondary: v
                        .local
                        .as_ref()
                        .is_some_and(|l| l.superblock.flags.contains(MdFlags::CRASHED_SECONDARY)),
                    busy,
                    relies: v.remote.as_ref().map_or(0, |r| r.generation),
                    // Of a generation that may never have begun nothing was told to anybody.
                    relies_next: v.remote.as_ref().map_or(0, |r| match r.next {
                        0 => r.before,
                        next => next,
                    }),
                })
                .collect(),
        }
    }

    /// The peer's facts.
    pub(crate) fn facts_received(&mut self, p: usize, facts: Facts) {
        let known: Vec<u16> = self.volumes.iter().map(|v| v.id.0).collect();
        if facts.volumes.iter().map(|v| v.volume).ne(known) {
            return self.protocol_error(p, "facts about other volumes".to_string());
        }
        if let Some(link) = &mut self.peers[p].link {
            link.facts = Some(facts);
        }
        self.try_decide(p);
    }

    /// Both sides' facts are known: decide.
    fn try_decide(&mut self, p: usize) {
        let Some(link) = &self.peers[p].link else {
            return;
        };
        let (Phase::Facts, Some(mine), Some(theirs), Some(params)) =
            (link.phase, &link.my_facts, &link.facts, &link.params)
        else {
            return;
        };
        let context = self.handshake_context();
        let i_know_it = self.peers[p].seen_incarnation == params.incarnation;
        let it_knows_me = params.last_seen_incarnation == self.cfg.incarnation;
        let decisions: Vec<Decision> = (0..self.volumes.len())
            .map(|v| {
                let me = self.side(p, self.cfg.me.id, mine, v, i_know_it);
                let peer = self.side(p, self.peers[p].node, theirs, v, it_knows_me);
                decide(&me, &peer, &context)
            })
            .collect();
        if mine.dry_run || theirs.dry_run {
            return self.end_dry_run(p, &decisions);
        }
        self.note_split_brain(p, &decisions);
        self.note_relied_upon(p, &decisions);
        self.call_split_brain_handlers(p, &decisions);
        let verdicts = self
            .volumes
            .iter()
            .zip(&decisions)
            .map(|(v, d)| Verdict {
                volume: v.id.0,
                rule: d.rule.name().to_string(),
                direction: direction_number(d.direction),
                full: d.amount == Amount::Full,
            })
            .collect();
        if let Some(link) = &mut self.peers[p].link {
            link.decisions = decisions;
            link.phase = Phase::Verdicts;
        }
        self.send_message(p, Channel::Data, &Message::Verdicts(verdicts));
        self.try_agree(p);
    }

    fn end_dry_run(&mut self, p: usize, decisions: &[Decision]) {
        let text = self.describe_decisions(p, decisions);
        let peer = &mut self.peers[p];
        let reason = if let Some(id) = peer.end_dry_run() {
            self.out.push(Output::CommandDone {
                id,
                result: Ok(text),
            });
            "this was a dry run"
        } else {
            "the peer only asked what connecting would do (dry run)"
        };
        self.close_link(p, ConnState::TearDown, reason.to_string());
    }

    fn describe_decisions(&self, p: usize, decisions: &[Decision]) -> String {
        let peer = &self.peers[p];
        let mut text = String::new();
        for (v, d) in self.volumes.iter().zip(decisions) {
            let mine = v.out_of_sync(peer.node);
            let block = v
                .bitmap(peer.node)
                .map_or(4096, |b| u64::from(b.block_size()));
            let theirs = peer
                .link
                .as_ref()
                .and_then(|l| l.facts.as_ref())
                .and_then(|f| f.volumes.iter().find(|f| f.volume == v.id.0))
                .map_or(0, |f| f.dirty_bits * block)
                .min(v.size());
            let what = match (d.direction, d.amount) {
                (Direction::None, _) => "no resync".to_string(),
                (Direction::Later, _) => "no resync before another one is over".to_string(),
                (Direction::Refuse, _) => "the connection would be refused".to_string(),
                (Direction::Yield, _) => "one node would be demoted first".to_string(),
                (side, amount) => {
                    let (from, to) = match side {
                        Direction::Source => (&self.cfg.me.name, &peer.name),
                        _ => (&peer.name, &self.cfg.me.name),
                    };
                    let bytes = match amount {
                        Amount::Full => format!("the whole device, {} bytes", v.size()),
                        _ => {
                            // The two bitmaps are merged: they may overlap or not.
                            let least = mine.max(theirs);
                            let most = (mine + theirs).min(v.size());
                            let bytes = if least == most {
                                format!("{least} bytes")
                            } else {
                                format!("between {least} and {most} bytes")
                            };
                            format!("{bytes} (marked here: {mine}, there: {theirs})")
                        }
                    };
                    format!("{from} would overwrite {to}: {bytes}")
                }
            };
            text.push_str(&format!(
                "{}: {what}\n  rule: {}\n  reason: {}\n",
                v.id,
                d.rule.name(),
                d.reason
            ));
            if let Some(way_out) = &d.way_out {
                text.push_str(&format!("  way out: {way_out}\n"));
            }
        }
        text
    }

    /// The generations do not allow a connection: nothing is overwritten, this side stands alone
    /// until somebody decides. Answers the reason, or `None` when nothing was refused.
    pub(crate) fn refusal(&mut self, p: usize, decisions: &[Decision]) -> Option<String> {
        let decision = decisions
            .iter()
            .find(|d| d.direction == Direction::Refuse)?;
        let peer = &mut self.peers[p];
        peer.want = peer.want && may_retry(decisions);
        peer.discard_my_data = false;
        peer.gives_up = false;
        peer.gives_way = false;
        peer.save_to = None;
        let headline = if decision.split_brain {
            "split brain"
        } else {
            "connection refused"
        };
        let mut text = format!("{headline} ({}): {}", decision.rule.name(), decision.reason);
        if let Some(way_out) = &decision.way_out {
            text.push_str("; ");
            text.push_str(way_out);
        }
        // One that is tried again and again is told once.
        if self.peers[p].told_refusal != text {
            self.peers[p].told_refusal.clone_from(&text);
            self.incident(Severity::Error, text.clone());
        }
        Some(text)
    }

    /// The peer's decision.
    pub(crate) fn verdicts_received(&mut self, p: usize, verdicts: Vec<Verdict>) {
        if let Some(link) = &mut self.peers[p].link {
            link.verdicts = Some(verdicts);
        }
        self.try_agree(p);
    }

    fn try_agree(&mut self, p: usize) {
        let Some(link) = &mut self.peers[p].link else {
            return;
        };
        let (Phase::Verdicts, Some(verdicts)) = (link.phase, link.verdicts.take()) else {
            return;
        };
        let decisions = link.decisions.clone();
        let told = link.my_facts.clone();
        // With more than two nodes other peers go on changing things (DRBD's rule
        // "initial-handshake-changed").
        if self.is_group() && told.as_ref() != Some(&self.my_facts(p)) {
            return self.renegotiate_peer(p, "what this node said in the handshake has changed");
        }
        if decisions.iter().any(|d| d.direction == Direction::Refuse) {
            // The peer has decided too, by itself and from the same facts: `link_lost` makes this
            // side stand alone.
            let state = if may_retry(&decisions) {
                ConnState::TearDown
            } else {
                ConnState::StandAlone
            };
            return self.close_link(p, state, "the connection was refused".into());
        }
        let mirrored = verdicts.len() == decisions.len()
            && verdicts.iter().zip(&decisions).all(|(theirs, ours)| {
                theirs.direction == direction_number(ours.direction.mirrored())
                    && theirs.rule == ours.rule.name()
                    && theirs.full == (ours.amount == Amount::Full)
            });
        if !mirrored {
            let text = format!(
                "the nodes came to different decisions: here {:?}, there {verdicts:?}",
                decisions
                    .iter()
                    .map(|d| (d.rule.name(), d.direction))
                    .collect::<Vec<_>>()
            );
            return self.protocol_error(p, text);
        }
        if self.yields(p, &decisions) {
            return;
        }
        let Some(link) = &mut self.peers[p].link else {
            return;
        };
        let facts = link.facts.take();
        let params = link.params.clone();
        link.phase = Phase::Agreed;
        link.frozen_at = None;
        if let (Some(facts), Some(params)) = (facts, params) {
            self.agreed(p, &facts, &params, &decisions);
        }
    }

    /// Both sides agree: take the consequences.
    fn agreed(&mut self, p: usize, facts: &Facts, params: &Params, decisions: &[Decision]) {
        let peer = &mut self.peers[p];
        peer.seen_incarnation = params.incarnation;
        peer.discard_my_data = false;
        peer.gives_up = false;
        peer.gives_way = false;
        if !decisions.iter().any(|d| d.split_brain) {
            peer.split_brain = None;
        }
        peer.told_refusal.clear();
        let name = peer.name.clone();
        self.set_connection(p, ConnState::Connected, format!("connected to {name}"));
        self.compare_fencing(p, &params.fencing);
        self.set_peer_role(p, facts.role, "told by the peer");
        self.peers[p].forget_told();
        self.fence_met(p);
        self.tell_resolved(p, decisions);
        let mut out_of_use = false;
        for (v, decision) in decisions.iter().enumerate() {
            let fact = &facts.volumes[v];
            self.set_peer_disk(p, v, fact.disk, "told by the peer");
            let mine = self.volumes[v].generations.current;
            let relies_on_me = [fact.relies, fact.relies_next]
                .iter()
                .any(|&g| g != 0 && same(g, mine));
            self.volumes[v].missed |=
                facts.role == Role::Primary && !self.volumes[v].has_disk() && !relies_on_me;
            if self.volumes[v].local.is_none() {
                continue;
            }
            self.adopt_size(p, v, &params.volumes[v]);
            if !decision.split_brain && self.remember_role(v, p, self.role) {
                self.commit(v, false, None);
            }
            let equal = same(fact.current, self.volumes[v].generations.current);
            if self.is_group() && fact.crashed_primary && equal {
                self.met_the_crashed_primary(p, v);
            }
            self.peers[p].volumes[v].lacks_current =
                !same(fact.current, self.volumes[v].generations.current);
            if equal {
                self.others_may_have_caught_up(p, v);
            }
            self.peers[p].volumes[v].later = decision.direction == Direction::Later;
            self.peers[p].volumes[v].start = SyncStart {
                peer_current: fact.current,
                peer_crashed: (fact.crashed_primary, fact.crashed_secondary),
                ..SyncStart::default()
            };
            match decision.direction {
                Direction::None => self.agreed_without_resync(p, v, fact.disk, decision),
                Direction::Source => {
                    // Nobody has newer data, or it would not be the source; unless a third node has.
                    if matches!(
                        self.volumes[v].disk,
                        DiskState::Outdated | DiskState::Consistent
                    ) && !self.is_group()
                    {
                        self.all_fenced(v);
                        self.set_flags(v, MdFlags::WAS_UP_TO_DATE, true);
                        self.set_disk(v, DiskState::UpToDate, decision.reason.clone());
                    }
                    self.set_replication(p, v, ReplState::WFBitMapS, &decision.reason);
                    self.start_sync(p, v, decision);
                }
                Direction::Target if self.may_lack(p, v) => {
                    let reason = format!(
                        "{name} may lack writes that clients were told are done, and would be copied onto \
                         this disk; if the disk that was in use here before has them, attach that one; if \
                         none has, give them up: `twinblk secondary --force RES`, then attach this one"
                    );
                    self.disk_out_of_use(v, reason, false);
                    out_of_use = true;
                }
                Direction::Target => {
                    self.is_older(p, v, decision);
                    self.set_replication(p, v, ReplState::WFBitMapT, &decision.reason);
                    self.start_sync(p, v, decision);
                }
                Direction::Later => {
                    if decision.rule == Rule::UnfinishedResync {
                        self.is_outdated_by(p, v);
                    }
                    let state = if self.volumes[v].disk > fact.disk {
                        ReplState::PausedSyncS
                    } else {
                        ReplState::PausedSyncT
                    };
                    self.set_replication(p, v, state, &decision.reason);
                }
                Direction::Refuse | Direction::Yield => {}
            }
        }
        // The file is kept in mind until this copy says that it is being overwritten.
        if !decisions.iter().any(|d| d.direction == Direction::Target) {
            self.peers[p].save_to = None;
        }
        self.tell_state();
        if out_of_use {
            return self
                .renegotiate_peer(p, "the attached disk cannot be brought up to date from it");
        }
        for (v, decision) in decisions.iter().enumerate() {
            // Without a disk there the two were not compared.
            let there = self.peers[p].volumes[v].disk > DiskState::Inconsistent;
            if decision.direction == Direction::None && there {
                self.reject_disk(v);
            }
        }
        if decisions.iter().any(|d| d.direction == Direction::Target) {
            self.part_from_others(p);
        }
        self.sync_start_progress(p);
    }

    fn adopt_size(&mut self, p: usize, v: usize, theirs: &VolumeParams) {
        let ours = VolumeParams {
            volume: theirs.volume,
            disk_size: self.volumes[v].data_size(),
            agreed_size: self.volumes[v]
                .local
                .as_ref()
                .map_or(0, |l| l.superblock.agreed_size),
            block_size: 0,
            bitmap_block: 0,
        };
        if theirs.disk_size == 0 {
            return;
        }
        let agreed = agreed_size(&ours, theirs);
        if agreed != ours.agreed_size {
            if ours.agreed_size == 0 {
                self.set_agreed_size(v, agreed);
                self.commit(v, false, None);
            } else {
                // What was decided did not know of the difference: the nodes talk anew.
                let node = self.peers[p].node;
                let link = self.peers[p].link_number().unwrap_or(0);
                self.take_size(v, agreed);
                self.commit(v, true, Some(Waiter::SizeTaken(node, link)));
            }
        }
    }

    fn agreed_without_resync(
        &mut self,
        p: usize,
        v: usize,
        peer_disk: DiskState,
        decision: &Decision,
    ) {
        let node = self.peers[p].node;
        self.set_replication(p, v, ReplState::Established, &decision.reason);
        if decision.finish_leftover {
            self.volumes[v].generations.resync_finished_with(node);
        }
        let disk = self.volumes[v].disk;
        if peer_disk == DiskState::UpToDate
            && matches!(disk, DiskState::Outdated | DiskState::Consistent)
        {
            self.no_doubt(v);
            self.all_fenced(v);
            self.set_flags(v, MdFlags::WAS_UP_TO_DATE, true);
            let reason = "the peer is UpToDate and of the same generation".to_string();
            self.set_disk(v, DiskState::UpToDate, reason);
        }
        // A peer without a disk has nothing to be reconciled with.
        let both = disk > DiskState::Inconsistent && peer_disk > DiskState::Inconsistent;
        if both && peer_disk != DiskState::DUnknown {
            self.reconciled(p, v);
        }
        self.commit(v, true, None);
    }
}

/// Policies are compared by name: with different ones each would pick its own victim.
fn same_policies(ours: &Params, theirs: &Params) -> Result<(), String> {
    let names = [
        "after-sb-0pri",
        "after-sb-1pri",
        "after-sb-2pri",
        "rr-conflict",
    ];
    let both = ours.policies.iter().zip(&theirs.policies);
    let differs = names.iter().zip(both).find(|(_, (o, t))| o != t);
    if let Some((name, (here, there))) = differs {
        return Err(format!(
            "{name} is {here} here and {there} there; make the configuration files equal and run \
             `twinblk adjust RES` on both nodes"
        ));
    }
    if theirs.allow_two_primaries != ours.allow_two_primaries {
        return Err(
            "allow-two-primaries differs between the nodes; make the configuration files equal and \
             run `twinblk adjust RES` on both nodes"
                .to_string(),
        );
    }
    Ok(())
}

/// Nothing but what is tried again stands against the connection.
fn may_retry(decisions: &[Decision]) -> bool {
    let mut refused = decisions
        .iter()
        .filter(|d| d.direction == Direction::Refuse);
    refused.all(|d| d.retry)
}

fn direction_number(direction: Direction) -> i8 {
    match direction {
        Direction::Target => -1,
        Direction::None => 0,
        Direction::Source => 1,
        Direction::Refuse => 2,
        // The same on both sides.
        Direction::Later => 3,
        Direction::Yield => 4,
    }
}

/// The device's size both sides can carry: what was agreed before, else the smaller disk. A resize that
/// was interrupted leaves two sizes.
fn agreed_size(ours: &VolumeParams, theirs: &VolumeParams) -> u64 {
    match (ours.agreed_size, theirs.agreed_size) {
        (0, 0) => ours.disk_size.min(theirs.disk_size),
        (0, agreed) | (agreed, 0) => agreed,
        (a, b) => larger_if_possible([a, b], [ours.disk_size, theirs.disk_size]),
    }
}

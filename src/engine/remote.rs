//! A Primary without a current copy of its own: its disk failed, was detached, or is being brought up
//! to date. Clients are served from the peer's copy, if that is current, and do not notice.
//!
//! Only with two nodes; see decision 0015. How its requests go to the peer is in [`crate::remote_io`], the
//! peer's side in [`crate::serving`].
//!
//! Invariants:
//! * before anything is answered that the own copy does not have, the peer has all that was answered
//!   earlier *stable*, and has confirmed a generation that its disk did not have before: the own copy
//!   is then the one that is behind, whatever happens;
//! * from then on every write is stable on the peer before it is answered, under every protocol: a
//!   peer that crashes and comes back lacks nothing;
//! * only a copy of the generation that was confirmed is served; of another one it is not known what it
//!   lacks;
//! * a request that has begun and is not answered is begun anew when there is a copy again: its buffer
//!   is kept until it is answered;
//! * nothing is read from or written to an own copy that is being brought up to date, but by the
//!   resync itself. Before the resync ends no write is under way.

use crate::config::OnNoData;
use crate::event::{DiskState, ReplState, Role, Severity};
use crate::generations::same;
use crate::handler::{HandlerKind, Then};
use crate::input::{ClientRequest, RequestKind};
use crate::left_behind::Lacks;
use crate::metadata::superblock::MdFlags;
use crate::output::Channel;
use crate::request::{LocalPart, RequestKey};
use crate::resource::{Op, Resource};
use crate::role::Step;
use crate::sabotage::{self, Mistake};
use crate::suspend::Reason;
use crate::time::{Duration, Instant};
use crate::transfer_log::Entry;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use twinblk_protocol::control::{Message, Protocol};

/// How long clients wait for a link that is made anew on purpose.
const RENEWAL: Duration = Duration::from_secs(10);
/// The last so many bytes of a resync under a Primary go without writes.
const LAST_BYTES: u64 = 8 << 20;

/// How a volume's clients are served while the own copy cannot be.
#[derive(Debug, Default)]
pub(crate) struct Remote {
    /// The generation the peer's copy must have; 0: it has not been told yet.
    pub(crate) generation: u64,
    /// That one was on its way to the own disk when it failed, from this one: the disk may have either,
    /// and lacks nothing. 0: it has `generation`.
    pub(crate) before: u64,
    /// It was told to go on as this one, and has not confirmed it; 0: nothing is open.
    pub(crate) next: u64,
    /// It confirmed a generation that the own copy never had.
    confirmed: bool,
    /// Peer and link whose copy is served.
    open: Option<(usize, u64)>,
    /// The link on which it was asked to serve.
    asked: u64,
    /// The peer may lack something that was answered.
    lost: bool,
    /// A handler runs before any peer is told.
    pub(crate) quiet: bool,
    /// What was under way counts as done, on the word of the peer, which has not confirmed yet that it is
    /// stable there: the own disk may lack it.
    handed: bool,
    /// It lacks nothing if it is in the life in which it confirmed it; 0: in any.
    incarnation: u64,
    /// Clients wait so long for a link that is made anew.
    until: Option<Instant>,
    /// No copy can be reached, and clients get errors.
    given_up: bool,
    /// It was told that no copy can be reached.
    told: bool,
    /// Bytes written since the resync of the own copy began.
    pub(crate) written: u64,
    /// Writes are held, for the resync is about to end; and the source knows.
    holds: bool,
    hold_told: bool,
}

/// Where a volume's clients are served from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// The own disk.
    Local,
    /// The copy of the peer with this index.
    Remote(usize),
    /// Nowhere yet: requests wait.
    Later,
    /// Nowhere: they get errors.
    None,
}

impl Resource {
    /// Where clients of a volume are served from.
    pub(crate) fn access(&self, v: usize) -> Access {
        let volume = &self.volumes[v];
        let Some(remote) = &volume.remote else {
            return if volume.is_up_to_date() {
                Access::Local
            } else {
                Access::None
            };
        };
        match remote.open {
            Some((p, link)) if self.peers[p].link_number() == Some(link) => Access::Remote(p),
            _ if remote.given_up => Access::None,
            _ => Access::Later,
        }
    }

    /// All volumes are served from somewhere, or are about to be.
    pub(crate) fn has_access(&self) -> bool {
        let waits = |v: usize| {
            self.volumes[v]
                .remote
                .as_ref()
                .is_some_and(|r| r.until.is_some())
        };
        (0..self.volumes.len()).all(|v| {
            matches!(self.access(v), Access::Local | Access::Remote(_))
                || self.access(v) == Access::Later && waits(v)
        })
    }

    /// A failure of the own disk need not be the clients' affair.
    pub(crate) fn may_go_remote(&self) -> bool {
        self.role == Role::Primary
            && !self.is_group()
            && self.role_change.is_none()
            && self.stopping.is_none()
    }

    /// A connected peer whose copy can be served.
    pub(crate) fn server(&self, v: usize) -> Option<usize> {
        (0..self.peers.len()).find(|&p| {
            let peer = &self.peers[p];
            let pv = &peer.volumes[v];
            // A copy that has confirmed the generation lacks nothing, whatever it knows of that itself: it
            // is asked by generation.
            let relied = self.volumes[v]
                .remote
                .as_ref()
                .is_some_and(|r| r.confirmed && pv.disk != DiskState::DUnknown);
            let joined = pv.mirrors()
                || matches!(
                    pv.replication,
                    ReplState::WFBitMapT | ReplState::SyncTarget | ReplState::PausedSyncT
                );
            !self.is_group()
                && peer.is_agreed()
                && !peer.is_parked()
                && peer.role != Role::Primary
                && joined
                && (pv.disk == DiskState::UpToDate || relied && pv.disk >= DiskState::Outdated)
        })
    }

    /// The own disk cannot be used any more. What is under way goes on with the peer.
    pub(crate) fn go_remote(&mut self, v: usize) {
        let generation = self.volumes[v].generations.current;
        let unborn = self.volumes[v].bump_running && !self.volumes[v].bump_committed;
        let lacks = self.lacks_now(v);
        self.volumes[v].remote = Some(Remote {
            generation,
            before: if unborn { self.volumes[v].bump_from } else { 0 },
            lost: lacks == Lacks::Unknown || unborn,
            incarnation: match lacks {
                Lacks::WhatACrashTakes(life) => life,
                Lacks::Unknown | Lacks::Nothing => 0,
            },
            ..Remote::default()
        });
        self.ungate(v);
        // Completions of the failed disk mean nothing any more. (Buffers it may still use are the
        // driver's to keep.)
        let ops: Vec<_> = self.ops.iter().map(|(key, op)| (key, *op)).collect();
        for (key, op) in ops {
            let request = match op {
                Op::ClientRead(r) | Op::ClientWrite(r) | Op::ClientFlush(r) => r,
                _ => continue,
            };
            if self.requests.get(request).is_some_and(|r| r.volume == v)
                && let Some(op) = self.ops.get_mut(key)
            {
                *op = Op::Lingering(v);
            }
        }
    }

    /// The peers know: what was under way goes on with one of them, or waits.
    pub(crate) fn take_over(&mut self, v: usize) {
        let lost = self.volumes[v].remote.as_ref().is_some_and(|r| r.lost);
        match self.server(v) {
            Some(p) if !lost => self.hand_over(p, v),
            _ => {
                for p in 0..self.peers.len() {
                    if self.peers[p].link.is_some() && !self.peers[p].is_agreed() {
                        self.renegotiate_peer(p, "the disk is out of use");
                    }
                }
                self.requeue(v);
                if self.volumes[v]
                    .remote
                    .as_ref()
                    .is_some_and(|r| r.until.is_none())
                {
                    self.give_up(v);
                }
            }
        }
    }

    /// What was begun on both copies is the peer's affair alone: it ends with the barrier's ack.
    fn hand_over(&mut self, p: usize, v: usize) {
        let id = self.volumes[v].id;
        let node = 1u16 << self.peers[p].node.0;
        if let Some(remote) = &mut self.volumes[v].remote {
            remote.handed = true;
        }
        if self.peers[p].volumes[v].mirrors()
            && self.peers[p].volumes[v].replication != ReplState::Established
        {
            self.drop_verify(p, v, "the disk is out of use");
            self.set_replication(p, v, ReplState::Established, "the disk is out of use");
        }
        let weak = self.cfg.options.protocol != Protocol::C;
        let mut open = Vec::new();
        let (requests, log) = (&self.requests, &mut self.peers[p].log);
        for entry in log.of_volume(id) {
            entry.remote = true;
            if let Some(key) = entry.request
                && requests.get(key).is_some()
                && (weak || !entry.acked)
            {
                entry.acked = false;
                open.push(key);
            }
        }
        let barrier = (!self.peers[p].log.is_empty()).then(|| self.send_barrier(p, true));
        for key in open {
            if let Some(r) = self.requests.get_mut(key) {
                r.awaiting |= node;
            }
        }
        let mut reads = Vec::new();
        let mut done = Vec::new();
        for key in self.requests_of(v) {
            let Some(r) = self.requests.get_mut(key) else {
                continue;
            };
            if matches!(r.local, LocalPart::NotStarted | LocalPart::Refused) {
                continue;
            }
            match r.kind {
                RequestKind::Read => reads.push(key),
                RequestKind::Flush => {
                    r.local = LocalPart::Done;
                    if let Some(epoch) = barrier {
                        r.awaiting |= node;
                        self.peers[p].flush_waiters.push((epoch, key));
                    }
                    done.push(key);
                }
                _ => {
                    r.local = LocalPart::Done;
                    done.push(key);
                }
            }
        }
        for key in reads {
            self.freeze_again(key);
        }
        for key in done {
            if !self.held.contains(&key) {
                self.try_complete(key);
            }
        }
    }

    /// Writes that have not begun hold nothing any more, neither extents nor their ranges: the peer
    /// orders what overlaps, by the order in which it comes, and a resync of the own copy must not wait
    /// for them. They wait at the gate in order of arrival.
    fn ungate(&mut self, v: usize) {
        let mut waiting = Vec::new();
        for key in self.requests_of(v) {
            self.give_back_lock(key);
            if let Some(r) = self.requests.get(key)
                && r.local == LocalPart::NotStarted
            {
                waiting.push((r.order, key));
                self.release_extents(key);
            }
        }
        let requests = &self.requests;
        let other = |k: &RequestKey| requests.get(*k).is_some_and(|r| r.volume != v);
        self.logged.retain(other);
        self.gated.retain(other);
        self.volumes[v].cold.clear();
        self.volumes[v].activity.nobody_waits();
        waiting.sort_unstable_by_key(|&(order, _)| order);
        self.gated.extend(waiting.into_iter().map(|(_, key)| key));
    }

    fn requests_of(&self, v: usize) -> Vec<RequestKey> {
        self.requests
            .iter()
            .filter(|(_, r)| r.volume == v)
            .map(|(key, _)| key)
            .collect()
    }

    /// A read or flush is begun anew, later.
    fn freeze_again(&mut self, key: RequestKey) {
        let Some(r) = self.requests.remove(key) else {
            return;
        };
        self.frozen.push_back(ClientRequest {
            tag: r.tag,
            volume: self.volumes[r.volume].id,
            kind: r.kind,
            offset: r.offset,
            len: r.len,
            fua: r.fua,
            buf: r.buf,
        });
    }

    /// What has begun and is not answered waits for a copy.
    fn requeue(&mut self, v: usize) {
        let mut writes = Vec::new();
        let own = self.volumes[v].remote.as_mut().is_some_and(|remote| {
            remote.handed = false;
            !remote.confirmed
        });
        for key in self.requests_of(v) {
            let Some(r) = self.requests.get_mut(key) else {
                continue;
            };
            if matches!(r.local, LocalPart::NotStarted | LocalPart::Refused) {
                continue;
            }
            match r.kind {
                RequestKind::Read => self.freeze_again(key),
                // A disk tells once that it could not keep what it had taken: a second flush would be
                // answered as if nothing had happened.
                RequestKind::Flush if own => {
                    self.started -= 1;
                    let tag = r.tag;
                    self.requests.remove(key);
                    self.reply_error(tag, "the disk went out of use during the flush");
                }
                RequestKind::Flush => {
                    self.started -= 1;
                    self.freeze_again(key);
                }
                _ => {
                    self.started -= 1;
                    r.local = LocalPart::NotStarted;
                    r.awaiting = 0;
                    r.held = false;
                    writes.push((r.order, key));
                    self.release_extents(key);
                }
            }
        }
        let requests = &self.requests;
        self.held
            .retain(|&k| requests.get(k).is_some_and(|r| r.volume != v));
        writes.sort_unstable_by_key(|&(order, _)| core::cmp::Reverse(order));
        for (_, key) in writes {
            self.gated.push_front(key);
        }
    }

    /// Whether the own disk must not come back yet: what it may lack is not with the peer for certain, or
    /// is not told to anybody.
    pub(crate) fn is_handing_over(&self, v: usize) -> bool {
        self.volumes[v]
            .remote
            .as_ref()
            .is_some_and(|r| r.handed || r.quiet)
    }

    /// Whether the copy of this peer may lack what clients were told is done: it is not served, nor copied
    /// onto a disk that would then be served.
    pub(crate) fn may_lack(&self, p: usize, v: usize) -> bool {
        let life = self.peers[p].seen_incarnation;
        let another = |r: &Remote| r.incarnation != 0 && r.incarnation != life;
        let remote = self.volumes[v].remote.as_ref();
        remote.is_some_and(|r| r.lost || another(r))
    }

    /// Clients of some volume are not served from the own disk.
    pub(crate) fn is_remote(&self) -> bool {
        self.volumes.iter().any(|v| v.remote.is_some())
    }

    fn is_promoting(&self) -> bool {
        let step = self.role_change.as_ref().map(|c| c.step);
        matches!(step, Some(Step::Promoting { .. }))
    }

    /// The link to the peer is lost. `entries` is what it had not confirmed as stable.
    pub(crate) fn copy_lost(&mut self, p: usize, v: usize, entries: &[Entry], planned: bool) {
        if self.volumes[v].remote.is_none() {
            return;
        }
        if self.is_promoting() {
            return self
                .fail_role_change("the link to the peer, whose copy was to be served, is lost");
        }
        let at_risk = self.has_answered(v, entries);
        let weak = self.cfg.options.protocol != Protocol::C;
        let incarnation = self.peers[p].seen_incarnation;
        let now = self.now;
        self.requeue(v);
        if let Some(remote) = &mut self.volumes[v].remote {
            remote.open = None;
            remote.asked = 0;
            (remote.holds, remote.hold_told, remote.written) = (false, false, 0);
            remote.lost |= at_risk && weak;
            if at_risk {
                remote.incarnation = incarnation;
            }
            if planned && !remote.given_up {
                remote.until = Some(now + RENEWAL);
                return;
            }
        }
        self.give_up(v);
    }

    /// No copy can be reached, and none is about to come.
    fn give_up(&mut self, v: usize) {
        // Who is going down, or demoted, has nobody who could wait.
        let goes = self.stopping.is_some() || self.role_change.is_some();
        let suspends = self.cfg.options.on_no_data == OnNoData::SuspendIo && !goes;
        let id = self.volumes[v].id;
        let Some(remote) = &mut self.volumes[v].remote else {
            return;
        };
        remote.until = None;
        remote.given_up |= !suspends;
        if !core::mem::replace(&mut remote.told, true) {
            let text = format!("{id}: no current copy of the data can be reached");
            self.incident(Severity::Error, text);
            self.call_handler(HandlerKind::PriOnInconDegr, None, Some(id), Then::Nothing);
        }
        if suspends {
            let cause =
                format!("{id}: no current copy of the data can be reached: I/O waits for one");
            self.suspend(Reason::NoData, cause);
        } else if !self.suspended.any() {
            self.fail_gated(v);
            self.thaw();
        }
        self.detach_without_peer(v);
    }

    /// Requests that were frozen are looked at again.
    pub(crate) fn thaw(&mut self) {
        if self.suspended.any() {
            return;
        }
        for request in core::mem::take(&mut self.frozen) {
            self.client_request(request);
        }
    }

    /// Asks peers to serve, where that is due.
    pub(crate) fn ask_to_serve(&mut self) {
        for v in 0..self.volumes.len() {
            // Whose disk is being looked at may have its own copy again in a moment.
            if self.volumes[v].disk == DiskState::Attaching {
                continue;
            }
            let Some(p) = self.server(v) else { continue };
            let Some(link) = self.peers[p].link_number() else {
                continue;
            };
            let id = self.volumes[v].id;
            let busy = self.peers[p].log.of_volume(id).any(|e| !e.resync);
            let new = |r: &Remote| !r.confirmed && r.next == 0;
            let fresh = match &self.volumes[v].remote {
                Some(remote) if new(remote) && !busy && remote.asked != link => self.rng.uuid(),
                _ => 0,
            };
            let lacks = self.may_lack(p, v);
            let Some(remote) = &mut self.volumes[v].remote else {
                continue;
            };
            if busy || remote.quiet || remote.asked == link {
                continue;
            }
            remote.asked = link;
            remote.lost = lacks;
            if lacks {
                let (name, unborn) = (self.peers[p].name.clone(), remote.before != 0);
                let why = match unborn {
                    true => "a new generation may or may not have reached this node's disk",
                    false => "it may lack writes that clients were told are done",
                };
                let text = format!(
                    "{name} is not served: {why} just before this node's disk went out of use; attach \
                     that disk, or give up what only it has with `twinblk secondary --force RES` here, \
                     and go on there"
                );
                self.incident(Severity::Error, text);
                self.give_up(v);
                continue;
            }
            remote.incarnation = 0;
            if !remote.confirmed && remote.next == 0 {
                remote.next = fresh;
            }
            let (previous, current) = match remote.confirmed {
                true => (remote.generation, remote.generation),
                false => (remote.generation, remote.next),
            };
            let message = Message::Serve {
                volume: id.0,
                previous,
                current,
            };
            self.send_message(p, Channel::Data, &message);
            if sabotage::is(Mistake::ServeUnconfirmed) {
                self.serving_received(p, v, current);
            }
        }
    }

    /// The peer's disk has the generation it was told, and its copy may be served.
    pub(crate) fn serving_received(&mut self, p: usize, v: usize, current: u64) {
        let Some(link) = self.peers[p].link_number() else {
            return;
        };
        let name = self.peers[p].name.clone();
        let Some(remote) = &mut self.volumes[v].remote else {
            // The role has changed meanwhile.
            return;
        };
        if remote.asked != link {
            let text = "a copy is offered that was not asked for".to_string();
            return self.protocol_error(p, text);
        }
        if current == 0 {
            self.incident(
                Severity::Error,
                format!("{name} cannot serve its copy (see its log)"),
            );
            if self.is_promoting() {
                return self.fail_role_change("the peer cannot serve its copy");
            }
            return self.give_up(v);
        }
        *remote = Remote {
            generation: current,
            confirmed: true,
            open: Some((p, link)),
            asked: link,
            ..Remote::default()
        };
        let id = self.volumes[v].id;
        self.incident(
            Severity::Warning,
            format!("{id}: clients are served from the copy of {name}"),
        );
        if self.is_promoting() {
            return self.promoted();
        }
        self.data_found();
    }

    /// There is a copy again, at least for one volume.
    fn data_found(&mut self) {
        let missing = |v: usize| matches!(self.access(v), Access::Later | Access::None);
        if !(0..self.volumes.len()).any(missing) {
            self.resume(Reason::NoData, "a current copy can be reached".to_string());
        }
        self.release_held();
        self.thaw();
    }

    /// Time limits.
    pub(crate) fn remote_tick(&mut self) {
        let comparing = self.peers.iter().any(|p| p.freezes());
        let now = self.now;
        for v in 0..self.volumes.len() {
            let Some(remote) = &mut self.volumes[v].remote else {
                continue;
            };
            match remote.until {
                Some(at) if at <= now && comparing => remote.until = Some(now + RENEWAL),
                Some(at) if at <= now => self.give_up(v),
                _ => {}
            }
        }
    }

    /// When [`Self::remote_tick`] has something to do.
    pub(crate) fn remote_deadline(&self) -> Option<Instant> {
        let until = |v: &crate::volume::Volume| v.remote.as_ref()?.until;
        self.volumes.iter().filter_map(until).min()
    }

    /// Why writes wait.
    pub(crate) fn remote_gate(&self) -> Option<&'static str> {
        for (v, volume) in self.volumes.iter().enumerate() {
            let Some(remote) = &volume.remote else {
                continue;
            };
            match self.access(v) {
                Access::Later => {
                    return Some("no current copy of the data can be reached at this moment");
                }
                Access::Remote(p) if remote.holds || self.writes_outrun(p, v) => {
                    return Some("the resync of this node's copy is about to end");
                }
                _ => {}
            }
        }
        None
    }

    /// Bytes at the end of the resync that go without writes.
    fn last_bytes(&self, p: usize, v: usize) -> u64 {
        let resync = self.peers[p].volumes[v].resync.as_ref();
        resync.map_or(0, |r| (r.total / 4).min(LAST_BYTES))
    }

    /// So much is written that the resync would not come to its end.
    fn writes_outrun(&self, p: usize, v: usize) -> bool {
        let (volume, pv) = (&self.volumes[v], &self.peers[p].volumes[v]);
        let (Some(remote), Some(resync)) = (&volume.remote, &pv.resync) else {
            return false;
        };
        let left = volume.out_of_sync(self.peers[p].node);
        let done = (resync.total + remote.written).saturating_sub(left);
        remote.written > done / 2 + self.last_bytes(p, v) / 2
    }

    /// Target of a resync under clients: towards its end writes are held, and the source told so.
    pub(crate) fn hold_writes(&mut self) {
        for v in 0..self.volumes.len() {
            let Access::Remote(p) = self.access(v) else {
                continue;
            };
            if self.peers[p].volumes[v].replication != ReplState::SyncTarget {
                continue;
            }
            let last = self.last_bytes(p, v);
            let left = self.volumes[v].out_of_sync(self.peers[p].node);
            let under_way = self.requests.iter().any(|(_, r)| {
                let write = !matches!(r.kind, RequestKind::Read | RequestKind::Flush);
                r.volume == v && write && r.local != LocalPart::NotStarted
            });
            let id = self.volumes[v].id;
            let Some(remote) = &mut self.volumes[v].remote else {
                continue;
            };
            remote.holds |= left <= last;
            if remote.holds && !under_way && !remote.hold_told {
                remote.hold_told = true;
                let message = Message::WritesHeld { volume: id.0 };
                self.send_message(p, Channel::Data, &message);
            }
        }
    }

    /// A disk was attached under clients that were served from elsewhere. Answers whether it is theirs
    /// again: nothing was answered since without it.
    pub(crate) fn nothing_missed(&self, v: usize) -> bool {
        let volume = &self.volumes[v];
        let consistent = volume
            .local
            .as_ref()
            .is_some_and(|l| l.superblock.flags.contains(MdFlags::CONSISTENT));
        volume.remote.as_ref().is_some_and(|r| {
            consistent
                && !r.confirmed
                && !r.handed
                && !r.quiet
                && r.next == 0
                && (same(r.generation, volume.generations.current)
                    || r.before != 0 && same(r.before, volume.generations.current))
        })
    }

    /// The own copy is about to be served again: what a Primary's disk says comes with the next commit.
    pub(crate) fn begin_local_reign(&mut self, v: usize) {
        if self.volumes[v].remote.is_none() || self.role != Role::Primary {
            return;
        }
        self.set_flags(v, MdFlags::PRIMARY_INDICATOR, true);
        self.begin_reign(v);
        self.volumes[v].generations.set_primary_bit(true);
    }

    /// The own copy is served again.
    pub(crate) fn serve_locally(&mut self, v: usize) {
        if self.volumes[v].remote.take().is_some() {
            let id = self.volumes[v].id;
            let text = format!("{id}: clients are served from this node's disk again");
            self.incident(Severity::Info, text);
            self.lock_again(v);
            self.fence_missing();
            self.data_found();
        }
    }

    /// This node is not Primary any more.
    pub(crate) fn end_remote(&mut self) {
        for volume in &mut self.volumes {
            volume.remote = None;
        }
        self.resume(Reason::NoData, "this node is Secondary".to_string());
        self.thaw();
    }
}

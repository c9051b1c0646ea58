//! A link's life: up, frames in and out, liveness, down. The handshake on it is in
//! [`crate::agreement`].

use crate::config::Options;
use crate::event::{ConnState, ReplState, Role, Severity, What};
use crate::fencing::Caught;
use crate::handler::{HandlerKind, Then};
use crate::input::Body;
use crate::output::{Channel, Output, SendBody};
use crate::peer::{Link, Peer, Phase, SyncStart};
use crate::peer_view::Views;
use crate::resource::Resource;
use crate::states;
use crate::time::{Duration, Instant};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use twinblk_protocol::control::Message;
use twinblk_protocol::frame::{HEADER_LEN, Header, Kind, flags};

/// Silence with unconfirmed writes after which a ping is sent early.
const EAGER_PING: Duration = Duration::from_secs(1);

impl Peer {
    /// How long nothing may come before a ping is sent.
    fn pinged_after(&self, options: &Options) -> Duration {
        if self.log.front().is_some() || !self.is_agreed() {
            EAGER_PING.min(options.ping_int)
        } else {
            options.ping_int
        }
    }
}

impl Link {
    /// When a handshake that is under way has taken too long.
    fn handshake_ends(&self, options: &Options) -> Option<Instant> {
        let began = match self.phase {
            Phase::Params => Some(self.up_since),
            _ => self.frozen_at,
        };
        began.map(|at| at + (options.ping_timeout * 4).max(Duration::from_secs(10)))
    }
}

impl Resource {
    /// Both sockets are up.
    pub(crate) fn link_up(&mut self, p: usize) {
        if self.peers[p].link.is_some() {
            self.link_lost(
                p,
                ConnState::BrokenPipe,
                String::from("replaced by a new connection"),
            );
        }
        let said = self.reach();
        if !self.peers[p].want {
            let reason = "this node is StandAlone: `twinblk connect` lets it connect";
            self.say_goodbye(p, reason, false);
            return;
        }
        let peer = &mut self.peers[p];
        peer.links += 1;
        peer.link = Some(Link {
            number: peer.links,
            phase: Phase::Params,
            parked: false,
            said,
            leads: false,
            up_since: self.now,
            frozen_at: None,
            params: None,
            my_facts: None,
            facts: None,
            decisions: Vec::new(),
            verdicts: None,
            last_received: self.now,
            ping: None,
            ping_sequence: 0,
            queued: 0,
            sent: 0,
            progress_at: self.now,
            bitmap_cursor: None,
            granted: None,
            granted_to_me: None,
            stays_behind: false,
            asked: None,
            was_outdated: Vec::new(),
            ponged: 0,
            before_resync: None,
            deferred: None,
        });
        peer.log.reset();
        peer.count_settled_anew();
        let params = self.my_params(p);
        self.send_message(p, Channel::Data, &Message::Params(params));
        let name = self.peers[p].name.clone();
        self.set_connection(
            p,
            ConnState::Connecting,
            format!("the link to {name} is up; settings and generations are being compared"),
        );
    }

    /// The sockets are gone.
    pub(crate) fn link_down(&mut self, p: usize, reason: String) {
        self.link_lost(p, ConnState::BrokenPipe, reason);
    }

    /// Dialling failed, or the peer's hello was refused.
    pub(crate) fn dial_failed(&mut self, p: usize, reason: String) {
        let peer = &mut self.peers[p];
        if peer.link.is_none() && peer.want && peer.reason != reason {
            self.set_connection(p, ConnState::Connecting, reason);
        }
    }

    /// Closes a link from this side and goes on as if it were lost. What was queued still goes out.
    pub(crate) fn close_link(&mut self, p: usize, state: ConnState, reason: String) {
        if self.peers[p].link.is_none() {
            return;
        }
        self.say_goodbye(p, &reason, false);
        self.link_lost(p, state, reason);
    }

    /// Drops all links and connects again at once, so that the generations are compared anew.
    pub(crate) fn renegotiate(&mut self, why: &str) {
        self.incident(Severity::Info, format!("negotiating anew: {why}"));
        for p in 0..self.peers.len() {
            self.renegotiate_peer(p, why);
        }
    }

    /// Drops a link and connects again at once.
    pub(crate) fn renegotiate_peer(&mut self, p: usize, why: &str) {
        if self.peers[p].link.is_some() {
            self.say_goodbye(p, why, true);
            self.peers[p].renegotiates = true;
            self.peers[p].fence.comes_back = true;
            self.link_lost(p, ConnState::TearDown, why.to_string());
            self.dial_now(p);
        }
    }

    fn dial_now(&mut self, p: usize) {
        if self.peers[p].want {
            let peer = self.peers[p].node;
            self.out.push(Output::WantLink {
                peer,
                want: true,
                now: true,
            });
        }
    }

    fn say_goodbye(&mut self, p: usize, reason: &str, again: bool) {
        let peer = self.peers[p].node;
        let mut header = Header::new(Kind::Goodbye);
        if again {
            header.flags |= flags::AGAIN;
        }
        if self.peers[p].fence.leaves {
            header.flags |= flags::OUTDATED;
        }
        self.out.push(Output::Send {
            peer,
            channel: Channel::Data,
            header,
            body: SendBody::Bytes(reason.as_bytes().to_vec()),
        });
        self.out.push(Output::CloseLink {
            peer,
            reason: String::from(reason),
        });
    }

    /// The peer said what it must not say.
    pub(crate) fn protocol_error(&mut self, p: usize, text: String) {
        let text = format!("protocol error: {text}");
        self.incident(Severity::Error, format!("{}: {text}", self.peers[p].name));
        self.close_link(p, ConnState::ProtocolError, text);
    }

    /// Everything that must happen when a link is gone, in one step: unconfirmed writes are marked
    /// out of sync *before* any client is answered, and if there were any on a Primary, a new
    /// generation makes the peer the one that is behind.
    pub(crate) fn link_lost(&mut self, p: usize, state: ConnState, reason: String) {
        let Some(link) = self.peers[p].link.take() else {
            return;
        };
        let refused = match link.phase {
            Phase::Verdicts => self.refusal(p, &link.decisions),
            _ => None,
        };
        let caught = self.contact_lost(p, &link, refused.is_some());
        let reason = refused.unwrap_or(reason);
        let node = self.peers[p].node;
        let mut bump = vec![false; self.volumes.len()];
        let mut answered = Vec::new();
        let entries: Vec<_> = self.peers[p].log.drain().collect();
        let planned = core::mem::take(&mut self.peers[p].renegotiates) && self.peers[p].want;
        self.note_what_is_left_behind(p, &link, &entries);
        for v in 0..self.volumes.len() {
            self.copy_lost(p, v, &entries, planned);
            self.peers[p].volumes[v].will_serve = false;
            if self.peers[p].volumes[v].serves {
                self.serve_no_more(p, v);
            }
        }
        for entry in entries {
            let Some(v) = self.volume_index(entry.volume) else {
                continue;
            };
            if !entry.stable
                && !crate::sabotage::is(crate::sabotage::Mistake::ForgetLogOnDisconnect)
            {
                if let Some(bitmap) = self.volumes[v].bitmap_mut(node) {
                    bitmap.set_bytes(entry.offset, entry.len);
                }
                bump[v] |= !entry.resync && self.volumes[v].remote.is_none();
            }
            self.release_entry(&entry);
            answered.extend(entry.request);
        }
        let mut was_target = false;
        answered.extend(self.peers[p].flush_waiters.drain(..).map(|(_, key)| key));
        for v in 0..self.volumes.len() {
            let target = self.peers[p].volumes[v].replication == ReplState::SyncTarget;
            let was = self.peers[p].volumes[v].replication;
            was_target |= target || was == ReplState::WFBitMapT;
            self.take_merged_back(p, v);
            self.cancel_save(p, v);
            self.set_replication(p, v, ReplState::Off, &reason);
            let state = self.lost_disk_state(p, v);
            self.set_peer_disk(p, v, state, &reason);
            self.drop_resync(p, v);
            self.drop_verify(p, v, &reason);
            self.volumes[v].resize_to = None;
            self.peers[p].volumes[v].ended_verify = None;
            self.peers[p].volumes[v].start = SyncStart::default();
            self.peers[p].volumes[v].later = false;
            if target {
                // Keep the progress of the interrupted resync.
                self.commit(v, true, None);
                let (kind, id) = (HandlerKind::AfterResyncTarget, self.volumes[v].id);
                self.call_handler(kind, Some(p), Some(id), Then::Nothing);
            }
        }
        self.peers[p].forget_told();
        self.peers[p].views = Views::default();
        self.set_peer_role(p, Role::Unknown, &reason);
        for (v, bump) in bump.into_iter().enumerate() {
            // It may have followed a generation that it has not confirmed.
            let behind = self.volumes[v].generations.base_for(node) != 0
                && self.peers[p].volumes[v].lacks_current;
            let bump = bump && !crate::sabotage::is(crate::sabotage::Mistake::NoNewGeneration);
            if bump && !behind && self.role == Role::Primary {
                if caught != Caught::Answered {
                    self.volumes[v].bump_owed = caught == Caught::Wait;
                } else if self.volumes[v].bump_running {
                    self.volumes[v].bump_again = true;
                } else {
                    self.start_new_generation(v);
                }
            }
            self.peers[p].volumes[v].ack_due = None;
            self.bump_progress(v);
        }
        for key in answered {
            if caught == Caught::Failed
                && let Some(r) = self.requests.get_mut(key)
            {
                r.given_up = true;
            }
            self.peer_part_done(key, p);
        }
        if link.leads {
            // If they never came to an agreement, nothing was followed.
            let never = link.phase != Phase::Agreed;
            self.leader_gone(p, never);
        } else if was_target {
            self.source_gone(p);
        }
        self.peers[p].receiver.orphan();
        self.flush_ready_epochs(p);
        self.set_connection(p, state, reason.clone());
        self.link_lost_commands(p, &link, state, &reason);
        let want = self.peers[p].want;
        let next = if want {
            ConnState::Connecting
        } else {
            ConnState::StandAlone
        };
        self.set_connection(p, next, reason);
        self.out.push(Output::WantLink {
            peer: node,
            want,
            now: false,
        });
    }

    /// Queues a frame. Without a link nothing happens.
    pub(crate) fn send(&mut self, p: usize, channel: Channel, header: Header, body: SendBody) {
        let peer = &mut self.peers[p];
        let node = peer.node;
        let Some(link) = &mut peer.link else { return };
        if channel == Channel::Data {
            let payload = match &body {
                SendBody::None => 0,
                SendBody::Buf { len, .. } => u64::from(*len),
                SendBody::Bytes(bytes) => bytes.len() as u64,
            };
            if link.queued == link.sent {
                link.progress_at = self.now;
            }
            link.queued += HEADER_LEN as u64 + payload;
        }
        self.out.push(Output::Send {
            peer: node,
            channel,
            header,
            body,
        });
    }

    /// Queues a control message.
    pub(crate) fn send_message(&mut self, p: usize, channel: Channel, message: &Message) {
        let body = SendBody::Bytes(message.encode());
        self.send(p, channel, Header::new(Kind::Message), body);
    }

    /// Closes the open epoch; answers its number.
    pub(crate) fn send_barrier(&mut self, p: usize, ordered: bool) -> u64 {
        let (epoch, count) = self.peers[p].log.close_epoch();
        let mut header = Header::new(Kind::Barrier);
        (header.epoch, header.size) = (epoch, count);
        if ordered {
            header.flags |= flags::ORDERED;
        }
        self.send(p, Channel::Data, header, SendBody::None);
        epoch
    }

    /// Closes the open epoch when it is full, so that the log stays short.
    pub(crate) fn close_full_epoch(&mut self, p: usize) {
        let log = &self.peers[p].log;
        let options = &self.cfg.options;
        if log.open_count() >= u64::from(options.max_epoch_size)
            || log.open_bytes() >= options.max_epoch_bytes
            || self.log_presses(log.open_count())
        {
            self.send_barrier(p, false);
        }
    }

    /// A frame arrived.
    pub(crate) fn frame(&mut self, p: usize, header: Header, body: Body) {
        let now = self.now;
        let Some(link) = &mut self.peers[p].link else {
            if let Body::Buf(buf) = body {
                self.out.push(Output::ReleaseBuf(buf));
            }
            return;
        };
        link.last_received = now;
        match header.kind {
            Kind::Write
            | Kind::Trim
            | Kind::WriteZeroes
            | Kind::ResyncData
            | Kind::ResyncZeroes => return self.peer_write(p, header, body),
            Kind::Barrier => return self.barrier_received(p, &header),
            Kind::VerifyAsk => return self.verify_asked(p, header),
            Kind::OutOfSync => return self.out_of_sync_received(p, &header),
            Kind::RecvAck | Kind::WriteAck | Kind::ResyncAck => {
                return self.ack_received(p, &header);
            }
            Kind::NegAck => return self.nack_received(p, &header),
            Kind::ReadAsk => return self.read_asked_remotely(p, &header),
            Kind::ReadFailed => return self.read_failed_received(p, &header),
            Kind::BarrierAck => return self.barrier_ack_received(p, header.epoch, header.size),
            Kind::Ping => {
                let mut pong = Header::new(Kind::Pong);
                pong.seq = header.seq;
                return self.send(p, Channel::Control, pong, SendBody::None);
            }
            Kind::Pong => {
                link.ponged = link.ponged.max(header.seq);
                if link.ping.is_some_and(|(seq, _)| seq == header.seq) {
                    link.ping = None;
                }
                return;
            }
            _ => {}
        }
        match (header.kind, body) {
            (Kind::Bitmap, Body::Bytes(bytes)) => self.bitmap_received(p, &header, &bytes),
            (Kind::VerifyDigests, Body::Bytes(bytes)) => self.digests_received(p, &header, bytes),
            (Kind::Message, Body::Message(message)) => self.message(p, message),
            (Kind::ReadData, Body::Buf(buf)) => self.read_data_received(p, &header, buf),
            (Kind::Goodbye, Body::Bytes(bytes)) => {
                let reason = String::from_utf8_lossy(&bytes).to_string();
                let text = format!("{} closed the connection: {reason}", self.peers[p].name);
                let node = self.peers[p].node;
                self.out.push(Output::CloseLink {
                    peer: node,
                    reason: text.clone(),
                });
                let again = header.flags & flags::AGAIN != 0;
                self.peers[p].renegotiates = again;
                self.peers[p].fence.comes_back = again;
                self.peers[p].fence.parted = header.flags & flags::OUTDATED != 0;
                self.link_lost(p, ConnState::TearDown, text);
                if again {
                    self.dial_now(p);
                }
            }
            (kind, _) => self.protocol_error(p, format!("a {kind:?} frame with a wrong body")),
        }
    }

    /// The driver handed bytes to the kernel.
    pub(crate) fn send_progress(&mut self, p: usize, sent: u64) {
        let now = self.now;
        if let Some(link) = &mut self.peers[p].link
            && sent > link.sent
        {
            link.sent = sent;
            link.progress_at = now;
        }
    }

    /// Liveness and time limits of a link.
    pub(crate) fn link_tick(&mut self, p: usize) {
        let now = self.now;
        let options = &self.cfg.options;
        let patience = options.timeout * options.ko_count.max(1);
        let peer = &mut self.peers[p];
        let pinged_after = peer.pinged_after(options);
        let Some(link) = &mut peer.link else { return };
        if let Some((_, at)) = link.ping {
            if now.since(at) >= options.ping_timeout && link.last_received <= at {
                let text = format!("{} did not answer for {:?}", peer.name, now.since(at));
                return self.close_link(p, ConnState::NetworkFailure, text);
            }
            if link.last_received > at {
                link.ping = None;
            }
        }
        let silence = now.since(link.last_received);
        if link.ping.is_none() && silence >= pinged_after {
            link.ping_sequence += 1;
            link.ping = Some((link.ping_sequence, now));
            let mut ping = Header::new(Kind::Ping);
            ping.seq = link.ping_sequence;
            self.send(p, Channel::Control, ping, SendBody::None);
        }
        let options = &self.cfg.options;
        let peer = &self.peers[p];
        let Some(link) = &peer.link else { return };
        if link.handshake_ends(options).is_some_and(|at| at <= now) {
            let text = format!("{} did not finish the handshake in time", peer.name);
            return self.close_link(p, ConnState::Timeout, text);
        }
        if options.ko_count > 0 {
            let unconfirmed = peer.volumes.iter().filter_map(|v| v.ack_due);
            let owed = peer
                .log
                .front()
                .map(|e| e.sent)
                .into_iter()
                .chain(unconfirmed)
                .any(|at| now.since(at) >= patience);
            let stuck = link.queued > link.sent && now.since(link.progress_at) >= patience;
            if owed || stuck {
                let what = if stuck {
                    "does not read"
                } else {
                    "left a write unconfirmed"
                };
                let text = format!("{} {what} for {patience:?} (timeout × ko-count)", peer.name);
                return self.close_link(p, ConnState::Timeout, text);
            }
        }
        let due = |at: Instant| now.since(at) >= self.cfg.options.max_epoch_time;
        if peer.log.opened().is_some_and(due) {
            self.send_barrier(p, false);
        }
        self.asked_tick(p);
    }

    /// When [`Self::link_tick`] has something to do next.
    pub(crate) fn link_deadline(&self, p: usize) -> Option<Instant> {
        let peer = &self.peers[p];
        let link = peer.link.as_ref()?;
        let options = &self.cfg.options;
        let mut next = match link.ping {
            Some((_, at)) => at + options.ping_timeout,
            None => link.last_received + peer.pinged_after(options),
        };
        if let Some(at) = link.handshake_ends(options) {
            next = next.min(at);
        }
        if options.ko_count > 0 {
            let patience = options.timeout * options.ko_count;
            if let Some(entry) = peer.log.front() {
                next = next.min(entry.sent + patience);
            }
            for at in peer.volumes.iter().filter_map(|v| v.ack_due) {
                next = next.min(at + patience);
            }
            if link.queued > link.sent {
                next = next.min(link.progress_at + patience);
            }
        }
        if let Some(opened) = peer.log.opened() {
            next = next.min(opened + options.max_epoch_time);
        }
        if let Some(asked) = &link.asked {
            next = next.min(asked.deadline);
        }
        Some(next)
    }

    /// Sets the connection state and says why.
    pub(crate) fn set_connection(&mut self, p: usize, state: ConnState, reason: String) {
        let peer = &mut self.peers[p];
        let old = core::mem::replace(&mut peer.state, state);
        if old != state || peer.reason != reason {
            peer.reason.clone_from(&reason);
            peer.since = self.now;
        }
        if old != state {
            debug_assert!(
                states::is_known(states::CONNECTION_CHANGES, &old, &state),
                "{old:?} to {state:?}: {reason}"
            );
            let severity = match state {
                ConnState::Connected | ConnState::Connecting => Severity::Info,
                _ => Severity::Warning,
            };
            let node = peer.node;
            self.event(What::Connection(node, old, state), severity, reason);
        }
    }
}

//! A link to a peer: two sockets, bytes to frames and back.
//!
//! Invariants:
//! * the engine sees only frames whose header and payload checksums are right, in the order of their
//!   socket, and none after the `LinkDown` of their link;
//! * bulk data come only on the data socket, into buffers of the peer class; when none is free the
//!   link stops reading;
//! * a link ends in steps: what is queued is sent (for a second at most), what the peer still says
//!   is read to the end, so that no unread byte makes TCP throw the last words away.

use super::buffers::Class;
use super::disk::Core;
use super::peer_half::Half;
use super::ring::Kind as Op;
use super::slab::Key;
use rustix::net::Shutdown;
use std::os::fd::OwnedFd;
use twinblk_engine::ids::NodeId;
use twinblk_engine::input::Input;
use twinblk_engine::output::{Channel, SendBody};
use twinblk_engine::time::{Duration, Instant};
use twinblk_protocol::checksum::crc32c;
use twinblk_protocol::frame::{Header, Kind};

/// Acks and the like a peer may leave unread before the link is given up.
const MAX_CONTROL: usize = 16 << 20;
/// How long a closing link may take to say its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long the second socket is read after the first one ended.
const LAST_FRAMES: Duration = Duration::from_millis(300);

/// Where a link stands.
#[derive(Debug)]
enum State {
    /// In use.
    Live,
    /// A socket ended; the other one's last frames still count, until then.
    Ending { reason: String, until: Instant },
    /// Closed from this side: sending the rest, then reading to the end, until then. `told`: the
    /// engine knows.
    Parting {
        reason: String,
        until: Instant,
        told: bool,
    },
    /// Shut down; the ring still names its memory.
    Dead,
}

/// A link.
#[derive(Debug)]
pub(crate) struct PeerLink {
    node: NodeId,
    halves: [Half; 2],
    state: State,
    /// Bytes handed to the kernel on the data socket.
    sent: u64,
}

impl PeerLink {
    /// A link over two connected sockets, each with bytes already received.
    pub(crate) fn new(node: NodeId, data: (OwnedFd, Vec<u8>), control: (OwnedFd, Vec<u8>)) -> Self {
        let halves = [
            Half::new(data, Channel::Data),
            Half::new(control, Channel::Control),
        ];
        Self {
            node,
            halves,
            state: State::Live,
            sent: 0,
        }
    }

    /// The peer.
    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// Nothing names its memory any more: it may be dropped.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.state, State::Dead) && self.halves.iter().all(Half::is_idle)
    }

    /// Queues a frame, unless the link is ending.
    pub(crate) fn send(
        &mut self,
        core: &mut Core,
        now: Instant,
        channel: Channel,
        mut header: Header,
        body: SendBody,
    ) {
        if !matches!(self.state, State::Live) {
            return;
        }
        let queue = &mut self.halves[channel as usize].queue;
        match body {
            SendBody::None => queue.push_head(&header.encode()),
            SendBody::Buf { buf, len } => {
                header.payload_len = len;
                header.payload_crc = core.pool.crc(buf, len);
                core.pool.hold(buf);
                queue.push_head(&header.encode());
                queue.push_pool(buf, len as usize);
            }
            SendBody::Bytes(bytes) => {
                header.payload_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                header.payload_crc = if bytes.is_empty() { 0 } else { crc32c(&bytes) };
                queue.push_head(&header.encode());
                queue.push_bytes(bytes);
            }
        }
        if channel == Channel::Control && queue.left() > MAX_CONTROL {
            self.fail(
                core,
                now,
                String::from("the peer does not read its control socket"),
            );
        }
    }

    /// Reads and asks for more, as far as buffers allow.
    pub(crate) fn pump(&mut self, core: &mut Core, now: Instant, key: Key) {
        for half in 0..2 {
            if self.halves[half].intake.is_receiving() {
                continue;
            }
            let more = match self.state {
                State::Live | State::Ending { .. } => {
                    match self.halves[half].parse(core, key, self.node) {
                        Ok(more) => more,
                        Err(error) => {
                            self.fail(core, now, format!("protocol error: {error}"));
                            return self.pump(core, now, key);
                        }
                    }
                }
                State::Parting { .. } => {
                    core.pool.leave(Class::Peer, key);
                    self.halves[half].intake.clear(&mut core.pool);
                    true
                }
                State::Dead => false,
            };
            if more {
                let half = &mut self.halves[half];
                let (token, _) = half.tokens(key);
                half.intake
                    .start(&mut core.ring, &core.pool, &half.socket, token);
            }
        }
    }

    /// A receive ended.
    pub(crate) fn received(
        &mut self,
        core: &mut Core,
        now: Instant,
        key: Key,
        op: Op,
        result: i32,
    ) {
        let half = &mut self.halves[usize::from(op == Op::ControlRecv)];
        let outcome = half.intake.completed(result);
        match outcome {
            Ok(_) if !half.intake.is_eof() => {}
            Ok(_) => self.end(now, String::from("the peer closed the connection")),
            Err(errno) => self.end(now, connection_error(errno)),
        }
        self.pump(core, now, key);
    }

    /// A send ended.
    pub(crate) fn sent(&mut self, core: &mut Core, now: Instant, op: Op, result: i32) {
        let half = &mut self.halves[usize::from(op == Op::ControlSend)];
        let outcome = half.queue.completed(&mut core.pool, result);
        self.progressed(core, now, op, outcome);
    }

    /// So many bytes have left, or the socket is broken.
    fn progressed(&mut self, core: &mut Core, now: Instant, op: Op, outcome: Result<usize, i32>) {
        match outcome {
            Ok(count) if op == Op::DataSend && count > 0 => {
                self.sent += count as u64;
                if matches!(self.state, State::Live) {
                    let (peer, sent) = (self.node, self.sent);
                    core.inputs.push_back(Input::SendProgress { peer, sent });
                }
            }
            Ok(_) => {}
            Err(errno) => self.end(now, connection_error(errno)),
        }
    }

    /// Sends what is queued.
    pub(crate) fn flush(&mut self, core: &mut Core, now: Instant, key: Key) {
        if matches!(self.state, State::Dead) {
            return;
        }
        for half in 0..2 {
            let half = &mut self.halves[half];
            let (_, token) = half.tokens(key);
            let (ring, pool) = (&mut core.ring, &mut core.pool);
            let outcome = half.queue.start(ring, pool, &half.socket, token);
            self.progressed(core, now, token.kind, outcome);
        }
    }

    /// The connection broke or was closed by the peer.
    fn end(&mut self, now: Instant, reason: String) {
        if matches!(self.state, State::Live) {
            self.state = State::Ending {
                reason,
                until: now + LAST_FRAMES,
            };
        }
    }

    /// The peer said what it must not say: tell it why and close.
    fn fail(&mut self, core: &mut Core, now: Instant, reason: String) {
        if !matches!(self.state, State::Live | State::Ending { .. }) {
            return;
        }
        let mut header = Header::new(Kind::Goodbye);
        header.payload_len = u32::try_from(reason.len()).unwrap_or(0);
        header.payload_crc = crc32c(reason.as_bytes());
        let queue = &mut self.halves[Channel::Data as usize].queue;
        queue.push_head(&header.encode());
        queue.push_bytes(reason.as_bytes().to_vec());
        core.inputs.push_back(Input::LinkDown {
            peer: self.node,
            reason: reason.clone(),
        });
        self.state = State::Parting {
            reason,
            until: now + LAST_WORDS,
            told: true,
        };
    }

    /// The engine wants it closed, once what is queued is sent.
    pub(crate) fn close(&mut self, now: Instant, reason: String) {
        let told = match self.state {
            State::Live | State::Ending { .. } => false,
            State::Parting { told, .. } => told,
            State::Dead => return,
        };
        self.state = State::Parting {
            reason,
            until: now + LAST_WORDS,
            told,
        };
    }

    /// Takes the next step of an end. True when the link died in it: the sockets are shut down and
    /// the engine knows.
    pub(crate) fn step(&mut self, core: &mut Core, now: Instant) -> bool {
        let (until, parting) = match &self.state {
            State::Live | State::Dead => return false,
            State::Ending { until, .. } => (*until, false),
            State::Parting { until, .. } => (*until, true),
        };
        if parting {
            for half in &mut self.halves {
                if !half.shut && half.queue.left() == 0 && !half.queue.is_flying() {
                    half.shut = true;
                    let _ = rustix::net::shutdown(&half.socket, Shutdown::Write);
                }
            }
        }
        let ended = self
            .halves
            .iter()
            .all(|half| half.intake.is_eof() && (half.shut || !parting));
        if !ended && now < until {
            return false;
        }
        self.kill(core, None);
        true
    }

    /// Ends it at once. The engine is told if it does not know.
    pub(crate) fn kill(&mut self, core: &mut Core, why: Option<&str>) {
        let state = std::mem::replace(&mut self.state, State::Dead);
        let reason = match state {
            State::Dead | State::Parting { told: true, .. } => None,
            State::Live => Some(String::from("closed")),
            State::Ending { reason, .. } | State::Parting { reason, .. } => Some(reason),
        };
        if let Some(reason) = reason {
            let reason = why.map_or(reason, String::from);
            core.inputs.push_back(Input::LinkDown {
                peer: self.node,
                reason,
            });
        }
        for half in &mut self.halves {
            let _ = rustix::net::shutdown(&half.socket, Shutdown::Both);
            half.queue.clear(&mut core.pool);
        }
    }

    /// Gives everything back. Only once it is gone.
    pub(crate) fn dispose(mut self, core: &mut Core, key: Key) {
        for half in &mut self.halves {
            half.intake.clear(&mut core.pool);
            half.queue.clear(&mut core.pool);
        }
        core.pool.leave(Class::Peer, key);
    }

    /// When [`Self::step`] has something to do without anything else happening.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Live | State::Dead => None,
            State::Ending { until, .. } | State::Parting { until, .. } => Some(until),
        }
    }
}

fn connection_error(errno: i32) -> String {
    let error = std::io::Error::from_raw_os_error(errno);
    format!("the connection broke: {error}")
}

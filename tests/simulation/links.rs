//! How connections come about, carry frames, and end; after the driver's and the daemon's example.

use crate::net::{Frame, Link, Wire, channel, size};
use crate::plan::MS;
use crate::world::{Due, World};
use twinblk_engine::ids::BufId;
use twinblk_engine::input::{Body, Input};
use twinblk_engine::output::Channel;
use twinblk_protocol::control::Message;
use twinblk_protocol::frame::{Header, Kind};

/// How long the second socket is read after the first one ended, and how long a closed link may
/// take to say its last words.
const LAST_FRAMES: u64 = 300 * MS;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// In order: everything it said arrives.
    Stopped,
    /// Killed: the other side hears the end, and some of what was said before.
    Killed,
    /// With its machine: the other side hears nothing.
    PowerCut,
}

impl World {
    pub(crate) fn wire(&mut self, n: usize, m: usize) -> &mut Wire {
        &mut self.wires[n.min(m)][n.max(m)]
    }

    /// The link in use at `n`'s end towards `m`.
    fn link_of(&mut self, n: usize, m: usize) -> Option<usize> {
        let side = usize::from(n > m);
        self.wire(n, m).link[side]
    }

    pub(crate) fn send(
        &mut self,
        n: usize,
        m: usize,
        on: Channel,
        header: &Header,
        content: Vec<u64>,
        bytes: Vec<u8>,
    ) {
        let Some(link) = self.link_of(n, m) else {
            return;
        };
        let side = self.links[link].side(n);
        if self.links[link].closed[side] {
            return;
        }
        if header.kind == Kind::Message
            && let Ok(Message::Verdicts(verdicts)) = Message::decode(&bytes)
        {
            for verdict in verdicts {
                self.trace.count(&format!("row {}", verdict.rule));
            }
        }
        let mut header = *header;
        header.payload_len = u32::try_from(content.len() * 512 + bytes.len()).expect("small");
        let length = size(&content, &bytes);
        let kind = header.kind;
        self.trace.line(self.now, || {
            format!(
                "{n}→{m}: {kind:?} seq {} offset {} size {} epoch {}",
                header.seq, header.offset, header.size, header.epoch
            )
        });
        self.trace.count(&format!("frame {kind:?}"));
        let frame = Frame::Data {
            header: Box::new(header.encode()),
            content,
            bytes,
        };
        self.push(link, side, channel(on), frame, length);
        self.after(MS / 100, Due::Progress(link, side));
    }

    fn push(&mut self, link: usize, side: usize, c: usize, frame: Frame, length: u64) {
        let [a, b] = self.links[link].ends;
        if self.links[link].broken[side] {
            return self.links[link].streams[side][c].swallow(length);
        }
        let now = self.now;
        let slow = match self.wire(a, b).slow {
            Some((times, until)) if until > now => times,
            _ => 1,
        };
        let delay = self
            .net_rng
            .between(MS / 50, self.plan.link_delay.max(MS / 20))
            * slow;
        let at = self.links[link].streams[side][c].push(frame, self.now + delay, length);
        self.at(at, Due::Arrive(link, side, c));
    }

    pub(crate) fn progress(&mut self, link: usize, side: usize) {
        let l = &self.links[link];
        let (n, m) = (l.ends[side], l.ends[1 - side]);
        if l.closed[side] || self.nodes[n].life != l.lives[side] {
            return;
        }
        let sent = l.streams[side][0].taken();
        self.feed(
            n,
            Input::SendProgress {
                peer: Self::id(m),
                sent,
            },
        );
    }

    pub(crate) fn arrive(&mut self, link: usize, side: usize, c: usize) {
        let [a, b] = self.links[link].ends;
        if self.wire(a, b).blocked[side] {
            self.links[link].streams[side][c].owed += 1;
            return;
        }
        let l = &mut self.links[link];
        let Some(frame) = l.streams[side][c].pop() else {
            return;
        };
        let to = l.ends[1 - side];
        if l.closed[1 - side] || self.nodes[to].life != l.lives[1 - side] {
            return;
        }
        match frame {
            Frame::End => {
                l.ended[1 - side][c] = true;
                let all = l.ended[1 - side] == [true; 2];
                let delay = if all { MS / 100 } else { LAST_FRAMES };
                self.after(delay, Due::Gone(link, 1 - side));
            }
            Frame::Data {
                header,
                content,
                bytes,
            } => {
                if c == 0 {
                    self.after(MS / 100, Due::Progress(link, side));
                }
                self.hear(to, l_from(&self.links[link], side), &header, content, bytes);
            }
        }
    }

    fn hear(
        &mut self,
        n: usize,
        from: usize,
        header: &[u8; twinblk_protocol::frame::HEADER_LEN],
        content: Vec<u64>,
        bytes: Vec<u8>,
    ) {
        let header = match Header::decode(header) {
            Ok(header) => header,
            Err(e) => return self.violate("frames_are_understood", format!("{e:?}")),
        };
        let body = match header.kind {
            Kind::Write | Kind::ResyncData | Kind::ReadData => {
                Body::Buf(BufId(self.nodes[n].new_buf(content)))
            }
            Kind::Message => match Message::decode(&bytes) {
                Ok(message) => Body::Message(message),
                Err(e) => return self.violate("frames_are_understood", format!("{e:?}")),
            },
            _ if bytes.is_empty() => Body::None,
            _ => Body::Bytes(bytes.into_boxed_slice()),
        };
        let peer = Self::id(from);
        self.feed(n, Input::Frame { peer, header, body });
    }

    /// A node closes its end: what was queued still travels, then the end.
    pub(crate) fn close(&mut self, n: usize, m: usize) {
        let Some(link) = self.link_of(n, m) else {
            return;
        };
        let side = self.links[link].side(n);
        if core::mem::replace(&mut self.links[link].closed[side], true) {
            return;
        }
        for c in 0..2 {
            self.push(link, side, c, Frame::End, 0);
        }
        let delay = self.net_rng.between(MS / 10, 400 * MS);
        self.after(delay, Due::Gone(link, side));
    }

    /// An end of a link is gone for good; its engine hears of it.
    pub(crate) fn gone(&mut self, link: usize, side: usize) {
        let [a, b] = self.links[link].ends;
        let (n, m) = (self.links[link].ends[side], self.links[link].ends[1 - side]);
        let life = self.links[link].lives[side];
        if self.wire(a, b).link[side] != Some(link) || self.nodes[n].life != life {
            return;
        }
        self.wire(a, b).link[side] = None;
        if !core::mem::replace(&mut self.links[link].closed[side], true) {
            for c in 0..2 {
                self.push(link, side, c, Frame::End, 0);
            }
        }
        let input = Input::LinkDown {
            peer: Self::id(m),
            reason: "the connection was closed".to_owned(),
        };
        self.feed(n, input);
        self.dial_soon(n, m, false);
    }

    /// The links of a node that is gone.
    pub(crate) fn ends_of_dead(&mut self, n: usize, m: usize, how: Death) {
        let Some(link) = self.link_of(n, m) else {
            return;
        };
        let side = self.links[link].side(n);
        self.wire(n, m).link[side] = None;
        if how != Death::Stopped {
            self.lose_frames(link, side);
        }
        let told = core::mem::replace(&mut self.links[link].closed[side], true);
        if how != Death::PowerCut && !told {
            for c in 0..2 {
                self.push(link, side, c, Frame::End, 0);
            }
        }
    }

    /// Some of the frames one side has sent are lost: from a random one on, on each socket.
    fn lose_frames(&mut self, link: usize, side: usize) {
        for c in 0..2 {
            let frames = &mut self.links[link].streams[side][c].frames;
            let keep = self.net_rng.index(frames.len() + 1);
            frames.truncate(keep);
        }
    }

    /// The connection of two nodes is reset. `notice`: which sides hear of it.
    pub(crate) fn reset(&mut self, n: usize, m: usize, notice: [bool; 2]) {
        let (a, b) = (n.min(m), n.max(m));
        for (side, notices) in notice.into_iter().enumerate() {
            let Some(link) = self.wire(a, b).link[side] else {
                continue;
            };
            for from in 0..2 {
                self.lose_frames(link, from);
                // Whatever is sent from now on goes nowhere.
                self.links[link].broken[from] = true;
            }
            if notices {
                let delay = self.net_rng.below(100 * MS);
                self.after(delay, Due::Gone(link, side));
            }
        }
    }

    /// Somebody wants a connection.
    pub(crate) fn dial_soon(&mut self, n: usize, m: usize, now: bool) {
        let (a, b) = (n.min(m), n.max(m));
        if core::mem::replace(&mut self.wire(a, b).dialling, true) {
            return;
        }
        let delay = if now {
            self.net_rng.between(MS / 10, 20 * MS)
        } else {
            self.net_rng.between(50 * MS, 1500 * MS)
        };
        self.after(delay, Due::Dial(a, b));
    }

    pub(crate) fn dial(&mut self, a: usize, b: usize) {
        self.wire(a, b).dialling = false;
        let runs = |w: &Self, n: usize| w.nodes[n].engine.is_some() && !w.nodes[n].stopped;
        if !runs(self, a) || !self.nodes[a].want[b] || self.wire(a, b).link[0].is_some() {
            return;
        }
        let reached = runs(self, b)
            && self.nodes[b].paused_until <= self.now
            && self.wire(a, b).blocked == [false; 2];
        if !reached || !self.nodes[b].want[a] {
            let reason = if reached {
                "the peer is StandAlone"
            } else {
                "no answer"
            };
            let input = Input::DialFailed {
                peer: Self::id(b),
                reason: reason.to_owned(),
            };
            self.feed(a, input);
            return self.dial_soon(a, b, false);
        }
        // Half-open: the acceptor's old end is replaced.
        if let Some(old) = self.wire(a, b).link[1] {
            self.gone(old, 1);
            if self.wire(a, b).link[1].is_some() || !runs(self, b) {
                return self.dial_soon(a, b, false);
            }
        }
        let lives = [self.nodes[a].life, self.nodes[b].life];
        self.links.push(Link::new([a, b], lives));
        let link = self.links.len() - 1;
        self.wire(a, b).link = [Some(link); 2];
        self.trace.count("link up");
        if self.wire(a, b).storm_until > self.now {
            let delay = self.net_rng.between(MS / 10, 60 * MS);
            self.after(delay, Due::Storm(a, b));
        }
        let first = self.net_rng.index(2);
        for side in [first, 1 - first] {
            let (n, m) = ([a, b][side], [b, a][side]);
            if self.wire(a, b).link[side] == Some(link) {
                self.feed(n, Input::LinkUp { peer: Self::id(m) });
            }
        }
    }

    pub(crate) fn unblock(&mut self, a: usize, b: usize, side: usize) {
        if !core::mem::take(&mut self.wire(a, b).blocked[side]) {
            return;
        }
        for link in 0..self.links.len() {
            if self.links[link].ends != [a, b] {
                continue;
            }
            for c in 0..2 {
                let owed = core::mem::take(&mut self.links[link].streams[side][c].owed);
                for _ in 0..owed {
                    let delay = self.net_rng.between(MS, 200 * MS);
                    self.after(delay, Due::Arrive(link, side, c));
                }
            }
        }
    }
}

fn l_from(link: &Link, side: usize) -> usize {
    link.ends[side]
}

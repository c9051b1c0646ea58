//! Clients of the export: several at once, on overlapping ranges, with unique contents.

use crate::disk::{Stamp, stamp};
use crate::node::{VOLUME, name};
use crate::oracle::{Completion, Cover};
use crate::plan::{MS, Plan};
use crate::rng::Rng;
use crate::world::{Due, World};
use std::collections::BTreeMap;
use std::ops::Range;
use twinblk_engine::config::{OnIoError, Protocol};
use twinblk_engine::event::{DiskState, ReplState, Role};
use twinblk_engine::ids::{BufId, ClientId, ReqTag};
use twinblk_engine::input::{ClientRequest, Input, RequestKind};
use twinblk_engine::output::ReplyError;

/// A request under way.
#[derive(Debug)]
pub struct Request {
    /// Who submitted it.
    pub client: usize,
    /// Where.
    pub node: usize,
    /// What.
    pub kind: RequestKind,
    /// Sectors.
    pub range: Range<usize>,
    fua: bool,
    /// Number of a write.
    write: u32,
    /// What a read may return.
    may: Vec<Vec<Stamp>>,
    /// What one may return that is served from the other node's copy (of two).
    may_remote: Vec<Vec<Stamp>>,
    /// First write submitted after it.
    since: u32,
    /// What a flush covers.
    covers: Cover,
    /// Peers its node was sending to: with the count of ended links, and of their lives.
    peers: Vec<(usize, u64, u64)>,
    buf: Option<u32>,
    /// The client is gone: nobody hears the answer.
    orphan: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Clients {
    rng: Rng,
    /// Where each holds the export: node and the engine's number.
    at: Vec<Option<(usize, ClientId)>>,
    /// All requests, by tag.
    pub requests: BTreeMap<u64, Request>,
    next_tag: u64,
    /// Requests answered with success.
    pub served: u64,
}

impl Clients {
    /// Clients that do nothing yet.
    pub fn new(plan: &Plan) -> Self {
        Self {
            rng: Rng::stream(plan.seed, 6),
            at: vec![None; plan.clients],
            requests: BTreeMap::new(),
            next_tag: 0,
            served: 0,
        }
    }

    /// A node is gone, and with it every answer it owed.
    pub fn node_died(&mut self, n: usize) {
        self.requests.retain(|_, r| r.node != n);
        for at in &mut self.at {
            if at.is_some_and(|(node, _)| node == n) {
                *at = None;
            }
        }
    }

    /// Requests of a node that write to this range.
    fn writes_on(&self, n: usize, range: &Range<usize>) -> bool {
        self.requests.values().any(|r| {
            let writes = !matches!(r.kind, RequestKind::Read | RequestKind::Flush);
            r.node == n && writes && r.range.start < range.end && range.start < r.range.end
        })
    }
}

impl World {
    pub(crate) fn client_acts(&mut self, c: usize) {
        if !self.ending {
            let think = self.clients.rng.between(MS / 100, self.plan.think);
            self.after(think, Due::Client(c));
        }
        match self.clients.at[c] {
            None if self.ending => {}
            None => self.client_enters(c),
            Some((n, id)) => {
                let open = self
                    .clients
                    .requests
                    .values()
                    .filter(|r| r.client == c && !r.orphan)
                    .count();
                if self.ending && open == 0 || self.clients.rng.per_mille(3) {
                    self.client_leaves(c, n, id);
                } else if self.ending {
                    self.after(10 * MS, Due::Client(c));
                } else if open < self.plan.depth && self.nodes[n].paused_until <= self.now {
                    self.client_asks(c, n);
                }
            }
        }
    }

    /// It looks for a Primary.
    fn client_enters(&mut self, c: usize) {
        let start = self.clients.rng.index(self.plan.nodes);
        for i in 0..self.plan.nodes {
            let n = (start + i) % self.plan.nodes;
            if self.nodes[n].paused_until > self.now || self.nodes[n].stopped {
                continue;
            }
            let Some(engine) = &mut self.nodes[n].engine else {
                continue;
            };
            if let Ok(id) = engine.open_export(VOLUME, format!("client {c}")) {
                self.clients.at[c] = Some((n, id));
                self.nodes[n].holders.push((c, id));
                return;
            }
        }
    }

    pub(crate) fn client_leaves(&mut self, c: usize, n: usize, id: ClientId) {
        self.clients.at[c] = None;
        for r in self.clients.requests.values_mut() {
            r.orphan |= r.client == c;
        }
        self.nodes[n].holders.retain(|&(client, _)| client != c);
        let clock = self.nodes[n].clock(self.now);
        if let Some(engine) = &mut self.nodes[n].engine {
            let mut out = Vec::new();
            engine.close_export(id, clock, &mut out);
            self.carry_out_all(n, out);
        }
    }

    /// All clients of a node leave.
    pub(crate) fn clients_leave(&mut self, n: usize) {
        for (c, id) in self.nodes[n].holders.clone() {
            self.client_leaves(c, n, id);
        }
    }

    fn client_asks(&mut self, c: usize, n: usize) {
        let span = self.plan.span.min(self.nodes[n].disk.data().len());
        let most = self.plan.longest_write();
        let rng = &mut self.clients.rng;
        let (kind, longest) = match rng.below(20) {
            0..=3 => (RequestKind::Read, 64),
            4..=14 => (RequestKind::Write, 64),
            15 | 16 => (RequestKind::Flush, 0),
            17 => (RequestKind::Trim, 64),
            18 => (RequestKind::WriteZeroes { no_hole: false }, 64),
            _ => (RequestKind::WriteZeroes { no_hole: true }, 64),
        };
        let fua = !matches!(kind, RequestKind::Read | RequestKind::Flush) && rng.per_mille(200);
        let range = if longest == 0 {
            0..0
        } else {
            let len: usize = rng.pick(&[1, 1, 8, 8, 8, 16, longest]);
            let len = match kind {
                RequestKind::Write => len.min(most),
                _ => len,
            };
            let len = len.min(span);
            let at = rng.index(span - len + 1);
            at..at + len
        };
        self.ask(c, n, kind, range, fua);
    }

    /// Has the Primary serve a write. Answers how many requests were served before; `None` without one.
    pub(crate) fn ask_the_primary(&mut self) -> Option<u64> {
        let serves = |n: &usize| {
            let node = &self.nodes[*n];
            node.role == Role::Primary && node.disk_state == DiskState::UpToDate
        };
        let n = self.left().find(serves)?;
        let before = self.clients.served;
        self.ask(0, n, RequestKind::Write, 0..1, false);
        Some(before)
    }

    /// Hands a request to an engine. Answers its tag.
    pub fn ask(
        &mut self,
        c: usize,
        n: usize,
        kind: RequestKind,
        range: Range<usize>,
        fua: bool,
    ) -> u64 {
        self.clients.next_tag += 1;
        let tag = self.clients.next_tag;
        let node = &self.nodes[n];
        let peers = (0..self.plan.nodes)
            .filter(|&m| m != n && node.sends_to(m))
            .map(|m| (m, node.replication[m].1, self.nodes[m].life))
            .collect();
        let since = self.oracle.next_write();
        let (mut write, mut buf, mut may, mut covers) = (0, None, Vec::new(), Cover::default());
        let mut may_remote = Vec::new();
        let server = self.serves_for(n);
        match kind {
            RequestKind::Read => {
                may = self.oracle.may_read(n, range.clone());
                if self.plan.nodes == 2 {
                    may_remote = self.oracle.may_read(1 - n, range.clone());
                }
                buf = Some(self.nodes[n].new_buf(vec![0; range.len()]));
            }
            RequestKind::Flush => covers = self.oracle.to_cover(server),
            RequestKind::Write => {
                write = self.oracle.submitted(range.clone(), false);
                let content = range.clone().map(|s| stamp(write, s)).collect();
                buf = Some(self.nodes[n].new_buf(content));
            }
            RequestKind::Trim | RequestKind::WriteZeroes { .. } => {
                write = self.oracle.submitted(range.clone(), true);
            }
        }
        self.trace.line(self.now, || {
            format!("{n}: client {c} asks {kind:?} {range:?} fua {fua} (tag {tag}, write {write})")
        });
        let request = ClientRequest {
            tag: ReqTag(tag),
            volume: VOLUME,
            kind,
            offset: range.start as u64 * 512,
            len: range.len() as u64 * 512,
            fua,
            buf: buf.map(BufId),
        };
        self.clients.requests.insert(
            tag,
            Request {
                client: c,
                node: n,
                kind,
                range,
                fua,
                write,
                may,
                may_remote,
                since,
                covers,
                peers,
                buf,
                orphan: false,
            },
        );
        self.feed(n, Input::Client(request));
        tag
    }

    /// Whose copy the clients of `n` see: its own, or that of the other of two nodes.
    pub(crate) fn serves_for(&self, n: usize) -> usize {
        let node = &self.nodes[n];
        if self.plan.nodes == 2 && node.disk_state != DiskState::UpToDate {
            1 - n
        } else {
            n
        }
    }

    /// A request is answered; a read perhaps with the buffer of an answer from elsewhere.
    pub(crate) fn replied(
        &mut self,
        n: usize,
        tag: ReqTag,
        result: Result<(), ReplyError>,
        other: Option<u32>,
    ) {
        let Some(r) = self.clients.requests.remove(&tag.0) else {
            let text = format!("node {n} answers request {} which is not open", tag.0);
            return self.violate("a_request_is_answered_once", text);
        };
        let found = match (r.kind, r.buf) {
            (RequestKind::Read, Some(buf)) => {
                let own = self.nodes[n].bufs.remove(&buf);
                match other {
                    Some(other) => self.nodes[n].bufs.remove(&other),
                    None => own,
                }
            }
            _ => None,
        };
        self.trace.line(self.now, || {
            format!("{n}: answers tag {} {result:?}", tag.0)
        });
        if let Err(error) = result {
            self.trace.count("reply error");
            return self.error_has_a_cause(n, &error);
        }
        self.clients.served += 1;
        self.trace.count(match r.kind {
            RequestKind::Read => "served read",
            RequestKind::Write => "served write",
            RequestKind::Trim => "served trim",
            RequestKind::WriteZeroes { .. } => "served zeroes",
            RequestKind::Flush => "served flush",
        });
        let node = &self.nodes[n];
        // Peers that were being sent to from the beginning to the end, and did not die meanwhile: an
        // ack that outlives its sender says nothing about what the next life finds.
        let peers: Vec<usize> = r
            .peers
            .iter()
            .filter(|&&(m, ends, life)| {
                node.sends_to(m) && node.replication[m].1 == ends && self.nodes[m].life == life
            })
            .map(|&(m, ..)| m)
            .collect();
        let alone = (0..self.plan.nodes).all(|m| m == n || !node.sends_to(m));
        let protocol = self.plan.protocol;
        let server = self.serves_for(n);
        if server != n && r.kind != RequestKind::Read {
            self.trace.count("served without a disk");
            match r.kind {
                RequestKind::Flush => self.oracle.flushed(server, r.covers, &[]),
                _ => self.oracle.completed(
                    server,
                    r.write,
                    &Completion {
                        stable: true,
                        alone: true,
                        ..Completion::default()
                    },
                ),
            }
            return;
        }
        match r.kind {
            RequestKind::Read if other.is_some() => {
                self.trace.count("served read without a disk");
                let found = found.unwrap_or_default();
                // It was read there before it came here: later writes may have ended since.
                let quiet = false;
                let verdict =
                    self.oracle
                        .read(1 - n, r.range.start, &found, &r.may_remote, r.since, quiet);
                self.judge("reads_return_what_was_written", verdict);
            }
            RequestKind::Read => {
                let found = found.unwrap_or_default();
                let quiet = !self.clients.writes_on(n, &r.range);
                let verdict = self
                    .oracle
                    .read(n, r.range.start, &found, &r.may, r.since, quiet);
                self.judge("reads_return_what_was_written", verdict);
            }
            RequestKind::Flush => {
                let peers = if protocol == Protocol::C {
                    peers
                } else {
                    Vec::new()
                };
                self.oracle.flushed(n, r.covers, &peers);
            }
            _ => {
                let mut done = Completion {
                    stable: r.fua || self.plan.write_through,
                    alone,
                    ..Completion::default()
                };
                match protocol {
                    Protocol::A => {}
                    Protocol::B => done.in_memory = peers,
                    Protocol::C => done.on_disk = peers,
                }
                self.oracle.completed(n, r.write, &done);
            }
        }
    }

    /// A client gets an error only from a node that cannot serve it.
    fn error_has_a_cause(&mut self, n: usize, error: &ReplyError) {
        let stops = self.admin.stopping(n) || self.admin.evicted[n];
        let node = &self.nodes[n];
        let serves = node.role == Role::Primary && node.disk_state == DiskState::UpToDate;
        // `secondary --force`, and what a demotion finds left behind when its peer is lost.
        let given_up = error.text.contains("given up");
        let passes_on = self.plan.diskless.on_io_error == OnIoError::PassOn;
        let mirrored = (0..self.plan.nodes).any(|m| {
            let state = node.replication[m].0;
            let mirrors = state == ReplState::Established
                || matches!(state, ReplState::VerifyS | ReplState::VerifyT);
            m != n && mirrors && node.peer_disk[m] == DiskState::UpToDate
        });
        if passes_on && error.text.contains("failed to") && !mirrored && serves {
            return self.trace.count("an error was passed on");
        }
        if serves && !stops && !given_up {
            let text = format!("{} answers {error:?} although it serves", name(n));
            self.violate("errors_have_a_cause", text);
        }
    }
}

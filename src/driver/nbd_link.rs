//! One NBD connection in its transmission phase: bytes to requests, answers to bytes.
//!
//! Invariants:
//! * a connection has at most [`MAX_OPEN`] requests under way and holds at most half of the client
//!   buffers; beyond that it stops reading, so nothing grows with a client that floods or does not
//!   read its answers; all reads but the first of each connection share half of them, so that
//!   clients that do not take their answers leave room for others;
//! * a refused write is answered when its payload has been read: clients take an answer for a request
//!   they have not finished sending as the end of the world;
//! * a connection that ends early leaves its requests to the engine; their answers are dropped, and
//!   the export counts as held until the last of them is there.

use super::buffers::{Class, Pool};
use super::disk::Core;
use super::intake::Intake;
use super::nbd_reply::{Ask, Dialect, Order, StatusAsk};
use super::ring::{Kind, Token};
use super::send_queue::SendQueue;
use super::slab::{Key, Slab};
use rustix::net::Shutdown;
use std::os::fd::OwnedFd;
use tokio::sync::oneshot::Sender;
use twinblk_engine::ids::{BufId, ClientId, ReqTag, VolumeId};
use twinblk_engine::input::{ClientRequest, Input, RequestKind};
use twinblk_engine::output::ReplyError;
use twinblk_engine::time::Instant;
use twinblk_protocol::frame::MAX_PAYLOAD;

/// Staging area of a connection.
const STAGING: usize = 128 * 1024;
/// Requests under way per connection, answers not sent included.
pub(crate) const MAX_OPEN: usize = 256;

/// A request the engine has.
#[derive(Debug)]
pub(crate) struct Pending {
    /// The connection it came on.
    pub(crate) link: Key,
    /// What its answer needs.
    pub(crate) ask: Ask,
    /// Space of a read; its hold is the connection's.
    pub(crate) read: Option<BufId>,
    /// Bytes of buffer it accounts for.
    pub(crate) bytes: usize,
}

/// What comes next on the connection.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// A request's header.
    Header,
    /// Nothing until there is a buffer for this request.
    Buffer(Ask),
    /// The payload of a write.
    Payload(Ask, BufId),
    /// The payload of a refused write, to be thrown away before the answer.
    Skip(Refusal),
}

/// An error to answer with.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    cookie: u64,
    errno: i32,
    text: &'static str,
}

/// Where the connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In use.
    Open,
    /// No more requests; the answers are still sent.
    Finishing,
    /// Shut down; the ring or the engine still has something of it.
    Dead,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct NbdLink {
    pub(crate) volume: VolumeId,
    /// Until it is told that it is gone.
    client: Option<ClientId>,
    socket: OwnedFd,
    dialect: Dialect,
    /// Zeroing is cheap on this volume's disk.
    fast_zero: bool,
    intake: Intake,
    queue: SendQueue,
    stage: Stage,
    state: State,
    /// Requests the engine or the block status has.
    open: usize,
    /// Bytes of buffers they hold.
    held: usize,
    /// Counts receives and sends that moved bytes.
    progress: u64,
    /// Dropped with the connection: somebody waits for that.
    kept: Option<Sender<()>>,
    /// What that count was when it was last looked at and found changed.
    seen: (u64, Instant),
}

impl NbdLink {
    /// A connection that was negotiated.
    pub(crate) fn new(
        (client, kept): (ClientId, Option<Sender<()>>),
        volume: VolumeId,
        socket: OwnedFd,
        dialect: Dialect,
        initial: &[u8],
        fast_zero: bool,
    ) -> Self {
        Self {
            volume,
            client: Some(client),
            socket,
            dialect,
            fast_zero,
            intake: Intake::new(STAGING, initial),
            queue: SendQueue::default(),
            stage: Stage::Header,
            state: State::Open,
            open: 0,
            held: 0,
            progress: 0,
            kept,
            seen: (0, Instant::default()),
        }
    }

    /// What was negotiated.
    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Takes requests out of what was received, as far as limits and buffers allow, and asks for
    /// more bytes when it needs them.
    pub(crate) fn pump(
        &mut self,
        core: &mut Core,
        key: Key,
        requests: &mut Slab<Pending>,
        status: &mut Vec<(Key, StatusAsk)>,
    ) {
        while self.state == State::Open && !self.intake.is_receiving() {
            let more = match self.stage {
                Stage::Header => {
                    if self.open + self.queue.messages() >= MAX_OPEN {
                        return;
                    }
                    self.header(core, key, requests, status)
                }
                Stage::Buffer(ask) => {
                    let Some(buf) = self.buffer(core, key, &ask) else {
                        return;
                    };
                    self.with_buffer(core, key, requests, ask, buf)
                }
                Stage::Payload(ask, buf) => match self.intake.received() {
                    Some(_) => {
                        self.stage = Stage::Header;
                        self.submit(core, key, requests, ask, Some(buf));
                        false
                    }
                    None => true,
                },
                Stage::Skip(refusal) => {
                    let skipped = self.intake.skipped();
                    if skipped {
                        self.stage = Stage::Header;
                        self.refuse(refusal);
                    }
                    !skipped
                }
            };
            if more && self.state == State::Open {
                if self.intake.is_eof() {
                    self.finish(core, key);
                } else {
                    let token = Token {
                        kind: Kind::NbdRecv,
                        key,
                    };
                    self.intake
                        .start(&mut core.ring, &core.pool, &self.socket, token);
                }
            }
        }
    }

    /// The next header. True when more bytes are needed.
    fn header(
        &mut self,
        core: &mut Core,
        key: Key,
        requests: &mut Slab<Pending>,
        status: &mut Vec<(Key, StatusAsk)>,
    ) -> bool {
        let Some((order, used)) = self.dialect.next(self.intake.bytes()) else {
            return true;
        };
        self.intake.consume(used);
        match order {
            Order::Garbage => self.kill(core, key),
            Order::Disconnect => self.finish(core, key),
            Order::Refused {
                cookie,
                errno,
                text,
                skip,
            } => {
                let refusal = Refusal {
                    cookie,
                    errno,
                    text,
                };
                self.refuse_behind(refusal, skip);
            }
            Order::Cache { cookie } => self.dialect.done(&mut self.queue, cookie),
            Order::BlockStatus(ask) => {
                self.open += 1;
                status.push((key, ask));
            }
            Order::Request(ask) if ask.needs_buffer() => {
                let largest = self.share(&core.pool).min(MAX_PAYLOAD as usize);
                if ask.len as usize > largest {
                    let writes = ask.kind == RequestKind::Write;
                    let refusal = Refusal {
                        cookie: ask.cookie,
                        errno: libc::EINVAL,
                        text: "longer than the maximum block size",
                    };
                    self.refuse_behind(refusal, if writes { ask.len } else { 0 });
                } else {
                    self.stage = Stage::Buffer(ask);
                }
            }
            Order::Request(ask) if ask.fast && !self.fast_zero => {
                let text = "this disk cannot zero a range faster than writing it";
                self.dialect
                    .error(&mut self.queue, ask.cookie, libc::EOPNOTSUPP, text);
            }
            Order::Request(ask) => self.submit(core, key, requests, ask, None),
        }
        false
    }

    fn refuse(&mut self, refusal: Refusal) {
        let Refusal {
            cookie,
            errno,
            text,
        } = refusal;
        self.dialect.error(&mut self.queue, cookie, errno, text);
    }

    /// Refuses a request once so many bytes of payload are out of the way.
    fn refuse_behind(&mut self, refusal: Refusal, payload: u64) {
        if payload == 0 {
            return self.refuse(refusal);
        }
        self.intake.skip(payload);
        self.stage = Stage::Skip(refusal);
    }

    /// Bytes of buffers one connection may hold.
    fn share(&self, pool: &Pool) -> usize {
        pool.largest(Class::Client) / 2
    }

    fn buffer(&mut self, core: &mut Core, key: Key, ask: &Ask) -> Option<BufId> {
        let len = ask.len as usize;
        let held = self.held + self.queue.left();
        if held > 0 && held + len > self.share(&core.pool) {
            // Nobody shall wait behind one who waits for itself.
            core.pool.leave(Class::Client, key);
            return None;
        }
        // A read's buffer is free again only when the client has taken the answer. So all reads but
        // the first of each connection share half of the class: clients that do not take theirs
        // leave room for one that does.
        let another = ask.kind == RequestKind::Read && held > 0;
        let left = core.pool.room_left(Class::Client);
        if another && left < self.share(&core.pool) + len {
            core.pool.leave(Class::Client, key);
            return None;
        }
        core.pool.alloc_in_turn(Class::Client, key, len)
    }

    /// A read or write has its buffer. False: go on at once.
    fn with_buffer(
        &mut self,
        core: &mut Core,
        key: Key,
        requests: &mut Slab<Pending>,
        ask: Ask,
        buf: BufId,
    ) -> bool {
        if ask.kind == RequestKind::Write {
            self.intake
                .receive_into(&mut core.pool, buf, ask.len as usize);
            self.stage = Stage::Payload(ask, buf);
        } else {
            self.stage = Stage::Header;
            self.submit(core, key, requests, ask, Some(buf));
        }
        false
    }

    /// Hands a request to the engine.
    fn submit(
        &mut self,
        core: &mut Core,
        key: Key,
        requests: &mut Slab<Pending>,
        ask: Ask,
        buf: Option<BufId>,
    ) {
        let bytes = buf.map_or(0, |buf| core.pool.room(buf));
        let read = buf.filter(|_| ask.kind == RequestKind::Read);
        self.open += 1;
        self.held += bytes;
        let tag = requests.insert(Pending {
            link: key,
            ask,
            read,
            bytes,
        });
        core.inputs.push_back(Input::Client(ClientRequest {
            tag: ReqTag(tag.raw()),
            volume: self.volume,
            kind: ask.kind,
            offset: ask.offset,
            len: ask.len,
            fua: ask.fua,
            buf,
        }));
    }

    /// The engine answered.
    pub(crate) fn answer(
        &mut self,
        core: &mut Core,
        pending: Pending,
        result: Result<(), ReplyError>,
    ) {
        let Pending {
            ask, read, bytes, ..
        } = pending;
        self.open -= 1;
        self.held -= bytes;
        let dead = self.state == State::Dead;
        match (result, read) {
            (Ok(()), Some(buf)) if !dead => {
                self.dialect.data(&mut self.queue, &ask, buf);
                return;
            }
            (Ok(()), None) if !dead => self.dialect.done(&mut self.queue, ask.cookie),
            (Err(ReplyError { errno, text }), _) if !dead => {
                self.dialect.error(&mut self.queue, ask.cookie, errno, text);
            }
            _ => {}
        }
        if let Some(buf) = read {
            core.pool.release(buf);
        }
    }

    /// The block status is found out.
    pub(crate) fn answer_status(&mut self, fill: impl FnOnce(&Dialect, &mut SendQueue)) {
        self.open -= 1;
        if self.state != State::Dead {
            fill(&self.dialect, &mut self.queue);
        }
    }

    /// A receive ended.
    pub(crate) fn received(&mut self, core: &mut Core, key: Key, result: i32) {
        self.progress += u64::from(result > 0);
        let broken = self.intake.completed(result).is_err();
        if self.state != State::Open {
            return;
        }
        if broken {
            self.kill(core, key);
        } else if self.intake.is_eof() {
            self.finish(core, key);
        }
    }

    /// A send ended.
    pub(crate) fn sent(&mut self, core: &mut Core, key: Key, result: i32) {
        self.progress += u64::from(result > 0);
        if self.queue.completed(&mut core.pool, result).is_err() {
            self.kill(core, key);
        }
    }

    /// No more requests come; those under way are still answered.
    fn finish(&mut self, core: &mut Core, key: Key) {
        if self.state == State::Open {
            self.state = State::Finishing;
            core.pool.leave(Class::Client, key);
        }
    }

    /// Ends the connection at once.
    pub(crate) fn kill(&mut self, core: &mut Core, key: Key) {
        core.pool.leave(Class::Client, key);
        self.state = State::Dead;
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        self.queue.clear(&mut core.pool);
    }

    /// Since when the client has neither taken a byte of the answers that hold buffers nor sent one
    /// of the payload that holds a buffer; `None` if it holds none for that reason. The `first`
    /// look begins to measure.
    pub(crate) fn stalled_since(&mut self, now: Instant, first: bool) -> Option<Instant> {
        let holds = self.queue.left() > 0 || matches!(self.stage, Stage::Payload(..));
        if first || self.state == State::Dead || !holds || self.seen.0 != self.progress {
            self.seen = (self.progress, now);
            return None;
        }
        Some(self.seen.1)
    }

    /// Sends what is queued. True when the connection is gone for good.
    pub(crate) fn flush(&mut self, core: &mut Core, key: Key) -> bool {
        if self.state != State::Dead {
            let token = Token {
                kind: Kind::NbdSend,
                key,
            };
            let (ring, pool) = (&mut core.ring, &mut core.pool);
            match self.queue.start(ring, pool, &self.socket, token) {
                Ok(count) => self.progress += u64::from(count > 0),
                Err(_) => self.kill(core, key),
            }
        }
        let sent = self.queue.left() == 0 && !self.queue.is_flying();
        if self.state == State::Finishing && sent && self.open == 0 {
            self.kill(core, key);
        }
        let idle = !self.intake.is_receiving() && !self.queue.is_flying();
        self.state == State::Dead && idle && self.open == 0
    }

    /// The client, once, as soon as it holds the export no more: nobody reads the answers to what the engine
    /// still has of its requests, which may wait for long. The kernel's own connection counts until it is
    /// `over`: its device may be mounted.
    pub(crate) fn take_gone(&mut self, over: bool) -> Option<ClientId> {
        let gone = over || self.state != State::Open && self.kept.is_none();
        self.client.take_if(|_| gone)
    }

    /// Forgets requests the engine will not answer any more.
    pub(crate) fn forget_requests(&mut self) {
        (self.open, self.held) = (0, 0);
    }

    /// Gives everything back. Only once it is gone.
    pub(crate) fn dispose(mut self, core: &mut Core, key: Key) {
        core.pool.leave(Class::Client, key);
        self.intake.clear(&mut core.pool);
        self.queue.clear(&mut core.pool);
    }
}

//! Between the NBD codec and the engine's words: requests in, answers out, for one connection.

use super::send_queue::SendQueue;
use twinblk_engine::ids::BufId;
use twinblk_engine::input::RequestKind;
use userspace_nbd::block_status::{Extents, block_status};
use userspace_nbd::error::Errno;
use userspace_nbd::negotiation::Session;
use userspace_nbd::reply;
use userspace_nbd::request::{Command, CommandFlags, Limits, REQUEST_LEN, Request};

/// Name of the context for allocation.
const ALLOCATION: &str = "base:allocation";
/// Name of the context for ranges a peer lacks; flag 1 = out of sync.
const DIRTY: &str = "twinblk:dirty";

/// A request in the engine's words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    /// Comes back in the answer.
    pub(crate) cookie: u64,
    /// What is asked.
    pub(crate) kind: RequestKind,
    /// Bytes from the start of the volume.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// Must be stable before it is answered.
    pub(crate) fua: bool,
    /// Zeroing shall fail rather than be slow.
    pub(crate) fast: bool,
}

impl Ask {
    /// Data come or go with it.
    pub(crate) fn needs_buffer(&self) -> bool {
        matches!(self.kind, RequestKind::Read | RequestKind::Write)
    }
}

/// A block status request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatusAsk {
    /// Comes back in the answer.
    pub(crate) cookie: u64,
    /// Bytes from the start of the volume.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: u32,
    /// Only the first extent is wanted.
    pub(crate) one: bool,
}

impl StatusAsk {
    /// An answer to fill in.
    pub(crate) fn extents(&self) -> Extents {
        Extents::new(self.len, self.one)
    }
}

/// What the next bytes of a connection mean.
#[derive(Debug)]
pub(crate) enum Order {
    /// A request for the engine.
    Request(Ask),
    /// What is the range made of?
    BlockStatus(StatusAsk),
    /// Prefetch: nothing to do.
    Cache { cookie: u64 },
    /// A request that cannot be; `skip` bytes of payload follow it.
    Refused {
        cookie: u64,
        errno: i32,
        text: &'static str,
        skip: u64,
    },
    /// The client goes.
    Disconnect,
    /// Not NBD: the connection cannot go on.
    Garbage,
}

/// What was negotiated, as far as requests and answers depend on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dialect {
    limits: Limits,
    allocation: Option<u32>,
    dirty: Option<u32>,
}

impl Dialect {
    /// From a negotiation, together with the bytes already received.
    pub(crate) fn new(session: Session) -> (Self, Vec<u8>) {
        let find = |name| {
            session
                .contexts
                .iter()
                .find(|c| c.name == name)
                .map(|c| c.id)
        };
        let contexts = !session.contexts.is_empty();
        let dialect = Self {
            limits: Limits::new(&session.export, session.structured, contexts),
            allocation: find(ALLOCATION),
            dirty: find(DIRTY),
        };
        (dialect, session.leftover)
    }

    /// Context by which allocation was asked for.
    pub(crate) fn allocation(&self) -> Option<u32> {
        self.allocation
    }

    /// Context by which out-of-sync ranges were asked for.
    pub(crate) fn dirty(&self) -> Option<u32> {
        self.dirty
    }

    /// The next request and the bytes of its header, if it is complete.
    pub(crate) fn next(&self, bytes: &[u8]) -> Option<(Order, usize)> {
        let header = bytes.first_chunk::<REQUEST_LEN>()?;
        let order = Request::parse(header).map_or(Order::Garbage, |request| self.order(&request));
        Some((order, REQUEST_LEN))
    }

    fn order(&self, request: &Request) -> Order {
        let &Request {
            flags,
            command,
            cookie,
            offset,
            length,
        } = request;
        if let Err(error) = request.validate(&self.limits) {
            let errno = error.errno.0.cast_signed();
            let skip = u64::from(request.payload_len());
            return Order::Refused {
                cookie,
                errno,
                text: error.text,
                skip,
            };
        }
        let kind = match command {
            Command::Read => RequestKind::Read,
            Command::Write => RequestKind::Write,
            Command::Flush => RequestKind::Flush,
            Command::Trim => RequestKind::Trim,
            Command::WriteZeroes => RequestKind::WriteZeroes {
                no_hole: flags.contains(CommandFlags::NO_HOLE),
            },
            Command::Cache => return Order::Cache { cookie },
            Command::Disc | Command::Unknown(_) => return Order::Disconnect,
            Command::BlockStatus => {
                let one = flags.contains(CommandFlags::REQ_ONE);
                return Order::BlockStatus(StatusAsk {
                    cookie,
                    offset,
                    len: length,
                    one,
                });
            }
        };
        // A flush has no range, whatever its header says.
        let flush = kind == RequestKind::Flush;
        Order::Request(Ask {
            cookie,
            kind,
            offset: if flush { 0 } else { offset },
            len: if flush { 0 } else { length.into() },
            fua: flags.contains(CommandFlags::FUA),
            fast: flags.contains(CommandFlags::FAST_ZERO),
        })
    }

    /// Answers a request without data.
    pub(crate) fn done(&self, queue: &mut SendQueue, cookie: u64) {
        queue.push_head_with(|out| reply::done(out, self.limits.structured, cookie));
    }

    /// Answers with an error (a Linux errno) and the reason.
    pub(crate) fn error(&self, queue: &mut SendQueue, cookie: u64, errno: i32, text: &str) {
        let structured = self.limits.structured;
        let errno = Errno::from_os(errno);
        queue.push_head_with(|out| reply::error(out, structured, cookie, errno, text));
    }

    /// Answers a read with the first bytes of a buffer, whose hold goes to the queue.
    pub(crate) fn data(&self, queue: &mut SendQueue, ask: &Ask, buf: BufId) {
        // A request's length is 32 bits on the wire.
        let len = u32::try_from(ask.len).unwrap_or(u32::MAX);
        let structured = self.limits.structured;
        queue.push_head_with(|out| {
            reply::read_header(out, structured, ask.cookie, ask.offset, len);
        });
        queue.push_pool(buf, len as usize);
    }

    /// Answers a block status request: (context, extents) each.
    pub(crate) fn status(
        &self,
        queue: &mut SendQueue,
        ask: &StatusAsk,
        answer: Vec<(u32, Extents)>,
    ) {
        let contexts = answer.len();
        queue.push_head_with(|out| {
            for (i, (context, extents)) in answer.into_iter().enumerate() {
                block_status(
                    out,
                    ask.cookie,
                    context,
                    &extents.finish(),
                    i + 1 == contexts,
                );
            }
            // Only foreign contexts were selected, which the negotiation does not offer.
            if contexts == 0 {
                reply::done(out, true, ask.cookie);
            }
        });
    }
}

//! What is to be sent on one socket: small heads, pool buffers and other bytes, in order. All that
//! was queued in a turn leaves in one `sendmsg`: a plain call for what the socket takes at once,
//! which is nearly always everything, and an operation of the ring for the rest. While that is in
//! flight the next batch gathers.
//!
//! Through the ring alone each send would cost a completion, and a turn that does nothing but look
//! at it: half of all turns at depth 1.
//!
//! Invariants:
//! * what an operation in flight names is neither moved nor freed before it completes;
//! * each pool buffer queued here is held until its last byte is sent or the queue is cleared.

use super::buffers::Pool;
use super::lent::Lent;
use super::ring::{Ring, Token};
use io_uring::{opcode, types};
use std::os::fd::{AsRawFd, OwnedFd};
use twinblk_engine::ids::BufId;

/// Most pieces in one `sendmsg`.
const MAX_IOVECS: usize = 256;

#[derive(Debug)]
enum Piece {
    /// The next so many bytes of the heads.
    Heads(usize),
    /// The first bytes of a pool buffer, held.
    Pool(BufId, usize),
    /// These bytes.
    Bytes(Vec<u8>),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Heads(len) | Self::Pool(_, len) => *len,
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

#[derive(Debug)]
struct Batch {
    heads: Vec<u8>,
    pieces: Vec<Piece>,
    /// Pieces sent, bytes sent of the one after them, and where in the heads it begins.
    first: usize,
    skip: usize,
    head_at: usize,
    /// Bytes not sent.
    left: usize,
    /// Messages in it.
    messages: usize,
    iovecs: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Batch {
    fn new() -> Self {
        Self {
            heads: Vec::new(),
            pieces: Vec::new(),
            first: 0,
            skip: 0,
            head_at: 0,
            left: 0,
            messages: 0,
            iovecs: Vec::new(),
            // SAFETY: all zeroes is a valid, empty message header.
            header: unsafe { std::mem::zeroed() },
        }
    }

    fn clear(&mut self, pool: &mut Pool) {
        for piece in self.pieces.drain(..).skip(self.first) {
            if let Piece::Pool(buf, _) = piece {
                pool.release(buf);
            }
        }
        self.heads.clear();
        (
            self.first,
            self.skip,
            self.head_at,
            self.left,
            self.messages,
        ) = (0, 0, 0, 0, 0);
    }

    /// Fills in the message header for what is not sent yet.
    fn prepare(&mut self, pool: &Pool) -> *const libc::msghdr {
        self.iovecs.clear();
        let (mut skip, mut head_at) = (self.skip, self.head_at);
        for piece in self.pieces[self.first..].iter().take(MAX_IOVECS) {
            let start = match piece {
                Piece::Heads(len) => {
                    let start = self.heads[head_at..].as_ptr();
                    head_at += len;
                    start
                }
                Piece::Pool(buf, _) => pool.address(*buf).cast_const(),
                Piece::Bytes(bytes) => bytes.as_ptr(),
            };
            // SAFETY: `skip` is less than the length of the first piece and 0 for all others.
            let start = unsafe { start.add(skip) };
            let iov_len = piece.len() - skip;
            self.iovecs.push(libc::iovec {
                iov_base: start.cast_mut().cast(),
                iov_len,
            });
            skip = 0;
        }
        self.header.msg_iov = self.iovecs.as_mut_ptr();
        self.header.msg_iovlen = self.iovecs.len();
        &raw const self.header
    }

    fn sent(&mut self, pool: &mut Pool, mut count: usize) {
        self.left -= count;
        count += self.skip;
        while let Some(piece) = self.pieces.get(self.first) {
            let len = piece.len();
            if count < len {
                break;
            }
            match piece {
                Piece::Heads(len) => self.head_at += len,
                Piece::Pool(buf, _) => pool.release(*buf),
                Piece::Bytes(_) => {}
            }
            count -= len;
            self.first += 1;
        }
        self.skip = count;
    }
}

/// The queue of one socket.
#[derive(Debug)]
pub(crate) struct SendQueue {
    filling: Batch,
    flying: Lent<Batch>,
    /// Copy of what `flying` has left, readable while it is lent.
    flying_left: usize,
    flying_messages: usize,
    /// Nothing more is wanted: what is in flight is dropped when it comes back.
    abandoned: bool,
}

impl Default for SendQueue {
    fn default() -> Self {
        Self {
            filling: Batch::new(),
            flying: Lent::new(Batch::new()),
            flying_left: 0,
            flying_messages: 0,
            abandoned: false,
        }
    }
}

impl SendQueue {
    /// Queues the beginning of a message: a copy of `head`.
    pub(crate) fn push_head(&mut self, head: &[u8]) {
        self.push_head_with(|out| out.extend_from_slice(head));
    }

    /// Queues the beginning of a message: what `write` appends.
    pub(crate) fn push_head_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let batch = &mut self.filling;
        let before = batch.heads.len();
        write(&mut batch.heads);
        let added = batch.heads.len() - before;
        batch.left += added;
        batch.messages += 1;
        if let Some(Piece::Heads(len)) = batch.pieces.last_mut() {
            *len += added;
        } else {
            batch.pieces.push(Piece::Heads(added));
        }
    }

    /// Queues the first `len` bytes of a buffer; takes over one hold on it.
    pub(crate) fn push_pool(&mut self, buf: BufId, len: usize) {
        self.filling.left += len;
        self.filling.pieces.push(Piece::Pool(buf, len));
    }

    /// Queues bytes.
    pub(crate) fn push_bytes(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.filling.left += bytes.len();
            self.filling.pieces.push(Piece::Bytes(bytes));
        }
    }

    /// Bytes not handed to the kernel yet.
    pub(crate) fn left(&self) -> usize {
        self.filling.left + self.flying_left
    }

    /// Messages not yet handed over completely (counted by batches).
    pub(crate) fn messages(&self) -> usize {
        self.filling.messages + self.flying_messages
    }

    /// An operation is in flight.
    pub(crate) fn is_flying(&self) -> bool {
        self.flying.is_lent()
    }

    /// Sends what is queued, unless an operation is in flight or nothing is there. Answers the bytes
    /// that have left, or the errno; the rest is in flight.
    pub(crate) fn start(
        &mut self,
        ring: &mut Ring,
        pool: &mut Pool,
        socket: &OwnedFd,
        token: Token,
    ) -> Result<usize, i32> {
        if self.flying.is_lent() || self.left() == 0 {
            return Ok(0);
        }
        if self.flying_left == 0 {
            std::mem::swap(self.flying.get_mut(), &mut self.filling);
        }
        let mut all = 0;
        loop {
            let (sent, asked) = self.send_now(ring, pool, socket)?;
            all += sent;
            if self.flying_left == 0 {
                return Ok(all);
            }
            if sent < asked {
                break;
            }
        }
        let batch = self.flying.lend();
        let header = batch.prepare(pool);
        let entry = opcode::SendMsg::new(types::Fd(socket.as_raw_fd()), header)
            .flags(libc::MSG_NOSIGNAL.cast_unsigned())
            .build();
        // SAFETY: header, vectors, heads and bytes belong to the lent batch, buffers are held by it;
        // all stay until `completed`. The socket is closed only when nothing is in flight.
        unsafe { ring.push(&entry, token) }
        Ok(all)
    }

    /// Sends what the socket takes without waiting. Answers that, and how much was offered.
    fn send_now(
        &mut self,
        ring: &mut Ring,
        pool: &mut Pool,
        socket: &OwnedFd,
    ) -> Result<(usize, usize), i32> {
        let batch = self.flying.get_mut();
        let header = batch.prepare(pool);
        let asked = batch.iovecs.iter().map(|piece| piece.iov_len).sum();
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        ring.calls += 1;
        // SAFETY: header, vectors, heads and bytes belong to the batch, which is borrowed; it holds
        // the buffers, which are only read.
        let result = unsafe { libc::sendmsg(socket.as_raw_fd(), header, flags) };
        let sent = match usize::try_from(result) {
            Ok(count) => count,
            Err(_) => match std::io::Error::last_os_error().raw_os_error() {
                // The ring waits.
                Some(libc::EAGAIN | libc::EINTR) => 0,
                errno => {
                    self.clear(pool);
                    return Err(errno.unwrap_or(libc::EIO));
                }
            },
        };
        batch.sent(pool, sent);
        if batch.left == 0 {
            batch.clear(pool);
        }
        (self.flying_left, self.flying_messages) = (batch.left, batch.messages);
        Ok((sent, asked))
    }

    /// The operation in flight ended. Answers the bytes sent, or the errno.
    pub(crate) fn completed(&mut self, pool: &mut Pool, result: i32) -> Result<usize, i32> {
        self.flying.give_back();
        let batch = self.flying.get_mut();
        let sent = usize::try_from(result).map_err(|_| -result);
        match sent {
            Ok(count) => batch.sent(pool, count),
            Err(libc::EINTR | libc::EAGAIN) => {}
            Err(_) => self.abandoned = true,
        }
        if batch.left == 0 || self.abandoned {
            batch.clear(pool);
        }
        (self.flying_left, self.flying_messages) = (batch.left, batch.messages);
        match sent {
            Err(libc::EINTR | libc::EAGAIN) => Ok(0),
            other => other,
        }
    }

    /// Drops what is queued, now or when it comes back from the kernel.
    pub(crate) fn clear(&mut self, pool: &mut Pool) {
        self.abandoned = true;
        self.filling.clear(pool);
        if !self.flying.is_lent() {
            self.flying.get_mut().clear(pool);
            (self.flying_left, self.flying_messages) = (0, 0);
        }
    }
}

#[cfg(test)]
#[path = "tests/send_queue.rs"]
mod tests;

//! What comes in on one socket: a staging area for headers and small payloads, and large payloads
//! straight into their pool buffer, with the bytes behind them going to the staging area in the same
//! receive.
//!
//! Invariant: a receive is in flight only while whoever parses needs more bytes; so the staging area
//! is either the kernel's or the parser's, never both's, and a parser that stops asking stops the
//! sender (TCP's own backpressure).

use super::buffers::Pool;
use super::lent::Lent;
use super::ring::{Ring, Token};
use io_uring::{opcode, types};
use std::os::fd::{AsRawFd, OwnedFd};
use twinblk_engine::ids::BufId;

#[derive(Debug)]
struct Area {
    staging: Box<[u8]>,
    iovecs: [libc::iovec; 2],
    header: libc::msghdr,
}

/// A payload on its way into a pool buffer.
#[derive(Clone, Copy, Debug)]
struct Direct {
    buf: BufId,
    filled: usize,
    total: usize,
}

/// The receiving half of a socket.
#[derive(Debug)]
pub(crate) struct Intake {
    area: Lent<Area>,
    start: usize,
    end: usize,
    direct: Option<Direct>,
    /// Bytes to throw away before anything else.
    skip: u64,
    eof: bool,
}

impl Intake {
    /// A staging area of `size` bytes (more if `initial` needs it) that holds what was received
    /// before.
    pub(crate) fn new(size: usize, initial: &[u8]) -> Self {
        let mut staging = vec![0; size.max(initial.len())].into_boxed_slice();
        staging[..initial.len()].copy_from_slice(initial);
        let empty = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        // SAFETY: all zeroes is a valid, empty message header.
        let header = unsafe { std::mem::zeroed() };
        Self {
            area: Lent::new(Area {
                staging,
                iovecs: [empty; 2],
                header,
            }),
            start: 0,
            end: initial.len(),
            direct: None,
            skip: 0,
            eof: false,
        }
    }

    /// A receive is in flight.
    pub(crate) fn is_receiving(&self) -> bool {
        self.area.is_lent()
    }

    /// The other side has sent its last byte.
    pub(crate) fn is_eof(&self) -> bool {
        self.eof
    }

    /// Bytes received and not consumed.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.area.get().staging[self.start..self.end]
    }

    /// Drops bytes from the front.
    pub(crate) fn consume(&mut self, count: usize) {
        debug_assert!(self.start + count <= self.end);
        self.start += count;
    }

    /// Throws the next `count` bytes away as they come.
    pub(crate) fn skip(&mut self, count: u64) {
        self.skip += count;
    }

    /// Throws away what is to be thrown away and is there. True when nothing is left to skip.
    pub(crate) fn skipped(&mut self) -> bool {
        let there = self.skip.min((self.end - self.start) as u64);
        self.skip -= there;
        // Lossless: no more than what is in the staging area.
        self.consume(there as usize);
        self.skip == 0
    }

    /// The next `total` bytes go to `buf`, whose hold is kept here until they are complete.
    pub(crate) fn receive_into(&mut self, pool: &mut Pool, buf: BufId, total: usize) {
        debug_assert!(self.direct.is_none());
        let there = total.min(self.end - self.start);
        let from = &self.area.get().staging[self.start..self.start + there];
        pool.bytes_mut(buf, 0..there).copy_from_slice(from);
        self.start += there;
        self.direct = Some(Direct {
            buf,
            filled: there,
            total,
        });
    }

    /// The buffer under way, once it is complete. Its hold goes to the caller.
    pub(crate) fn received(&mut self) -> Option<BufId> {
        let complete = self
            .direct
            .take_if(|direct| direct.filled == direct.total)?;
        Some(complete.buf)
    }

    /// A buffer is under way and not complete.
    pub(crate) fn awaits_payload(&self) -> bool {
        self.direct.is_some()
    }

    /// Asks for more bytes.
    pub(crate) fn start(&mut self, ring: &mut Ring, pool: &Pool, socket: &OwnedFd, token: Token) {
        if self.area.is_lent() || self.eof {
            return;
        }
        // What is left is less than a header; everything else was consumed.
        if self.start > 0 {
            self.area
                .get_mut()
                .staging
                .copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let end = self.end;
        let area = self.area.lend();
        let mut count = 0;
        if let Some(direct) = self.direct {
            // SAFETY: less than `total` bytes are filled, which the buffer has room for.
            let rest = unsafe { pool.address(direct.buf).add(direct.filled) };
            area.iovecs[0] = libc::iovec {
                iov_base: rest.cast(),
                iov_len: direct.total - direct.filled,
            };
            count = 1;
        }
        let room = &mut area.staging[end..];
        debug_assert!(!room.is_empty());
        area.iovecs[count] = libc::iovec {
            iov_base: room.as_mut_ptr().cast(),
            iov_len: room.len(),
        };
        area.header.msg_iov = area.iovecs.as_mut_ptr();
        area.header.msg_iovlen = count + 1;
        let entry =
            opcode::RecvMsg::new(types::Fd(socket.as_raw_fd()), &raw mut area.header).build();
        // SAFETY: header, vectors and staging area are lent, the buffer is held, until `completed`.
        // The socket is closed only when nothing is in flight.
        unsafe { ring.push(&entry, token) }
    }

    /// The receive in flight ended. Answers the bytes received; 0 is the end of the stream.
    pub(crate) fn completed(&mut self, result: i32) -> Result<usize, i32> {
        self.area.give_back();
        let mut count = match usize::try_from(result) {
            Ok(count) => count,
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) => return Ok(0),
            Err(_) => {
                self.eof = true;
                return Err(-result);
            }
        };
        let all = count;
        self.eof = all == 0;
        if let Some(direct) = &mut self.direct {
            let into = count.min(direct.total - direct.filled);
            direct.filled += into;
            count -= into;
        }
        self.end += count;
        Ok(all)
    }

    /// Gives back the buffer under way, if any. Not while a receive is in flight.
    pub(crate) fn clear(&mut self, pool: &mut Pool) {
        assert!(!self.area.is_lent());
        if let Some(direct) = self.direct.take() {
            pool.release(direct.buf);
        }
        (self.start, self.end, self.skip) = (0, 0, 0);
    }
}

#[cfg(test)]
#[path = "tests/intake.rs"]
mod tests;

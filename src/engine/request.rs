//! Life of a client's request.
//!
//! A write: checked → holds its range ([`crate::overlap`]) → passes the gate ([`crate::admission`])
//! and holds its extents ([`crate::activity_log`]) → *started*: sent to every peer that receives, marked in the bitmap of every peer that does not,
//! and written to the local disk, all in one step → completed ([`crate::completion`]) when every
//! copy has said what the protocol asks.

use crate::event::Role;
use crate::ids::{BufId, ReqTag};
use crate::input::{ClientRequest, RequestKind};
use crate::output::{Channel, Output, ReplyError, SendBody, ZeroMode};
use crate::overlap::{Acquired, LockId, Mode};
use crate::remote::Access;
use crate::resource::{Op, Resource};
use crate::slots::Key;
use crate::time::Instant;
use crate::transfer_log::Entry;
use crate::volume::LockOwner;
use twinblk_protocol::control::Protocol;
use twinblk_protocol::frame::{Header, Kind, flags};

/// Names a [`Request`].
pub(crate) type RequestKey = Key<Request>;

/// The local disk's part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LocalPart {
    NotStarted,
    InFlight,
    Done,
    Failed(i32),
    /// It was never begun, and never will be: nothing anywhere has it.
    Refused,
}

/// A client's request under way.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) tag: ReqTag,
    /// Index of the volume.
    pub(crate) volume: usize,
    pub(crate) kind: RequestKind,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) fua: bool,
    pub(crate) buf: Option<BufId>,
    pub(crate) lock: Option<LockId>,
    /// Holds its extents in the activity log for its own disk.
    pub(crate) holds: bool,
    /// Bytes behind `offset` and `len` that are still to be done: a trim or a write of zeroes that
    /// touches more extents than one request may hold goes part by part. The lock is on all of it.
    pub(crate) rest: u64,
    pub(crate) local: LocalPart,
    /// Bit per node: peers whose word the answer waits for.
    pub(crate) awaiting: u16,
    /// It waits among those that are held.
    pub(crate) held: bool,
    /// An order has given it up: it gets an error.
    pub(crate) given_up: bool,
    pub(crate) started_at: Instant,
    /// Place in order of arrival.
    pub(crate) order: u64,
}

/// Linux errno values the engine answers with.
pub(crate) mod errno {
    pub(crate) const EIO: i32 = 5;
    pub(crate) const EINVAL: i32 = 22;
    pub(crate) const ESHUTDOWN: i32 = 108;
}

impl Resource {
    /// A request arrived.
    pub(crate) fn client_request(&mut self, request: ClientRequest) {
        let refuse = |errno, text| ReplyError { errno, text };
        let Some(volume) = self.volume_index(request.volume) else {
            return self.refuse(&request, refuse(errno::EINVAL, "no such volume"));
        };
        if self.role != Role::Primary || self.stopping.is_some() || self.evicting {
            let text = "this node is not Primary: it does not serve I/O";
            return self.refuse(&request, refuse(errno::ESHUTDOWN, text));
        }
        if self.suspended.any() {
            return self.freeze(request);
        }
        let access = self.access(volume);
        if access == Access::Later {
            return self.freeze(request);
        }
        let v = &self.volumes[volume];
        if access == Access::None {
            let text = "the local disk holds no current data (see `twinblk status`)";
            return self.refuse(&request, refuse(errno::EIO, text));
        }
        let block = u64::from(v.block_size);
        let fits = request
            .offset
            .checked_add(request.len)
            .is_some_and(|end| end <= v.size());
        let aligned = request.offset.is_multiple_of(block) && request.len.is_multiple_of(block);
        let sized = (request.len > 0) != (request.kind == RequestKind::Flush);
        if !fits || !aligned || !sized {
            let text = "the range does not fit the device or its block size";
            return self.refuse(&request, refuse(errno::EINVAL, text));
        }
        let log = &self.volumes[volume].activity;
        let local = access == Access::Local;
        if local && request.kind == RequestKind::Write && !log.can_hold(request.offset, request.len)
        {
            let text = "the write touches more extents than the activity log has (al-extents)";
            return self.refuse(&request, refuse(errno::EINVAL, text));
        }
        self.next_order += 1;
        let key = self.requests.insert(Request {
            tag: request.tag,
            volume,
            kind: request.kind,
            offset: request.offset,
            len: request.len,
            fua: request.fua,
            buf: request.buf,
            lock: None,
            holds: false,
            rest: 0,
            local: LocalPart::NotStarted,
            awaiting: 0,
            held: false,
            given_up: false,
            started_at: self.now,
            order: self.next_order,
        });
        match request.kind {
            RequestKind::Read => match access {
                Access::Remote(p)
                    if !crate::sabotage::is(crate::sabotage::Mistake::ReadStaleCopy) =>
                {
                    self.read_remotely(key, p);
                }
                _ => self.start_read(key),
            },
            RequestKind::Flush => match access {
                Access::Remote(p) => self.flush_remotely(key, p),
                _ => self.start_flush(key),
            },
            _ if !local => self.gated.push_back(key),
            RequestKind::Write | RequestKind::Trim | RequestKind::WriteZeroes { .. } => {
                match self.volumes[volume].lock.acquire(
                    request.offset,
                    request.len,
                    Mode::Exclusive,
                    LockOwner::Client(key),
                ) {
                    Acquired::Granted(lock) => {
                        self.set_request_lock(key, lock);
                        self.gated.push_back(key);
                    }
                    Acquired::Waiting(lock) => self.set_request_lock(key, lock),
                }
            }
        }
    }

    /// Cuts off what one request may hold of the activity log.
    pub(crate) fn prepare_local(&mut self, key: RequestKey) {
        let Some(r) = self.requests.get_mut(key) else {
            return;
        };
        let (v, kind) = (r.volume, r.kind);
        let log = &self.volumes[v].activity;
        if kind != RequestKind::Write && !r.holds {
            let all = r.len + r.rest;
            r.len = log.part(r.offset, all);
            r.rest = all - r.len;
        }
    }

    /// Writes that were begun on another copy and wait at the gate hold no range. They take it again, in
    /// order of arrival, before any that comes later.
    pub(crate) fn lock_again(&mut self, v: usize) {
        for key in core::mem::take(&mut self.gated) {
            let Some(r) = self.requests.get(key) else {
                continue;
            };
            let granted = r.volume != v || r.lock.is_some() || {
                let (offset, len) = (r.offset, r.len + r.rest);
                let owner = LockOwner::Client(key);
                let lock = &mut self.volumes[v].lock;
                let (granted, lock) = match lock.acquire(offset, len, Mode::Exclusive, owner) {
                    Acquired::Granted(lock) => (true, lock),
                    Acquired::Waiting(lock) => (false, lock),
                };
                self.set_request_lock(key, lock);
                granted
            };
            if granted {
                self.gated.push_back(key);
            }
        }
    }

    fn set_request_lock(&mut self, key: RequestKey, lock: LockId) {
        if let Some(r) = self.requests.get_mut(key) {
            r.lock = Some(lock);
        }
    }

    pub(crate) fn refuse(&mut self, request: &ClientRequest, error: ReplyError) {
        // A read's buffer goes with the reply, a write's is given back.
        if let (Some(buf), true) = (request.buf, request.kind != RequestKind::Read) {
            self.out.push(Output::ReleaseBuf(buf));
        }
        self.out.push(Output::Reply {
            tag: request.tag,
            result: Err(error),
        });
    }

    fn start_read(&mut self, key: RequestKey) {
        let op = self.new_op(Op::ClientRead(key));
        let Some(r) = self.requests.get_mut(key) else {
            return;
        };
        r.local = LocalPart::InFlight;
        let (volume, offset, len, buf) = (r.volume, r.offset, r.len, r.buf);
        let volume = self.volumes[volume].id;
        let len = u32::try_from(len).expect("the front end bounds reads");
        self.out.push(Output::DiskRead {
            op,
            volume,
            offset,
            len,
            buf,
        });
    }

    /// A flush covers every write answered so far on this volume: the local disk's, and under
    /// protocol C what each peer acknowledged. Under A and B the barrier travels in order and is not
    /// waited for.
    fn start_flush(&mut self, key: RequestKey) {
        let op = self.new_op(Op::ClientFlush(key));
        let Some(r) = self.requests.get_mut(key) else {
            return;
        };
        r.local = LocalPart::InFlight;
        let volume = r.volume;
        self.started += 1;
        self.out.push(Output::DiskFlush {
            op,
            volume: self.volumes[volume].id,
        });
        for p in 0..self.peers.len() {
            if !self.peers[p].receives(volume) || self.peers[p].log.is_empty() {
                continue;
            }
            let epoch = self.send_barrier(p, true);
            if self.cfg.options.protocol == Protocol::C
                && !crate::sabotage::is(crate::sabotage::Mistake::FlushAlone)
            {
                let bit = 1 << self.peers[p].node.0;
                self.peers[p].flush_waiters.push((epoch, key));
                if let Some(r) = self.requests.get_mut(key) {
                    r.awaiting |= bit;
                }
            }
        }
    }

    /// Starts a write that holds its range and passed the gate.
    pub(crate) fn start_write(&mut self, key: RequestKey) {
        let protocol = self.cfg.options.protocol;
        let op = self.new_op(Op::ClientWrite(key));
        let Some(r) = self.requests.get_mut(key) else {
            return;
        };
        r.local = LocalPart::InFlight;
        r.started_at = self.now;
        let (volume, kind, offset, len, fua, buf) =
            (r.volume, r.kind, r.offset, r.len, r.fua, r.buf);
        self.started += 1;
        self.next_tag += 1;
        let tag = self.next_tag;
        let id = self.volumes[volume].id;
        for p in 0..self.peers.len() {
            let node = self.peers[p].node;
            if !self.peers[p].receives(volume) {
                if let Some(bitmap) = self.volumes[volume].bitmap_mut(node) {
                    bitmap.set_bytes(offset, len);
                }
                continue;
            }
            let (seq, epoch) = self.peers[p].log.push(Entry {
                volume: id,
                offset,
                len,
                epoch: 0,
                sent: self.now,
                request: Some(key),
                resync: false,
                acked: false,
                tag,
                stable: false,
                remote: false,
                overtaken: false,
            });
            if self.is_group() {
                self.peers[p].settling.push_back(tag);
            }
            // Until this peer has it stable.
            self.volumes[volume].activity.hold_again(offset, len);
            if protocol > Protocol::A
                && let Some(r) = self.requests.get_mut(key)
            {
                r.awaiting |= 1 << node.0;
            }
            let mut header = Header::new(match kind {
                RequestKind::Trim => Kind::Trim,
                RequestKind::WriteZeroes { .. } => Kind::WriteZeroes,
                _ => Kind::Write,
            });
            if fua {
                header.flags |= flags::FUA;
            }
            if kind == (RequestKind::WriteZeroes { no_hole: true }) {
                header.flags |= flags::NO_HOLE;
            }
            (header.volume, header.seq, header.epoch) = (id.0, seq, epoch);
            (header.offset, header.size) = (offset, len);
            let body = match buf {
                Some(buf) => SendBody::Buf {
                    buf,
                    len: u32::try_from(len).unwrap_or(0),
                },
                None => SendBody::None,
            };
            self.send(p, Channel::Data, header, body);
            self.close_full_epoch(p);
        }
        self.out.push(match (kind, buf) {
            (RequestKind::Write, Some(buf)) => {
                let len = u32::try_from(len).expect("the front end bounds writes");
                Output::DiskWrite {
                    op,
                    volume: id,
                    offset,
                    len,
                    buf,
                    fua,
                }
            }
            (RequestKind::WriteZeroes { no_hole: true }, _) => Output::DiskZero {
                op,
                volume: id,
                offset,
                len,
                mode: ZeroMode::Allocate,
                fua,
            },
            _ => Output::DiskZero {
                op,
                volume: id,
                offset,
                len,
                mode: ZeroMode::Punch,
                fua,
            },
        });
    }
}

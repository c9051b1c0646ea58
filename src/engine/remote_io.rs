//! Requests of clients that a peer's copy serves: reads are asked for, writes are stable there before they
//! are answered, a flush is the peer's barrier. When, and by whose copy: [`crate::remote`].

use crate::event::ReplState;
use crate::ids::{BufId, ReqTag};
use crate::input::RequestKind;
use crate::output::{Channel, Output, ReplyError, SendBody};
use crate::request::{LocalPart, Request, RequestKey, errno};
use crate::resource::Resource;
use crate::slots::Key;
use crate::transfer_log::Entry;
use alloc::format;
use twinblk_protocol::frame::{Header, Kind, flags};

impl Resource {
    /// A read goes to the peer.
    pub(crate) fn read_remotely(&mut self, key: RequestKey, p: usize) {
        let Some(r) = self.requests.get_mut(key) else {
            return;
        };
        r.local = LocalPart::Done;
        r.awaiting = 1 << self.peers[p].node.0;
        let mut header = Header::new(Kind::ReadAsk);
        (header.volume, header.seq) = (self.volumes[r.volume].id.0, key.raw());
        (header.offset, header.size) = (r.offset, r.len);
        self.send(p, Channel::Data, header, SendBody::None);
    }

    /// A read that the peer has answered, if the answer is to one.
    fn read_answered(&mut self, p: usize, header: &Header) -> Option<Request> {
        let key = Key::from_raw(header.seq);
        let bit = 1 << self.peers[p].node.0;
        let asked = self.requests.get(key).is_some_and(|r| {
            r.kind == RequestKind::Read && r.awaiting == bit && r.offset == header.offset
        });
        if asked {
            self.requests.remove(key)
        } else {
            self.protocol_error(p, format!("data that were not asked for: {header:?}"));
            None
        }
    }

    /// The peer's answer to a read.
    pub(crate) fn read_data_received(&mut self, p: usize, header: &Header, buf: BufId) {
        match self.read_answered(p, header) {
            Some(r) if r.len == header.size => {
                self.out.push(Output::ReplyWith { tag: r.tag, buf });
            }
            r => {
                self.out.push(Output::ReleaseBuf(buf));
                if let Some(r) = r {
                    self.reply_error(r.tag, "the peer answered a read with too little");
                }
            }
        }
    }

    /// The peer could not read.
    pub(crate) fn read_failed_received(&mut self, p: usize, header: &Header) {
        if let Some(r) = self.read_answered(p, header) {
            self.reply_error(r.tag, "no disk of this device could read this");
        }
    }

    pub(crate) fn reply_error(&mut self, tag: ReqTag, text: &'static str) {
        let errno = errno::EIO;
        let result = Err(ReplyError { errno, text });
        self.out.push(Output::Reply { tag, result });
    }

    /// A flush is the peer's: whatever the protocol, its answer is waited for.
    pub(crate) fn flush_remotely(&mut self, key: RequestKey, p: usize) {
        self.started += 1;
        if let Some(r) = self.requests.get_mut(key) {
            r.local = LocalPart::Done;
        }
        if self.peers[p].log.is_empty() {
            return self.try_complete(key);
        }
        let epoch = self.send_barrier(p, true);
        let bit = 1 << self.peers[p].node.0;
        self.peers[p].flush_waiters.push((epoch, key));
        if let Some(r) = self.requests.get_mut(key) {
            r.awaiting |= bit;
        }
    }

    /// A write that passed the gate goes to the peer, and to no disk here.
    pub(crate) fn write_remotely(&mut self, key: RequestKey, p: usize) {
        let now = self.now;
        let Some(r) = self.requests.get_mut(key) else {
            return;
        };
        (r.len, r.rest) = (r.len + r.rest, 0);
        r.local = LocalPart::Done;
        r.started_at = now;
        r.awaiting = 1 << self.peers[p].node.0;
        self.next_tag += 1;
        let (v, kind, offset, len, buf) = (r.volume, r.kind, r.offset, r.len, r.buf);
        self.started += 1;
        let id = self.volumes[v].id;
        let node = self.peers[p].node;
        if self.peers[p].volumes[v].replication == ReplState::SyncTarget {
            if let Some(bitmap) = self.volumes[v].bitmap_mut(node) {
                bitmap.set_bytes(offset, len);
            }
            if let Some(remote) = &mut self.volumes[v].remote {
                remote.written += len;
            }
        }
        let (seq, epoch) = self.peers[p].log.push(Entry {
            volume: id,
            offset,
            len,
            epoch: 0,
            sent: now,
            request: Some(key),
            resync: false,
            acked: false,
            tag: self.next_tag,
            stable: false,
            remote: true,
            overtaken: false,
        });
        let mut header = Header::new(match kind {
            RequestKind::Trim => Kind::Trim,
            RequestKind::WriteZeroes { .. } => Kind::WriteZeroes,
            _ => Kind::Write,
        });
        header.flags = flags::FUA | flags::ACK;
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
}

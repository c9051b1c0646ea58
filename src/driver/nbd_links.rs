//! All NBD connections of a resource and the requests the engine has of them.

use super::buffers::Class;
use super::disk::Core;
use super::nbd_link::{NbdLink, Pending};
use super::nbd_reply::{Dialect, StatusAsk};
use super::peers::prepare_socket;
use super::ring::{Completion, Kind};
use super::slab::{Key, Slab};
use std::os::fd::OwnedFd;
use tokio::sync::oneshot::Sender;
use twinblk_engine::ids::{BufId, ClientId, ReqTag, VolumeId};
use twinblk_engine::output::ReplyError;
use twinblk_engine::time::{Duration, Instant};
use userspace_nbd::block_status::Extents;
use userspace_nbd::negotiation::Session;

/// How long a client may hold buffers without taking or sending a byte while others wait for one.
const STALL: Duration = Duration::from_secs(10);
/// How often that is looked at while somebody waits.
const STALL_CHECK: Duration = Duration::from_secs(1);

/// All connections.
#[derive(Debug, Default)]
pub(crate) struct NbdLinks {
    links: Slab<NbdLink>,
    requests: Slab<Pending>,
    status: Vec<(Key, StatusAsk)>,
    /// Whose turn it is to begin.
    turn: usize,
    /// Clients that closed the export.
    pub(crate) closed: Vec<ClientId>,
    /// Requests answered.
    pub(crate) answered: u64,
    /// When stalled clients are looked for next; `None` while nobody waits for a buffer.
    check: Option<Instant>,
}

impl NbdLinks {
    /// Takes over a negotiated connection. What comes with the client is kept as long as it is there.
    pub(crate) fn add(
        &mut self,
        client: (ClientId, Option<Sender<()>>),
        volume: VolumeId,
        socket: OwnedFd,
        session: Session,
        fast_zero: bool,
    ) {
        prepare_socket(&socket);
        let (dialect, initial) = Dialect::new(session);
        self.links.insert(NbdLink::new(
            client, volume, socket, dialect, &initial, fast_zero,
        ));
    }

    /// A completion for one of the connections.
    pub(crate) fn completed(&mut self, core: &mut Core, completion: Completion) {
        let Completion { token, result } = completion;
        let Some(link) = self.links.get_mut(token.key) else {
            return;
        };
        if token.kind == Kind::NbdRecv {
            link.received(core, token.key, result);
        } else {
            link.sent(core, token.key, result);
        }
    }

    /// Lets every connection take requests in, another one first each time.
    pub(crate) fn pump(&mut self, core: &mut Core) {
        let slots = self.links.slots();
        self.turn = self.turn.wrapping_add(1);
        for i in 0..slots {
            let Some(key) = self.links.key_at((self.turn + i) % slots) else {
                continue;
            };
            if let Some(link) = self.links.get_mut(key) {
                link.pump(core, key, &mut self.requests, &mut self.status);
            }
        }
    }

    /// The engine answered a read with what is in another buffer, which comes with it.
    pub(crate) fn reply_with(&mut self, core: &mut Core, tag: ReqTag, buf: BufId) {
        let key = Key::from_raw(tag.0);
        let Some(pending) = self.requests.get_mut(key) else {
            return core.pool.release(buf);
        };
        // A disk that hangs may still have its own hold on the other.
        if let Some(own) = pending.read.replace(buf) {
            core.pool.release(own);
        }
        self.reply(core, tag, Ok(()));
    }

    /// The engine answered a request.
    pub(crate) fn reply(&mut self, core: &mut Core, tag: ReqTag, result: Result<(), ReplyError>) {
        let Some(pending) = self.requests.remove(Key::from_raw(tag.0)) else {
            return;
        };
        self.answered += 1;
        match self.links.get_mut(pending.link) {
            Some(link) => link.answer(core, pending, result),
            None => {
                if let Some(buf) = pending.read {
                    core.pool.release(buf);
                }
            }
        }
    }

    /// The next block status request to answer, with the volume it is for.
    pub(crate) fn take_status(&mut self) -> Option<(Key, VolumeId, StatusAsk, Dialect)> {
        while let Some((key, ask)) = self.status.pop() {
            if let Some(link) = self.links.get_mut(key) {
                return Some((key, link.volume, ask, link.dialect()));
            }
        }
        None
    }

    /// The answer to a block status request.
    pub(crate) fn answer_status(&mut self, key: Key, ask: &StatusAsk, answer: Vec<(u32, Extents)>) {
        self.answered += 1;
        if let Some(link) = self.links.get_mut(key) {
            link.answer_status(|dialect, queue| dialect.status(queue, ask, answer));
        }
    }

    /// The end of a turn: sends what is queued, forgets who is gone.
    pub(crate) fn flush(&mut self, core: &mut Core) {
        for slot in 0..self.links.slots() {
            let Some(key) = self.links.key_at(slot) else {
                continue;
            };
            let Some(link) = self.links.get_mut(key) else {
                continue;
            };
            let over = link.flush(core, key);
            self.closed.extend(link.take_gone(over));
            if over && let Some(link) = self.links.remove(key) {
                link.dispose(core, key);
            }
        }
    }

    /// Ends all connections; no request will be answered any more.
    pub(crate) fn abort_all(&mut self, core: &mut Core) {
        for slot in 0..self.requests.slots() {
            let Some(key) = self.requests.key_at(slot) else {
                continue;
            };
            if let Some(Pending {
                read: Some(buf), ..
            }) = self.requests.remove(key)
            {
                core.pool.release(buf);
            }
        }
        self.status.clear();
        for slot in 0..self.links.slots() {
            let Some(key) = self.links.key_at(slot) else {
                continue;
            };
            if let Some(link) = self.links.get_mut(key) {
                link.forget_requests();
                link.kill(core, key);
            }
        }
    }

    /// Closes all connections; what the engine still has of their requests comes back unread.
    pub(crate) fn close_all(&mut self, core: &mut Core) {
        for slot in 0..self.links.slots() {
            let Some(key) = self.links.key_at(slot) else {
                continue;
            };
            if let Some(link) = self.links.get_mut(key) {
                link.kill(core, key);
            }
        }
    }

    /// When [`Self::end_stalled`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.check
    }

    /// Ends connections that keep buffers from others: a client that is stopped, or gone without a
    /// word, would hold up the export for everybody as long as it likes. True if one was ended.
    pub(crate) fn end_stalled(&mut self, core: &mut Core, now: Instant) -> bool {
        if !core.pool.has_line(Class::Client) {
            self.check = None;
            return false;
        }
        if self.check.is_some_and(|at| now < at) {
            return false;
        }
        let mut ended = false;
        // The first look begins to measure: what a client did while nobody waited does not count.
        let first = self.check.is_none();
        self.check = Some(now + STALL_CHECK);
        for slot in 0..self.links.slots() {
            let Some(key) = self.links.key_at(slot) else {
                continue;
            };
            let Some(link) = self.links.get_mut(key) else {
                continue;
            };
            let since = link.stalled_since(now, first);
            if since.is_some_and(|since| now.since(since) >= STALL) {
                tracing::warn!(
                    "an NBD client held buffers for {} s without reading its answers or sending its \
                     data while others waited: its connection is closed",
                    STALL.as_secs()
                );
                link.kill(core, key);
                ended = true;
            }
        }
        ended
    }

    /// Connections there are.
    pub(crate) fn connections(&self) -> u64 {
        self.links.len() as u64
    }

    /// No connection is left, not even a dying one.
    pub(crate) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }
}

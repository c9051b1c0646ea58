//! The links to all peers, by node. At most one link per peer counts; others are on their way out.

use super::disk::Core;
use super::mailbox::FromLoop;
use super::peer_link::PeerLink;
use super::ring::{Completion, Kind};
use super::slab::{Key, Slab};
use std::os::fd::OwnedFd;
use tokio::sync::mpsc::UnboundedSender;
use twinblk_engine::ids::NodeId;
use twinblk_engine::input::Input;
use twinblk_engine::output::{Channel, SendBody};
use twinblk_engine::time::Instant;
use twinblk_protocol::frame::Header;

/// All links.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    links: Slab<PeerLink>,
    current: [Option<Key>; NodeId::MAX_NODES],
}

impl Peers {
    /// A new link. An older one to the same peer ends here and now; so this may be called only when
    /// the engine has seen every input, else it might take the one for the other.
    pub(crate) fn add(
        &mut self,
        core: &mut Core,
        now: Instant,
        node: NodeId,
        data: (OwnedFd, Vec<u8>),
        control: (OwnedFd, Vec<u8>),
    ) {
        debug_assert!(core.inputs.is_empty());
        let Some(current) = self.current.get_mut(node.slot()) else {
            return;
        };
        for socket in [&data.0, &control.0] {
            prepare_socket(socket);
        }
        if let Some(old) = current.take().and_then(|key| self.links.get_mut(key)) {
            old.kill(core, Some("replaced by a new connection"));
        }
        let key = self.links.insert(PeerLink::new(node, data, control));
        self.current[node.slot()] = Some(key);
        core.inputs.push_back(Input::LinkUp { peer: node });
        if let Some(link) = self.links.get_mut(key) {
            link.pump(core, now, key);
        }
    }

    fn current(&mut self, node: NodeId) -> Option<&mut PeerLink> {
        let key = (*self.current.get(node.slot())?)?;
        self.links.get_mut(key)
    }

    /// Queues a frame; without a link nothing happens.
    pub(crate) fn send(
        &mut self,
        core: &mut Core,
        now: Instant,
        node: NodeId,
        channel: Channel,
        header: Header,
        body: SendBody,
    ) {
        if let Some(link) = self.current(node) {
            link.send(core, now, channel, header, body);
        }
    }

    /// Closes the link of a peer.
    pub(crate) fn close(&mut self, now: Instant, node: NodeId, reason: String) {
        if let Some(link) = self.current(node) {
            link.close(now, reason);
        }
    }

    /// A completion for one of the links.
    pub(crate) fn completed(&mut self, core: &mut Core, now: Instant, completion: Completion) {
        let Completion { token, result } = completion;
        let Some(link) = self.links.get_mut(token.key) else {
            return;
        };
        match token.kind {
            Kind::DataRecv | Kind::ControlRecv => {
                link.received(core, now, token.key, token.kind, result);
            }
            _ => link.sent(core, now, token.kind, result),
        }
    }

    /// Lets links that waited for buffers go on.
    pub(crate) fn pump(&mut self, core: &mut Core, now: Instant) {
        self.each(|key, link| link.pump(core, now, key));
    }

    /// The end of a turn: sends what is queued, takes the steps of links that end, forgets those
    /// that are gone.
    pub(crate) fn flush(
        &mut self,
        core: &mut Core,
        now: Instant,
        to_daemon: &UnboundedSender<FromLoop>,
    ) {
        let current = &mut self.current;
        let mut gone = 0;
        for slot in 0..self.links.slots() {
            let Some(key) = self.links.key_at(slot) else {
                continue;
            };
            let Some(link) = self.links.get_mut(key) else {
                continue;
            };
            link.flush(core, now, key);
            let node = link.node();
            if link.step(core, now) {
                // The daemon may be gone already; nobody is left to tell then.
                let _ = to_daemon.send(FromLoop::LinkDown { peer: node });
                if current[node.slot()] == Some(key) {
                    current[node.slot()] = None;
                }
            }
            gone += usize::from(link.is_gone());
        }
        if gone > 0 {
            self.forget_gone(core);
        }
    }

    fn forget_gone(&mut self, core: &mut Core) {
        for slot in 0..self.links.slots() {
            let Some(key) = self.links.key_at(slot) else {
                continue;
            };
            if self.links.get_mut(key).is_some_and(|link| link.is_gone())
                && let Some(link) = self.links.remove(key)
            {
                link.dispose(core, key);
            }
        }
    }

    /// Closes all links, with time for their last words.
    pub(crate) fn close_all(&mut self, now: Instant, reason: &str) {
        self.each(|_, link| link.close(now, reason.to_owned()));
    }

    fn each(&mut self, mut f: impl FnMut(Key, &mut PeerLink)) {
        for slot in 0..self.links.slots() {
            if let Some(key) = self.links.key_at(slot)
                && let Some(link) = self.links.get_mut(key)
            {
                f(key, link);
            }
        }
    }

    /// No link is left, not even a dying one.
    pub(crate) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The earliest moment at which [`Self::flush`] has something to do by itself.
    pub(crate) fn deadline(&mut self) -> Option<Instant> {
        self.links
            .iter_mut()
            .filter_map(|link| link.deadline())
            .min()
    }
}

/// Makes a socket fit for the ring: blocking (the ring waits for it, a non-blocking one would answer
/// EAGAIN), and on TCP without delays for small frames.
pub(crate) fn prepare_socket(socket: &OwnedFd) {
    if let Ok(flags) = rustix::fs::fcntl_getfl(socket) {
        let _ = rustix::fs::fcntl_setfl(socket, flags - rustix::fs::OFlags::NONBLOCK);
    }
    // Refused by unix sockets, which need none of it.
    let _ = rustix::net::sockopt::set_tcp_nodelay(socket, true);
    let _ = rustix::net::sockopt::set_tcp_quickack(socket, true);
}

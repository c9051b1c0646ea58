//! The socket pair between the kernel's client and the resource's loop.
//!
//! Invariant: the kernel gets a new socket only when nothing is left of the old one, neither a byte not
//! looked at nor a request not answered. The kernel sends what was under way again; a first copy that was
//! carried out after the second would undo what was written since.

use crate::daemon::running::Running;
use crate::driver::mailbox::ToLoop;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, Shutdown, SocketFlags, SocketType, recv, shutdown, socketpair,
};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Notify, oneshot, watch};
use twinblk_engine::ids::VolumeId;
use userspace_nbd::export::Export;
use userspace_nbd::negotiation::Session;

/// What the engine and `status` call the kernel's client.
pub(super) const CLIENT: &str = "the kernel's nbd device";

/// A connection the loop serves.
#[derive(Debug, Clone)]
pub(super) struct Link {
    socket: Arc<OwnedFd>,
    gone: watch::Receiver<bool>,
    /// The kernel has it: its end is worth waking somebody.
    in_use: Arc<AtomicBool>,
}

/// A pair of which neither end is in use yet: ours, and the kernel's.
pub(super) fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// Whether the other end is closed, although nothing was read yet.
pub(super) fn is_hung_up(socket: &OwnedFd) -> bool {
    let mut byte = [0; 1];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match recv(socket, &mut byte[..], flags) {
        Ok((count, _)) => count == 0,
        Err(error) => error != Errno::AGAIN,
    }
}

impl Link {
    /// Hands our end to the loop, which may refuse it ([`Link::is_taken`]). `wake` is told when nothing is
    /// left of a connection the kernel has ([`Link::in_use`]).
    pub(super) fn serve(
        running: &Running,
        socket: OwnedFd,
        volume: u16,
        export: Export,
        wake: &Arc<Notify>,
    ) -> rustix::io::Result<Self> {
        // A second descriptor, to end the connection without asking the loop.
        let own = Arc::new(rustix::io::fcntl_dupfd_cloexec(&socket, 3)?);
        let (kept, dropped) = oneshot::channel::<()>();
        let (sender, gone) = watch::channel(false);
        let (watched, wake) = (Arc::clone(&own), Arc::clone(wake));
        let in_use = Arc::new(AtomicBool::new(false));
        let worth = Arc::clone(&in_use);
        tokio::spawn(async move {
            // Nothing is ever sent: it ends when the loop drops its half.
            let _ = dropped.await;
            // Whatever became of the loop, the kernel learns that nobody serves it.
            let _ = shutdown(&watched, Shutdown::Both);
            sender.send_replace(true);
            if worth.load(Ordering::Relaxed) {
                wake.notify_one();
            }
        });
        let session = Session {
            export: Export {
                // The kernel knows the size, and is told when it changes; the engine checks each range.
                size: i64::MAX.cast_unsigned(),
                ..export
            },
            structured: false,
            contexts: Vec::new(),
            leftover: Vec::new(),
            block_size_negotiated: true,
        };
        // If the loop has ended, the message is dropped, and the link is gone at once.
        let _ = running.handle.send(ToLoop::NbdClient {
            socket,
            session,
            volume: VolumeId(volume),
            client: CLIENT.to_owned(),
            kept: Some(kept),
        });
        Ok(Self {
            socket: own,
            gone,
            in_use,
        })
    }

    /// Whether the loop serves it; `None`: it does not say. It refuses while the role changes and when the
    /// resource stops; then nothing is left of the connection.
    pub(super) async fn is_taken(&self, running: &Running) -> Option<bool> {
        // What the loop is told it hears in order: once it answers it has decided.
        let answered = running.status().await.is_ok();
        // The task that watches was woken before this one.
        tokio::task::yield_now().await;
        match self.is_gone() {
            true => Some(false),
            false => answered.then_some(true),
        }
    }

    /// The kernel has its end of it. `wake` is told at once if that came too late.
    pub(super) fn in_use(&self, wake: &Notify) {
        self.in_use.store(true, Ordering::Relaxed);
        if self.is_gone() {
            wake.notify_one();
        }
    }

    /// Nothing is left of it.
    pub(super) fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    /// Waits until nothing is left of it.
    pub(super) async fn wait_gone(&mut self) {
        // An error means that the task that watches is gone, with everything else.
        let _ = self.gone.wait_for(|gone| *gone).await;
    }

    /// Ends it: answers do not reach the kernel any more.
    pub(super) fn cut(&self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_the_kernel_dropped_is_recognised() {
        let (ours, kernels) = pair().expect("a pair");
        assert!(!is_hung_up(&ours));
        rustix::io::write(&kernels, b"x").expect("a byte");
        assert!(!is_hung_up(&ours));
        let mut byte = [0; 1];
        rustix::io::read(&ours, &mut byte).expect("it was only looked at");
        drop(kernels);
        assert!(is_hung_up(&ours));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_the_loop_refuses_is_known_before_the_kernel_gets_it() {
        let kit = crate::daemon::fake_loop::Kit::new();
        let fake = kit.up("r0");
        let running = kit.supervisor.running("r0").expect("it is up");
        let wake = Arc::new(Notify::new());
        for takes in [false, true] {
            let (ours, _kernels) = pair().expect("a pair");
            let export = Export {
                name: "r0".into(),
                description: String::new(),
                size: 1 << 20,
                flags: userspace_nbd::export::TransmissionFlags::HAS_FLAGS,
                block_size: userspace_nbd::export::BlockSize {
                    minimum: 512,
                    preferred: 4096,
                    maximum: 1 << 20,
                },
                meta_contexts: Vec::new(),
            };
            let link = Link::serve(&running, ours, 0, export, &wake).expect("descriptors");
            let asked = tokio::spawn({
                let running = Arc::clone(&running);
                async move { (link.is_taken(&running).await, link) }
            });
            let client = fake.client().await;
            let kept = takes.then_some(client);
            fake.tell_state().await;
            let (taken, mut link) = asked.await.expect("it ends");
            assert_eq!(taken, Some(takes));
            if takes {
                link.in_use(&wake);
            }
            let woken = |wake: &Notify| {
                let mut woken = std::pin::pin!(wake.notified());
                woken.as_mut().enable()
            };
            drop(kept);
            link.wait_gone().await;
            tokio::task::yield_now().await;
            assert_eq!(woken(&wake), takes, "nobody is told of what never was");
        }
    }
}

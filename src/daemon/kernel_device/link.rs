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
use tokio::sync::{Notify, oneshot, watch};
use twinblk_engine::ids::VolumeId;
use userspace_nbd::export::Export;
use userspace_nbd::negotiation::Session;

/// What the engine and `status` call the kernel's client.
pub(super) const CLIENT: &str = "the kernel's nbd device";

/// A connection the loop serves.
#[derive(Debug)]
pub(super) struct Link {
    socket: Arc<OwnedFd>,
    gone: watch::Receiver<bool>,
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
    /// Hands our end to the loop. `wake` is told when nothing of the connection is left.
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
        tokio::spawn(async move {
            // Nothing is ever sent: it ends when the loop drops its half.
            let _ = dropped.await;
            // Whatever became of the loop, the kernel learns that nobody serves it.
            let _ = shutdown(&watched, Shutdown::Both);
            sender.send_replace(true);
            wake.notify_one();
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
        Ok(Self { socket: own, gone })
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
}

//! The driver: the only place with file descriptors on the data path. One thread and one ring per
//! resource own everything: the engine, the NBD connections, the peers' sockets, the disks, the
//! buffers.
//!
//! How a turn goes ([`turn`]):
//!
//! ```text
//! completions reaped ─┐
//! mailbox emptied ────┼→ inputs → engine → outputs carried out ─┐ until nothing is left
//! deadline passed ────┘     ↑──────────── done at once ─────────┘
//!                                   ↓
//!     one send per socket, disks driven inline, receives where bytes are wanted
//!                                   ↓
//!          one io_uring_enter submits the rest and waits, until the next deadline at most
//! ```
//!
//! Who does what: [`ring`] names and reaps operations; [`buffers`] holds all payloads; [`disk`] with
//! [`disk_ring`], [`disk_inline`] and [`discard`] carries out jobs; [`metadata_io`] does so for
//! metadata; [`nbd_link`] and [`peer_link`] turn bytes into inputs and outputs into bytes, both on
//! [`intake`] and [`send_queue`]; [`open`] and [`probe`] find out what a disk is.

mod block_status;
mod buffers;
mod carry_out;
mod counters;
mod discard;
mod disk;
mod disk_inline;
mod disk_ring;
mod intake;
mod lent;
pub(crate) mod mailbox;
pub(crate) mod metadata_io;
mod nbd_link;
mod nbd_links;
mod nbd_reply;
mod open;
mod peer_half;
mod peer_link;
mod peers;
mod polling;
mod probe;
mod ring;
mod send_queue;
mod slab;
mod timers;
mod turn;

pub(crate) use open::{MetaDisk, OpenVolumeError, OpenedVolume, VolumeSpec, open_volume};

use mailbox::{FromLoop, LoopHandle, ToLoop};
use std::any::Any;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use tokio::sync::mpsc::UnboundedSender;
use turn::Turn;
use twinblk_engine::config::ResourceConfig;

/// Settings of a loop.
#[derive(Debug, Clone)]
pub(crate) struct DriverOptions {
    /// Memory for payloads; kept between 32 MiB and 2 GiB.
    pub(crate) buffer_bytes: u64,
    /// How long to look for what comes next before sleeping, in microseconds.
    pub(crate) poll_us: u64,
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self {
            buffer_bytes: 32 << 20,
            poll_us: 100,
        }
    }
}

/// What a loop is started with.
#[derive(Debug)]
pub(crate) struct StartConfig {
    /// For the engine.
    pub(crate) engine: ResourceConfig,
    /// All volumes, open.
    pub(crate) volumes: Vec<OpenedVolume>,
    /// Settings.
    pub(crate) options: DriverOptions,
    /// Where the loop reports.
    pub(crate) to_daemon: UnboundedSender<FromLoop>,
}

/// Why a loop could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// No ring.
    #[error(transparent)]
    Ring(#[from] ring::RingError),
    /// No memory, descriptors or threads.
    #[error("the resource's loop cannot be started: {0}")]
    System(#[from] std::io::Error),
    /// It ended before it was ready.
    #[error("the resource's loop ended while it was being started")]
    Died,
}

/// Starts a resource's loop in a thread of its own. The disks' metadata are handed to the engine at
/// once; connections come through the handle. The loop ends after `Stop`, with
/// [`FromLoop::Ended`] as its last word; the disks are closed and unlocked by then.
pub(crate) fn start(config: StartConfig) -> Result<(LoopHandle, JoinHandle<()>), StartError> {
    let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
    let wake = rustix::event::eventfd(0, flags).map_err(std::io::Error::from)?;
    let wake = Arc::new(wake);
    let (sender, receiver) = mpsc::channel();
    let (ready, is_ready) = mpsc::sync_channel(1);
    let handle = LoopHandle {
        sender,
        wake: Arc::clone(&wake),
    };
    let thread = std::thread::Builder::new()
        .name(format!("res-{}", config.engine.name))
        .spawn(move || run(config, receiver, wake, &ready))?;
    match is_ready.recv() {
        Ok(Ok(())) => Ok((handle, thread)),
        Ok(Err(error)) => {
            // It has nothing left to do.
            let _ = thread.join();
            Err(error)
        }
        Err(_) => Err(StartError::Died),
    }
}

/// The thread. The ring belongs to it from its creation on.
fn run(
    config: StartConfig,
    mailbox: mpsc::Receiver<ToLoop>,
    wake: Arc<OwnedFd>,
    ready: &mpsc::SyncSender<Result<(), StartError>>,
) {
    let to_daemon = config.to_daemon.clone();
    let mut turn = match Turn::new(config, mailbox, wake) {
        Ok(turn) => turn,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    // After a panic nothing of the state is looked at again. What the kernel may still write to is
    // leaked (see `lent`), sockets and disks are closed: for the peers this node has died.
    let outcome = catch_unwind(AssertUnwindSafe(|| turn.run()));
    let closed = catch_unwind(AssertUnwindSafe(|| drop(turn)));
    let ended = match (outcome, closed) {
        (Ok(Ok(())), Ok(())) => Ok(()),
        (Ok(Err(error)), _) => Err(format!("io_uring failed: {error}")),
        (Err(panic), _) | (_, Err(panic)) => Err(panic_text(panic.as_ref())),
    };
    // The daemon may be gone already.
    let _ = to_daemon.send(FromLoop::Ended(ended));
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    format!("a mistake in twinblk stopped the resource ({text}); please report it")
}

#[cfg(test)]
mod tests;

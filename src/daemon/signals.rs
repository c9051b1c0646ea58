//! SIGTERM and SIGINT: the first one takes everything down in order, a second one ends the daemon.

use std::fmt;
use tokio::signal::unix::{SignalKind, signal};

/// A signal that ends the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Term,
    Int,
}

impl Signal {
    /// What a shell reports of a program that the signal killed: 128 + its number.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Term => 143,
            Self::Int => 130,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Term => "SIGTERM",
            Self::Int => "SIGINT",
        })
    }
}

/// Receives them from its creation on.
#[derive(Debug)]
pub(crate) struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Signals {
    pub(crate) fn install() -> std::io::Result<Self> {
        // A limit on the size of files is an error of a disk, not the end of all resources. (It is enough
        // that the signal is caught.)
        drop(signal(SignalKind::from_raw(libc::SIGXFSZ))?);
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    /// The next one that comes, or has come since.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.term.recv() => Signal::Term,
            _ = self.int.recv() => Signal::Int,
        }
    }
}

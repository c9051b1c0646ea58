//! Trim and zero: whatever the disk can do, the range reads back as zeroes afterwards. A bare
//! discard, whose result a device does not define, is never used.
//!
//! Per kind of disk and wish there is a short list of methods, tried in order; what the disk refuses
//! once is not tried again. The last one always works: writing zeroes.

use super::disk::{Backing, Next, Target, mode_index};
use twinblk_engine::output::ZeroMode;

const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | KEEP;

/// Longest range given to the kernel at once, so that no call holds a file's lock for long.
const PIECE: u64 = 1 << 30;

/// A way to make a range zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// One `fallocate` with this mode.
    Fallocate(i32),
    /// Punch, then allocate the hole again: for file systems that cannot zero a range in place.
    PunchThenAllocate,
    /// Write zeroes.
    Write,
}

/// On a block device "punch" is a write of zeroes that may unmap and fails where the device has no
/// such command; "zero" is one that must not unmap and falls back to writing inside the kernel.
fn methods(backing: Backing, mode: ZeroMode) -> &'static [Method] {
    use Method::{Fallocate, PunchThenAllocate, Write};
    match (backing, mode) {
        (_, ZeroMode::Punch) => &[Fallocate(PUNCH), Fallocate(ZERO), Write],
        (Backing::File, ZeroMode::Allocate) => &[Fallocate(ZERO), PunchThenAllocate, Write],
        (Backing::Block, ZeroMode::Allocate) => &[Fallocate(ZERO), Write],
    }
}

/// The next system call of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// `fallocate`.
    Fallocate {
        /// Its mode.
        mode: i32,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Write zeroes, as many as there are at hand and at most `len`.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Make it stable.
    Sync,
}

/// A range on its way to zero.
#[derive(Debug)]
pub(crate) struct ZeroPlan {
    at: u64,
    end: u64,
    mode: ZeroMode,
    fua: bool,
    method: u8,
    /// The current piece is punched and to be allocated (second half of `PunchThenAllocate`).
    punched: bool,
    backing: Backing,
    retries: u8,
}

impl ZeroPlan {
    /// A range that shall read as zeroes. An empty one succeeds at once.
    pub(crate) fn new(offset: u64, len: u64, mode: ZeroMode, fua: bool) -> Self {
        Self {
            at: offset,
            // Beyond any disk when it overflows, which the check of the part refuses.
            end: offset.saturating_add(len),
            mode,
            fua,
            method: 0,
            punched: false,
            backing: Backing::File,
            retries: 0,
        }
    }

    /// Takes up what is known of the disk.
    pub(crate) fn begin(&mut self, target: &Target) {
        self.backing = target.backing;
        self.method = target.zero_method[mode_index(self.mode)].get();
    }

    /// Bytes not zeroed yet.
    pub(crate) fn left(&self) -> u64 {
        self.end - self.at
    }

    fn current(&self) -> Method {
        let methods = methods(self.backing, self.mode);
        methods
            .get(usize::from(self.method))
            .copied()
            .unwrap_or(Method::Write)
    }

    fn piece(&self) -> u64 {
        self.left().min(PIECE)
    }

    /// What to do now.
    pub(crate) fn step(&self) -> Step {
        if self.at == self.end {
            return Step::Sync;
        }
        let (offset, len) = (self.at, self.piece());
        match self.current() {
            Method::Fallocate(mode) => Step::Fallocate { mode, offset, len },
            Method::PunchThenAllocate if self.punched => Step::Fallocate {
                mode: KEEP,
                offset,
                len,
            },
            Method::PunchThenAllocate => Step::Fallocate {
                mode: PUNCH,
                offset,
                len,
            },
            Method::Write => Step::Write {
                offset,
                len: self.left(),
            },
        }
    }

    /// The step ended with a count (of bytes written, otherwise 0) or a negative errno.
    pub(crate) fn advance(&mut self, target: &Target, result: i64) -> Next {
        let Ok(count) = u64::try_from(result) else {
            return self.failed(target, i32::try_from(-result).unwrap_or(libc::EIO));
        };
        self.retries = 0;
        match self.step() {
            Step::Sync => return Next::Ended(Ok(())),
            Step::Write { .. } => {
                let whole = (self.at + count).min(self.end);
                // A direct write may stop only at whole units.
                let whole = if whole == self.end {
                    whole
                } else {
                    whole - whole % target.unit as u64
                };
                if whole <= self.at {
                    return Next::Ended(Err(libc::EIO));
                }
                self.at = whole;
            }
            Step::Fallocate { .. } => {
                if self.current() == Method::PunchThenAllocate && !self.punched {
                    self.punched = true;
                    return Next::Again;
                }
                self.punched = false;
                self.at += self.piece();
            }
        }
        if self.at < self.end || self.fua {
            Next::Again
        } else {
            Next::Ended(Ok(()))
        }
    }

    fn failed(&mut self, target: &Target, errno: i32) -> Next {
        match errno {
            libc::EINTR | libc::EAGAIN if self.retries < 100 => {
                self.retries += 1;
                Next::Again
            }
            libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL
                if self.at < self.end && self.current() != Method::Write =>
            {
                self.method += 1;
                self.punched = false;
                if errno != libc::EINVAL {
                    target.zero_method[mode_index(self.mode)].set(self.method);
                }
                Next::Again
            }
            _ => Next::Ended(Err(errno)),
        }
    }
}

//! One disk (or metadata device) and the jobs on it. Two ways to drive it behind one enum: through
//! the ring, and inside the turn where the file system would hand every ring operation to a kernel
//! worker (tmpfs).
//!
//! Invariants:
//! * a job owns or holds its memory from its start to its end; nothing else may touch it meanwhile;
//! * a job never reaches outside the part of the disk it was given (data or metadata);
//! * short reads and writes are continued here: whoever ordered the job sees all or an error.

use super::buffers::Pool;
use super::discard::ZeroPlan;
use super::metadata_io::AlignedBuf;
use super::ring::Ring;
use super::slab::Slab;
use super::{disk_inline, disk_ring};
use std::cell::Cell;
use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use twinblk_engine::ids::{BufId, OpId};
use twinblk_engine::input::{DiskDone, Input};
use twinblk_engine::output::ZeroMode;
use twinblk_protocol::digest::digests;

/// Zeroing more than this is left to a kernel worker even where everything else is done inline.
const INLINE_ZERO: u64 = 16 << 20;

/// What the parts of the loop share: where jobs go, and where their results come.
#[derive(Debug)]
pub(crate) struct Core {
    /// The ring.
    pub(crate) ring: Ring,
    /// All payload memory.
    pub(crate) pool: Pool,
    /// Jobs in flight.
    pub(crate) jobs: Slab<Job>,
    /// Jobs to be done inside the turn, once the peers have been sent their frames: so both disks
    /// work at the same time.
    pub(crate) inline: VecDeque<Job>,
    /// What the engine is to be told, in order.
    pub(crate) inputs: VecDeque<Input>,
}

/// What kind of thing a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// A regular file.
    File,
    /// A block device.
    Block,
}

/// How a disk is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Through the ring.
    Ring,
    /// By plain system calls inside the turn.
    Inline,
}

/// A disk, or the part of one that may be touched.
#[derive(Debug)]
pub(crate) struct Target {
    /// Open for reading and writing, usually with O_DIRECT.
    pub(crate) file: OwnedFd,
    /// File or device.
    pub(crate) backing: Backing,
    /// Bytes that may be touched.
    pub(crate) part: Range<u64>,
    /// Where they end since the disk has grown, if that is more.
    pub(crate) grown_to: Cell<u64>,
    /// Smallest unit of I/O in bytes.
    pub(crate) unit: usize,
    /// A range can be zeroed without writing it.
    pub(crate) fast_zero: bool,
    /// First method that works, per [`ZeroMode`]; learnt from failures.
    pub(crate) zero_method: [Cell<u8>; 2],
}

/// The two disk engines.
#[derive(Debug)]
pub(crate) enum Disk {
    /// See [`disk_ring`].
    Ring(Target),
    /// See [`disk_inline`].
    Inline(Target),
}

/// What a job does.
#[derive(Debug)]
pub(crate) enum Action {
    /// Fill the memory.
    Read,
    /// Write the memory.
    Write {
        /// Stable before completion.
        fua: bool,
    },
    /// Make the range read as zeroes.
    Zero(ZeroPlan),
    /// Make everything stable.
    Flush,
}

/// Memory of a job.
#[derive(Debug)]
pub(crate) enum Memory {
    /// None.
    None,
    /// A hold on a pool buffer.
    Pool(BufId),
    /// Its own. Not dropped with the job: only a job that has ended may free it.
    Own(ManuallyDrop<AlignedBuf>),
}

/// Whom the end of a job is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The engine: an operation on data.
    Data(OpId),
    /// The engine, together with the buffer, which the driver provided.
    DataWithBuffer(OpId),
    /// The engine: the digests of what was read; the buffer goes back.
    Digest(OpId),
    /// The engine: an operation on metadata.
    Meta(OpId),
}

/// A job on a disk.
#[derive(Debug)]
pub(crate) struct Job {
    /// Where.
    pub(crate) disk: Rc<Disk>,
    /// Whom its end is told.
    pub(crate) purpose: Purpose,
    /// What.
    pub(crate) action: Action,
    /// With which memory.
    pub(crate) memory: Memory,
    /// First byte on the disk.
    pub(crate) offset: u64,
    /// Bytes of a read or write.
    pub(crate) len: usize,
    /// Bytes of it that are done.
    pub(crate) done: usize,
    /// Times it was interrupted without progress.
    pub(crate) retries: u8,
}

/// What to do with a job after a part of it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Go on.
    Again,
    /// It ended.
    Ended(Result<(), i32>),
}

impl Disk {
    /// A disk driven by `engine`.
    pub(crate) fn new(engine: Engine, target: Target) -> Self {
        match engine {
            Engine::Ring => Self::Ring(target),
            Engine::Inline => Self::Inline(target),
        }
    }

    /// What is driven.
    pub(crate) fn target(&self) -> &Target {
        match self {
            Self::Ring(target) | Self::Inline(target) => target,
        }
    }
}

impl Target {
    fn allows(&self, job: &Job) -> bool {
        let len = match &job.action {
            Action::Flush => return true,
            Action::Zero(plan) => plan.left(),
            Action::Read | Action::Write { .. } => job.len as u64,
        };
        let end = job.offset.checked_add(len);
        job.offset >= self.part.start
            && end.is_some_and(|end| end <= self.part.end.max(self.grown_to.get()))
    }
}

impl Job {
    /// A job without memory.
    pub(crate) fn flush(disk: &Rc<Disk>, purpose: Purpose) -> Self {
        Self {
            disk: Rc::clone(disk),
            purpose,
            action: Action::Flush,
            memory: Memory::None,
            offset: 0,
            len: 0,
            done: 0,
            retries: 0,
        }
    }

    /// A part of a read or write ended with `result` bytes or a negative errno.
    pub(crate) fn advance(&mut self, result: i64) -> Next {
        let Ok(count) = usize::try_from(result) else {
            return self.failed(result);
        };
        // A direct write may stop only at whole units; what lies behind the last one is repeated.
        let unit = self.disk.target().unit;
        let done = self.done + count;
        let done = if done >= self.len {
            self.len
        } else {
            done - done % unit
        };
        if done == self.done {
            return Next::Ended(Err(libc::EIO));
        }
        (self.done, self.retries) = (done, 0);
        if self.done == self.len {
            Next::Ended(Ok(()))
        } else {
            Next::Again
        }
    }

    /// A part ended with a negative errno: again if it was merely interrupted.
    pub(crate) fn failed(&mut self, result: i64) -> Next {
        let errno = i32::try_from(-result).unwrap_or(libc::EIO);
        if matches!(errno, libc::EINTR | libc::EAGAIN) && self.retries < 100 {
            self.retries += 1;
            return Next::Again;
        }
        Next::Ended(Err(errno))
    }
}

/// Starts a job; its end becomes an input of the engine, in this turn or a later one.
pub(crate) fn start(core: &mut Core, mut job: Job) {
    if !job.disk.target().allows(&job) {
        return finish(core, job, Err(libc::EINVAL));
    }
    if let Action::Zero(plan) = &mut job.action {
        plan.begin(job.disk.target());
    }
    let by_worker = matches!(&job.action, Action::Zero(plan) if plan.left() > INLINE_ZERO);
    match &*job.disk {
        Disk::Inline(_) if !by_worker => core.inline.push_back(job),
        _ => disk_ring::submit(core, job),
    }
}

/// Does what is to be done inside the turn, in the order in which it was started.
pub(crate) fn run_inline(core: &mut Core) {
    while let Some(job) = core.inline.pop_front() {
        let (job, result) = disk_inline::run(&core.pool, &mut core.ring.calls, job);
        finish(core, job, result);
    }
}

/// A job ended: its memory goes back, and the engine is told.
pub(crate) fn finish(core: &mut Core, job: Job, result: Result<(), i32>) {
    let Job {
        purpose,
        memory,
        len,
        ..
    } = job;
    let mut done = match purpose {
        Purpose::Meta(op) => {
            core.inputs.push_back(Input::Meta { op, result });
            if let Memory::Own(buf) = memory {
                drop(ManuallyDrop::into_inner(buf));
            }
            return;
        }
        Purpose::Digest(op) => {
            let Memory::Pool(buf) = memory else {
                unreachable!("a read has memory");
            };
            let result = result.map(|()| digests(core.pool.bytes(buf, len)).into());
            core.pool.release(buf);
            core.inputs.push_back(Input::Digest { op, result });
            return;
        }
        Purpose::Data(op) | Purpose::DataWithBuffer(op) => DiskDone {
            op,
            result,
            zero: false,
            buf: None,
        },
    };
    match (purpose, memory) {
        (Purpose::DataWithBuffer(_), Memory::Pool(buf)) => {
            done.zero = result.is_ok() && is_zero(core.pool.bytes(buf, len));
            done.buf = Some(buf);
        }
        (_, Memory::Pool(buf)) => core.pool.release(buf),
        (_, Memory::Own(buf)) => drop(ManuallyDrop::into_inner(buf)),
        (_, Memory::None) => {}
    }
    core.inputs.push_back(Input::Disk(done));
}

/// Every byte is zero.
fn is_zero(bytes: &[u8]) -> bool {
    // Most data show it at once; the rest goes in steps the compiler makes wide.
    let mut chunks = bytes.chunks_exact(128);
    chunks
        .by_ref()
        .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
        && chunks.remainder().iter().all(|&byte| byte == 0)
}

/// Index of a mode in [`Target::zero_method`].
pub(crate) fn mode_index(mode: ZeroMode) -> usize {
    match mode {
        ZeroMode::Punch => 0,
        ZeroMode::Allocate => 1,
    }
}

#[cfg(test)]
#[path = "tests/disk.rs"]
mod tests;

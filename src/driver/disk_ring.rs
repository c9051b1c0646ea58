//! Jobs through the ring: one operation in flight per job, the next one when it completes.

use super::discard::Step;
use super::disk::{Action, Core, Job, Memory, Next, finish};
use super::ring::{Kind, Token};
use super::slab::Key;
use io_uring::{opcode, squeue, types};
use std::os::fd::AsRawFd;

/// Registered buffer that is the pool.
const POOL: u16 = 0;

/// Starts the first operation of a job.
pub(crate) fn submit(core: &mut Core, job: Job) {
    let key = core.jobs.insert(job);
    push(core, key);
}

/// An operation of a job completed.
pub(crate) fn completed(core: &mut Core, key: Key, result: i32) {
    let Some(job) = core.jobs.get_mut(key) else {
        return;
    };
    let next = match &mut job.action {
        Action::Read | Action::Write { .. } => job.advance(i64::from(result)),
        Action::Flush if result >= 0 => Next::Ended(Ok(())),
        Action::Flush => job.failed(i64::from(result)),
        Action::Zero(plan) => plan.advance(job.disk.target(), i64::from(result)),
    };
    match next {
        Next::Again => push(core, key),
        Next::Ended(result) => {
            if let Some(job) = core.jobs.remove(key) {
                finish(core, job, result);
            }
        }
    }
}

/// Queues the next operation of a job.
fn push(core: &mut Core, key: Key) {
    let Some(job) = core.jobs.get_mut(key) else {
        return;
    };
    let target = job.disk.target();
    let fd = types::Fd(target.file.as_raw_fd());
    let entry = match &job.action {
        Action::Flush => sync(fd),
        Action::Zero(plan) => match plan.step() {
            Step::Sync => sync(fd),
            Step::Fallocate { mode, offset, len } => opcode::Fallocate::new(fd, len)
                .offset(offset)
                .mode(mode)
                .build(),
            Step::Write { offset, len } => {
                let (address, room) = core.pool.zeroes();
                let len = u32::try_from(len.min(room as u64)).unwrap_or(u32::MAX);
                opcode::Write::new(fd, address, len).offset(offset).build()
            }
        },
        Action::Read | Action::Write { .. } => {
            let fixed = core.ring.has_fixed_buffers();
            let (start, fixed) = match &mut job.memory {
                Memory::Pool(buf) => (core.pool.address(*buf), fixed),
                Memory::Own(own) => (own.address(), false),
                Memory::None => unreachable!("a read or write has memory"),
            };
            // SAFETY: `done` is less than the length of the memory.
            let address = unsafe { start.add(job.done) };
            let offset = job.offset + job.done as u64;
            // Lengths of jobs fit: the largest frame is 8 MiB.
            let len = u32::try_from(job.len - job.done).unwrap_or(u32::MAX);
            match (&job.action, fixed) {
                (Action::Write { fua }, true) => opcode::WriteFixed::new(fd, address, len, POOL)
                    .offset(offset)
                    .rw_flags(write_flags(*fua))
                    .build(),
                (Action::Write { fua }, false) => opcode::Write::new(fd, address, len)
                    .offset(offset)
                    .rw_flags(write_flags(*fua))
                    .build(),
                (_, true) => opcode::ReadFixed::new(fd, address, len, POOL)
                    .offset(offset)
                    .build(),
                (_, false) => opcode::Read::new(fd, address, len).offset(offset).build(),
            }
        }
    };
    push_entry(core, &entry, key);
}

fn push_entry(core: &mut Core, entry: &squeue::Entry, key: Key) {
    // SAFETY: the job stays in `core.jobs`, with its hold on the memory, until the completion; the
    // file stays open because the job holds the disk; the zeroes live as long as the pool, which
    // outlives the ring's operations.
    unsafe {
        core.ring.push(
            entry,
            Token {
                kind: Kind::Disk,
                key,
            },
        )
    }
}

fn sync(fd: types::Fd) -> squeue::Entry {
    opcode::Fsync::new(fd)
        .flags(types::FsyncFlags::DATASYNC)
        .build()
}

fn write_flags(fua: bool) -> i32 {
    if fua { libc::RWF_DSYNC } else { 0 }
}

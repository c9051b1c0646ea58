//! Jobs done inside the turn, for file systems where a write is a copy in memory (tmpfs, ramfs): a
//! kernel worker per operation would cost half the throughput.

use super::buffers::Pool;
use super::discard::Step;
use super::disk::{Action, Job, Memory, Next};
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};
use std::io::IoSlice;

/// Does the whole job, and counts its system calls.
pub(crate) fn run(pool: &Pool, calls: &mut u64, mut job: Job) -> (Job, Result<(), i32>) {
    loop {
        *calls += 1;
        let result = step(pool, &mut job);
        let next = match &mut job.action {
            Action::Read | Action::Write { .. } => job.advance(result),
            Action::Flush if result >= 0 => Next::Ended(Ok(())),
            Action::Flush => job.failed(result),
            Action::Zero(plan) => plan.advance(job.disk.target(), result),
        };
        if let Next::Ended(result) = next {
            return (job, result);
        }
    }
}

/// One system call; a count or a negative errno as the ring would give it.
fn step(pool: &Pool, job: &mut Job) -> i64 {
    let file = &job.disk.target().file;
    let offset = job.offset + job.done as u64;
    match &job.action {
        Action::Flush => unit(rustix::fs::fdatasync(file)),
        Action::Zero(plan) => match plan.step() {
            Step::Sync => unit(rustix::fs::fdatasync(file)),
            Step::Fallocate { mode, offset, len } => {
                let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
                unit(rustix::fs::fallocate(file, mode, offset, len))
            }
            Step::Write { offset, len } => {
                let (address, room) = pool.zeroes();
                let len = usize::try_from(len).unwrap_or(room).min(room);
                // SAFETY: the zeroes are mapped as long as the pool lives and never written.
                let zeroes = unsafe { std::slice::from_raw_parts(address, len) };
                count(rustix::io::pwrite(file, zeroes, offset))
            }
        },
        Action::Read | Action::Write { .. } => {
            let address = match &mut job.memory {
                Memory::Pool(buf) => pool.address(*buf),
                Memory::Own(own) => own.address(),
                Memory::None => unreachable!("a read or write has memory"),
            };
            // SAFETY: the memory has `len` bytes and belongs to the job.
            let bytes = unsafe { std::slice::from_raw_parts_mut(address, job.len) };
            let rest = &mut bytes[job.done..];
            // The calls without vectors cost a tenth less, so they are used where they suffice.
            match job.action {
                Action::Write { fua: true } => {
                    let (data, flags) = ([IoSlice::new(rest)], ReadWriteFlags::DSYNC);
                    count(rustix::io::pwritev2(file, &data, offset, flags))
                }
                Action::Write { fua: false } => count(rustix::io::pwrite(file, rest, offset)),
                _ => count(rustix::io::pread(file, rest, offset)),
            }
        }
    }
}

fn count(result: Result<usize, Errno>) -> i64 {
    match result {
        Ok(count) => i64::try_from(count).unwrap_or(i64::MAX),
        Err(errno) => -i64::from(errno.raw_os_error()),
    }
}

fn unit(result: Result<(), Errno>) -> i64 {
    count(result.map(|()| 0))
}

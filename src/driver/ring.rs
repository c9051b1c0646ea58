//! The ring: set up for one thread that submits and waits in one call, or looks without one; restricted
//! to the operations used here; and the names its completions carry.
//!
//! Invariants:
//! * a completion's name ([`Token`]) is kind, slot and generation: one that arrives late for
//!   something closed can never be taken for something new in the same place;
//! * no completion is lost: what does not fit the queue is kept by the kernel (NODROP) or moved to
//!   the backlog here, and is handed out by [`Ring::reap`] in order.

use super::slab::Key;
use io_uring::{IoUring, Probe, opcode, register::Restriction, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

/// Entries of the submission queue. A fuller turn submits in between.
const SQ_ENTRIES: u32 = 256;
/// Entries of the completion queue.
const CQ_ENTRIES: u32 = 4096;

/// What a completion is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The mailbox has something.
    Wake = 1,
    /// A job on a disk.
    Disk,
    /// An NBD connection received.
    NbdRecv,
    /// An NBD connection sent.
    NbdSend,
    /// A peer's data socket received.
    DataRecv,
    /// A peer's data socket sent.
    DataSend,
    /// A peer's control socket received.
    ControlRecv,
    /// A peer's control socket sent.
    ControlSend,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Wake,
        Self::Disk,
        Self::NbdRecv,
        Self::NbdSend,
        Self::DataRecv,
        Self::DataSend,
        Self::ControlRecv,
        Self::ControlSend,
    ];
}

/// The name of an operation in the ring: kind (8 bits), slot (24), generation (32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token {
    /// What it is for.
    pub(crate) kind: Kind,
    /// Of whom.
    pub(crate) key: Key,
}

impl Token {
    /// As `user_data`.
    pub(crate) fn encode(self) -> u64 {
        debug_assert!(self.key.slot < Key::MAX_SLOTS);
        (self.kind as u64) << 56 | u64::from(self.key.slot) << 32 | u64::from(self.key.generation)
    }

    /// From `user_data`; `None` for what [`Self::encode`] never makes.
    pub(crate) fn decode(raw: u64) -> Option<Self> {
        let number = (raw >> 56) as u8;
        let kind = Kind::ALL.into_iter().find(|&kind| kind as u8 == number)?;
        let slot = (raw >> 32) as u32 & (Key::MAX_SLOTS - 1);
        // Truncation is the point: the lower half is the generation.
        Some(Self {
            kind,
            key: Key {
                slot,
                generation: raw as u32,
            },
        })
    }
}

/// A completion: what for, and the result as the kernel gave it (negative errno or a count).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    /// What it is for.
    pub(crate) token: Token,
    /// The result.
    pub(crate) result: i32,
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    /// The kernel refuses rings.
    #[error(
        "io_uring is not available: {0} (kernel 5.11 or newer is needed, and the sysctl \
         kernel.io_uring_disabled must not forbid it)"
    )]
    Setup(io::Error),
    /// The kernel is too old.
    #[error("the kernel's io_uring lacks {0}; kernel 5.11 or newer is needed")]
    Missing(&'static str),
}

/// The operations used; everything else is forbidden to the ring.
const OPCODES: [(u8, &str); 9] = [
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::ReadFixed::CODE, "READ_FIXED"),
    (opcode::WriteFixed::CODE, "WRITE_FIXED"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::Fallocate::CODE, "FALLOCATE"),
    (opcode::SendMsg::CODE, "SENDMSG"),
    (opcode::RecvMsg::CODE, "RECVMSG"),
];

/// The ring and what it counts.
pub(crate) struct Ring {
    ring: IoUring,
    backlog: VecDeque<(u64, i32)>,
    failed: Option<io::Error>,
    /// Calls of `io_uring_enter`.
    pub(crate) enters: u64,
    /// Other system calls made for I/O, for which the ring would have been the slower way.
    pub(crate) calls: u64,
    /// Times the processor was offered to others while looking (`sched_yield`).
    pub(crate) yields: u64,
    /// Why the buffers are not registered; `Ok` when they are.
    pub(crate) registered: Result<(), String>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("enters", &self.enters)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// Sets up a ring for the calling thread. `buffers` (address and length) is registered as fixed
    /// buffer 0 when the kernel and the limits allow it.
    ///
    /// # Safety
    /// `buffers` stays mapped until the ring is dropped and every operation has completed.
    pub(crate) unsafe fn new(buffers: Option<libc::iovec>) -> Result<Self, RingError> {
        let mut last = None;
        for attempt in 0..3 {
            match Self::build(attempt) {
                Ok(mut ring) => {
                    Self::check(&ring)?;
                    let registered = match buffers {
                        None => Err(String::from("no disk is driven through the ring")),
                        // SAFETY: the caller keeps the memory mapped.
                        Some(iovec) => unsafe { ring.submitter().register_buffers(&[iovec]) }
                            .map_err(|error| {
                                format!("{error}: raise the limit on locked memory (ulimit -l)")
                            }),
                    };
                    let _ = ring.submitter().register_ring_fd();
                    if attempt == 0 {
                        Self::restrict(&mut ring).map_err(RingError::Setup)?;
                    }
                    return Ok(Self {
                        ring,
                        backlog: VecDeque::new(),
                        failed: None,
                        enters: 0,
                        calls: 0,
                        yields: 0,
                        registered,
                    });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(RingError::Setup(last.unwrap_or_else(|| {
            io::Error::from_raw_os_error(libc::ENOSYS)
        })))
    }

    /// From the best set of flags (6.1) over cooperative task running (5.19) to none (5.11).
    fn build(attempt: u32) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(CQ_ENTRIES);
        match attempt {
            0 => builder
                .setup_submit_all()
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_r_disabled(),
            1 => builder
                .setup_submit_all()
                .setup_coop_taskrun()
                .setup_taskrun_flag(),
            _ => &mut builder,
        };
        builder.build(SQ_ENTRIES)
    }

    fn check(ring: &IoUring) -> Result<(), RingError> {
        let params = ring.params();
        if !params.is_feature_ext_arg() || !params.is_feature_nodrop() {
            return Err(RingError::Missing("waiting with a timeout"));
        }
        let mut probe = Probe::new();
        if ring.submitter().register_probe(&mut probe).is_ok() {
            for (code, name) in OPCODES {
                if !probe.is_supported(code) {
                    return Err(RingError::Missing(name));
                }
            }
        }
        Ok(())
    }

    /// Allows the operations used and nothing else, then enables the ring.
    fn restrict(ring: &mut IoUring) -> io::Result<()> {
        let mut rules: Vec<Restriction> = OPCODES
            .iter()
            .map(|&(code, _)| Restriction::sqe_op(code))
            .collect();
        // Best effort: an ancient ring without restrictions works as well.
        let _ = ring.submitter().register_restrictions(&mut rules);
        ring.submitter().register_enable_rings()
    }

    /// The buffers are registered.
    pub(crate) fn has_fixed_buffers(&self) -> bool {
        self.registered.is_ok()
    }

    /// Queues an operation; it starts with the next [`Self::enter`] at the latest.
    ///
    /// # Safety
    /// Every address in `entry` stays valid, and is not touched in a way that conflicts, until the
    /// operation's completion has been reaped.
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry, token: Token) {
        let entry = entry.clone().user_data(token.encode());
        while self.failed.is_none() {
            // SAFETY: the caller vouches for the addresses.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.enters += 1;
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // The completion queue overflows: make room, then go on.
                    Some(libc::EBUSY | libc::EAGAIN) => self.drain(),
                    _ => self.failed = Some(error),
                },
            }
        }
    }

    fn drain(&mut self) {
        let queue = self.ring.completion();
        self.backlog
            .extend(queue.map(|entry| (entry.user_data(), entry.result())));
    }

    /// Submits what is queued and, if `wait`, sleeps until a completion is there or `timeout` is
    /// over. `Err` means that the ring is of no use any more.
    pub(crate) fn enter(&mut self, wait: bool, timeout: Option<Duration>) -> io::Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let wait = wait && self.backlog.is_empty();
        self.enters += 1;
        let result = match (wait, timeout) {
            (true, Some(limit)) => {
                let spec = types::Timespec::new()
                    .sec(limit.as_secs())
                    .nsec(limit.subsec_nanos());
                let args = types::SubmitArgs::new().timespec(&spec);
                self.ring.submitter().submit_with_args(1, &args)
            }
            (wait, _) => self.ring.submit_and_wait(usize::from(wait)),
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Submits what is queued, and looks whether completions are there for [`Self::reap`], without sleeping.
    /// Costs a system call only if something was queued or the kernel has work to finish here.
    pub(crate) fn look(&mut self) -> io::Result<bool> {
        let queue = self.ring.submission();
        let due = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if due || self.failed.is_some() {
            self.enter(false, None)?;
        }
        Ok(!self.backlog.is_empty() || !self.ring.completion().is_empty())
    }

    /// Appends all completions that are there.
    pub(crate) fn reap(&mut self, into: &mut Vec<Completion>) {
        let name = |(raw, result)| {
            Some(Completion {
                token: Token::decode(raw)?,
                result,
            })
        };
        into.extend(self.backlog.drain(..).filter_map(name));
        let queue = self.ring.completion();
        into.extend(queue.filter_map(|entry| name((entry.user_data(), entry.result()))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_ring_and_names_one_generation() {
        for kind in Kind::ALL {
            for (slot, generation) in [(0, 1), (Key::MAX_SLOTS - 1, u32::MAX), (77, 0)] {
                let token = Token {
                    kind,
                    key: Key { slot, generation },
                };
                assert_eq!(Token::decode(token.encode()), Some(token));
                let next = Token {
                    kind,
                    key: Key {
                        slot,
                        generation: generation.wrapping_add(1),
                    },
                };
                assert_ne!(token.encode(), next.encode());
            }
        }
        assert_eq!(Token::decode(0), None);
        assert_eq!(Token::decode(u64::MAX), None);
    }

    #[test]
    fn looking_finds_what_happens_later_and_sleeps_never() {
        // SAFETY: no buffers.
        let mut ring = unsafe { Ring::new(None) }.expect("a ring");
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).expect("fd");
        let fd = types::Fd(std::os::fd::AsRawFd::as_raw_fd(&event));
        let token = Token {
            kind: Kind::Wake,
            key: Key {
                slot: 3,
                generation: 1,
            },
        };
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        // SAFETY: a poll names no memory.
        unsafe { ring.push(&entry, token) };
        for _ in 0..1000 {
            assert!(!ring.look().expect("looks"));
        }
        assert_eq!(ring.enters, 1, "one call submits, none looks");
        std::thread::spawn(move || rustix::io::write(&event, &1u64.to_ne_bytes()).expect("room"));
        let mut seen = Vec::new();
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while seen.is_empty() {
            assert!(std::time::Instant::now() < end, "nothing is found");
            if ring.look().expect("looks") {
                ring.reap(&mut seen);
            }
        }
        assert_eq!(seen[0].token, token);
    }

    #[test]
    fn a_look_tells_of_a_failure_as_a_sleep_does() {
        // SAFETY: no buffers.
        let mut ring = unsafe { Ring::new(None) }.expect("a ring");
        assert!(!ring.look().expect("looks"));
        ring.failed = Some(io::Error::from_raw_os_error(libc::ENXIO));
        let error = ring.look().expect_err("nobody looks at a ring that failed");
        assert_eq!(error.raw_os_error(), Some(libc::ENXIO));
    }

    #[test]
    fn more_operations_than_queue_places_all_complete() {
        // SAFETY: no buffers.
        let mut ring = unsafe { Ring::new(None) }.expect("a ring");
        let event = rustix::event::eventfd(1, rustix::event::EventfdFlags::NONBLOCK).expect("fd");
        let fd = types::Fd(std::os::fd::AsRawFd::as_raw_fd(&event));
        let total = 3 * CQ_ENTRIES;
        for slot in 0..total {
            let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
            // SAFETY: a poll names no memory.
            unsafe {
                ring.push(
                    &entry,
                    Token {
                        kind: Kind::Wake,
                        key: Key {
                            slot,
                            generation: 1,
                        },
                    },
                )
            };
        }
        let mut seen = Vec::new();
        while seen.len() < total as usize {
            ring.enter(true, Some(Duration::from_secs(5)))
                .expect("enter");
            let before = seen.len();
            ring.reap(&mut seen);
            assert!(seen.len() > before, "completions were lost");
        }
        let mut slots: Vec<u32> = seen.iter().map(|c| c.token.key.slot).collect();
        slots.sort_unstable();
        assert_eq!(slots, (0..total).collect::<Vec<_>>());
    }
}

//! Whether to look for completions before sleeping, and how. A sleep costs a wake-up, some tens of
//! microseconds where a processor has been halted in the meantime; looking costs CPU.
//!
//! It pays only where what is waited for comes soon. Whoever looked in vain looks again only after a wait of
//! the same kind was short, then after two in a row, four, up to 64, until a look finds something. So an idle
//! device looks once and sleeps from then on, and so does one on which long waits follow short ones.
//!
//! It also pays only on a processor that would be halted otherwise. So it gives way again and again to
//! whoever else wants to run; if that takes long, the processor has other work, and for a while nothing is
//! looked for: one that sleeps is let in sooner than one that gave way.

use super::ring::Ring;
use super::timers::Clock;
use std::io;
use std::time::Duration;
use twinblk_engine::time::Instant;

/// What a wait is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Requests of clients are under way: a disk or a peer works on them.
    Answer = 0,
    /// Something else, mostly the next request, of a client or of the peer. On a Secondary everything is this.
    Other = 1,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Looked {
    /// It did not look.
    No,
    /// Completions are there.
    Found,
    /// Nothing came.
    InVain,
}

/// While it looks, so long after it gave way it does so again.
const OFFER: Duration = Duration::from_micros(5);
/// Giving way for longer than that means that the processor has other work: longer than any turn of those who
/// work for one request, shorter than the time slice of who computes (700 µs at least).
const CROWDED: Duration = Duration::from_micros(500);
/// For how many times as long nothing is looked for then: of what such take, one part in so many is lost.
const PAUSE: u32 = 20;
/// The longest such pause: longer ones would come of a machine that stood still as a whole.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The most short waits in a row that are asked for.
const MOST_NEEDED: u32 = 64;

/// What is known of one kind of wait.
#[derive(Debug, Default, Clone, Copy)]
struct Known {
    /// Short waits in a row, slept through.
    short: u32,
    /// How many there must be before the next look.
    needed: u32,
}

/// The decision, and what it was learned from.
#[derive(Debug)]
pub(crate) struct Polling {
    limit: Duration,
    known: [Known; 2],
    /// Nothing is looked for until then.
    paused: Instant,
}

impl Polling {
    /// `limit` is the longest time to look before sleeping; zero: never.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            known: [Known::default(); 2],
            paused: Instant(0),
        }
    }

    /// Looks for completions if it may pay, no longer than until `deadline`. Whatever is queued is submitted
    /// if it looks at all.
    pub(crate) fn look(
        &mut self,
        ring: &mut Ring,
        clock: Clock,
        wait: Wait,
        deadline: Option<Instant>,
    ) -> io::Result<Looked> {
        let Some(until) = self.until(clock.now(), wait) else {
            return Ok(Looked::No);
        };
        let mut offer = Instant(0);
        loop {
            if ring.look()? {
                self.found(wait);
                return Ok(Looked::Found);
            }
            let now = clock.now();
            if now >= until {
                self.in_vain(wait);
                return Ok(Looked::InVain);
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(Looked::InVain);
            }
            if now < offer {
                std::hint::spin_loop();
                continue;
            }
            ring.yields += 1;
            std::thread::yield_now();
            let back = clock.now();
            if self.gave_way(now, back) {
                return Ok(Looked::InVain);
            }
            offer = back + OFFER;
        }
    }

    /// Until when to look, at `now`.
    fn until(&self, now: Instant, wait: Wait) -> Option<Instant> {
        let known = self.known[wait as usize];
        let pays = known.short >= known.needed && now >= self.paused && !self.limit.is_zero();
        pays.then(|| now + self.limit)
    }

    fn found(&mut self, wait: Wait) {
        self.known[wait as usize].needed = 0;
    }

    fn in_vain(&mut self, wait: Wait) {
        let needed = (2 * self.known[wait as usize].needed).clamp(1, MOST_NEEDED);
        self.known[wait as usize] = Known { short: 0, needed };
    }

    /// Others could run from `before` to `now`. Whether they have more to do than is good.
    fn gave_way(&mut self, before: Instant, now: Instant) -> bool {
        let crowded = now > before + CROWDED;
        if crowded {
            self.paused = now + LONGEST_PAUSE.min(now.since(before) * PAUSE);
        }
        crowded
    }

    /// A wait without a look was slept through, from `start` to `end`.
    pub(crate) fn slept(&mut self, start: Instant, end: Instant, wait: Wait) {
        let short = &mut self.known[wait as usize].short;
        *short = match end <= start + self.limit {
            true => short.saturating_add(1),
            false => 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(100);

    fn at(micros: u64) -> Instant {
        Instant(micros * 1000)
    }

    /// Waits of so many microseconds, one after the other: how many were looked for, and how many of these in
    /// vain.
    fn waits(polling: &mut Polling, times: impl IntoIterator<Item = u64>) -> (u32, u32) {
        let (mut looked, mut vain) = (0, 0);
        let mut now = 1000;
        for time in times {
            let soon = time <= 100;
            if polling.until(at(now), Wait::Answer) == Some(at(now + 100)) {
                looked += 1;
                vain += u32::from(!soon);
                match soon {
                    true => polling.found(Wait::Answer),
                    false => polling.in_vain(Wait::Answer),
                }
            } else {
                polling.slept(at(now), at(now + time), Wait::Answer);
            }
            now += time;
        }
        (looked, vain)
    }

    #[test]
    fn it_looks_where_what_it_waits_for_comes_soon() {
        let mut polling = Polling::new(LIMIT);
        assert_eq!(waits(&mut polling, [100; 50]), (50, 0));
        assert_eq!(waits(&mut polling, [101; 50]), (1, 1));
        // Of the other kind nothing is known yet.
        assert!(polling.until(at(0), Wait::Other).is_some());
        // One is short: the next is looked for.
        assert_eq!(waits(&mut polling, [30; 50]), (49, 0));
    }

    #[test]
    fn it_does_not_look_where_long_waits_follow_short_ones() {
        let mut polling = Polling::new(LIMIT);
        let (_, vain) = waits(&mut polling, [30, 400].repeat(1000));
        assert!(vain <= 2, "{vain}");
        let mut polling = Polling::new(LIMIT);
        // Two and one in vain, then of each three one and one.
        let looks = waits(&mut polling, [30, 30, 400].repeat(1000));
        assert_eq!(looks, (3 + 2 * 999, 1000));
    }

    #[test]
    fn it_does_not_look_where_others_want_to_run() {
        let mut polling = Polling::new(LIMIT);
        let looks = |polling: &Polling, now: u64| polling.until(at(now), Wait::Answer).is_some();
        assert!(!polling.gave_way(at(0), at(500)));
        assert!(looks(&polling, 500), "not for long");
        assert!(polling.gave_way(at(1000), at(3000)));
        assert!(!looks(&polling, 42_999));
        assert!(looks(&polling, 43_000));
        // The whole machine stood still.
        assert!(polling.gave_way(at(50_000), at(60_000_000)));
        assert!(looks(&polling, 61_000_000));
    }

    #[test]
    fn zero_never_looks() {
        let mut polling = Polling::new(Duration::ZERO);
        assert_eq!(waits(&mut polling, [0; 50]), (0, 0));
        assert_eq!(polling.until(at(0), Wait::Other), None);
    }

    #[test]
    fn a_look_ends_at_its_deadline_and_says_what_it_found() {
        // SAFETY: no buffers.
        let mut ring = unsafe { Ring::new(None) }.expect("a ring");
        let clock = Clock::new();
        let mut polling = Polling::new(Duration::from_secs(5));
        let mut look = |ring: &mut Ring, deadline| {
            let looked = polling.look(ring, clock, Wait::Other, Some(deadline));
            let in_vain = polling.known[Wait::Other as usize].needed > 0;
            (looked.expect("a good ring"), in_vain)
        };
        let soon = clock.now() + Duration::from_micros(200);
        // That time is up says nothing about how soon something comes.
        assert_eq!(look(&mut ring, soon), (Looked::InVain, false));
        assert!(clock.now() >= soon);
        let event = rustix::event::eventfd(1, rustix::event::EventfdFlags::NONBLOCK).expect("fd");
        let fd = io_uring::types::Fd(std::os::fd::AsRawFd::as_raw_fd(&event));
        let entry = io_uring::opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        let token = super::super::ring::Token {
            kind: super::super::ring::Kind::Wake,
            key: super::super::slab::Key {
                slot: 0,
                generation: 1,
            },
        };
        // SAFETY: a poll names no memory.
        unsafe { ring.push(&entry, token) };
        let far = clock.now() + Duration::from_secs(3600);
        // Unless others want the processor meanwhile.
        while look(&mut ring, far) != (Looked::Found, false) {
            assert!(clock.now() < far);
        }
        let mut seen = Vec::new();
        ring.reap(&mut seen);
        assert_eq!(seen[0].token, token);
    }

    #[test]
    fn a_look_ends_where_others_compute_on_the_same_processor() {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
        let mine = sched_getaffinity(None).expect("where this may run");
        let first = (0..CpuSet::MAX_CPU).find(|&cpu| mine.is_set(cpu));
        let mut one = CpuSet::new();
        one.set(first.expect("it runs somewhere"));
        let over = AtomicBool::new(false);
        let clock = Clock::new();
        let mut polling = Polling::new(Duration::from_secs(5));
        std::thread::scope(|scope| {
            // Its threads inherit where it may run.
            scope.spawn(|| {
                sched_setaffinity(None, &one).expect("one of its own");
                // SAFETY: no buffers.
                let mut ring = unsafe { Ring::new(None) }.expect("a ring");
                let (begun, begins) = std::sync::mpsc::channel();
                let over = &over;
                scope.spawn(move || {
                    begun.send(()).expect("awaited");
                    while !over.load(Relaxed) {
                        std::hint::spin_loop();
                    }
                });
                begins.recv().expect("it computes");
                let looked = polling.look(&mut ring, clock, Wait::Other, None);
                over.store(true, Relaxed);
                assert_eq!(looked.expect("a good ring"), Looked::InVain);
            });
        });
        // It learned that others want to run, not that nothing comes soon.
        assert_eq!(polling.known[Wait::Other as usize].needed, 0);
        assert!(polling.paused > Instant(0));
    }
}

//! Whether to look for completions before sleeping, and how. A sleep costs a wake-up, some tens of
//! microseconds where a processor has been halted in the meantime; looking costs CPU.
//!
//! It pays only where what is waited for comes soon. So the loop looks only if the last wait of the same kind
//! was no longer than the time it would look: an idle device, and one whose disk or peer is slow, sleeps at
//! once. It also pays only on a processor that would be halted otherwise. So it gives way again and again to
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
    /// The next request, of a client or of the peer.
    Request = 1,
}

/// While it looks, so long after it gave way it does so again.
const OFFER: Duration = Duration::from_micros(5);
/// Giving way for longer than that means that the processor has other work: longer than any turn of those who
/// work for one request, shorter than the time slice of who computes (700 µs at least).
const CROWDED: Duration = Duration::from_micros(500);
/// For how many times as long nothing is looked for then: so little is lost at most, one part in so many.
const PAUSE: u32 = 20;

/// The decision, and what it was learned from.
#[derive(Debug)]
pub(crate) struct Polling {
    limit: Duration,
    /// The last wait of each kind ended within the limit.
    soon: [bool; 2],
    /// Nothing is looked for until then.
    paused: Instant,
}

impl Polling {
    /// `limit` is the longest time to look before sleeping; zero: never.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            soon: [true; 2],
            paused: Instant(0),
        }
    }

    /// Looks for completions as long as it may pay; `true` if there are some, or may be. Whatever is queued
    /// is submitted if it looks at all.
    pub(crate) fn look(&mut self, ring: &mut Ring, clock: Clock, wait: Wait) -> io::Result<bool> {
        let Some(until) = self.until(clock.now(), wait) else {
            return Ok(false);
        };
        let mut offer = Instant(0);
        loop {
            if ring.look()? {
                return Ok(true);
            }
            let now = clock.now();
            if now >= until {
                return Ok(false);
            }
            if now < offer {
                std::hint::spin_loop();
                continue;
            }
            ring.yields += 1;
            std::thread::yield_now();
            let back = clock.now();
            if self.gave_way(now, back) {
                return Ok(false);
            }
            offer = back + OFFER;
        }
    }

    /// Until when to look, at `now`.
    fn until(&self, now: Instant, wait: Wait) -> Option<Instant> {
        let pays = self.soon[wait as usize] && now >= self.paused && !self.limit.is_zero();
        pays.then(|| now + self.limit)
    }

    /// Others could run from `before` to `now`. Whether they have more to do than is good.
    fn gave_way(&mut self, before: Instant, now: Instant) -> bool {
        let crowded = now > before + CROWDED;
        if crowded {
            self.paused = now + now.since(before) * PAUSE;
        }
        crowded
    }

    /// A wait from `start` to `end` is over, and was slept through at least in part.
    pub(crate) fn waited(&mut self, start: Instant, end: Instant, wait: Wait) {
        self.soon[wait as usize] = end <= start + self.limit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(100);

    fn at(micros: u64) -> Instant {
        Instant(micros * 1000)
    }

    #[test]
    fn it_looks_only_where_what_it_waits_for_comes_soon() {
        let mut polling = Polling::new(LIMIT);
        for (wait, other) in [(Wait::Answer, Wait::Request), (Wait::Request, Wait::Answer)] {
            assert_eq!(polling.until(at(5), wait), Some(at(105)));
            polling.waited(at(0), at(101), wait);
            assert_eq!(polling.until(at(200), wait), None, "slow");
            // How soon the other comes says nothing.
            polling.waited(at(200), at(201), other);
            assert_eq!(polling.until(at(300), wait), None);
            polling.waited(at(300), at(400), wait);
            assert_eq!(polling.until(at(400), wait), Some(at(500)));
        }
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
    }

    #[test]
    fn zero_never_looks() {
        let mut polling = Polling::new(Duration::ZERO);
        let now = Instant(0);
        for wait in [Wait::Answer, Wait::Request] {
            polling.waited(now, now, wait);
            assert_eq!(polling.until(now, wait), None);
        }
    }
}

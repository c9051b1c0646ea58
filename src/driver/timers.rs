//! Time: the clock the engine is told, and how long the ring may sleep. There is one timeout, the
//! earliest of all deadlines; without any the thread sleeps until something happens.

use std::time::Duration;
use twinblk_engine::time::Instant;

/// The engine's clock: monotonic, nanoseconds since the loop began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: std::time::Instant,
}

impl Clock {
    /// Begins now.
    pub(crate) fn new() -> Self {
        Self {
            start: std::time::Instant::now(),
        }
    }

    /// Now. Never 0, which stands for "never" in places.
    pub(crate) fn now(&self) -> Instant {
        let nanos = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Instant(nanos.saturating_add(1))
    }
}

/// Shortest sleep before a deadline that lies in the past although its owner was just told the time:
/// a mistake there must not burn a processor.
const GRACE: Duration = Duration::from_millis(1);

/// How long to sleep at `now` for `deadline`; `None` is for ever.
pub(crate) fn sleep(now: Instant, deadline: Option<Instant>) -> Option<Duration> {
    let next = deadline?;
    Some(if next > now { next.since(now) } else { GRACE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_has_passed_burns_no_processor() {
        let now = Instant(1000);
        assert_eq!(sleep(now, None), None);
        assert_eq!(
            sleep(now, Some(Instant(3000))),
            Some(Duration::from_nanos(2000))
        );
        assert_eq!(sleep(now, Some(Instant(10))), Some(GRACE));
    }

    #[test]
    fn the_clock_starts_after_zero() {
        let clock = Clock::new();
        let first = clock.now();
        assert!(first > Instant(0) && clock.now() >= first);
    }
}

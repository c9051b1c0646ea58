//! Whether to look for completions before sleeping. A sleep costs a wake-up, some tens of microseconds
//! on most machines; looking costs CPU.
//!
//! It pays only while somebody waits for an answer that comes soon. So the loop looks only while clients'
//! requests are under way (a disk or a peer works on them), and only if the last such wait was no longer
//! than the time it would look. An idle device, and one whose disk or peer is slow, sleeps at once.

use std::time::Duration;
use twinblk_engine::time::Instant;

/// The decision, and what it was learned from.
#[derive(Debug)]
pub(crate) struct Polling {
    limit: Duration,
    soon: bool,
}

impl Polling {
    /// `limit` is the longest time to look before sleeping; zero: never.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, soon: true }
    }

    /// Until when to look, at `now`. `awaited`: clients' requests are under way.
    pub(crate) fn until(&self, now: Instant, awaited: bool) -> Option<Instant> {
        (awaited && self.soon && !self.limit.is_zero()).then(|| now + self.limit)
    }

    /// A wait from `start` to `end` is over. `awaited`: as at its beginning.
    pub(crate) fn waited(&mut self, start: Instant, end: Instant, awaited: bool) {
        if awaited {
            self.soon = end <= start + self.limit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(100);

    #[test]
    fn it_looks_only_where_answers_come_soon() {
        let mut polling = Polling::new(LIMIT);
        let at = |micros: u64| Instant(micros * 1000);
        assert_eq!(polling.until(at(5), false), None, "nobody waits");
        assert_eq!(polling.until(at(5), true), Some(at(105)));
        polling.waited(at(0), at(101), true);
        assert_eq!(polling.until(at(200), true), None, "answers are slow");
        // How long a client thinks says nothing.
        polling.waited(at(200), at(201), false);
        assert_eq!(polling.until(at(300), true), None);
        polling.waited(at(300), at(400), true);
        assert_eq!(polling.until(at(400), true), Some(at(500)));
    }

    #[test]
    fn zero_never_looks() {
        let mut polling = Polling::new(Duration::ZERO);
        let now = Instant(0);
        polling.waited(now, now, true);
        assert_eq!(polling.until(now, true), None);
    }
}

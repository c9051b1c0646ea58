//! How fast a resync may go: a window of bytes under way that shrinks while the application writes,
//! and an optional upper bound of the rate.

use crate::status::ResyncProgress;
use crate::time::{Duration, Instant};

/// Span over which the rate shown to people is measured.
const MEASURE: Duration = Duration::from_secs(2);

/// Rate of one resync.
#[derive(Debug)]
pub(crate) struct RateControl {
    /// Bytes this resync may still send in the running slot of 100 ms (with a cap).
    slot_start: Instant,
    slot_bytes: u64,
    capped: bool,
    app_busy: bool,
    /// Measuring.
    since: Instant,
    acked: u64,
    rate: u64,
    target_done: u64,
}

const SLOT: Duration = Duration::from_millis(100);

impl RateControl {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            slot_start: now,
            slot_bytes: 0,
            capped: false,
            app_busy: false,
            since: now,
            acked: 0,
            rate: 0,
            target_done: 0,
        }
    }

    /// Bytes that may be under way at once: a quarter while the application has requests in flight.
    pub(crate) fn window(&mut self, configured: u64, app_busy: bool) -> u64 {
        self.app_busy = app_busy;
        if app_busy { configured / 4 } else { configured }
    }

    /// Whether the cap (bytes per second, 0 = none) lets another block go now.
    pub(crate) fn may_send(&mut self, now: Instant, cap: u64) -> bool {
        if now.since(self.slot_start) >= SLOT {
            self.slot_start = now;
            self.slot_bytes = 0;
        }
        self.capped = cap > 0 && self.slot_bytes >= (cap / 10).max(1);
        !self.capped
    }

    /// A block goes.
    pub(crate) fn sent(&mut self, _now: Instant, len: u64) {
        self.slot_bytes += len;
    }

    /// When a capped resync may go on.
    pub(crate) fn deadline(&self, cap: u64) -> Option<Instant> {
        (cap > 0 && self.capped).then_some(self.slot_start + SLOT)
    }

    /// A block is done.
    pub(crate) fn acked(&mut self, now: Instant, len: u64) {
        self.acked += len;
        let span = now.since(self.since);
        if span >= MEASURE {
            let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1);
            self.rate = self.acked.saturating_mul(1000) / millis;
            self.acked = 0;
            self.since = now;
        }
    }

    /// Target: so many bytes are done in all.
    pub(crate) fn target_progress(&mut self, now: Instant, done: u64) {
        let step = done.saturating_sub(self.target_done);
        if step > 0 {
            self.target_done = done;
            self.acked(now, step);
        }
    }

    /// For `status`.
    pub(crate) fn progress(&self, now: Instant, total: u64, left: u64) -> ResyncProgress {
        let rate = if self.rate > 0 {
            self.rate
        } else {
            let millis = u64::try_from(now.since(self.since).as_millis())
                .unwrap_or(0)
                .max(1);
            self.acked.saturating_mul(1000) / millis
        };
        ResyncProgress {
            total: total.max(left),
            left,
            rate,
            eta: left.checked_div(rate),
            limited_by: if self.capped {
                "the configured rate"
            } else if self.app_busy {
                "application writes"
            } else {
                "disks and link"
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_holds_over_a_second() {
        let mut rate = RateControl::new(Instant(0));
        let cap = 10 << 20;
        let mut sent = 0u64;
        for ms in 0..1000u64 {
            let now = Instant(ms * 1_000_000);
            while rate.may_send(now, cap) {
                rate.sent(now, 256 << 10);
                sent += 256 << 10;
            }
        }
        assert!(
            sent >= cap * 9 / 10 && sent <= cap * 13 / 10,
            "{sent} of {cap}"
        );
        assert!(rate.deadline(cap).is_some());
    }

    #[test]
    fn without_a_cap_nothing_is_held() {
        let mut rate = RateControl::new(Instant(0));
        rate.sent(Instant(0), u64::from(u32::MAX));
        assert!(rate.may_send(Instant(1), 0));
        assert_eq!(rate.deadline(0), None);
    }
}

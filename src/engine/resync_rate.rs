//! How fast a resync may go, and a verify: a window of bytes under way, an optional upper bound of the
//! rate, and restraint while clients have requests under way.
//!
//! Then one small burst goes at a time, and after each there is a rest three times as long as the burst
//! took. What a request finds before it in the queues of disks and link is about a burst, and that only a
//! quarter of the time, however fast or slow they are, unless a burst takes longer than a third of the
//! longest rest. The rest is bounded, so a resync always goes on.
//!
//! Over a long link most of a burst's time is the way there and back, during which little queues. So a
//! burst grows, up to the window, as long as it takes little longer than the quickest one did.

use crate::status::ResyncProgress;
use crate::time::{Duration, Instant};

/// Span over which the rate shown to people is measured.
const MEASURE: Duration = Duration::from_secs(2);

/// Rate of one resync or verify.
#[derive(Debug)]
pub(crate) struct RateControl {
    /// When the running slot of 100 ms began, and the bytes sent in it and owed from those before (with
    /// a cap).
    slot_start: Instant,
    slot_bytes: u64,
    cap: u64,
    capped: bool,
    /// This side decides what is sent.
    leads: bool,
    /// When clients last had requests under way; and whether that counts as now.
    app_seen: Option<Instant>,
    app_busy: bool,
    /// Bytes sent since nothing was under way, and since when. 0: nothing is.
    burst: u64,
    burst_began: Instant,
    /// All of it went beside clients.
    restrained: bool,
    /// Bytes a burst may have now.
    burst_size: u64,
    /// Whole bursts so far, beside clients.
    bursts: u32,
    /// The least time one took since the last that was sent to find that out.
    quickest: Option<Duration>,
    /// Bursts in a row that took little longer than the quickest.
    quick_ones: u32,
    /// Nothing is sent until then while clients are busy.
    rest_until: Instant,
    /// Measuring.
    since: Instant,
    acked: u64,
    rate: u64,
    target_done: u64,
}

const SLOT: Duration = Duration::from_millis(100);
/// Bytes of the smallest burst beside clients, and by how much one grows.
const BURST: u64 = 256 << 10;
/// A burst that takes so many halves of what the quickest one took, or less, has not waited in a queue that
/// counts: one twice as large that did would take twice as long.
const QUICK: u32 = 3;
/// A burst grows after so many in a row that took little longer than the quickest one. Where bytes queue
/// one in so many and one is twice as large as it should be.
const QUICK_ONES: u32 = 8;
/// One burst in so many has the smallest size, to find out how long it takes by now.
const TRIED: u32 = 64;
/// A rest is so many times as long as the burst took.
const REST: u32 = 3;
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_millis(500);
/// Clients that send one request after the other are busy in between, too.
const PAUSE: Duration = Duration::from_millis(100);

impl RateControl {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            slot_start: now,
            slot_bytes: 0,
            cap: 0,
            capped: false,
            leads: false,
            app_seen: None,
            app_busy: false,
            burst: 0,
            burst_began: now,
            restrained: false,
            burst_size: BURST,
            bursts: 0,
            quickest: None,
            quick_ones: 0,
            rest_until: now,
            since: now,
            acked: 0,
            rate: 0,
            target_done: 0,
        }
    }

    /// Bytes that may be under way at once. `app_busy`: clients have requests under way.
    pub(crate) fn window(&mut self, now: Instant, configured: u64, app_busy: bool) -> u64 {
        self.leads = true;
        if app_busy {
            self.app_seen = Some(now);
        }
        self.app_busy = self.app_seen.is_some_and(|seen| now < seen + PAUSE);
        self.burst_size = self.burst_size.min(configured.max(BURST));
        if self.app_busy {
            configured.min(self.burst_limit())
        } else {
            configured
        }
    }

    fn burst_limit(&self) -> u64 {
        if self.bursts.is_multiple_of(TRIED) {
            BURST
        } else {
            self.burst_size
        }
    }

    /// Whether clients and the cap (bytes per second, 0 = none) let another block go now.
    pub(crate) fn may_send(&mut self, now: Instant, cap: u64) -> bool {
        let per_slot = (cap / 10).max(1);
        let slots = now.since(self.slot_start).as_nanos() / SLOT.as_nanos();
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        if slots > 0 {
            // What went beyond a slot's share, a block being larger than it, is owed by the next ones.
            let paid = per_slot.saturating_mul(slots.into());
            self.slot_bytes = self.slot_bytes.saturating_sub(paid);
            self.slot_start = self.slot_start + SLOT * slots;
        }
        // What was owed under another cap may be very much under this one.
        if cap != self.cap {
            self.cap = cap;
            self.slot_bytes = 0;
        }
        self.capped = cap > 0 && self.slot_bytes >= per_slot;
        let waits = self.burst >= self.burst_limit() || now < self.rest_until;
        let rests = self.app_busy && waits;
        !self.capped && !rests
    }

    /// A block goes.
    pub(crate) fn sent(&mut self, now: Instant, len: u64) {
        self.slot_bytes += len;
        if self.burst == 0 {
            self.burst_began = now;
            self.restrained = true;
        }
        self.restrained &= self.app_busy;
        self.burst += len;
    }

    /// When what is held may go on.
    pub(crate) fn deadline(&self, now: Instant, cap: u64) -> Option<Instant> {
        let gone = self.app_seen.map_or(now, |seen| seen + PAUSE);
        // A burst that does not come back, behind a write that is held, holds nothing up without clients.
        let rest = if self.burst == 0 {
            self.rest_until.min(gone)
        } else {
            gone
        };
        let rests = self.app_busy && now < rest;
        let slot = self.slot_start + SLOT;
        let capped = cap > 0 && self.capped && now < slot;
        let ends = [rests.then_some(rest), capped.then_some(slot)];
        ends.into_iter().flatten().max()
    }

    /// Nothing is under way any more.
    pub(crate) fn idle(&mut self, now: Instant) {
        if self.burst == 0 {
            return;
        }
        let took = now.since(self.burst_began);
        self.rest_until = now + LONGEST_REST.min(took * REST);
        // Less than a whole burst says nothing of how long one takes, and nor does one without clients.
        if self.restrained && self.burst >= BURST {
            self.learn(took);
        }
        self.burst = 0;
    }

    fn learn(&mut self, took: Duration) {
        let tried = self.bursts.is_multiple_of(TRIED);
        let quickest = match self.quickest.filter(|_| !tried) {
            Some(least) => least.min(took),
            None => took,
        };
        self.bursts = self.bursts.wrapping_add(1);
        self.quickest = Some(quickest);
        if took > quickest * QUICK / 2 {
            self.quick_ones = 0;
            self.burst_size = (self.burst_size / 2).max(BURST);
            return;
        }
        self.quick_ones += 1;
        if self.quick_ones == QUICK_ONES {
            self.quick_ones = 0;
            self.burst_size += BURST;
        }
    }

    /// Whether it is a time of rest.
    #[cfg(test)]
    pub(crate) fn rests(&self, now: Instant) -> bool {
        self.app_busy && now < self.rest_until
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
            limited_by: if !self.leads {
                "the pace of the other node"
            } else if self.capped {
                "the configured rate"
            } else if self.app_busy {
                "clients' requests"
            } else {
                "disks and link"
            },
        }
    }
}

#[cfg(test)]
#[path = "resync_rate_tests.rs"]
mod tests;

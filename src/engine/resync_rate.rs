//! How fast a resync may go, and a verify: a window of bytes under way, an optional upper bound of the rate,
//! and restraint while the application has requests under way.
//!
//! Then one small burst goes at a time, and after each there is a rest twice as long as the burst took. What a
//! request of the application finds before it in the queues of disks and link is a burst at most, and that only
//! a third of the time, however fast or slow they are. The rest is bounded, so a resync always goes on.
//!
//! Over a long link most of a burst's time is the way there and back, during which nothing queues. So a burst
//! grows, up to the window, as long as it takes little longer than the quickest one did.

use crate::peer::Peer;
use crate::resource::Resource;
use crate::status::ResyncProgress;
use crate::time::{Duration, Instant};

/// Span over which the rate shown to people is measured.
const MEASURE: Duration = Duration::from_secs(2);

/// Rate of one resync.
#[derive(Debug)]
pub(crate) struct RateControl {
    /// When the running slot of 100 ms began, and the bytes sent in it (with a cap).
    slot_start: Instant,
    slot_bytes: u64,
    capped: bool,
    /// When the application last had requests under way; and whether that counts as now.
    app_seen: Option<Instant>,
    app_busy: bool,
    /// Bytes sent since nothing was under way, and since when. 0: nothing is.
    burst: u64,
    burst_began: Instant,
    /// Bytes a burst may have now, and the least time one took.
    burst_size: u64,
    quickest: Option<Duration>,
    /// Bursts in a row that took little longer than the quickest.
    quick_ones: u32,
    /// Nothing is sent until then while the application is busy.
    rest_until: Instant,
    /// Measuring.
    since: Instant,
    acked: u64,
    rate: u64,
    target_done: u64,
}

const SLOT: Duration = Duration::from_millis(100);
/// Bytes of the smallest burst while the application is busy, and by how much one grows.
const BURST: u64 = 256 << 10;
/// A burst grows after so many that took little longer than the quickest one: where bytes queue, nearly all
/// are of the smallest size.
const QUICK_ONES: u32 = 8;
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_millis(100);
/// An application that sends one request after the other is busy in between, too.
const PAUSE: Duration = Duration::from_millis(20);

impl Resource {
    /// Whether clients' requests are under way that this node's disks or links carry: its own clients', and
    /// the peers' as writes and reads that come from there.
    pub(crate) fn clients_are_busy(&self) -> bool {
        let served = |p: &Peer| p.reads_served > 0;
        self.requests.len() > 0 || self.peer_requests.len() > 0 || self.peers.iter().any(served)
    }
}

impl RateControl {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            slot_start: now,
            slot_bytes: 0,
            capped: false,
            app_seen: None,
            app_busy: false,
            burst: 0,
            burst_began: now,
            burst_size: BURST,
            quickest: None,
            quick_ones: 0,
            rest_until: now,
            since: now,
            acked: 0,
            rate: 0,
            target_done: 0,
        }
    }

    /// Bytes that may be under way at once. `app_busy`: the application has requests under way.
    pub(crate) fn window(&mut self, now: Instant, configured: u64, app_busy: bool) -> u64 {
        if app_busy {
            self.app_seen = Some(now);
        }
        self.app_busy = self.app_seen.is_some_and(|seen| now.since(seen) < PAUSE);
        self.burst_size = self.burst_size.min(configured.max(BURST));
        if self.app_busy {
            configured.min(self.burst_size)
        } else {
            configured
        }
    }

    /// Whether the application and the cap (bytes per second, 0 = none) let another block go now.
    pub(crate) fn may_send(&mut self, now: Instant, cap: u64) -> bool {
        if self.app_busy && (self.burst >= self.burst_size || now < self.rest_until) {
            return false;
        }
        if now.since(self.slot_start) >= SLOT {
            self.slot_start = now;
            self.slot_bytes = 0;
        }
        self.capped = cap > 0 && self.slot_bytes >= (cap / 10).max(1);
        !self.capped
    }

    /// A block goes.
    pub(crate) fn sent(&mut self, now: Instant, len: u64) {
        self.slot_bytes += len;
        if self.burst == 0 {
            self.burst_began = now;
        }
        self.burst += len;
    }

    /// When what is held may go on.
    pub(crate) fn deadline(&self, now: Instant, cap: u64) -> Option<Instant> {
        let rests = self.app_busy && self.burst == 0 && now < self.rest_until;
        let capped = cap > 0 && self.capped;
        let ends = [
            rests.then_some(self.rest_until),
            capped.then_some(self.slot_start + SLOT),
        ];
        ends.into_iter().flatten().max()
    }

    /// Nothing is under way any more.
    pub(crate) fn idle(&mut self, now: Instant) {
        let took = now.since(self.burst_began);
        self.rest_until = now + LONGEST_REST.min(took * 2);
        // Less than a whole burst says nothing of how long one takes.
        if self.burst >= BURST {
            let quickest = self.quickest.map_or(took, |least| least.min(took));
            self.quickest = Some(quickest);
            let queued = took > quickest + quickest / 2;
            self.quick_ones = if queued { 0 } else { self.quick_ones + 1 };
            if queued {
                self.burst_size = (self.burst_size / 2).max(BURST);
            } else if self.quick_ones.is_multiple_of(QUICK_ONES) {
                self.burst_size += BURST;
            }
        }
        self.burst = 0;
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
                "the application's requests"
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
        assert!(rate.deadline(Instant(1_000_000_000), cap).is_some());
    }

    #[test]
    fn without_a_cap_nothing_is_held() {
        let mut rate = RateControl::new(Instant(0));
        rate.sent(Instant(0), u64::from(u32::MAX));
        assert!(rate.may_send(Instant(1), 0));
        assert_eq!(rate.deadline(Instant(1), 0), None);
    }

    /// Bytes sent until `end` (in ms) over a path that takes a millisecond for 256 KiB and `far` ms there and
    /// back, and the most under way; `busy` tells whether the application is, at a time.
    fn run(end: u64, far: u64, busy: impl Fn(u64) -> bool) -> (u64, u64) {
        const WINDOW: u64 = 4 << 20;
        const CHUNK: u64 = 64 << 10;
        let mut rate = RateControl::new(Instant(0));
        let mut flying = std::collections::VecDeque::new();
        let (mut sent, mut most, mut free_at) = (0, 0, 0);
        for tick in 0..end * 8 {
            let now = Instant(tick * 125_000);
            while flying.front().is_some_and(|&done| done <= now.0) {
                flying.pop_front();
                if flying.is_empty() {
                    rate.idle(now);
                }
            }
            loop {
                let window = rate.window(now, WINDOW, busy(tick / 8));
                if flying.len() as u64 * CHUNK >= window || !rate.may_send(now, 0) {
                    break;
                }
                rate.sent(now, CHUNK);
                free_at = now.0.max(free_at) + 250_000;
                flying.push_back(free_at + far * 1_000_000);
                sent += CHUNK;
            }
            most = most.max(flying.len() as u64 * CHUNK);
            let waits = flying.is_empty() && rate.deadline(now, 0).is_none();
            assert!(!waits, "nothing would ever go on");
        }
        (sent, most)
    }

    #[test]
    fn beside_a_busy_application_there_is_a_rest_after_each_burst() {
        let (alone, most) = run(1000, 0, |_| false);
        assert!(most == 4 << 20 && alone >= 250 << 20, "{alone}, {most}");
        let (beside, most) = run(1000, 0, |_| true);
        assert!(most <= 2 * BURST, "{most}");
        let share = beside * 100 / alone;
        assert!((30..=38).contains(&share), "{share} %");
        // One that has a request under way now and then is busy as well.
        let (beside, most) = run(1000, 0, |ms| ms % 10 == 0);
        assert!(most <= 2 * BURST, "{most}");
        assert!((30..=38).contains(&(beside * 100 / alone)), "{beside}");
        // When it has ended the resync takes all there is.
        let (beside, _) = run(1000, 0, |ms| ms < 500);
        assert!(beside * 100 / alone > 60, "{beside}");
    }

    #[test]
    fn a_long_link_is_filled_beside_a_busy_application() {
        let (alone, _) = run(60_000, 50, |_| false);
        let (beside, most) = run(60_000, 50, |_| true);
        assert_eq!(most, 4 << 20);
        let share = beside * 100 / alone;
        assert!((22..=60).contains(&share), "{share} %");
    }

    #[test]
    fn a_rest_is_never_long() {
        let mut rate = RateControl::new(Instant(0));
        rate.window(Instant(0), BURST, true);
        rate.sent(Instant(0), BURST);
        let late = Instant(60_000_000_000);
        rate.window(late, BURST, true);
        assert!(!rate.may_send(late, 0));
        rate.idle(late);
        assert_eq!(rate.deadline(late, 0), Some(late + LONGEST_REST));
        let then = late + LONGEST_REST;
        rate.window(then, BURST, true);
        assert!(rate.may_send(then, 0));
    }
}

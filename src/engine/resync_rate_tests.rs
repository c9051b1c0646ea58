//! Tests of the restraint of a resync.

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
    assert!(!rate.may_send(Instant(999_000_000), cap));
    let end = rate.deadline(Instant(999_000_000), cap);
    assert_eq!(end, Some(Instant(1_000_000_000)));
}

#[test]
fn a_cap_below_a_block_per_slot_holds_too() {
    let cap = 64 << 10;
    let mut rate = RateControl::new(Instant(0));
    let mut sent = 0;
    for ms in 0..60_000 {
        let now = Instant(ms * 1_000_000);
        while rate.may_send(now, cap) {
            rate.sent(now, 256 << 10);
            sent += 256 << 10;
        }
        assert!(rate.deadline(now, cap).is_some_and(|at| at > now));
    }
    assert!(sent >= 59 * cap && sent <= 66 * cap, "{sent}");
    // What is owed is forgotten with the cap.
    let then = Instant(60_000_000_000);
    rate.sent(then, 1 << 30);
    assert!(!rate.may_send(then, cap));
    assert!(rate.may_send(then, 0));
    assert!(rate.may_send(then, cap));
    // As it is with another cap: what was a moment under the old one would be hours under the new.
    rate.sent(then, 1 << 30);
    assert!(rate.may_send(then, cap / 2));
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
    assert!((22..=28).contains(&share), "{share} %");
    // One that has a request under way now and then is busy as well.
    let (beside, most) = run(1000, 0, |ms| ms % 10 == 0);
    assert!(most <= 2 * BURST, "{most}");
    assert!((22..=28).contains(&(beside * 100 / alone)), "{beside}");
    // When it has ended the resync takes all there is.
    let (beside, _) = run(1000, 0, |ms| ms < 500);
    assert!(beside * 100 / alone > 48, "{beside}");
}

#[test]
fn a_long_link_is_filled_beside_a_busy_application() {
    let (alone, _) = run(60_000, 50, |_| false);
    let (beside, most) = run(60_000, 50, |_| true);
    assert_eq!(most, 4 << 20);
    let share = beside * 100 / alone;
    assert!((13..=60).contains(&share), "{share} %");
}

#[test]
fn what_went_without_clients_says_nothing_of_bursts_beside_them() {
    const WINDOW: u64 = 4 << 20;
    let mut rate = RateControl::new(Instant(0));
    for n in 0..1000 {
        let now = Instant(n * 100_000_000);
        rate.window(now, WINDOW, false);
        rate.sent(now, WINDOW);
        rate.idle(now + Duration::from_millis(16));
    }
    let now = Instant(100_000_000_000);
    assert_eq!(rate.window(now, WINDOW, true), BURST);
    assert!(rate.may_send(now, 0));
    rate.sent(now, BURST);
    // This one is under way when the clients have gone.
    rate.window(now + PAUSE, WINDOW, false);
    rate.sent(now + PAUSE, BURST);
    rate.idle(now + PAUSE);
    assert_eq!((rate.bursts, rate.quickest), (0, None));
}

#[test]
fn how_long_a_burst_takes_is_found_out_anew() {
    const WINDOW: u64 = 4 << 20;
    let mut rate = RateControl::new(Instant(0));
    let mut now = Instant(0);
    let mut most = 0;
    // One was quick by chance; from then on the way is long.
    for n in 0..1000 {
        let size = rate.window(now, WINDOW, true);
        most = most.max(size);
        rate.sent(now, size);
        now = now + Duration::from_millis(if n == 0 { 1 } else { 50 });
        rate.idle(now);
    }
    assert_eq!(most, WINDOW);
}

#[test]
fn a_burst_shrinks_where_it_queues() {
    const WINDOW: u64 = 4 << 20;
    let mut rate = RateControl::new(Instant(0));
    let mut now = Instant(0);
    // So many milliseconds on the way, whatever its size, and from some size on four more.
    let mut sizes = Vec::new();
    for _ in 0..400 {
        let size = rate.window(now, WINDOW, true);
        sizes.push(size);
        rate.sent(now, size);
        let queues = if size > 1 << 20 { 5 } else { 0 };
        now = now + Duration::from_millis(8 + queues);
        rate.idle(now);
    }
    // It is found again and again, and left at once.
    let above = sizes.iter().filter(|&&size| size > 1 << 20).count();
    assert!((1..=30).contains(&above), "{above}");
    assert!(sizes.windows(2).all(|w| w[0] <= 1 << 20 || w[1] < w[0]));
    // The smallest is tried now and then, and the one before goes on.
    let tried = |n: usize| sizes[n] == BURST && sizes[n - 1] > BURST && sizes[n + 1] > BURST;
    assert!(tried(64) && tried(128), "{sizes:?}");
    // The window is made smaller meanwhile.
    now = now + LONGEST_REST;
    let size = rate.window(now, BURST, true);
    assert!(rate.may_send(now, 0));
    rate.sent(now, size);
    assert!(!rate.may_send(now, 0));
}

#[test]
fn a_burst_grows_after_quick_ones_in_a_row() {
    let mut rate = RateControl::new(Instant(0));
    let mut now = Instant(0);
    for n in 0..512 {
        assert_eq!(rate.window(now, 4 << 20, true), BURST);
        rate.sent(now, BURST);
        let slow = n % u64::from(QUICK_ONES) == u64::from(QUICK_ONES) - 1;
        now = now + Duration::from_millis(if slow { 20 } else { 10 });
        rate.idle(now);
    }
}

#[test]
fn nothing_under_way_begins_no_rest() {
    let mut rate = RateControl::new(Instant(0));
    rate.window(Instant(0), BURST, true);
    rate.sent(Instant(0), BURST);
    let back = Instant(1_000_000);
    rate.idle(back);
    let then = back + PAUSE;
    rate.idle(then);
    rate.window(then, BURST, true);
    assert!(rate.may_send(then, 0));
}

#[test]
fn a_burst_that_does_not_come_back_holds_nothing_up_without_clients() {
    let mut rate = RateControl::new(Instant(0));
    assert_eq!(rate.window(Instant(0), 4 << 20, true), BURST);
    rate.sent(Instant(0), BURST);
    assert!(!rate.may_send(Instant(0), 0));
    let gone = Instant(0) + PAUSE;
    assert_eq!(rate.deadline(Instant(0), 0), Some(gone));
    assert_eq!(rate.window(gone, 4 << 20, false), 4 << 20);
    assert!(rate.may_send(gone, 0));
    assert_eq!(rate.deadline(gone, 0), None);
}

#[test]
fn a_cap_and_a_rest_end_with_the_later() {
    let slot = Instant(0) + SLOT;
    for (back, cap, ends) in [
        (1, 1, slot),
        (60, 1, Instant(160_000_000)),
        (60, 0, Instant(160_000_000)),
    ] {
        let mut rate = RateControl::new(Instant(0));
        rate.window(Instant(0), BURST, true);
        assert!(rate.may_send(Instant(0), cap));
        rate.sent(Instant(0), BURST);
        let back = Instant(back * 1_000_000);
        rate.idle(back);
        rate.window(back, BURST, true);
        assert!(!rate.may_send(back, cap));
        assert_eq!(rate.deadline(back, cap), Some(ends));
        // What has ended wakes nobody any more.
        let late = Instant(0) + SLOT * 20;
        assert_eq!(rate.deadline(late, cap), None);
    }
}

#[test]
fn the_side_that_does_not_lead_says_so() {
    let mut rate = RateControl::new(Instant(0));
    let text = |rate: &RateControl| rate.progress(Instant(1), 1, 1).limited_by;
    assert_eq!(text(&rate), "the pace of the other node");
    rate.window(Instant(0), BURST, false);
    assert_eq!(text(&rate), "disks and link");
    rate.window(Instant(0), BURST, true);
    assert_eq!(text(&rate), "clients' requests");
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
    // Without another request it ends sooner.
    assert_eq!(rate.deadline(late, 0), Some(late + PAUSE));
    let more = late + PAUSE * 4;
    rate.window(more, BURST, true);
    assert!(!rate.may_send(more, 0));
    assert_eq!(rate.deadline(more, 0), Some(late + LONGEST_REST));
    let then = late + LONGEST_REST;
    rate.window(then, BURST, true);
    assert!(rate.may_send(then, 0));
}

//! The pool against a model: no two buffers overlap, classes do not take from each other, and what
//! is freed can be had again in one piece.

use super::*;
use proptest::prelude::*;

const KEY: Key = Key {
    slot: 1,
    generation: 1,
};
const OTHER: Key = Key {
    slot: 2,
    generation: 1,
};

fn pool() -> Pool {
    Pool::new(0).expect("an arena")
}

fn span(pool: &Pool, buf: BufId) -> Range<usize> {
    let start = pool.address(buf) as usize - pool.base as usize;
    start..start + pool.room(buf)
}

#[test]
fn classes_do_not_starve_each_other() {
    let mut pool = pool();
    let mut taken = Vec::new();
    while let Some(buf) = pool.alloc(Class::Client, PAGE) {
        taken.push(buf);
    }
    assert_eq!(taken.len() * PAGE, pool.largest(Class::Client));
    let largest = pool.largest(Class::Peer);
    assert!(largest >= MAX_PAYLOAD as usize);
    let peer = pool
        .alloc(Class::Peer, largest)
        .expect("a peer's frame still fits");
    let resync = pool
        .alloc(Class::Resync, 256 * 1024)
        .expect("a resync read still fits");
    assert!(pool.alloc(Class::Client, 1).is_none());
    for buf in taken.into_iter().chain([peer, resync]) {
        pool.release(buf);
    }
    assert_eq!(pool.used(), 0);
    let all = pool
        .alloc(Class::Client, pool.largest(Class::Client))
        .expect("one piece again");
    pool.release(all);
}

#[test]
fn the_last_hold_frees() {
    let mut pool = pool();
    let buf = pool.alloc(Class::Client, 100).expect("a buffer");
    pool.hold(buf);
    pool.release(buf);
    pool.bytes_mut(buf, 0..3).copy_from_slice(b"abc");
    assert_eq!(pool.bytes(buf, 3), b"abc");
    assert!(!pool.freed);
    pool.release(buf);
    assert!(pool.freed);
    let next = pool.alloc(Class::Client, 100).expect("a buffer");
    assert_ne!(next, buf, "the same page has another name");
    assert_eq!(span(&pool, next).start, 0);
}

#[test]
#[should_panic(expected = "after it was released")]
fn a_released_buffer_is_recognised() {
    let mut pool = pool();
    let buf = pool.alloc(Class::Client, 100).expect("a buffer");
    pool.release(buf);
    let _next = pool.alloc(Class::Client, 100).expect("a buffer");
    let _ = pool.address(buf);
}

#[test]
fn nobody_overtakes_the_head_of_the_line() {
    let mut pool = pool();
    let large = pool.largest(Class::Client);
    let small = pool
        .alloc_in_turn(Class::Client, OTHER, PAGE)
        .expect("room");
    assert!(
        pool.alloc_in_turn(Class::Client, KEY, large).is_none(),
        "KEY waits"
    );
    assert!(
        pool.alloc_in_turn(Class::Client, OTHER, PAGE).is_none(),
        "OTHER waits behind it"
    );
    pool.release(small);
    assert!(pool.alloc_in_turn(Class::Client, OTHER, PAGE).is_none());
    let whole = pool
        .alloc_in_turn(Class::Client, KEY, large)
        .expect("its turn");
    pool.release(whole);
    assert!(pool.alloc_in_turn(Class::Client, OTHER, PAGE).is_some());
}

#[test]
fn who_leaves_the_line_holds_nobody_up() {
    let mut pool = pool();
    let large = pool.largest(Class::Client);
    let _small = pool.alloc(Class::Client, PAGE).expect("room");
    assert!(pool.alloc_in_turn(Class::Client, KEY, large).is_none());
    assert!(pool.alloc_in_turn(Class::Client, OTHER, PAGE).is_none());
    pool.leave(Class::Client, KEY);
    assert!(pool.alloc_in_turn(Class::Client, OTHER, PAGE).is_some());
}

#[test]
fn checksums_are_kept_per_content() {
    let mut pool = pool();
    let buf = pool.alloc(Class::Client, PAGE).expect("a buffer");
    pool.bytes_mut(buf, 0..PAGE).fill(7);
    assert_eq!(pool.crc(buf, 512), crc32c(&[7; 512]));
    assert_eq!(pool.crc(buf, 4096), crc32c(&[7; 4096]));
    pool.release(buf);
    let next = pool.alloc(Class::Client, PAGE).expect("a buffer");
    pool.bytes_mut(next, 0..PAGE).fill(9);
    assert_eq!(
        pool.crc(next, 4096),
        crc32c(&[9; 4096]),
        "a new buffer knows no checksum"
    );
}

proptest! {
    #[test]
    fn buffers_never_overlap(
        steps in proptest::collection::vec((0usize..3, 1usize..600_000, any::<u16>()), 1..400),
    ) {
        let mut pool = pool();
        let mut live: Vec<(BufId, Range<usize>)> = Vec::new();
        for (class, len, pick) in steps {
            let class = [Class::Client, Class::Peer, Class::Resync][class];
            if pick % 3 == 0 && !live.is_empty() {
                let (buf, _) = live.swap_remove(usize::from(pick) % live.len());
                pool.release(buf);
                continue;
            }
            // Mostly small ones, so that the parts fill up and break into pieces.
            let len = if pick % 5 < 3 { len % 40_000 + 1 } else { len };
            match pool.alloc(class, len) {
                Some(buf) => {
                    let span = span(&pool, buf);
                    let part = &pool.parts[class as usize].pages;
                    prop_assert!(span.len() >= len);
                    prop_assert!(part.start * PAGE <= span.start && span.end <= part.end * PAGE);
                    for (_, other) in &live {
                        prop_assert!(span.end <= other.start || other.end <= span.start);
                    }
                    live.push((buf, span));
                }
                None => {
                    // There really is no gap of that size.
                    let part = pool.parts[class as usize].pages.clone();
                    let mut busy: Vec<_> = live.iter().map(|(_, span)| span.clone()).collect();
                    busy.sort_by_key(|span| span.start);
                    let (start, end) = (part.start * PAGE, part.end * PAGE);
                    let mut at = start;
                    for span in busy.iter().filter(|s| s.start >= start && s.end <= end) {
                        prop_assert!(span.start < at + len.div_ceil(PAGE) * PAGE);
                        at = span.end;
                    }
                    prop_assert!(end < at + len.div_ceil(PAGE) * PAGE);
                }
            }
            let used: usize = live.iter().map(|(_, span)| span.len()).sum();
            prop_assert_eq!(pool.used(), used as u64);
        }
        for (buf, _) in live {
            pool.release(buf);
        }
        prop_assert_eq!(pool.used(), 0);
        let all = pool.largest(Class::Client);
        let whole = pool.alloc(Class::Client, all);
        prop_assert!(whole.is_some());
        pool.release(whole.unwrap());
    }
}

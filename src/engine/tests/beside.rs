//! A resync beside an application: it sees whatever clients ask for, holds itself back, and comes to its end.

use super::pair::{DATA, Pair};
use crate::command::Command;
use crate::event::{ConnState, DiskState, ReplState};
use crate::input::RequestKind;
use crate::time::Duration;
use crate::verify::Verify;
use twinblk_protocol::control::Protocol;

/// Whether each node has seen clients at work while requests like this one were answered.
fn seen(pair: &mut Pair, kind: RequestKind) -> [bool; 2] {
    let data = vec![7; 4096];
    let tag = pair.submit(0, kind, 0, &data, 4096, false);
    let (mut seen, mut turns) = ([false; 2], 0);
    while !pair.nodes[0].replies.contains_key(&tag) {
        for (seen, node) in seen.iter_mut().zip(&pair.nodes) {
            *seen |= node.engine.as_ref().is_some_and(|e| e.clients_are_busy());
        }
        if !pair.step() {
            pair.pass_time();
        }
        turns += 1;
        assert!(turns < 10_000, "no answer: {}", pair.dump());
    }
    pair.settle();
    for node in &pair.nodes {
        let engine = node.engine.as_ref().expect("it runs");
        assert!(!engine.clients_are_busy(), "{}", pair.dump());
    }
    seen
}

#[test]
fn clients_are_seen_wherever_their_requests_are_carried_out() {
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        let mut pair = Pair::in_sync(1, protocol);
        assert_eq!(seen(&mut pair, RequestKind::Read), [true, false]);
        let both = protocol != Protocol::A;
        let found = seen(&mut pair, RequestKind::Write);
        assert!(found[0] && (found[1] || !both), "{found:?}");
        pair.order(0, Command::Detach { force: false })
            .expect("the peer has the data");
        pair.settle();
        assert_eq!(pair.disk(0), DiskState::Diskless);
        assert_eq!(seen(&mut pair, RequestKind::Read), [true, true]);
        assert_eq!(seen(&mut pair, RequestKind::Write), [true, true]);
    }
}

#[test]
fn beside_clients_a_verify_has_one_burst_under_way() {
    for busy in [false, true] {
        let mut pair = Pair::in_sync(9, Protocol::C);
        let repair = false;
        pair.order_async(0, Command::Verify { peer: None, repair });
        let (mut most, mut tag, mut turns) = (0, None, 0);
        loop {
            if busy && tag.is_none_or(|tag| pair.nodes[0].replies.contains_key(&tag)) {
                tag = Some(pair.submit(0, RequestKind::Read, 0, &[], 4096, false));
            }
            let engine = pair.nodes[0].engine.as_ref().expect("it runs");
            let run = engine.peers[0].volumes[0].verify.as_ref();
            most = most.max(run.map_or(0, Verify::under_way));
            if most > 0 && run.is_none() {
                break;
            }
            if !pair.step() {
                pair.pass_time();
            }
            turns += 1;
            assert!(turns < 100_000, "no end: {}", pair.dump());
        }
        if busy {
            assert!(most <= 512 << 10, "{most}");
        } else {
            assert_eq!(most, DATA);
        }
    }
}

/// The most bytes that were under way at once in a resync of everything. `load`: node 0 reads or writes all the
/// while, one request after the other.
fn most_under_way(seed: u64, load: Option<RequestKind>) -> u64 {
    let mut pair = Pair::in_sync(seed, Protocol::C);
    pair.order(1, Command::Invalidate).expect("invalidate");
    // They connect anew for it.
    while pair.connection(0) == ConnState::Connected {
        assert!(pair.step(), "{}", pair.dump());
    }
    let (mut most, mut tag, mut began) = (0, None, false);
    let mut turns = 0;
    loop {
        if let Some(kind) = load
            && pair.connection(0) == ConnState::Connected
            && tag.is_none_or(|tag| pair.nodes[0].replies.contains_key(&tag))
        {
            let data = vec![9; 4096];
            tag = Some(pair.submit(0, kind, pair.now.0 % 64 * 4096, &data, 4096, false));
        }
        let engine = pair.nodes[0].engine.as_ref().expect("it runs");
        let resync = engine.peers[0].volumes[0].resync.as_ref();
        began |= resync.is_some();
        most = most.max(resync.map_or(0, |r| r.under_way().0));
        if began && resync.is_none() {
            break;
        }
        if !pair.step() {
            pair.pass_time();
        }
        turns += 1;
        assert!(turns < 100_000, "no end: {}", pair.dump());
    }
    pair.settle();
    pair.expect_in_sync();
    most
}

#[test]
fn beside_clients_a_resync_has_one_burst_under_way() {
    for seed in 0..8 {
        assert_eq!(most_under_way(seed, None), DATA);
        for kind in [RequestKind::Read, RequestKind::Write] {
            let most = most_under_way(seed, Some(kind));
            assert!(most <= 512 << 10, "{most}");
        }
    }
}

#[test]
fn a_primary_that_this_copy_serves_does_not_hold_its_resync_back() {
    let mut pair = Pair::in_sync(7, Protocol::C);
    pair.order(0, Command::Detach { force: false })
        .expect("the peer has the data");
    pair.settle();
    let piece = 256 << 10;
    for offset in (0..DATA).step_by(256 << 10) {
        pair.write(0, offset, piece, 3);
    }
    pair.attach(0);
    let (mut most, mut tag, mut turns) = (0, None, 0);
    while pair.disk(0) != DiskState::UpToDate {
        // Its clients read all the while.
        if tag.is_none_or(|tag| pair.nodes[0].replies.contains_key(&tag)) {
            tag = Some(pair.submit(0, RequestKind::Read, 0, &[], 4096, false));
        }
        let engine = pair.nodes[1].engine.as_ref().expect("it runs");
        let resync = engine.peers[0].volumes[0].resync.as_ref();
        most = most.max(resync.map_or(0, |r| r.under_way().0));
        if !pair.step() {
            pair.pass_time();
        }
        turns += 1;
        assert!(turns < 100_000, "no end: {}", pair.dump());
    }
    assert!(most >= 2 << 20, "{most}");
    pair.settle();
    pair.expect_in_sync();
}

#[test]
fn a_send_queue_that_clients_keep_full_does_not_starve_it() {
    let mut pair = Pair::in_sync(11, Protocol::C);
    pair.order(1, Command::Invalidate).expect("invalidate");
    let (mut full, mut tag, mut turns) = (false, None, 0);
    loop {
        let engine = pair.nodes[0].engine.as_mut().expect("it runs");
        let peer = &mut engine.peers[0];
        let goes_on = peer.volumes[0].resync.is_some();
        if full && !goes_on {
            break;
        }
        if goes_on && !full {
            // So many bytes are in the queue from now on, whatever leaves it.
            peer.link.as_mut().expect("connected").queued += 64 << 20;
            full = true;
        }
        if full {
            assert!(peer.unsent() >= 64 << 20);
            assert_eq!(pair.connection(0), ConnState::Connected);
        }
        if full && tag.is_none_or(|tag| pair.nodes[0].replies.contains_key(&tag)) {
            tag = Some(pair.submit(0, RequestKind::Read, 0, &[], 4096, false));
        }
        if !pair.step() {
            pair.pass_time();
        }
        turns += 1;
        assert!(turns < 100_000, "no end: {}", pair.dump());
    }
    pair.drop_link("the test's end");
    pair.settle();
    pair.expect_in_sync();
}

#[test]
fn no_clients_are_seen_in_a_resync_or_verify_or_suspended() {
    let mut pair = Pair::in_sync(5, Protocol::C);
    let busy = |pair: &Pair| {
        let busy = |n: usize| {
            pair.nodes[n]
                .engine
                .as_ref()
                .is_some_and(|e| e.clients_are_busy())
        };
        busy(0) || busy(1)
    };
    let repair = false;
    for (n, order) in [
        (0, Command::Verify { peer: None, repair }),
        (1, Command::Invalidate),
    ] {
        pair.order_async(n, order);
        let mut turns = 0;
        while turns < 400 {
            assert!(!busy(&pair), "{}", pair.dump());
            if !pair.step() {
                pair.pass_time();
            }
            turns += 1;
        }
        pair.settle();
        pair.expect_in_sync();
    }
    // A write that has begun and stands still.
    pair.nodes[1].hangs = true;
    let tag = pair.submit_write(0, 0, 4096, 1);
    for _ in 0..20 {
        pair.step();
    }
    assert!(busy(&pair));
    pair.order(0, Command::SuspendIo).expect("suspend");
    let engine = pair.nodes[0].engine.as_ref().expect("it runs");
    assert!(!engine.clients_are_busy(), "{}", pair.dump());
    pair.nodes[1].hangs = false;
    for input in std::mem::take(&mut pair.nodes[1].hung) {
        pair.feed(1, input);
    }
    pair.order(0, Command::ResumeIo).expect("resume");
    pair.wait_reply(0, tag).expect("written");
}

/// Node 0 reads, so often, once `order` was given to `n`; then nobody asks for anything. Answers how long it
/// took from the last read until what was ordered is over, as `over` has it.
fn after_reads(n: usize, order: Command, reads: u64, over: impl Fn(&Pair) -> bool) -> Duration {
    let mut pair = Pair::in_sync(3, Protocol::C);
    let anew = matches!(order, Command::Invalidate);
    pair.order_async(n, order);
    while anew && pair.connection(0) == ConnState::Connected {
        assert!(pair.step(), "{}", pair.dump());
    }
    while pair.connection(0) != ConnState::Connected {
        if !pair.step() {
            pair.pass_time();
        }
    }
    for _ in 0..reads {
        pair.read(0, 0, 4096);
    }
    let since = pair.now;
    // What is under way takes long, so the rest after it does.
    pair.now = pair.now + Duration::from_millis(10);
    for _ in 0..100_000 {
        if over(&pair) {
            return pair.now.since(since);
        }
        if !pair.step() {
            pair.pass_time();
        }
    }
    panic!("no end: {}", pair.dump());
}

#[test]
fn a_rest_ends_by_itself() {
    // If nothing woke it, it would go on with the next ping, seconds later.
    let soon = Duration::from_secs(1);
    let repair = false;
    let verified = |pair: &Pair| {
        let volume = &pair.status(0).peers[0].volumes[0];
        volume.verify.is_none() && volume.verified.is_some()
    };
    for reads in [1, 2, 5] {
        let order = Command::Verify { peer: None, repair };
        let took = after_reads(0, order, reads, verified);
        assert!(took < soon, "a verify after {reads} reads: {took:?}");
    }
    for reads in [30, 40, 50] {
        let took = after_reads(1, Command::Invalidate, reads, |pair| {
            let volume = &pair.status(0).peers[0].volumes[0];
            volume.replication == ReplState::Established && volume.out_of_sync == 0
        });
        assert!(took < soon, "a resync after {reads} reads: {took:?}");
    }
    // The verify ends beside reads that go on, too.
    let order = Command::Verify { peer: None, repair };
    let took = after_reads(0, order, 1000, verified);
    assert!(took < Duration::from_millis(11), "{took:?}");
}

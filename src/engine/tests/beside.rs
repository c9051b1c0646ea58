//! A resync beside an application: it sees whatever clients ask for, holds itself back, and comes to its end.

use super::pair::{DATA, Pair};
use crate::command::Command;
use crate::event::{ConnState, DiskState};
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
        // Under A the client may have its answer before the peer has the write.
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
        pair.order_async(0, VERIFY);
        let (mut most, mut rested, mut tag, mut turns) = (0, false, None, 0);
        loop {
            if busy && tag.is_none_or(|tag| pair.nodes[0].replies.contains_key(&tag)) {
                tag = Some(pair.submit(0, RequestKind::Read, 0, &[], 4096, false));
            }
            let engine = pair.nodes[0].engine.as_ref().expect("it runs");
            let run = engine.peers[0].volumes[0].verify.as_ref();
            let open = run.map_or(0, Verify::under_way);
            most = most.max(open);
            if most > 0 && run.is_none() {
                break;
            }
            // A second look at what differed belongs to the burst, not into the rest after it.
            let rests = run.is_some_and(|run| run.rate.rests(pair.now));
            assert!(open == 0 || !rests, "{}", pair.dump());
            rested |= rests;
            pair.nodes[1].misreads = turns % 2 == 0;
            if !pair.step() {
                pair.pass_time();
            }
            turns += 1;
            assert!(turns < 100_000, "no end: {}", pair.dump());
        }
        assert_eq!(rested, busy);
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
    for (n, order) in [(0, VERIFY), (1, Command::Invalidate)] {
        pair.order_async(n, order);
        let mut ran = false;
        for _ in 0..400 {
            assert!(!busy(&pair), "{}", pair.dump());
            ran |= under_way(&pair).is_some_and(|bytes| bytes > 0);
            if !pair.step() {
                pair.pass_time();
            }
        }
        assert!(ran && under_way(&pair).is_none(), "{}", pair.dump());
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

/// Bytes of a resync or a verify under way between the nodes; nothing if there is none.
fn under_way(pair: &Pair) -> Option<u64> {
    let engine = pair.nodes[0].engine.as_ref().expect("it runs");
    let volume = &engine.peers[0].volumes[0];
    let resync = volume.resync.as_ref().map(|r| r.under_way().0);
    resync.or(volume.verify.as_ref().map(Verify::under_way))
}

/// What was ordered goes beside reads on node 0, and one burst of it is under way. The last read has just been
/// answered. `hangs`: node 1's disk answers nothing.
fn one_burst_under_way(seed: u64, order: Command, hangs: bool) -> Pair {
    let mut pair = Pair::in_sync(seed, Protocol::C);
    let n = usize::from(matches!(order, Command::Invalidate));
    pair.order_async(n, order);
    while n == 1 && pair.connection(0) == ConnState::Connected {
        assert!(pair.step(), "{}", pair.dump());
    }
    let mut tag = None;
    for _ in 0..100_000 {
        let connected = pair.connection(0) == ConnState::Connected;
        pair.nodes[1].hangs = hangs && connected;
        if tag.is_none_or(|tag| pair.nodes[0].replies.contains_key(&tag)) {
            if tag.is_some() && under_way(&pair).is_some_and(|bytes| bytes > 0) {
                assert!(under_way(&pair) <= Some(512 << 10), "{}", pair.dump());
                return pair;
            }
            if connected {
                tag = Some(pair.submit(0, RequestKind::Read, 0, &[], 4096, false));
            }
        }
        if !pair.step() {
            pair.pass_time();
        }
    }
    panic!("nothing begins: {}", pair.dump());
}

const VERIFY: Command = Command::Verify {
    peer: None,
    repair: false,
};

#[test]
fn a_rest_ends_by_itself() {
    for seed in 0..4 {
        for order in [Command::Invalidate, VERIFY] {
            let mut pair = one_burst_under_way(seed, order.clone(), false);
            let since = pair.now;
            // The burst takes long, so the rest after it does.
            pair.now = pair.now + Duration::from_millis(10);
            let mut rested = false;
            for _ in 0..100_000 {
                if under_way(&pair).is_none() {
                    break;
                }
                rested |= under_way(&pair) == Some(0);
                if !pair.step() {
                    pair.pass_time();
                }
            }
            // If nothing woke it, it would go on with the next ping, seconds later.
            let took = pair.now.since(since);
            assert!(took < Duration::from_secs(1), "{order:?}: {took:?}");
            assert!(rested && under_way(&pair).is_none(), "{}", pair.dump());
            pair.settle();
            pair.expect_in_sync();
        }
    }
}

#[test]
fn it_ends_beside_clients_that_never_pause() {
    for order in [Command::Invalidate, VERIFY] {
        let mut pair = one_burst_under_way(6, order, false);
        let mut reads = 0;
        while under_way(&pair).is_some() {
            pair.read(0, 0, 4096);
            reads += 1;
            assert!(reads < 10_000, "{}", pair.dump());
        }
        assert!(reads > 10, "{reads}");
        pair.settle();
        pair.expect_in_sync();
    }
}

#[test]
fn a_burst_that_does_not_come_back_holds_nothing_up_without_clients() {
    let mut pair = one_burst_under_way(8, Command::Invalidate, true);
    let since = pair.now;
    while under_way(&pair) < Some(DATA) {
        if !pair.step() {
            pair.pass_time();
        }
        let took = pair.now.since(since);
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    pair.nodes[1].hangs = false;
    for input in std::mem::take(&mut pair.nodes[1].hung) {
        pair.feed(1, input);
    }
    pair.settle();
    pair.expect_in_sync();
}

//! Online verify on two real engines: it finds what differs, nothing else, and ends whatever comes.

use super::pair::{CONNECT, DATA, Fault, Pair, V};
use crate::command::{Command, RefusalKind};
use crate::config::Options;
use crate::event::{ConnState, DiskState, ReplState, Role};
use crate::input::{Body, Input, RequestKind};
use twinblk_protocol::control::Protocol;
use twinblk_protocol::frame::{Header, Kind};

const ALL: [Protocol; 3] = [Protocol::A, Protocol::B, Protocol::C];
const SEEDS: u64 = 4;

fn each(mut story: impl FnMut(u64, Protocol)) {
    for seed in 0..SEEDS {
        for protocol in ALL {
            story(seed, protocol);
        }
    }
}

const VERIFY: Command = Command::Verify {
    peer: None,
    repair: false,
};
const REPAIR: Command = Command::Verify {
    peer: None,
    repair: true,
};
const STOP: Command = Command::VerifyStop { peer: None };

fn replication(pair: &Pair, n: usize) -> ReplState {
    pair.status(n).peers[0].volumes[0].replication
}

fn verified(pair: &Pair, n: usize) -> String {
    let verified = &pair.status(n).peers[0].volumes[0].verified;
    verified.clone().unwrap_or_default()
}

/// Number of the verify that runs.
fn verify_run(pair: &Pair, n: usize) -> Option<u64> {
    let engine = pair.nodes[n].engine.as_ref()?;
    Some(engine.peers[0].volumes[0].verify.as_ref()?.run)
}

/// Runs until both say that the verify is over.
fn until_over(pair: &mut Pair) {
    for _ in 0..200_000 {
        let over = |n| pair.status(n).peers[0].volumes[0].verify.is_none();
        if over(0) && over(1) {
            return;
        }
        if !pair.step() {
            pair.pass_time();
        }
    }
    panic!("it never ends: {}", pair.dump());
}

#[test]
fn a_changed_block_is_found_marked_on_both_sides_and_copied_by_the_next_connect() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        for i in 0..8 {
            pair.write(0, i * 300 * 1024, 64 << 10, 7);
        }
        pair.settle();
        // One bit, and a block in the middle of zeroes, behind the engines' backs.
        pair.rot(1, 300 * 1024 + 5000, 1);
        pair.rot(1, DATA - 4096, 0x80);
        // Wherever the order is given.
        let n = usize::from(seed % 2 == 1);
        pair.order(n, VERIFY).expect("both are current");
        assert_eq!(replication(&pair, n), ReplState::VerifyS);
        until_over(&mut pair);
        for n in 0..2 {
            assert_eq!(replication(&pair, n), ReplState::Established);
            assert_eq!(pair.out_of_sync(n), 8192, "{}", pair.dump());
            assert!(verified(&pair, n).contains("8192 bytes that differ"));
            assert!(verified(&pair, n).contains("finished"));
            assert!(
                pair.logged(n, "4096 bytes at byte 311296;"),
                "{}",
                pair.dump()
            );
        }
        pair.order(0, Command::Disconnect { peer: None })
            .expect("it may");
        pair.order(0, CONNECT).expect("it may");
        pair.order(1, CONNECT).expect("it may");
        pair.settle();
        pair.expect_in_sync();
        assert_eq!(pair.read(0, 300 * 1024 + 4096, 4096), vec![7; 4096]);
    });
}

#[test]
fn repair_copies_from_the_primary_else_from_where_it_was_ordered() {
    each(|seed, protocol| {
        for (primary, ordered, source) in [(true, 0, 0), (true, 1, 0), (false, 0, 0), (false, 1, 1)]
        {
            let mut pair = Pair::in_sync(seed, protocol);
            pair.write(0, 8192, 8192, 7);
            pair.settle();
            if !primary {
                pair.order(0, Command::Secondary).expect("no clients");
                pair.settle();
            }
            pair.rot(1, 8192, 1);
            pair.order(ordered, REPAIR).expect("both are current");
            until_over(&mut pair);
            pair.settle();
            pair.expect_in_sync();
            let rotten = pair.content(0)[8192] != 7;
            assert_eq!(rotten, source == 1, "{}", pair.dump());
            assert_eq!(pair.status(0).role == Role::Primary, primary);
        }
    });
}

#[test]
fn writes_under_way_are_no_difference() {
    each(|seed, protocol| {
        let mut pair = Pair::in_sync(seed, protocol);
        for round in 0..2 {
            let n = usize::from(round % 2 == 1);
            pair.order(n, VERIFY).expect("both are current");
            let mut tags = Vec::new();
            let running = |pair: &Pair| pair.status(0).peers[0].volumes[0].verify.is_some();
            while running(&pair) && tags.len() < 400 {
                let blocks = DATA / 512 - 64;
                let offset = pair.rng() % blocks * 512;
                let len = (1 + pair.rng() % 64) * 512;
                let value = u8::try_from(pair.rng() % 255).unwrap();
                tags.push(match pair.rng() % 8 {
                    0 => pair.submit(0, RequestKind::Flush, 0, &[], 0, false),
                    1 => pair.submit(0, RequestKind::Trim, offset, &[], len, false),
                    _ => pair.submit_write(0, offset, len, value),
                });
                for _ in 0..pair.rng() % 8 {
                    pair.step();
                }
            }
            until_over(&mut pair);
            for tag in tags {
                pair.wait_reply(0, tag).expect("it is served");
            }
            for n in 0..2 {
                let said = verified(&pair, n);
                assert!(said.contains("finished: "), "{said}");
                assert!(said.contains("no difference"), "{said}\n{}", pair.dump());
            }
            pair.settle();
            pair.expect_in_sync();
        }
    });
}

/// What may come in the middle of it.
#[derive(Clone, Copy, Debug)]
enum Comes {
    Stop(usize),
    Promotion,
    Demotion,
    Disconnect,
    Cut,
    Invalidate,
    InvalidateRemote,
    ReadError(usize),
    Down(usize),
    Crash(usize),
}

#[test]
fn whatever_comes_ends_it_and_it_says_where_it_was() {
    use Comes as C;
    let all = [
        C::Stop(0),
        C::Stop(1),
        C::Promotion,
        C::Demotion,
        C::Disconnect,
        C::Cut,
        C::Invalidate,
        C::InvalidateRemote,
        C::ReadError(0),
        C::ReadError(1),
        C::Down(0),
        C::Down(1),
        C::Crash(0),
        C::Crash(1),
    ];
    for seed in 0..SEEDS {
        for comes in all {
            for ordered in 0..2 {
                let mut pair = Pair::in_sync(seed, ALL[(seed % 3) as usize]);
                for i in 0..8 {
                    pair.write(0, i * 300 * 1024, 64 << 10, 7);
                }
                pair.settle();
                if matches!(comes, C::Promotion) {
                    pair.order(0, Command::Secondary).expect("no clients");
                    pair.settle();
                }
                // So slow that it does not end by itself.
                for n in 0..2 {
                    let options = Options {
                        protocol: ALL[(seed % 3) as usize],
                        resync_max_rate: 1 << 20,
                        ..Options::default()
                    };
                    pair.order(n, Command::SetOptions(Box::new(options)))
                        .expect("they may change");
                }
                pair.order(ordered, VERIFY).expect("both are current");
                for _ in 0..pair.rng() % 40 {
                    pair.step();
                }
                let running = pair.status(0).peers[0].volumes[0].verify.is_some();
                assert!(running, "too late: {}", pair.dump());
                match comes {
                    C::Stop(n) => {
                        let text = pair.order(n, STOP).expect("it may");
                        assert!(text.contains("stopped by an administrator"), "{text}");
                        assert!(text.contains(" bytes compared"), "{text}");
                    }
                    C::Promotion => drop(pair.order(1, Command::Primary { force: false })),
                    C::Demotion => drop(pair.order(0, Command::Secondary)),
                    C::Disconnect => drop(pair.order(1, Command::Disconnect { peer: None })),
                    C::Cut => pair.cut(),
                    C::Invalidate => drop(pair.order(1, Command::Invalidate)),
                    C::InvalidateRemote => {
                        drop(pair.order(0, Command::InvalidateRemote { peer: None }));
                    }
                    C::ReadError(n) => {
                        pair.nodes[n].faults[2] = Some(Fault { after: 0, bad: 1 });
                        until_over(&mut pair);
                    }
                    C::Down(n) => drop(pair.order(n, Command::Stop { force: true })),
                    C::Crash(n) => pair.crash(n),
                }
                pair.settle();
                for n in 0..2 {
                    if pair.nodes[n].engine.is_none() || pair.nodes[n].stopped {
                        continue;
                    }
                    let state = replication(&pair, n);
                    let left = matches!(state, ReplState::VerifyS | ReplState::VerifyT);
                    assert!(!left, "{comes:?}: {}", pair.dump());
                    let said = verified(&pair, n);
                    assert!(
                        said.contains("ended early"),
                        "{comes:?}: {said}\n{}",
                        pair.dump()
                    );
                }
                if let C::ReadError(n) = comes {
                    assert_eq!(pair.disk(n), DiskState::Diskless);
                }
                if matches!(comes, C::Invalidate | C::InvalidateRemote | C::Stop(_)) {
                    pair.expect_in_sync();
                }
            }
        }
    }
}

#[test]
fn only_current_copies_are_compared_and_one_verify_at_a_time() {
    let mut pair = Pair::new(1, Protocol::C);
    pair.start(0);
    let refusal = pair.order(0, VERIFY).expect_err("alone");
    assert_eq!(refusal.kind, RefusalKind::State);
    pair.start(1);
    pair.settle();
    let refusal = pair.order(0, VERIFY).expect_err("just created");
    assert_eq!(refusal.kind, RefusalKind::NoUpToDateData);
    assert!(!refusal.way_out.is_empty());
    let mut pair = Pair::in_sync(1, Protocol::C);
    assert_eq!(pair.order(0, STOP).expect("it may"), "no verify runs");
    pair.order(0, VERIFY).expect("both are current");
    for n in 0..2 {
        let refusal = pair.order(n, VERIFY).expect_err("one runs");
        assert!(refusal.reason.contains("runs already"), "{refusal:?}");
    }
}

#[test]
fn frames_of_a_verify_that_nobody_ordered_end_the_connection() {
    for kind in [Kind::VerifyAsk, Kind::VerifyDigests, Kind::OutOfSync] {
        let mut pair = Pair::in_sync(1, Protocol::C);
        let mut header = Header::new(kind);
        (header.volume, header.size, header.epoch) = (V.0, 4096, 9);
        let peer = pair.nodes[0].id;
        let body = match kind {
            Kind::VerifyDigests => Body::Bytes(vec![0; 16].into()),
            _ => Body::None,
        };
        pair.feed(1, Input::Frame { peer, header, body });
        assert!(pair.logged(1, "that nobody asked for"), "{}", pair.dump());
        pair.settle();
        pair.expect_in_sync();
    }
    // In a verify: what does not fit it.
    for (offset, size) in [
        (DATA * 4, 4096),
        (0, 1 << 30),
        (u64::MAX - 4095, 8192),
        (512, 512),
    ] {
        let mut pair = Pair::in_sync(1, Protocol::C);
        pair.order(0, VERIFY).expect("both are current");
        let run = verify_run(&pair, 1).expect("it runs");
        let mut header = Header::new(Kind::VerifyAsk);
        (header.volume, header.offset, header.size, header.epoch) = (V.0, offset, size, run);
        let peer = pair.nodes[0].id;
        let body = Body::None;
        pair.feed(1, Input::Frame { peer, header, body });
        assert!(pair.logged(1, "that nobody asked for"), "{}", pair.dump());
        assert_ne!(pair.connection(1), ConnState::Connected);
    }
}

/// What a second look does not find is no difference.
#[test]
fn a_difference_is_believed_only_when_it_is_seen_twice() {
    for n in 0..2 {
        let mut pair = Pair::in_sync(1, Protocol::C);
        pair.nodes[n].misreads = true;
        pair.order(0, VERIFY).expect("both are current");
        until_over(&mut pair);
        assert!(!pair.nodes[n].misreads, "it was read");
        assert!(
            verified(&pair, 0).contains("no difference"),
            "{}",
            pair.dump()
        );
        assert_eq!(pair.out_of_sync(0) + pair.out_of_sync(1), 0);
    }
}

/// Many differences are counted, and few are told.
#[test]
fn differences_are_told_in_runs_and_not_without_end() {
    let mut pair = Pair::in_sync(1, Protocol::C);
    for i in 0..200 {
        pair.rot(1, i * 2 * 4096, 1);
    }
    for i in 0..40 {
        pair.rot(1, (1 << 21) + i * 4096, 1);
    }
    pair.order(0, VERIFY).expect("both are current");
    until_over(&mut pair);
    let told = |n: usize| {
        let lines = &pair.nodes[n].log;
        lines.iter().filter(|l| l.contains("differs from")).count()
    };
    assert!((2..=32).contains(&told(0)), "{}", told(0));
    assert!(verified(&pair, 0).contains(&format!("{} bytes that differ", 240 * 4096)));
    assert_eq!(pair.out_of_sync(0), 240 * 4096);
}

/// Marks that a verify left survive both nodes.
#[test]
fn marks_survive_a_crash_of_both() {
    let mut pair = Pair::in_sync(1, Protocol::C);
    pair.order(0, Command::Secondary).expect("no clients");
    pair.rot(1, 8192, 1);
    pair.order(0, VERIFY).expect("both are current");
    until_over(&mut pair);
    pair.settle();
    pair.crash(0);
    pair.crash(1);
    for n in 0..2 {
        pair.start(n);
    }
    pair.settle();
    pair.expect_in_sync();
    assert!(
        pair.logged(0, "4096 bytes are out of sync"),
        "{}",
        pair.dump()
    );
}

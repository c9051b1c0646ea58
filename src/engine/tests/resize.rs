//! `resize` on two real engines: both end with one size, whatever comes in the middle.

use super::pair::{CONNECT, DATA, Pair, V};
use crate::command::{Command, RefusalKind};
use crate::event::{ConnState, Role};
use crate::resize::larger_if_possible;
use twinblk_protocol::control::Protocol;

const ALL: [Protocol; 3] = [Protocol::A, Protocol::B, Protocol::C];
const HALF: u64 = DATA / 2;

fn to(size: u64) -> Command {
    Command::Resize {
        size: Some(size),
        force: true,
    }
}

const GROW: Command = Command::Resize {
    size: None,
    force: false,
};

fn size(pair: &Pair, n: usize) -> u64 {
    pair.status(n).volumes[0].size
}

/// In step, with half the device; the disks hold different things behind its end.
fn half(seed: u64, protocol: Protocol) -> Pair {
    let mut pair = Pair::in_sync(seed, protocol);
    pair.write(0, 0, 65536, 7);
    pair.order(0, to(HALF)).expect("nobody holds it");
    pair.settle();
    assert_eq!((size(&pair, 0), size(&pair, 1)), (HALF, HALF));
    pair.expect_in_sync();
    for n in 0..2 {
        pair.rot(n, HALF + 4096 * 3, 1 + n as u8);
        pair.rot(n, DATA - 1, 1 + n as u8);
    }
    pair
}

#[test]
fn a_device_grows_under_writes_and_what_is_new_is_made_equal() {
    for seed in 0..6 {
        for protocol in ALL {
            for ordered in 0..2 {
                let mut pair = half(seed, protocol);
                let full = pair.status(0).volumes[0].size * 2;
                let mut tags = Vec::new();
                let id = pair.order_async(ordered, GROW);
                while !pair.nodes[ordered].answers.contains_key(&id) {
                    if tags.len() < 100 {
                        let offset = pair.rng() % (HALF / 4096 - 1) * 4096;
                        tags.push(pair.submit_write(0, offset, 4096, 9));
                    }
                    for _ in 0..pair.rng() % 6 {
                        if !pair.step() {
                            pair.pass_time();
                        }
                    }
                }
                let text = pair.nodes[ordered].answers[&id].clone().expect("room");
                assert!(text.contains("must connect again"), "{text}");
                for tag in tags {
                    pair.wait_reply(0, tag).expect("it is served");
                }
                pair.settle();
                assert!(size(&pair, 0) >= full && size(&pair, 0) == size(&pair, 1));
                assert_eq!(pair.role(0), Role::Primary);
                pair.write(0, DATA - 65536, 65536, 3);
                pair.settle();
                pair.expect_in_sync();
            }
        }
    }
}

/// What comes in the middle.
#[derive(Clone, Copy, Debug)]
enum Comes {
    Cut,
    Crash(usize),
    Both,
    Disconnect,
}

#[test]
fn it_may_end_anywhere_and_the_nodes_find_one_size() {
    use Comes as C;
    let mut ended = [0; 2];
    for (start, ordered) in [(HALF, 0), (HALF, 1), (DATA, 0), (DATA, 1)] {
        for steps in 0..40 {
            let all = [C::Cut, C::Crash(0), C::Crash(1), C::Both, C::Disconnect];
            let comes = all[steps % all.len()];
            let mut pair = half(steps as u64, ALL[steps % 3]);
            if start == DATA {
                pair.order(0, GROW).expect("room");
                pair.settle();
            }
            let before = size(&pair, 0);
            let order = if start == HALF { GROW } else { to(HALF) };
            pair.order_async(ordered, order);
            for _ in 0..steps / all.len() * 2 {
                pair.step();
            }
            match comes {
                C::Cut => pair.cut(),
                C::Crash(n) => pair.crash(n),
                C::Both => (0..2).for_each(|n| pair.crash(n)),
                C::Disconnect => drop(pair.order(1 - ordered, Command::Disconnect { peer: None })),
            }
            // Alone for a while: what is written now must survive.
            let mut wrote = None;
            if pair.nodes[0].engine.is_some() && pair.role(0) == Role::Primary {
                let at = size(&pair, 0) - 65536;
                pair.write(0, at, 4096, 0x5a);
                assert_eq!(pair.read(0, at, 4096), vec![0x5a; 4096]);
                wrote = Some(at);
            }
            for n in 0..2 {
                if pair.nodes[n].engine.is_none() {
                    pair.start(n);
                }
            }
            pair.cable = true;
            for n in 0..2 {
                let _ = pair.order(n, CONNECT);
            }
            pair.settle();
            let context = format!("{comes:?} after {steps}: {}", pair.dump());
            assert_eq!(size(&pair, 0), size(&pair, 1), "{context}");
            assert_eq!(pair.connection(0), ConnState::Connected, "{context}");
            pair.expect_in_sync();
            ended[usize::from(size(&pair, 0) != before)] += 1;
            let kept = |at: &u64| *at < size(&pair, 0);
            if let (Some(at), Role::Primary) = (wrote.filter(kept), pair.role(0)) {
                assert_eq!(pair.read(0, at, 4096), vec![0x5a; 4096], "{context}");
            }
        }
    }
    assert!(ended.iter().all(|&n| n > 10), "both ends occur: {ended:?}");
}

#[test]
fn what_cannot_be_is_refused_with_a_way_out() {
    let mut pair = half(1, Protocol::C);
    let refused = |pair: &mut Pair, command, kind, words: &str| {
        let refusal = pair.order(0, command).expect_err("it cannot be");
        assert_eq!(refusal.kind, kind, "{refusal:?}");
        let text = format!("{} {}", refusal.reason, refusal.way_out);
        assert!(text.contains(words), "{text}");
    };
    use RefusalKind as K;
    refused(&mut pair, to(4097), K::Other, "multiple");
    refused(&mut pair, to(0), K::Other, "multiple");
    refused(&mut pair, to(DATA * 4), K::State, "carries");
    let smaller = Command::Resize {
        size: Some(HALF / 2),
        force: false,
    };
    refused(&mut pair, smaller, K::State, "--force");
    let mut out = Vec::new();
    let engine = pair.nodes[0].engine.as_mut().expect("it runs");
    let client = engine.open_export(V, "fio".into()).expect("Primary");
    refused(&mut pair, to(HALF / 2), K::InUse, "fio");
    // Whoever it is: a kernel device is no client that could be disconnected.
    refused(
        &mut pair,
        to(HALF / 2),
        K::InUse,
        "`twinblk secondary r0` on",
    );
    // Ordered on the other node, it is the Primary that refuses.
    let refusal = pair.order(1, to(HALF / 2)).expect_err("in use");
    assert!(refusal.reason.contains("fio"), "{refusal:?}");
    let now = pair.now;
    let engine = pair.nodes[0].engine.as_mut().expect("it runs");
    engine.close_export(client, now, &mut out);
    pair.order(0, to(HALF / 2)).expect("nobody holds it");
    pair.settle();
    pair.expect_in_sync();
    // The disk grew, its metadata lie at its old end.
    pair.order(0, GROW).expect("up to where the metadata lie");
    pair.settle();
    pair.grown = 1 << 20;
    refused(&mut pair, GROW, K::State, "move-md RES");
    pair.grown = 0;
    pair.cut();
    refused(&mut pair, GROW, K::State, "connect first");
}

#[test]
fn of_two_sizes_the_larger_counts_where_both_disks_carry_it() {
    assert_eq!(larger_if_possible([5, 9], [9, 9]), 9);
    assert_eq!(larger_if_possible([9, 5], [9, 10]), 9);
    assert_eq!(larger_if_possible([9, 5], [9, 8]), 5);
}

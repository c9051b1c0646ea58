//! Random stories: writes, flushes, cuts, crashes, promotions at any moment. At the end everything
//! is healed and must converge; no write answered under protocol C may be missing, and no flushed
//! write under any protocol on the node that answered it, unless a split brain was resolved against
//! it by order.

use super::pair::Pair;
use crate::command::Command;
use crate::event::{ConnState, Role};
use twinblk_protocol::control::Protocol;

const BLOCKS: usize = 32;

/// Per block: value last answered, and values submitted after it that may or may not be there.
#[derive(Default, Clone)]
struct Oracle {
    answered: Option<u8>,
    maybe: Vec<u8>,
}

fn run(seed: u64, protocol: Protocol) {
    let mut pair = Pair::in_sync(seed, protocol);
    let mut oracle = vec![
        Oracle {
            answered: Some(0),
            maybe: vec![]
        };
        BLOCKS
    ];
    let mut pending: Vec<(u64, usize, u8)> = Vec::new();
    let mut value = 0u8;
    let mut primary = 0;
    for _ in 0..60 {
        for _ in 0..pair.rng() % 40 {
            pair.step();
        }
        pending.retain(
            |&(tag, block, v)| match pair.nodes[primary].replies.get(&tag) {
                Some(Ok(())) => {
                    let o = &mut oracle[block];
                    // Later overlapping writes stay possible; this one is certain now.
                    if let Some(at) = o.maybe.iter().position(|&m| m == v) {
                        o.maybe.drain(..=at);
                        o.answered = Some(v);
                    }
                    false
                }
                Some(Err(_)) => false,
                None => true,
            },
        );
        match pair.rng() % 20 {
            0..=11 => {
                value = value.wrapping_add(1).max(1);
                let block = usize::try_from(pair.rng()).unwrap_or(0) % BLOCKS;
                oracle[block].maybe.push(value);
                let tag = pair.submit_write(primary, block as u64 * 4096, 4096, value);
                pending.push((tag, block, value));
            }
            12 | 13 => {
                let kind = crate::input::RequestKind::Flush;
                pair.submit(primary, kind, 0, &[], 0, false);
            }
            14 | 15 => pair.cut(),
            16 | 17 => pair.cable = true,
            18 => {
                // The Secondary dies and returns.
                pair.crash(1 - primary);
                pair.start(1 - primary);
            }
            _ => {
                // A planned switch-over while connected and in sync.
                pair.cable = true;
                pair.settle();
                pair.expect_in_sync();
                pending.clear();
                for o in &mut oracle {
                    if let Some(&last) = o.maybe.last() {
                        o.answered = Some(last);
                    }
                    o.maybe.clear();
                }
                pair.order(primary, Command::Secondary).expect("no clients");
                pair.order(1 - primary, Command::Primary { force: false })
                    .expect("in sync");
                primary = 1 - primary;
            }
        }
    }
    // Sometimes the end is a power cut of the Primary after everything was in sync.
    pair.cable = true;
    pair.settle();
    let crash = pair.rng().is_multiple_of(2);
    if crash {
        pair.crash(primary);
        pair.order(1 - primary, Command::Primary { force: false })
            .unwrap_or_else(|e| panic!("seed {seed}: {e:?} {}", pair.dump()));
        pair.start(primary);
        pair.settle();
    }
    assert_eq!(
        pair.connection(0),
        ConnState::Connected,
        "seed {seed} {}",
        pair.dump()
    );
    pair.expect_in_sync();
    let now = (0..2)
        .find(|&n| pair.role(n) == Role::Primary)
        .expect("somebody is Primary");
    for (block, o) in oracle.iter().enumerate() {
        let data = pair.read(now, block as u64 * 4096, 4096);
        assert!(
            data.iter().all(|&b| b == data[0]),
            "seed {seed}: block {block} is torn"
        );
        let ok = o.answered == Some(data[0]) || o.maybe.contains(&data[0]);
        assert!(
            ok,
            "seed {seed} {protocol:?}: block {block} holds {} but {:?} was answered, {:?} possible",
            data[0], o.answered, o.maybe
        );
    }
}

#[test]
fn random_stories_converge_and_lose_nothing() {
    for seed in 0..60 {
        for protocol in [Protocol::A, Protocol::B, Protocol::C] {
            run(seed, protocol);
        }
    }
}

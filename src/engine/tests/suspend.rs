//! Suspended I/O: nothing is answered, nothing is lost, and there is always a way out.

use super::pair::Pair;
use crate::command::{Command, RefusalKind};
use crate::event::{ConnState, DiskState, Role};
use crate::input::RequestKind;
use crate::suspend::Reason;
use twinblk_protocol::control::Protocol;

/// Requests of every kind that arrive or are under way while I/O is suspended.
fn requests(pair: &mut Pair) -> Vec<u64> {
    vec![
        pair.submit_write(0, 0, 4096, 3),
        pair.submit(0, RequestKind::Flush, 0, &[], 0, false),
        pair.submit(0, RequestKind::Trim, 65536, &[], 8192, false),
        pair.submit(0, RequestKind::Read, 131_072, &[], 4096, false),
        pair.submit_write(0, 0, 4096, 4),
    ]
}

fn is_answered(pair: &Pair, tag: u64) -> bool {
    pair.nodes[0].replies.contains_key(&tag)
}

#[test]
fn what_arrives_waits_and_goes_on() {
    for seed in 0..20 {
        let mut pair = Pair::in_sync(seed, Protocol::C);
        let early = requests(&mut pair);
        for _ in 0..pair.rng() % 12 {
            pair.step();
        }
        pair.order(0, Command::SuspendIo).expect("it may");
        let before = early.iter().filter(|&&t| is_answered(&pair, t)).count();
        let late = requests(&mut pair);
        pair.settle();
        let reads = [early[3]];
        let after = early.iter().filter(|&&t| is_answered(&pair, t)).count();
        let read = usize::from(!is_answered(&pair, reads[0]));
        assert!(
            after <= before + 1 - read,
            "only a read ends: {}",
            pair.dump()
        );
        assert!(
            !late.iter().any(|&t| is_answered(&pair, t)),
            "{}",
            pair.dump()
        );
        assert!(pair.status(0).suspended_for.has(Reason::User));
        assert_eq!(pair.status(0).suspended_for.words(), "user");
        pair.order(0, Command::ResumeIo).expect("it may");
        for tag in early.into_iter().chain(late) {
            pair.wait_reply(0, tag).expect("it is carried out");
        }
        pair.settle();
        pair.expect_in_sync();
        assert_eq!(pair.content(1)[0], 4);
    }
}

#[test]
fn a_suspended_primary_may_lose_and_meet_its_peer() {
    for seed in 0..20 {
        let mut pair = Pair::in_sync(seed, Protocol::C);
        let tags = requests(&mut pair);
        for _ in 0..pair.rng() % 12 {
            pair.step();
        }
        pair.order(0, Command::SuspendIo).expect("it may");
        pair.cut();
        pair.settle();
        pair.cable = true;
        pair.settle();
        // A resync may wait for a block that a waiting write holds.
        let connection = pair.connection(0);
        assert_eq!(connection, ConnState::Connected, "{}", pair.dump());
        pair.order(0, Command::ResumeIo).expect("it may");
        for tag in tags {
            pair.wait_reply(0, tag).expect("it is carried out");
        }
        pair.settle();
        pair.expect_in_sync();
        assert_eq!(pair.content(1)[0], 4);
    }
}

#[test]
fn a_suspended_primary_is_demoted_by_force_only() {
    for seed in 0..20 {
        let mut pair = Pair::in_sync(seed, Protocol::C);
        let tags = requests(&mut pair);
        for _ in 0..pair.rng() % 12 {
            pair.step();
        }
        pair.order(0, Command::SuspendIo).expect("it may");
        pair.settle();
        let done = tags.iter().filter(|&&t| is_answered(&pair, t)).count();
        let refusal = pair
            .order(0, Command::Secondary)
            .expect_err("it is suspended");
        assert_eq!(refusal.kind, RefusalKind::State);
        assert!(refusal.way_out.contains("--force"), "{refusal:?}");
        pair.order(0, Command::SecondaryByForce).expect("by force");
        assert_eq!(pair.role(0), Role::Secondary);
        for (i, &tag) in tags.iter().enumerate() {
            let answer = pair.wait_reply(0, tag);
            let read = i == 3;
            assert!(answer.is_err() || read || i < tags.len() && done > 0, "{i}");
        }
        let errors = tags
            .iter()
            .filter(|t| pair.nodes[0].replies[t].is_err())
            .count();
        assert!(errors + done >= tags.len(), "{}", pair.dump());
        assert!(!pair.status(0).suspended_for.any());
        pair.settle();
        pair.order(1, Command::Primary { force: false })
            .expect("it may");
        pair.settle();
        assert_eq!(pair.disk(0), DiskState::UpToDate);
    }
}

#[test]
fn down_by_force_ends_a_suspension_with_errors() {
    let mut pair = Pair::in_sync(3, Protocol::C);
    pair.order(0, Command::SuspendIo).expect("it may");
    let tags = requests(&mut pair);
    pair.order(0, Command::Stop { force: true })
        .expect("by force");
    assert!(pair.nodes[0].stopped);
    for tag in tags {
        assert!(pair.nodes[0].replies[&tag].is_err(), "{}", pair.dump());
    }
}

#[test]
fn by_force_clients_lose_the_export() {
    let mut pair = Pair::in_sync(3, Protocol::C);
    let engine = pair.nodes[0].engine.as_mut().expect("it runs");
    engine
        .open_export(super::pair::V, "a client".into())
        .expect("it is Primary");
    let refusal = pair.order(0, Command::Secondary).expect_err("it is in use");
    assert_eq!(refusal.kind, RefusalKind::InUse);
    pair.order(0, Command::SecondaryByForce).expect("by force");
    assert_eq!(pair.role(0), Role::Secondary);
    assert_eq!(pair.nodes[0].closed_clients, 1);
    pair.order(0, Command::SecondaryByForce)
        .expect("it is Secondary already");
}

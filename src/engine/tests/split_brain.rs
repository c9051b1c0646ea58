//! Split brains between two engines: found on every way into one, resolved by each policy, and by none.

use super::pair::{Pair, V};
use crate::command::Command;
use crate::config::Options;
use crate::event::{ConnState, Role};
use crate::handler::{HandlerKind, HandlerSet};
use crate::split_brain::{AfterSb0Pri, AfterSb1Pri, AfterSb2Pri, Policies, RrConflict};
use twinblk_protocol::control::Protocol;

const SEEDS: u64 = 4;
const ALL: [Protocol; 3] = [Protocol::A, Protocol::B, Protocol::C];

pub(super) fn connect() -> Command {
    Command::Connect {
        peer: None,
        discard_my_data: false,
        dry_run: false,
    }
}

fn handlers() -> HandlerSet {
    // Those that tell of it; none that a resync waits for.
    [
        HandlerKind::InitialSplitBrain,
        HandlerKind::SplitBrain,
        HandlerKind::PriLost,
        HandlerKind::PriLostAfterSb,
    ]
    .into_iter()
    .fold(HandlerSet::default(), HandlerSet::with)
}

/// Both in sync, alpha Primary, under these policies.
pub(super) fn in_sync(seed: u64, protocol: Protocol, policies: Policies) -> Pair {
    let mut pair = Pair::in_sync(seed, protocol);
    pair.write(0, 0, 65_536, 1);
    pair.flush(0);
    let options = Options {
        policies,
        handlers: handlers(),
        ..pair.options.clone()
    };
    pair.options = options.clone();
    for n in 0..2 {
        let order = Command::SetOptions(Box::new(options.clone()));
        pair.order(n, order).expect("options are taken");
    }
    pair.settle();
    pair
}

/// Alpha writes one block, bravo, promoted while apart, two.
pub(super) fn part(pair: &mut Pair) {
    pair.cut();
    pair.settle();
    pair.order(1, Command::Primary { force: false })
        .expect("alone");
    pair.write(0, 0, 4096, 0xaa);
    pair.write(1, 8192, 8192, 0xbb);
    pair.flush(0);
    pair.flush(1);
}

pub(super) fn meet(pair: &mut Pair) {
    pair.cable = true;
    pair.settle();
}

fn names(pair: &Pair, n: usize) -> Vec<&'static str> {
    pair.nodes[n].handlers.iter().map(|h| h.1.name()).collect()
}

/// In step again, with what `winner` wrote and nothing else.
pub(super) fn expect_winner(pair: &Pair, winner: usize) {
    for n in 0..2 {
        assert_eq!(pair.connection(n), ConnState::Connected, "{}", pair.dump());
        assert_eq!(pair.out_of_sync(n), 0, "{}", pair.dump());
        let content = pair.content(n);
        let found = (content[0], content[8192], content[16_384]);
        let expected = if winner == 0 {
            (0xaa, 1, 1)
        } else {
            (1, 0xbb, 1)
        };
        assert_eq!(found, expected, "{}", pair.dump());
    }
}

fn expect_parted(pair: &Pair) {
    for n in 0..2 {
        assert_eq!(pair.connection(n), ConnState::StandAlone, "{}", pair.dump());
        let peer = &pair.status(n).peers[0];
        assert!(peer.reason.contains("split brain"), "{}", peer.reason);
        let split = peer.split_brain.as_ref().expect("told by status");
        let volume = &split.volumes[0];
        let (here, there) = (volume.here.changed, volume.there.changed);
        let (alpha, bravo) = if n == 0 { (here, there) } else { (there, here) };
        assert!(alpha >= 4096 && bravo >= 4096, "{split:?}");
    }
}

pub(super) fn zero(zero_primaries: AfterSb0Pri) -> Policies {
    Policies {
        zero_primaries,
        ..Policies::default()
    }
}

#[test]
fn without_a_primary_each_policy_picks_its_victim() {
    use AfterSb0Pri as P;
    let node = |n| P::DiscardNode(crate::ids::NodeId(n));
    // Alpha was Primary when they parted, and has changed less.
    let rows = [
        (P::DiscardYoungerPrimary, 0),
        (P::DiscardOlderPrimary, 1),
        (P::DiscardLeastChanges, 1),
        (node(0), 1),
        (node(1), 0),
    ];
    for (policy, winner) in rows {
        for seed in 0..SEEDS {
            for protocol in ALL {
                let mut pair = in_sync(seed, protocol, zero(policy));
                part(&mut pair);
                for n in 0..2 {
                    pair.order(n, Command::Secondary).expect("no clients");
                }
                meet(&mut pair);
                expect_winner(&pair, winner);
                for n in 0..2 {
                    assert_eq!(names(&pair, n), ["initial-split-brain"], "{policy:?}");
                }
            }
        }
    }
}

#[test]
fn zero_changes_resolves_only_where_nothing_is_lost() {
    let policies = zero(AfterSb0Pri::DiscardZeroChanges);
    let mut pair = in_sync(1, Protocol::C, policies);
    part(&mut pair);
    for n in 0..2 {
        pair.order(n, Command::Secondary).expect("no clients");
    }
    meet(&mut pair);
    expect_parted(&pair);
    // Bravo was left behind and is declared current; it writes nothing.
    let mut pair = in_sync(2, Protocol::C, policies);
    pair.order(0, Command::Disconnect { peer: None })
        .expect("disconnect");
    pair.write(0, 0, 4096, 0xaa);
    pair.order(0, Command::Secondary).expect("no clients");
    pair.order(1, Command::Primary { force: true })
        .expect("forced");
    pair.order(1, Command::Secondary).expect("no clients");
    assert_eq!(pair.out_of_sync(1), 0, "{}", pair.dump());
    pair.order(0, connect()).expect("connect");
    pair.order(1, connect()).expect("connect");
    pair.settle();
    expect_winner(&pair, 0);
    assert!(pair.logged(0, "discard-zero-changes"), "{}", pair.dump());
}

#[test]
fn nothing_is_discarded_under_disconnect() {
    for seed in 0..SEEDS {
        for primaries in 0..3 {
            let mut pair = in_sync(seed, Protocol::C, Policies::default());
            part(&mut pair);
            for n in primaries..2 {
                pair.order(n, Command::Secondary).expect("no clients");
            }
            let before = [0, 1].map(|n| pair.content(n).to_vec());
            meet(&mut pair);
            expect_parted(&pair);
            for (n, before) in before.iter().enumerate() {
                assert!(pair.content(n) == before, "nothing was overwritten");
                assert_eq!(names(&pair, n), ["initial-split-brain", "split-brain"]);
            }
        }
    }
}

pub(super) fn one(one_primary: AfterSb1Pri, zero_primaries: AfterSb0Pri) -> Policies {
    Policies {
        zero_primaries,
        one_primary,
        ..Policies::default()
    }
}

/// Alpha is Primary, bravo is not any more.
pub(super) fn one_primary(seed: u64, policies: Policies, held: bool) -> Pair {
    let mut pair = in_sync(seed, Protocol::C, policies);
    part(&mut pair);
    pair.order(1, Command::Secondary).expect("no clients");
    if held {
        let engine = pair.nodes[0].engine.as_mut().expect("it runs");
        engine.open_export(V, "a client".into()).expect("Primary");
    }
    meet(&mut pair);
    pair
}

#[test]
fn with_one_primary_the_secondary_gives_way() {
    use AfterSb0Pri::{DiscardLeastChanges, DiscardYoungerPrimary};
    for seed in 0..SEEDS {
        for held in [false, true] {
            let policies = one(AfterSb1Pri::DiscardSecondary, AfterSb0Pri::Disconnect);
            let pair = one_primary(seed, policies, held);
            expect_winner(&pair, 0);
            assert_eq!(pair.role(0), Role::Primary);
            let policies = one(AfterSb1Pri::Consensus, DiscardYoungerPrimary);
            expect_winner(&one_primary(seed, policies, held), 0);
            // The policy would choose the Primary: no consensus.
            let policies = one(AfterSb1Pri::Consensus, DiscardLeastChanges);
            expect_parted(&one_primary(seed, policies, held));
        }
    }
}

#[test]
fn a_primary_that_gives_way_is_demoted_first() {
    for seed in 0..SEEDS {
        for policy in [AfterSb1Pri::CallPriLostAfterSb, AfterSb1Pri::ViolentlyAs0p] {
            let policies = one(policy, AfterSb0Pri::DiscardLeastChanges);
            let pair = one_primary(seed, policies, false);
            expect_winner(&pair, 1);
            assert_eq!(pair.role(0), Role::Secondary);
            assert_eq!(pair.nodes[0].closed_clients, 0, "there was nobody");
            assert_eq!(names(&pair, 0), ["initial-split-brain"]);
        }
    }
}

#[test]
fn a_primary_in_use_calls_its_handler_and_keeps_its_data() {
    for seed in 0..SEEDS {
        let policies = one(
            AfterSb1Pri::CallPriLostAfterSb,
            AfterSb0Pri::DiscardLeastChanges,
        );
        let pair = one_primary(seed, policies, true);
        expect_parted(&pair);
        assert_eq!(pair.role(0), Role::Primary);
        assert_eq!(
            names(&pair, 0),
            ["initial-split-brain", "split-brain", "pri-lost-after-sb"]
        );
        assert_eq!(names(&pair, 1), ["initial-split-brain", "split-brain"]);
    }
}

#[test]
fn violently_the_clients_get_errors_before_anything_is_overwritten() {
    for seed in 0..SEEDS {
        let policies = one(AfterSb1Pri::ViolentlyAs0p, AfterSb0Pri::DiscardLeastChanges);
        let pair = one_primary(seed, policies, true);
        assert_eq!(pair.nodes[0].closed_clients, 1, "{}", pair.dump());
        assert_eq!(pair.role(0), Role::Secondary);
        expect_winner(&pair, 1);
    }
}

#[test]
fn with_two_primaries_one_is_demoted_and_the_other_serves_on() {
    for seed in 0..SEEDS {
        for two_primaries in [AfterSb2Pri::CallPriLostAfterSb, AfterSb2Pri::ViolentlyAs0p] {
            for held in [false, true] {
                // What holds with one Primary does not count: the victim has been chosen.
                let policies = Policies {
                    zero_primaries: AfterSb0Pri::DiscardYoungerPrimary,
                    two_primaries,
                    ..Policies::default()
                };
                let mut pair = in_sync(seed, Protocol::C, policies);
                part(&mut pair);
                for n in 0..2 {
                    let engine = pair.nodes[n].engine.as_mut().expect("it runs");
                    if held {
                        engine.open_export(V, "a client".into()).expect("Primary");
                    }
                }
                meet(&mut pair);
                if held && two_primaries == AfterSb2Pri::CallPriLostAfterSb {
                    expect_parted(&pair);
                    assert!(names(&pair, 1).contains(&"pri-lost-after-sb"));
                    continue;
                }
                expect_winner(&pair, 0);
                let roles = (pair.role(0), pair.role(1));
                assert_eq!(roles, (Role::Primary, Role::Secondary));
                assert_eq!(pair.nodes[1].closed_clients, u32::from(held));
            }
        }
    }
}

#[test]
fn requests_of_an_evicted_client_are_answered() {
    let mut met = 0;
    for seed in 0..40 {
        let policies = one(AfterSb1Pri::ViolentlyAs0p, AfterSb0Pri::DiscardLeastChanges);
        let mut pair = in_sync(seed, Protocol::C, policies);
        part(&mut pair);
        pair.order(1, Command::Secondary).expect("no clients");
        let engine = pair.nodes[0].engine.as_mut().expect("it runs");
        engine.open_export(V, "a client".into()).expect("Primary");
        pair.cable = true;
        let (mut tags, mut late) = (Vec::new(), Vec::new());
        for i in 0..60 {
            pair.step();
            if pair.role(0) == Role::Primary {
                let tag = pair.submit_write(0, 65_536 * (i % 3), 4096, 0xcc);
                tags.push(tag);
                if pair.nodes[0].closed_clients > 0 {
                    late.push(tag);
                }
            }
        }
        pair.settle();
        // What is confirmed now would be overwritten.
        met += late.len();
        for tag in late {
            assert!(pair.nodes[0].replies[&tag].is_err(), "{}", pair.dump());
        }
        for tag in tags {
            assert!(pair.nodes[0].replies.contains_key(&tag), "{}", pair.dump());
        }
        assert_eq!(pair.content(0), pair.content(1), "{}", pair.dump());
    }
    assert!(met > 0, "some came while it was being demoted");
}

#[test]
fn who_was_primary_follows_a_change_of_roles_while_connected() {
    for seed in 0..SEEDS {
        let mut pair = in_sync(seed, Protocol::C, zero(AfterSb0Pri::DiscardYoungerPrimary));
        pair.order(0, Command::Secondary).expect("no clients");
        pair.order(1, Command::Primary { force: false })
            .expect("in step");
        pair.settle();
        pair.cut();
        pair.settle();
        pair.order(0, Command::Primary { force: false })
            .expect("alone");
        pair.write(0, 0, 4096, 0xaa);
        pair.write(1, 8192, 8192, 0xbb);
        for n in 0..2 {
            pair.order(n, Command::Secondary).expect("no clients");
        }
        // Bravo has changed more, so without the flags it would be kept too: alpha is made to.
        pair.order(0, Command::Primary { force: false })
            .expect("alone");
        pair.write(0, 131_072, 65_536, 1);
        pair.order(0, Command::Secondary).expect("no clients");
        meet(&mut pair);
        expect_winner(&pair, 1);
    }
}

#[test]
fn a_promise_ends_with_the_next_promotion() {
    let policies = Policies {
        zero_primaries: AfterSb0Pri::DiscardYoungerPrimary,
        two_primaries: AfterSb2Pri::CallPriLostAfterSb,
        ..Policies::default()
    };
    for seed in 0..SEEDS {
        let mut pair = in_sync(seed, Protocol::C, policies);
        part(&mut pair);
        pair.cable = true;
        while !pair.logged(1, "giving way") {
            if !pair.step() {
                pair.pass_time();
            }
        }
        pair.cut();
        while pair.role(1) == Role::Primary {
            assert!(pair.step(), "{}", pair.dump());
        }
        pair.order(1, Command::Primary { force: false })
            .expect("alone");
        pair.write(1, 8192, 8192, 0xbb);
        // Now only after-sb-1pri could give it up, and that is not set.
        pair.order(1, Command::Secondary).expect("no clients");
        meet(&mut pair);
        expect_parted(&pair);
        assert_eq!(pair.content(1)[8192], 0xbb);
    }
}

#[test]
fn policies_that_differ_are_no_ground_to_connect_on() {
    let mut pair = in_sync(5, Protocol::C, zero(AfterSb0Pri::DiscardLeastChanges));
    part(&mut pair);
    for n in 0..2 {
        pair.order(n, Command::Secondary).expect("no clients");
    }
    let options = Options {
        policies: zero(AfterSb0Pri::DiscardYoungerPrimary),
        ..pair.options.clone()
    };
    pair.order(1, Command::SetOptions(Box::new(options)))
        .expect("options");
    pair.cable = true;
    for _ in 0..400 {
        pair.step();
    }
    assert!(
        pair.logged(
            1,
            "after-sb-0pri is discard-younger-primary here and discard-least-changes there"
        ),
        "{}",
        pair.dump()
    );
    assert_eq!((pair.content(0)[0], pair.content(1)[8192]), (0xaa, 0xbb));
}

// Ways into a split brain.

#[test]
fn found_after_a_power_cut_of_one() {
    for seed in 0..SEEDS {
        for protocol in ALL {
            let mut pair = in_sync(seed, protocol, Policies::default());
            pair.cable = false;
            pair.crash(0);
            pair.order(1, Command::Primary { force: false })
                .expect("alone");
            pair.write(1, 8192, 8192, 0xbb);
            pair.start(0);
            pair.settle();
            pair.order(0, Command::Primary { force: false })
                .expect("alone");
            pair.write(0, 0, 4096, 0xaa);
            pair.flush(0);
            pair.crash(0);
            pair.start(0);
            pair.settle();
            pair.order(1, Command::Secondary).expect("no clients");
            meet(&mut pair);
            expect_parted(&pair);
            let split = pair.status(0).peers[0].split_brain.clone().unwrap();
            let volume = &split.volumes[0];
            assert!(volume.here.parted_as_primary, "alpha was Primary then");
            assert!(!volume.there.parted_as_primary, "bravo was not");
        }
    }
}

#[test]
fn found_three_generations_later() {
    for seed in 0..SEEDS {
        let mut pair = in_sync(seed, Protocol::C, zero(AfterSb0Pri::DiscardLeastChanges));
        part(&mut pair);
        for round in 0..3 {
            for n in 0..2 {
                pair.order(n, Command::Secondary).expect("no clients");
                pair.crash(n);
                pair.start(n);
                pair.settle();
                pair.order(n, Command::Primary { force: false })
                    .expect("alone");
                pair.write(n, 8192 * n as u64, 4096, 0xaa + 0x11 * n as u8);
                pair.flush(n);
                assert_eq!(pair.role(n), Role::Primary, "round {round}");
            }
        }
        for n in 0..2 {
            pair.order(n, Command::Secondary).expect("no clients");
        }
        meet(&mut pair);
        expect_winner(&pair, 1);
    }
}

#[test]
fn the_victim_stays_the_same_when_the_start_takes_more_than_one_attempt() {
    use AfterSb0Pri as P;
    for policy in [
        P::DiscardYoungerPrimary,
        P::DiscardOlderPrimary,
        P::DiscardLeastChanges,
    ] {
        for seed in (0..60).step_by(3) {
            let mut pair = in_sync(seed, Protocol::C, zero(policy));
            part(&mut pair);
            for n in 0..2 {
                pair.order(n, Command::Secondary).expect("no clients");
            }
            pair.cable = true;
            while pair.connection(0) != ConnState::Connected {
                if !pair.step() {
                    pair.pass_time();
                }
            }
            for _ in 0..seed {
                pair.step();
            }
            pair.cut();
            pair.settle();
            meet(&mut pair);
            expect_winner(&pair, usize::from(policy != P::DiscardYoungerPrimary));
        }
    }
}

// Roles against the direction of a resync.

/// Bravo is behind, and is declared current while alpha is away; its clients use it.
fn conflict(seed: u64, policy: RrConflict, held: bool) -> Pair {
    let policies = Policies {
        conflict: policy,
        ..Policies::default()
    };
    let mut pair = in_sync(seed, Protocol::C, policies);
    pair.cut();
    pair.settle();
    pair.write(0, 0, 4096, 0xaa);
    pair.order(0, Command::Secondary).expect("no clients");
    pair.order(1, Command::Primary { force: false })
        .expect("alone");
    if held {
        let engine = pair.nodes[1].engine.as_mut().expect("it runs");
        engine.open_export(V, "a client".into()).expect("Primary");
    }
    pair.cable = true;
    pair
}

#[test]
fn a_primary_that_is_behind_goes_by_rr_conflict() {
    for seed in 0..SEEDS {
        for held in [false, true] {
            let mut pair = conflict(seed, RrConflict::Disconnect, held);
            pair.settle();
            assert_eq!(pair.connection(1), ConnState::StandAlone, "{}", pair.dump());
            assert_eq!(pair.content(1)[0], 1);
            assert_eq!(names(&pair, 1), [""; 0], "no split brain");

            let mut pair = conflict(seed, RrConflict::CallPriLost, held);
            pair.settle();
            let called = if held { vec!["pri-lost"] } else { Vec::new() };
            assert_eq!(names(&pair, 1), called);
            if held {
                assert_eq!(pair.connection(1), ConnState::StandAlone, "{}", pair.dump());
                assert_eq!(pair.content(1)[0], 1);
            } else {
                expect_winner(&pair, 0);
            }

            let mut pair = conflict(seed, RrConflict::Violently, held);
            pair.settle();
            expect_winner(&pair, 0);
            assert_eq!(pair.nodes[1].closed_clients, u32::from(held));
        }
    }
}

#[test]
fn retry_connect_goes_on_until_somebody_demotes() {
    let mut pair = conflict(3, RrConflict::RetryConnect, false);
    for _ in 0..2000 {
        pair.step();
    }
    assert_ne!(pair.connection(1), ConnState::StandAlone, "{}", pair.dump());
    let told = pair.nodes[1]
        .log
        .iter()
        .filter(|l| l.contains("Incident: connection refused (role"));
    assert!(told.count() <= 3, "told once: {}", pair.dump());
    pair.order_async(1, Command::Secondary);
    pair.settle();
    expect_winner(&pair, 0);
}

// Saving what is given up.

pub(super) fn saved(pair: &mut Pair, n: usize) -> crate::save_discarded::SaveDiscarded {
    for _ in 0..10_000 {
        if let Some(request) = pair.nodes[n].saves.pop() {
            return request;
        }
        if !pair.step() {
            pair.pass_time();
        }
    }
    panic!("nothing is saved: {}", pair.dump());
}

fn bits(words: &[u64]) -> Vec<usize> {
    let all = words.len() * 64;
    (0..all)
        .filter(|b| words[b / 64] >> (b % 64) & 1 == 1)
        .collect()
}

/// Bravo is to give up its copy, and is about to save it.
fn saving(seed: u64) -> (Pair, crate::save_discarded::SaveDiscarded) {
    let mut pair = in_sync(seed, Protocol::C, Policies::default());
    part(&mut pair);
    pair.order(1, Command::Secondary).expect("no clients");
    let order = Command::DiscardSaving {
        peer: None,
        file: "/saved".into(),
    };
    pair.order(1, order).expect("taken");
    pair.cable = true;
    let request = saved(&mut pair, 1);
    (pair, request)
}

#[test]
fn what_is_given_up_is_saved_before_it_is_overwritten() {
    for seed in 0..20 {
        let (mut pair, request) = saving(seed);
        assert_eq!(request.file.as_deref(), Some("/saved"));
        assert_eq!(bits(&request.own), [2, 3]);
        assert_eq!(bits(&request.all), [0, 2, 3], "and what alpha has written");
        assert_eq!(request.here.changed, 8192);
        assert_ne!(request.here.current, request.there.current);
        // However long it takes: alpha goes on, and bravo stays as it is.
        for i in 0..50 {
            pair.write(0, 131_072 + 4096 * (i % 4), 4096, 0xcc);
            while pair.step() {}
            pair.pass_time();
        }
        assert_eq!(pair.connection(1), ConnState::Connected, "{}", pair.dump());
        assert_eq!(pair.content(1)[8192], 0xbb);
        assert_eq!(pair.content(1)[0], 1);
        let id = request.id;
        let result = Ok("/saved".into());
        pair.feed(1, crate::input::Input::DiscardedSaved { id, result });
        pair.settle();
        expect_winner(&pair, 0);
        pair.expect_in_sync();
    }
}

#[test]
fn if_it_cannot_be_saved_nothing_is_overwritten() {
    for seed in 0..20 {
        let (mut pair, request) = saving(seed);
        let id = request.id;
        let result = Err("no space left on device".into());
        pair.feed(1, crate::input::Input::DiscardedSaved { id, result });
        pair.settle();
        assert_eq!(pair.connection(1), ConnState::StandAlone, "{}", pair.dump());
        assert!(pair.logged(1, "no space left on device"));
        assert_eq!((pair.content(1)[0], pair.content(1)[8192]), (1, 0xbb));
        assert_eq!(pair.out_of_sync(1), 8192, "what it has changed itself");
        assert_eq!(pair.disk(1), crate::event::DiskState::UpToDate);
        pair.order(1, connect()).expect("without an order");
        pair.settle();
        expect_parted(&pair);
    }
}

#[test]
fn a_lost_link_cancels_the_saving() {
    for seed in 0..20 {
        let (mut pair, request) = saving(seed);
        pair.cut();
        assert_eq!(pair.nodes[1].cancelled, [request.id]);
        let (id, result) = (request.id, Ok("/saved".into()));
        pair.feed(1, crate::input::Input::DiscardedSaved { id, result });
        pair.settle();
        meet(&mut pair);
        expect_parted(&pair);
        assert!(pair.logged(1, "remove it"), "{}", pair.dump());
        assert_eq!(pair.out_of_sync(1), 8192);
    }
}

#[test]
fn a_policy_saves_where_a_directory_is_set() {
    let mut pair = in_sync(7, Protocol::C, zero(AfterSb0Pri::DiscardYoungerPrimary));
    let options = Options {
        save_discarded: true,
        ..pair.options.clone()
    };
    pair.order(1, Command::SetOptions(Box::new(options)))
        .expect("options");
    part(&mut pair);
    for n in 0..2 {
        pair.order(n, Command::Secondary).expect("no clients");
    }
    pair.cable = true;
    let request = saved(&mut pair, 1);
    assert_eq!(request.file, None);
    let id = request.id;
    let result = Ok("/dir/file".into());
    pair.feed(1, crate::input::Input::DiscardedSaved { id, result });
    pair.settle();
    expect_winner(&pair, 0);
}

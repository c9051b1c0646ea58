//! Fencing: what may be answered when a peer is lost, what each exit code of `fence-peer` does, and who
//! may be promoted.

use super::pair::{CONNECT, Pair};
use crate::command::{Command, RefusalKind};
use crate::event::{ConnState, DiskState, Role};
use crate::fencing::Fencing;
use crate::handler::{HandlerKind, HandlerResult, HandlerSet};
use crate::input::Input;
use crate::suspend::Reason;
use twinblk_protocol::control::Protocol;

const PROMOTE: Command = Command::Primary { force: false };

pub(super) fn all_handlers() -> HandlerSet {
    let none = HandlerSet::default();
    HandlerKind::ALL.into_iter().fold(none, HandlerSet::with)
}

pub(super) fn pair(seed: u64, fencing: Fencing) -> Pair {
    let mut pair = Pair::in_sync(seed, Protocol::C);
    pair.change_options(|options| {
        options.fencing = fencing;
        options.handlers = all_handlers();
    });
    answer_all_but_fence(&mut pair);
    pair
}

/// Handlers nobody asks about end well.
pub(super) fn answer_all_but_fence(pair: &mut Pair) {
    for n in 0..2 {
        let asked = core::mem::take(&mut pair.nodes[n].handlers);
        for (id, kind) in asked {
            if kind == HandlerKind::FencePeer {
                pair.nodes[n].handlers.push((id, kind));
            } else {
                let result = HandlerResult::Exited(0);
                pair.feed(n, Input::HandlerDone { id, result });
            }
        }
    }
}

pub(super) fn is_asked(pair: &Pair, n: usize) -> bool {
    let fences = |&(_, kind): &(_, HandlerKind)| kind == HandlerKind::FencePeer;
    pair.nodes[n].handlers.iter().any(fences)
}

/// `fence-peer` ends on a node.
pub(super) fn fence(pair: &mut Pair, n: usize, result: HandlerResult) {
    let at = pair.nodes[n]
        .handlers
        .iter()
        .position(|&(_, kind)| kind == HandlerKind::FencePeer)
        .unwrap_or_else(|| panic!("fence-peer was not called: {}", pair.dump()));
    let (id, _) = pair.nodes[n].handlers.remove(at);
    pair.feed(n, Input::HandlerDone { id, result });
    settle(pair);
}

pub(super) fn settle(pair: &mut Pair) {
    pair.settle();
    answer_all_but_fence(pair);
    pair.settle();
}

fn peer_disk(pair: &Pair, n: usize) -> DiskState {
    pair.status(n).peers[0].volumes[0].peer_disk
}

pub(super) fn is_frozen(pair: &Pair, n: usize) -> bool {
    pair.status(n).suspended_for.has(Reason::Fencing)
}

/// Writes are under way when the cable is cut.
pub(super) fn cut_with_writes(pair: &mut Pair) -> Vec<u64> {
    let tags: Vec<u64> = (0..4)
        .map(|i| pair.submit_write(0, i * 65536, 4096, 7))
        .collect();
    for _ in 0..pair.rng() % 20 {
        pair.step();
    }
    pair.cut();
    settle(pair);
    tags
}

pub(super) fn answered(pair: &Pair, tags: &[u64]) -> usize {
    let there = |tag: &&u64| pair.nodes[0].replies.contains_key(tag);
    tags.iter().filter(there).count()
}

pub(super) fn mend(pair: &mut Pair) {
    pair.cable = true;
    settle(pair);
}

#[test]
fn no_write_a_lost_peer_may_lack_is_answered_before_it_is_fenced() {
    let mut frozen = 0;
    for seed in 0..40 {
        let mut pair = pair(seed, Fencing::ResourceAndStonith);
        let before = pair.status(0).volumes[0].current_uuid & !1;
        let tags = cut_with_writes(&mut pair);
        assert!(is_frozen(&pair, 0) && is_asked(&pair, 0), "{}", pair.dump());
        for tag in tags
            .iter()
            .filter(|t| pair.nodes[0].replies.contains_key(t))
        {
            // Answered before the cut: the peer has it.
            let at = usize::try_from((tag - tags[0]) * 65536).expect("small");
            assert_eq!(pair.content(1)[at], 7, "seed {seed}: {}", pair.dump());
        }
        frozen += tags.len() - answered(&pair, &tags);
        let now = pair.status(0).volumes[0].current_uuid & !1;
        assert_eq!(now, before, "no generation begins: {}", pair.dump());
        let late = pair.submit_write(0, 1 << 20, 4096, 8);
        settle(&mut pair);
        assert!(!pair.nodes[0].replies.contains_key(&late), "it waits");
        fence(&mut pair, 0, HandlerResult::Exited(4));
        assert!(!is_frozen(&pair, 0));
        assert_eq!(answered(&pair, &tags), 4, "{}", pair.dump());
        assert_eq!(pair.nodes[0].replies[&late], Ok(()));
        assert_ne!(pair.status(0).volumes[0].current_uuid & !1, before);
        assert_eq!(peer_disk(&pair, 0), DiskState::Outdated);
        mend(&mut pair);
        pair.expect_in_sync();
        for i in 0..4 {
            assert_eq!(pair.content(1)[i * 65536], 7);
        }
    }
    assert!(frozen > 20, "writes were caught: {frozen}");
}

#[test]
fn every_exit_code_has_its_consequence() {
    let thaws = [3, 4, 5, 7];
    for code in [0, 1, 2, 3, 4, 5, 6, 7, 8, 127] {
        let mut pair = pair(9, Fencing::ResourceAndStonith);
        let tags = cut_with_writes(&mut pair);
        fence(&mut pair, 0, HandlerResult::Exited(code));
        assert_eq!(!is_frozen(&pair, 0), thaws.contains(&code), "{code}");
        let disk = match code {
            3 => DiskState::Inconsistent,
            4 | 5 | 7 => DiskState::Outdated,
            _ => DiskState::DUnknown,
        };
        assert_eq!(peer_disk(&pair, 0), disk, "{code}");
        let own = if code == 6 {
            DiskState::Outdated
        } else {
            DiskState::UpToDate
        };
        assert_eq!(pair.disk(0), own, "{code}");
        if thaws.contains(&code) {
            assert_eq!(answered(&pair, &tags), 4, "{code}");
            continue;
        }
        assert!(answered(&pair, &tags) < 4, "{code}: {}", pair.dump());
        pair.order(0, Command::ResumeIo).expect("it may");
        settle(&mut pair);
        assert_eq!(answered(&pair, &tags), 4, "{code}: {}", pair.dump());
        let good = tags.iter().all(|t| pair.nodes[0].replies[t].is_ok());
        assert_eq!(good, code != 6, "another has gone on: {}", pair.dump());
        if code != 6 {
            mend(&mut pair);
            pair.expect_in_sync();
        }
    }
}

#[test]
fn a_broken_handler_leaves_io_frozen_until_the_peer_is_back() {
    let mut pair = pair(4, Fencing::ResourceAndStonith);
    let tags = cut_with_writes(&mut pair);
    fence(&mut pair, 0, HandlerResult::Broken("hung".into()));
    assert!(is_frozen(&pair, 0));
    assert!(pair.logged(0, "resume-io"), "{}", pair.dump());
    mend(&mut pair);
    assert!(!is_frozen(&pair, 0), "{}", pair.dump());
    assert_eq!(answered(&pair, &tags), 4);
    pair.expect_in_sync();
    for i in 0..4 {
        assert_eq!(pair.content(1)[i * 65536], 7);
    }
}

#[test]
fn resource_only_calls_the_handler_and_goes_on() {
    let mut pair = pair(5, Fencing::ResourceOnly);
    let tags = cut_with_writes(&mut pair);
    assert!(!is_frozen(&pair, 0) && is_asked(&pair, 0));
    assert_eq!(answered(&pair, &tags), 4);
    fence(&mut pair, 0, HandlerResult::Exited(1));
    pair.write(0, 0, 4096, 9);
    assert_eq!(peer_disk(&pair, 0), DiskState::DUnknown);
}

#[test]
fn without_fencing_nobody_is_asked() {
    let mut pair = pair(5, Fencing::DontCare);
    cut_with_writes(&mut pair);
    assert!(!is_asked(&pair, 0) && !is_asked(&pair, 1));
    assert_eq!(pair.disk(1), DiskState::UpToDate);
}

#[test]
fn a_peer_that_is_back_first_is_not_fenced() {
    for seed in 0..20 {
        let mut pair = pair(seed, Fencing::ResourceAndStonith);
        let tags = cut_with_writes(&mut pair);
        mend(&mut pair);
        assert!(!is_frozen(&pair, 0), "{}", pair.dump());
        assert_eq!(answered(&pair, &tags), 4, "{}", pair.dump());
        fence(&mut pair, 0, HandlerResult::Exited(6));
        assert_eq!(pair.disk(0), DiskState::UpToDate, "it does not count");
        pair.expect_in_sync();
    }
}

#[test]
fn a_primary_that_crashes_while_frozen_has_begun_nothing_of_its_own() {
    for seed in 0..40 {
        let mut pair = pair(seed, Fencing::ResourceAndStonith);
        cut_with_writes(&mut pair);
        pair.crash(0);
        // Its peer is promoted in its place, when it is known to be off.
        let order = pair.order_async(1, PROMOTE);
        settle(&mut pair);
        fence(&mut pair, 1, HandlerResult::Exited(7));
        assert_eq!(pair.nodes[1].answers[&order].as_ref().map(|_| ()), Ok(()));
        pair.write(1, 0, 4096, 99);
        pair.start(0);
        settle(&mut pair);
        assert_eq!(pair.disk(0), DiskState::Consistent);
        mend(&mut pair);
        pair.expect_in_sync();
        assert_eq!(pair.content(0)[0], 99, "seed {seed}: {}", pair.dump());
    }
}

#[test]
fn a_secondary_that_loses_its_primary_is_promoted_only_when_that_one_is_fenced() {
    for (result, promoted) in [
        (HandlerResult::Exited(3), true),
        (HandlerResult::Exited(4), true),
        (HandlerResult::Exited(7), true),
        (HandlerResult::Exited(5), false),
        (HandlerResult::Exited(6), false),
        (HandlerResult::Exited(1), false),
        (HandlerResult::Broken("hung".into()), false),
    ] {
        let mut pair = pair(3, Fencing::ResourceAndStonith);
        pair.cut();
        settle(&mut pair);
        assert_eq!(pair.disk(1), DiskState::Consistent, "{}", pair.dump());
        let order = pair.order_async(1, PROMOTE);
        settle(&mut pair);
        assert!(is_asked(&pair, 1) && pair.role(1) == Role::Secondary);
        assert!(!pair.nodes[1].answers.contains_key(&order));
        fence(&mut pair, 1, result.clone());
        let answer = pair.nodes[1].answers[&order].clone();
        assert_eq!(answer.is_ok(), promoted, "{result:?}: {answer:?}");
        if promoted {
            assert_eq!(pair.disk(1), DiskState::UpToDate);
            pair.write(1, 0, 4096, 1);
            continue;
        }
        let refusal = answer.expect_err("refused");
        assert_eq!(refusal.kind, RefusalKind::NoUpToDateData, "{refusal:?}");
        let disk = match result {
            HandlerResult::Exited(6) => DiskState::Outdated,
            _ => DiskState::Consistent,
        };
        assert_eq!(pair.disk(1), disk);
        mend(&mut pair);
        assert_eq!(pair.disk(1), DiskState::UpToDate, "{}", pair.dump());
    }
}

/// A switch for the peer's power cannot know that the copy it is to help up is an old one.
#[test]
fn a_copy_that_has_slept_is_not_made_current_by_fencing_the_other() {
    {
        let mut pair = pair(3, Fencing::ResourceAndStonith);
        pair.cut();
        settle(&mut pair);
        fence(&mut pair, 0, HandlerResult::Exited(7));
        pair.crash(1);
        pair.write(0, 0, 4096, 5);
        pair.start(1);
        settle(&mut pair);
        assert_eq!(pair.disk(1), DiskState::Consistent, "{}", pair.dump());
        // Nor is the other, which is well, fenced for it.
        let refusal = pair.order(1, PROMOTE).expect_err("it is old");
        assert!(!is_asked(&pair, 1));
        assert_eq!(refusal.kind, RefusalKind::NoUpToDateData);
        assert!(refusal.way_out.contains("--force"), "{refusal:?}");
        mend(&mut pair);
        pair.expect_in_sync();
        assert_eq!(pair.content(1)[0], 5);
    }
}

#[test]
fn that_a_peer_is_outdated_is_remembered_until_it_is_met() {
    let mut pair = pair(6, Fencing::ResourceAndStonith);
    pair.cut();
    settle(&mut pair);
    fence(&mut pair, 0, HandlerResult::Exited(4));
    pair.write(0, 0, 4096, 5);
    pair.crash(0);
    pair.start(0);
    settle(&mut pair);
    assert_eq!(pair.disk(0), DiskState::UpToDate, "{}", pair.dump());
    assert_eq!(peer_disk(&pair, 0), DiskState::Outdated);
    pair.order(0, PROMOTE).expect("nobody has to be asked");
    assert!(!is_asked(&pair, 0));
    mend(&mut pair);
    pair.expect_in_sync();
    // From here on it may be promoted.
    pair.crash(0);
    pair.start(0);
    pair.cut();
    settle(&mut pair);
    assert_eq!(pair.disk(0), DiskState::Consistent, "{}", pair.dump());
}

#[test]
fn who_leaves_on_purpose_is_outdated_and_needs_no_fencing() {
    for n in 0..2 {
        let mut pair = pair(8, Fencing::ResourceAndStonith);
        pair.order(n, Command::Disconnect { peer: None })
            .expect("it may");
        settle(&mut pair);
        assert_eq!(pair.disk(1), DiskState::Outdated);
        assert!(
            !is_asked(&pair, 0) && !is_frozen(&pair, 0),
            "{}",
            pair.dump()
        );
        assert_eq!(peer_disk(&pair, 0), DiskState::Outdated);
        pair.write(0, 0, 4096, 5);
        let refusal = pair.order(1, PROMOTE).expect_err("it is outdated");
        assert_eq!(refusal.kind, RefusalKind::NoUpToDateData);
        for n in 0..2 {
            pair.order(n, CONNECT).expect("it may");
        }
        settle(&mut pair);
        pair.expect_in_sync();
    }
}

#[test]
fn outdate_is_for_copies_that_nobody_needs() {
    let mut pair = pair(2, Fencing::ResourceAndStonith);
    let refusal = pair.order(0, Command::Outdate).expect_err("it is Primary");
    assert_eq!(refusal.kind, RefusalKind::NoUpToDateData);
    let refusal = pair
        .order(1, Command::Outdate)
        .expect_err("it is connected");
    assert_eq!(refusal.kind, RefusalKind::State);
    pair.cut();
    settle(&mut pair);
    pair.order(1, Command::Outdate).expect("it may");
    assert_eq!(pair.disk(1), DiskState::Outdated);
    pair.crash(1);
    pair.start(1);
    settle(&mut pair);
    assert_eq!(pair.disk(1), DiskState::Outdated, "it is on the disk");
    mend(&mut pair);
    pair.expect_in_sync();
}

/// One end has noticed that the link is dead, the other has not: it takes a ping to tell.
#[test]
fn a_dead_link_does_not_protect_from_outdate() {
    let mut pair = pair(2, Fencing::DontCare);
    pair.crash_quietly(0);
    pair.order(1, Command::Outdate).expect("nobody answers");
    assert_eq!(pair.disk(1), DiskState::Outdated, "{}", pair.dump());
}

#[test]
fn both_cut_apart_and_both_ordered_to_be_primary_are_never_both() {
    for seed in 0..60 {
        let mut pair = pair(seed, Fencing::ResourceAndStonith);
        pair.order(0, Command::Secondary).expect("it may");
        settle(&mut pair);
        pair.cut();
        settle(&mut pair);
        let orders = [0, 1].map(|n| pair.order_async(n, PROMOTE));
        // Each outdates the other, if it can, and tells the truth some time later.
        let first = usize::try_from(seed % 2).expect("small");
        let mut codes = [0; 2];
        for n in [first, 1 - first] {
            codes[n] = match pair.order(1 - n, Command::Outdate) {
                Ok(_) => 4,
                Err(r) if r.kind == RefusalKind::NoUpToDateData => 6,
                Err(r) => panic!("{r:?}"),
            };
            if pair.rng().is_multiple_of(2) {
                fence(&mut pair, n, HandlerResult::Exited(codes[n]));
                codes[n] = 0;
            }
        }
        for (n, code) in codes.into_iter().enumerate().filter(|&(_, code)| code != 0) {
            fence(&mut pair, n, HandlerResult::Exited(code));
        }
        let primaries = (0..2).filter(|&n| pair.role(n) == Role::Primary).count();
        assert!(primaries <= 1, "seed {seed}: {}", pair.dump());
        for (n, order) in orders.into_iter().enumerate() {
            assert!(
                pair.nodes[n].answers.contains_key(&order),
                "{}",
                pair.dump()
            );
        }
        mend(&mut pair);
        pair.expect_in_sync();
    }
}

#[test]
fn by_force_a_node_is_promoted_although_its_peer_is_not_fenced() {
    let mut pair = pair(3, Fencing::ResourceAndStonith);
    pair.cut();
    settle(&mut pair);
    let order = pair.order_async(1, Command::Primary { force: true });
    settle(&mut pair);
    fence(&mut pair, 1, HandlerResult::Exited(1));
    assert!(pair.nodes[1].answers[&order].is_ok());
    assert!(pair.role(1) == Role::Primary && !is_frozen(&pair, 1));
    assert!(pair.logged(1, "by force"), "{}", pair.dump());
}

#[test]
fn unfence_peer_is_called_when_both_are_current_again() {
    let unfences = |pair: &mut Pair, n: usize| {
        let asked = core::mem::take(&mut pair.nodes[n].handlers);
        let is = |&&(_, kind): &&(_, HandlerKind)| kind == HandlerKind::UnfencePeer;
        asked.iter().filter(is).count()
    };
    let mut pair = pair(3, Fencing::ResourceAndStonith);
    pair.cut();
    pair.settle();
    fence(&mut pair, 0, HandlerResult::Exited(4));
    pair.write(0, 0, 4096, 5);
    assert_eq!(unfences(&mut pair, 0), 0);
    pair.cable = true;
    pair.settle();
    // The target is asked whether it may be one.
    let asked = pair.nodes[1].handlers.clone();
    for (id, kind) in asked {
        if kind == HandlerKind::BeforeResyncTarget {
            let result = HandlerResult::Exited(0);
            pair.feed(1, Input::HandlerDone { id, result });
        }
    }
    pair.settle();
    pair.expect_in_sync();
    assert_eq!(unfences(&mut pair, 0), 1, "{}", pair.dump());
    pair.write(0, 0, 4096, 6);
    assert_eq!(unfences(&mut pair, 0), 0);
}

#[test]
fn before_resync_target_may_forbid_the_resync() {
    for good in [true, false] {
        let mut pair = pair(3, Fencing::DontCare);
        pair.cut();
        pair.settle();
        pair.write(0, 0, 4096, 5);
        pair.cable = true;
        pair.settle();
        assert_eq!(
            pair.disk(1),
            DiskState::Outdated,
            "nothing has happened to it, but it is known to be older"
        );
        let refused = pair
            .order(1, PROMOTE)
            .expect_err("it is about to be overwritten");
        assert!(!refused.way_out.is_empty());
        let asked = core::mem::take(&mut pair.nodes[1].handlers);
        let kinds: Vec<_> = asked.iter().map(|a| a.1).collect();
        assert_eq!(kinds, [HandlerKind::BeforeResyncTarget], "{}", pair.dump());
        let result = HandlerResult::Exited(i32::from(!good));
        let id = asked[0].0;
        pair.feed(1, Input::HandlerDone { id, result });
        pair.settle();
        if good {
            pair.expect_in_sync();
            let kinds: Vec<_> = pair.nodes[1].handlers.iter().map(|a| a.1).collect();
            assert_eq!(kinds, [HandlerKind::AfterResyncTarget]);
            continue;
        }
        assert_eq!(pair.connection(1), ConnState::StandAlone);
        assert!(pair.nodes[1].handlers.is_empty(), "it is not asked again");
        assert!(
            pair.status(1).peers[0]
                .reason
                .contains("before-resync-target")
        );
        assert_eq!(pair.disk(1), DiskState::Outdated);
        pair.order(1, CONNECT).expect("it may");
        settle(&mut pair);
        pair.expect_in_sync();
    }
}

#[test]
fn another_policy_counts_at_once() {
    let mut pair = pair(3, Fencing::ResourceAndStonith);
    let tags = cut_with_writes(&mut pair);
    assert!(is_frozen(&pair, 0) && pair.disk(1) == DiskState::Consistent);
    pair.change_options(|o| o.fencing = Fencing::DontCare);
    settle(&mut pair);
    assert!(!is_frozen(&pair, 0) && pair.disk(1) == DiskState::UpToDate);
    assert_eq!(answered(&pair, &tags), 4, "{}", pair.dump());
}

#[test]
fn a_promotion_that_waits_for_a_handler_is_over_when_secondary_is_ordered() {
    let mut pair = pair(21, Fencing::ResourceAndStonith);
    pair.cut();
    settle(&mut pair);
    let order = pair.order_async(1, PROMOTE);
    settle(&mut pair);
    assert!(is_asked(&pair, 1), "{}", pair.dump());
    pair.order(1, Command::Secondary).expect("it is Secondary");
    let refusal = pair.nodes[1].answers[&order].clone();
    let refusal = refusal.expect_err("it does not come true later");
    assert!(refusal.reason.contains("meanwhile"), "{refusal:?}");
    fence(&mut pair, 1, HandlerResult::Exited(7));
    assert_eq!(pair.role(1), Role::Secondary, "{}", pair.dump());
}

#[test]
fn an_order_to_discard_does_not_outlive_a_promotion() {
    let mut pair = pair(22, Fencing::DontCare);
    pair.cut();
    settle(&mut pair);
    let discard = Command::Connect {
        peer: None,
        discard_my_data: true,
        dry_run: false,
    };
    pair.write(0, 0, 4096, 5);
    pair.order(1, discard).expect("it waits for its peer");
    pair.order(1, PROMOTE).expect("nobody is asked");
    pair.write(1, 0, 4096, 9);
    assert!(pair.logged(1, "does not count any more"));
    pair.order(1, Command::Secondary).expect("nobody holds it");
    pair.cable = true;
    settle(&mut pair);
    assert_eq!(
        pair.content(1)[0],
        9,
        "confirmed after the order: {}",
        pair.dump()
    );
}

//! Fencing and what is ordered: what a promotion is foretold to come to, what force and automatic
//! promotion leave behind, and options that change in the middle of it.

use super::fencing::{answered, cut_with_writes, fence, is_asked, is_frozen, mend, pair, settle};
use super::pair::{Pair, V};
use super::split_brain::{expect_winner, in_sync, meet, one, part, saved, zero};
use crate::command::{Command, RefusalKind};
use crate::event::{ConnState, DiskState, Role};
use crate::fencing::Fencing;
use crate::handler::HandlerResult::Exited;
use crate::split_brain::{AfterSb0Pri, AfterSb1Pri};
use twinblk_protocol::control::Protocol;

const PROMOTE: Command = Command::Primary { force: false };
const POLICIES: [Fencing; 2] = [Fencing::ResourceOnly, Fencing::ResourceAndStonith];

/// Orders a promotion of bravo; what was foretold must come true.
fn promote_as_foretold(pair: &mut Pair) -> u64 {
    let told = pair.status(1);
    let order = pair.order_async(1, PROMOTE);
    settle(pair);
    let answer = pair.nodes[1].answers.get(&order).cloned();
    match (told.may_promote, told.fences_first.is_empty()) {
        (Err(foretold), calls_nobody) => {
            assert!(calls_nobody && !is_asked(pair, 1), "{}", pair.dump());
            let refusal = answer.expect("at once").expect_err("foretold");
            // A peer may say itself what was foretold of it.
            assert!(refusal.reason.ends_with(&foretold.reason), "{refusal:?}");
        }
        (Ok(()), true) => {
            assert!(!is_asked(pair, 1), "{}", pair.dump());
            answer.expect("at once").expect("foretold");
        }
        (Ok(()), false) => {
            assert!(is_asked(pair, 1) && answer.is_none(), "{}", pair.dump());
        }
    }
    order
}

#[test]
fn what_a_promotion_would_come_to_is_foretold() {
    for policy in POLICIES {
        let mut pair = pair(3, policy);
        // Alpha is Primary and says so.
        assert!(pair.status(1).may_promote.is_err());
        assert!(pair.status(0).fences_first.is_empty(), "it is Primary");
        promote_as_foretold(&mut pair);
        pair.cut();
        settle(&mut pair);
        let told = pair.status(1);
        assert_eq!(told.volumes[0].disk, DiskState::Consistent);
        assert_eq!(told.may_promote, Ok(()), "a handler decides");
        assert_eq!(told.fences_first, ["alpha"]);
        assert!(!is_asked(&pair, 1), "to be told calls nobody");
        let order = promote_as_foretold(&mut pair);
        let refusal = pair.status(1).may_promote.expect_err("one is under way");
        assert!(refusal.reason.contains("already"), "{refusal:?}");
        fence(&mut pair, 1, Exited(1));
        pair.nodes[1].answers[&order]
            .clone()
            .expect_err("it failed");
        assert_eq!(
            pair.status(1).fences_first,
            ["alpha"],
            "it may be tried again"
        );
        // Known to be Outdated: nobody is asked.
        let order = promote_as_foretold(&mut pair);
        fence(&mut pair, 1, Exited(4));
        assert!(pair.nodes[1].answers[&order].is_ok(), "{}", pair.dump());
        pair.order(1, Command::Secondary).expect("no clients");
        assert!(pair.status(1).fences_first.is_empty());
        promote_as_foretold(&mut pair);
    }
}

#[test]
fn a_copy_that_has_slept_is_foretold_to_be_refused() {
    let mut pair = pair(4, Fencing::ResourceAndStonith);
    pair.cut();
    settle(&mut pair);
    pair.crash(1);
    pair.start(1);
    settle(&mut pair);
    assert_eq!(pair.disk(1), DiskState::Consistent);
    let refusal = pair.status(1).may_promote.expect_err("alpha may be newer");
    assert!(refusal.reason.contains("may have gone on"), "{refusal:?}");
    promote_as_foretold(&mut pair);
    // An Outdated one calls nobody either.
    pair.order(1, Command::Outdate).expect("nobody needs it");
    assert!(pair.status(1).may_promote.is_err());
    promote_as_foretold(&mut pair);
}

#[test]
fn that_io_stands_still_is_told_once_the_handler_has_failed() {
    let mut pair = pair(5, Fencing::ResourceAndStonith);
    let told = |pair: &Pair| pair.status(0).peers[0].not_fenced.clone();
    assert_eq!(told(&pair), None);
    cut_with_writes(&mut pair);
    assert!(is_frozen(&pair, 0));
    assert_eq!(told(&pair), None, "the handler runs");
    fence(&mut pair, 0, Exited(1));
    let why = told(&pair).expect("nothing is under way any more");
    assert!(why.contains("exit code 1"), "{why}");
    mend(&mut pair);
    assert_eq!(told(&pair), None);
    // Nobody waits under the other policy.
    pair.change_options(|o| o.fencing = Fencing::ResourceOnly);
    pair.cut();
    settle(&mut pair);
    fence(&mut pair, 0, Exited(1));
    assert_eq!(told(&pair), None);
}

#[test]
fn a_stricter_policy_counts_for_a_peer_that_is_lost_already() {
    for policy in POLICIES {
        let mut pair = pair(6, Fencing::DontCare);
        cut_with_writes(&mut pair);
        assert!(!is_frozen(&pair, 0) && !is_asked(&pair, 0));
        pair.change_options(|o| o.fencing = policy);
        settle(&mut pair);
        assert!(is_asked(&pair, 0), "{policy:?}: {}", pair.dump());
        let freezes = policy == Fencing::ResourceAndStonith;
        assert_eq!(is_frozen(&pair, 0), freezes);
        fence(&mut pair, 0, Exited(7));
        assert!(!is_frozen(&pair, 0));
        // It is known now: no need to ask again, however strict.
        pair.change_options(|o| o.fencing = Fencing::DontCare);
        pair.change_options(|o| o.fencing = policy);
        settle(&mut pair);
        assert!(!is_asked(&pair, 0) && !is_frozen(&pair, 0));
    }
}

#[test]
fn io_waits_for_the_handler_that_runs_when_the_policy_gets_stricter() {
    let mut pair = pair(7, Fencing::ResourceOnly);
    pair.cut();
    settle(&mut pair);
    assert!(is_asked(&pair, 0) && !is_frozen(&pair, 0));
    pair.change_options(|o| o.fencing = Fencing::ResourceAndStonith);
    settle(&mut pair);
    assert!(is_frozen(&pair, 0));
    assert_eq!(pair.nodes[0].handlers.len(), 1, "the same run");
    let tag = pair.submit_write(0, 0, 4096, 9);
    settle(&mut pair);
    assert_eq!(answered(&pair, &[tag]), 0);
    fence(&mut pair, 0, Exited(4));
    assert_eq!(answered(&pair, &[tag]), 1, "{}", pair.dump());
}

#[test]
fn different_policies_are_told_on_both_nodes_and_refuse_nothing() {
    let told = |pair: &Pair, n: usize| {
        let is = |l: &&String| l.contains("acts by its own");
        pair.nodes[n].log.iter().filter(is).count()
    };
    let mut pair = pair(8, Fencing::DontCare);
    let mut options = pair.options.clone();
    options.fencing = Fencing::ResourceOnly;
    pair.order(1, Command::SetOptions(Box::new(options)))
        .expect("taken");
    for _ in 0..3 {
        pair.cut();
        settle(&mut pair);
        mend(&mut pair);
        for n in 0..2 {
            assert_eq!(pair.connection(n), ConnState::Connected);
            assert_eq!(told(&pair, n), 1, "once: {}", pair.dump());
        }
    }
    assert!(pair.logged(1, "fencing is resource-only here and dont-care on alpha"));
    pair.change_options(|o| o.fencing = Fencing::ResourceOnly);
    pair.cut();
    settle(&mut pair);
    mend(&mut pair);
    assert_eq!((told(&pair, 0), told(&pair, 1)), (1, 1), "they are equal");
}

#[test]
fn force_counts_for_one_reign() {
    let mut pair = pair(9, Fencing::ResourceAndStonith);
    pair.cut();
    settle(&mut pair);
    let order = pair.order_async(1, Command::Primary { force: true });
    settle(&mut pair);
    fence(&mut pair, 1, Exited(1));
    assert!(pair.nodes[1].answers[&order].is_ok(), "{}", pair.dump());
    pair.order(1, Command::Secondary).expect("no clients");
    assert_eq!(pair.status(1).fences_first, ["alpha"]);
    promote_as_foretold(&mut pair);
    fence(&mut pair, 1, Exited(1));
    assert_eq!(pair.role(1), Role::Secondary, "{}", pair.dump());
}

/// What a peer says of itself when the two meet is newer than what a handler once said of it, also when nothing
/// comes of the meeting.
#[test]
fn a_peer_that_has_gone_on_is_not_taken_for_outdated_any_more() {
    let mut pair = pair(13, Fencing::ResourceAndStonith);
    pair.cut();
    settle(&mut pair);
    // The handler does not tell the truth: bravo is well.
    fence(&mut pair, 0, Exited(7));
    let of_bravo = |pair: &Pair| pair.status(0).peers[0].volumes[0].peer_disk;
    assert_eq!(of_bravo(&pair), DiskState::Outdated);
    let order = pair.order_async(1, PROMOTE);
    settle(&mut pair);
    fence(&mut pair, 1, Exited(7));
    assert!(pair.nodes[1].answers[&order].is_ok(), "{}", pair.dump());
    pair.write(0, 0, 4096, 5);
    pair.write(1, 0, 4096, 6);
    mend(&mut pair);
    assert_eq!(pair.connection(0), ConnState::StandAlone, "{}", pair.dump());
    assert_ne!(of_bravo(&pair), DiskState::Outdated, "{}", pair.dump());
    pair.order(0, Command::Secondary).expect("no clients");
    assert_eq!(pair.status(0).fences_first, ["bravo"], "it may go on");
}

/// Whatever was begun in its reign, and however strict the policy becomes.
#[test]
fn a_secondary_fences_nobody() {
    let mut pair = pair(10, Fencing::ResourceOnly);
    pair.cut();
    settle(&mut pair);
    fence(&mut pair, 0, Exited(1));
    pair.order(0, Command::Secondary).expect("no clients");
    for policy in [Fencing::DontCare, Fencing::ResourceAndStonith] {
        pair.change_options(|o| o.fencing = policy);
        settle(&mut pair);
        assert!(
            !is_asked(&pair, 0) && !is_frozen(&pair, 0),
            "{}",
            pair.dump()
        );
    }
    mend(&mut pair);
    pair.cut();
    settle(&mut pair);
    assert!(
        !is_asked(&pair, 0) && !is_asked(&pair, 1),
        "{}",
        pair.dump()
    );
}

/// A promotion that comes true while the resource goes down must not freeze it: nobody would thaw it.
#[test]
fn a_node_that_goes_down_fences_nobody() {
    for seed in 0..80 {
        let mut pair = pair(seed, Fencing::ResourceAndStonith);
        pair.order(0, Command::Secondary).expect("no clients");
        let promotion = pair.order_async(1, PROMOTE);
        for _ in 0..pair.rng() % 24 {
            pair.step();
        }
        let down = pair.order_async(1, Command::Stop { force: false });
        pair.cut();
        settle(&mut pair);
        let answer = pair.nodes[1].answers.get(&down);
        assert!(answer.is_some_and(Result::is_ok), "{}", pair.dump());
        assert!(
            pair.nodes[1].answers.contains_key(&promotion),
            "seed {seed} {}",
            pair.dump()
        );
        assert!(!is_asked(&pair, 1), "seed {seed}: {}", pair.dump());
    }
}

/// Writes were caught by the loss, and the peer turned out to be Primary: what an administrator lets go on
/// then is no generation of its own.
#[test]
fn an_outdated_primary_begins_no_generation() {
    let mut frozen = 0;
    for seed in 0..20 {
        let mut pair = pair(seed, Fencing::ResourceAndStonith);
        let before = pair.status(0).volumes[0].current_uuid;
        let tags = cut_with_writes(&mut pair);
        frozen += tags.len() - answered(&pair, &tags);
        fence(&mut pair, 0, Exited(6));
        assert_eq!(pair.disk(0), DiskState::Outdated);
        let _ = pair.order(0, Command::ResumeIo);
        settle(&mut pair);
        let after = pair.status(0).volumes[0].current_uuid;
        assert_eq!(before, after, "seed {seed}: {}", pair.dump());
    }
    assert!(frozen > 0, "something was caught");
}

#[test]
fn a_client_that_waits_for_a_handler_is_counted() {
    for failed in [false, true] {
        let mut pair = pair(11, Fencing::ResourceAndStonith);
        pair.cut();
        settle(&mut pair);
        let first = pair.order_async(1, Command::AutoPromote);
        settle(&mut pair);
        // Another one comes meanwhile, is refused, and leaves nothing behind.
        let refusal = pair.order(1, Command::AutoPromote).expect_err("it waits");
        assert_eq!(refusal.kind, RefusalKind::State);
        fence(&mut pair, 1, Exited(if failed { 1 } else { 7 }));
        let answer = pair.nodes[1].answers[&first].clone();
        assert_eq!(answer.is_err(), failed);
        if failed {
            assert_eq!(pair.role(1), Role::Secondary);
            continue;
        }
        assert_eq!(pair.role(1), Role::Primary, "its client is about to come");
        pair.order(1, Command::AutoDemote).expect("it did not");
        settle(&mut pair);
        assert_eq!(pair.role(1), Role::Secondary, "{}", pair.dump());
    }
}

/// Evicted by a policy, a client comes back at once: were it let in, the eviction would begin anew.
#[test]
fn who_gives_way_is_not_promoted_for_a_client() {
    let mut refused = 0;
    for seed in 0..20 {
        let policies = one(AfterSb1Pri::ViolentlyAs0p, AfterSb0Pri::DiscardLeastChanges);
        let mut pair = in_sync(seed, Protocol::C, policies);
        part(&mut pair);
        pair.order(1, Command::Secondary).expect("no clients");
        let engine = pair.nodes[0].engine.as_mut().expect("it runs");
        engine.open_export(V, "a client".into()).expect("Primary");
        pair.cable = true;
        let mut orders = Vec::new();
        for _ in 0..20_000 {
            if pair.nodes[0].closed_clients > 0 && orders.len() < 40 {
                orders.push(pair.order_async(0, Command::AutoPromote));
            }
            if !pair.step() {
                pair.pass_time();
            }
        }
        pair.settle();
        assert!(!orders.is_empty(), "{}", pair.dump());
        for order in orders {
            match &pair.nodes[0].answers[&order] {
                Err(refusal) if refusal.reason.contains("gives way") => refused += 1,
                // Afterwards it is as good a copy as the other.
                _ => {}
            }
        }
        assert_eq!(pair.nodes[0].closed_clients, 1, "{}", pair.dump());
        expect_winner(&pair, 1);
    }
    assert!(refused > 0, "a client was too early");
}

/// What is to be saved is not forgotten with a link that is lost before anything was overwritten.
#[test]
fn a_file_to_save_to_outlives_a_blip() {
    let mut pair = in_sync(12, Protocol::C, zero(AfterSb0Pri::DiscardYoungerPrimary));
    part(&mut pair);
    for n in 0..2 {
        pair.order(n, Command::Secondary).expect("no clients");
    }
    let order = Command::DiscardSaving {
        peer: None,
        file: "/saved".into(),
    };
    pair.order(1, order).expect("taken");
    pair.cable = true;
    assert_eq!(saved(&mut pair, 1).file.as_deref(), Some("/saved"));
    pair.cut();
    pair.settle();
    pair.cable = true;
    let request = saved(&mut pair, 1);
    assert_eq!(request.file.as_deref(), Some("/saved"), "{}", pair.dump());
    let (id, result) = (request.id, Ok("/saved".into()));
    pair.feed(1, crate::input::Input::DiscardedSaved { id, result });
    meet(&mut pair);
    expect_winner(&pair, 0);
}

/// Both have found that bravo is the older one. Alpha's clients are answered from then on, so bravo is not
/// promoted any more if alpha is lost, not even when alpha has been switched off for certain: whether or not
/// the resync has begun.
#[test]
fn who_is_about_to_be_brought_up_to_date_is_older() {
    let mut promoted = 0;
    for seed in 1..60 {
        let mut pair = pair(seed, Fencing::ResourceAndStonith);
        let tags = cut_with_writes(&mut pair);
        pair.cable = true;
        // Until they have compared, and no longer than that takes.
        for _ in 0..pair.rng() % 40 {
            if !pair.step() {
                pair.pass_time();
            }
        }
        pair.crash(0);
        let order = pair.order_async(1, PROMOTE);
        settle(&mut pair);
        if is_asked(&pair, 1) {
            fence(&mut pair, 1, Exited(7));
        }
        let wins = pair.nodes[1].answers[&order].is_ok();
        promoted += u32::from(wins);
        for (tag, block) in tags.iter().zip(0usize..) {
            let told = wins && pair.nodes[0].replies.contains_key(tag);
            let has = pair.content(1)[block * 65536] == 7;
            assert!(!told || has, "seed {seed}: {}", pair.dump());
        }
    }
    assert!(promoted > 2, "it took over {promoted} times");
}

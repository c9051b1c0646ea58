//! Every value of every policy, over every fact it may look at, against a table that is written from
//! the documentation: who is the victim, and what happens to it first.

use super::tests::{A, B, W, X, Y, Z, context, expect, expect_refusal, meet_with, side};
use super::{Amount, Context, Demotion, Direction, Policy, Rule, Side, judge};
use crate::ids::NodeId;
use crate::split_brain::{AfterSb0Pri, AfterSb1Pri, AfterSb2Pri, Policies, RrConflict};
use twinblk_protocol::control::{DiskState, Protocol, Role};

fn with(policies: Policies) -> Context {
    Context {
        policies,
        ..context(Protocol::C)
    }
}

fn zero(zero_primaries: AfterSb0Pri) -> Context {
    with(Policies {
        zero_primaries,
        ..Policies::default()
    })
}

/// Both have written since X.
fn parted() -> (Side, Side) {
    (
        side(A, Y).bitmap(X).history(&[X]).bits(1).changed(4096),
        side(B, Z).bitmap(X).history(&[X]).bits(2).changed(8192),
    )
}

/// The victim by `after-sb-0pri`, as the documentation has it.
fn by_the_book(a: &Side, b: &Side, policy: AfterSb0Pri) -> Option<NodeId> {
    let fewer = if a.changed == b.changed {
        a.node.max(b.node)
    } else if a.changed < b.changed {
        a.node
    } else {
        b.node
    };
    let only = |holds: fn(&Side) -> bool| match (holds(a), holds(b)) {
        (true, false) => Some(a.node),
        (false, true) => Some(b.node),
        _ => None,
    };
    match policy {
        AfterSb0Pri::Disconnect => None,
        AfterSb0Pri::DiscardYoungerPrimary => Some(only(|s| !s.parted_as_primary).unwrap_or(fewer)),
        AfterSb0Pri::DiscardOlderPrimary => Some(only(|s| s.parted_as_primary).unwrap_or(fewer)),
        AfterSb0Pri::DiscardZeroChanges if a.changed > 0 && b.changed > 0 => None,
        AfterSb0Pri::DiscardZeroChanges | AfterSb0Pri::DiscardLeastChanges => Some(fewer),
        AfterSb0Pri::DiscardNode(n) => [a.node, b.node].into_iter().find(|&m| m == n),
    }
}

/// The victim, and what its being Primary and in use leads to.
fn expected(a: &Side, b: &Side, p: &Policies) -> Option<(NodeId, Demotion)> {
    let zero = by_the_book(a, b, p.zero_primaries);
    let primaries: Vec<&Side> = [a, b].into_iter().filter(|s| s.is_primary()).collect();
    let (victim, in_use) = match (&primaries[..], p.one_primary, p.two_primaries) {
        ([], ..) => (zero, Demotion::NotNeeded),
        ([_], AfterSb1Pri::Disconnect, _) => (None, Demotion::NotNeeded),
        ([primary], AfterSb1Pri::Consensus, _) => {
            (zero.filter(|&v| v != primary.node), Demotion::NotNeeded)
        }
        ([primary], AfterSb1Pri::DiscardSecondary, _) => {
            let other = if primary.node == a.node { b } else { a };
            (Some(other.node), Demotion::NotNeeded)
        }
        ([_], AfterSb1Pri::ViolentlyAs0p, _) => (zero, Demotion::Forced),
        ([_], AfterSb1Pri::CallPriLostAfterSb, _) => (zero, Demotion::Handler),
        (_, _, AfterSb2Pri::Disconnect) => (None, Demotion::NotNeeded),
        (_, _, AfterSb2Pri::ViolentlyAs0p) => (zero, Demotion::Forced),
        (_, _, AfterSb2Pri::CallPriLostAfterSb) => (zero, Demotion::Handler),
    };
    let victim = victim?;
    let (v, source) = if victim == a.node { (a, b) } else { (b, a) };
    if source.disk == DiskState::Inconsistent {
        return None;
    }
    let demotion = match (v.is_primary(), v.in_use) {
        (false, _) => Demotion::NotNeeded,
        (true, false) => Demotion::First,
        (true, true) => in_use,
    };
    Some((victim, demotion))
}

fn all_policies() -> Vec<Policies> {
    let nodes = [0, 1, 7].map(|n| AfterSb0Pri::DiscardNode(NodeId(n)));
    let mut all = Vec::new();
    for zero_primaries in AfterSb0Pri::NAMED.into_iter().chain(nodes) {
        for &one_primary in AfterSb1Pri::ALL {
            for &two_primaries in AfterSb2Pri::ALL {
                all.push(Policies {
                    zero_primaries,
                    one_primary,
                    two_primaries,
                    conflict: RrConflict::Disconnect,
                });
            }
        }
    }
    all
}

fn states(of: &Side) -> Vec<Side> {
    let mut all = Vec::new();
    for role in [Role::Secondary, Role::Primary] {
        for changed in [0, 4096, 8192] {
            for flags in 0..4 {
                for disk in [
                    DiskState::UpToDate,
                    DiskState::Outdated,
                    DiskState::Inconsistent,
                ] {
                    all.push(Side {
                        role,
                        changed,
                        disk,
                        parted_as_primary: flags & 1 != 0,
                        in_use: flags & 2 != 0 && role == Role::Primary,
                        ..of.clone()
                    });
                }
            }
        }
    }
    all
}

#[test]
fn every_value_does_what_the_documentation_says() {
    let (a, b) = parted();
    let (all_a, all_b) = (states(&a), states(&b));
    for policies in all_policies() {
        let ctx = with(policies);
        for a in &all_a {
            for b in &all_b {
                let (mine, theirs) = (judge(a, b, &ctx), judge(b, a, &ctx));
                let why = || format!("{a:?}\n{b:?}\n{policies:?}\n{mine:?}\n{theirs:?}");
                assert!(mine.split_brain && theirs.split_brain, "{}", why());
                assert_eq!(mine.direction, theirs.direction.mirrored(), "{}", why());
                assert_eq!(mine.settled, theirs.settled, "{}", why());
                let expected = expected(a, b, &policies);
                let settled = mine.settled.map(|s| (s.victim, s.demotion));
                assert_eq!(settled, expected, "{}", why());
                let direction = match expected {
                    None | Some((_, Demotion::Handler)) => Direction::Refuse,
                    Some((_, Demotion::First | Demotion::Forced)) => Direction::Yield,
                    Some((victim, Demotion::NotNeeded)) => Direction::source_if(victim == b.node),
                };
                assert_eq!(mine.direction, direction, "{}", why());
            }
        }
    }
}

#[test]
fn disconnect_gives_nothing_up() {
    let (a, b) = parted();
    for a in states(&a) {
        for b in states(&b) {
            let d = judge(&a, &b, &context(Protocol::C));
            assert_eq!((d.direction, d.settled), (Direction::Refuse, None));
        }
    }
}

#[test]
fn an_order_counts_before_any_policy() {
    let (a, b) = parted();
    let ctx = zero(AfterSb0Pri::DiscardNode(A));
    let d = meet_with(&a, &b.clone().discard(), ctx);
    expect(&d, Rule::BitmapBoth, Direction::Source, Amount::Bitmap);
    assert_eq!(d.settled, None);
    let d = meet_with(&a.clone().discard(), &b.discard(), ctx);
    expect_refusal(&d, Rule::BitmapBoth, "--discard-my-data");
}

#[test]
fn policies_need_bitmaps_that_are_relative_to_the_same_generation() {
    let a = side(A, Y).bitmap(W).history(&[W, X]).bits(1).changed(4096);
    let b = side(B, Z).history(&[X]);
    let ctx = zero(AfterSb0Pri::DiscardLeastChanges);
    expect_refusal(
        &meet_with(&a, &b, ctx),
        Rule::HistoryBoth,
        "--discard-my-data",
    );
}

#[test]
fn a_resync_by_policy_says_which_and_how_much() {
    let (a, b) = parted();
    let d = meet_with(&a.parted(), &b, zero(AfterSb0Pri::DiscardYoungerPrimary));
    expect(&d, Rule::BitmapBoth, Direction::Source, Amount::Bitmap);
    assert!(
        d.reason.contains("after-sb-0pri = discard-younger-primary"),
        "{}",
        d.reason
    );
    assert!(
        d.reason
            .contains("node 0: 4096 bytes, Primary when they parted; node 1: 8192 bytes"),
        "{}",
        d.reason
    );
}

#[test]
fn the_numbers_are_in_the_refusal_too() {
    let (a, b) = parted();
    let d = meet_with(&a, &b, context(Protocol::C));
    assert!(d.reason.contains("node 1: 8192 bytes"), "{}", d.reason);
}

/// B is Primary and behind A.
fn conflict(policy: RrConflict, used: bool) -> super::Decision {
    let a = side(A, Y).bitmap(X).history(&[X]).bits(1);
    let b = side(B, X).primary();
    let b = if used { b.used() } else { b };
    let policies = Policies {
        conflict: policy,
        ..Policies::default()
    };
    meet_with(&a, &b, with(policies))
}

#[test]
fn a_conflict_of_roles_goes_by_rr_conflict() {
    for used in [false, true] {
        let d = conflict(RrConflict::Disconnect, used);
        expect_refusal(&d, Rule::RoleConflict, "secondary RES");
        assert!(!d.retry && d.settled.is_none());
        let d = conflict(RrConflict::RetryConnect, used);
        expect_refusal(&d, Rule::RoleConflict, "secondary RES");
        assert!(d.retry && d.settled.is_none());
    }
    for policy in [RrConflict::CallPriLost, RrConflict::Violently] {
        let d = conflict(policy, false);
        expect(&d, Rule::RoleConflict, Direction::Yield, Amount::Nothing);
        let settled = d.settled.unwrap();
        assert_eq!((settled.victim, settled.demotion), (B, Demotion::First));
        assert_eq!(settled.policy, Policy::Conflict(policy));
    }
    let d = conflict(RrConflict::Violently, true);
    assert_eq!(d.settled.unwrap().demotion, Demotion::Forced);
    let d = conflict(RrConflict::CallPriLost, true);
    expect_refusal(&d, Rule::RoleConflict, "secondary RES");
    assert_eq!(d.settled.unwrap().demotion, Demotion::Handler);
}

#[test]
fn two_primaries_without_a_split_brain_are_no_affair_of_policies() {
    let policies = Policies {
        conflict: RrConflict::Violently,
        two_primaries: AfterSb2Pri::ViolentlyAs0p,
        zero_primaries: AfterSb0Pri::DiscardNode(B),
        ..Policies::default()
    };
    let (a, b) = (side(A, X | 1).primary(), side(B, X | 1).primary());
    expect_refusal(
        &meet_with(&a, &b, with(policies)),
        Rule::TwoPrimaries,
        "secondary",
    );
}

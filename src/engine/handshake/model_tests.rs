//! The whole table, over a small but complete model: symbolic generations in every place, every
//! disk state, role and flag, both protocols that matter. What must hold is stated here without a
//! look at how the decision is made.

use super::{
    Amount, Context, Decision, Demotion, Direction, Judgement, Rule, Side, decide, finish_leftover,
    judge,
};
use crate::generations::{is_created, same};
use crate::ids::NodeId;
use crate::split_brain::{AfterSb0Pri, AfterSb1Pri, AfterSb2Pri, Policies, RrConflict};
use twinblk_protocol::control::{DiskState, Protocol, Role};

const X: u64 = 0x10;
const Y: u64 = 0x20;
const Z: u64 = 0x30;
const CURRENTS: [u64; 7] = [0, 4, 5, X, X | 1, Y, Z];
const BITMAPS: [u64; 6] = [0, 4, X, Y, Y | 1, Z];
const HISTORIES: [&[u64]; 9] = [
    &[],
    &[X],
    &[Y],
    &[Z],
    &[X, Y],
    &[Y, Z],
    &[Z, X],
    &[0, Y | 1],
    &[4, 0],
];
const DISKS: [DiskState; 5] = [
    DiskState::Diskless,
    DiskState::Inconsistent,
    DiskState::Outdated,
    DiskState::Consistent,
    DiskState::UpToDate,
];
/// Disk, role, dirty, crashed, incarnation, discard.
const STATES: usize = DISKS.len() * 32;
const CONTEXTS: usize = 8;
/// What is set besides, from 0 for the defaults.
const POLICIES: usize = 6 * 5 * 3 * 4;

fn generations(node: u8) -> Vec<Side> {
    let mut all = Vec::new();
    for current in CURRENTS {
        for bitmap in BITMAPS {
            for history in HISTORIES {
                all.push(Side {
                    node: NodeId(node),
                    current,
                    bitmap,
                    history: history.to_vec(),
                    toward: 0,
                    disk: DiskState::UpToDate,
                    role: Role::Secondary,
                    dirty_bits: 0,
                    full_bitmap: false,
                    crashed_primary: false,
                    same_incarnation_seen: false,
                    discard_my_data: false,
                    crashed_secondary: false,
                    busy: false,
                    relies: 0,
                    relies_next: 0,
                    changed: 0,
                    parted_as_primary: false,
                    in_use: false,
                });
            }
        }
    }
    all
}

fn set_state(side: &mut Side, n: usize) {
    side.disk = DISKS[n / 32];
    side.role = if n & 1 == 0 {
        Role::Secondary
    } else {
        Role::Primary
    };
    side.dirty_bits = if n & 2 == 0 {
        0
    } else {
        3 + u64::from(side.node.0)
    };
    side.crashed_primary = n & 4 != 0;
    side.same_incarnation_seen = n & 8 != 0;
    side.discard_my_data = n & 16 != 0;
    // Spread over the states: the product would be too large.
    let spread = n.wrapping_mul(0x9e37_79b9) >> 9;
    side.crashed_secondary = spread & 1 != 0;
    side.busy = spread & 2 != 0;
    side.changed = (spread >> 4) as u64 % 3;
    side.parted_as_primary = spread & 64 != 0;
    side.in_use = side.role == Role::Primary && spread & 128 != 0;
    let target = side.disk == DiskState::Inconsistent && spread & 12 == 0;
    side.toward = if target { X } else { 0 };
    let relies = side.role == Role::Primary && spread & 0x70 == 0;
    side.relies = if relies { X } else { 0 };
}

fn context(n: usize) -> Context {
    Context {
        protocol: if n & 1 == 0 { Protocol::C } else { Protocol::A },
        allow_two_primaries: n & 2 != 0,
        group: n & 4 != 0,
        policies: policies(n / CONTEXTS % POLICIES),
    }
}

fn policies(n: usize) -> Policies {
    let zero = AfterSb0Pri::NAMED.get(n % 6).copied();
    Policies {
        zero_primaries: zero.unwrap_or(AfterSb0Pri::DiscardNode(NodeId(1))),
        one_primary: AfterSb1Pri::ALL[n / 6 % 5],
        two_primaries: AfterSb2Pri::ALL[n / 30 % 3],
        conflict: RrConflict::ALL[n / 90],
    }
}

fn has_disk(side: &Side) -> bool {
    side.disk != DiskState::Diskless
}

/// Everything that must hold of a decision, whatever led to it.
fn check(a: &Side, b: &Side, ctx: &Context) -> Judgement {
    let (mine, theirs) = (judge(a, b, ctx), judge(b, a, ctx));
    let why = || format!("{a:?}\n{b:?}\n{ctx:?}\n{mine:?}\n{theirs:?}");

    // Mirror images.
    assert!(
        mine.rule == theirs.rule
            && mine.direction == theirs.direction.mirrored()
            && mine.amount == theirs.amount
            && mine.split_brain == theirs.split_brain
            && mine.settled == theirs.settled,
        "not mirrored: {}",
        why()
    );

    if !ctx.group && a.relies + b.relies > 0 {
        check_reliance(a, b, &mine, &why);
        return mine;
    }
    let disks = has_disk(a) && has_disk(b);
    let fresh = is_created(a.current) && is_created(b.current);
    let equal = same(a.current, b.current) && !is_created(a.current);
    match mine.direction {
        Direction::None => {
            assert_eq!(mine.amount, Amount::Nothing, "{}", why());
            if disks && !fresh {
                // Law 1, and law 2 with it: without a resync nothing may be marked.
                let clean = |s: &Side| s.dirty_bits == 0 && (!s.crashed_primary || ctx.group);
                assert!(clean(a) && clean(b), "law 1: {}", why());
                assert!(equal, "no sync between different generations: {}", why());
                let broken = |s: &Side| s.disk == DiskState::Inconsistent;
                assert!(!broken(a) && !broken(b), "nobody repairs it: {}", why());
            }
            if disks && fresh {
                let broken = |s: &Side| s.disk == DiskState::Inconsistent;
                assert!(
                    broken(a) && broken(b),
                    "fresh copies are not in sync: {}",
                    why()
                );
            }
            let both = a.role == Role::Primary && b.role == Role::Primary;
            assert!(!both || ctx.allow_two_primaries, "two Primaries: {}", why());
        }
        Direction::Refuse => assert_eq!(mine.amount, Amount::Nothing, "{}", why()),
        Direction::Yield => {
            assert_eq!(mine.amount, Amount::Nothing, "{}", why());
            let settled = mine.settled.expect("a policy says who");
            let victim = if settled.victim == a.node { a } else { b };
            assert_eq!(victim.role, Role::Primary, "{}", why());
            let how = if victim.in_use {
                Demotion::Forced
            } else {
                Demotion::First
            };
            assert_eq!(settled.demotion, how, "{}", why());
            check_policy(a, b, &mine, ctx, &why);
        }
        Direction::Later => {
            let broken = |s: &Side| s.disk == DiskState::Inconsistent;
            let waits = a.busy || b.busy || broken(a) && broken(b) || a.toward + b.toward > 0;
            assert!(ctx.group && waits, "nothing to wait for: {}", why());
            assert_eq!(mine.amount, Amount::Nothing, "{}", why());
        }
        Direction::Source => check_resync(a, b, &mine, ctx, &why),
        Direction::Target => check_resync(b, a, &mine, ctx, &why),
    }

    for (side, judgement) in [(a, &mine), (b, &theirs)] {
        if finish_leftover(side, judgement) {
            let clean = side.bitmap != 0 && mine.direction == Direction::None && equal && disks;
            assert!(clean, "nothing is left over: {}", why());
        }
    }
    mine
}

/// Clients are served from the other side's copy.
fn check_reliance(a: &Side, b: &Side, judgement: &Judgement, why: &dyn Fn() -> String) {
    for (side, other, direction) in [
        (a, b, judgement.direction),
        (b, a, judgement.direction.mirrored()),
    ] {
        if side.relies == 0 || direction == Direction::Refuse {
            continue;
        }
        assert_ne!(direction, Direction::Source, "never a source: {}", why());
        let has = !has_disk(other) || same(other.current, side.relies);
        assert!(has, "of another generation: {}", why());
    }
}

fn check_resync(
    source: &Side,
    target: &Side,
    judgement: &Judgement,
    ctx: &Context,
    why: &dyn Fn() -> String,
) {
    assert_ne!(
        judgement.amount,
        Amount::Nothing,
        "a resync of nothing: {}",
        why()
    );
    assert!(
        source.disk > DiskState::Inconsistent && has_disk(target),
        "never a source without a complete copy: {}",
        why()
    );
    assert!(
        target.role != Role::Primary || target.disk == DiskState::Inconsistent,
        "never a target that is in use: {}",
        why()
    );
    let knows = |s: &Side, g: u64| {
        !is_created(g) && (same(s.bitmap, g) || s.history.iter().any(|&h| same(h, g)))
    };
    // One has moved on from the other's generation. A bitmap UUID outranks a history.
    let based = |s: &Side, t: &Side| !is_created(s.bitmap) && same(s.bitmap, t.current);
    let by_bitmap = (based(source, target), based(target, source));
    let known = (knows(source, target.current), knows(target, source.current));
    let (behind, ahead) = if by_bitmap.0 != by_bitmap.1 {
        by_bitmap
    } else {
        (known.0 && !known.1, known.1 && !known.0)
    };
    let equal = same(source.current, target.current);
    let fresh = is_created(target.current);
    let broken = target.disk == DiskState::Inconsistent;
    if judgement.split_brain {
        assert!(
            judgement.rule == Rule::UnfinishedResync || !equal && !behind && !ahead && !fresh,
            "no split brain: {}",
            why()
        );
        assert!(
            target.discard_my_data && !source.discard_my_data || judgement.settled.is_some(),
            "a split brain is resolved by order or policy only: {}",
            why()
        );
        if let Some(settled) = judgement.settled {
            assert_eq!(settled.victim, target.node, "{}", why());
            check_policy(source, target, judgement, ctx, why);
        }
    } else if fresh || equal {
        assert!(
            !is_created(source.current) || fresh && broken,
            "from nothing: {}",
            why()
        );
    } else if is_created(source.current) || ahead {
        // Newer data are overwritten only if they are incomplete, and nobody uses them.
        assert!(broken && target.role != Role::Primary, "newer: {}", why());
    } else if judgement.rule == Rule::UnfinishedResync {
        let knows = same(source.current, target.toward) || knows(source, target.toward);
        assert!(broken && knows, "not its to finish: {}", why());
    } else {
        assert!(behind, "overwritten without a reason: {}", why());
    }
    if judgement.amount == Amount::Bitmap {
        // The bits cover the difference only if one side's are relative to what the other has.
        let common = !is_created(source.bitmap) && same(source.bitmap, target.bitmap);
        // … or what came after it; also if the newer one is repaired from the older.
        let later = |newer: &Side, older: &Side| {
            let place = |g: u64| newer.history.iter().position(|&h| same(h, g));
            let (base, at) = (place(newer.bitmap), place(older.current));
            !is_created(newer.bitmap) && at.is_some() && base.is_some() && at <= base
        };
        let covered = equal
            || by_bitmap.0
            || by_bitmap.1
            || common
            || behind && later(source, target)
            || ahead && later(target, source);
        assert!(covered && !fresh, "the bitmap does not cover it: {}", why());
    }
    if equal && !fresh {
        check_equal(source, target, judgement, ctx, why);
    }
}

/// A policy gives nothing up that it was not set for. (What each value chooses: `policies_tests.rs`.)
fn check_policy(
    a: &Side,
    b: &Side,
    judgement: &Judgement,
    ctx: &Context,
    why: &dyn Fn() -> String,
) {
    let primaries = [a, b].iter().filter(|s| s.role == Role::Primary).count();
    let set = if !judgement.split_brain {
        judgement.rule == Rule::RoleConflict
            && matches!(
                ctx.policies.conflict,
                RrConflict::CallPriLost | RrConflict::Violently
            )
    } else {
        let set = &ctx.policies.names()[primaries] != "disconnect";
        let ordered = a.discard_my_data || b.discard_my_data;
        judgement.rule == Rule::BitmapBoth && set && !ordered
    };
    assert!(set, "no such policy is set: {}", why());
}

/// Equal generations: the ladder, rung by rung.
fn check_equal(
    source: &Side,
    target: &Side,
    judgement: &Judgement,
    ctx: &Context,
    why: &dyn Fn() -> String,
) {
    let marked = source.dirty_bits > 0 || target.dirty_bits > 0;
    if target.disk == DiskState::Inconsistent {
        assert!(
            marked || judgement.amount == Amount::Full,
            "nothing tells what: {}",
            why()
        );
        return;
    }
    let crashed = (source.crashed_primary, target.crashed_primary);
    assert!(
        marked || crashed != (false, false),
        "a resync for nothing: {}",
        why()
    );
    assert!(
        source.disk != DiskState::Outdated || target.disk == DiskState::Outdated,
        "an Outdated disk yields: {}",
        why()
    );
    if (source.role == Role::Primary) != (target.role == Role::Primary) {
        return assert_eq!(source.role, Role::Primary, "who is Primary now: {}", why());
    }
    if (source.disk == DiskState::Outdated) != (target.disk == DiskState::Outdated) {
        return;
    }
    let winner = match crashed {
        (true, false) => ctx.protocol != Protocol::C,
        (false, true) => ctx.protocol == Protocol::C,
        (false, false) if source.crashed_secondary != target.crashed_secondary => {
            target.crashed_secondary
        }
        _ if source.disk != target.disk => source.disk > target.disk,
        (false, false) if (source.dirty_bits > 0) != (target.dirty_bits > 0) => {
            source.dirty_bits > 0
        }
        _ => source.node < target.node,
    };
    assert!(winner, "the ladder: {}", why());
}

/// A refusal of a resync or of "no sync" must have a cause in the facts.
fn check_refusal(a: &Side, b: &Side, judgement: &Judgement) {
    let both = |holds: &dyn Fn(&Side) -> bool| holds(a) && holds(b);
    let broken = |s: &Side| s.disk == DiskState::Inconsistent;
    let cause = match judgement.rule {
        Rule::BitmapBoth | Rule::HistoryBoth => judgement.split_brain,
        Rule::UnfinishedResync => a.toward + b.toward > 0,
        Rule::Unrelated => !a
            .history
            .iter()
            .any(|&h| same(h, b.current) && !is_created(h)),
        Rule::JustCreatedBoth => both(&|s| is_created(s.current) && !broken(s)),
        Rule::BothInconsistent => both(&broken),
        Rule::TwoPrimaries => both(&|s| s.role == Role::Primary),
        Rule::OtherGeneration => a.relies + b.relies > 0,
        Rule::RoleConflict => a.role == Role::Primary || b.role == Role::Primary,
        _ => false,
    };
    assert!(
        cause,
        "refused without a cause: {a:?}\n{b:?}\n{judgement:?}"
    );
}

/// All pairs of generations, in a few states each.
#[test]
fn every_pair_of_generations() {
    let (mut all_a, mut all_b) = (generations(0), generations(1));
    let mut turn = 0usize;
    let mut seen = 0u32;
    for a in &mut all_a {
        for b in &mut all_b {
            for plain in [true, false, false, false, false] {
                turn = turn.wrapping_add(7919);
                // Four of five in changing states, one where only the generations speak.
                let (sa, sb) = if plain {
                    (128, 128)
                } else {
                    (turn, turn / STATES + turn / 31)
                };
                set_state(a, sa % STATES);
                set_state(b, sb % STATES);
                let judgement = check(a, b, &context(turn / 3));
                if judgement.direction == Direction::Refuse {
                    check_refusal(a, b, &judgement);
                }
                seen |= 1 << judgement.rule as u32;
            }
        }
    }
    assert_eq!(
        seen.count_ones() as usize,
        Rule::ALL.len(),
        "every rule is reached"
    );
}

/// For one pair of generations per row of the table, all pairs of states.
#[test]
fn every_pair_of_states() {
    let side = |node, current, bitmap, history: &[u64]| Side {
        current,
        bitmap,
        history: history.to_vec(),
        ..generations(node).swap_remove(0)
    };
    let rows = [
        (side(0, 4, 0, &[]), side(1, 0, 0, &[])),
        (side(0, 4, 0, &[]), side(1, X | 1, 4, &[])),
        (side(0, X, 0, &[]), side(1, X | 1, 0, &[])),
        (side(0, X, Y, &[]), side(1, X, 0, &[Y])),
        (side(0, X, 0, &[]), side(1, Y, X, &[])),
        (side(0, X, Z, &[]), side(1, Y, 0, &[Z, X])),
        (side(0, X, Z, &[]), side(1, Y, Z | 1, &[])),
        (side(0, X, 0, &[Z]), side(1, Y, 0, &[Z])),
        (side(0, X, 0, &[]), side(1, Y, 0, &[])),
    ];
    for (mut a, mut b) in rows {
        for sa in 0..STATES {
            set_state(&mut a, sa);
            for sb in 0..STATES {
                set_state(&mut b, sb);
                for ctx in 0..CONTEXTS {
                    let judgement = check(&a, &b, &context(ctx));
                    if judgement.direction == Direction::Refuse {
                        check_refusal(&a, &b, &judgement);
                    }
                }
            }
        }
    }
}

/// A stride through the whole product, with the words.
#[test]
fn every_decision_says_why_and_every_refusal_names_a_way_out() {
    let (all_a, all_b) = (generations(0), generations(1));
    let contexts = CONTEXTS * POLICIES;
    let size = all_a.len() * all_b.len() * STATES * STATES * contexts;
    // Coprime to the size, so that no combination of digits is left out.
    let stride = 48_271_000_003usize;
    let mut at = 0usize;
    for _ in 0..60_000 {
        at = (at + stride) % size;
        let mut rest = at;
        let mut digit = |base: usize| {
            let digit = rest % base;
            rest /= base;
            digit
        };
        let (mut a, mut b) = (
            all_a[digit(all_a.len())].clone(),
            all_b[digit(all_b.len())].clone(),
        );
        set_state(&mut a, digit(STATES));
        set_state(&mut b, digit(STATES));
        let ctx = context(digit(contexts));
        check(&a, &b, &ctx);
        check_words(&decide(&a, &b, &ctx), &decide(&b, &a, &ctx));
        let (a, b) = follow_way_out(a, b, &ctx);
        let d = decide(&a, &b, &ctx);
        assert_ne!(
            d.direction,
            Direction::Refuse,
            "a trap: {a:?}\n{b:?}\n{ctx:?}\n{d:?}"
        );
    }
}

fn check_words(mine: &Decision, theirs: &Decision) {
    assert_eq!(
        (&mine.reason, &mine.way_out),
        (&theirs.reason, &theirs.way_out)
    );
    assert!(
        mine.reason.contains("node 0 (") && mine.reason.contains("node 1"),
        "{mine:?}"
    );
    assert_eq!(
        mine.way_out.is_some(),
        mine.direction == Direction::Refuse,
        "{mine:?}"
    );
    if let Some(way_out) = &mine.way_out {
        assert!(way_out.contains("`twinblk "), "{way_out}");
    }
}

/// What the administrator does about a refusal, until there is none. No state is a trap.
fn follow_way_out(mut a: Side, mut b: Side, ctx: &Context) -> (Side, Side) {
    for _ in 0..6 {
        for side in [&mut a, &mut b] {
            // Only a Primary's clients rely on anything.
            if side.role != Role::Primary {
                side.relies = 0;
            }
        }
        let decision = decide(&a, &b, ctx);
        if let (Direction::Yield, Some(settled)) = (decision.direction, decision.settled) {
            let victim = if settled.victim == a.node {
                &mut a
            } else {
                &mut b
            };
            victim.role = Role::Secondary;
            victim.discard_my_data = decision.split_brain;
            continue;
        }
        if decision.direction != Direction::Refuse {
            return (a, b);
        }
        match decision.rule {
            Rule::BitmapBoth | Rule::HistoryBoth => {
                let b_is_victim = a.disk != DiskState::Inconsistent;
                let (keep, victim) = if b_is_victim {
                    (&mut a, &mut b)
                } else {
                    (&mut b, &mut a)
                };
                if keep.disk == DiskState::Inconsistent {
                    keep.disk = DiskState::UpToDate;
                }
                keep.discard_my_data = false;
                victim.discard_my_data = true;
                victim.role = Role::Secondary;
            }
            Rule::Unrelated | Rule::JustCreatedBoth => {
                // create-md: both may turn out to be fresh, which is a state one is told how to
                // leave without connecting first.
                b = Side {
                    current: 4,
                    bitmap: 0,
                    history: Vec::new(),
                    disk: DiskState::Inconsistent,
                    role: Role::Secondary,
                    ..b
                };
            }
            Rule::BothInconsistent => {
                let mut g =
                    crate::generations::Generations::from_parts(a.current, [0; 16], a.history);
                g.bitmap[1] = a.bitmap;
                g.force_new_current(0x990, [NodeId(1)].into_iter());
                a = Side {
                    current: g.current,
                    bitmap: g.bitmap[1],
                    history: g.history().collect(),
                    disk: DiskState::UpToDate,
                    role: Role::Primary,
                    ..a
                };
                b.role = Role::Secondary;
            }
            Rule::OtherGeneration => {
                for side in [&mut a, &mut b] {
                    if side.relies != 0 {
                        side.role = Role::Secondary;
                    }
                }
            }
            Rule::TwoPrimaries => b.role = Role::Secondary,
            Rule::RoleConflict => {
                a.role = Role::Secondary;
                b.role = Role::Secondary;
            }
            // Half a copy is given up by order.
            Rule::UnfinishedResync => {
                a.discard_my_data = a.disk == DiskState::Inconsistent;
                b.discard_my_data = b.disk == DiskState::Inconsistent;
            }
            rule => panic!("{rule:?} does not refuse"),
        }
    }
    (a, b)
}

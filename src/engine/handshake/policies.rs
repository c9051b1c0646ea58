//! Which copy gives way: in a split brain by the administrator's order or by the configured policy, and
//! where the generations demand to overwrite a Primary by `rr-conflict`. Pure, and alike on both nodes.
//!
//! Invariants:
//! * under `disconnect` nothing is ever given up without an order;
//! * an order counts before any policy, and a policy only where the bitmaps of both are relative to the
//!   same generation (rule `bitmap-both`): else nobody can say what either has changed;
//! * a Primary is never overwritten as such: it is demoted first, and then both talk anew.

use super::{Amount, Context, Direction, Judgement, Rule, Side, prefer};
use crate::ids::NodeId;
use crate::split_brain::{AfterSb0Pri, AfterSb1Pri, AfterSb2Pri, RrConflict};

/// The option that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// `after-sb-0pri`.
    Zero(AfterSb0Pri),
    /// `after-sb-1pri`, and the policy it goes back to.
    One(AfterSb1Pri, AfterSb0Pri),
    /// `after-sb-2pri`, and the policy it goes back to.
    Two(AfterSb2Pri, AfterSb0Pri),
    /// `rr-conflict`.
    Conflict(RrConflict),
}

/// What the role of the victim asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Demotion {
    /// It is Secondary: the resync may start.
    NotNeeded,
    /// It is Primary and nobody uses it: it is demoted, then both talk anew.
    First,
    /// It is Primary: its clients get errors, it is demoted, then both talk anew.
    Forced,
    /// It is Primary and in use: its handler is called, and both part.
    Handler,
}

/// Which copy a policy gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Settled {
    /// By which option.
    pub policy: Policy,
    /// Whose copy.
    pub victim: NodeId,
    /// What happens first.
    pub demotion: Demotion,
}

/// The one place where a split brain is resolved.
pub(super) fn resolve_split_brain(
    me: &Side,
    peer: &Side,
    ctx: &Context,
    rule: Rule,
    amount: Amount,
) -> Judgement {
    let refused = Judgement {
        split_brain: true,
        ..Judgement::refuse(rule)
    };
    if me.discard_my_data || peer.discard_my_data {
        return by_order(me, peer, amount, refused);
    }
    if rule != Rule::BitmapBoth {
        return refused;
    }
    match settle(me, peer, ctx) {
        None => refused,
        Some(settled) => give_up(me, peer, settled, amount, refused),
    }
}

fn by_order(me: &Side, peer: &Side, amount: Amount, refused: Judgement) -> Judgement {
    let Some(i_am_victim) = prefer(me.discard_my_data, peer.discard_my_data) else {
        return refused;
    };
    let (victim, source) = if i_am_victim { (me, peer) } else { (peer, me) };
    if victim.is_primary() || source.is_inconsistent() {
        return refused;
    }
    Judgement {
        direction: Direction::source_if(!i_am_victim),
        amount,
        ..refused
    }
}

fn give_up(
    me: &Side,
    peer: &Side,
    settled: Settled,
    amount: Amount,
    refused: Judgement,
) -> Judgement {
    let i_am_victim = settled.victim == me.node;
    let source = if i_am_victim { peer } else { me };
    if source.is_inconsistent() {
        return refused;
    }
    let (direction, amount) = match settled.demotion {
        Demotion::NotNeeded => (Direction::source_if(!i_am_victim), amount),
        Demotion::First | Demotion::Forced => (Direction::Yield, Amount::Nothing),
        Demotion::Handler => (Direction::Refuse, Amount::Nothing),
    };
    Judgement {
        direction,
        amount,
        settled: Some(settled),
        ..refused
    }
}

/// Asks the policy for as many Primaries as there are now.
fn settle(me: &Side, peer: &Side, ctx: &Context) -> Option<Settled> {
    let zero = ctx.policies.zero_primaries;
    let by_zero = || victim_without_primaries(me, peer, zero);
    let primary = me.is_primary();
    let (policy, i_am_victim, in_use) = match (primary, peer.is_primary()) {
        (false, false) => (Policy::Zero(zero), by_zero()?, Demotion::Handler),
        (true, true) => {
            let two = ctx.policies.two_primaries;
            let in_use = match two {
                AfterSb2Pri::Disconnect => return None,
                AfterSb2Pri::ViolentlyAs0p => Demotion::Forced,
                AfterSb2Pri::CallPriLostAfterSb => Demotion::Handler,
            };
            (Policy::Two(two, zero), by_zero()?, in_use)
        }
        _ => {
            let one = ctx.policies.one_primary;
            let (i_am_victim, in_use) = match one {
                AfterSb1Pri::Disconnect => return None,
                AfterSb1Pri::DiscardSecondary => (!primary, Demotion::Handler),
                AfterSb1Pri::Consensus if by_zero()? == primary => return None,
                AfterSb1Pri::Consensus => (!primary, Demotion::Handler),
                AfterSb1Pri::CallPriLostAfterSb => (by_zero()?, Demotion::Handler),
                AfterSb1Pri::ViolentlyAs0p => (by_zero()?, Demotion::Forced),
            };
            (Policy::One(one, zero), i_am_victim, in_use)
        }
    };
    let other = crate::sabotage::is(crate::sabotage::Mistake::PolicyPicksTheOther);
    let i_am_victim = i_am_victim != (other && me.node < peer.node);
    let victim = if i_am_victim { me } else { peer };
    Some(Settled {
        policy,
        victim: victim.node,
        demotion: demotion(victim, in_use),
    })
}

fn demotion(victim: &Side, in_use: Demotion) -> Demotion {
    match (victim.is_primary(), victim.in_use) {
        (false, _) => Demotion::NotNeeded,
        (true, false) => Demotion::First,
        (true, true) => in_use,
    }
}

/// Whether I am the victim, by `after-sb-0pri`; nobody is if it cannot tell.
fn victim_without_primaries(me: &Side, peer: &Side, policy: AfterSb0Pri) -> Option<bool> {
    // Those that look at changes must come to something where others fail: a tie goes as it does
    // everywhere else, the lower node id is the source.
    let tie = || peer.node < me.node;
    let least = || match me.changed.cmp(&peer.changed) {
        core::cmp::Ordering::Less => true,
        core::cmp::Ordering::Greater => false,
        core::cmp::Ordering::Equal => tie(),
    };
    match policy {
        AfterSb0Pri::Disconnect => None,
        AfterSb0Pri::DiscardYoungerPrimary => {
            Some(prefer(!me.parted_as_primary, !peer.parted_as_primary).unwrap_or_else(least))
        }
        AfterSb0Pri::DiscardOlderPrimary => {
            Some(prefer(me.parted_as_primary, peer.parted_as_primary).unwrap_or_else(least))
        }
        AfterSb0Pri::DiscardZeroChanges => match (me.changed, peer.changed) {
            (0, 0) => Some(tie()),
            (0, _) => Some(true),
            (_, 0) => Some(false),
            _ => None,
        },
        AfterSb0Pri::DiscardLeastChanges => Some(least()),
        AfterSb0Pri::DiscardNode(node) if node == me.node => Some(true),
        AfterSb0Pri::DiscardNode(node) if node == peer.node => Some(false),
        AfterSb0Pri::DiscardNode(_) => None,
    }
}

/// The target would be a Primary: what `rr-conflict` says. `refused` is the refusal.
pub(super) fn conflict(target: &Side, ctx: &Context, refused: Judgement) -> Judgement {
    let in_use = match ctx.policies.conflict {
        RrConflict::Disconnect | RrConflict::RetryConnect => return refused,
        RrConflict::CallPriLost => Demotion::Handler,
        RrConflict::Violently => Demotion::Forced,
    };
    let settled = Settled {
        policy: Policy::Conflict(ctx.policies.conflict),
        victim: target.node,
        demotion: demotion(target, in_use),
    };
    let direction = match settled.demotion {
        Demotion::Handler => Direction::Refuse,
        _ => Direction::Yield,
    };
    Judgement {
        direction,
        settled: Some(settled),
        ..refused
    }
}

//! The decision in words: why, and what leads out of a refusal.

use super::{Amount, Context, Demotion, Direction, Judgement, Policy, Rule, Settled, Side};
use crate::split_brain::AfterSb0Pri;
use alloc::format;
use alloc::string::{String, ToString};

/// "node 0 (Primary, UpToDate)".
fn named(side: &Side) -> String {
    format!("{} ({:?}, {:?})", side.node, side.role, side.disk)
}

/// Lower node id first, so that both nodes say the same.
fn in_order<'a>(me: &'a Side, peer: &'a Side) -> (&'a Side, &'a Side) {
    if me.node <= peer.node {
        (me, peer)
    } else {
        (peer, me)
    }
}

/// The one for which it holds, if there is exactly one.
fn the_one<'a>(me: &'a Side, peer: &'a Side, holds: impl Fn(&Side) -> bool) -> Option<&'a Side> {
    match (holds(me), holds(peer)) {
        (true, false) => Some(me),
        (false, true) => Some(peer),
        _ => None,
    }
}

/// Why, in words.
pub(super) fn reason(me: &Side, peer: &Side, ctx: &Context, judgement: &Judgement) -> String {
    let (a, b) = in_order(me, peer);
    let mut text = match judgement.direction {
        Direction::None => no_sync(a, b, judgement.rule),
        Direction::Source => sync(me, peer, ctx, judgement),
        Direction::Target => sync(peer, me, ctx, judgement),
        Direction::Later => later(a, b, judgement.rule),
        Direction::Refuse => refusal(a, b, judgement),
        Direction::Yield => yields(a, b, judgement),
    };
    if !judgement.split_brain {
        for side in [a, b].into_iter().filter(|s| s.discard_my_data) {
            text.push_str(&format!(
                "; --discard-my-data on {} is ignored, for there is no split brain",
                side.node
            ));
        }
    }
    text
}

fn no_sync(a: &Side, b: &Side, rule: Rule) -> String {
    let (na, nb) = (named(a), named(b));
    match rule {
        Rule::Diskless => {
            format!("{na} and {nb}: without two disks there is nothing to synchronise")
        }
        Rule::JustCreatedBoth => format!(
            "{na} and {nb} were both just created: neither holds data yet; both stay Inconsistent \
             until one is forced to Primary or `new-current-uuid --clear-bitmap` declares them \
             equal"
        ),
        Rule::Reconnect => format!(
            "only the link between {na} and {nb} was lost, and nothing was under way: the copies \
             are equal"
        ),
        _ => format!("{na} and {nb} are of the same generation and no block is marked"),
    }
}

fn later(a: &Side, b: &Side, rule: Rule) -> String {
    let (na, nb) = (named(a), named(b));
    match rule {
        Rule::UnfinishedResync => format!(
            "{na} or {nb} was being brought to a generation that the other does not know: both wait \
             for a node that has it; if there is none, promote the complete copy with `primary --force`"
        ),
        Rule::BothInconsistent => {
            format!("neither {na} nor {nb} has a complete copy: both wait for a node that has one")
        }
        _ => format!(
            "{na} or {nb} is being brought up to date from a third node: what is left is decided \
             when that is over"
        ),
    }
}

fn sync(source: &Side, target: &Side, ctx: &Context, judgement: &Judgement) -> String {
    let (s, t) = (named(source), named(target));
    let why = match judgement.rule {
        Rule::JustCreatedOne => format!("{t} was just created, {s} has data"),
        Rule::BothOff => format!(
            "{s} and {t} both crashed as Primary; {}",
            chosen(source, target)
        ),
        Rule::Survivor | Rule::CrashedPrimary => crash(source, target, ctx),
        Rule::Reconnect => format!(
            "{s} and {t} have shared their data since, neither was restarted, and some blocks are \
             marked; {}",
            chosen(source, target)
        ),
        Rule::LeftoverBits => format!(
            "{s} and {t} are of the same generation, but blocks are marked; {}",
            chosen(source, target)
        ),
        Rule::Bitmap => format!(
            "{t} has the generation the bitmap of {s} is relative to, or one that came after it"
        ),
        Rule::UnfinishedResync => {
            format!(
                "{t} was being brought to a generation that {s} has or had, and was not finished"
            )
        }
        Rule::History => format!("{t} has a generation that {s} had earlier"),
        Rule::BitmapBoth | Rule::HistoryBoth => {
            let by = match judgement.settled {
                Some(settled) => format!("by {}", policy(settled.policy)),
                None if target.discard_my_data => "by order".to_string(),
                None => "for they are not whole".to_string(),
            };
            format!(
                "{s} and {t} have both changed, and the data of {} are given up {by}{}",
                target.node,
                changes(source, target)
            )
        }
        Rule::InconsistentDisk
            if judgement
                .overruled
                .is_some_and(|(_, d)| d != Direction::None) =>
        {
            format!(
                "{t} has no complete copy and cannot be the source (rule {} would have it); {s} \
                 has one",
                judgement.overruled.map_or("", |(rule, _)| rule.name())
            )
        }
        _ => format!("{t} has no complete copy, {s} has one"),
    };
    let amount = match judgement.amount {
        Amount::Full => "every block",
        _ => "the marked blocks",
    };
    format!(
        "{why}: {amount} will be copied from {} to {}",
        source.node, target.node
    )
}

fn crash(source: &Side, target: &Side, ctx: &Context) -> String {
    let (s, t) = (named(source), named(target));
    let by_protocol = source.crashed_primary == (ctx.protocol != super::Protocol::C);
    match (source.crashed_primary, by_protocol) {
        (true, true) => format!(
            "{s} crashed as Primary under protocol {:?} and may hold writes that {t} never got",
            ctx.protocol
        ),
        (false, true) => format!(
            "{t} crashed as Primary under protocol {:?} and may have lost writes that {s} has",
            ctx.protocol
        ),
        (true, false) => {
            format!(
                "{s} crashed as Primary, {t} did not; {}",
                chosen(source, target)
            )
        }
        (false, false) => {
            format!(
                "{t} crashed as Primary, {s} did not; {}",
                chosen(source, target)
            )
        }
    }
}

/// What made this one the source when the generations leave it open.
fn chosen(source: &Side, target: &Side) -> String {
    let n = source.node;
    let both_crashed = source.crashed_primary && target.crashed_primary;
    if source.is_primary() && !target.is_primary() {
        format!("{n} is Primary now")
    } else if target.crashed_secondary && !source.crashed_secondary && !both_crashed {
        format!("{} went down while it followed a Primary", target.node)
    } else if source.disk > target.disk {
        format!("{n} has the better disk")
    } else if !both_crashed && (source.dirty_bits > 0) != (target.dirty_bits > 0) {
        format!("{n} marked them")
    } else {
        format!("{n} has the lower id")
    }
}

fn refusal(a: &Side, b: &Side, judgement: &Judgement) -> String {
    let (na, nb) = (named(a), named(b));
    match judgement.rule {
        Rule::BitmapBoth | Rule::HistoryBoth => match judgement.settled {
            Some(settled) => settled_words(a, b, judgement, settled),
            None => split_brain(a, b),
        },
        Rule::UnfinishedResync => format!(
            "{na} or {nb} is half of a copy whose generation the other, the Primary, never had: data \
             that only a third node has in full, or had"
        ),
        Rule::Unrelated => format!("{na} and {nb} hold unrelated data: no generation in common"),
        Rule::JustCreatedBoth => {
            format!("{na} and {nb} claim usable data, yet both are marked as just created")
        }
        Rule::OtherGeneration => format!(
            "clients of the Primary among {na} and {nb} are served from the other's copy, which is \
             not of the generation that has all they were told is done"
        ),
        Rule::BothInconsistent => format!("neither {na} nor {nb} has a complete copy"),
        Rule::TwoPrimaries => {
            format!("{na} and {nb} are both Primary, which allow-two-primaries does not allow")
        }
        _ => {
            if let Some(settled) = judgement.settled {
                return settled_words(a, b, judgement, settled);
            }
            let rule = judgement.overruled.map_or("", |(rule, _)| rule.name());
            let primary = the_one(a, b, Side::is_primary).map_or_else(
                || format!("{na} and {nb}, one of which"),
                |primary| format!("{}, which", named(primary)),
            );
            let other =
                the_one(a, b, |s| !s.is_primary()).map_or_else(|| "the other".to_string(), named);
            format!(
                "the generations (rule {rule}) and disk states demand to overwrite {primary} is in \
                 use, from {other}"
            )
        }
    }
}

/// "after-sb-0pri = discard-zero-changes".
pub(super) fn policy(policy: Policy) -> String {
    let zero = |zero: AfterSb0Pri| match zero {
        AfterSb0Pri::DiscardNode(node) => format!("after-sb-0pri, which names {node}"),
        _ => format!("after-sb-0pri = {}", zero.name()),
    };
    match policy {
        Policy::Zero(value) => zero(value),
        Policy::One(value, back) => format!("after-sb-1pri = {} ({})", value.name(), zero(back)),
        Policy::Two(value, back) => format!("after-sb-2pri = {} ({})", value.name(), zero(back)),
        Policy::Conflict(value) => format!("rr-conflict = {}", value.name()),
    }
}

/// What each has changed since they parted, as far as anybody knows.
fn changes(one: &Side, other: &Side) -> String {
    let (a, b) = in_order(one, other);
    let told = |side: &Side| {
        let role = if side.parted_as_primary {
            ", Primary when they parted"
        } else {
            ""
        };
        format!("{}: {} bytes{role}", side.node, side.changed)
    };
    format!(
        " (changed at most since they parted: {}; {})",
        told(a),
        told(b)
    )
}

/// The first side gives up its role.
fn yields(a: &Side, b: &Side, judgement: &Judgement) -> String {
    match judgement.settled {
        Some(settled) => settled_words(a, b, judgement, settled),
        None => format!("{} and {}", named(a), named(b)),
    }
}

/// A policy has found a victim, which is Primary.
fn settled_words(a: &Side, b: &Side, judgement: &Judgement, settled: Settled) -> String {
    let (na, nb, victim) = (named(a), named(b), settled.victim);
    let why = if judgement.split_brain {
        format!(
            "{na} and {nb} have both changed independently of each other{}, and {} gives the data of \
             {victim} up",
            changes(a, b),
            policy(settled.policy)
        )
    } else {
        let rule = judgement.overruled.map_or("", |(rule, _)| rule.name());
        format!(
            "the generations of {na} and {nb} (rule {rule}) demand to overwrite {victim}, and {} allows \
             it",
            policy(settled.policy)
        )
    };
    let how = match settled.demotion {
        Demotion::NotNeeded => "",
        Demotion::First => "; it is Primary and is demoted first",
        Demotion::Forced => "; it is Primary and in use: its clients get errors, and it is demoted",
        Demotion::Handler => "; but it is Primary and in use: its handler is called, nothing else",
    };
    format!("{why}{how}")
}

fn split_brain(a: &Side, b: &Side) -> String {
    let mut text = format!(
        "{} and {} have both changed independently of each other{}",
        named(a),
        named(b),
        changes(a, b)
    );
    if a.discard_my_data && b.discard_my_data {
        text.push_str("; both were told to discard their data, one must keep them");
    } else if let Some(victim) = the_one(a, b, |s| s.discard_my_data) {
        if victim.is_primary() {
            text.push_str(&format!(
                "; {} cannot discard its data while Primary",
                victim.node
            ));
        } else {
            let other = if victim.node == a.node { b } else { a };
            text.push_str(&format!(
                "; {} has no complete copy to take instead",
                other.node
            ));
        }
    }
    text
}

/// The command that leads out of a refusal.
pub(super) fn way_out(me: &Side, peer: &Side, judgement: &Judgement) -> Option<String> {
    if judgement.direction != Direction::Refuse {
        return None;
    }
    let (a, b) = in_order(me, peer);
    Some(match judgement.rule {
        Rule::BitmapBoth | Rule::HistoryBoth => split_brain_way_out(a, b),
        Rule::Unrelated | Rule::JustCreatedBoth => {
            "on the node whose data are to be overwritten run `twinblk down RES`, `twinblk \
             create-md --force RES` and `twinblk up RES`, then on the other `twinblk connect RES`"
                .to_string()
        }
        Rule::UnfinishedResync => {
            "connect the node that has that generation; or, if it is lost, give the half copy up: on \
             its node run `twinblk connect --discard-my-data RES`, on the other `twinblk connect RES`"
                .to_string()
        }
        Rule::OtherGeneration => {
            "connect the node that has that generation; or attach the Primary's own disk, or give up what \
             clients were told: on the Primary stop what uses the device and run `twinblk secondary \
             RES`, then on both `twinblk connect RES`"
                .to_string()
        }
        Rule::BothInconsistent => {
            "on the node with the better copy run `twinblk primary --force RES` (what it lacks \
             stays lost), then on both `twinblk connect RES`"
                .to_string()
        }
        Rule::TwoPrimaries => "on one of them run `twinblk secondary RES`, then on both `twinblk \
                               connect RES`"
            .to_string(),
        _ => {
            let node = the_one(a, b, Side::is_primary)
                .map_or_else(|| "one of them".to_string(), |side| side.node.to_string());
            format!(
                "on {node} stop what uses the device and run `twinblk secondary RES`, then on both \
                 `twinblk connect RES`: what only {node} has will be overwritten"
            )
        }
    })
}

fn split_brain_way_out(a: &Side, b: &Side) -> String {
    // A copy with holes is the one to give up.
    let victim = match the_one(a, b, Side::is_inconsistent) {
        Some(side) => side.node.to_string(),
        None => "the node whose data are to be given up".to_string(),
    };
    let demote = match the_one(a, b, Side::is_primary) {
        None if !a.is_primary() => String::new(),
        Some(side) => format!(" (if that is {}: first `twinblk secondary RES`)", side.node),
        None => " (first `twinblk secondary RES`)".to_string(),
    };
    let force = if a.is_inconsistent() && b.is_inconsistent() {
        "`twinblk primary --force RES`, then "
    } else {
        ""
    };
    format!(
        "on {victim} run `twinblk connect --discard-my-data RES`{demote}; on the node that keeps \
         its data run {force}`twinblk connect RES`"
    )
}

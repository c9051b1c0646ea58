//! The decision at connect: from the facts of both sides to who overwrites whom, by how much, and
//! in words why. A pure function, so both nodes compute it by themselves, from the same facts, and
//! must come to mirror images; they compare before anything is changed.
//!
//! Three steps, each may overrule the one before: what the generations say, what the disk states
//! say, what the roles say. Two laws stand above every rule:
//! 1. never "no sync" while either side has a bit set or crashed as Primary without having
//!    reconciled: such copies are reconciled by bitmap whatever the generations say;
//! 2. never UpToDate on both sides with an out-of-sync count above zero.
//!
//! Nothing is ever overwritten on a guess: a split brain takes the order `discard_my_data` or a
//! configured policy ([`policies`]), and a refusal always names a command that leads out of it. The rules are in [`Rule`], in order, and as
//! a table in `docs/handshake.md`.

mod policies;
mod rule;
mod words;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod policies_tests;
#[cfg(test)]
mod stories_tests;
#[cfg(test)]
mod tests;

pub use policies::{Demotion, Policy, Settled};
pub use rule::Rule;

use crate::generations::{is_created, same};
use crate::ids::NodeId;
use crate::split_brain::{Policies, RrConflict};
use alloc::string::String;
use alloc::vec::Vec;
use policies::resolve_split_brain;
use twinblk_protocol::control::{DiskState, Protocol, Role};

/// The facts of one side, about one volume, as seen towards the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Which node this is.
    pub node: NodeId,
    /// Its current generation.
    pub current: u64,
    /// The generation its bitmap for the other side is relative to; 0 = none.
    pub bitmap: u64,
    /// Older generations, newest first.
    pub history: Vec<u64>,
    /// Generation an unfinished resync was bringing it to; 0 = none.
    pub toward: u64,
    /// State of its disk.
    pub disk: DiskState,
    /// Its role now.
    pub role: Role,
    /// Bits set for the other side.
    pub dirty_bits: u64,
    /// Every bit is set. Without influence on the decision: the bits are there.
    pub full_bitmap: bool,
    /// It was Primary when it went down, and has not reconciled since.
    pub crashed_primary: bool,
    /// The other's incarnation is the one it was last connected with.
    pub same_incarnation_seen: bool,
    /// The administrator gave up this copy: `connect --discard-my-data`; or a policy did, and the node
    /// has stopped being Primary for it.
    pub discard_my_data: bool,
    /// It went down while it followed a Primary, and has not reconciled since (three and more nodes).
    pub crashed_secondary: bool,
    /// It is the target of a resync from a third node.
    pub busy: bool,
    /// It is Primary and its clients are served from the other side's copy: the generation that one must
    /// have; 0: they are not.
    pub relies: u64,
    /// … or this one, which it was told to begin; 0: none.
    pub relies_next: u64,
    /// Bytes marked for the other side, of all volumes of the resource: so much it has changed since
    /// the two parted, at most.
    pub changed: u64,
    /// It was Primary when the two lost contact.
    pub parted_as_primary: bool,
    /// A client holds its export.
    pub in_use: bool,
}

impl Side {
    fn has_disk(&self) -> bool {
        matches!(
            self.disk,
            DiskState::Inconsistent
                | DiskState::Outdated
                | DiskState::Consistent
                | DiskState::UpToDate
        )
    }

    /// Its clients are served from the other side's copy, and that is of another generation.
    fn relies_on_another(&self, other: &Self) -> bool {
        let is = |g: u64| !is_created(g) && same(g, other.current);
        self.relies != 0 && !is(self.relies) && !is(self.relies_next)
    }

    fn is_inconsistent(&self) -> bool {
        self.disk == DiskState::Inconsistent
    }

    fn is_primary(&self) -> bool {
        self.role == Role::Primary
    }

    /// Whether the other side's generation is known here as an older one.
    fn remembers(&self, generation: u64) -> bool {
        self.history
            .iter()
            .any(|&h| !is_created(h) && same(h, generation))
    }

    /// The bits for the other side are relative to this generation, or to one that came before it: then
    /// they cover more than they must. That is so when the other side began to follow a new generation
    /// and its word was lost, or when a third node brought it there.
    fn marks_cover(&self, generation: u64) -> bool {
        let place = |g: u64| {
            self.history
                .iter()
                .position(|&h| !is_created(g) && same(h, g))
        };
        match (place(generation), place(self.bitmap)) {
            (Some(theirs), Some(base)) => theirs <= base,
            _ => false,
        }
    }

    /// The other side is a resync target that lost its source, and this side has, or had, the
    /// generation it was being brought to.
    fn can_finish(&self, target: &Self) -> bool {
        target.is_inconsistent()
            && !self.is_inconsistent()
            && !is_created(target.toward)
            && (same(self.current, target.toward) || self.remembers(target.toward))
    }

    /// All real generations this side knows of.
    fn known(&self) -> impl Iterator<Item = u64> + '_ {
        [self.current, self.bitmap]
            .into_iter()
            .chain(self.history.iter().copied())
            .filter(|&g| !is_created(g))
    }
}

/// Settings both nodes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Replication protocol of the connection.
    pub protocol: Protocol,
    /// `allow-two-primaries`.
    pub allow_two_primaries: bool,
    /// The resource has more than two nodes: what these two lack a third may have.
    pub group: bool,
    /// Policies after a split brain and for conflicts of roles.
    pub policies: Policies,
}

/// What becomes of the node that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// No resync.
    None,
    /// It overwrites the peer.
    Source,
    /// It is overwritten.
    Target,
    /// The connection stays; what is to be done is decided anew when a resync from a third node is
    /// over (DRBD's resync dependency).
    Later,
    /// No connection.
    Refuse,
    /// No connection yet: one side gives up its role first ([`Settled`]), then both talk anew.
    Yield,
}

impl Direction {
    /// The same decision as the other node sees it.
    pub fn mirrored(self) -> Self {
        match self {
            Self::Source => Self::Target,
            Self::Target => Self::Source,
            unchanged => unchanged,
        }
    }

    fn source_if(me: bool) -> Self {
        if me { Self::Source } else { Self::Target }
    }
}

/// How much a resync covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Amount {
    /// Nothing is synchronised.
    Nothing,
    /// What the bitmaps of both sides, merged, have marked.
    Bitmap,
    /// Every block.
    Full,
}

/// What follows from the facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What decided.
    pub rule: Rule,
    /// Seen from the first side.
    pub direction: Direction,
    /// How much.
    pub amount: Amount,
    /// Why, in words; the same on both nodes.
    pub reason: String,
    /// For a refusal the command that leads out of it. `RES` stands for the resource's name.
    pub way_out: Option<String>,
    /// Both copies have changed independently. Together with a direction: an order or a policy resolved
    /// it.
    pub split_brain: bool,
    /// The policy that decided who gives way.
    pub settled: Option<Settled>,
    /// Refused for now: try again without being told to.
    pub retry: bool,
    /// The first side's bitmap UUID is left over from a resync whose end was confirmed on one side
    /// only; clear it (the old value goes to the history).
    pub finish_leftover: bool,
}

/// Decides what happens when two nodes meet. `decide(b, a)` is the mirror image of `decide(a, b)`.
pub fn decide(me: &Side, peer: &Side, ctx: &Context) -> Decision {
    let judgement = judge(me, peer, ctx);
    let Judgement {
        rule,
        direction,
        amount,
        split_brain,
        settled,
        ..
    } = judgement;
    Decision {
        rule,
        direction,
        amount,
        reason: words::reason(me, peer, ctx, &judgement),
        way_out: words::way_out(me, peer, &judgement),
        split_brain,
        settled,
        retry: direction == Direction::Refuse
            && rule == Rule::RoleConflict
            && ctx.policies.conflict == RrConflict::RetryConnect,
        finish_leftover: finish_leftover(me, &judgement),
    }
}

/// A decision without words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Judgement {
    rule: Rule,
    direction: Direction,
    amount: Amount,
    split_brain: bool,
    /// What the generations said before disk states and roles overruled it.
    overruled: Option<(Rule, Direction)>,
    settled: Option<Settled>,
}

impl Judgement {
    fn new(rule: Rule, direction: Direction, amount: Amount) -> Self {
        Self {
            rule,
            direction,
            amount,
            split_brain: false,
            overruled: None,
            settled: None,
        }
    }

    fn nothing(rule: Rule) -> Self {
        Self::new(rule, Direction::None, Amount::Nothing)
    }

    fn refuse(rule: Rule) -> Self {
        Self::new(rule, Direction::Refuse, Amount::Nothing)
    }

    /// A later step decides otherwise.
    fn overrule(self, rule: Rule, direction: Direction, amount: Amount) -> Self {
        let overruled = self.overruled.or(Some((self.rule, self.direction)));
        Self {
            rule,
            direction,
            amount,
            overruled,
            ..self
        }
    }
}

fn judge(me: &Side, peer: &Side, ctx: &Context) -> Judgement {
    let other = me.relies_on_another(peer) && peer.has_disk()
        || peer.relies_on_another(me) && me.has_disk();
    let judgement = if other
        && !ctx.group
        && !crate::sabotage::is(crate::sabotage::Mistake::ServeOtherGeneration)
    {
        Judgement::refuse(Rule::OtherGeneration)
    } else if me.has_disk() && peer.has_disk() {
        let judgement = by_disk_states(me, peer, by_generations(me, peer, ctx));
        by_reliance(me, peer, ctx, judgement)
    } else {
        Judgement::nothing(Rule::Diskless)
    };
    let judgement = by_roles(me, peer, ctx, judgement);
    if ctx.group {
        by_others(me, peer, judgement)
    } else {
        judgement
    }
}

/// Last step, with more than two nodes: a copy has one source at a time, and when neither of these
/// two is whole a third may be.
fn by_others(me: &Side, peer: &Side, judgement: Judgement) -> Judgement {
    let later = |rule| judgement.overrule(rule, Direction::Later, Amount::Nothing);
    let refused = judgement.direction == Direction::Refuse;
    let (i_am_half, it_is_half) = (me.is_inconsistent(), peer.is_inconsistent());
    if i_am_half && it_is_half && refused {
        return later(Rule::BothInconsistent);
    }
    let (source, target) = match judgement.direction {
        Direction::Source => (me, peer),
        Direction::Target => (peer, me),
        Direction::Refuse if it_is_half => (me, peer),
        Direction::Refuse if i_am_half => (peer, me),
        _ => return judgement,
    };
    // Half a copy shows that there is a generation which the source never had: who has it may come
    // back. Its own current UUID is a name that others do not know, so it never proves a split brain.
    let half = target.is_inconsistent() && !is_created(target.toward) && !target.is_primary();
    let known = same(source.current, target.toward) || source.remembers(target.toward);
    if half && (refused || !known) {
        if target.discard_my_data && !source.discard_my_data {
            let direction = Direction::source_if(source.node == me.node);
            return Judgement {
                split_brain: true,
                ..judgement.overrule(Rule::UnfinishedResync, direction, Amount::Full)
            };
        }
        if source.is_primary() {
            return Judgement {
                split_brain: true,
                ..judgement.overrule(Rule::UnfinishedResync, Direction::Refuse, Amount::Nothing)
            };
        }
        return later(Rule::UnfinishedResync);
    }
    if refused {
        return judgement;
    }
    let two = crate::sabotage::is(crate::sabotage::Mistake::TwoSources);
    if target.busy && !source.is_primary() && !two {
        return later(Rule::BusyElsewhere);
    }
    judgement
}

/// A Primary whose clients are served from the other side's copy needs it more than its own: that one is
/// brought up to date, or stays out of use. It is never a source.
fn by_reliance(me: &Side, peer: &Side, ctx: &Context, judgement: Judgement) -> Judgement {
    let must = match (me.relies != 0, peer.relies != 0) {
        (true, false) => Direction::Target,
        (false, true) => Direction::Source,
        (true, true) => Direction::Later,
        (false, false) => return judgement,
    };
    if ctx.group || judgement.direction == must {
        return judgement;
    }
    Judgement::nothing(Rule::Diskless)
}

/// First step: the rows of the table, first hit wins.
fn by_generations(me: &Side, peer: &Side, ctx: &Context) -> Judgement {
    match (is_created(me.current), is_created(peer.current)) {
        (true, true) if !me.is_inconsistent() && !peer.is_inconsistent() => {
            return Judgement::refuse(Rule::JustCreatedBoth);
        }
        (true, true) => return Judgement::nothing(Rule::JustCreatedBoth),
        (true, false) | (false, true) => {
            let direction = Direction::source_if(is_created(peer.current));
            return Judgement::new(Rule::JustCreatedOne, direction, Amount::Full);
        }
        (false, false) => {}
    }
    if same(me.current, peer.current) {
        return equal_generations(me, peer, ctx);
    }
    // From here on both currents are real and differ. `same` of a real one and 0 or 4 never holds.
    let behind = (same(me.current, peer.bitmap), same(peer.current, me.bitmap));
    if behind.0 != behind.1 {
        return Judgement::new(Rule::Bitmap, Direction::source_if(behind.1), Amount::Bitmap);
    }
    if behind.0 {
        // Each is the other's base: neither is the newer one.
        return resolve_split_brain(me, peer, ctx, Rule::HistoryBoth, Amount::Full);
    }
    let older = (peer.remembers(me.current), me.remembers(peer.current));
    if older.0 != older.1 {
        let (newer, target) = if older.1 { (me, peer) } else { (peer, me) };
        let (rule, amount) = if newer.marks_cover(target.current) {
            (Rule::Bitmap, Amount::Bitmap)
        } else {
            (Rule::History, Amount::Full)
        };
        return Judgement::new(rule, Direction::source_if(older.1), amount);
    }
    // Half a copy is worth nothing by itself.
    let finishes = (me.can_finish(peer), peer.can_finish(me));
    if finishes.0 != finishes.1 {
        let direction = Direction::source_if(finishes.0);
        return Judgement::new(Rule::UnfinishedResync, direction, Amount::Full);
    }
    if !is_created(me.bitmap) && same(me.bitmap, peer.bitmap) {
        return resolve_split_brain(me, peer, ctx, Rule::BitmapBoth, Amount::Bitmap);
    }
    if me
        .known()
        .any(|mine| peer.known().any(|theirs| same(mine, theirs)))
    {
        return resolve_split_brain(me, peer, ctx, Rule::HistoryBoth, Amount::Full);
    }
    Judgement::refuse(Rule::Unrelated)
}

/// Equal current UUIDs: crashes first, for an unclean node must never count as in sync; then bits.
fn equal_generations(me: &Side, peer: &Side, ctx: &Context) -> Judgement {
    // An Outdated disk yields to a better one (if it is the Primary's, the roles refuse). Else who
    // is Primary now is source in any case.
    let outdated = |side: &Side| side.disk == DiskState::Outdated;
    let compelled = prefer(!outdated(me), !outdated(peer))
        .or_else(|| prefer(me.is_primary(), peer.is_primary()));
    // With more than two nodes a crash is remembered until all have met, so these two may have
    // reconciled: what a crash left is marked.
    if ctx.group && me.dirty_bits == 0 && peer.dirty_bits == 0 {
        return without_crash(me, peer, compelled);
    }
    let lower_id = me.node < peer.node;
    let (rule, source) = match (me.crashed_primary, peer.crashed_primary) {
        (true, true) => (
            Rule::BothOff,
            prefer(me.disk > peer.disk, peer.disk > me.disk),
        ),
        (false, false) => return without_crash(me, peer, compelled),
        _ if ctx.protocol == Protocol::C => (Rule::Survivor, Some(peer.crashed_primary)),
        _ if crate::sabotage::is(crate::sabotage::Mistake::InvertCrashedPrimary) => {
            (Rule::CrashedPrimary, Some(peer.crashed_primary))
        }
        _ => (Rule::CrashedPrimary, Some(me.crashed_primary)),
    };
    let i_am_source = compelled.or(source).unwrap_or(lower_id);
    Judgement::new(rule, Direction::source_if(i_am_source), Amount::Bitmap)
}

fn without_crash(me: &Side, peer: &Side, compelled: Option<bool>) -> Judgement {
    let blip = me.same_incarnation_seen && peer.same_incarnation_seen;
    if me.dirty_bits == 0 && peer.dirty_bits == 0 {
        return Judgement::nothing(if blip {
            Rule::Reconnect
        } else {
            Rule::SameGeneration
        });
    }
    let i_am_source = compelled
        .or_else(|| prefer(peer.crashed_secondary, me.crashed_secondary))
        .or_else(|| prefer(me.disk > peer.disk, peer.disk > me.disk))
        .or_else(|| prefer(me.dirty_bits > 0, peer.dirty_bits > 0))
        .unwrap_or(me.node < peer.node);
    let rule = if blip {
        Rule::Reconnect
    } else {
        Rule::LeftoverBits
    };
    Judgement::new(rule, Direction::source_if(i_am_source), Amount::Bitmap)
}

/// Whether I am preferred, if exactly one of us is.
fn prefer(me: bool, peer: bool) -> Option<bool> {
    (me != peer).then_some(me)
}

/// Second step: an Inconsistent disk is never a source.
fn by_disk_states(me: &Side, peer: &Side, judgement: Judgement) -> Judgement {
    if matches!(judgement.direction, Direction::Refuse | Direction::Yield) {
        return judgement;
    }
    let must = match (me.is_inconsistent(), peer.is_inconsistent()) {
        (false, false) => return judgement,
        (true, true) if judgement.rule == Rule::JustCreatedBoth => return judgement,
        (true, true) => {
            return judgement.overrule(Rule::BothInconsistent, Direction::Refuse, Amount::Nothing);
        }
        (i_am, _) => Direction::source_if(!i_am),
    };
    // Without a bit nothing tells what the Inconsistent disk lacks, except by rule `bitmap`, where
    // the target's generation says that it was in a resync by just these bits.
    let no_bits = me.dirty_bits == 0 && peer.dirty_bits == 0;
    if judgement.direction == must {
        let record = judgement.rule == Rule::Bitmap || judgement.rule == Rule::BitmapBoth;
        let amount = if no_bits && !record {
            Amount::Full
        } else {
            judgement.amount
        };
        return Judgement {
            amount,
            ..judgement
        };
    }
    let full =
        no_bits || judgement.amount == Amount::Full || judgement.rule == Rule::JustCreatedBoth;
    let amount = if full { Amount::Full } else { Amount::Bitmap };
    judgement.overrule(Rule::InconsistentDisk, must, amount)
}

/// Third step: never two writers, never a resync under a Primary in use.
fn by_roles(me: &Side, peer: &Side, ctx: &Context, judgement: Judgement) -> Judgement {
    let target = match judgement.direction {
        Direction::Refuse | Direction::Later | Direction::Yield => return judgement,
        Direction::None => None,
        Direction::Source => Some(peer),
        Direction::Target => Some(me),
    };
    if me.is_primary() && peer.is_primary() && !ctx.allow_two_primaries {
        return judgement.overrule(Rule::TwoPrimaries, Direction::Refuse, Amount::Nothing);
    }
    let Some(target) = target.filter(|t| t.is_primary()) else {
        return judgement;
    };
    // An Inconsistent Primary reads from its peer and may be repaired, unless its own generation is
    // the newer one: then its application would see old data come back.
    let was_source = judgement
        .overruled
        .is_some_and(|(_, d)| d == judgement.direction.mirrored());
    // Its clients are served from the other side, and see nothing of it.
    if target.relies != 0 && !ctx.group {
        return judgement;
    }
    if target.is_inconsistent() && (!was_source || same(me.current, peer.current)) {
        return judgement;
    }
    let refused = judgement.overrule(Rule::RoleConflict, Direction::Refuse, Amount::Nothing);
    policies::conflict(target, ctx, refused)
}

fn finish_leftover(me: &Side, judgement: &Judgement) -> bool {
    judgement.direction == Direction::None
        && matches!(judgement.rule, Rule::SameGeneration | Rule::Reconnect)
        && me.bitmap != 0
}

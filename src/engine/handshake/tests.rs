//! One test per row of the table, per trap, and per story that led to it.

use super::{Amount, Context, Decision, Direction, Rule, Side, decide};
use crate::generations::Generations;
use crate::ids::NodeId;
use crate::metadata::UUID_JUST_CREATED;
use twinblk_protocol::control::{DiskState, Protocol, Role};

pub(super) const X: u64 = 0x10;
pub(super) const Y: u64 = 0x20;
pub(super) const Z: u64 = 0x30;
pub(super) const W: u64 = 0x40;
pub(super) const A: NodeId = NodeId(0);
pub(super) const B: NodeId = NodeId(1);

pub(super) fn side(node: NodeId, current: u64) -> Side {
    Side {
        node,
        current,
        bitmap: 0,
        history: Vec::new(),
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
    }
}

macro_rules! setters {
    ($($name:ident($($arg:ident: $type:ty)?) $field:ident = $value:expr;)+) => {
        impl Side {
            $(pub(super) fn $name(mut self $(, $arg: $type)?) -> Self {
                self.$field = $value;
                self
            })+
        }
    };
}

setters! {
    bitmap(uuid: u64) bitmap = uuid;
    current(uuid: u64) current = uuid;
    history(uuids: &[u64]) history = uuids.to_vec();
    disk(state: DiskState) disk = state;
    broken() disk = DiskState::Inconsistent;
    primary() role = Role::Primary;
    secondary() role = Role::Secondary;
    bits(n: u64) dirty_bits = n;
    changed(n: u64) changed = n;
    parted() parted_as_primary = true;
    used() in_use = true;
    crashed() crashed_primary = true;
    seen() same_incarnation_seen = true;
    unseen() same_incarnation_seen = false;
    discard() discard_my_data = true;
    keep() discard_my_data = false;
}

pub(super) fn created(node: NodeId) -> Side {
    Side {
        disk: DiskState::Inconsistent,
        ..side(node, UUID_JUST_CREATED)
    }
}

/// The side with these generations, towards the other of the two nodes.
pub(super) fn with(g: &Generations, node: NodeId) -> Side {
    let peer = if node == A { B } else { A };
    Side {
        bitmap: g.base_for(peer),
        history: g.history().collect(),
        toward: g.toward,
        ..side(node, g.current)
    }
}

pub(super) fn context(protocol: Protocol) -> Context {
    Context {
        protocol,
        allow_two_primaries: false,
        group: false,
        policies: crate::split_brain::Policies::default(),
    }
}

/// Decides on both nodes, requires mirror images, answers what node A sees.
pub(super) fn meet_with(a: &Side, b: &Side, ctx: Context) -> Decision {
    let (mine, theirs) = (decide(a, b, &ctx), decide(b, a, &ctx));
    assert_eq!(mine.rule, theirs.rule);
    assert_eq!(mine.direction, theirs.direction.mirrored());
    assert_eq!(mine.amount, theirs.amount);
    assert_eq!(mine.split_brain, theirs.split_brain);
    assert_eq!((mine.settled, mine.retry), (theirs.settled, theirs.retry));
    assert_eq!(
        (&mine.reason, &mine.way_out),
        (&theirs.reason, &theirs.way_out)
    );
    mine
}

pub(super) fn meet(a: &Side, b: &Side) -> Decision {
    meet_with(a, b, context(Protocol::C))
}

#[track_caller]
pub(super) fn expect(d: &Decision, rule: Rule, direction: Direction, amount: Amount) {
    assert_eq!(
        (d.rule, d.direction, d.amount),
        (rule, direction, amount),
        "{}",
        d.reason
    );
}

#[track_caller]
pub(super) fn expect_refusal(d: &Decision, rule: Rule, way_out: &str) {
    expect(d, rule, Direction::Refuse, Amount::Nothing);
    let found = d.way_out.as_deref().unwrap_or_default();
    assert!(found.contains(way_out), "{found}");
}

// Rows of the table.

#[test]
fn both_just_created_wait_for_an_administrator() {
    let d = meet(&created(A), &created(B));
    expect(&d, Rule::JustCreatedBoth, Direction::None, Amount::Nothing);
    let d = meet(&created(A), &created(B).current(0));
    expect(&d, Rule::JustCreatedBoth, Direction::None, Amount::Nothing);
}

#[test]
fn only_one_just_created_is_overwritten_in_full() {
    let d = meet(&side(A, X), &created(B));
    expect(&d, Rule::JustCreatedOne, Direction::Source, Amount::Full);
    let d = meet(&created(A), &side(B, X));
    expect(&d, Rule::JustCreatedOne, Direction::Target, Amount::Full);
}

#[test]
fn equal_generations_need_no_sync() {
    let d = meet(&side(A, X), &side(B, X | 1));
    expect(&d, Rule::SameGeneration, Direction::None, Amount::Nothing);
    assert!(!d.finish_leftover);
}

#[test]
fn a_lost_resync_finished_is_finished_now() {
    let a = side(A, X).bitmap(Y);
    let d = meet(&a, &side(B, X));
    expect(&d, Rule::SameGeneration, Direction::None, Amount::Nothing);
    assert!(d.finish_leftover, "on the side that has it");
    assert!(!decide(&side(B, X), &a, &context(Protocol::C)).finish_leftover);
}

#[test]
fn a_link_blip_needs_what_the_transfer_log_marked() {
    let seen = |s: Side| s.seen();
    let (a, b) = (seen(side(A, X)), seen(side(B, X)));
    expect(
        &meet(&a, &b),
        Rule::Reconnect,
        Direction::None,
        Amount::Nothing,
    );
    let marked = b.bits(3);
    expect(
        &meet(&a, &marked),
        Rule::Reconnect,
        Direction::Target,
        Amount::Bitmap,
    );
    let half = a.unseen();
    expect(
        &meet(&half, &marked),
        Rule::LeftoverBits,
        Direction::Target,
        Amount::Bitmap,
    );
}

#[test]
fn a_crashed_primary_is_source_under_a_and_b() {
    let a = side(A, X | 1).crashed().bits(9);
    for protocol in [Protocol::A, Protocol::B] {
        let d = meet_with(&a, &side(B, X), context(protocol));
        expect(&d, Rule::CrashedPrimary, Direction::Source, Amount::Bitmap);
        assert!(d.reason.contains("crashed as Primary"), "{}", d.reason);
    }
}

#[test]
fn the_survivor_is_source_under_c() {
    let a = side(A, X | 1).crashed().bits(9);
    let d = meet(&a, &side(B, X));
    expect(&d, Rule::Survivor, Direction::Target, Amount::Bitmap);
}

#[test]
fn who_is_primary_now_is_source_whoever_crashed() {
    let crashed = side(A, X | 1).crashed().bits(9);
    let b = side(B, X).primary();
    let d = meet_with(&crashed, &b, context(Protocol::A));
    expect(&d, Rule::CrashedPrimary, Direction::Target, Amount::Bitmap);
    let a = crashed.primary();
    let d = meet(&a, &side(B, X));
    expect(&d, Rule::Survivor, Direction::Source, Amount::Bitmap);
}

#[test]
fn two_crashed_primaries_are_told_apart_the_same_way_on_both_nodes() {
    let crashed = |s: Side| s.crashed().bits(9);
    let (a, b) = (crashed(side(A, X | 1)), crashed(side(B, X | 1)));
    expect(
        &meet(&a, &b),
        Rule::BothOff,
        Direction::Source,
        Amount::Bitmap,
    );
    let primary = b.clone().primary();
    expect(
        &meet(&a, &primary),
        Rule::BothOff,
        Direction::Target,
        Amount::Bitmap,
    );
    let consistent = a.disk(DiskState::Consistent);
    expect(
        &meet(&consistent, &b),
        Rule::BothOff,
        Direction::Target,
        Amount::Bitmap,
    );
}

#[test]
fn the_one_at_my_base_is_my_target_by_bitmap() {
    let b = side(B, Y | 1).bitmap(X).bits(7);
    let d = meet(&side(A, X | 1), &b);
    expect(&d, Rule::Bitmap, Direction::Target, Amount::Bitmap);
}

#[test]
fn an_ancestor_is_overwritten_in_full() {
    let b = side(B, Y).history(&[Z, X]);
    expect(
        &meet(&side(A, X), &b),
        Rule::History,
        Direction::Target,
        Amount::Full,
    );
}

#[test]
fn ancestors_of_each_other_are_a_split_brain() {
    let a = side(A, X).history(&[Y]);
    let b = side(B, Y).history(&[X]);
    let d = meet(&a, &b);
    expect_refusal(&d, Rule::HistoryBoth, "--discard-my-data");
    let a = side(A, X).bitmap(Y);
    let b = side(B, Y).bitmap(X);
    expect_refusal(&meet(&a, &b), Rule::HistoryBoth, "--discard-my-data");
}

#[test]
fn both_changed_since_a_known_point_is_a_split_brain() {
    let a = side(A, X).bitmap(Z).bits(1);
    let b = side(B, Y).bitmap(Z | 1).bits(2);
    let d = meet(&a, &b);
    expect_refusal(
        &d,
        Rule::BitmapBoth,
        "twinblk connect --discard-my-data RES",
    );
    assert!(d.split_brain);
}

#[test]
fn only_older_generations_meet_is_a_split_brain() {
    let a = side(A, X).bitmap(W).history(&[Z]);
    let b = side(B, Y).history(&[Z]);
    let d = meet(&a, &b);
    expect_refusal(&d, Rule::HistoryBoth, "--discard-my-data");
    assert!(d.split_brain);
    let b = side(B, Y).history(&[W]);
    expect_refusal(&meet(&a, &b), Rule::HistoryBoth, "--discard-my-data");
}

#[test]
fn unrelated_data_are_never_overwritten() {
    let a = side(A, X).history(&[0, Z]);
    let b = side(B, Y).history(&[0, W]).bitmap(UUID_JUST_CREATED);
    let d = meet(&a, &b);
    expect_refusal(&d, Rule::Unrelated, "create-md --force RES");
    assert!(!d.split_brain);
    let obedient = b.discard();
    let d = meet(&a, &obedient);
    expect_refusal(&d, Rule::Unrelated, "create-md");
    assert!(
        d.reason.contains("--discard-my-data on node 1 is ignored"),
        "{}",
        d.reason
    );
}

// Orders to discard.

#[test]
fn the_side_that_gives_up_its_data_is_target_by_both_bitmaps() {
    let a = side(A, X).bitmap(Z).bits(1);
    let b = side(B, Y).bitmap(Z).bits(2).discard();
    let d = meet(&a, &b);
    expect(&d, Rule::BitmapBoth, Direction::Source, Amount::Bitmap);
    assert!(d.split_brain, "it was one, and the event is due");
    let primary = a.primary();
    expect(
        &meet(&primary, &b),
        Rule::BitmapBoth,
        Direction::Source,
        Amount::Bitmap,
    );
}

#[test]
fn without_a_common_base_it_is_overwritten_in_full() {
    let a = side(A, X).history(&[Z]).discard();
    let b = side(B, Y).history(&[Z]);
    expect(
        &meet(&a, &b),
        Rule::HistoryBoth,
        Direction::Target,
        Amount::Full,
    );
}

#[test]
fn two_orders_to_discard_are_refused() {
    let a = side(A, X).bitmap(Z).discard();
    let b = side(B, Y).bitmap(Z).discard();
    let d = meet(&a, &b);
    expect_refusal(&d, Rule::BitmapBoth, "twinblk connect RES");
    assert!(d.reason.contains("one must keep them"), "{}", d.reason);
}

#[test]
fn a_primary_cannot_discard_its_data() {
    let a = side(A, X).bitmap(Z).discard().primary();
    let b = side(B, Y).bitmap(Z);
    expect_refusal(
        &meet(&a, &b),
        Rule::BitmapBoth,
        "first `twinblk secondary RES`",
    );
}

#[test]
fn nobody_is_told_to_take_a_copy_with_holes_instead() {
    let a = side(A, X).bitmap(Z).discard();
    let b = side(B, Y).bitmap(Z).broken();
    let d = meet(&a, &b);
    expect_refusal(
        &d,
        Rule::BitmapBoth,
        "on node 1 run `twinblk connect --discard-my-data RES`",
    );
    let a = a.keep();
    let b = b.discard();
    expect(
        &meet(&a, &b),
        Rule::BitmapBoth,
        Direction::Source,
        Amount::Bitmap,
    );
}

#[test]
fn an_order_to_discard_where_there_is_no_split_brain_changes_nothing() {
    let a = side(A, X).discard();
    let d = meet(&a, &side(B, X));
    expect(&d, Rule::SameGeneration, Direction::None, Amount::Nothing);
    assert!(
        d.reason.contains("--discard-my-data on node 0 is ignored"),
        "{}",
        d.reason
    );
    let newer = side(A, Y).bitmap(X);
    let d = meet(&newer.discard(), &side(B, X));
    expect(&d, Rule::Bitmap, Direction::Source, Amount::Bitmap);
}

// Laws, disk states, roles.

#[test]
fn bits_are_never_ignored_and_the_direction_is_fixed() {
    let bits = |s: Side| s.bits(5);
    let d = meet(&side(A, X), &bits(side(B, X)));
    expect(&d, Rule::LeftoverBits, Direction::Target, Amount::Bitmap);
    let d = meet(&bits(side(A, X)), &bits(side(B, X)));
    expect(&d, Rule::LeftoverBits, Direction::Source, Amount::Bitmap);
    let primary = side(A, X).primary();
    let d = meet(&primary, &bits(side(B, X)));
    expect(&d, Rule::LeftoverBits, Direction::Source, Amount::Bitmap);
    let consistent = side(B, X).disk(DiskState::Consistent);
    let d = meet(&side(A, X), &bits(consistent));
    expect(&d, Rule::LeftoverBits, Direction::Source, Amount::Bitmap);
}

#[test]
fn an_unclean_crash_is_never_ignored_even_without_bits() {
    let a = side(A, X).crashed().seen();
    let b = side(B, X).seen();
    expect(
        &meet(&a, &b),
        Rule::Survivor,
        Direction::Target,
        Amount::Bitmap,
    );
}

#[test]
fn an_inconsistent_disk_is_never_source() {
    let broken = |s: Side| s.broken();
    let d = meet(&broken(side(A, X)), &side(B, X));
    expect(&d, Rule::InconsistentDisk, Direction::Target, Amount::Full);
    let invalidated = broken(side(A, X)).bits(9);
    let d = meet(&invalidated, &side(B, X));
    assert_eq!((d.direction, d.amount), (Direction::Target, Amount::Bitmap));
    let newer = broken(side(A, Y)).bitmap(X).bits(9);
    let d = meet(&newer, &side(B, X));
    expect(
        &d,
        Rule::InconsistentDisk,
        Direction::Target,
        Amount::Bitmap,
    );
    let newer = broken(side(A, Y)).history(&[X]).bits(9);
    let d = meet(&newer, &side(B, X));
    expect(&d, Rule::InconsistentDisk, Direction::Target, Amount::Full);
    let crashed = broken(side(A, X)).crashed().bits(9);
    let d = meet_with(&crashed, &side(B, X), context(Protocol::A));
    expect(
        &d,
        Rule::InconsistentDisk,
        Direction::Target,
        Amount::Bitmap,
    );
}

#[test]
fn two_inconsistent_disks_have_no_source() {
    let broken = |s: Side| s.broken();
    let d = meet(&broken(side(A, X)), &broken(side(B, X)));
    expect_refusal(&d, Rule::BothInconsistent, "primary --force RES");
    expect_refusal(
        &meet(&broken(side(A, X)), &created(B)),
        Rule::BothInconsistent,
        "--force",
    );
}

#[test]
fn an_outdated_disk_yields_among_equals_and_not_to_older_data() {
    let outdated = |s: Side| s.disk(DiskState::Outdated);
    let d = meet(&outdated(side(A, X)), &side(B, X));
    expect(&d, Rule::SameGeneration, Direction::None, Amount::Nothing);
    let a = outdated(side(A, X)).bits(4);
    expect(
        &meet(&a, &side(B, X)),
        Rule::LeftoverBits,
        Direction::Target,
        Amount::Bitmap,
    );
    let a = outdated(side(A, X)).crashed().bits(4);
    let d = meet_with(&a, &side(B, X), context(Protocol::A));
    expect(&d, Rule::CrashedPrimary, Direction::Target, Amount::Bitmap);
    let newer = outdated(side(A, Y)).bitmap(X);
    expect(
        &meet(&newer, &side(B, X)),
        Rule::Bitmap,
        Direction::Source,
        Amount::Bitmap,
    );
}

#[test]
fn without_a_disk_there_is_nothing_to_do() {
    for disk in [DiskState::Diskless, DiskState::Failed, DiskState::Attaching] {
        let d = meet(&side(A, 0).disk(disk), &side(B, X));
        expect(&d, Rule::Diskless, Direction::None, Amount::Nothing);
    }
}

#[test]
fn no_resync_under_a_primary_in_use() {
    let primary = side(A, X | 1).primary();
    let newer = side(B, Y).bitmap(X);
    let d = meet(&primary, &newer);
    expect_refusal(
        &d,
        Rule::RoleConflict,
        "on node 0 stop what uses the device",
    );
    let demoted = primary.secondary();
    expect(
        &meet(&demoted, &newer),
        Rule::Bitmap,
        Direction::Target,
        Amount::Bitmap,
    );
}

#[test]
fn an_inconsistent_primary_is_repaired_but_not_taken_back_in_time() {
    let primary = side(A, X | 1).primary().broken();
    let newer = side(B, Y).bitmap(X);
    expect(
        &meet(&primary, &newer),
        Rule::Bitmap,
        Direction::Target,
        Amount::Bitmap,
    );
    let ahead = primary.bitmap(Z).bits(1);
    expect_refusal(
        &meet(&ahead, &side(B, Z)),
        Rule::RoleConflict,
        "secondary RES",
    );
}

#[test]
fn two_primaries_are_refused_unless_allowed() {
    let primary = |s: Side| s.primary();
    let (a, b) = (primary(side(A, X | 1)), primary(side(B, X | 1)));
    expect_refusal(&meet(&a, &b), Rule::TwoPrimaries, "twinblk secondary RES");
    let two = Context {
        protocol: Protocol::C,
        allow_two_primaries: true,
        ..context(Protocol::C)
    };
    let d = meet_with(&a, &b, two);
    expect(&d, Rule::SameGeneration, Direction::None, Amount::Nothing);
    let b = b.bits(1);
    expect_refusal(&meet_with(&a, &b, two), Rule::RoleConflict, "secondary");
}

// Traps.

#[test]
fn nothing_is_equal_to_no_generation() {
    let a = side(A, X).history(&[0, 4]);
    let b = side(B, Y).history(&[0, 4]);
    assert_eq!(
        meet(&a, &b).rule,
        Rule::Unrelated,
        "empty places are not a common ancestor"
    );
    let a = side(A, X).bitmap(UUID_JUST_CREATED);
    let b = side(B, Y).bitmap(UUID_JUST_CREATED);
    assert_eq!(
        meet(&a, &b).rule,
        Rule::Unrelated,
        "both were forced: nothing in common"
    );
}

#[test]
fn both_just_created_and_yet_usable_is_not_in_sync() {
    let usable = |node| created(node).disk(DiskState::UpToDate);
    expect_refusal(
        &meet(&usable(A), &usable(B)),
        Rule::JustCreatedBoth,
        "create-md",
    );
    let d = meet(&usable(A), &created(B).bits(1));
    expect(&d, Rule::InconsistentDisk, Direction::Source, Amount::Full);
}

// The documented table.

#[test]
fn the_documentation_lists_every_rule_in_order() {
    let text = include_str!("../../../docs/handshake.md");
    let (_, rules) = text.split_once("## Rules").expect("there is a table");
    let (rules, _) = rules.split_once("## Notes").expect("it ends");
    let documented: Vec<&str> = rules
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    let rules: Vec<String> = Rule::ALL
        .iter()
        .map(|r| format!("| `{}` | {} | {} |", r.name(), r.drbd_name(), r.meaning()))
        .collect();
    assert_eq!(documented, rules, "expected:\n{}", rules.join("\n"));
}

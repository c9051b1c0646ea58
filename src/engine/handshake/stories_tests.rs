//! What leads to the rows of the table: crashes, failovers, splits and interrupted resyncs, told with
//! the generations as the nodes would hold them.

use super::tests::{
    A, B, W, X, Y, Z, context, created, expect, expect_refusal, meet, meet_with, side, with,
};
use super::{Amount, Direction, Rule, Side};
use crate::generations::Generations;
use twinblk_protocol::control::Protocol;

fn uuids(current: u64) -> Generations {
    Generations {
        current,
        ..Generations::default()
    }
}

#[test]
fn first_start() {
    let mut a = Generations::default();
    a.force_new_current(X, [B].into_iter());
    let primary = with(&a, A).primary().bits(9);
    let d = meet(&primary, &created(B));
    expect(&d, Rule::JustCreatedOne, Direction::Source, Amount::Full);
    // Interrupted: it goes on by bitmap, not from the beginning.
    let mut b = Generations::default();
    a.begin_source(B, Y);
    b.begin_target(A, a.base_for(B), a.current, [].into_iter());
    let a_now = with(&a, A).bits(5);
    let target = with(&b, B).bits(6).broken();
    expect(
        &meet(&a_now, &target),
        Rule::Bitmap,
        Direction::Source,
        Amount::Bitmap,
    );
}

#[test]
fn link_blip_with_writes() {
    let (mut a, b) = (uuids(X | 1), uuids(X));
    a.force_new_current(Y, [B].into_iter());
    let primary = with(&a, A).primary().bits(2).seen();
    let secondary = with(&b, B).seen();
    expect(
        &meet(&primary, &secondary),
        Rule::Bitmap,
        Direction::Source,
        Amount::Bitmap,
    );
}

#[test]
fn failover_and_the_old_primary_returns() {
    let (mut a, mut b) = (uuids(X | 1), uuids(X));
    // A crashes; B is promoted and writes.
    b.set_primary_bit(true);
    b.force_new_current(Y, [A].into_iter());
    let back = with(&a, A).crashed().bits(9);
    let primary = with(&b, B).primary().bits(3);
    for protocol in [Protocol::A, Protocol::C] {
        let d = meet_with(&back, &primary, context(protocol));
        expect(&d, Rule::Bitmap, Direction::Target, Amount::Bitmap);
    }
    // The resync ends, its confirmation is lost: the source still has the bitmap UUID on its disk.
    let before = with(&b, B);
    let history: Vec<u64> = b.history().collect();
    a.begin_target(B, b.base_for(A), b.current, [].into_iter());
    a.adopt(B, b.current, &history, &[]);
    let d = meet(&before, &with(&a, A));
    expect(&d, Rule::SameGeneration, Direction::None, Amount::Nothing);
    assert!(d.finish_leftover);
    b.resync_finished_with(A);
    let d = meet(&with(&a, A), &with(&b, B));
    expect(&d, Rule::SameGeneration, Direction::None, Amount::Nothing);
    assert!(!d.finish_leftover);
}

#[test]
fn promoted_apart() {
    let (mut a, mut b) = (uuids(X | 1), uuids(X));
    a.force_new_current(Y, [B].into_iter());
    b.force_new_current(Z, [A].into_iter());
    let (sa, sb) = (with(&a, A), with(&b, B));
    let d = meet(&sa, &sb);
    expect_refusal(&d, Rule::BitmapBoth, "--discard-my-data");
    let victim = sb.discard();
    expect(
        &meet(&sa, &victim),
        Rule::BitmapBoth,
        Direction::Source,
        Amount::Bitmap,
    );
    // The resync starts and is interrupted: no order is needed to go on.
    a.begin_source(B, W);
    b.begin_target(A, a.base_for(B), a.current, [].into_iter());
    let target = with(&b, B).broken().bits(4);
    expect(
        &meet(&with(&a, A), &target),
        Rule::Bitmap,
        Direction::Source,
        Amount::Bitmap,
    );
    // The target is forced instead: both have changed again.
    b.force_new_current(W, [A].into_iter());
    expect_refusal(
        &meet(&with(&a, A), &with(&b, B)),
        Rule::BitmapBoth,
        "--discard-my-data",
    );
}

#[test]
fn three_generations_apart() {
    // B left at X; A went on to Y without it, shared Y with a third node, and forgot B's slot.
    let mut a = uuids(X | 1);
    a.force_new_current(Y, [B].into_iter());
    a.resync_finished_with(B);
    a.force_new_current(Z, [B].into_iter());
    let d = meet(&with(&a, A), &with(&uuids(X), B));
    expect(&d, Rule::History, Direction::Source, Amount::Full);
    // B has changed too since.
    let mut b = uuids(X);
    b.force_new_current(W, [A].into_iter());
    let d = meet(&with(&a, A), &with(&b, B));
    expect_refusal(&d, Rule::HistoryBoth, "--discard-my-data");
}

#[test]
fn secondary_restarts() {
    // Clean or not: a Secondary that was away without a write in between is in step.
    let a = side(A, X | 1).primary();
    let d = meet(&a, &side(B, X));
    expect(&d, Rule::SameGeneration, Direction::None, Amount::Nothing);
}

#[test]
fn crash_resync_interrupted_before_either_or_both_began() {
    let (mut a, mut b) = (uuids(X | 1), uuids(X));
    let crashed = |s: Side| s.crashed().bits(9);
    let d = meet(&crashed(with(&a, A)), &with(&b, B));
    expect(&d, Rule::Survivor, Direction::Target, Amount::Bitmap);
    // The source goes on in a generation of its own: whatever it writes now, the other lacks.
    b.part_from(A, Y);
    let d = meet(&crashed(with(&a, A)), &with(&b, B));
    expect(&d, Rule::Bitmap, Direction::Target, Amount::Bitmap);
    a.begin_target(B, b.base_for(A), b.current, [].into_iter());
    let target = crashed(with(&a, A)).broken();
    expect(
        &meet(&target, &with(&b, B)),
        Rule::Bitmap,
        Direction::Target,
        Amount::Bitmap,
    );
}

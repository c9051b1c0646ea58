//! What is told to people beyond the states: both ends' views, and a resync that stands still.

use super::pair::{Pair, V};
use crate::command::Command;
use crate::event::{DiskState, ReplState, Role};
use crate::input::{Body, Input};
use crate::time::Duration;
use alloc::vec;
use twinblk_protocol::control::{Message, Protocol, View, VolumeView};
use twinblk_protocol::frame::{Header, Kind};

fn seen(pair: &Pair, n: usize) -> Option<VolumeView> {
    pair.status(n).peers[0].volumes[0].seen_by_peer.clone()
}

/// Lets time pass, and everything else that is due.
fn wait(pair: &mut Pair, time: Duration) {
    let until = pair.now + time;
    while pair.now < until {
        while pair.step() {}
        pair.pass_time();
    }
    while pair.step() {}
}

fn says(pair: &mut Pair, view: View) {
    let peer = pair.nodes[1].id;
    let frame = Input::Frame {
        peer,
        header: Header::new(Kind::Message),
        body: Body::Message(Message::View(view)),
    };
    pair.feed(0, frame);
}

fn view(replication: ReplState) -> View {
    View {
        role: Role::Primary,
        volumes: vec![VolumeView {
            volume: V.0,
            replication,
            disk: DiskState::UpToDate,
            out_of_sync: 0,
        }],
    }
}

#[test]
fn each_end_knows_what_the_other_sees() {
    let mut pair = Pair::in_sync(1, Protocol::C);
    wait(&mut pair, Duration::from_secs(3));
    for n in 0..2 {
        let view = seen(&pair, n).expect("it was told");
        assert_eq!(view.replication, ReplState::Established);
        assert_eq!(view.disk, DiskState::UpToDate);
        assert_eq!(view.out_of_sync, 0);
        assert_eq!(pair.status(n).peers[0].disagreement, None);
        let engine = pair.nodes[n].engine.as_ref().expect("it runs");
        assert_eq!(engine.view_deadline(0), None, "nothing more is to be told");
    }
    pair.cut();
    assert_eq!(
        seen(&pair, 0),
        None,
        "what was seen once is not what is seen now"
    );
}

#[test]
fn ends_that_go_on_to_disagree_are_reported_once_each_way() {
    let mut pair = Pair::in_sync(2, Protocol::C);
    wait(&mut pair, Duration::from_secs(3));
    says(&mut pair, view(ReplState::SyncTarget));
    assert_eq!(
        pair.status(0).peers[0].disagreement,
        None,
        "it may be on its way"
    );
    wait(&mut pair, Duration::from_secs(20));
    let told = pair.status(0).peers[0].disagreement.clone();
    let told = told.expect("it lasts");
    assert!(
        told.contains("Established here and SyncTarget on bravo"),
        "{told}"
    );
    let reports = |pair: &Pair| {
        let log = &pair.nodes[0].log;
        log.iter()
            .filter(|l| l.contains("the two ends disagree"))
            .count()
    };
    assert_eq!(reports(&pair), 1);
    says(&mut pair, view(ReplState::Established));
    assert!(pair.logged(0, "agree again"));
    assert_eq!(pair.status(0).peers[0].disagreement, None);
    let wrong = View {
        role: Role::Secondary,
        ..view(ReplState::Established)
    };
    says(&mut pair, wrong);
    wait(&mut pair, Duration::from_secs(20));
    assert_eq!(reports(&pair), 2);
}

#[test]
fn a_resync_that_stands_still_is_an_event_with_a_reason_and_so_is_its_end() {
    let mut pair = Pair::in_sync(3, Protocol::C);
    pair.cut();
    for i in 0..8 {
        pair.write(0, i * (300 << 10), 64 << 10, 7);
    }
    pair.cable = true;
    for _ in 0..200_000 {
        if pair.status(0).peers[0].volumes[0].replication == ReplState::SyncSource {
            break;
        }
        if !pair.step() {
            pair.pass_time();
        }
    }
    // From here on this node's disk does not answer.
    let mut hanging = pair.take_completions(0);
    let start = pair.now;
    while !pair.logged(0, "has made no progress for") {
        while pair.step() {
            hanging.extend(pair.take_completions(0));
        }
        hanging.extend(pair.take_completions(0));
        pair.pass_time();
        assert!(
            pair.now < start + Duration::from_secs(300),
            "{}",
            pair.dump()
        );
    }
    assert!(pair.now >= start + Duration::from_secs(29), "not too early");
    let standstill = pair.status(0).peers[0].volumes[0].standstill.clone();
    let (_, why) = standstill.expect("it stands still");
    assert!(why.contains("being read here"), "{why}");
    let left = pair.out_of_sync(0);
    assert!(left > 0);
    let first = hanging.remove(0);
    pair.feed(0, first);
    wait(&mut pair, Duration::from_secs(60));
    assert!(pair.logged(0, "goes on"), "{}", pair.dump());
    for input in hanging {
        pair.feed(0, input);
    }
    wait(&mut pair, Duration::from_secs(10));
    pair.expect_in_sync();
    assert_eq!(pair.status(0).peers[0].volumes[0].standstill, None);
}

fn demoted(pair: &mut Pair) {
    pair.order(0, Command::Secondary).expect("nobody holds it");
    pair.settle();
}

fn open(pair: &mut Pair, n: usize) -> crate::ids::ClientId {
    let engine = pair.nodes[n].engine.as_mut().expect("it runs");
    engine.open_export(V, "fio".into()).expect("Primary")
}

fn close(pair: &mut Pair, n: usize, id: crate::ids::ClientId) {
    let now = pair.now;
    let mut out = vec![];
    let engine = pair.nodes[n].engine.as_mut().expect("it runs");
    engine.close_export(id, now, &mut out);
    pair.carry_out_all(n, out);
    pair.settle();
}

#[test]
fn auto_promotion_lasts_as_long_as_clients_do() {
    let mut pair = Pair::in_sync(4, Protocol::C);
    demoted(&mut pair);
    pair.order(1, Command::AutoPromote)
        .expect("it may be promoted");
    pair.settle();
    assert_eq!(pair.role(1), Role::Primary, "it waits for its client");
    let (a, b) = (open(&mut pair, 1), open(&mut pair, 1));
    pair.write(1, 0, 4096, 9);
    close(&mut pair, 1, a);
    assert_eq!(pair.role(1), Role::Primary, "one is left");
    close(&mut pair, 1, b);
    assert_eq!(pair.role(1), Role::Secondary);
    pair.expect_in_sync();
}

#[test]
fn auto_promotion_outlasts_a_client_that_goes_while_another_comes() {
    let mut pair = Pair::in_sync(8, Protocol::C);
    demoted(&mut pair);
    pair.order(0, Command::AutoPromote).expect("free");
    let first = open(&mut pair, 0);
    pair.order(0, Command::AutoPromote)
        .expect("it is Primary already");
    close(&mut pair, 0, first);
    assert_eq!(pair.role(0), Role::Primary, "the second was let in");
    let second = open(&mut pair, 0);
    close(&mut pair, 0, second);
    assert_eq!(pair.role(0), Role::Secondary);
}

#[test]
fn auto_promotion_ends_when_the_client_does_not_come() {
    let mut pair = Pair::in_sync(5, Protocol::C);
    demoted(&mut pair);
    pair.order(0, Command::AutoPromote)
        .expect("it may be promoted");
    pair.order(0, Command::AutoDemote).expect("nobody came");
    pair.settle();
    assert_eq!(pair.role(0), Role::Secondary);
}

#[test]
fn a_node_promoted_by_order_stays_primary() {
    let mut pair = Pair::in_sync(6, Protocol::C);
    let id = open(&mut pair, 0);
    close(&mut pair, 0, id);
    assert_eq!(pair.role(0), Role::Primary, "by order from the beginning");
    pair.order(0, Command::AutoPromote).expect("it is already");
    let id = open(&mut pair, 0);
    close(&mut pair, 0, id);
    assert_eq!(pair.role(0), Role::Primary);
    demoted(&mut pair);
    pair.order(0, Command::AutoPromote)
        .expect("it may be promoted");
    let id = open(&mut pair, 0);
    pair.order(0, Command::Primary { force: false })
        .expect("it is already");
    close(&mut pair, 0, id);
    assert_eq!(pair.role(0), Role::Primary, "somebody wants it to stay");
}

#[test]
fn auto_promotion_asks_like_any_other() {
    let mut pair = Pair::in_sync(7, Protocol::C);
    let refusal = pair.order(1, Command::AutoPromote).expect_err("alpha is");
    assert!(refusal.reason.contains("alpha"), "{refusal:?}");
    pair.settle();
    assert_eq!(pair.role(1), Role::Secondary);
    // What was refused leaves nothing behind.
    demoted(&mut pair);
    pair.order(1, Command::Primary { force: false })
        .expect("free");
    let id = open(&mut pair, 1);
    close(&mut pair, 1, id);
    assert_eq!(pair.role(1), Role::Primary);
}

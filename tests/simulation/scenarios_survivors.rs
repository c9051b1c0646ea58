//! What went wrong for others, in shape: the Primary of two or three nodes is lost, and what the
//! survivors make of it; promotions that somebody cannot agree to.

use crate::disk::origin;
use crate::plan::{Fault, MS, Plan, SECOND};
use crate::story::{ALL, PRIMARY, all_seeds, tell, tell_varied};
use crate::world::World;
use std::cell::Cell;
use std::ops::Range;
use twinblk_engine::command::{Command, RefusalKind};
use twinblk_engine::config::Protocol;
use twinblk_engine::event::{ConnState, DiskState, Role};
use twinblk_engine::input::RequestKind;

/// A survivor is not served as current before it has met the others, not even after a restart; when
/// they have met it is.
#[cfg_attr(test, test)]
pub(crate) fn a_survivor_is_not_promoted_before_it_met_the_others() {
    tell_varied(3, &ALL, |w| {
        w.in_step();
        for i in 0..4 {
            w.write(0, i * 8, 8);
            w.a_moment(2 * MS);
        }
        w.part(1, 2, true);
        if w.net_rng.per_mille(500) {
            w.notices(1, 2);
            w.notices(2, 1);
        }
        let power = w.net_rng.per_mille(300);
        w.falls(0, power);
        for n in [1, 2] {
            w.notices(n, 0);
            is_in_doubt(w, n);
        }
        if w.net_rng.per_mille(500) {
            let n = 1 + w.net_rng.index(2);
            let power = w.net_rng.per_mille(500);
            w.falls(n, power);
            w.boot(n);
            w.wait("it is attached", |w| w.disk_of(n) > DiskState::Inconsistent);
            is_in_doubt(w, n);
        }
        w.join(1, 2);
        w.wait("the survivors met", |w| w.are_in_step(1, 2));
        let n = 1 + w.net_rng.index(2);
        w.ordered(n, PRIMARY).expect("they have met");
        w.write_and_wait(n, 16, 16);
        w.join_all();
        w.boot(0);
        w.heals_by_itself();
    });
}

/// It says so, and refuses to be promoted, with words.
fn is_in_doubt(w: &mut World, n: usize) {
    w.wait("it doubts", |w| w.disk_of(n) != DiskState::UpToDate);
    assert_eq!(w.disk_of(n), DiskState::Consistent, "{}", w.picture());
    let refusal = w.ordered(n, PRIMARY).expect_err("somebody may have more");
    assert_eq!(refusal.kind, RefusalKind::NoUpToDateData);
    let words = format!("{} {}", refusal.reason, refusal.way_out);
    for what in ["Consistent", "the Primary is lost", "--force"] {
        assert!(words.contains(what), "{words}");
    }
}

/// A flush that was answered under protocol C: its writes are on the peer, though both lose power at
/// once and the Primary never comes back.
#[cfg_attr(test, test)]
pub(crate) fn what_was_flushed_is_on_the_survivor() {
    tell_varied(2, &[Protocol::C], |w| {
        w.in_step();
        for i in 0..6 {
            w.write_and_wait(0, i * 8, 8);
        }
        let tag = w.ask(0, 0, RequestKind::Flush, 0..0, false);
        w.wait("it is flushed", |w| !w.clients.requests.contains_key(&tag));
        w.falls(0, true);
        w.falls(1, true);
        w.boot(1);
        w.wait("it is attached", |w| w.disk_of(1) > DiskState::Inconsistent);
        w.ordered(1, PRIMARY).expect("nothing stands against it");
    });
}

/// Every write pushes the one before it out of the activity log, and then both lose power: what the peer
/// had not flushed is marked all the same, and copied.
#[cfg_attr(test, test)]
pub(crate) fn what_left_the_log_is_on_the_peer() {
    let one_extent = |plan: &mut Plan| {
        plan.extent_size = 4096;
        plan.al_extents = 1;
        plan.external = true;
        plan.disk_delay = [MS / 20, MS, 5 * MS][plan.seed as usize % 3];
    };
    tell(2, &[Protocol::C], one_extent, |w| {
        w.in_step();
        for i in 0..12 {
            w.write(0, i * 8, 8);
        }
        w.a_moment(60 * MS);
        w.inject(Fault::Blackout, 0, 1, 0, 0);
        w.wait("both are back", |w| w.runs(0) && w.runs(1));
        w.heals_by_itself();
        assert!(w.nodes[0].disk.data() == w.nodes[1].disk.data());
    });
}

/// Survivors of one generation with blocks marked: the difference is copied, not dropped.
#[cfg_attr(test, test)]
pub(crate) fn what_survivors_of_one_generation_have_marked_is_copied() {
    let (differed, compared) = (Cell::new(0), Cell::new(0));
    tell_varied(3, &ALL, |w| {
        w.in_step();
        let slow = 1 + w.net_rng.index(2);
        let dice = w.net_rng.next();
        w.inject(Fault::SlowLink, 0, slow, 60 * SECOND, dice);
        for i in 0..8 {
            w.write(0, i * 8, 8);
            w.a_moment(MS);
        }
        let power = w.net_rng.per_mille(300);
        w.falls(0, power);
        if w.nodes[1].disk.data() != w.nodes[2].disk.data() {
            differed.set(differed.get() + 1);
        }
        w.notices(1, 0);
        w.notices(2, 0);
        w.wait("the survivors met", |w| {
            w.nobody_refuses();
            w.are_in_step(1, 2)
        });
        assert!(w.nodes[1].disk.data() == w.nodes[2].disk.data());
        let same = ["row leftover-bits", "row reconnect"];
        let rows = same.iter().filter_map(|row| w.trace.counts.get(*row));
        compared.set(compared.get() + rows.sum::<u64>());
        w.boot(0);
        w.heals_by_itself();
    });
    if all_seeds() {
        assert!(differed.get() > 50, "{differed:?}");
        assert!(compared.get() > 50, "{compared:?}");
    }
}

/// One of two peers cannot agree to a promotion: whatever comes of it, the other one's word binds it
/// for a bounded time only.
#[cfg_attr(test, test)]
pub(crate) fn a_promotion_that_one_peer_cannot_agree_to_binds_nobody_for_ever() {
    tell_varied(3, &[Protocol::C, Protocol::A], |w| {
        w.in_step();
        w.demote(0);
        let silent = w.net_rng.index(3);
        match silent {
            0 => {
                w.inject(Fault::Pause, 2, 0, 20 * SECOND, 0);
                w.order(0, PRIMARY);
            }
            1 => {
                // It has given its word to somebody else, who is no more.
                w.order(2, PRIMARY);
                w.a_moment(3 * w.plan.link_delay);
                w.order(0, PRIMARY);
                w.a_moment(3 * w.plan.link_delay);
                w.falls(2, true);
            }
            _ => {
                w.order(0, PRIMARY);
                w.a_moment(3 * w.plan.link_delay);
                let (fault, n) = w.net_rng.pick(&[
                    (Fault::Cut, 0),
                    (Fault::Pause, 0),
                    (Fault::Pause, 1),
                    (Fault::Pause, 2),
                ]);
                w.inject(fault, n, 1 + n % 2, 20 * SECOND, 0);
            }
        }
        w.after_a_while(60 * SECOND);
        w.boot(2);
        w.wait("all are connected", |w| {
            (0..3).all(|n| (0..3).all(|m| n == m || w.is_connected(n, m)))
        });
        w.at_most_one_primary();
        for n in (0..3).rev() {
            for m in 0..3 {
                w.demote(m);
            }
            w.promoted_in_time(n);
            w.at_most_one_primary();
        }
        w.heals_by_itself();
    });
}

/// All ask at the same moment: at most one wins, and nobody is bound afterwards.
#[cfg_attr(test, test)]
pub(crate) fn of_three_promotions_at_once_at_most_one_wins() {
    let won = Cell::new(0);
    tell_varied(3, &ALL, |w| {
        w.in_step();
        w.demote(0);
        let mut orders = Vec::new();
        for n in 0..3 {
            orders.push(w.order(n, PRIMARY));
            w.a_moment(2 * w.plan.link_delay);
        }
        w.wait("answers", |w| {
            orders.iter().all(|id| w.admin.answers.contains_key(id))
        });
        let wins = orders.iter().filter(|id| w.admin.answers[id].is_ok());
        let wins = wins.count();
        assert_eq!(wins, w.at_most_one_primary());
        won.set(won.get() + wins);
        for n in 0..3 {
            w.demote(n);
        }
        let n = w.net_rng.index(3);
        w.promoted_in_time(n);
    });
    if all_seeds() {
        assert!(won.get() > 100, "{won:?}");
    }
}

/// Two that do not see each other, and a third that is in step with both. None is Primary.
fn a_third_between_two(w: &mut World) {
    w.in_step();
    w.demote(0);
    w.part(0, 2, true);
    w.notices(0, 2);
    w.notices(2, 0);
    w.wait("the third is in step with both", |w| {
        w.are_in_step(0, 1) && w.are_in_step(1, 2)
    });
}

/// Two that do not see each other ask a third, and the one that has its word takes its time.
#[cfg_attr(test, test)]
pub(crate) fn a_word_that_is_not_used_yet_is_not_given_again() {
    tell_varied(3, &[Protocol::C, Protocol::A], |w| {
        a_third_between_two(w);
        let first = w.order(0, PRIMARY);
        w.inject(Fault::Pause, 0, 1, 200 * MS, 0);
        w.after_a_while(2 * w.plan.link_delay);
        w.ordered(2, PRIMARY)
            .expect_err("the third has given its word");
        w.wait("an answer", |w| w.admin.answers.contains_key(&first));
        w.admin.answers[&first].clone().expect("it had the word");
        w.join_all();
        w.heals_by_itself();
        w.at_most_one_primary();
    });
}

/// Two that do not see each other ask a third at about the same moment: it lets one of them win.
#[cfg_attr(test, test)]
pub(crate) fn of_two_that_do_not_see_each_other_a_third_lets_one_win() {
    let won = Cell::new(0);
    tell_varied(3, &[Protocol::C, Protocol::A], |w| {
        a_third_between_two(w);
        let mut orders = Vec::new();
        for n in [0, 2] {
            orders.push(w.order(n, PRIMARY));
            w.a_moment(w.plan.link_delay);
        }
        w.wait("answers", |w| {
            orders.iter().all(|id| w.admin.answers.contains_key(id))
        });
        won.set(won.get() + w.at_most_one_primary());
        w.join_all();
        w.heals_by_itself();
        w.at_most_one_primary();
    });
    if all_seeds() {
        assert!(won.get() > 50, "{won:?}");
    }
}

impl World {
    fn at_most_one_primary(&self) -> usize {
        let all = self.nodes.iter();
        let primaries = all.filter(|n| n.role == Role::Primary).count();
        assert!(primaries <= 1, "{}", self.picture());
        primaries
    }
}

/// A write of the Primary, and which ones were completed before it began.
struct Sent {
    number: u32,
    range: Range<usize>,
    after: Vec<usize>,
}

/// A copy that holds a write holds the whole of it, and everything that was completed before the
/// write began.
fn could_be_the_primarys(content: &[u64], sent: &[Sent]) -> Result<(), String> {
    let newest = |s: usize| origin(content[s], s).unwrap_or(0);
    let has = |w: &Sent| w.range.clone().all(|s| newest(s) >= w.number);
    for (i, write) in sent.iter().enumerate() {
        if !write.range.clone().any(|s| newest(s) == write.number) {
            continue;
        }
        if !has(write) {
            return Err(format!("write {i} is there in part"));
        }
        if let Some(lost) = write.after.iter().find(|&&w| !has(&sent[w])) {
            return Err(format!("write {i} is there, and {lost} before it is not"));
        }
    }
    Ok(())
}

/// The Primary dies with writes under way, and its Secondaries lack different ones: each copy is a
/// state the Primary's could have had, before they meet and after, and then they are the same.
#[cfg_attr(test, test)]
pub(crate) fn secondaries_that_lack_different_writes_come_to_be_the_same() {
    let differed = Cell::new(0);
    tell_varied(3, &[Protocol::A, Protocol::B], |w| {
        w.in_step();
        w.part(1, 2, true);
        for slow in [1, 2] {
            let dice = w.net_rng.next();
            w.inject(Fault::SlowLink, 0, slow, 3 * SECOND, dice);
        }
        let mut sent: Vec<(Sent, u64)> = Vec::new();
        for _ in 0..20 {
            let first = w.net_rng.index(16) * 4;
            let number = w.oracle.next_write();
            let done =
                |(_, (_, tag)): &(usize, &(Sent, u64))| !w.clients.requests.contains_key(tag);
            let after = sent.iter().enumerate().filter(done).map(|(i, _)| i);
            let write = Sent {
                number,
                range: first..first + 8,
                after: after.collect(),
            };
            let tag = w.write(0, first, 8);
            sent.push((write, tag));
            w.a_moment(4 * MS);
        }
        w.falls(0, false);
        let sent: Vec<Sent> = sent.into_iter().map(|(write, _)| write).collect();
        for n in [1, 2] {
            w.notices(n, 0);
            w.wait("it has written all", |w| w.nodes[n].ops.is_empty());
        }
        let before = w.contents();
        if before[1] != before[2] {
            differed.set(differed.get() + 1);
        }
        w.join(1, 2);
        w.wait("the survivors met", |w| w.are_in_step(1, 2));
        let after = w.contents();
        assert!(after[1] == after[2]);
        for copy in [&before[1], &before[2], &after[1]] {
            could_be_the_primarys(copy, &sent).unwrap_or_else(|text| panic!("{text}"));
        }
        assert!(after[1] == before[1] || after[1] == before[2]);
        w.boot(0);
        w.heals_by_itself();
    });
    if all_seeds() {
        assert!(differed.get() > 50, "{differed:?}");
    }
}

/// Copies that were left behind on purpose, with writes under way, and whose Primary is lost: they are
/// made the same once, not again and again in a ring, and then wait for a person.
#[cfg_attr(test, test)]
pub(crate) fn copies_left_behind_come_to_rest() {
    let rested = Cell::new(0);
    tell_varied(4, &ALL, |w| {
        w.in_step();
        for i in 0..6 {
            w.write(0, i * 8, 8);
            w.a_moment(MS);
        }
        for n in 1..4 {
            w.order(n, Command::Disconnect { peer: None });
            w.a_moment(w.plan.link_delay);
        }
        w.wait("left behind", |w| {
            (1..4).all(|n| w.disk_of(n) == DiskState::Outdated)
        });
        w.falls(0, false);
        for n in 1..4 {
            if w.net_rng.per_mille(300) {
                let power = w.net_rng.per_mille(500);
                w.falls(n, power);
                w.boot(n);
                w.wait("it is attached", |w| w.disk_of(n) > DiskState::Inconsistent);
            }
        }
        for n in 1..4 {
            w.connect(n);
        }
        let pairs = || (1..4).flat_map(|n| (1..4).filter(move |&m| m != n).map(move |m| (n, m)));
        w.wait("at rest", |w| {
            pairs().all(|(n, m)| {
                let whole = w.disk_of(n) > DiskState::Inconsistent;
                let peer = w.told_of(n, m);
                whole && peer.connection == ConnState::Connected && peer.volumes[0].out_of_sync == 0
            })
        });
        w.after_a_while(10 * SECOND);
        let same = (2..4).all(|n| w.nodes[n].disk.data() == w.nodes[1].disk.data());
        assert!(same, "{}", w.picture());
        let n = 1 + w.net_rng.index(3);
        if w.disk_of(n) != DiskState::UpToDate {
            rested.set(rested.get() + 1);
            w.ordered(n, PRIMARY).expect_err("others may have more");
            w.ordered(n, Command::Primary { force: true })
                .expect("by order");
        }
        w.wait("in step", |w| pairs().all(|(n, m)| w.are_in_step(n, m)));
    });
    if all_seeds() {
        assert!(rested.get() > 50, "{rested:?}");
    }
}

/// A Primary that went on alone and is demoted in order: what its peer lacks is on its disk from then on,
/// and survives a power cut.
#[cfg_attr(test, test)]
pub(crate) fn what_a_demoted_primary_wrote_alone_stays_marked() {
    tell_varied(2, &ALL, |w| {
        w.in_step();
        w.part(0, 1, true);
        for i in 0..6 {
            w.write_and_wait(0, i * 8, 4);
        }
        w.demote(0);
        w.falls(0, true);
        w.boot(0);
        w.wait("it is attached", |w| w.disk_of(0) > DiskState::Inconsistent);
        w.join(0, 1);
        w.wait("in step", |w| w.are_in_step(0, 1));
        let contents = w.contents();
        assert!(contents[0] == contents[1], "{}", w.picture());
    });
}

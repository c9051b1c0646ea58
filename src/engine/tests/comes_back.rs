//! What meets a Primary without a disk at a bad moment: a disk that is attached before the peer has
//! confirmed, handlers under way, fencing, a peer that lacks what was answered.

use super::diskless::{Acked, BLOCK, expect_kept, load};
use super::fencing::{all_handlers, is_asked, is_frozen};
use super::pair::{CONNECT, Fault, Pair};
use crate::command::Command;
use crate::config::{OnIoError, OnNoData};
use crate::event::{ConnState, DiskState, Role};
use crate::fencing::Fencing;
use crate::handler::{HandlerKind, HandlerResult};
use crate::input::{Input, RequestKind};
use crate::suspend::Reason;
use twinblk_protocol::control::Protocol;

const PROTOCOLS: [Protocol; 3] = [Protocol::A, Protocol::B, Protocol::C];
const ONCE: Fault = Fault { after: 0, bad: 1 };
const DETACH: Command = Command::Detach { force: false };

fn pair(seed: u64) -> Pair {
    let protocol = PROTOCOLS[usize::try_from(seed % 3).expect("small")];
    let mut pair = Pair::in_sync(seed, protocol);
    pair.change_options(|options| options.on_no_data = OnNoData::SuspendIo);
    pair
}

/// Some blocks are written and confirmed.
fn loaded(pair: &mut Pair) -> Acked {
    let mut acked = Acked::new();
    load(pair, &mut acked, 6);
    pair.settle();
    acked
}

/// Everything comes to rest, and every handler ends well.
fn settle_handlers(pair: &mut Pair) {
    for _ in 0..3 {
        pair.settle();
        end_handlers(pair);
    }
    pair.settle();
}

fn small(offset: u64) -> usize {
    usize::try_from(offset).expect("small")
}

/// Steps until the disk of node 0 is closed, or nothing is left to do.
fn until_closed(pair: &mut Pair) -> bool {
    while pair.disk(0) != DiskState::Diskless {
        if !pair.step() {
            return false;
        }
    }
    true
}

/// A disk that is attached the moment it is closed: whatever was under way then, nothing is missing on the
/// copy that clients are served from.
#[test]
fn a_disk_that_comes_back_at_once_lacks_nothing() {
    let (mut refused, mut met) = (0, 0);
    for seed in 1..400 {
        let mut pair = pair(seed);
        let mut acked = loaded(&mut pair);
        let mut tags = Vec::new();
        for block in 30..36 {
            tags.push((block, pair.submit_write(0, block * BLOCK, 4096, 7)));
            for _ in 0..pair.rng() % 6 {
                pair.step();
            }
        }
        let after = pair.rng() % 4;
        pair.nodes[0].faults[1] = Some(Fault { after, bad: 1 });
        if !until_closed(&mut pair) {
            continue;
        }
        met += 1;
        pair.nodes[0].faults = [None; 3];
        for _ in 0..pair.rng() % 8 {
            pair.step();
        }
        pair.attach(0);
        let blips = pair.rng().is_multiple_of(3);
        for _ in 0..pair.rng() % 20 {
            pair.step();
        }
        if blips {
            pair.cut();
            pair.cable = true;
        }
        for _ in 0..3 {
            pair.settle();
            if pair.disk(0) == DiskState::Diskless {
                refused += 1;
                pair.attach(0);
            }
        }
        pair.settle();
        for (block, tag) in tags {
            pair.wait_reply(0, tag).expect("it waited");
            acked.insert(block, 7);
        }
        load(&mut pair, &mut acked, 6);
        pair.settle();
        pair.expect_in_sync();
        for n in 0..2 {
            expect_kept(&pair, n, &acked, seed);
        }
    }
    assert!(met > 100, "met {met} times");
    assert!(refused > 20, "refused {refused} times");
}

/// A detached disk may lose what it had in its cache: it gets that again.
#[test]
fn a_detached_disk_that_loses_its_cache_gets_it_back() {
    for seed in 1..120 {
        let mut pair = pair(seed);
        let mut acked = Acked::new();
        load(&mut pair, &mut acked, 14);
        for block in 30..34 {
            pair.submit_write(0, block * BLOCK, 4096, 7);
        }
        for _ in 0..pair.rng() % 8 {
            pair.step();
        }
        let _ = pair.order(0, DETACH);
        pair.settle();
        assert_eq!(pair.disk(0), DiskState::Diskless, "{}", pair.dump());
        pair.crash(0);
        pair.start(0);
        pair.settle();
        pair.expect_in_sync();
        expect_kept(&pair, 0, &acked, seed);
    }
}

fn with_local_handler(seed: u64) -> Pair {
    let mut pair = pair(seed);
    pair.change_options(|options| {
        options.on_io_error = OnIoError::CallLocalIoError;
        options.handlers = all_handlers();
    });
    end_handlers(&mut pair);
    pair
}

fn end_handlers(pair: &mut Pair) {
    for n in 0..2 {
        for (id, _) in core::mem::take(&mut pair.nodes[n].handlers) {
            let result = HandlerResult::Exited(0);
            pair.feed(n, Input::HandlerDone { id, result });
        }
    }
}

fn runs(pair: &Pair, kind: HandlerKind) -> bool {
    pair.nodes[0].handlers.iter().any(|&(_, k)| k == kind)
}

/// While `local-io-error` runs nobody is told: no client gets an error, and no disk comes back.
#[test]
fn while_the_handler_runs_nothing_is_decided() {
    for seed in 1..60 {
        let mut pair = with_local_handler(seed);
        let mut acked = loaded(&mut pair);
        pair.nodes[0].faults[1] = Some(ONCE);
        let (&block, &value) = acked.iter().next().expect("there is one");
        let read = pair.submit(0, RequestKind::Read, block * BLOCK, &[0; 4096], 4096, false);
        let write = pair.submit_write(0, 40 * BLOCK, 4096, 9);
        pair.settle();
        assert!(runs(&pair, HandlerKind::LocalIoError), "{}", pair.dump());
        assert!(
            !pair.nodes[0].replies.contains_key(&read),
            "{}",
            pair.dump()
        );
        // It may have ended before the read was known to have failed.
        let failed = pair.nodes[0]
            .replies
            .get(&write)
            .is_some_and(Result::is_err);
        assert!(!failed, "{}", pair.dump());
        assert_eq!(pair.disk(0), DiskState::Diskless, "{}", pair.dump());
        pair.attach(0);
        pair.settle();
        assert_eq!(pair.disk(0), DiskState::Diskless, "it was refused");
        end_handlers(&mut pair);
        pair.wait_reply(0, read).expect("the peer has it");
        pair.wait_reply(0, write).expect("the peer has it");
        assert_eq!(pair.read(0, block * BLOCK, 4096), vec![value; 4096]);
        acked.insert(40, 9);
        pair.settle();
        pair.attach(0);
        settle_handlers(&mut pair);
        pair.expect_in_sync();
        expect_kept(&pair, 0, &acked, seed);
    }
}

fn fencing(seed: u64) -> Pair {
    let mut pair = pair(seed);
    pair.change_options(|options| {
        options.fencing = Fencing::ResourceAndStonith;
        options.handlers = all_handlers();
    });
    end_handlers(&mut pair);
    pair
}

/// Node 1 has no fencing of its own.
fn peer_doubts_nothing(pair: &mut Pair) {
    let mut careless = Box::new(pair.options.clone());
    careless.fencing = Fencing::DontCare;
    pair.order(1, Command::SetOptions(careless))
        .expect("options are taken over");
}

/// The only current copy is not fenced by the Primary it serves; and it serves again when the link is back,
/// whatever it thinks of itself meanwhile.
#[test]
fn the_copy_that_serves_is_not_fenced_and_serves_again() {
    for seed in 1..60 {
        let mut pair = fencing(seed);
        let mut acked = loaded(&mut pair);
        pair.order(0, DETACH).expect("the peer serves");
        load(&mut pair, &mut acked, 6);
        pair.cut();
        pair.settle();
        assert!(!is_asked(&pair, 0), "{}", pair.dump());
        assert!(!is_frozen(&pair, 0), "{}", pair.dump());
        assert!(pair.status(0).suspended_for.has(Reason::NoData));
        assert_eq!(pair.disk(1), DiskState::Consistent, "{}", pair.dump());
        pair.cable = true;
        load(&mut pair, &mut acked, 6);
        assert!(!pair.status(0).suspended_for.any(), "{}", pair.dump());
        expect_kept(&pair, 1, &acked, seed);
    }
}

/// A flush that a disk could not carry out is told: the next one would find nothing to complain about.
#[test]
fn a_failed_flush_of_the_only_copy_is_told() {
    let mut pair = pair(1);
    pair.cut();
    pair.write(0, BLOCK, 4096, 3);
    pair.settle();
    pair.nodes[0].faults[1] = Some(ONCE);
    let tag = pair.submit(0, RequestKind::Flush, 0, &[], 0, false);
    pair.settle();
    let answer = pair.nodes[0].replies.get(&tag).expect("it is answered");
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(pair.disk(0), DiskState::Diskless, "{}", pair.dump());
    assert!(pair.status(0).suspended_for.has(Reason::NoData));
}

/// The peer is lost with writes that were answered and never arrived; before it is fenced, or a new
/// generation begins, the own disk fails. When the peer is back it is not served: it lacks them.
#[test]
fn a_peer_that_lacks_what_was_answered_is_not_served() {
    let mut lacked = 0;
    for seed in 1..240 {
        let mut pair = if seed % 2 == 0 {
            fencing(seed / 2)
        } else {
            pair(seed / 2)
        };
        peer_doubts_nothing(&mut pair);
        let mut acked = loaded(&mut pair);
        let mut tags = Vec::new();
        for block in 30..36 {
            tags.push((block, pair.submit_write(0, block * BLOCK, 4096, 7)));
            for _ in 0..pair.rng() % 12 {
                pair.step();
            }
        }
        // The own disk fails while they are under way, or when the new generation is written.
        let kind = usize::from(pair.rng().is_multiple_of(2));
        pair.nodes[0].faults[kind] = Some(ONCE);
        if kind == 1 {
            let (block, _) = tags[0];
            pair.submit_write(0, block * BLOCK, 4096, 7);
        }
        // Under C: what was confirmed is in the peer's cache only.
        if pair.rng().is_multiple_of(2) {
            pair.crash(1);
            pair.start(1);
        } else {
            pair.cut();
        }
        pair.cable = false;
        for _ in 0..pair.rng() % 20 {
            pair.step();
        }
        pair.nodes[0].faults = [None; 3];
        tags.retain(|(_, tag)| pair.nodes[0].replies.contains_key(tag));
        pair.cable = true;
        pair.settle();
        if pair.disk(0) != DiskState::Diskless {
            continue;
        }
        lacked += u32::from(
            tags.iter()
                .any(|&(b, _)| pair.content(1)[small(b * BLOCK)] != 7),
        );
        let read = |pair: &mut Pair, block: u64| {
            let tag = pair.submit(0, RequestKind::Read, block * BLOCK, &[0; 4096], 4096, false);
            pair.settle();
            pair.found(0, tag).map(|found| found[0])
        };
        for &(block, _) in &tags {
            let found = read(&mut pair, block);
            assert!(matches!(found, None | Some(7)), "seed {seed}: {found:?}");
        }
        // The own disk has it all.
        pair.attach(0);
        pair.settle();
        assert_eq!(pair.role(0), Role::Primary);
        if pair.connection(0) == ConnState::StandAlone {
            // A generation had begun that the peer does not have: refused, and told so.
            for n in 0..2 {
                pair.order(n, CONNECT).expect("it may");
            }
            pair.settle();
        }
        settle_handlers(&mut pair);
        for (block, _) in tags {
            acked.insert(block, 7);
        }
        expect_kept(&pair, 0, &acked, seed);
        pair.expect_in_sync();
    }
    assert!(lacked > 10, "it lacked something {lacked} times");
}

/// A promotion without a disk that comes to nothing leaves nothing behind: not the role, and no copy that
/// is served.
#[test]
fn a_promotion_without_a_disk_that_fails_leaves_nothing_behind() {
    let mut failed = 0;
    for seed in 1..80 {
        let mut pair = pair(seed);
        pair.order(0, Command::Secondary).expect("nobody holds it");
        pair.order(0, DETACH).expect("nobody needs it");
        pair.settle();
        let order = pair.order_async(0, Command::Primary { force: false });
        for _ in 0..pair.rng() % 12 {
            pair.step();
        }
        pair.cut();
        pair.settle();
        let answer = pair.nodes[0].answers[&order].clone();
        if answer.is_ok() {
            continue;
        }
        failed += 1;
        assert_eq!(pair.role(0), Role::Secondary);
        assert!(!pair.status(0).suspended_for.any());
        assert!(
            pair.nodes[0]
                .engine
                .as_ref()
                .is_some_and(|e| !e.is_remote())
        );
        pair.cable = true;
        pair.attach(0);
        pair.settle();
        pair.expect_in_sync();
        pair.order(0, Command::Primary { force: false })
            .expect("now it can be");
    }
    assert!(failed > 20, "failed {failed} times");
}

/// Both have gone on: the one that serves stays what it is, whatever the other relies upon.
#[test]
fn who_serves_is_not_outdated_by_a_primary_without_a_disk() {
    let mut pair = pair(2);
    pair.cut();
    pair.write(0, BLOCK, 4096, 3);
    pair.settle();
    pair.nodes[0].faults[1] = Some(ONCE);
    pair.submit(0, RequestKind::Read, BLOCK, &[0; 4096], 4096, false);
    pair.settle();
    assert_eq!(pair.disk(0), DiskState::Diskless, "{}", pair.dump());
    pair.order(1, Command::Primary { force: false })
        .expect("nobody has fenced it");
    pair.write(1, 2 * BLOCK, 4096, 4);
    pair.cable = true;
    pair.settle();
    assert_ne!(pair.connection(1), ConnState::Connected);
    assert_eq!(pair.disk(1), DiskState::UpToDate, "{}", pair.dump());
    pair.write(1, 3 * BLOCK, 4096, 5);
}

/// A generation that may or may not have reached the disk: nothing was told under it, so the peer is not
/// outdated by it, and the disk that comes back is served at once.
#[test]
fn a_generation_that_never_began_outdates_nobody() {
    let mut met = 0;
    for seed in 1..60 {
        let mut pair = Pair::in_sync(seed, Protocol::C);
        pair.change_options(|options| options.on_no_data = OnNoData::SuspendIo);
        pair.cut();
        pair.nodes[0].faults[0] = Some(ONCE);
        let tag = pair.submit_write(0, BLOCK, 4096, 3);
        pair.settle();
        if pair.disk(0) != DiskState::Diskless || pair.nodes[0].replies.contains_key(&tag) {
            continue;
        }
        met += 1;
        pair.nodes[0].faults = [None; 3];
        pair.cable = true;
        pair.settle();
        assert_eq!(pair.disk(1), DiskState::UpToDate, "{}", pair.dump());
        assert!(!pair.nodes[0].replies.contains_key(&tag), "it waits");
        pair.attach(0);
        pair.wait_reply(0, tag).expect("its disk is back");
        pair.settle();
        pair.expect_in_sync();
    }
    assert!(met > 10, "met {met} times");
}

/// What a peer may lack comes to no other disk either, from which clients would then be served.
#[test]
fn a_new_disk_is_not_filled_from_a_peer_that_lacks_something() {
    let mut met = 0;
    for seed in 1..120 {
        let mut pair = fencing(seed);
        peer_doubts_nothing(&mut pair);
        loaded(&mut pair);
        let tag = pair.submit_write(0, 30 * BLOCK, 4096, 7);
        while !pair.nodes[0].replies.contains_key(&tag) && pair.step() {}
        pair.nodes[0].faults[1] = Some(ONCE);
        pair.submit_write(0, 30 * BLOCK, 4096, 7);
        pair.cut();
        pair.settle();
        pair.nodes[0].faults = [None; 3];
        let lacks = pair.content(1)[small(30 * BLOCK)] != 7;
        if pair.disk(0) != DiskState::Diskless || !lacks {
            continue;
        }
        met += 1;
        pair.cable = true;
        pair.settle();
        pair.replace_disk(0);
        pair.attach(0);
        settle_handlers(&mut pair);
        assert_ne!(pair.disk(0), DiskState::UpToDate, "{}", pair.dump());
        assert!(pair.logged(0, "may lack writes"), "{}", pair.dump());
        // Given up on purpose, it may.
        pair.order(0, Command::SecondaryByForce).expect("by force");
        pair.settle();
        pair.attach(0);
        settle_handlers(&mut pair);
        assert_eq!(pair.disk(0), DiskState::UpToDate, "{}", pair.dump());
    }
    assert!(met > 5, "met {met} times");
}

/// A disk that was out of use while another node was Primary has missed what that wrote: attached without
/// that node it is older, and is not promoted. One that missed nothing is what it was.
#[test]
fn a_disk_that_was_out_of_use_under_a_primary_is_older() {
    const PROMOTE: Command = Command::Primary { force: false };
    type Story = fn(&mut Pair);
    let older: [(&str, Story); 4] = [
        ("detached under it", |pair| {
            pair.order(1, DETACH).expect("nobody needs it");
        }),
        ("failed under it", |pair| {
            pair.nodes[1].faults[1] = Some(ONCE);
            pair.submit_write(0, BLOCK, 4096, 3);
            while pair.disk(1) == DiskState::UpToDate && pair.step() {}
            // Before another word is heard.
            pair.cut();
        }),
        ("the other was promoted meanwhile", |pair| {
            pair.order(0, Command::Secondary).expect("nobody holds it");
            pair.order(1, DETACH).expect("nobody needs it");
            pair.settle();
            pair.order(0, PROMOTE).expect("it has a disk");
        }),
        ("met the other as Primary", |pair| {
            pair.cut();
            pair.settle();
            pair.order(1, Command::Detach { force: true })
                .expect("nobody needs it");
            pair.settle();
            pair.cable = true;
        }),
    ];
    let same: [(&str, Story); 2] = [
        ("nobody was Primary", |pair| {
            pair.order(0, Command::Secondary).expect("nobody holds it");
            pair.order(1, DETACH).expect("nobody needs it");
        }),
        ("the Primary had no other copy", |pair| {
            pair.order(0, DETACH).expect("the peer serves");
            pair.settle();
            pair.nodes[1].faults[1] = Some(ONCE);
            pair.submit(0, RequestKind::Read, BLOCK, &[0; 4096], 4096, false);
        }),
    ];
    let all = older.map(|s| (s, true)).into_iter();
    for ((what, story), is_older) in all.chain(same.map(|s| (s, false))) {
        let mut pair = pair(2);
        pair.write(0, BLOCK, 4096, 2);
        pair.settle();
        story(&mut pair);
        pair.settle();
        assert_eq!(pair.disk(1), DiskState::Diskless, "{what}");
        pair.cut();
        pair.settle();
        pair.nodes[1].faults = [None; 3];
        pair.attach(1);
        pair.settle();
        let state = match is_older {
            true => DiskState::Outdated,
            false => DiskState::UpToDate,
        };
        assert_eq!(pair.disk(1), state, "{what}: {}", pair.dump());
        let promoted = pair.order(1, PROMOTE);
        assert_eq!(promoted.is_err(), is_older, "{what}: {promoted:?}");
    }
}

/// Who consents to stay behind at the end of a resync does stay behind: not both sides are current when the
/// link is down, behind fencing.
#[test]
fn who_leaves_at_the_end_of_a_resync_stays_behind() {
    let mut left = [0, 0];
    for seed in 1..400 {
        let mut pair = fencing(seed);
        pair.order(1, Command::Disconnect { peer: None })
            .expect("it may");
        settle_handlers(&mut pair);
        pair.write(0, BLOCK, 4096, 3);
        for n in 0..2 {
            pair.order(n, CONNECT).expect("it may");
        }
        let ends = |pair: &Pair| {
            let engine = pair.nodes[1].engine.as_ref();
            engine.is_some_and(|e| e.peers[0].volumes[0].adopts())
        };
        let some = match pair.rng() % 3 {
            0 => pair.rng() % 200,
            _ => {
                while !ends(&pair) && pair.step() {
                    end_handlers(&mut pair);
                }
                pair.rng() % 6
            }
        };
        for _ in 0..some {
            pair.step();
            end_handlers(&mut pair);
        }
        let n = usize::from(pair.rng().is_multiple_of(2));
        pair.order_async(n, Command::Disconnect { peer: None });
        settle_handlers(&mut pair);
        // What node 0 need not fence must not be promoted.
        let current = [DiskState::UpToDate, DiskState::Consistent];
        let believed = pair.status(0).peers[0].volumes[0].peer_disk;
        let needs_no_fencing = matches!(believed, DiskState::Outdated | DiskState::Inconsistent);
        left[usize::from(needs_no_fencing)] += 1;
        if needs_no_fencing {
            assert!(
                !current.contains(&pair.disk(1)),
                "seed {seed}: {}",
                pair.dump()
            );
        }
        let tag = pair.submit_write(0, BLOCK, 4096, 4);
        settle_handlers(&mut pair);
        if pair.nodes[0].replies.contains_key(&tag) {
            let promoted = pair.order(1, Command::Primary { force: false });
            assert!(promoted.is_err(), "seed {seed}: {}", pair.dump());
        }
    }
    assert!(left[1] > 50, "{left:?}");
}

/// That a disk is older is on it before it is in use: failing at once and attached again, it is still older.
#[test]
fn a_disk_that_fails_again_at_once_is_still_older() {
    let mut failed = 0;
    for after in 0..24 {
        let mut pair = pair(2);
        pair.write(0, BLOCK, 4096, 2);
        pair.settle();
        pair.order(1, DETACH).expect("nobody needs it");
        pair.settle();
        pair.write(0, BLOCK, 4096, 3);
        pair.cut();
        pair.settle();
        pair.nodes[1].faults[0] = Some(Fault { after, bad: 1 });
        pair.attach(1);
        pair.settle();
        if pair.disk(1) == DiskState::Diskless {
            failed += 1;
            pair.nodes[1].faults = [None; 3];
            pair.attach(1);
            pair.settle();
        }
        assert_eq!(pair.disk(1), DiskState::Outdated, "{}", pair.dump());
    }
    assert!(failed > 1, "failed {failed} times");
}

/// The copy that a Primary without a disk was promoted on, or goes on with, is nobody's older one, whenever its
/// own disk goes out of use: nothing can have been written without it.
#[test]
fn the_only_copy_is_never_older() {
    // Whether what the story is about came to pass.
    type Story = fn(&mut Pair, u64) -> bool;
    let stories: [(&str, Story); 2] = [
        ("as it is promoted on", |pair, some| {
            pair.order(0, Command::Secondary).expect("nobody holds it");
            pair.order(0, DETACH).expect("nobody needs it");
            pair.settle();
            pair.order_async(0, Command::Primary { force: false });
            for _ in 0..some {
                pair.step();
            }
            pair.order_async(1, Command::Detach { force: true });
            pair.logged(1, "are served from this node's copy")
        }),
        (
            "with a generation of which the Primary did not hear",
            |pair, some| {
                pair.order_async(0, DETACH);
                for _ in 0..some {
                    pair.step();
                }
                pair.cut();
                pair.settle();
                let volume = |n: usize| &pair.nodes[n].engine.as_ref().expect("runs").volumes[0];
                let relies = volume(0).remote.as_ref().map(|r| r.generation);
                let unheard = relies.is_some_and(|g| g != volume(1).generations.current);
                pair.order_async(1, Command::Detach { force: true });
                pair.settle();
                pair.cable = true;
                unheard
            },
        ),
    ];
    for (what, story) in stories {
        let mut met = 0;
        for seed in 1..10 {
            for some in 0..20 {
                let mut pair = pair(seed);
                pair.write(0, BLOCK, 4096, 2);
                pair.settle();
                let came_to_pass = story(&mut pair, some);
                settle_handlers(&mut pair);
                if pair.disk(0) != DiskState::Diskless || pair.disk(1) != DiskState::Diskless {
                    continue;
                }
                met += u32::from(came_to_pass);
                pair.cut();
                settle_handlers(&mut pair);
                pair.attach(1);
                settle_handlers(&mut pair);
                assert_eq!(
                    pair.disk(1),
                    DiskState::UpToDate,
                    "{what}, seed {seed}, {some} steps: {}",
                    pair.dump()
                );
            }
        }
        assert!(met > 30, "{what}: met {met} times");
    }
}

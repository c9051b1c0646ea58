//! The supervisor, with the test as the loops of its resources. Time passes as soon as everybody waits.

use super::*;
use crate::daemon::fake_loop::Kit;
use twinblk_engine::command::{CommandResult, Refusal, RefusalKind};
use twinblk_engine::event::{DiskState, Event, Severity, What};
use twinblk_engine::ids::VolumeId;

fn done() -> CommandResult {
    Ok(String::new())
}

fn refused(kind: RefusalKind) -> CommandResult {
    Err(Refusal {
        kind,
        reason: "no".into(),
        way_out: "ask differently".into(),
    })
}

/// Until nothing is left to do but wait.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_end_all_resources_stop_at_the_same_time() {
    let kit = Kit::new();
    let loops = [kit.up("r0"), kit.up("r1")];
    let supervisor = Arc::clone(&kit.supervisor);
    let end = tokio::spawn(async move { supervisor.stop_all(STOP_ALL_TIME).await });
    // Each gets the order before any of them has ended.
    let (first, order) = loops[0].order().await;
    assert!(matches!(order, Command::Stop { force: true }), "{order:?}");
    let (second, _) = loops[1].order().await;
    for (fake, id) in loops.iter().zip([first, second]) {
        fake.answer(id, done());
        fake.end(Ok(()));
    }
    end.await.expect("it ends");
    assert!(kit.supervisor.running_names().is_empty());
    assert_eq!(kit.remembered(), ["r0", "r1"], "they come back");
}

#[tokio::test(start_paused = true)]
async fn at_the_end_a_stuck_resource_is_left_behind() {
    let kit = Kit::new();
    let (_stuck, good) = (kit.up("r0"), kit.up("r1"));
    let supervisor = Arc::clone(&kit.supervisor);
    let end = tokio::spawn(async move { supervisor.stop_all(STOP_ALL_TIME).await });
    let (id, _) = good.order().await;
    good.answer(id, done());
    good.end(Ok(()));
    end.await.expect("it ends");
    assert_eq!(kit.supervisor.running_names(), ["r0"]);
    let refusal = kit.supervisor.up("r1").await.expect_err("not any more");
    assert!(!refusal.reason.is_empty());
    assert!(kit.supervisor.running("r1").is_none());
}

#[tokio::test(start_paused = true)]
async fn an_order_that_hangs_does_not_keep_the_daemon_from_ending() {
    let kit = Kit::new();
    let fake = kit.up("r0");
    let _hangs = kit.supervisor.changing.lock().await;
    let supervisor = Arc::clone(&kit.supervisor);
    let end = tokio::spawn(async move { supervisor.stop_all(STOP_ALL_TIME).await });
    // Time passes only while nobody looks for orders.
    tokio::time::sleep(LAST_ORDER_TIME * 2).await;
    let (id, _) = fake.order().await;
    fake.answer(id, done());
    fake.end(Ok(()));
    end.await.expect("it ends");
    assert!(kit.supervisor.running_names().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_down_that_ends_late_is_still_a_down() {
    let kit = Kit::new();
    let fake = kit.up("r0");
    let error = kit.supervisor.down("r0", false).await.expect_err("late");
    assert_eq!(error.exit_code, 5, "{error:?}");
    assert!(kit.remembered().is_empty(), "it does not come back");
    let error = kit.supervisor.up("r0").await.expect_err("not yet");
    assert!(error.reason.contains("going down"), "{error:?}");
    let (id, _) = fake.order().await;
    fake.answer(id, done());
    fake.end(Ok(()));
    settle().await;
    assert!(kit.supervisor.running("r0").is_none());
    assert!(kit.remembered().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_down_that_is_refused_leaves_the_wish_as_it_was() {
    let kit = Kit::new();
    let fake = kit.up("r0");
    for late in [false, true] {
        let supervisor = Arc::clone(&kit.supervisor);
        let down = tokio::spawn(async move { supervisor.down("r0", false).await });
        let error = if late {
            let error = down.await.expect("it ends").expect_err("late");
            let (id, _) = fake.order().await;
            fake.answer(id, refused(RefusalKind::InUse));
            error
        } else {
            let (id, _) = fake.order().await;
            fake.answer(id, refused(RefusalKind::InUse));
            down.await.expect("it ends").expect_err("refused")
        };
        settle().await;
        assert_eq!(error.exit_code, if late { 5 } else { 12 }, "{error:?}");
        assert_eq!(kit.remembered(), ["r0"]);
        let text = kit.supervisor.up("r0").await.expect("it is");
        assert!(text.contains("already up"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_adjust_joins_the_peers_again_whatever_came_of_leaving_them() {
    for kind in [RefusalKind::State, RefusalKind::Timeout] {
        let kit = Kit::new();
        let fake = kit.up("r0");
        kit.change_secret("sardine");
        let begin = || {
            let supervisor = Arc::clone(&kit.supervisor);
            tokio::spawn(async move { supervisor.adjust("r0", false).await })
        };
        let adjust = begin();
        let (id, order) = fake.order().await;
        assert!(matches!(order, Command::SetOptions(_)), "{order:?}");
        fake.answer(id, done());
        let (leave, order) = fake.order().await;
        assert!(matches!(order, Command::Disconnect { .. }), "{order:?}");
        if kind == RefusalKind::State {
            fake.answer(leave, refused(kind));
        } else {
            // Time passes only while nobody looks for orders.
            tokio::time::sleep(Duration::from_secs(40)).await;
        }
        let (join, order) = fake.order().await;
        assert!(matches!(order, Command::Connect { .. }), "{order:?}");
        fake.answer(join, done());
        let error = adjust.await.expect("it ends").expect_err("not through");
        assert!(error.way_out.contains("adjust r0"), "{error:?}");
        if kind == RefusalKind::Timeout {
            // It went on by itself: the peers are left only now.
            fake.answer(leave, done());
            let (_, order) = fake.order().await;
            assert!(matches!(order, Command::Connect { .. }), "{order:?}");
        }
        // The next one goes on where this one ended.
        let adjust = begin();
        let (id, _) = fake.order().await;
        fake.answer(id, done());
        for _ in 0..2 {
            let (id, order) = fake.order().await;
            assert!(
                matches!(order, Command::Disconnect { .. } | Command::Connect { .. }),
                "{order:?}"
            );
            fake.answer(id, done());
        }
        let text = adjust.await.expect("it ends").expect("through");
        assert!(text.contains("shared-secret"), "{text}");
        let text = begin().await.expect("it ends").expect("through");
        assert_eq!(text, "nothing to change");
    }
}

#[tokio::test(start_paused = true)]
async fn options_that_were_not_taken_are_given_again() {
    let kit = Kit::new();
    let fake = kit.up("r0");
    kit.change_secret("sardine");
    for _ in 0..2 {
        let supervisor = Arc::clone(&kit.supervisor);
        let adjust = tokio::spawn(async move { supervisor.adjust("r0", false).await });
        let (id, order) = fake.order().await;
        assert!(matches!(order, Command::SetOptions(_)), "{order:?}");
        fake.answer(id, refused(RefusalKind::State));
        adjust.await.expect("it ends").expect_err("refused");
    }
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_does_not_answer_holds_nobody_up() {
    let kit = Kit::new();
    let fake = kit.up("r0");
    let status = tokio::time::timeout(STOP_TIME, kit.supervisor.status("r0"));
    let status = status.await.expect("in time").expect("an answer");
    let why = status.suspended.expect("a reason");
    assert!(status.up && why.contains("nothing is known"), "{why}");
    assert_eq!(status.role, "Unknown");
    // Once it has told something, that is shown.
    let (supervisor, name) = (Arc::clone(&kit.supervisor), "r0");
    // The question from before is still in its mailbox.
    fake.tell_state().await;
    let ask = tokio::spawn(async move { supervisor.status(name).await });
    fake.tell_state().await;
    let status = ask.await.expect("it ends").expect("an answer");
    assert_eq!((status.role.as_str(), status.suspended), ("Primary", None));
    let status = kit.supervisor.status("r0").await.expect("an answer");
    let why = status.suspended.expect("a reason");
    assert!(why.contains("does not answer"), "{why}");
    assert_eq!(status.role, "Primary");
    // Nor does it hold up an order, or the daemon's end.
    let error = kit.supervisor.down("r0", true).await.expect_err("late");
    assert!(error.reason.contains("does not answer"), "{error:?}");
    kit.supervisor.stop_all(STOP_ALL_TIME).await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_loop_by_an_error_is_an_event() {
    let kit = Kit::new();
    let (fake, other) = (kit.up("r0"), kit.up("r1"));
    let mut events = kit.supervisor.events.subscribe();
    fake.end(Err("io_uring failed".into()));
    settle().await;
    let line = events.try_recv().expect("an event");
    assert_eq!(
        (line.resource.as_str(), line.severity.as_str()),
        ("r0", "error")
    );
    assert!(line.cause.contains("io_uring failed"), "{line:?}");
    // An orderly end is none.
    other.end(Ok(()));
    settle().await;
    assert!(kit.supervisor.running_names().is_empty());
    assert!(events.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_disk_is_waited_for_until_it_is_there_or_will_never_be() {
    let limit = Duration::from_secs(5);
    let disk = |from, to| {
        FromLoop::Event(Event {
            what: What::Disk(VolumeId(0), from, to),
            severity: Severity::Info,
            cause: String::new(),
        })
    };
    for ends in [false, true] {
        let kit = Kit::new();
        let fake = kit.up("r0");
        let running = kit.supervisor.running("r0").expect("it is up");
        let begins = disk(DiskState::Diskless, DiskState::Attaching);
        fake.says.send(begins).expect("somebody listens");
        assert!(!running.attached(limit).await, "not yet");
        if ends {
            fake.end(Err("no".into()));
        } else {
            let there = disk(DiskState::Attaching, DiskState::Failed);
            fake.says.send(there).expect("somebody listens");
        }
        assert!(running.attached(limit).await);
    }
}

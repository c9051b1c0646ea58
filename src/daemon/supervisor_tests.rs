//! The supervisor, with the test as the loops of its resources.

use super::*;
use crate::daemon::fake_loop::Kit;

fn done() -> twinblk_engine::command::CommandResult {
    Ok(String::new())
}

#[tokio::test]
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

#[tokio::test]
async fn at_the_end_a_stuck_resource_is_left_behind() {
    let kit = Kit::new();
    let (_stuck, good) = (kit.up("r0"), kit.up("r1"));
    let supervisor = Arc::clone(&kit.supervisor);
    let limit = Duration::from_millis(200);
    let end = tokio::spawn(async move { supervisor.stop_all(limit).await });
    let (id, _) = good.order().await;
    good.answer(id, done());
    good.end(Ok(()));
    end.await.expect("it ends");
    assert_eq!(kit.supervisor.running_names(), ["r0"]);
    let refusal = kit.supervisor.up("r1").await.expect_err("not any more");
    assert!(!refusal.reason.is_empty());
    assert!(kit.supervisor.running("r1").is_none());
}

#[tokio::test]
async fn an_order_that_hangs_does_not_keep_the_daemon_from_ending() {
    let kit = Kit::new();
    let fake = kit.up("r0");
    let _hangs = kit.supervisor.changing.lock().await;
    let supervisor = Arc::clone(&kit.supervisor);
    let limit = Duration::from_secs(2);
    let end = tokio::spawn(async move { supervisor.stop_all(limit).await });
    let (id, _) = fake.order().await;
    fake.answer(id, done());
    fake.end(Ok(()));
    end.await.expect("it ends");
    assert!(kit.supervisor.running_names().is_empty());
}

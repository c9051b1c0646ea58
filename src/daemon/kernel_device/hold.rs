//! Who keeps the device away.
//!
//! Invariant: an order that took the device away keeps it away until the engine has answered, also when
//! nobody waits for that answer any more: until then the node may still be Primary, and a device that came
//! back would be one that nobody serves. Orders may overlap; the end of the daemon is for good.

use crate::daemon::running::{Answer, Running};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::{Notify, oneshot};

/// Counts them.
#[derive(Debug, Default)]
pub(super) struct Hold {
    orders: AtomicUsize,
    for_good: AtomicBool,
}

impl Hold {
    /// Nothing brings the device back now.
    pub(super) fn is_held(&self) -> bool {
        self.for_good.load(Ordering::Relaxed) || self.orders.load(Ordering::Relaxed) > 0
    }

    /// The daemon ends.
    pub(super) fn for_good(&self) {
        self.for_good.store(true, Ordering::Relaxed);
    }
}

/// The device stays away while this lives.
#[derive(Debug)]
pub(crate) struct Released {
    hold: Arc<Hold>,
    wake: Arc<Notify>,
}

impl Released {
    /// `wake` is told when it is over.
    pub(super) fn new(hold: &Arc<Hold>, wake: &Arc<Notify>) -> Self {
        hold.orders.fetch_add(1, Ordering::Relaxed);
        Self {
            hold: Arc::clone(hold),
            wake: Arc::clone(wake),
        }
    }

    /// Lives until the answer to an order is there, whether or not somebody waits for what is returned.
    pub(crate) fn until_answered(self, answer: Answer) -> Answer {
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(async move {
            let answer = answer.await;
            drop(self);
            if let Ok(result) = answer {
                // Nobody may be waiting.
                let _ = sender.send(result);
            }
        });
        receiver
    }

    /// The same for the order to stop, which is carried out when the resource has ended. Refused, it is
    /// over at once.
    pub(crate) fn until_ended(self, answer: Answer, running: &Running) -> Answer {
        let (sender, receiver) = oneshot::channel();
        let mut ended = running.ended.subscribe();
        tokio::spawn(async move {
            let answer = answer.await;
            let hold = match &answer {
                Ok(Err(_)) => None,
                _ => Some(self),
            };
            if let Ok(result) = answer {
                let _ = sender.send(result);
            }
            if hold.is_some() {
                let _ = ended.wait_for(Option::is_some).await;
            }
        });
        receiver
    }
}

impl Drop for Released {
    fn drop(&mut self) {
        self.hold.orders.fetch_sub(1, Ordering::Relaxed);
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> (Arc<Hold>, Released) {
        let hold = Arc::new(Hold::default());
        let released = Released::new(&hold, &Arc::new(Notify::new()));
        (hold, released)
    }

    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_device_stays_away_until_the_last_order_is_over() {
        let (hold, first) = held();
        let second = Released::new(&hold, &Arc::new(Notify::new()));
        drop(first);
        assert!(hold.is_held());
        drop(second);
        assert!(!hold.is_held());
        let third = Released::new(&hold, &Arc::new(Notify::new()));
        hold.for_good();
        drop(third);
        assert!(hold.is_held(), "the daemon ends");
    }

    #[tokio::test(start_paused = true)]
    async fn it_stays_away_although_nobody_waits_for_the_answer_any_more() {
        let (hold, released) = held();
        let (engine, answer) = oneshot::channel();
        drop(released.until_answered(answer));
        settle().await;
        assert!(hold.is_held());
        engine.send(Ok(String::new())).expect("it is waited for");
        settle().await;
        assert!(!hold.is_held());
    }

    #[tokio::test(start_paused = true)]
    async fn a_resource_that_stops_has_no_device_until_it_has_ended() {
        let kit = crate::daemon::fake_loop::Kit::new();
        let fake = kit.up("r0");
        let running = kit.supervisor.running("r0").expect("it is up");
        let (hold, released) = held();
        let (engine, answer) = oneshot::channel();
        let answer = released.until_ended(answer, &running);
        engine.send(Ok(String::new())).expect("it is waited for");
        assert!(answer.await.expect("it is passed on").is_ok());
        settle().await;
        assert!(hold.is_held(), "it has not ended");
        fake.end(Ok(()));
        settle().await;
        assert!(!hold.is_held());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_that_is_refused_brings_it_back() {
        use twinblk_engine::command::{Refusal, RefusalKind};
        let kit = crate::daemon::fake_loop::Kit::new();
        let _fake = kit.up("r0");
        let running = kit.supervisor.running("r0").expect("it is up");
        let (hold, released) = held();
        let (engine, answer) = oneshot::channel();
        let answer = released.until_ended(answer, &running);
        let no = Refusal {
            kind: RefusalKind::Other,
            reason: String::new(),
            way_out: String::new(),
        };
        engine.send(Err(no)).expect("it is waited for");
        assert!(answer.await.expect("it is passed on").is_err());
        assert!(!hold.is_held());
    }
}

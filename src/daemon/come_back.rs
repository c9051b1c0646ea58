//! What was up when the daemon last ran comes back by itself: at once, or as soon as what it lacks is
//! there. At boot a disk, an address or a directory often comes a little later than the daemon.

use super::running::lock;
use super::supervisor::Supervisor;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Time between two attempts at first.
const SHORT_PAUSE: Duration = Duration::from_secs(5);
/// So long it is tried often.
const OFTEN: Duration = Duration::from_secs(60);
/// Time between two attempts later.
const LONG_PAUSE: Duration = Duration::from_secs(30);

impl Supervisor {
    /// Brings up what was up when the daemon last ran. What cannot be brought up is tried again until
    /// it is up or somebody orders `up` or `down`.
    pub(crate) async fn bring_back(self: &Arc<Self>) {
        let were_up = self.state.were_up();
        lock(&self.wanted).clone_from(&were_up);
        for name in were_up {
            let result = {
                let _one = self.changing.lock().await;
                // An order may have come first.
                if !lock(&self.wanted).contains(&name) || self.running(&name).is_some() {
                    continue;
                }
                let result = self.bring_up(&name).await;
                if let Err(e) = &result {
                    self.note_failure(&name, e, true);
                }
                result
            };
            if result.is_err() {
                tokio::spawn(try_again(Arc::clone(self), name));
            }
        }
    }

    fn is_retried(&self, name: &str) -> bool {
        !self.ending.load(Ordering::Relaxed)
            && lock(&self.failed).get(name).is_some_and(|f| f.retried)
    }
}

/// Tries until it is up, or it is nobody's wish any more that this goes on.
async fn try_again(supervisor: Arc<Supervisor>, name: String) {
    let mut waited = Duration::ZERO;
    loop {
        let pause = match waited < OFTEN {
            true => SHORT_PAUSE,
            false => LONG_PAUSE,
        };
        tokio::time::sleep(pause).await;
        waited += pause;
        let _one = supervisor.changing.lock().await;
        if !supervisor.is_retried(&name) {
            return;
        }
        match supervisor.bring_up(&name).await {
            Ok(text) => return tracing::info!(resource = %name, "{text}, at last"),
            Err(e) => supervisor.note_failure(&name, &e, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::fake_loop::Kit;

    #[tokio::test(start_paused = true)]
    async fn an_order_ends_the_attempts() {
        let kit = Kit::new();
        kit.supervisor.state.remember(&["r0".to_string()].into());
        for verb in ["down", "up"] {
            kit.supervisor.bring_back().await;
            let status = kit.supervisor.status("r0").await.expect("it is known");
            let why = status.suspended.expect("a reason");
            assert!(why.contains("r0.a") && why.contains("tried again"), "{why}");
            let attempts = try_again(Arc::clone(&kit.supervisor), "r0".into());
            if verb == "up" {
                kit.supervisor.up("r0").await.expect_err("no disk");
                // Ended by hand, but still to come back at the next start.
                assert_eq!(kit.remembered(), ["r0"]);
            } else {
                kit.supervisor.down("r0", false).await.expect("it is");
                kit.supervisor.state.remember(&["r0".to_string()].into());
            }
            tokio::time::timeout(OFTEN * 10, attempts)
                .await
                .expect("they end");
            assert!(!kit.supervisor.is_retried("r0"));
        }
        let status = kit.supervisor.status("r0").await.expect("it is known");
        let why = status.suspended.expect("a reason");
        assert!(!why.contains("tried again"), "{why}");
    }
}

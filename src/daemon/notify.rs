//! What the service manager is told: that the daemon is ready, what it does, and that it lives.
//!
//! Invariant: a sign of life (WATCHDOG=1) is given only when the control loop turns, the control API is
//! served and the loop of every resource has answered a question. So a daemon that hangs anywhere is
//! started again, and one that is merely slow is not: a loop has a quarter of the watchdog's time for
//! its answer, and four such quarters in a row must pass without one.

use super::running::{Life, lock};
use super::supervisor::Supervisor;
use sd_notify::NotifyState;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{AbortHandle, JoinSet};
use twinblk_engine::event::Role;

/// Time between two words on the state where no watchdog asks for more.
const PAUSE: Duration = Duration::from_secs(10);
/// Signs of life within the time the watchdog allows.
const SIGNS: u32 = 4;

/// What was configured to be up has been tried.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The daemon ends.
pub(super) fn stopping(words: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(words)]);
}

/// Without a service manager this does nothing.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::warn!(
            "the service manager cannot be told ({e}); it may take this daemon for dead"
        );
    }
}

/// Tells the state and gives signs of life until it is aborted; `api` serves the control socket.
pub(super) async fn watch(supervisor: Arc<Supervisor>, api: AbortHandle) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let pause = match sd_notify::watchdog_enabled() {
        Some(limit) => limit / SIGNS,
        None => PAUSE,
    };
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = String::new();
    loop {
        ticks.tick().await;
        let beat = Beat::take(&supervisor, pause).await;
        if beat.is_life(api.is_finished()) {
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("{}; no sign of life for the watchdog", beat.words);
        }
        if beat.words != told {
            tell(&[NotifyState::Status(&beat.words)]);
            told = beat.words;
        }
    }
}

/// One look at all resources.
#[derive(Debug)]
struct Beat {
    /// Resources whose loop did not answer.
    silent: Vec<String>,
    words: String,
}

impl Beat {
    /// See the module's invariant.
    fn is_life(&self, api_ended: bool) -> bool {
        self.silent.is_empty() && !api_ended
    }

    /// Asks all loops at the same time and waits at most `limit`.
    async fn take(supervisor: &Supervisor, limit: Duration) -> Self {
        let mut questions = JoinSet::new();
        for name in supervisor.running_names() {
            if let Some(running) = supervisor.running(&name) {
                questions.spawn(async move { (name, running.life(limit).await) });
            }
        }
        let (mut up, mut primary, mut silent) = (0, 0, Vec::new());
        while let Some(answer) = questions.join_next().await {
            match answer {
                Ok((_, Life::Role(role))) => {
                    up += 1;
                    primary += usize::from(role == Role::Primary);
                }
                // It is being taken off the list.
                Ok((_, Life::Ended)) | Err(_) => {}
                Ok((name, Life::Silent)) => {
                    up += 1;
                    silent.push(name);
                }
            }
        }
        silent.sort();
        let mut words = format!("up: {up}, of them Primary: {primary}");
        let failed: Vec<String> = lock(&supervisor.failed).keys().cloned().collect();
        if !failed.is_empty() {
            words += &format!("; not up: {} (see `twinblk status`)", failed.join(", "));
        }
        if !silent.is_empty() {
            words += &format!("; no answer from the loop of {}", silent.join(", "));
        }
        Self { silent, words }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::fake_loop::Kit;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_does_not_answer_is_no_sign_of_life() {
        let kit = Kit::new();
        let beat = Beat::take(&kit.supervisor, LIMIT).await;
        assert!(beat.silent.is_empty(), "nothing is up, nothing is silent");
        let (r0, r1) = (kit.up("r0"), kit.up("r1"));
        let (beat, ()) = tokio::join!(Beat::take(&kit.supervisor, LIMIT), r0.tell_state());
        assert_eq!(beat.silent, ["r1"]);
        assert!(!beat.is_life(false));
        assert!(beat.words.contains("loop of r1"), "{}", beat.words);
        // The question that was given up is still in its mailbox.
        r1.tell_state().await;
        let beat = tokio::join!(
            Beat::take(&kit.supervisor, LIMIT),
            r0.tell_state(),
            r1.tell_state()
        );
        assert!(beat.0.is_life(false));
        assert!(!beat.0.is_life(true), "nobody serves the control socket");
        assert_eq!(beat.0.words, "up: 2, of them Primary: 2");
        r0.end(Err("its disk fell out".into()));
        drop(r0);
        let (beat, ()) = tokio::join!(Beat::take(&kit.supervisor, LIMIT), r1.tell_state());
        assert!(beat.silent.is_empty(), "one that has ended is not silent");
        let (beat, ()) = tokio::join!(Beat::take(&kit.supervisor, LIMIT), r1.tell_state());
        assert!(beat.words.contains("not up: r0"), "{}", beat.words);
    }
}

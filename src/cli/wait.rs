//! `wait-connect` and `wait-sync`: look again and again, with a bar on a terminal, until it is
//! reached, cannot be reached, or the time is up.

use super::args::Wait;
use super::client::Client;
use super::exit::{CliError, Code};
use super::human::size;
use super::wait_verdict::{Progress, Verdict, verdict};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often to look.
const LOOK: Duration = Duration::from_millis(200);

/// How long a state that leads nowhere may last before it is believed: it may have been seen in
/// the middle of a change.
const DOUBT: Duration = Duration::from_secs(3);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    Connect,
    Sync,
}

/// Waits for one resource or all.
pub(super) async fn run(client: &Client, args: &Wait, goal: Goal) -> Result<(), CliError> {
    let terminal = std::io::stderr().is_terminal();
    let limit = args.timeout.map(Duration::from_secs);
    let bar = Bar::new(terminal);
    let result = wait(client, &args.resource.name, goal, limit, DOUBT, &bar).await;
    bar.end();
    result
}

async fn wait(
    client: &Client,
    name: &str,
    goal: Goal,
    limit: Option<Duration>,
    doubt: Duration,
    bar: &Bar,
) -> Result<(), CliError> {
    let start = Instant::now();
    let mut doubtful_since = None;
    loop {
        let picture = client.some(name).await?;
        let now = Instant::now();
        let mut verdicts: Vec<Verdict> = picture.iter().map(|r| verdict(goal, r)).collect();
        if verdicts.iter().all(|v| *v == Verdict::Done) {
            return Ok(());
        }
        if let Some(i) = verdicts
            .iter()
            .position(|v| matches!(v, Verdict::Hopeless(_)))
        {
            let Verdict::Hopeless(error) = verdicts.swap_remove(i) else {
                unreachable!()
            };
            return Err(error);
        }
        let (mut what, mut progress, mut doubtful) = (String::new(), None, None);
        for verdict in verdicts {
            match verdict {
                Verdict::Waiting {
                    what: this,
                    progress: p,
                } => {
                    what = if what.is_empty() { this } else { what };
                    progress = sum(progress, p);
                }
                Verdict::Doubtful(error) => doubtful = doubtful.or(Some(error)),
                Verdict::Done | Verdict::Hopeless(_) => {}
            }
        }
        match doubtful {
            None => doubtful_since = None,
            Some(error) => {
                let since = *doubtful_since.get_or_insert(now);
                if now - since >= doubt {
                    return Err(error);
                }
                what = if what.is_empty() { error.what } else { what };
            }
        }
        if let Some(limit) = limit
            && now - start >= limit
        {
            return Err(too_late(goal, limit, &what));
        }
        bar.show(progress, &what);
        tokio::time::sleep(LOOK.min(limit.unwrap_or(LOOK))).await;
    }
}

fn sum(a: Option<Progress>, b: Option<Progress>) -> Option<Progress> {
    match (a, b) {
        (Some(a), Some(b)) => Some(Progress {
            total: a.total + b.total,
            left: a.left + b.left,
        }),
        (a, b) => a.or(b),
    }
}

fn too_late(goal: Goal, limit: Duration, what: &str) -> CliError {
    let goal = match goal {
        Goal::Connect => "connected",
        Goal::Sync => "in sync",
    };
    CliError::new(
        Code::Timeout,
        format!("not {goal} within {} s: {what}", limit.as_secs()),
        "it is still being worked on; see `twinblk status`",
    )
}

/// A bar on a terminal, nothing elsewhere.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(terminal: bool) -> Self {
        Self(terminal.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            bar.set_style(style("{spinner} {msg} ({elapsed})"));
            bar
        }))
    }

    fn show(&self, progress: Option<Progress>, what: &str) {
        let Some(bar) = &self.0 else { return };
        match progress {
            Some(p) => {
                bar.set_style(style(
                    "[{wide_bar:.green}] {percent}% {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
                ));
                bar.set_length(p.total);
                bar.set_position(p.total.saturating_sub(p.left));
                bar.set_message(size(p.left));
            }
            None => {
                bar.set_style(style("{spinner} {msg} ({elapsed})"));
                bar.set_message(what.to_owned());
                bar.tick();
            }
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ResourceStatus;
    use crate::cli::fake_daemon::{FakeDaemon, resource};

    const SHORT: Duration = Duration::from_millis(500);

    fn quiet() -> Bar {
        Bar::new(false)
    }

    fn connecting() -> ResourceStatus {
        let mut r = resource("r0");
        r.peers[0].connection = "Connecting".into();
        r.peers[0].reason = "connection refused".into();
        r
    }

    fn fresh() -> ResourceStatus {
        let mut r = resource("r0");
        r.volumes[0].disk = "Inconsistent".into();
        r.peers[0].volumes[0].peer_disk = "Inconsistent".into();
        r
    }

    #[tokio::test]
    async fn waits_until_it_is_reached() {
        let film = vec![vec![connecting()], vec![connecting()], vec![resource("r0")]];
        let daemon = FakeDaemon::start_film(film).await;
        let result = wait(&daemon.client(), "r0", Goal::Sync, None, DOUBT, &quiet()).await;
        assert_eq!(result, Ok(()));
    }

    #[tokio::test]
    async fn the_time_is_up() {
        let daemon = FakeDaemon::start(vec![connecting()]).await;
        let start = Instant::now();
        let error = wait(
            &daemon.client(),
            "r0",
            Goal::Connect,
            Some(SHORT),
            DOUBT,
            &quiet(),
        )
        .await
        .unwrap_err();
        assert_eq!(error.code, 5);
        assert!(start.elapsed() >= SHORT && start.elapsed() < SHORT * 10);
        assert!(
            error.what.contains("Connecting (connection refused)"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn stand_alone_ends_at_once() {
        let mut r = resource("r0");
        r.peers[0].connection = "StandAlone".into();
        let daemon = FakeDaemon::start(vec![resource("r1"), r]).await;
        let start = Instant::now();
        let result = wait(
            &daemon.client(),
            "all",
            Goal::Connect,
            None,
            DOUBT,
            &quiet(),
        )
        .await;
        assert_eq!(result.unwrap_err().code, 11);
        assert!(start.elapsed() < SHORT);
    }

    #[tokio::test]
    async fn a_doubtful_state_is_believed_when_it_lasts() {
        let daemon = FakeDaemon::start(vec![fresh()]).await;
        let error = wait(&daemon.client(), "r0", Goal::Sync, None, SHORT, &quiet())
            .await
            .unwrap_err();
        assert_eq!(error.code, 17);
        // Seen once in passing, it does no harm.
        let film = vec![
            vec![fresh()],
            vec![connecting()],
            vec![fresh()],
            vec![resource("r0")],
        ];
        let daemon = FakeDaemon::start_film(film).await;
        let doubt = Duration::from_millis(300);
        let result = wait(&daemon.client(), "r0", Goal::Sync, None, doubt, &quiet()).await;
        assert_eq!(result, Ok(()));
    }

    #[tokio::test]
    async fn a_daemon_that_is_not_there() {
        let client = Client::new("/nonexistent/c".into());
        let result = wait(&client, "r0", Goal::Sync, None, DOUBT, &quiet()).await;
        assert_eq!(result.unwrap_err().code, 20);
    }

    #[test]
    fn progress_adds_up() {
        let p = |total, left| Some(Progress { total, left });
        assert_eq!(sum(p(10, 5), p(1, 1)), p(11, 6));
        assert_eq!(sum(None, p(1, 1)), p(1, 1));
        assert_eq!(sum(None, None), None);
    }
}

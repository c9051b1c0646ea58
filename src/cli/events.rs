//! `events`: the daemon's stream, line by line, for people or as it is.

use super::client::Client;
use super::exit::{CliError, Code};
use super::human::timestamp;
use super::print;
use crate::api::EventLine;
use http_body_util::BodyExt;

/// Prints events until the daemon ends or the reader goes away.
pub(super) async fn run(
    client: &Client,
    name: &str,
    json: bool,
    now: bool,
) -> Result<(), CliError> {
    if name != "all" {
        // An unknown name shall not wait for ever for events that cannot come.
        client.status(name).await?;
    }
    let mut stream = client.events().await?;
    let mut lines = Lines::default();
    while let Some(frame) = stream.frame().await {
        let Ok(frame) = frame else { break };
        let Some(data) = frame.data_ref() else {
            continue;
        };
        for line in lines.push(data) {
            if let Some(text) = show(&line, name, json) {
                print(&text)?;
            }
            if now && ends_the_present(&line) {
                return Ok(());
            }
        }
    }
    Err(CliError::new(
        Code::NoDaemon,
        "the daemon ended the stream of events",
        "it was stopped, or it ended; see its log",
    ))
}

/// The present state is told; what follows are changes.
fn ends_the_present(line: &str) -> bool {
    serde_json::from_str(line).is_ok_and(|event: EventLine| event.kind == "exists")
}

/// What to print for a line; `None` when it is about another resource.
fn show(line: &str, name: &str, json: bool) -> Option<String> {
    let event: EventLine = match serde_json::from_str(line) {
        Ok(event) => event,
        // A later daemon may tell things this version does not know: as JSON they still help.
        Err(_) => return json.then(|| format!("{line}\n")),
    };
    let of_all = event.kind == "exists";
    if name != "all" && event.resource != name && !of_all {
        return None;
    }
    Some(if json {
        format!("{line}\n")
    } else {
        text(&event)
    })
}

/// `2026-… r0 connection bravo: Connecting -> Connected (why)`.
fn text(event: &EventLine) -> String {
    if event.kind == "exists" {
        return format!("{} exists -\n", timestamp(event.time_ms));
    }
    let mut out = format!(
        "{} {} {}",
        timestamp(event.time_ms),
        event.resource,
        event.kind
    );
    if let Some(peer) = &event.peer {
        out += &format!(" {peer}");
    }
    if let Some(volume) = event.volume {
        out += &format!(" volume:{volume}");
    }
    match (&event.from, &event.to) {
        (Some(from), Some(to)) => out += &format!(": {from} -> {to}"),
        (None, Some(to)) => out += &format!(": {to}"),
        _ => {}
    }
    if !event.cause.is_empty() {
        out += &format!(" ({})", event.cause.replace('\n', "; "));
    }
    if event.severity != "info" {
        out += &format!(" [{}]", event.severity);
    }
    out + "\n"
}

/// Puts pieces of a stream together to lines.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, data: &[u8]) -> Vec<String> {
        self.0.extend_from_slice(data);
        let Some(end) = self.0.iter().rposition(|b| *b == b'\n') else {
            return Vec::new();
        };
        let whole: Vec<u8> = self.0.drain(..=end).collect();
        String::from_utf8_lossy(&whole)
            .lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake_daemon::{FakeDaemon, resource};

    fn event() -> EventLine {
        EventLine {
            time_ms: 1_795_231_331_123,
            resource: "r0".into(),
            kind: "connection".into(),
            peer: Some("bravo".into()),
            volume: None,
            from: Some("Connected".into()),
            to: Some("NetworkFailure".into()),
            severity: "warning".into(),
            cause: "no answer to a ping".into(),
        }
    }

    #[test]
    fn an_event_is_one_line() {
        let expected = "2026-11-21T03:22:11.123Z r0 connection bravo: Connected -> NetworkFailure \
                        (no answer to a ping) [warning]\n";
        assert_eq!(text(&event()), expected);
        let incident = EventLine {
            kind: "incident".into(),
            peer: None,
            volume: Some(0),
            from: None,
            to: None,
            severity: "info".into(),
            cause: "a\nb".into(),
            ..event()
        };
        assert_eq!(
            text(&incident),
            "2026-11-21T03:22:11.123Z r0 incident volume:0 (a; b)\n"
        );
    }

    #[test]
    fn other_resources_are_left_out_and_json_stays_as_it_is() {
        let line = serde_json::to_string(&event()).unwrap();
        assert_eq!(show(&line, "r1", false), None);
        assert_eq!(show(&line, "r1", true), None);
        assert_eq!(show(&line, "r0", true), Some(format!("{line}\n")));
        assert!(show(&line, "all", false).unwrap().contains("r0 connection"));
        assert_eq!(
            show("{\"new\":1}", "all", true),
            Some("{\"new\":1}\n".to_owned())
        );
        assert_eq!(show("{\"new\":1}", "all", false), None);
    }

    #[test]
    fn lines_are_put_together() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"{\"a\""), Vec::<String>::new());
        assert_eq!(lines.push(b":1}\n\n{\"b\""), ["{\"a\":1}"]);
        assert_eq!(lines.push(b":2}\n{}\n"), ["{\"b\":2}", "{}"]);
    }

    #[tokio::test]
    async fn the_end_of_the_stream_is_an_error() {
        let daemon = FakeDaemon::start(vec![resource("r0")]).await;
        assert_eq!(
            run(&daemon.client(), "r0", false, false)
                .await
                .unwrap_err()
                .code,
            20
        );
        assert_eq!(
            run(&daemon.client(), "r9", false, false)
                .await
                .unwrap_err()
                .code,
            10
        );
    }
}

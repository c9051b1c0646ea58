//! `why`: the daemon's explanation, as sentences.

use super::args::Question;
use super::client::Client;
use super::exit::{CliError, Code};
use super::human::age;
use super::print;
use crate::api::{Finding, Order, Why};
use std::fmt::Write;

/// Prints why the resource is in the state it is in, or whether an order would work.
pub(super) async fn run(
    client: &Client,
    name: &str,
    question: Option<Question>,
    json: bool,
) -> Result<(), CliError> {
    if question == Some(Question::Connect) {
        // The peer has to be asked: it is the dry run of `connect`.
        let order = Order {
            dry_run: true,
            ..Order::default()
        };
        let answer = client.order(name, "connect", &order).await?;
        return print(&format!("{answer}\n"));
    }
    let about = question.map(|q| match q {
        Question::Promote => "promote",
        Question::Demote | Question::Connect => "demote",
    });
    let names = match name {
        "all" => client.list().await?.into_iter().map(|r| r.name).collect(),
        name => vec![name.to_owned()],
    };
    let mut answers = Vec::new();
    for name in &names {
        answers.push(client.why(name, about).await?);
    }
    if json {
        let text = serde_json::to_string_pretty(&answers)
            .map_err(|e| CliError::new(Code::Other, format!("the answer is no JSON: {e}"), ""))?;
        return print(&(text + "\n"));
    }
    let texts: Vec<String> = answers.iter().map(text).collect();
    print(&texts.join("\n"))
}

/// The whole answer, ending with a line feed.
fn text(why: &Why) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(&mut out, why);
    out
}

fn write_all(out: &mut String, why: &Why) -> std::fmt::Result {
    if why.findings.is_empty() {
        return writeln!(out, "{}", sentence(&why.summary));
    }
    for (i, finding) in why.findings.iter().enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        write_finding(out, why, finding)?;
    }
    Ok(())
}

fn write_finding(out: &mut String, why: &Why, f: &Finding) -> std::fmt::Result {
    writeln!(out, "{}", sentence(&f.state))?;
    let mut line = |word: &str, text: &str| -> std::fmt::Result {
        if text.is_empty() {
            return Ok(());
        }
        let mut lines = text.lines();
        writeln!(out, "  {word:<6} {}", lines.next().unwrap_or_default())?;
        lines.try_for_each(|more| writeln!(out, "         {more}"))
    };
    line("why:", &f.cause)?;
    if let Some(seconds) = f.since_seconds {
        line("since:", &age(seconds))?;
    }
    line("risk:", &f.risk)?;
    line("next:", &f.next)?;
    for suggestion in &f.commands {
        let place = match suggestion.node == why.node {
            true => String::new(),
            false => format!(" (on {})", suggestion.node),
        };
        writeln!(out, "  {}{place}", suggestion.command)?;
        writeln!(out, "         {}", suggestion.effect)?;
    }
    Ok(())
}

/// With a full stop.
fn sentence(text: &str) -> String {
    let stop = if text.ends_with('.') { "" } else { "." };
    format!("{text}{stop}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Suggestion;

    #[test]
    fn an_answer_is_sentences() {
        let why = Why {
            resource: "r0".into(),
            node: "alpha".into(),
            healthy: false,
            summary: "r0 is ill".into(),
            findings: vec![Finding {
                about: "bravo".into(),
                state: "alpha is not connected to bravo".into(),
                cause: "no route\nto host".into(),
                since_seconds: Some(61),
                risk: "none".into(),
                next: "it is tried again".into(),
                commands: vec![
                    Suggestion {
                        command: "twinblk disconnect r0".into(),
                        node: "alpha".into(),
                        effect: "stops trying".into(),
                    },
                    Suggestion {
                        command: "twinblk up r0".into(),
                        node: "bravo".into(),
                        effect: "starts it there".into(),
                    },
                ],
            }],
        };
        let expected = format!(
            "\
alpha is not connected to bravo.
  why:   no route
         to host
  since: {}
  risk:  none
  next:  it is tried again
  twinblk disconnect r0
         stops trying
  twinblk up r0 (on bravo)
         starts it there
",
            age(61)
        );
        assert_eq!(text(&why), expected);
    }

    #[test]
    fn health_is_one_sentence() {
        let why = Why {
            healthy: true,
            summary: "all is well".into(),
            ..Why::default()
        };
        assert_eq!(text(&why), "all is well.\n");
    }
}

//! `why` of real daemons: whatever state they are brought into, it says why, in the words of whoever
//! knows, and what to do; and what it says would work does.

use crate::harness::nbd::Client;
use crate::harness::stage::{Plan, Stage};
use serde_json::Value;

fn why(stage: &Stage, node: usize, question: &[&str]) -> Value {
    let args = [&["why", "r0", "--json"], question].concat();
    let text = stage.nodes[node].ok(&args);
    let all: Value = serde_json::from_str(&text).expect("JSON");
    all[0].clone()
}

fn summary(why: &Value) -> &str {
    why["summary"].as_str().expect("a sentence")
}

#[test]
fn health_is_told_in_a_sentence_on_both_nodes() {
    let stage = Stage::in_sync(Plan::new("C"));
    for node in 0..2 {
        let answer = why(&stage, node, &[]);
        assert_eq!(answer["healthy"], true, "{answer}");
        assert!(summary(&answer).contains("alpha is Primary"), "{answer}");
    }
    let text = stage.nodes[0].ok(&["why", "all"]);
    assert!(text.contains("r0 is as it should be"), "{text}");
    // Each knows what the other sees.
    for node in &stage.nodes {
        node.wait("the other's view", |s| {
            s["peers"][0]["volumes"][0]["seen_by_peer"]["replication"] == "Established"
        });
    }
}

#[test]
fn what_why_says_of_a_change_of_role_comes_true() {
    let stage = Stage::in_sync(Plan::new("C"));
    let no = why(&stage, 1, &["promote"]);
    assert_eq!(no["healthy"], false, "{no}");
    let cause = no["findings"][0]["cause"].as_str().expect("words");
    assert_eq!(cause, "alpha is Primary");
    stage.nodes[1].refused(11, &["hook", "r0", "promotable"]);
    let client = Client::unix(&stage.nodes[0].export).expect("it serves");
    let no = why(&stage, 0, &["demote"]);
    assert_eq!(no["healthy"], false, "{no}");
    let cause = no["findings"][0]["cause"]
        .as_str()
        .expect("words")
        .to_owned();
    let refused = stage.nodes[0].refused(12, &["secondary", "r0"]);
    assert!(refused.contains(&cause), "{refused} / {cause}");
    client.disconnect();
    stage.nodes[0].wait("nobody holds it", |s| {
        s["open_clients"] == serde_json::json!([])
    });
    let yes = why(&stage, 0, &["demote"]);
    assert_eq!(yes["healthy"], true, "{yes}");
    stage.nodes[0].ok(&["secondary", "r0"]);
    let yes = why(&stage, 1, &["promote"]);
    assert!(summary(&yes).contains("would work"), "{yes}");
    stage.nodes[1].ok(&["primary", "r0"]);
}

#[test]
fn a_lost_peer_a_lonely_node_and_one_that_is_down_are_explained() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    stage.nodes[1].kill();
    stage.nodes[0].wait_connection("Connecting");
    let answer = why(&stage, 0, &[]);
    assert_eq!(answer["healthy"], false);
    let finding = &answer["findings"][0];
    assert_eq!(finding["about"], "bravo", "{answer}");
    assert!(
        finding["risk"]
            .as_str()
            .expect("words")
            .contains("not on bravo"),
        "{answer}"
    );
    stage.nodes[0].ok(&["disconnect", "r0"]);
    let answer = why(&stage, 0, &[]);
    let finding = &answer["findings"][0];
    assert!(
        finding["next"]
            .as_str()
            .expect("words")
            .starts_with("nothing"),
        "{answer}"
    );
    assert_eq!(finding["commands"][0]["command"], "twinblk connect r0");
    stage.nodes[0].ok(&["down", "r0"]);
    let answer = why(&stage, 0, &[]);
    assert!(summary(&answer).contains("not up"), "{answer}");
    assert_eq!(
        answer["findings"][0]["commands"][0]["command"],
        "twinblk up r0"
    );
    let text = stage.nodes[0].refused(10, &["why", "r9"]);
    assert!(text.contains("r9"), "{text}");
}

#[test]
fn events_tell_the_present_state_and_end_when_asked() {
    let stage = Stage::in_sync(Plan::new("C"));
    let text = stage.nodes[0].ok(&["events", "r0", "--json", "--now"]);
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let kinds: Vec<&str> = lines.iter().filter_map(|l| l["kind"].as_str()).collect();
    for kind in [
        "role",
        "disk",
        "connection",
        "peer-role",
        "replication",
        "peer-disk",
    ] {
        assert!(kinds.contains(&kind), "{kind}: {text}");
    }
    assert_eq!(kinds.last(), Some(&"exists"));
    let text = stage.nodes[0].ok(&["events", "--now"]);
    assert!(text.contains("r0 role: Primary"), "{text}");
    assert!(text.trim_end().ends_with("exists -"), "{text}");
}

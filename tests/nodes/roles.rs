//! Who may be Primary, and who may not. Invariants: never two at once while connected; a Secondary
//! serves nobody and says who does; data in use are not taken away.

use crate::harness::nbd::{Client, EnterError};
use crate::harness::stage::{Plan, Stage};

fn refusal(entered: Result<Client, EnterError>) -> String {
    match entered {
        Err(EnterError::Refused(e)) => e.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_secondary_refuses_clients_and_says_who_is_primary() {
    let mut plan = Plan::new("C");
    plan.tcp_export = true;
    let stage = Stage::in_sync(plan);
    let text = refusal(Client::unix(&stage.nodes[1].export));
    assert!(
        text.contains("Secondary") && text.contains("alpha"),
        "{text}"
    );
    let text = refusal(Client::tcp(&stage.tcp_export(1)));
    assert!(
        text.contains("Secondary") && text.contains("alpha"),
        "{text}"
    );
    let mut client = Client::tcp(&stage.tcp_export(0)).expect("alpha serves over TCP too");
    client.write(0, &[9; 512]).expect("writes");
    assert_eq!(client.read(0, 512).expect("reads"), [9; 512]);
}

#[test]
fn roles_change_hands_in_order() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    let text = stage.nodes[1].refused(11, &["primary", "r0"]);
    assert!(text.contains("alpha"), "{text}");
    let client = Client::unix(&stage.nodes[0].export).expect("alpha serves");
    let text = stage.nodes[0].refused(12, &["secondary", "r0"]);
    assert!(text.contains("client"), "{text}");
    let text = stage.nodes[0].refused(12, &["down", "r0"]);
    assert!(text.contains("client"), "{text}");
    assert_eq!(stage.nodes[0].ok(&["role", "r0"]).trim(), "Primary");
    client.disconnect();
    stage.nodes[0].wait("nobody holds it", |s| {
        s["open_clients"] == serde_json::json!([])
    });
    for round in 0..10u8 {
        let (old, new) = (usize::from(round) % 2, usize::from(round + 1) % 2);
        stage.nodes[old].ok(&["secondary", "r0"]);
        stage.nodes[new].ok(&["primary", "r0"]);
        let mut client = Client::unix(&stage.nodes[new].export).expect("it serves");
        if round > 0 {
            assert_eq!(client.read(0, 4096).expect("reads"), [round - 1; 4096]);
        }
        client.write(0, &[round; 4096]).expect("writes");
        client.disconnect();
        stage.nodes[new].wait("nobody holds it", |s| {
            s["open_clients"] == serde_json::json!([])
        });
    }
    assert_eq!(
        stage.nodes[0].ok(&["dstate", "r0"]).trim(),
        "UpToDate/UpToDate"
    );
    assert_eq!(stage.nodes[0].ok(&["cstate", "r0"]).trim(), "Connected");
    stage.wait_in_sync();
    stage.stop_and_compare();
}

#[test]
fn of_two_promotions_at_once_one_wins() {
    let stage = Stage::in_sync(Plan::new("C"));
    for round in 0..100 {
        let first = stage
            .nodes
            .iter()
            .position(|n| n.ok(&["role", "r0"]).trim() == "Primary");
        if let Some(first) = first {
            stage.nodes[first].ok(&["secondary", "r0"]);
        }
        let mut children: Vec<_> = stage
            .nodes
            .iter()
            .map(|n| {
                let mut command = n.command(&["primary", "r0"]);
                command
                    .stderr(std::process::Stdio::piped())
                    .spawn()
                    .expect("it runs")
            })
            .collect();
        let codes: Vec<_> = children
            .iter_mut()
            .map(|c| c.wait().expect("it ends").code().expect("a code"))
            .collect();
        let winners = codes.iter().filter(|c| **c == 0).count();
        assert_eq!(winners, 1, "round {round}: {codes:?}");
        let roles: Vec<_> = stage.nodes.iter().map(|n| n.ok(&["role", "r0"])).collect();
        let primaries = roles.iter().filter(|r| r.trim() == "Primary").count();
        assert_eq!(primaries, 1, "round {round}: {roles:?}");
    }
}

#[test]
fn one_left_behind_on_purpose_knows_it_is_outdated() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    stage.nodes[0].ok(&["disconnect", "r0"]);
    assert_eq!(stage.nodes[0].ok(&["cstate", "r0"]).trim(), "StandAlone");
    let status = stage.nodes[1].wait("outdated", |s| s["volumes"][0]["disk"] == "Outdated");
    assert!(!status["volumes"][0]["reason"].as_str().unwrap().is_empty());
    let text = stage.nodes[1].refused(17, &["primary", "r0"]);
    assert!(text.contains("Outdated"), "{text}");
    // It still knows after a crash.
    stage.nodes[1].kill();
    stage.nodes[1].start();
    stage.nodes[1].wait("outdated", |s| s["volumes"][0]["disk"] == "Outdated");
    let text = stage.nodes[1].refused(17, &["primary", "r0"]);
    assert!(text.contains("Outdated"), "{text}");
    stage.nodes[0].ok(&["connect", "r0"]);
    stage.wait_in_sync();
    stage.stop_and_compare();
}

/// Opening the export promotes, the last close demotes; on whichever node, but never on two.
#[test]
fn with_auto_promote_clients_decide_who_is_primary() {
    let stage = Stage::in_sync(Plan::new("C"));
    stage.configure(&format!(
        "{}\n[options]\nauto-promote = true\n",
        stage.config_text()
    ));
    for node in &stage.nodes {
        node.ok(&["adjust", "r0"]);
    }
    // A node that was made Primary by order stays so.
    Client::unix(&stage.nodes[0].export)
        .expect("it serves")
        .disconnect();
    assert_eq!(stage.nodes[0].ok(&["role", "r0"]).trim(), "Primary");
    stage.nodes[0].ok(&["secondary", "r0"]);
    for (round, node) in [1, 0, 1].into_iter().enumerate() {
        let value = u8::try_from(round).expect("few");
        let mut first = Client::unix(&stage.nodes[node].export).expect("it is promoted");
        if round > 0 {
            assert_eq!(first.read(0, 512).expect("reads"), [value - 1; 512]);
        }
        first.write(0, &[value; 512]).expect("writes");
        let text = refusal(Client::unix(&stage.nodes[1 - node].export));
        assert!(text.contains("is Primary"), "{text}");
        let second = Client::unix(&stage.nodes[node].export).expect("it is Primary");
        first.disconnect();
        assert_eq!(stage.nodes[node].ok(&["role", "r0"]).trim(), "Primary");
        second.disconnect();
        stage.nodes[node].wait("it is Secondary again", |s| s["role"] == "Secondary");
        stage.nodes[1 - node].wait("the other knows", |s| s["peers"][0]["role"] == "Secondary");
    }
}

//! Files that are wrong: the place, the line, what was probably meant; and nothing is started.

use crate::harness::stage::{Plan, Stage};

#[test]
fn a_wrong_file_is_shown_with_its_line() {
    let stage = Stage::new(Plan::new("C"));
    let good = stage.config_text();
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "protocol = \"C\"",
            "protocl = \"C\"",
            &["protocl", "protocol", "r0.toml:"],
        ),
        (
            "protocol = \"C\"",
            "protocol = \"D\"",
            &["\"A\"", "\"B\"", "\"C\""],
        ),
        ("id = 0", "id = 16", &["16", "15"]),
        ("id = 1", "id = 0", &["id"]),
        (
            "connect-int = 1",
            "ping-timeout = \"50ms\"",
            &["ping-timeout", "100ms"],
        ),
        ("shared-secret", "# shared-secret", &["shared-secret"]),
        ("[node.bravo]", "[node.bravo", &["r0.toml:"]),
        (
            "meta-disk = \"internal\"",
            "device = \"/dev/drbd0\"",
            &["device", "/dev/nbd0"],
        ),
        (
            "[net]",
            "[handlers]\nquorum-lost = \"/x\"\n[net]",
            &["quorum-lost", "not supported"],
        ),
    ];
    for (from, to, words) in cases {
        assert!(good.contains(from), "{from}");
        stage.configure(&good.replacen(from, to, 1));
        let output = stage.nodes[0].daemon_command().output().expect("it runs");
        let (_, err) = crate::harness::node::texts(&output);
        assert_eq!(output.status.code(), Some(21), "{to}: {err}");
        for word in *words {
            assert!(err.contains(word), "{to}: {word} in {err}");
        }
        // The verbs that need no daemon say the same.
        let text = stage.nodes[0].refused(21, &["create-md", "r0"]);
        assert!(text.contains(words[0]), "{text}");
    }
    assert!(!stage.nodes[0].state.exists(), "nothing was started");
}

#[test]
fn a_running_resource_does_not_care_for_a_file_that_broke() {
    let mut stage = Stage::in_sync(Plan::new("C"));
    stage.configure("[resource\n");
    let text = stage.nodes[0].refused(21, &["adjust", "r0"]);
    assert!(text.contains("r0.toml:1"), "{text}");
    crate::still_works(&mut stage);
    stage.configure(&stage.config_text());
    stage.nodes[0].ok(&["adjust", "r0"]);
    stage.stop_and_compare();
}

#[test]
fn a_node_that_is_in_no_file() {
    let stage = Stage::new(Plan::new("C"));
    let text = {
        let mut command = stage.nodes[0].daemon_command();
        command.args(["--node", "charlie"]);
        let output = command.output().expect("it runs");
        assert!(!output.status.success());
        crate::harness::node::texts(&output).1
    };
    // `--node` twice is a mistake of its own; the name alone must be found out as well.
    assert!(!text.is_empty());
    let mut command = std::process::Command::new(crate::harness::node::TWINBLK);
    command.args(["create-md", "r0", "--node", "charlie", "--config"]);
    let output = command
        .arg(&stage.nodes[0].config)
        .output()
        .expect("it runs");
    let (_, err) = crate::harness::node::texts(&output);
    assert!(!output.status.success());
    assert!(err.contains("charlie") && err.contains("alpha"), "{err}");
}

//! The agent itself, without a cluster: its codes in every state, and ocf-tester.

use super::pair::Pair;

const AGENT: &str = "/usr/lib/ocf/resource.d/twinblk/twinblk";

/// Runs an action as Pacemaker would; `more` are further variables.
fn act(pair: &Pair, node: usize, action: &str, more: &str) -> (i32, String) {
    let output = pair.machines[node].run(&format!(
        "export OCF_ROOT=/usr/lib/ocf OCF_RESKEY_resource=r0 OCF_RESOURCE_INSTANCE=disk \
         OCF_RESKEY_start_command=twinblk-start OCF_RESKEY_CRM_meta_timeout=20000 \
         OCF_RESKEY_wfc_timeout=1 {more}; exec {AGENT} {action}"
    ));
    let (out, err) = crate::harness::node::texts(&output);
    (output.status.code().expect("a code"), out + &err)
}

fn expect(pair: &Pair, node: usize, action: &str, code: i32) -> String {
    let (found, text) = act(pair, node, action, "OCF_RESKEY_CRM_meta_interval=2000");
    assert_eq!(
        found,
        code,
        "{action} on {node}: {text}\n{}",
        pair.describe()
    );
    text
}

const PROBE: &str = "OCF_RESKEY_CRM_meta_interval=0";

#[test]
fn every_state_has_its_code() {
    let mut pair = Pair::new();
    expect(&pair, 0, "monitor", 0);
    expect(&pair, 0, "promote", 0);
    expect(&pair, 0, "monitor", 8);
    expect(&pair, 0, "promote", 0);
    // The peer is Primary: refused in its time.
    let (code, text) = act(&pair, 1, "promote", "OCF_RESKEY_CRM_meta_timeout=5000");
    assert_eq!(code, 1, "{text}");
    expect(&pair, 0, "demote", 0);
    expect(&pair, 0, "demote", 0);
    expect(&pair, 0, "stop", 0);
    expect(&pair, 0, "stop", 0);
    expect(&pair, 0, "monitor", 7);
    assert_eq!(act(&pair, 0, "monitor", PROBE).0, 7);
    expect(&pair, 0, "start", 0);
    expect(&pair, 0, "start", 0);
    expect(&pair, 0, "monitor", 0);
    expect(&pair, 0, "validate-all", 0);
    expect(&pair, 0, "reload", 0);
    expect(&pair, 0, "reload-agent", 0);

    // Without a daemon, which does not come back by itself.
    let alpha = &pair.machines[0];
    alpha.ok("touch /run/twinblk.stopped; kill -9 $(cat /run/twinblk.pid)");
    expect(&pair, 0, "monitor", 7);
    assert_eq!(act(&pair, 0, "monitor", PROBE).0, 7);
    expect(&pair, 0, "demote", 7);
    expect(&pair, 0, "stop", 0);
    let (code, text) = act(
        &pair,
        0,
        "start",
        "OCF_RESKEY_start_command=false OCF_RESKEY_CRM_meta_timeout=6000",
    );
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("no daemon answers"), "{text}");
    expect(&pair, 0, "start", 0);

    // What is wrong with the parameters.
    for (wrong, action, code) in [
        ("OCF_RESKEY_resource=", "start", 6),
        ("OCF_RESKEY_resource=a/b", "monitor", 6),
        ("OCF_RESKEY_resource=nosuch", "start", 5),
        (
            "OCF_RESKEY_resource=nosuch OCF_RESKEY_CRM_meta_interval=0",
            "monitor",
            7,
        ),
        ("OCF_RESKEY_wfc_timeout=soon", "validate-all", 6),
        ("OCF_RESKEY_config=/nowhere", "validate-all", 5),
        (
            "OCF_RESKEY_program=/nowhere OCF_RESKEY_CRM_meta_interval=0",
            "monitor",
            7,
        ),
        ("OCF_RESKEY_program=/nowhere", "start", 5),
        ("OCF_RESKEY_program=/nowhere", "stop", 0),
    ] {
        let (found, text) = act(&pair, 0, action, wrong);
        assert_eq!(found, code, "{wrong} {action}: {text}");
    }
    expect(&pair, 0, "nonsense", 3);

    // bravo is left behind on purpose and knows it: it is not promoted, alone or not.
    pair.wait_in_sync();
    expect(&pair, 0, "promote", 0);
    pair.machines[0].ok("twinblk disconnect r0");
    pair.power_off(0);
    let begin = std::time::Instant::now();
    let text = expect(&pair, 1, "promote", 1);
    println!(
        "stale data were refused after {:.1} s: {text}",
        begin.elapsed().as_secs_f64()
    );
    assert!(text.contains("Outdated"), "{text}");
    expect(&pair, 1, "monitor", 0);
}

/// A daemon that hangs serves, for all anybody knows: nothing but its end counts as stopped.
#[test]
fn a_silent_daemon_is_not_taken_for_stopped() {
    let pair = Pair::new();
    let alpha = &pair.machines[0];
    let stop = "kill -STOP $(cat /run/twinblk.pid)";
    let resume = "kill -CONT $(cat /run/twinblk.pid)";
    expect(&pair, 0, "promote", 0);
    alpha.ok(stop);
    // A node that cannot be demoted is stopped, or fenced.
    for (action, more) in [
        ("monitor", "OCF_RESKEY_CRM_meta_interval=2000"),
        ("monitor", PROBE),
        ("demote", ""),
        ("start", "OCF_RESKEY_start_command="),
    ] {
        let in_time = format!("OCF_RESKEY_CRM_meta_timeout=8000 {more}");
        let (code, text) = act(&pair, 0, action, &in_time);
        assert_eq!(code, 1, "{action} {more}: {text}");
        assert!(text.contains("does not answer"), "{action} {more}: {text}");
    }
    alpha.ok(resume);
    expect(&pair, 0, "monitor", 8);

    // A stop ends it, in its time, and what it served with it.
    alpha.ok(stop);
    let before = alpha.ok("cat /run/twinblk.pid");
    let (code, text) = act(&pair, 0, "stop", "OCF_RESKEY_CRM_meta_timeout=16000");
    assert_eq!(code, 0, "{text}\n{}", pair.describe());
    alpha.ok(&format!("! kill -0 {before}"));
    // Its successor knows the resource, and nobody is Primary of it.
    expect(&pair, 0, "start", 0);
    expect(&pair, 0, "monitor", 0);
    pair.wait_in_sync();
}

/// The disk of a Primary is gone. As long as clients get their data it is promoted and well.
#[test]
fn a_primary_that_lost_its_disk_has_failed_when_nobody_serves_in_its_place() {
    let mut pair = Pair::new();
    let alpha = &pair.machines[0];
    // A disk that can lose everything: beyond the end of its file each read and write is an error.
    alpha.ok("twinblk down r0
        loop=$(losetup --find --show /srv/r0.img)
        sed -i \"0,/disk = .*/s||disk = \\\"$loop\\\"|\" /etc/twinblk/r0.toml
        twinblk adjust r0; twinblk up r0; losetup --detach $loop");
    pair.wait_in_sync();
    expect(&pair, 0, "promote", 0);
    pair.power_off(1);
    let alpha = &pair.machines[0];
    crate::wait(
        "the peer to be lost",
        || {
            pair.status(0)
                .is_some_and(|s| s["peers"][0]["connection"] != "Connected")
                .then_some(())
        },
        || pair.describe(),
    );
    expect(&pair, 0, "monitor", 8);
    alpha.ok("truncate -s 0 /srv/r0.img");
    // It is noticed by who uses it.
    alpha.run(
        "timeout 20 nbdinfo --map nbd+unix:///r0?socket=/run/twinblk/r0.sock; \
        timeout 20 nbdcopy nbd+unix:///r0?socket=/run/twinblk/r0.sock /dev/null",
    );
    crate::wait(
        "the disk to be given up",
        || {
            pair.status(0)
                .is_some_and(|s| s["volumes"][0]["disk"] != "UpToDate")
                .then_some(())
        },
        || pair.describe(),
    );
    let text = expect(&pair, 0, "monitor", 9);
    assert!(text.contains("without access to current data"), "{text}");
    assert_eq!(alpha.ok("twinblk hook r0 score").trim(), "none");
    assert_eq!(alpha.run("twinblk hook r0 health").status.code(), Some(17));
    // The way out that the cluster takes.
    expect(&pair, 0, "demote", 0);
    expect(&pair, 0, "stop", 0);
    expect(&pair, 0, "monitor", 7);
}

#[test]
fn ocf_tester_has_nothing_to_complain_about() {
    let pair = Pair::new();
    let text = pair.machines[0].ok(&format!(
        "/usr/sbin/ocf-tester -n disk -o resource=r0 -o start_command=twinblk-start -o wfc_timeout=1 {AGENT} 2>&1"
    ));
    println!("{text}");
    assert!(text.contains("passed all tests"), "{text}");
}

//! Files that are wrong: each error with its place, its line and what was meant.

use super::*;

#[test]
fn an_unknown_key_shows_its_line_and_the_nearest() {
    let text = sample_and("\n[net]\npingint = 10\n");
    let line = text.lines().count();
    let expected = format!(
        "r0.toml:{line}:1: unknown key `pingint` in [net]\n  {line} | pingint = 10\n     \
         | ^^^^^^^\n    did you mean `ping-int`?"
    );
    assert_eq!(refusal(&text), expected);
}

#[test]
fn an_impossible_value_shows_what_is_possible() {
    let text = refusal(&sample_and("[net]\nping-int = 500\n"));
    assert!(text.contains("`ping-int` cannot be \"500s\""), "{text}");
    assert!(
        text.contains("         | ") || text.contains("| ping-int = 500"),
        "{text}"
    );
    assert!(text.contains("from \"1s\" to \"2m\""), "{text}");
    let text = refusal(&sample_with("\"C\"", "\"D\""));
    assert!(text.contains("`protocol` cannot be \"D\""), "{text}");
    assert!(text.contains("\"A\", \"B\", \"C\""), "{text}");
}

#[test]
fn all_errors_are_shown_in_order() {
    let text = sample_with("id = 0", "id = 16").replace("\"C\"", "3");
    let text = refusal(&format!("{text}[net]\nfoo = 1\nping-int = true\n"));
    let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("r0.toml:")).collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(
        lines[0].contains("`protocol` cannot be an integer"),
        "{text}"
    );
    assert!(lines[1].contains("`id` must be"), "{text}");
    assert!(text.ends_with("4 errors in the configuration"), "{text}");
}

#[test]
fn not_toml_is_shown_with_its_place() {
    let text = refusal(&sample_with("id = 0", "id = = 0"));
    assert!(text.starts_with("r0.toml:8:"), "{text}");
    assert!(text.contains("8 | id = = 0"), "{text}");
    let text = refusal(&sample_with("id = 0", "id = 0\nid = 1"));
    assert!(text.contains("duplicate key"), "{text}");
}

#[test]
fn tables_and_keys_that_do_not_exist() {
    let text = refusal(&sample_and("[network]\nping-int = 3\n"));
    assert!(text.contains("unknown key `network` in the file"), "{text}");
    let text = refusal(&sample_with("id = 0", "nodeid = 0"));
    assert!(
        text.contains("unknown key `nodeid` in [node.alpha]"),
        "{text}"
    );
    assert!(text.contains("[node.alpha] has no `id`"), "{text}");
    let text = refusal(&sample_with("export =", "exports ="));
    assert!(text.contains("did you mean `export`?"), "{text}");
    let text = refusal(&sample_with("[node.alpha]", "[node.alpha.example]"));
    assert!(text.contains("must be quoted"), "{text}");
    let text = refusal(&sample_and("[net]\nblock-size = 4096\n"));
    assert!(text.contains("move it to [disk]"), "{text}");
    let text = refusal("net = 3\n");
    assert!(
        text.contains("[net] must be a table, not an integer"),
        "{text}"
    );
    assert!(text.contains("[resource] is missing"), "{text}");
}

#[test]
fn what_drbd_has_and_this_version_has_not_is_refused_honestly() {
    for (more, option) in [
        ("[handlers]\nquorum-lost = \"/bin/true\"\n", "`quorum-lost`"),
        ("[startup]\nwfc-timeout = 10\n", "`wfc-timeout`"),
        ("[net]\nverify-alg = \"crc32c\"\n", "`verify-alg`"),
        ("[options]\nquorum = \"majority\"\n", "`quorum`"),
        (
            "[net]\nallow-two-primaries = true\n",
            "`allow-two-primaries = true`",
        ),
    ] {
        let text = refusal(&sample_and(more));
        assert!(
            text.contains(&format!("{option} is not supported by this version")),
            "{text}"
        );
        assert_eq!(
            text.lines().filter(|l| l.starts_with("r0.toml:")).count(),
            1,
            "{text}"
        );
    }
    let text = refusal(&sample_and("[net]\nrr-conflict = \"auto-discard\"\n"));
    assert!(text.contains("`crashed-primary`"), "{text}");
    let text = refusal(&sample_and(
        "[net]\nafter-sb-0pri = \"discard-node-carol\"\n",
    ));
    assert!(text.contains("the nodes are: alpha, bravo"), "{text}");
    assert!(load_text(&sample_and("[handlers]\n[startup]\n")).is_ok());
    let text = refusal(&sample_and("[handlers]\nfence_peer = \"x\"\n"));
    assert!(text.contains("did you mean `fence-peer`?"), "{text}");
}

#[test]
fn a_device_is_one_of_the_nbd_drivers() {
    for wrong in [
        "/dev/sda",
        "nbd0",
        "/dev/nbd",
        "/dev/nbd00",
        "/dev/nbd+1",
        "/dev/nbd0p1",
        "/dev/nbd32768",
        "Auto",
    ] {
        let text = refusal(&sample_with(
            "id = 0",
            &format!("id = 0\ndevice = \"{wrong}\""),
        ));
        assert!(
            text.contains("/dev/nbd0") && text.contains("auto"),
            "{wrong}: {text}"
        );
        assert!(text.contains("r0.toml:9:10:"), "{wrong}: {text}");
    }
    let text = refusal(&sample_and("[options]\ndevice-timeout = 0\n"));
    assert!(text.contains("device-timeout"), "{text}");
}

#[test]
fn a_device_waits_longer_than_for_a_lost_peer() {
    let with_device = |options: &str| {
        let device = "id = 0\ndevice = \"/dev/nbd0\"";
        format!("{}{options}", sample_with("id = 0", device))
    };
    let short = "[options]\ndevice-timeout = \"3s\"\ndevice-dead-timeout = \"10s\"\n";
    // Without a device it does not matter.
    assert!(load_text(&sample_and(short)).is_ok());
    let text = refusal(&with_device(short));
    assert!(
        text.contains("together (13s)") && text.contains("(13s: `ping-int` and"),
        "{text}"
    );
    assert!(text.contains("| device-dead-timeout = \"10s\""), "{text}");
    // Now the peer that answers pings and confirms nothing, for 6 s seven times.
    let text = refusal(&with_device(&short.replace("10s", "39s")));
    assert!(text.contains("(42s: `timeout` times `ko-count`)"), "{text}");
    assert!(load_text(&with_device(&short.replace("10s", "40s"))).is_ok());
    // What is not written has its default; what is written is shown.
    let text = refusal(&with_device("[net]\nko-count = 100\n"));
    assert!(text.contains("| ko-count = 100"), "{text}");
    assert!(load_text(&with_device("[net]\nko-count = 0\n")).is_ok());
}

#[test]
fn a_resource_needs_a_secret() {
    let text = refusal(&sample_with("shared-secret = \"0123456789abcdef\"\n", ""));
    assert!(text.contains("openssl rand -hex 32"), "{text}");
    assert!(
        text.starts_with("r0.toml:2:2: the resource has no `shared-secret`"),
        "{text}"
    );
    let text = refusal(&sample_with("0123456789abcdef", ""));
    assert!(text.contains("`shared-secret` is empty"), "{text}");
    assert!(text.contains("openssl rand -hex 32"), "{text}");
    let text = refusal(&sample_with(
        "shared-secret =",
        "shared-secret-file = \"/x\"\nshared-secret =",
    ));
    assert!(text.contains("both `shared-secret` and"), "{text}");
}

#[test]
fn nodes_need_their_keys() {
    let text = refusal(&sample_with("disk = \"/srv/alpha/r0.img\"\n", ""));
    assert!(text.contains("[node.alpha] has no `disk`"), "{text}");
    let text = refusal(&sample_with("address = \"127.0.0.1:7789\"\n", ""));
    assert!(text.contains("[node.alpha] has no `address`"), "{text}");
    let text = refusal(&sample_with("\"/srv/alpha/r0.img\"", "\"r0.img\""));
    assert!(text.contains("`disk` must be an absolute path"), "{text}");
    let text = refusal(&sample_with("\"unix:/run/twinblk/r0.sock\"", "[3]"));
    assert!(
        text.contains("`export` must be a string, not an integer"),
        "{text}"
    );
}

#[test]
fn one_volume_and_two_nodes() {
    let more = "[node.carol]\nid = 2\naddress = \"127.0.0.3:7789\"\ndisk = \"/x\"\n";
    let text = refusal(&sample_and(more));
    assert!(
        text.contains("this version connects two nodes; this resource has 3"),
        "{text}"
    );
    assert!(text.contains("| [node.carol]"), "{text}");
    let text = refusal(SAMPLE.split("[node.bravo]").next().unwrap());
    assert!(text.contains("only one node, `alpha`"), "{text}");
    let text = refusal(&sample_with(
        "disk = \"/srv/alpha/r0.img\"\nmeta-disk = \"internal\"\n",
        "volume.0.disk = \"/a\"\nvolume.1.disk = \"/b\"\n",
    ));
    assert!(text.contains("one volume per resource"), "{text}");
    let text = refusal(&sample_with("id = 0", "id = 0\nvolume.0.disk = \"/a\""));
    assert!(text.contains("`disk` beside [node.alpha.volume]"), "{text}");
}

#[test]
fn drbds_tenths_of_seconds_are_noticed() {
    let text = refusal(&sample_and("[net]\ntimeout = 60\n"));
    assert!(text.contains("must be below `ping-int`"), "{text}");
    assert!(text.contains("its 60 is \"6s\" here"), "{text}");
    let text = refusal(&sample_and("[net]\ntimeout = 10\n"));
    assert!(text.contains("must be below `ping-int`"), "{text}");
    assert!(load_text(&sample_and("[net]\ntimeout = 9\n")).is_ok());
    let text = refusal(&sample_and("[net]\nping-int = 3\n"));
    assert!(text.contains("| ping-int = 3"), "{text}");
}

#[test]
fn aliases_are_one_option() {
    let text = refusal(&sample_and(
        "[disk]\nresync-rate = \"1M\"\nc-max-rate = \"2M\"\n",
    ));
    assert!(text.contains("are the same option"), "{text}");
}

#[test]
fn fencing_needs_its_handler() {
    for policy in ["resource-only", "resource-and-stonith"] {
        let text = refusal(&sample_and(&format!("[net]\nfencing = \"{policy}\"\n")));
        assert!(
            text.contains("`fence-peer`") && text.contains("[handlers]"),
            "{text}"
        );
    }
    let text = refusal(&sample_and("[handlers]\nfence-peer = 3\n"));
    assert!(text.contains("must be a string"), "{text}");
    let text = refusal(&sample_and("[handlers]\nfence-peer = \"\"\n"));
    assert!(text.contains("is empty"), "{text}");
    let text = refusal(&sample_and("[handlers]\nfencing = \"x\"\n"));
    assert!(text.contains("unknown key `fencing`"), "{text}");
    assert!(load_text(&sample_and("[handlers]\nfence-peer = \"true\"\n")).is_ok());
}

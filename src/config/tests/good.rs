//! Files that are right, and what comes out of them.

use super::*;
use crate::config::diff::{How, diff};
use crate::config::dump::dump;
use crate::config::options::Key;
use std::time::Duration;
use twinblk_engine::config::{Options, Protocol};
use twinblk_engine::ids::{NodeId, VolumeId};
use twinblk_engine::split_brain::{AfterSb0Pri, AfterSb1Pri, AfterSb2Pri, Policies, RrConflict};

#[test]
fn the_sample_is_understood() {
    let config = load_text(SAMPLE).unwrap();
    assert_eq!(config.node_name, "alpha");
    assert_eq!(config.warnings, Vec::<String>::new());
    let r = config.resource("r0").unwrap();
    assert_eq!(r.protocol(), Protocol::C);
    assert_eq!(&*r.secret, b"0123456789abcdef");
    assert_eq!(
        (r.me.id, r.me.address.to_string().as_str()),
        (0, "127.0.0.1:7789")
    );
    assert_eq!(r.me.volumes[0].disk, Path::new("/srv/alpha/r0.img"));
    assert_eq!(r.me.volumes[0].meta, MetaDisk::Internal);
    assert_eq!(r.me.exports, [Export::Unix("/run/twinblk/r0.sock".into())]);
    assert_eq!(r.peers.len(), 1);
    assert_eq!(r.peers[0].name, "bravo");
    assert_eq!(r.connect_int(), Duration::from_secs(3));
    assert_eq!(
        (r.block_size(), r.buffer_bytes(), r.poll()),
        (512, 32 << 20, Duration::from_micros(100))
    );
}

#[test]
fn the_other_node_sees_itself() {
    let config = load_files(&[("r0.toml", SAMPLE)], "bravo").unwrap();
    let r = &config.resources[0];
    assert_eq!(
        (r.me.name.as_str(), r.peers[0].name.as_str()),
        ("bravo", "alpha")
    );
}

#[test]
fn the_engine_gets_what_the_file_says() {
    let e = resource(SAMPLE).to_engine(7, 9);
    assert_eq!((e.name.as_str(), e.incarnation, e.seed), ("r0", 7, 9));
    assert_eq!((e.me.id, e.peers[0].id), (NodeId(0), NodeId(1)));
    assert_eq!((e.volumes.len(), e.volumes[0].volume), (1, VolumeId(0)));
    assert_eq!(e.options, Options::default());
    let text = sample_and(
        "[net]\nping-int = 20\nping-timeout = \"500ms\"\ntimeout = 12\nko-count = 0\n\
         max-epoch-size = 1\nsndbuf-size = \"1M\"\n[disk]\nresync-rate = \"10M\"\n\
         resync-window = \"1M\"\nal-extents = 67\nblock-size = 4096\n\
         [options]\nsave-discarded-dir = \"/saved\"\n",
    )
    .replace(
        "ping-int = 20",
        "ping-int = 20\nafter-sb-0pri = \"discard-node-bravo\"\nafter-sb-1pri = \"consensus\"\n\
         after-sb-2pri = \"violently-as0p\"\nrr-conflict = \"retry-connect\"",
    )
    .replace("protocol = \"C\"", "protocol = \"A\"");
    let e = resource(&text).to_engine(1, 1);
    let expected = Options {
        protocol: Protocol::A,
        ping_int: Duration::from_secs(20),
        ping_timeout: Duration::from_millis(500),
        timeout: Duration::from_secs(12),
        ko_count: 0,
        max_epoch_size: 1,
        send_queue: 1 << 20,
        resync_max_rate: 10 << 20,
        resync_window: 1 << 20,
        al_extents: 67,
        policies: Policies {
            zero_primaries: AfterSb0Pri::DiscardNode(NodeId(1)),
            one_primary: AfterSb1Pri::Consensus,
            two_primaries: AfterSb2Pri::ViolentlyAs0p,
            conflict: RrConflict::RetryConnect,
        },
        save_discarded: true,
        ..Options::default()
    };
    assert_eq!(e.options, expected);
    assert_eq!(e.volumes[0].block_size, 4096);
}

#[test]
fn exports_may_be_a_list_and_metadata_external() {
    let text = sample_with(
        "export = \"unix:/run/twinblk/r0.sock\"",
        "export = [\"unix:/run/a.sock\", \"tcp:127.0.0.1:10809\"]",
    )
    .replacen(
        "meta-disk = \"internal\"",
        "meta-disk = \"/srv/alpha/r0.md\"",
        1,
    );
    let r = resource(&text);
    let tcp = Export::Tcp("127.0.0.1:10809".parse().unwrap());
    assert_eq!(r.me.exports, [Export::Unix("/run/a.sock".into()), tcp]);
    assert_eq!(
        r.me.volumes[0].meta,
        MetaDisk::External("/srv/alpha/r0.md".into())
    );
}

#[test]
fn volume_0_may_be_written_out() {
    let text = sample_with(
        "disk = \"/srv/alpha/r0.img\"\nmeta-disk = \"internal\"\n",
        "volume.0 = { disk = \"/srv/alpha/r0.img\" }\n",
    );
    assert_eq!(resource(&text).me, resource(SAMPLE).me);
}

#[test]
fn the_secret_may_be_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("r0.secret");
    let toml = dir.path().join("r0.toml");
    let text = sample_with(
        "shared-secret = \"0123456789abcdef\"",
        "shared-secret-file = \"r0.secret\"",
    );
    std::fs::write(&toml, text).unwrap();
    let load = || load(dir.path(), Some("alpha")).map_err(|e| e.to_string());
    assert!(load().unwrap_err().contains("cannot be read"));
    std::fs::write(&secret, "from a file\n").unwrap();
    let mode = |m| std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(m)).unwrap();
    mode(0o644);
    assert!(load().unwrap_err().contains("chmod 600"), "{:?}", load());
    mode(0o640);
    assert_eq!(&*load().unwrap().resources[0].secret, b"from a file");
    std::fs::write(&secret, "\n").unwrap();
    assert!(load().unwrap_err().contains("is empty"));
}

#[test]
fn a_readable_file_with_a_secret_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r0.toml");
    std::fs::write(&path, SAMPLE).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let config = load(dir.path(), Some("alpha")).unwrap();
    assert!(
        config.warnings[0].contains("chmod 640"),
        "{:?}",
        config.warnings
    );
}

#[test]
fn a_dump_reads_back_to_the_same() {
    let mut text = sample_and("[net]\nping-int = 20\n[disk]\nc-max-rate = \"10M\"\n");
    text = text.replace("alpha]", "\"alpha.example\"]");
    text = text.replace("id = 0", "id = 0\ndevice = \"/dev/nbd7\"");
    text = text.replace("id = 1", "id = 1\ndevice = \"auto\"");
    let load = |text: &str| {
        load_files(&[("r0.toml", text)], "alpha.example").unwrap_or_else(|e| panic!("{e}\n{text}"))
    };
    let first = load(&text).resources.remove(0);
    let dumped = dump(&first);
    assert!(!dumped.contains("0123456789abcdef"), "{dumped}");
    assert!(dumped.contains("\nping-int = \"20s\"\n"), "{dumped}");
    assert!(dumped.contains("\n# ping-timeout = \"3s\"\n"), "{dumped}");
    let mut again = load(&dumped).resources.remove(0);
    again.secret = first.secret.clone();
    again.file = first.file.clone();
    assert_eq!(again, first);
    assert_eq!(first.me.volumes[0].device, Some(Device::Number(7)));
    assert_eq!(first.peers[0].volumes[0].device, Some(Device::Auto));
    // And with every default written out.
    let all = dumped.replace("# ", "");
    let all = all.split_once('\n').unwrap().1;
    assert_eq!(load(all).resources[0].settings, first.settings);
}

#[test]
fn adjust_knows_what_changed_and_how_it_gets_there() {
    let old = resource(SAMPLE);
    assert_eq!(diff(&old, &resource(SAMPLE)), []);
    let one = |text: &str| {
        let changes = diff(&old, &resource(text));
        assert_eq!(changes.len(), 1, "{changes:?}");
        changes.into_iter().next().unwrap()
    };
    let change = one(&sample_and("[net]\nping-int = 20\n"));
    assert_eq!(
        change.to_string(),
        "net.ping-int: \"10s\" -> \"20s\", at once"
    );
    assert_eq!(one(&sample_with("\"C\"", "\"B\"")).how, How::NeedsReconnect);
    assert_eq!(
        one(&sample_with("127.0.0.1:", "127.0.0.3:")).how,
        How::NeedsDownUp
    );
    assert_eq!(
        one(&sample_with("127.0.0.2:", "127.0.0.3:")).how,
        How::NeedsReconnect
    );
    assert_eq!(
        one(&sample_with("/srv/alpha/r0.img", "/x")).path,
        "node.alpha.disk"
    );
    assert_eq!(
        one(&sample_with("twinblk/r0.sock", "x")).path,
        "node.alpha.export"
    );
    let change = one(&sample_with("id = 0", "id = 0\ndevice = \"auto\""));
    assert_eq!(
        (change.path.as_str(), change.how),
        ("node.alpha.device", How::NeedsDownUp)
    );
    let change = one(&sample_and("[options]\ndevice-dead-timeout = \"10m\"\n"));
    assert_eq!(change.how, How::Live);
    assert_eq!(one(&sample_with("id = 1", "id = 2")).path, "node.bravo.id");
    let secret = one(&sample_with("0123456789abcdef", "another"));
    assert!(!secret.to_string().contains("another\""), "{secret}");
    assert_eq!(
        diff(&old, &resource(&sample_with("/srv/bravo/r0.img", "/x"))),
        []
    );
    // A peer by another name: one gone, one new.
    assert_eq!(
        diff(&old, &resource(&SAMPLE.replace("bravo]", "carol]"))).len(),
        2
    );
}

#[test]
fn every_option_has_an_effect_on_what_adjust_sees() {
    // Each option set to something else is exactly one change.
    for row in &options::OPTIONS {
        let other = match row.key {
            Key::Protocol => continue,
            Key::AfterSb0Pri => "\"discard-node-bravo\"".to_owned(),
            Key::AfterSb1Pri => "\"consensus\"".to_owned(),
            Key::AfterSb2Pri => "\"violently-as0p\"".to_owned(),
            Key::RrConflict => "\"retry-connect\"".to_owned(),
            Key::SaveDiscardedDir => "\"/saved\"".to_owned(),
            Key::AllowTwoPrimaries => continue,
            Key::BlockSize => "4096".to_owned(),
            Key::Timeout => "\"7s\"".to_owned(),
            Key::PingInt | Key::PingTimeout | Key::ConnectInt => "\"11s\"".to_owned(),
            Key::DeviceTimeout | Key::DeviceDeadTimeout => "\"11s\"".to_owned(),
            Key::HandlerTimeout => "\"11s\"".to_owned(),
            // Not without a handler.
            Key::Fencing => continue,
            Key::KoCount | Key::MaxEpochSize | Key::PollUs => "11".to_owned(),
            Key::AlExtents => "67".to_owned(),
            Key::AutoPromote => "true".to_owned(),
            Key::OnIoError => "\"call-local-io-error\"".to_owned(),
            Key::OnNoDataAccessible => "\"suspend-io\"".to_owned(),
            Key::BufferSize => "\"33M\"".to_owned(),
            _ => "\"9M\"".to_owned(),
        };
        let text = sample_and(&format!(
            "[{}]\n{} = {other}\n",
            row.section.name(),
            row.name
        ));
        let changes = diff(&resource(SAMPLE), &resource(&text));
        assert_eq!(changes.len(), 1, "{}", row.name);
        assert_eq!(changes[0].how, row.change, "{}", row.name);
    }
}

#[test]
fn handlers_are_read_dumped_and_changed_live() {
    use twinblk_engine::handler::HandlerKind;
    let text = sample_and(
        "[net]\nfencing = \"resource-only\"\n[handlers]\nfence-peer = \"/bin/fence \\\"$TWINBLK_PEER\\\"\"\n",
    );
    let with = resource(&text);
    assert_eq!(
        with.handlers.command(HandlerKind::FencePeer),
        Some("/bin/fence \"$TWINBLK_PEER\"")
    );
    assert!(with.engine_options().handlers.has(HandlerKind::FencePeer));
    assert!(!with.engine_options().handlers.has(HandlerKind::SplitBrain));
    let dumped = dump(&with);
    assert_eq!(resource(&dumped).handlers, with.handlers, "{dumped}");
    let changes = diff(&resource(SAMPLE), &with);
    let paths: Vec<&str> = changes.iter().map(|c| c.path.as_str()).collect();
    assert_eq!(paths, ["net.fencing", "handlers.fence-peer"]);
    assert!(changes.iter().all(|c| c.how == How::Live));
}

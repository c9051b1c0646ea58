//! Whatever the state is, there is an answer, it is whole, and what it advises can be typed.

use super::*;
use crate::cli::args::Cli;
use crate::daemon::fake_status::healthy;
use crate::driver::mailbox::DriverStatus;
use clap::Parser;
use std::collections::BTreeSet;
use std::sync::Mutex;
use twinblk_engine::command::{Refusal, RefusalKind};
use twinblk_engine::event::{ConnState, DiskState, ReplState};
use twinblk_engine::states::{CONNECTIONS, DISKS, REPLICATIONS};
use twinblk_engine::status::{SplitBrain, SplitSide, SplitVolume};
use twinblk_engine::suspend::Reason;

fn config() -> config::Resource {
    let dir = tempfile::tempdir().expect("a directory");
    let text = "[resource]\nname = \"r0\"\nshared-secret = \"0123456789abcdef0123456789abcdef\"\n\
                [node.alpha]\nid = 0\naddress = \"127.0.0.1:7789\"\ndisk = \"/a\"\n\
                [node.bravo]\nid = 1\naddress = \"127.0.0.2:7789\"\ndisk = \"/b\"\n";
    std::fs::write(dir.path().join("r0.toml"), text).expect("a file");
    let mut config = config::load(dir.path(), Some("alpha")).expect("it is right");
    config.resources.remove(0)
}

fn reply(status: Status) -> StatusReply {
    StatusReply {
        status,
        driver: DriverStatus::default(),
        now: Instant(60_000_000_000),
    }
}

fn explain(change: impl FnOnce(&mut Status)) -> Why {
    let mut status = healthy();
    change(&mut status);
    why(&config(), &reply(status), None)
}

/// Nothing is left out, and every command exists.
/// Each command is parsed once: there are few, and many states that suggest them.
fn can_be_typed(command: &str) {
    static TRIED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut tried = TRIED.lock().expect("no test has failed");
    if !tried.contains(command) {
        if let Err(e) = Cli::try_parse_from(command.split_whitespace()) {
            panic!("`{command}` cannot be typed: {e}");
        }
        tried.insert(command.to_owned());
    }
}

fn is_whole(why: &Why) {
    assert!(!why.summary.is_empty());
    assert_eq!(why.healthy, why.findings.is_empty());
    for f in &why.findings {
        for text in [&f.about, &f.state, &f.cause, &f.risk, &f.next] {
            assert!(!text.is_empty(), "{f:?}");
            assert!(!text.contains("RES"), "{text}");
        }
        for suggestion in &f.commands {
            assert!(!suggestion.effect.is_empty(), "{f:?}");
            can_be_typed(&suggestion.command);
        }
    }
}

#[test]
fn a_healthy_pair_has_nothing_to_say() {
    for (role, other) in [
        (Role::Primary, Role::Secondary),
        (Role::Secondary, Role::Primary),
        (Role::Secondary, Role::Secondary),
    ] {
        let why = explain(|s| {
            s.role = role;
            s.peers[0].role = other;
        });
        is_whole(&why);
        assert!(why.healthy, "{why:?}");
    }
}

#[test]
fn every_state_has_an_explanation() {
    for role in [Role::Primary, Role::Secondary] {
        for disk in DISKS {
            for peer_disk in DISKS {
                for connection in CONNECTIONS {
                    for replication in REPLICATIONS {
                        let why = explain(|s| {
                            s.role = role;
                            s.volumes[0].disk = disk.state;
                            s.peers[0].connection = connection.state;
                            s.peers[0].volumes[0].replication = replication.state;
                            s.peers[0].volumes[0].peer_disk = peer_disk.state;
                        });
                        is_whole(&why);
                        let fine = disk.state == DiskState::UpToDate
                            && connection.state == ConnState::Connected
                            && peer_disk.state == DiskState::UpToDate;
                        assert!(fine || !why.healthy, "{why:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn copies_that_differ_are_never_healthy() {
    let why = explain(|s| s.peers[0].volumes[0].out_of_sync = 4096);
    is_whole(&why);
    assert!(
        why.summary.contains("4096 bytes are known to differ"),
        "{why:?}"
    );
}

#[test]
fn a_split_brain_names_both_ways_out() {
    let why = explain(|s| {
        s.peers[0].connection = ConnState::StandAlone;
        s.peers[0].volumes[0].replication = ReplState::Off;
        s.peers[0].reason = "split brain (both-changed): both changed".into();
        let side = |changed| SplitSide {
            changed,
            current: 1,
            base: 2,
            parted_as_primary: true,
        };
        s.peers[0].split_brain = Some(SplitBrain {
            found: Instant(1),
            volumes: vec![SplitVolume {
                volume: twinblk_engine::ids::VolumeId(0),
                rule: "both-changed",
                here: side(4096),
                there: side(8192),
            }],
        });
    });
    is_whole(&why);
    assert!(why.summary.starts_with("split brain"), "{why:?}");
    let nodes: Vec<&str> = why.findings[0]
        .commands
        .iter()
        .filter(|c| c.command.contains("--discard-my-data"))
        .map(|c| c.node.as_str())
        .collect();
    assert_eq!(nodes, ["alpha", "bravo"]);
    let effects = why.findings[0].commands.iter().map(|c| c.effect.as_str());
    let amounts = ["4096 bytes", "8192 bytes"];
    for (effect, amount) in effects.skip(1).zip(amounts) {
        assert!(effect.contains(amount), "{effect}");
    }
}

#[test]
fn the_peers_own_reason_is_told() {
    let why = explain(|s| {
        s.peers[0].connection = ConnState::Connecting;
        s.peers[0].reason = "bravo refused: node 1 is StandAlone".into();
    });
    is_whole(&why);
    assert_eq!(why.findings[0].cause, "bravo refused: bravo is StandAlone");
}

#[test]
fn suspended_io_comes_first_with_each_of_its_reasons() {
    let why = explain(|s| {
        s.role = Role::Primary;
        s.suspended = Some("I/O is suspended".into());
        for reason in Reason::ALL {
            s.suspended_for = s.suspended_for.with(reason);
        }
        s.peers[0].connection = ConnState::Connecting;
    });
    is_whole(&why);
    let about: Vec<&str> = why.findings.iter().map(|f| f.about.as_str()).collect();
    assert_eq!(about, ["r0", "r0", "r0", "bravo"]);
}

#[test]
fn disagreement_and_standstill_are_told() {
    let why = explain(|s| {
        s.peers[0].disagreement = Some("this and that".into());
        s.peers[0].volumes[0].replication = ReplState::SyncSource;
        s.peers[0].volumes[0].standstill = Some((Instant(1), "nothing comes".into()));
    });
    is_whole(&why);
    let causes: Vec<&str> = why.findings.iter().map(|f| f.cause.as_str()).collect();
    assert!(
        causes.contains(&"this and that") && causes.contains(&"nothing comes"),
        "{causes:?}"
    );
    assert_eq!(why.findings[1].since_seconds, Some(59));
}

#[test]
fn a_promotion_is_foretold() {
    let ask = |change: &dyn Fn(&mut Status)| {
        let mut status = healthy();
        change(&mut status);
        let answer = about(About::Promote, &config(), &reply(status), None);
        for f in &answer.findings {
            assert!(
                !f.state.is_empty() && !f.cause.is_empty() && !f.next.is_empty(),
                "{f:?}"
            );
        }
        answer
    };
    let yes = ask(&|_| {});
    assert!(yes.healthy && yes.summary.contains("would work"), "{yes:?}");
    let alone = ask(&|s| s.peers[0].connection = ConnState::Connecting);
    assert!(
        alone.healthy && alone.findings[0].risk.contains("split brain"),
        "{alone:?}"
    );
    let no = ask(&|s| {
        s.may_promote = Err(Refusal {
            kind: RefusalKind::State,
            reason: "node 1 is Primary".into(),
            way_out: "demote it".into(),
        });
    });
    assert!(
        !no.healthy && no.findings[0].cause == "bravo is Primary",
        "{no:?}"
    );
    // The handler decides, and which of its answers would do depends on the copy.
    for (disk, codes) in [
        (DiskState::UpToDate, "with 3, 4, 5 or 7,"),
        (DiskState::Consistent, "with 3, 4 or 7,"),
    ] {
        let depends = ask(&|s| {
            s.fences_first = vec!["bravo".into()];
            s.volumes[0].disk = disk;
        });
        assert!(
            !depends.healthy
                && depends
                    .summary
                    .contains("call the fence-peer handler for bravo"),
            "{depends:?}"
        );
        assert!(depends.findings[0].next.contains(codes), "{depends:?}");
        let typed = format!("{:?}", depends.findings[0].commands);
        assert!(!typed.contains("--force"), "{typed}");
        is_whole(&depends);
    }
    let demoted = about(About::Demote, &config(), &reply(healthy()), None);
    assert!(
        demoted.healthy && demoted.summary.contains("already"),
        "{demoted:?}"
    );
}

#[test]
fn io_that_waits_for_a_peer_that_could_not_be_fenced_is_explained() {
    let frozen = |s: &mut Status| {
        s.role = Role::Primary;
        s.suspended_for = s.suspended_for.with(Reason::Fencing);
    };
    let waits = explain(frozen);
    assert!(waits.findings[0].next.contains("handler says"), "{waits:?}");
    let in_vain = explain(|s| {
        frozen(s);
        s.peers[0].not_fenced = Some("exit code 1".into());
    });
    let finding = &in_vain.findings[0];
    assert!(
        finding
            .cause
            .contains("bravo could not be fenced: exit code 1")
    );
    assert!(finding.next.contains("not called again"), "{finding:?}");
    is_whole(&in_vain);
}

#[test]
fn what_is_down_is_explained_too() {
    is_whole(&why_down(&config(), None));
    is_whole(&why_silent(&config()));
    let tried = why_down(&config(), Some("its disk is not there"));
    is_whole(&tried);
    assert_eq!(tried.findings[0].cause, "its disk is not there");
}

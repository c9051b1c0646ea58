//! Every option, once: its section, name, kind, range, default and meaning. Parsing, `dump`,
//! `adjust` and the table in `docs/configuration.md` all follow this table.

use super::diff::How;
use super::values::Value;
use std::time::Duration;

/// The tables of a file that hold options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Resource,
    Net,
    Disk,
    Options,
}

impl Section {
    /// All of them, in the order they are printed.
    pub(crate) const ALL: [Self; 4] = [Self::Resource, Self::Net, Self::Disk, Self::Options];

    /// The table's name in the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Resource => "resource",
            Self::Net => "net",
            Self::Disk => "disk",
            Self::Options => "options",
        }
    }
}

/// Names an option; also its place in [`OPTIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Protocol,
    PingInt,
    PingTimeout,
    Timeout,
    KoCount,
    ConnectInt,
    MaxEpochSize,
    SndbufSize,
    AfterSb0Pri,
    AfterSb1Pri,
    AfterSb2Pri,
    RrConflict,
    AllowTwoPrimaries,
    Fencing,
    BlockSize,
    CMaxRate,
    ResyncWindow,
    AlExtents,
    BufferSize,
    PollUs,
    AutoPromote,
    DeviceTimeout,
    DeviceDeadTimeout,
    OnIoError,
    OnNoDataAccessible,
    HandlerTimeout,
    SaveDiscardedDir,
}

/// What an option's value may be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// One of `supported`; those in `later` are DRBD's and not supported yet.
    Word {
        supported: &'static [&'static str],
        later: &'static [&'static str],
    },
    /// One of `supported`, or, where there is a `node`, that and the name of a node. `advice`: values
    /// DRBD has, and what to write instead.
    Policy {
        supported: &'static [&'static str],
        node: Option<&'static str>,
        advice: &'static [(&'static str, &'static str)],
    },
    /// A directory by its absolute path, or nothing.
    Directory,
    /// Only `false` for now.
    OnlyFalse,
    /// `true` or `false`.
    Flag,
    /// A count.
    Number {
        min: u64,
        max: u64,
        unit: &'static str,
    },
    /// One of a few counts.
    OneOf {
        values: &'static [u64],
        unit: &'static str,
    },
    /// A size.
    Bytes { min: u64, max: u64 },
    /// Bytes per second with a unit, or 0 for no limit.
    Rate { min: u64, max: u64 },
    /// A duration.
    Time { min: Duration, max: Duration },
}

/// A row of the table.
#[derive(Debug)]
pub(crate) struct OptionRow {
    pub(crate) key: Key,
    pub(crate) section: Section,
    pub(crate) name: &'static str,
    /// Another name DRBD has or had for it.
    pub(crate) alias: Option<&'static str>,
    pub(crate) kind: Kind,
    pub(crate) default: Value,
    /// How a change reaches a running resource.
    pub(crate) change: How,
    pub(crate) help: &'static str,
}

const fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

const fn time(min_ms: u64, max_s: u64) -> Kind {
    Kind::Time {
        min: Duration::from_millis(min_ms),
        max: seconds(max_s),
    }
}

const fn bytes(min: u64, max: u64) -> Kind {
    Kind::Bytes { min, max }
}

#[rustfmt::skip]
const fn row(
    key: Key, section: Section, name: &'static str, kind: Kind, default: Value, change: How,
    help: &'static str,
) -> OptionRow {
    OptionRow { key, section, name, alias: None, kind, default, change, help }
}

/// How the values of `after-sb-0pri` begin that name a node.
pub(crate) const DISCARD_NODE: &str = "discard-node-";
const NAME_THE_NODE: &str = "both nodes have the same file, and would each mean something else by it: write \
                             \"discard-node-NAME\" with the name of the node whose data are given up";
const MIB: u64 = 1 << 20;

/// The table, in the order of [`Key`].
pub(crate) static OPTIONS: [OptionRow; 27] = [
    row(
        Key::Protocol,
        Section::Resource,
        "protocol",
        Kind::Word {
            supported: &["A", "B", "C"],
            later: &[],
        },
        Value::Word("C"),
        How::NeedsReconnect,
        "When a write is complete: A, it is in the send queue; B, the peer has received it; C, the \
         peer's disk has it.",
    ),
    row(
        Key::PingInt,
        Section::Net,
        "ping-int",
        time(1000, 120),
        Value::Time(seconds(10)),
        How::Live,
        "Silence after which the peer is pinged.",
    ),
    row(
        Key::PingTimeout,
        Section::Net,
        "ping-timeout",
        time(100, 30),
        Value::Time(seconds(3)),
        How::Live,
        "How long the peer may take to answer a ping before it is given up. DRBD's 0.5 s gives up \
         healthy peers under load.",
    ),
    row(
        Key::Timeout,
        Section::Net,
        "timeout",
        time(1000, 60),
        Value::Time(seconds(6)),
        How::Live,
        "A request the peer leaves unanswered for `timeout` times `ko-count` ends the connection. \
         Must be below `ping-int`.",
    ),
    row(
        Key::KoCount,
        Section::Net,
        "ko-count",
        Kind::Number {
            min: 0,
            max: 200,
            unit: "",
        },
        Value::Number(7),
        How::Live,
        "See `timeout`; 0 waits for ever.",
    ),
    row(
        Key::ConnectInt,
        Section::Net,
        "connect-int",
        time(1000, 120),
        Value::Time(seconds(3)),
        How::Live,
        "Time between attempts to connect to a peer that does not answer.",
    ),
    row(
        Key::MaxEpochSize,
        Section::Net,
        "max-epoch-size",
        Kind::Number {
            min: 1,
            max: 20_000,
            unit: "writes",
        },
        Value::Number(2048),
        How::Live,
        "Writes after which the peer is asked to flush, off the client's path, so that the \
         transfer log stays short.",
    ),
    row(
        Key::SndbufSize,
        Section::Net,
        "sndbuf-size",
        bytes(64 << 10, 1 << 30),
        Value::Bytes(16 * MIB),
        How::Live,
        "Bytes that may be queued for a peer and not yet sent; when it is full, clients wait.",
    ),
    row(
        Key::AfterSb0Pri,
        Section::Net,
        "after-sb-0pri",
        Kind::Policy {
            supported: &[
                "disconnect",
                "discard-younger-primary",
                "discard-older-primary",
                "discard-zero-changes",
                "discard-least-changes",
            ],
            node: Some(DISCARD_NODE),
            advice: &[
                ("discard-local", NAME_THE_NODE),
                ("discard-remote", NAME_THE_NODE),
            ],
        },
        Value::Word("disconnect"),
        How::NeedsReconnect,
        "What to do about a split brain when no node is Primary. `disconnect`: leave both copies \
         alone and stay disconnected until `connect --discard-my-data`. Every other value gives up \
         data without asking: see [split-brain.md](split-brain.md).",
    ),
    row(
        Key::AfterSb1Pri,
        Section::Net,
        "after-sb-1pri",
        Kind::Policy {
            supported: &[
                "disconnect",
                "consensus",
                "discard-secondary",
                "call-pri-lost-after-sb",
                "violently-as0p",
            ],
            node: None,
            advice: &[],
        },
        Value::Word("disconnect"),
        How::NeedsReconnect,
        "The same when one node is Primary. `consensus`: the Secondary's data, if `after-sb-0pri` \
         would choose them too. `call-pri-lost-after-sb`: as `after-sb-0pri` says, but a Primary that \
         is in use keeps its data and has its handler called. `violently-as0p`: its clients get errors \
         instead.",
    ),
    row(
        Key::AfterSb2Pri,
        Section::Net,
        "after-sb-2pri",
        Kind::Policy {
            supported: &["disconnect", "call-pri-lost-after-sb", "violently-as0p"],
            node: None,
            advice: &[],
        },
        Value::Word("disconnect"),
        How::NeedsReconnect,
        "The same when both nodes are Primary.",
    ),
    row(
        Key::RrConflict,
        Section::Net,
        "rr-conflict",
        Kind::Policy {
            supported: &["disconnect", "call-pri-lost", "violently", "retry-connect"],
            node: None,
            advice: &[(
                "auto-discard",
                "it is how a crashed Primary under protocol A or B always meets a peer that was \
                 promoted meanwhile (rule `crashed-primary`): remove the line",
            )],
        },
        Value::Word("disconnect"),
        How::NeedsReconnect,
        "What to do when there is no split brain, but the generations demand to overwrite a Primary. \
         `retry-connect`: try again until somebody has demoted it. `call-pri-lost`: demote it if it is \
         not in use, else call its handler. `violently`: its clients get errors, and it is demoted.",
    ),
    row(
        Key::AllowTwoPrimaries,
        Section::Net,
        "allow-two-primaries",
        Kind::OnlyFalse,
        Value::Flag(false),
        How::NeedsReconnect,
        "Whether two nodes may be Primary at the same time.",
    ),
    row(
        Key::Fencing,
        Section::Net,
        "fencing",
        Kind::Word {
            supported: &["dont-care", "resource-only", "resource-and-stonith"],
            later: &[],
        },
        Value::Word("dont-care"),
        How::Live,
        "What to do when a peer is lost that could be promoted. `dont-care`: go on. \
         `resource-only`: call the handler `fence-peer`, and go on meanwhile. \
         `resource-and-stonith`: I/O waits until `fence-peer` has made sure that the peer cannot be \
         promoted, or the peer is back. With both of the latter a node that cannot see its peer is \
         promoted only if `fence-peer` succeeds. See [handlers.md](handlers.md).",
    ),
    row(
        Key::BlockSize,
        Section::Disk,
        "block-size",
        Kind::OneOf {
            values: &[512, 4096],
            unit: "bytes",
        },
        Value::Number(512),
        How::NeedsDownUp,
        "Smallest unit clients may read and write.",
    ),
    OptionRow {
        alias: Some("resync-rate"),
        ..row(
            Key::CMaxRate,
            Section::Disk,
            "c-max-rate",
            Kind::Rate {
                min: 64 << 10,
                max: 1 << 40,
            },
            Value::Bytes(0),
            How::Live,
            "Upper bound of the resync speed per second; 0 is no bound. `resync-rate` is another \
             name for it.",
        )
    },
    row(
        Key::ResyncWindow,
        Section::Disk,
        "resync-window",
        bytes(128 << 10, 256 * MIB),
        Value::Bytes(4 * MIB),
        How::Live,
        "Bytes of resync data under way at once while clients ask for nothing. Beside clients a resync \
         goes in small bursts with rests between them. A verify does the same.",
    ),
    row(
        Key::AlExtents,
        Section::Disk,
        "al-extents",
        Kind::Number {
            min: 67,
            max: 12_240,
            unit: "extents of 4 MiB",
        },
        Value::Number(1237),
        How::NeedsDownUp,
        "How much may have to be resynced after a crash of the Primary: the activity log names so \
         many extents as possibly different. More of them: fewer metadata writes when writes are \
         scattered widely. Also taken up when the node is promoted.",
    ),
    row(
        Key::BufferSize,
        Section::Options,
        "buffer-size",
        bytes(32 * MIB, 1 << 30),
        Value::Bytes(32 * MIB),
        How::NeedsDownUp,
        "Memory for data in flight; when it is used up, clients wait.",
    ),
    row(
        Key::PollUs,
        Section::Options,
        "poll-us",
        Kind::Number {
            min: 0,
            max: 1000,
            unit: "microseconds",
        },
        Value::Number(100),
        How::NeedsDownUp,
        "How long to look for the next answer or request before sleeping, where such have come as soon as \
         that. Saves waking a processor that would be halted, for some CPU; other processes go first. 0 \
         never looks.",
    ),
    row(
        Key::AutoPromote,
        Section::Options,
        "auto-promote",
        Kind::Flag,
        Value::Flag(false),
        How::Live,
        "Whether an NBD client that opens the export makes a Secondary Primary, if it may be; when the \
         last client is gone, it is demoted again. A node made Primary by `primary` stays so. Not \
         together with `device`, which exists on a Primary only.",
    ),
    row(
        Key::DeviceTimeout,
        Section::Options,
        "device-timeout",
        time(1000, 600),
        Value::Time(seconds(20)),
        How::Live,
        "How long the kernel device waits for the answer to a request until it sends it again. After \
         the daemon was killed and is back, what was under way goes on after so long at most. Best \
         above the time in which a silent peer is given up (`ping-int` plus `ping-timeout`); together \
         with `device-dead-timeout` it must be above that, and above `timeout` times `ko-count`.",
    ),
    row(
        Key::DeviceDeadTimeout,
        Section::Options,
        "device-dead-timeout",
        time(1000, 86_400),
        Value::Time(seconds(180)),
        How::Live,
        "How long I/O on the kernel device waits while the daemon is not there, or must not serve it; \
         then it fails.",
    ),
    row(
        Key::OnIoError,
        Section::Disk,
        "on-io-error",
        Kind::Word {
            supported: &["detach", "call-local-io-error", "pass-on"],
            later: &[],
        },
        Value::Word("detach"),
        How::Live,
        "What a disk that reports an error means. `detach`: it is out of use until `twinblk attach`; a \
         Primary goes on with the peer's copy. `call-local-io-error`: the handler of that name is \
         called first, before the peer is told. `pass-on`: while no peer could serve them, clients of a \
         Primary get the error of the block and the disk stays in use; otherwise the disk goes out of \
         use and is attached again by itself, after 1, 10 and 60 s at most three times. Failed flushes \
         and metadata are never passed on.",
    ),
    row(
        Key::OnNoDataAccessible,
        Section::Options,
        "on-no-data-accessible",
        Kind::Word {
            supported: &["io-error", "suspend-io"],
            later: &[],
        },
        Value::Word("io-error"),
        How::Live,
        "What clients of a Primary get when neither its own disk nor a peer has current data within \
         reach. `io-error`: errors. `suspend-io`: nothing, until there is a copy again.",
    ),
    row(
        Key::HandlerTimeout,
        Section::Options,
        "handler-timeout",
        time(1000, 3600),
        Value::Time(seconds(60)),
        How::Live,
        "How long a handler may run. Then it is ended, with all it has started: first by SIGTERM, a \
         few seconds later by SIGKILL. See [handlers.md](handlers.md).",
    ),
    row(
        Key::SaveDiscardedDir,
        Section::Options,
        "save-discarded-dir",
        Kind::Directory,
        Value::Word(""),
        How::Live,
        "Where this node saves what it has, before a split brain is resolved at its expense; if that \
         fails, nothing is overwritten. Without it only `connect --discard-my-data --save-discarded` \
         saves anything.",
    ),
];

/// The options of a section.
pub(crate) fn in_section(section: Section) -> impl Iterator<Item = &'static OptionRow> {
    OPTIONS.iter().filter(move |row| row.section == section)
}

/// Finds an option by its name or other name, whatever its section.
pub(crate) fn by_name(name: &str) -> Option<&'static OptionRow> {
    OPTIONS
        .iter()
        .find(|row| row.name == name || row.alias == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_at_their_keys_place_and_names_are_unique() {
        for (i, row) in OPTIONS.iter().enumerate() {
            assert_eq!(row.key as usize, i, "{}", row.name);
            assert_eq!(
                OPTIONS.iter().filter(|r| r.name == row.name).count(),
                1,
                "{}",
                row.name
            );
            assert!(row.help.ends_with('.'), "{}", row.name);
        }
        assert_eq!(by_name("resync-rate").map(|r| r.key), Some(Key::CMaxRate));
    }

    #[test]
    fn every_default_is_in_its_range() {
        for row in &OPTIONS {
            assert_eq!(
                super::super::kinds::check(row, row.default),
                Ok(row.default),
                "{}",
                row.name
            );
        }
    }
}

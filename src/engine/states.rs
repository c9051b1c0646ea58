//! All states, and all changes from one to another, in one place: what a state means, and when each
//! change happens. The setters check every change against these tables (in debug builds and in every
//! run of the simulator), `docs/states.md` is made from them, and the simulator's campaigns must meet
//! each row.

use crate::event::{ConnState, DiskState, ReplState, Role};

/// A state and what it means to a person.
#[derive(Clone, Copy, Debug)]
pub struct Meaning<T: 'static> {
    /// The state.
    pub state: T,
    /// What it means.
    pub text: &'static str,
}

/// A change from one state to another.
#[derive(Clone, Copy, Debug)]
pub struct Change<T: 'static> {
    /// Before.
    pub from: T,
    /// After.
    pub to: T,
    /// When it happens.
    pub when: &'static str,
    /// It takes so many nodes.
    pub nodes: u8,
    /// Two rare things must come together: the simulator need not meet it.
    pub seldom: bool,
}

const fn means<T: Copy>(state: T, text: &'static str) -> Meaning<T> {
    Meaning { state, text }
}

const fn change<T: Copy>(from: T, to: T, when: &'static str) -> Change<T> {
    Change {
        from,
        to,
        when,
        nodes: 2,
        seldom: false,
    }
}

/// A change that only resources of three and more nodes meet.
const fn of_many<T: Copy>(from: T, to: T, when: &'static str) -> Change<T> {
    Change {
        from,
        to,
        when,
        nodes: 3,
        seldom: false,
    }
}

/// A change that takes two rare things at once.
const fn seldom<T: Copy>(from: T, to: T, when: &'static str) -> Change<T> {
    Change {
        from,
        to,
        when,
        nodes: 2,
        seldom: true,
    }
}

/// Whether a table has this change.
pub fn is_known<T: PartialEq>(table: &[Change<T>], from: &T, to: &T) -> bool {
    from == to || table.iter().any(|c| c.from == *from && c.to == *to)
}

/// What a state means; empty when its table lacks it.
pub fn meaning<T: PartialEq>(table: &[Meaning<T>], state: &T) -> &'static str {
    table
        .iter()
        .find(|m| m.state == *state)
        .map_or("", |m| m.text)
}

use Role::{Primary, Secondary};

/// Roles.
pub const ROLES: &[Meaning<Role>] = &[
    means(Role::Unknown, "a peer's role while it is not connected"),
    means(Secondary, "holds a copy and serves no client"),
    means(Primary, "serves clients; every write is mirrored"),
];

/// Changes of the own role.
pub const ROLE_CHANGES: &[Change<Role>] = &[
    change(
        Secondary,
        Primary,
        "`primary`: the disk is UpToDate (or `--force`), every connected peer agreed, and the metadata on \
         the disk say so",
    ),
    change(
        Primary,
        Secondary,
        "`secondary`, `down`: no client holds the export, and everything is flushed here and on the peers",
    ),
];

use DiskState::{
    Attaching, Consistent, DUnknown, Detaching, Diskless, Failed, Inconsistent, Negotiating,
    Outdated, UpToDate,
};

/// States of a disk.
pub const DISKS: &[Meaning<DiskState>] = &[
    means(
        Diskless,
        "no disk is attached, or it is out of use until `attach`; a Primary is served by its peer",
    ),
    means(Attaching, "the metadata are being read and written"),
    means(
        Detaching,
        "the metadata are being written out before the disk is let go",
    ),
    means(
        Failed,
        "an I/O error, or `detach`, took it out of use; what is under way on it is waited for",
    ),
    means(Negotiating, "not used by this version"),
    means(
        Inconsistent,
        "not usable: never synchronised, or in the middle of a resync; never served, never a source",
    ),
    means(
        Outdated,
        "usable, and known to be older than another copy; not served",
    ),
    means(DUnknown, "a peer's disk that cannot be seen now"),
    means(
        Consistent,
        "usable, and not known whether another copy is newer; not served before that is known",
    ),
    means(UpToDate, "current: may be served"),
];

/// Changes of the own disk's state.
pub const DISK_CHANGES: &[Change<DiskState>] = &[
    change(
        Diskless,
        Attaching,
        "`up` or `attach`: the disk was opened, its metadata were read",
    ),
    change(
        Attaching,
        Inconsistent,
        "the metadata say that it was never synchronised, or that a resync onto it was not finished",
    ),
    change(
        Attaching,
        Outdated,
        "the metadata say that another copy is newer",
    ),
    change(Attaching, UpToDate, "the metadata say that it was current"),
    change(Attaching, Failed, "an I/O error while it was attached"),
    change(
        Inconsistent,
        UpToDate,
        "a resync is finished, or the data were declared current (`primary --force`, `new-current-uuid`)",
    ),
    change(Inconsistent, Failed, "an I/O error"),
    change(Outdated, Inconsistent, "a resync onto this disk begins"),
    change(
        Outdated,
        UpToDate,
        "an UpToDate peer has the same generation, or the data were declared current",
    ),
    change(Outdated, Failed, "an I/O error"),
    change(
        UpToDate,
        Inconsistent,
        "a resync onto this disk begins, or its data were invalidated",
    ),
    change(
        UpToDate,
        Outdated,
        "disconnected on purpose from a Primary, or the peer has newer data",
    ),
    change(UpToDate, Failed, "an I/O error"),
    change(Inconsistent, Detaching, "`detach`"),
    change(Outdated, Detaching, "`detach`"),
    seldom(Consistent, Detaching, "`detach`"),
    change(
        UpToDate,
        Detaching,
        "`detach`: what the metadata have to say is being written",
    ),
    change(
        Detaching,
        Failed,
        "`detach` has written the metadata, or an I/O error: requests under way on the disk are waited for",
    ),
    change(
        Failed,
        Diskless,
        "nothing on the disk is under way any more: it is closed",
    ),
    of_many(
        Inconsistent,
        Outdated,
        "a resync from an Outdated source is finished",
    ),
    change(
        UpToDate,
        Consistent,
        "the Primary was lost, and may be written to (`fencing`), or another survivor may have more",
    ),
    of_many(
        Inconsistent,
        Consistent,
        "a resync is finished, and a third node may have more",
    ),
    change(
        Consistent,
        UpToDate,
        "nobody has more: the peer was met, fenced, or is known to be older, or the data were declared \
         current",
    ),
    change(Consistent, Inconsistent, "a resync onto this disk begins"),
    change(Consistent, Outdated, "another node has more, or `outdate`"),
    of_many(Consistent, Failed, "an I/O error"),
];

use ConnState::{
    BrokenPipe, Connected, Connecting, Disconnecting, NetworkFailure, ProtocolError, StandAlone,
    TearDown, Timeout, Unconnected,
};

/// States of a connection.
pub const CONNECTIONS: &[Meaning<ConnState>] = &[
    means(
        StandAlone,
        "not connected, and not trying: ordered, or refused; `connect` tries again",
    ),
    means(Disconnecting, "being parted with on purpose"),
    means(Unconnected, "not used by this version: see Connecting"),
    means(Timeout, "the peer left requests unanswered too long"),
    means(BrokenPipe, "the link broke"),
    means(NetworkFailure, "the peer did not answer pings"),
    means(ProtocolError, "the peer said what it must not say"),
    means(TearDown, "the peer left, or both talk anew"),
    means(
        Connecting,
        "trying; the reason says what came of the last attempt",
    ),
    means(Connected, "connected, and both agree whose data are newer"),
];

/// Changes of a connection's state.
pub const CONNECTION_CHANGES: &[Change<ConnState>] = &[
    change(StandAlone, Connecting, "`up`, `connect`"),
    change(
        Connecting,
        Connected,
        "the nodes agree on settings and on whose data are newer",
    ),
    change(
        Connecting,
        Disconnecting,
        "`disconnect`, `down` while the nodes compare",
    ),
    change(
        Connecting,
        StandAlone,
        "`disconnect`, `down`, or the generations do not allow a connection (split brain, unrelated data)",
    ),
    change(Connecting, Timeout, "the peer takes too long to compare"),
    change(
        Connecting,
        TearDown,
        "the peer, or this node, ends the comparison: settings differ, or something changed meanwhile",
    ),
    change(
        Connecting,
        BrokenPipe,
        "the link broke while the nodes compared",
    ),
    change(
        Connecting,
        NetworkFailure,
        "no answer to a ping while the nodes compared",
    ),
    change(Connected, BrokenPipe, "the link broke"),
    change(
        Connected,
        TearDown,
        "the peer left on purpose, lost its disk, or both talk anew",
    ),
    change(
        Connected,
        NetworkFailure,
        "no answer to a ping within `ping-timeout`",
    ),
    change(
        Connected,
        Timeout,
        "a request was not answered within `timeout` times `ko-count`",
    ),
    change(
        Connected,
        ProtocolError,
        "the peer said what it must not say, or could not write",
    ),
    change(Connected, Disconnecting, "`disconnect`, `down`"),
    change(
        Connected,
        StandAlone,
        "the handler `before-resync-target` refused, or what is given up could not be saved",
    ),
    seldom(
        Connecting,
        ProtocolError,
        "the peer said what it must not say while the nodes compared, or this disk failed meanwhile",
    ),
    seldom(Timeout, StandAlone, "always next, when it does not"),
    seldom(ProtocolError, StandAlone, "always next, when it does not"),
    change(Disconnecting, StandAlone, "always next"),
    change(
        BrokenPipe,
        Connecting,
        "always next, when this node wants the connection",
    ),
    change(BrokenPipe, StandAlone, "always next, when it does not"),
    change(
        NetworkFailure,
        Connecting,
        "always next, when this node wants the connection",
    ),
    change(NetworkFailure, StandAlone, "always next, when it does not"),
    change(
        ProtocolError,
        Connecting,
        "always next, when this node wants the connection",
    ),
    change(
        TearDown,
        Connecting,
        "always next, when this node wants the connection",
    ),
    change(TearDown, StandAlone, "always next, when it does not"),
    change(
        Timeout,
        Connecting,
        "always next, when this node wants the connection",
    ),
];

use ReplState::{
    Ahead, Behind, Established, Off, PausedSyncS, PausedSyncT, StartingSyncS, StartingSyncT,
    SyncSource, SyncTarget, VerifyS, VerifyT, WFBitMapS, WFBitMapT, WFSyncUUID,
};

/// States of replication.
pub const REPLICATIONS: &[Meaning<ReplState>] = &[
    means(Off, "not connected"),
    means(
        Established,
        "every write is mirrored; nothing is left to catch up with",
    ),
    means(StartingSyncS, "not used by this version: see WFBitMapS"),
    means(StartingSyncT, "not used by this version: see WFBitMapT"),
    means(
        WFBitMapS,
        "about to overwrite what differs on the peer: bitmaps are exchanged",
    ),
    means(
        WFBitMapT,
        "about to be brought up to date: bitmaps are exchanged",
    ),
    means(WFSyncUUID, "not used by this version"),
    means(
        SyncSource,
        "what differs is sent to the peer; writes are mirrored all the while",
    ),
    means(
        SyncTarget,
        "what differs comes from the peer; this copy is Inconsistent until the end",
    ),
    means(
        PausedSyncS,
        "a resync to the peer is due and waits for another one",
    ),
    means(
        PausedSyncT,
        "a resync from the peer is due and waits for another one",
    ),
    means(VerifyS, "both copies are compared; this node leads"),
    means(VerifyT, "both copies are compared; the peer leads"),
    means(
        Ahead,
        "not used by this version: a full send queue makes clients wait",
    ),
    means(Behind, "not used by this version"),
];

/// Changes of a state of replication.
pub const REPLICATION_CHANGES: &[Change<ReplState>] = &[
    change(Off, Established, "connected, and nothing differs"),
    change(
        Off,
        WFBitMapS,
        "connected; the peer's copy is the older one",
    ),
    change(Off, WFBitMapT, "connected; this copy is the older one"),
    change(WFBitMapS, SyncSource, "both know what differs"),
    change(WFBitMapS, Off, "the connection ended"),
    change(
        WFBitMapT,
        SyncTarget,
        "both know what differs, and this disk says Inconsistent",
    ),
    change(WFBitMapT, Off, "the connection ended"),
    change(SyncSource, Established, "the resync is finished"),
    change(SyncSource, Off, "the connection ended"),
    change(SyncTarget, Established, "the resync is finished"),
    change(
        SyncTarget,
        Off,
        "the connection ended; the next one goes on where it was",
    ),
    change(Established, VerifyS, "`verify`, this node leads"),
    change(Established, VerifyT, "`verify`, the peer leads"),
    change(Established, Off, "the connection ended"),
    change(
        VerifyS,
        Established,
        "everything is compared, or `verify --stop`",
    ),
    change(VerifyS, Off, "the connection ended"),
    change(
        VerifyT,
        Established,
        "everything is compared, or `verify --stop`",
    ),
    change(VerifyT, Off, "the connection ended"),
    of_many(
        Off,
        PausedSyncS,
        "connected; a resync is due when another one is over",
    ),
    of_many(
        Off,
        PausedSyncT,
        "connected; a resync is due when another one is over",
    ),
    of_many(
        PausedSyncS,
        Off,
        "the connection ended, or the resync may begin: both talk anew",
    ),
    of_many(
        PausedSyncT,
        Off,
        "the connection ended, or the resync may begin: both talk anew",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Debug;

    fn whole<T: PartialEq + Debug>(meanings: &[Meaning<T>], changes: &[Change<T>]) {
        for (i, m) in meanings.iter().enumerate() {
            assert!(!meanings[..i].iter().any(|o| o.state == m.state), "{m:?}");
        }
        for (i, c) in changes.iter().enumerate() {
            let twice = changes[..i]
                .iter()
                .any(|o| o.from == c.from && o.to == c.to);
            assert!(!twice && c.from != c.to && !c.when.is_empty(), "{c:?}");
            assert!(!meaning(meanings, &c.from).is_empty(), "{c:?}");
            assert!(!meaning(meanings, &c.to).is_empty(), "{c:?}");
        }
    }

    #[test]
    fn every_change_is_there_once_and_between_states_that_are_explained() {
        whole(ROLES, ROLE_CHANGES);
        whole(DISKS, DISK_CHANGES);
        whole(CONNECTIONS, CONNECTION_CHANGES);
        whole(REPLICATIONS, REPLICATION_CHANGES);
    }

    const BEGIN: &str = "<!-- states: begin, made from src/engine/states.rs -->\n";
    const END: &str = "<!-- states: end -->";

    fn page<T: Debug + PartialEq>(
        title: &str,
        meanings: &[Meaning<T>],
        changes: &[Change<T>],
    ) -> String {
        use core::fmt::Write;
        let mut out = String::new();
        writeln!(out, "\n## {title}\n\n| State | Meaning |\n|---|---|").unwrap();
        for m in meanings {
            writeln!(out, "| `{:?}` | {} |", m.state, m.text).unwrap();
        }
        writeln!(out, "\n| From | To | When |\n|---|---|---|").unwrap();
        for c in changes {
            let many = if c.nodes > 2 {
                " (three nodes and more)"
            } else {
                ""
            };
            writeln!(out, "| `{:?}` | `{:?}` | {}{many} |", c.from, c.to, c.when).unwrap();
        }
        out
    }

    /// To update the page: `TWINBLK_UPDATE_DOCS=1 cargo test -p twinblk-engine states`.
    #[test]
    fn the_page_has_the_tables() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/states.md");
        let text = std::fs::read_to_string(path).expect("docs/states.md");
        let (before, rest) = text.split_once(BEGIN).expect("the begin marker");
        let (written, after) = rest.split_once(END).expect("the end marker");
        let tables = [
            page("Role", ROLES, ROLE_CHANGES),
            page("Disk", DISKS, DISK_CHANGES),
            page("Connection", CONNECTIONS, CONNECTION_CHANGES),
            page("Replication", REPLICATIONS, REPLICATION_CHANGES),
        ]
        .concat()
            + "\n";
        if std::env::var_os("TWINBLK_UPDATE_DOCS").is_some() {
            let text = std::format!("{before}{BEGIN}{tables}{END}{after}");
            std::fs::write(path, text).expect("write");
            return;
        }
        assert_eq!(
            written, tables,
            "set TWINBLK_UPDATE_DOCS=1 and run this test again"
        );
    }
}

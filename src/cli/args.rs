//! The command line as clap reads it.

use super::hook_score::Scores;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Where the daemon listens when nobody says otherwise.
pub(crate) const DEFAULT_CONTROL: &str = "/run/twinblk/control.sock";

/// A block device that lives on two machines, in user space.
#[derive(Debug, Parser)]
#[command(name = "twinblk", version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 done, 1 usage, 5 timeout, 10 unknown resource or other \
error, 11 refused by the state, 12 in use, 13 refused by the peer, 16 no disk, 17 no up-to-date \
data, 18 worse than Outdated, 20 no daemon, 21 configuration, 22 metadata."
)]
pub(crate) struct Cli {
    /// The daemon's control socket [env TWINBLK_CONTROL, default /run/twinblk/control.sock].
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

impl Cli {
    /// The control socket to use.
    pub(crate) fn control(&self) -> PathBuf {
        let from_env = || std::env::var_os("TWINBLK_CONTROL").filter(|v| !v.is_empty());
        self.control
            .clone()
            .or_else(|| from_env().map(PathBuf::from))
            .unwrap_or_else(|| PathBuf::from(DEFAULT_CONTROL))
    }
}

/// What `why` can be asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Question {
    /// `primary`.
    Promote,
    /// `secondary`.
    Demote,
    /// `connect`: asks the peer (the same as `connect --dry-run`).
    Connect,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Prepare a disk: write fresh metadata (no daemon needed).
    CreateMd(CreateMd),
    /// Show a disk's metadata (no daemon needed).
    DumpMd(DumpMd),
    /// Put dumped metadata back onto a disk (no daemon needed).
    RestoreMd(RestoreMd),
    /// Verify a disk's metadata, and say what is wrong with them (no daemon needed).
    CheckMd(CheckMd),
    /// Move internal metadata to the new end of a disk that has grown (no daemon needed).
    MoveMd(MoveMd),
    /// Start a resource: open its disk, connect to its peer.
    Up(Resource),
    /// Stop a resource: demote it, leave the peer, close its disk.
    Down {
        #[command(flatten)]
        resource: Resource,
        /// Also when clients hold the export: they get errors from now on.
        #[arg(long)]
        force: bool,
    },
    /// Connect to the peer, or try again at once.
    Connect {
        #[command(flatten)]
        resource: Resource,
        #[command(flatten)]
        peer: Peer,
        /// After a split brain: overwrite this node's changes with the peer's data.
        #[arg(long)]
        discard_my_data: bool,
        /// Before anything is overwritten save it to this file, which must not exist, on this node.
        #[arg(
            long,
            value_name = "FILE",
            requires = "discard_my_data",
            conflicts_with = "dry_run"
        )]
        save_discarded: Option<PathBuf>,
        /// Tell what would happen, by which rule, and how much would be copied; change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Leave the peer and stay apart (StandAlone).
    Disconnect {
        #[command(flatten)]
        resource: Resource,
        #[command(flatten)]
        peer: Peer,
    },
    /// Make this node the Primary: its export serves clients.
    Primary {
        #[command(flatten)]
        resource: Resource,
        /// Declare this node's data the current ones, whatever is known of them.
        #[arg(long)]
        force: bool,
    },
    /// Make this node a Secondary.
    Secondary {
        #[command(flatten)]
        resource: Resource,
        /// Also when clients hold the export, or I/O is suspended: they get errors.
        #[arg(long)]
        force: bool,
    },
    /// Print the role.
    Role(Resource),
    /// Print the state of the connection.
    Cstate(Resource),
    /// Print the states of the disks, this node's and the peer's.
    Dstate(Resource),
    /// Show the state, and why it is so.
    Status {
        #[command(flatten)]
        resource: OptionalResource,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Explain the state: what it is, why, since when, what is at risk, what happens next, what can
    /// be done.
    Why {
        #[command(flatten)]
        resource: Resource,
        /// Would this work now, and if not, what stands against it?
        question: Option<Question>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// For failover daemons: become Primary or Secondary, or tell what this node is.
    Hook(Hook),
    /// Show what happens, as it happens, until interrupted.
    Events {
        #[command(flatten)]
        resource: OptionalResource,
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
        /// Show the present state and end.
        #[arg(long)]
        now: bool,
    },
    /// Wait until the peer is connected.
    WaitConnect(Wait),
    /// Wait until both copies are the same.
    WaitSync(Wait),
    /// Read the configuration again and apply what changed.
    Adjust {
        #[command(flatten)]
        resource: Resource,
        /// Tell what would change; change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Print the configuration in force; with --config that of the files, without a daemon.
    Dump {
        #[command(flatten)]
        resource: OptionalResource,
        #[command(flatten)]
        local: LocalOptional,
    },
    /// Take this node's disk into use again, after it failed or was detached.
    Attach(Resource),
    /// Put this node's disk out of use; a Primary goes on with the peer's copy.
    Detach {
        #[command(flatten)]
        resource: Resource,
        /// At once, whatever is under way on it, also if clients get errors then.
        #[arg(long)]
        force: bool,
    },
    /// Let clients' requests wait, unanswered, until `resume-io`.
    SuspendIo(Resource),
    /// Let I/O go on, also when a peer that was lost is still being fenced.
    ResumeIo(Resource),
    /// Declare this node's data older than another's: it cannot be promoted until it has met that one.
    Outdate(Resource),
    /// Declare this node's data worthless: full sync from the peer.
    Invalidate(Resource),
    /// Declare the peer's data worthless: full sync to it.
    InvalidateRemote {
        #[command(flatten)]
        resource: Resource,
        #[command(flatten)]
        peer: Peer,
    },
    /// Compare both copies block by block, while the device is in use; what differs is marked.
    Verify {
        #[command(flatten)]
        resource: Resource,
        #[command(flatten)]
        peer: Peer,
        /// At the end copy what differs: from the Primary, or, without one, from this node.
        #[arg(long)]
        repair: bool,
        /// End the verify that runs.
        #[arg(long, conflicts_with = "repair")]
        stop: bool,
    },
    /// Let the device use what the disks of both nodes have room for, while it is in use.
    Resize {
        #[command(flatten)]
        resource: Resource,
        /// This size and no other: a number of bytes, a multiple of 4096.
        #[arg(long, value_name = "BYTES")]
        size: Option<u64>,
        /// Also make it smaller; what lies behind the new end is cut off.
        #[arg(long, requires = "size")]
        force: bool,
    },
    /// Start a new generation of the data.
    NewCurrentUuid {
        #[command(flatten)]
        resource: Resource,
        /// Declare both copies equal: skips the first sync. Only when they are.
        #[arg(long)]
        clear_bitmap: bool,
    },
    /// Look into what `--save-discarded` has saved, and get it back (no daemon needed).
    #[command(subcommand)]
    Discarded(Discarded),
    /// Run the daemon of this node.
    Daemon(Daemon),
    /// See it work: two nodes on this machine, a crash, a failover, a resync. Needs no root.
    Demo,
    /// The daemon runs this to claim a kernel device.
    #[command(name = crate::daemon::claimant::VERB, hide = true)]
    ClaimDevice {
        /// N of /dev/nbdN.
        index: u32,
    },
}

/// Which resource.
#[derive(Debug, Clone, Args)]
pub(crate) struct Resource {
    /// Name of the resource, or `all`.
    #[arg(id = "RES")]
    pub(crate) name: String,
}

/// Which resource, all by default.
#[derive(Debug, Clone, Args)]
pub(crate) struct OptionalResource {
    /// Name of the resource.
    #[arg(id = "RES", default_value = "all")]
    pub(crate) name: String,
}

/// Which peer.
#[derive(Debug, Clone, Args)]
pub(crate) struct Peer {
    /// Only this peer.
    #[arg(id = "peer", long, value_name = "NAME")]
    pub(crate) name: Option<String>,
}

/// Where the configuration is, for verbs that need no daemon.
#[derive(Debug, Clone, Args)]
pub(crate) struct Local {
    /// Directory of the configuration.
    #[arg(long, value_name = "DIR", default_value = "/etc/twinblk")]
    pub(crate) config: PathBuf,
    /// Name of this node; the host's name by default.
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
}

/// The same, where a daemon may be asked instead.
#[derive(Debug, Clone, Args)]
pub(crate) struct LocalOptional {
    /// Read the files of this directory instead of asking the daemon.
    #[arg(long, value_name = "DIR")]
    pub(crate) config: Option<PathBuf>,
    /// Name of this node; the host's name by default.
    #[arg(long, value_name = "NAME", requires = "config")]
    pub(crate) node: Option<String>,
}

/// `create-md`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CreateMd {
    #[command(flatten)]
    pub(crate) resource: Resource,
    #[command(flatten)]
    pub(crate) local: Local,
    /// Overwrite what is there: older metadata, or a file system where the metadata go.
    #[arg(long)]
    pub(crate) force: bool,
    /// Peers to make room for, 1 to 15.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=15))]
    pub(crate) max_peers: u8,
}

/// `dump-md`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DumpMd {
    #[command(flatten)]
    pub(crate) resource: Resource,
    #[command(flatten)]
    pub(crate) local: Local,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `restore-md`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RestoreMd {
    #[command(flatten)]
    pub(crate) resource: Resource,
    /// What `dump-md --json` printed.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) local: Local,
    /// Overwrite valid metadata, or something else that reaches into their place.
    #[arg(long)]
    pub(crate) force: bool,
    /// Believe the dump: nothing was written to the disk since it was taken.
    #[arg(long)]
    pub(crate) exact: bool,
}

/// `check-md`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CheckMd {
    #[command(flatten)]
    pub(crate) resource: Resource,
    #[command(flatten)]
    pub(crate) local: Local,
}

/// `move-md`.
#[derive(Debug, Clone, Args)]
pub(crate) struct MoveMd {
    #[command(flatten)]
    pub(crate) resource: Resource,
    #[command(flatten)]
    pub(crate) local: Local,
    /// The size of the disk before it grew; spares searching for the metadata.
    #[arg(long, value_name = "BYTES")]
    pub(crate) old_size: Option<u64>,
}

/// `discarded`.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Discarded {
    /// Tell what a file holds: whose data, of which generations, how much.
    Show {
        /// What `--save-discarded` wrote.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Every range too.
        #[arg(long)]
        list: bool,
    },
    /// Verify the checksums of a file, and that it is whole.
    Verify {
        /// What `--save-discarded` wrote.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Get the data back: all of them onto an image, or a range on the standard output.
    Extract(Extract),
}

/// `discarded extract`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Extract {
    /// What `--save-discarded` wrote.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Write everything to its place in this image: a copy of the node's disk, or a new file.
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["offset", "length"])]
    pub(crate) to: Option<PathBuf>,
    /// Only what the node itself had changed; without it the image is the device as the node had it.
    #[arg(long, requires = "to")]
    pub(crate) own_only: bool,
    /// The image may be a block device: what is on it is overwritten.
    #[arg(long, requires = "to")]
    pub(crate) onto_device: bool,
    /// First byte of a range.
    #[arg(long, value_name = "BYTES", requires = "length")]
    pub(crate) offset: Option<u64>,
    /// Bytes of a range.
    #[arg(long, value_name = "BYTES", requires = "offset")]
    pub(crate) length: Option<u64>,
}

/// `wait-connect`, `wait-sync`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Wait {
    #[command(flatten)]
    pub(crate) resource: Resource,
    /// Give up after this many seconds, with exit code 5.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
}

/// `hook`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Hook {
    #[command(flatten)]
    pub(crate) resource: Resource,
    /// What to do.
    pub(crate) action: HookAction,
    /// `up`, `down`: give up after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) timeout: u64,
    /// `up`: wait so many seconds for a peer that is not connected, before promoting without it.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) wait_peer: u64,
    /// `score`: the scores of a copy that is Consistent only, of one that is not current while a
    /// peer's is, of a current one whose peer is not known, and of a current one otherwise.
    #[arg(long, value_name = "FOUR NUMBERS", default_value = "0 10 1000 10000")]
    pub(crate) scores: Scores,
}

/// What a failover daemon wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum HookAction {
    /// Start the resource if need be, and make this node Primary, if its data and its peers allow it.
    Up,
    /// Make this node Secondary.
    Down,
    /// Print the role; exit code 0 Primary, 3 not, 4 unknown.
    Status,
    /// Exit code 0 when this node is Primary or could be made so now.
    Promotable,
    /// Exit code 0 when what this node has to do as Primary it can do: its data and its device are there.
    Health,
    /// Print a score for cluster managers, `none` or `keep`.
    Score,
}

/// `daemon`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Daemon {
    /// Directory of the configuration.
    #[arg(long, value_name = "DIR", default_value = "/etc/twinblk")]
    pub(crate) config: PathBuf,
    /// Directory for what the daemon must remember.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/twinblk")]
    pub(crate) state: PathBuf,
    /// Name of this node; the host's name by default.
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn clap_accepts_the_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_is_documented() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/commands.md");
        let page = std::fs::read_to_string(path).expect("docs/commands.md");
        for verb in Cli::command().get_subcommands() {
            let name = verb.get_name();
            assert!(
                page.contains(&format!("`{name}")),
                "docs/commands.md lacks {name}"
            );
            for option in verb.get_arguments().filter_map(|a| a.get_long()) {
                assert!(page.contains(&format!("--{option}")), "{name} --{option}");
            }
        }
    }

    #[test]
    fn the_control_socket_may_stand_anywhere() {
        for words in [
            ["--control", "/c", "role", "r0"],
            ["role", "r0", "--control", "/c"],
        ] {
            let cli = Cli::parse_from(["twinblk"].iter().chain(&words));
            assert_eq!(cli.control(), PathBuf::from("/c"));
        }
    }
}

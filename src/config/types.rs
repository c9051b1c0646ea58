//! A configuration that has been read and checked.

use super::handlers::Handlers;
use super::options::{DISCARD_NODE, Key};
use super::settings::Settings;
use super::values::Value;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use twinblk_engine::config as engine;
use twinblk_engine::fencing::Fencing;
use twinblk_engine::ids::{NodeId, VolumeId};
use twinblk_engine::split_brain::{AfterSb0Pri, AfterSb1Pri, AfterSb2Pri, Policies, RrConflict};

/// Port of a node whose address names none.
pub(crate) const DEFAULT_PORT: u16 = 7789;

/// All resources of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// This node's name.
    pub(crate) node_name: String,
    /// Resources this node takes part in, by name.
    pub(crate) resources: Vec<Resource>,
    /// What is worth telling but does not stand in the way.
    pub(crate) warnings: Vec<String>,
}

impl Config {
    /// The resource of that name.
    pub(crate) fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|r| r.name == name)
    }
}

/// A resource as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resource {
    /// Its name; also the name of its export.
    pub(crate) name: String,
    /// The file it came from.
    pub(crate) file: PathBuf,
    /// What the peers must know too.
    pub(crate) secret: Secret,
    /// This node.
    pub(crate) me: Node,
    /// The other nodes, by number.
    pub(crate) peers: Vec<Node>,
    /// Options.
    pub(crate) settings: Settings,
    /// Handlers.
    pub(crate) handlers: Handlers,
}

/// A node of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its name.
    pub(crate) name: String,
    /// Its number, 0 to 15.
    pub(crate) id: u8,
    /// Where its peers reach it.
    pub(crate) address: Address,
    /// Where it serves NBD clients while Primary.
    pub(crate) exports: Vec<Export>,
    /// Its volumes by number; at least one.
    pub(crate) volumes: Vec<Volume>,
}

/// A volume on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    /// Its number.
    pub(crate) number: u16,
    /// Block device or regular file with the data.
    pub(crate) disk: PathBuf,
    /// Where the metadata are.
    pub(crate) meta: MetaDisk,
    /// The kernel device it shall be while the node is Primary.
    pub(crate) device: Option<Device>,
}

/// A device of the kernel's nbd driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Device {
    /// /dev/nbdN.
    Number(u32),
    /// A free one.
    Auto,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "/dev/nbd{number}"),
            Self::Auto => write!(f, "auto"),
        }
    }
}

/// Where a volume's metadata are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum MetaDisk {
    /// At the end of the disk.
    Internal,
    /// In a file or device of their own.
    External(PathBuf),
}

impl fmt::Display for MetaDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal => write!(f, "internal"),
            Self::External(path) => write!(f, "{}", path.display()),
        }
    }
}

/// `HOST:PORT` of a node. The host is an address or a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    /// IP address (without brackets) or host name.
    pub(crate) host: String,
    /// TCP port.
    pub(crate) port: u16,
}

/// With brackets around an IPv6 address: what `TcpListener::bind` and friends read.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Where a node serves NBD clients.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Export {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
}

impl fmt::Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// The shared secret; never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(super) Vec<u8>);

impl std::ops::Deref for Secret {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret(…)")
    }
}

impl Resource {
    /// Replication protocol.
    pub(crate) fn protocol(&self) -> engine::Protocol {
        match self.settings.get(Key::Protocol) {
            Value::Word("A") => engine::Protocol::A,
            Value::Word("B") => engine::Protocol::B,
            _ => engine::Protocol::C,
        }
    }

    /// Smallest I/O of clients in bytes.
    pub(crate) fn block_size(&self) -> u32 {
        self.small(Key::BlockSize)
    }

    /// Time between attempts to connect.
    pub(crate) fn connect_int(&self) -> Duration {
        self.settings.time(Key::ConnectInt)
    }

    /// Memory for data in flight.
    pub(crate) fn buffer_bytes(&self) -> u64 {
        self.settings.number(Key::BufferSize)
    }

    /// How long the loop looks for new work before it sleeps.
    pub(crate) fn poll(&self) -> Duration {
        Duration::from_micros(self.settings.number(Key::PollUs))
    }

    /// Whether a client that opens the export makes this node Primary.
    pub(crate) fn auto_promote(&self) -> bool {
        self.settings.get(Key::AutoPromote) == Value::Flag(true)
    }

    /// How long a handler may run.
    pub(crate) fn handler_timeout(&self) -> Duration {
        self.settings.time(Key::HandlerTimeout)
    }

    /// What is done when a peer is lost.
    fn fencing(&self) -> Fencing {
        match self.settings.get(Key::Fencing) {
            Value::Word(word) => Fencing::ALL.into_iter().find(|f| f.name() == word),
            _ => None,
        }
        .unwrap_or_default()
    }

    /// How long the kernel device waits.
    pub(crate) fn device_timeouts(&self) -> userspace_nbd::kernel::Timeouts {
        userspace_nbd::kernel::Timeouts {
            request: self.settings.time(Key::DeviceTimeout),
            dead: self.settings.time(Key::DeviceDeadTimeout),
        }
    }

    /// A node of the resource by name.
    pub(crate) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes().find(|n| n.name == name)
    }

    /// This node and its peers.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        std::iter::once(&self.me).chain(&self.peers)
    }

    /// The engine's options, as [`twinblk_engine::command::Command::SetOptions`] wants them.
    pub(crate) fn engine_options(&self) -> engine::Options {
        let s = &self.settings;
        engine::Options {
            protocol: self.protocol(),
            ping_int: s.time(Key::PingInt),
            ping_timeout: s.time(Key::PingTimeout),
            timeout: s.time(Key::Timeout),
            ko_count: self.small(Key::KoCount),
            max_epoch_size: self.small(Key::MaxEpochSize),
            send_queue: s.number(Key::SndbufSize),
            resync_max_rate: s.number(Key::CMaxRate),
            resync_window: s.number(Key::ResyncWindow),
            al_extents: self.small(Key::AlExtents),
            on_io_error: match s.get(Key::OnIoError) {
                Value::Word("call-local-io-error") => engine::OnIoError::CallLocalIoError,
                Value::Word("pass-on") => engine::OnIoError::PassOn,
                _ => engine::OnIoError::Detach,
            },
            on_no_data: if s.get(Key::OnNoDataAccessible) == Value::Word("suspend-io") {
                engine::OnNoData::SuspendIo
            } else {
                engine::OnNoData::IoError
            },
            fencing: self.fencing(),
            handlers: self.handlers.set(),
            policies: self.policies(),
            save_discarded: self.save_discarded_dir().is_some(),
            // Two Primaries are refused when the file is read.
            ..engine::Options::default()
        }
    }

    /// What gives way after a split brain.
    fn policies(&self) -> Policies {
        let word = |key| match self.settings.get(key) {
            Value::Word(word) => word,
            value => unreachable!("{key:?} is not a word but {value}"),
        };
        let zero = word(Key::AfterSb0Pri);
        let node = zero.strip_prefix(DISCARD_NODE).and_then(|n| self.node(n));
        let zero_primaries = match node {
            Some(node) => Some(AfterSb0Pri::DiscardNode(NodeId(node.id))),
            None => AfterSb0Pri::parse(zero),
        };
        // A word that is none of the values was refused when the file was read.
        Policies {
            zero_primaries: zero_primaries.unwrap_or_default(),
            one_primary: AfterSb1Pri::parse(word(Key::AfterSb1Pri)).unwrap_or_default(),
            two_primaries: AfterSb2Pri::parse(word(Key::AfterSb2Pri)).unwrap_or_default(),
            conflict: RrConflict::parse(word(Key::RrConflict)).unwrap_or_default(),
        }
    }

    /// Where copies are saved that a split brain costs.
    pub(crate) fn save_discarded_dir(&self) -> Option<PathBuf> {
        match self.settings.get(Key::SaveDiscardedDir) {
            Value::Word("") => None,
            Value::Word(path) => Some(PathBuf::from(path)),
            _ => None,
        }
    }

    /// What the engine is started with. `incarnation` is random and not 0.
    pub(crate) fn to_engine(&self, incarnation: u64, seed: u64) -> engine::ResourceConfig {
        let node = |n: &Node| engine::NodeConfig {
            id: NodeId(n.id),
            name: n.name.clone(),
        };
        engine::ResourceConfig {
            name: self.name.clone(),
            me: node(&self.me),
            peers: self.peers.iter().map(node).collect(),
            volumes: self
                .me
                .volumes
                .iter()
                .map(|v| engine::VolumeConfig {
                    volume: VolumeId(v.number),
                    block_size: self.block_size(),
                })
                .collect(),
            options: self.engine_options(),
            incarnation,
            seed,
        }
    }

    /// An option whose range keeps it far below 2^32.
    fn small(&self, key: Key) -> u32 {
        u32::try_from(self.settings.number(key)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_never_printed() {
        let secret = Secret(b"hunter2".to_vec());
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert_eq!(&*secret, b"hunter2");
    }

    #[test]
    fn addresses_print_as_they_are_read() {
        let show = |host: &str| {
            Address {
                host: host.to_owned(),
                port: 7789,
            }
            .to_string()
        };
        assert_eq!(show("10.0.0.1"), "10.0.0.1:7789");
        assert_eq!(show("fd00::1"), "[fd00::1]:7789");
        assert_eq!(show("alpha.example"), "alpha.example:7789");
    }
}

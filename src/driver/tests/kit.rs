//! A node in a box: disk in a temporary directory, loop in its thread, and what it reported.

use super::client::Client;
use crate::driver::mailbox::{FromLoop, LoopHandle, StatusReply, ToLoop};
use crate::driver::{
    DriverOptions, MetaDisk, OpenVolumeError, OpenedVolume, StartConfig, VolumeSpec, open_volume,
    start,
};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use twinblk_engine::command::{Command, CommandResult};
use twinblk_engine::config::{NodeConfig, Options, ResourceConfig, VolumeConfig};
use twinblk_engine::event::{ConnState, DiskState, ReplState};
use twinblk_engine::ids::{CommandId, NodeId, VolumeId};
use twinblk_engine::metadata::create::{CreateParams, create};
use twinblk_engine::metadata::layout::Layout;
use userspace_nbd::export::{BlockSize, Export, TransmissionFlags};
use userspace_nbd::negotiation::{NegotiatedContext, Session};

pub(super) const VOLUME: VolumeId = VolumeId(0);
/// Every start of a node is another life.
static LIVES: AtomicU64 = AtomicU64::new(1);
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A file of `size` bytes with internal metadata for node `node` of two.
pub(super) fn create_disk(path: &Path, size: u64, node: u8) {
    let file = std::fs::File::create_new(path).expect("a file");
    file.set_len(size).expect("its size");
    create_metadata(
        &file,
        Layout::internal(size, 4096, 1).expect("a layout"),
        node,
    );
}

pub(super) fn create_metadata(file: &std::fs::File, layout: Layout, node: u8) {
    let params = CreateParams {
        layout,
        resource: "r0",
        volume: VOLUME,
        node: NodeId(node),
        peers: &[NodeId(1 - node)],
        device_uuid: 7 + u64::from(node),
        block_size: 512,
        extent_size: 4 << 20,
    };
    create(params, &mut |at, data: &[u8]| file.write_all_at(data, at)).expect("metadata");
}

pub(super) fn spec(path: &Path, node: u8) -> VolumeSpec {
    VolumeSpec {
        volume: VOLUME,
        disk: path.to_owned(),
        meta: MetaDisk::Internal,
        resource: String::from("r0"),
        node: NodeId(node),
        block_size: 512,
    }
}

pub(super) fn open(path: &Path, node: u8) -> Result<OpenedVolume, OpenVolumeError> {
    open_volume(spec(path, node))
}

/// A running resource.
pub(super) struct Node {
    pub(super) id: u8,
    pub(super) path: PathBuf,
    handle: LoopHandle,
    reports: UnboundedReceiver<FromLoop>,
    thread: JoinHandle<()>,
    next_command: u64,
    /// Reports seen while something else was waited for.
    pub(super) seen: Vec<FromLoop>,
}

impl Node {
    /// Creates a disk and starts the loop on it.
    pub(super) fn fresh(directory: &Path, id: u8, size: u64) -> Self {
        let path = directory.join(format!("disk{id}"));
        create_disk(&path, size, id);
        Self::up(path, id, Options::default())
    }

    /// Starts the loop on a disk there is.
    pub(super) fn up(path: PathBuf, id: u8, options: Options) -> Self {
        Self::up_as("r0", path, id, options)
    }

    /// The same under another name, which is part of its thread's.
    pub(super) fn up_as(resource: &str, path: PathBuf, id: u8, options: Options) -> Self {
        Self::driven(resource, path, id, options, DriverOptions::default())
    }

    /// The same with settings of its loop.
    pub(super) fn driven(
        resource: &str,
        path: PathBuf,
        id: u8,
        options: Options,
        driver: DriverOptions,
    ) -> Self {
        let volume = open(&path, id).expect("the disk opens");
        let name = |id: u8| ["alpha", "bravo"][usize::from(id)].to_owned();
        let node = |id: u8| NodeConfig {
            id: NodeId(id),
            name: name(id),
        };
        let engine = ResourceConfig {
            name: String::from(resource),
            me: node(id),
            peers: vec![node(1 - id)],
            volumes: vec![VolumeConfig {
                volume: VOLUME,
                block_size: 512,
            }],
            options,
            incarnation: LIVES.fetch_add(1, Ordering::Relaxed),
            seed: 5 + u64::from(id),
        };
        let (to_daemon, reports) = unbounded_channel();
        let config = StartConfig {
            engine,
            volumes: vec![volume],
            options: driver,
            to_daemon,
        };
        let (handle, thread) = start(config).expect("a loop");
        Self {
            id,
            path,
            handle,
            reports,
            thread,
            next_command: 1,
            seen: Vec::new(),
        }
    }

    fn report(&mut self, until: Instant) -> FromLoop {
        loop {
            match self.reports.try_recv() {
                Ok(report) => return report,
                Err(tokio::sync::mpsc::error::TryRecvError::Disconnected) => panic!("no more"),
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => panic!("nothing came; seen so far: {:#?}", self.seen),
            }
        }
    }

    pub(super) fn command(&mut self, command: Command) -> CommandResult {
        let id = CommandId(self.next_command);
        self.next_command += 1;
        self.handle
            .send(ToLoop::Command(id, command))
            .expect("alive");
        let until = Instant::now() + PATIENCE;
        loop {
            match self.report(until) {
                FromLoop::CommandDone(done, result) if done == id => return result,
                other => self.seen.push(other),
            }
        }
    }

    pub(super) fn status(&self) -> StatusReply {
        let (answer, mut reply) = tokio::sync::oneshot::channel();
        self.handle.send(ToLoop::Status(answer)).expect("alive");
        let until = Instant::now() + PATIENCE;
        loop {
            match reply.try_recv() {
                Ok(status) => return status,
                Err(error) => assert!(Instant::now() < until, "no status: {error}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn wait(&self, what: &str, mut is_so: impl FnMut(&StatusReply) -> bool) {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if is_so(&status) {
                return;
            }
            assert!(
                Instant::now() < until,
                "{what} never became true: {status:#?}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(super) fn wait_attached(&self) {
        self.wait("a disk", |s| {
            s.status.volumes[0].disk >= DiskState::Inconsistent
        });
    }

    pub(super) fn primary(&mut self, force: bool) {
        self.wait_attached();
        self.command(Command::Primary { force }).expect("promotion");
    }

    /// Connects an NBD client as after a negotiation.
    pub(super) fn client(&self, structured: bool) -> Client {
        self.client_kept(structured, None)
    }

    /// The same; `kept` is dropped when nothing of the connection is left.
    pub(super) fn client_kept(
        &self,
        structured: bool,
        kept: Option<tokio::sync::oneshot::Sender<()>>,
    ) -> Client {
        let (mine, theirs) = UnixStream::pair().expect("a pair");
        let size = self.status().status.volumes[0].size;
        let session = session(structured, size);
        let client = String::from("test");
        let message = ToLoop::NbdClient {
            socket: theirs.into(),
            session,
            volume: VOLUME,
            client,
            kept,
        };
        self.handle.send(message).expect("alive");
        Client::new(mine, structured)
    }

    pub(super) fn send(&self, message: ToLoop) {
        self.handle.send(message).expect("alive");
    }

    /// `down`: ends the loop and answers its last words.
    pub(super) fn down(mut self, force: bool) -> PathBuf {
        self.command(Command::Stop { force }).expect("stop");
        let until = Instant::now() + PATIENCE;
        loop {
            match self.report(until) {
                FromLoop::Ended(result) => {
                    assert_eq!(result, Ok(()));
                    break;
                }
                other => self.seen.push(other),
            }
        }
        self.thread.join().expect("the thread ended in order");
        self.path
    }
}

/// What a client negotiated.
pub(super) fn session(structured: bool, size: u64) -> Session {
    use TransmissionFlags as T;
    let contexts = ["base:allocation", "twinblk:dirty"];
    let context = |(id, name): (u32, &str)| NegotiatedContext {
        id,
        name: name.to_owned(),
    };
    Session {
        export: Export {
            name: String::from("r0"),
            description: String::new(),
            size,
            flags: T::HAS_FLAGS
                | T::SEND_FLUSH
                | T::SEND_FUA
                | T::SEND_TRIM
                | T::SEND_WRITE_ZEROES
                | T::SEND_DF
                | T::SEND_CACHE
                | T::SEND_FAST_ZERO
                | T::CAN_MULTI_CONN,
            block_size: BlockSize {
                minimum: 512,
                preferred: 4096,
                maximum: 8 << 20,
            },
            meta_contexts: contexts.map(str::to_owned).to_vec(),
        },
        structured,
        contexts: if structured {
            (1..).zip(contexts).map(context).collect()
        } else {
            Vec::new()
        },
        leftover: Vec::new(),
        block_size_negotiated: true,
    }
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let one = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (two, _) = listener.accept().expect("accept");
    // As they come from tokio.
    one.set_nonblocking(true).expect("nonblocking");
    two.set_nonblocking(true).expect("nonblocking");
    (one, two)
}

/// Connects two nodes over TCP. Answers copies of the sockets, to break them.
pub(super) fn connect(one: &Node, two: &Node) -> [TcpStream; 2] {
    let (data_one, data_two) = tcp_pair();
    let (control_one, control_two) = tcp_pair();
    let copies = [
        data_one.try_clone().expect("clone"),
        control_one.try_clone().expect("clone"),
    ];
    one.send(ToLoop::PeerLink {
        peer: NodeId(two.id),
        data: (data_one.into(), Vec::new()),
        control: (control_one.into(), Vec::new()),
    });
    two.send(ToLoop::PeerLink {
        peer: NodeId(one.id),
        data: (data_two.into(), Vec::new()),
        control: (control_two.into(), Vec::new()),
    });
    copies
}

/// Waits until both have all data and mirror.
pub(super) fn wait_in_sync(one: &Node, two: &Node) {
    for node in [one, two] {
        node.wait("in sync", |s| {
            let peer = &s.status.peers[0];
            peer.connection == ConnState::Connected
                && peer.volumes[0].replication == ReplState::Established
                && peer.volumes[0].peer_disk == DiskState::UpToDate
                && s.status.volumes[0].disk == DiskState::UpToDate
        });
    }
}

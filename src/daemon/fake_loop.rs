//! For tests of the supervisor: a resource whose loop is played by the test.

use super::DaemonOptions;
use super::fake_status::healthy;
use super::running::Running;
use super::state::StateDir;
use super::supervisor::Supervisor;
use crate::config;
use crate::driver::mailbox::{DriverStatus, FromLoop, LoopHandle, StatusReply, ToLoop};
use std::path::Path;
use std::sync::{Arc, mpsc};
use tokio::sync::mpsc::UnboundedSender;
use twinblk_engine::command::{Command, CommandResult};
use twinblk_engine::event::Role;
use twinblk_engine::ids::CommandId;
use twinblk_engine::status::Status;

/// Far more turns of the runtime than anything takes that does not wait for time.
const TURNS: usize = 10_000;

/// A supervisor with a configuration of r0 and r1, in directories of its own.
pub(super) struct Kit {
    pub(super) supervisor: Arc<Supervisor>,
    directory: tempfile::TempDir,
}

impl Kit {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        std::fs::create_dir(path.join("config")).expect("a directory");
        for (name, port) in [("r0", 17789), ("r1", 17790)] {
            configure(path, name, port, "swordfish");
        }
        let options = DaemonOptions {
            config_dir: path.join("config"),
            state_dir: path.join("state"),
            node: Some("alpha".into()),
            control: path.join("control"),
        };
        let config = config::load(&options.config_dir, Some("alpha")).expect("it is right");
        let state = StateDir::open(&options.state_dir).expect("it is free");
        let supervisor = Arc::new(Supervisor::new(options, config, state));
        Self {
            supervisor,
            directory,
        }
    }

    /// Changes the secret of r0 in its file.
    pub(super) fn change_secret(&self, secret: &str) {
        configure(self.directory.path(), "r0", 17789, secret);
    }

    /// What the next daemon would bring up.
    pub(super) fn remembered(&self) -> Vec<String> {
        let text = std::fs::read(self.directory.path().join("state/up.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// A resource that is up, with the test as its loop.
    pub(super) fn up(&self, name: &str) -> FakeLoop {
        let (sender, orders) = mpsc::channel();
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let wake = Arc::new(rustix::event::eventfd(0, flags).expect("an eventfd"));
        let config = self.supervisor.configured(name).expect("it is configured");
        let running = Arc::new(Running::new(config, LoopHandle { sender, wake }));
        let (says, from_loop) = tokio::sync::mpsc::unbounded_channel();
        self.supervisor.adopt(name, &running, from_loop);
        self.supervisor.remember(name, true);
        FakeLoop { orders, says }
    }
}

fn configure(path: &Path, name: &str, port: u16, secret: &str) {
    let disk = path.join(name);
    let text = format!(
        "[resource]\nname = \"{name}\"\nshared-secret = \"{secret}\"\n\
         [node.alpha]\nid = 0\naddress = \"127.0.0.1:{port}\"\ndisk = \"{0}.a\"\n\
         [node.bravo]\nid = 1\naddress = \"127.0.0.2:{port}\"\ndisk = \"{0}.b\"\n",
        disk.display()
    );
    std::fs::write(path.join("config").join(format!("{name}.toml")), text).expect("a file");
}

fn picture() -> StatusReply {
    StatusReply {
        status: Status {
            role: Role::Primary,
            volumes: Vec::new(),
            peers: Vec::new(),
            ..healthy()
        },
        driver: DriverStatus::default(),
        now: twinblk_engine::time::Instant(0),
    }
}

/// The test's end of a loop.
pub(super) struct FakeLoop {
    orders: mpsc::Receiver<ToLoop>,
    pub(super) says: UnboundedSender<FromLoop>,
}

impl FakeLoop {
    /// The next order the loop gets; questions for the status stay without an answer.
    pub(super) async fn order(&self) -> (CommandId, Command) {
        for _ in 0..TURNS {
            match self.orders.try_recv() {
                Ok(ToLoop::Command(id, command)) => return (id, command),
                Ok(_) => {}
                Err(_) => tokio::task::yield_now().await,
            }
        }
        panic!("no order came");
    }

    /// Tells its state to whoever asks next.
    pub(super) async fn tell_state(&self) {
        for _ in 0..TURNS {
            match self.orders.try_recv() {
                Ok(ToLoop::Status(asker)) => {
                    let _ = asker.send(picture());
                    return;
                }
                Ok(other) => panic!("{other:?}"),
                Err(_) => tokio::task::yield_now().await,
            }
        }
        panic!("nobody asked");
    }

    /// The next client that is handed over; dropped, it is refused.
    pub(super) async fn client(&self) -> ToLoop {
        for _ in 0..TURNS {
            match self.orders.try_recv() {
                Ok(client @ ToLoop::NbdClient { .. }) => return client,
                Ok(other) => panic!("{other:?}"),
                Err(_) => tokio::task::yield_now().await,
            }
        }
        panic!("no client came");
    }

    pub(super) fn answer(&self, id: CommandId, result: CommandResult) {
        self.says
            .send(FromLoop::CommandDone(id, result))
            .expect("the supervisor listens");
    }

    pub(super) fn end(&self, result: Result<(), String>) {
        self.says
            .send(FromLoop::Ended(result))
            .expect("the supervisor listens");
    }
}

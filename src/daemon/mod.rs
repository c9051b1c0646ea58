//! The control plane: tokio, one thread. Everything slow or rare: configuration, control socket,
//! listening and dialling, hello and NBD negotiation. Ready sockets go to the resources' loops
//! ([`crate::driver`]); nothing of the data path passes here.
//!
//! * [`supervisor`]: the list of resources, up and down, what came of a loop; [`come_back`]: up again
//!   at the daemon's start; [`adjust`]: changes while it runs;
//! * [`peers`]: listening for peers, pairing sockets; [`dial`]: dialling them;
//! * [`volumes`]: opening disks;
//! * [`exports`]: NBD listeners and negotiation;
//! * [`kernel_device`]: /dev/nbdN, while the node is Primary;
//! * [`handlers`]: the administrator's programs; [`handler_process`]: one of them as a process;
//! * [`strangers`]: how many of those who are neither yet, and what is told of them;
//! * [`sockets`]: options of both's sockets; [`socket_file`]: the files of unix sockets;
//! * [`api`]: the control socket; [`convert`]: the engine's words as JSON;
//! * [`signals`]: SIGTERM and SIGINT; [`notify`]: what the service manager is told;
//! * [`state`]: the state directory: lock, and which resources were up.

mod adjust;
mod api;
mod attach_disk;
mod auto_promote;
mod come_back;
mod convert;
mod dial;
mod exports;
#[cfg(test)]
mod fake_loop;
#[cfg(test)]
mod fake_status;
mod handler_process;
mod handlers;
mod kernel_device;
mod notify;
mod peers;
mod running;
mod save_discarded;
mod signals;
mod socket_file;
mod sockets;
mod state;
mod strangers;
mod supervisor;
mod volumes;
mod why;

use crate::config;
pub(crate) use kernel_device::claimant;
use std::path::PathBuf;
use std::sync::Arc;
use supervisor::Supervisor;

/// How a daemon is started.
#[derive(Debug, Clone)]
pub(crate) struct DaemonOptions {
    /// Directory of the `*.toml` files.
    pub(crate) config_dir: PathBuf,
    /// Directory for what must survive a restart.
    pub(crate) state_dir: PathBuf,
    /// This node's name; the host's name if absent.
    pub(crate) node: Option<String>,
    /// Path of the control socket.
    pub(crate) control: PathBuf,
}

/// Why the daemon ended or did not start. The texts say what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(#[from] config::ConfigErrors),
    /// Another daemon has the state directory or the control socket.
    #[error("{0}")]
    InUse(String),
    /// The system refuses something.
    #[error("{0}")]
    System(String),
    /// A second signal cut the orderly end short.
    #[error("{0}")]
    CutShort(String, signals::Signal),
}

impl DaemonError {
    /// The exit code the command line ends with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 21,
            Self::InUse(_) => 12,
            Self::System(_) => 10,
            Self::CutShort(_, signal) => signal.exit_code(),
        }
    }
}

/// Runs the daemon until SIGTERM or SIGINT; then every resource is taken down in order.
pub(crate) fn run(options: DaemonOptions) -> Result<(), DaemonError> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A second call (tests) keeps the first subscriber.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .try_init();
    if let Err(e) = raise_descriptor_limit() {
        tracing::warn!(
            "the limit of open files stays as it is ({e}); many clients at once may use it up"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| DaemonError::System(format!("the runtime cannot be started: {e}")))?;
    let result = runtime.block_on(serve(options));
    // A disk that does not answer may still hold a thread that opens it.
    runtime.shutdown_background();
    result
}

/// Allows as many open files as this process may have: what shells and service managers set at first
/// (1024) is for programs that use select(2).
fn raise_descriptor_limit() -> rustix::io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum })
}

async fn serve(options: DaemonOptions) -> Result<(), DaemonError> {
    // First of all, so that a signal never finds resources up and nobody to take them down.
    let mut signals = signals::Signals::install()
        .map_err(|e| DaemonError::System(format!("signals cannot be received: {e}")))?;
    let config = config::load(&options.config_dir, options.node.as_deref())?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let state = state::StateDir::open(&options.state_dir)?;
    let (listener, _socket) = api::listen(&options.control).await?;
    let supervisor = Arc::new(Supervisor::new(options.clone(), config, state));
    supervisor.listen_for_peers().await;
    let api = tokio::spawn(api::serve(listener, Arc::clone(&supervisor)));
    let watch = tokio::spawn(notify::watch(Arc::clone(&supervisor), api.abort_handle()));
    let life = async {
        supervisor.bring_back().await;
        let control = options.control.display();
        tracing::info!(node = supervisor.node_name(), %control, "ready");
        notify::ready();
        std::future::pending::<()>().await;
    };
    let signal = tokio::select! {
        signal = signals.next() => signal,
        () = life => unreachable!("it lives until a signal comes"),
    };
    tracing::info!("{signal}: every resource is taken down");
    watch.abort();
    notify::stopping("every resource is taken down");
    let result = tokio::select! {
        () = supervisor.stop_all(supervisor::STOP_ALL_TIME) => Ok(()),
        second = signals.next() => {
            let left = supervisor.running_names().join(", ");
            tracing::warn!("{second}, the second signal: the daemon ends at once; still up: {left}");
            Err(DaemonError::CutShort(
                format!(
                    "a second signal ({second}) ended the daemon before these resources were \
                     down: {left}; a Primary among them counts as crashed and resyncs more than \
                     needed at the next start"
                ),
                second,
            ))
        }
    };
    api.abort();
    result
}

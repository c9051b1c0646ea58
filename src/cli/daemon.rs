//! `twinblk daemon`: hands the command line over to the daemon.

use super::args;
use super::exit::CliError;
use crate::daemon::DaemonOptions;
use std::path::PathBuf;

/// Runs the daemon until it is told to stop.
pub(super) fn run(args: &args::Daemon, control: PathBuf) -> Result<(), CliError> {
    let options = DaemonOptions {
        config_dir: args.config.clone(),
        state_dir: args.state.clone(),
        node: args.node.clone(),
        control,
    };
    crate::daemon::run(options).map_err(|error| CliError {
        code: error.exit_code(),
        what: error.to_string(),
        next: String::new(),
    })
}

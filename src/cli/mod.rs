//! The command line: one verb, one function. Verbs that need no daemon are in the files
//! `*_md.rs` and in [`demo`]; all others ask the daemon through [`client`].

pub(crate) mod args;
mod check_md;
mod client;
mod create_md;
mod daemon;
mod demo;
mod demo_nbd;
mod demo_nodes;
mod demo_watch;
mod discarded;
mod disk;
mod dump_md;
mod events;
mod exit;
#[cfg(test)]
mod fake_daemon;
mod hook;
mod hook_intent;
mod hook_score;
mod human;
#[cfg(test)]
mod md_bench;
mod md_json;
mod move_md;
mod orders;
mod restore_md;
mod show;
mod signatures;
mod status_text;
mod wait;
mod wait_verdict;
mod why;

use args::{Cli, Verb};
use clap::Parser;
use client::Client;
use exit::{CliError, Code};
use std::io::Write;
use std::process::ExitCode;

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // `--help` and `--version` come here too, and are no errors.
            return ExitCode::from(if error.use_stderr() {
                Code::Usage as u8
            } else {
                0
            });
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::from(Code::Ok as u8),
        Err(error) => {
            // `hook status` says all there is to say on standard output.
            if !error.what.is_empty() {
                eprintln!("{error}");
            }
            ExitCode::from(error.code)
        }
    }
}

fn run(cli: Cli) -> Result<(), CliError> {
    let control = cli.control();
    match &cli.verb {
        Verb::CreateMd(args) => return create_md::run(args),
        Verb::DumpMd(args) => return dump_md::run(args),
        Verb::RestoreMd(args) => return restore_md::run(args),
        Verb::CheckMd(args) => return check_md::run(args),
        Verb::MoveMd(args) => return move_md::run(args),
        Verb::Discarded(verb) => return discarded::run(verb),
        Verb::Dump {
            resource,
            local:
                args::LocalOptional {
                    config: Some(dir),
                    node,
                },
        } => {
            return orders::dump_files(dir, node.as_deref(), &resource.name);
        }
        Verb::Daemon(args) => return daemon::run(args, control),
        Verb::Demo => return demo::run(),
        Verb::ClaimDevice { index } => {
            let failed = |e: std::io::Error| CliError::new(Code::Other, e.to_string(), "");
            return crate::daemon::claimant::run(*index).map_err(failed);
        }
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| {
        CliError::new(
            Code::Other,
            format!("the asynchronous runtime does not start: {e}"),
            "",
        )
    })?;
    let client = Client::new(control.clone());
    if let Verb::Hook(args) = &cli.verb {
        return runtime.block_on(hook::run(&client, &control, args));
    }
    runtime.block_on(ask_daemon(&client, cli.verb))
}

async fn ask_daemon(client: &Client, verb: Verb) -> Result<(), CliError> {
    match verb {
        Verb::Role(resource) => show::role(client, &resource.name).await,
        Verb::Cstate(resource) => show::cstate(client, &resource.name).await,
        Verb::Dstate(resource) => show::dstate(client, &resource.name).await,
        Verb::Status { resource, json } => show::status(client, &resource.name, json).await,
        Verb::Why {
            resource,
            question,
            json,
        } => why::run(client, &resource.name, question, json).await,
        Verb::Events {
            resource,
            json,
            now,
        } => events::run(client, &resource.name, json, now).await,
        Verb::WaitConnect(args) => wait::run(client, &args, wait::Goal::Connect).await,
        Verb::WaitSync(args) => wait::run(client, &args, wait::Goal::Sync).await,
        verb => match orders::order_of(&verb) {
            Some(order) => orders::run(client, &order).await,
            None => unreachable!("{verb:?} needs no daemon"),
        },
    }
}

/// Prints to standard output. A reader that has gone away (`twinblk status | head -1`) is no error.
fn print(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(CliError::new(
            Code::Other,
            format!("the output cannot be written: {e}"),
            "",
        )),
        _ => Ok(()),
    }
}

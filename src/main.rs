//! twinblk: a block device that lives on two machines, in user space.

mod api;
mod cli;
mod config;
mod daemon;
mod discarded;
mod driver;

fn main() -> std::process::ExitCode {
    cli::main()
}

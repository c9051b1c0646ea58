//! One run of a handler as a process: its own process group, nothing on its standard input, the end of
//! what it says kept.
//!
//! Invariants:
//! * the run ends, whatever the program does: at its time limit its group gets SIGTERM, after
//!   [`GRACE`] SIGKILL;
//! * a group is signalled only while its leader is not reaped: the number cannot be another's.

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::collections::VecDeque;
use std::fmt::Write;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// How long a group may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);
/// Bytes kept of what it says.
const TAIL: usize = 2048;

/// How a run ended.
#[derive(Debug)]
pub(super) enum End {
    /// By itself.
    Exited(ExitStatus),
    /// Its time was over, or nobody wanted its answer any more.
    Killed,
}

/// How far the end of a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Runs,
    Asked,
    Killed,
}

/// A process that runs. Dropped before it has ended, it takes its whole group with it.
#[derive(Debug)]
pub(super) struct HandlerProcess {
    child: Child,
    group: Pid,
    pidfd: AsyncFd<OwnedFd>,
    output: Output,
    ended: bool,
}

/// The end of what a process says.
#[derive(Debug)]
struct Output {
    pipe: Option<AsyncFd<OwnedFd>>,
    tail: VecDeque<u8>,
}

impl Drop for HandlerProcess {
    fn drop(&mut self) {
        if !self.ended {
            // It may just have ended by itself.
            let _ = kill_process_group(self.group, Signal::KILL);
        }
    }
}

impl HandlerProcess {
    /// Starts `command` in a shell, with this environment and no other.
    pub(super) fn start(command: &str, environment: &[(String, String)]) -> io::Result<Self> {
        let flags = rustix::pipe::PipeFlags::CLOEXEC;
        let (reader, writer) = rustix::pipe::pipe_with(flags)?;
        rustix::io::ioctl_fionbio(&reader, true)?;
        let pipe = AsyncFd::register(reader)?;
        let child = Command::new("/bin/sh")
            .arg("-c")
            .arg(command)
            .current_dir("/")
            .env_clear()
            .envs(environment.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0)
            .spawn()?;
        let number = child.id().and_then(|id| i32::try_from(id).ok());
        let group = number.and_then(Pid::from_raw).ok_or(io::ErrorKind::Other)?;
        let pidfd = pidfd_open(group, PidfdFlags::NONBLOCK)
            .map_err(io::Error::from)
            .and_then(AsyncFd::register);
        let pidfd = match pidfd {
            Ok(pidfd) => pidfd,
            Err(error) => {
                let _ = kill_process_group(group, Signal::KILL);
                return Err(error);
            }
        };
        let output = Output {
            pipe: Some(pipe),
            tail: VecDeque::new(),
        };
        Ok(Self {
            child,
            group,
            pidfd,
            output,
            ended: false,
        })
    }

    /// Waits for its end, at most `limit`, and not after `cut` is ready.
    pub(super) async fn end(
        &mut self,
        limit: Duration,
        cut: impl Future<Output = ()>,
    ) -> io::Result<End> {
        tokio::pin!(cut);
        let (mut stage, mut cut_off) = (Stage::Runs, false);
        let mut next = Instant::now() + limit;
        loop {
            tokio::select! {
                // Until it is reaped below, its number stays its own.
                ready = self.pidfd.readable() => {
                    ready?.retain_ready();
                    break;
                }
                () = self.output.read(), if self.output.pipe.is_some() => {}
                () = &mut cut, if !cut_off => {
                    cut_off = true;
                    if stage == Stage::Runs {
                        next = Instant::now();
                    }
                }
                () = tokio::time::sleep_until(next) => {
                    let signal = match stage {
                        Stage::Runs => (Stage::Asked, Signal::TERM),
                        Stage::Asked => (Stage::Killed, Signal::KILL),
                        // It waits in the kernel; it is reaped when it can be.
                        Stage::Killed => return Ok(End::Killed),
                    };
                    stage = signal.0;
                    // It may just have ended.
                    let _ = kill_process_group(self.group, signal.1);
                    next = Instant::now() + GRACE;
                }
            }
        }
        let killed = stage != Stage::Runs;
        if killed {
            // Those of the group that SIGTERM did not end.
            let _ = kill_process_group(self.group, Signal::KILL);
        }
        self.ended = true;
        self.output.drain();
        let status = self.child.wait().await?;
        Ok(if killed {
            End::Killed
        } else {
            End::Exited(status)
        })
    }

    /// The last lines of what it said, in one line; empty if it said nothing.
    pub(super) fn said(&self) -> String {
        let bytes: Vec<u8> = self.output.tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let lines: Vec<&str> = lines.into_iter().filter(|l| !l.is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(5)..];
        let mut said = String::new();
        for c in last.join(" | ").chars() {
            match c {
                c if c.is_control() => {
                    let _ = write!(said, "{}", c.escape_default());
                }
                c => said.push(c),
            }
        }
        said
    }
}

impl Output {
    /// Reads what there is; waits when there is nothing.
    async fn read(&mut self) {
        let Some(pipe) = &self.pipe else { return };
        match pipe.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => self.pipe = None,
        }
        self.drain();
    }

    /// Reads what there is.
    fn drain(&mut self) {
        let mut buffer = [0; 4096];
        while let Some(pipe) = &self.pipe {
            match rustix::io::read(pipe.get_ref(), &mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(n) => {
                    self.tail.extend(&buffer[..n]);
                    let excess = self.tail.len().saturating_sub(TAIL);
                    self.tail.drain(..excess);
                    if n < buffer.len() {
                        return;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => self.pipe = None,
            }
        }
    }
}

/// An exit status in words, with what shells mean by it.
pub(super) fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(127), _) => "exit code 127 (the shell did not find the program)".into(),
        (Some(126), _) => "exit code 126 (the shell could not execute the program)".into(),
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => format!("{status}"),
    }
}

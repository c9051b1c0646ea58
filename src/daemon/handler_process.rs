//! One run of a handler as a process: its own process group, nothing on its standard input, the end of
//! what it says kept.
//!
//! Invariants:
//! * the run ends, whatever the program does: at its time limit its group gets SIGTERM, after
//!   [`GRACE`] SIGKILL;
//! * a group is signalled only while its leader is not reaped: the number cannot be another's.

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::collections::VecDeque;
use std::fmt::Write;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
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
    /// Some child has ended.
    children: tokio::signal::unix::Signal,
    output: Output,
    ended: bool,
}

/// The end of what a process says.
#[derive(Debug)]
struct Output {
    pipe: Option<Receiver>,
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
        // Listened to from before there is anything to hear.
        let children = signal(SignalKind::child())?;
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let pipe = Receiver::from_owned_fd(reader)?;
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
        let output = Output {
            pipe: Some(pipe),
            tail: VecDeque::new(),
        };
        Ok(Self {
            child,
            group,
            children,
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
        // Until it is reaped below, its number stays its own.
        while !self.has_ended()? {
            tokio::select! {
                _ = self.children.recv() => {}
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

    /// Whether the leader has ended; it is not reaped.
    fn has_ended(&self) -> io::Result<bool> {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(self.group), look)?.is_some())
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
        let mut buffer = [0; 4096];
        let read = match pipe.readable().await {
            Ok(()) => pipe.try_read(&mut buffer),
            Err(error) => Err(error),
        };
        match read {
            Ok(0) => self.pipe = None,
            Ok(n) => self.keep(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.pipe = None,
        }
    }

    /// Reads what is left when the process has ended. Whoever it left behind may write on: unread.
    fn drain(&mut self) {
        let Some(Ok(pipe)) = self.pipe.take().map(Receiver::into_nonblocking_fd) else {
            return;
        };
        let mut buffer = [0; 4096];
        // No more than a pipe holds.
        for _ in 0..16 {
            match rustix::io::read(&pipe, &mut buffer) {
                Ok(n) if n > 0 => self.keep(&buffer[..n]),
                Err(rustix::io::Errno::INTR) => {}
                _ => return,
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
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

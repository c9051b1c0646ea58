//! A process that claims a kernel device in the daemon's place.
//!
//! Invariant: the daemon itself never waits for a device it serves. A thread that does cannot be killed, and
//! keeps the whole process's files: the lock of the state directory and every resource's disks would outlive
//! a daemon that was killed, and the next one could not start. So another process opens the device; it
//! inherits two pipes and nothing else, and is killed and forgotten when its time is over.
//!
//! It says `open` when the device is claimed, is told to go on, says `clean` when everything is written, and
//! lets go of the device when its input ends; or `failed ERRNO`, and ends.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io::{self, BufRead, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The verb of the command line that runs it.
pub(crate) const VERB: &str = "claim-device";
/// What the process is called, for who looks at the list of processes.
pub(super) const NAME: &str = "twinblk-claim";
/// No line is longer.
const LINE: usize = 64;

/// The other process. Dropped, it lets go of the device.
#[derive(Debug)]
pub(super) struct Claimant {
    /// Until it is dropped.
    child: Option<Child>,
    id: u32,
    input: Option<ChildStdin>,
    output: ChildStdout,
    /// When its time is over.
    end: Instant,
}

impl Claimant {
    /// Starts it for /dev/nbd`index`; for everything it does it has `limit`.
    pub(super) fn start(index: u32, limit: Duration) -> io::Result<Self> {
        // The program that runs, also when its file was replaced since.
        let mut command = Command::new("/proc/self/exe");
        command.arg(VERB).arg(index.to_string());
        Self::run(command, limit)
    }

    fn run(mut command: Command, limit: Duration) -> io::Result<Self> {
        use std::os::unix::process::CommandExt;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .env_clear()
            .current_dir("/")
            // A signal from the terminal is for the daemon.
            .process_group(0)
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        Ok(Self {
            id: child.id(),
            child: Some(child),
            input: Some(input),
            output,
            end: Instant::now() + limit,
        })
    }

    /// Its process id.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Waits until it has claimed the device.
    pub(super) fn wait_open(&mut self) -> io::Result<()> {
        self.expect("open")
    }

    /// Has everything written out that is in the kernel's cache, and waits for it.
    pub(super) fn clean(&mut self) -> io::Result<()> {
        if let Some(input) = &mut self.input {
            input.write_all(b"go on\n")?;
        }
        self.expect("clean")
    }

    fn expect(&mut self, word: &str) -> io::Result<()> {
        let line = self.line()?;
        if line == word {
            return Ok(());
        }
        let errno = line.strip_prefix("failed ").and_then(|n| n.parse().ok());
        Err(match errno {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the process that claims the device ended, or said \"{line}\""),
            ),
        })
    }

    /// The next line it says, as long as there is time.
    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        loop {
            let left = self.end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(|_| Errno::OVERFLOW)?;
            let mut watched = [PollFd::new(&self.output, PollFlags::IN)];
            match poll(&mut watched, Some(&timeout)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            let mut byte = [0];
            let count = self.output.read(&mut byte)?;
            if count == 0 || byte[0] == b'\n' || line.len() == LINE {
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            line.push(byte[0]);
        }
    }
}

impl Drop for Claimant {
    fn drop(&mut self) {
        drop(self.input.take());
        let Some(mut child) = self.child.take() else {
            return;
        };
        let _ = child.kill();
        // One that waits for the device ends when the device does: nothing here waits for that. If there
        // can be no thread it stays in the list of processes, and nothing else comes of it.
        let _ = std::thread::Builder::new().spawn(move || child.wait());
    }
}

/// The process itself.
pub(crate) fn run(index: u32) -> io::Result<()> {
    let _ = rustix::thread::set_name(&std::ffi::CString::new(NAME).unwrap_or_default());
    let device = format!("/dev/nbd{index}");
    claim(Path::new(&device), &mut io::stdin().lock(), io::stdout())
}

/// Claims a file: see the module for what is said.
fn claim(device: &Path, input: &mut impl BufRead, mut output: impl Write) -> io::Result<()> {
    // Not for writing: that would make udev look at it again.
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    let opened = rustix::fs::open(device, flags, Mode::empty());
    let mut say = |result: Result<&str, &Errno>| {
        match result {
            Ok(word) => writeln!(output, "{word}")?,
            Err(errno) => writeln!(output, "failed {}", errno.raw_os_error())?,
        }
        output.flush()
    };
    say(opened.as_ref().map(|_| "open"))?;
    let Ok(device) = opened else {
        return Ok(());
    };
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(());
    }
    // Who closed it while the claim was there did not have his writes written out.
    let written = rustix::fs::fsync(&device);
    say(written.as_ref().map(|()| "clean"))?;
    // Until it is let go.
    while input.read_line(&mut line)? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(100);

    fn shell(script: &str, limit: Duration) -> Claimant {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Claimant::run(command, limit).expect("a shell")
    }

    fn said(path: &Path, input: &str) -> String {
        let mut output = Vec::new();
        claim(path, &mut input.as_bytes(), &mut output).expect("nothing fails");
        String::from_utf8(output).expect("text")
    }

    #[test]
    fn it_says_what_it_does() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert_eq!(said(file.path(), ""), "open\n");
        assert_eq!(said(file.path(), "go on\n"), "open\nclean\n");
        let nothing = file.path().join("nothing");
        assert_eq!(
            said(&nothing, ""),
            format!("failed {}\n", Errno::NOTDIR.raw_os_error())
        );
    }

    #[test]
    fn the_daemon_hears_it() {
        let mut claimant = shell("echo open; read line; echo clean; read line", LONG);
        claimant.wait_open().expect("it is open");
        claimant.clean().expect("it is clean");
        let mut claimant = shell("echo failed 16", LONG);
        let error = claimant.wait_open().expect_err("it is busy");
        assert_eq!(Errno::from_io_error(&error), Some(Errno::BUSY));
        let mut claimant = shell("echo what", LONG);
        assert!(claimant.wait_open().is_err());
        let mut claimant = shell("exit", LONG);
        assert!(claimant.wait_open().is_err());
    }

    #[test]
    fn one_that_hangs_is_given_up_and_ends() {
        let mut claimant = shell("echo open; exec sleep 1000", Duration::from_millis(200));
        // It may have said so before its time was over, or not.
        let _ = claimant.wait_open();
        let error = claimant.clean().expect_err("it hangs");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let process = format!("/proc/{}", claimant.id());
        assert!(Path::new(&process).exists());
        drop(claimant);
        let began = Instant::now();
        while Path::new(&process).exists() {
            assert!(began.elapsed() < LONG, "{process} goes on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn it_inherits_nothing_but_its_pipes() {
        let file = tempfile::tempfile().expect("a file of the daemon");
        let mut claimant = shell(
            "ls /proc/$$/fd | while read n; do [ $n -gt 2 ] && readlink /proc/$$/fd/$n; done | grep -c ^/tmp; env | grep -c CARGO",
            LONG,
        );
        assert_eq!(claimant.line().expect("a number"), "0");
        assert_eq!(claimant.line().expect("a number"), "0");
        drop(file);
    }
}

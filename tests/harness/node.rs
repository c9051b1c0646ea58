//! One node: its daemon as a process, its disk, its export, and the command line to ask it.

use super::wait_for;
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

/// The program under test.
pub const TWINBLK: &str = env!("CARGO_BIN_EXE_twinblk");

/// See the module. Its daemon dies with it.
#[derive(Debug)]
pub struct Node {
    pub name: &'static str,
    pub disk: PathBuf,
    pub export: PathBuf,
    pub control: PathBuf,
    pub state: PathBuf,
    pub log: PathBuf,
    pub config: PathBuf,
    /// The network namespace it lives in.
    space: Option<String>,
    child: Option<Child>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Node {
    pub fn new(name: &'static str, directory: &Path, space: Option<String>) -> Self {
        let file = |suffix: &str| directory.join(format!("{name}{suffix}"));
        Self {
            name,
            disk: file(".img"),
            export: file(".nbd"),
            control: file(".ctl"),
            state: file(".state"),
            log: file(".log"),
            config: directory.join("config"),
            space,
            child: None,
        }
    }

    /// The command that starts its daemon, not yet started.
    pub fn daemon_command(&self) -> Command {
        let mut command = match &self.space {
            Some(space) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", space, TWINBLK]);
                command
            }
            None => Command::new(TWINBLK),
        };
        command
            .args(["daemon", "--node", self.name, "--config"])
            .arg(&self.config)
            .arg("--state")
            .arg(&self.state)
            .arg("--control")
            .arg(&self.control)
            .stdin(Stdio::null());
        command
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("a log file");
        let mut child = self
            .daemon_command()
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        wait_for(
            "the daemon to answer",
            || {
                if let Some(status) = child.try_wait().expect("a child") {
                    panic!("{} ended: {status}\n{}", self.name, self.log_text());
                }
                // Connecting is not enough: the socket of a killed daemon still lies there.
                self.run(&["status", "--json"])
                    .status
                    .success()
                    .then_some(())
            },
            || self.log_text(),
        );
        self.child = Some(child);
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.pid().to_string()])
            .status();
        assert!(status.expect("kill runs").success());
    }

    /// `kill -9`: no goodbye, nothing written out.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and it must end by itself, with success.
    pub fn terminate(&mut self) {
        self.signal("TERM");
        let status = self.wait_end();
        assert!(status.success(), "{status}\n{}", self.log_text());
    }

    /// Waits until it has ended.
    pub fn wait_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        wait_for(
            "the daemon to end",
            || child.try_wait().expect("a child"),
            || self.log_text(),
        )
    }

    /// It was started and not stopped.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|c| matches!(c.try_wait(), Ok(None)))
    }

    /// The command line, not yet run. Verbs that work without a daemon get the configuration.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(TWINBLK);
        command.args(args);
        // `create-md`, `dump-md` and the like.
        if args[0].ends_with("-md") {
            command
                .args(["--node", self.name, "--config"])
                .arg(&self.config);
        } else {
            command.arg("--control").arg(&self.control);
        }
        command.stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program runs")
    }

    /// Runs a command that must succeed; returns what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = texts(&output);
        assert!(
            output.status.success(),
            "{} on {}: {}\n{out}{err}\n{}",
            args.join(" "),
            self.name,
            output.status,
            self.log_text()
        );
        out
    }

    /// Runs a command that must fail with this exit code; returns its error text.
    pub fn refused(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = texts(&output);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{} on {}\n{out}{err}\n{}",
            args.join(" "),
            self.name,
            self.log_text()
        );
        assert!(!err.trim().is_empty(), "an error has a text");
        err
    }

    /// The state of r0 as JSON.
    pub fn status(&self) -> Value {
        let text = self.ok(&["status", "r0", "--json"]);
        let all: Value = serde_json::from_str(&text).expect("JSON");
        all[0].clone()
    }

    /// Waits until the state of r0 is as wanted; returns it.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let last = std::cell::RefCell::new(Value::Null);
        wait_for(
            &format!("{}: {what}", self.name),
            || {
                let status = self.status();
                let good = wanted(&status);
                last.replace(status.clone());
                good.then_some(status)
            },
            || format!("{:#}\n{}", last.borrow(), self.log_text()),
        )
    }

    pub fn wait_connection(&self, state: &str) -> Value {
        self.wait(state, |s| s["peers"][0]["connection"] == state)
    }

    /// Bytes of the volume as clients see it.
    pub fn data_size(&self) -> u64 {
        self.status()["volumes"][0]["size"]
            .as_u64()
            .expect("a size")
    }

    /// What the disk file holds.
    pub fn disk_content(&self, size: u64) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(size).expect("fits")];
        let mut file = File::open(&self.disk).expect("the disk");
        file.read_exact(&mut content).expect("long enough");
        content
    }

    pub fn log_text(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(60)..];
        format!("--- log of {}:\n{}", self.name, last.join("\n"))
    }

    /// Resident memory of the daemon, bytes.
    pub fn memory(&self) -> u64 {
        self.memory_line("VmRSS:")
    }

    /// The most it ever was.
    pub fn peak_memory(&self) -> u64 {
        self.memory_line("VmHWM:")
    }

    fn memory_line(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("proc");
        let line = text.lines().find(|l| l.starts_with(name));
        let kib: u64 = line
            .and_then(|l| l.split_whitespace().nth(1))
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {text}"));
        kib * 1024
    }

    /// Listens to the events of r0 from now on.
    pub fn events(&self) -> Events {
        let path = self.log.with_extension("events");
        let file = File::create(&path).expect("a file");
        let child = self
            .command(&["events", "r0", "--json"])
            .stdout(file)
            .spawn()
            .expect("it runs");
        let events = Events { child, path };
        // What happens from here on is told; before, it might be missed.
        events.wait("the present state", |e| e["kind"] == "exists");
        events
    }
}

/// A running `twinblk events --json`.
#[derive(Debug)]
pub struct Events {
    child: Child,
    path: PathBuf,
}

impl Events {
    pub fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.path).expect("the file");
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|l| serde_json::from_str(l).expect("JSON"))
            .collect()
    }

    /// Waits for an event.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(
            what,
            || self.lines().into_iter().find(&wanted),
            || format!("{:#?}", self.lines()),
        )
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

//! A machine: processes in namespaces of their own (mounts, host name, processes, IPC), with the network of
//! [`super::lan`] and a root of its own, an overlay over the real one. It can lose its power and boot again.

use crate::harness::tools;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// See the module. Everything in it dies with it.
#[derive(Debug)]
pub struct Machine {
    pub name: &'static str,
    space: String,
    directory: PathBuf,
    process: Option<Child>,
}

impl Machine {
    pub fn new(name: &'static str, space: &str, directory: &Path) -> Self {
        let directory = directory.join(name);
        std::fs::create_dir(&directory).expect("a directory");
        Self {
            name,
            space: space.to_owned(),
            directory,
            process: None,
        }
    }

    /// Starts the first process and waits until it has made the root.
    pub fn boot(&mut self) {
        let init = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/init");
        // With the test, however that ends, everything in it ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "ip", "netns", "exec", &self.space])
            .args(["unshare", "-m", "-i", "-u", "-p", "-f", "--kill-child"])
            .args(["/bin/sh", init, self.name])
            .arg(&self.directory)
            .stdin(Stdio::null())
            .spawn()
            .expect("it starts");
        self.process = Some(child);
        crate::wait(
            "the machine to boot",
            || {
                self.root()
                    .and_then(|r| r.join("run/booted").exists().then_some(()))
            },
            || format!("{} does not boot", self.name),
        );
    }

    /// What it holds as its root, seen from outside.
    fn root(&self) -> Option<PathBuf> {
        Some(PathBuf::from(format!("/proc/{}/root", self.init()?)))
    }

    /// Number of its first process.
    fn init(&self) -> Option<u32> {
        let outer = self.process.as_ref()?.id();
        let list = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).ok()?;
        list.split_whitespace().next()?.parse().ok()
    }

    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// The power is cut: every process is gone at once.
    pub fn power_off(&mut self) {
        let init = self.init();
        if let Some(mut child) = self.process.take() {
            if let Some(init) = init {
                let _ = Command::new("kill")
                    .args(["-9", &init.to_string()])
                    .status();
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Writes a file into its root.
    pub fn write(&self, path: &str, text: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        let file = self
            .root()
            .expect("it runs")
            .join(path.trim_start_matches('/'));
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
        std::fs::write(&file, text).expect("a file");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("its mode");
    }

    /// A shell command in it, not yet run.
    pub fn command(&self, script: &str) -> Command {
        let init = self.init().expect("it runs");
        let mut command = Command::new("nsenter");
        command
            .args([
                "-t",
                &init.to_string(),
                "-m",
                "-i",
                "-u",
                "-n",
                "-p",
                "-r",
                "-w",
            ])
            .args(["env", "-i", "HOME=/root", "TERM=dumb", "LC_ALL=C"])
            .args([
                "PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
                "/bin/sh",
                "-c",
            ])
            .arg(script)
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, script: &str) -> Output {
        tools::try_run(&mut self.command(script))
    }

    /// Runs a command that must succeed; returns what it printed.
    pub fn ok(&self, script: &str) -> String {
        let output = self.run(script);
        let (out, err) = crate::harness::node::texts(&output);
        assert!(
            output.status.success(),
            "{}: {script}: {}\n{out}{err}",
            self.name,
            output.status
        );
        out
    }

    /// What a command prints, whatever becomes of it.
    pub fn say(&self, script: &str) -> String {
        if !self.runs() {
            return "(off)".into();
        }
        let (out, err) = crate::harness::node::texts(&self.run(script));
        out + &err
    }

    /// Starts something that goes on by itself; its words are in /var/log/NAME.log.
    pub fn spawn(&self, name: &str, script: &str) {
        self.write(
            &format!("/run/spawn-{name}"),
            &format!("#!/bin/sh\nexec >>/var/log/{name}.log 2>&1\n{script}\n"),
            0o755,
        );
        self.ok(&format!("setsid -f /run/spawn-{name} >/dev/null 2>&1"));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.power_off();
    }
}

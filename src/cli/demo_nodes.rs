//! The demo's stage: a temporary directory and two daemons in it, both gone when it is dropped.

use super::client::Client;
use super::exit::{CliError, Code};
use std::fs::{DirBuilder, File};
use std::io::{Error, Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A socket's path must fit into 107 bytes, with the longest name we use in it.
const LONGEST_DIRECTORY: usize = 70;

/// How long a daemon may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// A directory that is removed with everything in it.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) directory: PathBuf,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Stage {
    /// Makes the directory, for nobody else to look into.
    pub(super) fn new() -> Result<Self, CliError> {
        let mut parent = std::env::temp_dir();
        if parent.as_os_str().len() > LONGEST_DIRECTORY {
            parent = PathBuf::from("/tmp");
        }
        let random = getrandom::u64().map_err(|e| failed("random numbers", &e.to_string()))?;
        let directory = parent.join(format!("twinblk-demo-{random:016x}"));
        let made = DirBuilder::new().mode(0o700).create(&directory);
        made.map_err(|e| failed(&directory.display().to_string(), &e.to_string()))?;
        Ok(Self { directory })
    }

    /// Two nodes with a disk of `size` bytes each, and the configuration both share.
    pub(super) fn nodes(&self, size: u64) -> Result<[Node; 2], CliError> {
        let build = || -> std::io::Result<[Node; 2]> {
            let nodes = [
                self.node("alpha", 0, "127.0.0.1")?,
                self.node("bravo", 1, "127.0.0.2")?,
            ];
            for node in &nodes {
                File::create(&node.disk)?.set_len(size)?;
                std::fs::create_dir(&node.state)?;
            }
            let config = self.config();
            DirBuilder::new().mode(0o700).create(&config)?;
            let mut options = File::options();
            options.create_new(true).write(true).mode(0o600);
            options
                .open(config.join("r0.toml"))?
                .write_all(resource_file(&nodes)?.as_bytes())?;
            Ok(nodes)
        };
        build().map_err(|e| failed("the demo's files", &e.to_string()))
    }

    /// The configuration directory of both nodes.
    pub(super) fn config(&self) -> PathBuf {
        self.directory.join("config")
    }

    fn node(&self, name: &'static str, id: u8, ip: &str) -> std::io::Result<Node> {
        let file = |suffix: &str| self.directory.join(format!("{name}{suffix}"));
        // A port nobody uses at the moment; it stays free until the daemon takes it.
        let port = TcpListener::bind((ip, 0))?.local_addr()?.port();
        Ok(Node {
            name,
            id,
            address: format!("{ip}:{port}"),
            disk: file(".img"),
            export: file(".nbd"),
            control: file(".control"),
            state: file(".state"),
            log: file(".log"),
            config: self.config(),
            child: None,
        })
    }
}

fn resource_file(nodes: &[Node; 2]) -> std::io::Result<String> {
    let random = getrandom::u64().map_err(|e| Error::other(e.to_string()))?;
    let mut text = format!("[resource]\nname = \"r0\"\nshared-secret = \"{random:016x}\"\n");
    for node in nodes {
        text += &format!(
            "\n[node.{}]\nid = {}\naddress = \"{}\"\ndisk = \"{}\"\nmeta-disk = \"internal\"\n\
             export = \"unix:{}\"\n",
            node.name,
            node.id,
            node.address,
            node.disk.display(),
            node.export.display()
        );
    }
    Ok(text)
}

/// A node of the demo; its daemon dies with it.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: &'static str,
    id: u8,
    address: String,
    pub(super) disk: PathBuf,
    pub(super) export: PathBuf,
    control: PathBuf,
    state: PathBuf,
    log: PathBuf,
    config: PathBuf,
    child: Option<Child>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Node {
    /// To talk to its daemon.
    pub(super) fn client(&self) -> Client {
        Client::new(self.control.clone())
    }

    /// Starts the daemon and waits until it answers.
    pub(super) async fn start(&mut self) -> Result<(), CliError> {
        let child = self
            .spawn()
            .map_err(|e| failed("a daemon", &e.to_string()))?;
        self.child = Some(child);
        let start = Instant::now();
        loop {
            match self.client().list().await {
                Ok(_) => return Ok(()),
                Err(e) if e.code != Code::NoDaemon as u8 => return Err(e),
                Err(e) if start.elapsed() > PATIENCE => return Err(e),
                Err(_) => {}
            }
            if let Some(child) = &mut self.child
                && let Ok(Some(status)) = child.try_wait()
            {
                let what = format!("the daemon of {} ended at once: {status}", self.name);
                return Err(CliError::new(Code::Other, what, ""));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("daemon")
            .args([
                Path::new("--config"),
                &self.config,
                Path::new("--state"),
                &self.state,
            ])
            .args([Path::new("--control"), &self.control])
            .args(["--node", self.name])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the demo, which then ends its daemons.
            .process_group(0);
        let parent = std::process::id();
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl and getppid
        // are plain system calls.
        unsafe {
            command.pre_exec(move || {
                // Should the demo itself be killed, its daemons must not stay behind.
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(Error::last_os_error());
                }
                if u32::try_from(libc::getppid()) != Ok(parent) {
                    return Err(Error::from_raw_os_error(libc::ESRCH));
                }
                Ok(())
            });
        }
        command.spawn()
    }

    /// `kill -9`: no goodbye, nothing written out.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks the daemon to end, and insists after a while.
    pub(super) async fn stop(&mut self) {
        if let Some(child) = &mut self.child {
            let pid = i32::try_from(child.id())
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            let start = Instant::now();
            while matches!(child.try_wait(), Ok(None)) && start.elapsed() < PATIENCE {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        self.kill();
    }

    /// The end of the daemon's log.
    pub(super) fn last_words(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            let size = file.metadata().map_or(0, |m| m.len());
            let _ = file.seek(SeekFrom::Start(size.saturating_sub(3000)));
            let _ = file.read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(15)..];
        format!("log of {}:\n  {}", self.name, last.join("\n  "))
    }
}

fn failed(what: &str, why: &str) -> CliError {
    CliError::new(Code::Other, format!("{what} could not be made: {why}"), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_one_we_accept() {
        let stage = Stage::new().unwrap();
        let nodes = stage.nodes(1 << 20).unwrap();
        for node in &nodes {
            let config = crate::config::load(&stage.config(), Some(node.name));
            let config = config.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(config.warnings, Vec::<String>::new());
            assert_eq!(config.resources[0].me.volumes[0].disk, node.disk);
            assert_eq!(std::fs::metadata(&node.disk).unwrap().len(), 1 << 20);
        }
        assert_ne!(nodes[0].address, nodes[1].address);
    }

    #[test]
    fn nothing_is_left_behind() {
        let stage = Stage::new().unwrap();
        let directory = stage.directory.clone();
        let nodes = stage.nodes(1 << 20).unwrap();
        assert!(directory.exists());
        drop((nodes, stage));
        assert!(!directory.exists());
    }
}

//! A machine: QEMU with a real Debian kernel, to be switched on, told what to do, and cut off.
//!
//! Its processor is emulated (TCG), so nothing but QEMU is needed: no root, no /dev/kvm. It has
//! * disks ([`Disk`]), as /dev/vda and so on;
//! * eth0 to the host: 10.0.2.15, with ports of it reachable at an address of this host;
//! * eth1, a cable to the other machine of a pair: 10.9.0.NUMBER;
//! * a line over which scripts go in and their output comes out (`guest/init`), and one to the power switch
//!   of the pair ([`crate::power`]);
//! * a console, kept in a file; its end is printed when a test fails.
//!
//! A machine whose test program dies notices that its line is gone and powers off.

use crate::base64::{base64, unbase64};
use crate::disk::Disk;
use crate::harness::wait_for;
use crate::image::{debian, image};
use crate::power::Power;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What a machine boots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Root {
    /// A handful of programs in memory: there in a second.
    #[default]
    Small,
    /// A whole Debian with PostgreSQL, LVM and so on, and nothing running in it.
    Debian,
    /// The same, with systemd as the first process.
    Systemd,
}

/// See the module. It dies when dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    number: u32,
    root: Root,
    disks: Vec<PathBuf>,
    directory: PathBuf,
    address: String,
    listener: UnixListener,
    /// Whoever holds it can switch the machine off, at any moment.
    pub(crate) power: Power,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    line: BufReader<UnixStream>,
    scripts: u64,
}

/// What a script did.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) output: String,
}

/// Many times what a boot takes; a starved machine has been seen to need a minute.
const BOOT: Duration = Duration::from_secs(150);

/// Longer than any script takes on an emulated processor of a busy host.
const SCRIPT: Duration = Duration::from_secs(600);

/// What an emulated processor spends seconds on and a test does not need.
const BOOT_FAST: &str =
    "mitigations=off nokaslr noreplace-smp cryptomgr.notests no_timer_check lsm=lockdown";

/// Ports of a machine that can be reached from this host.
const PORTS: [u16; 1] = [10_809];

impl Machine {
    /// Machine `number`, 1 or 2, with its files in `directory`; switched off.
    pub(crate) fn new(
        name: &'static str,
        number: u32,
        root: Root,
        directory: &Path,
        disks: &[&Disk],
    ) -> Self {
        static MACHINES: AtomicU32 = AtomicU32::new(0);
        let unique = MACHINES.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let line = directory.join(format!("{name}.line"));
        let listener = UnixListener::bind(line).expect("a socket in a fresh directory");
        listener.set_nonblocking(true).expect("a socket option");
        Self {
            name,
            number,
            root,
            disks: disks.iter().map(|d| d.socket().to_owned()).collect(),
            directory: directory.to_owned(),
            // An address of its own, so that nothing else on this host uses its ports.
            address: format!(
                "127.{}.{}.{}",
                pid % 250 + 1,
                pid / 250 % 250,
                unique % 250 + 1
            ),
            listener,
            power: Power::new(name, directory),
            running: None,
        }
    }

    /// Where this host reaches port `port` of the machine.
    pub(crate) fn address(&self, port: u16) -> String {
        assert!(PORTS.contains(&port), "not forwarded");
        format!("{}:{port}", self.address)
    }

    fn file(&self, ends: &str) -> PathBuf {
        self.directory.join(format!("{}.{ends}", self.name))
    }

    fn command(&self) -> Command {
        let image = image();
        let mut qemu = Command::new("qemu-system-x86_64");
        let mut add = |option: &str, value: &str| {
            qemu.args([option, value]);
        };
        add("-name", self.name);
        add("-accel", "tcg");
        // Old enough to boot fast. Without SSE 4.2: QEMU computes its CRC instruction bit by bit, slower
        // than a table does.
        add("-cpu", "Nehalem,-sse4.2");
        let (memory, more) = match self.root {
            Root::Small => ("384", ""),
            Root::Debian => ("640", " twinblk.debian=agent"),
            Root::Systemd => ("640", " twinblk.debian=systemd"),
        };
        add("-m", memory);
        add("-display", "none");
        add("-kernel", &image.join("vmlinuz").display().to_string());
        add("-initrd", &image.join("initrd").display().to_string());
        add(
            "-append",
            &format!(
                "console=ttyS0 panic=-1 net.ifnames=0 twinblk.name={} twinblk.number={} \
                 {BOOT_FAST}{more}",
                self.name, self.number
            ),
        );
        let console = self.file("console");
        add(
            "-chardev",
            &format!("file,id=console,append=on,path={}", console.display()),
        );
        add("-serial", "chardev:console");
        add("-device", "virtio-serial-pci");
        let line = self.file("line");
        add(
            "-chardev",
            &format!("socket,id=line,path={}", line.display()),
        );
        add("-device", "virtserialport,chardev=line,name=host");
        // A machine that is alone has nobody to switch it off.
        if self.power.socket().exists() {
            let switch = self.power.socket().display();
            add("-chardev", &format!("socket,id=power,path={switch}"));
            add("-device", "virtserialport,chardev=power,name=power");
        }
        let forwards: String = PORTS
            .iter()
            .map(|port| format!(",hostfwd=tcp:{}:{port}-:{port}", self.address))
            .collect();
        add("-netdev", &format!("user,id=host,restrict=on{forwards}"));
        add("-device", "virtio-net-pci,netdev=host,romfile=");
        let ends = [self.number, 3 - self.number].map(|n| self.directory.join(format!("cable{n}")));
        add(
            "-netdev",
            &format!(
                "dgram,id=cable,local.type=unix,local.path={},remote.type=unix,remote.path={}",
                ends[0].display(),
                ends[1].display()
            ),
        );
        let mac = format!("52:54:00:77:00:{:02x}", self.number);
        add(
            "-device",
            &format!("virtio-net-pci,netdev=cable,romfile=,mac={mac}"),
        );
        for (at, disk) in self.disks.iter().enumerate() {
            add(
                "-blockdev",
                &format!(
                    "driver=nbd,node-name=disk{at},server.type=unix,server.path={},cache.direct=on",
                    disk.display()
                ),
            );
            add(
                "-device",
                &format!("virtio-blk-pci,drive=disk{at},write-cache=on,physical_block_size=4096"),
            );
        }
        if self.root != Root::Small {
            let file = debian().display();
            add(
                "-blockdev",
                &format!(
                    "driver=raw,node-name=debian,read-only=on,file.driver=file,\
                     file.locking=off,file.filename={file}"
                ),
            );
            add("-device", "virtio-blk-pci,drive=debian,serial=debian");
        }
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        qemu.stdin(Stdio::null());
        qemu
    }

    /// Switches it on. It boots while the caller does something else; [`Machine::ready`] waits.
    pub(crate) fn power_on(&mut self) {
        assert!(self.running.is_none(), "{} is on already", self.name);
        let qemu = self.command().spawn().unwrap_or_else(|e| {
            panic!("qemu-system-x86_64: {e}; `tests/run vm` installs what is needed")
        });
        self.power.on(qemu);
        let stream = wait_for(
            "QEMU to start",
            || {
                assert!(self.power.is_on(), "QEMU ended; its words are above");
                self.listener.accept().ok().map(|(stream, _)| stream)
            },
            || "it does not open the line".into(),
        );
        stream.set_nonblocking(false).expect("a socket option");
        self.running = Some(Running {
            line: BufReader::new(stream),
            scripts: 0,
        });
    }

    /// Waits until it has booted; returns its kernel's version. Nothing of ours runs in it yet, so a
    /// kernel that hangs at boot is switched off and on again, twice, and said aloud.
    pub(crate) fn ready(&mut self) -> String {
        for attempt in 0.. {
            match self.try_line(BOOT) {
                Ok(text) => {
                    let Some(kernel) = text.strip_prefix("ready ") else {
                        panic!("{} says {text:?} instead of ready", self.name);
                    };
                    return kernel.to_owned();
                }
                Err(error) if attempt < 2 => {
                    eprintln!("{} does not boot ({error}), once more", self.name);
                    eprintln!("{}\n{}", self.processor_time(), self.console());
                    self.cut();
                    self.power_on();
                }
                Err(error) => panic!("{} does not boot: {error}", self.name),
            }
        }
        unreachable!("it returns or panics")
    }

    /// How much QEMU has computed: tells a machine that hangs from one that is starved.
    fn processor_time(&self) -> String {
        let pid = self.power.pid();
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let words: Vec<&str> = text.split_whitespace().collect();
        format!(
            "QEMU's state and processor time, user and system, in 1/100 s: {:?}",
            [words.get(2), words.get(13), words.get(14),]
        )
    }

    fn try_line(&mut self, limit: Duration) -> std::io::Result<String> {
        let mut text = String::new();
        let line = &mut self.running.as_mut().expect("it is on").line;
        line.get_ref().set_read_timeout(Some(limit))?;
        line.read_line(&mut text)?;
        if !text.ends_with('\n') {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(text.trim_end().to_owned())
    }

    fn line(&mut self) -> String {
        self.try_line(SCRIPT).unwrap_or_else(|error| {
            panic!(
                "{} does not answer ({error}): it hangs or has died\n{}",
                self.name,
                self.processor_time()
            )
        })
    }

    /// Cuts the power: the processor stops between two instructions. Its disks lose power separately
    /// ([`Disk::cut`]).
    pub(crate) fn cut(&mut self) {
        self.running = None;
        self.power.off();
    }

    /// Runs a script as root and waits for its end. What it leaves in the background
    /// must not hold on to its output.
    pub(crate) fn run(&mut self, script: &str) -> Answer {
        let running = self.running.as_mut().expect("it is on");
        running.scripts += 1;
        let number = running.scripts;
        let request = format!("{number} {}\n", base64(script.as_bytes()));
        let sent = running.line.get_mut().write_all(request.as_bytes());
        assert!(sent.is_ok(), "{}: {sent:?}", self.name);
        let text = self.line();
        let mut words = text.split(' ');
        assert_eq!(words.next(), Some(&*number.to_string()), "{text}");
        let code = words.next().expect("a code").parse().expect("a number");
        let output = unbase64(words.next().unwrap_or(""));
        let output = String::from_utf8_lossy(&output).into_owned();
        Answer { code, output }
    }

    /// Runs a script that must succeed (each command of it); returns what it printed.
    pub(crate) fn ok(&mut self, script: &str) -> String {
        let answer = self.run(&format!("set -e\n{script}"));
        assert!(
            answer.code == 0,
            "{script}
on {}: exit code {}
{}",
            self.name,
            answer.code,
            answer.output
        );
        answer.output
    }

    /// Puts a file there.
    pub(crate) fn put(&mut self, path: &str, text: &str) {
        let text = base64(text.as_bytes());
        self.ok(&format!("echo {text} | base64 -d > {path}"));
    }

    /// Everything the console has shown since the machine was made, without its colours.
    pub(crate) fn console_text(&self) -> String {
        let bytes = std::fs::read(self.file("console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let mut parts = text.split("\x1b[");
        let mut plain = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            plain += part
                .split_once(|c: char| c.is_ascii_alphabetic())
                .map_or("", |(_, rest)| rest);
        }
        plain
    }

    /// The end of it, with a title.
    fn console(&self) -> String {
        let text = self.console_text();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(40)..];
        format!("--- console of {}:\n{}", self.name, last.join("\n"))
    }

    /// Lets a person talk to it until they say `exit` (`tests/vm/run NAME --shell`).
    fn shell(&mut self) {
        println!("--- {}: commands run there; `exit` leaves it", self.name);
        let console = self.file("console");
        println!("--- its console: {}", console.display());
        loop {
            print!("{}# ", self.name);
            let _ = std::io::stdout().flush();
            let mut command = String::new();
            let read = std::io::stdin().read_line(&mut command);
            if !matches!(read, Ok(n) if n > 0) || command.trim() == "exit" {
                return;
            }
            let answer = self.run(&command);
            print!("{}", answer.output);
            if answer.code != 0 {
                println!("(exit code {})", answer.code);
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.console());
        }
        if self.running.is_some() && std::env::var_os("TWINBLK_VM_SHELL").is_some() {
            self.shell();
        }
        self.cut();
    }
}

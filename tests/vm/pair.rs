//! Two machines with a disk each, a cable between them, and twinblk on both: alpha (0) and bravo (1).

use crate::disk::{Cut, Disk};
use crate::harness::nbd::Client;
use crate::harness::seeds::Rng;
use crate::harness::wait_for;
use crate::machine::{Machine, Root};
use crate::power::{Switched, switch};
use serde_json::Value;
use std::time::Instant;

pub(crate) const NAMES: [&str; 2] = ["alpha", "bravo"];

/// See the module.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) machines: [Machine; 2],
    pub(crate) disks: [Disk; 2],
    /// What the machines have had the power switch do.
    pub(crate) switched: Switched,
    setup: Setup,
    _directory: tempfile::TempDir,
    _clock: Clock,
}

/// Says at its end how long a story took: `tests/vm/run` makes a list of it.
#[derive(Debug)]
struct Clock(Instant);

impl Drop for Clock {
    fn drop(&mut self) {
        let thread = std::thread::current();
        let story = thread.name().unwrap_or("a story");
        println!("took {:5.1} s: {story}", self.0.elapsed().as_secs_f64());
    }
}

/// A lost peer is noticed soon enough; patient with emulated processors that share a busy host, where
/// three seconds without an answer do happen.
pub(crate) const NET: &str =
    "connect-int = 1\nping-int = 3\nping-timeout = \"8s\"\ntimeout = \"2s\"\n";

/// What a story changes in the configuration.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Setup {
    /// What each machine boots into.
    pub(crate) roots: [Root; 2],
    /// A line of each node.
    pub(crate) node: &'static str,
    /// [options].
    pub(crate) options: &'static str,
    /// All of it, instead.
    pub(crate) configuration: Option<&'static str>,
}

fn configuration(setup: Setup) -> String {
    if let Some(text) = setup.configuration {
        return text.to_owned();
    }
    let mut text = String::from(
        "[resource]\nname = \"r0\"\nprotocol = \"C\"\nshared-secret = \"swordfish\"\n",
    );
    for (id, name) in NAMES.iter().enumerate() {
        text += &format!(
            "[node.{name}]\nid = {id}\naddress = \"10.9.0.{}:7789\"\ndisk = \"/dev/vda\"\n\
             meta-disk = \"internal\"\n\
             export = [\"unix:/run/twinblk/r0.sock\", \"tcp:10.0.2.15:10809\"]\n{}\n",
            id + 1,
            setup.node
        );
    }
    text + "[net]\n" + NET + "[options]\n" + setup.options
}

impl Pair {
    /// Both machines run with empty disks of `size` bytes and nothing on them.
    pub(crate) fn bare(size: usize, setup: Setup) -> Self {
        let clock = Clock(Instant::now());
        let directory = tempfile::Builder::new()
            .prefix("twinblk-vm-")
            .tempdir()
            .expect("a directory");
        let path = directory.path();
        let disks = NAMES.map(|name| Disk::new(&path.join(format!("{name}.disk")), size));
        let machine = |at: usize| {
            let root = setup.roots[at];
            Machine::new(NAMES[at], at as u32 + 1, root, path, &[&disks[at]])
        };
        let machines = [machine(0), machine(1)];
        let switched = switch([0, 1].map(|at: usize| machines[at].power.clone()));
        let mut pair = Self {
            machines,
            disks,
            switched,
            setup,
            _directory: directory,
            _clock: clock,
        };
        pair.boot(&[0, 1]);
        pair
    }

    /// Both daemons run, both disks are UpToDate and equal, alpha is Primary.
    pub(crate) fn in_sync(size: usize) -> Self {
        let mut pair = Self::both_secondary(size, Setup::default());
        pair.machines[0].ok("twinblk primary r0");
        pair
    }

    /// The same with nobody Primary.
    pub(crate) fn both_secondary(size: usize, setup: Setup) -> Self {
        let mut pair = Self::bare(size, setup);
        for at in [0, 1] {
            pair.machines[at].ok("twinblk create-md r0");
        }
        pair.start(&[0, 1]);
        // Two empty disks are equal already.
        let alpha = &mut pair.machines[0];
        alpha.ok("twinblk wait-connect r0 --timeout 60");
        alpha.ok("twinblk new-current-uuid --clear-bitmap r0");
        pair.wait_in_sync();
        pair
    }

    /// Gives the power: the machines boot, and nothing of twinblk runs on them.
    pub(crate) fn boot(&mut self, which: &[usize]) {
        for &at in which {
            self.machines[at].power_on();
        }
        for &at in which {
            self.machines[at].ready();
            self.machines[at].put("/etc/twinblk/r0.toml", &configuration(self.setup));
            self.machines[at].ok("chmod 600 /etc/twinblk/r0.toml");
        }
    }

    /// Starts the daemons and their resource.
    pub(crate) fn start(&mut self, which: &[usize]) {
        for &at in which {
            self.start_daemon(at);
            self.machines[at].ok("twinblk up r0");
        }
    }

    /// Starts a daemon, which brings up what was up.
    pub(crate) fn start_daemon(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        machine.ok(match self.setup.roots[at] {
            Root::Systemd => "systemctl start twinblk",
            _ => "setsid twinblk daemon >/dev/console 2>&1 & echo $! > /run/twinblk.pid",
        });
        wait_for(
            "the daemon to answer",
            || (machine.run("twinblk status").code == 0).then_some(()),
            || "see the console".into(),
        );
    }

    /// Sends the daemon a signal and waits for its end.
    pub(crate) fn stop_daemon(&mut self, at: usize, signal: &str) {
        let pid = "$(cat /run/twinblk.pid)";
        self.machines[at].ok(&format!(
            "kill -{signal} {pid}; while [ -e /proc/{pid}/exe ]; do sleep 0.05; done"
        ));
    }

    /// Cuts the power of one machine and its disk.
    pub(crate) fn cut(&mut self, at: usize, rng: &mut Rng) -> Cut {
        self.machines[at].cut();
        self.disks[at].cut(rng)
    }

    /// The same at a moment when the disk has something to lose. A story that cuts when it has seen a flush
    /// end would never meet one.
    pub(crate) fn cut_with_loss(&mut self, at: usize, rng: &mut Rng) -> Cut {
        wait_for(
            "writes that are not flushed",
            || (self.disks[at].at_risk() > 0).then_some(()),
            || "everything is flushed at once".into(),
        );
        self.cut(at, rng)
    }

    /// Gives the power back: the machines boot, their daemons start, the resource goes up.
    pub(crate) fn back(&mut self, which: &[usize]) {
        self.boot(which);
        self.start(which);
    }

    /// The state of r0 on a machine.
    pub(crate) fn status(&mut self, at: usize) -> Value {
        let text = self.machines[at].ok("twinblk status r0 --json");
        let all: Value = serde_json::from_str(&text).expect("JSON");
        all[0].clone()
    }

    /// Waits until the state of r0 on a machine is as wanted; returns it.
    pub(crate) fn wait(&mut self, at: usize, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let last = std::cell::RefCell::new(Value::Null);
        wait_for(
            &format!("{}: {what}", NAMES[at]),
            || {
                let status = self.status(at);
                let good = wanted(&status);
                last.replace(status.clone());
                good.then_some(status)
            },
            || format!("{:#}", last.borrow()),
        )
    }

    /// Waits until a machine knows that the other is gone.
    pub(crate) fn wait_alone(&mut self, at: usize) {
        self.wait(at, "the peer is lost", |s| {
            s["peers"][0]["connection"] != "Connected"
        });
    }

    /// Waits until both copies are the same, on both nodes' word.
    pub(crate) fn wait_in_sync(&mut self) {
        for at in [0, 1] {
            self.wait(at, "both UpToDate", |s| {
                let peer = &s["peers"][0]["volumes"][0];
                s["volumes"][0]["disk"] == "UpToDate"
                    && peer["peer_disk"] == "UpToDate"
                    && peer["replication"] == "Established"
                    && peer["out_of_sync"] == 0
            });
        }
    }

    /// Bytes of the volume as clients see it.
    pub(crate) fn data_size(&mut self) -> u64 {
        let status = self.status(0);
        status["volumes"][0]["size"].as_u64().expect("a size")
    }

    /// A client on this host of the export of a machine.
    pub(crate) fn client(&self, at: usize) -> Client {
        Client::tcp(&self.machines[at].address(10_809)).expect("the Primary serves")
    }

    /// Compares what both disks hold, byte for byte; returns it. Nothing may be under way.
    pub(crate) fn compare(&self, size: u64) -> Vec<u8> {
        let [alpha, bravo] = [0, 1].map(|at| self.disks[at].content(size));
        if let Some(at) = alpha.iter().zip(&bravo).position(|(a, b)| a != b) {
            panic!(
                "the disks differ at byte {at} (block {}): alpha {:?} bravo {:?}",
                at / 4096,
                &alpha[at..at + 16],
                &bravo[at..at + 16],
            );
        }
        alpha
    }
}

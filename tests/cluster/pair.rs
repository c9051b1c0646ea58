//! Two machines, alpha and bravo, with a twinblk resource r0 in sync between them, and what a story does to
//! them. The daemon of each is kept running as systemd would do it.

use super::lan::{Lan, Net};
use super::machine::Machine;
use super::store::Writer;
use crate::harness::node::TWINBLK;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// See the module.
#[derive(Debug)]
pub struct Pair {
    pub machines: [Machine; 2],
    pub lan: std::sync::Arc<Lan>,
    started: Instant,
    _directory: tempfile::TempDir,
}

/// What twinblk.service does: the daemon, again two seconds after it died.
const SUPERVISE: &str = "#!/bin/sh
while :; do
    twinblk daemon >>/var/log/twinblk.log 2>&1 &
    echo $! >/run/twinblk.pid
    wait $!
    [ ! -e /run/twinblk.stopped ] || exit 0
    sleep 2
done
";

/// What `systemctl start twinblk` does.
const START: &str = "#!/bin/sh
twinblk status >/dev/null 2>&1 && exit 0
rm -f /run/twinblk.stopped
mkdir -p /run/twinblk
exec 9>/run/twinblk-start.lock
flock -n 9 || exit 0
if ! { [ -e /run/supervise.pid ] && kill -0 \"$(cat /run/supervise.pid)\" 2>/dev/null; }; then
    setsid -f sh -c 'echo $$ >/run/supervise.pid; exec /usr/local/sbin/twinblk-supervise' </dev/null >/dev/null 2>&1 9>&-
fi
";

const CONFIGURATION: &str = r#"[resource]
name = "r0"
protocol = "C"
shared-secret = "swordfish"

[node.alpha]
id = 0
address = "10.99.0.1:7789"
disk = "/srv/r0.img"
export = "unix:/run/twinblk/r0.sock"

[node.bravo]
id = 1
address = "10.99.0.2:7789"
disk = "/srv/r0.img"
export = "unix:/run/twinblk/r0.sock"

[net]
connect-int = 1
timeout = 2
ping-int = 3
ping-timeout = 2
"#;

/// Says how long a story took, past the test program, which shows what is printed only of tests that fail.
impl Drop for Pair {
    fn drop(&mut self) {
        use std::io::Write;
        let thread = std::thread::current();
        let story = thread.name().unwrap_or("a story");
        let seconds = self.started.elapsed().as_secs_f64();
        let _ = writeln!(std::io::stderr(), "took {seconds:5.1} s: {story}");
    }
}

impl Pair {
    /// Two machines whose copies are in sync; nobody is Primary, no failover daemon runs yet.
    pub fn new() -> Self {
        Self::with("")
    }

    /// The same, with more lines of configuration, the first of them in `[net]`.
    pub fn with(more: &str) -> Self {
        static PAIRS: AtomicU32 = AtomicU32::new(0);
        let lan = Lan::new(PAIRS.fetch_add(1, Ordering::Relaxed));
        // In memory: an overlay's changes must not lie below it.
        let directory = tempfile::Builder::new()
            .prefix("twinblk-cluster-")
            .tempdir_in("/dev/shm")
            .expect("a directory");
        let machines = [0, 1].map(|side| {
            let name = ["alpha", "bravo"][side];
            Machine::new(name, &lan.nodes[side], directory.path())
        });
        let mut pair = Self {
            machines,
            lan: lan.into(),
            started: Instant::now(),
            _directory: directory,
        };
        for machine in &mut pair.machines {
            machine.boot();
            machine.ok(&format!("ln -sf {TWINBLK} /usr/local/sbin/twinblk"));
            machine.write(
                "/etc/twinblk/r0.toml",
                &format!("{CONFIGURATION}{more}"),
                0o600,
            );
            machine.write("/usr/local/sbin/twinblk-supervise", SUPERVISE, 0o755);
            machine.write("/usr/local/sbin/twinblk-start", START, 0o755);
            machine.ok(concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/install"));
            let store = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/store");
            machine.ok(&format!("install -m 755 {store} /usr/local/sbin/store"));
            machine.ok("truncate -s 32M /srv/r0.img && twinblk create-md r0");
            machine.ok("twinblk-start");
        }
        for machine in &pair.machines {
            pair.wait_answers(machine);
            machine.ok("twinblk up r0");
        }
        pair.machines[0].ok("twinblk wait-connect r0 --timeout 60");
        pair.machines[0].ok("twinblk new-current-uuid r0 --clear-bitmap");
        pair.wait_in_sync();
        pair
    }

    fn wait_answers(&self, machine: &Machine) {
        crate::wait(
            "the daemon to answer",
            || machine.run("twinblk status").status.success().then_some(()),
            || machine.say("tail -n 30 /var/log/twinblk.log"),
        );
    }

    /// Tells what happens and when, for those who read along.
    pub fn tell(&self, what: &str) {
        println!("{:7.1} s  {what}", self.started.elapsed().as_secs_f64());
    }

    /// The state of r0 on a machine as JSON; nothing when no daemon answers.
    pub fn status(&self, node: usize) -> Option<serde_json::Value> {
        if !self.machines[node].runs() {
            return None;
        }
        let output = self.machines[node].run("twinblk status r0 --json");
        let all: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        Some(all[0].clone())
    }

    /// Who is Primary.
    pub fn primaries(&self) -> Vec<usize> {
        let is_primary = |&node: &usize| self.status(node).is_some_and(|s| s["role"] == "Primary");
        (0..2).filter(is_primary).collect()
    }

    /// Waits until both copies are the same, on both nodes' word.
    pub fn wait_in_sync(&self) {
        let synced = |node| {
            self.status(node).is_some_and(|s| {
                let peer = &s["peers"][0]["volumes"][0];
                s["volumes"][0]["disk"] == "UpToDate"
                    && peer["peer_disk"] == "UpToDate"
                    && peer["replication"] == "Established"
                    && peer["out_of_sync"] == 0
            })
        };
        let describe = || self.describe();
        crate::wait(
            "both copies to be the same",
            || (synced(0) && synced(1)).then_some(()),
            describe,
        );
    }

    /// Waits until exactly this node is Primary, has the address, and serves a client there; then judges
    /// what the client finds. Returns the seconds it took.
    pub fn wait_serves(&self, who: &[usize], writer: &Writer) -> usize {
        let begin = Instant::now();
        let node = crate::wait(
            "one Primary that serves",
            || {
                let primaries = self.primaries();
                let [node] = primaries[..] else { return None };
                let good = who.contains(&node)
                    && self.lan.has_address(node)
                    && !self.lan.has_address(1 - node)
                    && writer.progresses();
                good.then_some(node)
            },
            || self.describe(),
        );
        writer.judge();
        let name = self.machines[node].name;
        let seconds = begin.elapsed().as_secs_f64();
        self.tell(&format!(
            "{name} serves, everything is there, after {seconds:.1} s"
        ));
        node
    }

    /// `kill -9` of the daemon.
    pub fn kill_daemon(&self, node: usize) {
        self.tell(&format!(
            "kill -9 of twinblk on {}",
            self.machines[node].name
        ));
        self.machines[node].ok("kill -9 $(cat /run/twinblk.pid)");
    }

    /// Cuts a machine's power.
    pub fn power_off(&mut self, node: usize) {
        self.tell(&format!("{} loses its power", self.machines[node].name));
        self.lan.power(node, false);
        self.machines[node].power_off();
    }

    /// It boots again, and no daemon runs yet.
    pub fn boot(&mut self, node: usize) {
        self.tell(&format!("{} boots", self.machines[node].name));
        self.lan.power(node, true);
        self.machines[node].boot();
    }

    /// It boots again, with twinblk's daemon; the failover daemon is the story's affair.
    pub fn power_on(&mut self, node: usize) {
        self.boot(node);
        self.machines[node].ok("twinblk-start");
        self.wait_answers(&self.machines[node]);
    }

    pub fn cut(&self, net: Net) {
        self.tell(&format!("the network is cut: {net:?}"));
        self.lan.cut(net);
    }

    pub fn mend(&self, net: Net) {
        self.tell(&format!("the network is whole: {net:?}"));
        self.lan.mend(net);
    }

    /// What is to be known when something went wrong.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (node, machine) in self.machines.iter().enumerate() {
            text += &format!(
                "===== {} address:{}\n{}",
                machine.name,
                self.lan.has_address(node),
                machine.say(
                    "twinblk status; twinblk why r0; ps axo pid,ppid,args | tail -n +2; \
                     ! [ -e /run/crm ] || timeout 10 crm_mon -1Ar 2>&1; \
                     for f in twinblk cluster ha pacemaker/pacemaker corosync/corosync; do \
                     echo \"--- $f\"; tail -n 60 /var/log/$f.log 2>/dev/null; done"
                )
            );
        }
        text
    }
}

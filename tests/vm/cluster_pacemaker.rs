//! Pacemaker and Corosync with all that belongs to them, as docs/cluster/pacemaker.md has it, word for word:
//! /dev/nbd0 with ext4, PostgreSQL on it, a floating address, fencing by twinblk's handlers and by a STONITH
//! device that really switches the other machine off.
//!
//! A client on the other machine goes to the floating address, commits numbered rows, and says on its console
//! what was confirmed. Invariants: whatever happens to the active machine, the other one serves, without help,
//! and holds every commit that was reported; nobody takes over from a machine that was not switched off; what
//! comes back becomes Secondary; afterwards both disks are equal.

use crate::all;
use crate::guide::{adapted, block};
use crate::harness::PATIENCE;
use crate::harness::seeds::Rng;
use crate::machine::Root;
use crate::pair::{NAMES, NET, Pair, Setup};
use crate::postgres::reported;
use crate::power_cut::number;
use std::collections::HashSet;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const PAGE: &str = "cluster/pacemaker.md";

/// The guide's addresses, on the one cable these machines have. What they need is in memory, and gone when
/// the power is.
const PREPARE: &str =
    "for net in 10.0.0 10.99.0; do ip address add $net.$(cut -d. -f4 /run/me)/24 dev eth1; done
    /usr/lib/twinblk-test/cluster/install >/dev/null
    mkdir -p /srv";

/// A database on the device of the Primary that clients reach over the network.
const DATABASE: &str = "twinblk primary r0; mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 /srv
    cp -a /var/lib/postgresql/fresh /srv/pgsql
    printf \"listen_addresses = '*'\\nshared_buffers = 16MB\\nmax_wal_size = 8MB\\nmin_wal_size = 2MB\\n\" \
        >>/srv/pgsql/postgresql.conf
    echo 'host all all 10.0.0.0/24 trust' >>/srv/pgsql/pg_hba.conf
    umount /srv; udevadm settle; twinblk secondary r0";

const SQL: &str =
    "sql() { timeout 60 /usr/lib/postgresql/15/bin/psql \"host=10.0.0.100 user=postgres \
    dbname=postgres connect_timeout=5 keepalives_idle=3 keepalives_interval=2 keepalives_count=3 \
    tcp_user_timeout=15000\" -XqAt -v ON_ERROR_STOP=1 \"$@\"; }
";

/// Takes up the work as often as it ends.
const CLIENT: &str = "rm -f /run/enough
    (while [ ! -e /run/enough ]; do
        seq $first $((first + 999)) | sed \"s/.*/insert into commits values (&) returning 'safe ' || n || ' .';/\" |
            sql >/dev/console 2>/dev/null || true
        first=$((first + 1000)); sleep 0.5
    done) >/dev/null 2>&1 &";

/// What the guides say, for disks as they are here and for processors that are emulated.
fn configuration() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let resource = adapted(
            "cluster/README.md",
            "[node.alpha]",
            &[("/dev/vg0/r0", "/dev/vda")],
        );
        let fencing = adapted(PAGE, "fencing = ", &[("[net]\n", &format!("[net]\n{NET}"))]);
        resource + &fencing
    })
}

/// The guide's resources; its fencing devices are replaced by the switch of this pair.
fn resources() -> String {
    // Who comes back, and when, is the story's affair.
    let off = (
        "stonith-enabled=true",
        "stonith-enabled=true stonith-action=off",
    );
    let mut text = adapted(PAGE, "primitive disk ocf:twinblk:twinblk", &[off]);
    for line in block(PAGE, "stonith:fence_ipmilan").lines() {
        let device = line.split(" ip=").next().unwrap_or(line);
        text += &device.replace("fence_ipmilan", "fence_switch");
        text += "\n";
    }
    slower(&text) + "op_defaults timeout=120s\n"
}

/// The same for processors that are emulated, two guests on a busy host: every time is six times as long.
fn slower(text: &str) -> String {
    let time = |word: &str| {
        let (name, value) = word.split_once('=')?;
        let seconds: u32 = value.strip_suffix('s')?.parse().ok()?;
        matches!(name, "timeout" | "interval").then(|| format!("{name}={}s", seconds * 6))
    };
    let words = text.split(' ').map(|word| {
        let (word, rest) = word.split_at(word.find('\n').unwrap_or(word.len()));
        time(word).unwrap_or_else(|| word.to_owned()) + rest
    });
    words.collect::<Vec<_>>().join(" ")
}

/// As [`crate::harness::wait_for`], for a cluster on emulated processors.
fn wait<T>(what: &str, pair: &mut Pair, mut done: impl FnMut(&mut Pair) -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done(pair) {
            return value;
        }
        if start.elapsed() > PATIENCE * 6 {
            for machine in &mut pair.machines {
                if machine.power.is_on() {
                    let state = "twinblk status; timeout 60 crm_mon -1Arf; twinblk why r0";
                    let text = machine.run(state).output;
                    println!("{}:\n{text}", machine.name);
                }
            }
            panic!("waited {:?} for {what}", start.elapsed());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

struct Site {
    pair: Pair,
    begin: Instant,
    /// Ranges of numbers given to clients so far.
    ranges: u64,
}

impl Site {
    fn tell(&self, what: &str) {
        println!("{:4} s: {what}", self.begin.elapsed().as_secs());
    }

    /// Everything but the cluster itself runs on this machine.
    fn prepare(&mut self, at: usize) {
        let corosync = "cluster_name: pair\n";
        let corosync = adapted(
            PAGE,
            "cluster_name",
            // An emulated processor on a busy host is silent for seconds now and then.
            &[(corosync, &format!("{corosync}  token: 8000\n"))],
        );
        let machine = &mut self.pair.machines[at];
        machine.ok(&format!("echo 0.0.0.{} >/run/me\n{PREPARE}", at + 1));
        machine.put("/etc/corosync/corosync.conf", &corosync);
        machine.ok("head -c 128 /bin/sh >/etc/corosync/authkey; chmod 400 /etc/corosync/authkey");
    }

    fn start_cluster(&mut self, at: usize) {
        self.pair.machines[at].ok("systemctl start corosync pacemaker");
    }

    /// A client on this machine.
    fn client(&mut self, at: usize) {
        let first = self.ranges * 1_000_000;
        self.ranges += 1;
        self.pair.machines[at].ok(&format!("{SQL}first={first}\n{CLIENT}"));
    }

    /// Waits until this many more commits are reported.
    fn wait_commits(&mut self, more: usize) {
        let wanted = reported(&self.pair).len() + more;
        wait("commits", &mut self.pair, |pair| {
            (reported(pair).len() >= wanted).then_some(())
        });
    }

    /// Waits until this machine serves clients of the floating address; it holds every commit that was
    /// reported until now.
    fn wait_serves(&mut self, at: usize) {
        let safe = reported(&self.pair);
        let begin = Instant::now();
        let here = "findmnt -n /srv >/dev/null && ip -o address show | grep -q 10.0.0.100/24 &&
            sql -c 'select n from commits'";
        let text = wait("the site to serve", &mut self.pair, |pair| {
            let answer = pair.machines[at].run(&format!("{SQL}{here}"));
            (answer.code == 0).then_some(answer.output)
        });
        let role = self.pair.machines[at].ok("twinblk role r0");
        assert_eq!(role.trim(), "Primary");
        let there: HashSet<u64> = text.lines().map(|l| l.parse().expect("a number")).collect();
        assert_eq!(there.len(), text.lines().count(), "a row is there twice");
        let mut missing: Vec<_> = safe.difference(&there).collect();
        missing.sort();
        assert!(
            missing.is_empty(),
            "reported as committed and gone: {missing:?}"
        );
        self.tell(&format!(
            "{} serves after {} s, with all {} commits reported before, of {}",
            NAMES[at],
            begin.elapsed().as_secs(),
            safe.len(),
            there.len()
        ));
    }

    /// Who has it.
    fn active(&mut self) -> usize {
        wait("one Primary", &mut self.pair, |pair| {
            let primary = |at: &usize| {
                let machine = &mut pair.machines[*at];
                machine.power.is_on() && machine.run("twinblk role r0").output.trim() == "Primary"
            };
            let primaries: Vec<usize> = (0..2).filter(primary).collect();
            assert!(primaries.len() < 2, "two Primaries");
            primaries.first().copied()
        })
    }

    /// Both copies are the same, by the word of this machine.
    fn wait_in_sync(&mut self, at: usize) {
        wait("both to be in sync", &mut self.pair, |pair| {
            let text = pair.machines[at].run("twinblk status r0 --json").output;
            let state: serde_json::Value = serde_json::from_str(&text).ok()?;
            let peer = &state[0]["peers"][0]["volumes"][0];
            (state[0]["volumes"][0]["disk"] == "UpToDate"
                && peer["peer_disk"] == "UpToDate"
                && peer["replication"] == "Established"
                && peer["out_of_sync"] == 0)
                .then_some(())
        });
    }

    /// A machine that was switched off boots, joins, and is brought up to date.
    fn comes_back(&mut self, at: usize) {
        self.pair.boot(&[at]);
        self.prepare(at);
        self.start_cluster(at);
        self.wait_in_sync(at);
        let role = self.pair.machines[at].ok("twinblk role r0");
        assert_eq!(role.trim(), "Secondary");
        self.tell(&format!("{} is back and in sync", NAMES[at]));
    }

    /// Nobody may be kept from being promoted any more: both copies are the same.
    fn wait_unfenced(&mut self) {
        wait("no constraint of fencing", &mut self.pair, |pair| {
            let text = pair.machines[0].ok("cibadmin --query --scope constraints");
            (!text.contains("twinblk-fence")).then_some(())
        });
    }
}

fn serving() -> Site {
    let begin = Instant::now();
    let setup = Setup {
        roots: [Root::Systemd; 2],
        configuration: Some(configuration()),
        ..Setup::default()
    };
    let pair = Pair::bare(128 << 20, setup);
    let mut site = Site {
        pair,
        begin,
        ranges: 0,
    };
    for at in [0, 1] {
        site.prepare(at);
        site.pair.machines[at].ok("twinblk create-md r0");
    }
    site.pair.start(&[0, 1]);
    let alpha = &mut site.pair.machines[0];
    alpha.ok("twinblk wait-connect r0 --timeout 60; twinblk new-current-uuid --clear-bitmap r0");
    site.pair.wait_in_sync();
    site.pair.machines[0].ok(DATABASE);
    site.tell("a database on both disks");
    for at in [0, 1] {
        site.start_cluster(at);
    }
    wait("both nodes to be online", &mut site.pair, |pair| {
        let text = pair.machines[0].run("crm_mon -1 --output-as=xml --include=none,nodes");
        (text.output.matches("online=\"true\"").count() == 2).then_some(())
    });
    site.tell("both nodes are online");
    site.pair.machines[0].put("/run/site.crm", &resources());
    let said = site.pair.machines[0].ok("crm --force configure load update /run/site.crm 2>&1");
    site.tell(&format!("the guide's resources are configured {said}"));
    let active = site.active();
    let create = format!("{SQL}sql -c 'create table commits (n bigint primary key)'");
    wait("PostgreSQL to answer", &mut site.pair, |pair| {
        (pair.machines[1 - active].run(&create).code == 0).then_some(())
    });
    site
}

#[test]
fn pacemaker_moves_postgresql_to_the_other_machine() {
    let seed = number("TWINBLK_SEED", std::process::id().into());
    println!("seed {seed}; again: TWINBLK_SEED={seed} tests/vm/run cluster_pacemaker");
    let mut rng = Rng(seed ^ 0x7ace);
    let mut site = serving();
    let mut active = site.active();
    site.tell(&format!("{} serves", NAMES[active]));
    site.client(1 - active);
    site.wait_commits(20);

    if all() {
        let name = NAMES[active];
        let standby = format!("crm_attribute --type nodes --node {name} --name standby");
        site.pair.machines[active].ok(&format!("{standby} --update on"));
        site.tell(&format!("{name} is to stand by"));
        active = 1 - active;
        site.wait_serves(active);
        site.pair.machines[active].ok(&format!("touch /run/enough; {standby} --delete"));
        // It comes back, and is known to hold the same.
        site.wait_in_sync(1 - active);
        site.wait_unfenced();
        site.client(1 - active);
        site.wait_commits(20);
    }

    // The power of the active machine is cut.
    let cut = site.pair.cut_with_loss(active, &mut rng);
    site.tell(&format!("{} loses its power; {cut}", NAMES[active]));
    let dead = active;
    active = 1 - dead;
    site.wait_serves(active);
    let asked = site.pair.switched.list();
    assert!(
        asked.contains(&(NAMES[active], NAMES[dead])),
        "taken over without having it switched off: {asked:?}"
    );
    site.wait_commits(20);
    if !all() {
        return;
    }
    site.comes_back(dead);
    site.wait_unfenced();
    site.wait_commits(5);

    // To look at it, everything on top is stopped.
    let machine = &mut site.pair.machines[active];
    machine.ok("touch /run/enough
        crm_resource --resource site --meta --set-parameter target-role --parameter-value Stopped");
    wait("the site to stop", &mut site.pair, |pair| {
        (pair.machines[active].run("findmnt /srv").code != 0).then_some(())
    });
    let machine = &mut site.pair.machines[active];
    machine.ok("e2fsck -f -n /dev/nbd0");
    let size = site.pair.data_size();
    site.pair.compare(size);
    site.tell("both disks are equal");
}

//! What failover daemons call, called as they call it, with /dev/nbd0, ext4 and PostgreSQL on top and the
//! settings of docs/cluster word for word: Heartbeat's resource script, keepalived's notify script and fifo,
//! ucarp's scripts, the hook in a script of one's own, units of systemd. (`tests/cluster` runs the daemons.)
//!
//! Invariants: each takes the site up on one machine after another, with every row that any of them wrote; down
//! leaves no mount, no device and no Primary; a node that cannot let go says so and stays Primary.

use crate::guide::{adapted, block};
use crate::harness::wait_for;
use crate::machine::{Machine, Root};
use crate::pair::{NAMES, NET, Pair, Setup};
use std::sync::OnceLock;

/// A cluster of PostgreSQL in Debian's sense, whose data are on the device.
const POSTGRES: &str = "for net in 10.0.0 10.99.0; do ip address add $net.$(cut -d. -f4 /run/me)/24 dev eth1; done
    /usr/lib/twinblk-test/cluster/install >/dev/null
    mkdir -p /srv /etc/postgresql/15/main
    cp /var/lib/postgresql/fresh/pg_*.conf /var/lib/postgresql/fresh/postgresql.conf /etc/postgresql/15/main
    printf \"data_directory = '/srv/pgsql'\\nhba_file = '/etc/postgresql/15/main/pg_hba.conf'\\n\
ident_file = '/etc/postgresql/15/main/pg_ident.conf'\\nlisten_addresses = '*'\\nshared_buffers = 16MB\\n\
unix_socket_directories = '/var/run/postgresql'\\n\" >>/etc/postgresql/15/main/postgresql.conf
    echo auto >/etc/postgresql/15/main/start.conf
    echo 'host all all 10.0.0.0/24 trust' >>/etc/postgresql/15/main/pg_hba.conf
    chown -R postgres: /etc/postgresql";

const SQL: &str =
    "sql() { /usr/lib/postgresql/15/bin/psql -h /var/run/postgresql -U postgres -XqAt \
    -v ON_ERROR_STOP=1 postgres -c \"$1\"; }
";

struct Site {
    pair: Pair,
    /// What each has written, in order.
    rows: Vec<String>,
}

impl Site {
    fn serving_nowhere() -> Self {
        static TEXT: OnceLock<String> = OnceLock::new();
        let configuration = TEXT.get_or_init(|| {
            let disk = ("/dev/vg0/r0", "/dev/vda");
            adapted("cluster/README.md", "[node.alpha]", &[disk]) + "[net]\n" + NET
        });
        let setup = Setup {
            roots: [Root::Systemd; 2],
            configuration: Some(configuration),
            ..Setup::default()
        };
        let mut pair = Pair::bare(128 << 20, setup);
        for at in [0, 1] {
            let machine = &mut pair.machines[at];
            machine.ok(&format!("echo 0.0.0.{} >/run/me\n{POSTGRES}", at + 1));
            machine.ok("twinblk create-md r0");
        }
        pair.start(&[0, 1]);
        let alpha = &mut pair.machines[0];
        alpha
            .ok("twinblk wait-connect r0 --timeout 60; twinblk new-current-uuid --clear-bitmap r0");
        pair.wait_in_sync();
        pair.machines[0].ok(
            "twinblk hook r0 up; mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 /srv
            cp -a /var/lib/postgresql/fresh /srv/pgsql; umount /srv; udevadm settle; twinblk hook r0 down",
        );
        let mut site = Self {
            pair,
            rows: Vec::new(),
        };
        site.wait_down(0);
        site
    }

    fn machine(&mut self, at: usize) -> &mut Machine {
        &mut self.pair.machines[at]
    }

    /// All of it is here: role, mount, and a database with all that was written, to which a row is added.
    fn serves(&mut self, at: usize, by: &str) {
        let table = match self.rows.len() {
            0 => "sql 'create table log (n serial, by text)'\n",
            _ => "",
        };
        let row = format!("{by} on {}", NAMES[at]);
        let machine = self.machine(at);
        let text = machine.ok(&format!(
            "{SQL}[ $(twinblk hook r0 status) = Primary ]; twinblk hook r0 health
            [ $(findmnt -n -o SOURCE /srv) = /dev/nbd0 ]
            {table}sql \"insert into log (by) values ('{row}')\"; sql 'select by from log order by n'"
        ));
        self.rows.push(row);
        let found: Vec<&str> = text.lines().collect();
        assert_eq!(found, self.rows);
        println!("{}", self.rows.last().expect("a row"));
    }

    /// Nothing of it is left here.
    fn is_down(machine: &mut Machine) -> bool {
        let left = "[ $(twinblk role r0) = Secondary ] && ! findmnt /srv && [ ! -e /sys/block/nbd0/pid ] &&
            [ ! -L /dev/twinblk/r0 ] && ! pidof postgres && ! ip address show | grep -q 10.0.0.100";
        machine.run(left).code == 0
    }

    fn down(&mut self, at: usize) {
        let machine = self.machine(at);
        let text =
            "twinblk status r0; findmnt /srv; ls /sys/block/nbd0; pidof postgres; ip address";
        assert!(Self::is_down(machine), "{}", machine.run(text).output);
    }

    fn wait_down(&mut self, at: usize) {
        wait_for(
            "everything to be down",
            || Self::is_down(self.machine(at)).then_some(()),
            || "it is not".into(),
        );
    }

    fn heartbeat(&mut self, at: usize) {
        // From left to right, and back.
        let list = block("cluster/heartbeat.md", "alpha twinblkdisk::r0");
        assert!(
            list.contains("twinblkdisk::r0 Filesystem::/dev/nbd0::/srv::ext4 postgresql"),
            "{list}"
        );
        let disk = "/etc/ha.d/resource.d/twinblkdisk r0";
        let machine = self.machine(at);
        machine.ok(&format!(
            "echo TWINBLK_STOP_TIMEOUT=3 >/etc/default/twinblkdisk
            {disk} status | grep -q stopped; {disk} start; {disk} start
            mount -t ext4 /dev/nbd0 /srv; systemctl start postgresql@15-main"
        ));
        self.serves(at, "heartbeat");
        let machine = self.machine(at);
        let text = machine.ok(&format!("{disk} status; systemctl stop postgresql@15-main"));
        assert_eq!(text, "running (Primary)\n");
        let refused = machine.run(&format!("{disk} stop"));
        assert_eq!(refused.code, 1, "it is mounted: {}", refused.output);
        assert!(refused.output.contains("/srv"), "{}", refused.output);
        machine.ok(&format!("umount /srv; {disk} stop; {disk} stop"));
        self.down(at);
    }

    fn keepalived(&mut self, at: usize) {
        let settings = block("cluster/keepalived.md", "DEVICE=/dev/nbd0");
        let notify = "/usr/libexec/twinblk/keepalived-notify r0 INSTANCE r0";
        let check = "/usr/libexec/twinblk/keepalived-check r0";
        let machine = self.machine(at);
        let stuck = "DOWN_TIMEOUT=3\nON_STUCK='touch /run/stuck'\n";
        machine.put(
            "/etc/twinblk/cluster/r0.conf",
            &format!("{settings}{stuck}"),
        );
        machine.ok(&format!(
            "{check}; {notify} BACKUP 100; {notify} MASTER 100; {notify} MASTER 100"
        ));
        self.serves(at, "keepalived");
        let machine = self.machine(at);
        machine.ok(&format!(
            "{check}; systemctl stop postgresql@15-main; ! {check}; systemctl start postgresql@15-main; {check}"
        ));
        // Somebody's shell is there.
        machine.ok("(cd /srv; setsid sleep 10000 >/dev/null 2>&1 & echo $! >/run/shell)");
        let refused = machine.run(&format!("{notify} FAULT 100"));
        assert_eq!(refused.code, 1, "{}", refused.output);
        assert!(refused.output.contains("in use"), "{}", refused.output);
        machine.ok("[ -e /run/stuck ]; [ $(twinblk role r0) = Primary ]; kill $(cat /run/shell)");
        machine.ok(&format!("{notify} BACKUP 100"));
        self.down(at);

        let machine = self.machine(at);
        machine.ok("mkfifo /run/fifo
            setsid /usr/libexec/twinblk/keepalived-fifo r0 /run/fifo >/dev/null 2>&1 &");
        machine.ok("echo 'INSTANCE \"r0\" MASTER 100' >/run/fifo");
        wait_for(
            "the fifo's MASTER to be carried out",
            || {
                (self
                    .machine(at)
                    .run(&format!("findmnt /srv && pg_isready -q && {check}"))
                    .code
                    == 0)
                    .then_some(())
            },
            || "it is not".into(),
        );
        self.serves(at, "the fifo of keepalived");
        self.machine(at)
            .ok("echo 'INSTANCE \"r0\" STOP 100' >/run/fifo");
        self.wait_down(at);
    }

    fn ucarp(&mut self, at: usize) {
        let settings = block("cluster/ucarp.md", "ADDRESS=10.0.0.100/24");
        let machine = self.machine(at);
        machine.put("/etc/twinblk/cluster/r0.conf", &settings);
        machine.ok("/usr/libexec/twinblk/ucarp-vip-up eth1 10.0.0.100 r0");
        wait_for(
            "the address, which comes last",
            || {
                (self
                    .machine(at)
                    .run("ip address show dev eth1 | grep -q 10.0.0.100/24")
                    .code
                    == 0)
                    .then_some(())
            },
            || "it does not come".into(),
        );
        self.serves(at, "ucarp");
        // From outside, as clients come.
        self.machine(1 - at).ok("pg_isready -q -h 10.0.0.100");
        let machine = self.machine(at);
        machine.ok("/usr/libexec/twinblk/ucarp-vip-down eth1 10.0.0.100 r0
            ! ip address show dev eth1 | grep -q 10.0.0.100");
        self.wait_down(at);
    }

    fn own_script(&mut self, at: usize) {
        let script = adapted(
            "cluster/hook.md",
            "# failover up|down",
            &[("dev eth0", "dev eth1"), ("-I eth0", "-I eth1")],
        );
        let machine = self.machine(at);
        machine.put("/run/failover", &script);
        machine.ok("chmod +x /run/failover; /run/failover up; /run/failover up");
        self.serves(at, "a script of its own");
        self.machine(at)
            .ok("/run/failover down; /run/failover down");
        self.down(at);
    }

    fn systemd(&mut self, at: usize) {
        let page = "cluster/systemd.md";
        let eth = [(" dev eth0", " dev eth1"), ("-I eth0", "-I eth1")];
        let files = [
            ("/etc/fstab", block(page, "x-systemd.requires=twinblk@r0")),
            (
                "/etc/systemd/system/site.target",
                block(page, "Description=The database"),
            ),
            (
                "/etc/systemd/system/postgresql@15-main.service.d/site.conf",
                block(page, "RequiresMountsFor=/srv"),
            ),
            (
                "/etc/systemd/system/address.service",
                adapted(page, "BindsTo=postgresql", &eth),
            ),
            (
                "/etc/systemd/system/twinblk@r0.service.d/failure.conf",
                block(page, "OnFailure="),
            ),
            (
                "/etc/systemd/system/tell-somebody@.service",
                "[Service]\nType=oneshot\nExecStart=sh -c 'echo %i >>/run/told'\n".into(),
            ),
        ];
        let machine = self.machine(at);
        for (path, text) in files {
            machine.ok(&format!("mkdir -p $(dirname {path})"));
            machine.put(path, &text);
        }
        machine.ok("systemctl daemon-reload");
        // Where the role is refused, nothing on top is started, and somebody is told.
        self.machine(1 - at).ok("twinblk hook r0 up");
        let machine = self.machine(at);
        assert_ne!(machine.run("systemctl start site.target").code, 0);
        assert_eq!(machine.ok("cat /run/told"), "twinblk@r0.service\n");
        self.down(at);
        self.machine(1 - at).ok("twinblk hook r0 down");

        let machine = self.machine(at);
        machine.ok("systemctl reset-failed; systemctl start site.target
            ip address show dev eth1 | grep -q 10.0.0.100/24");
        self.serves(at, "systemd");
        self.machine(at).ok("systemctl stop site.target twinblk@r0");
        self.down(at);
    }
}

#[test]
fn what_failover_daemons_call_carries_a_database_from_machine_to_machine() {
    if !crate::long_form() {
        return;
    }
    let mut site = Site::serving_nowhere();
    site.own_script(1);
    site.systemd(0);
    site.heartbeat(1);
    site.keepalived(0);
    site.ucarp(1);
    site.pair.wait_in_sync();
    site.machine(1)
        .ok("twinblk hook r0 up; e2fsck -f -n /dev/nbd0; twinblk hook r0 down");
    let size = site.pair.data_size();
    site.pair.compare(size);
    println!(
        "{} in turn, all rows there, both disks equal",
        site.rows.len()
    );
}

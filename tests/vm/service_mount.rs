//! A file system of r0 in /etc/fstab as docs/install.md says, under a real systemd and udev: what is on top is
//! started and stopped by the names of units alone.
//!
//! Invariants: to start what needs the mount promotes, attaches, mounts, in this order; to stop the role, or the
//! daemon, stops, unmounts and demotes, in this order, and leaves no device; a daemon that is restarted takes
//! nothing away from anybody.

use crate::harness::wait_for;
use crate::machine::{Machine, Root};
use crate::pair::{Pair, Setup};

const FSTAB: &str =
    "/dev/nbd0  /srv  ext4  _netdev,noauto,nofail,x-systemd.requires=twinblk@r0.service  0  2\n";

/// Writes down what it finds when it is started and stopped.
const ON_TOP: &str = "[Unit]
RequiresMountsFor=/srv
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -c 'echo started on $(findmnt -n -o SOURCE /srv) as $(twinblk role r0) >>/srv/log'
ExecStop=sh -c 'echo stopped on $(findmnt -n -o SOURCE /srv) as $(twinblk role r0) >>/srv/log; sync /srv/log'
";

fn is(machine: &mut Machine, unit: &str, wanted: &str) {
    let state = machine.run(&format!("systemctl is-active {unit}")).output;
    assert_eq!(state.trim(), wanted, "{unit}");
}

/// Stopped in order, with nothing left.
fn all_stopped(machine: &mut Machine) {
    for unit in ["on-top", "srv.mount", "twinblk@r0"] {
        is(machine, unit, "inactive");
    }
    machine.ok("! findmnt /srv; [ ! -e /sys/block/nbd0/pid ]; [ ! -L /dev/twinblk/r0 ]");
}

#[test]
fn a_mount_in_fstab_comes_and_goes_with_the_role() {
    if !crate::long_form() {
        return;
    }
    let setup = Setup {
        roots: [Root::Systemd, Root::Small],
        node: "device = \"/dev/nbd0\"",
        ..Setup::default()
    };
    let mut pair = Pair::both_secondary(40 << 20, setup);
    let size = pair.data_size();
    let alpha = &mut pair.machines[0];
    alpha.put("/etc/systemd/system/on-top.service", ON_TOP);
    alpha.put("/etc/fstab", FSTAB);
    alpha.ok(
        "twinblk primary r0; mkfs.ext4 -q /dev/nbd0; udevadm settle; twinblk secondary r0
        systemctl daemon-reload",
    );

    alpha.ok("systemctl start on-top");
    for unit in ["on-top", "srv.mount", "twinblk@r0"] {
        is(alpha, unit, "active");
    }
    assert_eq!(
        alpha.ok("cat /srv/log; findmnt -n -o SOURCE /srv"),
        "started on /dev/nbd0 as Primary\n/dev/nbd0\n"
    );

    // Nobody notices.
    let before = alpha.ok("systemctl show -p MainPID twinblk; stat -c %Y:%i /srv/log");
    alpha.ok("systemctl restart twinblk");
    wait_for(
        "the device to be served",
        || {
            (alpha
                .run("twinblk status r0 | grep -q device:/dev/nbd0")
                .code
                == 0)
                .then_some(())
        },
        || "it is not".into(),
    );
    alpha.ok("echo still here >>/srv/log; sync /srv/log");
    assert_ne!(
        alpha.ok("systemctl show -p MainPID twinblk; stat -c %Y:%i /srv/log"),
        before,
        "another daemon"
    );
    for unit in ["on-top", "srv.mount", "twinblk@r0"] {
        is(alpha, unit, "active");
    }

    alpha.ok("systemctl stop twinblk@r0");
    all_stopped(alpha);
    assert_eq!(alpha.ok("twinblk role r0").trim(), "Secondary");
    // The mount alone, and the daemon.
    alpha.ok("systemctl start srv.mount; systemctl start on-top; systemctl stop twinblk");
    all_stopped(alpha);
    is(alpha, "twinblk", "inactive");

    // Each was on the device when it was told, and is on both disks.
    alpha.ok("systemctl start twinblk");
    pair.wait_in_sync();
    let bravo = &mut pair.machines[1];
    bravo.ok(
        "modprobe nbd; twinblk primary r0; e2fsck -f -n /dev/nbd0; mount -t ext4 /dev/nbd0 /mnt",
    );
    let told = bravo.ok("cat /mnt/log; umount /mnt; twinblk secondary r0 >/dev/null");
    let (started, stopped) = (
        "started on /dev/nbd0 as Primary\n",
        "stopped on /dev/nbd0 as Primary\n",
    );
    assert_eq!(
        told,
        format!("{started}still here\n{stopped}{started}{stopped}")
    );
    pair.compare(size);
}

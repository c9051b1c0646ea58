//! The units of `packaging/systemd` under a real systemd: what a person does with `systemctl`, and what
//! systemd does by itself when the daemon dies or hangs.
//!
//! Invariants: `systemctl start` ends when the daemon works, or says with its exit code that it does not;
//! `twinblk@r0` is active only where r0 is Primary; a daemon that dies or hangs comes back without help,
//! Primary where it was, and nothing that needs r0 is stopped by that; whoever takes the role or the daemon
//! away stops what needs it first; where another node has become Primary meanwhile, it is stopped as well.

use crate::harness::wait_for;
use crate::machine::{Machine, Root};
use crate::pair::{Pair, Setup};

/// Stands for a mount: it needs r0, and writes down when it is stopped, and whether r0 was Primary then.
const NEEDS_R0: &str = "[Unit]
Requires=twinblk@r0.service
After=twinblk@r0.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=true
ExecStop=sh -c 'echo stopped as $(twinblk role r0) >>/run/needs-r0.log'
";

/// Short enough to wait for, long enough for an emulated processor on a busy host.
const WATCHDOG: &str = "[Service]\nWatchdogSec=20\n";

fn property(machine: &mut Machine, unit: &str, name: &str) -> String {
    let text = machine.ok(&format!("systemctl show --value -p {name} {unit}"));
    text.trim().to_owned()
}

fn role(machine: &mut Machine) -> String {
    machine.run("twinblk role r0").output.trim().to_owned()
}

/// Waits until the daemon has another process than `before` and is ready, and r0 is Primary.
fn wait_for_another(machine: &mut Machine, before: &str, what: &str) -> String {
    let words = std::cell::RefCell::new(String::new());
    wait_for(
        what,
        || {
            let pid = property(machine, "twinblk", "MainPID");
            let state = property(machine, "twinblk", "ActiveState");
            let role = role(machine);
            *words.borrow_mut() = format!("pid {pid}, before {before}, {state}, {role}");
            (pid != before && pid != "0" && state == "active" && role == "Primary").then_some(pid)
        },
        || words.borrow().clone(),
    )
}

#[test]
fn systemd_starts_promotes_and_revives() {
    let setup = Setup {
        roots: [Root::Systemd, Root::Small],
        ..Setup::default()
    };
    let mut pair = Pair::bare(24 << 20, setup);
    for machine in &mut pair.machines {
        machine.ok("twinblk create-md r0");
    }
    let alpha = &mut pair.machines[0];
    // Before systemd has read them.
    alpha.put("/usr/lib/systemd/system/needs-r0.service", NEEDS_R0);
    alpha.ok("mkdir -p /etc/systemd/system/twinblk.service.d");
    alpha.put(
        "/etc/systemd/system/twinblk.service.d/watchdog.conf",
        WATCHDOG,
    );
    alpha.ok("systemd-analyze verify twinblk.service twinblk@r0.service");
    // A configuration that is wrong is told at once, and not tried for ever.
    alpha.ok("mv /etc/twinblk/r0.toml /run; echo 'nonsense = 1' >/etc/twinblk/r0.toml");
    assert_ne!(alpha.run("systemctl start twinblk").code, 0);
    assert_eq!(property(alpha, "twinblk", "ExecMainStatus"), "21");
    assert_eq!(property(alpha, "twinblk", "ActiveState"), "failed");
    alpha.ok("mv /run/r0.toml /etc/twinblk");
    // Started means that it answers.
    alpha.ok("systemctl start twinblk; twinblk status; twinblk up r0");
    pair.start(&[1]);
    let [alpha, bravo] = &mut pair.machines;
    bravo.ok("twinblk wait-connect r0 --timeout 60; twinblk new-current-uuid --clear-bitmap r0");

    bravo.ok("twinblk wait-sync r0 --timeout 60; twinblk primary r0");
    assert_ne!(
        alpha.run("systemctl start twinblk@r0").code,
        0,
        "there is a Primary"
    );
    assert_eq!(property(alpha, "twinblk@r0", "ActiveState"), "failed");
    let code = property(alpha, "twinblk@r0", "ExecMainStatus");
    assert_eq!(code, "11", "what `twinblk primary` ended with");
    assert_eq!(role(alpha), "Secondary");
    bravo.ok("twinblk secondary r0");
    alpha.ok("systemctl start needs-r0");
    assert_eq!(role(alpha), "Primary");
    let words = wait_for(
        "the state in systemctl's words",
        || {
            let words = property(alpha, "twinblk", "StatusText");
            words.contains("Primary: 1").then_some(words)
        },
        || "it stays away".into(),
    );

    // Killed.
    let first = property(alpha, "twinblk", "MainPID");
    alpha.ok("systemctl kill -s KILL twinblk");
    let second = wait_for_another(alpha, &first, "the daemon to come back after SIGKILL");
    // Hung.
    alpha.ok("systemctl kill -s STOP twinblk");
    let third = wait_for_another(alpha, &second, "the watchdog to end a stopped daemon");
    alpha.ok("journalctl -q -u twinblk | grep -i 'watchdog timeout'");
    assert_eq!(property(alpha, "twinblk", "NRestarts"), "2");
    // Upgraded.
    alpha.ok("systemctl restart twinblk");
    wait_for_another(alpha, &third, "r0 to be Primary after a restart");
    assert_eq!(property(alpha, "needs-r0", "ActiveState"), "active");
    assert_eq!(property(alpha, "twinblk@r0", "ActiveState"), "active");
    assert_ne!(
        alpha.run("test -e /run/needs-r0.log").code,
        0,
        "nobody stopped it"
    );

    // The role goes away, then the daemon: what needs it is stopped while there is still a Primary.
    alpha.ok("systemctl stop twinblk@r0");
    assert_eq!(role(alpha), "Secondary");
    assert_eq!(alpha.ok("cat /run/needs-r0.log"), "stopped as Primary\n");
    alpha.ok("rm /run/needs-r0.log; systemctl start needs-r0; systemctl stop twinblk");
    assert_eq!(alpha.ok("cat /run/needs-r0.log"), "stopped as Primary\n");
    for unit in ["needs-r0", "twinblk@r0", "twinblk"] {
        assert_eq!(property(alpha, unit, "ActiveState"), "inactive", "{unit}");
    }
    // A start that has waited for its peer long enough goes on without.
    bravo.ok("twinblk down r0");
    alpha.ok("systemctl start needs-r0");
    assert_eq!(role(alpha), "Primary");
    bravo.ok(
        "twinblk up r0; twinblk wait-connect r0 --timeout 60; twinblk wait-sync r0 --timeout 60",
    );

    // The role moves away while systemd knows nothing of it; a daemon that comes back does not insist.
    alpha.ok("twinblk secondary r0");
    bravo.ok("twinblk primary r0");
    alpha.ok("systemctl kill -s KILL twinblk");
    wait_for(
        "what needs r0 to be stopped on the node that is not Primary any more",
        || (property(alpha, "twinblk@r0", "ActiveState") == "inactive").then_some(()),
        || "twinblk@r0 is active still".into(),
    );
    assert_eq!(property(alpha, "needs-r0", "ActiveState"), "inactive");
    assert_eq!(role(alpha), "Secondary");
    assert_eq!(role(bravo), "Primary");
    println!(
        "systemctl said \"{words}\"; started, killed, hung, restarted: Primary each time; boot: {}",
        alpha.ok("systemd-analyze time | head -1").trim()
    );
}

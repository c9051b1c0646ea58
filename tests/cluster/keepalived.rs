//! keepalived: VRRP, the notify and check scripts.

use super::addresses::{
    address_link_cut, both_links_cut, both_links_cut_with_fencing, daemon_and_machine_die, serving,
};
use super::pair::Pair;

/// As in docs/cluster/keepalived.md.
const CONFIGURATION: &str = "global_defs {
    router_id NAME
    script_user root
    enable_script_security
}
vrrp_script twinblk_r0 {
    script \"/usr/libexec/twinblk/keepalived-check r0\"
    interval 2
    timeout 10
    fall 1
    rise 2
}
vrrp_instance r0 {
    state BACKUP
    nopreempt
    interface eth0
    virtual_router_id 51
    priority 100
    advert_int 1
    virtual_ipaddress {
        10.88.0.100/24 dev eth0
    }
    track_script {
        twinblk_r0
    }
    notify \"/usr/libexec/twinblk/keepalived-notify r0\"
}
";

fn start(pair: &Pair, node: usize) {
    let machine = &pair.machines[node];
    let text = CONFIGURATION.replace("NAME", machine.name);
    machine.write("/etc/keepalived/keepalived.conf", &text, 0o600);
    machine.spawn(
        "keepalived",
        "exec keepalived -n -l -D -f /etc/keepalived/keepalived.conf",
    );
}

/// The same with the fifo instead of the script.
fn start_with_fifo(pair: &Pair, node: usize) {
    let machine = &pair.machines[node];
    let text = CONFIGURATION
        .replace("NAME", machine.name)
        .replace(
            "    notify \"/usr/libexec/twinblk/keepalived-notify r0\"\n",
            "",
        )
        .replace(
            "    script_user root\n",
            "    script_user root\n    vrrp_notify_fifo /run/keepalived-twinblk.fifo\n    \
             vrrp_notify_fifo_script \"/usr/libexec/twinblk/keepalived-fifo r0\"\n",
        );
    assert!(text.contains("keepalived-fifo") && !text.contains("keepalived-notify"));
    machine.write("/etc/keepalived/keepalived.conf", &text, 0o600);
    machine.spawn(
        "keepalived",
        "exec keepalived -n -l -D -f /etc/keepalived/keepalived.conf",
    );
}

#[test]
fn failover_by_keepalived() {
    let (mut pair, writer, node) = serving(start);
    let node = daemon_and_machine_die(&mut pair, &writer, node, start);
    address_link_cut(&pair, &writer, node);
}

#[test]
fn keepalived_without_any_link_and_without_fencing() {
    if crate::all() {
        let (mut pair, writer, node) = serving(start_with_fifo);
        daemon_and_machine_die(&mut pair, &writer, node, start_with_fifo);
        both_links_cut(&pair, writer);
    }
}

/// The classic at boot: "master" and "backup" in quick turns, on both nodes, before and while twinblk's
/// daemons find one another. One serves in the end, the one that was told so last.
#[test]
fn keepalived_flaps_on_both_nodes_at_boot() {
    if !crate::all() {
        return;
    }
    let (mut pair, writer, _) = serving(start);
    for machine in &pair.machines {
        machine.ok("kill $(cat /run/keepalived.pid)");
        // Each call that is refused waits so long for the peer to change its mind.
        machine.ok("echo UP_TIMEOUT=10 >>/etc/twinblk/cluster/r0.conf");
    }
    for round in 0..4 {
        for node in 0..2 {
            pair.power_off(node);
        }
        for node in 0..2 {
            pair.boot(node);
            pair.machines[node].spawn(
                "flapping",
                "for word in MASTER BACKUP MASTER BACKUP MASTER; do \
                 /usr/libexec/twinblk/keepalived-notify r0 INSTANCE any $word 100 & sleep 0.2; done; wait; \
                 touch /run/flapped",
            );
        }
        for machine in &pair.machines {
            machine.ok("twinblk-start");
        }
        let (last, first) = (round % 2, 1 - round % 2);
        for machine in &pair.machines {
            crate::wait(
                "all calls to end",
                || {
                    machine
                        .run("test -e /run/flapped")
                        .status
                        .success()
                        .then_some(())
                },
                || pair.describe(),
            );
        }
        assert!(pair.primaries().len() <= 1, "{}", pair.describe());
        let call = |node: usize, word: &str| {
            pair.machines[node]
                .run(&format!(
                    "/usr/libexec/twinblk/keepalived-notify r0 INSTANCE any {word} 100"
                ))
                .status
                .success()
        };
        assert!(call(first, "BACKUP"), "{}", pair.describe());
        assert!(call(last, "MASTER"), "{}", pair.describe());
        assert_eq!(
            pair.primaries(),
            [last],
            "round {round}\n{}",
            pair.describe()
        );
        assert!(!pair.machines[first].run("service status").status.success());
        pair.machines[last].ok("service status");
        pair.wait_in_sync();
        for machine in &pair.machines {
            let log = machine.ok("cat /var/log/twinblk.log");
            assert!(!log.contains("split brain"), "{log}");
        }
        pair.tell(&format!(
            "round {round}: {} serves",
            pair.machines[last].name
        ));
    }
    for node in 0..2 {
        pair.power_off(node);
    }
    for node in 0..2 {
        pair.power_on(node);
        start(&pair, node);
    }
    super::addresses::settled(&pair, &writer);
}

#[test]
fn keepalived_without_any_link_and_with_fencing() {
    if crate::all() && crate::fencing() {
        both_links_cut_with_fencing(start);
    }
}

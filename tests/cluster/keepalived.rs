//! keepalived: VRRP, the notify and check scripts.

use super::addresses::{address_link_cut, both_links_cut, daemon_and_machine_die, serving};
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

#[test]
fn failover_by_keepalived() {
    let (mut pair, writer, node) = serving(start);
    let node = daemon_and_machine_die(&mut pair, &writer, node, start);
    address_link_cut(&pair, &writer, node);
}

#[test]
fn keepalived_without_any_link_and_without_fencing() {
    if crate::all() {
        let (pair, writer, _) = serving(start);
        both_links_cut(&pair, writer);
    }
}

//! ucarp: CARP, the up and down scripts, and the watch beside it.

use super::addresses::{
    address_link_cut, both_links_cut, both_links_cut_with_fencing, daemon_and_machine_die, serving,
};
use super::pair::Pair;

fn start(pair: &Pair, node: usize) {
    let machine = &pair.machines[node];
    let source = format!("10.88.0.{}", node + 1);
    machine.spawn(
        "ucarp",
        &format!(
            "exec ucarp --interface=eth0 --srcip={source} --vhid=1 --pass=secret --addr=10.88.0.100 \
             --advbase=1 --deadratio=3 --shutdown --xparam=r0 \
             --upscript=/usr/libexec/twinblk/ucarp-vip-up --downscript=/usr/libexec/twinblk/ucarp-vip-down"
        ),
    );
    machine.spawn(
        "watch",
        "TWINBLK_GRACE=20 TWINBLK_CHECK='/usr/local/sbin/service status' \
         exec /usr/libexec/twinblk/watch r0 'pkill -USR2 -x ucarp'",
    );
}

#[test]
fn failover_by_ucarp() {
    let (mut pair, writer, node) = serving(start);
    let node = daemon_and_machine_die(&mut pair, &writer, node, start);
    if crate::all() {
        address_link_cut(&pair, &writer, node);
    }
}

#[test]
fn ucarp_without_any_link_and_without_fencing() {
    if crate::all() {
        let (pair, writer, _) = serving(start);
        both_links_cut(&pair, writer);
    }
}

#[test]
fn ucarp_without_any_link_and_with_fencing() {
    if crate::all() && crate::fencing() {
        both_links_cut_with_fencing(start);
    }
}

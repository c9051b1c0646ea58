//! A pair of whole Debians whose daemons attach r0 as /dev/nbd0, for stories about what is on it.

use crate::machine::{Machine, Root};
use crate::pair::{Pair, Setup};

/// Where r0 is on the Primary.
pub(crate) const DEVICE: &str = "/dev/nbd0";

/// Both disks are UpToDate and equal, alpha is Primary and has the device.
pub(crate) fn pair(size: usize) -> Pair {
    let setup = Setup {
        roots: [Root::Debian; 2],
        node: "device = \"/dev/nbd0\"",
        ..Setup::default()
    };
    let mut pair = Pair::both_secondary(size, setup);
    promote(&mut pair.machines[0]);
    pair
}

/// Makes a machine Primary: with the role comes the device.
pub(crate) fn promote(machine: &mut Machine) {
    machine.ok(&format!(
        "modprobe nbd; twinblk primary r0; [ \"$(readlink -f /dev/twinblk/r0)\" = {DEVICE} ]"
    ));
}

/// With the role the device goes. Nothing uses it any more.
pub(crate) fn demote(machine: &mut Machine) {
    machine.ok("twinblk secondary r0; [ ! -e /sys/block/nbd0/pid ]");
}

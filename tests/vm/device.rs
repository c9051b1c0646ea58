//! How a story gets the block device of r0, and gives it back. In one place, because who attaches it is
//! not what the stories are about.

use crate::kernel_device::ATTACH;
use crate::machine::Machine;

/// Where it is on the Primary.
pub(crate) const DEVICE: &str = "/dev/nbd0";

/// Makes a machine Primary, with the device.
pub(crate) fn promote(machine: &mut Machine) {
    machine.ok("twinblk primary r0");
    attach(machine);
}

/// The device on a machine that is Primary.
pub(crate) fn attach(machine: &mut Machine) {
    machine.ok(ATTACH);
}

/// Takes the device and the role away; nothing uses it any more.
pub(crate) fn demote(machine: &mut Machine) {
    machine.ok(&format!("nbd-client -d {DEVICE}; twinblk secondary r0"));
}

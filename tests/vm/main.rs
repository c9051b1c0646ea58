//! Real Debian kernels under QEMU, and power cuts that lose what was not flushed. `tests/vm/run` runs
//! them, all or by name; CONTRIBUTING.md says how to get a shell in a guest.
//!
//! * [`machine`]: a guest; [`disk`]: its disk, which really loses unflushed writes; [`pair`]: two guests
//!   with twinblk on them;
//! * `image`, `guest/init`: what guests boot from;
//! * the other modules: the stories.

#[path = "../harness/mod.rs"]
mod harness;

mod device;
mod device_restart;
mod disk;
mod file_system;
mod kernel_device;
mod losing_disk;
mod machine;
mod pair;
mod power_cut;

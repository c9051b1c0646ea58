//! Real Debian kernels under QEMU, and power cuts that lose what was not flushed. `tests/vm/run` runs
//! them, all or by name; CONTRIBUTING.md says how to get a shell in a guest.
//!
//! * [`machine`]: a guest; [`disk`]: its disk, which really loses unflushed writes; [`pair`]: two guests
//!   with twinblk on them;
//! * [`image`] with the scripts `image` and `debian`, `guest/`: what guests boot from;
//! * the other modules: the stories.

#[path = "../harness/mod.rs"]
mod harness;

mod attached;
mod base64;
mod device;
mod device_faults;
mod device_fio;
mod device_holders;
mod device_restart;
mod disk;
mod file_system;
mod image;
mod kernel_device;
mod losing_disk;
mod machine;
mod pair;
mod postgres;
mod power_cut;
mod service;
mod service_mount;
mod trees;
mod user;

//! Real Debian kernels under QEMU, and power cuts that lose what was not flushed. `tests/vm/run` runs
//! them, all or by name; CONTRIBUTING.md says how to get a shell in a guest.
//!
//! * [`machine`]: a guest; [`disk`]: its disk, which really loses unflushed writes; [`pair`]: two guests
//!   with twinblk on them;
//! * [`power`]: their power switch, as a fencing device; [`guide`]: what the documents tell people to do;
//! * [`image`] with the scripts `image` and `debian`, `guest/`: what guests boot from;
//! * the other modules: the stories. `cluster_pacemaker` takes longest, and is the first by its name.
//!
//! Without `TWINBLK_VM_ALL=1` each feature has its story once; [`long_form`] ones are left out.

#[path = "../harness/mod.rs"]
mod harness;

mod attached;
mod base64;
mod cluster_pacemaker;
mod cluster_scripts;
mod device;
mod device_faults;
mod device_fio;
mod device_holders;
mod device_restart;
mod disk;
mod file_system;
mod guide;
mod image;
mod kernel_device;
mod losing_disk;
mod machine;
mod pair;
mod postgres;
mod power;
mod power_cut;
mod service;
mod service_mount;
mod trees;
mod user;

/// The long form was asked for: every story, with all its rounds (`TWINBLK_VM_ALL=1`).
fn all() -> bool {
    std::env::var_os("TWINBLK_VM_ALL").is_some_and(|v| !v.is_empty() && v != "0")
}

/// A story of the long form: whether it is to be told.
fn long_form() -> bool {
    if !all() {
        println!("skipped: a story of the long form, TWINBLK_VM_ALL=1");
    }
    all()
}

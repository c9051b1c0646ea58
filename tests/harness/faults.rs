//! Disks that break.

use std::process::Command;

/// From now on writes to files behind this byte fail, as on a disk that breaks; `None`: no more.
pub fn break_writes(pid: u32, behind: Option<u64>) {
    let limit = behind.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
    let status = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--fsize={limit}:")])
        .status()
        .expect("prlimit (util-linux) runs");
    assert!(status.success());
}

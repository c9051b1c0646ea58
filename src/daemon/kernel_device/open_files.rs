//! Whether a process has a device open.
//!
//! Invariants: a descriptor of the device is recognised whatever the path of its node; and no file is asked
//! about that may be on a server that does not answer.

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::Path;

/// Looks at the descriptors of a process (its directory in /proc). `parts`: name and number of each device.
/// `local`: numbers of the mounts whose files may be asked about. Fails if this process may not look.
pub(super) fn has_open(
    process: &Path,
    parts: &[(String, String)],
    local: &BTreeSet<u64>,
) -> io::Result<bool> {
    let entries = match std::fs::read_dir(process.join("fd")) {
        Ok(entries) => entries,
        Err(error) => return forbidden(error),
    };
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            // The process has ended.
            Err(_) => break,
        };
        let target = match std::fs::read_link(&path) {
            Ok(target) => target.to_string_lossy().into_owned(),
            Err(error) => {
                forbidden(error)?;
                continue;
            }
        };
        // Sockets, pipes and the like have no path.
        if !target.starts_with('/') {
            continue;
        }
        let number = path.file_name().unwrap_or_default();
        let asked = target.contains("/dev/") || {
            let info = std::fs::read_to_string(process.join("fdinfo").join(number));
            mount(&info.unwrap_or_default()).is_some_and(|mount| local.contains(&mount))
        };
        if asked && is_one_of(&path, parts) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is gone is not there; what may not be read is an error.
fn forbidden(error: io::Error) -> io::Result<bool> {
    match error.kind() {
        ErrorKind::PermissionDenied => Err(error),
        _ => Ok(false),
    }
}

/// The mount a descriptor's file is on (proc(5), fdinfo).
fn mount(info: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    line.trim().parse().ok()
}

fn is_one_of(path: &Path, parts: &[(String, String)]) -> bool {
    let Ok(meta) = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE) else {
        return false;
    };
    let number = format!("{}:{}", meta.stx_rdev_major, meta.stx_rdev_minor);
    FileType::from_raw_mode(u32::from(meta.stx_mode)) == FileType::BlockDevice
        && parts.iter().any(|(_, dev)| *dev == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_a_descriptor_is_read() {
        let info = "pos:\t0\nflags:\t0100000\nmnt_id:\t29\nino:\t9\n";
        assert_eq!(mount(info), Some(29));
        assert_eq!(mount("pos: 0\nmnt_id:\tx\n"), None);
    }

    #[test]
    fn who_may_not_be_looked_at_is_no_innocent() {
        let denied = forbidden(ErrorKind::PermissionDenied.into());
        assert!(denied.is_err());
        assert!(!forbidden(ErrorKind::NotFound.into()).expect("it is gone"));
        let gone = has_open(Path::new("/proc/nobody"), &[], &BTreeSet::new());
        assert!(!gone.expect("it is gone"));
    }
}

//! Who holds a kernel device: mounts in any namespace, devices stacked on it, swap, processes. Nothing
//! here touches the device itself, so that none of it waits for a device that nobody serves; only
//! [`claim`] opens it.

use super::sysfs;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One who holds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    /// A file system is mounted there.
    Mount(String),
    /// Another device is built on it: its name, and what people call it.
    Device(String, String),
    /// It is swap space.
    Swap,
    /// A process has it open.
    Process(u32, String),
    /// Somebody in the kernel claims it, and nothing shows who.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount(at) => write!(f, "a file system is mounted at {at}"),
            Self::Device(name, label) if label.is_empty() => write!(f, "{name} is built on it"),
            Self::Device(name, label) => write!(f, "{name} ({label}) is built on it"),
            Self::Swap => write!(f, "it is used as swap space"),
            Self::Process(pid, name) => write!(f, "process {pid} ({name}) has it open"),
            Self::Unknown => write!(
                f,
                "something in the kernel holds it (a mount in a namespace without processes, a \
                 target that exports it, …)"
            ),
        }
    }
}

impl Holder {
    /// One that looks at every new device and goes again by itself.
    pub(super) fn is_passing(&self) -> bool {
        let udev = ["(udev-worker)", "systemd-udevd", "udevd"];
        matches!(self, Self::Process(_, name) if udev.contains(&name.as_str()))
    }

    /// What ends it.
    pub(super) fn way_out(&self) -> String {
        match self {
            Self::Mount(at) => format!("`umount {at}`"),
            Self::Device(name, _) => {
                format!("take {name} down (`vgchange -an`, `dmsetup remove`, …)")
            }
            Self::Swap => "`swapoff` it".to_owned(),
            Self::Process(pid, _) => format!("end process {pid}"),
            Self::Unknown => "find and end it".to_owned(),
        }
    }
}

/// In one sentence.
pub(super) fn in_words(holders: &[Holder]) -> String {
    let words: Vec<String> = holders.iter().map(ToString::to_string).collect();
    words.join("; ")
}

/// Everybody who can be seen to hold /dev/nbd`index` or a partition of it.
pub(super) fn find(index: u32) -> Vec<Holder> {
    let block = Path::new(sysfs::BLOCK);
    let parts = sysfs::parts(block, index);
    let mut found = BTreeSet::new();
    stacked(block, index, &parts, &mut found);
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().any(|l| is_part(&parts, word(l, 0))) {
        found.insert(Holder::Swap);
    }
    let mut namespaces = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let path = entry.path();
        if let Ok(namespace) = std::fs::read_link(path.join("ns/mnt"))
            && namespaces.insert(namespace)
        {
            // A process may end at any moment: what cannot be read is not there.
            let table = std::fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
            found.extend(mounts(&table, &parts));
        }
        if pid != std::process::id() && has_open(&path, &parts) {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            found.insert(Holder::Process(pid, name.trim().to_owned()));
        }
    }
    found.into_iter().collect()
}

fn word(line: &str, at: usize) -> &str {
    line.split_whitespace().nth(at).unwrap_or_default()
}

/// Whether a path is the device or a partition, by its name or through a link.
fn is_part(parts: &[(String, String)], path: &str) -> bool {
    if !path.starts_with('/') {
        return false;
    }
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
    parts
        .iter()
        .any(|(name, _)| real == Path::new("/dev").join(name))
}

/// Device mapper, md, loop devices.
fn stacked(block: &Path, index: u32, parts: &[(String, String)], found: &mut BTreeSet<Holder>) {
    let disk = block.join(format!("nbd{index}"));
    for (name, _) in parts {
        let own = match *name == format!("nbd{index}") {
            true => disk.clone(),
            false => disk.join(name),
        };
        let list = std::fs::read_dir(own.join("holders"));
        for entry in list.into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let label = std::fs::read_to_string(block.join(&name).join("dm/name"));
            let label = label.unwrap_or_default().trim().to_owned();
            found.insert(Holder::Device(name, label));
        }
    }
    for entry in std::fs::read_dir(block).into_iter().flatten().flatten() {
        let behind = std::fs::read_to_string(entry.path().join("loop/backing_file"));
        if behind.is_ok_and(|path| is_part(parts, path.trim())) {
            let name = entry.file_name().to_string_lossy().into_owned();
            found.insert(Holder::Device(name, String::new()));
        }
    }
}

/// Mounts of the device in a table of mounts (proc(5), mountinfo).
fn mounts(table: &str, parts: &[(String, String)]) -> Vec<Holder> {
    let mut found = Vec::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let by_number = parts.iter().any(|(_, dev)| dev == word(left, 2));
        // Some file systems (btrfs) have numbers of their own.
        if by_number || is_part(parts, word(right, 1)) {
            found.push(Holder::Mount(unescaped(word(left, 4))));
        }
    }
    found
}

/// Blanks and the like stand there as three octal digits behind a backslash.
fn unescaped(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let octal = (*first == b'\\')
            .then(|| more.get(..3).and_then(|d| std::str::from_utf8(d).ok()))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        (out, rest) = match octal {
            Some(byte) => ([out, vec![byte]].concat(), &more[3..]),
            None => ([out, vec![*first]].concat(), more),
        };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Whether a process has it open.
fn has_open(process: &Path, parts: &[(String, String)]) -> bool {
    let list = std::fs::read_dir(process.join("fd"));
    list.into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        // Only what looks like a device is looked at: asking a file on a dead server would wait.
        let device = std::fs::read_link(&path).is_ok_and(|t| t.to_string_lossy().contains("/dev/"));
        let meta = device.then(|| std::fs::metadata(&path).ok()).flatten();
        meta.is_some_and(|meta| {
            let (major, minor) = (
                rustix::fs::major(meta.rdev()),
                rustix::fs::minor(meta.rdev()),
            );
            meta.file_type().is_block_device()
                && parts
                    .iter()
                    .any(|(_, dev)| *dev == format!("{major}:{minor}"))
        })
    })
}

/// What came of a [`claim`].
#[derive(Debug)]
pub(super) enum Claim {
    /// Nobody holds it, and as long as this lives nobody can mount it or build on it.
    Free(OwnedFd),
    /// These hold it.
    Held(Vec<Holder>),
}

/// Takes the device for oneself, so that it can be ended. It must be served: opening it may read from it,
/// and what is still in the kernel's cache is written to it.
pub(super) fn claim(index: u32) -> std::io::Result<Claim> {
    // Not for writing: that would make udev look at it again.
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    let device = match rustix::fs::open(format!("/dev/nbd{index}"), flags, Mode::empty()) {
        Ok(device) => device,
        Err(Errno::BUSY) => {
            let mut holders = find(index);
            if holders.is_empty() {
                holders.push(Holder::Unknown);
            }
            return Ok(Claim::Held(holders));
        }
        Err(error) => return Err(error.into()),
    };
    // Those who only have it open are not kept out by the claim.
    let holders = find(index);
    if !holders.is_empty() {
        return Ok(Claim::Held(holders));
    }
    // Who closed it while the claim was there did not have his writes written out.
    rustix::fs::fsync(&device)?;
    Ok(Claim::Free(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Vec<(String, String)> {
        vec![
            ("nbd0".into(), "43:0".into()),
            ("nbd0p1".into(), "43:1".into()),
        ]
    }

    #[test]
    fn mounts_are_found_by_number_and_by_name() {
        let table = "\
22 1 0:21 / /proc rw,relatime - proc proc rw
30 1 43:1 / /srv/my\\040data rw,relatime shared:1 - ext4 /dev/nbd0p1 rw
31 1 43:10 / /other rw - ext4 /dev/nbd10 rw
32 1 0:44 / /btr rw - btrfs /dev/nbd0 rw
33 1 8:1 / / rw - ext4 /dev/sda1 rw
garbage
";
        let at = |path: &str| Holder::Mount(path.into());
        assert_eq!(mounts(table, &parts()), [at("/srv/my data"), at("/btr")]);
    }

    #[test]
    fn octal_digits_are_read_and_nothing_else() {
        assert_eq!(unescaped("/a\\011b\\134"), "/a\tb\\");
        assert_eq!(unescaped("/a\\09"), "/a\\09");
        assert_eq!(unescaped("\\"), "\\");
    }

    #[test]
    fn holders_tell_who_they_are_and_what_ends_them() {
        let all = [
            Holder::Mount("/mnt".into()),
            Holder::Device("dm-0".into(), "vg0-data".into()),
            Holder::Device("loop1".into(), String::new()),
            Holder::Process(812, "fio".into()),
            Holder::Swap,
        ];
        let text = in_words(&all);
        for word in ["/mnt", "dm-0 (vg0-data)", "loop1 is", "812 (fio)", "swap"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert_eq!(all[0].way_out(), "`umount /mnt`");
        assert!(!all[3].is_passing());
        assert!(Holder::Process(9, "(udev-worker)".into()).is_passing());
    }

    #[test]
    fn nobody_holds_a_device_that_is_not_there() {
        assert_eq!(find(32_000), []);
        assert!(claim(32_000).is_err());
    }
}

//! Who holds a kernel device: mounts in any namespace, devices stacked on it, swap, processes. Nothing
//! here touches the device itself, so that none of it waits for a device that nobody serves; [`claim`] has
//! another process open it. Nor is anything asked of a file system that may be on another machine.
//!
//! Invariant: whoever cannot be looked at counts as a holder.

use super::claimant::{self, Claimant};
use super::{open_files as open, sysfs};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the kernel may take to write out what is in its cache.
pub(super) const CLAIM_TIME: Duration = Duration::from_secs(20);

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
    /// A process whose descriptors cannot be read; there may be more.
    Hidden(u32, String),
    /// To look took too long.
    NotFoundOut,
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
            Self::Hidden(pid, name) => write!(
                f,
                "process {pid} ({name}) may have it open: which files it has open cannot be read \
                 (the daemon needs CAP_SYS_PTRACE for that)"
            ),
            Self::NotFoundOut => write!(f, "it takes too long to find out who holds it"),
            Self::Unknown => write!(
                f,
                "something in the kernel holds it (a file system that was unmounted lazily and is \
                 still in use, a mount in a namespace without processes, a target that exports it, …)"
            ),
        }
    }
}

impl Holder {
    /// One that looks at every new device and goes again by itself.
    pub(super) fn is_passing(&self) -> bool {
        let udev = ["(udev-worker)", "systemd-udevd", "udevd"];
        // A claim of an earlier daemon ends as soon as the device is served.
        let passes = |name: &str| udev.contains(&name) || name == claimant::NAME;
        matches!(self, Self::Process(_, name) if passes(name))
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
            Self::Hidden(..) => {
                "run the daemon as root with CAP_SYS_PTRACE (or, if nobody needs the device: \
                 `twinblk down --force`)"
                    .to_owned()
            }
            Self::NotFoundOut => "look at the kernel's log (`dmesg`)".to_owned(),
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
    find_but(index, None)
}

/// The same without one process of ours.
fn find_but(index: u32, ours: Option<u32>) -> Vec<Holder> {
    let block = Path::new(sysfs::BLOCK);
    let parts = sysfs::parts(block, index);
    let mut found = BTreeSet::new();
    stacked(block, index, &parts, &mut found);
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().any(|l| is_part(&parts, word(l, 0))) {
        found.insert(Holder::Swap);
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for (name, file) in loops(block) {
        if is_on(&table, &file, &parts) {
            found.insert(Holder::Device(name, file));
        }
    }
    let processes = processes();
    let mut local = BTreeSet::new();
    let mut namespaces = BTreeSet::new();
    for (_, path) in &processes {
        if let Ok(namespace) = std::fs::read_link(path.join("ns/mnt"))
            && namespaces.insert(namespace)
        {
            // A process may end at any moment: what cannot be read is not there.
            let table = std::fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
            found.extend(mounts(&table, &parts));
            local.extend(local_mounts(&table));
        }
    }
    let mut hidden = None;
    for (pid, path) in processes {
        if pid == std::process::id() || Some(pid) == ours {
            continue;
        }
        let name = || {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            name.trim().to_owned()
        };
        match open::has_open(&path, &parts, &local) {
            Ok(true) => {
                found.insert(Holder::Process(pid, name()));
            }
            Ok(false) => {}
            Err(_) => hidden = hidden.or_else(|| Some(Holder::Hidden(pid, name()))),
        }
    }
    found.extend(hidden);
    found.into_iter().collect()
}

/// All processes, and where to read about them.
fn processes() -> Vec<(u32, PathBuf)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path())))
        .collect()
}

fn word(line: &str, at: usize) -> &str {
    line.split_whitespace().nth(at).unwrap_or_default()
}

/// Whether a path is the device or a partition, by its name or through a link.
fn is_part(parts: &[(String, String)], path: &str) -> bool {
    // Elsewhere nobody looks: to follow a name on a dead server would wait for it.
    if !path.starts_with("/dev/") {
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
    for (name, behind) in loops(block) {
        if is_part(parts, &behind) {
            found.insert(Holder::Device(name, String::new()));
        }
    }
}

/// Loop devices in use, and what is behind them.
fn loops(block: &Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(block).into_iter().flatten().flatten();
    let one = |entry: std::fs::DirEntry| {
        let behind = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        let name = entry.file_name().to_string_lossy().into_owned();
        Some((name, behind.trim_end_matches('\n').to_owned()))
    };
    entries.filter_map(one).collect()
}

/// Whether a file is on a file system of the device, by a table of mounts: nothing is asked of the file.
fn is_on(table: &str, file: &str, parts: &[(String, String)]) -> bool {
    // The longest path that leads to it; of several mounts at one place the last hides the others.
    let mount = |line: &&str| {
        let at = unescaped(word(line, 4));
        Path::new(file).starts_with(&at).then_some(at.len())
    };
    let nearest = table.lines().max_by_key(mount);
    nearest.is_some_and(|line| mount(&line).is_some() && !mounts(line, parts).is_empty())
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

/// Numbers of the mounts in such a table whose files are on this machine, as far as one can know.
fn local_mounts(table: &str) -> Vec<u64> {
    // Their answers come from elsewhere, or from a process.
    const REMOTE: [&str; 12] = [
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "afs", "coda", "ocfs2", "gfs2",
        "lustre",
    ];
    let mut numbers = Vec::new();
    for line in table.lines() {
        let kind = line
            .split_once(" - ")
            .map_or("", |(_, right)| word(right, 0));
        if !REMOTE.contains(&kind) && !kind.starts_with("fuse") {
            numbers.extend(word(line, 0).parse::<u64>());
        }
    }
    numbers
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

/// What came of a [`claim`].
#[derive(Debug)]
pub(super) enum Claim {
    /// Nobody holds it, and as long as this lives nobody can mount it or build on it.
    Free(Claimant),
    /// These hold it.
    Held(Vec<Holder>),
}

/// Takes the device for oneself, so that it can be ended. It must be served: opening it may read from it,
/// and what is still in the kernel's cache is written to it. Takes [`CLAIM_TIME`] at most; the error is then
/// `TimedOut`.
pub(super) fn claim(index: u32) -> std::io::Result<Claim> {
    let mut claimant = Claimant::start(index, CLAIM_TIME)?;
    match claimant.wait_open() {
        Ok(()) => {}
        Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {
            let mut holders = find_but(index, Some(claimant.id()));
            if holders.is_empty() {
                holders.push(Holder::Unknown);
            }
            return Ok(Claim::Held(holders));
        }
        Err(error) => return Err(error),
    }
    // Those who only have it open are not kept out by the claim.
    let holders = find_but(index, Some(claimant.id()));
    if !holders.is_empty() {
        return Ok(Claim::Held(holders));
    }
    claimant.clean()?;
    Ok(Claim::Free(claimant))
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
    fn the_file_system_of_a_file_is_that_of_the_nearest_mount() {
        let table = "\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
30 1 43:1 / /srv rw,relatime shared:1 - ext4 /dev/nbd0p1 rw
31 30 8:2 / /srv/other rw - ext4 /dev/sda2 rw
32 1 43:1 / /hidden rw - ext4 /dev/nbd0p1 rw
33 1 8:3 / /hidden rw - ext4 /dev/sda3 rw
garbage
";
        let on = |file: &str| is_on(table, file, &parts());
        assert!(on("/srv/image") && on("/srv/a/b"));
        assert!(!on("/srv/other/image") && !on("/srvother/image") && !on("/image"));
        assert!(!on("/hidden/image"));
    }

    #[test]
    fn mounts_from_elsewhere_are_told_apart() {
        let table = "\
22 1 0:21 / /proc rw,relatime - proc proc rw
23 1 0:99 / /far rw - nfs4 server:/far rw
24 1 0:98 / /home rw shared:1 - fuse.sshfs me@there: rw
25 1 0:5 / /jail/dev rw - devtmpfs udev rw
garbage
";
        assert_eq!(local_mounts(table), [22, 25]);
    }

    #[test]
    fn a_source_elsewhere_is_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).expect("a link");
        let parts = [("null".to_owned(), "1:3".to_owned())];
        assert!(!is_part(&parts, link.to_str().expect("text")));
        assert!(is_part(&parts, "/dev/null"));
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
            Holder::Hidden(813, "vault".into()),
        ];
        let text = in_words(&all);
        for word in [
            "/mnt",
            "dm-0 (vg0-data)",
            "loop1 is",
            "812 (fio)",
            "swap",
            "813 (vault) may",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert_eq!(all[0].way_out(), "`umount /mnt`");
        assert!(!all[3].is_passing());
        assert!(Holder::Process(9, "(udev-worker)".into()).is_passing());
        assert!(Holder::Process(9, claimant::NAME.into()).is_passing());
    }

    #[test]
    fn nobody_holds_a_device_that_is_not_there() {
        let found = find(32_000);
        let seen = |h: &Holder| !matches!(h, Holder::Hidden(..));
        assert!(!found.iter().any(seen), "{found:?}");
    }
}

//! Opening the disks of a volume for the verbs that work on metadata without a daemon, under the
//! lock that a daemon holds while it uses the disk.

use super::exit::{CliError, Code};
use crate::config::{MetaDisk, Volume};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, FileType, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use twinblk_engine::metadata::image::{Image, Step};
use twinblk_engine::metadata::layout::Placement;
use twinblk_engine::metadata::open::{OpenError, ReadAt, ReadError};

/// How long to wait for the lock of a process that is just ending: a child it started may hold it for
/// a moment longer.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// An open disk.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// Bytes.
    pub(super) size: u64,
    /// Nobody else uses it.
    pub(super) exclusive: bool,
}

/// Opens a disk to write to it. Nobody else may use it. `size` is what to suggest when it is not
/// there.
pub(super) fn open_exclusive(path: &Path, size: &str) -> Result<Disk, CliError> {
    let kind = kind(path).map_err(|e| e.suggest(path, size))?;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if kind.is_block_device() {
        // The kernel refuses this while the device is mounted or otherwise claimed.
        options.custom_flags(libc::O_EXCL);
    }
    lock(path, options.open(path).map_err(|e| not_opened(path, &e))?)
}

/// Opens a disk to look at it while nobody writes to it.
pub(super) fn open_at_rest(path: &Path) -> Result<Disk, CliError> {
    let mut options = OpenOptions::new();
    options.read(true);
    if kind(path)?.is_block_device() {
        options.custom_flags(libc::O_EXCL);
    }
    lock(path, options.open(path).map_err(|e| not_opened(path, &e))?)
}

fn lock(path: &Path, file: File) -> Result<Disk, CliError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return finish(path, file, true),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(in_use(path, "another process holds its lock"));
            }
            Err(e) => return Err(not_opened(path, &e.into())),
        }
    }
}

/// Opens a disk to look at it. It may be in use.
pub(super) fn open_to_read(path: &Path) -> Result<Disk, CliError> {
    let kind = kind(path)?;
    let file = File::open(path).map_err(|e| not_opened(path, &e))?;
    let in_use = if kind.is_block_device() {
        // There is no way to ask but to claim it, for a moment that a daemon would wait.
        let mut options = OpenOptions::new();
        let claim = options.read(true).custom_flags(libc::O_EXCL).open(path);
        claim.is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY))
    } else {
        // Asking by taking the lock would keep out a daemon that starts at this moment.
        let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        file.metadata()
            .is_ok_and(|meta| is_locked(&locks, meta.dev(), meta.ino()))
    };
    finish(path, file, !in_use)
}

/// Whether `/proc/locks` knows an exclusive lock like a daemon's on this inode.
fn is_locked(locks: &str, device: u64, inode: u64) -> bool {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let wanted = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.contains(&"FLOCK") && words.contains(&"WRITE") && words.contains(&wanted.as_str())
    })
}

/// The disk of a volume and, when the metadata are external, the one they are on.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) disk: Disk,
    pub(super) meta: Option<Disk>,
}

impl Place {
    /// Opens both, each by `open`.
    pub(super) fn open(
        volume: &Volume,
        open: impl Fn(&Path) -> Result<Disk, CliError>,
    ) -> Result<Self, CliError> {
        let disk = open(&volume.disk)?;
        let meta = match &volume.meta {
            MetaDisk::Internal => None,
            MetaDisk::External(path) => Some(open(path)?),
        };
        Ok(Self { disk, meta })
    }

    /// Where the metadata are.
    pub(super) fn target(&self) -> &Disk {
        self.meta.as_ref().unwrap_or(&self.disk)
    }

    pub(super) fn placement(&self) -> Placement {
        match self.meta {
            None => Placement::Internal,
            Some(_) => Placement::External,
        }
    }

    /// Reads all metadata, and tells what was wrong with them.
    pub(super) fn read(&self) -> Result<(Image, Vec<String>), OpenError> {
        let target = self.target();
        let mut device = Device(&target.file);
        Image::read(&mut device, target.size, self.disk.size, self.placement())
    }
}

impl Disk {
    /// The same disk as it is now: a file may have got longer.
    pub(super) fn again(&self) -> Result<Self, CliError> {
        let file = self.file.try_clone();
        let file = file.map_err(|e| not_opened(&self.path, &e))?;
        finish(&self.path, file, self.exclusive)
    }

    /// Carries out a step of writing metadata.
    pub(super) fn step(&self, step: Step<'_>) -> std::io::Result<()> {
        match step {
            Step::Write(offset, data) => self.file.write_all_at(data, offset),
            Step::Flush => self.file.sync_all(),
        }
    }
}

/// A file or block device, for the readers of metadata.
#[derive(Debug)]
pub(super) struct Device<'f>(pub(super) &'f File);

impl ReadAt for Device<'_> {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.0.read_exact_at(buf, offset).map_err(|e| ReadError {
            errno: e.raw_os_error().unwrap_or(libc::EIO),
        })
    }
}

fn finish(path: &Path, mut file: File, exclusive: bool) -> Result<Disk, CliError> {
    // Works for files and block devices alike.
    let size = file
        .seek(SeekFrom::End(0))
        .map_err(|e| not_opened(path, &e))?;
    Ok(Disk {
        file,
        path: path.to_owned(),
        size,
        exclusive,
    })
}

fn kind(path: &Path) -> Result<FileType, CliError> {
    let kind = match std::fs::metadata(path) {
        Ok(meta) => meta.file_type(),
        Err(e) => return Err(not_opened(path, &e)),
    };
    if kind.is_file() || kind.is_block_device() {
        return Ok(kind);
    }
    let what = if kind.is_dir() {
        "a directory"
    } else {
        "a special file"
    };
    Err(CliError::new(
        Code::NoDisk,
        format!("{} is {what}, not a disk", path.display()),
        "a disk is a block device or a regular file",
    ))
}

fn in_use(path: &Path, why: &str) -> CliError {
    CliError::new(
        Code::InUse,
        format!("{} is in use: {why}", path.display()),
        "if a daemon uses it, `twinblk down` the resource first; `lsof`, `findmnt` and `lsblk` \
         tell who else may",
    )
}

fn not_opened(path: &Path, error: &std::io::Error) -> CliError {
    let shown = path.display();
    if error.raw_os_error() == Some(libc::EBUSY) {
        return in_use(path, "it is mounted, or part of something else");
    }
    let next = match error.kind() {
        ErrorKind::NotFound if path.starts_with("/dev") => {
            "a block device must be there before: see `lsblk`".to_owned()
        }
        ErrorKind::PermissionDenied => "run it as root or as the user who owns the disk".to_owned(),
        _ => String::new(),
    };
    CliError::new(
        Code::NoDisk,
        format!("{shown} cannot be opened: {error}"),
        next,
    )
}

impl CliError {
    /// Tells how to make a file that is not there.
    fn suggest(mut self, path: &Path, size: &str) -> Self {
        if self.next.is_empty() && !path.exists() {
            let shown = path.display();
            self.next = format!(
                "a file must have its size before: `fallocate -l {size} {shown}`, or for a thin \
                 one `truncate -s {size} {shown}`"
            );
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_in_use_is_refused_and_can_be_looked_at() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8192).unwrap();
        let first = open_exclusive(file.path(), "1G").unwrap();
        assert_eq!((first.size, first.exclusive), (8192, true));
        let error = open_exclusive(file.path(), "1G").unwrap_err();
        assert_eq!(error.code, 12);
        assert!(
            error.what.contains("another process holds its lock"),
            "{error}"
        );
        assert!(!open_to_read(file.path()).unwrap().exclusive);
        drop(first);
        // A child that another test forks at this moment holds the lock until it is another program.
        let deadline = Instant::now() + Duration::from_secs(20);
        let looking = loop {
            let looking = open_to_read(file.path()).unwrap();
            if looking.exclusive || Instant::now() > deadline {
                break looking;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(looking.exclusive);
        // Looking does not keep others out.
        assert!(open_exclusive(file.path(), "1G").is_ok());
    }

    #[test]
    fn locks_are_found_by_device_and_inode() {
        let locks = "1: FLOCK  ADVISORY  WRITE 812 fe:00:4711 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 813 fe:00:4712 0 EOF\n\
                     3: FLOCK  ADVISORY  READ  814 fe:00:4713 0 EOF\n";
        let device = rustix::fs::makedev(0xfe, 0);
        assert!(is_locked(locks, device, 4711));
        assert!(!is_locked(locks, device, 4712));
        assert!(!is_locked(locks, device, 4713));
        assert!(!is_locked(locks, rustix::fs::makedev(0xfe, 1), 4711));
    }

    #[test]
    fn what_is_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let error = open_exclusive(&dir.path().join("r0.img"), "1G").unwrap_err();
        assert_eq!(error.code, 16);
        assert!(error.next.contains("truncate -s 1G"), "{error}");
        assert!(
            open_exclusive(dir.path(), "1G")
                .unwrap_err()
                .what
                .contains("is a directory")
        );
        assert!(
            open_to_read(Path::new("/dev/null"))
                .unwrap_err()
                .what
                .contains("special file")
        );
        assert!(
            open_to_read(Path::new("/dev/none"))
                .unwrap_err()
                .next
                .contains("lsblk")
        );
    }
}

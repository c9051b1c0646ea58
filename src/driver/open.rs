//! Opening a volume's disk and metadata: the lock against a second user, size and I/O unit, thin
//! files made thick, the metadata read and checked, and which disk engine fits.

use super::disk::{Backing, Engine, Target};
use super::metadata_io::AlignedBuf;
use super::probe::{self, Facts};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use twinblk_engine::ids::{NodeId, VolumeId};
use twinblk_engine::metadata::layout::Placement;
use twinblk_engine::metadata::open::{
    OpenError, ReadAt, ReadError, Recovered, open, verify_identity,
};

/// Where the metadata of a volume are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MetaDisk {
    /// At the end of the disk.
    Internal,
    /// On a file or device of their own.
    External(PathBuf),
}

/// What is to be opened.
#[derive(Debug, Clone)]
pub(crate) struct VolumeSpec {
    /// The volume.
    pub(crate) volume: VolumeId,
    /// Block device or regular file.
    pub(crate) disk: PathBuf,
    /// Where the metadata are.
    pub(crate) meta: MetaDisk,
    /// Name of the resource the metadata must belong to.
    pub(crate) resource: String,
    /// This node, to which they must belong.
    pub(crate) node: NodeId,
    /// Smallest I/O of clients in bytes.
    pub(crate) block_size: u32,
}

/// How long a lock may be held by somebody else before that is an error.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Time between two attempts.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// A volume ready to be driven. Holds the locks.
#[derive(Debug)]
pub(crate) struct OpenedVolume {
    pub(crate) volume: VolumeId,
    pub(crate) data: (Engine, Target),
    pub(crate) meta: (Engine, Target),
    pub(crate) recovered: Box<Recovered>,
    pub(crate) no_volatile_cache: bool,
    /// How the disk is driven, in words.
    pub(crate) note: String,
}

/// Why a volume cannot be used. Every text says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenVolumeError {
    /// Not there, no permission, …
    #[error("{path}: cannot be opened: {error}", path = path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// Neither file nor block device.
    #[error("{path}: is neither a block device nor a regular file", path = path.display())]
    Kind {
        /// Which file.
        path: PathBuf,
    },
    /// Somebody else has it.
    #[error("{path}: is in use: {who}", path = path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
        /// By whom, and what to do.
        who: &'static str,
    },
    /// The disk cannot do I/O as small as clients are promised.
    #[error(
        "{path}: the disk's smallest unit of I/O is {unit} bytes, block-size is {block_size}: set \
         `block-size = {unit}` in [disk] on every node",
        path = path.display()
    )]
    BlockSize {
        /// Which disk.
        path: PathBuf,
        /// Its unit.
        unit: u32,
        /// What is configured.
        block_size: u32,
    },
    /// The metadata are missing, damaged or another's.
    #[error("{path}: {error}", path = path.display())]
    Metadata {
        /// The device they are on.
        path: PathBuf,
        /// What is wrong.
        error: OpenError,
    },
}

/// A file or device that is open and locked.
struct Opened {
    file: OwnedFd,
    backing: Backing,
    facts: Facts,
}

/// Opens and locks the disk and the metadata device of a volume and reads the metadata.
pub(crate) fn open_volume(spec: VolumeSpec) -> Result<OpenedVolume, OpenVolumeError> {
    let mut disk = open_locked(&spec.disk)?;
    if disk.facts.unit > spec.block_size {
        let (path, unit, block_size) = (spec.disk, disk.facts.unit, spec.block_size);
        return Err(OpenVolumeError::BlockSize {
            path,
            unit,
            block_size,
        });
    }
    let disk_size = disk.facts.size;
    let (meta, meta_path, placement) = match &spec.meta {
        MetaDisk::Internal => (None, &spec.disk, Placement::Internal),
        MetaDisk::External(path) => (Some(open_locked(path)?), path, Placement::External),
    };
    // Until the metadata are known to be this volume's, nothing is written or allocated: the path may
    // be wrong, and the file somebody else's.
    let mut reader = Reader {
        file: meta.as_ref().map_or(&disk.file, |meta| &meta.file),
        aligned: AlignedBuf::zeroed(4096),
    };
    let meta_size = meta.as_ref().map_or(disk_size, |meta| meta.facts.size);
    let metadata = |error| OpenVolumeError::Metadata {
        path: meta_path.clone(),
        error,
    };
    let mut recovered = open(&mut reader, meta_size, disk_size, placement).map_err(metadata)?;
    verify_identity(
        &recovered.superblock,
        &spec.resource,
        spec.volume,
        spec.node,
    )
    .map_err(metadata)?;

    // Only now is it certain that the disk is this volume's.
    let mut warnings = Vec::new();
    warnings.extend(probe::allocate(&disk.file, disk.backing, &disk.facts));
    if disk.backing == Backing::File {
        disk.facts.fast_zero = probe::can_punch(&disk.file, &disk.facts);
    }
    let (engine, note) = probe::choose_engine(&disk.file, disk.backing, &disk.facts);
    let failed = |path: &Path, error: Errno| OpenVolumeError::Open {
        path: path.to_owned(),
        error: error.into(),
    };
    let data_size = recovered.layout.data_size;
    let meta = match meta {
        Some(meta) => {
            let (engine, _) = probe::choose_engine(&meta.file, meta.backing, &meta.facts);
            // A metadata file may grow to its full length; a device ends where it ends.
            let end = match meta.backing {
                Backing::File => recovered.layout.metadata_len(),
                Backing::Block => meta.facts.size,
            };
            (engine, target(meta, 0..end))
        }
        None => {
            let copy = rustix::io::fcntl_dupfd_cloexec(&disk.file, 0)
                .map_err(|error| failed(&spec.disk, error))?;
            let facts = disk.facts.clone();
            let opened = Opened {
                file: copy,
                backing: disk.backing,
                facts,
            };
            (engine, target(opened, data_size..disk_size))
        }
    };
    warnings.append(&mut recovered.warnings);
    recovered.warnings = warnings;
    Ok(OpenedVolume {
        volume: spec.volume,
        no_volatile_cache: disk.facts.no_volatile_cache,
        data: (engine, target(disk, 0..data_size)),
        meta,
        recovered: Box::new(recovered),
        note,
    })
}

fn target(opened: Opened, part: std::ops::Range<u64>) -> Target {
    Target {
        file: opened.file,
        backing: opened.backing,
        part,
        unit: opened.facts.unit as usize,
        fast_zero: opened.facts.fast_zero,
        grown_to: Cell::new(0),
        zero_method: [Cell::new(0), Cell::new(0)],
    }
}

/// Like [`try_open_locked`], but gives a former owner a moment: the I/O of a killed process, and with
/// it its lock, ends shortly after the process. That the lock is free proves that none of it is still
/// to come.
fn open_locked(path: &Path) -> Result<Opened, OpenVolumeError> {
    let start = Instant::now();
    loop {
        match try_open_locked(path) {
            Err(OpenVolumeError::InUse { .. }) if start.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(LOCK_RETRY);
            }
            other => return other,
        }
    }
}

/// Opens a file or device for direct I/O (buffered where the file system refuses that) and makes
/// sure that nobody else uses it as long as the descriptor is open.
fn try_open_locked(path: &Path) -> Result<Opened, OpenVolumeError> {
    let failed = |error: Errno| OpenVolumeError::Open {
        path: path.to_owned(),
        error: error.into(),
    };
    let kind = FileType::from_raw_mode(rustix::fs::stat(path).map_err(failed)?.st_mode);
    let (backing, exclusive) = match kind {
        FileType::RegularFile => (Backing::File, OFlags::empty()),
        // The kernel refuses this while the device is mounted or claimed by anybody else.
        FileType::BlockDevice => (Backing::Block, OFlags::EXCL),
        _ => {
            return Err(OpenVolumeError::Kind {
                path: path.to_owned(),
            });
        }
    };
    let flags = OFlags::RDWR | OFlags::CLOEXEC | exclusive;
    let opened = match rustix::fs::open(path, flags | OFlags::DIRECT, Mode::empty()) {
        Err(Errno::INVAL) => rustix::fs::open(path, flags, Mode::empty()),
        other => other,
    };
    let file = match opened {
        Ok(file) => file,
        Err(Errno::BUSY) => {
            let who = "it is mounted, or another program has claimed it; end that first";
            return Err(OpenVolumeError::InUse {
                path: path.to_owned(),
                who,
            });
        }
        Err(error) => return Err(failed(error)),
    };
    if backing == Backing::File {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let who = "another daemon or resource holds its lock; stop that one first \
                           (`twinblk down`)";
                return Err(OpenVolumeError::InUse {
                    path: path.to_owned(),
                    who,
                });
            }
            Err(error) => return Err(failed(error)),
        }
    }
    let facts = probe::facts(&file, backing).map_err(failed)?;
    Ok(Opened {
        file,
        backing,
        facts,
    })
}

/// Reads metadata through an aligned buffer, because the descriptor is for direct I/O.
struct Reader<'a> {
    file: &'a OwnedFd,
    aligned: AlignedBuf,
}

impl ReadAt for Reader<'_> {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        if self.aligned.bytes_mut().len() < buf.len() {
            self.aligned = AlignedBuf::zeroed(buf.len());
        }
        let bytes = &mut self.aligned.bytes_mut()[..buf.len()];
        probe::read_exact(self.file, bytes, offset).map_err(|error| ReadError {
            errno: error.raw_os_error(),
        })?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

/// Looks how large the disk of a volume is now, and lets all of it be used. Answers its size, and that
/// of a metadata device that cannot grow by being written to. Of a disk with its metadata inside
/// nothing more may be used.
pub(crate) fn measure(
    data: &Target,
    meta: &Target,
    placement: Placement,
) -> (Result<u64, i32>, Option<u64>) {
    let facts = match probe::facts(&data.file, data.backing) {
        Ok(facts) => facts,
        Err(error) => return (Err(error.raw_os_error()), None),
    };
    if placement == Placement::Internal {
        return (Ok(facts.size), None);
    }
    // What cannot be allocated is slower, and was warned of at the start.
    let _ = probe::allocate(&data.file, data.backing, &facts);
    data.grown_to.set(facts.size / 4096 * 4096);
    let room = match meta.backing {
        Backing::File => {
            meta.grown_to.set(i64::MAX.cast_unsigned());
            None
        }
        Backing::Block => match rustix::fs::seek(&meta.file, rustix::fs::SeekFrom::End(0)) {
            Ok(size) => {
                meta.grown_to.set(size);
                Some(size)
            }
            Err(error) => return (Err(error.raw_os_error()), None),
        },
    };
    (Ok(facts.size), room)
}

//! What can be found out about a disk: size, smallest I/O, cache, whether zeroing is cheap, and
//! which disk engine suits it.

use super::disk::{Backing, Engine};
use super::metadata_io::AlignedBuf;
use rustix::fs::{AtFlags, FallocateFlags, OFlags, SeekFrom, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// `f_type` of file systems in memory.
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;

/// What is known of a disk.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Bytes.
    pub(crate) size: u64,
    /// Smallest unit of I/O in bytes; 1 when buffered.
    pub(crate) unit: u32,
    /// Open for direct I/O.
    pub(crate) direct: bool,
    /// The file system lives in memory.
    pub(crate) memory: bool,
    /// Completed writes survive a power cut (as far as the disk itself survives one).
    pub(crate) no_volatile_cache: bool,
    /// A range can be zeroed without writing it. Of a file, `false` until [`can_punch`] has tried.
    pub(crate) fast_zero: bool,
}

/// Finds out, and changes nothing on the disk. Switches the descriptor to buffered I/O if direct I/O turns out not to work.
pub(crate) fn facts(file: &OwnedFd, backing: Backing) -> Result<Facts, Errno> {
    let mut direct = rustix::fs::fcntl_getfl(file)?.contains(OFlags::DIRECT);
    let (size, mut unit, memory, queue) = match backing {
        Backing::Block => {
            let size = rustix::fs::seek(file, SeekFrom::End(0))?;
            let unit = rustix::fs::ioctl_blksszget(file)?;
            (size, unit, false, queue_directory(file)?)
        }
        Backing::File => {
            let size = rustix::fs::fstat(file)?.st_size.cast_unsigned();
            let kind = rustix::fs::fstatfs(file)?.f_type as i64;
            (size, direct_unit(file), matches!(kind, TMPFS | RAMFS), None)
        }
    };
    if direct && backing == Backing::File {
        let mut block = AlignedBuf::zeroed(unit.max(512) as usize);
        let refused = read_exact(file, block.bytes_mut(), 0) == Err(Errno::INVAL);
        if unit == 0 || refused {
            let flags = rustix::fs::fcntl_getfl(file)?;
            rustix::fs::fcntl_setfl(file, flags - OFlags::DIRECT)?;
            direct = false;
        }
    }
    if !direct && backing == Backing::File {
        unit = 1;
    }
    let queue_says = |name: &str| {
        let text = std::fs::read_to_string(queue.as_ref()?.join(name)).ok()?;
        Some(text.trim().to_owned())
    };
    let write_cache = queue_says("write_cache");
    let fast_zero = match backing {
        // `can_punch` tells, once the disk is known to be ours.
        Backing::File => false,
        Backing::Block => queue_says("write_zeroes_max_bytes").is_some_and(|text| text != "0"),
    };
    Ok(Facts {
        size,
        unit,
        direct,
        memory,
        no_volatile_cache: no_volatile_cache(backing, memory, direct, write_cache.as_deref()),
        fast_zero,
    })
}

/// Whether a completed write needs no flush. A file's never does without, except in memory, where
/// there is nothing to flush to; a device's does not if it writes through, and the page cache is not
/// between it and us.
fn no_volatile_cache(
    backing: Backing,
    memory: bool,
    direct: bool,
    write_cache: Option<&str>,
) -> bool {
    match backing {
        Backing::File => memory,
        Backing::Block => direct && write_cache == Some("write through"),
    }
}

/// Whether ranges of a file can be zeroed without writing them. Tries it behind the end, where it
/// changes nothing that is known of; only for a disk that is known to be ours all the same.
pub(crate) fn can_punch(file: &OwnedFd, facts: &Facts) -> bool {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, mode, facts.size.next_multiple_of(4096), 4096).is_ok()
}

/// Alignment direct I/O on a file wants; 0 when the file system says that it has none.
fn direct_unit(file: &OwnedFd) -> u32 {
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(stat) if stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => stat.stx_dio_offset_align,
        _ => 512,
    }
}

/// `queue` in sysfs, of the device or of the whole disk of a partition.
fn queue_directory(file: &OwnedFd) -> Result<Option<PathBuf>, Errno> {
    let device = rustix::fs::fstat(file)?.st_rdev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    Ok(["queue", "../queue"]
        .into_iter()
        .map(|name| device.join(name))
        .find(|path| path.is_dir()))
}

/// Gives a thin file all its space, because writes into holes take a detour through kernel workers
/// and may find no space. Answers a warning if that cannot be done.
pub(crate) fn allocate(file: &OwnedFd, backing: Backing, facts: &Facts) -> Option<String> {
    if backing != Backing::File || facts.memory {
        return None;
    }
    let allocated = rustix::fs::fstat(file).ok()?.st_blocks.cast_unsigned() * 512;
    let missing = facts.size.saturating_sub(allocated);
    if missing == 0 {
        return None;
    }
    // Asking for too much would fill the file system up before it fails.
    let room = rustix::fs::fstatvfs(file).ok()?;
    let room = room.f_bavail.saturating_mul(room.f_frsize);
    let result = if room / 20 * 19 < missing {
        Err(format!("its file system has only {room} bytes left"))
    } else {
        rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, facts.size)
            .map_err(|error| error.to_string())
    };
    result.err().map(|why| {
        format!(
            "the disk is a thin file that lacks {missing} bytes of space ({why}); writes are \
             slower and may fail when the space runs out"
        )
    })
}

/// Chooses the disk engine, and says so in words. Writes the first block to itself: only for a disk
/// that is known to be ours and not yet in use.
pub(crate) fn choose_engine(file: &OwnedFd, backing: Backing, facts: &Facts) -> (Engine, String) {
    let waits = facts.size >= 4096 && !can_write_without_waiting(file);
    if facts.memory && waits {
        return (
            Engine::Inline,
            String::from("inline pwrite (file system in memory)"),
        );
    }
    let words = match (facts.direct, backing, waits) {
        (true, _, false) => "io_uring, O_DIRECT",
        (true, _, true) => "io_uring, O_DIRECT; every write costs a kernel worker",
        (false, ..) => {
            "io_uring, buffered: the file system refuses O_DIRECT; every write costs a kernel worker"
        }
    };
    (Engine::Ring, String::from(words))
}

/// Whether a write can be refused instead of waiting; where not, the ring hands every write to a
/// kernel worker.
fn can_write_without_waiting(file: &OwnedFd) -> bool {
    let mut block = AlignedBuf::zeroed(4096);
    if read_exact(file, block.bytes_mut(), 0).is_err() {
        return true;
    }
    let data = [IoSlice::new(block.bytes_mut())];
    let result = rustix::io::pwritev2(file, &data, 0, ReadWriteFlags::NOWAIT);
    result != Err(Errno::OPNOTSUPP)
}

/// Fills `buf` from `offset`.
pub(crate) fn read_exact(file: &OwnedFd, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < buf.len() {
        let rest = &mut [IoSliceMut::new(&mut buf[done..])];
        match rustix::io::preadv2(file, rest, offset + done as u64, ReadWriteFlags::empty()) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_bypasses_the_page_cache_needs_no_flush() {
        let through = Some("write through");
        assert!(no_volatile_cache(Backing::Block, false, true, through));
        assert!(!no_volatile_cache(Backing::Block, false, false, through));
        assert!(!no_volatile_cache(
            Backing::Block,
            false,
            true,
            Some("write back")
        ));
        assert!(!no_volatile_cache(Backing::Block, false, true, None));
        assert!(no_volatile_cache(Backing::File, true, false, None));
        assert!(!no_volatile_cache(Backing::File, false, true, None));
    }
}

//! Writes a file of discarded data, from a disk that nothing else writes to meanwhile.

use super::format::{Header, Kind, MOST, Record};
use crate::driver::metadata_io::AlignedBuf;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Which blocks: bits, least significant first.
#[derive(Debug, Clone)]
pub(crate) struct Blocks {
    /// Changed by this node.
    pub(crate) own: Vec<u64>,
    /// Marked on either node: about to be overwritten.
    pub(crate) all: Vec<u64>,
}

impl Blocks {
    fn has(words: &[u64], bit: u64) -> bool {
        let word = usize::try_from(bit / 64).ok().and_then(|i| words.get(i));
        word.is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// Ranges in order, each wholly own or not, none longer than a record: offset, length, own.
    pub(crate) fn ranges(&self, size: u64, block: u32) -> impl Iterator<Item = (u64, u64, bool)> {
        let block = u64::from(block);
        let bits = size.div_ceil(block);
        let most = (u64::from(MOST) / block).max(1);
        let mut bit = 0;
        std::iter::from_fn(move || {
            while bit < bits && !Self::has(&self.all, bit) {
                let empty = bit % 64 == 0
                    && usize::try_from(bit / 64)
                        .ok()
                        .and_then(|i| self.all.get(i))
                        .is_none_or(|&word| word == 0);
                bit += if empty { 64 } else { 1 };
            }
            if bit >= bits {
                return None;
            }
            let (first, own) = (bit, Self::has(&self.own, bit));
            while bit < bits
                && bit - first < most
                && Self::has(&self.all, bit)
                && Self::has(&self.own, bit) == own
            {
                bit += 1;
            }
            let offset = first * block;
            Some((offset, (bit * block).min(size) - offset, own))
        })
    }
}

/// A file under a name of its own until it is whole; gone if it never is.
struct Unfinished {
    path: PathBuf,
    armed: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.armed {
            // Best effort: it is not in anybody's way.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Writes `blocks` of `disk` to `file`, which must not exist, and returns when it is durable. In words
/// what went wrong; then there is no file. Ends early when `cancelled`.
pub(crate) fn save(
    file: &Path,
    disk: OwnedFd,
    header: &Header,
    blocks: &Blocks,
    cancelled: &AtomicBool,
) -> Result<(), String> {
    let shown = file.display();
    let exists = || format!("{shown} exists already: name a file that does not");
    if file.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let (Some(parent), Some(name)) = (file.parent(), file.file_name()) else {
        return Err(format!("{shown} is no name of a file"));
    };
    let temporary = parent.join(format!(
        ".{}.{}.unfinished",
        name.to_string_lossy(),
        std::process::id()
    ));
    let open = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary);
    let mut out = open.map_err(|e| format!("{} cannot be made: {e}", temporary.display()))?;
    let mut unfinished = Unfinished {
        path: temporary,
        armed: true,
    };
    let told = |e: std::io::Error| format!("{shown} cannot be written: {e}");
    write_all(&mut out, &File::from(disk), header, blocks, cancelled)?;
    out.sync_all().map_err(told)?;
    // Onto nothing: whoever was faster keeps his file.
    let cwd = rustix::fs::CWD;
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    match rustix::fs::renameat_with(cwd, &unfinished.path, cwd, file, flags) {
        Ok(()) => unfinished.armed = false,
        Err(rustix::io::Errno::EXIST) => return Err(exists()),
        Err(e) => return Err(told(e.into())),
    }
    let directory = File::open(parent).and_then(|d| d.sync_all());
    directory.map_err(|e| {
        let _ = std::fs::remove_file(file);
        format!("the directory {} cannot be flushed: {e}", parent.display())
    })
}

fn write_all(
    out: &mut File,
    disk: &File,
    header: &Header,
    blocks: &Blocks,
    cancelled: &AtomicBool,
) -> Result<(), String> {
    let told = |e: std::io::Error| format!("writing failed: {e}");
    let mut out = BufWriter::with_capacity(1 << 20, out);
    out.write_all(&header.encode()).map_err(told)?;
    let mut buf = AlignedBuf::zeroed(MOST as usize);
    let (mut records, mut saved, mut heads) = (0u64, 0u64, 0u32);
    for (offset, len, own) in blocks.ranges(header.device_size, header.block) {
        if cancelled.load(Ordering::Relaxed) {
            return Err("the connection was lost".to_owned());
        }
        let mut at = 0;
        while at < len {
            // A block may be larger than a record.
            let part = (len - at).min(u64::from(MOST));
            let data = &mut buf.bytes_mut()[..usize::try_from(part).unwrap_or(0)];
            disk.read_exact_at(data, offset + at)
                .map_err(|e| format!("the disk cannot be read at byte {}: {e}", offset + at))?;
            let zeroes = data.iter().all(|&b| b == 0);
            let record = Record {
                kind: if zeroes { Kind::Zeroes } else { Kind::Data },
                own,
                offset: offset + at,
                len: part,
                crc: if zeroes { 0 } else { crc32c::crc32c(data) },
            };
            let head = record.encode();
            out.write_all(&head).map_err(told)?;
            if !zeroes {
                out.write_all(data).map_err(told)?;
            }
            heads = crc32c::crc32c_append(heads, &head);
            (records, saved) = (records + 1, saved + part);
            at += part;
        }
    }
    let end = Record {
        kind: Kind::End,
        own: false,
        offset: saved,
        len: records,
        crc: heads,
    };
    out.write_all(&end.encode()).map_err(told)?;
    out.flush().map_err(told)
}

//! What a range of a volume is made of: allocated or hole (from the file system), in sync or not
//! (from the engine).
//!
//! A hole is reported only where the file system says that nothing was ever written or that it was
//! punched. A write that was answered before is seen, because the file system knows of it before it
//! completes; of one in flight either answer is true. In doubt everything is data.

use super::disk::{Backing, Disk};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use userspace_nbd::block_status::{Extents, STATE_HOLE, STATE_ZERO};

/// Flags of a hole.
const HOLE: u32 = STATE_HOLE | STATE_ZERO;

/// Adds the pieces of the volume from `offset` on, until `extents` is content.
pub(crate) fn allocation(disk: &Disk, offset: u64, len: u32, extents: &mut Extents) {
    let target = disk.target();
    let end = offset + u64::from(len);
    if target.backing == Backing::Block {
        extents.push(len.into(), 0);
        return;
    }
    let mut at = offset;
    while at < end {
        let (next, hole) = match rustix::fs::seek(&target.file, SeekFrom::Data(at)) {
            Ok(data) if data > at => (data, true),
            Ok(_) => match rustix::fs::seek(&target.file, SeekFrom::Hole(at)) {
                Ok(hole) if hole > at => (hole, false),
                _ => (end, false),
            },
            // No data up to the end of the file.
            Err(Errno::NXIO) => (end, true),
            Err(_) => (end, false),
        };
        let next = next.min(end);
        if !extents.push(next - at, if hole { HOLE } else { 0 }) {
            return;
        }
        at = next;
    }
}

#[cfg(test)]
#[path = "tests/block_status.rs"]
mod tests;

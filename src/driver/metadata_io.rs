//! Metadata blocks to the metadata device. The engine gives the order (pages, flush, superblock); a
//! job here is one of these steps. Reading happens once, when a volume is opened ([`super::open`]).

use super::disk::{Action, Core, Disk, Job, Memory, Purpose, start};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::rc::Rc;
use twinblk_engine::ids::OpId;

/// Memory aligned to a page, as direct I/O wants it. Metadata writes are rare; they do not use the
/// pool, so that no flood of data can hold them up.
#[derive(Debug)]
pub(crate) struct AlignedBuf {
    start: NonNull<u8>,
    layout: Layout,
}

impl AlignedBuf {
    /// `len` zero bytes, at least one.
    pub(crate) fn zeroed(len: usize) -> Self {
        let layout = Layout::from_size_align(len.max(1), 4096).expect("a length of memory");
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Self { start, layout }
    }

    /// A copy of `bytes`.
    pub(crate) fn copy(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        buf.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        buf
    }

    /// For an operation that fills or reads it.
    pub(crate) fn address(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Its bytes.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: allocated with this size, initialised, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Writes whole blocks.
pub(crate) fn write(
    core: &mut Core,
    disk: &Rc<Disk>,
    op: OpId,
    offset: u64,
    data: &[u8],
    fua: bool,
) {
    let job = Job {
        disk: Rc::clone(disk),
        purpose: Purpose::Meta(op),
        action: Action::Write { fua },
        memory: Memory::Own(ManuallyDrop::new(AlignedBuf::copy(data))),
        offset,
        len: data.len(),
        done: 0,
        retries: 0,
    };
    start(core, job);
}

/// Makes what was written stable.
pub(crate) fn flush(core: &mut Core, disk: &Rc<Disk>, op: OpId) {
    start(core, Job::flush(disk, Purpose::Meta(op)));
}

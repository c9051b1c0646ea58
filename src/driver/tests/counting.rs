//! Counts what the loops allocate: the allocator of the unit tests, and of nothing else. It counts
//! for threads named after the resource [`COUNTED`] and remembers where the last one asked.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::ffi::CStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Name of the resource whose loops are counted.
pub(super) const COUNTED: &str = "counted";
/// Name of their threads.
const THREAD: &CStr = c"res-counted";

/// Allocations of those loops while [`ARMED`].
static COUNT: AtomicU64 = AtomicU64::new(0);
static ARMED: AtomicBool = AtomicBool::new(false);
/// Where the first few of them were made.
static PLACES: Mutex<Vec<Backtrace>> = Mutex::new(Vec::new());
const MAX_PLACES: usize = 3;

/// What is known of a thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Thread {
    Unknown,
    Other,
    Loop,
    /// A loop that notes where it allocates, for which it allocates.
    Noting,
}

thread_local! {
    static WHO: Cell<Thread> = const { Cell::new(Thread::Unknown) };
}

struct Counting;

// SAFETY: everything is passed on to the system's allocator; what is done beside that neither touches
// the memory nor allocates, except under `Noting`, which keeps it from going in circles.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: the caller's promise is the same.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn note() {
    if !ARMED.load(Ordering::Relaxed) {
        return;
    }
    // A thread that ends has no such place any more, and is not counted.
    let _ = WHO.try_with(|who| {
        if who.get() == Thread::Unknown {
            who.set(if is_loop() {
                Thread::Loop
            } else {
                Thread::Other
            });
        }
        if who.get() != Thread::Loop {
            return;
        }
        COUNT.fetch_add(1, Ordering::Relaxed);
        who.set(Thread::Noting);
        if let Ok(mut places) = PLACES.lock()
            && places.len() < MAX_PLACES
        {
            places.push(Backtrace::force_capture());
        }
        who.set(Thread::Loop);
    });
}

fn is_loop() -> bool {
    let mut name = [0u8; 16];
    // SAFETY: the kernel writes at most 16 bytes, the last of them 0.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    CStr::from_bytes_until_nul(&name) == Ok(THREAD)
}

/// Allocations the counted loops make while `work` runs, and where the first of them were made.
/// For one caller at a time.
pub(super) fn during(work: impl FnOnce()) -> (u64, String) {
    PLACES.lock().expect("no panic").clear();
    COUNT.store(0, Ordering::SeqCst);
    ARMED.store(true, Ordering::SeqCst);
    work();
    ARMED.store(false, Ordering::SeqCst);
    let places = PLACES.lock().expect("no panic");
    let words = places
        .iter()
        .map(|place| ours(&place.to_string()))
        .collect();
    (COUNT.load(Ordering::SeqCst), words)
}

/// The frames of a backtrace that are in this repository.
fn ours(trace: &str) -> String {
    let frames = trace
        .lines()
        .filter_map(|line| line.trim().strip_prefix("at "));
    let mut words: String = frames
        .filter(|at| at.starts_with("./") && !at.contains("driver/tests/"))
        .take(8)
        .map(|at| format!("  {at}\n"))
        .collect();
    words.push('\n');
    words
}

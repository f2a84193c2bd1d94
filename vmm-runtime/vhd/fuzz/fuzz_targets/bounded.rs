//! Opens and checks any file as a disk, and counts the memory that takes.
#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// What a file of up to 64 KiB may take, whatever it says of itself: buffers
/// of at most 1 MiB, and a table that lies within the file.
const MOST: usize = 4 << 20;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: all calls are handed on to the system's allocator as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), SeqCst) + layout.size();
        PEAK.fetch_max(now, SeqCst);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller keeps to the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let before = NOW.load(SeqCst);
    PEAK.store(before, SeqCst);
    paddock_vhd::fuzzing::bounded(data);
    let most = PEAK.load(SeqCst) - before;
    assert!(most <= MOST, "{} bytes took {most} bytes of memory", data.len());
});

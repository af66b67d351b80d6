//! Memory that a thread takes, for tests of what readers may take: an allocator that counts.

#![expect(unsafe_code, reason = "an allocator; every call is handed on to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread has, and the most it had since the last mark.
    static TAKEN: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(more: usize, less: usize) {
    // No place to count in any more while the thread ends.
    let _ = TAKEN.try_with(|taken| {
        let (now, peak) = taken.get();
        let now = (now + more).saturating_sub(less);
        taken.set((now, peak.max(now)));
    });
}

// SAFETY: every call is the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Begins anew; what the thread has now.
pub fn mark() -> usize {
    TAKEN.with(|taken| {
        let (now, _) = taken.get();
        taken.set((now, now));
        now
    })
}

/// The most the thread had since.
pub fn peak() -> usize {
    TAKEN.with(|taken| taken.get().1)
}

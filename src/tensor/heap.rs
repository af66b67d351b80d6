//! Freed memory is kept for the next piece. Tiles of a few megabytes come and go with every piece of a tensor; glibc
//! gives each back to the kernel and asks for it anew, page by page, which took twice as long as computing with it.

#![cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "setting a parameter of the allocator"))]

/// Blocks up to this size are taken from the heap, and stay there when they are freed.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: i32 = 32 << 20;

/// Asks the allocator for it; once, before other threads run. Nothing where there is no such parameter.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt may be called at any time; it changes how memory is taken from the kernel and nothing else.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

//! System calls that only some systems have; elsewhere they do nothing, and the caller goes the plain way.

use std::fs::File;

use crate::error::Result;

/// Bytes of one write. Linux asks for as large a block of memory as a write is long, and looks for it at length where
/// memory is in pieces: 2 MiB at a time took three times as long on a machine that had been up for a while, 32 KiB half
/// as long again.
pub const WRITE_BYTES: usize = 128 << 10;

/// Copies inside the kernel (by reference where the file system can) from `from` at `off_in` to `to` at `off_out`.
/// Returns the bytes taken over: fewer than `len` where it cannot be done, and the caller writes the rest.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn copy_in_kernel(from: &File, mut off_in: u64, to: &File, mut off_out: u64, len: usize) -> Result<usize> {
    use rustix::io::Errno;
    let mut done = 0;
    while done < len {
        match rustix::fs::copy_file_range(from, Some(&mut off_in), to, Some(&mut off_out), len - done) {
            Ok(0) => break, // the input ended early: the write that follows fails
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::BADF) => break,
            Err(e) => return Err(crate::error::Error::io("cannot copy into it", e)),
        }
    }
    Ok(done)
}

/// As on Linux; there is no such call here.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn copy_in_kernel(_: &File, _: u64, _: &File, _: u64, _: usize) -> Result<usize> {
    Ok(0)
}

/// Makes the empty file `to` share all blocks of `from`; false where the file system cannot.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn share_blocks(from: &File, to: &File) -> bool {
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

/// As on Linux; there is no such call here.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn share_blocks(_: &File, _: &File) -> bool {
    false
}

/// Lets the disk begin with what was written while we compute, so that the final fsync finds little left to do. Nothing
/// waits, and an error has no consequence: fsync reports it.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn start_writeback(file: &File, at: u64, len: u64) {
    use rustix::fs::Advice;
    if let Some(len) = std::num::NonZeroU64::new(len) {
        let _ = rustix::fs::fadvise(file, at, Some(len), Advice::DontNeed);
    }
}

/// As on Linux; there is no such call here.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn start_writeback(_: &File, _: u64, _: u64) {}

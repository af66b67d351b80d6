//! What happens when a mapped input loses pages under us: another program cut the file short, or its disk failed. The
//! system then sends SIGBUS to the thread that reads there, which could only read the same place again.
//!
//! The handler hands the address to a thread that waits for it and lets the reader stand still for ever; that thread,
//! in which everything is allowed, says what there is to say and ends the process. Linux only: elsewhere SIGBUS also
//! stands for other things, and ends the process as it always did.

#![expect(unsafe_code, reason = "a signal handler that is told the address")]

use std::ffi::{c_int, c_void};
use std::io::Read;
use std::mem::size_of;
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};

use super::MappedFile;

/// Where the handler writes the address; −1 before there is one.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// Calls `end`, which has to end the process, when pages of a mapped file are lost. It is told the file, or nothing
/// where the address belongs to none, and runs in a thread of its own. An error where there can be no such thread.
pub fn watch(end: impl FnOnce(Option<PathBuf>) + Send + 'static) -> std::io::Result<()> {
    let (mut reader, writer) = std::io::pipe()?;
    let wait = move || {
        let mut address = [0; size_of::<usize>()];
        if reader.read_exact(&mut address).is_ok() {
            end(MappedFile::path_at(usize::from_ne_bytes(address)));
        }
    };
    std::thread::Builder::new().name("lost pages".into()).spawn(wait)?;
    PIPE.store(writer.into_raw_fd(), Ordering::Release);
    install()
}

#[cfg(target_os = "linux")]
fn install() -> std::io::Result<()> {
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = lost;
    // SAFETY: all zeros is a valid `sigaction`, and every field that matters is set. The handler keeps to what may be
    // called in one.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn install() -> std::io::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
extern "C" fn lost(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the system passes a valid `info`; `write` and `pause` may be called in a handler, and the buffer is a
    // local number. The thread never leaves the handler, so nothing it was doing goes on.
    unsafe {
        let address = (*info).si_addr() as usize;
        libc::write(PIPE.load(Ordering::Acquire), (&raw const address).cast(), size_of::<usize>());
        loop {
            libc::pause();
        }
    }
}

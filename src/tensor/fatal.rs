//! Ends that come from below, turned into an end of our own: a message, a status, nothing left behind.
//!
//! - A mapped input loses pages: another program cut the file short, or its disk failed. The system sends SIGBUS to the
//!   thread that reads there, which could only read the same place again.
//! - The runtime aborts, as Rust does where no memory can be had.
//! - A library ends the process, as OpenBLAS does where it gets no memory.
//!
//! Each hands a word to a thread that waits for it and lets the thread it came from stand still for ever; that other one,
//! in which everything is allowed, says what there is to say and ends the process. Lost pages on Linux only: elsewhere
//! SIGBUS also stands for other things, and ends the process as it always did.

#![expect(unsafe_code, reason = "a signal handler that is told the address")]

use std::ffi::{c_int, c_void};
use std::io::Read;
use std::mem::size_of;
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};

use super::MappedFile;

/// Where the handlers write; −1 before there is one.
static PIPE: AtomicI32 = AtomicI32::new(-1);
/// Words that are no address of a page.
const ABORTED: usize = 1;
const EXITED: usize = 2;
/// Seconds that the last words may take: where no memory is left at all, they might have to wait for some.
const LAST_SECONDS: u32 = 10;

/// Blocks of memory that are kept for the last words.
const RESERVES: usize = 16;
const RESERVE_BYTES: usize = 16 << 10;

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// Pages of a mapped file are lost; of none of ours where there is no path.
    Lost(Option<PathBuf>),
    /// The runtime aborts.
    Aborted,
    /// A library ends the process.
    Exited,
}

/// Calls `end`, which has to end the process, when one of these happens. It runs in a thread of its own. An error where
/// there can be no such thread.
pub fn watch(end: impl FnOnce(Fatal) + Send + 'static) -> std::io::Result<()> {
    let (mut reader, writer) = std::io::pipe()?;
    let wait = move || {
        // Room for the last words, from where this thread takes its memory.
        let block = |_| {
            let mut block = Vec::new();
            block.try_reserve_exact(RESERVE_BYTES).is_ok().then(|| block.resize(RESERVE_BYTES, 1u8)).map(|()| block)
        };
        let reserve: [Option<Vec<u8>>; RESERVES] = std::array::from_fn(block);
        let mut word = [0; size_of::<usize>()];
        if reader.read_exact(&mut word).is_ok() {
            drop(std::hint::black_box(reserve));
            end(match usize::from_ne_bytes(word) {
                ABORTED => Fatal::Aborted,
                EXITED => Fatal::Exited,
                address => Fatal::Lost(MappedFile::path_at(address)),
            });
        }
    };
    std::thread::Builder::new().name("last words".into()).spawn(wait)?;
    PIPE.store(writer.into_raw_fd(), Ordering::Release);
    install()?;
    let (given_up, late): (extern "C" fn(c_int), extern "C" fn(c_int)) = (aborted, too_late);
    // SAFETY: the handlers keep to what may be called in one, and the function at the end to what may be called anywhere.
    let done = unsafe {
        libc::signal(libc::SIGABRT, given_up as libc::sighandler_t) != libc::SIG_ERR
            && libc::signal(libc::SIGALRM, late as libc::sighandler_t) != libc::SIG_ERR
            && libc::atexit(exited) == 0
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Hands a word over, and never returns.
fn hand_over(word: usize) -> ! {
    // SAFETY: `alarm`, `write` and `pause` may be called in a handler, and the buffer is a local number.
    unsafe {
        libc::alarm(LAST_SECONDS);
        libc::write(PIPE.load(Ordering::Acquire), (&raw const word).cast(), size_of::<usize>());
        loop {
            libc::pause();
        }
    }
}

extern "C" fn aborted(_signal: c_int) {
    hand_over(ABORTED);
}

/// Runs where `exit` is called, which we never do ourselves.
extern "C" fn exited() {
    hand_over(EXITED);
}

extern "C" fn too_late(_signal: c_int) {
    const SAYS: &[u8] = b"\nlora-tool: out of memory, also for saying so\n";
    // SAFETY: both may be called in a handler, and the text is static.
    unsafe {
        libc::write(libc::STDERR_FILENO, SAYS.as_ptr().cast(), SAYS.len());
        libc::_exit(1)
    }
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
    // SAFETY: the system passes a valid `info`. The thread never leaves the handler, so nothing it was doing goes on.
    let address = unsafe { (*info).si_addr() as usize };
    hand_over(address);
}

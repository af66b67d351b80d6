//! Ctrl-C and its kin: the first asks the run to end, the second ends it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::{SIGBUS, SIGHUP, SIGINT, SIGTERM};

use super::{exit, output};
use crate::container::atomic;
use crate::error::{Error, Kind, Result};
use crate::tensor::fatal::{self, Fatal};

/// What asks a run to end.
const ENDING: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// The one that listens, for all commands of a run.
static LISTENING: Mutex<Option<Signals>> = Mutex::new(None);

/// The number of the signal that arrived, or zero.
#[derive(Clone, Debug, Default)]
pub struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// Begins to listen, once a process.
    pub fn listen() -> Result<Signals> {
        let mut listening = LISTENING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signals) = &*listening {
            return Ok(signals.clone());
        }
        let signals = Signals::register()?;
        *listening = Some(signals.clone());
        Ok(signals)
    }

    fn register() -> Result<Signals> {
        let fail = |e: std::io::Error| Error::io("cannot listen for signals", e);
        let seen = Arc::new(AtomicUsize::new(0));
        for signal in ENDING {
            signal_hook::flag::register_usize(signal, Arc::clone(&seen), signal as usize).map_err(fail)?;
        }
        if end_with_the_second().is_err() {
            // No thread to clean up: one of the same kind, when the flag is set already, just ends the process.
            for signal in ENDING {
                let twice = Arc::new(AtomicBool::new(false));
                signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&twice))
                    .map_err(fail)?;
                signal_hook::flag::register(signal, twice).map_err(fail)?;
            }
        }
        Ok(Signals(seen))
    }

    /// The number of the signal that asks the run to end, or zero.
    pub fn arrived(&self) -> i32 {
        i32::try_from(self.0.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

/// Starts a thread that ends the process with the second signal, whatever the others are doing.
fn end_with_the_second() -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new(ENDING)?;
    let wait = move || {
        if let Some(signal) = signals.forever().nth(1) {
            atomic::remove_unfinished();
            exit::at_once(u8::try_from(128 + signal).unwrap_or(u8::MAX));
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}

/// Prepares for what would otherwise end the process without a word: an input that another program cuts short, memory
/// that cannot be had, and a limit on the size of files, which then is an error of the write.
pub fn prepare(as_json: bool) {
    let _ = signal_hook::flag::register(libc::SIGXFSZ, Arc::default());
    let watched = fatal::watch(move |what| {
        let of_memory = what == Fatal::Aborted || what == Fatal::Exited;
        let Some(e) = error_of(what) else {
            let _ = signal_hook::low_level::emulate_default_handler(SIGBUS); // none of our files: a fault of the program
            return;
        };
        atomic::remove_unfinished();
        if of_memory {
            output::a_line_may_be_half_written(); // by the runtime, in the name of another thread that got none either
        }
        exit::at_once(exit::failed(&e, as_json));
    });
    if watched.is_err() {
        // No thread to tell: at least an end of our own.
        let _ = signal_hook::flag::register_conditional_shutdown(SIGBUS, 1, Arc::new(AtomicBool::new(true)));
    }
}

fn error_of(what: Fatal) -> Option<Error> {
    const LESS: &str = "--memory and --threads bound what is used";
    Some(match what {
        Fatal::Lost(file) => {
            let what = "lost bytes while it was being read: it was cut short, or its disk has failed";
            Error::new(Kind::Io, what).in_file(file?)
        }
        Fatal::Aborted => Error::new(Kind::Io, "out of memory: the system gives no more").hint(LESS),
        Fatal::Exited => {
            let what = "a library has ended the run, as OpenBLAS does where the system gives no more memory";
            Error::new(Kind::Io, what).hint(LESS)
        }
    })
}

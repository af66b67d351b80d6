//! Ctrl-C and its kin: the first asks the run to end, the second ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::error::{Error, Result};

/// The number of the signal that arrived, or zero.
#[derive(Clone, Debug, Default)]
pub struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// Begins to listen.
    pub fn listen() -> Result<Signals> {
        let seen = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let fail = |e: std::io::Error| Error::io("cannot listen for signals", e);
            // A second signal of the same kind, when the flag is set already, ends the process at once.
            let twice = Arc::new(AtomicBool::new(false));
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&twice)).map_err(fail)?;
            signal_hook::flag::register(signal, twice).map_err(fail)?;
            signal_hook::flag::register_usize(signal, Arc::clone(&seen), signal as usize).map_err(fail)?;
        }
        Ok(Signals(seen))
    }

    /// The number of the signal that asks the run to end, or zero.
    pub fn arrived(&self) -> i32 {
        i32::try_from(self.0.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

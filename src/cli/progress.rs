//! A bar on stderr while bytes are written, when a person watches.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use super::output;
use super::signals::Signals;
use crate::stream::Progress;

/// Progress of a run, and the signals that may end it.
pub struct Bar {
    bar: ProgressBar,
    signals: Signals,
}

impl Bar {
    /// A bar over `bytes`, hidden where nobody watches.
    pub fn new(bytes: u64, signals: Signals) -> Bar {
        let bar = if std::io::stderr().is_terminal() && !output::is_quiet() && !output::is_heard() {
            ProgressBar::new(bytes)
        } else {
            ProgressBar::hidden()
        };
        let template = "{bar:32} {percent:>3} %  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Bar { bar, signals }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn stop(&self) -> i32 {
        self.signals.arrived()
    }
}

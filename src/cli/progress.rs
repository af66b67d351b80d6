//! A bar on stderr while bytes are written or jobs are run, when a person watches.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::output;
use super::signals::Signals;
use crate::stream::Progress;
use crate::tensor::size;

/// How often a bar of jobs is drawn anew.
const TICK: Duration = Duration::from_millis(200);

/// Bytes that commands whose bars nobody sees have moved.
static MOVED: AtomicU64 = AtomicU64::new(0);

/// Whether a person watches stderr and wants more than errors.
fn is_watched() -> bool {
    std::io::stderr().is_terminal() && !output::is_quiet() && !output::is_heard()
}

/// Progress of a run, and the signals that may end it.
pub struct Bar {
    bar: ProgressBar,
    signals: Signals,
}

impl Bar {
    /// A bar over `bytes`, hidden where nobody watches.
    pub fn new(bytes: u64, signals: Signals) -> Bar {
        let bar = if is_watched() { ProgressBar::new(bytes) } else { ProgressBar::hidden() };
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
        if self.bar.is_hidden() {
            MOVED.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn stop(&self) -> i32 {
        self.signals.arrived()
    }
}

/// Progress over the jobs of a batch, or over several adapters.
pub struct Counter {
    bar: ProgressBar,
    signals: Signals,
}

impl Counter {
    /// A bar over `count` of what `word` calls them, hidden where nobody watches.
    pub fn new(count: usize, word: &str, signals: Signals) -> Counter {
        let bar = if is_watched() { ProgressBar::new(count as u64) } else { ProgressBar::hidden() };
        let moved = |_: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = match MOVED.load(Ordering::Relaxed) {
                0 => Ok(()),
                bytes => write!(out, "  {}", size::show(bytes)),
            };
        };
        let template = format!("{{bar:32}} {{pos}} of {{len}} {word}{{msg}}{{moved}}  {{elapsed}}  {{eta}} left");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.with_key("moved", moved));
        }
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Counter { bar, signals }
    }

    /// One more has ended; `failed` is how many have failed so far. What `say` prints stands above the bar.
    pub fn ended(&self, failed: usize, say: impl FnOnce()) {
        self.bar.suspend(say);
        if failed > 0 {
            self.bar.set_message(format!(", {failed} failed"));
        }
        self.bar.inc(1);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Counter {
    fn advance(&self, count: u64) {
        self.bar.inc(count);
    }

    fn stop(&self) -> i32 {
        self.signals.arrived()
    }
}

//! How a run ends: 0 done, 1 failed, 2 wrong command line, 3 refused because of `--strict`, 128 + n stopped by signal n.

use std::io::Write;

use serde_json::json;

use super::output;
use crate::error::{Error, Kind, printable};

/// Done.
pub const DONE: u8 = 0;
/// Input or machine.
const FAILED: u8 = 1;
/// The command line.
const USAGE: u8 = 2;
/// `--strict`.
const STRICT: u8 = 3;

/// Prints what clap has to say: help and version on stdout, mistakes on stderr.
pub fn usage(e: &clap::Error) -> u8 {
    let _ = e.print();
    if e.use_stderr() { USAGE } else { DONE }
}

/// Prints the error on stderr, with `--json` also as a document on stdout, unless the answer stands there already.
pub fn failed(e: &Error, as_json: bool) -> u8 {
    if output::is_broken_pipe(e) {
        return DONE;
    }
    output::error_line(&format!("lora-tool: {e}"));
    if let Some(hint) = e.advice() {
        output::error_line(&format!("hint: {}", printable(hint)));
    }
    if as_json && e.kind() != Kind::Differs {
        let document = json!({ "error": {
            "kind": e.kind().word(), "file": e.file().map(|f| f.to_string_lossy()), "key": e.key(),
            "what": e.what(), "hint": e.advice(),
        }});
        let _ = output::document(&document);
    }
    code(e)
}

/// Ends the process without the destructors of its libraries: OpenBLAS waits for threads there that may be waiting for
/// memory.
pub fn at_once(code: u8) -> ! {
    let _ = std::io::stdout().flush();
    signal_hook::low_level::exit(i32::from(code))
}

fn code(e: &Error) -> u8 {
    match e.kind() {
        Kind::Usage => USAGE,
        Kind::Strict => STRICT,
        Kind::Stopped(signal) => 128 + u8::try_from(signal).unwrap_or(0),
        _ => FAILED,
    }
}

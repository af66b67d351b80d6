//! What is said, and where: the answer on stdout, everything else on stderr, quiet on a closed pipe.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use clap::ColorChoice;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;

use super::args::Verbosity;
use crate::adapter::{Note, Severity};
use crate::error::{Error, Kind, Result, is_hidden, printable};

/// 0 quiet, 1 usual, 2 verbose; plus 4 with colour, plus 8 where every document is one line, plus 16 where a line may stand
/// half written.
static MANNER: AtomicU8 = AtomicU8::new(1);
const COLOUR: u8 = 4;
const LINES: u8 = 8;
const HALF: u8 = 16;
/// Notes of one severity shown without `-v`.
const NOTES_SHOWN: usize = 12;

/// What a command said while nobody was to hear it.
#[derive(Debug, Default)]
pub struct Heard {
    /// The answer.
    pub answer: String,
    /// Lines of notes and warnings.
    pub said: Vec<String>,
}

thread_local! {
    /// Where what this thread says goes instead, while [`listen_to`] runs.
    static HEARD: RefCell<Option<Heard>> = const { RefCell::new(None) };
}

/// Does `work` and keeps what it says, on this thread, to itself.
pub fn listen_to<T>(work: impl FnOnce() -> T) -> (T, Heard) {
    let before = HEARD.replace(Some(Heard::default()));
    let out = work();
    (out, HEARD.replace(before).unwrap_or_default())
}

/// Says what another thread would have said.
pub fn repeat(heard: Heard) {
    heard.said.into_iter().for_each(say);
}

/// Whether what this thread says is kept.
pub fn is_heard() -> bool {
    HEARD.with_borrow(Option::is_some)
}

/// Keeps what is said; false where it is to be printed.
fn keep(with: impl FnOnce(&mut Heard)) -> bool {
    HEARD.with_borrow_mut(|heard| heard.as_mut().map(with).is_some())
}

/// Prints a line on stderr, or keeps it.
fn say(line: String) {
    let mut line = Some(line);
    if !keep(|heard| heard.said.extend(line.take()))
        && let Some(line) = line
    {
        write_line(line);
    }
}

/// Writes a line on stderr in one piece, which those of other threads cannot come into.
fn write_line(line: String) {
    let _ = std::io::stderr().write_all((line + "\n").as_bytes());
}

/// Takes the flags; called once.
pub fn set_up(flags: &Verbosity) {
    let level = if flags.quiet { 0 } else { 1 + u8::from(flags.verbose) };
    let colour = match flags.color {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    MANNER.store(level | if colour { COLOUR } else { 0 }, Ordering::Relaxed);
}

/// Whether everything is wanted.
pub fn is_verbose() -> bool {
    MANNER.load(Ordering::Relaxed) & 3 == 2
}

/// Whether nothing but the answer is wanted.
pub fn is_quiet() -> bool {
    MANNER.load(Ordering::Relaxed) & 3 == 0
}

fn in_colour(word: &str, code: &str) -> String {
    if MANNER.load(Ordering::Relaxed) & COLOUR != 0 {
        format!("\u{1b}[{code}m{word}\u{1b}[0m")
    } else {
        word.to_string()
    }
}

/// Prints text on stdout. What would steer a terminal is shown as an escape, wherever it comes from.
pub fn answer(text: &str) -> Result<()> {
    print(&escaped(text, |c| c.escape_unicode().to_string()))
}

/// The text with every character but line ends and tabs replaced that is not seen by itself.
fn escaped(text: &str, escape: impl Fn(char) -> String) -> Cow<'_, str> {
    let steers = |c: char| is_hidden(c) && c != '\n' && c != '\t';
    if !text.contains(steers) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 64);
    for c in text.chars() {
        if steers(c) { out += &escape(c) } else { out.push(c) }
    }
    out.into()
}

fn print(text: &str) -> Result<()> {
    if keep(|heard| {
        heard.answer = if heard.answer.is_empty() { text.into() } else { format!("{}\n{text}", heard.answer) }
    }) {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    let done = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    done.map_err(|e| {
        let kind = if e.kind() == ErrorKind::BrokenPipe { Kind::Stopped(13) } else { Kind::Io };
        Error::new(kind, format!("cannot write to standard output: {e}"))
    })
}

/// Has every document from now on take one line.
pub fn documents_are_lines() {
    MANNER.fetch_or(LINES, Ordering::Relaxed);
}

/// Prints a JSON document on stdout. All characters that are not seen by themselves are in texts there, where they can
/// be escaped.
pub fn document(value: &Value) -> Result<()> {
    let in_lines = MANNER.load(Ordering::Relaxed) & LINES != 0;
    let text = if in_lines { serde_json::to_string(value) } else { serde_json::to_string_pretty(value) };
    let text = text.map_err(|e| Error::malformed(e.to_string()))?;
    print(&escaped(&text, |c| format!("\\u{:04x}", u32::from(c))))
}

/// True for the error of a reader that went away, which ends a run quietly.
pub fn is_broken_pipe(e: &Error) -> bool {
    e.kind() == Kind::Stopped(13)
}

/// Prints a line on stderr, whoever listens.
pub fn error_line(line: &str) {
    let line = match line.split_once(": ") {
        Some((first @ ("lora-tool" | "hint"), rest)) => {
            format!("{}: {rest}", in_colour(first, if first == "hint" { "36" } else { "31" }))
        }
        _ => line.to_string(),
    };
    let half = MANNER.fetch_and(!HALF, Ordering::Relaxed) & HALF != 0;
    write_line(if half { format!("\n{line}") } else { line });
}

/// Has the next line of an error begin anew: another thread may have been ended in the midst of one.
pub fn a_line_may_be_half_written() {
    MANNER.fetch_or(HALF, Ordering::Relaxed);
}

/// Prints notes on stderr: lossy ones always, the others up to a number.
pub fn notes(notes: &[Note]) {
    if is_quiet() {
        return;
    }
    for (severity, word, code) in [(Severity::Lossy, "warning", "33"), (Severity::Info, "note", "36")] {
        let all: Vec<_> = notes.iter().filter(|n| n.severity == severity).collect();
        let shown = if is_verbose() { all.len() } else { NOTES_SHOWN };
        for note in all.iter().take(shown) {
            say(format!("{}: {note}", in_colour(word, code)));
        }
        if all.len() > shown {
            say(format!("{}: {} more; -v shows them", in_colour(word, code), all.len() - shown));
        }
    }
}

/// A path for a document. JSON is Unicode, and a path need not be.
pub fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Prints a warning on stderr.
pub fn warn(text: &str) {
    if !is_quiet() {
        say(format!("{}: {text}", in_colour("warning", "33")));
    }
}

/// An error for the first lossy note, for `--strict`.
pub fn require_lossless(notes: &[Note]) -> Result<()> {
    match notes.iter().find(|n| n.severity == Severity::Lossy) {
        None => Ok(()),
        Some(note) => Err(Error::new(Kind::Strict, format!("refused because of --strict: {note}"))),
    }
}

/// A table for people: plain columns, `right` of which are aligned to the right.
pub fn table(head: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head);
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for index in right {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

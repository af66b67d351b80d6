//! Hostile and odd files given to the built program, by all of `inspect`, `convert` and `merge`, and by the other commands in
//! turn.
//!
//! The other modules of this group show what the readers say; here it is what a user gets: the exit status, one line
//! that names the file as it was given, nothing written, nothing changed, nothing left, little time and little memory.
//! Files are made of bytes where they are needed, by the small builders below `made`.

mod accepted;
mod adapters;
mod archives;
mod bases;
mod commands;
mod gguf;
mod headers;
mod kohya;
mod made;
mod pickles;
mod settings;
mod special;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Scratch, require_none, safetensors};
use crate::program::PROGRAM;
use made::{base, good_adapter};

/// What a run may take.
const MOST_TIME: Duration = Duration::from_secs(10);
const MOST_KIB: u64 = 1 << 20;

/// What one command has to make of a case.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    Refused,
    Accepted,
    /// Either, as long as it behaves.
    Open,
}

/// What `inspect`, `convert` and `merge` have to make of a case.
type Verdicts = [Verdict; 3];

/// Bytes that are not what they say.
const REFUSED: Verdicts = [Verdict::Refused; 3];
/// Understood, and not to be written on: `inspect` may show what it can.
const NOT_WRITTEN: Verdicts = [Verdict::Open, Verdict::Refused, Verdict::Refused];
/// An adapter that is sound by itself and does not fit the base.
const NOT_MERGED: Verdicts = [Verdict::Open, Verdict::Open, Verdict::Refused];
/// Odd and legal.
const ACCEPTED: Verdicts = [Verdict::Accepted; 3];
/// Anything, as long as it behaves.
const OPEN: Verdicts = [Verdict::Open; 3];
/// A base: what `convert` makes of it is not the question.
const BAD_BASE: Verdicts = REFUSED;

/// What else can be done with an adapter.
const OF_ADAPTERS: [&str; 15] = [
    "inspect X --json --spectrum",
    "inspect X --keys",
    "resize X -o OUT --rank 1",
    "resize X -o OUT --rank energy=0.5 --json",
    "convert X -o OUT --to kohya",
    "convert X -o OUT --to gguf --base BASE",
    "convert X -o OUT --to mlx --normalise",
    "compare X GOOD",
    "compare GOOD X --base BASE",
    "lint X --base BASE --json",
    "lint X --fix -o OUT",
    "verify BASE --base BASE --adapter X",
    "unmerge BASE --adapter X -o OUT --no-sync",
    "undo-record BASE BASE --adapter X -o OUT --no-sync",
    "merge BASE GOOD X -o OUT --json --no-sync --undo OUT.undo",
];

/// What else can be done with a base.
const OF_BASES: [&str; 13] = [
    "inspect X --json",
    "inspect X --keys --json",
    "extract X BASE -o OUT --rank 1",
    "extract BASE X -o OUT --rank 1",
    "undo-record X BASE -o OUT --no-sync",
    "undo-record BASE X -o OUT --no-sync",
    "verify X --base BASE --adapter GOOD",
    "verify BASE --base X --adapter GOOD",
    "unmerge X --adapter GOOD -o OUT --no-sync",
    "compare X BASE",
    "compare GOOD GOOD --base X",
    "lint GOOD --base X",
    "convert GOOD --base X -o OUT --to kohya",
];

/// A folder with a base, a good adapter and room for cases, and what went wrong so far.
struct Corpus {
    folder: Scratch,
    faults: Vec<String>,
    number: usize,
}

/// How a run ended.
struct Ran {
    code: Option<i32>,
    signal: Option<i32>,
    out: Vec<u8>,
    err: Vec<u8>,
    took: Duration,
    peak_kib: u64,
}

impl Corpus {
    fn new() -> Corpus {
        let folder = Scratch::new();
        for name in ["base", "good", "cases", "work"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        folder.put("base/model.safetensors", base());
        folder.put("base/config.json", made::BASE_CONFIG);
        let (config, tensors) = good_adapter();
        folder.put("good/adapter_config.json", config);
        folder.put("good/adapter_model.safetensors", tensors);
        Corpus { folder, faults: Vec::new(), number: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An empty folder for the files of a case.
    fn place(&mut self) -> PathBuf {
        self.number += 1;
        let path = self.path("cases").join(format!("c{}", self.number));
        std::fs::create_dir(&path).unwrap();
        path
    }

    /// A folder of these files.
    fn files(&mut self, files: &[(&str, &[u8])]) -> PathBuf {
        let place = self.place();
        for (name, bytes) in files {
            let path = place.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        place
    }

    /// One file by itself.
    fn file(&mut self, name: &str, bytes: &[u8]) -> PathBuf {
        self.files(&[(name, bytes)]).join(name)
    }

    /// An adapter in PEFT's layout with a good config.
    fn peft(&mut self, tensors: &[u8]) -> PathBuf {
        self.files(&[("adapter_config.json", good_adapter().0.as_bytes()), ("adapter_model.safetensors", tensors)])
    }

    /// The path in the place of the adapter.
    fn adapter(&mut self, case: &str, path: &Path, verdicts: Verdicts, words: &[&str]) {
        let base = self.path("base");
        self.run(case, path, verdicts, words, [&base, path]);
        self.others(case, path, verdicts, &OF_ADAPTERS);
        self.forget(path);
    }

    /// The path in the place of the base.
    fn base(&mut self, case: &str, path: &Path, verdicts: Verdicts, words: &[&str]) {
        let good = self.path("good");
        self.run(case, path, verdicts, words, [path, &good]);
        self.others(case, path, verdicts, &OF_BASES);
        self.forget(path);
    }

    /// Removes the files of a case that is done.
    fn forget(&self, path: &Path) {
        let cases = self.path("cases");
        if let Some(first) = path.strip_prefix(&cases).ok().and_then(|rest| rest.components().next()) {
            let _ = std::fs::remove_dir_all(cases.join(first));
        }
    }

    fn run(&mut self, case: &str, path: &Path, verdicts: Verdicts, words: &[&str], merge: [&Path; 2]) {
        let out = self.path("work/out");
        let os = OsStr::new;
        let lines: [Vec<&OsStr>; 3] = [
            vec![os("inspect"), path.as_os_str()],
            vec![os("convert"), path.as_os_str(), os("--to"), os("peft"), os("-o"), out.as_os_str()],
            vec![os("merge"), merge[0].as_os_str(), merge[1].as_os_str(), os("-o"), out.as_os_str(), os("--no-sync")],
        ];
        for (line, verdict) in lines.iter().zip(verdicts) {
            self.line(case, line, Some(path), verdict, words);
        }
    }

    /// The other commands: one of them for each case, all of them with `HOSTILE=all`. What none of the three above has
    /// taken has to be refused here as well.
    fn others(&mut self, case: &str, path: &Path, verdicts: Verdicts, lines: &[&str]) {
        let (base, good) = (self.path("base"), self.path("good"));
        let (out, record) = (self.path("work/out"), self.path("work/out.undo"));
        let all = std::env::var_os("HOSTILE").is_some_and(|wanted| wanted == "all");
        for (n, line) in lines.iter().enumerate() {
            if !all && n != self.number % lines.len() {
                continue;
            }
            let word = |word| match word {
                "X" => path.as_os_str(),
                "BASE" => base.as_os_str(),
                "GOOD" => good.as_os_str(),
                "OUT" => out.as_os_str(),
                "OUT.undo" => record.as_os_str(),
                word => OsStr::new(word),
            };
            // Keys are listed where nothing else is understood, and lint says what it finds of the rest as well. Where there are
            // several files, the fault may lie between the others.
            let all_open = line.contains("--keys") || line.starts_with("lint") || line.contains("GOOD --base X");
            let verdict = if verdicts == REFUSED && !all_open { Verdict::Refused } else { Verdict::Open };
            let of_others =
                ["verify", "merge"].iter().any(|word| line.starts_with(word)) || line.contains("GOOD --base X");
            let given = (!of_others).then_some(path);
            let line: Vec<_> = line.split(' ').map(word).collect();
            self.line(case, &line, given, verdict, &[]);
        }
    }

    /// One command line; `given` is what a refusal has to name.
    fn line(&mut self, case: &str, line: &[&OsStr], given: Option<&Path>, verdict: Verdict, words: &[&str]) {
        let before = Picture::of(self.folder.path());
        let ran = run(line, self.folder.path());
        let after = Picture::of(self.folder.path());
        let command = line.first().map_or_else(String::new, |word| word.to_string_lossy().into_owned());
        let mut wrong = ran.manners();
        wrong.extend(match ran.code {
            // What is repaired is written, also where other faults are left.
            Some(_) if ran.code == Some(0) || command == "lint" => before.changes(&after, Some("work/out")),
            _ => before.changes(&after, None),
        });
        match (verdict, ran.code) {
            (_, Some(0)) if verdict == Verdict::Refused => wrong.push(format!("accepted, expected {words:?}")),
            (Verdict::Accepted, code) if code != Some(0) => wrong.push("refused".into()),
            (Verdict::Refused | Verdict::Open, code) if code != Some(0) => {
                wrong.extend(ran.refusal(given, if verdict == Verdict::Refused { words } else { &[] }));
            }
            _ => {}
        }
        report(case, &command, &ran, self.folder.path());
        if !wrong.is_empty() {
            let (out, err) = (String::from_utf8_lossy(&ran.out), String::from_utf8_lossy(&ran.err));
            let (out, err) = (shortened(&out), shortened(&err));
            self.faults.push(format!("{case}: {command}: {}\n    {err}\n    {out}", wrong.join("; ")));
        }
        let _ = std::fs::remove_dir_all(self.path("work"));
        std::fs::create_dir(self.path("work")).unwrap();
    }

    fn done(self) {
        require_none(self.faults);
    }
}

fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(600)]
}

impl Ran {
    /// What no run may do, whatever it is given.
    fn manners(&self) -> Vec<String> {
        let mut out = Vec::new();
        if let Some(signal) = self.signal {
            out.push(format!("ended by signal {signal}"));
        }
        if !matches!(self.code, None | Some(0..=3)) {
            out.push(format!("status {:?}", self.code));
        }
        if self.took > MOST_TIME {
            out.push(format!("took {:?}", self.took));
        }
        if self.peak_kib > MOST_KIB {
            out.push(format!("took {} MiB", self.peak_kib >> 10));
        }
        for (stream, bytes) in [("stdout", &self.out), ("stderr", &self.err)] {
            match std::str::from_utf8(bytes) {
                Err(_) => out.push(format!("{stream} is not UTF-8")),
                Ok(text) => {
                    out.extend(text.chars().find(|c| drives_a_terminal(*c)).map(|c| format!("{stream} has {c:?}")));
                }
            }
        }
        let err = String::from_utf8_lossy(&self.err);
        if err.contains("panicked") || err.contains("RUST_BACKTRACE") {
            out.push("panicked".into());
        }
        out
    }

    /// What is wrong with a refusal.
    fn refusal(&self, given: Option<&Path>, words: &[&str]) -> Vec<String> {
        let mut out = Vec::new();
        let err = String::from_utf8_lossy(&self.err);
        let errors: Vec<_> = err.lines().filter(|line| line.starts_with("lora-tool: ")).collect();
        let [error] = errors.as_slice() else {
            return vec![format!("{} error lines", errors.len())];
        };
        let is_of_two = error.contains("expected two adapters or two models"); // a wrong command line
        if self.code != Some(if is_of_two { 2 } else { 1 }) {
            out.push(format!("status {:?}, expected 1", self.code));
        }
        let named = given.map(|path| shown(path.as_os_str()));
        out.extend(named.filter(|name| !error.contains(name)).map(|name| format!("does not name {name}")));
        out.extend(words.iter().filter(|word| !error.contains(**word)).map(|word| format!("does not say `{word}`")));
        let of_path = given.map_or(0, |path| path.as_os_str().len());
        if error.len() > 2000 + 2 * of_path {
            out.push(format!("a line of {} bytes", error.len()));
        }
        out
    }
}

/// A path as a message has it.
fn shown(path: &OsStr) -> String {
    let escaped =
        |c: char| if c == '\n' || drives_a_terminal(c) { c.escape_unicode().to_string() } else { c.to_string() };
    path.to_string_lossy().chars().map(escaped).collect()
}

fn drives_a_terminal(c: char) -> bool {
    c.is_control() && c != '\n'
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// Everything below a folder: what it is, its size and time, and its bytes where they are few.
#[derive(PartialEq)]
struct Picture(BTreeMap<PathBuf, (u32, u64, i64, i64, Vec<u8>)>);

impl Picture {
    fn of(folder: &Path) -> Picture {
        let mut all = BTreeMap::new();
        let mut left = vec![folder.to_path_buf()];
        while let Some(path) = left.pop() {
            let Ok(about) = std::fs::symlink_metadata(&path) else { continue };
            let few = about.is_file() && about.len() < 1 << 16;
            let bytes = if few { std::fs::read(&path).unwrap_or_default() } else { Vec::new() };
            if about.is_dir() {
                left.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
                continue;
            }
            all.insert(path, (about.mode(), about.len(), about.mtime(), about.mtime_nsec(), bytes));
        }
        Picture(all)
    }

    /// What is new, gone or other in `after`, but for what lies at `but`.
    fn changes(&self, after: &Picture, but: Option<&str>) -> Vec<String> {
        let is_out = |path: &Path| but.is_some_and(|but| path.to_string_lossy().contains(but));
        let new = after.0.keys().filter(|path| !self.0.contains_key(*path) && !is_out(path));
        let other = self.0.iter().filter(|(path, about)| after.0.get(*path) != Some(about)).map(|(path, _)| path);
        new.map(|path| format!("left {}", path.display()))
            .chain(other.map(|path| format!("changed {}", path.display())))
            .collect()
    }
}

/// Runs the program in `folder`, with no more private memory than is allowed.
fn run(line: &[&OsStr], folder: &Path) -> Ran {
    let start = Instant::now();
    let mut command = Command::new("sh");
    let limited = format!("ulimit -c 0; ulimit -d {MOST_KIB}; exec \"$0\" \"$@\"");
    command.args(["-c", &limited, PROGRAM]).args(line);
    command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").env("COLUMNS", "100").current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let readers = (follow(child.stdout.take()), follow(child.stderr.take()));
    let (status, peak_kib) = wait(&mut child, start);
    let (out, err) = (readers.0.join().unwrap(), readers.1.join().unwrap());
    Ran { code: status.code(), signal: status.signal(), out, err, took: start.elapsed(), peak_kib }
}

fn follow(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut out = Vec::new();
        let _ = stream.map(|mut stream| stream.read_to_end(&mut out));
        out
    })
}

/// How it ended, and the most memory that was seen; a run that does not end is killed.
fn wait(child: &mut Child, start: Instant) -> (std::process::ExitStatus, u64) {
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(kib.unwrap_or(0));
        if let Some(ended) = child.try_wait().unwrap() {
            return (ended, peak);
        }
        if start.elapsed() > 2 * MOST_TIME {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Writes what every case came to into the file that `HOSTILE_REPORT` names, to be read by a person.
fn report(case: &str, command: &str, ran: &Ran, folder: &Path) {
    use std::io::Write;
    let Some(path) = std::env::var_os("HOSTILE_REPORT") else { return };
    let err = String::from_utf8_lossy(&ran.err).replace(&folder.display().to_string(), "");
    let code = ran.code.map_or_else(|| "signal".into(), |code| code.to_string());
    let millis = ran.took.as_millis();
    let text = format!(
        "{case}\t{command}\t{code}\t{millis}ms {}M\t{}\n",
        ran.peak_kib >> 10,
        err.trim_end().replace('\n', " | ")
    );
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

//! Running the built program.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

/// The program that the tests were built with.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_lora-tool");

/// How a run ended and what it said.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// The run, which has to have ended with `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Ran {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// Its stdout as one JSON document.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e} in:\n{}\nstderr:\n{}", self.out, self.err))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// The program, to be run in an environment in which nothing changes what it says.
pub fn command() -> Command {
    let mut command = Command::new(PROGRAM);
    command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").env("COLUMNS", "100");
    command
}

/// Runs the program with these arguments.
pub fn run<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Ran {
    command().args(args).output().expect("the program starts").into()
}

/// Runs `merge BASE ADAPTER -o OUT` with more arguments; no waiting for the disk.
pub fn merge(base: &Path, adapter: impl AsRef<OsStr>, out: &Path, more: &[&str]) -> Ran {
    let mut command = command();
    command.arg("merge").arg(base).arg(adapter).arg("-o").arg(out).arg("--no-sync").args(more);
    command.output().expect("the program starts").into()
}

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a readable folder");
    let mut out: Vec<_> = entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    out.sort();
    out
}

//! Runs the transcripts in `tests/cmd`: what a user types and what comes of it.
//!
//! A transcript is a Markdown page with `console` blocks. A line that begins with `$` is a command for `sh`, run in an
//! empty folder in which `fixtures` is the project's; the lines below it are everything it says, and `? N` is its exit
//! status where that is not 0. Times and rates stand as `T`. `UPDATE_TRANSCRIPTS=1 cargo test transcripts` writes what
//! is said now into the pages, to be read before it is committed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;

use crate::fixtures::{self, Scratch};
use crate::program::PROGRAM;
use crate::sources::project;

#[test]
fn transcripts_are_what_the_program_says() {
    let update = std::env::var_os("UPDATE_TRANSCRIPTS").is_some();
    let mut differ = Vec::new();
    let pages = pages();
    assert!(!pages.is_empty(), "no pages in tests/cmd");
    for page in pages {
        let written = fs::read_to_string(&page).expect("a readable page");
        let said = rewritten(&written);
        if said == written {
            continue;
        }
        if update {
            fs::write(&page, said).expect("a writable page");
        } else {
            differ.push(difference(&page, &written, &said));
        }
    }
    assert!(differ.is_empty(), "{}\nUPDATE_TRANSCRIPTS=1 writes the pages anew", differ.join("\n"));
}

fn pages() -> Vec<PathBuf> {
    let entries = fs::read_dir(project().join("tests/cmd")).expect("tests/cmd");
    let mut out: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    out.retain(|path| path.extension().is_some_and(|e| e == "md"));
    out.sort();
    out
}

/// The page with what its commands say now. The commands of a page share one folder.
fn rewritten(page: &str) -> String {
    let scratch = Scratch::new();
    let folder = scratch.join(".");
    std::os::unix::fs::symlink(fixtures::root(), scratch.join("fixtures")).expect("a link to the fixtures");
    let (mut out, mut in_block) = (String::new(), false);
    for line in page.lines() {
        match line {
            "```console" => in_block = true,
            "```" => in_block = false,
            _ if !in_block => {}
            _ => {
                if let Some(command) = line.strip_prefix("$ ") {
                    out += &format!("{line}\n{}", answer(command, &folder));
                }
                continue;
            }
        }
        out += line;
        out.push('\n');
    }
    out
}

fn answer(command: &str, folder: &Path) -> String {
    let program_folder = Path::new(PROGRAM).parent().expect("a folder").display();
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("sh")
        .args(["-c", &format!("{{ {command}\n}} 2>&1")])
        .current_dir(folder)
        .env("PATH", format!("{program_folder}:{path}"))
        .env("COLUMNS", "100")
        .env("LC_ALL", "C")
        .output()
        .expect("sh starts");
    let mut said = without_times(&String::from_utf8_lossy(&output.stdout));
    if !said.is_empty() && !said.ends_with('\n') {
        said.push('\n');
    }
    match output.status.code() {
        Some(0) => said,
        code => format!("{said}? {}\n", code.map_or("a signal".to_string(), |c| c.to_string())),
    }
}

fn without_times(said: &str) -> String {
    let rate = Regex::new(r"in \d+\.\d s \([^)]*/s\)").expect("a pattern");
    let time = Regex::new(r"in \d+\.\d s").expect("a pattern");
    let column = Regex::new(r"(?m)\b\d+\.\d s$").expect("a pattern");
    let said = rate.replace_all(said, "in T s (T/s)");
    column.replace_all(&time.replace_all(&said, "in T s"), "T s").into_owned()
}

/// The first lines that differ, with the command they belong to.
fn difference(page: &Path, written: &str, said: &str) -> String {
    let name = page.file_name().unwrap_or_default().to_string_lossy();
    let at = written.lines().zip(said.lines()).position(|(a, b)| a != b);
    let at = at.unwrap_or_else(|| written.lines().count().min(said.lines().count()));
    let line = |text: &str| text.lines().nth(at).unwrap_or("(nothing)").to_string();
    let command = said.lines().take(at + 1).filter(|l| l.starts_with("$ ")).last().unwrap_or("(no command)");
    format!("{name}, line {}: {command}\n  written: {}\n  said:    {}", at + 1, line(written), line(said))
}

//! What a batch has done before: a file of lines beside the file of jobs, one for each job that was done.
//!
//! A line holds the hash of the command line and of its inputs. Inputs are the same while the names, sizes and times of
//! change of all their files are: hashing a base model would take as long as merging into it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::jobs::Job;
use crate::error::{Error, Result};
use crate::tensor::Hash;

/// Behind the name of the file of jobs.
const ENDING: &str = ".done";
/// How deep folders are looked into.
const DEPTH: usize = 4;

/// The record, open for more.
pub struct Record {
    path: PathBuf,
    known: BTreeMap<String, String>,
    file: Mutex<Option<File>>,
}

impl Record {
    /// Reads the record of these jobs, if there is one.
    pub fn of(jobs: &Path) -> Record {
        let mut name = jobs.as_os_str().to_owned();
        name.push(ENDING);
        let path = PathBuf::from(name);
        // A line that was cut off, or is none of ours, only means that its job is done again.
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let known = text.lines().filter_map(pair).collect();
        Record { path, known, file: Mutex::new(None) }
    }

    /// Whether this job was done, with these inputs, and its output is there.
    pub fn has(&self, job: &Job) -> bool {
        let Some(out) = &job.out else { return false };
        let inputs = inputs(job);
        Path::new(out).exists() && inputs.is_some() && self.known.get(&command(job)) == inputs.as_ref()
    }

    /// Adds a job whose inputs were these before it ran.
    pub fn add(&self, job: &Job, inputs: Option<String>) -> Result<()> {
        let (Some(inputs), Some(out)) = (inputs, &job.out) else { return Ok(()) };
        let fail = |e| Error::io("cannot write the record of what is done", e).in_file(&self.path);
        let line = json!({ "job": command(job), "inputs": inputs, "out": out }).to_string();
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match &mut *file {
            Some(file) => file,
            none => none.insert(OpenOptions::new().create(true).append(true).open(&self.path).map_err(fail)?),
        };
        file.write_all(format!("{line}\n").as_bytes()).map_err(fail)
    }
}

fn pair(line: &str) -> Option<(String, String)> {
    let line: Value = serde_json::from_str(line).ok()?;
    Some((line["job"].as_str()?.to_string(), line["inputs"].as_str()?.to_string()))
}

fn command(job: &Job) -> String {
    let folder = std::env::current_dir().unwrap_or_default();
    Hash::of(format!("{}\0{:?}\0{:?}", env!("CARGO_PKG_VERSION"), folder, job.line).as_bytes()).to_string()
}

/// The hash of what the inputs are; none where one cannot be looked at.
pub fn inputs(job: &Job) -> Option<String> {
    let mut all = String::new();
    for input in &job.inputs {
        let bare = input.rfind('@').filter(|_| !Path::new(input).exists()).and_then(|at| input.get(..at));
        let path = Path::new(bare.unwrap_or(input));
        look(path, DEPTH, &mut all)?;
        // An adapter that is given as a file has its config beside it.
        if path.is_file() {
            let config = path.with_file_name("adapter_config.json");
            let _ = look(&config, 0, &mut all);
        }
    }
    Some(Hash::of(all.as_bytes()).to_string())
}

fn look(path: &Path, depth: usize, all: &mut String) -> Option<()> {
    let about = std::fs::metadata(path).ok()?;
    if about.is_dir() {
        if depth == 0 {
            return Some(());
        }
        let mut names: Vec<_> = std::fs::read_dir(path).ok()?.flatten().map(|e| e.path()).collect();
        names.sort();
        return names.iter().try_for_each(|name| look(name, depth - 1, all));
    }
    *all += &format!("{path:?} {} {}.{}\n", about.len(), about.mtime(), about.mtime_nsec());
    Some(())
}

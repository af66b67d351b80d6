//! What a batch has done before: lines of JSON in a file beside the file of jobs.
//!
//! A line for each job that was done holds the hash of its command line, the hash of all that its inputs held, and the
//! hashes of the files it wrote. A line for each file that was hashed keeps that for the next run (`contents`). Lines
//! are only ever added; of two that speak of the same thing the last one counts.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::contents::{Hashes, Known, Snapshot};
use super::files;
use super::jobs::Job;
use crate::error::{Error, Result};
use crate::tensor::Hash;

/// Behind the name of the file of jobs.
const ENDING: &str = ".done";
/// Options that the result does not depend on.
const WITHOUT_EFFECT: [&str; 4] = ["--threads=", "--memory=", "--no-sync", "--force"];

/// What is known of a job that was done.
#[derive(Debug)]
struct Done {
    inputs: String,
    outputs: BTreeMap<String, String>,
}

/// The record, open for more.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    done: BTreeMap<String, Done>,
    hashes: Hashes,
    file: Mutex<Option<File>>,
}

impl Record {
    /// Reads the record of these jobs, if there is one. With `rehash` what it says of files is not believed.
    pub fn of(jobs: &Path, rehash: bool) -> Record {
        let mut name = jobs.as_os_str().to_owned();
        name.push(ENDING);
        let path = PathBuf::from(name);
        // A line that was cut off, or is none of ours, only means that a job is done or a file read again.
        let text = std::fs::read(&path).unwrap_or_default();
        let lines: Vec<Value> =
            text.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let done = lines.iter().filter_map(done).collect();
        let known = lines.iter().filter(|_| !rehash).filter_map(Known::from_document);
        Record { path, done, hashes: Hashes::with(known), file: Mutex::new(None) }
    }

    /// What the job's inputs hold now; none where one cannot be read.
    pub fn inputs(&self, job: &Job) -> Option<Snapshot> {
        self.snapshot(files::inputs(job)?)
    }

    /// Whether this job was done, with these inputs, and what it wrote is there as it wrote it.
    pub fn has(&self, job: &Job, inputs: &Snapshot) -> bool {
        let Some(done) = self.done.get(&command(job)).filter(|_| !job.outputs.is_empty()) else { return false };
        let same = |(path, hash): (&String, &String)| {
            let now = self.snapshot(vec![PathBuf::from(path)]);
            now.is_some_and(|now| now.by_path().get(path) == Some(hash))
        };
        done.inputs == inputs.hash().to_string()
            && job.outputs.iter().all(|out| Path::new(out).exists())
            && done.outputs.iter().all(same)
    }

    /// Adds a job whose inputs were these before it ran, unless they are others now.
    pub fn add(&self, job: &Job, inputs: &Snapshot) -> Result<()> {
        let outputs = files::outputs(job).filter(|all| !all.is_empty() && inputs.is_current());
        let Some(outputs) = outputs.and_then(|outputs| self.snapshot(outputs)) else { return Ok(()) };
        self.write(&json!({
            "job": command(job), "inputs": inputs.hash().to_string(), "outputs": outputs.by_path(),
        }))
    }

    fn snapshot(&self, paths: Vec<PathBuf>) -> Option<Snapshot> {
        let known = self.hashes.of_all(&paths)?;
        for (known, _) in known.iter().filter(|(_, is_new)| *is_new) {
            // Only that the file is read again next time depends on it.
            let _ = self.write(&known.document());
        }
        Some(Snapshot::new(paths, known.into_iter().map(|(known, _)| known)))
    }

    fn write(&self, line: &Value) -> Result<()> {
        let fail = |e| Error::io("cannot write the record of what is done", e).in_file(&self.path);
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match &mut *file {
            Some(file) => file,
            none => none.insert(self.open().map_err(fail)?),
        };
        file.write_all(format!("{line}\n").as_bytes()).map_err(fail)
    }

    /// A line that was cut off must not swallow the next.
    fn open(&self) -> std::io::Result<File> {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        if std::fs::read(&self.path)?.last().is_some_and(|last| *last != b'\n') {
            file.write_all(b"\n")?;
        }
        Ok(file)
    }
}

fn done(line: &Value) -> Option<(String, Done)> {
    let text = |key: &str| line.get(key)?.as_str().map(str::to_string);
    let outputs = serde_json::from_value(line.get("outputs")?.clone()).ok()?;
    Some((text("job")?, Done { inputs: text("inputs")?, outputs }))
}

/// The hash of the command line, of the folder it is run in, and of the program's version.
fn command(job: &Job) -> String {
    let folder = std::env::current_dir().unwrap_or_default();
    let counts = |word: &&String| !WITHOUT_EFFECT.iter().any(|option| word.starts_with(option));
    let end = job.line.iter().position(|word| word == "--").unwrap_or(job.line.len());
    let (options, rest) = job.line.split_at(end);
    let options: Vec<_> = options.iter().filter(counts).collect();
    Hash::of(format!("{}\0{folder:?}\0{options:?}\0{rest:?}", env!("CARGO_PKG_VERSION")).as_bytes()).to_string()
}

//! `lora-tool batch`: the jobs of a file, each a command with the names it has on the command line, run in this process.

mod jobs;
mod record;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

use super::output::{self, Heard};
use super::signals::Signals;
use crate::error::{Error, Kind, Result, printable};
use jobs::Job;
use record::Record;

/// Run the jobs of a file
///
/// A job is a command: a [[job]] table with the command and its options and arguments by their names. In inputs, patterns
/// stand for the paths that match. Where the output has {stem} in it, there is one command for each input; {layout} stands
/// for the value of `to`. All jobs are checked before the first is run.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
A file of jobs:
  [[job]]
  command = \"convert\"
  adapter = \"adapters/*\"
  out = \"converted/{stem}\"
  to = \"peft\"
  normalise = true

  [[job]]
  command = \"merge\"
  base = \"base\"
  adapter = [\"style@0.8\", \"tone\"]
  out = \"merged\"

Examples:
  lora-tool batch jobs.toml
  lora-tool batch jobs.toml --jobs 8 --resume --keep-going --json")]
pub struct Args {
    /// File of jobs
    file: PathBuf,
    /// How many jobs run at a time
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: u16,
    /// Leave out jobs that were done before, with the same inputs and options, and whose output is there
    #[arg(long)]
    resume: bool,
    /// Go on after a job has failed
    #[arg(long)]
    keep_going: bool,
    /// Print the answer as one JSON document
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// What a command line of a job is given to.
pub trait Commands: Sync {
    /// An error where it is none.
    fn check(&self, line: &[String]) -> std::result::Result<(), clap::Error>;
    /// Runs it. An error inside comes after the answer.
    fn run(&self, line: &[String]) -> Result<Option<Error>>;
}

/// How a job ended.
enum End {
    Done,
    Failed(Error),
    UpToDate,
}

/// A job that was looked at.
struct Ran {
    end: End,
    heard: Heard,
    seconds: f64,
}

/// Runs the command.
pub fn run(args: &Args, mut program: clap::Command, commands: &dyn Commands) -> Result<()> {
    program.build();
    let all = jobs::read(&args.file, &program)?;
    for job in &all {
        commands.check(&job.line).map_err(|e| refused(args, job, &e))?;
    }
    let signals = Signals::listen()?;
    let batch = Batch { args, commands, jobs: &all, record: Record::of(&args.file), signals: signals.clone() };
    let began = Instant::now();
    let ran = batch.all();
    if signals.arrived() != 0 {
        return Err(Error::new(Kind::Stopped(signals.arrived()), format!("stopped by signal {}", signals.arrived())));
    }
    answer(args, &all, &ran, began.elapsed().as_secs_f64())
}

fn refused(args: &Args, job: &Job, e: &clap::Error) -> Error {
    let text = e.to_string();
    let first = text.lines().find(|l| !l.trim().is_empty()).unwrap_or_default();
    let rest: Vec<_> = text.lines().skip(1).map(str::trim).take_while(|l| !l.is_empty()).collect();
    let what = first.trim_start_matches("error: ").to_string();
    let what = if rest.is_empty() { what } else { format!("{what} {}", rest.join(", ")) };
    Error::new(Kind::Usage, what).at_key(format!("job {}", job.number)).in_file(&args.file)
}

struct Batch<'a> {
    args: &'a Args,
    commands: &'a dyn Commands,
    jobs: &'a [Job],
    record: Record,
    signals: Signals,
}

impl Batch<'_> {
    /// What became of each job; none of those that were not begun.
    fn all(&self) -> Vec<Option<Ran>> {
        let ran: Vec<Mutex<Option<Ran>>> = self.jobs.iter().map(|_| Mutex::new(None)).collect();
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = || {
            while self.signals.arrived() == 0 && (self.args.keep_going || !failed.load(Ordering::Relaxed)) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let (Some(job), Some(place)) = (self.jobs.get(number), ran.get(number)) else { break };
                let one = self.one(job);
                if matches!(one.end, End::Failed(_)) {
                    failed.store(true, Ordering::Relaxed);
                }
                self.say(number, job, &one);
                *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(one);
            }
        };
        std::thread::scope(|scope| {
            // This thread works as well; one that cannot be started is one less.
            for _ in 1..usize::from(self.args.jobs).min(self.jobs.len()) {
                let _ = std::thread::Builder::new().name("job".into()).spawn_scoped(scope, work);
            }
            work();
        });
        ran.into_iter().map(|r| r.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    fn one(&self, job: &Job) -> Ran {
        let began = Instant::now();
        if self.args.resume && self.record.has(job) {
            return Ran { end: End::UpToDate, heard: Heard::default(), seconds: 0.0 };
        }
        let inputs = record::inputs(job);
        let line = self.whole_line(job);
        let (result, heard) = output::listen_to(|| self.commands.run(&line));
        let dry = job.line.iter().any(|word| word == "--dry-run");
        let end = match result {
            Ok(None) => match if dry { Ok(()) } else { self.record.add(job, inputs) } {
                Ok(()) => End::Done,
                Err(e) => {
                    output::warn(&e.to_string());
                    End::Done
                }
            },
            Ok(Some(e)) | Err(e) => End::Failed(e),
        };
        Ran { end, heard, seconds: began.elapsed().as_secs_f64() }
    }

    /// With what all jobs have in common: the form of the answer, and a fair share of the cores.
    fn whole_line(&self, job: &Job) -> Vec<String> {
        let mut out = job.line.clone();
        let at = out.iter().position(|word| word == "--").unwrap_or(out.len());
        let mut more = Vec::new();
        if self.args.json {
            more.push("--json".to_string());
        }
        if self.args.jobs > 1 && job.may_take_threads {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            more.push(format!("--threads={}", (cores / usize::from(self.args.jobs)).max(1)));
        }
        out.splice(at..at, more);
        out
    }

    /// What is said as a job ends: its notes, and without `--json` one line of the answer.
    fn say(&self, number: usize, job: &Job, ran: &Ran) {
        let label = format!("{}/{}", number + 1, self.jobs.len());
        for line in &ran.heard.said {
            output::error_line(&format!("{label}: {line}"));
        }
        if !self.args.json {
            // A reader that went away does not stop the jobs.
            let _ = output::answer(&self.line(&label, job, ran));
        }
        if let End::Failed(e) = &ran.end
            && let Some(hint) = e.advice()
        {
            output::error_line(&format!("{label}: hint: {}", printable(hint)));
        }
    }

    fn line(&self, label: &str, job: &Job, ran: &Ran) -> String {
        let last = ran.heard.answer.lines().next_back().unwrap_or_default();
        let out = printable(job.out.as_deref().unwrap_or_default());
        match &ran.end {
            End::Done => format!("{label} {}: {last}", job.command),
            End::UpToDate => format!("{label} {}: {out}: up to date", job.command),
            End::Failed(e) => format!("{label} {}: failed: {e}", job.command),
        }
    }
}

fn answer(args: &Args, all: &[Job], ran: &[Option<Ran>], seconds: f64) -> Result<()> {
    let mut counts: BTreeMap<&str, usize> = ["done", "up_to_date", "failed", "not_run"].map(|w| (w, 0)).into();
    ran.iter().for_each(|ran| *counts.entry(word(ran.as_ref())).or_default() += 1);
    let count = |word: &str| counts.get(word).copied().unwrap_or(0);
    if args.json {
        let jobs: Vec<Value> = all.iter().zip(ran).map(|(job, ran)| document(job, ran.as_ref())).collect();
        output::document(&json!({ "file": args.file, "seconds": seconds, "counts": counts, "jobs": jobs }))?;
    } else {
        let parts = [("done", "done"), ("up_to_date", "up to date"), ("failed", "failed"), ("not_run", "not run")];
        let said: Vec<_> =
            parts.iter().filter(|(w, _)| count(w) > 0).map(|(w, text)| format!("{} {text}", count(w))).collect();
        output::answer(&format!("{} in {seconds:.1} s", said.join(", ")))?;
    }
    match count("failed") {
        0 => Ok(()),
        n => {
            let what = format!("{n} of {} jobs failed", all.len());
            let error = Error::new(Kind::Differs, what).in_file(&args.file);
            let left = count("not_run");
            Err(if left > 0 { error.hint(format!("not run: {left}; --keep-going runs them all")) } else { error })
        }
    }
}

fn word(ran: Option<&Ran>) -> &'static str {
    match ran.map(|ran| &ran.end) {
        None => "not_run",
        Some(End::Done) => "done",
        Some(End::UpToDate) => "up_to_date",
        Some(End::Failed(_)) => "failed",
    }
}

fn document(job: &Job, ran: Option<&Ran>) -> Value {
    let error = match ran.map(|ran| &ran.end) {
        Some(End::Failed(e)) => json!({
            "kind": e.kind().word(), "file": e.file().map(|f| f.to_string_lossy()), "key": e.key(), "what": e.what(),
            "hint": e.advice(),
        }),
        _ => Value::Null,
    };
    let answer: Value = ran.and_then(|ran| serde_json::from_str(&ran.heard.answer).ok()).unwrap_or(Value::Null);
    json!({
        "job": job.number, "command": job.command, "arguments": job.line.get(2..), "out": job.out,
        "status": word(ran), "seconds": ran.map(|ran| ran.seconds), "answer": answer, "error": error,
    })
}

//! `lora-tool batch`: the jobs of a file, each a command with the names it has on the command line, run in this process.

mod contents;
mod files;
mod jobs;
mod record;
mod report;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::output::{self, Heard};
use super::progress::Counter;
use super::signals::Signals;
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::stream::Budget;
use crate::tensor::size;
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
  lora-tool batch jobs.toml --jobs 8 --memory 4GB --keep-going --json
  lora-tool batch jobs.toml --resume
  lora-tool batch jobs.toml --json-lines | jq -r 'select(.status == \"failed\") | .out'")]
pub struct Args {
    /// File of jobs
    file: PathBuf,
    /// How many jobs run at a time
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=limits::THREADS))]
    jobs: u16,
    /// Working memory of all jobs together
    #[arg(long, value_name = "SIZE", default_value = "256MB", value_parser = size::parse)]
    memory: u64,
    /// Leave out jobs that were done before, with the same options and the same bytes in their inputs, and whose output is
    /// as they wrote it
    #[arg(long, conflicts_with = "no_record")]
    resume: bool,
    /// Read all files again to see whether they are the same, also those that the system says are unchanged
    #[arg(long, conflicts_with = "no_record")]
    rehash: bool,
    /// Keep no record of what is done, which saves reading the inputs once for their hashes
    #[arg(long)]
    no_record: bool,
    /// Go on after a job has failed
    #[arg(long)]
    keep_going: bool,
    /// Print the answer as one JSON document
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Print a line of JSON for each job as it ends, and one that counts them
    #[arg(long, help_heading = "Output", conflicts_with = "json")]
    pub json_lines: bool,
}

impl Args {
    fn answers_in_json(&self) -> bool {
        self.json || self.json_lines
    }
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
        require_fitting(args, job)?;
    }
    let signals = Signals::listen()?;
    let batch = Batch {
        args,
        commands,
        jobs: &all,
        slots: usize::from(args.jobs).min(all.len()).max(1),
        budget: Budget::new(args.memory),
        record: (!args.no_record).then(|| Record::of(&args.file, args.rehash)),
        signals: signals.clone(),
        bar: Counter::new(all.len(), "jobs", signals.clone()),
    };
    let began = Instant::now();
    let ran = batch.all();
    batch.bar.finish();
    if signals.arrived() != 0 {
        let stopped = Error::new(Kind::Stopped(signals.arrived()), format!("stopped by signal {}", signals.arrived()));
        let has_record = batch.record.is_some();
        return Err(if has_record { stopped.hint("--resume leaves out what is done") } else { stopped });
    }
    report::answer(args, &all, &ran, began.elapsed().as_secs_f64())
}

fn refused(args: &Args, job: &Job, e: &clap::Error) -> Error {
    let text = e.to_string();
    let first = text.lines().find(|l| !l.trim().is_empty()).unwrap_or_default();
    let rest: Vec<_> = text.lines().skip(1).map(str::trim).take_while(|l| !l.is_empty()).collect();
    let what = first.trim_start_matches("error: ").to_string();
    let what = if rest.is_empty() { what } else { format!("{what} {}", rest.join(", ")) };
    Error::new(Kind::Usage, what).at_key(format!("job {}", job.number)).in_file(&args.file)
}

/// A job may ask for a part of the memory, or for all of it.
fn require_fitting(args: &Args, job: &Job) -> Result<()> {
    let Some(asked) = job.memory.filter(|asked| *asked > args.memory) else { return Ok(()) };
    let what = format!("{}, and all jobs together have {}", size::show(asked), size::show(args.memory));
    Err(Error::new(Kind::Usage, what)
        .at_key(format!("job {}, memory", job.number))
        .in_file(&args.file)
        .hint(format!("--memory {} lets it run, with no job beside it that needs more", size::exact(asked))))
}

struct Batch<'a> {
    args: &'a Args,
    commands: &'a dyn Commands,
    jobs: &'a [Job],
    /// Jobs that run at a time.
    slots: usize,
    /// Their memory.
    budget: Budget,
    record: Option<Record>,
    signals: Signals,
    bar: Counter,
}

impl Batch<'_> {
    /// What became of each job; none of those that were not begun.
    fn all(&self) -> Vec<Option<Ran>> {
        let ran: Vec<Mutex<Option<Ran>>> = self.jobs.iter().map(|_| Mutex::new(None)).collect();
        let (next, failures, ends) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        let work = || {
            while self.signals.arrived() == 0 && !ends.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let (Some(job), Some(place)) = (self.jobs.get(number), ran.get(number)) else { break };
                let one = self.one(job);
                if matches!(one.end, End::Failed(_)) {
                    failures.fetch_add(1, Ordering::Relaxed);
                    ends.fetch_or(!self.args.keep_going, Ordering::Relaxed);
                }
                self.bar.ended(failures.load(Ordering::Relaxed), || {
                    report::ended(self.args, number, self.jobs.len(), job, &one);
                });
                *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(one);
            }
        };
        std::thread::scope(|scope| {
            // This thread works as well; one that cannot be started is one less.
            for _ in 1..self.slots {
                let _ = std::thread::Builder::new().name("job".into()).spawn_scoped(scope, work);
            }
            work();
        });
        ran.into_iter().map(|r| r.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    fn one(&self, job: &Job) -> Ran {
        let began = Instant::now();
        let record = self.record.as_ref().filter(|_| !job.outputs.is_empty());
        let inputs = record.and_then(|record| record.inputs(job));
        let known = record.zip(inputs.as_ref());
        if self.args.resume && known.is_some_and(|(record, inputs)| record.has(job, inputs)) {
            return Ran { end: End::UpToDate, heard: Heard::default(), seconds: began.elapsed().as_secs_f64() };
        }
        let memory = job.memory.unwrap_or_else(|| self.share());
        let _admitted = self.budget.admit(memory);
        let line = self.whole_line(job, memory);
        let (result, heard) = output::listen_to(|| self.commands.run(&line));
        let end = match result {
            Ok(None) => End::Done,
            Ok(Some(e)) | Err(e) => End::Failed(e),
        };
        let is_dry = job.line.iter().any(|word| word == "--dry-run");
        if let (End::Done, false, Some((record, inputs))) = (&end, is_dry, known)
            && let Err(e) = record.add(job, inputs)
        {
            output::warn(&e.to_string());
        }
        Ran { end, heard, seconds: began.elapsed().as_secs_f64() }
    }

    /// The memory of a job that does not say what it needs.
    fn share(&self) -> u64 {
        (self.args.memory / self.slots as u64).max(1)
    }

    /// With what all jobs have in common: the form of the answer, and a fair share of the cores and the memory.
    fn whole_line(&self, job: &Job, memory: u64) -> Vec<String> {
        let mut out = job.line.clone();
        let at = out.iter().position(|word| word == "--").unwrap_or(out.len());
        let mut more = Vec::new();
        if self.args.answers_in_json() {
            more.push("--json".to_string());
        }
        if self.args.jobs > 1 && job.may_take_threads {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            more.push(format!("--threads={}", (cores / self.slots).max(1)));
        }
        if job.may_take_memory {
            more.push(format!("--memory={memory}"));
        }
        out.splice(at..at, more);
        out
    }
}

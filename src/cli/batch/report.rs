//! What is said of jobs: a line as each ends, and a table, a document or a line that counts at the end of all.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::jobs::Job;
use super::{Args, End, Ran};
use crate::cli::output;
use crate::error::{Error, Kind, Result, printable};

/// How jobs end: the word in documents, and the one for people.
const WORDS: [(&str, &str); 4] =
    [("done", "done"), ("up_to_date", "up to date"), ("failed", "failed"), ("not_run", "not run")];

/// What is said as a job ends: its notes, and a line of what came of it.
pub fn ended(args: &Args, number: usize, count: usize, job: &Job, ran: &Ran) {
    let label = format!("{}/{count}", number + 1);
    for line in &ran.heard.said {
        output::error_line(&format!("{label}: {line}"));
    }
    if args.json_lines {
        // A reader that went away does not stop the jobs.
        let _ = output::document(&document(number, job, Some(ran)));
    }
    let failed = matches!(ran.end, End::Failed(_));
    if failed || !(args.json || args.json_lines || output::is_quiet()) {
        output::error_line(&line(&label, job, ran));
    }
    if let End::Failed(e) = &ran.end
        && let Some(hint) = e.advice()
    {
        output::error_line(&format!("{label}: hint: {}", printable(hint)));
    }
}

fn line(label: &str, job: &Job, ran: &Ran) -> String {
    let last = ran.heard.answer.lines().next_back().unwrap_or_default();
    let out = printable(job.out.as_deref().unwrap_or_default());
    match &ran.end {
        End::Done => format!("{label} {}: {last}", job.command),
        End::UpToDate => format!("{label} {}: {out}: up to date", job.command),
        End::Failed(e) => format!("{label} {}: failed: {e}", job.command),
    }
}

/// The answer to all: an error where a job failed.
pub fn answer(args: &Args, all: &[Job], ran: &[Option<Ran>], seconds: f64) -> Result<()> {
    let mut counts: BTreeMap<&str, usize> = WORDS.map(|(word, _)| (word, 0)).into();
    ran.iter().for_each(|ran| *counts.entry(word(ran.as_ref())).or_default() += 1);
    let count = |word: &str| counts.get(word).copied().unwrap_or(0);
    let mut summary = json!({ "file": output::path(&args.file), "seconds": seconds, "counts": counts });
    if args.json_lines {
        output::document(&summary)?;
    } else if args.json {
        let jobs = all.iter().zip(ran).enumerate().map(|(n, (job, ran))| document(n, job, ran.as_ref()));
        summary["jobs"] = jobs.collect();
        output::document(&summary)?;
    } else {
        let said = WORDS.iter().filter(|(w, _)| count(w) > 0).map(|(w, text)| format!("{} {text}", count(w)));
        let said = said.collect::<Vec<_>>().join(", ");
        output::answer(&format!("{}\n{said} in {seconds:.1} s", table(all, ran)))?;
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

/// One row a job.
fn table(all: &[Job], ran: &[Option<Ran>]) -> String {
    let rows = all.iter().zip(ran).enumerate().map(|(number, (job, ran))| {
        let status = word(ran.as_ref());
        let status = WORDS.iter().find(|(word, _)| *word == status).map_or(status, |(_, text)| text);
        let time = ran.as_ref().map_or_else(|| "-".to_string(), |ran| format!("{:.1} s", ran.seconds));
        let out = job.out.as_deref().map_or_else(|| "-".to_string(), printable);
        vec![(number + 1).to_string(), status.to_string(), job.command.clone(), out, time]
    });
    output::table(&["job", "status", "command", "output", "time"], &[0, 4], rows.collect())
}

fn word(ran: Option<&Ran>) -> &'static str {
    match ran.map(|ran| &ran.end) {
        None => "not_run",
        Some(End::Done) => "done",
        Some(End::UpToDate) => "up_to_date",
        Some(End::Failed(_)) => "failed",
    }
}

fn document(number: usize, job: &Job, ran: Option<&Ran>) -> Value {
    let error = match ran.map(|ran| &ran.end) {
        Some(End::Failed(e)) => json!({
            "kind": e.kind().word(), "file": e.file().map(|f| f.to_string_lossy()), "key": e.key(), "what": e.what(),
            "hint": e.advice(),
        }),
        _ => Value::Null,
    };
    let answer: Value = ran.and_then(|ran| serde_json::from_str(&ran.heard.answer).ok()).unwrap_or(Value::Null);
    json!({
        "number": number + 1, "job": job.number, "command": job.command, "arguments": job.line.get(2..), "out": job.out,
        "status": word(ran), "seconds": ran.map(|ran| ran.seconds), "answer": answer, "error": error,
    })
}

//! `lora-tool merge`: adapters into a base model.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::args::{Common, OutputDtype, ReadAs, Resume};
use super::loaded::Loaded;
use super::progress::Bar;
use super::signals::Signals;
use super::undo::{self, Embed, Recording, Written};
use super::weights::Weights;
use super::{output, size};
use crate::adapter::{Note, Severity};
use crate::error::{Result, printable};
use crate::kernels::Kernels;
use crate::model::BaseModel;
use crate::ops::merge::{self, Merge, Options, Report};
use crate::stream::Writing;
use crate::tensor::Hash;

/// What is written as the program that merged.
pub(super) const TOOL: &str = concat!("lora-tool ", env!("CARGO_PKG_VERSION"));

/// Apply adapters to a base model
///
/// Writes base + adapters as a new model: the same files, index, config and tokenizer, with the changed tensors in
/// their places. The changes of several adapters are summed, then rounded once to the type of each tensor. Tensors
/// that no adapter touches are copied byte for byte. Nothing is written unless everything in the adapters is used.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  lora-tool merge Llama-3.1-8B my-adapter -o merged
  lora-tool merge base.safetensors style@0.8 character@0.5 -o merged.safetensors
  lora-tool merge base adapter -o merged --dtype bf16 --max-shard-size 5GB --json")]
pub struct Args {
    /// Base model: a folder with shards, a pipeline, or one .safetensors file
    base: PathBuf,
    /// Adapters: folders or files, each with an optional strength behind an @
    #[arg(required = true, value_name = "ADAPTER[@STRENGTH]")]
    adapters: Vec<PathBuf>,
    /// Where the result goes: a folder if the base is one, else a file
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
    #[command(flatten)]
    weights: Weights,
    /// Type of the floating-point tensors written
    #[arg(long, value_enum, default_value = "keep", hide_possible_values = true)]
    dtype: OutputDtype,
    /// Deal the tensors out into files of at most this size
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    max_shard_size: Option<u64>,
    /// Write what it takes to get the base back, to the last bit, with `unmerge --undo`
    #[arg(long, value_name = "FILE")]
    undo: Option<PathBuf>,
    /// Put the adapters into the undo record: when they are small, always or never
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto", requires = "undo", hide_short_help = true)]
    undo_embed: Embed,
    #[command(flatten)]
    read: ReadAs,
    /// Leave out modules of the adapter that match nothing in the base
    #[arg(long)]
    allow_unmatched: bool,
    /// Let NaN and infinity through
    #[arg(long)]
    allow_nonfinite: bool,
    /// Merge an adapter once more that was merged into the base before
    #[arg(long)]
    allow_repeat: bool,
    /// Merge an adapter that names another base as its own
    #[arg(long)]
    allow_other_base: bool,
    /// Do not write into the result what was merged
    #[arg(long)]
    no_provenance: bool,
    #[command(flatten)]
    resume: Resume,
    #[command(flatten)]
    pub(super) common: Common,
}

/// What a merge was made of, for its answer.
struct Inputs<'a> {
    base: Hash,
    adapters: &'a [Loaded],
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let signals = Signals::listen()?;
    let kernels = args.common.kernels()?;
    let base = BaseModel::open(&args.base)?;
    let (strength, shares) = (args.weights.strength()?.unwrap_or(1.0), args.weights.shares()?);
    let open = |a: &PathBuf| Loaded::open((a, strength), (&args.read, &shares), Some(&base), args.allow_nonfinite);
    let loaded = args.adapters.iter().map(open).collect::<Result<Vec<_>>>()?;
    let applied: Vec<_> = loaded.iter().map(Loaded::applied).collect();
    let mut merge = merge::merge(&base, &applied, &options(args))?;
    let mut notes = all_notes(&loaded, &merge);
    if args.common.strict {
        output::require_lossless(&notes)?;
    }
    merge.output.inputs.extend(loaded.iter().flat_map(|l| l.opened.source.files().cloned()));
    let mut inputs: Vec<&Path> = loaded.iter().map(|l| l.path.as_path()).collect();
    inputs.push(&args.base);
    let config = base.config_path();
    inputs.extend(config.as_deref());
    inputs.extend(loaded.iter().filter_map(|l| Some(l.opened.source.config.as_ref()?.0.as_path())));
    merge.output.check(&args.out, &inputs, args.common.force)?;
    let files = merge.output.files();
    let recording = match &args.undo {
        Some(path) => {
            let how = (args.undo_embed, undo::options(&options(args)));
            let place = (args.out.as_path(), args.common.force);
            let recording = Recording::of_merge(path, place, &base, &merge, &loaded, how)?;
            let all: Vec<&Path> = inputs.iter().copied().chain(files.iter().map(PathBuf::as_path)).collect();
            recording.check(Some(&args.out), &all)?;
            Some(recording)
        }
        None => None,
    };

    output::notes(&notes);
    let read: Vec<&Path> = inputs.iter().copied().chain(files.iter().map(PathBuf::as_path)).collect();
    let inputs = Inputs { base: base.fingerprint(), adapters: &loaded };
    if args.common.dry_run {
        return show_plan(args, &merge, &inputs, &notes);
    }
    let bar = Bar::new(merge.totals.bytes, signals);
    let resuming = args.resume.of(&words(args, &options(args), kernels.as_ref()), &read);
    let writing =
        Writing { replace: args.common.force, sync: !args.common.no_sync, limits: args.common.limits(), resuming };
    let began = Instant::now();
    let outcomes = match recording {
        None => merge.output.write(&args.out, writing, kernels.as_ref(), &bar).map(|done| (done, None)),
        Some(recording) => recording.write((&base, &merge), &args.out, writing, kernels.as_ref(), &bar),
    };
    bar.finish();
    let ((outcomes, found), undo) = outcomes?;
    let after: Vec<Note> = kernels.notes().into_iter().chain(taken_up(found)).collect();
    output::notes(&after);
    notes.extend(after);
    let report = Report::new(merge.changes, merge.totals, &outcomes);
    show(args, &report, (&inputs, undo.as_ref()), &notes, began.elapsed())
}

/// Everything that the bytes of the result follow from, beside the files.
fn words<'a>(args: &'a Args, options: &'a Options, kernels: &'a dyn Kernels) -> impl std::fmt::Debug + 'a {
    (kernels.name(), &args.adapters, &args.weights, &args.read, options, args.undo.is_some())
}

/// Says how much an earlier run had done.
pub(super) fn taken_up(found: u64) -> Option<Note> {
    let text = || format!("{} were there from a run that was cut short", size::show(found));
    (found > 0).then(|| Note::info("--resume", text()))
}

fn options(args: &Args) -> Options {
    Options {
        allow_unmatched: args.allow_unmatched,
        allow_nonfinite: args.allow_nonfinite,
        dtype: args.dtype.get(),
        max_shard_bytes: args.max_shard_size,
        provenance: (!args.no_provenance).then(|| TOOL.to_string()),
        allow_repeat: args.allow_repeat,
        allow_other_base: args.allow_other_base,
    }
}

fn all_notes(loaded: &[Loaded], merge: &Merge) -> Vec<Note> {
    loaded.iter().flat_map(|l| l.opened.notes.clone()).chain(merge.notes.clone()).collect()
}

/// What `--dry-run` answers.
fn show_plan(args: &Args, merge: &Merge, inputs: &Inputs, notes: &[Note]) -> Result<()> {
    if args.common.json {
        let changes: Vec<_> =
            merge.changes.iter().map(|c| json!({ "tensor": c.key, "modules": c.modules, "kinds": c.kinds })).collect();
        return output::document(&json!({
            "dry_run": true, "out": output::path(&args.out), "base_fingerprint": inputs.base.to_string(), "adapters": inputs.adapters_json(),
            "totals": totals(&merge.totals), "changes": changes, "notes": notes_json(notes),
        }));
    }
    let shown = if output::is_verbose() { merge.changes.len() } else { 20 };
    let rows: Vec<_> = merge
        .changes
        .iter()
        .take(shown)
        .map(|c| {
            let entry = &merge.output.plan.files[c.place.0].jobs[c.place.1].entry;
            vec![c.key.clone(), entry.dtype.to_string(), entry.shape.to_string(), c.kinds.join(" + ")]
        })
        .collect();
    let mut text = output::table(&["tensor", "dtype", "shape", "change"], &[], rows);
    if merge.changes.len() > shown {
        text += &format!("\n… {} more; -v shows them", merge.changes.len() - shown);
    }
    let t = &merge.totals;
    text += &format!(
        "\nwould write {} to {}: {} changed, {} copied, {} added",
        size::show(t.bytes),
        args.out.display(),
        tensors(t.changed),
        t.copied,
        t.added
    );
    output::answer(&text)
}

/// The answer of a merge.
fn show(
    args: &Args,
    report: &Report,
    (inputs, undo): (&Inputs, Option<&Written>),
    notes: &[Note],
    took: Duration,
) -> Result<()> {
    let survived = report.survived();
    // In 8 bits most of a small change is lost, and 16 keep it.
    let wider = if report.is_eight() { "bf16" } else { "f32" };
    if report.unmoved() == Some(1.0) {
        let wanted = survived.map_or_else(String::new, |_| format!("; --dtype {wider} keeps the change"));
        output::warn(&format!("no value changed: the output holds what the base holds{wanted}"));
    } else if survived.is_some_and(|s| s < 0.5) {
        let what = format!("only {} of the change survived the rounding; --dtype {wider} keeps it", percent(survived));
        output::warn(&what);
    }
    if let Some((count, factor)) = report.grown() {
        let text = format!(
            "the scales of {} became larger, at most {factor} times: a merged value did not fit",
            tensors(count)
        );
        output::notes(&[Note::info("", text)]);
    }
    if args.common.json {
        let mut document = report_json(args, report, inputs, notes, took);
        if let Some(undo) = undo {
            document["undo"] = undo.json();
        }
        return output::document(&document);
    }
    let t = &report.totals;
    let seconds = took.as_secs_f64();
    let rate = size::show((t.bytes as f64 / seconds.max(1e-9)) as u64);
    let mut text = String::new();
    if output::is_verbose() {
        text += &format!("{}\n{}\n", inputs.text(), changes_table(report));
    }
    text += &format!(
        "{}: {} changed, {} copied{}{} · {} in {seconds:.1} s ({rate}/s)\n",
        args.out.display(),
        tensors(t.changed),
        t.copied,
        if t.added > 0 { format!(", {} added", t.added) } else { String::new() },
        if t.cast > 0 { format!(", {} cast", t.cast) } else { String::new() },
        size::show(t.bytes),
    );
    text += &format!("adapter tensors used: {} of {}\n", t.adapter_tensors_used, t.adapter_tensors);
    text += &format!(
        "of the change, {} survived the rounding; {} of the elements did not move",
        percent(survived),
        percent(report.unmoved())
    );
    if let Some(undo) = undo {
        text += &format!("\n{}", undo.text());
    }
    output::answer(&text)
}

impl Inputs<'_> {
    fn text(&self) -> String {
        let adapter = |l: &Loaded| format!("adapter {}: hash {}", printable(&l.label), l.identity.hash);
        let base = format!("base fingerprint {}", self.base);
        std::iter::once(base).chain(self.adapters.iter().map(adapter)).collect::<Vec<_>>().join("\n")
    }

    fn adapters_json(&self) -> Vec<Value> {
        let one = |l: &Loaded| json!({ "path": output::path(&l.path), "hash": l.identity.hash.to_string(), "strength": l.strength });
        self.adapters.iter().map(one).collect()
    }
}

fn tensors(count: usize) -> String {
    format!("{count} tensor{}", if count == 1 { "" } else { "s" })
}

fn changes_table(report: &Report) -> String {
    let rows = report
        .changes
        .iter()
        .map(|c| {
            let norm = format!("{:.4e}", c.moved.wanted.sqrt());
            let unmoved = percent(merge::unmoved(&c.moved));
            vec![c.key.clone(), c.kinds.join(" + "), norm, percent(c.survived()), unmoved]
        })
        .collect();
    output::table(&["tensor", "change", "norm", "survived", "unmoved"], &[2, 3, 4], rows)
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "–".to_string(), |s| format!("{:.2} %", 100.0 * s))
}

fn report_json(args: &Args, report: &Report, inputs: &Inputs, notes: &[Note], took: Duration) -> Value {
    let changes: Vec<_> = report
        .changes
        .iter()
        .map(|c| {
            json!({
                "tensor": c.key, "modules": c.modules, "kinds": c.kinds, "delta_norm": c.moved.wanted.sqrt(),
                "survived": c.survived(), "unmoved": merge::unmoved(&c.moved), "elements": c.moved.elements,
                "dtype": c.dtype.to_string(), "scale_grown": c.grown().map(|(_, factor)| factor),
            })
        })
        .collect();
    json!({
        "out": output::path(&args.out), "base_fingerprint": inputs.base.to_string(), "adapters": inputs.adapters_json(),
        "seconds": took.as_secs_f64(), "totals": totals(&report.totals),
        "survived": report.survived(), "unmoved": report.unmoved(), "changes": changes, "notes": notes_json(notes),
    })
}

fn totals(t: &merge::Totals) -> Value {
    json!({
        "changed": t.changed, "copied": t.copied, "added": t.added, "cast": t.cast, "bytes": t.bytes,
        "adapter_tensors": t.adapter_tensors, "adapter_tensors_used": t.adapter_tensors_used,
    })
}

pub(super) fn notes_json(notes: &[Note]) -> Vec<Value> {
    let word = |s: Severity| if s == Severity::Lossy { "lossy" } else { "info" };
    notes.iter().map(|n| json!({ "severity": word(n.severity), "key": n.key, "text": n.text })).collect()
}

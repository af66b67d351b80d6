//! `lora-tool undo-record`: an undo record for a pair of models that lie there.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{Common, ReadAs};
use super::loaded::Loaded;
use super::output;
use super::progress::Bar;
use super::signals::Signals;
use super::undo::{Embed, Recording, Written, options};
use super::weights::Weights;
use crate::container::atomic::{Form, Pending};
use crate::error::Result;
use crate::model::BaseModel;
use crate::ops::merge::{self, Options};
use crate::ops::undo::{Pair, Recorder, as_it_lies, observe};

/// Make an undo record for a base and a model made from it
///
/// The record is what `unmerge --undo` needs to get the base back from the other model, to the last bit, whatever was
/// done to it. Naming the adapters that were merged makes the record much smaller.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  lora-tool undo-record base merged -o base.undo --adapter my-adapter
  lora-tool undo-record base fine-tuned -o base.undo")]
pub struct Args {
    /// Base model: a folder with shards, a pipeline, or one .safetensors file
    base: PathBuf,
    /// The model made from it
    merged: PathBuf,
    /// Where the record goes
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// An adapter that was merged, with its strength behind an @
    #[arg(long, value_name = "ADAPTER[@STRENGTH]")]
    adapter: Vec<PathBuf>,
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    read: ReadAs,
    /// Put the adapters into the record: when they are small, always or never
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    undo_embed: Embed,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let signals = Signals::listen()?;
    let kernels = args.common.kernels()?;
    let base = BaseModel::open(&args.base)?;
    let merged = BaseModel::open(&args.merged)?;
    let (strength, shares) = (args.weights.strength()?.unwrap_or(1.0), args.weights.shares()?);
    let open = |a: &PathBuf| Loaded::open((a, strength), (&args.read, &shares), Some(&base), true);
    let loaded = args.adapter.iter().map(open).collect::<Result<Vec<_>>>()?;
    let applied: Vec<_> = loaded.iter().map(Loaded::applied).collect();
    let plan = if applied.is_empty() {
        None
    } else {
        let options = Options { allow_unmatched: true, allow_nonfinite: true, ..Options::default() };
        Some(merge::merge(&base, &applied, &options)?)
    };
    let as_merged = as_it_lies(&merged);
    let bytes = as_merged.data_bytes()?;
    let changed = plan.iter().flat_map(|p| &p.changes).filter_map(|c| base.tensor(&c.key));
    let touched = if plan.is_some() { changed.map(|(_, t)| t.bytes.len() as u64).sum() } else { bytes };
    let mut recording =
        Recording::new(&args.out, &base, &loaded, (touched, args.undo_embed), options(&Options::default()))?;
    recording.keep_sides(&base, &merged)?;
    recording.set_replace(args.common.force);
    let inputs: Vec<&Path> =
        [args.base.as_path(), &args.merged].into_iter().chain(loaded.iter().map(|l| l.path.as_path())).collect();
    recording.check(None, &inputs)?;
    let named = recording.named();
    if args.common.dry_run {
        return output::answer("would write an undo record; its size depends on the models");
    }
    let bar = Bar::new(bytes, signals);
    let pending = Pending::new(&args.out, Form::File, args.common.force, !args.common.no_sync)?;
    let pair = Pair { base: &base, merged: &as_merged, merge: plan.as_ref(), written: false };
    let size = pending.build(|path| {
        let recorder = Recorder::new(path, pair, recording.into_about())?;
        let seen = observe(&recorder, &as_merged, kernels.as_ref(), args.common.limits().threads, &bar);
        bar.finish();
        seen.and_then(|_| recorder.finish(!args.common.no_sync))
    })?;
    base.unchanged()?;
    merged.unchanged()?;
    pending.commit()?;
    output::notes(&kernels.notes());
    let written = Written::new(args.out.clone(), size, touched, named);
    if args.common.json {
        return output::document(&json!({ "undo": written.json() }));
    }
    output::answer(&written.text())
}

//! `lora-tool unmerge`: a merged model back to its base.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::args::Common;
use super::loaded::Loaded;
use super::merge::notes_json;
use super::progress::Bar;
use super::signals::Signals;
use super::undo::{self, find_adapters, merge_options, write_back};
use super::{output, size};
use crate::container::atomic::{Form, Pending};
use crate::error::{Error, Kind, Result};
use crate::model::BaseModel;
use crate::ops::merge;
use crate::ops::undo::{Restore, Undone};
use crate::stream::Writing;
use crate::stream::undo::Record;

/// Take adapters out of a merged model
///
/// With the undo record of the merge, the base comes back to the last bit: every file of tensors, its index and its
/// config. Record and model are checked by hash before and while anything is written. With --adapter as well, only that
/// adapter is taken out, and the result is what a merge of the others would have given.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  lora-tool unmerge merged -o base --undo base.undo
  lora-tool unmerge merged -o without-style --undo base.undo --adapter style")]
pub struct Args {
    /// Merged model: a folder with shards, or one .safetensors file
    merged: PathBuf,
    /// Where the result goes: a folder if the model is one, else a file
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
    /// The record that `merge --undo` or `undo-record` wrote
    #[arg(long, value_name = "FILE", required = true)]
    undo: Option<PathBuf>,
    /// The adapter to take out, by its path or its name in the record
    #[arg(long, value_name = "ADAPTER")]
    adapter: Vec<PathBuf>,
    /// Where adapters are that the record names and that were moved
    #[arg(long, value_name = "PATH")]
    look_in: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    match &args.undo {
        Some(record) => with_record(args, record),
        None => Err(Error::new(Kind::Usage, "unmerge needs --undo")),
    }
}

fn with_record(args: &Args, path: &Path) -> Result<()> {
    let signals = Signals::listen()?;
    let kernels = args.common.kernels()?;
    let restore = Restore::new(Record::open(path)?)?;
    let merged = BaseModel::open(&args.merged)?;
    let removed = args.adapter.iter().map(|a| which(&restore, a)).collect::<Result<Vec<_>>>()?;
    let kept: Vec<usize> =
        (0..restore.adapters().len()).filter(|n| !removed.is_empty() && !removed.contains(n)).collect();
    let found = find_adapters(&restore, path, &args.look_in, |n| restore.needs(n) || kept.contains(&n))?;
    let mut undone = restore.plan(&merged, undo::adapters(&found))?;
    let mut inputs: Vec<&Path> = vec![&args.merged, path];
    inputs.extend(found.iter().flatten().map(|l| l.path.as_path()));
    undone.output.inputs.extend(found.iter().flatten().map(|l| std::sync::Arc::clone(&l.opened.source.file)));
    undone.output.check(&args.out, &inputs, args.common.force)?;
    output::notes(&undone.notes);
    if args.common.strict {
        output::require_lossless(&undone.notes)?;
    }
    let bytes = undone.output.plan.data_bytes()?;
    if args.common.dry_run {
        return say(args, &undone, bytes, None);
    }
    let bar = Bar::new(bytes, signals);
    let writing = Writing { replace: args.common.force, sync: !args.common.no_sync, limits: args.common.limits() };
    let began = Instant::now();
    let done = if kept.is_empty() {
        undone.output.begin(&args.out, writing).and_then(|pending| {
            write_back(&undone, &undone.output, &pending, writing, kernels.as_ref(), &bar)?;
            pending.commit()
        })
    } else {
        // The base stands beside the result while the others are merged into it, and goes when that is done.
        let form = if undone.output.is_folder { Form::Folder } else { Form::File };
        let beside = Writing { sync: false, ..writing };
        Pending::new(&base_beside(&args.out), form, true, false).and_then(|base| {
            write_back(&undone, &undone.output, &base, beside, kernels.as_ref(), &bar)?;
            let base = (BaseModel::open(base.path())?, base);
            let others: Vec<_> = kept.iter().filter_map(|&n| found[n].as_ref()).map(Loaded::applied).collect();
            let merge = merge::merge(&base.0, &others, &merge_options(&restore.manifest().options))?;
            merge.output.write(&args.out, writing, kernels.as_ref(), &bar).map(drop)
        })
    };
    bar.finish();
    done?;
    say(args, &undone, bytes, Some(began.elapsed().as_secs_f64()))
}

/// A name beside the output that nobody else has.
fn base_beside(out: &Path) -> PathBuf {
    let name = out.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    out.with_file_name(format!("{name}.base-{}", std::process::id()))
}

/// The number in the record of the adapter that the user means.
fn which(restore: &Restore, argument: &Path) -> Result<usize> {
    let all = restore.adapters();
    let hash = if argument.exists() {
        let opened = crate::layout::open(argument, None)?;
        Some(opened.hash().to_string())
    } else {
        None
    };
    let name = argument.to_string_lossy();
    let fits = |n: &usize| match &hash {
        Some(hash) => all[*n].hash == *hash,
        None => all[*n].name == name,
    };
    let found: Vec<usize> = (0..all.len()).filter(fits).collect();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => {
            let names: Vec<_> = all.iter().map(|a| a.name.as_str()).collect();
            let what = format!("not one of the adapters in the undo record: {}", names.join(", "));
            Err(Error::missing(what).in_file(argument))
        }
        _ => Err(Error::unrecognised("several adapters of the record are called that").in_file(argument)),
    }
}

fn say(args: &Args, undone: &Undone, bytes: u64, seconds: Option<f64>) -> Result<()> {
    if args.common.json {
        return output::document(&json!({
            "out": args.out, "dry_run": seconds.is_none(), "seconds": seconds, "restored": undone.restored,
            "copied": undone.copied, "bytes": bytes, "notes": notes_json(&undone.notes),
        }));
    }
    let count = |n: usize| format!("{n} tensor{}", if n == 1 { "" } else { "s" });
    let did = format!("{} restored, {} copied", count(undone.restored), undone.copied);
    let Some(seconds) = seconds else {
        return output::answer(&format!("would write {} to {}: {did}", size::show(bytes), args.out.display()));
    };
    let rate = size::show((bytes as f64 / seconds.max(1e-9)) as u64);
    output::answer(&format!(
        "{}: {did} · {} in {seconds:.1} s ({rate}/s)\nevery byte agrees with the hashes of the record",
        args.out.display(),
        size::show(bytes)
    ))
}

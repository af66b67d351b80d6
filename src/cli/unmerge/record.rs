//! `lora-tool unmerge --undo`: a merged model back to its base, to the last bit.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::{Args, tensors};
use crate::cli::args::Resume;
use crate::cli::loaded::Loaded;
use crate::cli::merge::{notes_json, taken_up};
use crate::cli::progress::Bar;
use crate::cli::signals::Signals;
use crate::cli::undo::{self, find_adapters, merge_options, write_back};
use crate::cli::{output, size};
use crate::container::atomic;
use crate::error::{Error, Result};
use crate::model::BaseModel;
use crate::ops::merge;
use crate::ops::undo::{Restore, Undone};
use crate::stream::undo::Record;
use crate::stream::{Resuming, Writing};

/// Runs the command.
pub fn run(args: &Args, path: &Path) -> Result<()> {
    let signals = Signals::listen()?;
    let kernels = args.common.kernels()?;
    let restore = Restore::new(Record::open(path)?)?;
    let merged = BaseModel::open(&args.merged)?;
    let removed = args.adapter.iter().map(|a| which(&restore, a)).collect::<Result<Vec<_>>>()?;
    let kept: Vec<usize> =
        (0..restore.adapters().len()).filter(|n| !removed.is_empty() && !removed.contains(n)).collect();
    let found = find_adapters(
        &restore,
        (path, &merged),
        &args.look_in,
        |n| restore.needs(n) || kept.contains(&n),
        |n| kept.contains(&n),
    )?;
    let mut undone = restore.plan(&merged, undo::adapters(&found))?;
    let mut inputs: Vec<&Path> = vec![&args.merged, path];
    inputs.extend(found.iter().flatten().map(|l| l.path.as_path()));
    undone.output.inputs.extend(found.iter().flatten().flat_map(|l| l.opened.source.files().cloned()));
    undone.output.check(&args.out, &inputs, args.common.force)?;
    let files = undone.output.files();
    let read: Vec<&Path> = inputs.iter().copied().chain(files.iter().map(PathBuf::as_path)).collect();
    output::notes(&undone.notes);
    if args.common.strict {
        output::require_lossless(&undone.notes)?;
    }
    let bytes = undone.output.plan.data_bytes()?;
    if args.common.dry_run {
        return say(args, &undone, bytes, None);
    }
    let bar = Bar::new(bytes, signals);
    let resuming = Resume { resume: args.resume }.of(&(kernels.as_ref().name(), &args.adapter), &read);
    let writing =
        Writing { replace: args.common.force, sync: !args.common.no_sync, limits: args.common.limits(), resuming };
    let began = Instant::now();
    let done = if kept.is_empty() {
        undone.output.begin(&args.out, writing, true).and_then(|building| {
            write_back(&undone, &building, writing, kernels.as_ref(), &bar)?;
            let found = building.found();
            building.commit().map(|()| found)
        })
    } else {
        // The base stands beside the result while the others are merged into it, and goes when that is done.
        let writing = Writing { resuming: Resuming::Never, ..writing };
        let beside = Writing { sync: false, ..writing };
        undone.output.begin(&args.out, beside, true).and_then(|base| {
            write_back(&undone, &base, beside, kernels.as_ref(), &bar)?;
            base.pending.build(|path| {
                // A base of one file has no other files, but its config lay beside it and says how it is to be read.
                for (name, text) in undone.output.texts.iter().filter(|_| !undone.output.is_folder) {
                    atomic::write_whole(&path.with_file_name(name), text, false)?;
                }
                let model = BaseModel::open(path)?;
                let others: Vec<_> = kept.iter().filter_map(|&n| found[n].as_ref()).map(Loaded::applied).collect();
                let merge = merge::merge(&model, &others, &merge_options(&restore.manifest().options))?;
                merge.output.write(&args.out, writing, kernels.as_ref(), &bar).map(|(_, found)| found)
            })
        })
    };
    bar.finish();
    let found = done?;
    let after: Vec<_> = kernels.notes().into_iter().chain(taken_up(found)).collect();
    output::notes(&after);
    undone.notes.extend(after);
    say(args, &undone, bytes, Some(began.elapsed().as_secs_f64()))
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
            "out": output::path(&args.out), "dry_run": seconds.is_none(), "seconds": seconds, "restored": undone.restored,
            "copied": undone.copied, "bytes": bytes, "notes": notes_json(&undone.notes),
        }));
    }
    let did = format!("{} restored, {} copied", tensors(undone.restored), undone.copied);
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

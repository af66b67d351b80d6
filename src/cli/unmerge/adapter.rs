//! `lora-tool unmerge --adapter`: adapters out of a merged model without a record of the merge.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Args, tensors};
use crate::cli::args::adapter_and_strength;
use crate::cli::inspect::thousands;
use crate::cli::loaded::Loaded;
use crate::cli::merge::{TOOL, notes_json};
use crate::cli::progress::Bar;
use crate::cli::signals::Signals;
use crate::cli::{output, size};
use crate::error::{Context, Result};
use crate::model::BaseModel;
use crate::ops::unmerge::{self, Against, Found, Options, Removal, Unmerge};
use crate::stream::{Resuming, Writing};

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let signals = Signals::listen()?;
    let kernels = args.common.kernels()?;
    let merged = BaseModel::open(&args.merged)?;
    let base = args.base.as_deref().map(BaseModel::open).transpose()?;
    let loaded =
        args.adapter.iter().map(|a| open(args, a, base.as_ref().unwrap_or(&merged))).collect::<Result<Vec<_>>>()?;
    let removals: Vec<Removal> = loaded.iter().map(|(l, strength)| removal(l, *strength)).collect();
    let options = Options { allow_unmatched: args.allow_unmatched, tool: TOOL.to_string() };
    let began = Instant::now();
    let mut plan = match &base {
        None => {
            let plan = unmerge::unmerge(&merged, &removals, &options)?;
            check(args, &plan.output, &merged, None, &loaded)?;
            plan
        }
        Some(base) => {
            let against = Against::new(&merged, base, &removals, &options)?;
            check(args, against.output(), &merged, Some(base), &loaded)?;
            let bar = Bar::new(against.bytes()?, signals.clone());
            let plan = against.compare(kernels.as_ref(), args.common.limits(), &bar);
            bar.finish();
            plan?
        }
    };
    plan.output.inputs.extend(loaded.iter().flat_map(|(l, _)| l.opened.source.files().cloned()));
    plan.notes.splice(0..0, loaded.iter().flat_map(|(l, _)| l.opened.notes.clone()));
    if args.common.strict {
        output::require_lossless(&plan.notes)?;
    }
    output::notes(&plan.notes);
    let bytes = plan.output.plan.data_bytes()?;
    if args.common.dry_run {
        return say(args, &loaded, &plan, bytes, None);
    }
    let bar = Bar::new(bytes, signals);
    let writing = Writing {
        replace: args.common.force,
        sync: !args.common.no_sync,
        limits: args.common.limits(),
        resuming: Resuming::Never,
    };
    let done = plan.output.write(&args.out, writing, kernels.as_ref(), &bar);
    bar.finish();
    done.in_file(&args.merged)?;
    output::notes(&kernels.notes());
    plan.notes.extend(kernels.notes());
    say(args, &loaded, &plan, bytes, Some(began.elapsed().as_secs_f64()))
}

/// The adapter, and its strength where one is given.
fn open(args: &Args, argument: &Path, model: &BaseModel) -> Result<(Loaded, Option<f64>)> {
    let (_, strength) = adapter_and_strength(argument, args.weights.strength()?.unwrap_or(f64::NAN))?;
    let loaded = Loaded::open((argument, 1.0), (&args.read, &args.weights.shares()?), Some(model), false)?;
    Ok((loaded, Some(strength).filter(|s| !s.is_nan())))
}

fn removal(loaded: &Loaded, strength: Option<f64>) -> Removal<'_> {
    Removal {
        label: loaded.label.clone(),
        strength,
        adapter: &loaded.opened.adapter,
        identity: loaded.identity.clone(),
    }
}

/// Refuses a place that is an input or taken, before the work.
fn check(
    args: &Args,
    output: &crate::stream::Output,
    merged: &BaseModel,
    base: Option<&BaseModel>,
    loaded: &[(Loaded, Option<f64>)],
) -> Result<()> {
    let configs: Vec<_> = [Some(merged), base].into_iter().flatten().filter_map(BaseModel::config_path).collect();
    let mut inputs: Vec<&Path> = vec![&args.merged];
    inputs.extend(args.base.as_deref());
    inputs.extend(configs.iter().map(std::path::PathBuf::as_path));
    inputs.extend(loaded.iter().map(|(l, _)| l.path.as_path()));
    inputs.extend(loaded.iter().filter_map(|(l, _)| Some(l.opened.source.config.as_ref()?.0.as_path())));
    output.check(&args.out, &inputs, args.common.force)
}

fn say(args: &Args, loaded: &[(Loaded, Option<f64>)], plan: &Unmerge, bytes: u64, seconds: Option<f64>) -> Result<()> {
    let found = seconds.map(|_| plan.found());
    let same_base = match (seconds, plan.base) {
        (Some(_), Some(named)) => Some(BaseModel::open(&args.out)?.fingerprint() == named),
        _ => None,
    };
    if let (Some(found), Some(false)) = (found, same_base)
        && found.in_doubt == 0
    {
        output::warn("the result is not the base that the model's files name: other things were changed as well");
    }
    if args.common.json {
        return output::document(&document(args, loaded, plan, bytes, seconds, same_base));
    }
    let mut text = String::new();
    if output::is_verbose() && seconds.is_some() {
        text += &format!("{}\n", table(plan));
    }
    let mut did = format!("{} restored, {} copied", tensors(plan.tensors.len()), plan.copied);
    if plan.left_out > 0 {
        did += &format!(", {} left out", plan.left_out);
    }
    match seconds {
        None => text += &format!("would write {} to {}: {did}", size::show(bytes), args.out.display()),
        Some(seconds) => {
            let rate = size::show((bytes as f64 / seconds.max(1e-9)) as u64);
            let size = size::show(bytes);
            text += &format!("{}: {did} · {size} in {seconds:.1} s ({rate}/s)", args.out.display());
        }
    }
    if let Some(found) = found {
        text += &format!("\n{}", sentence(args, plan, &found));
    }
    if same_base == Some(true) {
        text += "\nits fingerprint is that of the base that the model's files name";
    }
    output::answer(&text)
}

/// What can be said of the elements of the tensors that became others.
fn sentence(args: &Args, plan: &Unmerge, found: &Found) -> String {
    let all = thousands(found.elements);
    let share = |n: u64| percent(n, found.elements);
    match (&args.base, found.in_doubt) {
        (Some(_), _) if found.elements == 0 => "only what the merge added had to go".to_string(),
        (Some(_), _) if found.differing == 0 => format!("all {all} elements are the base's own"),
        (Some(_), _) => format!(
            "of {all} elements, {} ({}) are not the base's own",
            thousands(found.differing),
            share(found.differing)
        ),
        (None, _) if plan.others > 0 => format!(
            "of {all} elements, any may be off by a unit of its own last place or the merged one's: {} merged into the \
             model as well",
            if plan.others == 1 { "another adapter was".to_string() } else { format!("{} others were", plan.others) }
        ),
        (None, 0) => format!("all {all} elements are those of the base, if this is all that was done to it"),
        (None, n) => format!(
            "of {all} elements, {} ({}) may differ from those of the base, by at most {:.1e}",
            thousands(n),
            share(n),
            found.at_most
        ),
    }
}

/// A share that is only shown as all or nothing where it is.
fn percent(part: u64, of: u64) -> String {
    let share = 100.0 * part as f64 / (of as f64).max(1.0);
    match part {
        n if n == of => "100 %".to_string(),
        _ if share < 0.01 => "less than 0.01 %".to_string(),
        _ => format!("{:.2} %", share.min(99.99)),
    }
}

fn table(plan: &Unmerge) -> String {
    let rows = plan.tensors.iter().map(|t| {
        let found = t.found();
        let at_most = if found.in_doubt == 0 { "–".to_string() } else { format!("{:.1e}", found.at_most) };
        vec![t.key.clone(), t.kinds.join(" + "), found.elements.to_string(), found.in_doubt.to_string(), at_most]
    });
    output::table(&["tensor", "change", "elements", "in doubt", "at most"], &[2, 3, 4], rows.collect())
}

fn document(
    args: &Args,
    loaded: &[(Loaded, Option<f64>)],
    plan: &Unmerge,
    bytes: u64,
    seconds: Option<f64>,
    same_base: Option<bool>,
) -> Value {
    let adapters: Vec<_> = loaded
        .iter()
        .zip(&plan.strengths)
        .map(|((l, _), strength)| json!({ "path": output::path(&l.path), "hash": l.identity.hash.to_string(), "strength": strength }))
        .collect();
    let about = |found: Found| {
        let in_doubt = seconds.map(|_| found.in_doubt);
        let differing = seconds.filter(|_| args.base.is_some()).map(|_| found.differing);
        (found.elements, in_doubt, seconds.map(|_| found.at_most), differing)
    };
    let each: Vec<_> = plan
        .tensors
        .iter()
        .map(|t| {
            let (elements, in_doubt, at_most, differing) = about(t.found());
            json!({ "tensor": t.key, "kinds": t.kinds, "elements": elements, "in_doubt": in_doubt, "at_most": at_most,
                    "differing": differing })
        })
        .collect();
    let (elements, in_doubt, at_most, differing) = about(plan.found());
    json!({
        "out": output::path(&args.out), "dry_run": seconds.is_none(), "seconds": seconds,
        "base": args.base.as_deref().map(output::path), "adapters": adapters,
        "restored": plan.tensors.len(), "copied": plan.copied, "left_out": plan.left_out, "bytes": bytes,
        "elements": elements, "in_doubt": in_doubt, "at_most": at_most, "differing": differing,
        "others": plan.others, "fingerprint_agrees": same_base, "tensors": each, "notes": notes_json(&plan.notes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_all_or_nothing_only_where_it_is() {
        assert_eq!(percent(10, 10), "100 %");
        assert_eq!(percent(99_999_999, 100_000_000), "99.99 %");
        assert_eq!(percent(1, 100_000_000), "less than 0.01 %");
        assert_eq!(percent(1, 8), "12.50 %");
    }
}

//! `lora-tool resize`: an adapter of other ranks.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::{Value, json};

use super::args::{Common, OutputDtype, ReadAs};
use super::inspect::thousands;
use super::loaded::open_finite;
use super::merge::notes_json;
use super::progress::Bar;
use super::ranks::{self, Ranks};
use super::signals::Signals;
use super::{approximation, output};
use crate::adapter::Note;
use crate::container::atomic::{self, Form};
use crate::error::{Context, Result};
use crate::layout::{self, Draft, Opened};
use crate::linalg::rank::Rule;
use crate::model::BaseModel;
use crate::names::ModulePath;
use crate::ops::flatten;
use crate::ops::resize::{self, Alpha, Options, Resized};
use crate::tensor::size;

/// Give an adapter other ranks
///
/// For every change the best approximation of the rank that the rule gives it, calculated from its factors. LoHa and LoKr
/// become LoRA. What has no rank is carried as it is. A larger rank than before is filled up with zeros. The answer
/// says what error this makes, module by module, the rounding of the factors included.
#[derive(Debug, clap::Args)]
#[command(before_long_help = ranks::HELP, after_long_help = "\
Examples:
  lora-tool resize my-adapter -o small --rank 8
  lora-tool resize my-adapter -o small --rank error=0.05 --max-rank 32
  lora-tool resize my-adapter -o small --rank size=20MB --rank-multiple 4 --json")]
pub struct Args {
    /// Adapter: a folder or a file
    adapter: PathBuf,
    /// Where the result goes: what the layout is, a folder or a file
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
    /// The rank, or the rule that gives one: N, energy=X, error=X, ratio=X, mp, params=N, size=SIZE
    #[arg(long, value_name = "RANK", value_parser = ranks::rule)]
    rank: Rule,
    /// Rank of convolutions with a kernel larger than 1 [default: as --rank]
    #[arg(long, value_name = "RANK", value_parser = ranks::rule)]
    conv_rank: Option<Rule>,
    /// The alpha that is stored: the rank, which makes the scale 1, or the alpha it had
    #[arg(long, value_enum, value_name = "ALPHA", default_value = "rank")]
    alpha: AlphaWord,
    /// Type of the factors
    #[arg(long, value_enum, default_value = "keep", hide_possible_values = true)]
    dtype: OutputDtype,
    /// The base, for changes whose size only it tells: VeRA, RandLoRA, UniLoRA, convolutions of LoHa and LoKr;
    /// and for PiSSA and OLoRA, whose factors hold a part of it
    #[arg(long, value_name = "BASE")]
    base: Option<PathBuf>,
    #[command(flatten)]
    ranks: Ranks,
    #[command(flatten)]
    read: ReadAs,
    /// Layout of the result [default: that of the adapter]
    #[arg(long, value_name = "LAYOUT")]
    to: Option<String>,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Words of `--alpha`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AlphaWord {
    /// The new rank
    Rank,
    /// As stored
    Keep,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let signals = Signals::listen()?;
    let kernels = args.common.kernels()?;
    let bounds = args.ranks.bounds()?;
    let base = args.base.as_deref().map(BaseModel::open).transpose()?;
    let mut opened = open_finite(&args.adapter, &args.read, base.as_ref())?;
    let layout = layout::named(args.to.as_deref().unwrap_or(opened.layout))?;
    let options = Options {
        rule: args.rank,
        kernel_rule: args.conv_rank,
        bounds,
        alpha: match args.alpha {
            AlphaWord::Rank => Alpha::Rank,
            AlphaWord::Keep => Alpha::Keep,
        },
        balance: args.ranks.balance(),
        dtype: args.dtype.get(),
        exact: args.ranks.exact,
        tolerance: args.ranks.tolerance,
        seed: args.ranks.seed,
    };
    let began = Instant::now();
    let bar = Bar::new(opened.source.tensor_bytes(), signals);
    let shape_of = |path: &ModulePath| base.as_ref()?.names.find(&path.tensor("weight")).map(|f| f.memory_shape);
    if let Some(base) = &base {
        let restored = flatten::restored(&opened.adapter, base, kernels.as_ref(), args.common.limits(), &bar);
        let (adapter, notes) = restored.in_file(&args.adapter)?;
        opened.adapter = adapter;
        opened.notes.extend(notes);
    }
    opened.notes.extend(opened.adapter.unsettled());
    let shapes: Option<resize::Shapes> = if base.is_some() { Some(&shape_of) } else { None };
    let resized = resize::resize(&opened.adapter, shapes, &options, args.common.limits(), kernels.as_ref(), &bar);
    bar.finish();
    let resized = resized.in_file(&args.adapter)?;
    let (draft, written) = layout.write(&resized.adapter).in_file(&args.adapter)?;
    let mut notes: Vec<Note> = opened.notes.iter().chain(&resized.notes).chain(&written).cloned().collect();
    notes.extend(kernels.notes());
    if args.common.strict {
        output::require_lossless(&notes)?;
    }
    let mut inputs = inputs(&args.adapter, &opened);
    inputs.extend(args.base.as_deref());
    if args.common.dry_run {
        let form = if draft.texts.is_empty() { Form::File } else { Form::Folder };
        atomic::refuse_input(&args.out, &inputs)?;
        atomic::refuse_existing(&args.out, form, args.common.force)?;
    } else {
        layout::save(&draft, &args.out, &inputs, args.common.force, !args.common.no_sync)?;
    }
    output::notes(&notes);
    show(args, layout.name(), &resized, &draft, (&notes, began.elapsed()))
}

/// Files that the result must not overwrite.
fn inputs<'a>(adapter: &'a Path, opened: &'a Opened) -> Vec<&'a Path> {
    let config = opened.source.config.as_ref().map(|(path, _)| path.as_path());
    [Some(adapter), Some(opened.source.tensor_file.as_path()), config].into_iter().flatten().collect()
}

fn show(args: &Args, layout: &str, resized: &Resized, draft: &Draft, (notes, took): (&[Note], Duration)) -> Result<()> {
    let bytes: u64 = draft.tensors.values().map(|t| t.bytes.len() as u64).sum();
    if args.common.json {
        return output::document(&document(args, layout, resized, bytes, (notes, took)));
    }
    let (before, after) = resized.elements;
    output::answer(&format!(
        "{}\n{}{}: {} parameters before, {} after · {} in {:.1} s",
        approximation::text(&resized.modules, &resized.overall),
        if args.common.dry_run { "would write " } else { "" },
        args.out.display(),
        thousands(before),
        thousands(after),
        size::show(bytes),
        took.as_secs_f64(),
    ))
}

fn document(args: &Args, layout: &str, resized: &Resized, bytes: u64, (notes, took): (&[Note], Duration)) -> Value {
    let (before, after) = resized.elements;
    let mut out = json!({
        "out": output::path(&args.out), "layout": layout, "rank": args.rank.to_string(), "seconds": took.as_secs_f64(),
        "parameters_before": before, "parameters": after, "bytes": bytes,
        "overall": resized.overall, "modules": resized.modules, "notes": notes_json(notes),
    });
    if args.common.dry_run {
        out["dry_run"] = json!(true);
    }
    out
}

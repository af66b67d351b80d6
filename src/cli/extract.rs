//! `lora-tool extract`: an adapter from a base and a model tuned from it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use regex::Regex;
use serde_json::{Value, json};

use super::args::{Common, OutputDtype};
use super::merge::notes_json;
use super::progress::Bar;
use super::ranks::{self, Ranks};
use super::signals::Signals;
use super::unmerge::tensors;
use super::{approximation, output};
use crate::adapter::Note;
use crate::error::{Error, Kind, Result};
use crate::layout::{self, Draft, Layout, source::BASE_FINGERPRINT};
use crate::linalg::rank::Rule;
use crate::model::BaseModel;
use crate::names::ModulePath;
use crate::names::diffusion::{self, Naming};
use crate::ops::approximate;
use crate::ops::extract::survey::Selection;
use crate::ops::extract::{self, Extraction, Models, Options, Whole};
use crate::ops::retarget;
use crate::tensor::{Tensor, size};

/// Make an adapter from a base model and a model tuned from it
///
/// Writes the best low-rank approximation of every difference between the two, with its error, as an adapter for the
/// base. Tensors that are equal are left out; what cannot be low rank, norms and biases and new rows of a vocabulary, is
/// kept as it is. Differences are formed piece by piece: neither model has to fit into memory.
#[derive(Debug, clap::Args)]
#[command(before_long_help = ranks::HELP, after_long_help = "\
Examples:
  lora-tool extract Llama-3.1-8B my-fine-tune -o my-adapter --rank 32
  lora-tool extract base tuned -o adapter --rank size=50MB --max-rank 128
  lora-tool extract base tuned -o adapter --rank error=0.1 --exclude 'embed_tokens|lm_head' --json")]
pub struct Args {
    /// Base model: a folder with shards, a pipeline, or one .safetensors file
    base: PathBuf,
    /// The model tuned from it
    tuned: PathBuf,
    /// Where the adapter goes
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
    /// The rank, or the rule that gives one: N, energy=X, error=X, ratio=X, mp, params=N, size=SIZE
    #[arg(long, value_name = "RANK", default_value = "16", value_parser = ranks::rule)]
    rank: Rule,
    /// Rank of convolutions with a kernel larger than 1 [default: as --rank]
    #[arg(long, value_name = "RANK", value_parser = ranks::rule)]
    conv_rank: Option<Rule>,
    #[command(flatten)]
    ranks: Ranks,
    /// Type of the factors; keep takes that of the tuned tensor
    #[arg(long, value_enum, default_value = "f32", hide_possible_values = true)]
    dtype: OutputDtype,
    /// In a budget, count what is kept of a module relative to the norm of its base weight
    #[arg(long)]
    weight_by_base: bool,
    /// Only tensors whose name matches this regular expression
    #[arg(long, value_name = "REGEX")]
    include: Option<Regex>,
    /// No tensors whose name matches this regular expression
    #[arg(long, value_name = "REGEX")]
    exclude: Option<Regex>,
    /// Leave out what cannot be low rank: norms, biases, new rows of a vocabulary
    #[arg(long)]
    low_rank_only: bool,
    /// Go on where one of the models has tensors that the other has not: keep what is new, leave out what is gone
    #[arg(long)]
    allow_unmatched: bool,
    /// Layout of the adapter [default: peft; of a pipeline diffusers]
    #[arg(long, value_name = "LAYOUT")]
    to: Option<String>,
    /// What the adapter calls its base [default: the name in the base's config, else its path]
    #[arg(long, value_name = "NAME")]
    base_name: Option<String>,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let signals = Signals::listen()?;
    let options = options(args)?;
    let named = args.to.as_deref().map(layout::named).transpose()?;
    let base = BaseModel::open(&args.base)?;
    let tuned = BaseModel::open(&args.tuned)?;
    let usual = if base.pipeline.is_some() { "diffusers" } else { "peft" };
    let layout = named.map_or_else(|| layout::named(usual), Ok)?;
    let models = Models { base: &base, tuned: &tuned };
    let kernels = args.common.machine.kernels_for(extract::multiplications(models, &options))?;
    let options = Options { about: about(args, &base), ..options };
    let inputs = inputs(args, &base, &tuned);
    layout::check(&args.out, &inputs, args.common.force)?;
    let began = Instant::now();
    let bar = Bar::new(extract::bytes(models), signals);
    let made = extract::extract(models, &options, kernels.as_ref(), args.common.limits(), &bar);
    bar.finish();
    let of_two = |e: &Error| e.file().is_none() || matches!(e.kind(), Kind::Missing | Kind::Mismatch);
    let mut made = made.map_err(|e| match of_two(&e) {
        true => e.in_file(&args.tuned).with("the base", &args.base).with("the other model", &args.tuned),
        false => e,
    })?;
    require_something(args, &made)?;
    made.notes.extend(kernels.notes());
    if let Some(config) = base.config.as_ref().filter(|_| layout.name() == "gguf") {
        layout::gguf::base::tell(&mut made.adapter, config); // architecture and heads
    }
    spell(layout, &mut made, &base)?;
    let draft = write(layout, &mut made).map_err(|e| match (&base.pipeline, e.advice()) {
        (Some(_), None) => e.hint("--exclude leaves tensors out by name, as in --exclude '^vae[.]'"),
        _ => e,
    })?;
    if args.common.strict {
        output::require_lossless(&made.notes)?;
    }
    output::notes(&made.notes);
    base.unchanged()?;
    tuned.unchanged()?;
    if !args.common.dry_run {
        layout::save(&draft, &args.out, &inputs, args.common.force, !args.common.no_sync)?;
    }
    say(args, (layout.name(), &options), &made, &draft, began.elapsed().as_secs_f64())
}

/// Calls the modules of an image model as the layout does: one for pipelines by the family of the model, any other as the
/// model alone calls them, where the base is one by itself, or one component of a pipeline is all that changed.
fn spell(layout: &dyn Layout, made: &mut Extraction, base: &BaseModel) -> Result<()> {
    let Some(naming) = base.naming() else { return Ok(()) };
    if layout.is_of_pipelines() {
        require_words(layout, made, base)?;
        made.adapter.spelling = retarget::of_base(base);
        let family = made.adapter.spelling.and_then(|spelling| diffusion::family(spelling.family));
        if let Some(to) = family.and_then(|family| layout.naming(family)) {
            let (spelt, notes) = retarget::spell(&made.adapter, to)?;
            made.adapter = spelt;
            made.notes.extend(notes);
        }
    } else if naming == Naming::Diffusers {
        require_one(layout, made, base)?;
        let alone = |path: ModulePath| match path.as_str().split_once('.') {
            Some((_, inner)) => ModulePath::from(inner),
            None => path,
        };
        let targets = std::mem::take(&mut made.adapter.targets);
        made.adapter.targets = targets.into_iter().map(|(path, target)| (alone(path), target)).collect();
    }
    Ok(())
}

/// An error for a component of a pipeline for which only the layout of pipelines has a word.
fn require_words(layout: &dyn Layout, made: &Extraction, base: &BaseModel) -> Result<()> {
    const EVERYWHERE: [&str; 6] = ["unet", "transformer", "prior", "text_encoder", "text_encoder_2", "text_encoder_3"];
    let parts = made.adapter.targets.keys().filter_map(|path| base.component_of(path.as_str()));
    let Some(other) = parts.into_iter().find(|c| !EVERYWHERE.contains(&c.name.as_str())) else { return Ok(()) };
    if layout.name() == "diffusers" {
        return Ok(());
    }
    let name = &other.name;
    let what = format!("changes of {name}, for which {} has no word", layout.name());
    Err(Error::unsupported(what)
        .hint(format!("--exclude '^{name}[.]' leaves it out, and {name} can be BASE and TUNED by itself")))
}

/// An error where several components of a pipeline changed and the layout holds adapters of one model.
fn require_one(layout: &dyn Layout, made: &Extraction, base: &BaseModel) -> Result<()> {
    let parts = made.adapter.targets.keys().filter_map(|path| base.component_of(path.as_str()));
    let parts: BTreeSet<&str> = parts.map(|component| component.name.as_str()).collect();
    if parts.len() < 2 {
        return Ok(());
    }
    let all = parts.into_iter().collect::<Vec<_>>().join(", ");
    let what = format!("changes of several models of a pipeline, and {} holds those of one: {all}", layout.name());
    Err(Error::unsupported(what)
        .hint("--to diffusers and --to kohya hold all; --include '^unet[.]' takes those of one"))
}

fn write(layout: &dyn Layout, made: &mut Extraction) -> Result<Draft> {
    let (draft, notes): (Draft, Vec<Note>) = layout.write(&made.adapter)?;
    made.notes.extend(notes);
    Ok(draft)
}

fn options(args: &Args) -> Result<Options> {
    let ranks = &args.ranks;
    Ok(Options {
        selection: Selection {
            include: args.include.clone(),
            exclude: args.exclude.clone(),
            allow_unmatched: args.allow_unmatched,
        },
        rule: args.rank,
        kernel_rule: args.conv_rank,
        bounds: ranks.bounds()?,
        tolerance: ranks.tolerance,
        exact: ranks.exact,
        seed: ranks.seed,
        balance: ranks.balance(),
        dtype: args.dtype.get(),
        weighted: args.weight_by_base,
        low_rank_only: args.low_rank_only,
        about: BTreeMap::new(),
    })
}

/// What the adapter says of its base.
fn about(args: &Args, base: &BaseModel) -> BTreeMap<String, String> {
    let named = || base.config.as_ref()?.get("_name_or_path")?.as_str().filter(|n| !n.is_empty()).map(str::to_string);
    let name = args.base_name.clone().or_else(named).unwrap_or_else(|| args.base.display().to_string());
    BTreeMap::from([
        ("base_model_name_or_path".to_string(), name),
        (BASE_FINGERPRINT.to_string(), base.fingerprint().to_string()),
    ])
}

fn inputs<'a>(args: &'a Args, base: &BaseModel, tuned: &BaseModel) -> Vec<&'a Path> {
    let _ = (base, tuned); // their files lie at or under these
    vec![&args.base, &args.tuned]
}

fn require_something(args: &Args, made: &Extraction) -> Result<()> {
    if !made.adapter.targets.is_empty() {
        return Ok(());
    }
    let what = match (made.not_asked, made.modules.len()) {
        (0, 0) => format!("all {} tensors are those of the base; there is nothing to extract", made.equal),
        (n, 0) if n > 0 => format!("{n} tensors differ, and --include and --exclude leave them out"),
        _ => "the rule leaves nothing of any difference".to_string(),
    };
    Err(Error::missing(what).in_file(&args.tuned).with("the base", &args.base))
}

fn say(args: &Args, options: (&str, &Options), made: &Extraction, draft: &Draft, seconds: f64) -> Result<()> {
    let bytes: u64 = draft.tensors.values().map(|t| t.bytes.len() as u64).sum();
    if args.common.json {
        return output::document(&document(args, options, made, draft, (bytes, seconds)));
    }
    let mut text = String::new();
    if !made.modules.is_empty() {
        text += &format!("{}\n", approximation::text(&made.modules, &approximate::overall(&made.modules)));
    }
    if output::is_verbose() && !made.whole.is_empty() {
        text += &format!("\n{}\n", whole_table(made));
    }
    let mut parts = Vec::new();
    if !made.whole.is_empty() {
        let bytes = made.whole.iter().map(|w| w.bytes).sum();
        parts.push(format!("{} kept whole ({})", tensors(made.whole.len()), size::show(bytes)));
    }
    parts.push(format!("{} equal", tensors(made.equal)));
    if made.not_asked > 0 {
        parts.push(format!("{} not asked for", tensors(made.not_asked)));
    }
    let would = if args.common.dry_run { "would write " } else { "" };
    let (out, size) = (args.out.display(), size::show(bytes));
    text += &format!("{would}{out}: {} · {size} in {seconds:.1} s", parts.join(", "));
    output::answer(&text)
}

fn whole_table(made: &Extraction) -> String {
    let row = |w: &Whole| {
        let rows = w.rows.map_or("all".to_string(), |n| n.to_string());
        vec![w.name.clone(), w.shape.to_string(), rows, size::show(w.bytes)]
    };
    output::table(&["kept whole", "shape", "rows", "size"], &[2, 3], made.whole.iter().map(row).collect())
}

fn document(
    args: &Args,
    (layout, options): (&str, &Options),
    made: &Extraction,
    draft: &Draft,
    (bytes, seconds): (u64, f64),
) -> Value {
    let whole: Vec<_> = made
        .whole
        .iter()
        .map(|w| json!({ "tensor": w.name, "shape": w.shape.dims(), "bytes": w.bytes, "rows": w.rows }))
        .collect();
    let parameters: usize = draft.tensors.values().map(Tensor::elements).sum();
    json!({
        "out": output::path(&args.out), "dry_run": args.common.dry_run, "base": output::path(&args.base),
        "tuned": output::path(&args.tuned), "layout": layout,
        "rank": options.rule.to_string(), "overall": approximate::overall(&made.modules), "modules": made.modules, "bytes": bytes, "parameters": parameters, "seconds": seconds,
        "equal": made.equal, "not_asked": made.not_asked, "whole": whole, "notes": notes_json(&made.notes),
    })
}

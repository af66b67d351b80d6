//! `convert --normalise`: any adapter as plain LoRA, exactly or, with a base and a rank, as well as that rank allows.

use std::path::Path;

use clap::Arg;
use serde_json::{Value, json};

use super::approximation;
use super::args::Common;
use super::progress::Bar;
use super::ranks::{self, Ranks};
use super::signals::Signals;
use crate::adapter::{Adapter, Delta, Note};
use crate::error::{Error, Kind, Result};
use crate::layout::Opened;
use crate::linalg::rank::Rule;
use crate::model::BaseModel;
use crate::names::ModulePath;
use crate::ops::approximate::{self, ModuleReport};
use crate::ops::flatten::{self, Flattened, Options};
use crate::ops::normalise::{self, APPROXIMATE, Normalised};
use crate::ops::{factorise, resize};
use crate::tensor::Dtype;

/// Flags of changes that no plain LoRA holds exactly.
#[derive(Clone, Debug, clap::Args)]
#[command(mut_args(of_a_rank))]
pub struct Flatten {
    /// With --normalise and --base: the rank of what is not low rank by its own data, or the rule that gives one: N,
    /// energy=X, error=X, ratio=X, mp, params=N, size=SIZE
    #[arg(long, value_name = "RANK", value_parser = ranks::rule, requires = "base", requires = "normalise")]
    rank: Option<Rule>,
    #[command(flatten)]
    ranks: Ranks,
}

/// What is said of ranks means nothing without one.
fn of_a_rank(arg: Arg) -> Arg {
    const OF_RANKS: [&str; 7] = ["max_rank", "min_rank", "rank_multiple", "balance", "exact", "tolerance", "seed"];
    if OF_RANKS.contains(&arg.get_id().as_str()) { arg.requires("rank") } else { arg }
}

/// What a command makes adapters plain with.
pub struct Means<'a> {
    /// The flags.
    pub flags: &'a Flatten,
    /// What the machine may do.
    pub common: &'a Common,
    /// Type of the result's tensors.
    pub dtype: Option<Dtype>,
    /// The base.
    pub base: Option<&'a BaseModel>,
    /// What may end it.
    pub signals: Signals,
}

/// The adapter with every scale 1, and how well its changes were approximated.
pub fn plain(opened: &mut Opened, means: &Means) -> Result<(Normalised, Vec<ModuleReport>)> {
    let Means { common, dtype, base, .. } = *means;
    let (mut notes, mut modules) = (Vec::new(), Vec::new());
    if let Some(base) = base {
        let by_weights = opened.adapter.residual_base.is_some() || means.flags.rank.is_some();
        let kernels = common.kernels()?;
        let bar = Bar::new(opened.source.tensor_bytes(), means.signals.clone());
        let fitted = flatten::fit(&opened.adapter, base, kernels.as_ref(), common.limits(), &bar);
        bar.finish();
        (opened.adapter, notes) = fitted?;
        if let Some(rule) = means.flags.rank {
            let done = flattened(&opened.adapter, base, rule, means)?;
            (opened.adapter, modules) = (done.adapter, done.modules);
            notes.extend(done.notes);
            if modules.is_empty() && flatten::is_plain(&opened.adapter) {
                notes.push(Note::info("", "low rank already: --rank is for what is not"));
            }
        }
        notes.extend(other_base(opened, base).filter(|_| by_weights));
    }
    let shape_of = |path: &ModulePath| base?.names.find(&path.tensor("weight")).map(|f| f.memory_shape);
    let shapes: Option<resize::Shapes> = if base.is_some() { Some(&shape_of) } else { None };
    let bar = Bar::new(opened.source.tensor_bytes(), means.signals.clone());
    let done = normalise::normalise(&opened.adapter, shapes, dtype, common.limits().threads, &bar);
    bar.finish();
    let mut done = done?;
    done.notes.splice(0..0, notes);
    Ok((done, modules))
}

/// Says that the weights are not those that the adapter changes.
fn other_base(opened: &Opened, base: &BaseModel) -> Option<Note> {
    let named = opened.base_fingerprint?;
    let own = base.fingerprint();
    let what = format!("made for another base: it names fingerprint {named}, this base has {own}");
    (named != own).then(|| Note::lossy(opened.source.path.display().to_string(), what))
}

fn flattened(adapter: &Adapter, base: &BaseModel, rule: Rule, means: &Means) -> Result<Flattened> {
    let Means { flags: Flatten { ranks, .. }, common, dtype, .. } = *means;
    let options = Options {
        ranks: factorise::Options {
            rule,
            kernel_rule: None,
            bounds: ranks.bounds()?,
            tolerance: ranks.tolerance,
            exact: ranks.exact,
            seed: ranks.seed,
        },
        balance: ranks.balance(),
        dtype,
    };
    let kernels = common.kernels()?;
    let bar = Bar::new(flatten::bytes(adapter, base), means.signals.clone());
    let done = flatten::flatten(adapter, base, &options, kernels.as_ref(), common.limits(), &bar);
    bar.finish();
    let mut done = done?;
    done.notes.extend(kernels.notes());
    base.unchanged()?;
    Ok(done)
}

/// The table of what was approximated; empty where nothing was.
pub fn text(modules: &[ModuleReport]) -> String {
    if modules.is_empty() {
        return String::new();
    }
    format!("{}\n", approximation::text(modules, &approximate::overall(modules)))
}

/// The same for scripts; null where nothing was approximated.
pub fn document(flags: &Flatten, modules: &[ModuleReport]) -> Value {
    let rule = flags.rank.filter(|_| !modules.is_empty());
    rule.map_or(
        Value::Null,
        |rule| json!({ "rank": rule.to_string(), "overall": approximate::overall(modules), "modules": modules }),
    )
}

/// The error of a layout that cannot hold what an adapter does, with how it could hold something close to it.
pub fn advised(e: Error, adapter: &Adapter, path: &Path) -> Error {
    let advice = advice(adapter, e.key()).filter(|_| e.kind() == Kind::Unsupported);
    let Some(advice) = advice else {
        let is_of_module =
            e.kind() == Kind::Unsupported && e.key().is_some_and(|key| adapter.targets.contains_key(key));
        let e =
            if is_of_module && e.advice().is_none() { e.hint("--leave-out goes on without such modules") } else { e };
        return e.in_file(path);
    };
    let hint = e.advice().map_or_else(|| advice.to_string(), |other| format!("{advice}; or {other}"));
    let (out, file) = (Error::new(e.kind(), e.what()).hint(hint), e.file().unwrap_or(path));
    e.key().into_iter().fold(out, Error::at_key).in_file(file)
}

/// How the target of this path, or one of all, becomes plain LoRA; none where it is that.
fn advice(adapter: &Adapter, key: Option<&str>) -> Option<&'static str> {
    let named = key.and_then(|key| adapter.targets.get(key));
    let targets: Vec<_> = named.map_or_else(|| adapter.targets.values().collect(), |target| vec![target]);
    if targets.iter().any(|t| !normalise::is_weight_plain(t) || !normalise::is_bias_plain(t)) {
        return Some(APPROXIMATE);
    }
    let derived = targets.iter().any(|t| t.weight.iter().any(|d| matches!(d, Delta::Derived(_))));
    (derived || adapter.residual_base.is_some()).then_some("--normalise --base BASE makes it plain LoRA")
}

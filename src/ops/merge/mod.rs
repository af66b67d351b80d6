//! Base model + adapters → the plan of a merged model.
//!
//! Nothing is written here. Everything that can be wrong is found while the plan is made: targets that match nothing,
//! shapes that do not fit, kinds that cannot be computed. Two numbers for scale: a merge
//! reads and writes every byte of the base once, and adds 2·r operations for each element of a target.

pub(super) mod fitting;
mod measure;
mod output;
pub(super) mod place;
pub(super) mod produce;
mod provenance;
mod report;
mod resolve;
mod scale_tensor;
mod shards;
pub(super) mod source;
mod tied;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::adapter::{Adapter, Delta, Note};
use crate::error::{Context, Error, Kind, Result};
use crate::model::BaseModel;
use crate::names::ModulePath;
use crate::stream::Output;
use crate::tensor::{Dtype, Hash, Shape};

pub(super) use output::untouched;
pub(super) use produce::{Laid, Merged};

pub use report::{Change, Report, Totals, survived, unmoved};

/// What a merge may do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Modules of an adapter that match nothing become notes.
    pub allow_unmatched: bool,
    /// NaN and infinity are let through.
    pub allow_nonfinite: bool,
    /// Type of the floating-point tensors written; none keeps each.
    pub dtype: Option<Dtype>,
    /// Most bytes of tensors in one file; none keeps the base's files.
    pub max_shard_bytes: Option<u64>,
    /// Name and version of the program, to be written into the files with what was merged. Without it nothing is
    /// written, and what they say of earlier merges is taken out.
    pub provenance: Option<String>,
    /// An adapter that was merged into the base before is merged once more.
    pub allow_repeat: bool,
    /// An adapter is merged into a base other than the one it names.
    pub allow_other_base: bool,
}

/// An adapter with the strength it is applied at.
#[derive(Clone, Debug)]
pub struct Applied<'a> {
    /// Its name in messages.
    pub label: String,
    /// The user's multiplier.
    pub strength: f64,
    /// What it does.
    pub adapter: &'a Adapter,
    /// What it is known by; needed to write a provenance.
    pub identity: Option<Identity>,
}

/// What an adapter is known by.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The last component of its path.
    pub name: String,
    /// Hash of its tensors.
    pub hash: Hash,
    /// Fingerprint of the base it was made for, where it names one.
    pub base: Option<Hash>,
}

/// A merge that is ready to be written.
pub struct Merge {
    /// What will be written.
    pub output: Output,
    /// What changes, in the order of the plan; outcomes turn it into the report.
    pub changes: Vec<Change>,
    /// Remarks.
    pub notes: Vec<Note>,
    /// Numbers for the report that are known before anything is written.
    pub totals: Totals,
    /// How each tensor that is not copied comes about, by key.
    pub(super) work: BTreeMap<String, Arc<Merged>>,
}

/// Plans the merge of `adapters` into `base`: their changes are summed, then rounded once.
pub fn merge(base: &BaseModel, adapters: &[Applied], options: &Options) -> Result<Merge> {
    plan(base, adapters, options).map_err(|e| e.with_base(&base.path))
}

fn plan(base: &BaseModel, adapters: &[Applied], options: &Options) -> Result<Merge> {
    let mut notes = Vec::new();
    let history = provenance::check(base, adapters, options, &mut notes)?;
    let provenance = history.with(adapters, options)?;
    let ready = adapters
        .iter()
        .map(|applied| fit(base, applied, &mut notes).in_file(&applied.label))
        .collect::<Result<Vec<Adapter>>>()?;
    let adapters: Vec<Applied> =
        adapters.iter().zip(&ready).map(|(applied, adapter)| Applied { adapter, ..applied.clone() }).collect();
    let mut edits = resolve::resolve(base, &adapters, options)?;
    edits.notes.splice(0..0, notes);
    if let Some(applied) = adapters.first() {
        one_vocabulary(base, &edits).in_file(&applied.label)?;
    }
    let totals = Totals {
        adapter_tensors: adapters.iter().map(|a| a.adapter.tensor_count()).sum(),
        adapter_tensors_used: edits.used.iter().sum(),
        ..Totals::default()
    };
    let mut merge = output::assemble(base, edits, options, totals)?;
    if merge.changes.is_empty() {
        return Err(Error::missing("the merge would change nothing").in_file(&base.path));
    }
    provenance::write(provenance.as_ref(), &mut merge.output.plan);
    Ok(merge)
}

/// The adapter with everything that only the base can tell: factors taken out of it before training, targets that the
/// file does not list, projections of which it has the seed.
fn fit(base: &BaseModel, applied: &Applied, notes: &mut Vec<Note>) -> Result<Adapter> {
    check(applied)?;
    let mut adapter = applied.adapter.clone();
    if let Some(method) = &adapter.residual_base {
        let text = format!(
            "trained on a base from which {method} took the first factors; they are found again in the base given"
        );
        notes.push(Note::info("init_lora_weights", text));
    }
    adapter.restore_base().map_err(|e| e.at_key("init_lora_weights"))?;
    notes.extend(adapter.place(&base.weights())?);
    let shape_of = |path: &ModulePath| base.names.find(&path.tensor("weight")).map(|found| found.memory_shape);
    adapter.complete(&shape_of)?;
    Ok(adapter)
}

/// An error where an adapter gives one of the two embeddings more rows or fewer than the other: no program could load
/// the model.
fn one_vocabulary(base: &BaseModel, edits: &resolve::Edits) -> Result<()> {
    let embeddings = base.embeddings();
    let (Some(input), Some(output)) = (embeddings.input, embeddings.output) else { return Ok(()) };
    let rows = |shape: &Shape| shape.dims().first().copied();
    let before = |key: &str| base.tensor(key).and_then(|(_, tensor)| rows(&tensor.shape));
    let after = |key: &str| edits.reshaped.get(key).map_or_else(|| before(key), rows);
    let ([was, other], [one, two]) = ([before(&input), before(&output)], [after(&input), after(&output)]);
    if was != other || one == two || one.is_none() || two.is_none() {
        return Ok(());
    }
    let changed = if one == was { output } else { input };
    let shape = edits.reshaped.get(&changed).cloned().unwrap_or_default();
    let stored = base.tensor(&changed).map(|(_, tensor)| tensor.shape.clone()).unwrap_or_default();
    Err(Error::mismatch(format!("{shape} in place of the base's {stored}, and the other embedding keeps its rows"))
        .at_key(changed))
}

/// What is wrong with an adapter whatever the base.
fn check(applied: &Applied) -> Result<()> {
    let adapter = applied.adapter;
    for (path, target) in &adapter.targets {
        if let Some(Delta::Opaque(opaque)) =
            target.weight.iter().chain(&target.bias).find(|d| matches!(d, Delta::Opaque(_)))
        {
            let error = Error::unsupported(format!("{} cannot be merged: {}", opaque.kind, opaque.reason));
            return Err(if path.as_str().is_empty() { error } else { error.at_key(path.as_str()) });
        }
    }
    if adapter.targets.is_empty() {
        return Err(Error::missing("the adapter changes nothing"));
    }
    if !applied.strength.is_finite() {
        return Err(Error::new(Kind::Usage, format!("strength {}", applied.strength)));
    }
    Ok(())
}

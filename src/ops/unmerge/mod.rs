//! Merged model + adapters → the plan of the model without them, with no record of the merge.
//!
//! A merge rounds, so the weights of the base can be told from the merged ones only as far as the stored type is fine
//! enough. What each kind of change leaves to be found is said where the kind is ([`crate::adapter::Inverse`]); what is
//! found is counted element by element while it is written (`back`). With the base at hand nothing has to be found:
//! [`Against`] compares what the merge gives with what is there.

mod against;
mod back;
mod history;

use std::sync::Arc;

pub use against::Against;
pub use back::Found;

use crate::adapter::{Adapter, Delta, Inverse, Note, Severity};
use crate::error::{Context, Error, Result};
use crate::model::BaseModel;
use crate::ops::merge::source::{Edit, Part};
use crate::ops::merge::{self, Applied, Identity, Merge, Merged};
use crate::stream::{Entry, Job, Make, Output, PlannedFile};
use crate::tensor::{Hash, Tensor};

use back::Back;
use history::History;

/// What helps where an adapter cannot be taken out by itself.
const HINT: &str = "--base BASE compares with the base, --undo FILE takes the record of the merge";

/// An adapter to be taken out.
#[derive(Clone, Debug)]
pub struct Removal<'a> {
    /// Its name in messages.
    pub label: String,
    /// The strength it was merged at; none where the model's files shall tell.
    pub strength: Option<f64>,
    /// What it does.
    pub adapter: &'a Adapter,
    /// What it is known by.
    pub identity: Identity,
}

/// How adapters are taken out.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Modules of an adapter that match nothing were left out when it was merged.
    pub allow_unmatched: bool,
    /// Name and version of the program, for what the result's files say of other adapters.
    pub tool: String,
}

/// A model without the adapters, ready to be written.
pub struct Unmerge {
    /// What will be written.
    pub output: Output,
    /// Tensors that become others.
    pub tensors: Vec<Restored>,
    /// Strengths that the adapters are taken out at, in their order.
    pub strengths: Vec<f64>,
    /// Remarks.
    pub notes: Vec<Note>,
    /// Tensors copied from the merged model.
    pub copied: usize,
    /// Tensors of the merged model that are left out.
    pub left_out: usize,
    /// Other adapters that the model's files name.
    pub others: usize,
    /// Fingerprint of the base, where the model's files name it and nothing else was merged.
    pub base: Option<Hash>,
}

/// A tensor that becomes another.
pub struct Restored {
    /// Its key.
    pub key: String,
    /// The kinds of change taken out.
    pub kinds: Vec<&'static str>,
    back: Option<Arc<dyn Tally>>,
    elements: u64,
}

/// Knows what was found, once everything is written.
trait Tally: Send + Sync {
    fn found(&self) -> Found;
}

impl Restored {
    fn new(key: &str, edits: &[Edit], elements: usize, back: Option<Arc<dyn Tally>>) -> Restored {
        let kinds = edits.iter().map(|e| e.source.target.kind()).collect();
        Restored { key: key.to_string(), kinds, back, elements: elements as u64 }
    }

    /// What was found, after the output was written. A tensor that is the base's own holds no doubt.
    pub fn found(&self) -> Found {
        let found = self.back.as_ref().map(|back| back.found()).unwrap_or_default();
        Found { elements: self.elements, ..found }
    }
}

impl Unmerge {
    /// Over all tensors, after the output was written.
    pub fn found(&self) -> Found {
        let mut all = Found::default();
        self.tensors.iter().for_each(|t| all.add(&t.found()));
        all
    }
}

/// Plans it without the base.
pub fn unmerge(merged: &BaseModel, removals: &[Removal], options: &Options) -> Result<Unmerge> {
    let mut notes = Vec::new();
    let history = History::of(merged, removals, &mut notes)?;
    let merge = plan(merged, removals, &history.strengths, options)?;
    require_same_form(merged, &merge)?;
    for (key, work) in &merge.work {
        require_inverse(work).at_key(key)?;
    }
    notes.extend(lossy(merge.notes));
    let mut work = merge.work;
    let mut tensors = Vec::new();
    let mut copied = 0;
    let files = as_planned(merged, |key, tensor| {
        let Some(work) = work.remove(key).filter(|w| !w.edits().is_empty()) else {
            copied += 1;
            return Ok(Some(copy(key, tensor)));
        };
        let edits = work.edits().to_vec();
        let scales = merged.scaled().of(key)?;
        let back = Back::new(tensor.clone(), (tensor.dtype, &tensor.shape), work);
        let back = Arc::new(back.with_scales(scales.clone(), scales));
        tensors.push(Restored::new(key, &edits, tensor.elements(), Some(Arc::clone(&back) as Arc<dyn Tally>)));
        let entry = Entry { name: key.to_string(), dtype: tensor.dtype, shape: tensor.shape.clone() };
        Ok(Some(Job { entry, make: Make::Compute(back) }))
    })?;
    let mut output = merge.output;
    output.plan.files = files;
    history.write(&mut output.plan.files, |job| matches!(job.make, Make::Compute(_)), &options.tool);
    let (others, base) = (history.others(), history.base_alone());
    Ok(Unmerge { output, tensors, strengths: history.strengths, notes, copied, left_out: 0, others, base })
}

/// The merge that is to be undone, into `base`.
fn plan(base: &BaseModel, removals: &[Removal], strengths: &[f64], options: &Options) -> Result<Merge> {
    plan_as(base, removals, strengths, options, None)
}

/// The same, with floating-point tensors written as `dtype`.
fn plan_as(
    base: &BaseModel,
    removals: &[Removal],
    strengths: &[f64],
    options: &Options,
    dtype: Option<crate::tensor::Dtype>,
) -> Result<Merge> {
    let applied: Vec<_> = removals
        .iter()
        .zip(strengths)
        .map(|(r, &strength)| Applied { label: r.label.clone(), strength, adapter: r.adapter, identity: None })
        .collect();
    let options = merge::Options {
        allow_unmatched: options.allow_unmatched,
        allow_nonfinite: true,
        dtype,
        allow_repeat: true,
        allow_other_base: true,
        ..merge::Options::default()
    };
    merge::merge(base, &applied, &options)
}

/// Every file of the model with the jobs that `make` gives for its tensors. A file keeps its head where its form stays;
/// one that nothing is left of goes.
fn as_planned(
    model: &BaseModel,
    mut make: impl FnMut(&str, &Tensor) -> Result<Option<Job>>,
) -> Result<Vec<PlannedFile>> {
    let mut files = Vec::with_capacity(model.shards().len());
    for (number, shard) in model.shards().iter().enumerate() {
        let mut jobs = Vec::with_capacity(shard.contents.tensors.len());
        let mut same = true;
        for (key, tensor) in &shard.contents.tensors {
            let job = make(key, tensor)?;
            same &= job.as_ref().is_some_and(|j| j.entry.dtype == tensor.dtype && j.entry.shape == tensor.shape);
            jobs.extend(job);
        }
        let head = same.then(|| model.head(number).clone());
        if !jobs.is_empty() || same {
            files.push(PlannedFile { name: shard.name.clone(), metadata: model.metadata(number).clone(), head, jobs });
        }
    }
    Ok(files)
}

fn copy(key: &str, tensor: &Tensor) -> Job {
    let entry = Entry { name: key.to_string(), dtype: tensor.dtype, shape: tensor.shape.clone() };
    Job { entry, make: Make::Copy(tensor.clone()) }
}

/// Whether two tensors are the same bytes of the same file.
fn is_same_place(a: &Tensor, b: &Tensor) -> bool {
    match (a.bytes.origin(), b.bytes.origin()) {
        (Some((file, at)), Some((other, there))) => {
            Arc::ptr_eq(file, other) && at == there && a.bytes.len() == b.bytes.len()
        }
        _ => false,
    }
}

/// An error where merging the adapters into the merged model would give a model of another form: then they were not
/// merged into it.
fn require_same_form(merged: &BaseModel, merge: &Merge) -> Result<()> {
    let other = |key: &str| {
        Error::mismatch("the model does not have what a merge of the adapter gives it here")
            .at_key(key)
            .hint("was this adapter merged into this model?")
    };
    for job in merge.output.plan.files.iter().flat_map(|f| &f.jobs) {
        let key = &job.entry.name;
        let Some((_, tensor)) = merged.tensor(key) else { return Err(other(key)) };
        if let Make::Copy(source) = &job.make
            && !is_same_place(source, tensor)
        {
            let what = "a replacement cannot be taken out without the base: it took the place of the base's values";
            return Err(Error::unsupported(what).at_key(key).hint(HINT));
        }
        if !merge.work.contains_key(key) && tensor.shape != job.entry.shape {
            return Err(other(key));
        }
    }
    match merge.output.texts.first() {
        Some((name, _)) if merge.totals.added == 0 && merge.work.values().all(|w| require_inverse(w).is_ok()) => {
            Err(other(&name.to_string_lossy()))
        }
        _ => Ok(()),
    }
}

/// An error that says why, where a tensor cannot be found from what became of it.
fn require_inverse(work: &Merged) -> Result<()> {
    let edits = work.edits();
    for (edit, inverse) in edits.iter().zip(work.inverses()) {
        let why = match inverse {
            Inverse::Product | Inverse::Pointwise => continue,
            Inverse::Own if edit.source.total() != 1.0 => "it can only be undone at strength 1",
            Inverse::Own if edits.len() > 1 && !back::lie_apart(edits) => {
                "another change of the same tensor goes with it"
            }
            Inverse::Own => continue,
            Inverse::Never(why) => why,
        };
        let what = format!("{} cannot be taken out without the base: {why}", kinds(edit));
        return Err(Error::unsupported(what)
            .at_key(edit.source.path.as_str())
            .in_file(&edit.source.adapter)
            .hint(HINT));
    }
    Ok(())
}

/// What is done to the tensor, in order.
fn kinds(edit: &Edit) -> String {
    let target = &edit.source.target;
    let (deltas, magnitude) = match edit.source.part {
        Part::Weight => (&target.weight, target.magnitude.is_some()),
        Part::Bias => (&target.bias, false),
    };
    let names: Vec<_> = deltas.iter().map(Delta::kind).collect();
    match names.as_slice() {
        ["LoRA"] if magnitude => "DoRA".to_string(),
        _ if magnitude => format!("{} with the magnitude of DoRA", names.join(" + ")),
        _ => names.join(" + "),
    }
}

/// What a merge leaves out or guesses counts here, too; what it says of its result does not.
fn lossy(notes: Vec<Note>) -> impl Iterator<Item = Note> {
    notes.into_iter().filter(|note| note.severity == Severity::Lossy)
}

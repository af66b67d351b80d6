//! Changes compared by what they do to the tensors of a base: every kind that can be merged, matched by tensor, however
//! each adapter names its modules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::Array2;

use super::{Module, alone, tile_rows, tiles};
use crate::adapter::Note;
use crate::adapter::delta::Factors;
use crate::error::{Context, Result};
use crate::kernels::Kernels;
use crate::linalg::pair::{Overlap, Sums};
use crate::model::BaseModel;
use crate::ops::merge::{self, Applied, Laid, Merge, Merged, Options};
use crate::stream::{Budget, Limits, Make, Output, Produce, Progress, each};
use crate::tensor::{Tensor, cast, dtype};

/// Every tensor of the base that one of the adapters changes, in order of their keys.
pub fn compare(
    both: [&Applied; 2],
    base: &BaseModel,
    options: &Options,
    limits: Limits,
    kernels: &dyn Kernels,
    progress: &dyn Progress,
) -> Result<(Vec<Module>, Vec<Note>)> {
    let strengths = both.map(|applied| applied.strength);
    // At strength 1: the strengths come in where the changes are compared.
    let applied = both.map(|a| Applied { label: a.label.clone(), strength: 1.0, adapter: a.adapter, identity: None });
    let Merge { output, notes, work, .. } = merge::merge(base, &applied, options)?;
    let mut modules = whole_tensors(&applied, strengths, base, options, &output)?;
    drop(output); // holds every change, so that none could be let go
    let work: Vec<_> = work.into_iter().map(|(key, merged)| (key, Mutex::new(Some(merged)))).collect();
    let budget = Budget::new(limits.memory);
    modules.extend(
        each(work.len(), limits.threads, progress, |i| {
            let (key, merged) = &work[i];
            // Taken out, so that what it prepared goes when it is done.
            let merged: Option<Arc<Merged>> = merged.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(merged) = merged else { return Ok(None) };
            let tensor = Tensors { key, merged: &merged, stored: base.tensor(key).map(|(_, t)| t), strengths };
            tensor.compare(kernels, &budget).at_key(key)
        })?
        .into_iter()
        .flatten(),
    );
    Ok((modules, notes))
}

/// One tensor of the base and what both adapters make of it.
struct Tensors<'a> {
    key: &'a str,
    merged: &'a Merged,
    stored: Option<&'a Tensor>,
    strengths: [f64; 2],
}

impl Tensors<'_> {
    /// None where neither adapter changes it.
    fn compare(&self, kernels: &dyn Kernels, budget: &Budget) -> Result<Option<Module>> {
        let [first, second] = [0, 1].map(|n| self.merged.kinds(n).first().copied());
        if first.is_none() && second.is_none() {
            return Ok(None);
        }
        let (rows, cols) = self.merged.matrix();
        let step = tile_rows(self.merged.rows(), rows, cols);
        let _ticket = budget.admit(2 * self.merged.footprint(step));
        let (sums, overlap) = match (self.merged.products(0)?, self.merged.products(1)?) {
            (Some(one), Some(two)) if lie_alike(&one, &two) => self.of_products(kernels, one, two)?,
            _ => (self.of_rows(kernels)?, None),
        };
        Ok(Some(Module { name: self.key.to_string(), first, second, sums: Some(sums), overlap }))
    }

    fn of_products(&self, kernels: &dyn Kernels, one: Vec<Laid>, two: Vec<Laid>) -> Result<(Sums, Option<Overlap>)> {
        let factors = |all: Vec<Laid>| -> Vec<Factors> { all.into_iter().map(|(_, f)| f).collect() };
        let (one, two) = (factors(one), factors(two));
        alone::of_products(kernels, (&one, self.strengths[0]), (&two, self.strengths[1]))
    }

    fn of_rows(&self, kernels: &dyn Kernels) -> Result<Sums> {
        let (rows, cols) = self.merged.matrix();
        let needs_base = self.merged.needs_base()?;
        let mut sums = Sums::default();
        for range in tiles(self.merged.rows(), rows, cols) {
            let before =
                if needs_base { self.merged.widened(range.clone())? } else { Array2::zeros((range.len(), cols)) };
            let one = self.merged.delta(kernels, range.clone(), 0, &before)?;
            let two = self.merged.delta(kernels, range.clone(), 1, &before)?;
            sums.add(&Sums::of_values(&one, self.strengths[0], &two, self.strengths[1]));
            if let Some(tensor) = self.stored.filter(|_| needs_base) {
                let row_bytes = tensor.bytes.len().checked_div(rows).unwrap_or(0);
                let end = (range.end * row_bytes).min(tensor.bytes.len());
                tensor.bytes.release((range.start * row_bytes).min(end)..end);
            }
        }
        Ok(sums)
    }
}

/// Whether both adapters cut the tensor into the same rows, or one leaves it alone.
fn lie_alike(one: &[Laid], two: &[Laid]) -> bool {
    one.is_empty() || two.is_empty() || one.iter().map(|p| &p.0).eq(two.iter().map(|p| &p.0))
}

/// Tensors that hold no floating-point numbers and are replaced as a whole, like the counter of a batch norm.
fn whole_tensors(
    both: &[Applied; 2],
    strengths: [f64; 2],
    base: &BaseModel,
    options: &Options,
    output: &Output,
) -> Result<Vec<Module>> {
    if replaced(base, output).is_empty() {
        return Ok(Vec::new());
    }
    let mut own = Vec::new();
    for applied in both {
        own.push(replaced(base, &merge::merge(base, std::slice::from_ref(applied), options)?.output));
    }
    let [one, two] = own.as_slice() else { return Ok(Vec::new()) };
    let mut out = Vec::new();
    for key in one.keys().chain(two.keys()).collect::<BTreeSet<_>>() {
        let Some((_, stored)) = base.tensor(key) else { continue };
        let old = numbers(stored).at_key(key)?;
        let change = |made: Option<&Tensor>| -> Result<Vec<f32>> {
            let new = made.map_or_else(|| Ok(old.clone()), numbers)?;
            Ok(new.iter().zip(&old).map(|(new, old)| (new - old) as f32).collect())
        };
        let (first, second) = (one.get(key), two.get(key));
        let (a, b) = (change(first).at_key(key)?, change(second).at_key(key)?);
        let sums = Sums::of_values(&a, strengths[0], &b, strengths[1]);
        let kind = |made: Option<&Tensor>| made.map(|_| "replacement");
        out.push(Module {
            name: key.clone(),
            first: kind(first),
            second: kind(second),
            sums: Some(sums),
            overlap: None,
        });
    }
    Ok(out)
}

/// Tensors whose place another one takes as it is.
fn replaced(base: &BaseModel, output: &Output) -> BTreeMap<String, Tensor> {
    let mut out = BTreeMap::new();
    for job in output.plan.files.iter().flat_map(|file| &file.jobs) {
        if let (Make::Copy(new), Some((_, old))) = (&job.make, base.tensor(&job.entry.name))
            && new.bytes.as_slice().as_ptr() != old.bytes.as_slice().as_ptr()
        {
            out.insert(job.entry.name.clone(), new.clone());
        }
    }
    out
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    if dtype::is_float(tensor.dtype) {
        return cast::widen_f64(tensor.dtype, tensor.bytes.as_slice());
    }
    Ok(tensor.to_integers()?.into_iter().map(|v| v as f64).collect())
}

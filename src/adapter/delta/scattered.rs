//! UniLoRA without its indices: one trained vector whose entries are scattered over A and B of all adapted modules
//! (huggingface/peft, `src/peft/tuners/unilora/model.py`).
//!
//! Each entry of the vector is used about equally often, at places drawn at random over all modules in their order, and
//! divided by the root of how often. The file does not even say which modules; so this is no delta of a target but of a
//! whole adapter, and becomes low-rank factors of targets when [`crate::adapter::Adapter::place`] is told of the base.

use std::collections::BTreeMap;

use crate::adapter::selection::Selection;
use crate::adapter::{Scale, order};
use crate::error::{Error, Result};
use crate::limits;
use crate::names::ModulePath;
use crate::tensor::numpy_random::NumpyRng;
use crate::tensor::{Dtype, Tensor};

use super::{Action, LowRank};

/// A vector and the rule of where it goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Scattered {
    /// `[d]`.
    pub theta: Tensor,
    /// Rank of every pair of factors.
    pub rank: usize,
    /// What the places are drawn with.
    pub seed: u64,
    /// The modules that are adapted.
    pub selection: Selection,
    /// Whether they store their weights `[in, out]`.
    pub transposed: bool,
}

/// What [`Scattered::place`] finds: factors by module, and whether the order of the modules was certain.
pub struct Placed {
    /// The factors.
    pub factors: Vec<(ModulePath, LowRank)>,
    /// False where modules had to be ordered by name, for want of a rule.
    pub certain: bool,
}

impl Scattered {
    /// Always an error: there are no factors yet.
    pub fn prepare(&self) -> Result<Action> {
        Err(Error::missing("the file has only the trained vector; where its entries go takes the modules of the base")
            .hint("give the base model, or save the adapter again with save_indices set"))
    }

    /// The factors for a base with these modules and weights.
    pub fn place(&self, weights: &[(ModulePath, Tensor)]) -> Result<Placed> {
        let mut chosen: Vec<ModulePath> = Vec::new();
        for (path, weight) in weights {
            if self.selection.contains(path) && weight.shape.rank() == 2 {
                chosen.push(path.clone());
            }
        }
        if chosen.is_empty() {
            return Err(
                Error::missing("none of the modules that the config names is in the base").at_key("target_modules")
            );
        }
        let certain = order::sort(&mut chosen);
        let by_path: BTreeMap<_, _> = weights.iter().map(|(path, weight)| (path, weight)).collect();
        let chosen: Vec<_> = chosen.iter().filter_map(|path| Some((path, *by_path.get(path)?))).collect();
        self.scatter(&chosen).map(|factors| Placed { factors, certain })
    }

    fn scatter(&self, modules: &[(&ModulePath, &Tensor)]) -> Result<Vec<(ModulePath, LowRank)>> {
        let theta = self.theta.to_f32()?;
        let total = modules.iter().try_fold(0usize, |n, (_, weight)| {
            let (rows, cols) = weight.shape.matrix();
            rows.checked_add(cols)?.checked_mul(self.rank)?.checked_add(n)
        });
        let total = total.filter(|&n| n <= limits::UNILORA_ELEMENTS).ok_or_else(|| {
            let found = format!("factors of rank {} for {} modules", self.rank, modules.len());
            Error::limit(found, format!("{} numbers", limits::UNILORA_ELEMENTS)).at_key("r")
        })?;
        let places = places(total, theta.len(), self.seed)?;
        let mut counts = vec![0u32; theta.len()];
        places.iter().for_each(|&i| counts[i as usize] += 1);
        let mut rest = places.as_slice();
        let mut out = Vec::with_capacity(modules.len());
        for (path, weight) in modules {
            let (rows, cols) = weight.shape.matrix();
            let (outputs, inputs) = if self.transposed { (cols, rows) } else { (rows, cols) };
            let mut factor = |rows: usize, cols: usize| {
                let (here, after) = rest.split_at(rows * cols);
                rest = after;
                let values: Vec<f32> = here
                    .iter()
                    .map(|&i| theta[i as usize] * rounded(weight.dtype, 1.0 / (counts[i as usize] as f32).sqrt()))
                    .collect();
                Tensor::from_f32(Dtype::F32, vec![rows, cols], &values)
            };
            let (a, b) = (factor(self.rank, inputs)?, factor(outputs, self.rank)?);
            out.push(((*path).clone(), LowRank { a, b, scale: Scale::direct(1.0), experts: None, name: "UniLoRA" }));
        }
        Ok(out)
    }
}

/// The entry of the vector that each of `total` places holds.
fn places(total: usize, entries: usize, seed: u64) -> Result<Vec<u32>> {
    if entries == 0 {
        return Err(Error::malformed("the trained vector has no entries"));
    }
    let mut rng = NumpyRng::new(seed);
    let each = total / entries;
    let mut out: Vec<u32> = (0..entries as u32).flat_map(|i| std::iter::repeat_n(i, each)).collect();
    if !total.is_multiple_of(entries) {
        out.extend(rng.choice(entries, total % entries)?);
    }
    rng.shuffle(&mut out)?;
    Ok(out)
}

/// PEFT keeps the scales in the type of the base.
fn rounded(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::BF16 => half::bf16::from_f32(value).to_f32(),
        Dtype::F16 => half::f16::from_f32(value).to_f32(),
        _ => value,
    }
}

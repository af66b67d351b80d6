//! An adapter of any kind as plain LoRA for the base it is merged into: what `normalise` cannot do without the weights.
//!
//! Three steps. [`fit`] finds in the base all that only it can tell, and whatever is exactly a product of two factors
//! beside a weight becomes those factors. [`flatten`] takes the rest: the change `W' - W` of each weight is formed in
//! f32 some rows at a time (`change`), decomposed, and its best approximation of the rank that a rule gives takes its place
//! (`assemble`), with the error stated. A bias that changes with what it was, and a weight that is no matrix, become
//! whole tensors (`whole`). What is left has scales that `normalise` folds.
//!
//! The change is what `merge` adds before it rounds: the same actions on the same tensors in memory.

mod assemble;
mod change;
mod exact;
mod place;
mod whole;

use crate::adapter::{Adapter, Note};
use crate::error::{Context, Error, Kind, Result};
use crate::kernels::Kernels;
use crate::linalg::rank::Rule;
use crate::model::BaseModel;
use crate::ops::approximate::{Balance, ModuleReport};
use crate::ops::factorise;
use crate::ops::normalise::{is_bias_plain, is_weight_plain};
use crate::stream::{Limits, Progress};
use crate::tensor::{Dtype, Tensor};

use change::Changes;
use place::{Form, Places};

pub use exact::{fit, restored};

/// How changes are approximated.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Ranks, and how they are found.
    pub ranks: factorise::Options,
    /// On which factor the singular values go.
    pub balance: Balance,
    /// Type of the factors; f32 where there is none.
    pub dtype: Option<Dtype>,
}

/// An adapter all of whose changes are factors or whole tensors.
#[derive(Clone, Debug)]
pub struct Flattened {
    /// The adapter.
    pub adapter: Adapter,
    /// Every change that was approximated, in order of the paths.
    pub modules: Vec<ModuleReport>,
    /// Remarks.
    pub notes: Vec<Note>,
}

/// Whether nothing in the adapter has to be approximated.
pub fn is_plain(adapter: &Adapter) -> bool {
    adapter.targets.values().all(|target| is_weight_plain(target) && is_bias_plain(target))
}

/// Bytes of the base that are read at least once, for a progress bar.
pub fn bytes(adapter: &Adapter, base: &BaseModel) -> u64 {
    let places = Places::new(base, adapter);
    let found = adapter.targets.iter().filter(|(_, target)| !is_weight_plain(target));
    found.filter_map(|(path, target)| places.weight(path, target).ok()).map(|place| place.bytes(base)).sum()
}

/// Approximates what is not plain in an adapter that has been through [`fit`].
pub fn flatten(
    adapter: &Adapter,
    base: &BaseModel,
    options: &Options,
    kernels: &dyn Kernels,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<Flattened> {
    let places = Places::new(base, adapter);
    let (mut units, mut replaced, mut notes) = (Vec::new(), adapter.clone(), Vec::new());
    for (path, target) in &adapter.targets {
        if !is_weight_plain(target) {
            let place = places.weight(path, target).at_key(path.as_str())?;
            if place.form == Form::Whole {
                let weight = whole::weight(base, target, &place, kernels).at_key(path.as_str())?;
                notes.push(Note::info(path.as_str(), format!("{} becomes a whole tensor", target.kind())));
                if let Some(target) = replaced.targets.get_mut(path) {
                    (target.weight, target.magnitude) = (vec![weight], None);
                }
            } else {
                units.push(change::Unit::new(path, target, place).at_key(path.as_str())?);
            }
        }
        if !is_bias_plain(target) {
            let bias = whole::bias(base, path, target, kernels).at_key(path.as_str())?;
            if let Some(target) = replaced.targets.get_mut(path) {
                target.bias = bias.into_iter().collect();
            }
        }
    }
    let ranks = factorise::Options { rule: within(options, &replaced)?, ..options.ranks };
    let changes = Changes { base, kernels, units: &units };
    let factorised = factorise::factorise(&changes, &ranks, kernels, limits, progress)?;
    assemble::assemble(replaced, options, &units, factorised, notes)
}

/// A budget without what the adapter keeps of its own.
fn within(options: &Options, adapter: &Adapter) -> Result<Rule> {
    let size = |t: &Tensor| options.dtype.unwrap_or(t.dtype).bitsize() as u64 / 8;
    let plain = adapter.targets.values().filter(|target| is_weight_plain(target)).flat_map(|t| t.tensors());
    let biases = adapter
        .targets
        .values()
        .filter(|target| !is_weight_plain(target))
        .flat_map(|t| t.bias.iter().flat_map(crate::adapter::Delta::tensors).collect::<Vec<_>>());
    let kept: Vec<_> = plain.chain(biases).map(|(_, t)| t).collect();
    let (all, kept, unit) = match options.ranks.rule {
        Rule::Params(all) => (all, kept.iter().map(|t| t.elements() as u64).sum::<u64>(), 1),
        Rule::Size(all) => {
            let element = options.dtype.unwrap_or(Dtype::F32).bitsize() / 8;
            (all, kept.iter().map(|t| t.elements() as u64 * size(t)).sum(), element)
        }
        other => return Ok(other),
    };
    let left = all.checked_sub(kept).filter(|&left| left > 0).ok_or_else(|| {
        let what = format!("what is plain LoRA already and what is kept whole take {kept}, and the budget is {all}");
        Error::new(Kind::Limit, what)
    })?;
    Ok(Rule::Size(left).in_params(unit))
}

//! An adapter from a base and a model tuned from it: the best low-rank approximation of every difference.
//!
//! Differences are formed in f32 some rows at a time (`view`), so neither model is ever in memory as a whole. What cannot be
//! low rank, norms and biases and new rows of a vocabulary, is kept as it is; what is equal is left out.
//!
//! `survey` finds what differs, `site` what kind of place each tensor has, `differences` are what is factorised, `assemble`
//! makes the adapter.

mod assemble;
mod differences;
pub mod site;
pub mod survey;
pub mod view;

use std::collections::BTreeMap;

use crate::adapter::{Adapter, Note, SiteKind};
use crate::error::{Context, Error, Kind, Result};
use crate::kernels::Kernels;
use crate::linalg::rank::{Bounds, Rule};
use crate::model::BaseModel;
use crate::names::Found;
use crate::ops::approximate::{Balance, ModuleReport};
use crate::ops::factorise;
use crate::stream::{Limits, Progress};
use crate::tensor::{Dtype, Shape, dtype};

use differences::Differences;
use site::Sort;
use survey::{Changed, Selection};

/// How an adapter is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which tensors.
    pub selection: Selection,
    /// Which ranks.
    pub rule: Rule,
    /// Which ranks for convolutions with a kernel above one element; as the others where there is none.
    pub kernel_rule: Option<Rule>,
    /// Limits of all ranks.
    pub bounds: Bounds,
    /// By what share an error may exceed that of the best approximation.
    pub tolerance: f64,
    /// Full decompositions.
    pub exact: bool,
    /// Seed of the random starts.
    pub seed: u64,
    /// On which factor the singular values go.
    pub balance: Balance,
    /// Type of the factors; that of the tuned tensor where there is none.
    pub dtype: Option<Dtype>,
    /// In a budget, energies count relative to those of the base's weights.
    pub weighted: bool,
    /// What cannot be low rank is left out.
    pub low_rank_only: bool,
    /// What the adapter says about itself.
    pub about: BTreeMap<String, String>,
}

impl Options {
    fn ranks(&self) -> factorise::Options {
        let Options { rule, kernel_rule, bounds, tolerance, exact, seed, .. } = *self;
        factorise::Options { rule, kernel_rule, bounds, tolerance, exact, seed }
    }
}

/// A tensor that is kept as it is.
#[derive(Clone, Debug)]
pub struct Whole {
    /// Its name in the model in memory.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// Its bytes.
    pub bytes: u64,
    /// Rows kept, where it is not all of them.
    pub rows: Option<usize>,
}

/// The adapter and how it was come by.
#[derive(Debug)]
pub struct Extraction {
    /// The adapter.
    pub adapter: Adapter,
    /// Every module with factors.
    pub modules: Vec<ModuleReport>,
    /// Every tensor that is kept as it is.
    pub whole: Vec<Whole>,
    /// Tensors that are equal in both models.
    pub equal: usize,
    /// Tensors that differ and were not asked for.
    pub not_asked: usize,
    /// Remarks.
    pub notes: Vec<Note>,
}

/// The two models.
#[derive(Clone, Copy)]
pub struct Models<'a> {
    /// The model before.
    pub base: &'a BaseModel,
    /// The model after.
    pub tuned: &'a BaseModel,
}

/// A tensor whose change becomes factors.
struct Unit {
    changed: Changed,
    /// Which way round its delta is.
    site: SiteKind,
    /// How many matrices it is a stack of.
    experts: Option<usize>,
    /// A convolution with a kernel above one element.
    is_kernel: bool,
}

impl Unit {
    /// Numbers of its matrices: of the experts, or none for a matrix by itself.
    fn members(&self) -> Vec<Option<usize>> {
        self.experts.map_or_else(|| vec![None], |count| (0..count).map(Some).collect())
    }
}

/// What a rule without a number is reckoned as.
const USUAL_RANK: usize = 64;

/// Bytes that are read at least once, for a progress bar.
pub fn bytes(models: Models) -> u64 {
    2 * models.tuned.files.tensors().map(|(_, _, t)| t.bytes.len() as u64).sum::<u64>()
}

/// Multiplications of the decompositions, roughly and at most: as if every matrix had changed.
pub fn multiplications(models: Models, options: &Options) -> u64 {
    let elements = models.tuned.files.tensors().filter(|(_, _, t)| t.shape.rank() > 1).map(|(_, _, t)| t.elements());
    let rank = match options.rule {
        Rule::Fixed(rank) => rank,
        _ => options.bounds.max.unwrap_or(USUAL_RANK),
    };
    // Each vector meets the matrix and its transpose, and there are about three for every rank.
    elements.fold(0u64, |sum, n| sum.saturating_add((n as u64).saturating_mul(6 * rank.clamp(16, 1024) as u64)))
}

/// Makes the adapter.
pub fn extract(
    models: Models,
    options: &Options,
    kernels: &dyn Kernels,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<Extraction> {
    let few = |rows: usize, width: usize| few_rows(options, rows, width);
    let found = survey::survey((models.base, models.tuned), &options.selection, &few, limits.threads, progress)?;
    let mut notes = found.notes;
    let tied = tied_input(models.base);
    let (mut units, mut whole) = (Vec::new(), Vec::new());
    for changed in found.changed {
        match unit(changed, tied.as_deref()) {
            Ok(unit) => {
                require_numbers(models, &unit.changed).at_key(&unit.changed.name)?;
                units.push(unit);
            }
            Err(changed) => whole.push(*changed),
        }
    }
    if options.low_rank_only {
        let left = whole.drain(..).map(|c| Note::lossy(c.name, "differs and cannot be low rank; left out"));
        notes.extend(left);
    }
    let options = &within_size(models, options, &whole)?;
    let differences = Differences { models, units: &units, weighted: options.weighted };
    let factorised = factorise::factorise(&differences, &options.ranks(), kernels, limits, progress)?;
    assemble::assemble(models, options, (units, factorised), whole, (notes, limits.threads)).map(|out| Extraction {
        equal: found.equal + out.equal,
        not_asked: found.not_asked,
        ..out
    })
}

/// A budget in bytes as one in numbers: what is kept whole is part of it.
fn within_size(models: Models, options: &Options, whole: &[Changed]) -> Result<Options> {
    let mut out = options.clone();
    let Rule::Size(all) = options.rule else { return Ok(out) };
    let own = models.tuned.files.tensors().map(|(_, _, t)| t.dtype.bitsize() / 8).max().unwrap_or(4);
    let element = options.dtype.map_or(own, |d| d.bitsize() / 8);
    let kept = |c: &Changed| {
        let bytes = survey::bytes(models.tuned, &c.after);
        let rows = c.after.memory_shape.first().map_or(1, |&n| n.max(1) as u64);
        c.rows.as_ref().map_or(bytes, |ids| bytes / rows * ids.len() as u64)
    };
    let kept: u64 = whole.iter().map(kept).sum();
    let left = all.checked_sub(kept).filter(|&left| left > 0).ok_or_else(|| {
        let what = format!("what is kept whole takes {kept} bytes, and the budget is {all}");
        Error::new(Kind::Limit, what)
            .hint("--exclude leaves tensors out by name, --low-rank-only all that are kept whole")
    })?;
    out.rule = Rule::Size(left).in_params(element);
    Ok(out)
}

/// How many rows of an embedding are fewer numbers than factors for all of it.
fn few_rows(options: &Options, rows: usize, width: usize) -> usize {
    const USUAL_RANK: usize = 16;
    let rank = if let Rule::Fixed(rank) = options.rule { rank } else { USUAL_RANK };
    rank.saturating_mul(rows + width).checked_div(width).unwrap_or(0).min(rows / 2)
}

/// An error where a weight is stored in a way of which the values alone are not the numbers.
fn require_numbers(models: Models, changed: &Changed) -> Result<()> {
    let sides = [(models.base, changed.before.as_ref()), (models.tuned, Some(&changed.after))];
    for (model, found) in sides.into_iter().filter_map(|(model, found)| Some((model, found?))) {
        for piece in &found.pieces {
            model.scaled().of(&piece.key).in_file(&model.path)?;
            let Some(stored) = model.tensor(&piece.key).map(|(_, t)| t.dtype) else { continue };
            if !dtype::is_float(stored) {
                let scheme = model.format_of(&piece.key).or_else(|| model.quantisation().map(str::to_string));
                let scheme = scheme.map_or_else(String::new, |s| format!(" ({s})"));
                let what =
                    format!("the weight is quantised{scheme}: a difference of {stored} is no difference of weights");
                return Err(Error::unsupported(what)
                    .in_file(&model.path)
                    .hint("take the 16-bit model it was made from"));
            }
        }
    }
    Ok(())
}

/// The key of an input embedding that has other uses. PEFT merges factors on it once for each use, so it is kept whole.
fn tied_input(base: &BaseModel) -> Option<String> {
    let embeddings = base.embeddings();
    embeddings.input.filter(|_| embeddings.tied && embeddings.uses.iter().any(|u| !u.around))
}

/// A change that can be factors; others come back as they are.
fn unit(changed: Changed, tied: Option<&str>) -> std::result::Result<Unit, Box<Changed>> {
    let shape = &changed.after.memory_shape;
    let same = changed.before.as_ref().is_some_and(|b| b.memory_shape == *shape);
    let is_tied = tied.is_some() && changed.before.as_ref().and_then(Found::plain) == tied;
    if !same || is_tied || changed.rows.is_some() {
        return Err(Box::new(changed));
    }
    let (site, experts, is_kernel) = match changed.place.sort {
        Sort::Matrix(site) => (site, None, false),
        Sort::Kernel => (SiteKind::Layer, None, shape.iter().skip(2).any(|&k| k > 1)),
        Sort::Stack => (SiteKind::Parameter, shape.first().copied(), false),
        Sort::Weight | Sort::Bias | Sort::Loose | Sort::Buffer | Sort::Unknown => return Err(Box::new(changed)),
    };
    Ok(Unit { changed, site, experts, is_kernel })
}

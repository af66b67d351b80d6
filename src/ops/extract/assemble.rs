//! The adapter, from factors and from what is kept as it is.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::site::Sort;
use super::survey::{self, Changed};
use super::view::View;
use super::{Extraction, Models, Options, Unit, Whole};
use crate::adapter::delta::low_rank::Facing;
use crate::adapter::delta::{Delta, Experts, Full, LowRank, Packing, TokenRows, full::Mode};
use crate::adapter::{Adapter, Note, Scale, ScaleRule, SiteKind, Target};
use crate::error::{Context, Error, Result};
use crate::kernels::Truncated;
use crate::model::scaled::is_eight;
use crate::model::{BaseModel, conv1d};
use crate::names::{Found, ModulePath};
use crate::ops::approximate::{self, ModuleReport};
use crate::ops::factorise::Factorised;
use crate::stream::{Unwatched, each};
use crate::tensor::{Dtype, Shape, Tensor, cast, dtype};

/// Puts everything together.
pub fn assemble(
    models: Models,
    options: &Options,
    (units, factorised): (Vec<Unit>, Vec<Factorised>),
    whole: Vec<Changed>,
    (notes, threads): (Vec<Note>, usize),
) -> Result<Extraction> {
    let about = options.about.clone();
    let adapter = Adapter { declared: "LORA".to_string(), about, ..Adapter::default() };
    let mut out = Builder { models, adapter, modules: Vec::new(), whole: Vec::new(), equal: 0, notes };
    let ranks: BTreeMap<&str, usize> =
        units.iter().zip(&factorised).map(|(u, f)| (u.changed.place.path.as_str(), f.rank)).collect();
    let made = each(units.len(), threads, &Unwatched, |i| {
        let unit = &units[i];
        let shared = attention(unit.changed.place.path.as_str(), &ranks);
        made(models, options, unit, &factorised[i], shared).at_key(&unit.changed.name)
    })?;
    for (unit, made) in units.iter().zip(made) {
        out.low_rank(unit, made);
    }
    for changed in whole {
        out.keep(&changed).at_key(&changed.name)?;
    }
    out.tie()?;
    out.complete()?;
    Ok(Extraction {
        adapter: out.adapter,
        modules: out.modules,
        whole: out.whole,
        equal: out.equal,
        not_asked: 0,
        notes: out.notes,
    })
}

/// What becomes of a unit.
enum Made {
    /// Other bytes and the same values: zeros of another sign, another type.
    Equal,
    /// The rule leaves nothing of it.
    Nothing(Box<ModuleReport>),
    /// Its factors.
    Factors(Box<LowRank>, Box<ModuleReport>),
}

fn made(models: Models, options: &Options, unit: &Unit, found: &Factorised, shared: Option<Shared>) -> Result<Made> {
    let changed = &unit.changed;
    if found.members.iter().all(|t| t.energy <= 0.0) {
        return Ok(Made::Equal);
    }
    let path = &changed.place.path;
    let rank = shared.map_or(found.rank, |s| s.rank);
    if rank == 0 {
        let parts: Vec<_> = found.members.iter().map(|t| (t, 0.0)).collect();
        return Ok(Made::Nothing(Box::new(ModuleReport::new(path, 0, &parts))));
    }
    let members: Vec<Cow<Truncated>> = found.members.iter().map(|t| upright(models, unit, t)).collect();
    let times = shared.map_or(1, |s| s.times);
    let scale = Scale { alpha: (times * rank) as f64, rule: ScaleRule::AlphaOverRank };
    let dtype = dtype_of(models, options, &changed.after)?;
    let (mut pairs, mut roundings) = (Vec::new(), Vec::new());
    for t in &members {
        let (a, b) = approximate::factors(t, rank, options.balance, scale, dtype)?;
        roundings.push(approximate::rounding(t, options.balance, scale, (&a, &b))?);
        pairs.push((a, b));
    }
    let parts: Vec<_> = members.iter().map(|t| &**t).zip(roundings).collect();
    let report = Box::new(ModuleReport::new(path, rank, &parts));
    let (pair, experts) = match unit.experts {
        Some(count) => {
            let experts = Experts { count, packing: Packing::RankMajor, facing: Facing::Input };
            (approximate::packed(&pairs, experts.packing)?, Some(experts))
        }
        None => {
            let pair = pairs.pop().ok_or_else(|| Error::missing("no factors"))?;
            // What is turned is a matrix; only a convolution has more axes.
            let shape = Shape::new(changed.after.memory_shape.clone());
            (if shape.rank() > 2 { approximate::shaped(pair, &shape)? } else { pair }, None)
        }
    };
    Ok(Made::Factors(Box::new(LowRank { a: pair.0, b: pair.1, scale, experts, name: "LoRA" }), report))
}

/// The decomposition of the change `[out, in]`, whichever way round the tensor lies.
fn upright<'t>(models: Models, unit: &Unit, t: &'t Truncated) -> Cow<'t, Truncated> {
    let turned = match unit.site {
        SiteKind::Layer => false,
        SiteKind::FanInFanOut | SiteKind::Embedding => true,
        SiteKind::Parameter => unit.experts.is_some() && conv1d::experts_in_out(models.base),
    };
    if turned { Cow::Owned(approximate::transposed(t)) } else { Cow::Borrowed(t) }
}

/// Type of the factors of a tensor: the one asked for, or the tensor's own where that can hold them.
fn dtype_of(models: Models, options: &Options, found: &Found) -> Result<Dtype> {
    if let Some(dtype) = options.dtype {
        return Ok(dtype);
    }
    let own = found.pieces.first().and_then(|p| models.tuned.tensor(&p.key)).map(|(_, t)| t.dtype);
    Ok(own.filter(|&d| dtype::is_plain_float(d)).unwrap_or(Dtype::F32))
}

struct Builder<'a> {
    models: Models<'a>,
    adapter: Adapter,
    modules: Vec<ModuleReport>,
    whole: Vec<Whole>,
    equal: usize,
    notes: Vec<Note>,
}

impl Builder<'_> {
    fn target(&mut self, path: &ModulePath) -> &mut Target {
        self.adapter.targets.entry(path.clone()).or_default()
    }

    /// Takes up what was made of a unit.
    fn low_rank(&mut self, unit: &Unit, made: Made) {
        match made {
            Made::Equal => self.equal += 1,
            Made::Nothing(report) => {
                let name = &unit.changed.name;
                self.notes.push(Note::lossy(name, "differs, and the rule leaves nothing of it; left out"));
                self.modules.push(*report);
            }
            Made::Factors(delta, report) => {
                self.modules.push(*report);
                let target = self.target(&unit.changed.place.path);
                target.weight.push(Delta::LowRank(*delta));
                target.site = unit.site;
            }
        }
    }

    /// A tensor as it is in the tuned model.
    fn keep(&mut self, changed: &Changed) -> Result<()> {
        let tuned = self.models.tuned;
        let shape = Shape::new(changed.after.memory_shape.clone());
        let size = survey::bytes(tuned, &changed.after);
        if changed.place.sort == Sort::Unknown {
            let what = "differs, and its place in the model in memory is not known here; left out";
            self.notes.push(Note::lossy(&changed.name, what));
            return Ok(());
        }
        let tensor = whole_tensor(tuned, &changed.after)?;
        let (delta, rows) = match &changed.rows {
            Some(ids) => (token_rows(&tensor, ids)?, Some(ids.len())),
            None => (Delta::Full(Full { tensor, mode: Mode::Replace }), None),
        };
        let rows_bytes = |n: usize| size / shape.dims().first().map_or(1, |&rows| rows.max(1) as u64) * n as u64;
        let bytes = rows.map_or(size, rows_bytes);
        let target = self.target(&changed.place.path);
        match changed.place.sort {
            Sort::Bias => target.bias.push(delta),
            sort => {
                target.weight.push(delta);
                target.site =
                    if matches!(sort, Sort::Loose | Sort::Buffer | Sort::Stack | Sort::Matrix(SiteKind::Parameter)) {
                        SiteKind::Parameter
                    } else {
                        target.site
                    };
            }
        }
        self.whole.push(Whole { name: changed.name.clone(), shape, bytes, rows });
        Ok(())
    }

    /// A model whose embeddings are tied has the new values at every use.
    fn tie(&mut self) -> Result<()> {
        let Some(input) = super::tied_input(self.models.base) else { return Ok(()) };
        let uses = self.models.base.embeddings().uses;
        let is_input = |path: &ModulePath| {
            self.models.base.names.find(&path.tensor("weight")).is_some_and(|f| f.plain() == Some(&input))
        };
        let replaced = |t: &Target| matches!(t.weight.first(), Some(Delta::Full(_)));
        let found = self.adapter.targets.iter().find(|(path, target)| replaced(target) && is_input(path));
        let Some((path, target)) = found.map(|(path, target)| (path.clone(), target.clone())) else {
            return Ok(());
        };
        if uses.iter().any(|u| self.adapter.targets.contains_key(u.path.as_str())) {
            return Ok(()); // one of them has values of its own
        }
        for tied in uses.iter().filter(|u| !u.around) {
            // A bias that is tied as well goes with its module, whatever the file calls it.
            let bias = tied.bias.as_ref().and_then(|(_, key)| self.models.tuned.tensor(key)).map(|(_, t)| t.clone());
            // In a model inside another one, the output lies where the input does.
            let outer = path.as_str().starts_with("language_model.") && tied.path == "lm_head";
            let use_path = if outer { format!("language_model.{}", tied.path) } else { tied.path.clone() };
            let own = self.target(&ModulePath::from(use_path.as_str()));
            own.weight.clone_from(&target.weight);
            own.bias.extend(bias.map(|tensor| Delta::Full(Full { tensor, mode: Mode::Replace })));
        }
        self.adapter.ties_embeddings = true;
        self.notes.push(Note::info(path.as_str(), "the embedding of a model that ties its embeddings; kept whole"));
        Ok(())
    }

    /// A module whose weight is kept whole is kept with all it has: PEFT loads it as one.
    fn complete(&mut self) -> Result<()> {
        let replaced = |t: &Target| matches!(t.weight.first(), Some(Delta::Full(_))) && t.site != SiteKind::Parameter;
        let modules: BTreeSet<ModulePath> =
            self.adapter.targets.iter().filter(|(_, t)| replaced(t)).map(|(path, _)| path.clone()).collect();
        for (name, found) in self.models.tuned.names.memory().tensors {
            let Some((module, leaf)) = name.rsplit_once('.') else { continue };
            if leaf == "weight" || !modules.contains(module) {
                continue;
            }
            let tensor = whole_tensor(self.models.tuned, &found).at_key(&name)?;
            let delta = Delta::Full(Full { tensor, mode: Mode::Replace });
            if leaf == "bias" {
                let target = self.target(&ModulePath::from(module));
                if target.bias.is_empty() {
                    target.bias.push(delta);
                }
            } else {
                let target = self.target(&ModulePath::from(name.as_str()));
                target.site = SiteKind::Parameter;
                target.weight = vec![delta];
            }
        }
        Ok(())
    }
}

/// What the output projection of an attention module has in common with the input projection.
#[derive(Clone, Copy)]
struct Shared {
    rank: usize,
    times: usize,
}

/// PEFT adapts `nn.MultiheadAttention` as one module: one rank for its two projections, and the change of the second is
/// added twice (huggingface/peft:src/peft/tuners/lora/layer.py, `MultiheadAttention`).
fn attention(path: &str, ranks: &BTreeMap<&str, usize>) -> Option<Shared> {
    let (parent, times) = match path.strip_suffix(".out_proj") {
        Some(parent) if ranks.contains_key(parent) => (parent, 2),
        _ => (path, 1),
    };
    let output = format!("{parent}.out_proj");
    let rank = *ranks.get(parent)?.max(ranks.get(output.as_str())?);
    Some(Shared { rank, times })
}

/// The tensor in memory, put together from its parts where it lies in several.
fn whole_tensor(model: &BaseModel, found: &Found) -> Result<Tensor> {
    let own = found.pieces.first().and_then(|p| model.tensor(&p.key)).map(|(_, t)| t.dtype);
    // Whatever it lies in, an adapter has no scales; and of 8 bits all numbers are numbers of bf16.
    let eight = own.is_some_and(is_eight);
    if let Some((_, tensor)) = found.plain().and_then(|key| model.tensor(key)).filter(|_| !eight) {
        return Ok(tensor.clone());
    }
    let stack = (found.memory_shape.len() == 3).then(|| found.memory_shape.first().copied().unwrap_or(0));
    let numbers: Vec<_> = stack.map_or_else(|| vec![None], |count| (0..count).map(Some).collect());
    let mut values = Vec::new();
    for number in numbers {
        let view = View::new(model, found, number)?;
        let (rows, cols) = view.dim();
        let mut part = vec![0f64; rows * cols];
        view.read_f64(0..rows, &mut part)?;
        values.extend(part);
    }
    let scaled = found.pieces.iter().any(|p| model.scaled().of(&p.key).is_ok_and(|scales| scales.is_some()));
    let narrow = if eight && !scaled { Dtype::BF16 } else { Dtype::F32 };
    let dtype = own.filter(|&d| dtype::is_plain_float(d)).unwrap_or(narrow);
    let mut bytes = vec![0; dtype::byte_len(dtype, values.len())?];
    cast::narrow_f64(dtype, &values, &mut bytes)?;
    Tensor::new(dtype, Shape::new(found.memory_shape.clone()), bytes.into())
}

fn token_rows(tensor: &Tensor, ids: &[usize]) -> Result<Delta> {
    let (_, width) = tensor.shape.matrix();
    let size = width * tensor.dtype.bitsize() / 8;
    let bytes: Vec<u8> =
        ids.iter().flat_map(|id| &tensor.bytes.as_slice()[id * size..(id + 1) * size]).copied().collect();
    let rows = Tensor::new(tensor.dtype, Shape::new(vec![ids.len(), width]), bytes.into())?;
    Ok(Delta::TokenRows(TokenRows { ids: ids.to_vec(), rows }))
}

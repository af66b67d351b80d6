//! What the base tells without any approximation: targets that the file does not list, shared projections, and products
//! that are known beside a weight. PiSSA and OLoRA take a product out of the weight before they add theirs: both
//! together are one of twice the rank, which is how PEFT converts them
//! (huggingface/peft, `src/peft/tuners/lora/model.py`, `subtract_mutated_init`).

use std::collections::BTreeMap;

use ndarray::{Array2, Axis, concatenate};

use super::change::read;
use super::place::{Place, Places};
use crate::adapter::delta::residual::Method;
use crate::adapter::delta::{Action, Delta, Factors, LowRank, Miss, Residual, Site, miss};
use crate::adapter::{Adapter, Note, Scale, ScaleRule, Target};
use crate::error::{Context, Error, Result};
use crate::kernels::Kernels;
use crate::model::BaseModel;
use crate::names::ModulePath;
use crate::ops::approximate::shaped;
use crate::ops::extract::view::View;
use crate::stream::{Budget, Limits, Progress, each};
use crate::tensor::{Dtype, Shape, Tensor};

/// The adapter as it is beside its base, all changes that are exactly low rank as factors, with remarks.
pub fn fit(
    adapter: &Adapter,
    base: &BaseModel,
    kernels: &dyn Kernels,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<(Adapter, Vec<Note>)> {
    let chosen = |target: &Target| is_restored(target) || is_product(target);
    made(adapter, base, &chosen, (kernels, limits, progress))
}

/// The same with only those changes as new factors that hold a part of the base.
pub fn restored(
    adapter: &Adapter,
    base: &BaseModel,
    kernels: &dyn Kernels,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<(Adapter, Vec<Note>)> {
    made(adapter, base, &is_restored, (kernels, limits, progress))
}

fn made(
    adapter: &Adapter,
    base: &BaseModel,
    chosen: &dyn Fn(&Target) -> bool,
    (kernels, limits, progress): (&dyn Kernels, Limits, &dyn Progress),
) -> Result<(Adapter, Vec<Note>)> {
    let mut out = adapter.clone();
    out.restore_base().map_err(|e| e.at_key("init_lora_weights"))?;
    let mut notes = out.place(&base.weights())?;
    out.complete(&|path: &ModulePath| base.names.find(&path.tensor("weight")).map(|f| f.memory_shape))?;
    let places = Places::new(base, &out);
    let exact: Vec<_> = out.targets.iter().filter(|(_, target)| chosen(target)).collect();
    let budget = Budget::new(limits.memory);
    let done = each(exact.len(), limits.threads, progress, |i| {
        let (path, target) = exact[i];
        product(base, target, &places.weight(path, target)?, kernels, &budget).at_key(path.as_str())
    })?;
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let made: Vec<_> = exact.into_iter().map(|(path, target)| (path.clone(), first_kind(target))).zip(done).collect();
    for ((path, kind), delta) in made {
        *kinds.entry(kind).or_default() += 1;
        if let Some(target) = out.targets.get_mut(&path) {
            target.weight = vec![Delta::LowRank(delta)];
        }
    }
    let note = |(kind, n)| Note::info("", format!("{n} changes stored as {kind} become LoRA"));
    notes.extend(kinds.into_iter().map(note));
    Ok((out, notes))
}

fn first_kind(target: &Target) -> &'static str {
    match target.weight.first() {
        Some(Delta::Residual(Residual { method: Method::Olora, .. })) => "OLoRA",
        Some(Delta::Residual(Residual { method: Method::Pissa, .. })) => "PiSSA",
        Some(delta) => delta.kind(),
        None => "none",
    }
}

/// Whether the change is that of PiSSA or OLoRA, and nothing else.
fn is_restored(target: &Target) -> bool {
    target.magnitude.is_none() && matches!(target.weight.as_slice(), [Delta::Residual(_), Delta::LowRank(_)])
}

/// Whether the change is exactly a product of two factors, and only the shape of the weight tells which.
fn is_product(target: &Target) -> bool {
    target.magnitude.is_none()
        && match target.weight.as_slice() {
            [Delta::Qalora(_)] => true,
            [Delta::Miss(Miss { mode, .. })] => *mode != miss::Mode::Bat,
            _ => false,
        }
}

fn product(
    base: &BaseModel,
    target: &Target,
    place: &Place,
    kernels: &dyn Kernels,
    budget: &Budget,
) -> Result<LowRank> {
    let turned = |dims: &[usize]| Shape::new(dims.iter().rev().copied().collect::<Vec<_>>());
    let shape = if place.transposed { turned(place.stored.dims()) } else { place.stored.clone() };
    match target.weight.as_slice() {
        [Delta::Residual(residual), Delta::LowRank(d)] => {
            Site { shape: &shape, companion: None }.expect(d.b.shape.matrix().0, d.a.shape.matrix().1)?;
            let (rows, cols) = shape.matrix();
            let _room = budget.admit(8 * (rows as u64) * (cols as u64) + residual_footprint(residual, &shape)?);
            let view = View::new(base, &place.found, None)?;
            let stored = read(&view, 0..view.dim().0)?;
            view.release();
            let weight = if place.transposed { stored.t().as_standard_layout().into_owned() } else { stored };
            let out = residual.factors(kernels, weight.view())?;
            sum(&Factors { scale: -out.scale, ..out }, &d.factors()?)
        }
        [delta] => match delta.prepare(&Site { shape: &shape, companion: None })? {
            Action::LowRank(factors) => low_rank(scaled(&factors), factors.a, &shape),
            _ => Err(Error::unsupported(format!("{} as a product", delta.kind()))),
        },
        _ => Err(Error::unsupported("several changes as one product")),
    }
}

fn residual_footprint(residual: &Residual, shape: &Shape) -> Result<u64> {
    let (rows, cols) = shape.matrix();
    let Action::Act(act) = residual.prepare(&Site { shape, companion: None })? else { return Ok(0) };
    Ok(act.footprint(rows, cols))
}

/// Two products as one.
fn sum(one: &Factors, two: &Factors) -> Result<LowRank> {
    let wrong = |e: ndarray::ShapeError| Error::mismatch(format!("factors of two products: {e}"));
    let a = concatenate(Axis(0), &[one.a.view(), two.a.view()]).map_err(wrong)?;
    let b = concatenate(Axis(1), &[scaled(one).view(), scaled(two).view()]).map_err(wrong)?;
    let shape = Shape::new([b.nrows(), a.ncols()]);
    low_rank(b, a, &shape)
}

/// B times the scale, rounded once.
fn scaled(f: &Factors) -> Array2<f32> {
    f.b.mapv(|v| (f64::from(v) * f.scale) as f32)
}

/// Factors of scale 1 for a weight of this shape.
fn low_rank(b: Array2<f32>, a: Array2<f32>, shape: &Shape) -> Result<LowRank> {
    let rank = a.nrows();
    let tensor =
        |m: Array2<f32>| Tensor::from_f32(Dtype::F32, [m.nrows(), m.ncols()], &m.iter().copied().collect::<Vec<_>>());
    let (a, b) = shaped((tensor(a)?, tensor(b)?), shape)?;
    let scale = Scale { alpha: rank as f64, rule: ScaleRule::AlphaOverRank };
    Ok(LowRank { a, b, scale, experts: None, name: "LoRA" })
}

//! Every change as plain LoRA of scale 1: alpha is the rank, rank-stabilised scaling is off, and a consumer that knows
//! nothing but A and B applies the change that was meant.
//!
//! The invariant is the change itself, `s · B · A = 1 · (s · B) · A`: the scale goes into B, element by element, in f64
//! and rounded once. A is never touched. Where the products fit B's type exactly, as they do for a scale that is a power
//! of two, the type stays; else a 16-bit B becomes f32. A magnitude (DoRA) stands behind a norm that only the base's
//! weight tells, and no factors hold that (`flatten` approximates it); whole tensors and rows of tokens have no scale and stay.

use std::collections::BTreeMap;

use super::approximate::shaped;
use super::cast::{Rounded, narrowed};
use super::resize::Shapes;
use crate::adapter::delta::{Full, LowRank, Miss, full::Mode, miss};
use crate::adapter::{Adapter, Delta, Note, Scale, ScaleRule, SiteKind, Target};
use crate::error::{Context, Error, Result};
use crate::names::ModulePath;
use crate::stream::{Progress, each};
use crate::tensor::{Dtype, Shape, Tensor, cast, dtype};

/// What to do about changes that no plain LoRA holds exactly.
pub const APPROXIMATE: &str = "--normalise --base BASE --rank 16 makes it the best plain LoRA of that rank";

/// An adapter whose scales are 1.
#[derive(Clone, Debug)]
pub struct Normalised {
    /// The adapter.
    pub adapter: Adapter,
    /// Changes whose scale went into B.
    pub folded: usize,
    /// What rounding these to a type that was asked for came to.
    pub cast: Rounded,
    /// Remarks.
    pub notes: Vec<Note>,
}

/// What became of the scales of one target.
#[derive(Default)]
struct Done {
    target: Target,
    folded: usize,
    cast: Rounded,
    /// Scales that B holds after rounding only.
    rounded: usize,
    /// Tensors of 16 bits that are f32 now.
    widened: usize,
    /// Kinds that became LoRA.
    converted: Vec<&'static str>,
}

/// Makes every low-rank change a LoRA of scale 1. With the shapes of a base that includes kinds whose factors only it
/// tells; `to` is the type that B is rounded to where a scale goes into it, none for the one described above.
pub fn normalise(
    adapter: &Adapter,
    shapes: Option<Shapes>,
    to: Option<Dtype>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Normalised> {
    if let Some(method) = &adapter.residual_base {
        let what = format!("made by {method} for a changed base: its factors hold a part of the base as well");
        let hint = "--base BASE takes that part out of it (PiSSA, OLoRA)";
        return Err(Error::unsupported(what).hint(hint));
    }
    let targets: Vec<_> = adapter.targets.iter().collect();
    let done = each(targets.len(), threads, progress, |n| {
        let (path, target) = targets[n];
        let stored = shapes.and_then(|shape_of| shape_of(path)).map(|dims| upright(dims, target.site));
        of_target(target, stored.as_ref(), to).at_key(path.as_str())
    })?;
    Ok(assemble(adapter, targets.into_iter().map(|(path, _)| path).zip(done)))
}

/// Whether all that is done to the weight is plain LoRA by its own data and the shape of the weight, or stays as it is.
pub fn is_weight_plain(target: &Target) -> bool {
    let plain = |delta: &Delta| match delta {
        Delta::LowRank(_) | Delta::Derived(_) | Delta::Tucker(_) | Delta::TokenRows(_) => true,
        Delta::Full(full) => full.mode == Mode::Replace,
        _ => false,
    };
    target.magnitude.is_none() && target.weight.iter().all(plain)
}

/// The same for the bias: values that are added or take its place.
pub fn is_bias_plain(target: &Target) -> bool {
    target.bias.iter().all(|delta| matches!(delta, Delta::Full(_)))
}

/// The shape of a weight in the orientation of its changes.
fn upright(mut dims: Vec<usize>, site: SiteKind) -> Shape {
    if matches!(site, SiteKind::FanInFanOut | SiteKind::Embedding) {
        dims.reverse();
    }
    Shape::new(dims)
}

fn of_target(target: &Target, stored: Option<&Shape>, to: Option<Dtype>) -> Result<Done> {
    if target.magnitude.is_some() {
        let what = "DoRA: its magnitude stands behind a norm that depends on the weight of the base, and no plain LoRA \
                    holds that";
        return Err(Error::unsupported(what).hint(APPROXIMATE));
    }
    let mut done = Done { target: Target { site: target.site, ..Target::default() }, ..Done::default() };
    for delta in &target.weight {
        let delta = done.weight(delta, stored, to)?;
        done.target.weight.push(delta);
    }
    for delta in &target.bias {
        let delta = done.bias(delta, to)?;
        done.target.bias.push(delta);
    }
    Ok(done)
}

impl Done {
    fn weight(&mut self, delta: &Delta, stored: Option<&Shape>, to: Option<Dtype>) -> Result<Delta> {
        match delta {
            Delta::LowRank(d) => {
                if d.name != "LoRA" {
                    self.converted.push(d.name);
                }
                self.low_rank(d.a.clone(), &d.b, d, to)
            }
            Delta::Derived(d) => {
                let Some(shape) = stored else {
                    let what = format!("{}, whose factors are known only beside its base", d.kind());
                    return Err(Error::unsupported(what).hint("--base BASE names it"));
                };
                self.converted.push(d.kind());
                let f = d.factors(shape.matrix())?;
                let of = |m: &ndarray::Array2<f32>| {
                    Tensor::from_f32(Dtype::F32, [m.nrows(), m.ncols()], &m.iter().copied().collect::<Vec<_>>())
                };
                let (a, b) = shaped((of(&f.a)?, of(&f.b)?), shape)?;
                let made = LowRank { a, b, scale: Scale::direct(f.scale), experts: None, name: "LoRA" };
                self.low_rank(made.a.clone(), &made.b, &made, to)
            }
            Delta::Tucker(d) => {
                self.converted.push(delta.kind());
                let f = d.factors()?;
                let (rank, outputs) = (f.rank(), f.b.nrows());
                let values = |m: ndarray::Array2<f32>| m.iter().copied().collect::<Vec<_>>();
                let kernel = d.core.shape.dims().iter().skip(2).copied();
                let inputs = d.down.shape.dims().get(1).copied();
                let a: Vec<_> = std::iter::once(rank).chain(inputs).chain(kernel.clone()).collect();
                let b: Vec<_> = [outputs, rank].into_iter().chain(kernel.map(|_| 1)).collect();
                let (a, b) =
                    (Tensor::from_f32(Dtype::F32, a, &values(f.a))?, Tensor::from_f32(Dtype::F32, b, &values(f.b))?);
                let made = LowRank { a, b, scale: Scale::direct(f.scale), experts: None, name: "LoRA" };
                self.low_rank(made.a.clone(), &made.b, &made, to)
            }
            Delta::Full(Full { mode: Mode::Replace, .. }) | Delta::TokenRows(_) => Ok(delta.clone()),
            other => Err(not_low_rank(other)),
        }
    }

    fn bias(&mut self, delta: &Delta, to: Option<Dtype>) -> Result<Delta> {
        match delta {
            Delta::Full(Full { tensor, mode: Mode::Add(factor) }) => {
                let tensor = self.fold(tensor, *factor, to)?;
                Ok(Delta::Full(Full { tensor, mode: Mode::Add(1.0) }))
            }
            Delta::Full(_) => Ok(delta.clone()),
            other => Err(not_low_rank(other)),
        }
    }

    fn low_rank(&mut self, a: Tensor, b: &Tensor, d: &LowRank, to: Option<Dtype>) -> Result<Delta> {
        let rank = d.rank();
        if rank == 0 {
            return Err(Error::mismatch(format!("{} of rank 0, which has no scale", d.kind())));
        }
        require_pair(d)?;
        let b = self.fold(b, d.factor(), to)?;
        let scale = Scale { alpha: rank as f64, rule: ScaleRule::AlphaOverRank };
        Ok(Delta::LowRank(LowRank { a, b, scale, experts: d.experts, name: "LoRA" }))
    }

    /// The tensor times a scale.
    fn fold(&mut self, tensor: &Tensor, scale: f64, to: Option<Dtype>) -> Result<Tensor> {
        if !scale.is_finite() {
            return Err(Error::unsupported(format!("a scale of {scale}, expected a finite number")));
        }
        if scale == 1.0 {
            return Ok(tensor.clone());
        }
        self.folded += 1;
        if to.is_none()
            && let Some(shifted) = tensor.shifted(scale)
        {
            return Ok(shifted);
        }
        let mut values = cast::widen_f64(tensor.dtype, tensor.bytes.as_slice())?;
        tensor.bytes.release(0..tensor.bytes.len());
        values.iter_mut().for_each(|v| *v *= scale);
        if let Some(to) = to {
            let out = narrowed(to, &tensor.shape, &values)?;
            let found = cast::widen_f64(to, out.bytes.as_slice())?;
            let changed = values.iter().zip(&found).filter(|(v, found)| v != found && !v.is_nan()).count() as u64;
            self.cast.add(Rounded { values: values.len() as u64, changed });
            return Ok(out);
        }
        if dtype::is_plain_float(tensor.dtype)
            && let Ok(kept) = narrowed(tensor.dtype, &tensor.shape, &values)
            && is_exact(&values, &kept)?
        {
            return Ok(kept);
        }
        let wide = if tensor.dtype == Dtype::F64 { Dtype::F64 } else { Dtype::F32 };
        self.widened += usize::from(wide != tensor.dtype);
        let out = narrowed(wide, &tensor.shape, &values)?;
        self.rounded += usize::from(!is_exact(&values, &out)?);
        Ok(out)
    }
}

/// Whether the tensor holds these values and no neighbours of them.
fn is_exact(values: &[f64], tensor: &Tensor) -> Result<bool> {
    let found = cast::widen_f64(tensor.dtype, tensor.bytes.as_slice())?;
    Ok(values.iter().zip(found).all(|(v, found)| *v == found || v.is_nan()))
}

/// The two factors have to be of one rank; a scale would not stop at what cannot be applied.
fn require_pair(d: &LowRank) -> Result<()> {
    let rows = d.a.shape.dims().first().copied().unwrap_or(0);
    let (_, cols) = d.b.shape.matrix();
    if rows == cols && d.experts.is_none_or(|e| e.count > 0 && rows % e.count == 0) {
        return Ok(());
    }
    let what = format!("rank of A {} against rank of B {}: {rows} against {cols}", d.a.shape, d.b.shape);
    Err(Error::mismatch(what).hint("the two halves may come from different adapters"))
}

fn not_low_rank(delta: &Delta) -> Error {
    let error = Error::unsupported(format!("{}, which is no low-rank change by its own data", delta.kind()));
    match delta {
        Delta::Hadamard(_) | Delta::Kronecker(_) => {
            error.hint(format!("{APPROXIMATE}; `lora-tool resize` needs no base"))
        }
        Delta::Qalora(_) | Delta::Miss(Miss { mode: miss::Mode::Shared | miss::Mode::Mini, .. }) => {
            error.hint("with --base BASE its factors are known")
        }
        Delta::Scattered(_) => error.hint("with --base BASE its factors are known"),
        _ => error.hint(APPROXIMATE),
    }
}

fn assemble<'a>(adapter: &Adapter, done: impl Iterator<Item = (&'a ModulePath, Done)>) -> Normalised {
    let mut out = Adapter { targets: BTreeMap::new(), ..adapter.clone() };
    let (mut folded, mut rounded, mut widened) = (0, 0, 0);
    let mut cast = Rounded::default();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for (path, done) in done {
        folded += done.folded;
        cast.add(done.cast);
        rounded += done.rounded;
        widened += done.widened;
        done.converted.iter().for_each(|kind| *kinds.entry(kind).or_default() += 1);
        out.targets.insert(path.clone(), done.target);
    }
    let mut notes: Vec<_> =
        kinds.iter().map(|(kind, n)| Note::info("", format!("{n} changes stored as {kind} become LoRA"))).collect();
    if widened > 0 {
        notes
            .push(Note::info("", format!("{widened} tensors become F32, since B times the scale does not fit theirs")));
    }
    if rounded > 0 {
        notes.push(Note::info("", format!("{rounded} tensors hold B times the scale rounded once")));
    }
    Normalised { adapter: out, folded, cast, notes }
}

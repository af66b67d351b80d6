//! Factors on their way into a file that has one rank and one scale for all modules, and an adapter on every layer.
//!
//! Programs that rebuild their modules from a few switches (meta-pytorch/torchtune, Lightning-AI/litgpt) want each switched
//! module in each layer. Filling up with zeros is exact; a scale that is not the file's goes into B.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::adapter::delta::{Full, LowRank, full::Mode};
use crate::adapter::{Delta, Note, Scale, ScaleRule, SiteKind, Target, experts};
use crate::error::{Context, Error, Result};
use crate::layout::stacks;
use crate::names::ModulePath;
use crate::tensor::{Dtype, Tensor, rearrange};

/// Largest whole number that is written as one.
const MAX_WHOLE: f64 = 9_007_199_254_740_992.0;

/// The factors of one module and DoRA's magnitude, where it has one.
#[derive(Clone, Debug)]
pub struct Module {
    /// `[r, in]`, `[out, r]` and their scale.
    pub factors: LowRank,
    /// `[out]`.
    pub magnitude: Option<Tensor>,
}

/// The one rank and the one alpha of a file; what multiplies the products is alpha / rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// Rank.
    pub rank: usize,
    /// Alpha.
    pub alpha: f64,
}

/// The factors that are all a target does to the weight of a linear layer; `who` is the program that holds no more.
pub fn only_factors<'t>(target: &'t Target, who: &str) -> Result<&'t LowRank> {
    let cannot = |what: String| Err(Error::unsupported(format!("{what}, and {who}'s files hold plain LoRA only")));
    match target.site {
        SiteKind::Layer => {}
        SiteKind::FanInFanOut => return cannot("a layer whose weight is stored [in, out]".to_string()),
        SiteKind::Embedding => return cannot(format!("{} of an embedding", target.kind())),
        SiteKind::Parameter => return cannot(format!("{} of a parameter by its own name", target.kind())),
    }
    if let Some(delta) = target.bias.first() {
        return cannot(format!("{} of the bias", delta.kind()));
    }
    let factors = match target.weight.as_slice() {
        [Delta::LowRank(factors)] if factors.experts.is_none() => factors,
        [Delta::Hadamard(_) | Delta::Kronecker(_)] => {
            let what = format!("{}, and {who}'s files hold plain LoRA only", target.kind());
            return Err(Error::unsupported(what).hint("`lora-tool resize` makes a LoRA of it"));
        }
        [Delta::Opaque(opaque)] => return Err(Error::unsupported(format!("{}: {}", opaque.kind, opaque.reason))),
        [Delta::Full(Full { mode: Mode::Replace, .. })] => return cannot("a tensor saved whole".to_string()),
        [] => return cannot("no change of the weight".to_string()),
        [delta] => return cannot(delta.kind().to_string()),
        _ => return cannot("several changes of one weight".to_string()),
    };
    if factors.a.shape.rank() != 2 || factors.b.shape.rank() != 2 {
        return cannot(format!("factors {} of a convolution", factors.a.shape));
    }
    let ((rank, _), (_, other)) = (rearrange::matrix(&factors.a)?, rearrange::matrix(&factors.b)?);
    if rank != other || rank == 0 {
        let what = format!("rank of A {} against rank of B {}", factors.a.shape, factors.b.shape);
        return Err(Error::mismatch(what));
    }
    Ok(factors)
}

/// The factors of each expert of a fused stack, `…experts.gate_up_proj` or `…experts.down_proj`, by the path it has where
/// experts are stored one by one; none where the target is no stack. The rows of the gate come first.
pub fn experts(path: &ModulePath, target: &Target) -> Result<Option<Vec<(String, LowRank)>>> {
    let [Delta::LowRank(factors)] = target.weight.as_slice() else { return Ok(None) };
    if target.site != SiteKind::Parameter || factors.experts.is_none() {
        return Ok(None);
    }
    if target.magnitude.is_some() || !target.bias.is_empty() {
        return Err(Error::unsupported("a magnitude or bias of a stack of experts"));
    }
    let projections = stacks::projections(path, None)?;
    let holder = path.parent().unwrap_or_default();
    let mut out = Vec::new();
    for (number, single) in experts::singles(factors)?.into_iter().enumerate() {
        let scale = Scale::direct(single.factor());
        for (projection, b) in projections.iter().zip(stacks::shares(&single.b, projections.len())?) {
            out.push((format!("{holder}.{number}.{projection}"), LowRank { b, scale, ..single.clone() }));
        }
    }
    Ok(Some(out))
}

/// Brings all modules to one rank, the largest, and one scale, the most frequent.
pub fn level(modules: &mut BTreeMap<String, Module>, who: &str, notes: &mut Vec<Note>) -> Result<Scaling> {
    let rank = modules.values().map(|m| m.factors.rank()).max().unwrap_or(0);
    for (name, module) in modules.iter() {
        let factor = module.factors.factor();
        if !factor.is_finite() {
            return Err(Error::unsupported(format!("a scale of {factor}, expected a finite number")).at_key(name));
        }
    }
    let alpha = common_alpha(modules, rank);
    let scale = Scale { alpha, rule: ScaleRule::AlphaOverRank };
    for (name, module) in modules.iter_mut() {
        let own = module.factors.rank();
        let padded =
            LowRank { scale: Scale::direct(module.factors.factor()), ..padded(&module.factors, rank).at_key(name)? };
        let (even, folded) = padded.rescaled(scale).at_key(name)?;
        if own < rank {
            let what = format!("rank {own} filled up with zeros to {rank}, {who} has one rank a file");
            notes.push(Note::info(name, what));
        }
        if let Some(folded) = folded {
            let (factor, other) = (module.factors.factor(), scale.factor(rank));
            let text = format!("scale {factor} folded into B, {who} has one scale a file, here {other}");
            notes.push(match (folded.exact, folded.widened) {
                (true, false) => Note::info(name, text),
                (true, true) => Note::info(name, format!("{text}; B becomes {}", folded.tensor.dtype)),
                (false, _) => Note::lossy(name, format!("{text}; rounded to {}", folded.tensor.dtype)),
            });
        }
        module.factors = even;
    }
    Ok(Scaling { rank, alpha })
}

/// The alpha that gives most modules their multiplier when it is divided by `rank`, to the bit where a number does.
fn common_alpha(modules: &BTreeMap<String, Module>, rank: usize) -> f64 {
    let mut found: Vec<(f64, usize)> = Vec::new();
    for module in modules.values() {
        let factor = module.factors.factor();
        // Nothing can be folded into a factor of zero.
        match found.iter_mut().find(|(other, _)| *other == factor) {
            _ if factor == 0.0 => {}
            Some((_, count)) => *count += 1,
            None => found.push((factor, 1)),
        }
    }
    let Some((factor, _)) = found.into_iter().rev().max_by_key(|(_, count)| *count) else { return rank as f64 };
    let stored = modules
        .values()
        .map(|m| &m.factors)
        .find(|f| f.factor() == factor && f.rank() == rank && f.scale.rule == ScaleRule::AlphaOverRank);
    let first = factor * rank as f64;
    let near = [first, first.next_up(), first.next_down()];
    let calculated = near.into_iter().find(|alpha| alpha / rank as f64 == factor).unwrap_or(first);
    stored.map_or(calculated, |f| f.scale.alpha)
}

/// The same factors with zeros up to `rank`.
fn padded(factors: &LowRank, rank: usize) -> Result<LowRank> {
    let more = rank.saturating_sub(factors.rank());
    if more == 0 {
        return Ok(factors.clone());
    }
    let ((_, inputs), (outputs, _)) = (rearrange::matrix(&factors.a)?, rearrange::matrix(&factors.b)?);
    let a = rearrange::concat_rows(&[factors.a.clone(), rearrange::zeros(&factors.a, [more, inputs])?])?;
    let below = rearrange::zeros(&factors.b, [more, outputs])?;
    let b = rearrange::transposed(&rearrange::concat_rows(&[rearrange::transposed(&factors.b)?, below])?)?;
    Ok(LowRank { a, b, ..factors.clone() })
}

/// Adds factors of zeros where `wanted` has modules, with their outputs and inputs, that are not there.
pub fn fill(
    modules: &mut BTreeMap<String, Module>,
    wanted: &BTreeMap<String, (usize, usize)>,
    scaling: Scaling,
    who: &str,
    notes: &mut Vec<Note>,
) -> Result<()> {
    let Some(like) = modules.values().next().cloned() else { return Ok(()) };
    let missing: Vec<_> = wanted.iter().filter(|(name, _)| !modules.contains_key(*name)).collect();
    let Some((first, _)) = missing.first() else { return Ok(()) };
    if modules.values().any(|m| m.magnitude.is_some()) {
        let what = format!("not adapted, which {who} has no word for once it is adapted in other layers");
        return Err(Error::unsupported(what)
            .at_key(*first)
            .hint("its magnitude would be the norms of the base's rows"));
    }
    let what =
        format!("{} modules of zeros added, {who} has an adapter on all of their kind or on none", missing.len());
    notes.push(Note::info(*first, what));
    // One block of zeros for all of a shape.
    let mut made: BTreeMap<[usize; 2], Tensor> = BTreeMap::new();
    let mut zeros = |like: &Tensor, shape: [usize; 2]| -> Result<Tensor> {
        let zeros = match made.get(&shape) {
            Some(zeros) if zeros.dtype == like.dtype => zeros.clone(),
            _ => rearrange::zeros(like, shape)?,
        };
        made.insert(shape, zeros.clone());
        Ok(zeros)
    };
    for (name, (outputs, inputs)) in missing {
        let a = zeros(&like.factors.a, [scaling.rank, *inputs])?;
        let b = zeros(&like.factors.b, [*outputs, scaling.rank])?;
        modules.insert(name.clone(), Module { factors: LowRank { a, b, ..like.factors.clone() }, magnitude: None });
    }
    Ok(())
}

/// The tensors in one type: their own where all have the same, else f32.
pub fn same_type(tensors: &[Tensor]) -> Result<Vec<Tensor>> {
    let first = tensors.first().map(|t| t.dtype);
    let one = |t: &Tensor| {
        if t.dtype == Dtype::F32 { Ok(t.clone()) } else { Tensor::from_f32(Dtype::F32, t.shape.dims(), &t.to_f32()?) }
    };
    if tensors.iter().all(|t| Some(t.dtype) == first) {
        Ok(tensors.to_vec())
    } else {
        tensors.iter().map(one).collect()
    }
}

/// A number as JSON, whole where it is.
pub fn number(value: f64) -> Value {
    let whole = value.fract() == 0.0 && value.abs() < MAX_WHOLE;
    if whole { json!(value as i64) } else { json!(value) }
}

/// Whether these factors change nothing and were not trained: A and B are zero throughout.
pub fn is_filling(a: &Tensor, b: &Tensor) -> Result<bool> {
    Ok(is_zero(b)? && is_zero(a)?)
}

/// Whether all elements are zero.
pub fn is_zero(tensor: &Tensor) -> Result<bool> {
    match tensor.dtype {
        Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => {
            // Zeros of either sign: no bit is set but the highest of an element.
            let size = tensor.dtype.bitsize() / 8;
            let none = |element: &[u8]| {
                element.split_last().is_some_and(|(high, low)| *high & 0x7f == 0 && low.iter().all(|b| *b == 0))
            };
            Ok(tensor.bytes.as_slice().chunks_exact(size).all(none))
        }
        _ => Ok(tensor.to_f32()?.iter().all(|v| *v == 0.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(dtype: Dtype, rank: usize, scale: Scale) -> Module {
        let of = |shape: [usize; 2]| Tensor::from_f32(dtype, shape, &vec![1.5; shape[0] * shape[1]]).unwrap();
        let factors = LowRank { a: of([rank, 3]), b: of([5, rank]), scale, experts: None, name: "LoRA" };
        Module { factors, magnitude: None }
    }

    fn leveled(all: &[(&str, Module)]) -> (BTreeMap<String, Module>, Scaling, Vec<Note>) {
        let mut modules = all.iter().map(|(name, m)| (name.to_string(), m.clone())).collect();
        let mut notes = Vec::new();
        let scaling = level(&mut modules, "it", &mut notes).unwrap();
        (modules, scaling, notes)
    }

    #[test]
    fn what_is_alike_stays_as_it_is() {
        let scale = Scale { alpha: 7.0, rule: ScaleRule::AlphaOverRank };
        let given = module(Dtype::BF16, 3, scale);
        let (modules, scaling, notes) = leveled(&[("a", given.clone()), ("b", given.clone())]);
        assert_eq!((scaling, notes), (Scaling { rank: 3, alpha: 7.0 }, vec![]));
        assert_eq!((&modules["a"].factors.a, &modules["a"].factors.b), (&given.factors.a, &given.factors.b));
    }

    #[test]
    fn other_ranks_and_scales_are_filled_up_and_folded() {
        let most = Scale::direct(2.0);
        let all = [
            ("a", module(Dtype::BF16, 4, most)),
            ("b", module(Dtype::BF16, 4, most)),
            ("c", module(Dtype::BF16, 1, Scale::direct(1.0))),
        ];
        let (modules, scaling, notes) = leveled(&all);
        assert_eq!(scaling, Scaling { rank: 4, alpha: 8.0 });
        let c = &modules["c"].factors;
        assert_eq!((c.a.shape.dims(), c.b.shape.dims(), c.factor()), (&[4, 3][..], &[5, 4][..], 2.0));
        assert_eq!(c.b.to_f32().unwrap()[..5], [0.75, 0.0, 0.0, 0.0, 0.75]);
        assert_eq!(c.a.to_f32().unwrap()[..4], [1.5, 1.5, 1.5, 0.0]);
        assert_eq!(notes.len(), 2);
    }

    #[test]
    fn what_is_missing_becomes_zeros() {
        let (mut modules, scaling, mut notes) = leveled(&[("a", module(Dtype::F16, 2, Scale::direct(1.0)))]);
        fill(&mut modules, &[("b".to_string(), (4, 6))].into(), scaling, "it", &mut notes).unwrap();
        let b = &modules["b"].factors;
        assert_eq!((b.a.shape.dims(), b.b.shape.dims(), b.a.dtype), (&[2, 6][..], &[4, 2][..], Dtype::F16));
        assert!(is_filling(&b.a, &b.b).unwrap() && !is_zero(&modules["a"].factors.a).unwrap());
        assert_eq!(notes.len(), 1);
    }
}

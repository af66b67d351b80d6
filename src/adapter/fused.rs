//! Projections that are one matrix in some models and several in others: query, key and value; gate and up.
//!
//! The rows of the fused matrix are those of its parts. To take a fused change apart is exact: every part has the same A
//! and its own rows of B. To put parts together is exact too, at a price: where their A differ, the ranks add up, and B is
//! block-diagonal. A change that was put together so is taken apart into what it was.

use std::ops::Range;

use super::delta::{Full, LowRank, full::Mode};
use super::{Along, Delta, Scale, SiteKind, Target};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, Tensor, rearrange};

/// A part of a fused projection.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// What is done to it; none where it is not adapted.
    pub target: Option<&'a Target>,
    /// Its outputs.
    pub rows: usize,
}

/// The changes of the parts whose rows are `parts`, in the order given: together they are all rows of the fused
/// matrix, each once.
pub fn split(target: &Target, parts: &[Vec<usize>]) -> Result<Vec<Target>> {
    let site = target.site;
    if matches!(site, SiteKind::Embedding | SiteKind::Parameter) {
        return Err(Error::unsupported(format!("{} of no layer, which has no outputs to part", target.kind())));
    }
    require_norms_of_rows(target)?;
    let mut out = vec![Target { site, ..Target::default() }; parts.len()];
    for delta in &target.weight {
        for (into, delta) in out.iter_mut().zip(split_weight(delta, parts, site)?) {
            into.weight.push(delta);
        }
    }
    for (into, rows) in out.iter_mut().zip(parts) {
        // The norm behind a magnitude is that of a row, whatever stands above and below it.
        into.magnitude = target.magnitude.as_ref().map(|m| pick_vector(m, rows)).transpose()?;
        for delta in &target.bias {
            let Delta::Full(full) = delta else { return Err(not_by_rows(delta)) };
            into.bias.push(Delta::Full(Full { tensor: rearrange::pick_rows(&full.tensor, rows)?, mode: full.mode }));
        }
    }
    Ok(out)
}

/// The change with the halves of its rows in each other's places.
pub fn swap_halves(target: &Target) -> Result<Target> {
    let rows = outputs(target).ok_or_else(|| not_the_rows_of(target))?;
    if rows % 2 != 0 {
        return Err(Error::mismatch(format!("{rows} outputs, which have no halves")));
    }
    let swapped: Vec<usize> = (rows / 2..rows).chain(0..rows / 2).collect();
    split(target, &[swapped])?.pop().ok_or_else(|| not_the_rows_of(target))
}

/// Outputs of what a target changes.
pub fn outputs(target: &Target) -> Option<usize> {
    target.weight.iter().chain(&target.bias).find_map(|delta| match delta {
        Delta::LowRank(d) if d.experts.is_none() => Some(d.b.shape.matrix().0),
        Delta::Full(d) if target.site == SiteKind::Layer => d.tensor.shape.dims().first().copied(),
        _ => None,
    })
}

/// The error for a change of a fused projection whose rows are not told apart.
pub fn not_the_rows_of(target: &Target) -> Error {
    Error::unsupported(format!("{} of a fused projection, which is not taken apart by rows", target.kind()))
}

/// Whether a target changes nothing: all of its B is zero, and there is nothing else.
pub fn does_nothing(target: &Target) -> bool {
    let zero = |delta: &Delta| match delta {
        Delta::LowRank(d) => d.b.to_f32().is_ok_and(|values| values.iter().all(|v| *v == 0.0)),
        _ => false,
    };
    target.magnitude.is_none() && target.bias.is_empty() && target.weight.iter().all(zero)
}

/// An error for a magnitude of inputs: norms of columns mix the parts.
fn require_norms_of_rows(target: &Target) -> Result<()> {
    if target.magnitude.is_some() && target.magnitude_along == Along::Cols {
        let what = "DoRA with a magnitude for each input, whose norms are those of all parts of a projection together";
        return Err(Error::unsupported(what));
    }
    Ok(())
}

/// Some elements of a vector, which may be stored with extents of 1.
fn pick_vector(vector: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let dims = vector.shape.dims();
    let flat = vector.reshaped([vector.elements()])?;
    let picked = rearrange::pick_rows(&flat, rows)?;
    let shape: Vec<_> = dims.iter().map(|n| if *n == vector.elements() { rows.len() } else { *n }).collect();
    if dims.iter().filter(|n| **n != 1).count() > 1 {
        return Err(Error::unsupported(format!("{}, expected one number a row", vector.shape)));
    }
    picked.reshaped(if shape.iter().product::<usize>() == rows.len() { shape } else { vec![rows.len()] })
}

fn not_by_rows(delta: &Delta) -> Error {
    Error::unsupported(format!("{} of a fused projection, which is not taken apart by rows", delta.kind()))
}

fn split_weight(delta: &Delta, parts: &[Vec<usize>], site: SiteKind) -> Result<Vec<Delta>> {
    match delta {
        Delta::LowRank(d) if d.experts.is_none() => {
            Ok(split_factors(d, parts)?.into_iter().map(Delta::LowRank).collect())
        }
        Delta::Full(d) if site == SiteKind::Layer => {
            let part = |rows: &Vec<usize>| {
                Ok(Delta::Full(Full { tensor: rearrange::pick_rows(&d.tensor, rows)?, mode: d.mode }))
            };
            parts.iter().map(part).collect()
        }
        other => Err(not_by_rows(other)),
    }
}

/// The factors of each part.
pub fn split_factors(d: &LowRank, parts: &[Vec<usize>]) -> Result<Vec<LowRank>> {
    let (outputs, _) = d.b.shape.matrix();
    let wanted: usize = parts.iter().map(Vec::len).sum();
    if outputs != wanted {
        let what = format!("B {} for parts of {wanted} rows together", d.b.shape);
        return Err(Error::mismatch(what).hint("is this the base model the adapter was trained on?"));
    }
    let all = parts.iter().map(|rows| rearrange::pick_rows(&d.b, rows)).collect::<Result<Vec<_>>>()?;
    let Some(own) = blocks(d, &all)? else {
        return Ok(all.into_iter().map(|b| LowRank { b, ..d.clone() }).collect());
    };
    let scale = Scale::direct(d.factor());
    let mut out = Vec::with_capacity(all.len());
    for (b, own) in all.into_iter().zip(own) {
        // A part without a block is not changed; one column of zeros says that.
        let columns: Vec<_> = own.unwrap_or(0..1).collect();
        let (a, b) = (rearrange::pick_rows(&d.a, &columns)?, rearrange::pick_cols(&b, &columns)?);
        out.push(LowRank { a, b, scale, ..d.clone() });
    }
    Ok(out)
}

/// The columns of each part where B is block-diagonal in the order of the parts; none for a part whose rows are all
/// zero. Nothing where B is anything else. Columns of zeros belong to a block where all blocks are of one width.
fn blocks(d: &LowRank, parts: &[Tensor]) -> Result<Option<Vec<Option<Range<usize>>>>> {
    if d.b.shape.rank() != 2 || d.a.shape.rank() != 2 {
        return Ok(None);
    }
    let rank = d.rank();
    let mut used = Vec::with_capacity(parts.len());
    for part in parts {
        used.push(columns_used(&part.to_f32()?, rank));
    }
    let present: Vec<_> = used.iter().flatten().cloned().collect();
    if present.len() < 2 {
        return Ok(None);
    }
    let width = rank / present.len();
    let equal: Vec<_> = (0..present.len()).map(|n| n * width..(n + 1) * width).collect();
    let holds = |block: &Range<usize>, own: &Range<usize>| block.start <= own.start && own.end <= block.end;
    let own = if rank.is_multiple_of(present.len()) && equal.iter().zip(&present).all(|(block, own)| holds(block, own))
    {
        equal
    } else if present.first().is_some_and(|first| first.start == 0)
        && present.last().is_some_and(|last| last.end == rank)
        && present.windows(2).all(|pair| pair[0].end == pair[1].start)
    {
        present
    } else {
        return Ok(None);
    };
    let mut own = own.into_iter();
    Ok(Some(used.into_iter().map(|used| used.and_then(|_| own.next())).collect()))
}

/// From the first to the last column that is not zero; none where all are.
fn columns_used(values: &[f32], rank: usize) -> Option<Range<usize>> {
    let is_used = |col: &usize| values.iter().skip(*col).step_by(rank.max(1)).any(|v| *v != 0.0);
    let first = (0..rank).find(is_used)?;
    let last = (first..rank).rev().find(is_used)?;
    Some(first..last + 1)
}

/// The change of the fused matrix whose rows are those of `parts`, one after the other, and whether its rank is more than
/// that of any part.
pub fn fuse(parts: &[Part]) -> Result<(Target, bool)> {
    let present: Vec<&Target> = parts.iter().filter_map(|part| part.target).collect();
    let Some(first) = present.first() else { return Err(Error::missing("none of the parts is adapted")) };
    let mut out = Target { site: first.site, ..Target::default() };
    let mut grown = false;
    if let Some(other) = present.iter().find(|t| t.site != first.site) {
        return Err(Error::mismatch(format!("{:?} beside {:?} in one projection", other.site, first.site)));
    }
    for target in &present {
        require_norms_of_rows(target)?;
    }
    if present.iter().any(|t| t.magnitude.is_some()) {
        out.magnitude = Some(fuse_magnitudes(parts)?);
    }
    let depth = present.iter().map(|t| t.weight.len()).max().unwrap_or(0);
    if depth > 1 {
        return Err(Error::unsupported("several changes of one part of a fused projection"));
    }
    if depth == 1 {
        let mut factors = Vec::with_capacity(parts.len());
        for part in parts {
            factors.push(match part.target.and_then(|t| t.weight.first()) {
                None => None,
                Some(Delta::LowRank(d)) if d.experts.is_none() => Some(d),
                Some(other) => return Err(not_by_rows(other)),
            });
        }
        let rows: Vec<_> = parts.iter().map(|part| part.rows).collect();
        let (fused, more) = fuse_factors(&factors, &rows)?;
        out.weight.push(Delta::LowRank(fused));
        grown = more;
    }
    if present.iter().any(|t| !t.bias.is_empty()) {
        out.bias.push(fuse_biases(parts)?);
    }
    Ok((out, grown))
}

fn fuse_magnitudes(parts: &[Part]) -> Result<Tensor> {
    let of = |part: &Part| {
        let magnitude = part.target.and_then(|t| t.magnitude.as_ref()).ok_or_else(|| {
            Error::unsupported("DoRA on some parts of a fused projection only: the others' magnitudes are the base's")
        })?;
        magnitude.reshaped([part.rows])
    };
    rearrange::concat_rows(&rearrange::alike(&parts.iter().map(of).collect::<Result<Vec<_>>>()?)?)
}

fn fuse_biases(parts: &[Part]) -> Result<Delta> {
    let mut mode = None;
    let mut tensors = Vec::with_capacity(parts.len());
    for part in parts {
        match part.target.map(|t| t.bias.as_slice()) {
            Some([Delta::Full(full)]) if mode.is_none_or(|m| m == full.mode) => {
                mode = Some(full.mode);
                tensors.push(full.tensor.clone());
            }
            None | Some([]) if mode.is_none_or(|m| matches!(m, Mode::Add(_))) => {
                tensors.push(rearrange::zeros_of(Dtype::F32, [part.rows])?);
                mode = mode.or(Some(Mode::Add(1.0)));
            }
            _ => return Err(Error::unsupported("biases of the parts that are not all added, or not all replaced")),
        }
    }
    let tensor = rearrange::concat_rows(&rearrange::alike(&tensors)?)?;
    Ok(Delta::Full(Full { tensor, mode: mode.unwrap_or(Mode::Add(1.0)) }))
}

/// The factors of all parts as those of the fused matrix, where each has `rows` outputs, and whether the rank grew.
pub fn fuse_factors(parts: &[Option<&LowRank>], rows: &[usize]) -> Result<(LowRank, bool)> {
    let present: Vec<&LowRank> = parts.iter().flatten().copied().collect();
    let Some(first) = present.first() else { return Err(Error::missing("none of the parts is adapted")) };
    for (part, rows) in parts.iter().zip(rows) {
        if let Some(part) = part
            && rearrange::matrix(&part.b)?.0 != *rows
        {
            return Err(Error::mismatch(format!("B {} for a part of {rows} rows", part.b.shape)));
        }
    }
    let one_scale = present.iter().all(|d| d.factor() == first.factor());
    let shared = present.iter().all(|d| d.a == first.a);
    let mut own = Vec::with_capacity(present.len());
    for d in &present {
        own.push(if one_scale { (*d).clone() } else { d.unscaled()?.0 });
    }
    let bs = rearrange::alike(&own.iter().map(|d| d.b.clone()).collect::<Vec<_>>())?;
    let factor = if one_scale { first.factor() } else { 1.0 };
    let mut bs = bs.into_iter();
    let mut left = 0;
    let rank: usize = if shared { first.rank() } else { present.iter().map(|d| d.rank()).sum() };
    let mut blocks = Vec::with_capacity(parts.len());
    for (part, rows) in parts.iter().zip(rows) {
        let Some(part) = part else {
            blocks.push(rearrange::zeros(&first.b, [*rows, rank])?);
            continue;
        };
        let Some(b) = bs.next() else { break };
        let width = if shared { rank } else { part.rank() };
        blocks.push(rearrange::placed(&b, (0, left), (*rows, rank))?);
        left += if shared { 0 } else { width };
    }
    let a = if shared {
        first.a.clone()
    } else {
        rearrange::concat_rows(&rearrange::alike(&present.iter().map(|d| d.a.clone()).collect::<Vec<_>>())?)?
    };
    let b = rearrange::concat_rows(&rearrange::alike(&blocks)?)?;
    let scale = if shared && one_scale { first.scale } else { Scale::direct(factor) };
    Ok((LowRank { a, b, scale, experts: None, name: "LoRA" }, !shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that are exact in bf16, none zero.
    fn numbers(dtype: Dtype, shape: [usize; 2], seed: usize) -> Tensor {
        let values: Vec<_> = (0..shape[0] * shape[1]).map(|i| ((i * 7 + seed) % 13) as f32 + 1.0).collect();
        Tensor::from_f32(dtype, shape, &values).unwrap()
    }

    fn lora(outputs: usize, rank: usize, seed: usize, scale: f64) -> LowRank {
        let (a, b) = (numbers(Dtype::BF16, [rank, 5], seed), numbers(Dtype::BF16, [outputs, rank], seed + 3));
        LowRank { a, b, scale: Scale::direct(scale), experts: None, name: "LoRA" }
    }

    /// Scale · B · A in f64, row by row.
    fn product(d: &LowRank) -> Vec<f64> {
        let (a, b) = (d.a.to_f32().unwrap(), d.b.to_f32().unwrap());
        let (rank, inputs) = (d.rank(), d.a.shape.dims()[1]);
        let outputs = d.b.shape.dims()[0];
        let term = |i: usize, j: usize, k: usize| f64::from(b[i * rank + k]) * f64::from(a[k * inputs + j]);
        let entry = |i, j| d.factor() * (0..rank).map(|k| term(i, j, k)).sum::<f64>();
        (0..outputs).flat_map(|i| (0..inputs).map(move |j| (i, j))).map(|(i, j)| entry(i, j)).collect()
    }

    fn rows(sizes: &[usize]) -> Vec<Vec<usize>> {
        let mut at = 0;
        let next = |n: &usize| {
            at += n;
            (at - n..at).collect()
        };
        sizes.iter().map(next).collect()
    }

    #[test]
    fn what_was_put_together_comes_apart_as_it_was() {
        let (q, v) = (lora(4, 2, 1, 0.5), lora(3, 2, 9, 0.5));
        let (fused, grown) = fuse_factors(&[Some(&q), None, Some(&v)], &[4, 2, 3]).unwrap();
        assert!(grown && fused.rank() == 4);
        assert_eq!(product(&fused), [product(&q), vec![0.0; 10], product(&v)].concat());
        let back = split_factors(&fused, &rows(&[4, 2, 3])).unwrap();
        assert_eq!((&back[0].a, &back[0].b, back[0].factor()), (&q.a, &q.b, 0.5));
        assert_eq!((&back[2].a, &back[2].b), (&v.a, &v.b));
        assert_eq!(product(&back[1]), [0.0; 10]);
    }

    #[test]
    fn a_shared_a_keeps_the_rank() {
        let (gate, up) = (lora(4, 2, 1, 2.0), lora(4, 2, 1, 2.0));
        let up = LowRank { b: numbers(Dtype::BF16, [4, 2], 5), ..up };
        let (fused, grown) = fuse_factors(&[Some(&gate), Some(&up)], &[4, 4]).unwrap();
        assert!(!grown && fused.rank() == 2);
        assert_eq!(product(&fused), [product(&gate), product(&up)].concat());
        let back = split_factors(&fused, &rows(&[4, 4])).unwrap();
        assert_eq!((&back[0], &back[1]), (&gate, &up));
    }

    #[test]
    fn blocks_may_have_any_width() {
        let (q, k, v) = (lora(4, 3, 1, 1.0), lora(2, 1, 4, 1.0), lora(2, 2, 8, 1.0));
        let (fused, _) = fuse_factors(&[Some(&q), Some(&k), Some(&v)], &[4, 2, 2]).unwrap();
        assert_eq!(split_factors(&fused, &rows(&[4, 2, 2])).unwrap(), [q, k, v]);
    }

    #[test]
    fn scales_that_differ_go_into_b() {
        let (q, k) = (lora(4, 2, 1, 0.5), lora(2, 3, 4, 3.0));
        let (fused, _) = fuse_factors(&[Some(&q), Some(&k)], &[4, 2]).unwrap();
        assert_eq!(product(&fused), [product(&q), product(&k)].concat());
        assert_eq!(fused.factor(), 1.0);
    }

    #[test]
    fn rows_may_lie_anywhere() {
        let d = lora(6, 2, 1, 1.0);
        let parts = split_factors(&d, &[vec![0, 3], vec![1, 4], vec![2, 5]]).unwrap();
        let whole = product(&d);
        assert_eq!(product(&parts[1]), [&whole[5..10], &whole[20..25]].concat());
        assert!(split_factors(&d, &rows(&[4, 4])).is_err());
    }

    #[test]
    fn magnitudes_and_biases_go_with_their_rows() {
        let magnitude = Tensor::from_f32(Dtype::F32, [1, 3], &[1.0, 2.0, 3.0]).unwrap();
        let bias = Full { tensor: Tensor::from_f32(Dtype::F32, [3], &[4.0, 5.0, 6.0]).unwrap(), mode: Mode::Add(0.5) };
        let target = Target {
            weight: vec![Delta::LowRank(lora(3, 2, 1, 1.0))],
            magnitude: Some(magnitude),
            bias: vec![Delta::Full(bias)],
            ..Target::default()
        };
        let parts = split(&target, &rows(&[2, 1])).unwrap();
        assert_eq!(parts[0].magnitude.as_ref().unwrap().shape.dims(), [1, 2]);
        let (fused, _) =
            fuse(&[Part { target: Some(&parts[0]), rows: 2 }, Part { target: Some(&parts[1]), rows: 1 }]).unwrap();
        assert_eq!(fused.weight, target.weight);
        assert_eq!(fused.bias, target.bias);
        assert_eq!(fused.magnitude.unwrap().to_f32().unwrap(), [1.0, 2.0, 3.0]);
        let half = Part { target: None, rows: 1 };
        assert!(fuse(&[Part { target: Some(&parts[0]), rows: 2 }, half]).is_err());
    }
}

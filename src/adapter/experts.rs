//! The factors of a stack of experts one by one, and back: byte for byte.

use super::delta::low_rank::{Experts, Facing, LowRank, Packing};
use super::{Scale, ScaleRule};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, rearrange};

/// The factors of every expert, a: [r, in], b: [out, r], with the true inputs and outputs of the layer.
pub fn singles(factors: &LowRank) -> Result<Vec<LowRank>> {
    let Some(experts) = factors.experts else { return Ok(vec![factors.clone()]) };
    let ((rows, inputs), (outputs, cols)) = (rearrange::matrix(&factors.a)?, rearrange::matrix(&factors.b)?);
    let (count, rank) = (experts.count, factors.rank());
    if count == 0 || rows != cols || rows != rank * count {
        let what = format!("A {} and B {} do not hold {count} experts", factors.a.shape, factors.b.shape);
        return Err(Error::mismatch(what));
    }
    let faces_inputs = match experts.facing {
        Facing::Input => true,
        Facing::FirstUnlessTransposed => false,
        Facing::First | Facing::Unknown => {
            let what = "factors of which it depends on the base which axis they face";
            return Err(Error::unsupported(what)
                .hint("--base BASE tells where a command takes one; or load and save it with PEFT 0.19 or later"));
        }
    };
    let mut out = Vec::with_capacity(count);
    for (expert, a) in rearrange::cut(&factors.a, count, &[rank, inputs])?.into_iter().enumerate() {
        let columns: Vec<_> = (0..rank).map(|k| column(experts.packing, (count, rank), (expert, k))).collect();
        let b = rearrange::pick_cols(&factors.b, &columns)?;
        debug_assert_eq!(b.shape.dims(), [outputs, rank]);
        // (b · a)ᵀ = aᵀ · bᵀ
        let (a, b) = if faces_inputs { (a, b) } else { (rearrange::transposed(&b)?, rearrange::transposed(&a)?) };
        out.push(LowRank { a, b, experts: None, ..factors.clone() });
    }
    Ok(out)
}

/// The column of B that holds rank `k` of an expert, of `count` experts of rank `rank`.
fn column(packing: Packing, (count, rank): (usize, usize), (expert, k): (usize, usize)) -> usize {
    match packing {
        Packing::RankMajor => k * count + expert,
        Packing::ByExpert => expert * rank + k,
    }
}

/// The factors of all experts as those of one stack in PEFT's order, A: [E · r, in], B: [out, r · E], facing the true
/// inputs. Ranks are filled up with zeros to the largest; scales that differ go into B; an expert without factors has
/// zeros.
pub fn packed(experts: &[Option<&LowRank>]) -> Result<LowRank> {
    let present: Vec<&LowRank> = experts.iter().flatten().copied().collect();
    let Some(first) = present.first() else { return Err(Error::missing("none of the experts is adapted")) };
    let rank = present.iter().map(|d| d.rank()).max().unwrap_or(0);
    let (inputs, outputs) = (rearrange::matrix(&first.a)?.1, rearrange::matrix(&first.b)?.0);
    let one_scale = present.iter().all(|d| d.factor() == first.factor());
    let (mut all_a, mut all_b) = (Vec::with_capacity(experts.len()), Vec::with_capacity(experts.len()));
    for expert in experts {
        let Some(d) = expert else {
            all_a.push(rearrange::zeros(&first.a, [rank, inputs])?);
            all_b.push(rearrange::zeros(&first.b, [outputs, rank])?);
            continue;
        };
        if rearrange::matrix(&d.a)?.1 != inputs || rearrange::matrix(&d.b)?.0 != outputs {
            let what = format!("A {} and B {} beside {} and {}", d.a.shape, d.b.shape, first.a.shape, first.b.shape);
            return Err(Error::mismatch(format!("experts of different sizes: {what}")));
        }
        let d = if one_scale { (*d).clone() } else { d.unscaled()?.0 };
        all_a.push(rearrange::padded(&d.a, rank, inputs)?);
        all_b.push(rearrange::padded(&d.b, outputs, rank)?);
    }
    let a = rearrange::concat_rows(&rearrange::alike(&all_a)?)?;
    let b = by_rank(&rearrange::alike(&all_b)?, outputs, rank)?;
    let same_rank = present.iter().all(|d| d.rank() == rank);
    let scale = match (one_scale, same_rank) {
        (true, true) => first.scale,
        (true, false) => Scale::direct(first.factor()),
        (false, _) => Scale { alpha: rank as f64, rule: ScaleRule::AlphaOverRank },
    };
    let experts = Experts { count: experts.len(), packing: Packing::RankMajor, facing: Facing::Input };
    Ok(LowRank { a, b, scale, experts: Some(experts), name: "LoRA" })
}

/// B of every expert, `[outputs, rank]`, as one matrix in which the expert runs fastest along a row.
fn by_rank(experts: &[Tensor], outputs: usize, rank: usize) -> Result<Tensor> {
    // [E, out, r] as rows (out · r of them, E apart), then turned: row (o, k) holds all experts.
    let stack = rearrange::stacked(experts)?.reshaped([experts.len(), outputs * rank])?;
    rearrange::transposed(&stack)?.reshaped([outputs, rank * experts.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    fn lora(rank: usize, seed: usize, scale: f64) -> LowRank {
        let of = |shape: [usize; 2], seed: usize| {
            let values: Vec<_> = (0..shape[0] * shape[1]).map(|i| ((i * 5 + seed) % 11) as f32 - 5.0).collect();
            Tensor::from_f32(Dtype::BF16, shape, &values).unwrap()
        };
        LowRank {
            a: of([rank, 3], seed),
            b: of([4, rank], seed + 1),
            scale: Scale::direct(scale),
            experts: None,
            name: "LoRA",
        }
    }

    #[test]
    fn a_stack_is_what_peft_reads_of_it() {
        let (one, two) = (lora(2, 1, 0.5), lora(2, 6, 0.5));
        let stack = packed(&[Some(&one), None, Some(&two)]).unwrap();
        // B[:, e::E] and A[e·r..(e+1)·r] are expert e (ParamWrapper of PEFT).
        let b = stack.b.to_f32().unwrap();
        let second: Vec<f32> = b.iter().skip(2).step_by(3).copied().collect();
        assert_eq!(second, two.b.to_f32().unwrap());
        assert_eq!(rearrange::row_range(&stack.a, 4..6).unwrap(), two.a);
        let back = singles(&stack).unwrap();
        assert_eq!((&back[0], &back[2]), (&one, &two));
        assert_eq!(back[1].b.to_f32().unwrap(), [0.0; 8]);
    }

    #[test]
    fn ranks_and_scales_may_differ() {
        let (one, two) = (lora(2, 1, 0.5), lora(1, 6, 2.0));
        let stack = packed(&[Some(&one), Some(&two)]).unwrap();
        let back = singles(&stack).unwrap();
        assert_eq!((stack.factor(), back[1].rank()), (1.0, 2));
        let wanted: Vec<f32> = two.b.to_f32().unwrap().iter().flat_map(|v| [v * 2.0, 0.0]).collect();
        assert_eq!(back[1].b.to_f32().unwrap(), wanted);
    }
}

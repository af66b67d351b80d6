//! Factors whose product, read row by row, is the kernel of a convolution: `W + s · view(B · A)`, with A: [r k, in k] and
//! B: [out k, r k] for W: [out, in, k, k] (microsoft/LoRA:loralib/layers.py, `ConvLoRA`).
//!
//! A row of the flattened kernel is `m` rows of the product, one after the other; `m` is k, or k / groups. So
//! `W[o] = Σⱼ B[o m + j] · (eⱼ ⊗ A)`: B as [out, m · rank] and `m` times A on the diagonal are factors of the flattened
//! kernel, exactly, of m times the rank.

use super::Scale;
use super::delta::LowRank;
use super::scale::ScaleRule;
use crate::error::{Error, Result};
use crate::tensor::rearrange;

/// Factors of the flattened kernel of this shape; none where these already are that, or the weight is no convolution's.
pub fn factors(d: &LowRank, weight: &[usize]) -> Result<Option<LowRank>> {
    let [_, inputs, kernel @ ..] = weight else { return Ok(None) };
    let (&[rank, width], &[outputs, other]) = (d.a.shape.dims(), d.b.shape.dims()) else { return Ok(None) };
    let (Some(&side), false) = (kernel.first(), kernel.is_empty()) else { return Ok(None) };
    let flat = kernel.iter().try_fold(*inputs, |n, k| n.checked_mul(*k));
    let misfit = || {
        let what = format!("lora_A {} and lora_B {} for a kernel {weight:?}", d.a.shape, d.b.shape);
        Err(Error::mismatch(what).hint("is this the base model the adapter was trained on?"))
    };
    let (Some(flat), true) = (flat, rank == other && rank > 0 && width > 0 && side > 0) else { return misfit() };
    // Elsewhere loralib cannot view the product as the kernel, or has the inputs of several rows in one.
    let rows = flat / width;
    if rows > side || rows * width != flat || weight[0].checked_mul(rows) != Some(outputs) || rank % side != 0 {
        return misfit();
    }
    let a = rearrange::block_diagonal(&vec![d.a.clone(); rows])?;
    let shape: Vec<_> = [rank * rows, *inputs].into_iter().chain(kernel.iter().copied()).collect();
    let column = [weight[0], rank * rows].into_iter().chain(kernel.iter().map(|_| 1)).collect::<Vec<_>>();
    // The file's rank is r · k, and alpha is divided by r.
    let scale = match d.scale.rule {
        ScaleRule::AlphaOverRank => Scale::direct(d.scale.alpha / (rank / side) as f64),
        _ => d.scale,
    };
    Ok(Some(LowRank { a: a.reshaped(shape)?, b: d.b.reshaped(column)?, scale, ..d.clone() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Dtype, Tensor};

    fn tensor(rows: usize, cols: usize) -> Tensor {
        let values: Vec<_> = (0..rows * cols).map(|i| ((i * 5) % 7) as f32 - 3.0).collect();
        Tensor::from_f32(Dtype::F32, [rows, cols], &values).unwrap()
    }

    fn product(a: &[f32], b: &[f32], rank: usize, width: usize) -> Vec<f32> {
        let term = |row: usize, col: usize| (0..rank).map(|k| b[row * rank + k] * a[k * width + col]).sum::<f32>();
        (0..b.len() / rank).flat_map(|row| (0..width).map(move |col| term(row, col))).collect()
    }

    #[test]
    fn the_product_read_by_rows_is_that_of_the_new_factors() {
        // Rank 1, a kernel of 2 by 2, 3 inputs, 2 outputs.
        let scale = Scale { alpha: 3.0, rule: ScaleRule::AlphaOverRank };
        let d = LowRank { a: tensor(2, 6), b: tensor(4, 2), scale, experts: None, name: "LoRA" };
        let new = factors(&d, &[2, 3, 2, 2]).unwrap().unwrap();
        assert_eq!((new.a.shape.dims(), new.b.shape.dims()), (&[4, 3, 2, 2][..], &[2, 4, 1, 1][..]));
        assert_eq!(new.factor(), 3.0);
        let of = |d: &LowRank, rank, width| product(&d.a.to_f32().unwrap(), &d.b.to_f32().unwrap(), rank, width);
        assert_eq!(of(&new, 4, 12), of(&d, 2, 6));
        assert!(factors(&d, &[4, 6]).unwrap().is_none());
        assert!(factors(&d, &[2, 3, 3, 3]).is_err() && factors(&d, &[2, 3, 2]).is_err());
        assert!(factors(&d, &[0, 0, 0, 0]).is_err() && factors(&d, &[2, usize::MAX, 2, 2]).is_err());
    }
}

//! The singular values of a change, from its factors: the change itself is never formed.

use ndarray::{Array2, Axis};

use super::kronecker::Factor;
use super::{Delta, Factors, Hadamard, Kronecker, LowRank};
use crate::adapter::scale::Scale;
use crate::error::Result;
use crate::kernels::Kernels;
use crate::limits;
use crate::linalg::product;

/// What the factors of a change say about its size.
#[derive(Clone, Debug, PartialEq)]
pub struct Spectrum {
    /// Rows and columns of the change; of one expert's, for a stack.
    pub shape: (usize, usize),
    /// Rank of the factors as they are stored.
    pub rank: usize,
    /// The scale it came with.
    pub scale: Scale,
    /// The multiplier that follows.
    pub factor: f64,
    /// Singular values, scale included, largest first; those of all experts together for a stack. Empty where finding
    /// them would take too long.
    pub values: Vec<f32>,
}

impl Delta {
    /// The spectrum of the change, for kinds that are made of factors; none for others.
    pub fn spectrum(&self, kernels: &dyn Kernels) -> Result<Option<Spectrum>> {
        match self {
            Delta::LowRank(d) => low_rank(d, kernels).map(Some),
            Delta::Hadamard(d) => hadamard(d, kernels).map(Some),
            Delta::Kronecker(d) => kronecker(d, kernels).map(Some),
            Delta::Tucker(d) => {
                let Factors { a, b, scale } = d.factors()?;
                let values = product::singular_values(kernels, b.view(), a.view())?;
                Ok(Some(finished((b.nrows(), a.ncols()), d.rank(), d.scale, scale, values)))
            }
            _ => Ok(None),
        }
    }
}

fn low_rank(d: &LowRank, kernels: &dyn Kernels) -> Result<Spectrum> {
    let all = d.expert_factors()?;
    let shape = all.first().map_or((0, 0), |f| (f.b.nrows(), f.a.ncols()));
    let mut values = Vec::new();
    for Factors { a, b, .. } in &all {
        values.extend(product::singular_values(kernels, b.view(), a.view())?);
    }
    Ok(finished(shape, d.rank(), d.scale, d.factor(), values))
}

/// `(b₁·a₁) ∘ (b₂·a₂)` is a product of rank r₁·r₂: its columns are those of b₁ times those of b₂, element by element.
fn hadamard(d: &Hadamard, kernels: &dyn Kernels) -> Result<Spectrum> {
    let (rank, factor) = (d.w1.rank(), d.scale.factor(d.w1.rank()));
    let ((b1, a1), (b2, a2)) = (d.w1.halves()?, d.w2.halves()?);
    let shape = (b1.nrows(), a1.ncols());
    let core = rank.saturating_mul(d.w2.rank());
    if core > limits::SPECTRUM_SIDE || b2.nrows() != shape.0 || a2.ncols() != shape.1 {
        return Ok(finished(shape, rank, d.scale, factor, Vec::new()));
    }
    let mut b = Array2::zeros((shape.0, core));
    let mut a = Array2::zeros((core, shape.1));
    let pairs = (0..rank).flat_map(|i| (0..d.w2.rank()).map(move |j| (i, j)));
    for (k, (i, j)) in pairs.enumerate() {
        b.column_mut(k).assign(&(&b1.column(i) * &b2.column(j)));
        a.row_mut(k).assign(&(&a1.row(i) * &a2.row(j)));
    }
    let values = product::singular_values(kernels, b.view(), a.view())?;
    Ok(finished(shape, rank, d.scale, factor, values))
}

/// The singular values of a Kronecker product are all products of those of its factors.
fn kronecker(d: &Kronecker, kernels: &dyn Kernels) -> Result<Spectrum> {
    let ((m1, n1), (m2, n2)) = (d.w1.shape()?, d.w2.shape()?);
    let shape = (m1.saturating_mul(m2), n1.saturating_mul(n2));
    let (rank, factor) = (d.rank(), d.scale.factor(d.rank()));
    let mut values = Vec::new();
    if !d.mixes_axes() {
        let (first, second) = (of_factor(&d.w1, kernels)?, of_factor(&d.w2, kernels)?);
        values = first.iter().flat_map(|x| second.iter().map(move |y| x * y)).collect();
    }
    Ok(finished(shape, rank, d.scale, factor, values))
}

fn of_factor(factor: &Factor, kernels: &dyn Kernels) -> Result<Vec<f32>> {
    match factor {
        Factor::Product(p) => {
            let (b, a) = p.halves()?;
            product::singular_values(kernels, b.view(), a.view())
        }
        Factor::Whole(t) => {
            let matrix = t.to_matrix()?;
            if matrix.len_of(Axis(0)).min(matrix.len_of(Axis(1))) > limits::SPECTRUM_SIDE {
                return Ok(Vec::new());
            }
            Ok(kernels.svd(matrix.view())?.s.to_vec())
        }
    }
}

fn finished(shape: (usize, usize), rank: usize, scale: Scale, factor: f64, mut values: Vec<f32>) -> Spectrum {
    values.iter_mut().for_each(|v| *v *= factor.abs() as f32);
    values.sort_by(|a, b| b.total_cmp(a));
    Spectrum { shape, rank, scale, factor, values }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::kronecker::Padding;
    use crate::adapter::delta::{Action, InMemory, Site};
    use crate::kernels::{OpenBlas, Reference};
    use crate::linalg::product::frobenius;
    use crate::tensor::{Dtype, Shape, Tensor};

    fn tensor(rows: usize, cols: usize, seed: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 37 + seed * 11) % 23) as f32 / 7.0 - 1.5).collect();
        Tensor::from_f32(Dtype::F32, vec![rows, cols], &values).unwrap()
    }

    /// Norm and largest singular value against those of the change itself, formed and decomposed in f64.
    fn agrees(delta: &Delta, rows: usize, cols: usize) {
        let shape = Shape::new([rows, cols]);
        let mut w = Array2::zeros((rows, cols));
        let before = InMemory(w.clone());
        match delta.prepare(&Site { shape: &shape, companion: None }).unwrap() {
            Action::Act(act) => act.act(&Reference, 0..rows, w.view_mut(), &before).unwrap(),
            Action::LowRank(f) => f.add_to(&Reference, 0..rows, w.view_mut()).unwrap(),
            Action::Experts(_) => panic!("a stack"),
        }
        let expected = Reference.svd(w.view()).unwrap().s;
        let found = delta.spectrum(&OpenBlas::new()).unwrap().unwrap();
        assert_eq!(found.shape, (rows, cols));
        let norm = w.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        assert!((frobenius(&found.values) - norm).abs() < 1e-4 * norm, "{} against {norm}", frobenius(&found.values));
        assert!((found.values[0] - expected[0]).abs() < 1e-4 * expected[0], "{:?} {expected}", found.values);
    }

    #[test]
    fn spectra_are_those_of_the_change() {
        let scale = Scale { alpha: 3.0, rule: crate::adapter::ScaleRule::AlphaOverRank };
        let pair = |r: usize, seed| crate::adapter::delta::product::Product {
            a: tensor(6, r, seed),
            b: tensor(r, 8, seed + 1),
            core: None,
        };
        let whole = |m, n, seed| Factor::Whole(tensor(m, n, seed));
        agrees(&Delta::Hadamard(Hadamard { w1: pair(2, 1), w2: pair(2, 3), scale }), 6, 8);
        let (w1, w2) = (whole(2, 4, 5), whole(3, 2, 6));
        agrees(&Delta::Kronecker(Kronecker { w1, w2, scale, padding: Padding::Behind }), 6, 8);
        let low = LowRank { a: tensor(2, 8, 7), b: tensor(6, 2, 8), scale, experts: None, name: "LoRA" };
        agrees(&Delta::LowRank(low), 6, 8);
    }
}

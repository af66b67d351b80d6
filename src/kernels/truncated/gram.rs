//! The full decomposition: eigenvectors of the Gram matrix of the shorter side, in f64.
//!
//! Products of two f32 are exact in f64, so the Gram matrix is good to 1e-16 of its size and a singular value to 1e-8
//! of the largest: below what storing the matrix in f32 has left of it. It costs m·n·min(m, n) operations in f64 and
//! about 4/3·min(m, n)³ for the eigenvalues, and holds min(m, n)² f64 and as much again. A tall matrix is read once
//! for it. Of a wide one every row is needed beside every other: panels of rows are held while the rest is read, so
//! that a wide matrix of several panels is read several times.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, s};

use super::finish::{Factors, Known, finish, out_of_range};
use super::{Depth, RowSource, Truncated, rows};
use crate::error::{Error, Kind, Result};
use crate::kernels::Kernels;

/// Bytes of rows that are held in place of being read again.
const PANEL_BYTES: usize = 128 << 20;
/// Largest shorter side: the Gram matrix takes 2 GiB there.
const MOST: usize = 16_384;

/// The decomposition with the optimal error, cut at `depth`, at most at `ceiling`.
pub fn svd<K: Kernels + ?Sized>(kernels: &K, d: &dyn RowSource, depth: Depth, ceiling: usize) -> Result<Truncated> {
    let (m, n) = d.dim();
    let short = m.min(n);
    if short > MOST {
        return Err(Error::new(Kind::Limit, format!("a full decomposition of [{m}, {n}], at most {MOST} on a side"))
            .hint("ask for a lower rank, or leave out --exact"));
    }
    let gram = if m >= n { of_columns(kernels, d)? } else { of_rows(kernels, d)? };
    let most = match depth {
        Depth::Rank(rank) => rank,
        _ => short,
    };
    let eigen = kernels.eigh(gram.of.view(), most.min(ceiling).min(short))?;
    let s: Vec<f64> = eigen.values.iter().map(|v| v.max(0.0).sqrt()).collect();
    let rank = depth.cut(&s, gram.energy, (m, n), ceiling).rank;
    let vectors = eigen.vectors.slice(s![..rank, ..]).mapv(|v| v as f32);
    let factors = if m >= n { from_right(kernels, d, vectors)? } else { from_left(kernels, d, vectors)? };
    finish(kernels, d, factors, &Known { energy: gram.energy, passes: gram.passes + 1, excess: 0.0, vectors: 0 })
}

/// Inner products of the columns or of the rows.
struct Gram {
    of: Array2<f64>,
    energy: f64,
    passes: usize,
}

fn of_columns<K: Kernels + ?Sized>(kernels: &K, d: &dyn RowSource) -> Result<Gram> {
    let n = d.dim().1;
    let mut out = Gram { of: Array2::zeros((n, n)), energy: 0.0, passes: 1 };
    rows::for_each(d, |range, block| {
        out.energy += rows::energy(range.start, block.view())?;
        kernels.add_inner(block.t(), block.t(), out.of.view_mut())
    })?;
    Ok(out)
}

fn of_rows<K: Kernels + ?Sized>(kernels: &K, d: &dyn RowSource) -> Result<Gram> {
    let (m, n) = d.dim();
    let panel = (PANEL_BYTES / (4 * n.max(1))).max(rows::height(n));
    let mut out = Gram { of: Array2::zeros((m, m)), energy: 0.0, passes: m.div_ceil(panel) };
    for start in (0..m).step_by(panel) {
        let held = start..(start + panel).min(m);
        let mut own = Array2::zeros((held.len(), n));
        d.read(held.clone(), own.view_mut())?;
        out.energy += rows::energy(start, own.view())?;
        out.put(kernels, (held.clone(), own.view()), (held.clone(), own.view()))?;
        rows::for_each_of(d, held.end..m, rows::height(n), |range, block| {
            out.put(kernels, (held.clone(), own.view()), (range, block.view()))
        })?;
    }
    Ok(out)
}

type Panel<'a> = (Range<usize>, ArrayView2<'a, f32>);

impl Gram {
    /// The part of some rows with some others, on both sides of the diagonal.
    fn put<K: Kernels + ?Sized>(&mut self, kernels: &K, (i, a): Panel, (j, b): Panel) -> Result<()> {
        let mut part = Array2::zeros((i.len(), j.len()));
        kernels.add_inner(a, b, part.view_mut())?;
        self.of.slice_mut(s![i.clone(), j.clone()]).assign(&part);
        self.of.slice_mut(s![j, i]).assign(&part.t());
        Ok(())
    }
}

/// With the right vectors V the left ones are d·V, of the lengths s.
fn from_right<K: Kernels + ?Sized>(kernels: &K, d: &dyn RowSource, vt: Array2<f32>) -> Result<Factors> {
    let mut us = Array2::zeros((vt.nrows(), d.dim().0));
    rows::for_each(d, |range, block| kernels.gemm(1.0, vt.view(), block.t(), 0.0, us.slice_mut(s![.., range])))?;
    let (ut, s) = unit_rows(us)?;
    Ok(Factors { ut, s, vt })
}

/// With the left vectors U the right ones are dᵀ·U.
fn from_left<K: Kernels + ?Sized>(kernels: &K, d: &dyn RowSource, ut: Array2<f32>) -> Result<Factors> {
    let mut vs = Array2::zeros((ut.nrows(), d.dim().1));
    rows::for_each(d, |range, block| kernels.gemm(1.0, ut.slice(s![.., range]), block.view(), 1.0, vs.view_mut()))?;
    let (vt, s) = unit_rows(vs)?;
    Ok(Factors { ut, s, vt })
}

/// The rows at length one, and the lengths; rows of zeros stay as they are.
fn unit_rows(mut x: Array2<f32>) -> Result<(Array2<f32>, Vec<f64>)> {
    let mut lengths = Vec::with_capacity(x.nrows());
    for mut row in x.rows_mut() {
        let length = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        if !length.is_finite() {
            return Err(out_of_range());
        }
        if length > 0.0 {
            row.mapv_inplace(|v| (f64::from(v) / length) as f32);
        }
        lengths.push(length);
    }
    Ok((x, lengths))
}

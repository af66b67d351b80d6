//! The matrix is read some rows at a time; the vectors are in host memory, and a backend's products work on them.

use std::ops::Range;

use ndarray::{Array1, Array2, ArrayView2, Axis, concatenate, s};

use super::field::{Field, out_of_range, unit_of};
use super::random::normals;
use super::{RowSource, rows};
use crate::error::{Error, Result};
use crate::kernels::{Eigen, Kernels};

/// Bytes of rows that are held in place of being read again.
const PANEL_BYTES: usize = 128 << 20;

/// A matrix that is read by rows, and a backend.
pub struct Host<'a, K: Kernels + ?Sized> {
    kernels: &'a K,
    d: &'a dyn RowSource,
    energy: f64,
    unit: Option<f32>,
    passes: usize,
}

impl<'a, K: Kernels + ?Sized> Host<'a, K> {
    /// Nothing is read yet.
    pub fn new(kernels: &'a K, d: &'a dyn RowSource) -> Self {
        Host { kernels, d, energy: 0.0, unit: None, passes: 0 }
    }
}

fn shape(e: ndarray::ShapeError) -> Error {
    Error::mismatch(e.to_string())
}

impl<K: Kernels + ?Sized> Field for Host<'_, K> {
    type Stack = Array2<f32>;

    fn dim(&self) -> (usize, usize) {
        self.d.dim()
    }

    fn count(&self, stack: &Array2<f32>) -> usize {
        stack.nrows()
    }

    fn nothing(&self, length: usize) -> Result<Array2<f32>> {
        Ok(Array2::zeros((0, length)))
    }

    fn normals(&self, seed: u64, stream: u64, dim: (usize, usize)) -> Result<Array2<f32>> {
        Ok(normals(seed, stream, dim))
    }

    fn part(&self, stack: &Array2<f32>, first: usize, count: usize) -> Result<Array2<f32>> {
        Ok(stack.slice(s![first..first + count, ..]).to_owned())
    }

    fn picked(&self, stack: &Array2<f32>, order: &[usize]) -> Result<Array2<f32>> {
        Ok(stack.select(Axis(0), order))
    }

    fn joined(&self, first: &Array2<f32>, second: &Array2<f32>) -> Result<Array2<f32>> {
        concatenate(Axis(0), &[first.view(), second.view()]).map_err(shape)
    }

    fn pass(&mut self, new: &Array2<f32>) -> Result<(Array2<f32>, Array2<f32>)> {
        let (kernels, is_first) = (self.kernels, self.passes == 0);
        let mut z = Array2::zeros(new.dim());
        let mut y = Array2::zeros((new.nrows(), self.d.dim().0));
        rows::for_each(self.d, |range, block| {
            if is_first {
                let energy = rows::energy(range.start, block.view())?;
                self.energy += energy;
                self.unit = self.unit.or_else(|| unit_of(energy));
            }
            let mut y = y.slice_mut(s![.., range]);
            kernels.gemm(1.0, new.view(), block.t(), 0.0, y.view_mut())?;
            match self.unit {
                Some(unit) => kernels.gemm(1.0, (&y * unit).view(), block.view(), 1.0, z.view_mut()),
                None => Ok(()), // nothing but zeros so far
            }
        })?;
        self.passes += 1;
        if !z.iter().chain(&y).all(|v: &f32| v.is_finite()) {
            return Err(out_of_range());
        }
        Ok((y, z))
    }

    fn scale(&self) -> (f64, Option<f32>) {
        (self.energy, self.unit)
    }

    fn inner(&self, a: &Array2<f32>, b: &Array2<f32>) -> Result<Array2<f64>> {
        let mut out = Array2::zeros((a.nrows(), b.nrows()));
        self.kernels.add_inner(a.view(), b.view(), out.view_mut())?;
        Ok(out)
    }

    fn project_out(&self, before: &Array2<f32>, z: &mut Array2<f32>) -> Result<()> {
        if before.nrows() == 0 {
            return Ok(());
        }
        let mut along = Array2::zeros((z.nrows(), before.nrows()));
        self.kernels.gemm(1.0, z.view(), before.t(), 0.0, along.view_mut())?;
        self.kernels.gemm(-1.0, along.view(), before.view(), 1.0, z.view_mut())
    }

    fn turned(&self, coefficients: ArrayView2<f32>, stack: &Array2<f32>) -> Result<Array2<f32>> {
        let mut out = Array2::zeros((coefficients.nrows(), stack.ncols()));
        self.kernels.gemm(1.0, coefficients, stack.view(), 0.0, out.view_mut())?;
        Ok(out)
    }

    fn sum(&self, first: Array2<f32>, second: &Array2<f32>) -> Result<Array2<f32>> {
        Ok(first + second)
    }

    fn reflected(&self, z: &Array2<f32>) -> Result<(Array2<f32>, Array2<f64>)> {
        let (q, r) = self.kernels.qr(z.t())?;
        Ok((q.t().as_standard_layout().into_owned(), r.mapv(f64::from)))
    }

    fn size(&self, stack: &Array2<f32>) -> Result<f64> {
        Ok(stack.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt())
    }

    /// A tall matrix is read once for it. Of a wide one every row is needed beside every other: panels of rows are held
    /// while the rest is read, so that a wide matrix of several panels is read several times.
    fn gram(&mut self) -> Result<(Array2<f64>, f64, usize)> {
        let (m, n) = self.d.dim();
        let mut out = Gram { of: Array2::zeros((m.min(n), m.min(n))), energy: 0.0 };
        if m >= n {
            rows::for_each(self.d, |range, block| {
                out.energy += rows::energy(range.start, block.view())?;
                self.kernels.add_inner(block.t(), block.t(), out.of.view_mut())
            })?;
            return Ok((out.of, out.energy, 1));
        }
        let panel = (PANEL_BYTES / (4 * n.max(1))).max(rows::height(n));
        for start in (0..m).step_by(panel) {
            let held = start..(start + panel).min(m);
            let mut own = Array2::zeros((held.len(), n));
            self.d.read(held.clone(), own.view_mut())?;
            out.energy += rows::energy(start, own.view())?;
            out.put(self.kernels, (held.clone(), own.view()), (held.clone(), own.view()))?;
            rows::for_each_of(self.d, held.end..m, rows::height(n), |range, block| {
                out.put(self.kernels, (held.clone(), own.view()), (range, block.view()))
            })?;
        }
        Ok((out.of, out.energy, m.div_ceil(panel)))
    }

    fn times(&mut self, stack: &Array2<f32>) -> Result<Array2<f32>> {
        let mut out = Array2::zeros((stack.nrows(), self.d.dim().0));
        rows::for_each(self.d, |range, block| {
            self.kernels.gemm(1.0, stack.view(), block.t(), 0.0, out.slice_mut(s![.., range]))
        })?;
        Ok(out)
    }

    fn transposed_times(&mut self, stack: &Array2<f32>) -> Result<Array2<f32>> {
        let mut out = Array2::zeros((stack.nrows(), self.d.dim().1));
        rows::for_each(self.d, |range, block| {
            self.kernels.gemm(1.0, stack.slice(s![.., range]), block.view(), 1.0, out.view_mut())
        })?;
        Ok(out)
    }

    fn eigenvalues(&self, a: ArrayView2<f64>) -> Result<Vec<f64>> {
        self.kernels.eigenvalues(a)
    }

    fn eigh(&self, a: ArrayView2<f64>, most: usize) -> Result<Eigen> {
        self.kernels.eigh(a, most)
    }

    fn unit(&self, mut stack: Array2<f32>) -> Result<(Array2<f32>, Vec<f64>)> {
        let mut lengths = Vec::with_capacity(stack.nrows());
        for mut row in stack.rows_mut() {
            let length = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            if !length.is_finite() {
                return Err(out_of_range());
            }
            if length > 0.0 {
                row.mapv_inplace(|v| (f64::from(v) / length) as f32);
            }
            lengths.push(length);
        }
        Ok((stack, lengths))
    }

    fn residual(&mut self, u: &Array2<f32>, s: &[f64], v: &Array2<f32>) -> Result<f64> {
        let s: Array1<f32> = s.iter().map(|&s| s as f32).collect();
        let u = u.t().as_standard_layout().into_owned();
        let mut sum = 0.0;
        rows::for_each(self.d, |range, mut block| {
            let us = &u.slice(s![range.clone(), ..]) * &s;
            self.kernels.gemm(-1.0, us.view(), v.view(), 1.0, block.view_mut())?;
            sum += rows::energy(range.start, block.view())?;
            Ok(())
        })?;
        Ok(sum)
    }

    fn to_host(&self, stack: &Array2<f32>) -> Result<Array2<f32>> {
        self.require_finite(stack)?;
        Ok(stack.clone())
    }

    fn of_host(&self, rows: Array2<f32>) -> Result<Array2<f32>> {
        Ok(rows)
    }

    fn require_finite(&self, stack: &Array2<f32>) -> Result<()> {
        if stack.iter().all(|v| v.is_finite()) { Ok(()) } else { Err(out_of_range()) }
    }
}

/// Inner products of rows.
struct Gram {
    of: Array2<f64>,
    energy: f64,
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

//! The smallest singular components of a weight, taken out of it: what KaSA and OSF have in common. No kind of its own.

use ndarray::{ArrayViewMut2, s};

use crate::error::{Error, Result};
use crate::kernels::Kernels;

/// Bytes of workspace for the decomposition of `rows` × `cols`: the copy, both factors and the routine's own.
pub fn footprint(rows: usize, cols: usize) -> u64 {
    24 * rows as u64 * cols as u64
}

/// Subtracts the `count` smallest singular components of `w` from it.
pub fn drop_smallest(kernels: &dyn Kernels, mut w: ArrayViewMut2<f32>, count: usize) -> Result<()> {
    let svd = kernels.svd(w.view())?;
    let keep = svd.s.len().checked_sub(count).ok_or_else(|| {
        Error::mismatch(format!("{count} singular components to drop, the weight has {}", svd.s.len()))
    })?;
    let mut left = svd.u.slice(s![.., keep..]).to_owned();
    left *= &svd.s.slice(s![keep..]);
    kernels.gemm(-1.0, left.view(), svd.vt.slice(s![keep.., ..]), 1.0, w.view_mut())
}

//! OpenBLAS through CBLAS and LAPACK (on macOS, Accelerate through the same calls). With the mapped files and the
//! fused step, one of the few places with `unsafe`: the calls are foreign functions.
//!
//! LAPACK is column-major. A row-major matrix is its own transpose there, so the factorisations are asked for the
//! transposed problem and the results read back row-major.

#![expect(unsafe_code, reason = "calls of foreign functions")]

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};

use super::{Kernels, Svd};
use crate::error::{Error, Kind, Result};

extern crate blas_src; // links the library that the calls below are resolved in

/// The OpenBLAS backend.
#[derive(Clone, Copy, Debug)]
pub struct OpenBlas(());

#[cfg(not(target_os = "macos"))]
unsafe extern "C" {
    fn openblas_set_num_threads(threads: std::ffi::c_int);
}

impl OpenBlas {
    /// Sets the library up: one thread for each caller, since the callers are threads already.
    pub fn new() -> Self {
        #[cfg(not(target_os = "macos"))]
        // SAFETY: takes a plain number and may be called at any time.
        unsafe {
            openblas_set_num_threads(1);
        }
        OpenBlas(())
    }
}

impl Default for OpenBlas {
    fn default() -> Self {
        OpenBlas::new()
    }
}

fn int(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::new(Kind::Limit, format!("matrix extent {n} is beyond what BLAS takes")))
}

fn lapack_failed(routine: &str, info: i32) -> Error {
    Error::new(Kind::Unsupported, format!("LAPACK {routine} did not converge (info {info})"))
}

impl Kernels for OpenBlas {
    fn name(&self) -> &'static str {
        if cfg!(target_os = "macos") { "accelerate" } else { "openblas" }
    }

    fn gemm(
        &self,
        alpha: f32,
        a: ArrayView2<f32>,
        b: ArrayView2<f32>,
        beta: f32,
        mut c: ArrayViewMut2<f32>,
    ) -> Result<()> {
        if a.ncols() != b.nrows() || c.dim() != (a.nrows(), b.ncols()) {
            return Err(Error::mismatch(format!("gemm of {:?} and {:?} into {:?}", a.dim(), b.dim(), c.dim())));
        }
        int(a.nrows()).and(int(a.ncols())).and(int(b.ncols()))?;
        // ndarray hands row- and column-major views to cblas_sgemm as they are and copies what is neither.
        if beta == 0.0 {
            c.fill(0.0); // its own loop for tiny matrices multiplies instead of overwriting
        }
        ndarray::linalg::general_mat_mul(alpha, &a, &b, beta, &mut c);
        Ok(())
    }

    fn qr(&self, a: ArrayView2<f32>) -> Result<(Array2<f32>, Array2<f32>)> {
        let (m, n) = a.dim();
        let k = m.min(n);
        if k == 0 {
            return Ok((Array2::zeros((m, 0)), Array2::zeros((0, n))));
        }
        let (im, in_, ik) = (int(m)?, int(n)?, int(k)?);
        // Column-major copy of a: the rows of aᵀ one after the other.
        let mut work_a: Vec<f32> = a.t().iter().copied().collect();
        let mut tau = vec![0f32; k];
        let mut info = 0;
        let mut query = [0f32];
        // SAFETY: with lwork = -1 only the best workspace size is written to `query`; sizes are those of the buffers.
        unsafe { lapack::sgeqrf(im, in_, &mut work_a, im, &mut tau, &mut query, -1, &mut info) };
        let mut lwork = (query[0] as usize).max(n.max(1));
        let mut work = vec![0f32; lwork];
        // SAFETY: work_a is m·n, tau min(m, n), work lwork long, as the routine asks.
        unsafe { lapack::sgeqrf(im, in_, &mut work_a, im, &mut tau, &mut work, int(lwork)?, &mut info) };
        if info != 0 {
            return Err(lapack_failed("sgeqrf", info));
        }
        let r = Array2::from_shape_fn((k, n), |(i, j)| if i <= j { work_a[j * m + i] } else { 0.0 });
        work_a.truncate(m * k);
        // SAFETY: as above; m ≥ k = number of reflectors.
        unsafe { lapack::sorgqr(im, ik, ik, &mut work_a, im, &tau, &mut query, -1, &mut info) };
        lwork = (query[0] as usize).max(k);
        work.resize(lwork, 0.0);
        // SAFETY: work_a is m·k, tau k, work lwork long.
        unsafe { lapack::sorgqr(im, ik, ik, &mut work_a, im, &tau, &mut work, int(lwork)?, &mut info) };
        if info != 0 {
            return Err(lapack_failed("sorgqr", info));
        }
        let q = Array2::from_shape_fn((m, k), |(i, j)| work_a[j * m + i]);
        Ok((q, r))
    }

    fn svd(&self, a: ArrayView2<f32>) -> Result<Svd> {
        let (m, n) = a.dim();
        let k = m.min(n);
        if k == 0 {
            return Ok(Svd { u: Array2::zeros((m, 0)), s: Array1::zeros(0), vt: Array2::zeros((0, n)) });
        }
        // Row-major a is column-major aᵀ: [n, m]. Its left vectors are our right ones, and each comes out in the
        // order we want to read it in.
        let mut at: Vec<f32> = a.iter().copied().collect();
        let (im, in_, ik) = (int(m)?, int(n)?, int(k)?);
        let (mut s, mut left, mut right) = (vec![0f32; k], vec![0f32; n * k], vec![0f32; k * m]);
        let mut iwork = vec![0i32; 8 * k];
        let mut info = 0;
        let mut query = [0f32];
        // SAFETY: lwork = -1 only writes the workspace size; all buffers have the sizes sgesdd documents for jobz = S.
        unsafe {
            lapack::sgesdd(
                b'S', in_, im, &mut at, in_, &mut s, &mut left, in_, &mut right, ik, &mut query, -1, &mut iwork,
                &mut info,
            );
        }
        let lwork = (query[0] as usize).max(1);
        let mut work = vec![0f32; lwork];
        // SAFETY: as above, with a workspace of the size it asked for.
        unsafe {
            lapack::sgesdd(
                b'S',
                in_,
                im,
                &mut at,
                in_,
                &mut s,
                &mut left,
                in_,
                &mut right,
                ik,
                &mut work,
                int(lwork)?,
                &mut iwork,
                &mut info,
            );
        }
        if info != 0 {
            return Err(lapack_failed("sgesdd", info));
        }
        let shape = |e: ndarray::ShapeError| Error::mismatch(e.to_string());
        // `left` is column-major [n, k] = row-major [k, n] = vt; `right` is column-major [k, m] = row-major [m, k] = u.
        Ok(Svd {
            u: Array2::from_shape_vec((m, k), right).map_err(shape)?,
            s: Array1::from_vec(s),
            vt: Array2::from_shape_vec((k, n), left).map_err(shape)?,
        })
    }
}

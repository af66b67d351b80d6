//! OpenBLAS through CBLAS and LAPACK (on macOS, Accelerate through the same calls). With the mapped files and the
//! fused step, one of the few places with `unsafe`: the calls are foreign functions.
//!
//! LAPACK is column-major. A row-major matrix is its own transpose there, so the factorisations are asked for the
//! transposed problem and the results read back row-major.

#![expect(unsafe_code, reason = "calls of foreign functions")]

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis};

use super::{Eigen, Kernels, Svd};
use crate::error::{Error, Kind, Result};
use crate::limits;

extern crate blas_src; // links the library that the calls below are resolved in

/// The OpenBLAS backend.
#[derive(Clone, Copy, Debug)]
pub struct OpenBlas(());

#[cfg(not(target_os = "macos"))]
unsafe extern "C" {
    fn openblas_set_num_threads(threads: std::ffi::c_int);
}

/// Run before the library sets itself up: it would start a thread for every core then, which nobody uses, and which
/// ends the process where the system gives no more threads or memory. A value that is set already stays.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array.00099")]
static ALONE: extern "C" fn() = alone;

#[cfg(target_os = "linux")]
extern "C" fn alone() {
    // SAFETY: both texts end with a zero, and no other thread runs yet.
    unsafe {
        libc::setenv(c"OPENBLAS_NUM_THREADS".as_ptr(), c"1".as_ptr(), 0);
    }
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
    i32::try_from(n).map_err(|_| Error::limit(format!("a matrix extent of {n}"), limits::BLAS_EXTENT))
}

/// Iterations of LAPACK do not end where a matrix has NaN or infinity in it, which finite factors can give.
fn require_finite(is_finite: bool) -> Result<()> {
    if is_finite { Ok(()) } else { Err(super::truncated::field::out_of_range()) }
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
        require_finite(a.iter().all(|v| v.is_finite()))?;
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

    /// Some columns at a time in f64, so that the products are exact and the copies stay in the cache.
    fn add_inner(&self, a: ArrayView2<f32>, b: ArrayView2<f32>, mut out: ArrayViewMut2<f64>) -> Result<()> {
        super::fits_inner(a, b, out.dim())?;
        int(a.nrows()).and(int(b.nrows())).and(int(a.ncols()))?;
        for (a, b) in a.axis_chunks_iter(Axis(1), INNER_RUN).zip(b.axis_chunks_iter(Axis(1), INNER_RUN)) {
            ndarray::linalg::general_mat_mul(1.0, &a.mapv(f64::from), &b.mapv(f64::from).t(), 1.0, &mut out);
        }
        Ok(())
    }

    fn eigenvalues(&self, a: ArrayView2<f64>) -> Result<Vec<f64>> {
        Ok(divide_and_conquer(b'N', a)?.1)
    }

    fn eigh(&self, a: ArrayView2<f64>, most: usize) -> Result<Eigen> {
        let n = a.nrows();
        if most < n {
            return largest(a, most);
        }
        let (vectors, values) = divide_and_conquer(b'V', a)?;
        let vectors = Array2::from_shape_vec((n, n), vectors).map_err(|e| Error::mismatch(e.to_string()))?;
        // Column-major columns are rows here; LAPACK has the smallest first.
        Ok(Eigen { values, vectors: vectors.slice(ndarray::s![..;-1, ..]).to_owned() })
    }
}

/// Columns that are widened at a time.
const INNER_RUN: usize = 512;

/// All eigenvalues of a symmetric matrix, largest first, and for `job` V the vectors one after the other, smallest
/// first.
fn divide_and_conquer(job: u8, a: ArrayView2<f64>) -> Result<(Vec<f64>, Vec<f64>)> {
    let n = super::order_of(a)?;
    let mut vectors: Vec<f64> = a.iter().copied().collect();
    if n == 0 {
        return Ok((vectors, Vec::new()));
    }
    require_finite(vectors.iter().all(|v| v.is_finite()))?;
    let order = int(n)?;
    let mut values = vec![0f64; n];
    let (mut query, mut iquery, mut info) = ([0f64], [0i32], 0);
    // SAFETY: with lengths of -1 only the best workspace sizes are written.
    unsafe {
        lapack::dsyevd(job, b'U', order, &mut vectors, order, &mut values, &mut query, -1, &mut iquery, -1, &mut info);
    }
    let (mut work, mut iwork) = (vec![0f64; (query[0] as usize).max(1)], vec![0i32; iquery[0].max(1) as usize]);
    let (lwork, liwork) = (int(work.len())?, int(iwork.len())?);
    // SAFETY: vectors is n·n, values n long, and the workspaces have the sizes asked for.
    unsafe {
        lapack::dsyevd(
            job,
            b'U',
            order,
            &mut vectors,
            order,
            &mut values,
            &mut work,
            lwork,
            &mut iwork,
            liwork,
            &mut info,
        );
    }
    if info != 0 {
        return Err(lapack_failed("dsyevd", info));
    }
    values.reverse();
    Ok((vectors, values))
}

/// The `most` largest eigenvalues of a symmetric matrix and their vectors; fewer than there are.
fn largest(a: ArrayView2<f64>, most: usize) -> Result<Eigen> {
    let n = super::order_of(a)?;
    if most == 0 {
        return Ok(Eigen { values: Vec::new(), vectors: Array2::zeros((0, n)) });
    }
    let mut a: Vec<f64> = a.iter().copied().collect();
    require_finite(a.iter().all(|v| v.is_finite()))?;
    let (order, first) = (int(n)?, int(n - most + 1)?);
    let (mut values, mut vectors, mut support) = (vec![0f64; n], vec![0f64; n * most], vec![0i32; 2 * most.max(1)]);
    let (mut query, mut iquery, mut info, mut found) = ([0f64], [0i32], 0, 0);
    // SAFETY: with lengths of -1 only the best workspace sizes are written.
    unsafe {
        lapack::dsyevr(
            b'V',
            b'I',
            b'U',
            order,
            &mut a,
            order,
            0.0,
            0.0,
            first,
            order,
            0.0,
            &mut found,
            &mut values,
            &mut vectors,
            order,
            &mut support,
            &mut query,
            -1,
            &mut iquery,
            -1,
            &mut info,
        );
    }
    let (mut work, mut iwork) = (vec![0f64; (query[0] as usize).max(1)], vec![0i32; iquery[0].max(1) as usize]);
    let (lwork, liwork) = (int(work.len())?, int(iwork.len())?);
    // SAFETY: a is n·n, values n, vectors n·most, support 2·most long, and the workspaces have the sizes asked for.
    unsafe {
        lapack::dsyevr(
            b'V',
            b'I',
            b'U',
            order,
            &mut a,
            order,
            0.0,
            0.0,
            first,
            order,
            0.0,
            &mut found,
            &mut values,
            &mut vectors,
            order,
            &mut support,
            &mut work,
            lwork,
            &mut iwork,
            liwork,
            &mut info,
        );
    }
    if info != 0 || usize::try_from(found) != Ok(most) {
        return Err(lapack_failed("dsyevr", info));
    }
    values.truncate(most);
    values.reverse();
    let vectors = Array2::from_shape_vec((most, n), vectors).map_err(|e| Error::mismatch(e.to_string()))?;
    Ok(Eigen { values, vectors: vectors.slice(ndarray::s![..;-1, ..]).to_owned() })
}

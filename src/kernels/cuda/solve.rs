//! Factorisations by cuSOLVER, which is column-major: a stack of vectors is a matrix with the vectors as its columns.

use cudarc::cusolver::sys::{self as cusolver, cublasFillMode_t, cusolverEigMode_t, cusolverEigRange_t};
use ndarray::{Array1, Array2, ArrayView2};

use super::blas::{Digits, Mat};
use super::fault::{self, Done, Fault};
use super::lane::Lane;
use crate::error::{Error, Kind};
use crate::kernels::{Eigen, Svd, order_of};

/// What a routine says about its arguments and its convergence.
fn settled(lane: &Lane, routine: &str, info: u64) -> Done<()> {
    match lane.download::<i32>(info, 1)?.first() {
        Some(0) => Ok(()),
        Some(info @ ..0) => Err(Fault::Broken(format!("{routine}: argument {info}"))),
        info => {
            let what = format!("cuSOLVER {routine} did not converge (info {})", info.copied().unwrap_or(0));
            Err(Fault::Input(Error::new(Kind::Unsupported, what)))
        }
    }
}

fn shape(e: ndarray::ShapeError) -> Fault {
    Fault::Input(Error::mismatch(e.to_string()))
}

/// Replaces the b vectors of `z`: [b, n], b ≤ n, by orthonormal ones; R: [b, b], upper triangular, with Rᵀ · q = z.
pub fn qr_of_rows(lane: &Lane, z: Mat) -> Done<Array2<f32>> {
    let (count, length) = (z.rows, z.cols);
    if count == 0 {
        return Ok(Array2::zeros((0, 0)));
    }
    let (m, n) = (fault::int(length)?, fault::int(count)?);
    let handle = lane.solver()?;
    let (tau, info) = (lane.room::<f32>(count)?, lane.zeros::<i32>(1)?);
    let (a, tau_at, info_at) = (z.at as *mut f32, tau.at as *mut f32, info.at as *mut i32);
    let (mut first, mut second) = (0, 0);
    // SAFETY: the matrix is `length` by `count` with its columns one behind the other, and the workspace has the size that
    // is asked for.
    unsafe {
        fault::solver(
            "cusolverDnSgeqrf_bufferSize",
            cusolver::cusolverDnSgeqrf_bufferSize(handle, m, n, a, m, &raw mut first),
        )?;
        let status = cusolver::cusolverDnSorgqr_bufferSize(handle, m, n, n, a, m, tau_at, &raw mut second);
        fault::solver("cusolverDnSorgqr_bufferSize", status)?;
    }
    let work = lane.room::<f32>(first.max(second).max(1) as usize)?;
    let at = work.at as *mut f32;
    // SAFETY: as above.
    let status = unsafe { cusolver::cusolverDnSgeqrf(handle, m, n, a, m, tau_at, at, first, info_at) };
    fault::solver("cusolverDnSgeqrf", status)?;
    // Column j of R is the head of what is now vector j.
    let heads = lane.corner(Mat { cols: count, ..z })?;
    settled(lane, "geqrf", info.at)?;
    // SAFETY: as above.
    let status = unsafe { cusolver::cusolverDnSorgqr(handle, m, n, n, a, m, tau_at, at, second, info_at) };
    fault::solver("cusolverDnSorgqr", status)?;
    settled(lane, "orgqr", info.at)?;
    Ok(Array2::from_shape_fn((count, count), |(i, j)| if i <= j { heads[j * count + i] } else { 0.0 }))
}

/// Thin QR of a: [m, n].
pub fn qr(lane: &Lane, a: ArrayView2<f32>) -> Done<(Array2<f32>, Array2<f32>)> {
    let (m, n) = a.dim();
    let k = m.min(n);
    let held: Vec<f32> = a.slice(ndarray::s![.., ..k]).t().iter().copied().collect();
    let buffer = lane.upload(&held)?;
    let stack = Mat::new(buffer.at, k, m);
    let head = qr_of_rows(lane, stack)?;
    let q = Array2::from_shape_vec((k, m), lane.download(buffer.at, k * m)?).map_err(shape)?;
    let mut r = Array2::zeros((k, n));
    r.slice_mut(ndarray::s![.., ..k]).assign(&head);
    if n > k {
        // What the vectors found make of the other columns.
        let rest: Vec<f32> = a.slice(ndarray::s![.., k..]).iter().copied().collect();
        let (rest, out) = (lane.upload(&rest)?, lane.room::<f32>(k * (n - k))?);
        let product = (stack, Mat::new(rest.at, m, n - k));
        lane.gemm(Digits::All, 1.0, product, 0.0, Mat::new(out.at, k, n - k))?;
        let values = Array2::from_shape_vec((k, n - k), lane.download(out.at, k * (n - k))?).map_err(shape)?;
        r.slice_mut(ndarray::s![.., k..]).assign(&values);
    }
    Ok((q.t().as_standard_layout().into_owned(), r))
}

/// Thin singular value decomposition of a: [m, n].
pub fn svd(lane: &Lane, a: ArrayView2<f32>) -> Done<Svd> {
    let (m, n) = a.dim();
    if m > n {
        let Svd { u, s, vt } = svd(lane, a.t())?;
        let turned = |x: Array2<f32>| x.t().as_standard_layout().into_owned();
        return Ok(Svd { u: turned(vt), s, vt: turned(u) });
    }
    // By rows [m, n] is by columns [n, m], at least as many rows as columns, which is what the routine takes.
    let held: Vec<f32> = a.iter().copied().collect();
    let (held, s) = (lane.upload(&held)?, lane.room::<f32>(m)?);
    let (left, right) = (lane.room::<f32>(n * m)?, lane.room::<f32>(m * m)?);
    let (rest, info) = (lane.room::<f32>(m)?, lane.zeros::<i32>(1)?);
    let (tall, wide) = (fault::int(n)?, fault::int(m)?);
    let handle = lane.solver()?;
    let mut length = 0;
    // SAFETY: writes one number.
    let status = unsafe { cusolver::cusolverDnSgesvd_bufferSize(handle, tall, wide, &raw mut length) };
    fault::solver("cusolverDnSgesvd_bufferSize", status)?;
    let work = lane.room::<f32>(length.max(1) as usize)?;
    let job = b'S' as std::ffi::c_schar;
    // SAFETY: all buffers have the sizes that are documented for this job.
    let status = unsafe {
        cusolver::cusolverDnSgesvd(
            handle,
            job,
            job,
            tall,
            wide,
            held.at as *mut f32,
            tall,
            s.at as *mut f32,
            left.at as *mut f32,
            tall,
            right.at as *mut f32,
            wide,
            work.at as *mut f32,
            length,
            rest.at as *mut f32,
            info.at as *mut i32,
        )
    };
    fault::solver("cusolverDnSgesvd", status)?;
    settled(lane, "gesvd", info.at)?;
    Ok(Svd {
        u: Array2::from_shape_vec((m, m), lane.download(right.at, m * m)?).map_err(shape)?,
        s: Array1::from_vec(lane.download(s.at, m)?),
        vt: Array2::from_shape_vec((m, n), lane.download(left.at, m * n)?).map_err(shape)?,
    })
}

/// The largest eigenvalues of a symmetric matrix and their vectors; for `most` of 0 all the values and no vectors.
pub fn eigh(lane: &Lane, a: ArrayView2<f64>, most: usize) -> Done<Eigen> {
    let n = order_of(a)?;
    let (only_values, count) = (most == 0, if most == 0 { n } else { most.min(n) });
    if n == 0 {
        return Ok(Eigen { values: Vec::new(), vectors: Array2::zeros((0, 0)) });
    }
    let held: Vec<f64> = a.iter().copied().collect();
    let (held, values, info) = (lane.upload(&held)?, lane.room::<f64>(n)?, lane.zeros::<i32>(1)?);
    let order = fault::int(n)?;
    let job = if only_values {
        cusolverEigMode_t::CUSOLVER_EIG_MODE_NOVECTOR
    } else {
        cusolverEigMode_t::CUSOLVER_EIG_MODE_VECTOR
    };
    let range =
        if count == n { cusolverEigRange_t::CUSOLVER_EIG_RANGE_ALL } else { cusolverEigRange_t::CUSOLVER_EIG_RANGE_I };
    let (first, fill) = (fault::int(n - count + 1)?, cublasFillMode_t::CUBLAS_FILL_MODE_UPPER);
    let handle = lane.solver()?;
    let (matrix, of_values) = (held.at as *mut f64, values.at as *mut f64);
    let (mut found, mut length) = (0, 0);
    // SAFETY: the matrix is n by n, there is room for n values, and the workspace has the size that is asked for.
    unsafe {
        let status = cusolver::cusolverDnDsyevdx_bufferSize(
            handle,
            job,
            range,
            fill,
            order,
            matrix,
            order,
            0.0,
            0.0,
            first,
            order,
            &raw mut found,
            of_values,
            &raw mut length,
        );
        fault::solver("cusolverDnDsyevdx_bufferSize", status)?;
    }
    let work = lane.room::<f64>(length.max(1) as usize)?;
    // SAFETY: as above.
    unsafe {
        let status = cusolver::cusolverDnDsyevdx(
            handle,
            job,
            range,
            fill,
            order,
            matrix,
            order,
            0.0,
            0.0,
            first,
            order,
            &raw mut found,
            of_values,
            work.at as *mut f64,
            length,
            info.at as *mut i32,
        );
        fault::solver("cusolverDnDsyevdx", status)?;
    }
    settled(lane, "syevdx", info.at)?;
    if usize::try_from(found) != Ok(count) {
        return Err(Fault::Broken(format!("syevdx found {found} of {count} eigenvalues")));
    }
    // Smallest first; columns are rows here.
    let mut all = lane.download::<f64>(values.at, count)?;
    all.reverse();
    if only_values {
        return Ok(Eigen { values: all, vectors: Array2::zeros((0, n)) });
    }
    let vectors = Array2::from_shape_vec((count, n), lane.download(held.at, count * n)?).map_err(shape)?;
    Ok(Eigen { values: all, vectors: vectors.slice(ndarray::s![..;-1, ..]).to_owned() })
}

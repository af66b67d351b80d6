//! What can go wrong on a device, told apart by what is done about it.

use std::ffi::CStr;
use std::ptr::null;

use cudarc::cublas::sys::cublasStatus_t;
use cudarc::cusolver::sys::cusolverStatus_t;
use cudarc::driver::sys::{self as cuda, CUresult};

use crate::error::Error;

/// Why a device did not do something.
#[derive(Debug)]
pub enum Fault {
    /// Its memory is full, or what it was allowed of it: the work is done in smaller parts or elsewhere.
    Full,
    /// It does not work, or does not work any more: it is not asked again.
    Broken(String),
    /// What was asked for is wrong, whoever computes it.
    Input(Error),
}

/// What a device has done.
pub type Done<T> = Result<T, Fault>;

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Input(error)
    }
}

/// The status of a call of the driver.
pub fn driver(what: &str, status: CUresult) -> Done<()> {
    match status {
        CUresult::CUDA_SUCCESS => Ok(()),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(Fault::Full),
        status => {
            let mut name = null();
            // SAFETY: writes a pointer to a text that stays, or null.
            let told = unsafe { cuda::cuGetErrorName(status, &raw mut name) };
            let name = if told == CUresult::CUDA_SUCCESS && !name.is_null() {
                // SAFETY: as above.
                unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
            } else {
                format!("{status:?}")
            };
            Err(Fault::Broken(format!("{what}: {name}")))
        }
    }
}

/// The status of a call of cuBLAS.
pub fn blas(what: &str, status: cublasStatus_t) -> Done<()> {
    match status {
        cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => Err(Fault::Full),
        status => Err(Fault::Broken(format!("{what}: {status:?}"))),
    }
}

/// The status of a call of cuSOLVER.
pub fn solver(what: &str, status: cusolverStatus_t) -> Done<()> {
    match status {
        cusolverStatus_t::CUSOLVER_STATUS_SUCCESS => Ok(()),
        cusolverStatus_t::CUSOLVER_STATUS_ALLOC_FAILED => Err(Fault::Full),
        status => Err(Fault::Broken(format!("{what}: {status:?}"))),
    }
}

/// An extent as the libraries take it.
pub fn int(n: usize) -> Done<i32> {
    i32::try_from(n).map_err(|_| Fault::Full) // the host's own check has its own words for it
}

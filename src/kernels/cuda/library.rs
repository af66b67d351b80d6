//! Finding the libraries of CUDA at run time. Nothing here is linked: a machine without them is told so.
//!
//! The driver's library comes with the driver and is where the loader looks. The others come with a toolkit or with the
//! packages that Python programs install, which the loader knows nothing of; those are opened by their paths, after what
//! they depend on, and are then found by name.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::{cublas, cusolver, driver, nvrtc};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};

/// Libraries in an order in which each has what it depends on before it.
const IN_ORDER: [&str; 7] = [
    "libnvJitLink.so.",
    "libcublasLt.so.",
    "libcublas.so.",
    "libcusparse.so.",
    "libcusolver.so.",
    "libnvrtc-builtins.so.",
    "libnvrtc.so.",
];

/// What is called of each. One that lacks any of it is too old.
const OF_DRIVER: [&[u8]; 35] = [
    b"cuCtxSetCurrent",
    b"cuDeviceGet",
    b"cuDeviceGetAttribute",
    b"cuDeviceGetCount",
    b"cuDeviceGetDefaultMemPool",
    b"cuDeviceGetName",
    b"cuDevicePrimaryCtxRelease_v2",
    b"cuDevicePrimaryCtxRetain",
    b"cuDeviceTotalMem_v2",
    b"cuDriverGetVersion",
    b"cuEventCreate",
    b"cuEventDestroy_v2",
    b"cuEventRecord",
    b"cuEventSynchronize",
    b"cuGetErrorName",
    b"cuInit",
    b"cuLaunchKernel",
    b"cuMemAllocAsync",
    b"cuMemAlloc_v2",
    b"cuMemFreeAsync",
    b"cuMemFreeHost",
    b"cuMemFree_v2",
    b"cuMemGetInfo_v2",
    b"cuMemHostAlloc",
    b"cuMemPoolSetAttribute",
    b"cuMemcpyDtoDAsync_v2",
    b"cuMemcpyDtoHAsync_v2",
    b"cuMemcpyHtoDAsync_v2",
    b"cuMemsetD8Async",
    b"cuModuleGetFunction",
    b"cuModuleLoadData",
    b"cuModuleUnload",
    b"cuStreamCreate",
    b"cuStreamDestroy_v2",
    b"cuStreamSynchronize",
];
const OF_CUBLAS: [&[u8]; 6] = [
    b"cublasCreate_v2",
    b"cublasDestroy_v2",
    b"cublasDgemm_v2",
    b"cublasSetMathMode",
    b"cublasSetStream_v2",
    b"cublasSgemm_v2",
];
const OF_CUSOLVER: [&[u8]; 11] = [
    b"cusolverDnCreate",
    b"cusolverDnDestroy",
    b"cusolverDnDsyevdx",
    b"cusolverDnDsyevdx_bufferSize",
    b"cusolverDnSetStream",
    b"cusolverDnSgeqrf",
    b"cusolverDnSgeqrf_bufferSize",
    b"cusolverDnSgesvd",
    b"cusolverDnSgesvd_bufferSize",
    b"cusolverDnSorgqr",
    b"cusolverDnSorgqr_bufferSize",
];
const OF_NVRTC: [&[u8]; 12] = [
    b"nvrtcCompileProgram",
    b"nvrtcCreateProgram",
    b"nvrtcDestroyProgram",
    b"nvrtcGetCUBIN",
    b"nvrtcGetCUBINSize",
    b"nvrtcGetNumSupportedArchs",
    b"nvrtcGetPTX",
    b"nvrtcGetPTXSize",
    b"nvrtcGetProgramLog",
    b"nvrtcGetProgramLogSize",
    b"nvrtcGetSupportedArchs",
    b"nvrtcVersion",
];

/// Makes sure that the driver is there, with all there is to call of it. Otherwise says what is missing.
pub fn require_driver() -> Result<(), String> {
    static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
    let find = || {
        if !stays_open("cuda") {
            return Err("no NVIDIA driver: libcuda.so.1 was not found".to_string());
        }
        // SAFETY: it has been opened by one of the names that are tried again here.
        lacks("driver", unsafe { driver::sys::culib() }, &OF_DRIVER)
    };
    FOUND.get_or_init(find).clone()
}

/// Makes sure that everything there is to call is there. Otherwise says what is missing. `folders` are looked through
/// for what the loader does not find.
pub fn require(folders: &[PathBuf]) -> Result<(), String> {
    static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
    FOUND.get_or_init(|| find(folders)).clone()
}

fn find(folders: &[PathBuf]) -> Result<(), String> {
    require_driver()?;
    let names = ["cublas", "cusolver", "nvrtc"];
    let mut there = names.map(stays_open);
    for folder in folders {
        if !there.contains(&false) {
            break;
        }
        open_all(folder);
        there = names.map(stays_open);
    }
    if let Some(at) = there.iter().position(|there| !there) {
        return Err(format!(
            "{} was not found; it comes with a CUDA toolkit of version 12 or 13, or with PyTorch for CUDA (set CUDA_PATH to \
             the toolkit's folder, or run in PyTorch's environment)",
            ["cuBLAS", "cuSOLVER", "NVRTC"][at]
        ));
    }
    // SAFETY: each of them has been opened by one of the names that are tried again here.
    unsafe {
        lacks("cuBLAS", cublas::sys::culib(), &OF_CUBLAS)?;
        lacks("cuSOLVER", cusolver::sys::culib(), &OF_CUSOLVER)?;
        lacks("NVRTC", nvrtc::sys::culib(), &OF_NVRTC)
    }
}

/// Opens a library by the names under which it is looked for later. It is never closed: some do not survive that.
fn stays_open(name: &str) -> bool {
    cudarc::get_lib_name_candidates(name).iter().any(|name| {
        // SAFETY: opening a library runs what it does when it is loaded; these are NVIDIA's.
        unsafe { Library::open(Some(name), RTLD_LAZY | RTLD_GLOBAL) }.map(Library::into_raw).is_ok()
    })
}

/// The versions of cuBLAS and cuSOLVER, where they tell.
pub fn versions() -> (Option<String>, Option<String>) {
    let joined = |parts: [Option<i32>; 3]| match parts {
        [Some(major), Some(minor), Some(patch)] => Some(format!("{major}.{minor}.{patch}")),
        _ => None,
    };
    // SAFETY: the functions are there before they are called, and each call writes one number.
    unsafe {
        let of_blas = |part| {
            use cublas::sys::{cublasGetProperty, cublasStatus_t, culib};
            let (mut value, is_there) = (0, lacks("", culib(), &[b"cublasGetProperty"]).is_ok());
            let works = is_there && cublasGetProperty(part, &raw mut value) == cublasStatus_t::CUBLAS_STATUS_SUCCESS;
            works.then_some(value)
        };
        let of_solver = |part| {
            use cusolver::sys::{culib, cusolverGetProperty, cusolverStatus_t};
            let (mut value, is_there) = (0, lacks("", culib(), &[b"cusolverGetProperty"]).is_ok());
            let status = if is_there { cusolverGetProperty(part, &raw mut value) } else { return None };
            (status == cusolverStatus_t::CUSOLVER_STATUS_SUCCESS).then_some(value)
        };
        use cublas::sys::libraryPropertyType as Part;
        use cusolver::sys::libraryPropertyType as SolverPart;
        let blas = [Part::MAJOR_VERSION, Part::MINOR_VERSION, Part::PATCH_LEVEL].map(of_blas);
        let solver = [SolverPart::MAJOR_VERSION, SolverPart::MINOR_VERSION, SolverPart::PATCH_LEVEL].map(of_solver);
        (joined(blas), joined(solver))
    }
}

/// An error where a library has not all the functions.
fn lacks(what: &str, library: &libloading::Library, names: &[&[u8]]) -> Result<(), String> {
    for name in names {
        // SAFETY: the function is looked for and not called.
        if unsafe { library.get::<unsafe extern "C" fn()>(*name) }.is_err() {
            return Err(format!("the {what} library is too old: it has no {}", String::from_utf8_lossy(name)));
        }
    }
    Ok(())
}

/// Opens the libraries that lie in a folder, or in those of Python packages below it, for good.
fn open_all(folder: &Path) {
    let mut found = Vec::new();
    look(folder, 3, &mut found);
    for name in IN_ORDER {
        let starts = |path: &&PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(name));
        if let Some(path) = found.iter().find(starts) {
            // SAFETY: as in `stays_open`. Symbols are global, as those that depend on them expect.
            let _for_good = unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_GLOBAL) }.map(Library::into_raw);
        }
    }
}

fn look(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if IN_ORDER.iter().any(|of| name.starts_with(of)) {
            found.push(path);
        } else if depth > 0 && path.is_dir() {
            look(&path, depth - 1, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use regex::Regex;

    use super::*;

    /// A function that is called without having been looked for would end the program where it is missing.
    #[test]
    fn every_function_that_is_called_is_looked_for() {
        let sources = [
            include_str!("blas.rs"),
            include_str!("device.rs"),
            include_str!("fault.rs"),
            include_str!("lane.rs"),
            include_str!("solve.rs"),
            include_str!("text.rs"),
            include_str!("step.rs"),
            include_str!("field.rs"),
            include_str!("mod.rs"),
        ];
        let call = Regex::new(r"(?:cuda|cublas|cusolver|nvrtc)::((?:cu[A-Z]|cublas|cusolver|nvrtc)\w+)\(").unwrap();
        let called: BTreeSet<&str> =
            sources.iter().flat_map(|s| call.captures_iter(s).map(|c| c.get(1).map_or("", |m| m.as_str()))).collect();
        let looked_for: BTreeSet<&str> = [&OF_DRIVER[..], &OF_CUBLAS, &OF_CUSOLVER, &OF_NVRTC]
            .concat()
            .into_iter()
            .map(|name| std::str::from_utf8(name).unwrap())
            .collect();
        assert!(called.len() > 30);
        assert_eq!(called, looked_for);
    }
}

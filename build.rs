//! Finds OpenBLAS and links it statically where its archive and those of the Fortran runtime are there, so that the
//! program runs on machines without it. `LORA_TOOL_BLAS=dynamic` asks for the shared library instead;
//! `LORA_TOOL_BLAS_DIR` names a folder to look in first (several are separated by colons).

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// In the order a linker needs them. The last exists only where Fortran has a quadruple type of its own (x86).
const ARCHIVES: [&str; 3] = ["openblas", "gfortran", "quadmath"];
const REQUIRED: usize = 2;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LORA_TOOL_BLAS");
    println!("cargo:rerun-if-env-changed=LORA_TOOL_BLAS_DIR");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return; // macOS brings Accelerate along
    }
    let folders = folders();
    for folder in &folders {
        println!("cargo:rustc-link-search=native={}", folder.display());
    }
    let wants_static = env::var("LORA_TOOL_BLAS").as_deref() != Ok("dynamic");
    let archives = ARCHIVES.map(|name| find(&folders, &format!("lib{name}.a")));
    if wants_static && archives.iter().take(REQUIRED).all(Option::is_some) {
        for (name, archive) in ARCHIVES.iter().zip(archives) {
            let Some(archive) = archive else { continue };
            if let Some(folder) = archive.parent() {
                println!("cargo:rustc-link-search=native={}", folder.display());
            }
            println!("cargo:rustc-link-lib=static:-bundle={name}");
        }
    } else if find(&folders, "libopenblas.so").is_none() {
        println!(
            "cargo:warning=OpenBLAS was not found: run `.ci/setup`, or install it (Debian, Ubuntu: libopenblas-dev; \
             Fedora: openblas-devel; Arch: openblas; Alpine: openblas-dev)"
        );
    }
}

/// Where libraries may lie: the folders asked for, those of the compiler, and the usual ones.
fn folders() -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = Vec::new();
    if let Some(named) = env::var_os("LORA_TOOL_BLAS_DIR") {
        out.extend(env::split_paths(&named));
    }
    for name in ["libopenblas.a", "libopenblas.so", "libgfortran.a", "libquadmath.a"] {
        // gcc prints the full path of a library it finds, and the bare name of one it does not.
        if let Ok(answer) = Command::new("gcc").arg(format!("-print-file-name={name}")).output() {
            let path = PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim());
            if let (true, Some(folder)) = (path.is_absolute(), path.parent()) {
                out.push(folder.to_path_buf());
            }
        }
    }
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    for folder in [format!("/usr/lib/{arch}-linux-gnu/openblas-pthread"), format!("/usr/lib/{arch}-linux-gnu")] {
        out.push(folder.into());
    }
    out.retain(|folder| folder.is_dir());
    out.dedup();
    out
}

fn find(folders: &[PathBuf], name: &str) -> Option<PathBuf> {
    folders.iter().map(|folder: &PathBuf| Path::new(folder).join(name)).find(|path| path.exists())
}

//! What an output must not be: an input, or something that is there and no result; nor larger than what is free.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Form, left};
use crate::container::{Pipeline, folder};
use crate::error::{Context, Error, Kind, Result};

/// Refuses an output that is one of the inputs, lies inside one, or would replace a folder that holds one.
pub fn refuse_input(destination: &Path, inputs: &[&Path]) -> Result<()> {
    let (parent, name) = split(destination)?;
    let Ok(parent) = parent.canonicalize() else { return Ok(()) }; // a missing parent is reported by `new`
    let there = parent.join(name);
    let target = there.canonicalize().unwrap_or(there);
    for input in inputs {
        let Ok(source) = input.canonicalize() else { continue };
        let same_file = match (target.metadata(), source.metadata()) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        };
        let inside = source.is_dir() && target.starts_with(&source);
        let around = source.starts_with(&target);
        if same_file || inside || around {
            let what = format!("the output is, lies in or would replace the input {}", input.display());
            return Err(Error::new(Kind::Exists, what)
                .in_file(destination)
                .hint("inputs are never changed; write to another place"));
        }
    }
    Ok(())
}

/// Refuses to begin where `needed` bytes do not fit beside `destination`.
pub fn require_room(destination: &Path, needed: u64) -> Result<()> {
    let (parent, name) = split(destination)?;
    let Ok(about) = rustix::fs::statvfs(&parent) else { return Ok(()) };
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    if needed > free && needed > free.saturating_add(left::bytes_of_the_dead(&parent, &name)) {
        let what = format!("no space: the output takes {needed} bytes, {free} are free");
        return Err(Error::new(Kind::Io, what).in_file(destination).hint("free some space or choose another disk"));
    }
    Ok(())
}

/// Refuses what stands at `destination`, unless it may be replaced.
pub fn refuse_existing(destination: &Path, form: Form, replace: bool) -> Result<()> {
    let about = match destination.symlink_metadata() {
        Ok(about) => about,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("cannot be an output", e).in_file(destination)),
    };
    match form {
        Form::Folder if about.is_symlink() && destination.is_dir() => {
            Err(Error::new(Kind::Exists, "a link of this name exists, the output is a folder")
                .in_file(destination)
                .hint("name the folder it leads to"))
        }
        Form::Folder if about.is_symlink() && !destination.exists() => {
            Err(Error::new(Kind::Exists, "a link to nothing of this name exists, the output is a folder")
                .in_file(destination))
        }
        Form::Folder if !about.is_dir() => {
            Err(Error::new(Kind::Exists, "a file of this name exists, the output is a folder").in_file(destination))
        }
        Form::File if about.is_dir() => {
            Err(Error::new(Kind::Exists, "a folder of this name exists, the output is a file").in_file(destination))
        }
        Form::File if !about.is_file() && !about.is_symlink() => {
            Err(Error::new(Kind::Exists, "a device or a pipe of this name exists, the output is a file")
                .in_file(destination))
        }
        Form::Folder if replace => refuse_what_is_no_result(destination),
        Form::File if replace => Ok(()),
        Form::Folder if folder::names(destination).is_ok_and(|names| names.is_empty()) => Ok(()),
        _ => Err(exists(destination)),
    }
}

/// A slip of the hand must not replace a home folder: only an empty folder, one with tensors in it, a pipeline with
/// tensors in a component, or one that holds results and nothing else.
fn refuse_what_is_no_result(destination: &Path) -> Result<()> {
    let is_tensors = |path: &PathBuf| path.extension().is_some_and(|e| e == "safetensors");
    let is_result = |path: &PathBuf| {
        let is_file = path.extension().is_some_and(|e| e == "safetensors" || e == "gguf");
        is_file || folder::entries(path).is_ok_and(|inner| inner.iter().any(is_tensors))
    };
    let names = folder::entries(destination).map_err(|e| Error::io("cannot list", e)).in_file(destination)?;
    let is_pipeline = || Pipeline::is_in(destination) && names.iter().any(is_result);
    if names.iter().any(is_tensors) || names.iter().all(is_result) || is_pipeline() {
        return Ok(());
    }
    Err(Error::new(Kind::Exists, "a folder without a .safetensors file, which is no result that could be replaced")
        .in_file(destination)
        .hint("choose another name, or empty the folder"))
}

pub(super) fn exists(destination: &Path) -> Error {
    Error::new(Kind::Exists, "exists already").in_file(destination).hint("--force replaces it")
}

pub(super) fn split(destination: &Path) -> Result<(PathBuf, OsString)> {
    let name = destination
        .file_name()
        .ok_or_else(|| Error::new(Kind::Usage, "not a name an output can have").in_file(destination))?;
    Ok((parent_of(destination), name.to_os_string()))
}

pub(super) fn parent_of(destination: &Path) -> PathBuf {
    match destination.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

//! Paths as a user gives them, and what may be wrong with one before any file is read.

use std::path::Path;

use super::folder;
use super::gguf::{self, GgufFile};
use crate::error::{Error, Result};
use crate::tensor::MappedFile;

/// The error for a path that cannot be opened, with what was probably meant.
pub fn cannot_open(path: &Path, source: std::io::Error) -> Error {
    let missing = source.kind() == std::io::ErrorKind::NotFound;
    let error = Error::io("cannot open", source).in_file(path);
    match meant(path).filter(|_| missing) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// An error for a config where tensors, or the folder that has both, are wanted.
pub fn refuse_config(path: &Path) -> Result<()> {
    if path.is_file() && path.extension().is_some_and(|e| e == "json") {
        let error = Error::unrecognised("a config; expected the folder it lies in, or a tensor file").in_file(path);
        return Err(error.hint("give the folder"));
    }
    Ok(())
}

/// What is wrong with a GGUF file that was given where safetensors are read, besides being one.
pub fn fault_of_gguf(path: &Path) -> Option<Error> {
    let file = MappedFile::open(path).ok().filter(|file| gguf::claims(file.as_slice()))?;
    let len = file.as_slice().len();
    GgufFile::within(&file, 0..len).err().map(|e| e.in_file(path))
}

fn meant(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_relative() && path.components().count() == 2 && !parent.exists() {
        return Some("the name of a model on a hub is no path: download it first, and give its folder".to_string());
    }
    let beside = folder::names(parent).ok()?.into_iter().filter_map(|name| name.into_string().ok());
    let nearest = beside.filter(|other| is_slip(name, other)).min()?;
    Some(format!("did you mean `{}`?", parent.join(nearest).display()))
}

/// Whether two names differ by no more than letters of another case, one letter, or a different end.
fn is_slip(a: &str, b: &str) -> bool {
    let (a, b) = (a.to_lowercase(), b.to_lowercase());
    let same_start = a.chars().zip(b.chars()).take_while(|(x, y)| x == y).count();
    let same_end = a.chars().rev().zip(b.chars().rev()).take_while(|(x, y)| x == y).count();
    let longest = a.chars().count().max(b.chars().count());
    longest > 2
        && (same_start + same_end + 1 >= longest || (same_start > 3 && (a.starts_with(&b) || b.starts_with(&a))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_small() {
        for (a, b) in [("bas", "base"), ("Base", "base"), ("bsse", "base"), ("llama-3", "llama-3-8b")] {
            assert!(is_slip(a, b), "{a} {b}");
        }
        for (a, b) in [("a", "b"), ("base", "adapter"), ("out", "model")] {
            assert!(!is_slip(a, b), "{a} {b}");
        }
    }

    #[test]
    fn a_name_on_a_hub_is_no_path() {
        let error = cannot_open(Path::new("nobody/Model-7B"), std::io::ErrorKind::NotFound.into());
        assert!(error.advice().is_some_and(|hint| hint.contains("download")));
    }
}

//! Folders as the Hugging Face hub's cache keeps them: `models--org--name` with `refs/main` and `snapshots/<commit>`.
//!
//! Layout: huggingface/huggingface_hub, `docs/source/en/guides/manage-cache.md`. Nothing is downloaded.

use std::path::{Path, PathBuf};

use super::folder;
use crate::error::{Error, Result};

/// The folder that holds the files: `path` itself, or the snapshot that a cache folder points to.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    let snapshots = path.join("snapshots");
    if !snapshots.is_dir() {
        return Ok(path.to_path_buf());
    }
    if let Some(commit) = main_commit(path) {
        let commit = commit.trim();
        let plain = !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_alphanumeric());
        if plain && snapshots.join(commit).is_dir() {
            return Ok(snapshots.join(commit));
        }
    }
    let fail = |e: std::io::Error| Error::io("cannot list", e).in_file(&snapshots);
    match folder::entries(&snapshots).map_err(fail)?.as_slice() {
        [one] => Ok(one.clone()),
        several => {
            let what = format!("a cache folder with {} snapshots and no refs/main", several.len());
            Err(Error::missing(what).in_file(path).hint("name the folder of one of them"))
        }
    }
}

/// What `refs/main` says: a hash, so neither a FIFO, which would wait for a writer, nor a long file.
fn main_commit(path: &Path) -> Option<String> {
    let path = path.join("refs/main");
    let about = std::fs::metadata(&path).ok()?;
    if !about.is_file() || about.len() > 4096 {
        return None;
    }
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_folder_stands_for_its_main_snapshot() {
        let folder = std::env::temp_dir().join(format!("lora-tool-hub-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        for name in ["snapshots/aa11", "snapshots/bb22", "refs"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        assert!(resolve(&folder).is_err(), "two snapshots and nothing that says which");
        std::fs::write(folder.join("refs/main"), "../../etc\n").unwrap();
        assert!(resolve(&folder).is_err(), "no way out of the folder");
        std::fs::write(folder.join("refs/main"), "bb22\n").unwrap();
        assert_eq!(resolve(&folder).unwrap(), folder.join("snapshots/bb22"));
        assert_eq!(resolve(&folder.join("refs")).unwrap(), folder.join("refs"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

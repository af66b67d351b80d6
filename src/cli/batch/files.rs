//! Which files a job reads and writes, by what its command line names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::jobs::Job;
use crate::container::folder;

/// How deep folders are looked into: a model in a hub's cache lies three below its name.
const DEPTH: usize = 4;
/// Files of settings that may be read with a tensor file beside them.
const BESIDE: [&str; 6] = [
    "adapter_config.json",
    "config.json",
    "hyperparameters.yaml",
    "model_config.yaml",
    "adapter_model.safetensors.index.json",
    "model.safetensors.index.json",
];
/// In the names of files that are one of several.
const OF: &str = "-of-";

/// All files that the job may read, in order. Of a folder all in it: reading one more than the command does costs a
/// moment, one less would pass a change by. None where a folder cannot be listed.
pub fn inputs(job: &Job) -> Option<Vec<PathBuf>> {
    let mut all = BTreeSet::new();
    for input in &job.inputs {
        let bare = input.rfind('@').filter(|_| !Path::new(input).exists()).and_then(|at| input.get(..at));
        let path = Path::new(bare.unwrap_or(input));
        if path.is_dir() {
            below(path, DEPTH, &mut all)?;
        } else if path.is_file() {
            all.insert(path.to_path_buf());
            all.extend(BESIDE.iter().map(|name| path.with_file_name(name)).filter(|path| path.is_file()));
            all.extend(siblings(path));
        }
        // What is neither is a name inside a record, or the command fails for it.
    }
    Some(all.into_iter().collect())
}

/// All files that the job has written. None where one of its outputs is not there.
pub fn outputs(job: &Job) -> Option<Vec<PathBuf>> {
    let mut all = BTreeSet::new();
    for output in &job.outputs {
        let path = Path::new(output);
        if path.is_dir() {
            below(path, DEPTH, &mut all)?;
        } else if path.is_file() {
            all.insert(path.to_path_buf());
        } else {
            return None;
        }
    }
    Some(all.into_iter().collect())
}

/// Files of a folder and its folders. Names that begin with a dot are no one's inputs (`.git`, `.cache`).
fn below(folder: &Path, depth: usize, all: &mut BTreeSet<PathBuf>) -> Option<()> {
    for name in folder::names(folder).ok()? {
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = folder.join(name);
        if path.is_file() {
            all.insert(path);
        } else if depth > 1 && path.is_dir() {
            below(&path, depth - 1, all)?;
        }
    }
    Some(())
}

/// The other files of a tensor that is in several: `model-00001-of-00002.safetensors`.
fn siblings(path: &Path) -> Vec<PathBuf> {
    let split = |path: &Path| {
        let (_, rest) = path.file_name()?.to_str()?.rsplit_once(OF)?;
        Some(rest.to_string())
    };
    let (Some(rest), Some(folder)) = (split(path), path.parent()) else { return Vec::new() };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let all = folder::names(folder).unwrap_or_default().into_iter().map(|name| path.with_file_name(name));
    all.filter(|path| split(path).as_ref() == Some(&rest) && path.is_file()).collect()
}

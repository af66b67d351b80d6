//! The files of an adapter, before anything in them is understood.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::adapter::Finding;
use crate::adapter::finding::Repair;
use crate::container::torch;
use crate::layout::Source;

use super::codes;

/// Files of tensors that programs look for beside `adapter_model.safetensors`.
const OTHERS: [&str; 3] = ["adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt"];

pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut out = Vec::new();
    out.extend(pickled(source));
    out.extend(second_file(source));
    if source.tensors.is_empty() {
        out.push(Finding::new(&codes::NO_TENSORS, "", "no tensors in this file, expected at least one"));
    }
    out.into_iter().map(|f| f.or_file(&source.tensor_file)).collect()
}

/// Whether the tensors lie in a pickle.
pub(super) fn is_pickled(source: &Source) -> bool {
    let by_name = source.tensor_file.extension().is_some_and(|e| e == "safetensors" || e == "npz");
    source.gguf.is_none() && !by_name && torch::claims(source.file.as_slice())
}

/// Whether the file is what Git LFS leaves in the place of a large one (git-lfs/git-lfs, `docs/spec.md`).
pub(super) fn is_pointer(path: &Path) -> bool {
    const BEGIN: &[u8] = b"version https://git-lfs.github.com/spec/";
    let mut begin = [0; BEGIN.len()];
    path.is_file() && File::open(path).and_then(|mut file| file.read_exact(&mut begin)).is_ok() && begin == BEGIN
}

fn pickled(source: &Source) -> Vec<Finding> {
    if !is_pickled(source) {
        return Vec::new();
    }
    let what = "a pickled file, expected safetensors";
    let mut out = vec![Finding::new(&codes::PICKLED, "", what).repair(Repair::Container)];
    for key in &source.other_values {
        out.push(Finding::new(&codes::OTHER_VALUES, key, "no tensor").repair(Repair::LeaveBehind));
    }
    out
}

fn second_file(source: &Source) -> Option<Finding> {
    let folder = source.tensor_file.parent()?;
    let own = source.tensor_file.file_name()?.to_str()?;
    let other = OTHERS.iter().find(|name| **name != own && folder.join(name).exists())?;
    OTHERS.contains(&own).then(|| {
        Finding::new(&codes::TWO_FILES, "", format!("beside it lies {other}, and this program reads only {own}"))
            .hint("keep the one that is meant")
    })
}

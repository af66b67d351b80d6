//! The files beside the tensors: config, tokenizer, code, cards. They go along with a result; other copies of the
//! weights do not, since they would still be the old ones.

use std::path::{Path, PathBuf};

use crate::container::Sharded;
use crate::error::{Error, Result};

/// Endings of files that hold weights.
const WEIGHTS: [&str; 12] =
    [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".npz", ".tflite"];
/// How deep folders are followed.
const MAX_DEPTH: usize = 4;

/// What lies beside the tensors.
#[derive(Clone, Debug, Default)]
pub struct SideFiles {
    /// Paths inside the folder of what belongs to the model.
    pub copied: Vec<PathBuf>,
    /// Paths inside the folder of other copies of the weights, which stay behind.
    pub left: Vec<PathBuf>,
    /// Paths inside the folder of links that lead nowhere.
    pub broken: Vec<PathBuf>,
}

pub(super) fn list(folder: &Path, files: &Sharded) -> Result<SideFiles> {
    let mut out = SideFiles::default();
    walk(folder, Path::new(""), files, &mut out, 0)?;
    out.copied.sort();
    out.left.sort();
    out.broken.sort();
    Ok(out)
}

fn walk(root: &Path, inside: &Path, files: &Sharded, out: &mut SideFiles, depth: usize) -> Result<()> {
    let here = root.join(inside);
    let entries = std::fs::read_dir(&here).map_err(|e| Error::io("cannot list", e).in_file(&here))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("cannot list", e).in_file(&here))?;
        let name = entry.file_name();
        let text = name.to_string_lossy().into_owned();
        let relative = inside.join(&name);
        if text.starts_with('.') {
            continue; // version control and caches
        }
        let Ok(about) = std::fs::metadata(entry.path()) else {
            out.broken.push(relative);
            continue;
        };
        if about.is_dir() {
            if depth < MAX_DEPTH {
                walk(root, &relative, files, out, depth + 1)?;
            }
        } else if about.is_file() && !written_anew(&text, inside, files) {
            let weights = WEIGHTS.iter().any(|w| text.ends_with(w)) || text.ends_with(".index.json");
            let list = if weights && text != "training_args.bin" { &mut out.left } else { &mut out.copied };
            list.push(relative);
        }
    }
    Ok(())
}

/// The shards and their index.
fn written_anew(name: &str, inside: &Path, files: &Sharded) -> bool {
    inside.as_os_str().is_empty()
        && (files.shards.iter().any(|s| s.name == name) || files.index.as_ref().is_some_and(|i| i.name == name))
}

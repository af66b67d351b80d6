//! The files beside the tensors: config, tokenizer, code, cards. They go along with a result; other copies of the
//! weights do not, since they would still be the old ones. In a pipeline those of a component that stays as it is do.

use std::path::{Path, PathBuf};

use super::Component;
use crate::container::Sharded;
use crate::container::pipeline::component_of;
use crate::container::sharded::Index;
use crate::error::{Error, Result};
use crate::limits;

/// Endings of files that hold weights.
const WEIGHTS: [&str; 12] =
    [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".npz", ".tflite"];

/// What lies beside the tensors.
#[derive(Clone, Debug, Default)]
pub struct SideFiles {
    /// Paths inside the folder of what belongs to the model.
    pub copied: Vec<PathBuf>,
    /// Paths inside the folder of other copies of the weights, which stay behind.
    pub left: Vec<PathBuf>,
    /// Paths inside the folder of links that lead nowhere.
    pub broken: Vec<PathBuf>,
    /// The indexes over the tensors, to be written anew.
    pub indexes: Vec<Index>,
}

impl SideFiles {
    /// Takes along what was left behind of the components of a pipeline that stay as they are, and their indexes.
    pub fn keep_where(&mut self, stays: impl Fn(&str) -> bool) {
        let of = |name: &str| component_of(name).is_some_and(&stays);
        self.copied.extend(self.left.extract_if(.., |path| of(&path.to_string_lossy())));
        self.copied.extend(self.indexes.extract_if(.., |index| of(&index.name)).map(|index| index.name.into()));
        self.copied.sort();
    }
}

/// Those of a folder. A component of a pipeline of which no weights were opened stays as it is, whatever it consists of.
pub(super) fn list(folder: &Path, files: &Sharded, components: &[Component]) -> Result<SideFiles> {
    let mut out = SideFiles { indexes: files.indexes.clone(), ..SideFiles::default() };
    walk(folder, Path::new(""), files, &mut out, 0)?;
    out.keep_where(|name| components.iter().any(|c| c.name == name && !c.has_tensors));
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
            if depth < limits::SIDE_DEPTH {
                walk(root, &relative, files, out, depth + 1)?;
            }
        } else if about.is_file() && !written_anew(&relative, files) {
            let weights = WEIGHTS.iter().any(|w| text.ends_with(w)) || is_index(&text);
            let list = if weights && text != "training_args.bin" { &mut out.left } else { &mut out.copied };
            list.push(relative);
        }
    }
    Ok(())
}

/// Of shards, also those of a variant: `model.safetensors.index.fp16.json`.
fn is_index(name: &str) -> bool {
    name.ends_with(".index.json") || (name.contains(".safetensors.index.") && name.ends_with(".json"))
}

/// The shards and their indexes.
fn written_anew(path: &Path, files: &Sharded) -> bool {
    let names = files.shards.iter().map(|s| &s.name).chain(files.indexes.iter().map(|i| &i.name));
    names.into_iter().any(|name| Path::new(name) == path)
}

//! The files beside the tensors: config, tokenizer, code, cards. They go along with a result; other copies of the
//! weights do not, since they would still be the old ones. In a pipeline those of a component that stays as it is do.

use std::path::{Path, PathBuf};

use super::Component;
use crate::container::pipeline::component_of;
use crate::container::sharded::Index;
use crate::container::{Sharded, folder};
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
    /// Paths inside the folder of links to other folders, which are not followed: they may lead anywhere, or in a circle.
    pub elsewhere: Vec<PathBuf>,
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
    let is_component = |path: &Path| components.iter().any(|c| Path::new(&c.name) == path);
    walk((folder, &is_component), Path::new(""), files, &mut out, 0)?;
    out.keep_where(|name| components.iter().any(|c| c.name == name && !c.has_tensors));
    out.copied.sort();
    out.left.sort();
    out.broken.sort();
    out.elsewhere.sort();
    Ok(out)
}

/// A folder, and whether a path in it is that of a component, which may be a link.
type Root<'a> = (&'a Path, &'a dyn Fn(&Path) -> bool);

fn walk(of: Root, inside: &Path, files: &Sharded, out: &mut SideFiles, depth: usize) -> Result<()> {
    let (root, is_component) = of;
    let here = root.join(inside);
    for name in folder::names(&here).map_err(|e| Error::io("cannot list", e).in_file(&here))? {
        let text = name.to_string_lossy().into_owned();
        let relative = inside.join(&name);
        if text.starts_with('.') {
            continue; // version control and caches
        }
        let path = here.join(&name);
        let about = match std::fs::metadata(&path) {
            Ok(about) => about,
            Err(e) if leads_nowhere(&e) => {
                out.broken.push(relative);
                continue;
            }
            Err(e) => return Err(Error::io("cannot tell what it is", e).in_file(path)),
        };
        if about.is_dir() {
            let is_link = path.is_symlink();
            if is_link && !is_component(&relative) {
                out.elsewhere.push(relative);
            } else if depth < limits::SIDE_DEPTH {
                walk(of, &relative, files, out, depth + 1)?;
            }
        } else if about.is_file() && !written_anew(&relative, files) {
            let weights = WEIGHTS.iter().any(|w| text.ends_with(w)) || is_index(&text);
            let list = if weights && text != "training_args.bin" { &mut out.left } else { &mut out.copied };
            list.push(relative);
        }
    }
    Ok(())
}

/// Whether what was asked for is a link to nothing, or round in a circle.
fn leads_nowhere(e: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    matches!(e.kind(), NotFound | NotADirectory) || e.raw_os_error() == Some(libc::ELOOP)
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

//! A folder of safetensors shards with an index, read as one set of tensors.
//!
//! The index (`model.safetensors.index.json`) maps each tensor to the file that holds it:
//! <https://huggingface.co/docs/transformers/big_models>. Its values are names from a stranger: only plain file names
//! are taken, so that nothing outside the folder is opened. Links found in the folder are followed, since the hub's
//! cache consists of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::folder;
use super::json;
use super::safetensors::SafetensorsFile;
use crate::error::{Context, Error, Result};
use crate::limits;
use crate::tensor::Tensor;

/// Name of the index that transformers writes.
pub const INDEX_NAME: &str = "model.safetensors.index.json";
/// Name of the single file that transformers writes.
pub const SINGLE_NAME: &str = "model.safetensors";
/// Name of the single file that diffusers writes, beside which variants may lie.
const DIFFUSERS_NAME: &str = "diffusion_pytorch_model.safetensors";
const INDEX_ENDING: &str = ".safetensors.index.json";

/// One file of a model, or its only one.
#[derive(Clone, Debug)]
pub struct Shard {
    /// Name inside the folder, with the component's folder in front where it is of a pipeline.
    pub name: String,
    /// Its header and tensors.
    pub contents: SafetensorsFile,
}

/// The index beside the shards.
#[derive(Clone, Debug)]
pub struct Index {
    /// Its name, as that of a shard.
    pub name: String,
    /// Its `metadata` object, in file order.
    pub metadata: serde_json::Map<String, Value>,
}

/// Shards in order of their names, and the indexes where there are any.
#[derive(Clone, Debug)]
pub struct Sharded {
    /// Files, sorted by name.
    pub shards: Vec<Shard>,
    /// None for a folder with a single file, or a file by itself; of a pipeline one for each component that has one.
    pub indexes: Vec<Index>,
}

impl Sharded {
    /// A model in one file.
    pub fn open_file(path: &Path) -> Result<Sharded> {
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let contents = SafetensorsFile::open(path)?;
        Ok(Sharded { shards: vec![Shard { name, contents }], indexes: Vec::new() })
    }

    /// Whether a folder holds safetensors files at all.
    pub fn is_in(folder: &Path) -> Result<bool> {
        Ok(!safetensors_names(folder)?.is_empty())
    }

    /// A folder: the index decides; without one, `model.safetensors`, diffusers' name, or the only safetensors file.
    pub fn open_folder(folder: &Path) -> Result<Sharded> {
        let names = safetensors_names(folder)?;
        let indexes: Vec<_> = names.iter().filter(|n| n.ends_with(INDEX_ENDING)).collect();
        let index = match indexes.as_slice() {
            _ if names.iter().any(|n| n == INDEX_NAME) => Some(INDEX_NAME.to_string()),
            [one] => Some((*one).clone()),
            _ => None,
        };
        if let Some(index) = index {
            return Self::open_indexed(folder, &index);
        }
        let files: Vec<_> = names.iter().filter(|n| n.ends_with(".safetensors")).collect();
        let only = match files.as_slice() {
            _ if names.iter().any(|n| n == SINGLE_NAME) => SINGLE_NAME.to_string(),
            _ if names.iter().any(|n| n == DIFFUSERS_NAME) => DIFFUSERS_NAME.to_string(),
            [one] => (*one).clone(),
            [] => {
                return Err(Error::missing("no safetensors file in this folder")
                    .in_file(folder)
                    .hint("models in other formats have to be saved as safetensors first"));
            }
            several => {
                let what = format!("{} safetensors files and no index that says which belong together", several.len());
                return Err(Error::missing(what)
                    .in_file(folder)
                    .hint(format!("name one of them, or add {INDEX_NAME}")));
            }
        };
        Self::open_file(&folder.join(only))
    }

    /// The shards that an index names.
    pub fn open_indexed(folder: &Path, index_name: &str) -> Result<Sharded> {
        let path = folder.join(index_name);
        let mut root = json::read_object(&path, limits::INDEX_BYTES)?;
        let weight_map = weight_map(&root).in_file(&path)?;
        let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in &weight_map {
            by_file.entry(file).or_default().push(tensor);
        }
        if by_file.len() > limits::SHARDS {
            return Err(Error::limit(format!("{} shards", by_file.len()), limits::SHARDS).in_file(&path));
        }
        let mut shards = Vec::with_capacity(by_file.len());
        let mut owner: BTreeMap<String, String> = BTreeMap::new();
        for (file, tensors) in by_file {
            let shard_path = folder.join(file);
            if !folder::is_there(&shard_path)? {
                return Err(Error::missing(format!("named by {index_name}, but not in the folder"))
                    .in_file(&shard_path)
                    .hint("the download may be incomplete"));
            }
            let contents = SafetensorsFile::open(&shard_path)?;
            for tensor in tensors {
                if !contents.tensors.contains_key(tensor) {
                    let what = format!("{index_name} places it in {file}, which does not hold it");
                    return Err(Error::missing(what).at_key(tensor).in_file(&path));
                }
            }
            for tensor in contents.tensors.keys() {
                if let Some(other) = owner.insert(tensor.clone(), file.to_string()) {
                    let what = format!("stands in both {other} and {file}");
                    return Err(Error::malformed(what).at_key(tensor).in_file(&path));
                }
            }
            shards.push(Shard { name: file.to_string(), contents });
        }
        let metadata = match root.remove("metadata") {
            Some(Value::Object(map)) => map,
            None | Some(Value::Null) => serde_json::Map::new(),
            Some(other) => return Err(json::unexpected(&other, "an object").at_key("metadata").in_file(&path)),
        };
        Ok(Sharded { shards, indexes: vec![Index { name: index_name.to_string(), metadata }] })
    }

    /// All tensors with the number of the shard that holds them, in shard order.
    pub fn tensors(&self) -> impl Iterator<Item = (usize, &String, &Tensor)> {
        self.shards.iter().enumerate().flat_map(|(i, s)| s.contents.tensors.iter().map(move |(k, t)| (i, k, t)))
    }

    /// Paths of the files this was read from.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.shards.iter().map(|s| s.contents.file.path().to_path_buf()).collect()
    }
}

/// The text of an index: `metadata` with the new totals, then `weight_map` sorted by tensor name.
pub fn index_text(
    metadata: &serde_json::Map<String, Value>,
    total_size: u64,
    total_parameters: u64,
    weight_map: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let mut metadata = metadata.clone();
    metadata.insert("total_size".into(), total_size.into());
    if metadata.contains_key("total_parameters") {
        metadata.insert("total_parameters".into(), total_parameters.into());
    }
    json::text(&serde_json::json!({ "metadata": metadata, "weight_map": weight_map }))
}

fn safetensors_names(folder: &Path) -> Result<Vec<String>> {
    let fail = |e: std::io::Error| Error::io("cannot list", e).in_file(folder);
    let mut names = Vec::new();
    for name in folder::names(folder).map_err(fail)? {
        if let Some(name) = name.to_str()
            && (name.ends_with(".safetensors") || name.ends_with(INDEX_ENDING))
            && !name.starts_with('.')
        {
            names.push(name.to_string());
        }
    }
    Ok(names)
}

/// The files that an index names; none where it is no index.
pub fn named_by(index: &Path) -> Vec<String> {
    let map = json::read_object(index, limits::INDEX_BYTES).and_then(|root| weight_map(&root));
    map.map_or_else(|_| Vec::new(), |map| map.into_iter().map(|(_, file)| file).collect())
}

fn weight_map(root: &serde_json::Map<String, Value>) -> Result<Vec<(String, String)>> {
    let Some(Value::Object(map)) = root.get("weight_map") else {
        return Err(Error::malformed("no object `weight_map` in the index").at_key("weight_map"));
    };
    if map.is_empty() {
        return Err(Error::missing("names no tensors").at_key("weight_map"));
    }
    map.iter()
        .map(|(tensor, file)| {
            let file = file.as_str().ok_or_else(|| json::unexpected(file, "a file name").at_key(tensor))?;
            require_plain_name(file).at_key(tensor)?;
            Ok((tensor.clone(), file.to_string()))
        })
        .collect()
}

/// Only a plain name of a safetensors file: nothing that could lead out of the folder.
fn require_plain_name(name: &str) -> Result<()> {
    let plain = !name.is_empty()
        && !name.contains(['/', '\\', '\0', ':'])
        && name != "."
        && name != ".."
        && name.ends_with(".safetensors");
    if plain {
        return Ok(());
    }
    Err(Error::malformed(format!("shard name `{name}`, expected the plain name of a .safetensors file")))
}

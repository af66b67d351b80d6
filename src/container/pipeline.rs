//! A pipeline of diffusers: a folder with `model_index.json` and a folder for each component, read as one set of tensors.
//!
//! Several components have tensors of the same names, so each is known by `<component>.<key>`, while its file has the
//! key alone: what stands in front follows from the folder that the file lies in. Names are those of
//! huggingface/diffusers:src/diffusers/{utils/constants.py,pipelines/pipeline_loading_utils.py} and of
//! huggingface/transformers. The names of components come from a stranger: only plain words are taken, which have to be
//! folders, so that nothing outside is opened.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::folder;
use super::json;
use super::safetensors::SafetensorsFile;
use super::sharded::{Index, Shard, Sharded};
use crate::error::{Context, Error, Result};
use crate::limits;
use crate::tensor::Tensor;

/// What says which components a pipeline has.
pub const INDEX_NAME: &str = "model_index.json";
/// Where it says of which class the pipeline is. All names that begin so are about it, and no components.
const CLASS: &str = "_class_name";
/// What weights are called, before a variant and the ending.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
const ENDING: &str = ".safetensors";

/// A part of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// The name of its folder.
    pub name: String,
    /// Its class.
    pub class: String,
    /// Whether it has weights that were opened. A tokenizer has none, nor has a model in another format.
    pub has_tensors: bool,
}

/// A pipeline, opened.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// Its class.
    pub class: Option<String>,
    /// Its components, in the order of their names.
    pub components: Vec<Component>,
    /// The tensors of all of them.
    pub files: Sharded,
}

/// The component that a file belongs to, by its name inside the folder; none where it lies in no other folder.
pub fn component_of(file: &str) -> Option<&str> {
    file.split_once('/').map(|(component, _)| component)
}

/// What a key of this file is known by.
pub fn known_as(file: &str, key: &str) -> String {
    component_of(file).map_or_else(|| key.to_string(), |component| format!("{component}.{key}"))
}

/// The key in this file of what is known by this.
pub fn in_file<'k>(file: &str, known: &'k str) -> &'k str {
    let own = component_of(file).and_then(|component| known.strip_prefix(component)?.strip_prefix('.'));
    own.unwrap_or(known)
}

impl Pipeline {
    /// Whether a folder is one.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(INDEX_NAME).symlink_metadata().is_ok()
    }

    /// Opens it.
    pub fn open(folder: &Path) -> Result<Pipeline> {
        let path = folder.join(INDEX_NAME);
        let index = json::read_object(&path, limits::PIPELINE_INDEX_BYTES)?;
        let class = index.get(CLASS).and_then(Value::as_str).map(str::to_string);
        let mut components = components(&index).in_file(&path)?;
        let mut files = Sharded { shards: Vec::new(), indexes: Vec::new() };
        for component in &mut components {
            let own = folder.join(&component.name);
            if !own.is_dir() {
                return Err(Error::missing(format!("named by {INDEX_NAME}, but not in the folder"))
                    .in_file(&own)
                    .hint("the download may be incomplete"));
            }
            if let Some(opened) = open_weights(&own)? {
                component.has_tensors = true;
                files.take(opened, &component.name);
            }
        }
        if files.shards.is_empty() {
            let what = "a pipeline of diffusers, and none of its components has a safetensors file";
            let hint = "models in other formats have to be saved as safetensors first";
            return Err(Error::missing(what).in_file(&path).hint(hint));
        }
        Ok(Pipeline { class, components, files })
    }
}

impl Sharded {
    /// The tensors of a component, as a model by itself.
    pub fn component(&self, name: &str) -> Sharded {
        let is_own = |file: &str| component_of(file) == Some(name);
        let alone = |shard: &Shard| {
            let own = |(known, t): (&String, &Tensor)| (in_file(&shard.name, known).to_string(), t.clone());
            let tensors = shard.contents.tensors.iter().map(own).collect();
            Shard { contents: SafetensorsFile { tensors, ..shard.contents.clone() }, ..shard.clone() }
        };
        let shards = self.shards.iter().filter(|shard| is_own(&shard.name)).map(alone).collect();
        Sharded { shards, indexes: Vec::new() }
    }

    /// Adds the files of a component.
    fn take(&mut self, component: Sharded, name: &str) {
        for mut shard in component.shards {
            shard.name = format!("{name}/{}", shard.name);
            let own = std::mem::take(&mut shard.contents.tensors);
            shard.contents.tensors = own.into_iter().map(|(key, t)| (known_as(&shard.name, &key), t)).collect();
            self.shards.push(shard);
        }
        let indexes = component.indexes.into_iter();
        self.indexes.extend(indexes.map(|index| Index { name: format!("{name}/{}", index.name), ..index }));
    }
}

/// The components that the index names, in the order of their names. One that a pipeline can do without may be left out:
/// then it has no class.
fn components(index: &Map<String, Value>) -> Result<Vec<Component>> {
    let mut out = BTreeMap::new();
    for (name, value) in index.iter().filter(|(name, _)| !name.starts_with('_')) {
        // Library and class; everything else is a setting.
        let Some([library, class]) = value.as_array().map(Vec::as_slice) else { continue };
        let (Some(_), Some(class)) = (library.as_str(), class.as_str()) else { continue };
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if name.is_empty() || !name.bytes().all(is_word) {
            let what = format!("component `{name}`, expected the plain name of a folder");
            return Err(Error::malformed(what).at_key(name));
        }
        let component = Component { name: name.clone(), class: class.to_string(), has_tensors: false };
        out.insert(name.clone(), component);
    }
    Ok(out.into_values().collect())
}

/// How the weights of a component lie.
enum Weights {
    /// In files that an index names.
    Indexed(String),
    /// In this file.
    Single(String),
}

fn open_weights(folder: &Path) -> Result<Option<Sharded>> {
    match weights_in(folder)? {
        None => Ok(None),
        Some(Weights::Indexed(index)) => Sharded::open_indexed(folder, &index).map(Some),
        Some(Weights::Single(name)) => Sharded::open_file(&folder.join(name)).map(Some),
    }
}

/// Those without a variant; else those of the only variant, or the only file there is.
fn weights_in(folder: &Path) -> Result<Option<Weights>> {
    let names = names(folder)?;
    let has = |name: &String| names.contains(name);
    for stem in STEMS {
        let (index, single) = (format!("{stem}{ENDING}.index.json"), format!("{stem}{ENDING}"));
        if has(&index) {
            return Ok(Some(Weights::Indexed(index)));
        }
        if has(&single) {
            return Ok(Some(Weights::Single(single)));
        }
    }
    let mut variants: BTreeMap<&str, Weights> = BTreeMap::new();
    for (name, (variant, is_index)) in names.iter().filter_map(|name| Some((name, variant(name)?))) {
        if is_index {
            variants.insert(variant, Weights::Indexed(name.clone()));
        } else {
            variants.entry(variant).or_insert_with(|| Weights::Single(name.clone()));
        }
    }
    if variants.len() > 1 {
        let all: Vec<_> = variants.keys().copied().collect();
        let what = format!("weights of the variants {}, and none without a variant", all.join(", "));
        return Err(Error::missing(what)
            .in_file(folder)
            .hint("keep one of them, or name its files as those without a variant are"));
    }
    let mut only = names.iter().filter(|name| name.ends_with(ENDING));
    Ok(variants.into_values().next().or(match (only.next(), only.next()) {
        (Some(one), None) => Some(Weights::Single(one.clone())),
        _ => None,
    }))
}

/// The variant that a file is of (`fp16` of `model.fp16.safetensors`), and whether it is an index; none for other files,
/// and for those that an index names.
fn variant(name: &str) -> Option<(&str, bool)> {
    let rest = STEMS.iter().find_map(|stem| name.strip_prefix(stem))?;
    let indexed = rest.strip_prefix(ENDING).and_then(|rest| rest.strip_prefix(".index.")?.strip_suffix(".json"));
    let single = || rest.strip_prefix('.')?.strip_suffix(ENDING).filter(|variant| !variant.contains("-of-"));
    indexed.map(|variant| (variant, true)).or_else(|| Some((single()?, false)))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let fail = |e: std::io::Error| Error::io("cannot list", e).in_file(folder);
    let mut names = Vec::new();
    for name in folder::names(folder).map_err(fail)? {
        names.extend(name.to_str().filter(|name| !name.starts_with('.')).map(str::to_string));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_told_from_shards() {
        assert_eq!(variant("model.fp16.safetensors"), Some(("fp16", false)));
        assert_eq!(variant("diffusion_pytorch_model.non_ema.safetensors"), Some(("non_ema", false)));
        assert_eq!(variant("diffusion_pytorch_model.safetensors.index.fp16.json"), Some(("fp16", true)));
        for name in ["model.fp16-00001-of-00002.safetensors", "model.safetensors", "model-00001-of-00002.safetensors"] {
            assert_eq!(variant(name), None, "{name}");
        }
    }

    #[test]
    fn keys_are_known_by_their_component() {
        let file = "text_encoder_2/model.safetensors";
        assert_eq!(known_as(file, "a.weight"), "text_encoder_2.a.weight");
        assert_eq!(in_file(file, "text_encoder_2.a.weight"), "a.weight");
        assert_eq!((known_as("model.safetensors", "a"), in_file("model.safetensors", "a.b")), ("a".into(), "a.b"));
    }

    #[test]
    fn components_have_a_class_and_a_plain_name() {
        let read = |text: &str| components(&json::parse_object(text).unwrap());
        let text = r#"{"_class_name": "P", "_x": ["a", "b"], "vae": ["diffusers", "AutoencoderKL"], "requires": [1, 2],
            "safety_checker": [null, null], "flag": true, "scales": ["a", "b", "c"]}"#;
        let names: Vec<_> = read(text).unwrap().into_iter().map(|c| (c.name, c.class)).collect();
        assert_eq!(names, [("vae".to_string(), "AutoencoderKL".to_string())]);
        for name in ["../x", "a/b", "", ".", "..", "a.b", "a\\\\b", "/etc"] {
            assert!(read(&format!(r#"{{"{name}": ["diffusers", "X"]}}"#)).is_err(), "{name}");
        }
    }
}

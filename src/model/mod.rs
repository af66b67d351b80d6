//! A base model as it lies on disk: its tensors, its config, and the files beside them; a model by itself, or a pipeline
//! of several.

pub mod conv1d;
pub mod embedding;
mod family;
pub mod fingerprint;
pub mod pipeline;
pub mod provenance;
pub mod scaled;
pub mod side;
pub mod site;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Map, Value};

pub use embedding::{Embeddings, TiedUse};
pub use pipeline::{Component, Pipeline};
pub use provenance::Provenance;
pub use scaled::{Role, Scaled};
pub use side::SideFiles;
pub use site::{Site, Sites};

pub use crate::container::sharded::{INDEX_NAME, SINGLE_NAME};

use crate::container::{self, FileMetadata, Shard, Sharded, folder, hub, json};
use crate::error::{Context, Error, Result};
use crate::limits;
use crate::names::diffusion::{Candidate, Naming};
use crate::names::{Index, ModulePath, checkpoint};
use crate::tensor::{Bytes, Hash, Tensor};

/// The config beside a model.
pub const CONFIG_NAME: &str = "config.json";

/// A base model, opened. Only headers and side files have been read.
#[derive(Debug)]
pub struct BaseModel {
    /// The path as the user gave it.
    pub path: PathBuf,
    /// Whether it is a folder or a file by itself.
    pub is_folder: bool,
    /// Its tensors, file by file.
    pub files: Sharded,
    /// `config.json`, also for a file by itself where one lies beside it. A pipeline has none, its components have.
    pub config: Option<Map<String, Value>>,
    /// What it consists of, where it is a pipeline.
    pub pipeline: Option<Pipeline>,
    /// What says what model it is: `model_type`, `architectures` and `_class_name` of the config, inner configs included,
    /// or what the keys tell of a checkpoint without one; of a pipeline the classes.
    types: Vec<String>,
    /// Names on disk and the way to them.
    pub names: Index,
    scaled: Scaled,
    /// The family of an image model, and whose names its denoiser has.
    family: Option<(Candidate, Naming)>,
    fingerprint: OnceLock<Hash>, // found when it is asked for
}

impl BaseModel {
    /// Opens a file, or a folder with a file, shards, or the folders of a pipeline.
    pub fn open(path: &Path) -> Result<BaseModel> {
        let about = std::fs::metadata(path).map_err(|e| container::cannot_open(path, e))?;
        container::refuse_config(path)?;
        let resolved = if about.is_dir() { hub::resolve(path)? } else { path.to_path_buf() };
        let path = resolved.as_path();
        let is_folder = about.is_dir();
        if is_folder && container::Pipeline::is_in(path) {
            return Self::open_pipeline(path);
        }
        let files = if is_folder { Sharded::open_folder(path) } else { Sharded::open_file(path) };
        let files = files.map_err(|e| hint_at_what_it_is(path, e))?;
        let config = match config_beside(path, is_folder)? {
            Some(path) => Some(json::read_object(&path, limits::CONFIG_BYTES)?),
            None => None,
        };
        let scaled = Scaled::find(&files, config.as_ref());
        let own = files.tensors().filter(|(_, name, _)| scaled.role(name).is_none());
        let shapes = own.map(|(_, name, t)| (name.clone(), t.shape.dims().to_vec()));
        let mut types = model_types(config.as_ref());
        if types.is_empty() {
            // Checkpoints of image models have no config; their keys say what they are.
            let keys: Vec<&str> = files.tensors().map(|(_, key, _)| key.as_str()).collect();
            types.extend(checkpoint::of_keys(keys.iter().copied()).map(str::to_string));
        }
        let names = Index::new(shapes, &types);
        Ok(BaseModel {
            path: path.to_path_buf(),
            is_folder,
            files,
            config,
            pipeline: None,
            types,
            names,
            scaled,
            family: None,
            fingerprint: OnceLock::new(),
        }
        .with_family())
    }

    fn open_pipeline(path: &Path) -> Result<BaseModel> {
        let (files, pipeline, scaled, names) = pipeline::open(path)?;
        let types = pipeline.class.iter().cloned();
        let types = types.chain(pipeline.components.iter().flat_map(|c| c.types.iter().cloned())).collect();
        Ok(BaseModel {
            path: path.to_path_buf(),
            is_folder: true,
            files,
            config: None,
            pipeline: Some(pipeline),
            types,
            names,
            scaled,
            family: None,
            fingerprint: OnceLock::new(),
        }
        .with_family())
    }

    /// With its family and the other names of its modules, where it is an image model.
    fn with_family(mut self) -> BaseModel {
        self.family = family::of(&self);
        if let Some(spelt) = self.family.as_ref().and_then(|found| family::names(&self, found)) {
            let component = self.denoiser().map(|component| component.name.clone());
            self.names = std::mem::take(&mut self.names).spelt(spelt, component.as_deref());
        }
        self
    }

    /// The family of an image model, and whose names its denoiser has.
    pub fn family(&self) -> Option<&(Candidate, Naming)> {
        self.family.as_ref()
    }

    /// The config's path, where there is one. A pipeline has none.
    pub fn config_path(&self) -> Option<PathBuf> {
        config_beside(&self.path, self.is_folder).ok().flatten().filter(|_| self.pipeline.is_none())
    }

    /// All configs that lie in the folder, by their paths in it: its own, or those of a pipeline's components.
    pub fn configs(&self) -> Vec<(PathBuf, &Map<String, Value>)> {
        let own = self.config.iter().filter(|_| self.is_folder).map(|config| (PathBuf::from(CONFIG_NAME), config));
        own.chain(self.components().iter().filter_map(|c| Some((c.config_path(), c.config.as_ref()?)))).collect()
    }

    /// The components of a pipeline; none of a model by itself.
    pub fn components(&self) -> &[Component] {
        self.pipeline.as_ref().map_or(&[], |pipeline| &pipeline.components)
    }

    /// The component that a name, in memory or on disk, is in.
    pub fn component_of(&self, name: &str) -> Option<&Component> {
        let (word, _) = name.split_once('.')?;
        self.components().iter().find(|component| component.name == word)
    }

    /// The component of a pipeline that takes the noise away, the first of several.
    pub fn denoiser(&self) -> Option<&Component> {
        self.components().iter().find(|component| component.is_denoiser())
    }

    /// A tensor by its key on disk, with the number of its file.
    pub fn tensor(&self, key: &str) -> Option<(usize, &Tensor)> {
        self.files.shards.iter().enumerate().find_map(|(i, s)| s.contents.tensors.get(key).map(|t| (i, t)))
    }

    /// Every module with a weight, by its path on disk, and the weight.
    pub fn weights(&self) -> Vec<(ModulePath, Tensor)> {
        let weight = |(_, key, t): (usize, &String, &Tensor)| {
            key.strip_suffix(".weight").map(|path| (ModulePath::from(path), t.clone()))
        };
        self.files.tensors().filter_map(weight).collect()
    }

    /// The files, in order.
    pub fn shards(&self) -> &[Shard] {
        &self.files.shards
    }

    /// The head of a file as it stands.
    pub fn head(&self, shard: usize) -> &Bytes {
        &self.files.shards[shard].contents.head
    }

    /// The header metadata of a file.
    pub fn metadata(&self, shard: usize) -> &FileMetadata {
        &self.files.shards[shard].contents.metadata
    }

    /// The words that say what model a name, in memory or on disk, is in.
    pub fn types_at(&self, name: &str) -> &[String] {
        self.component_of(name).map_or(&self.types, |component| &component.types)
    }

    /// The words that say what model it is.
    pub fn model_types(&self) -> Vec<String> {
        self.types.clone()
    }

    /// Whose names the modules of an image model's denoiser have; none for other models.
    pub fn naming(&self) -> Option<Naming> {
        let of_pipeline = self.denoiser().map(|_| Naming::Diffusers);
        of_pipeline.or_else(|| self.types.iter().find_map(|name| checkpoint::naming(name)))
    }

    /// What tells it from other models, whatever its files; see [`fingerprint`].
    pub fn fingerprint(&self) -> Hash {
        *self.fingerprint.get_or_init(|| fingerprint::of(&self.files))
    }

    /// The component of a pipeline that is told from other models by this hash, as if it were a model by itself.
    pub fn component_with(&self, fingerprint: Hash) -> Option<&Component> {
        let of = |component: &&Component| fingerprint::of(&self.files.component(&component.name)) == fingerprint;
        self.components().iter().filter(|component| component.has_tensors).find(of)
    }

    /// What its files say was merged into it.
    pub fn provenance(&self) -> provenance::Carried {
        provenance::carried(&self.files)
    }

    /// Its weights in 8-bit floats, and what they are multiplied by.
    pub fn scaled(&self) -> &Scaled {
        &self.scaled
    }

    /// How the weights are quantised, as the config names it.
    pub fn quantisation(&self) -> Option<&str> {
        let configs = self.config.iter().chain(self.components().iter().filter_map(|c| c.config.as_ref()));
        let about = configs.into_iter().find_map(|config| config.get("quantization_config"))?;
        Some(about.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed scheme"))
    }

    /// The files beside the tensors that belong to the model, none for a file by itself.
    pub fn side_files(&self) -> Result<SideFiles> {
        if !self.is_folder {
            return Ok(SideFiles::default());
        }
        side::list(&self.path, &self.files, self.components()).in_file(&self.path)
    }

    /// Where input and output embeddings lie. Those of text encoders in a pipeline have no uses beside their own.
    pub fn embeddings(&self) -> Embeddings {
        if self.pipeline.is_some() { Embeddings::default() } else { embedding::find(self) }
    }

    /// An error if any of its files changed since it was opened.
    pub fn unchanged(&self) -> Result<()> {
        self.files.shards.iter().try_for_each(|s| s.contents.file.unchanged())
    }
}

fn config_beside(path: &Path, is_folder: bool) -> Result<Option<PathBuf>> {
    let beside = if is_folder { path } else { path.parent().unwrap_or(Path::new("")) };
    let path = beside.join(CONFIG_NAME);
    Ok(folder::is_there(&path)?.then_some(path))
}

/// The text of a config.
pub fn config_text(config: Map<String, Value>) -> Result<Vec<u8>> {
    json::text(&Value::Object(config))
}

/// An adapter given in the place of the base is a common slip.
fn hint_at_what_it_is(path: &Path, error: Error) -> Error {
    if path.join("adapter_config.json").exists() {
        return Error::missing("this is an adapter; expected a base model")
            .in_file(path)
            .hint("the base comes first: lora-tool merge BASE ADAPTER -o OUT");
    }
    if let Some(nearer) = container::fault_of_gguf(path) {
        return nearer;
    }
    error
}

fn model_types(config: Option<&Map<String, Value>>) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(config) = config {
        gather_types(config, &mut out, 0);
    }
    out
}

fn gather_types(config: &Map<String, Value>, out: &mut Vec<String>, depth: usize) {
    let mut add = |text: &str| {
        if !out.iter().any(|t| t == text) {
            out.push(text.to_string());
        }
    };
    for text in ["model_type", "_class_name"].iter().filter_map(|name| config.get(*name)?.as_str()) {
        add(text);
    }
    for name in config.get("architectures").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        add(name);
    }
    if depth < 4 {
        // The parts of a composite model: `text_config`, `vision_config`, but also `encoder`, `decoder`.
        let is_part =
            |key: &str, inner: &Map<String, Value>| key.ends_with("_config") || inner.contains_key("model_type");
        for inner in config.iter().filter_map(|(k, v)| v.as_object().filter(|inner| is_part(k, inner))) {
            gather_types(inner, out, depth + 1);
        }
    }
}

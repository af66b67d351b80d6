//! What a layout is shown: the tensors of an adapter file and the config beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use serde_json::{Map, Value};

use super::facts;
use super::nemo::archive;
use crate::adapter::Facts;
use crate::container::{
    self, Entry, GgufFile, Manifest, Pipeline, SafetensorsFile, Sharded, folder, gguf, hub, json, npz, torch, yaml,
};
use crate::error::{Context, Error, Kind, Result};
use crate::limits;
use crate::tensor::{Bytes, Hash, MappedFile, StateDict, Tensor, parallel};

/// Names of the config file beside an adapter.
const CONFIG_NAME: &str = "adapter_config.json";
/// Name of a model's config: beside an adapter it is that of the base.
const BASE_CONFIG_NAME: &str = "config.json";
/// Tensor files looked for in a folder, best first. What torchtune saves of its own tensors for PEFT comes after them.
const TENSOR_NAMES: [&str; 11] = [
    "adapter_model.pt",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapters.safetensors",
    ARRAYS_NAME,
    "adapter.safetensors",
    "pytorch_adapter.bin",
    archive::WEIGHTS,
    LITGPT_NAME,
    PIPELINE_NAMES[0],
    PIPELINE_NAMES[1],
];
/// What diffusers saves, which needs no config beside it.
const PIPELINE_NAMES: [&str; 2] = ["pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"];
/// A file of arrays, of adapters that had no config.
const ARRAYS_NAME: &str = "adapters.npz";
/// LitGPT's file, which needs no adapter's config beside it.
const LITGPT_NAME: &str = "lit_model.pth.lora";
/// What the file of an epoch of torchtune is called before and after its number.
const EPOCH_NAME: (&str, &str) = ("adapter_", ".pt");
/// The index of an adapter in several files. PEFT has no such thing; some hubs' tools make them.
const INDEX_NAME: &str = "adapter_model.safetensors.index.json";
/// Settings of trainings, kept beside the tensors.
const SETTINGS: [&str; 4] = ["hyperparameters.yaml", archive::CONFIG, "run_config.yaml", "torchtune_config.yaml"];
/// Key of the header metadata, or field of the config, that names the base an adapter was made for.
pub const BASE_FINGERPRINT: &str = "lora_tool.base_fingerprint";

/// An adapter's files, opened and not yet understood.
#[derive(Debug)]
pub struct Source {
    /// The path as the user gave it.
    pub path: PathBuf,
    /// The file the tensors are in.
    pub tensor_file: PathBuf,
    /// The same, mapped.
    pub file: Arc<MappedFile>,
    /// Further files of the tensors, where an index names several.
    pub shards: Vec<Arc<MappedFile>>,
    /// Tensors by key.
    pub tensors: StateDict,
    /// Header metadata.
    pub metadata: Vec<(String, String)>,
    /// Keys of values in a pickled file that are no tensors.
    pub other_values: Vec<String>,
    /// The file as GGUF, where it is that.
    pub gguf: Option<GgufFile>,
    /// The adapter's config file and what it says.
    pub config: Option<SideFile>,
    /// Other settings of the training, by the names of their files.
    pub settings: BTreeMap<&'static str, SideFile>,
    /// What is known beside the adapter's files. The config of the base is that beside the file, where none was given.
    pub given: Given,
}

/// A side file and what it says.
pub type SideFile = (PathBuf, Map<String, Value>);

/// What the user says beside the adapter's files.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The base's `config.json`.
    pub base: Option<SideFile>,
    /// Alpha, for files that do not have it.
    pub alpha: Option<f64>,
}

/// Words of what stands beside an adapter, where it is kept with it.
const ASIDE: [&str; 3] = ["base", "settings", "alpha"];

/// A model's config where it lies without the model: a folder that holds one and no tensors, or the file itself.
pub fn config_alone(path: &Path) -> Result<Option<SideFile>> {
    let file = if path.is_dir() { path.join(BASE_CONFIG_NAME) } else { path.to_path_buf() };
    let alone = match path.is_dir() {
        true => file.is_file() && !Sharded::is_in(path)? && !Pipeline::is_in(path),
        false => path.file_name().is_some_and(|name| name == BASE_CONFIG_NAME),
    };
    alone.then(|| Ok((file.clone(), json::read_object(&file, limits::CONFIG_BYTES)?))).transpose()
}

impl Given {
    /// What was kept with an adapter; `place` stands for the files.
    pub fn of_aside(aside: &Map<String, Value>, place: &Path) -> Given {
        let base = aside.get(ASIDE[0]).and_then(Value::as_object).map(|map| (place.to_path_buf(), map.clone()));
        Given { base, alpha: aside.get(ASIDE[2]).and_then(Value::as_f64) }
    }
}

/// True for a folder that holds an adapter's config, or tensors that only adapters have, a file that has a config beside
/// it, a GGUF file or an archive.
pub fn looks_like_adapter(path: &Path) -> bool {
    let claims = |all: &[u8]| gguf::claims(all) || archive::claims(all);
    let is_whole = || MappedFile::open(path).is_ok_and(|file| claims(file.as_slice()));
    let [pipeline, pickled] = PIPELINE_NAMES;
    let marks = [CONFIG_NAME, ARRAYS_NAME, LITGPT_NAME, TENSOR_NAMES[0], archive::WEIGHTS, pipeline, pickled];
    let has_mark =
        |folder: PathBuf| marks.iter().any(|name| folder.join(name).exists()) || last_epoch(&folder).is_some();
    path.is_file() && is_whole() || hub::resolve(path).is_ok_and(has_mark)
}

impl Source {
    /// Opens a folder, or a tensor file with its config beside it.
    pub fn open(path: &Path) -> Result<Source> {
        Source::open_with(path, Given::default())
    }

    /// The same, where more is known.
    pub fn open_with(path: &Path, mut given: Given) -> Result<Source> {
        let about = std::fs::metadata(path).map_err(|e| container::cannot_open(path, e))?;
        container::refuse_config(path)?;
        let resolved = if about.is_dir() { hub::resolve(path)? } else { path.to_path_buf() };
        let path = resolved.as_path();
        let (folder, tensor_file) = if about.is_dir() {
            (path.to_path_buf(), tensor_file_in(path)?)
        } else {
            (path.parent().map(Path::to_path_buf).unwrap_or_default(), path.to_path_buf())
        };
        let file = MappedFile::open(&tensor_file)?;
        // A file that calls itself safetensors is read as nothing else.
        let by_content = tensor_file.extension().is_none_or(|e| e != "safetensors");
        let is_gguf = by_content && gguf::claims(file.as_slice());
        if given.base.is_none() {
            // A GGUF file may depend on it; beside any other it must not be in the way.
            given.base = match side_file(&folder, BASE_CONFIG_NAME, json::read_object) {
                Err(_) if !is_gguf => None,
                found => found?,
            };
        }
        if is_gguf {
            let all = Bytes::mapped(&file, 0..file.as_slice().len())?;
            return Source::of_gguf(path, &tensor_file, file, &all, None, given);
        }
        if by_content && archive::claims(file.as_slice()) {
            return Source::of_archive(path, &tensor_file, file, given);
        }
        let config = side_file(&folder, CONFIG_NAME, json::read_object)?;
        let mut settings = BTreeMap::new();
        for name in SETTINGS {
            let mut found = side_file(&folder, name, yaml::read_object)?;
            if let Some(run) = folder.parent().filter(|_| found.is_none() && is_epoch(&folder)) {
                found = side_file(run, name, yaml::read_object)?;
            }
            if let Some(found) = found {
                settings.insert(name, found);
            }
        }
        let mut shards = Vec::new();
        let (tensors, metadata, other_values) = if let Some(index) = index_of(&tensor_file) {
            let opened = Sharded::open_indexed(&folder, &index)?;
            shards = opened.shards.iter().skip(1).map(|shard| Arc::clone(&shard.contents.file)).collect();
            let tensors = opened.tensors().map(|(_, key, tensor)| (key.clone(), tensor.clone())).collect();
            let metadata = opened.shards.first().map(|shard| shard.contents.metadata.clone()).unwrap_or_default();
            (tensors, metadata.into_iter().collect(), Vec::new())
        } else if tensor_file.extension().is_some_and(|e| e == "npz") {
            (npz::read(&file)?, Vec::new(), Vec::new())
        } else if by_content && torch::claims(file.as_slice()) {
            let (tensors, rest) = torch::read_with_rest(&file).map_err(|e| e.in_file(&tensor_file))?;
            (tensors, Vec::new(), rest)
        } else {
            let opened = SafetensorsFile::open(&tensor_file)?;
            (opened.tensors, opened.metadata.into_iter().collect(), Vec::new())
        };
        let path = path.to_path_buf();
        Ok(Source {
            path,
            tensor_file,
            file,
            shards,
            tensors,
            metadata,
            other_values,
            gguf: None,
            config,
            settings,
            given,
        })
    }

    /// An archive holds its settings, and has no other files.
    fn of_archive(path: &Path, tensor_file: &Path, file: Arc<MappedFile>, given: Given) -> Result<Source> {
        let archive::Archive { tensors, mut config, others } = archive::read(&file, limits::CONFIG_BYTES)?;
        // What an adapter says about itself has a place of its own elsewhere.
        let own: Vec<_> = config.keys().filter(|name| name.starts_with("lora_tool.")).cloned().collect();
        let text = |name: String| Some((name.clone(), config.remove(&name)?.as_str()?.to_string()));
        let metadata = own.into_iter().filter_map(text).collect();
        Ok(Source {
            path: path.to_path_buf(),
            tensor_file: tensor_file.to_path_buf(),
            file,
            shards: Vec::new(),
            tensors,
            metadata,
            other_values: others,
            gguf: None,
            config: None,
            settings: BTreeMap::from([(archive::CONFIG, (tensor_file.to_path_buf(), config))]),
            given,
        })
    }

    fn of_gguf(
        path: &Path,
        tensor_file: &Path,
        file: Arc<MappedFile>,
        bytes: &Bytes,
        config: Option<SideFile>,
        given: Given,
    ) -> Result<Source> {
        let opened = GgufFile::parse(bytes).in_file(tensor_file)?;
        let texts = opened.metadata.iter().filter_map(|(key, value)| Some((key.clone(), value.text()?.to_string())));
        Ok(Source {
            path: path.to_path_buf(),
            tensor_file: tensor_file.to_path_buf(),
            file,
            shards: Vec::new(),
            tensors: opened.tensors.clone(),
            metadata: texts.collect(),
            other_values: Vec::new(),
            gguf: Some(opened),
            config,
            settings: BTreeMap::new(),
            given,
        })
    }

    /// All that a reader may have looked at beside tensors and config, to be kept with them; with `files` also what
    /// stands in other files. None where there is nothing.
    pub fn aside(&self, files: bool) -> Option<Map<String, Value>> {
        let mut out = Map::new();
        if let Some((_, base)) = self.given.base.as_ref().filter(|_| files) {
            out.insert(ASIDE[0].to_string(), Value::Object(base.clone()));
        }
        if files && !self.settings.is_empty() {
            let all = self.settings.iter().map(|(name, (_, map))| (name.to_string(), Value::Object(map.clone())));
            out.insert(ASIDE[1].to_string(), Value::Object(all.collect()));
        }
        if let Some(alpha) = self.given.alpha {
            out.insert(ASIDE[2].to_string(), Value::from(alpha));
        }
        Some(out).filter(|out| !out.is_empty())
    }

    /// What is known of the base.
    pub fn facts(&self) -> Facts {
        self.given.base.as_ref().map(|(_, config)| facts::of_config(config)).unwrap_or_default()
    }

    /// An adapter whose tensor file lies in `bytes` of another file, and whose config is at hand, with what
    /// [`Source::aside`] gave.
    pub fn within(
        path: &Path,
        bytes: &Bytes,
        config: Option<Map<String, Value>>,
        aside: Option<&Map<String, Value>>,
    ) -> Result<Source> {
        let given = aside.map(|aside| Given::of_aside(aside, path)).unwrap_or_default();
        let kept = aside.and_then(|aside| aside.get(ASIDE[1])?.as_object());
        let of = |name: &'static str| Some((name, (path.to_path_buf(), kept?.get(name)?.as_object()?.clone())));
        let settings = SETTINGS.into_iter().filter_map(of).collect();
        let (file, at) = bytes.origin().ok_or_else(|| Error::missing("an adapter that lies in no file"))?;
        let start = usize::try_from(at).map_err(|_| Error::unsupported("too large for this system"))?;
        let config = config.map(|config| (path.to_path_buf(), config));
        if gguf::claims(bytes.as_slice()) {
            return Source::of_gguf(path, path, Arc::clone(file), bytes, None, given);
        }
        let opened = SafetensorsFile::within(Arc::clone(file), start..start + bytes.len())?;
        Ok(Source {
            path: path.to_path_buf(),
            tensor_file: path.to_path_buf(),
            file: Arc::clone(file),
            shards: Vec::new(),
            tensors: opened.tensors,
            metadata: opened.metadata.into_iter().collect(),
            other_values: Vec::new(),
            gguf: None,
            config,
            settings,
            given,
        })
    }

    /// The tensors and the metadata as one safetensors file, or the GGUF file as it is.
    pub fn packed(&self) -> Result<Vec<u8>> {
        if let Some(opened) = &self.gguf {
            return Ok(opened.whole.as_slice().to_vec());
        }
        let entry =
            |(name, t): (&String, &Tensor)| Entry { name: name.clone(), dtype: t.dtype, shape: t.shape.clone() };
        let metadata = self.metadata.iter().cloned().collect();
        let manifest = Manifest { entries: self.tensors.iter().map(entry).collect(), metadata };
        let mut out = manifest.head()?;
        for tensor in self.tensors.values() {
            out.extend_from_slice(tensor.bytes.as_slice());
            tensor.bytes.release(0..tensor.bytes.len());
        }
        Ok(out)
    }

    /// All files the tensors lie in.
    pub fn files(&self) -> impl Iterator<Item = &Arc<MappedFile>> {
        std::iter::once(&self.file).chain(&self.shards)
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.bytes.len() as u64).sum()
    }

    /// The fingerprint of the base it was made for, where header or config name one.
    pub fn base_fingerprint(&self) -> Result<Option<Hash>> {
        let read = |text: &str, file: &Path| {
            let what = || Error::malformed(format!("`{text:.80}`, expected a fingerprint of 64 hexadecimal digits"));
            Hash::from_hex(text).ok_or_else(what).at_key(BASE_FINGERPRINT).in_file(file)
        };
        let header = self.metadata.iter().find(|(key, _)| key == BASE_FINGERPRINT);
        let header = header.map(|(_, text)| read(text, &self.tensor_file)).transpose()?;
        let Some((path, config)) = &self.config else { return Ok(header) };
        let field: Option<String> = json::field(config, BASE_FINGERPRINT, "a fingerprint").in_file(path)?;
        let field = field.map(|text| read(&text, path)).transpose()?;
        match (header, field) {
            (Some(header), Some(field)) if header != field => {
                let what = format!("names {field}, and the header of the tensors {header}");
                Err(Error::mismatch(what).at_key(BASE_FINGERPRINT).in_file(path))
            }
            (header, field) => Ok(header.or(field)),
        }
    }

    /// An error for the first tensor with NaN or infinity in it.
    pub fn require_finite(&self) -> Result<()> {
        let check = |(key, tensor): &(&String, &Tensor)| {
            let found = tensor.nonfinite();
            tensor.bytes.release(0..tensor.bytes.len());
            let (count, first) = match found {
                Ok(found) => found?,
                Err(e) => return Some(e),
            };
            let what = format!("{count} values of {} are NaN or infinite, the first is number {first}", tensor.shape);
            let error = Error::new(Kind::Nonfinite, what).at_key(*key).in_file(&self.tensor_file);
            Some(error.hint("--allow-nonfinite lets them through"))
        };
        let all: Vec<_> = self.tensors.iter().collect();
        parallel::on_all(|| all.par_iter().find_map_first(check)).map_or(Ok(()), Err)
    }
}

/// A side file, where there is one of this name; one that cannot be read is an error.
fn side_file(
    folder: &Path,
    name: &str,
    read: impl Fn(&Path, u64) -> Result<Map<String, Value>>,
) -> Result<Option<SideFile>> {
    let path = folder.join(name);
    if !folder::is_there(&path)? {
        return Ok(None);
    }
    let config = read(&path, limits::CONFIG_BYTES)?;
    Ok(Some((path, config)))
}

/// The first file that an index of shards names.
fn first_shard(folder: &Path) -> Result<Option<PathBuf>> {
    if !folder::is_there(&folder.join(INDEX_NAME))? {
        return Ok(None);
    }
    let opened = Sharded::open_indexed(folder, INDEX_NAME)?;
    Ok(opened.shards.first().map(|shard| shard.contents.file.path().to_path_buf()))
}

/// The index beside a file that is called like one of its shards.
fn index_of(tensor_file: &Path) -> Option<String> {
    let name = tensor_file.file_name()?.to_str()?;
    let is_shard = name.starts_with("adapter_model-") && name.contains("-of-");
    let index = tensor_file.with_file_name(INDEX_NAME);
    (is_shard && index.symlink_metadata().is_ok()).then(|| INDEX_NAME.to_string())
}

/// Whether a folder is that of one epoch of torchtune's, beside which the training's settings are.
fn is_epoch(folder: &Path) -> bool {
    let number = folder.file_name().and_then(|name| name.to_str()?.strip_prefix("epoch_"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// The file of the last epoch, of adapters that torchtune saved without a folder for each.
fn last_epoch(folder: &Path) -> Option<PathBuf> {
    let number = |name: &str| name.strip_prefix(EPOCH_NAME.0)?.strip_suffix(EPOCH_NAME.1)?.parse::<u64>().ok();
    let names = folder::names(folder).ok()?.into_iter().filter_map(|name| name.into_string().ok());
    let last = names.filter_map(|name| Some((number(&name)?, name))).max()?;
    Some(folder.join(last.1))
}

fn tensor_file_in(folder: &Path) -> Result<PathBuf> {
    let [first, others @ ..] = TENSOR_NAMES;
    let first = Some(folder.join(first));
    let others = others.into_iter().map(|name| Some(folder.join(name)));
    for path in [first, last_epoch(folder)].into_iter().chain(others).flatten() {
        if folder::is_there(&path)? {
            return Ok(path);
        }
    }
    if let Some(first) = first_shard(folder)? {
        return Ok(first);
    }
    // PEFT puts an adapter that is not called `default` into a folder of its name.
    let inner: Vec<_> = folder::names(folder)
        .map_err(|e| Error::io("cannot list", e).in_file(folder))?
        .into_iter()
        .filter(|name| folder.join(name).join(CONFIG_NAME).exists())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    let error =
        Error::missing(format!("no adapter here: none of {} in this folder", TENSOR_NAMES.join(", "))).in_file(folder);
    if let Some(fault) = Sharded::open_folder(folder).err().filter(|e| e.file().is_some_and(|file| file != folder)) {
        return Err(fault); // of a model that is broken, what is wrong with it
    }
    Err(match inner.as_slice() {
        [] if folder.join("config.json").exists() => {
            Error::missing("this is a model; expected an adapter").in_file(folder).hint("the base comes first")
        }
        [] => error,
        names => error.hint(format!("adapters are in its folders: {}", names.join(", "))),
    })
}

//! What a layout is shown: the tensors of an adapter file and the config beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::container::{self, Entry, Manifest, SafetensorsFile, hub, json, torch};
use crate::error::{Context, Error, Kind, Result};
use crate::tensor::{Bytes, Hash, MappedFile, StateDict, Tensor};

/// Names of the config file beside an adapter.
const CONFIG_NAME: &str = "adapter_config.json";
/// Tensor files looked for in a folder, best first.
const TENSOR_NAMES: [&str; 3] = ["adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors"];
const MAX_CONFIG_BYTES: u64 = 16 << 20;
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
    /// Tensors by key.
    pub tensors: StateDict,
    /// Header metadata.
    pub metadata: Vec<(String, String)>,
    /// Keys of values in a pickled file that are no tensors.
    pub other_values: Vec<String>,
    /// The config file and what it says.
    pub config: Option<(PathBuf, Map<String, Value>)>,
}

/// True for a folder that holds an adapter's config, or a file that has one beside it.
pub fn looks_like_adapter(path: &Path) -> bool {
    hub::resolve(path).is_ok_and(|folder| folder.join(CONFIG_NAME).exists())
}

impl Source {
    /// Opens a folder, or a tensor file with its config beside it.
    pub fn open(path: &Path) -> Result<Source> {
        let about = std::fs::metadata(path).map_err(|e| container::cannot_open(path, e))?;
        container::refuse_config(path)?;
        let resolved = if about.is_dir() { hub::resolve(path)? } else { path.to_path_buf() };
        let path = resolved.as_path();
        let (folder, tensor_file) = if about.is_dir() {
            (path.to_path_buf(), tensor_file_in(path)?)
        } else {
            (path.parent().map(Path::to_path_buf).unwrap_or_default(), path.to_path_buf())
        };
        let config_path = folder.join(CONFIG_NAME);
        let config = match config_path.symlink_metadata() {
            Ok(_) => {
                let config = json::read_object(&config_path, MAX_CONFIG_BYTES)?;
                Some((config_path, config))
            }
            Err(_) => None,
        };
        let file = MappedFile::open(&tensor_file)?;
        // A file that calls itself safetensors is read as nothing else.
        let pickled = tensor_file.extension().is_none_or(|e| e != "safetensors") && torch::claims(file.as_slice());
        let (tensors, metadata, other_values) = if pickled {
            let (tensors, rest) = torch::read_with_rest(&file).map_err(|e| e.in_file(&tensor_file))?;
            (tensors, Vec::new(), rest)
        } else {
            let opened = SafetensorsFile::open(&tensor_file)?;
            (opened.tensors, opened.metadata.into_iter().collect(), Vec::new())
        };
        Ok(Source { path: path.to_path_buf(), tensor_file, file, tensors, metadata, other_values, config })
    }

    /// An adapter whose tensor file lies in `bytes` of another file, and whose config is at hand.
    pub fn within(path: &Path, bytes: &Bytes, config: Option<Map<String, Value>>) -> Result<Source> {
        let (file, at) = bytes.origin().ok_or_else(|| Error::missing("an adapter that lies in no file"))?;
        let start = usize::try_from(at).map_err(|_| Error::unsupported("too large for this system"))?;
        let opened = SafetensorsFile::within(Arc::clone(file), start..start + bytes.len())?;
        Ok(Source {
            path: path.to_path_buf(),
            tensor_file: path.to_path_buf(),
            file: Arc::clone(file),
            tensors: opened.tensors,
            metadata: opened.metadata.into_iter().collect(),
            other_values: Vec::new(),
            config: config.map(|config| (path.to_path_buf(), config)),
        })
    }

    /// The tensors and the metadata as one safetensors file.
    pub fn packed(&self) -> Result<Vec<u8>> {
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
        for (key, tensor) in &self.tensors {
            if let Some((count, first)) = tensor.nonfinite()? {
                let what =
                    format!("{count} values of {} are NaN or infinite, the first is number {first}", tensor.shape);
                return Err(Error::new(Kind::Nonfinite, what)
                    .at_key(key)
                    .in_file(&self.tensor_file)
                    .hint("--allow-nonfinite lets them through"));
            }
            tensor.bytes.release(0..tensor.bytes.len());
        }
        Ok(())
    }
}

fn tensor_file_in(folder: &Path) -> Result<PathBuf> {
    if let Some(found) = TENSOR_NAMES.iter().map(|n| folder.join(n)).find(|p| p.symlink_metadata().is_ok()) {
        return Ok(found);
    }
    // PEFT puts an adapter that is not called `default` into a folder of its name.
    let inner: Vec<_> = std::fs::read_dir(folder)
        .map_err(|e| Error::io("cannot list", e).in_file(folder))?
        .flatten()
        .filter(|e| e.path().join(CONFIG_NAME).exists())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    let error =
        Error::missing(format!("no adapter here: none of {} in this folder", TENSOR_NAMES.join(", "))).in_file(folder);
    Err(match inner.as_slice() {
        [] if folder.join("config.json").exists() => {
            Error::missing("this is a model; expected an adapter").in_file(folder).hint("the base comes first")
        }
        [] => error,
        names => error.hint(format!("adapters are in its folders: {}", names.join(", "))),
    })
}

//! The `.nemo` archive: a tar of `model_config.yaml` and the weights of each rank, of which the tensors stay where they
//! are (NVIDIA/NeMo:nemo/core/connectors/save_restore_connector.py).

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::container::{tar, torch, yaml};
use crate::error::{Context, Error, Result};
use crate::tensor::{MappedFile, StateDict};

/// Settings of the training, and of the model that was trained.
pub const CONFIG: &str = "model_config.yaml";
/// The weights of one rank.
pub const WEIGHTS: &str = "model_weights.ckpt";

/// What an archive holds.
#[derive(Debug)]
pub struct Archive {
    /// Tensors by key; those of several ranks have the rank's folder and a slash in front.
    pub tensors: StateDict,
    /// What `model_config.yaml` says.
    pub config: Map<String, Value>,
    /// Members and values that are neither.
    pub others: Vec<String>,
}

/// True for a file that may be one.
pub fn claims(all: &[u8]) -> bool {
    tar::claims(all) || tar::is_gzip(all)
}

/// Reads the archive that `file` is; its config may have so many bytes.
pub fn read(file: &Arc<MappedFile>, max_config: u64) -> Result<Archive> {
    read_inner(file, max_config).in_file(file.path())
}

fn read_inner(file: &Arc<MappedFile>, max_config: u64) -> Result<Archive> {
    let all = file.as_slice();
    if tar::is_gzip(all) {
        let what = "compressed by gzip, and tensors are read where they lie";
        return Err(Error::unsupported(what).hint("unpack it: gzip -dc adapter.nemo > unpacked.nemo"));
    }
    let mut out = Archive { tensors: StateDict::new(), config: Map::new(), others: Vec::new() };
    let members = tar::members(all)?;
    let range = members
        .get(CONFIG)
        .ok_or_else(|| Error::unrecognised(format!("a tar archive without {CONFIG} in it, expected a .nemo file")))?;
    if range.len() as u64 > max_config {
        return Err(Error::limit(format!("{} bytes", range.len()), max_config).at_key(CONFIG));
    }
    let text = all.get(range.clone()).and_then(|bytes| std::str::from_utf8(bytes).ok());
    let text = text.ok_or_else(|| Error::malformed("not UTF-8").at_key(CONFIG))?;
    out.config = yaml::parse_object(text).at_key(CONFIG)?;
    for (name, range) in &members {
        let (folder, base) = name.rsplit_once('/').unwrap_or(("", name));
        if base != WEIGHTS {
            if name.starts_with("model_weights/") || name.ends_with(".distcp") {
                let what = "weights in the form of a distributed checkpoint, expected model_weights.ckpt";
                return Err(Error::unsupported(what).at_key(name));
            }
            if name != CONFIG {
                out.others.push(name.clone());
            }
            continue;
        }
        let (tensors, rest) = torch::read_within(file, range.clone()).at_key(name)?;
        for (key, tensor) in tensors {
            out.tensors.insert(in_folder(folder, &key), tensor);
        }
        out.others.extend(rest.iter().map(|key| in_folder(folder, key)));
    }
    Ok(out)
}

fn in_folder(folder: &str, key: &str) -> String {
    if folder.is_empty() { key.to_string() } else { format!("{folder}/{key}") }
}

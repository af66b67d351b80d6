//! A pipeline of diffusers as a base: its components, each a model with a config and rules of names of its own.
//!
//! Names, in memory and on disk, begin with the component's: `unet.`, `text_encoder_2.`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::site::DENOISERS;
use super::{CONFIG_NAME, Scaled, model_types};
use crate::container::{self, Sharded, json, pipeline};
use crate::error::Result;
use crate::limits;
use crate::names::{Index, checkpoint};

/// What is known of the pipeline beside its tensors.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// Its class.
    pub class: Option<String>,
    /// Its components, in the order of their names.
    pub components: Vec<Component>,
}

/// A component.
#[derive(Clone, Debug)]
pub struct Component {
    /// Its name: that of its folder, and what its tensors have in front.
    pub name: String,
    /// Its class, as the pipeline's index has it.
    pub class: String,
    /// Whether its weights were opened; those in other formats than safetensors are not.
    pub has_tensors: bool,
    /// Its `config.json`, where it has weights.
    pub config: Option<Map<String, Value>>,
    /// What says what model it is: the types of its config, and its class.
    pub types: Vec<String>,
}

impl Component {
    /// Where its config lies in the folder of the pipeline.
    pub fn config_path(&self) -> PathBuf {
        Path::new(&self.name).join(CONFIG_NAME)
    }

    /// Whether it is what takes the noise away: by its class, or by its name where the class is not known here.
    pub fn is_denoiser(&self) -> bool {
        let by_class = self.types.iter().any(|name| checkpoint::naming(name).is_some());
        self.has_tensors && (by_class || DENOISERS.contains(&self.name.as_str()))
    }
}

/// Opens a pipeline: its tensors, what is known of them, their scales, and the index of their names.
pub(super) fn open(folder: &Path) -> Result<(Sharded, Pipeline, Scaled, Index)> {
    let container::Pipeline { class, components, files } = container::Pipeline::open(folder)?;
    let components = components.into_iter().map(|c| component(folder, c)).collect::<Result<Vec<_>>>()?;
    let quantised = components.iter().filter_map(|c| c.config.as_ref()).find(|c| c.contains_key("quantization_config"));
    let scaled = Scaled::find(&files, quantised);
    let mut parts = Vec::new();
    for component in components.iter().filter(|c| c.has_tensors) {
        let own = files.component(&component.name);
        let is_weight = |key: &str| scaled.role(&format!("{}.{key}", component.name)).is_none();
        let keys = own
            .tensors()
            .filter(|(_, key, _)| is_weight(key))
            .map(|(_, key, t)| (key.clone(), t.shape.dims().to_vec()));
        parts.push((component.name.clone(), Index::new(keys, &checkpoint::of_component(&component.types))));
    }
    Ok((files, Pipeline { class, components }, scaled, Index::of_parts(parts)))
}

fn component(folder: &Path, known: pipeline::Component) -> Result<Component> {
    let pipeline::Component { name, class, has_tensors } = known;
    let path = folder.join(&name).join(CONFIG_NAME);
    let there = has_tensors && path.symlink_metadata().is_ok();
    let config = there.then(|| json::read_object(&path, limits::CONFIG_BYTES)).transpose()?;
    let mut types = model_types(config.as_ref());
    if !types.contains(&class) {
        types.push(class.clone());
    }
    Ok(Component { name, class, has_tensors, config, types })
}

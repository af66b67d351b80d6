//! kohya: the flat files of sd-scripts and LyCORIS, and of all who imitate them: one safetensors file, a name with
//! underscores for every module, a suffix for every tensor of it.
//!
//! Defined by kohya-ss/sd-scripts, `networks/*.py`, and KohakuBlueleaf/LyCORIS, `lycoris/modules/*.py`; written down in
//! `docs/layouts/kohya.md`. What a name stands for is settled in `names`; all else here takes paths as they come. Not
//! here: the keys of PEFT (`lora_A`), whatever comes before them.

mod alpha;
mod hashes;
mod keys;
mod kind;
mod metadata;
mod names;
mod read;
mod write;

use crate::adapter::{Adapter, Note};
use crate::error::Result;
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};
use crate::names::diffusion::{Container, Family, Naming};
use crate::tensor::StateDict;

/// The layout.
pub struct Kohya;

/// Its name, and that of what it carries.
pub const NAME: &str = "kohya";
/// The layout of the same networks behind dotted names.
pub const DOTTED: &str = "comfyui";

/// Whether a key ends as only those of this layout do.
pub fn claims(key: &str) -> bool {
    keys::is_mark(key)
}

/// The adapter of a file in which `tensors` are those of `source` in the words of this layout.
pub fn read_tensors(source: &Source, tensors: &StateDict) -> Result<(Adapter, Vec<Note>)> {
    read::read(source, tensors)
}

/// The file of an adapter whose names are dotted, behind the prefixes of ComfyUI.
pub fn write_dotted(adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
    let mut adapter = match adapter.carried.layout.as_str() {
        NAME => metadata::respelled(adapter, Container::Comfy),
        _ => adapter.clone(),
    };
    if adapter.carried.layout == DOTTED {
        adapter.carried.layout = NAME.to_string();
    }
    write::write(&adapter, Container::Comfy)
}

impl Layout for Kohya {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "sd-scripts and LyCORIS: one safetensors file of lora_unet_… names"
    }

    fn holds(&self, content: Content) -> Holding {
        match content {
            Content::Linear
            | Content::Ranks
            | Content::Scales
            | Content::Dora
            | Content::Convolutions
            | Content::Experts
            | Content::Biases
            | Content::Whole
            | Content::Products => Holding::Yes,
            Content::Embeddings | Content::Tokens | Content::Rotations | Content::Rescaling | Content::Shared => {
                Holding::No
            }
        }
    }

    fn naming(&self, family: &Family) -> Option<Naming> {
        Some(family.denoiser()?.homes(Container::Kohya).next()?.naming)
    }

    fn detect(&self, source: &Source) -> Verdict {
        if source.gguf.is_some() || source.config.is_some() {
            return Verdict::No;
        }
        let all = source.tensors.len();
        let ours = source.tensors.keys().filter(|key| keys::is_mark(key)).count();
        if ours == 0 || source.tensors.keys().any(|key| key.starts_with("base_model.model.")) {
            return Verdict::No;
        }
        Verdict::Likely {
            score: 80,
            because: format!("{ours} of {all} keys end as only those of sd-scripts and LyCORIS"),
        }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        read::read(source, &source.tensors)
    }

    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
        match adapter.carried.layout.as_str() {
            DOTTED => write::write(&metadata::respelled(adapter, Container::Kohya), Container::Kohya),
            _ => write::write(adapter, Container::Kohya),
        }
    }
}

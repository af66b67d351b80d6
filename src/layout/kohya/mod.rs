//! kohya: the flat files of sd-scripts and LyCORIS, and of all who imitate them: one safetensors file, a name with
//! underscores for every module, a suffix for every tensor of it.
//!
//! Defined by kohya-ss/sd-scripts, `networks/*.py`, and KohakuBlueleaf/LyCORIS, `lycoris/modules/*.py`; written down in
//! `docs/layouts/kohya.md`. What a name stands for is settled in [`names`]; all else here takes paths as they come. Not
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

/// The layout.
pub struct Kohya;

/// Its name, and that of what it carries.
const NAME: &str = "kohya";

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
        read::read(source)
    }

    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
        write::write(adapter)
    }
}

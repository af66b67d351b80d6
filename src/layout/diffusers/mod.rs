//! diffusers: one file of factors behind the names of a pipeline's parts, `unet.` or `transformer.`, `text_encoder.` …
//!
//! Defined by huggingface/diffusers, `src/diffusers/loaders/{lora_base,lora_pipeline,lora_conversion_utils}.py` and
//! `src/diffusers/utils/state_dict_utils.py`; written down in `docs/layouts/diffusers.md`. Files before PEFT have other
//! words for the factors; all are read, those of today are written.

mod keys;
mod read;
mod write;

use crate::adapter::{Adapter, Note};
use crate::error::Result;
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};
use crate::names::diffusion::{Family, Naming};
use crate::tensor::StateDict;

/// The layout.
pub struct Diffusers;

/// Key of the header's metadata under which PEFT's config stands, as JSON.
const CONFIG: &str = "lora_adapter_metadata";
/// The parts of pipelines, by the words before their modules. Longer words first where one begins another.
const PARTS: [&str; 11] = [
    "text_encoder_2",
    "text_encoder_3",
    "text_encoder",
    "transformer_2",
    "transformer_ref",
    "transformer",
    "unet",
    "prior",
    "controlnet",
    "connectors",
    "text_conditioner",
];

/// How many of these keys are of this layout.
pub fn own_keys(tensors: &StateDict) -> usize {
    tensors.keys().filter(|key| keys::parse(key).is_some()).count()
}

impl Layout for Diffusers {
    fn name(&self) -> &'static str {
        "diffusers"
    }

    fn about(&self) -> &'static str {
        "diffusers: pytorch_lora_weights.safetensors, parts of a pipeline behind their names"
    }

    fn holds(&self, content: Content) -> Holding {
        match content {
            Content::Linear
            | Content::Ranks
            | Content::Scales
            | Content::Dora
            | Content::Convolutions
            | Content::Experts
            | Content::Biases => Holding::Yes,
            _ => Holding::No,
        }
    }

    fn naming(&self, _: &Family) -> Option<Naming> {
        Some(Naming::Diffusers)
    }

    fn detect(&self, source: &Source) -> Verdict {
        if source.gguf.is_some() || source.config.is_some() {
            return Verdict::No;
        }
        let all = source.tensors.len();
        let ours = own_keys(&source.tensors);
        if ours == 0 || ours * 2 < all {
            return Verdict::No;
        }
        let config = source.metadata.iter().any(|(key, _)| key == CONFIG);
        let because = format!("{ours} of {all} keys are factors behind the name of a pipeline's part");
        Verdict::Likely { score: if config { 95 } else { 75 }, because }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        read::read(source)
    }

    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
        write::write(adapter)
    }
}

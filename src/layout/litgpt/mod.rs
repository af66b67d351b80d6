//! LitGPT: `lit_model.pth.lora` beside the training's `hyperparameters.yaml` and the model's `model_config.yaml`.
//!
//! Defined by Lightning-AI/litgpt, `litgpt/lora.py` (what is trained, and how it is merged),
//! `litgpt/scripts/merge_lora.py` (which files are read) and `litgpt/scripts/convert_lit_checkpoint.py` (names in
//! transformers); written down in `docs/layouts/litgpt.md`.

mod names;
mod qkv;
mod read;
mod settings;
mod write;

use crate::adapter::{Adapter, Note};
use crate::error::Result;
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};

/// The layout.
pub struct LitGpt;

impl Layout for LitGpt {
    fn name(&self) -> &'static str {
        "litgpt"
    }

    fn about(&self) -> &'static str {
        "LitGPT: lit_model.pth.lora with hyperparameters.yaml and model_config.yaml"
    }

    fn looks_aside(&self) -> bool {
        true
    }

    fn holds(&self, content: Content) -> Holding {
        match content {
            Content::Linear | Content::Experts => Holding::Yes,
            Content::Ranks | Content::Scales => Holding::Folded,
            _ => Holding::No,
        }
    }

    fn detect(&self, source: &Source) -> Verdict {
        let ours = source.tensors.keys().filter(|key| names::parse(key).is_some()).count();
        // The head alone is called so by others as well.
        let layers = source.tensors.keys().any(|key| key.starts_with("transformer.h.") && names::parse(key).is_some());
        if ours == 0 || source.gguf.is_some() || !layers && ours < source.tensors.len() {
            return Verdict::No;
        }
        let because = format!("{ours} of {} keys are factors of LitGPT's model", source.tensors.len());
        Verdict::Likely { score: 95, because }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        read::read(source)
    }

    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
        write::write(adapter)
    }
}

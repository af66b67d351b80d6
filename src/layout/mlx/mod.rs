//! MLX: `adapters.safetensors` (or `.npz`) beside an `adapter_config.json` that holds the arguments of the training.
//!
//! Defined by ml-explore/mlx-lm, `mlx_lm/tuner/{lora,dora,utils}.py` and `mlx_lm/lora.py`; written down in
//! `docs/layouts/mlx.md`. Keys are the paths of the MLX model's modules and a leaf in lower case; dense factors are
//! the transposes of PEFT's, and one scale multiplies all of them.

mod config;
mod keys;
mod read;
mod write;

use crate::adapter::{Adapter, Note};
use crate::error::Result;
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};

/// The layout.
pub struct Mlx;

impl Layout for Mlx {
    fn name(&self) -> &'static str {
        "mlx"
    }

    fn about(&self) -> &'static str {
        "MLX (mlx-lm): adapters.safetensors or .npz with adapter_config.json"
    }

    fn holds(&self, content: Content) -> Holding {
        match content {
            Content::Linear | Content::Dora | Content::Embeddings | Content::Experts => Holding::Yes,
            Content::Ranks | Content::Scales => Holding::Folded,
            _ => Holding::No,
        }
    }

    fn detect(&self, source: &Source) -> Verdict {
        if source.gguf.is_some() {
            return Verdict::No;
        }
        let all = source.tensors.len();
        let ours = source.tensors.keys().filter(|k| keys::is_lora_key(k)).count();
        if let Some((_, config)) = &source.config {
            if config.contains_key("peft_type") {
                return Verdict::No;
            }
            if let Some(field) = config::MARKS.iter().find(|name| config.contains_key(**name)) {
                let because = format!("adapter_config.json has {field} and no peft_type");
                return Verdict::Likely { score: 90, because };
            }
        }
        if ours == 0 {
            return Verdict::No;
        }
        Verdict::Likely { score: 60, because: format!("{ours} of {all} keys end in lora_a or lora_b") }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        read::read(source)
    }

    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
        write::write(adapter)
    }
}

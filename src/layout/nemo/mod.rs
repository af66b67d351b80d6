//! NeMo and Megatron: the `.nemo` archives of NeMo 1, and the names of Megatron-Bridge and NeMo 2 in safetensors or
//! PyTorch files.
//!
//! Defined by NVIDIA/NeMo, `nemo/collections/nlp/modules/common/megatron/adapters` and `nemo/collections/nlp/parts/
//! peft_config.py`, and NVIDIA-NeMo/Megatron-Bridge, `src/megatron/bridge/peft`; written down in `docs/layouts/nemo.md`.
//! Megatron has query, key and value in one matrix whose rows alternate by group, and gate and up in one; where they go
//! depends on the base's heads and family. The distributed checkpoints of NeMo 2 are not read.

pub mod archive;
mod keys;
mod names;
mod ranks;
mod read;
mod settings;
mod write;

use crate::adapter::{Adapter, Note};
use crate::error::Result;
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};

/// The layout.
pub struct Nemo;

impl Layout for Nemo {
    fn name(&self) -> &'static str {
        "nemo"
    }

    fn about(&self) -> &'static str {
        "NeMo and Megatron: .nemo archives, and Megatron-Bridge's names in safetensors or PyTorch files"
    }

    fn holds(&self, content: Content) -> Holding {
        match content {
            Content::Linear => Holding::Yes,
            Content::Ranks | Content::Scales => Holding::Folded,
            _ => Holding::No,
        }
    }

    fn detect(&self, source: &Source) -> Verdict {
        if source.gguf.is_some() {
            return Verdict::No;
        }
        let all = source.tensors.len();
        let ours = source.tensors.keys().filter(|key| keys::is_ours(key)).count();
        if ours == 0 {
            return Verdict::No;
        }
        Verdict::Likely { score: 85, because: format!("{ours} of {all} keys are of Megatron's adapters") }
    }

    fn looks_aside(&self) -> bool {
        true
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        read::read(source)
    }

    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
        write::write(adapter)
    }
}

//! AdapterHub's `adapters`: `pytorch_adapter.bin` or `adapter.safetensors` beside an `adapter_config.json` with the
//! config of the method in an object of its own. Read only.
//!
//! Defined by adapter-hub/adapters, `src/adapters/{methods/lora,loading}.py`; written down in
//! `docs/layouts/adapterhub.md`. Of its methods those that change weights: LoRA, DoRA, VeRA, (IA)³.

mod config;
mod read;

use crate::adapter::{Adapter, Note};
use crate::error::{Error, Result};
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};

/// The layout.
pub struct AdapterHub;

impl Layout for AdapterHub {
    fn name(&self) -> &'static str {
        "adapterhub"
    }

    fn about(&self) -> &'static str {
        "AdapterHub adapters: pytorch_adapter.bin or adapter.safetensors with adapter_config.json"
    }

    fn holds(&self, content: Content) -> Holding {
        match content {
            Content::Linear | Content::Dora | Content::Rescaling | Content::Shared => Holding::Yes,
            _ => Holding::No,
        }
    }

    fn detect(&self, source: &Source) -> Verdict {
        if source.gguf.is_some() {
            return Verdict::No;
        }
        let (all, ours) = (source.tensors.len(), source.tensors.keys().filter(|key| read::is_ours(key)).count());
        match &source.config {
            Some((_, config)) if config.contains_key("peft_type") => Verdict::No,
            Some((_, config)) if config::is_ours(config) => {
                let because = "adapter_config.json has the config of a method in it, and no peft_type".to_string();
                Verdict::Likely { score: 90, because }
            }
            _ if ours == 0 => Verdict::No,
            _ => Verdict::Likely { score: 80, because: format!("{ours} of {all} keys name adapters of AdapterHub") },
        }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        read::read(source)
    }

    fn can_write(&self) -> bool {
        false
    }

    fn write(&self, _: &Adapter) -> Result<(Draft, Vec<Note>)> {
        Err(Error::unsupported("AdapterHub's layout is read, not written"))
    }
}

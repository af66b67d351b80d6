//! ComfyUI: the networks of [kohya] behind the dotted names that a model has in ComfyUI's memory,
//! `diffusion_model.` and `text_encoders.`.
//!
//! Defined by Comfy-Org/ComfyUI, `comfy/lora.py` and `comfy/weight_adapter`; also what ostris/ai-toolkit,
//! tdrussell/diffusion-pipe and others write, who have PEFT's words for the factors. Written down in
//! `docs/layouts/comfyui.md`.

use super::{kohya, words};
use crate::adapter::{Adapter, Note};
use crate::error::Result;
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};
use crate::names::diffusion::{Container, Family, Naming};
use crate::tensor::StateDict;

/// The layout.
pub struct ComfyUi;

const NAME: &str = "comfyui";
/// What the names of such files begin with.
const STARTS: [&str; 2] = ["diffusion_model.", "text_encoders."];

/// How many of these keys begin as this layout's.
pub fn own_keys(tensors: &StateDict) -> usize {
    tensors.keys().filter(|key| STARTS.iter().any(|start| key.starts_with(start))).count()
}

impl Layout for ComfyUi {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "ComfyUI, ai-toolkit and others: one file of dotted names behind diffusion_model."
    }

    fn holds(&self, content: Content) -> Holding {
        kohya::Kohya.holds(content)
    }

    fn naming(&self, family: &Family) -> Option<Naming> {
        Some(family.denoiser()?.homes(Container::Comfy).next()?.naming)
    }

    fn detect(&self, source: &Source) -> Verdict {
        if source.gguf.is_some() {
            return Verdict::No;
        }
        let all = source.tensors.len();
        let ours = own_keys(&source.tensors);
        let factors = source.tensors.keys().any(|key| words::is_word(key));
        if ours * 2 <= all || !factors {
            return Verdict::No;
        }
        Verdict::Likely { score: 85, because: format!("{ours} of {all} keys begin as ComfyUI calls its modules") }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        kohya::read_tensors(source, &words::in_words_of_kohya(source, str::to_string)?, NAME)
    }

    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
        kohya::write_as(NAME, adapter, kohya::prefixes(adapter, Container::Comfy))
    }
}

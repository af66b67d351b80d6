//! ComfyUI: the networks of [kohya] behind the dotted names that a model has in ComfyUI's memory,
//! `diffusion_model.` and `text_encoders.`.
//!
//! Defined by Comfy-Org/ComfyUI, `comfy/lora.py` and `comfy/weight_adapter`; also what ostris/ai-toolkit,
//! tdrussell/diffusion-pipe and others write, who have PEFT's words for the factors. Written down in
//! `docs/layouts/comfyui.md`.

use super::kohya;
use crate::adapter::{Adapter, Note};
use crate::error::Result;
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};
use crate::names::diffusion::{Container, Family, Naming};
use crate::tensor::StateDict;

/// The layout.
pub struct ComfyUi;

const NAME: &str = kohya::DOTTED;
/// What the names of such files begin with.
const STARTS: [&str; 2] = ["diffusion_model.", "text_encoders."];
/// PEFT's words and those of kohya for the same.
const WORDS: [(&str, &str); 4] = [
    (".lora_A.weight", ".lora_down.weight"),
    (".lora_B.weight", ".lora_up.weight"),
    (".lora_A.default.weight", ".lora_down.weight"),
    (".lora_B.default.weight", ".lora_up.weight"),
];

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
        let ours = source.tensors.keys().filter(|key| STARTS.iter().any(|start| key.starts_with(start))).count();
        let factors = source.tensors.keys().any(|key| key.contains(".lora_") || kohya::claims(key));
        if ours * 2 <= all || !factors {
            return Verdict::No;
        }
        Verdict::Likely { score: 95, because: format!("{ours} of {all} keys begin as ComfyUI calls its modules") }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        let (mut adapter, notes) = kohya::read_tensors(source, &in_words_of_kohya(&source.tensors))?;
        // What the file calls its modules is no matter of other layouts'.
        adapter.carried.layout = NAME.to_string();
        Ok((adapter, notes))
    }

    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
        kohya::write_dotted(adapter)
    }
}

fn in_words_of_kohya(tensors: &StateDict) -> StateDict {
    let renamed = |key: &String| {
        let found = WORDS.iter().find_map(|(peft, kohya)| Some(format!("{}{kohya}", key.strip_suffix(peft)?)));
        found.unwrap_or_else(|| key.clone())
    };
    tensors.iter().map(|(key, tensor)| (renamed(key), tensor.clone())).collect()
}

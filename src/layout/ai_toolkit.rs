//! ai-toolkit: PEFT's words behind `transformer.` or `diffusion_model.`, by the family, and no alpha; for U-Nets the names of
//! [kohya].
//!
//! Defined by ostris/ai-toolkit, `toolkit/network_mixins.py` and `convert_lora_weights_before_save` of each model; written
//! down in `docs/layouts/ai-toolkit.md`. Reading is [kohya]'s once names and words are.

use super::{kohya, words};
use crate::adapter::{Adapter, Along, Delta, Note};
use crate::error::{Context, Error, Result};
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};
use crate::names::diffusion::{self, Container, Family, Naming};
use crate::tensor::StateDict;

/// The layout.
pub struct AiToolkit;

const NAME: &str = "ai-toolkit";
/// Key of the metadata that says which program wrote the file.
const SOFTWARE: &str = "software";

/// What stands before the names of a denoiser, and whose they are: of the families it trains by code of diffusers' under
/// their own prefix.
const BEHIND_TRANSFORMER: [&str; 5] = ["auraflow", "flux1", "lumina2", "pixart", "sd3"];
/// The same of families whose names stand behind ComfyUI's prefix and are still diffusers'.
const DIFFUSERS_NAMES: [&str; 6] = ["ernie_image", "hidream", "omnigen2", "qwen_image", "sana", "z_image"];
/// U-Nets.
const U_NETS: [&str; 4] = ["sd1", "sd2", "sdxl", "sdxl_refiner"];

impl Layout for AiToolkit {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "ai-toolkit: one file, PEFT's words behind transformer. or diffusion_model., no alpha"
    }

    fn holds(&self, content: Content) -> Holding {
        match content {
            Content::Embeddings | Content::Products => kohya::Kohya.holds(content),
            other => match kohya::Kohya.holds(other) {
                Holding::Yes => Holding::Folded,
                holding => holding,
            },
        }
    }

    fn naming(&self, family: &Family) -> Option<Naming> {
        if U_NETS.contains(&family.name) {
            return kohya::Kohya.naming(family);
        }
        let diffusers = BEHIND_TRANSFORMER.contains(&family.name) || DIFFUSERS_NAMES.contains(&family.name);
        Some(if diffusers { Naming::Diffusers } else { Naming::Native })
    }

    fn detect(&self, source: &Source) -> Verdict {
        let said = source.metadata.iter().any(|(key, text)| key == SOFTWARE && text.contains("\"ai-toolkit\""));
        if !said || source.config.is_some() || !source.tensors.keys().any(|key| words::is_word(key)) {
            return Verdict::No;
        }
        Verdict::Likely { score: 99, because: format!("the metadata names {NAME} as the program that wrote it") }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        kohya::read_tensors(source, &words::in_words_of_kohya(source, str::to_string)?, NAME)
    }

    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
        let family = adapter.spelling.and_then(|spelling| diffusion::family(spelling.family));
        let Some(family) = family else {
            return Err(Error::unsupported(
                "an adapter of no known image model, of which this layout tells the prefix",
            ));
        };
        if U_NETS.contains(&family.name) {
            return kohya::write_as(NAME, adapter, kohya::prefixes(adapter, Container::Kohya));
        }
        let (plain, mut notes) = unscaled(adapter)?;
        let prefix = if BEHIND_TRANSFORMER.contains(&family.name) { "transformer." } else { "diffusion_model." };
        let (mut draft, more) = kohya::write_as(NAME, &plain, vec![("transformer".to_string(), prefix.to_string())])?;
        notes.extend(more);
        draft.tensors = in_words_of_peft(draft.tensors)?;
        if !draft.metadata.iter().any(|(key, _)| key == "format") {
            draft.metadata.insert(0, ("format".to_string(), "pt".to_string()));
        }
        Ok((draft, notes))
    }
}

/// All scales in B.
fn unscaled(adapter: &Adapter) -> Result<(Adapter, Vec<Note>)> {
    let (mut out, mut notes, mut folded) = (adapter.clone(), Vec::new(), 0);
    for (path, target) in &mut out.targets {
        if !path.as_str().starts_with("transformer.") {
            let what = "a module outside of the transformer, which is all that this layout has of such models";
            return Err(Error::unsupported(what).at_key(path.as_str()));
        }
        if target.magnitude.is_some() && target.magnitude_along == Along::Cols {
            let what = "DoRA with a magnitude for each input; this layout has one for each output";
            return Err(Error::unsupported(what).at_key(path.as_str()));
        }
        for delta in &mut target.weight {
            let Delta::LowRank(factors) = delta else { continue };
            let (plain, done) = factors.unscaled().at_key(path.as_str())?;
            *factors = plain;
            let Some(done) = done else { continue };
            folded += 1;
            if !done.exact {
                let text = format!("its scale folded into B; rounded to {}", done.tensor.dtype);
                notes.push(Note::lossy(path.as_str(), text));
            }
        }
    }
    if folded > 0 {
        notes.push(Note::info("", format!("{folded} scales folded into B, since this layout has none")));
    }
    Ok((out, notes))
}

/// The tensors in PEFT's words, without the alphas of factors.
fn in_words_of_peft(tensors: StateDict) -> Result<StateDict> {
    let has_factors = |module: &str| tensors.contains_key(&format!("{module}.lora_down.weight"));
    let mut out = Vec::with_capacity(tensors.len());
    for (key, tensor) in &tensors {
        let (key, tensor) = match kohya::split(key) {
            Some((module, "alpha")) if has_factors(module) => continue,
            Some((module, "lora_down.weight")) => (format!("{module}.lora_A.weight"), tensor.clone()),
            Some((module, "lora_up.weight")) => (format!("{module}.lora_B.weight"), tensor.clone()),
            Some((module, "dora_scale")) => (format!("{module}.magnitude"), tensor.reshaped([tensor.elements()])?),
            _ => (key.clone(), tensor.clone()),
        };
        out.push((key, tensor));
    }
    out.sort_by(|(a, s), (b, t)| t.dtype.cmp(&s.dtype).then_with(|| a.cmp(b)));
    Ok(out.into_iter().collect())
}

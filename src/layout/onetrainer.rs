//! OneTrainer's own files: the networks of [kohya] behind diffusers' names, flattened, `lora_transformer_` and
//! `lora_te1_`; for U-Nets `lora_unet_`, so that only its names tell them from sd-scripts'.
//!
//! Defined by Nerogar/OneTrainer, `modules/util/convert_lora_util.py` (`convert_to_mixture`); written down in
//! `docs/layouts/onetrainer.md`. Its other formats are [kohya]'s, ComfyUI's, diffusers', bare names, and [`super::omi`].

use super::kohya;
use crate::adapter::{Adapter, Note};
use crate::error::{Error, Result};
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};
use crate::names::diffusion::{self, Container, Family, Naming, Part, Role};

/// The layout.
pub struct OneTrainer;

const NAME: &str = "onetrainer";
/// What its files alone have before the names of a denoiser.
const DENOISER: &str = "lora_transformer_";

impl Layout for OneTrainer {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "OneTrainer's own: one file of diffusers' names, flattened, lora_transformer_…"
    }

    fn holds(&self, content: Content) -> Holding {
        kohya::Kohya.holds(content)
    }

    fn naming(&self, _: &Family) -> Option<Naming> {
        Some(Naming::Diffusers)
    }

    fn detect(&self, source: &Source) -> Verdict {
        if source.gguf.is_some() || source.config.is_some() {
            return Verdict::No;
        }
        let all = source.tensors.len();
        let ours = source.tensors.keys().filter(|key| key.starts_with(DENOISER)).count();
        if ours == 0 || !source.tensors.keys().any(|key| kohya::claims(key)) {
            return Verdict::No;
        }
        Verdict::Likely { score: 92, because: format!("{ours} of {all} keys begin with {DENOISER}") }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        kohya::read_tensors(source, &source.tensors, NAME)
    }

    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
        let family = adapter.spelling.and_then(|spelling| diffusion::family(spelling.family));
        let Some(family) = family else {
            return Err(Error::unsupported(
                "an adapter of no known image model, whose parts this layout has words for",
            ));
        };
        kohya::write_as(NAME, adapter, prefixes(family))
    }
}

/// The word for each component: text encoders are numbered where there are several.
fn prefixes(family: &Family) -> Vec<(String, String)> {
    let component = |part: &'static Part| part.homes(Container::Diffusers).next().map(|home| home.prefix);
    let encoders = family.parts.iter().filter(|part| !matches!(part.role, Role::Denoiser | Role::Conditioner)).count();
    let of = |part: &'static Part| {
        let component = component(part)?;
        let word = match component {
            "unet" => "lora_unet_".to_string(),
            "prior" => "lora_prior_unet_".to_string(),
            "text_encoder" if encoders > 1 => "lora_te1_".to_string(),
            "text_encoder" => "lora_te_".to_string(),
            other => match other.strip_prefix("text_encoder_") {
                Some(number) => format!("lora_te{number}_"),
                None => format!("lora_{other}_"),
            },
        };
        Some((component.to_string(), word))
    };
    family.parts.iter().filter_map(of).collect()
}

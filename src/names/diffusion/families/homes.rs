//! Where the transformers of most families are kept.

use super::super::part::{Home, Naming, checkpoint, comfy, diffusers, kohya};

/// kohya's trainers use the native names.
pub(super) const NATIVE: &[Home] = &[
    kohya("lora_unet", Naming::Native),
    diffusers("transformer"),
    comfy("diffusion_model", Naming::Comfy),
    checkpoint("model.diffusion_model", Naming::Native),
    checkpoint("", Naming::Native),
];

/// kohya's trainers use those of diffusers.
pub(super) const DIFFUSERS: &[Home] = &[
    kohya("lora_unet", Naming::Diffusers),
    diffusers("transformer"),
    comfy("diffusion_model", Naming::Comfy),
    checkpoint("model.diffusion_model", Naming::Native),
    checkpoint("", Naming::Native),
];

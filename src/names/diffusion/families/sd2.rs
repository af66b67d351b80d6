//! Stable Diffusion 2: as SD1 with linear projections around the transformer blocks, and the text encoder of OpenCLIP.
//!
//! Sources: Stability-AI/stablediffusion, huggingface/diffusers (see `unet`). kohya's adapters have the diffusers
//! names.

use super::super::encoders::open_clip;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, checkpoint, comfy, diffusers, kohya};
use super::super::table::{TOP, Table, group};
use super::{unet, unet_places as places};

static UNET: Table = Table::new(&[
    group(TOP, unet::ENDS),
    group(places::EVEN_RESNETS, unet::RESNET),
    group(places::SHORTCUT_RESNETS, unet::RESNET),
    group(places::SHORTCUT_RESNETS, unet::SHORTCUT),
    group(places::ATTENTIONS, unet::LINEAR_PROJECTIONS),
    group(places::ATTENTIONS, unet::BLOCKS),
    group(places::DOWNSAMPLERS, unet::DOWNSAMPLE),
    group(places::UPSAMPLERS, unet::UPSAMPLE),
]);

const DENOISER: Part = Part::new(
    Role::Denoiser,
    &UNET,
    &[
        kohya("lora_unet", Naming::Diffusers),
        diffusers("unet"),
        comfy("diffusion_model", Naming::Native),
        checkpoint("model.diffusion_model", Naming::Native),
    ],
);

const TEXT: Part = open_clip::part(
    open_clip::VIT_H,
    &[
        kohya("lora_te", Naming::Diffusers),
        diffusers("text_encoder"),
        comfy("text_encoders.clip_h.transformer", Naming::Diffusers),
        checkpoint("cond_stage_model.model", Naming::Native),
    ],
);

/// Stable Diffusion 2.
pub(super) static SD2: Family = Family {
    name: "sd2",
    about: "Stable Diffusion 2",
    variants: &[
        Variant { name: "SD 2.1", extents: &[("m", 320), ("t", 1280), ("e", 1024), ("x", 4)] },
        Variant { name: "SD 2 inpaint", extents: &[("m", 320), ("t", 1280), ("e", 1024), ("x", 9)] },
    ],
    parts: &[DENOISER, TEXT],
};

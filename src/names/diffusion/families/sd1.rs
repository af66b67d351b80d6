//! Stable Diffusion 1.
//!
//! Sources: CompVis/stable-diffusion, huggingface/diffusers (see `unet`). kohya's adapters have the diffusers names.

use super::super::encoders::clip_l;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, checkpoint, comfy, diffusers, kohya};
use super::super::table::{TOP, Table, group};
use super::{unet, unet_places as places};

static UNET: Table = Table::new(&[
    group(TOP, unet::ENDS),
    group(places::EVEN_RESNETS, unet::RESNET),
    group(places::SHORTCUT_RESNETS, unet::RESNET),
    group(places::SHORTCUT_RESNETS, unet::SHORTCUT),
    group(places::ATTENTIONS, unet::CONV_PROJECTIONS),
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

const TEXT: Part = clip_l::part(&[
    kohya("lora_te", Naming::Diffusers),
    diffusers("text_encoder"),
    comfy("text_encoders.clip_l.transformer", Naming::Diffusers),
    checkpoint("cond_stage_model.transformer", Naming::Diffusers),
]);

/// Stable Diffusion 1.
pub(super) static SD1: Family = Family {
    name: "sd1",
    about: "Stable Diffusion 1",
    variants: &[
        Variant { name: "SD 1.5", extents: &[("m", 320), ("t", 1280), ("e", 768), ("x", 4)] },
        Variant { name: "SD 1.5 inpaint", extents: &[("m", 320), ("t", 1280), ("e", 768), ("x", 9)] },
    ],
    parts: &[DENOISER, TEXT],
};

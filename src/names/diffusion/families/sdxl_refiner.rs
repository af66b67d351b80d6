//! The refiner of Stable Diffusion XL: another U-Net, and the larger text encoder alone.
//!
//! Sources: Stability-AI/generative-models, huggingface/diffusers (see `unet`). Nobody's trainer is
//! known to make adapters for it; the flat names are those of the base model.

use super::super::encoders::open_clip;
use super::super::extent::Extent;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, checkpoint, comfy, diffusers, kohya};
use super::super::table::{Place, TOP, Table, at, group};
use super::unet;

const IO_384_384: &[Extent] = &[("i", 384), ("o", 384)];
const IO_384_768: &[Extent] = &[("i", 384), ("o", 768)];
const IO_768_384: &[Extent] = &[("i", 768), ("o", 384)];
const IO_768_768: &[Extent] = &[("i", 768), ("o", 768)];
const IO_768_1536: &[Extent] = &[("i", 768), ("o", 1536)];
const IO_1152_384: &[Extent] = &[("i", 1152), ("o", 384)];
const IO_1152_768: &[Extent] = &[("i", 1152), ("o", 768)];
const IO_1536_768: &[Extent] = &[("i", 1536), ("o", 768)];
const IO_1536_1536: &[Extent] = &[("i", 1536), ("o", 1536)];
const IO_2304_768: &[Extent] = &[("i", 2304), ("o", 768)];
const IO_2304_1536: &[Extent] = &[("i", 2304), ("o", 1536)];
const IO_3072_1536: &[Extent] = &[("i", 3072), ("o", 1536)];
const C_768_4: &[Extent] = &[("c", 768), ("b", 4)];
const C_1536_4: &[Extent] = &[("c", 1536), ("b", 4)];
const C_384: &[Extent] = &[("c", 384)];
const C_768: &[Extent] = &[("c", 768)];
const C_1536: &[Extent] = &[("c", 1536)];

/// Residual blocks that keep the channels.
const EVEN_RESNETS: &[Place] = &[
    at("input_blocks.1.0", "down_blocks.0.resnets.0").sized(IO_384_384),
    at("input_blocks.2.0", "down_blocks.0.resnets.1").sized(IO_384_384),
    at("input_blocks.5.0", "down_blocks.1.resnets.1").sized(IO_768_768),
    at("input_blocks.8.0", "down_blocks.2.resnets.1").sized(IO_1536_1536),
    at("input_blocks.10.0", "down_blocks.3.resnets.0").sized(IO_1536_1536),
    at("input_blocks.11.0", "down_blocks.3.resnets.1").sized(IO_1536_1536),
    at("middle_block.0", "mid_block.resnets.0").sized(IO_1536_1536),
    at("middle_block.2", "mid_block.resnets.1").sized(IO_1536_1536),
];

/// Residual blocks that change the channels.
const SHORTCUT_RESNETS: &[Place] = &[
    at("input_blocks.4.0", "down_blocks.1.resnets.0").sized(IO_384_768),
    at("input_blocks.7.0", "down_blocks.2.resnets.0").sized(IO_768_1536),
    at("output_blocks.0.0", "up_blocks.0.resnets.0").sized(IO_3072_1536),
    at("output_blocks.1.0", "up_blocks.0.resnets.1").sized(IO_3072_1536),
    at("output_blocks.2.0", "up_blocks.0.resnets.2").sized(IO_3072_1536),
    at("output_blocks.3.0", "up_blocks.1.resnets.0").sized(IO_3072_1536),
    at("output_blocks.4.0", "up_blocks.1.resnets.1").sized(IO_3072_1536),
    at("output_blocks.5.0", "up_blocks.1.resnets.2").sized(IO_2304_1536),
    at("output_blocks.6.0", "up_blocks.2.resnets.0").sized(IO_2304_768),
    at("output_blocks.7.0", "up_blocks.2.resnets.1").sized(IO_1536_768),
    at("output_blocks.8.0", "up_blocks.2.resnets.2").sized(IO_1152_768),
    at("output_blocks.9.0", "up_blocks.3.resnets.0").sized(IO_1152_384),
    at("output_blocks.10.0", "up_blocks.3.resnets.1").sized(IO_768_384),
    at("output_blocks.11.0", "up_blocks.3.resnets.2").sized(IO_768_384),
];

/// Attentions.
const ATTENTIONS: &[Place] = &[
    at("input_blocks.4.1", "down_blocks.1.attentions.0").sized(C_768_4),
    at("input_blocks.5.1", "down_blocks.1.attentions.1").sized(C_768_4),
    at("input_blocks.7.1", "down_blocks.2.attentions.0").sized(C_1536_4),
    at("input_blocks.8.1", "down_blocks.2.attentions.1").sized(C_1536_4),
    at("middle_block.1", "mid_block.attentions.0").sized(C_1536_4),
    at("output_blocks.3.1", "up_blocks.1.attentions.0").sized(C_1536_4),
    at("output_blocks.4.1", "up_blocks.1.attentions.1").sized(C_1536_4),
    at("output_blocks.5.1", "up_blocks.1.attentions.2").sized(C_1536_4),
    at("output_blocks.6.1", "up_blocks.2.attentions.0").sized(C_768_4),
    at("output_blocks.7.1", "up_blocks.2.attentions.1").sized(C_768_4),
    at("output_blocks.8.1", "up_blocks.2.attentions.2").sized(C_768_4),
];

/// From a level to the one below.
const DOWNSAMPLERS: &[Place] = &[
    at("input_blocks.3.0", "down_blocks.0.downsamplers.0").sized(C_384),
    at("input_blocks.6.0", "down_blocks.1.downsamplers.0").sized(C_768),
    at("input_blocks.9.0", "down_blocks.2.downsamplers.0").sized(C_1536),
];

/// From a level to the one above.
const UPSAMPLERS: &[Place] = &[
    at("output_blocks.2.1", "up_blocks.0.upsamplers.0").sized(C_1536),
    at("output_blocks.5.2", "up_blocks.1.upsamplers.0").sized(C_1536),
    at("output_blocks.8.2", "up_blocks.2.upsamplers.0").sized(C_768),
];

static UNET: Table = Table::new(&[
    group(TOP, unet::ENDS),
    group(TOP, unet::LABEL),
    group(EVEN_RESNETS, unet::RESNET),
    group(SHORTCUT_RESNETS, unet::RESNET),
    group(SHORTCUT_RESNETS, unet::SHORTCUT),
    group(ATTENTIONS, unet::LINEAR_PROJECTIONS),
    group(ATTENTIONS, unet::BLOCKS),
    group(DOWNSAMPLERS, unet::DOWNSAMPLE),
    group(UPSAMPLERS, unet::UPSAMPLE),
]);

const DENOISER: Part = Part::new(
    Role::Denoiser,
    &UNET,
    &[
        kohya("lora_unet", Naming::Native),
        kohya("lora_unet", Naming::Diffusers),
        diffusers("unet"),
        comfy("diffusion_model", Naming::Native),
        checkpoint("model.diffusion_model", Naming::Native),
    ],
);

const TEXT: Part = open_clip::part(
    open_clip::VIT_BIG_G,
    &[
        kohya("lora_te", Naming::Diffusers),
        diffusers("text_encoder_2"),
        comfy("text_encoders.clip_g.transformer", Naming::Diffusers),
        checkpoint("conditioner.embedders.0.model", Naming::Native),
    ],
);

/// The refiner of Stable Diffusion XL.
pub(super) static SDXL_REFINER: Family = Family {
    name: "sdxl_refiner",
    about: "Stable Diffusion XL refiner",
    variants: &[Variant {
        name: "SDXL refiner",
        extents: &[("m", 384), ("t", 1536), ("e", 1280), ("l", 2560), ("x", 4)],
    }],
    parts: &[DENOISER, TEXT],
};

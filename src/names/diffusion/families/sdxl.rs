//! Stable Diffusion XL.
//!
//! Sources: Stability-AI/generative-models, huggingface/diffusers (see `unet`). kohya's adapters have the native names
//! of the U-Net and the names of transformers for both text encoders; OneTrainer's flat files have the diffusers names.

use super::super::encoders::clip_l;
use super::super::encoders::open_clip;
use super::super::extent::Extent;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, checkpoint, comfy, diffusers, kohya};
use super::super::table::{Place, TOP, Table, at, group};
use super::unet;

const IO_320_320: &[Extent] = &[("i", 320), ("o", 320)];
const IO_320_640: &[Extent] = &[("i", 320), ("o", 640)];
const IO_640_320: &[Extent] = &[("i", 640), ("o", 320)];
const IO_640_640: &[Extent] = &[("i", 640), ("o", 640)];
const IO_640_1280: &[Extent] = &[("i", 640), ("o", 1280)];
const IO_960_320: &[Extent] = &[("i", 960), ("o", 320)];
const IO_960_640: &[Extent] = &[("i", 960), ("o", 640)];
const IO_1280_640: &[Extent] = &[("i", 1280), ("o", 640)];
const IO_1280_1280: &[Extent] = &[("i", 1280), ("o", 1280)];
const IO_1920_640: &[Extent] = &[("i", 1920), ("o", 640)];
const IO_1920_1280: &[Extent] = &[("i", 1920), ("o", 1280)];
const IO_2560_1280: &[Extent] = &[("i", 2560), ("o", 1280)];
const C_640_2: &[Extent] = &[("c", 640), ("b", 2)];
const C_1280_10: &[Extent] = &[("c", 1280), ("b", 10)];
const C_320: &[Extent] = &[("c", 320)];
const C_640: &[Extent] = &[("c", 640)];
const C_1280: &[Extent] = &[("c", 1280)];

/// Residual blocks that keep the channels.
const EVEN_RESNETS: &[Place] = &[
    at("input_blocks.1.0", "down_blocks.0.resnets.0").sized(IO_320_320),
    at("input_blocks.2.0", "down_blocks.0.resnets.1").sized(IO_320_320),
    at("input_blocks.5.0", "down_blocks.1.resnets.1").sized(IO_640_640),
    at("input_blocks.8.0", "down_blocks.2.resnets.1").sized(IO_1280_1280),
    at("middle_block.0", "mid_block.resnets.0").sized(IO_1280_1280),
    at("middle_block.2", "mid_block.resnets.1").sized(IO_1280_1280),
];

/// Residual blocks that change the channels.
const SHORTCUT_RESNETS: &[Place] = &[
    at("input_blocks.4.0", "down_blocks.1.resnets.0").sized(IO_320_640),
    at("input_blocks.7.0", "down_blocks.2.resnets.0").sized(IO_640_1280),
    at("output_blocks.0.0", "up_blocks.0.resnets.0").sized(IO_2560_1280),
    at("output_blocks.1.0", "up_blocks.0.resnets.1").sized(IO_2560_1280),
    at("output_blocks.2.0", "up_blocks.0.resnets.2").sized(IO_1920_1280),
    at("output_blocks.3.0", "up_blocks.1.resnets.0").sized(IO_1920_640),
    at("output_blocks.4.0", "up_blocks.1.resnets.1").sized(IO_1280_640),
    at("output_blocks.5.0", "up_blocks.1.resnets.2").sized(IO_960_640),
    at("output_blocks.6.0", "up_blocks.2.resnets.0").sized(IO_960_320),
    at("output_blocks.7.0", "up_blocks.2.resnets.1").sized(IO_640_320),
    at("output_blocks.8.0", "up_blocks.2.resnets.2").sized(IO_640_320),
];

/// Attentions.
const ATTENTIONS: &[Place] = &[
    at("input_blocks.4.1", "down_blocks.1.attentions.0").sized(C_640_2),
    at("input_blocks.5.1", "down_blocks.1.attentions.1").sized(C_640_2),
    at("input_blocks.7.1", "down_blocks.2.attentions.0").sized(C_1280_10),
    at("input_blocks.8.1", "down_blocks.2.attentions.1").sized(C_1280_10),
    at("middle_block.1", "mid_block.attentions.0").sized(C_1280_10),
    at("output_blocks.0.1", "up_blocks.0.attentions.0").sized(C_1280_10),
    at("output_blocks.1.1", "up_blocks.0.attentions.1").sized(C_1280_10),
    at("output_blocks.2.1", "up_blocks.0.attentions.2").sized(C_1280_10),
    at("output_blocks.3.1", "up_blocks.1.attentions.0").sized(C_640_2),
    at("output_blocks.4.1", "up_blocks.1.attentions.1").sized(C_640_2),
    at("output_blocks.5.1", "up_blocks.1.attentions.2").sized(C_640_2),
];

/// From a level to the one below.
const DOWNSAMPLERS: &[Place] = &[
    at("input_blocks.3.0", "down_blocks.0.downsamplers.0").sized(C_320),
    at("input_blocks.6.0", "down_blocks.1.downsamplers.0").sized(C_640),
];

/// From a level to the one above.
const UPSAMPLERS: &[Place] = &[
    at("output_blocks.2.2", "up_blocks.0.upsamplers.0").sized(C_1280),
    at("output_blocks.5.2", "up_blocks.1.upsamplers.0").sized(C_640),
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

const TEXT: Part = clip_l::part(&[
    kohya("lora_te1", Naming::Diffusers),
    diffusers("text_encoder"),
    comfy("text_encoders.clip_l.transformer", Naming::Diffusers),
    checkpoint("conditioner.embedders.0.transformer", Naming::Diffusers),
]);

const TEXT_2: Part = open_clip::part(
    open_clip::VIT_BIG_G,
    &[
        kohya("lora_te2", Naming::Diffusers),
        diffusers("text_encoder_2"),
        comfy("text_encoders.clip_g.transformer", Naming::Diffusers),
        checkpoint("conditioner.embedders.1.model", Naming::Native),
    ],
);

const BASE: &[Extent] = &[("m", 320), ("t", 1280), ("e", 2048), ("l", 2816), ("x", 4)];
const EDIT: &[Extent] = &[("m", 320), ("t", 1280), ("e", 2048), ("l", 2816), ("x", 8)];
const INPAINT: &[Extent] = &[("m", 320), ("t", 1280), ("e", 2048), ("l", 2816), ("x", 9)];

/// Stable Diffusion XL.
pub(super) static SDXL: Family = Family {
    name: "sdxl",
    about: "Stable Diffusion XL",
    variants: &[
        Variant { name: "SDXL base", extents: BASE },
        Variant { name: "SDXL edit", extents: EDIT },
        Variant { name: "SDXL inpaint", extents: INPAINT },
    ],
    parts: &[DENOISER, TEXT, TEXT_2],
};

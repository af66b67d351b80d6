//! The blocks of the U-Net that SD1 and SD2 have: four levels, the lowest without attention.
//!
//! Source: CompVis/stable-diffusion:configs/stable-diffusion/v1-inference.yaml; the numbers of the blocks follow from
//! two residual blocks a level on the way down and three on the way up.

use super::super::extent::Extent;
use super::super::table::{Place, at};

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
const C_320_1: &[Extent] = &[("c", 320), ("b", 1)];
const C_640_1: &[Extent] = &[("c", 640), ("b", 1)];
const C_1280_1: &[Extent] = &[("c", 1280), ("b", 1)];
const C_320: &[Extent] = &[("c", 320)];
const C_640: &[Extent] = &[("c", 640)];
const C_1280: &[Extent] = &[("c", 1280)];

/// Residual blocks that keep the channels.
pub(super) const EVEN_RESNETS: &[Place] = &[
    at("input_blocks.1.0", "down_blocks.0.resnets.0").sized(IO_320_320),
    at("input_blocks.2.0", "down_blocks.0.resnets.1").sized(IO_320_320),
    at("input_blocks.5.0", "down_blocks.1.resnets.1").sized(IO_640_640),
    at("input_blocks.8.0", "down_blocks.2.resnets.1").sized(IO_1280_1280),
    at("input_blocks.10.0", "down_blocks.3.resnets.0").sized(IO_1280_1280),
    at("input_blocks.11.0", "down_blocks.3.resnets.1").sized(IO_1280_1280),
    at("middle_block.0", "mid_block.resnets.0").sized(IO_1280_1280),
    at("middle_block.2", "mid_block.resnets.1").sized(IO_1280_1280),
];

/// Residual blocks that change the channels.
pub(super) const SHORTCUT_RESNETS: &[Place] = &[
    at("input_blocks.4.0", "down_blocks.1.resnets.0").sized(IO_320_640),
    at("input_blocks.7.0", "down_blocks.2.resnets.0").sized(IO_640_1280),
    at("output_blocks.0.0", "up_blocks.0.resnets.0").sized(IO_2560_1280),
    at("output_blocks.1.0", "up_blocks.0.resnets.1").sized(IO_2560_1280),
    at("output_blocks.2.0", "up_blocks.0.resnets.2").sized(IO_2560_1280),
    at("output_blocks.3.0", "up_blocks.1.resnets.0").sized(IO_2560_1280),
    at("output_blocks.4.0", "up_blocks.1.resnets.1").sized(IO_2560_1280),
    at("output_blocks.5.0", "up_blocks.1.resnets.2").sized(IO_1920_1280),
    at("output_blocks.6.0", "up_blocks.2.resnets.0").sized(IO_1920_640),
    at("output_blocks.7.0", "up_blocks.2.resnets.1").sized(IO_1280_640),
    at("output_blocks.8.0", "up_blocks.2.resnets.2").sized(IO_960_640),
    at("output_blocks.9.0", "up_blocks.3.resnets.0").sized(IO_960_320),
    at("output_blocks.10.0", "up_blocks.3.resnets.1").sized(IO_640_320),
    at("output_blocks.11.0", "up_blocks.3.resnets.2").sized(IO_640_320),
];

/// Attentions.
pub(super) const ATTENTIONS: &[Place] = &[
    at("input_blocks.1.1", "down_blocks.0.attentions.0").sized(C_320_1),
    at("input_blocks.2.1", "down_blocks.0.attentions.1").sized(C_320_1),
    at("input_blocks.4.1", "down_blocks.1.attentions.0").sized(C_640_1),
    at("input_blocks.5.1", "down_blocks.1.attentions.1").sized(C_640_1),
    at("input_blocks.7.1", "down_blocks.2.attentions.0").sized(C_1280_1),
    at("input_blocks.8.1", "down_blocks.2.attentions.1").sized(C_1280_1),
    at("middle_block.1", "mid_block.attentions.0").sized(C_1280_1),
    at("output_blocks.3.1", "up_blocks.1.attentions.0").sized(C_1280_1),
    at("output_blocks.4.1", "up_blocks.1.attentions.1").sized(C_1280_1),
    at("output_blocks.5.1", "up_blocks.1.attentions.2").sized(C_1280_1),
    at("output_blocks.6.1", "up_blocks.2.attentions.0").sized(C_640_1),
    at("output_blocks.7.1", "up_blocks.2.attentions.1").sized(C_640_1),
    at("output_blocks.8.1", "up_blocks.2.attentions.2").sized(C_640_1),
    at("output_blocks.9.1", "up_blocks.3.attentions.0").sized(C_320_1),
    at("output_blocks.10.1", "up_blocks.3.attentions.1").sized(C_320_1),
    at("output_blocks.11.1", "up_blocks.3.attentions.2").sized(C_320_1),
];

/// From a level to the one below.
pub(super) const DOWNSAMPLERS: &[Place] = &[
    at("input_blocks.3.0", "down_blocks.0.downsamplers.0").sized(C_320),
    at("input_blocks.6.0", "down_blocks.1.downsamplers.0").sized(C_640),
    at("input_blocks.9.0", "down_blocks.2.downsamplers.0").sized(C_1280),
];

/// From a level to the one above.
pub(super) const UPSAMPLERS: &[Place] = &[
    at("output_blocks.2.1", "up_blocks.0.upsamplers.0").sized(C_1280),
    at("output_blocks.5.2", "up_blocks.1.upsamplers.0").sized(C_1280),
    at("output_blocks.8.2", "up_blocks.2.upsamplers.0").sized(C_640),
];

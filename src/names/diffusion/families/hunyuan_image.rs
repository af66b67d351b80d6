//! HunyuanImage 2.1.
//!
//! Sources: kohya-ss/sd-scripts:library/hunyuan_image_models.py (left: fused, as ComfyUI has it; the authors' own
//! program splits what is fused here);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_hunyuanimage.py (right). Letters as in
//! `hunyuan_video`; `g` is whether the guidance is an input, `m` whether a second time is.

use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Row, TOP, Table, fused, group, row, same};
use super::flux1;
use super::hunyuan_video as video;

const DOUBLE_ATTENTION: &[Row] = &[
    fused("img_attn_qkv", &["attn.to_q", "attn.to_k", "attn.to_v"], "3d d"),
    fused("txt_attn_qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"], "3d d"),
];

const SINGLE: &[Row] = &[
    row("q_norm", "attn.norm_q", "128"),
    row("k_norm", "attn.norm_k", "128"),
    row("modulation.linear", "norm.linear", "3d d"),
];

const ENDS: &[Row] = &[
    row("img_in.proj", "x_embedder.proj", "d 64 1 1"),
    row("time_in.mlp.0", "time_guidance_embed.timestep_embedder.linear_1", "d 256"),
    row("time_in.mlp.2", "time_guidance_embed.timestep_embedder.linear_2", "d d"),
    row("final_layer.linear", "proj_out", "64 d"),
];

const GUIDANCE: &[Row] = &[
    row("guidance_in.mlp.0", "time_guidance_embed.guidance_embedder.linear_1", "d 256"),
    row("guidance_in.mlp.2", "time_guidance_embed.guidance_embedder.linear_2", "d d"),
];

const SECOND_TIME: &[Row] = &[
    row("time_r_in.mlp.0", "time_guidance_embed.timestep_embedder_r.linear_1", "d 256"),
    row("time_r_in.mlp.2", "time_guidance_embed.timestep_embedder_r.linear_2", "d d"),
];

/// The encoder of glyphs. The distilled model of diffusers' default configuration is without.
const GLYPHS: &[Row] = &[
    row("byt5_in.layernorm", "context_embedder_2.norm", "1472"),
    row("byt5_in.fc1", "context_embedder_2.linear_1", "2048 1472"),
    row("byt5_in.fc2", "context_embedder_2.linear_2", "2048 2048"),
    row("byt5_in.fc3", "context_embedder_2.linear_3", "d 2048"),
];

static TRANSFORMER: Table = Table::new(&[
    group(TOP, ENDS),
    group(TOP, flux1::LAST_MODULATION),
    group(TOP, GUIDANCE).when("g"),
    group(TOP, SECOND_TIME).when("m"),
    group(TOP, GLYPHS),
    group(TOP, video::REFINER_ENDS),
    group(video::REFINER, video::REFINER_BLOCK),
    group(flux1::DOUBLE, DOUBLE_ATTENTION),
    group(flux1::DOUBLE, video::DOUBLE_REST),
    group(flux1::SINGLE, flux1::SINGLE_LINEAR),
    group(flux1::SINGLE, SINGLE),
]);

const COMFY_ENDS: &[Row] = &[same("img_in.proj", "d 64 1 1"), same("final_layer.linear", "64 d")];

/// Of both kinds of model whose text has glyphs.
pub(super) const COMFY_GLYPHS: &[Row] = &[
    same("byt5_in.layernorm", "1472"),
    same("byt5_in.fc1", "2048 1472"),
    same("byt5_in.fc2", "2048 2048"),
    same("byt5_in.fc3", "d 2048"),
];

const COMFY_GUIDANCE: &[Row] = &[
    row("guidance_in.in_layer", "guidance_in.mlp.0", "d 256"),
    row("guidance_in.out_layer", "guidance_in.mlp.2", "d d"),
];

const COMFY_SECOND_TIME: &[Row] =
    &[row("time_r_in.in_layer", "time_r_in.mlp.0", "d 256"), row("time_r_in.out_layer", "time_r_in.mlp.2", "d d")];

static COMFY: Table = Table::new(&[
    group(TOP, COMFY_ENDS),
    group(TOP, COMFY_GLYPHS),
    group(TOP, COMFY_GUIDANCE).when("g"),
    group(TOP, COMFY_SECOND_TIME).when("m"),
    group(TOP, video::COMFY_REFINER_ENDS),
    group(video::COMFY_REFINER, video::COMFY_REFINER_BLOCK),
    group(video::COMFY_DOUBLE, video::COMFY_DOUBLE_ATTENTION),
    group(video::COMFY_DOUBLE, video::COMFY_DOUBLE_REST),
    group(video::COMFY_SINGLE, video::COMFY_SINGLE_BLOCK),
]);

/// HunyuanImage.
pub(super) static HUNYUAN_IMAGE: Family = Family {
    name: "hunyuan_image",
    about: "HunyuanImage 2.1",
    variants: &[
        Variant {
            name: "HunyuanImage 2.1",
            extents: &[("d", 3584), ("n", 20), ("s", 40), ("e", 3584), ("g", 0), ("m", 0)],
        },
        Variant {
            name: "HunyuanImage 2.1 distilled",
            extents: &[("d", 3584), ("n", 20), ("s", 40), ("e", 3584), ("g", 1), ("m", 1)],
        },
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, video::HOMES).with_comfy(&COMFY)],
};

//! HunyuanVideo 1.5: double blocks only. Its authors split queries, keys and values, and ComfyUI fuses them.
//!
//! Sources: Tencent-Hunyuan/HunyuanVideo-1.5 by kohya-ss/musubi-tuner:src/musubi_tuner/hunyuan_video_1_5 (left);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_hunyuan_video15.py (right). Letters as in
//! `hunyuan_video`.

use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Row, TOP, Table, fused, group, row, same};
use super::hunyuan_video as video;
use super::{flux1, hunyuan_image as image};

const DOUBLE_ATTENTION: &[Row] = &[
    row("img_attn_q", "attn.to_q", "d d"),
    row("img_attn_k", "attn.to_k", "d d"),
    row("img_attn_v", "attn.to_v", "d d"),
    row("txt_attn_q", "attn.add_q_proj", "d d"),
    row("txt_attn_k", "attn.add_k_proj", "d d"),
    row("txt_attn_v", "attn.add_v_proj", "d d"),
];

const ENDS: &[Row] = &[
    row("img_in.proj", "x_embedder.proj", "d 65 1 1 1"),
    row("time_in.mlp.0", "time_embed.timestep_embedder.linear_1", "d 256"),
    row("time_in.mlp.2", "time_embed.timestep_embedder.linear_2", "d d"),
    row("final_layer.linear", "proj_out", "32 d"),
    row("byt5_in.layernorm", "context_embedder_2.norm", "1472"),
    row("byt5_in.fc1", "context_embedder_2.linear_1", "2048 1472"),
    row("byt5_in.fc2", "context_embedder_2.linear_2", "2048 2048"),
    row("byt5_in.fc3", "context_embedder_2.linear_3", "d 2048"),
    row("vision_in.proj.0", "image_embedder.norm_in", "1152"),
    row("vision_in.proj.1", "image_embedder.linear_1", "1152 1152"),
    row("vision_in.proj.3", "image_embedder.linear_2", "d 1152"),
    row("vision_in.proj.4", "image_embedder.norm_out", "d"),
    row("cond_type_embedding", "cond_type_embed", "3 d").embedding(),
];

const SECOND_TIME: &[Row] = &[
    row("time_r_in.mlp.0", "time_embed.timestep_embedder_r.linear_1", "d 256"),
    row("time_r_in.mlp.2", "time_embed.timestep_embedder_r.linear_2", "d d"),
];

static TRANSFORMER: Table = Table::new(&[
    group(TOP, ENDS),
    group(TOP, SECOND_TIME).when("m"),
    group(TOP, flux1::LAST_MODULATION),
    group(TOP, video::REFINER_ENDS),
    group(video::REFINER, video::REFINER_BLOCK),
    group(flux1::DOUBLE, DOUBLE_ATTENTION),
    group(flux1::DOUBLE, video::DOUBLE_REST),
]);

const COMFY_ATTENTION: &[Row] = &[
    fused("img_attn.qkv", &["img_attn_q", "img_attn_k", "img_attn_v"], "3d d"),
    fused("txt_attn.qkv", &["txt_attn_q", "txt_attn_k", "txt_attn_v"], "3d d"),
];

const COMFY_ENDS: &[Row] = &[
    same("img_in.proj", "d 65 1 1 1"),
    same("final_layer.linear", "32 d"),
    same("vision_in.proj.0", "1152"),
    same("vision_in.proj.1", "1152 1152"),
    same("vision_in.proj.3", "d 1152"),
    same("vision_in.proj.4", "d"),
    same("cond_type_embedding", "3 d").embedding(),
];

const COMFY_SECOND_TIME: &[Row] =
    &[row("time_r_in.in_layer", "time_r_in.mlp.0", "d 256"), row("time_r_in.out_layer", "time_r_in.mlp.2", "d d")];

static COMFY: Table = Table::new(&[
    group(TOP, COMFY_ENDS),
    group(TOP, COMFY_SECOND_TIME).when("m"),
    group(TOP, image::COMFY_GLYPHS),
    group(TOP, video::COMFY_REFINER_ENDS),
    group(video::COMFY_REFINER, video::COMFY_REFINER_BLOCK),
    group(video::COMFY_DOUBLE, COMFY_ATTENTION),
    group(video::COMFY_DOUBLE, video::COMFY_DOUBLE_REST),
]);

/// HunyuanVideo 1.5.
pub(super) static HUNYUAN_VIDEO_15: Family = Family {
    name: "hunyuan_video_15",
    about: "HunyuanVideo 1.5",
    variants: &[Variant { name: "HunyuanVideo 1.5", extents: &[("d", 2048), ("n", 54), ("e", 3584), ("m", 0)] }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, video::HOMES).with_comfy(&COMFY)],
};

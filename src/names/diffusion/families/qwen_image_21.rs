//! Qwen-Image 2.1. ComfyUI has gate and value of the feed-forward layer in one, everybody else apart.
//!
//! Sources: huggingface/diffusers:src/diffusers/models/transformers/transformer_qwenimage21.py, and for ComfyUI's names
//! src/diffusers/loaders/single_file_utils.py. `d` is the width, `n` the number of blocks.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, fused, group, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("transformer_blocks.#", "transformer_blocks.#", &[Count("n")])];

const ATTENTION: &[Row] = &[
    same("attn.to_q", "d d"),
    same("attn.to_k", "d d"),
    same("attn.to_v", "d d"),
    same("attn.to_out.0", "d d"),
    same("attn.norm_q", "128"),
    same("attn.norm_k", "128"),
    same("img_mlp.out", "d 3d"),
];

const MLP: &[Row] = &[same("img_mlp.gate_layer", "3d d"), same("img_mlp.proj", "3d d")];
const COMFY_MLP: &[Row] = &[fused("img_mlp.gate_up", &["img_mlp.gate_layer", "img_mlp.proj"], "6d d")];

const ENDS: &[Row] = &[
    same("img_in", "d 64"),
    same("txt_in.text_norm", "4096"),
    same("txt_in.in_layer", "d 4096"),
    same("txt_in.out_layer", "d d"),
    same("time_text_embed.timestep_embedder.linear_1", "d 256"),
    same("time_text_embed.timestep_embedder.linear_2", "d d"),
    same("modulation.1", "4d d"),
    same("norm_out.linear", "d d"),
    same("proj_out", "64 d"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(BLOCKS, ATTENTION), group(BLOCKS, MLP)]);

/// ComfyUI on the left.
static COMFY: Table = Table::new(&[group(TOP, ENDS), group(BLOCKS, ATTENTION), group(BLOCKS, COMFY_MLP)]);

/// Qwen-Image 2.1.
pub(super) static QWEN_IMAGE_21: Family = Family {
    name: "qwen_image_21",
    about: "Qwen-Image 2.1",
    variants: &[Variant { name: "Qwen-Image 2.1", extents: &[("d", 4096), ("n", 32)] }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::DIFFUSERS).with_comfy(&COMFY)],
};

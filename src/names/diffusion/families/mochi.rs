//! Mochi.
//!
//! Sources: genmoai/mochi:src/genmo/mochi_preview/dit/joint_model/asymm_models_joint.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_mochi.py (right), and for the way between the
//! two src/diffusers/loaders/single_file_utils.py. `d` is the width of the image, `t` that of the text, `n` the number
//! of blocks.

use super::super::encoders::t5;
use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, comfy, diffusers};
use super::super::table::{Place, Row, TOP, Table, blocks, fused, group, row, same};
use super::homes;

const ALL: &[Place] = &[blocks("blocks.#", "transformer_blocks.#", &[Count("n")])];
const ALL_BUT_LAST: &[Place] = &[blocks("blocks.#", "transformer_blocks.#", &[Count("0..n-1")])];
const LAST: &[Place] = &[blocks("blocks.#", "transformer_blocks.#", &[Count("n-1..n")])];

/// Gate and value of the feed-forward layer change places.
const BLOCK: &[Row] = &[
    fused("attn.qkv_x", &["attn1.to_q", "attn1.to_k", "attn1.to_v"], "3d d"),
    fused("attn.qkv_y", &["attn1.add_q_proj", "attn1.add_k_proj", "attn1.add_v_proj"], "3d t"),
    row("attn.proj_x", "attn1.to_out.0", "d d"),
    row("attn.q_norm_x", "attn1.norm_q", "128"),
    row("attn.k_norm_x", "attn1.norm_k", "128"),
    row("attn.q_norm_y", "attn1.norm_added_q", "128"),
    row("attn.k_norm_y", "attn1.norm_added_k", "128"),
    row("mlp_x.w1", "ff.net.0.proj", "2f d").swapped(),
    row("mlp_x.w2", "ff.net.2", "d f"),
    row("mod_x", "norm1.linear", "4d d"),
];

/// The last block makes nothing of the text.
const TEXT_STREAM: &[Row] = &[
    row("attn.proj_y", "attn1.to_add_out", "t d"),
    row("mlp_y.w1", "ff_context.net.0.proj", "2g t").swapped(),
    row("mlp_y.w2", "ff_context.net.2", "t g"),
    row("mod_y", "norm1_context.linear", "4t d"),
];
const LAST_TEXT_STREAM: &[Row] = &[row("mod_y", "norm1_context.linear_1", "t d")];

const ENDS: &[Row] = &[
    row("x_embedder.proj", "patch_embed.proj", "d 12 2 2"),
    row("t_embedder.mlp.0", "time_embed.timestep_embedder.linear_1", "d 256"),
    row("t_embedder.mlp.2", "time_embed.timestep_embedder.linear_2", "d d"),
    row("t5_y_embedder.to_kv", "time_embed.pooler.to_kv", "8192 4096"),
    row("t5_y_embedder.to_q", "time_embed.pooler.to_q", "4096 4096"),
    row("t5_y_embedder.to_out", "time_embed.pooler.to_out", "d 4096"),
    row("t5_yproj", "time_embed.caption_proj", "t 4096"),
    row("final_layer.mod", "norm_out.linear", "2d d").swapped(),
    row("final_layer.linear", "proj_out", "48 d"),
    same("pos_frequencies!", "3 24 64"),
];

static TRANSFORMER: Table =
    Table::new(&[group(TOP, ENDS), group(ALL, BLOCK), group(ALL_BUT_LAST, TEXT_STREAM), group(LAST, LAST_TEXT_STREAM)]);

const TEXT: Part = t5::part(&[diffusers("text_encoder"), comfy("text_encoders.t5xxl.transformer", Naming::Diffusers)]);

/// Mochi.
pub(super) static MOCHI: Family = Family {
    name: "mochi",
    about: "Mochi 1",
    variants: &[Variant { name: "Mochi 1", extents: &[("d", 3072), ("t", 1536), ("f", 8192), ("g", 4096), ("n", 48)] }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE), TEXT],
};

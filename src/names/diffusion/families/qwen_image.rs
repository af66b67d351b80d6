//! Qwen-Image. It has one naming for everybody.
//!
//! Source: huggingface/diffusers:src/diffusers/models/transformers/transformer_qwenimage.py. `d` is the width, `n` the
//! number of blocks.

use super::super::encoders::llm;
use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, comfy, diffusers};
use super::super::table::{Place, Row, TOP, Table, blocks, group, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("transformer_blocks.#", "transformer_blocks.#", &[Count("n")])];

const BLOCK: &[Row] = &[
    same("attn.to_q", "d d"),
    same("attn.to_k", "d d"),
    same("attn.to_v", "d d"),
    same("attn.to_out.0", "d d"),
    same("attn.add_q_proj", "d d"),
    same("attn.add_k_proj", "d d"),
    same("attn.add_v_proj", "d d"),
    same("attn.to_add_out", "d d"),
    same("attn.norm_q", "128"),
    same("attn.norm_k", "128"),
    same("attn.norm_added_q", "128"),
    same("attn.norm_added_k", "128"),
    same("img_mlp.net.0.proj", "4d d"),
    same("img_mlp.net.2", "d 4d"),
    same("txt_mlp.net.0.proj", "4d d"),
    same("txt_mlp.net.2", "d 4d"),
    same("img_mod.1", "6d d"),
    same("txt_mod.1", "6d d"),
];

const ENDS: &[Row] = &[
    same("img_in", "d 64"),
    same("txt_in", "d 3584"),
    same("txt_norm", "3584"),
    same("time_text_embed.timestep_embedder.linear_1", "d 256"),
    same("time_text_embed.timestep_embedder.linear_2", "d d"),
    same("norm_out.linear", "2d d"),
    same("proj_out", "64 d"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(BLOCKS, BLOCK)]);

const TEXT: Part = llm::part(
    llm::QWEN25_7B,
    &[diffusers("text_encoder"), comfy("text_encoders.qwen25_7b.transformer", Naming::Diffusers)],
);

/// Qwen-Image.
pub(super) static QWEN_IMAGE: Family = Family {
    name: "qwen_image",
    about: "Qwen-Image",
    variants: &[Variant { name: "Qwen-Image", extents: &[("d", 3072), ("n", 60)] }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::DIFFUSERS), TEXT],
};

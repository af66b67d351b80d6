//! Ovis-Image, which has the blocks of FLUX.1 with a gate. Adapters have the names of diffusers.
//!
//! Source: huggingface/diffusers:src/diffusers/models/transformers/transformer_ovis_image.py. `d` is the width, `n` and `s`
//! the numbers of double and single blocks. The native names are not here: they have attention in one, and gate and value
//! apart, where diffusers has it the other way about.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, group, same};
use super::homes;

const DOUBLE: &[Place] = &[blocks("transformer_blocks.#", "transformer_blocks.#", &[Count("n")])];

const SINGLE: &[Place] = &[blocks("single_transformer_blocks.#", "single_transformer_blocks.#", &[Count("s")])];

const DOUBLE_BLOCK: &[Row] = &[
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
    same("norm1.linear", "6d d"),
    same("norm1_context.linear", "6d d"),
    same("ff.net.0.proj", "8d d"),
    same("ff_context.net.0.proj", "8d d"),
    same("ff.net.2", "d 4d"),
    same("ff_context.net.2", "d 4d"),
];

const SINGLE_BLOCK: &[Row] = &[
    same("attn.to_q", "d d"),
    same("attn.to_k", "d d"),
    same("attn.to_v", "d d"),
    same("attn.norm_q", "128"),
    same("attn.norm_k", "128"),
    same("proj_mlp", "8d d"),
    same("norm.linear", "3d d"),
    same("proj_out", "d 5d"),
];

const ENDS: &[Row] = &[
    same("x_embedder", "d 64"),
    same("context_embedder", "d 2048"),
    same("context_embedder_norm", "2048"),
    same("timestep_embedder.linear_1", "d 256"),
    same("timestep_embedder.linear_2", "d d"),
    same("norm_out.linear", "2d d"),
    same("proj_out", "64 d"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(DOUBLE, DOUBLE_BLOCK), group(SINGLE, SINGLE_BLOCK)]);

/// Ovis-Image.
pub(super) static OVIS_IMAGE: Family = Family {
    name: "ovis_image",
    about: "Ovis-Image",
    variants: &[Variant { name: "Ovis-Image 7B", extents: &[("d", 3072), ("n", 6), ("s", 27)] }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::DIFFUSERS)],
};

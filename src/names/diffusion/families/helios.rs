//! Helios, a kin of Wan. It has one naming for everybody.
//!
//! Source: huggingface/diffusers:src/diffusers/models/transformers/transformer_helios.py. `d` is the width, `f` that of the
//! feed-forward layer, `n` the number of blocks.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, group, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("blocks.#", "blocks.#", &[Count("n")])];

const BLOCK: &[Row] = &[
    same("attn1.to_q", "d d"),
    same("attn1.to_k", "d d"),
    same("attn1.to_v", "d d"),
    same("attn1.to_out.0", "d d"),
    same("attn1.norm_q", "d"),
    same("attn1.norm_k", "d"),
    same("attn2.to_q", "d d"),
    same("attn2.to_k", "d d"),
    same("attn2.to_v", "d d"),
    same("attn2.to_out.0", "d d"),
    same("attn2.norm_q", "d"),
    same("attn2.norm_k", "d"),
    same("ffn.net.0.proj", "f d"),
    same("ffn.net.2", "d f"),
    same("norm2", "d"),
    same("scale_shift_table!", "1 6 d"),
];

const ENDS: &[Row] = &[
    same("patch_embedding", "d 16 1 2 2"),
    same("patch_short", "d 16 1 2 2"),
    same("patch_mid", "d 16 2 4 4"),
    same("patch_long", "d 16 4 8 8"),
    same("condition_embedder.text_embedder.linear_1", "d 4096"),
    same("condition_embedder.text_embedder.linear_2", "d d"),
    same("condition_embedder.time_embedder.linear_1", "d 256"),
    same("condition_embedder.time_embedder.linear_2", "d d"),
    same("condition_embedder.time_proj", "6d d"),
    same("norm_out.scale_shift_table!", "1 2 d"),
    same("proj_out", "64 d"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(BLOCKS, BLOCK)]);

/// Helios.
pub(super) static HELIOS: Family = Family {
    name: "helios",
    about: "Helios",
    variants: &[Variant { name: "Helios 14B", extents: &[("d", 5120), ("f", 13824), ("n", 40)] }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::DIFFUSERS)],
};

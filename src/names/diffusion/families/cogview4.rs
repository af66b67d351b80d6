//! CogView 4 and CogView 3 Plus. Adapters have the names of diffusers.
//!
//! Sources: huggingface/diffusers:src/diffusers/models/transformers/transformer_cogview4.py and
//! transformer_cogview3plus.py, and for the sizes scripts/convert_cogview4_to_diffusers.py and
//! convert_cogview3_to_diffusers.py. `d` is the width, `n` the number of blocks.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, group, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("transformer_blocks.#", "transformer_blocks.#", &[Count("n")])];

const BLOCK: &[Row] = &[
    same("attn1.to_q", "d d"),
    same("attn1.to_k", "d d"),
    same("attn1.to_v", "d d"),
    same("attn1.to_out.0", "d d"),
    same("ff.net.0.proj", "4d d"),
    same("ff.net.2", "d 4d"),
    same("norm1.linear", "12d 512"),
];

const ENDS: &[Row] = &[
    same("patch_embed.proj", "d 64"),
    same("patch_embed.text_proj", "d 4096"),
    same("time_condition_embed.timestep_embedder.linear_1", "512 d"),
    same("time_condition_embed.timestep_embedder.linear_2", "512 512"),
    same("time_condition_embed.condition_embedder.linear_1", "512 1536"),
    same("time_condition_embed.condition_embedder.linear_2", "512 512"),
    same("norm_out.linear", "2d 512"),
    same("proj_out", "64 d"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(BLOCKS, BLOCK)]);

/// CogView 4.
pub(super) static COGVIEW4: Family = Family {
    name: "cogview4",
    about: "CogView 4 and CogView 3 Plus",
    variants: &[
        Variant { name: "CogView 4 6B", extents: &[("d", 4096), ("n", 28)] },
        Variant { name: "CogView 3 Plus 3B", extents: &[("d", 2560), ("n", 30)] },
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::DIFFUSERS)],
};

//! FLUX.3.
//!
//! Sources: huggingface/diffusers:src/diffusers/models/transformers/transformer_flux3.py (right), and for the names of
//! black-forest-labs (left) and the way between the two src/diffusers/loaders/single_file_utils.py. `d` is the width, `n`
//! and `s` the numbers of blocks of each kind of token and of blocks of all of them, `e` the width of the text; `m` is
//! whether the timestep that a step jumps to is an input.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, group, row};
use super::homes;

const ALL: &[Place] = &[
    blocks("content_mode_blocks.image.#", "mode_blocks.image.#", &[Count("n")]),
    blocks("content_mode_blocks.image_cond.#", "mode_blocks.image_cond.#", &[Count("n")]),
    blocks("txt_mode_blocks.#", "txt_mode_blocks.#", &[Count("n")]),
    blocks("single_blocks.#", "single_transformer_blocks.#", &[Count("s")]),
];

const BLOCK: &[Row] = &[
    row("q_proj", "attn.to_q", "d d"),
    row("k_proj", "attn.to_k", "d d"),
    row("v_proj", "attn.to_v", "d d"),
    row("attn_out", "attn.to_out.0", "d d"),
    row("norm.query_norm", "attn.norm_q", "128"),
    row("norm.key_norm", "attn.norm_k", "128"),
    row("mlp_in", "ff.linear_in", "6d d"),
    row("mlp_out", "ff.linear_out", "d 3d"),
];

const ENDS: &[Row] = &[
    row("emb_in.image", "x_embedders.image", "d 128"),
    row("emb_in.image_cond", "x_embedders.image_cond", "d 128"),
    row("txt_in", "context_embedder", "d e"),
    row("time_in.in_layer", "timestep_embedder.linear_1", "d 256"),
    row("time_in.out_layer", "timestep_embedder.linear_2", "d d"),
    row("early_stream_modulations.image.lin", "early_stream_modulations.image.linear", "3d d"),
    row("early_stream_modulations.image_cond.lin", "early_stream_modulations.image_cond.linear", "3d d"),
    row("early_stream_modulations.txt.lin", "early_stream_modulations.txt.linear", "3d d"),
    row("single_stream_modulations.image.lin", "single_stream_modulations.image.linear", "3d d"),
    row("single_stream_modulations.image_cond.lin", "single_stream_modulations.image_cond.linear", "3d d"),
    row("single_stream_modulations.txt.lin", "single_stream_modulations.txt.linear", "3d d"),
    row("final_layer.image.adaLN_modulation.1", "norm_out.linear", "2d d").swapped(),
    row("final_layer.image.linear", "proj_out", "128 d"),
];

const JUMP: &[Row] = &[
    row("ref_time_in.in_layer", "target_timestep_embedder.linear_1", "d 256"),
    row("ref_time_in.out_layer", "target_timestep_embedder.linear_2", "d d"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(TOP, JUMP).when("m"), group(ALL, BLOCK)]);

/// FLUX.3.
pub(super) static FLUX3: Family = Family {
    name: "flux3",
    about: "FLUX.3",
    variants: &[
        Variant { name: "FLUX.3", extents: &[("d", 3072), ("n", 5), ("s", 28), ("e", 20480), ("m", 0)] },
        Variant { name: "FLUX.3 distilled", extents: &[("d", 3072), ("n", 5), ("s", 28), ("e", 20480), ("m", 1)] },
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE)],
};

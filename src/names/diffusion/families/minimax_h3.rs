//! MiniMax-H3.
//!
//! Source: huggingface/diffusers:src/diffusers/models/transformers/transformer_minimax_h3.py (right), and for the way
//! from the native names (left) src/diffusers/loaders/single_file_utils.py. `d` is the width, `h` that of attention,
//! `f` that of the feed-forward layer, `c` that of the condition, `n` the number of blocks. Files of DiffSynth have the
//! rows of `qkv_proj` head by head, which no name or extent tells.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, fused, group, row, same};
use super::homes;

const ALL: &[Place] = &[
    blocks("blocks.#", "transformer_blocks.#", &[Count("n")]),
    blocks("token_refiner.blocks.#", "token_refiner.refiner_blocks.#", &[Count("2")]),
];
const MODULATED: &[Place] = &[blocks("blocks.#", "transformer_blocks.#", &[Count("n")])];

/// Gate and value of the feed-forward layer change places.
const BLOCK: &[Row] = &[
    fused("attn.qkv_proj", &["attn.to_q", "attn.to_k", "attn.to_v"], "3h d"),
    row("attn.out_proj", "attn.to_out.0", "d h"),
    row("attn.q_norm", "attn.norm_q", "128"),
    row("attn.k_norm", "attn.norm_k", "128"),
    row("mlp.fc1", "ff.net.0.proj", "2f d").swapped(),
    row("mlp.fc2", "ff.net.2", "d f"),
    same("norm1", "d"),
    same("norm2", "d"),
];

const MODULATION: &[Row] = &[same("adaln_proj.linear", "18d c")];

const ENDS: &[Row] = &[
    row("video_patch_proj", "proj_in", "d 96"),
    row("audio_patch_proj", "audio_proj_in", "d 32"),
    row("condition_proj", "context_embedder", "d 5120"),
    row("time_embedder.proj_in", "time_embedder.linear_1", "d 256"),
    row("time_embedder.proj_out", "time_embedder.linear_2", "c d"),
    row("final_layer.adaln_proj.linear", "norm_out.linear", "2d c"),
    row("final_layer.norm", "norm_out.norm", "d"),
    row("final_layer.video_out", "proj_out", "96 d"),
    row("final_layer.audio_out", "audio_proj_out", "32 d"),
    same("token_refiner.final_norm", "d"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(ALL, BLOCK), group(MODULATED, MODULATION)]);

/// MiniMax-H3.
pub(super) static MINIMAX_H3: Family = Family {
    name: "minimax_h3",
    about: "MiniMax-H3",
    variants: &[Variant {
        name: "MiniMax-H3",
        extents: &[("d", 5376), ("h", 7168), ("f", 14336), ("c", 2688), ("n", 50)],
    }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE)],
};

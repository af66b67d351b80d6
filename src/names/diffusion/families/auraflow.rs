//! AuraFlow.
//!
//! Sources: cloneofsimo/minRF:advanced/mmdit.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/auraflow_transformer_2d.py (right), and for the way between
//! the two src/diffusers/loaders/single_file_utils.py. `w1` is the text in a double layer and the only stream in a
//! single one. `d` is the width, `f` that of the feed-forward layer, `n` and `s` the numbers of double and single
//! layers.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, group, row, same};
use super::homes;

const DOUBLE: &[Place] = &[blocks("double_layers.#", "joint_transformer_blocks.#", &[Count("n")])];
const SINGLE: &[Place] = &[blocks("single_layers.#", "single_transformer_blocks.#", &[Count("s")])];

const DOUBLE_LAYER: &[Row] = &[
    row("attn.w2q", "attn.to_q", "d d"),
    row("attn.w2k", "attn.to_k", "d d"),
    row("attn.w2v", "attn.to_v", "d d"),
    row("attn.w2o", "attn.to_out.0", "d d"),
    row("attn.w1q", "attn.add_q_proj", "d d"),
    row("attn.w1k", "attn.add_k_proj", "d d"),
    row("attn.w1v", "attn.add_v_proj", "d d"),
    row("attn.w1o", "attn.to_add_out", "d d"),
    row("mlpX.c_fc1", "ff.linear_1", "f d"),
    row("mlpX.c_fc2", "ff.linear_2", "f d"),
    row("mlpX.c_proj", "ff.out_projection", "d f"),
    row("mlpC.c_fc1", "ff_context.linear_1", "f d"),
    row("mlpC.c_fc2", "ff_context.linear_2", "f d"),
    row("mlpC.c_proj", "ff_context.out_projection", "d f"),
    row("modX.1", "norm1.linear", "6d d"),
    row("modC.1", "norm1_context.linear", "6d d"),
];

const SINGLE_LAYER: &[Row] = &[
    row("attn.w1q", "attn.to_q", "d d"),
    row("attn.w1k", "attn.to_k", "d d"),
    row("attn.w1v", "attn.to_v", "d d"),
    row("attn.w1o", "attn.to_out.0", "d d"),
    row("mlp.c_fc1", "ff.linear_1", "f d"),
    row("mlp.c_fc2", "ff.linear_2", "f d"),
    row("mlp.c_proj", "ff.out_projection", "d f"),
    row("modCX.1", "norm1.linear", "6d d"),
];

const ENDS: &[Row] = &[
    row("init_x_linear", "pos_embed.proj", "d 16"),
    row("cond_seq_linear", "context_embedder", "d 2048"),
    row("t_embedder.mlp.0", "time_step_proj.linear_1", "d 256"),
    row("t_embedder.mlp.2", "time_step_proj.linear_2", "d d"),
    row("modF.1", "norm_out.linear", "2d d").swapped(),
    row("final_linear", "proj_out", "16 d"),
    row("positional_encoding!", "pos_embed.pos_embed!", "1 p d"),
    same("register_tokens!", "1 8 d"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(DOUBLE, DOUBLE_LAYER), group(SINGLE, SINGLE_LAYER)]);

/// AuraFlow.
pub(super) static AURAFLOW: Family = Family {
    name: "auraflow",
    about: "AuraFlow",
    variants: &[
        Variant { name: "AuraFlow 0.3", extents: &[("d", 3072), ("f", 8192), ("n", 4), ("s", 32), ("p", 9216)] },
        Variant { name: "AuraFlow 0.1", extents: &[("d", 3072), ("f", 8192), ("n", 4), ("s", 32), ("p", 1024)] },
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE)],
};

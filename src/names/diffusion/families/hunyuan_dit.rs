//! HunyuanDiT.
//!
//! Sources: Tencent/HunyuanDiT:hydit/modules/models.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/hunyuan_transformer_2d.py (right), and for the way between
//! the two scripts/convert_hunyuandit_to_diffusers.py. `d` is the width, `f` that of the feed-forward layer, `n` the
//! number of blocks, of which those from `s` on take the output of an earlier one beside their own input; `e` is the
//! width of all that goes with the time, `y` whether a style is part of it. The second and the third norm have each
//! other's number in diffusers.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, fused, group, row, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("blocks.#", "blocks.#", &[Count("n")])];
const SKIPPED_TO: &[Place] = &[blocks("blocks.#", "blocks.#", &[Count("s..n")])];

const BLOCK: &[Row] = &[
    fused("attn1.Wqkv", &["attn1.to_q", "attn1.to_k", "attn1.to_v"], "3d d"),
    row("attn1.out_proj", "attn1.to_out.0", "d d"),
    row("attn1.q_norm", "attn1.norm_q", "88"),
    row("attn1.k_norm", "attn1.norm_k", "88"),
    row("attn2.q_proj", "attn2.to_q", "d d"),
    fused("attn2.kv_proj", &["attn2.to_k", "attn2.to_v"], "2d 1024"),
    row("attn2.out_proj", "attn2.to_out.0", "d d"),
    row("attn2.q_norm", "attn2.norm_q", "88"),
    row("attn2.k_norm", "attn2.norm_k", "88"),
    row("mlp.fc1", "ff.net.0.proj", "f d"),
    row("mlp.fc2", "ff.net.2", "d f"),
    row("default_modulation.1", "norm1.linear", "d d"),
    row("norm1", "norm1.norm", "d"),
    row("norm2", "norm3", "d"),
    row("norm3", "norm2", "d"),
];

const SKIP: &[Row] = &[same("skip_linear", "d 2d"), same("skip_norm", "2d")];

const ENDS: &[Row] = &[
    row("x_embedder.proj", "pos_embed.proj", "d 4 2 2"),
    row("t_embedder.mlp.0", "time_extra_emb.timestep_embedder.linear_1", "d 256"),
    row("t_embedder.mlp.2", "time_extra_emb.timestep_embedder.linear_2", "d d"),
    row("extra_embedder.0", "time_extra_emb.extra_embedder.linear_1", "4d e"),
    row("extra_embedder.2", "time_extra_emb.extra_embedder.linear_2", "d 4d"),
    row("pooler.q_proj", "time_extra_emb.pooler.q_proj", "2048 2048"),
    row("pooler.k_proj", "time_extra_emb.pooler.k_proj", "2048 2048"),
    row("pooler.v_proj", "time_extra_emb.pooler.v_proj", "2048 2048"),
    row("pooler.c_proj", "time_extra_emb.pooler.c_proj", "1024 2048"),
    row("pooler.positional_embedding!", "time_extra_emb.pooler.positional_embedding!", "257 2048"),
    row("mlp_t5.0", "text_embedder.linear_1", "8192 2048"),
    row("mlp_t5.2", "text_embedder.linear_2", "1024 8192"),
    same("text_embedding_padding!", "333 1024"),
    row("final_layer.adaLN_modulation.1", "norm_out.linear", "2d d").swapped(),
    row("final_layer.linear", "proj_out", "32 d"),
];

const STYLE: &[Row] = &[row("style_embedder", "time_extra_emb.style_embedder", "1 d").embedding()];

static TRANSFORMER: Table =
    Table::new(&[group(TOP, ENDS), group(TOP, STYLE).when("y"), group(BLOCKS, BLOCK), group(SKIPPED_TO, SKIP)]);

/// HunyuanDiT.
pub(super) static HUNYUAN_DIT: Family = Family {
    name: "hunyuan_dit",
    about: "HunyuanDiT",
    variants: &[
        Variant {
            name: "HunyuanDiT 1.2",
            extents: &[("d", 1408), ("f", 6144), ("n", 40), ("s", 21), ("e", 1024), ("y", 0)],
        },
        Variant {
            name: "HunyuanDiT 1.1",
            extents: &[("d", 1408), ("f", 6144), ("n", 40), ("s", 21), ("e", 3968), ("y", 1)],
        },
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE)],
};

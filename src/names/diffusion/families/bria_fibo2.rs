//! Bria FIBO 2. It has one naming for everybody.
//!
//! Source: huggingface/diffusers:src/diffusers/models/transformers/transformer_bria_fibo2.py. `d` is the width, `f` that of
//! the feed-forward layer, `n` the number of blocks, of which every eighth from the seventh on sees the whole text; `r` is
//! the number of blocks before and `p` of those that make the text shorter, `e` the width of the text.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, group, same};
use super::homes;

const BLOCKS: &[Place] =
    &[blocks("layers.#", "layers.#", &[Count("n")]), blocks("noise_refiner.#", "noise_refiner.#", &[Count("r")])];
const WITH_TEXT: &[Place] = &[blocks("layers.#", "layers.#", &[Count("6..n/8")])];
const PERCEIVER: &[Place] = &[blocks("perceiver.layers.#", "perceiver.layers.#", &[Count("p")])];

const BLOCK: &[Row] = &[
    same("attention.to_q", "d d"),
    same("attention.to_k", "d d"),
    same("attention.to_v", "d d"),
    same("attention.to_out.0", "d d"),
    same("attention.norm_q", "128"),
    same("attention.norm_k", "128"),
    same("feed_forward.w1", "f d"),
    same("feed_forward.w2", "d f"),
    same("feed_forward.w3", "f d"),
    same("attention_norm1", "d"),
    same("attention_norm2", "d"),
    same("ffn_norm1", "d"),
    same("ffn_norm2", "d"),
    same("adaLN_modulation.0", "4d 256"),
];

const TEXT_ATTENTION: &[Row] = &[
    same("cross_attention.to_q", "d d"),
    same("cross_attention.to_k", "d e"),
    same("cross_attention.to_v", "d e"),
    same("cross_attention.to_out.0", "d d"),
    same("cross_attention.norm_q", "128"),
    same("cross_attention.norm_k", "128"),
];

const TEXT_NORMS: &[Row] =
    &[same("cross_attn_norm1", "d"), same("cross_attn_norm2", "d"), same("cross_attn_gate!", "1")];

const SHORTER: &[Row] = &[
    same("self_attention.to_q", "d d"),
    same("self_attention.to_k", "d d"),
    same("self_attention.to_v", "d d"),
    same("self_attention.to_out.0", "d d"),
    same("self_attention.norm_q", "128"),
    same("self_attention.norm_k", "128"),
    same("ffn.w1", "f d"),
    same("ffn.w2", "d f"),
    same("ffn.w3", "f d"),
    same("self_attn_norm", "d"),
    same("cross_attn_norm", "d"),
    same("ffn_norm", "d"),
];

const ENDS: &[Row] = &[
    same("x_embedder", "d 128"),
    same("t_embedder.mlp.0", "1024 256"),
    same("t_embedder.mlp.2", "256 1024"),
    same("perceiver.latent_queries!", "512 d"),
    same("perceiver.norm_out", "d"),
    same("final_layer.adaLN_modulation.1", "d 256"),
    same("final_layer.linear", "128 d"),
];

static TRANSFORMER: Table = Table::new(&[
    group(TOP, ENDS),
    group(BLOCKS, BLOCK),
    group(WITH_TEXT, TEXT_ATTENTION),
    group(WITH_TEXT, TEXT_NORMS),
    group(PERCEIVER, TEXT_ATTENTION),
    group(PERCEIVER, SHORTER),
]);

/// Bria FIBO 2.
pub(super) static BRIA_FIBO2: Family = Family {
    name: "bria_fibo2",
    about: "Bria FIBO 2",
    variants: &[Variant {
        name: "Bria FIBO 2",
        extents: &[("d", 3584), ("f", 9536), ("n", 44), ("r", 2), ("p", 2), ("e", 7680)],
    }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::DIFFUSERS)],
};

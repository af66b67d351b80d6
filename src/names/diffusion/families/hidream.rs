//! HiDream-I1. It has one naming for everybody; `block` is part of the names.
//!
//! Source: huggingface/diffusers:src/diffusers/models/transformers/transformer_hidream_image.py. `d` is the width, `n`
//! and `s` the numbers of double and single blocks, `f` the width of an expert, `h` that of the shared one.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, group, same};
use super::homes;

const DOUBLE: &[Place] = &[blocks("double_stream_blocks.#.block", "double_stream_blocks.#.block", &[Count("n")])];
const SINGLE: &[Place] = &[blocks("single_stream_blocks.#.block", "single_stream_blocks.#.block", &[Count("s")])];
const BOTH: &[Place] = &[DOUBLE[0], SINGLE[0]];

const BLOCK: &[Row] = &[
    same("attn1.to_q", "d d"),
    same("attn1.to_k", "d d"),
    same("attn1.to_v", "d d"),
    same("attn1.to_out", "d d"),
    same("attn1.q_rms_norm", "d"),
    same("attn1.k_rms_norm", "d"),
    same("ff_i.shared_experts.w1", "h d"),
    same("ff_i.shared_experts.w2", "d h"),
    same("ff_i.shared_experts.w3", "h d"),
    same("ff_i.gate", "4 d"),
    same("ff_i.experts.#.w1", "f d").numbered(&[Count("4")]),
    same("ff_i.experts.#.w2", "d f").numbered(&[Count("4")]),
    same("ff_i.experts.#.w3", "f d").numbered(&[Count("4")]),
];

const TEXT_STREAM: &[Row] = &[
    same("attn1.to_q_t", "d d"),
    same("attn1.to_k_t", "d d"),
    same("attn1.to_v_t", "d d"),
    same("attn1.to_out_t", "d d"),
    same("attn1.q_rms_norm_t", "d"),
    same("attn1.k_rms_norm_t", "d"),
    same("ff_t.w1", "f d"),
    same("ff_t.w2", "d f"),
    same("ff_t.w3", "f d"),
    same("adaLN_modulation.1", "12d d"),
];

const ONE_STREAM: &[Row] = &[same("adaLN_modulation.1", "6d d")];

const ENDS: &[Row] = &[
    same("x_embedder.proj", "d 64"),
    same("t_embedder.timestep_embedder.linear_1", "d 256"),
    same("t_embedder.timestep_embedder.linear_2", "d d"),
    same("p_embedder.pooled_embedder.linear_1", "d 2048"),
    same("p_embedder.pooled_embedder.linear_2", "d d"),
    same("caption_projection.#.linear", "d 4096").numbered(&[Count("n+s+1")]),
    same("final_layer.linear", "64 d"),
    same("final_layer.adaLN_modulation.1", "2d d"),
];

static TRANSFORMER: Table =
    Table::new(&[group(TOP, ENDS), group(BOTH, BLOCK), group(DOUBLE, TEXT_STREAM), group(SINGLE, ONE_STREAM)]);

/// HiDream-I1.
pub(super) static HIDREAM: Family = Family {
    name: "hidream",
    about: "HiDream-I1",
    variants: &[Variant {
        name: "HiDream-I1",
        extents: &[("d", 2560), ("n", 16), ("s", 32), ("f", 6912), ("h", 3584)],
    }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::DIFFUSERS)],
};

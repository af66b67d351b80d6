//! Wan Animate 2, which has the parts of Wan by other names.
//!
//! Sources: huggingface/diffusers:src/diffusers/models/transformers/transformer_wan_animate_2.py (right), and for the
//! authors' names (left) and the way between the two src/diffusers/loaders/single_file_utils.py. Letters as in `wan`.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, group, row, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("blocks.#.block", "blocks.#", &[Count("n")])];

const BLOCK: &[Row] = &[
    row("self_attn.q", "self_attn.to_q", "d d"),
    row("self_attn.k", "self_attn.to_k", "d d"),
    row("self_attn.v", "self_attn.to_v", "d d"),
    row("self_attn.o", "self_attn.to_out.0", "d d"),
    same("self_attn.norm_q", "d"),
    same("self_attn.norm_k", "d"),
    row("cross_attn.q", "cross_attn.to_q", "d d"),
    row("cross_attn.k", "cross_attn.to_k", "d d"),
    row("cross_attn.v", "cross_attn.to_v", "d d"),
    row("cross_attn.o", "cross_attn.to_out.0", "d d"),
    same("cross_attn.norm_q", "d"),
    same("cross_attn.norm_k", "d"),
    row("cross_attn.k_img", "cross_attn.add_k_proj", "d d"),
    row("cross_attn.v_img", "cross_attn.add_v_proj", "d d"),
    row("cross_attn.norm_k_img", "cross_attn.norm_added_k", "d"),
    same("ffn.0", "f d"),
    same("ffn.2", "d f"),
    same("norm3", "d"),
    same("modulation!", "1 6 d"),
];

const ENDS: &[Row] = &[
    same("patch_embedding", "d 36 1 2 2"),
    same("text_embedding.0", "d 4096"),
    same("text_embedding.2", "d d"),
    same("time_embedding.0", "d 256"),
    same("time_embedding.2", "d d"),
    same("time_projection.1", "6d d"),
    same("img_emb.proj.0", "1280"),
    same("img_emb.proj.1", "1280 1280"),
    same("img_emb.proj.3", "d 1280"),
    same("img_emb.proj.4", "d"),
    same("head.head", "64 d"),
    same("head.modulation!", "1 2 d"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(BLOCKS, BLOCK)]);

/// Wan Animate 2.
pub(super) static WAN_ANIMATE2: Family = Family {
    name: "wan_animate2",
    about: "Wan Animate 2",
    variants: &[Variant { name: "Wan Animate 2 14B", extents: &[("d", 5120), ("f", 13824), ("n", 40)] }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE)],
};

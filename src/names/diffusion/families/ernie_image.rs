//! Ernie-Image. It has one naming for everybody.
//!
//! Sources: huggingface/diffusers:src/diffusers/models/transformers/transformer_ernie_image.py;
//! comfyanonymous/ComfyUI:comfy/ldm/ernie/model.py, which has the size of the model. `d` is the width, `f` that of the
//! feed-forward layer, `n` the number of blocks, `e` the width of the text.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, group, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("layers.#", "layers.#", &[Count("n")])];

const BLOCK: &[Row] = &[
    same("self_attention.to_q", "d d"),
    same("self_attention.to_k", "d d"),
    same("self_attention.to_v", "d d"),
    same("self_attention.to_out.0", "d d"),
    same("self_attention.norm_q", "128"),
    same("self_attention.norm_k", "128"),
    same("mlp.gate_proj", "f d"),
    same("mlp.up_proj", "f d"),
    same("mlp.linear_fc2", "d f"),
    same("adaLN_sa_ln", "d"),
    same("adaLN_mlp_ln", "d"),
];

const ENDS: &[Row] = &[
    same("x_embedder.proj", "d 128 1 1"),
    same("text_proj", "d e"),
    same("time_embedding.linear_1", "d d"),
    same("time_embedding.linear_2", "d d"),
    same("adaLN_modulation.1", "6d d"),
    same("final_norm.linear", "2d d"),
    same("final_linear", "128 d"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(BLOCKS, BLOCK)]);

/// Ernie-Image.
pub(super) static ERNIE_IMAGE: Family = Family {
    name: "ernie_image",
    about: "Ernie-Image",
    variants: &[Variant { name: "Ernie-Image", extents: &[("d", 4096), ("f", 12288), ("n", 36), ("e", 3072)] }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::DIFFUSERS)],
};

//! Ideogram 4.
//!
//! Sources: kohya-ss/musubi-tuner:src/musubi_tuner/ideogram4/ideogram4_model.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_ideogram4.py (right). `d` is the width, `f` that
//! of the feed-forward layer, `n` the number of blocks.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, checkpoint, comfy, diffusers, kohya};
use super::super::table::{Place, Row, TOP, Table, blocks, fused, group, row, same};

const BLOCKS: &[Place] = &[blocks("layers.#", "layers.#", &[Count("n")])];

const BLOCK: &[Row] = &[
    fused("attention.qkv", &["attention.to_q", "attention.to_k", "attention.to_v"], "3d d"),
    row("attention.o", "attention.to_out.0", "d d"),
    same("attention.norm_q", "256"),
    same("attention.norm_k", "256"),
    same("feed_forward.w1", "f d"),
    same("feed_forward.w2", "d f"),
    same("feed_forward.w3", "f d"),
    same("adaln_modulation", "4d 512"),
    same("attention_norm1", "d"),
    same("attention_norm2", "d"),
    same("ffn_norm1", "d"),
    same("ffn_norm2", "d"),
];

const ENDS: &[Row] = &[
    same("input_proj", "d 128"),
    same("llm_cond_norm", "53248"),
    same("llm_cond_proj", "d 53248"),
    same("t_embedding.mlp_in", "d d"),
    same("t_embedding.mlp_out", "d d"),
    same("adaln_proj", "512 d"),
    same("embed_image_indicator", "2 d").embedding(),
    same("final_layer.adaln_modulation", "d 512"),
    same("final_layer.linear", "128 d"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(BLOCKS, BLOCK)]);

const DENOISER: Part = Part::new(
    Role::Denoiser,
    &TRANSFORMER,
    &[
        kohya("lora_unet", Naming::Native),
        diffusers("transformer"),
        diffusers("conditional_transformer"),
        comfy("diffusion_model", Naming::Native),
        checkpoint("model.diffusion_model", Naming::Native),
        checkpoint("", Naming::Native),
    ],
);

/// Ideogram 4.
pub(super) static IDEOGRAM4: Family = Family {
    name: "ideogram4",
    about: "Ideogram 4",
    variants: &[Variant { name: "Ideogram 4", extents: &[("d", 4608), ("f", 12288), ("n", 34)] }],
    parts: &[DENOISER],
};

//! Lumina Image 2.
//!
//! Sources: Alpha-VLLM/Lumina-Image-2.0:models/model.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_lumina2.py (right), and for the way between the
//! two src/diffusers/loaders/single_file_utils.py. `d` is the width, `k` the rows of the keys (three queries share
//! one), `n` the number of blocks. The native `norm_final` is not in diffusers.

use super::super::encoders::llm;
use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, comfy, diffusers, kohya};
use super::super::table::{Place, Row, TOP, Table, blocks, fused, group, row, same};
use super::homes;

const ALL: &[Place] = &[
    blocks("layers.#", "layers.#", &[Count("n")]),
    blocks("noise_refiner.#", "noise_refiner.#", &[Count("2")]),
    blocks("context_refiner.#", "context_refiner.#", &[Count("2")]),
];
const MODULATED: &[Place] =
    &[blocks("layers.#", "layers.#", &[Count("n")]), blocks("noise_refiner.#", "noise_refiner.#", &[Count("2")])];
const NOT_MODULATED: &[Place] = &[blocks("context_refiner.#", "context_refiner.#", &[Count("2")])];

const BLOCK: &[Row] = &[
    fused("attention.qkv", &["attn.to_q", "attn.to_k", "attn.to_v"], "d+2k d").ratio(&[3, 1, 1]),
    row("attention.out", "attn.to_out.0", "d d"),
    row("attention.q_norm", "attn.norm_q", "96"),
    row("attention.k_norm", "attn.norm_k", "96"),
    row("feed_forward.w1", "feed_forward.linear_1", "4d d"),
    row("feed_forward.w2", "feed_forward.linear_2", "d 4d"),
    row("feed_forward.w3", "feed_forward.linear_3", "4d d"),
    row("attention_norm2", "norm2", "d"),
    same("ffn_norm1", "d"),
    same("ffn_norm2", "d"),
];

const MODULATION: &[Row] =
    &[row("adaLN_modulation.1", "norm1.linear", "4d 1024"), row("attention_norm1", "norm1.norm", "d")];
const NO_MODULATION: &[Row] = &[row("attention_norm1", "norm1", "d")];

const ENDS: &[Row] = &[
    same("x_embedder", "d 64"),
    row("cap_embedder.0", "time_caption_embed.caption_embedder.0", "2304"),
    row("cap_embedder.1", "time_caption_embed.caption_embedder.1", "d 2304"),
    row("t_embedder.mlp.0", "time_caption_embed.timestep_embedder.linear_1", "1024 256"),
    row("t_embedder.mlp.2", "time_caption_embed.timestep_embedder.linear_2", "1024 1024"),
    row("final_layer.adaLN_modulation.1", "norm_out.linear_1", "d 1024"),
    row("final_layer.linear", "norm_out.linear_2", "64 d"),
];

static TRANSFORMER: Table = Table::new(&[
    group(TOP, ENDS),
    group(ALL, BLOCK),
    group(MODULATED, MODULATION),
    group(NOT_MODULATED, NO_MODULATION),
]);

const TEXT: Part = llm::part(
    llm::GEMMA2_2B,
    &[
        kohya("lora_te", Naming::Diffusers),
        diffusers("text_encoder"),
        comfy("text_encoders.gemma2_2b.transformer", Naming::Diffusers),
    ],
);

/// Lumina 2.
pub(super) static LUMINA2: Family = Family {
    name: "lumina2",
    about: "Lumina Image 2",
    variants: &[Variant { name: "Lumina Image 2", extents: &[("d", 2304), ("k", 768), ("n", 26)] }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE), TEXT],
};

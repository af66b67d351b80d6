//! Z-Image.
//!
//! Sources: comfyanonymous/ComfyUI:comfy/ldm/lumina/model.py and the checkpoints made for it (left);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_z_image.py (right), and for the way between the
//! two src/diffusers/loaders/single_file_utils.py. `d` is the width, `f` that of the feed-forward layer, `n` the number
//! of blocks.

use super::super::encoders::llm;
use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, comfy, diffusers};
use super::super::table::{Place, Row, TOP, Table, blocks, fused, group, row, same};
use super::homes;

const ALL: &[Place] = &[
    blocks("layers.#", "layers.#", &[Count("n")]),
    blocks("noise_refiner.#", "noise_refiner.#", &[Count("2")]),
    blocks("context_refiner.#", "context_refiner.#", &[Count("2")]),
];
const MODULATED: &[Place] =
    &[blocks("layers.#", "layers.#", &[Count("n")]), blocks("noise_refiner.#", "noise_refiner.#", &[Count("2")])];

const BLOCK: &[Row] = &[
    fused("attention.qkv", &["attention.to_q", "attention.to_k", "attention.to_v"], "3d d"),
    row("attention.out", "attention.to_out.0", "d d"),
    row("attention.q_norm", "attention.norm_q", "128"),
    row("attention.k_norm", "attention.norm_k", "128"),
    same("feed_forward.w1", "f d"),
    same("feed_forward.w2", "d f"),
    same("feed_forward.w3", "f d"),
    same("attention_norm1", "d"),
    same("attention_norm2", "d"),
    same("ffn_norm1", "d"),
    same("ffn_norm2", "d"),
];

/// Omni sees pictures, too.
const SIGHT: &[Place] = &[blocks("siglip_refiner.#", "siglip_refiner.#", &[Count("2")])];
const SIGHT_ENDS: &[Row] =
    &[same("siglip_embedder.0", "o"), same("siglip_embedder.1", "d o"), same("siglip_pad_token!", "1 d")];

const MODULATION: &[Row] = &[same("adaLN_modulation.0", "4d 256")];

const ENDS: &[Row] = &[
    row("x_embedder", "all_x_embedder.2-1", "d 64"),
    row("final_layer.linear", "all_final_layer.2-1.linear", "64 d"),
    row("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1", "d 256"),
    same("cap_embedder.0", "2560"),
    same("cap_embedder.1", "d 2560"),
    same("t_embedder.mlp.0", "1024 256"),
    same("t_embedder.mlp.2", "256 1024"),
    same("x_pad_token!", "1 d"),
    same("cap_pad_token!", "1 d"),
];

static TRANSFORMER: Table = Table::new(&[
    group(TOP, ENDS),
    group(ALL, BLOCK),
    group(MODULATED, MODULATION),
    group(TOP, SIGHT_ENDS).when("o"),
    group(SIGHT, BLOCK).when("o"),
]);

const TEXT: Part = llm::part(
    llm::QWEN3_4B,
    &[diffusers("text_encoder"), comfy("text_encoders.qwen3_4b.transformer", Naming::Diffusers)],
);

/// Z-Image.
pub(super) static Z_IMAGE: Family = Family {
    name: "z_image",
    about: "Z-Image",
    variants: &[
        Variant { name: "Z-Image", extents: &[("d", 3840), ("f", 10240), ("n", 30), ("o", 0)] },
        Variant { name: "Z-Image Omni", extents: &[("d", 3840), ("f", 10240), ("n", 30), ("o", 1152)] },
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::DIFFUSERS), TEXT],
};

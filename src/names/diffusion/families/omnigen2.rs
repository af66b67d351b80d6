//! OmniGen 2. It has one naming for everybody, that of Lumina Image 2 in diffusers; in sizes of its own.
//!
//! Source: VectorSpaceLab/OmniGen2:omnigen2/models/transformers/transformer_omnigen2.py. `d` is the width, `k` the rows of
//! the keys (three queries share one), `f` the width of the feed-forward layer, `n` the number of blocks.

use super::super::encoders::llm;
use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, comfy, diffusers};
use super::super::table::{Place, Row, TOP, Table, blocks, group, same};
use super::homes;

const MODULATED: &[Place] = &[
    blocks("layers.#", "layers.#", &[Count("n")]),
    blocks("noise_refiner.#", "noise_refiner.#", &[Count("2")]),
    blocks("ref_image_refiner.#", "ref_image_refiner.#", &[Count("2")]),
];
const NOT_MODULATED: &[Place] = &[blocks("context_refiner.#", "context_refiner.#", &[Count("2")])];

const BLOCK: &[Row] = &[
    same("attn.to_q", "d d"),
    same("attn.to_k", "k d"),
    same("attn.to_v", "k d"),
    same("attn.to_out.0", "d d"),
    same("attn.norm_q", "120"),
    same("attn.norm_k", "120"),
    same("feed_forward.linear_1", "f d"),
    same("feed_forward.linear_2", "d f"),
    same("feed_forward.linear_3", "f d"),
    same("norm2", "d"),
    same("ffn_norm1", "d"),
    same("ffn_norm2", "d"),
];

const MODULATION: &[Row] = &[same("norm1.linear", "4d 1024"), same("norm1.norm", "d")];
const NO_MODULATION: &[Row] = &[same("norm1", "d")];

const ENDS: &[Row] = &[
    same("x_embedder", "d 64"),
    same("ref_image_patch_embedder", "d 64"),
    same("image_index_embedding!", "5 d"),
    same("time_caption_embed.caption_embedder.0", "2048"),
    same("time_caption_embed.caption_embedder.1", "d 2048"),
    same("time_caption_embed.timestep_embedder.linear_1", "1024 256"),
    same("time_caption_embed.timestep_embedder.linear_2", "1024 1024"),
    same("norm_out.linear_1", "d 1024"),
    same("norm_out.linear_2", "64 d"),
];

static TRANSFORMER: Table = Table::new(&[
    group(TOP, ENDS),
    group(MODULATED, BLOCK),
    group(MODULATED, MODULATION),
    group(NOT_MODULATED, BLOCK),
    group(NOT_MODULATED, NO_MODULATION),
]);

const TEXT: Part =
    llm::part(llm::QWEN25_3B, &[diffusers("mllm"), comfy("text_encoders.qwen25_3b.transformer", Naming::Diffusers)]);

/// OmniGen 2.
pub(super) static OMNIGEN2: Family = Family {
    name: "omnigen2",
    about: "OmniGen 2",
    variants: &[Variant { name: "OmniGen 2", extents: &[("d", 2520), ("k", 840), ("f", 10240), ("n", 32)] }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::DIFFUSERS), TEXT],
};

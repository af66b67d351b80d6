//! Lumina-Next. Adapters have the names of diffusers.
//!
//! Source: huggingface/diffusers:src/diffusers/models/transformers/lumina_nextdit2d.py, and for the size
//! scripts/convert_lumina_to_diffusers.py. `d` is the width, `k` the rows of the keys (four queries share one), `f` the
//! width of the feed-forward layer, `n` the number of blocks. The native names are not here: there one projection makes
//! the queries for the image and for the text.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, group, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("layers.#", "layers.#", &[Count("n")])];

const BLOCK: &[Row] = &[
    same("attn1.to_q", "d d"),
    same("attn1.to_k", "k d"),
    same("attn1.to_v", "k d"),
    same("attn1.norm_q", "d"),
    same("attn1.norm_k", "k"),
    same("attn2.to_q", "d d"),
    same("attn2.to_k", "k 2048"),
    same("attn2.to_v", "k 2048"),
    same("attn2.to_out.0", "d d"),
    same("attn2.norm_q", "d"),
    same("attn2.norm_k", "k"),
    same("feed_forward.linear_1", "f d"),
    same("feed_forward.linear_2", "d f"),
    same("feed_forward.linear_3", "f d"),
    same("norm1.linear", "4d 1024"),
    same("norm1.norm", "d"),
    same("norm1_context", "2048"),
    same("norm2", "d"),
    same("ffn_norm1", "d"),
    same("ffn_norm2", "d"),
    same("gate!", "32"),
];

const ENDS: &[Row] = &[
    same("pad_token!", "d"),
    same("patch_embedder.proj", "d 16"),
    same("time_caption_embed.caption_embedder.0", "2048"),
    same("time_caption_embed.caption_embedder.1", "1024 2048"),
    same("time_caption_embed.timestep_embedder.linear_1", "1024 256"),
    same("time_caption_embed.timestep_embedder.linear_2", "1024 1024"),
    same("norm_out.linear_1", "d 1024"),
    same("norm_out.linear_2", "32 d"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(BLOCKS, BLOCK)]);

/// Lumina-Next.
pub(super) static LUMINA_NEXT: Family = Family {
    name: "lumina_next",
    about: "Lumina-Next",
    variants: &[Variant { name: "Lumina-Next 2B", extents: &[("d", 2304), ("k", 576), ("f", 6144), ("n", 24)] }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::DIFFUSERS)],
};

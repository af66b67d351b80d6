//! The text encoder of CLIP ViT-L. It has the names of transformers everywhere.
//!
//! Source: huggingface/transformers:src/transformers/models/clip/modeling_clip.py. The level `text_model` is missing in
//! the oldest checkpoints of SD1, and again in pipelines saved with transformers 5.23 and later.

use super::super::extent::{Count, Extent};
use super::super::part::{Home, Part, Role};
use super::super::table::{Row, TOP, Table, blocks, group, same};

/// `w` width, `f` width of the feed-forward layer, `n` blocks.
const EXTENTS: &[Extent] = &[("w", 768), ("f", 3072), ("n", 12)];

const BLOCK: &[Row] = &[
    same("self_attn.q_proj", "w w"),
    same("self_attn.k_proj", "w w"),
    same("self_attn.v_proj", "w w"),
    same("self_attn.out_proj", "w w"),
    same("mlp.fc1", "f w"),
    same("mlp.fc2", "w f"),
    same("layer_norm1", "w"),
    same("layer_norm2", "w"),
];

const ENDS: &[Row] = &[
    same("text_model.embeddings.token_embedding", "49408 w").embedding(),
    same("text_model.embeddings.position_embedding", "77 w").embedding(),
    same("text_model.final_layer_norm", "w"),
];

/// Both sides are the same.
static CLIP_L: Table = Table::new(&[
    group(&[blocks("text_model.encoder.layers.#", "text_model.encoder.layers.#", &[Count("n")])], BLOCK),
    group(TOP, ENDS),
]);

/// The part of a family that keeps it here.
pub(in super::super) const fn part(homes: &'static [Home]) -> Part {
    Part::new(Role::ClipL, &CLIP_L, homes).optional("text_model").sized(EXTENTS)
}

//! The encoder of T5. It has the names of transformers everywhere.
//!
//! Source: huggingface/transformers:src/transformers/models/t5/modeling_t5.py (version 1.1, with the gated feed-forward
//! layer).

use super::super::extent::{Count, Extent};
use super::super::part::{Home, Part, Role};
use super::super::table::{Row, TOP, Table, blocks, group, same};

/// `w` width, `f` width of the feed-forward layer, `n` blocks: T5 XXL.
const XXL: &[Extent] = &[("w", 4096), ("f", 10240), ("n", 24), ("v", 32128)];

const BLOCK: &[Row] = &[
    same("layer.0.SelfAttention.q", "w w"),
    same("layer.0.SelfAttention.k", "w w"),
    same("layer.0.SelfAttention.v", "w w"),
    same("layer.0.SelfAttention.o", "w w"),
    same("layer.0.layer_norm", "w"),
    same("layer.1.DenseReluDense.wi_0", "f w"),
    same("layer.1.DenseReluDense.wi_1", "f w"),
    same("layer.1.DenseReluDense.wo", "w f"),
    same("layer.1.layer_norm", "w"),
];

const ENDS: &[Row] = &[
    same("shared", "v w").embedding(),
    same("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "32 64").embedding(),
    same("encoder.final_layer_norm", "w"),
];

/// Both sides are the same.
static T5: Table =
    Table::new(&[group(&[blocks("encoder.block.#", "encoder.block.#", &[Count("n")])], BLOCK), group(TOP, ENDS)]);

/// The part of a family that keeps T5 XXL here.
pub(in super::super) const fn part(homes: &'static [Home]) -> Part {
    Part::new(Role::T5, &T5, homes).sized(XXL)
}

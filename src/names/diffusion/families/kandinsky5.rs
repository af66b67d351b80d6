//! Kandinsky 5. It has one naming for everybody.
//!
//! Source: huggingface/diffusers:src/diffusers/models/transformers/transformer_kandinsky.py. `d` is the width, `f` that
//! of the feed-forward layer, `n` and `s` the numbers of blocks for text and picture, `t` the width of the
//! time, `x` and `y` the channels of a latent with what goes beside it and of the one that comes out.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, group, same};
use super::homes;

const TEXT: &[Place] = &[blocks("text_transformer_blocks.#", "text_transformer_blocks.#", &[Count("n")])];
const VISUAL: &[Place] = &[blocks("visual_transformer_blocks.#", "visual_transformer_blocks.#", &[Count("s")])];
const BOTH: &[Place] = &[TEXT[0], VISUAL[0]];

const BLOCK: &[Row] = &[
    same("self_attention.to_query", "d d"),
    same("self_attention.to_key", "d d"),
    same("self_attention.to_value", "d d"),
    same("self_attention.out_layer", "d d"),
    same("self_attention.query_norm", "64"),
    same("self_attention.key_norm", "64"),
    same("feed_forward.in_layer", "f d"),
    same("feed_forward.out_layer", "d f"),
];

const CROSS_ATTENTION: &[Row] = &[
    same("cross_attention.to_query", "d d"),
    same("cross_attention.to_key", "d d"),
    same("cross_attention.to_value", "d d"),
    same("cross_attention.out_layer", "d d"),
    same("cross_attention.query_norm", "64"),
    same("cross_attention.key_norm", "64"),
    same("visual_modulation.out_layer", "9d t"),
];

const TEXT_MODULATION: &[Row] = &[same("text_modulation.out_layer", "6d t")];

const ENDS: &[Row] = &[
    same("time_embeddings.in_layer", "t d"),
    same("time_embeddings.out_layer", "t t"),
    same("text_embeddings.in_layer", "d 3584"),
    same("text_embeddings.norm", "d"),
    same("pooled_text_embeddings.in_layer", "t 768"),
    same("pooled_text_embeddings.norm", "t"),
    same("visual_embeddings.in_layer", "d 4x"),
    same("out_layer.modulation.out_layer", "2d t"),
    same("out_layer.out_layer", "4y d"),
];

static TRANSFORMER: Table =
    Table::new(&[group(TOP, ENDS), group(BOTH, BLOCK), group(VISUAL, CROSS_ATTENTION), group(TEXT, TEXT_MODULATION)]);

macro_rules! variant {
    ($name:literal, $d:literal, $f:literal, $n:literal, $s:literal, $t:literal, $x:literal) => {
        Variant { name: $name, extents: &[("d", $d), ("f", $f), ("n", $n), ("s", $s), ("t", $t), ("x", $x), ("y", 16)] }
    };
}

/// Kandinsky 5.
pub(super) static KANDINSKY5: Family = Family {
    name: "kandinsky5",
    about: "Kandinsky 5",
    variants: &[
        variant!("Kandinsky 5 lite, video", 1792, 7168, 2, 32, 512, 33),
        variant!("Kandinsky 5 lite, image", 2560, 10240, 2, 50, 512, 16),
        variant!("Kandinsky 5 pro", 4096, 16384, 4, 60, 1024, 33),
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE)],
};

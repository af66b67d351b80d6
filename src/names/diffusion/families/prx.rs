//! PRX.
//!
//! Sources: huggingface/diffusers:src/diffusers/models/transformers/transformer_prx.py (right), and for the names of
//! Photoroom/PRX (left) and the way between the two scripts/convert_prx_to_diffusers.py. `d` is the width, `f` that of the
//! feed-forward layer, `n` the number of blocks, `a` the size of a head, `e` the width of the text, `x` and `o` the
//! channels of a patch; `l` is whether it makes latents, and if not, `b` the width that the pixels go through first.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, group, row, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("blocks.#", "blocks.#", &[Count("n")])];

const BLOCK: &[Row] = &[
    row("img_qkv_proj", "attention.img_qkv_proj", "3d d"),
    row("txt_kv_proj", "attention.txt_kv_proj", "2d d"),
    row("attn_out", "attention.to_out.0", "d d"),
    row("qk_norm.query_norm", "attention.norm_q", "a"),
    row("qk_norm.key_norm", "attention.norm_k", "a"),
    row("k_norm", "attention.norm_added_k", "a"),
    same("gate_proj", "f d"),
    same("up_proj", "f d"),
    same("down_proj", "d f"),
    same("modulation.lin", "6d d"),
];

const ENDS: &[Row] = &[
    same("txt_in", "d e"),
    same("time_in.in_layer", "d 256"),
    same("time_in.out_layer", "d d"),
    same("final_layer.adaLN_modulation.1", "2d d"),
    same("final_layer.linear", "o d"),
];

const LATENTS: &[Row] = &[same("img_in", "d x")];

const PIXELS: &[Row] = &[
    same("img_in.0", "b x"),
    same("img_in.1", "d b"),
    same("resolution_embedder.mlp.in_layer", "d 256"),
    same("resolution_embedder.mlp.out_layer", "d d"),
];

static TRANSFORMER: Table =
    Table::new(&[group(TOP, ENDS), group(TOP, LATENTS).when("l"), group(TOP, PIXELS).when("b"), group(BLOCKS, BLOCK)]);

macro_rules! variant {
    ($name:literal, $d:literal, $f:literal, $n:literal, $a:literal, $e:literal, $x:literal, $l:literal, $b:literal) => {
        Variant {
            name: $name,
            extents: &[
                ("d", $d),
                ("f", $f),
                ("n", $n),
                ("a", $a),
                ("e", $e),
                ("x", $x),
                ("o", $x),
                ("l", $l),
                ("b", $b),
            ],
        }
    };
}

/// PRX.
pub(super) static PRX: Family = Family {
    name: "prx",
    about: "PRX",
    variants: &[
        variant!("PRX 1.2B", 1792, 6272, 16, 64, 2304, 64, 1, 0),
        variant!("PRX 1.2B, DC-AE", 1792, 6272, 16, 64, 2304, 32, 1, 0),
        variant!("PRX Pixel 7B", 3584, 12544, 24, 128, 2048, 768, 0, 768),
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE)],
};

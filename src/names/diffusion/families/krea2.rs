//! Krea 2.
//!
//! Sources: kohya-ss/musubi-tuner:src/musubi_tuner/krea2/krea2_mmdit.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_krea2.py (right), and for the way between the
//! two src/diffusers/loaders/single_file_utils.py. `w` is the width of a block, `k` the rows of its keys and values,
//! `f` the width of its feed-forward layer. The modulation of a block is one vector on the left and a table of six on
//! the right: it is not in the table.

use super::super::extent::{Count, Extent};
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, group, row};
use super::homes;

const BLOCKS: &[Place] = &[
    blocks("blocks.#", "transformer_blocks.#", &[Count("n")]).sized(&[("w", 6144), ("k", 1536), ("f", 16384)]),
    blocks("txtfusion.layerwise_blocks.#", "text_fusion.layerwise_blocks.#", &[Count("2")]).sized(FUSION),
    blocks("txtfusion.refiner_blocks.#", "text_fusion.refiner_blocks.#", &[Count("2")]).sized(FUSION),
];
const FUSION: &[Extent] = &[("w", 2560), ("k", 2560), ("f", 6912)];

const BLOCK: &[Row] = &[
    row("attn.wq", "attn.to_q", "w w"),
    row("attn.wk", "attn.to_k", "k w"),
    row("attn.wv", "attn.to_v", "k w"),
    row("attn.wo", "attn.to_out.0", "w w"),
    row("attn.gate", "attn.to_gate", "w w"),
    row("attn.qknorm.qnorm", "attn.norm_q", "128"),
    row("attn.qknorm.knorm", "attn.norm_k", "128"),
    row("mlp.gate", "ff.gate", "f w"),
    row("mlp.up", "ff.up", "f w"),
    row("mlp.down", "ff.down", "w f"),
    row("prenorm", "norm1", "w"),
    row("postnorm", "norm2", "w"),
];

const ENDS: &[Row] = &[
    row("first", "img_in", "d 64"),
    row("last.linear", "final_layer.linear", "64 d"),
    row("last.norm", "final_layer.norm", "d"),
    row("last.modulation.lin!", "final_layer.scale_shift_table!", "2 d"),
    row("tmlp.0", "time_embed.linear_1", "d 256"),
    row("tmlp.2", "time_embed.linear_2", "d d"),
    row("tproj.1", "time_mod_proj", "6d d"),
    row("txtmlp.0", "txt_in.norm", "2560"),
    row("txtmlp.1", "txt_in.linear_1", "d 2560"),
    row("txtmlp.3", "txt_in.linear_2", "d d"),
    row("txtfusion.projector", "text_fusion.projector", "1 12"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(BLOCKS, BLOCK)]);

/// Krea 2.
pub(super) static KREA2: Family = Family {
    name: "krea2",
    about: "Krea 2",
    variants: &[Variant { name: "Krea 2", extents: &[("d", 6144), ("n", 28)] }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE)],
};

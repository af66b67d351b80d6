//! LTX-Video.
//!
//! Sources: Lightricks/LTX-Video:ltx_video/models/transformers/transformer3d.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_ltx.py (right), and for the way between the two
//! src/diffusers/loaders/single_file_utils.py; its converter of adapters changes the prefix only. `d` is the width, `n`
//! the number of blocks.

use super::super::encoders::t5;
use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, checkpoint, comfy, diffusers};
use super::super::table::{Place, Row, TOP, Table, blocks, group, row, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("transformer_blocks.#", "transformer_blocks.#", &[Count("n")])];

const BLOCK: &[Row] = &[
    same("attn1.to_q", "d d"),
    same("attn1.to_k", "d d"),
    same("attn1.to_v", "d d"),
    same("attn1.to_out.0", "d d"),
    row("attn1.q_norm", "attn1.norm_q", "d"),
    row("attn1.k_norm", "attn1.norm_k", "d"),
    same("attn2.to_q", "d d"),
    same("attn2.to_k", "d d"),
    same("attn2.to_v", "d d"),
    same("attn2.to_out.0", "d d"),
    row("attn2.q_norm", "attn2.norm_q", "d"),
    row("attn2.k_norm", "attn2.norm_k", "d"),
    same("ff.net.0.proj", "4d d"),
    same("ff.net.2", "d 4d"),
    same("scale_shift_table!", "6 d"),
];

const ENDS: &[Row] = &[
    row("patchify_proj", "proj_in", "d 128"),
    row("adaln_single.linear", "time_embed.linear", "6d d"),
    row("adaln_single.emb.timestep_embedder.linear_1", "time_embed.emb.timestep_embedder.linear_1", "d 256"),
    row("adaln_single.emb.timestep_embedder.linear_2", "time_embed.emb.timestep_embedder.linear_2", "d d"),
    same("caption_projection.linear_1", "d 4096"),
    same("caption_projection.linear_2", "d d"),
    same("proj_out", "128 d"),
    same("scale_shift_table!", "2 d"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(BLOCKS, BLOCK)]);

const TEXT: Part = t5::part(&[
    diffusers("text_encoder"),
    comfy("text_encoders.t5xxl.transformer", Naming::Diffusers),
    checkpoint("text_encoders.t5xxl.transformer", Naming::Diffusers),
]);

/// LTX-Video.
pub(super) static LTX: Family = Family {
    name: "ltx",
    about: "LTX-Video",
    variants: &[
        Variant { name: "LTX-Video 2B", extents: &[("d", 2048), ("n", 28)] },
        Variant { name: "LTX-Video 13B", extents: &[("d", 4096), ("n", 48)] },
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE), TEXT],
};

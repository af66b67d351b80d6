//! PixArt, alpha and sigma.
//!
//! Sources: PixArt-alpha/PixArt-sigma:diffusion/model/nets/PixArtMS.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/pixart_transformer_2d.py (right), and for the way between
//! the two scripts/convert_pixart_sigma_to_diffusers.py. `d` is the width, `n` the number of blocks; `a` is whether
//! size and aspect ratio are inputs.

use super::super::encoders::t5;
use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, comfy, diffusers, kohya};
use super::super::table::{Place, Row, TOP, Table, blocks, fused, group, row, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("blocks.#", "transformer_blocks.#", &[Count("n")])];

const BLOCK: &[Row] = &[
    fused("attn.qkv", &["attn1.to_q", "attn1.to_k", "attn1.to_v"], "3d d"),
    row("attn.proj", "attn1.to_out.0", "d d"),
    row("cross_attn.q_linear", "attn2.to_q", "d d"),
    fused("cross_attn.kv_linear", &["attn2.to_k", "attn2.to_v"], "2d d"),
    row("cross_attn.proj", "attn2.to_out.0", "d d"),
    row("mlp.fc1", "ff.net.0.proj", "4d d"),
    row("mlp.fc2", "ff.net.2", "d 4d"),
    same("scale_shift_table!", "6 d"),
];

const ENDS: &[Row] = &[
    row("x_embedder.proj", "pos_embed.proj", "d 4 2 2"),
    row("y_embedder.y_proj.fc1", "caption_projection.linear_1", "d 4096"),
    row("y_embedder.y_proj.fc2", "caption_projection.linear_2", "d d"),
    row("t_embedder.mlp.0", "adaln_single.emb.timestep_embedder.linear_1", "d 256"),
    row("t_embedder.mlp.2", "adaln_single.emb.timestep_embedder.linear_2", "d d"),
    row("t_block.1", "adaln_single.linear", "6d d"),
    row("final_layer.linear", "proj_out", "32 d"),
    row("final_layer.scale_shift_table!", "scale_shift_table!", "2 d"),
];

const SIZE: &[Row] = &[
    row("csize_embedder.mlp.0", "adaln_single.emb.resolution_embedder.linear_1", "384 256"),
    row("csize_embedder.mlp.2", "adaln_single.emb.resolution_embedder.linear_2", "384 384"),
    row("ar_embedder.mlp.0", "adaln_single.emb.aspect_ratio_embedder.linear_1", "384 256"),
    row("ar_embedder.mlp.2", "adaln_single.emb.aspect_ratio_embedder.linear_2", "384 384"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(TOP, SIZE).when("a"), group(BLOCKS, BLOCK)]);

const TEXT: Part = t5::part(&[
    kohya("lora_te", Naming::Diffusers),
    diffusers("text_encoder"),
    comfy("text_encoders.t5xxl.transformer", Naming::Diffusers),
]);

/// PixArt.
pub(super) static PIXART: Family = Family {
    name: "pixart",
    about: "PixArt alpha and sigma",
    variants: &[
        Variant { name: "PixArt sigma", extents: &[("d", 1152), ("n", 28), ("a", 0)] },
        Variant { name: "PixArt alpha", extents: &[("d", 1152), ("n", 28), ("a", 1)] },
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE), TEXT],
};

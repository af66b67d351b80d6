//! CogVideoX, 1.5, and models made of them (Fun, ConsisID). Adapters have the names of diffusers; ComfyUI has its own.
//!
//! Sources: huggingface/diffusers:src/diffusers/models/transformers/cogvideox_transformer_3d.py, and for the sizes
//! scripts/convert_cogvideox_to_diffusers.py; comfyanonymous/ComfyUI:comfy/ldm/cogvideo/model.py. `d` is the width, `n`
//! the number of blocks, `x` the channels of a latent or of a patch, `o` those of a patch that comes out, `t` whether a
//! patch has two frames, `f` whether there is an embedding of the offset. The native names of the authors' trainer
//! (SwissArmyTransformer) are not here: its one modulation of a block is that of both norms in turns.

use super::super::encoders::t5;
use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, comfy, diffusers};
use super::super::table::{Place, Row, TOP, Table, blocks, group, row, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("transformer_blocks.#", "transformer_blocks.#", &[Count("n")])];

const BLOCK: &[Row] = &[
    same("attn1.to_q", "d d"),
    same("attn1.to_k", "d d"),
    same("attn1.to_v", "d d"),
    same("attn1.to_out.0", "d d"),
    same("attn1.norm_q", "64"),
    same("attn1.norm_k", "64"),
    same("ff.net.0.proj", "4d d"),
    same("ff.net.2", "d 4d"),
    same("norm1.linear", "6d 512"),
    same("norm1.norm", "d"),
    same("norm2.linear", "6d 512"),
    same("norm2.norm", "d"),
];

const ENDS: &[Row] = &[
    same("patch_embed.text_proj", "d 4096"),
    same("time_embedding.linear_1", "512 d"),
    same("time_embedding.linear_2", "512 512"),
    same("norm_final", "d"),
    same("norm_out.norm", "d"),
    same("norm_out.linear", "2d 512"),
    same("proj_out", "o d"),
];

const PATCH: &[Row] = &[same("patch_embed.proj", "d x 2 2")];
const PATCH_OVER_TIME: &[Row] = &[same("patch_embed.proj", "d x")];
const OFFSET: &[Row] = &[same("ofs_embedding.linear_1", "512 512"), same("ofs_embedding.linear_2", "512 512")];

static TRANSFORMER: Table = Table::new(&[
    group(TOP, ENDS),
    group(TOP, PATCH).when("1-t"),
    group(TOP, PATCH_OVER_TIME).when("t"),
    group(TOP, OFFSET).when("f"),
    group(BLOCKS, BLOCK),
]);

// ComfyUI on the left.

const COMFY_BLOCKS: &[Place] = &[blocks("blocks.#", "transformer_blocks.#", &[Count("n")])];

const COMFY_BLOCK: &[Row] = &[
    row("q", "attn1.to_q", "d d"),
    row("k", "attn1.to_k", "d d"),
    row("v", "attn1.to_v", "d d"),
    row("attn_out", "attn1.to_out.0", "d d"),
    row("norm_q", "attn1.norm_q", "64"),
    row("norm_k", "attn1.norm_k", "64"),
    row("ff_proj", "ff.net.0.proj", "4d d"),
    row("ff_out", "ff.net.2", "d 4d"),
    same("norm1.linear", "6d 512"),
    same("norm1.norm", "d"),
    same("norm2.linear", "6d 512"),
    same("norm2.norm", "d"),
];

const COMFY_ENDS: &[Row] = &[
    same("patch_embed.text_proj", "d 4096"),
    row("time_embedding_linear_1", "time_embedding.linear_1", "512 d"),
    row("time_embedding_linear_2", "time_embedding.linear_2", "512 512"),
    same("norm_final", "d"),
    same("norm_out.norm", "d"),
    same("norm_out.linear", "2d 512"),
    same("proj_out", "o d"),
];

const COMFY_OFFSET: &[Row] = &[
    row("ofs_embedding_linear_1", "ofs_embedding.linear_1", "512 512"),
    row("ofs_embedding_linear_2", "ofs_embedding.linear_2", "512 512"),
];

static COMFY: Table = Table::new(&[
    group(TOP, COMFY_ENDS),
    group(TOP, PATCH).when("1-t"),
    group(TOP, PATCH_OVER_TIME).when("t"),
    group(TOP, COMFY_OFFSET).when("f"),
    group(COMFY_BLOCKS, COMFY_BLOCK),
]);

const TEXT: Part = t5::part(&[diffusers("text_encoder"), comfy("text_encoders.t5xxl.transformer", Naming::Diffusers)]);

macro_rules! variant {
    ($name:literal, $d:literal, $n:literal, $x:literal, $o:literal, $t:literal, $f:literal) => {
        Variant { name: $name, extents: &[("d", $d), ("n", $n), ("x", $x), ("o", $o), ("t", $t), ("f", $f)] }
    };
}

/// CogVideoX.
pub(super) static COGVIDEOX: Family = Family {
    name: "cogvideox",
    about: "CogVideoX and CogVideoX 1.5",
    variants: &[
        variant!("CogVideoX 5B", 3072, 42, 16, 64, 0, 0),
        variant!("CogVideoX 2B", 1920, 30, 16, 64, 0, 0),
        variant!("CogVideoX 5B I2V", 3072, 42, 32, 64, 0, 0),
        variant!("CogVideoX 1.5 5B", 3072, 42, 128, 128, 1, 0),
        variant!("CogVideoX 1.5 5B I2V", 3072, 42, 256, 128, 1, 1),
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::DIFFUSERS).with_comfy(&COMFY), TEXT],
};

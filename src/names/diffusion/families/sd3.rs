//! Stable Diffusion 3 and 3.5.
//!
//! Sources: Stability-AI/sd3.5:mmditx.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_sd3.py (right), and for the way between the two
//! src/diffusers/loaders/single_file_utils.py. `d` is the width, `n` the number of blocks, the first `a` of which have
//! a second attention; `q` is whether queries and keys have norms.

use super::super::encoders::{clip_l, open_clip, t5};
use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, checkpoint, comfy, diffusers, kohya};
use super::super::table::{Place, Row, TOP, Table, blocks, fused, group, row, same};
use super::homes;

const ALL: &[Place] = &[blocks("joint_blocks.#", "transformer_blocks.#", &[Count("n")])];
const ALL_BUT_LAST: &[Place] = &[blocks("joint_blocks.#", "transformer_blocks.#", &[Count("0..n-1")])];
const LAST: &[Place] = &[blocks("joint_blocks.#", "transformer_blocks.#", &[Count("n-1..n")])];
const DUAL: &[Place] = &[blocks("joint_blocks.#", "transformer_blocks.#", &[Count("0..a")])];
const NOT_DUAL: &[Place] = &[blocks("joint_blocks.#", "transformer_blocks.#", &[Count("a..n")])];

const BLOCK: &[Row] = &[
    fused("x_block.attn.qkv", &["attn.to_q", "attn.to_k", "attn.to_v"], "3d d"),
    fused("context_block.attn.qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"], "3d d"),
    row("x_block.attn.proj", "attn.to_out.0", "d d"),
    row("x_block.mlp.fc1", "ff.net.0.proj", "4d d"),
    row("x_block.mlp.fc2", "ff.net.2", "d 4d"),
];

/// The last block makes nothing of the text.
const CONTEXT: &[Row] = &[
    row("context_block.attn.proj", "attn.to_add_out", "d d"),
    row("context_block.mlp.fc1", "ff_context.net.0.proj", "4d d"),
    row("context_block.mlp.fc2", "ff_context.net.2", "d 4d"),
    row("context_block.adaLN_modulation.1", "norm1_context.linear", "6d d"),
];

const LAST_CONTEXT: &[Row] = &[row("context_block.adaLN_modulation.1", "norm1_context.linear", "2d d").swapped()];

const NORMS: &[Row] = &[
    row("x_block.attn.ln_q", "attn.norm_q", "64"),
    row("x_block.attn.ln_k", "attn.norm_k", "64"),
    row("context_block.attn.ln_q", "attn.norm_added_q", "64"),
    row("context_block.attn.ln_k", "attn.norm_added_k", "64"),
];

const SECOND_ATTENTION: &[Row] = &[
    fused("x_block.attn2.qkv", &["attn2.to_q", "attn2.to_k", "attn2.to_v"], "3d d"),
    row("x_block.attn2.proj", "attn2.to_out.0", "d d"),
    row("x_block.attn2.ln_q", "attn2.norm_q", "64"),
    row("x_block.attn2.ln_k", "attn2.norm_k", "64"),
    row("x_block.adaLN_modulation.1", "norm1.linear", "9d d"),
];

const ONE_ATTENTION: &[Row] = &[row("x_block.adaLN_modulation.1", "norm1.linear", "6d d")];

const ENDS: &[Row] = &[
    row("x_embedder.proj", "pos_embed.proj", "d 16 2 2"),
    same("context_embedder", "d 4096"),
    row("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1", "d 256"),
    row("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2", "d d"),
    row("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1", "d 2048"),
    row("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2", "d d"),
    row("final_layer.adaLN_modulation.1", "norm_out.linear", "2d d").swapped(),
    row("final_layer.linear", "proj_out", "64 d"),
];

static TRANSFORMER: Table = Table::new(&[
    group(TOP, ENDS),
    group(ALL, BLOCK),
    group(ALL_BUT_LAST, CONTEXT),
    group(LAST, LAST_CONTEXT),
    group(ALL, NORMS).when("q"),
    group(DUAL, SECOND_ATTENTION),
    group(NOT_DUAL, ONE_ATTENTION),
]);

const TEXT: Part = clip_l::part(&[
    kohya("lora_te1", Naming::Diffusers),
    diffusers("text_encoder"),
    comfy("text_encoders.clip_l.transformer", Naming::Diffusers),
    checkpoint("text_encoders.clip_l.transformer", Naming::Diffusers),
]);

/// Unlike SDXL's, checkpoints have it with the names of transformers.
const TEXT_2: Part = open_clip::part(
    open_clip::VIT_BIG_G,
    &[
        kohya("lora_te2", Naming::Diffusers),
        diffusers("text_encoder_2"),
        comfy("text_encoders.clip_g.transformer", Naming::Diffusers),
        checkpoint("text_encoders.clip_g.transformer", Naming::Diffusers),
    ],
);

const TEXT_3: Part = t5::part(&[
    kohya("lora_te3", Naming::Diffusers),
    diffusers("text_encoder_3"),
    comfy("text_encoders.t5xxl.transformer", Naming::Diffusers),
    checkpoint("text_encoders.t5xxl.transformer", Naming::Diffusers),
]);

/// Stable Diffusion 3.
pub(super) static SD3: Family = Family {
    name: "sd3",
    about: "Stable Diffusion 3 and 3.5",
    variants: &[
        Variant { name: "SD 3.5 large", extents: &[("d", 2432), ("n", 38), ("a", 0), ("q", 1)] },
        Variant { name: "SD 3.5 medium", extents: &[("d", 1536), ("n", 24), ("a", 13), ("q", 1)] },
        Variant { name: "SD 3 medium", extents: &[("d", 1536), ("n", 24), ("a", 0), ("q", 0)] },
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE), TEXT, TEXT_2, TEXT_3],
};

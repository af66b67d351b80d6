//! ACE-Step 1.5, the decoder that makes music.
//!
//! Sources: ace-step/ACE-Step-1.5 (left), whose names of modules are read in the converter;
//! huggingface/diffusers:src/diffusers/models/transformers/ace_step_transformer.py (right), and for the way between the
//! two scripts/convert_ace_step_to_diffusers.py. `d` is the width, `q` the rows of the queries, `k` those of keys and values, `f` the width of the
//! feed-forward layer, `n` the number of blocks, `e` the width of what it is told. In the native model this stands after
//! `decoder`, and so it does in ComfyUI.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Home, Naming, Part, Role, checkpoint, comfy, diffusers, kohya};
use super::super::table::{Place, Row, TOP, Table, blocks, group, row, same};

const BLOCKS: &[Place] = &[blocks("layers.#", "layers.#", &[Count("n")])];

const BLOCK: &[Row] = &[
    row("self_attn.q_proj", "self_attn.to_q", "q d"),
    row("self_attn.k_proj", "self_attn.to_k", "k d"),
    row("self_attn.v_proj", "self_attn.to_v", "k d"),
    row("self_attn.o_proj", "self_attn.to_out.0", "d q"),
    row("self_attn.q_norm", "self_attn.norm_q", "128"),
    row("self_attn.k_norm", "self_attn.norm_k", "128"),
    row("cross_attn.q_proj", "cross_attn.to_q", "q d"),
    row("cross_attn.k_proj", "cross_attn.to_k", "k d"),
    row("cross_attn.v_proj", "cross_attn.to_v", "k d"),
    row("cross_attn.o_proj", "cross_attn.to_out.0", "d q"),
    row("cross_attn.q_norm", "cross_attn.norm_q", "128"),
    row("cross_attn.k_norm", "cross_attn.norm_k", "128"),
    same("mlp.gate_proj", "f d"),
    same("mlp.up_proj", "f d"),
    same("mlp.down_proj", "d f"),
    same("self_attn_norm", "d"),
    same("cross_attn_norm", "d"),
    same("mlp_norm", "d"),
    same("scale_shift_table!", "1 6 d"),
];

const ENDS: &[Row] = &[
    row("proj_in.1", "proj_in_conv", "d 192 2"),
    row("proj_out.1", "proj_out_conv", "d 64 2"),
    same("condition_embedder", "d e"),
    same("time_embed.linear_1", "d 256"),
    same("time_embed.linear_2", "d d"),
    same("time_embed.time_proj", "6d d"),
    same("time_embed_r.linear_1", "d 256"),
    same("time_embed_r.linear_2", "d d"),
    same("time_embed_r.time_proj", "6d d"),
    same("norm_out", "d"),
    same("scale_shift_table!", "1 2 d"),
];

static DECODER: Table = Table::new(&[group(TOP, ENDS), group(BLOCKS, BLOCK)]);

const HOMES: &[Home] = &[
    kohya("lora_unet_decoder", Naming::Native),
    kohya("lora_unet", Naming::Native),
    diffusers("transformer"),
    comfy("diffusion_model.decoder", Naming::Comfy),
    comfy("diffusion_model", Naming::Comfy),
    checkpoint("model.diffusion_model.decoder", Naming::Native),
    checkpoint("decoder", Naming::Native),
];

/// ACE-Step.
pub(super) static ACE_STEP: Family = Family {
    name: "ace_step",
    about: "ACE-Step 1.5",
    variants: &[
        Variant {
            name: "ACE-Step 1.5",
            extents: &[("d", 2048), ("q", 2048), ("k", 1024), ("f", 6144), ("n", 24), ("e", 2048)],
        },
        Variant {
            name: "ACE-Step 1.5 XL",
            extents: &[("d", 2560), ("q", 4096), ("k", 1024), ("f", 9728), ("n", 32), ("e", 2048)],
        },
    ],
    parts: &[Part::new(Role::Denoiser, &DECODER, HOMES)],
};

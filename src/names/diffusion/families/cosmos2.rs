//! Cosmos-Predict2.
//!
//! Sources: nvidia-cosmos/cosmos-predict2:cosmos_predict2/networks/minimal_v4_dit.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_cosmos.py (right), and for the way between the
//! two src/diffusers/loaders/single_file_utils.py. `d` is the width, `n` the number of blocks, `x` the channels of a
//! patch.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Home, Naming, Part, Role, checkpoint, comfy, diffusers, kohya};
use super::super::table::{Group, Place, Row, TOP, Table, blocks, group, row};

const BLOCKS: &[Place] = &[blocks("blocks.#", "transformer_blocks.#", &[Count("n")])];

const BLOCK: &[Row] = &[
    row("self_attn.q_proj", "attn1.to_q", "d d"),
    row("self_attn.k_proj", "attn1.to_k", "d d"),
    row("self_attn.v_proj", "attn1.to_v", "d d"),
    row("self_attn.output_proj", "attn1.to_out.0", "d d"),
    row("self_attn.q_norm", "attn1.norm_q", "128"),
    row("self_attn.k_norm", "attn1.norm_k", "128"),
    row("cross_attn.q_proj", "attn2.to_q", "d d"),
    row("cross_attn.k_proj", "attn2.to_k", "d 1024"),
    row("cross_attn.v_proj", "attn2.to_v", "d 1024"),
    row("cross_attn.output_proj", "attn2.to_out.0", "d d"),
    row("cross_attn.q_norm", "attn2.norm_q", "128"),
    row("cross_attn.k_norm", "attn2.norm_k", "128"),
    row("mlp.layer1", "ff.net.0.proj", "4d d"),
    row("mlp.layer2", "ff.net.2", "d 4d"),
    row("adaln_modulation_self_attn.1", "norm1.linear_1", "256 d"),
    row("adaln_modulation_self_attn.2", "norm1.linear_2", "3d 256"),
    row("adaln_modulation_cross_attn.1", "norm2.linear_1", "256 d"),
    row("adaln_modulation_cross_attn.2", "norm2.linear_2", "3d 256"),
    row("adaln_modulation_mlp.1", "norm3.linear_1", "256 d"),
    row("adaln_modulation_mlp.2", "norm3.linear_2", "3d 256"),
];

const ENDS: &[Row] = &[
    row("x_embedder.proj.1", "patch_embed.proj", "d x"),
    row("t_embedder.1.linear_1", "time_embed.t_embedder.linear_1", "d d"),
    row("t_embedder.1.linear_2", "time_embed.t_embedder.linear_2", "3d d"),
    row("t_embedding_norm", "time_embed.norm", "d"),
    row("final_layer.adaln_modulation.1", "norm_out.linear_1", "256 d"),
    row("final_layer.adaln_modulation.2", "norm_out.linear_2", "2d 256"),
    row("final_layer.linear", "proj_out", "64 d"),
];

const GROUPS: &[Group] = &[group(TOP, ENDS), group(BLOCKS, BLOCK)];

/// The table of the transformer.
pub(super) static TRANSFORMER: Table = Table::new(GROUPS);

/// Where it is kept.
pub(super) const HOMES: &[Home] = &[
    kohya("lora_unet", Naming::Native),
    diffusers("transformer"),
    comfy("diffusion_model", Naming::Native),
    checkpoint("net", Naming::Native),
    checkpoint("model.diffusion_model", Naming::Native),
];

/// Cosmos-Predict2.
pub(super) static COSMOS2: Family = Family {
    name: "cosmos2",
    about: "Cosmos-Predict2",
    variants: &[
        Variant { name: "Cosmos-Predict2 2B T2I", extents: &[("d", 2048), ("n", 28), ("x", 68)] },
        Variant { name: "Cosmos-Predict2 14B T2I", extents: &[("d", 5120), ("n", 36), ("x", 68)] },
        Variant { name: "Cosmos-Predict2 2B V2W", extents: &[("d", 2048), ("n", 28), ("x", 72)] },
        Variant { name: "Cosmos-Predict2 14B V2W", extents: &[("d", 5120), ("n", 36), ("x", 72)] },
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, HOMES)],
};

//! Anima: the transformer of Cosmos-Predict2 with a network between the text and it.
//!
//! Source: kohya-ss/sd-scripts:library/anima_models.py. In native names that network lies inside the transformer, as
//! `llm_adapter`; in diffusers it is a component of its own, `text_conditioner`, with the same names inside.

use super::super::encoders::llm;
use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, checkpoint, comfy, diffusers, kohya};
use super::super::table::{Place, Row, TOP, Table, blocks, group, same};
use super::cosmos2;

const BLOCKS: &[Place] = &[blocks("blocks.#", "blocks.#", &[Count("6")])];

const BLOCK: &[Row] = &[
    same("self_attn.q_proj", "1024 1024"),
    same("self_attn.k_proj", "1024 1024"),
    same("self_attn.v_proj", "1024 1024"),
    same("self_attn.o_proj", "1024 1024"),
    same("self_attn.q_norm", "64"),
    same("self_attn.k_norm", "64"),
    same("cross_attn.q_proj", "1024 1024"),
    same("cross_attn.k_proj", "1024 1024"),
    same("cross_attn.v_proj", "1024 1024"),
    same("cross_attn.o_proj", "1024 1024"),
    same("cross_attn.q_norm", "64"),
    same("cross_attn.k_norm", "64"),
    same("mlp.0", "4096 1024"),
    same("mlp.2", "1024 4096"),
    same("norm_self_attn", "1024"),
    same("norm_cross_attn", "1024"),
    same("norm_mlp", "1024"),
];

const ENDS: &[Row] = &[same("embed", "32128 1024").embedding(), same("out_proj", "1024 1024"), same("norm", "1024")];

static CONDITIONER: Table = Table::new(&[group(TOP, ENDS), group(BLOCKS, BLOCK)]);

const BETWEEN: Part = Part::new(
    Role::Conditioner,
    &CONDITIONER,
    &[
        kohya("lora_unet_llm_adapter", Naming::Native),
        diffusers("text_conditioner"),
        comfy("diffusion_model.llm_adapter", Naming::Native),
        checkpoint("net.llm_adapter", Naming::Native),
        checkpoint("model.diffusion_model.llm_adapter", Naming::Native),
    ],
);

const TEXT: Part = llm::part(
    llm::QWEN3_06B,
    &[
        kohya("lora_te", Naming::Diffusers),
        diffusers("text_encoder"),
        comfy("text_encoders.qwen3_06b.transformer", Naming::Diffusers),
    ],
);

/// Anima.
pub(super) static ANIMA: Family = Family {
    name: "anima",
    about: "Anima",
    variants: &[Variant { name: "Anima", extents: &[("d", 2048), ("n", 28), ("x", 68)] }],
    parts: &[Part::new(Role::Denoiser, &cosmos2::TRANSFORMER, cosmos2::HOMES), BETWEEN, TEXT],
};

//! HunyuanVideo, and FramePack, which is made of it.
//!
//! Sources: Tencent-Hunyuan/HunyuanVideo:hyvideo/modules/models.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_hunyuan_video.py (right);
//! comfyanonymous/ComfyUI:comfy/ldm/hunyuan_video/model.py and comfy/supported_models.py for the names ComfyUI has,
//! which are those of FLUX.1 where there is one; transformer_hunyuan_video_framepack.py of diffusers for FramePack. `d` is the width, `n` and `s` the numbers of double and single blocks,
//! `e` the width of the text; `p` is whether there are frames before and after.

use super::super::encoders::{clip_l, llm};
use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, checkpoint, comfy, diffusers, kohya};
use super::super::table::{Place, Row, TOP, Table, blocks, fused, group, row, same};
use super::{flux1, homes};

/// Attention of a double block, fused.
const DOUBLE_ATTENTION: &[Row] = &[
    fused("img_attn_qkv", &["attn.to_q", "attn.to_k", "attn.to_v"], "3d d"),
    fused("txt_attn_qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"], "3d d"),
];

/// The rest of a double block.
pub(super) const DOUBLE_REST: &[Row] = &[
    row("img_attn_proj", "attn.to_out.0", "d d"),
    row("txt_attn_proj", "attn.to_add_out", "d d"),
    row("img_attn_q_norm", "attn.norm_q", "128"),
    row("img_attn_k_norm", "attn.norm_k", "128"),
    row("txt_attn_q_norm", "attn.norm_added_q", "128"),
    row("txt_attn_k_norm", "attn.norm_added_k", "128"),
    row("img_mlp.fc1", "ff.net.0.proj", "4d d"),
    row("img_mlp.fc2", "ff.net.2", "d 4d"),
    row("txt_mlp.fc1", "ff_context.net.0.proj", "4d d"),
    row("txt_mlp.fc2", "ff_context.net.2", "d 4d"),
    row("img_mod.linear", "norm1.linear", "6d d"),
    row("txt_mod.linear", "norm1_context.linear", "6d d"),
];

const SINGLE: &[Row] = &[
    row("q_norm", "attn.norm_q", "128"),
    row("k_norm", "attn.norm_k", "128"),
    row("modulation.linear", "norm.linear", "3d d"),
];

/// Blocks that work on the text before it goes in.
pub(super) const REFINER: &[Place] = &[blocks(
    "txt_in.individual_token_refiner.blocks.#",
    "context_embedder.token_refiner.refiner_blocks.#",
    &[Count("2")],
)];

/// What is in one of them. Its modulation is in the same order on both sides.
pub(super) const REFINER_BLOCK: &[Row] = &[
    fused("self_attn_qkv", &["attn.to_q", "attn.to_k", "attn.to_v"], "3d d"),
    row("self_attn_proj", "attn.to_out.0", "d d"),
    row("mlp.fc1", "ff.net.0.proj", "4d d"),
    row("mlp.fc2", "ff.net.2", "d 4d"),
    row("adaLN_modulation.1", "norm_out.linear", "2d d"),
    same("norm1", "d"),
    same("norm2", "d"),
];

/// What goes into them.
pub(super) const REFINER_ENDS: &[Row] = &[
    row("txt_in.input_embedder", "context_embedder.proj_in", "d e"),
    row("txt_in.t_embedder.mlp.0", "context_embedder.time_text_embed.timestep_embedder.linear_1", "d 256"),
    row("txt_in.t_embedder.mlp.2", "context_embedder.time_text_embed.timestep_embedder.linear_2", "d d"),
    row("txt_in.c_embedder.linear_1", "context_embedder.time_text_embed.text_embedder.linear_1", "d e"),
    row("txt_in.c_embedder.linear_2", "context_embedder.time_text_embed.text_embedder.linear_2", "d d"),
];

const ENDS: &[Row] = &[
    row("img_in.proj", "x_embedder.proj", "d x 1 2 2"),
    row("time_in.mlp.0", "time_text_embed.timestep_embedder.linear_1", "d 256"),
    row("time_in.mlp.2", "time_text_embed.timestep_embedder.linear_2", "d d"),
    row("guidance_in.mlp.0", "time_text_embed.guidance_embedder.linear_1", "d 256"),
    row("guidance_in.mlp.2", "time_text_embed.guidance_embedder.linear_2", "d d"),
    row("vector_in.in_layer", "time_text_embed.text_embedder.linear_1", "d 768"),
    row("vector_in.out_layer", "time_text_embed.text_embedder.linear_2", "d d"),
    row("final_layer.linear", "proj_out", "64 d"),
];

const FRAMES: &[Row] = &[
    same("clean_x_embedder.proj", "d 16 1 2 2"),
    same("clean_x_embedder.proj_2x", "d 16 2 4 4"),
    same("clean_x_embedder.proj_4x", "d 16 4 8 8"),
    same("image_projection.up", "3d 1152"),
    same("image_projection.down", "d 3d"),
];

static TRANSFORMER: Table = Table::new(&[
    group(TOP, ENDS),
    group(TOP, FRAMES).when("p"),
    group(TOP, flux1::LAST_MODULATION),
    group(TOP, REFINER_ENDS),
    group(REFINER, REFINER_BLOCK),
    group(flux1::DOUBLE, DOUBLE_ATTENTION),
    group(flux1::DOUBLE, DOUBLE_REST),
    group(flux1::SINGLE, flux1::SINGLE_LINEAR),
    group(flux1::SINGLE, SINGLE),
]);

// ComfyUI on the left, native on the right.

/// Double blocks.
pub(super) const COMFY_DOUBLE: &[Place] = &[blocks("double_blocks.#", "double_blocks.#", &[Count("n")])];

/// Single blocks.
pub(super) const COMFY_SINGLE: &[Place] = &[blocks("single_blocks.#", "single_blocks.#", &[Count("s")])];

/// Attention of a double block that is fused on both sides.
pub(super) const COMFY_DOUBLE_ATTENTION: &[Row] =
    &[row("img_attn.qkv", "img_attn_qkv", "3d d"), row("txt_attn.qkv", "txt_attn_qkv", "3d d")];

/// See [`DOUBLE_REST`].
pub(super) const COMFY_DOUBLE_REST: &[Row] = &[
    row("img_attn.proj", "img_attn_proj", "d d"),
    row("txt_attn.proj", "txt_attn_proj", "d d"),
    row("img_attn.norm.query_norm", "img_attn_q_norm", "128"),
    row("img_attn.norm.key_norm", "img_attn_k_norm", "128"),
    row("txt_attn.norm.query_norm", "txt_attn_q_norm", "128"),
    row("txt_attn.norm.key_norm", "txt_attn_k_norm", "128"),
    row("img_mlp.0", "img_mlp.fc1", "4d d"),
    row("img_mlp.2", "img_mlp.fc2", "d 4d"),
    row("txt_mlp.0", "txt_mlp.fc1", "4d d"),
    row("txt_mlp.2", "txt_mlp.fc2", "d 4d"),
    row("img_mod.lin", "img_mod.linear", "6d d"),
    row("txt_mod.lin", "txt_mod.linear", "6d d"),
];

/// A single block.
pub(super) const COMFY_SINGLE_BLOCK: &[Row] = &[
    same("linear1", "7d d"),
    same("linear2", "d 5d"),
    row("norm.query_norm", "q_norm", "128"),
    row("norm.key_norm", "k_norm", "128"),
    row("modulation.lin", "modulation.linear", "3d d"),
];

/// See [`REFINER`].
pub(super) const COMFY_REFINER: &[Place] =
    &[blocks("txt_in.individual_token_refiner.blocks.#", "txt_in.individual_token_refiner.blocks.#", &[Count("2")])];

/// See [`REFINER_BLOCK`].
pub(super) const COMFY_REFINER_BLOCK: &[Row] = &[
    row("self_attn.qkv", "self_attn_qkv", "3d d"),
    row("self_attn.proj", "self_attn_proj", "d d"),
    row("mlp.0", "mlp.fc1", "4d d"),
    row("mlp.2", "mlp.fc2", "d 4d"),
    same("adaLN_modulation.1", "2d d"),
    same("norm1", "d"),
    same("norm2", "d"),
];

/// See [`REFINER_ENDS`], and what all models of this kin have last.
pub(super) const COMFY_REFINER_ENDS: &[Row] = &[
    same("txt_in.input_embedder", "d e"),
    row("txt_in.t_embedder.in_layer", "txt_in.t_embedder.mlp.0", "d 256"),
    row("txt_in.t_embedder.out_layer", "txt_in.t_embedder.mlp.2", "d d"),
    row("txt_in.c_embedder.in_layer", "txt_in.c_embedder.linear_1", "d e"),
    row("txt_in.c_embedder.out_layer", "txt_in.c_embedder.linear_2", "d d"),
    row("time_in.in_layer", "time_in.mlp.0", "d 256"),
    row("time_in.out_layer", "time_in.mlp.2", "d d"),
    same("final_layer.adaLN_modulation.1", "2d d"),
];

const COMFY_ENDS: &[Row] = &[
    same("img_in.proj", "d x 1 2 2"),
    row("guidance_in.in_layer", "guidance_in.mlp.0", "d 256"),
    row("guidance_in.out_layer", "guidance_in.mlp.2", "d d"),
    same("vector_in.in_layer", "d 768"),
    same("vector_in.out_layer", "d d"),
    same("final_layer.linear", "64 d"),
];

static COMFY: Table = Table::new(&[
    group(TOP, COMFY_ENDS),
    group(TOP, FRAMES).when("p"),
    group(TOP, COMFY_REFINER_ENDS),
    group(COMFY_REFINER, COMFY_REFINER_BLOCK),
    group(COMFY_DOUBLE, COMFY_DOUBLE_ATTENTION),
    group(COMFY_DOUBLE, COMFY_DOUBLE_REST),
    group(COMFY_SINGLE, COMFY_SINGLE_BLOCK),
]);

const TEXT: Part = llm::part(
    llm::LLAMA3_8B,
    &[
        diffusers("text_encoder"),
        comfy("text_encoders.llama.transformer", Naming::Diffusers),
        checkpoint("text_encoders.llama.transformer", Naming::Diffusers),
    ],
);

const TEXT_2: Part = clip_l::part(&[
    diffusers("text_encoder_2"),
    comfy("text_encoders.clip_l.transformer", Naming::Diffusers),
    checkpoint("text_encoders.clip_l.transformer", Naming::Diffusers),
]);

/// musubi's adapters for FramePack have the names of diffusers.
const DENOISER: Part = Part::new(
    Role::Denoiser,
    &TRANSFORMER,
    &[
        kohya("lora_unet", Naming::Native),
        kohya("lora_unet", Naming::Diffusers),
        kohya("lora_unet", Naming::Comfy),
        diffusers("transformer"),
        comfy("diffusion_model", Naming::Comfy),
        checkpoint("model.model", Naming::Comfy),
        checkpoint("model.diffusion_model", Naming::Comfy),
        checkpoint("", Naming::Native),
    ],
)
.with_comfy(&COMFY);

macro_rules! variant {
    ($name:literal, $x:literal, $p:literal) => {
        Variant { name: $name, extents: &[("d", 3072), ("n", 20), ("s", 40), ("e", 4096), ("x", $x), ("p", $p)] }
    };
}

/// HunyuanVideo.
pub(super) static HUNYUAN_VIDEO: Family = Family {
    name: "hunyuan_video",
    about: "HunyuanVideo",
    variants: &[variant!("HunyuanVideo", 16, 0), variant!("HunyuanVideo I2V", 33, 0), variant!("FramePack", 16, 1)],
    parts: &[DENOISER, TEXT, TEXT_2],
};

/// Places of the kin of HunyuanVideo; kohya's adapters may have gone through a converter to ComfyUI's names.
pub(super) const HOMES: &[super::super::part::Home] = &[
    kohya("lora_unet", Naming::Native),
    kohya("lora_unet", Naming::Comfy),
    homes::NATIVE[1],
    homes::NATIVE[2],
    checkpoint("model.diffusion_model", Naming::Comfy),
    checkpoint("", Naming::Native),
];

//! HiDream-O1: Qwen3-VL 8B with an entrance and an exit for pixels. It has one naming for everybody.
//!
//! Sources: kohya-ss/musubi-tuner:src/musubi_tuner/hidream_o1/qwen3_vl_transformers.py; ComfyUI has the same without the
//! first level, comfyanonymous/ComfyUI:comfy/ldm/hidream_o1/model.py. `d` is the width, `k` the rows of keys and values,
//! `f` the width of the feed-forward layer, `n` the number of blocks; `v`, `g` and `m` are width, feed-forward layer and
//! blocks of what sees. The heads of words (`lm_head`) and of the inner levels of sight (`visual.deepstack_merger_list`)
//! are not used.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Home, Naming, Part, Role, checkpoint, comfy, diffusers, kohya};
use super::super::table::{Place, Row, TOP, Table, blocks, group, same};

const LAYERS: &[Place] = &[blocks("language_model.layers.#", "language_model.layers.#", &[Count("n")])];
const SIGHT: &[Place] = &[blocks("visual.blocks.#", "visual.blocks.#", &[Count("m")])];

const LAYER: &[Row] = &[
    same("self_attn.q_proj", "d d"),
    same("self_attn.k_proj", "k d"),
    same("self_attn.v_proj", "k d"),
    same("self_attn.o_proj", "d d"),
    same("self_attn.q_norm", "128"),
    same("self_attn.k_norm", "128"),
    same("mlp.gate_proj", "f d"),
    same("mlp.up_proj", "f d"),
    same("mlp.down_proj", "d f"),
    same("input_layernorm", "d"),
    same("post_attention_layernorm", "d"),
];

const SIGHT_BLOCK: &[Row] = &[
    same("attn.qkv", "3v v"),
    same("attn.proj", "v v"),
    same("mlp.linear_fc1", "g v"),
    same("mlp.linear_fc2", "v g"),
    same("norm1", "v"),
    same("norm2", "v"),
];

const ENDS: &[Row] = &[
    same("language_model.embed_tokens", "151936 d").embedding(),
    same("language_model.norm", "d"),
    same("visual.patch_embed.proj", "v 3 2 16 16"),
    same("visual.pos_embed", "2304 v").embedding(),
    same("visual.merger.norm", "v"),
    same("visual.merger.linear_fc1", "4v 4v"),
    same("visual.merger.linear_fc2", "d 4v"),
    same("t_embedder1.mlp.0", "d 256"),
    same("t_embedder1.mlp.2", "d d"),
    same("x_embedder.proj1", "k 3072"),
    same("x_embedder.proj2", "d k"),
    same("final_layer2.linear", "3072 d"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(LAYERS, LAYER), group(SIGHT, SIGHT_BLOCK)]);

const HOMES: &[Home] = &[
    kohya("lora_unet_model", Naming::Native),
    kohya("lora_unet", Naming::Native),
    diffusers("transformer"),
    comfy("diffusion_model", Naming::Comfy),
    comfy("model", Naming::Comfy),
    checkpoint("model.diffusion_model", Naming::Native),
    checkpoint("model", Naming::Native),
    checkpoint("", Naming::Native),
];

/// HiDream-O1.
pub(super) static HIDREAM_O1: Family = Family {
    name: "hidream_o1",
    about: "HiDream-O1",
    variants: &[Variant {
        name: "HiDream-O1",
        extents: &[("d", 4096), ("k", 1024), ("f", 12288), ("n", 36), ("v", 1152), ("g", 4304), ("m", 27)],
    }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, HOMES)],
};

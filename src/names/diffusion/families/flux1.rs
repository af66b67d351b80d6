//! FLUX.1, and models with its blocks and other entrances: LongCat-Image, for which ComfyUI has the same native names,
//! Bria 3 and Bria FIBO, whose adapters have the names of diffusers.
//!
//! Sources: black-forest-labs/flux:src/flux/model.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_flux.py (right), transformer_longcat_image.py,
//! transformer_bria.py and transformer_bria_fibo.py, and for the way between the two
//! src/diffusers/loaders/single_file_utils.py. `d` is the width, `e` that of the text, `x` the channels of a patch, `n`
//! and `s` the numbers of double and single blocks; `g` is whether the guidance is an input, `v` whether the whole of the
//! text is one beside its words, `c` half of the width where FIBO gives each block a layer of its language model.

use super::super::encoders::{clip_l, t5};
use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, checkpoint, comfy, diffusers, kohya};
use super::super::table::{Place, Row, TOP, Table, blocks, fused, group, row, same};
use super::homes;

/// Blocks with a stream for the image and one for the text.
pub(super) const DOUBLE: &[Place] = &[blocks("double_blocks.#", "transformer_blocks.#", &[Count("n")])];

/// Blocks with one stream.
pub(super) const SINGLE: &[Place] = &[blocks("single_blocks.#", "single_transformer_blocks.#", &[Count("s")])];

/// Attention of a double block.
pub(super) const DOUBLE_ATTENTION: &[Row] = &[
    fused("img_attn.qkv", &["attn.to_q", "attn.to_k", "attn.to_v"], "3d d"),
    fused("txt_attn.qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"], "3d d"),
    row("img_attn.proj", "attn.to_out.0", "d d"),
    row("txt_attn.proj", "attn.to_add_out", "d d"),
    row("img_attn.norm.query_norm", "attn.norm_q", "128"),
    row("img_attn.norm.key_norm", "attn.norm_k", "128"),
    row("txt_attn.norm.query_norm", "attn.norm_added_q", "128"),
    row("txt_attn.norm.key_norm", "attn.norm_added_k", "128"),
];

/// Feed-forward layers of a double block.
pub(super) const DOUBLE_MLP: &[Row] = &[
    row("img_mlp.0", "ff.net.0.proj", "4d d"),
    row("img_mlp.2", "ff.net.2", "d 4d"),
    row("txt_mlp.0", "ff_context.net.0.proj", "4d d"),
    row("txt_mlp.2", "ff_context.net.2", "d 4d"),
];

const DOUBLE_MODULATION: &[Row] =
    &[row("img_mod.lin", "norm1.linear", "6d d"), row("txt_mod.lin", "norm1_context.linear", "6d d")];

/// Attention and feed-forward layer of a single block, side by side.
pub(super) const SINGLE_LINEAR: &[Row] = &[
    fused("linear1", &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"], "7d d").ratio(&[1, 1, 1, 4]),
    row("linear2", "proj_out", "d 5d"),
];

/// Norms of a single block.
pub(super) const SINGLE_NORMS: &[Row] =
    &[row("norm.query_norm", "attn.norm_q", "128"), row("norm.key_norm", "attn.norm_k", "128")];

const SINGLE_MODULATION: &[Row] = &[row("modulation.lin", "norm.linear", "3d d")];

/// What comes first and last.
pub(super) const ENDS: &[Row] = &[
    row("img_in", "x_embedder", "d x"),
    row("txt_in", "context_embedder", "d e"),
    row("final_layer.linear", "proj_out", "o d"),
];

/// The modulation of the last layer: shift and scale in the one, scale and shift in the other.
pub(super) const LAST_MODULATION: &[Row] =
    &[row("final_layer.adaLN_modulation.1", "norm_out.linear", "2d d").swapped()];

const TIME: &[Row] = &[
    row("time_in.in_layer", "time_embed.timestep_embedder.linear_1", "d 256"),
    row("time_in.out_layer", "time_embed.timestep_embedder.linear_2", "d d"),
];

const CAPTIONS: &[Row] = &[same("caption_projection.#.linear", "c 2048").numbered(&[Count("n+s")])];

const TIME_AND_TEXT: &[Row] = &[
    row("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1", "d 256"),
    row("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2", "d d"),
    row("vector_in.in_layer", "time_text_embed.text_embedder.linear_1", "d 768"),
    row("vector_in.out_layer", "time_text_embed.text_embedder.linear_2", "d d"),
];

const GUIDANCE: &[Row] = &[
    row("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1", "d 256"),
    row("guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2", "d d"),
];

static TRANSFORMER: Table = Table::new(&[
    group(TOP, ENDS),
    group(TOP, LAST_MODULATION),
    group(TOP, TIME).when("1-v"),
    group(TOP, TIME_AND_TEXT).when("v"),
    group(TOP, CAPTIONS).when("c"),
    group(TOP, GUIDANCE).when("g"),
    group(DOUBLE, DOUBLE_ATTENTION),
    group(DOUBLE, DOUBLE_MLP),
    group(DOUBLE, DOUBLE_MODULATION),
    group(SINGLE, SINGLE_LINEAR),
    group(SINGLE, SINGLE_NORMS),
    group(SINGLE, SINGLE_MODULATION),
]);

const TEXT: Part = clip_l::part(&[
    kohya("lora_te1", Naming::Diffusers),
    diffusers("text_encoder"),
    comfy("text_encoders.clip_l.transformer", Naming::Diffusers),
    checkpoint("text_encoders.clip_l.transformer", Naming::Diffusers),
]);

/// OneTrainer's old files have it after `lora_te2`.
const TEXT_2: Part = t5::part(&[
    kohya("lora_te3", Naming::Diffusers),
    kohya("lora_te2", Naming::Diffusers),
    diffusers("text_encoder_2"),
    comfy("text_encoders.t5xxl.transformer", Naming::Diffusers),
    checkpoint("text_encoders.t5xxl.transformer", Naming::Diffusers),
]);

macro_rules! variant {
    ($name:literal, $e:literal, $x:literal, $g:literal, $v:literal, $c:literal) => {
        Variant {
            name: $name,
            extents: &[
                ("d", 3072),
                ("n", 19),
                ("s", 38),
                ("e", $e),
                ("x", $x),
                ("o", 64),
                ("g", $g),
                ("v", $v),
                ("c", $c),
            ],
        }
    };
}

/// FLUX.1.
pub(super) static FLUX1: Family = Family {
    name: "flux1",
    about: "FLUX.1, LongCat-Image, Bria 3, Bria FIBO",
    variants: &[
        variant!("FLUX.1 dev", 4096, 64, 1, 1, 0),
        variant!("FLUX.1 schnell", 4096, 64, 0, 1, 0),
        variant!("FLUX.1 depth, canny", 4096, 128, 1, 1, 0),
        variant!("FLUX.1 fill", 4096, 384, 1, 1, 0),
        variant!("LongCat-Image", 3584, 64, 0, 0, 0),
        variant!("Bria 3", 4096, 64, 0, 0, 0),
        variant!("Bria FIBO", 4096, 64, 0, 0, 1536),
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE), TEXT, TEXT_2],
};

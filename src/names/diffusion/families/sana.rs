//! Sana, 1.5, Sprint and Video.
//!
//! Sources: NVlabs/Sana:diffusion/model/nets/sana_multi_scale.py, sana_multi_scale_video.py and sana_blocks.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/sana_transformer.py and transformer_sana_video.py (right), and
//! for the way between the two scripts/convert_sana_to_diffusers.py and convert_sana_video_to_diffusers.py. `d` is the
//! width, `f` that of the feed-forward layer behind its gate, `n` the number of blocks, `x` the channels of a latent, `p`
//! the side and `o` the channels of a patch; `q` is whether queries and keys have norms, `g` whether the guidance is an
//! input, `v` whether it is for video. The native unconditional caption `y_embedder.y_embedding` and the head
//! `logvar_linear` of Sprint's training are not in diffusers.

use super::super::encoders::llm;
use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, comfy, diffusers};
use super::super::table::{Place, Row, TOP, Table, blocks, fused, group, row, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("blocks.#", "transformer_blocks.#", &[Count("n")])];

const BLOCK: &[Row] = &[
    fused("attn.qkv", &["attn1.to_q", "attn1.to_k", "attn1.to_v"], "3d d"),
    row("attn.proj", "attn1.to_out.0", "d d"),
    row("cross_attn.q_linear", "attn2.to_q", "d d"),
    fused("cross_attn.kv_linear", &["attn2.to_k", "attn2.to_v"], "2d d"),
    row("cross_attn.proj", "attn2.to_out.0", "d d"),
    row("mlp.inverted_conv.conv", "ff.conv_inverted", "2f d 1 1"),
    row("mlp.depth_conv.conv", "ff.conv_depth", "2f 1 3 3"),
    row("mlp.point_conv.conv", "ff.conv_point", "d f 1 1"),
    same("scale_shift_table!", "6 d"),
];

const NORMS: &[Row] = &[
    row("attn.q_norm", "attn1.norm_q", "d"),
    row("attn.k_norm", "attn1.norm_k", "d"),
    row("cross_attn.q_norm", "attn2.norm_q", "d"),
    row("cross_attn.k_norm", "attn2.norm_k", "d"),
];

const OVER_TIME: &[Row] = &[row("mlp.t_conv", "ff.conv_temp", "d d 3 1")];

const ENDS: &[Row] = &[
    row("y_embedder.y_proj.fc1", "caption_projection.linear_1", "d 2304"),
    row("y_embedder.y_proj.fc2", "caption_projection.linear_2", "d d"),
    row("attention_y_norm", "caption_norm", "d"),
    row("t_block.1", "time_embed.linear", "6d d"),
    row("final_layer.linear", "proj_out", "o d"),
    row("final_layer.scale_shift_table!", "scale_shift_table!", "2 d"),
];

const IMAGE: &[Row] = &[row("x_embedder.proj", "patch_embed.proj", "d x p p")];
const VIDEO: &[Row] = &[row("x_embedder.proj", "patch_embedding", "d x 1 p p")];

const TIME: &[Row] = &[
    row("t_embedder.mlp.0", "time_embed.emb.timestep_embedder.linear_1", "d 256"),
    row("t_embedder.mlp.2", "time_embed.emb.timestep_embedder.linear_2", "d d"),
];

const TIME_AND_GUIDANCE: &[Row] = &[
    row("t_embedder.mlp.0", "time_embed.timestep_embedder.linear_1", "d 256"),
    row("t_embedder.mlp.2", "time_embed.timestep_embedder.linear_2", "d d"),
    row("cfg_embedder.mlp.0", "time_embed.guidance_embedder.linear_1", "d 256"),
    row("cfg_embedder.mlp.2", "time_embed.guidance_embedder.linear_2", "d d"),
];

static TRANSFORMER: Table = Table::new(&[
    group(TOP, ENDS),
    group(TOP, IMAGE).when("1-v"),
    group(TOP, VIDEO).when("v"),
    group(TOP, TIME).when("1-g"),
    group(TOP, TIME_AND_GUIDANCE).when("g"),
    group(BLOCKS, BLOCK),
    group(BLOCKS, NORMS).when("q"),
    group(BLOCKS, OVER_TIME).when("v"),
]);

const TEXT: Part = llm::part(
    llm::GEMMA2_2B,
    &[diffusers("text_encoder"), comfy("text_encoders.gemma2_2b.transformer", Naming::Diffusers)],
);

macro_rules! variant {
    ($name:literal, $d:literal, $f:literal, $n:literal, $x:literal, $p:literal, $o:literal, $q:literal, $g:literal,
     $v:literal) => {
        Variant {
            name: $name,
            extents: &[
                ("d", $d),
                ("f", $f),
                ("n", $n),
                ("x", $x),
                ("p", $p),
                ("o", $o),
                ("q", $q),
                ("g", $g),
                ("v", $v),
            ],
        }
    };
}

/// Sana.
pub(super) static SANA: Family = Family {
    name: "sana",
    about: "Sana, 1.5, Sprint and Video",
    variants: &[
        variant!("Sana 1.6B", 2240, 5600, 20, 32, 1, 32, 0, 0, 0),
        variant!("Sana 0.6B", 1152, 2880, 28, 32, 1, 32, 0, 0, 0),
        variant!("Sana 1.5 1.6B", 2240, 5600, 20, 32, 1, 32, 1, 0, 0),
        variant!("Sana 1.5 4.8B", 2240, 5600, 60, 32, 1, 32, 1, 0, 0),
        variant!("Sana Sprint 1.6B", 2240, 5600, 20, 32, 1, 32, 1, 1, 0),
        variant!("Sana Sprint 0.6B", 1152, 2880, 28, 32, 1, 32, 1, 1, 0),
        variant!("Sana Video 2B", 2240, 6720, 20, 16, 2, 64, 1, 0, 1),
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE), TEXT],
};

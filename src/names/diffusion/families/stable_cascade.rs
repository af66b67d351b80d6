//! Stable Cascade, its prior (stage C).
//!
//! Sources: comfyanonymous/ComfyUI:comfy/ldm/cascade/{common,stage_c}.py (left), after which adapters are named; in the
//! checkpoint of Stability-AI/StableCascade the three projections of `attention.attn` are one `in_proj`.
//! huggingface/diffusers:src/diffusers/models/unets/unet_stable_cascade.py (right), and for the way between the two
//! src/diffusers/loaders/single_file_utils.py. `d` is the width, `a` and `b` the numbers of blocks in the outer and the
//! inner level: by turns one of convolutions, one for the time, one of attention.

use super::super::encoders::open_clip;
use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Home, Naming, Part, Role, checkpoint, comfy, diffusers, kohya};
use super::super::table::{Place, Row, TOP, Table, at, blocks, group, row, same};

/// The levels, each with every third of its blocks.
macro_rules! levels {
    ($outer:literal, $inner:literal) => {
        &[
            blocks("down_blocks.0.#", "down_blocks.0.#", &[Count($outer)]),
            blocks("down_blocks.1.#", "down_blocks.1.#", &[Count($inner)]),
            blocks("up_blocks.0.#", "up_blocks.0.#", &[Count($inner)]),
            blocks("up_blocks.1.#", "up_blocks.1.#", &[Count($outer)]),
        ]
    };
}

const CONVOLUTIONS: &[Place] = levels!("0..a/3", "0..b/3");
const TIMES: &[Place] = levels!("1..a/3", "1..b/3");
const ATTENTIONS: &[Place] = levels!("2..a/3", "2..b/3");

/// All blocks of convolutions but the one that takes the outer level's way down beside its own input.
const NARROW: &[Place] =
    &[CONVOLUTIONS[0], CONVOLUTIONS[1], CONVOLUTIONS[2], blocks("up_blocks.1.#", "up_blocks.1.#", &[Count("3..a/3")])];
const WIDE: &[Place] = &[at("up_blocks.1.0", "up_blocks.1.0")];

const CONVOLUTION: &[Row] = &[
    same("depthwise", "d 1 3 3"),
    same("channelwise.2.gamma!", "1 1 1 4d"),
    same("channelwise.2.beta!", "1 1 1 4d"),
    same("channelwise.4", "d 4d"),
];
const FROM_ONE: &[Row] = &[same("channelwise.0", "4d d")];
const FROM_TWO: &[Row] = &[same("channelwise.0", "4d 2d")];

const TIME: &[Row] = &[same("mapper", "2d 64"), same("mapper_sca", "2d 64"), same("mapper_crp", "2d 64")];

const ATTENTION: &[Row] = &[
    row("attention.attn.to_q", "attention.to_q", "d d"),
    row("attention.attn.to_k", "attention.to_k", "d d"),
    row("attention.attn.to_v", "attention.to_v", "d d"),
    row("attention.attn.out_proj", "attention.to_out.0", "d d"),
    same("kv_mapper.1", "d d"),
];

const ENDS: &[Row] = &[
    same("clip_txt_mapper", "d 1280"),
    same("clip_txt_pooled_mapper", "4d 1280"),
    same("clip_img_mapper", "4d 768"),
    same("embedding.1", "d 16 1 1"),
    same("down_downscalers.1.1.blocks.0", "d d 1 1"),
    same("up_upscalers.0.1.blocks.1", "d d 1 1"),
    same("clf.1", "16 d 1 1"),
];

static PRIOR: Table = Table::new(&[
    group(TOP, ENDS),
    group(CONVOLUTIONS, CONVOLUTION),
    group(NARROW, FROM_ONE),
    group(WIDE, FROM_TWO),
    group(TIMES, TIME),
    group(ATTENTIONS, ATTENTION),
]);

const HOMES: &[Home] = &[
    kohya("lora_prior_unet", Naming::Native),
    kohya("lora_unet", Naming::Native),
    diffusers("prior"),
    comfy("diffusion_model", Naming::Comfy),
    checkpoint("model.diffusion_model", Naming::Native),
    checkpoint("", Naming::Native),
];

const TEXT: Part = open_clip::part(
    open_clip::VIT_BIG_G,
    &[
        kohya("lora_prior_te", Naming::Diffusers),
        diffusers("text_encoder"),
        comfy("text_encoders.clip_g.transformer", Naming::Diffusers),
        checkpoint("text_encoders.clip_g.transformer", Naming::Diffusers),
    ],
);

/// Stable Cascade.
pub(super) static STABLE_CASCADE: Family = Family {
    name: "stable_cascade",
    about: "Stable Cascade, stage C",
    variants: &[
        Variant { name: "Stable Cascade C", extents: &[("d", 2048), ("a", 24), ("b", 72)] },
        Variant { name: "Stable Cascade C lite", extents: &[("d", 1536), ("a", 12), ("b", 36)] },
    ],
    parts: &[Part::new(Role::Denoiser, &PRIOR, HOMES), TEXT],
};

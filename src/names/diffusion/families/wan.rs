//! Wan 2.1 and 2.2, with VACE and Animate, and models of its blocks: SkyReels V2, AnyFlow, ChronoEdit.
//!
//! Sources: Wan-Video/Wan2.1:wan/modules/model.py and vace_model.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_wan.py and transformer_wan_vace.py (right), and
//! for the way between the two src/diffusers/loaders/single_file_utils.py. `d` is the width, `f` that of the
//! feed-forward layer, `n` the number of blocks, `x` and `y` the channels in and out of a latent, `i` whether an image
//! is an input, `u` the number of blocks of VACE, `m` that of the adapters for a face; `s` is whether the rate of frames is
//! an input (SkyReels), `t` whether a step in time is and `l` whether far frames have patches of their own (AnyFlow). The
//! two experts of Wan 2.2 A14B have the same names.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, at, blocks, fused, group, row, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("blocks.#", "blocks.#", &[Count("n")])];
const ALL_BLOCKS: &[Place] =
    &[blocks("blocks.#", "blocks.#", &[Count("n")]), blocks("vace_blocks.#", "vace_blocks.#", &[Count("u")])];
const VACE_BLOCKS: &[Place] = &[blocks("vace_blocks.#", "vace_blocks.#", &[Count("u")])];
const FIRST_VACE_BLOCK: &[Place] = &[blocks("vace_blocks.#", "vace_blocks.#", &[Count("0..1")])];

const BLOCK: &[Row] = &[
    row("self_attn.q", "attn1.to_q", "d d"),
    row("self_attn.k", "attn1.to_k", "d d"),
    row("self_attn.v", "attn1.to_v", "d d"),
    row("self_attn.o", "attn1.to_out.0", "d d"),
    row("self_attn.norm_q", "attn1.norm_q", "d"),
    row("self_attn.norm_k", "attn1.norm_k", "d"),
    row("cross_attn.q", "attn2.to_q", "d d"),
    row("cross_attn.k", "attn2.to_k", "d d"),
    row("cross_attn.v", "attn2.to_v", "d d"),
    row("cross_attn.o", "attn2.to_out.0", "d d"),
    row("cross_attn.norm_q", "attn2.norm_q", "d"),
    row("cross_attn.norm_k", "attn2.norm_k", "d"),
    row("ffn.0", "ffn.net.0.proj", "f d"),
    row("ffn.2", "ffn.net.2", "d f"),
    row("norm3", "norm2", "d"),
    row("modulation!", "scale_shift_table!", "1 6 d"),
];

const IMAGE_ATTENTION: &[Row] = &[
    row("cross_attn.k_img", "attn2.add_k_proj", "d d"),
    row("cross_attn.v_img", "attn2.add_v_proj", "d d"),
    row("cross_attn.norm_k_img", "attn2.norm_added_k", "d"),
];

const IMAGE: &[Row] = &[
    row("img_emb.proj.0", "condition_embedder.image_embedder.norm1", "1280"),
    row("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj", "1280 1280"),
    row("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2", "d 1280"),
    row("img_emb.proj.4", "condition_embedder.image_embedder.norm2", "d"),
];

const FIRST_AND_LAST_IMAGE: &[Row] =
    &[row("img_emb.emb_pos!", "condition_embedder.image_embedder.pos_embed!", "1 514 1280")];

const ENDS: &[Row] = &[
    same("patch_embedding", "d x 1 2 2"),
    row("text_embedding.0", "condition_embedder.text_embedder.linear_1", "d 4096"),
    row("text_embedding.2", "condition_embedder.text_embedder.linear_2", "d d"),
    row("time_embedding.0", "condition_embedder.time_embedder.linear_1", "d 256"),
    row("time_embedding.2", "condition_embedder.time_embedder.linear_2", "d d"),
    row("time_projection.1", "condition_embedder.time_proj", "6d d"),
    row("head.head", "proj_out", "4y d"),
    row("head.modulation!", "scale_shift_table!", "1 2 d"),
];

/// SkyReels V2.
const RATE: &[Row] = &[
    same("fps_embedding", "2 d").embedding(),
    row("fps_projection.0", "fps_projection.net.0.proj", "d d"),
    row("fps_projection.2", "fps_projection.net.2", "6d d"),
];

/// AnyFlow.
const STEP: &[Row] = &[
    same("condition_embedder.delta_embedder.linear_1", "d 256"),
    same("condition_embedder.delta_embedder.linear_2", "d d"),
];
const FAR: &[Row] = &[same("far_patch_embedding", "d 16 1 4 4")];

const FACE_ADAPTERS: &[Place] = &[blocks("face_adapter.fuser_blocks.#", "face_adapter.#", &[Count("m")])];

const FACE_ADAPTER: &[Row] = &[
    row("linear1_q", "to_q", "d d"),
    fused("linear1_kv", &["to_k", "to_v"], "2d d"),
    row("linear2", "to_out", "d d"),
    row("q_norm", "norm_q", "128"),
    row("k_norm", "norm_k", "128"),
];

const FACE_ENCODER: &[Row] = &[
    same("pose_patch_embedding", "d 16 1 2 2"),
    row("face_encoder.conv1_local.conv", "face_encoder.conv1_local", "4096 512 3"),
    row("face_encoder.conv2.conv", "face_encoder.conv2", "1024 1024 3"),
    row("face_encoder.conv3.conv", "face_encoder.conv3", "1024 1024 3"),
    same("face_encoder.out_proj", "d 1024"),
    same("face_encoder.padding_tokens!", "1 1 1 d"),
    row("motion_encoder.enc.net_app.convs.0.0", "motion_encoder.conv_in", "32 3 1 1"),
    row("motion_encoder.enc.net_app.convs.8", "motion_encoder.conv_out", "512 512 4 4"),
    row("motion_encoder.enc.fc.#", "motion_encoder.motion_network.#", "512 512").numbered(&[Count("0..4")]),
    row("motion_encoder.enc.fc.4", "motion_encoder.motion_network.4", "20 512"),
    row("motion_encoder.dec.direction", "motion_encoder.motion_synthesis_weight!", "512 20"),
];

/// A block of the encoder of motion, with `a` channels going in and `b` coming out.
macro_rules! motion {
    ($left:literal, $right:literal, $a:literal, $b:literal) => {
        at(concat!("motion_encoder.enc.net_app.convs.", $left), concat!("motion_encoder.res_blocks.", $right))
            .sized(&[("a", $a), ("b", $b)])
    };
}

const MOTION: &[Place] = &[
    motion!("1", "0", 32, 64),
    motion!("2", "1", 64, 128),
    motion!("3", "2", 128, 256),
    motion!("4", "3", 256, 512),
    motion!("5", "4", 512, 512),
    motion!("6", "5", 512, 512),
    motion!("7", "6", 512, 512),
];

const MOTION_BLOCK: &[Row] =
    &[row("conv1.0", "conv1", "a a 3 3"), row("conv2.1", "conv2", "b a 3 3"), row("skip.1", "conv_skip", "b a 1 1")];

const VACE: &[Row] = &[row("after_proj", "proj_out", "d d")];
const FIRST_VACE: &[Row] = &[row("before_proj", "proj_in", "d d")];
const VACE_ENDS: &[Row] = &[same("vace_patch_embedding", "d 96 1 2 2")];

static TRANSFORMER: Table = Table::new(&[
    group(TOP, ENDS),
    group(ALL_BLOCKS, BLOCK),
    group(BLOCKS, IMAGE_ATTENTION).when("i"),
    group(TOP, IMAGE).when("i"),
    group(TOP, FIRST_AND_LAST_IMAGE).when("j"),
    group(TOP, VACE_ENDS).when("u"),
    group(VACE_BLOCKS, VACE).when("u"),
    group(FIRST_VACE_BLOCK, FIRST_VACE).when("u"),
    group(TOP, RATE).when("s"),
    group(TOP, STEP).when("t"),
    group(TOP, FAR).when("l"),
    group(FACE_ADAPTERS, FACE_ADAPTER).when("m"),
    group(TOP, FACE_ENCODER).when("m"),
    group(MOTION, MOTION_BLOCK).when("m"),
]);

macro_rules! variant {
    ($name:literal, $d:literal, $f:literal, $n:literal, $x:literal, $y:literal $(, $more:literal $value:literal)*) => {
        Variant {
            name: $name,
            extents: &[
                ("d", $d),
                ("f", $f),
                ("n", $n),
                ("x", $x),
                ("y", $y),
                // What is not said is not there; of two numbers for a letter the last one holds.
                ("i", 0),
                ("j", 0),
                ("u", 0),
                ("m", 0),
                ("s", 0),
                ("t", 0),
                ("l", 0),
                $(($more, $value)),*
            ],
        }
    };
}

/// Wan.
pub(super) static WAN: Family = Family {
    name: "wan",
    about: "Wan 2.1 and 2.2, SkyReels V2, AnyFlow",
    variants: &[
        variant!("Wan 14B T2V", 5120, 13824, 40, 16, 16),
        variant!("Wan 2.1 14B I2V", 5120, 13824, 40, 36, 16, "i" 1),
        variant!("Wan 2.1 14B FLF2V", 5120, 13824, 40, 36, 16, "i" 1, "j" 1),
        variant!("Wan 2.2 A14B I2V", 5120, 13824, 40, 36, 16),
        variant!("Wan 2.1 1.3B T2V", 1536, 8960, 30, 16, 16),
        variant!("Wan 2.2 5B TI2V", 3072, 14336, 30, 48, 48),
        variant!("Wan 2.1 14B VACE", 5120, 13824, 40, 16, 16, "u" 8),
        variant!("Wan 2.1 1.3B VACE", 1536, 8960, 30, 16, 16, "u" 15),
        variant!("Wan 2.2 14B Animate", 5120, 13824, 40, 36, 16, "i" 1, "m" 8),
        variant!("SkyReels V2 1.3B DF", 1536, 8960, 30, 16, 16, "s" 1),
        variant!("SkyReels V2 1.3B I2V", 1536, 8960, 30, 36, 16, "i" 1),
        variant!("AnyFlow 14B", 5120, 13824, 40, 16, 16, "t" 1),
        variant!("AnyFlow FAR 14B", 5120, 13824, 40, 16, 16, "t" 1, "l" 1),
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE)],
};

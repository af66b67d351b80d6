//! Wan 2.1 and 2.2, with VACE.
//!
//! Sources: Wan-Video/Wan2.1:wan/modules/model.py and vace_model.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_wan.py and transformer_wan_vace.py (right), and
//! for the way between the two src/diffusers/loaders/single_file_utils.py. `d` is the width, `f` that of the
//! feed-forward layer, `n` the number of blocks, `x` and `y` the channels in and out of a latent, `i` whether an image
//! is an input, `u` the number of blocks of VACE. The two experts of Wan 2.2 A14B have the same names.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, group, row, same};
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
]);

macro_rules! variant {
    ($name:literal, $d:literal, $f:literal, $n:literal, $x:literal, $y:literal, $i:literal, $j:literal, $u:literal) => {
        Variant {
            name: $name,
            extents: &[("d", $d), ("f", $f), ("n", $n), ("x", $x), ("y", $y), ("i", $i), ("j", $j), ("u", $u)],
        }
    };
}

/// Wan.
pub(super) static WAN: Family = Family {
    name: "wan",
    about: "Wan 2.1 and 2.2",
    variants: &[
        variant!("Wan 14B T2V", 5120, 13824, 40, 16, 16, 0, 0, 0),
        variant!("Wan 2.1 14B I2V", 5120, 13824, 40, 36, 16, 1, 0, 0),
        variant!("Wan 2.1 14B FLF2V", 5120, 13824, 40, 36, 16, 1, 1, 0),
        variant!("Wan 2.2 A14B I2V", 5120, 13824, 40, 36, 16, 0, 0, 0),
        variant!("Wan 2.1 1.3B T2V", 1536, 8960, 30, 16, 16, 0, 0, 0),
        variant!("Wan 2.2 5B TI2V", 3072, 14336, 30, 48, 48, 0, 0, 0),
        variant!("Wan 2.1 14B VACE", 5120, 13824, 40, 16, 16, 0, 0, 8),
        variant!("Wan 2.1 1.3B VACE", 1536, 8960, 30, 16, 16, 0, 0, 15),
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE)],
};

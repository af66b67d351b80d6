//! ACE-Step 1, the transformer that makes music. It has one naming for everybody.
//!
//! Source: ace-step/ACE-Step:acestep/models/ace_step_transformer.py. `d` is the width, `f` that of the feed-forward
//! layer behind its gate, `n` the number of blocks, `l` the
//! width of the lyrics and `m` the number of blocks that read them.

use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, blocks, group, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("transformer_blocks.#", "transformer_blocks.#", &[Count("n")])];
const LYRICS: &[Place] = &[blocks("lyric_encoder.encoders.#", "lyric_encoder.encoders.#", &[Count("m")])];

const BLOCK: &[Row] = &[
    same("attn.to_q", "d d"),
    same("attn.to_k", "d d"),
    same("attn.to_v", "d d"),
    same("attn.to_out.0", "d d"),
    same("cross_attn.to_q", "d d"),
    same("cross_attn.to_k", "d d"),
    same("cross_attn.to_v", "d d"),
    same("cross_attn.to_out.0", "d d"),
    same("cross_attn.add_q_proj", "d d"),
    same("cross_attn.add_k_proj", "d d"),
    same("cross_attn.add_v_proj", "d d"),
    same("cross_attn.to_add_out", "d d"),
    same("ff.inverted_conv.conv", "5d d 1"),
    same("ff.depth_conv.conv", "5d 1 3"),
    same("ff.point_conv.conv", "d f 1"),
    same("scale_shift_table!", "6 d"),
];

const LYRICS_BLOCK: &[Row] = &[
    same("self_attn.linear_q", "l l"),
    same("self_attn.linear_k", "l l"),
    same("self_attn.linear_v", "l l"),
    same("self_attn.linear_out", "l l"),
    same("self_attn.linear_pos", "l l"),
    same("self_attn.pos_bias_u!", "16 64"),
    same("self_attn.pos_bias_v!", "16 64"),
    same("feed_forward.w_1", "4l l"),
    same("feed_forward.w_2", "l 4l"),
    same("norm_mha", "l"),
    same("norm_ff", "l"),
];

const ENDS: &[Row] = &[
    same("proj_in.early_conv_layers.0", "2048 8 16 1"),
    same("proj_in.early_conv_layers.1", "2048"),
    same("proj_in.early_conv_layers.2", "d 2048 1 1"),
    same("timestep_embedder.linear_1", "d 256"),
    same("timestep_embedder.linear_2", "d d"),
    same("t_block.1", "6d d"),
    same("speaker_embedder", "d 512"),
    same("genre_embedder", "d 768"),
    same("lyric_embs", "6693 l").embedding(),
    same("lyric_encoder.embed.out.0", "l l"),
    same("lyric_encoder.embed.out.1", "l"),
    same("lyric_encoder.after_norm", "l"),
    same("lyric_proj", "d l"),
    same("projectors.#.0", "2d d").numbered(&[Count("2")]),
    same("projectors.#.2", "2d 2d").numbered(&[Count("2")]),
    same("projectors.0.4", "1024 2d"),
    same("projectors.1.4", "768 2d"),
    same("final_layer.linear", "128 d"),
    same("final_layer.scale_shift_table!", "2 d"),
];

static TRANSFORMER: Table = Table::new(&[group(TOP, ENDS), group(BLOCKS, BLOCK), group(LYRICS, LYRICS_BLOCK)]);

/// ACE-Step 1.
pub(super) static ACE_STEP1: Family = Family {
    name: "ace_step1",
    about: "ACE-Step 1",
    variants: &[Variant {
        name: "ACE-Step 1 3.5B",
        extents: &[("d", 2560), ("f", 6400), ("n", 24), ("l", 1024), ("m", 6)],
    }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::DIFFUSERS)],
};

//! LTX-2: video and audio.
//!
//! Sources: Lightricks/LTX-2:packages/ltx-core (left); huggingface/diffusers:src/diffusers/models/transformers/
//! transformer_ltx2.py (right), and for the way between the two src/diffusers/loaders/single_file_utils.py. `d` is the
//! width of the video, `a` that of the audio, `n` the number of blocks.

use super::super::extent::{Count, Extent};
use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Place, Row, TOP, Table, at, blocks, group, row, same};
use super::homes;

const BLOCKS: &[Place] = &[blocks("transformer_blocks.#", "transformer_blocks.#", &[Count("n")])];

/// Attentions of a block; `q`, `k` and `o` are the widths of what asks, of what is asked, and of what comes out, `i` is
/// the inner one.
const ATTENTIONS: &[Place] = &[
    blocks("transformer_blocks.#.attn1", "transformer_blocks.#.attn1", &[Count("n")]).sized(VIDEO),
    blocks("transformer_blocks.#.attn2", "transformer_blocks.#.attn2", &[Count("n")]).sized(VIDEO),
    blocks("transformer_blocks.#.audio_attn1", "transformer_blocks.#.audio_attn1", &[Count("n")]).sized(AUDIO),
    blocks("transformer_blocks.#.audio_attn2", "transformer_blocks.#.audio_attn2", &[Count("n")]).sized(AUDIO),
    blocks("transformer_blocks.#.audio_to_video_attn", "transformer_blocks.#.audio_to_video_attn", &[Count("n")])
        .sized(AUDIO_TO_VIDEO),
    blocks("transformer_blocks.#.video_to_audio_attn", "transformer_blocks.#.video_to_audio_attn", &[Count("n")])
        .sized(VIDEO_TO_AUDIO),
];

const VIDEO: &[Extent] = &[("q", 4096), ("k", 4096), ("i", 4096)];
const AUDIO: &[Extent] = &[("q", 2048), ("k", 2048), ("i", 2048)];
const AUDIO_TO_VIDEO: &[Extent] = &[("q", 4096), ("k", 2048), ("i", 2048)];
const VIDEO_TO_AUDIO: &[Extent] = &[("q", 2048), ("k", 4096), ("i", 2048)];

const ATTENTION: &[Row] = &[
    same("to_q", "i q"),
    same("to_k", "i k"),
    same("to_v", "i k"),
    same("to_out.0", "q i"),
    row("q_norm", "norm_q", "i"),
    row("k_norm", "norm_k", "i"),
];

const BLOCK: &[Row] = &[
    same("ff.net.0.proj", "4d d"),
    same("ff.net.2", "d 4d"),
    same("audio_ff.net.0.proj", "4a a"),
    same("audio_ff.net.2", "a 4a"),
    same("scale_shift_table!", "6 d"),
    same("audio_scale_shift_table!", "6 a"),
    row("scale_shift_table_a2v_ca_video!", "video_a2v_cross_attn_scale_shift_table!", "5 d"),
    row("scale_shift_table_a2v_ca_audio!", "audio_a2v_cross_attn_scale_shift_table!", "5 a"),
];

const ENDS: &[Row] = &[
    row("patchify_proj", "proj_in", "d 128"),
    row("audio_patchify_proj", "audio_proj_in", "a 128"),
    same("caption_projection.linear_1", "d 3840"),
    same("caption_projection.linear_2", "d d"),
    same("audio_caption_projection.linear_1", "a 3840"),
    same("audio_caption_projection.linear_2", "a a"),
    same("proj_out", "128 d"),
    same("audio_proj_out", "128 a"),
    same("scale_shift_table!", "2 d"),
    same("audio_scale_shift_table!", "2 a"),
];

/// Modulations; `c` is the width, `m` how many there are of it.
const MODULATIONS: &[Place] = &[
    at("adaln_single", "time_embed").sized(&[("c", 4096), ("m", 24576)]),
    at("audio_adaln_single", "audio_time_embed").sized(&[("c", 2048), ("m", 12288)]),
    at("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift").sized(&[("c", 4096), ("m", 16384)]),
    at("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift").sized(&[("c", 2048), ("m", 8192)]),
    at("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate").sized(&[("c", 4096), ("m", 4096)]),
    at("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate").sized(&[("c", 2048), ("m", 2048)]),
];

const MODULATION: &[Row] = &[
    same("emb.timestep_embedder.linear_1", "c 256"),
    same("emb.timestep_embedder.linear_2", "c c"),
    same("linear", "m c"),
];

static TRANSFORMER: Table =
    Table::new(&[group(TOP, ENDS), group(MODULATIONS, MODULATION), group(BLOCKS, BLOCK), group(ATTENTIONS, ATTENTION)]);

/// LTX-2.
pub(super) static LTX2: Family = Family {
    name: "ltx2",
    about: "LTX-2",
    variants: &[Variant { name: "LTX-2", extents: &[("d", 4096), ("a", 2048), ("n", 48)] }],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE)],
};

//! The U-Net of Stable Diffusion: the rows that SD1, SD2 and SDXL have in common. Which blocks there are is each
//! family's.
//!
//! Sources: CompVis/stable-diffusion:ldm/modules/diffusionmodules/openaimodel.py and
//! Stability-AI/generative-models:sgm/modules/diffusionmodules/openaimodel.py (left);
//! huggingface/diffusers:src/diffusers/models/unets/unet_2d_condition.py (right). In the places, `i` and `o` are the
//! channels that go in and come out, `c` those of attention; `e` is the width of the text, `t` that of the time
//! embedding.

use super::super::extent::Count;
use super::super::table::{Row, row, same};

/// A residual block.
pub(super) const RESNET: &[Row] = &[
    row("in_layers.0", "norm1", "i"),
    row("in_layers.2", "conv1", "o i 3 3"),
    row("emb_layers.1", "time_emb_proj", "o t"),
    row("out_layers.0", "norm2", "o"),
    row("out_layers.3", "conv2", "o o 3 3"),
];

/// What a residual block has where the channels change.
pub(super) const SHORTCUT: &[Row] = &[row("skip_connection", "conv_shortcut", "o i 1 1")];

/// What SDXL is told of the size of the picture; `l` is the width of that with the pooled text.
pub(super) const LABEL: &[Row] =
    &[row("label_emb.0.0", "add_embedding.linear_1", "t l"), row("label_emb.0.2", "add_embedding.linear_2", "t t")];

/// Around the transformer blocks of an attention, as convolutions.
pub(super) const CONV_PROJECTIONS: &[Row] =
    &[same("norm", "c"), same("proj_in", "c c 1 1"), same("proj_out", "c c 1 1")];

/// Around the transformer blocks of an attention, as linear layers.
pub(super) const LINEAR_PROJECTIONS: &[Row] = &[same("norm", "c"), same("proj_in", "c c"), same("proj_out", "c c")];

/// The transformer blocks of an attention; `b` is how many there are.
pub(super) const BLOCKS: &[Row] = &[
    inner("transformer_blocks.#.norm1", "c"),
    inner("transformer_blocks.#.attn1.to_q", "c c"),
    inner("transformer_blocks.#.attn1.to_k", "c c"),
    inner("transformer_blocks.#.attn1.to_v", "c c"),
    inner("transformer_blocks.#.attn1.to_out.0", "c c"),
    inner("transformer_blocks.#.norm2", "c"),
    inner("transformer_blocks.#.attn2.to_q", "c c"),
    inner("transformer_blocks.#.attn2.to_k", "c e"),
    inner("transformer_blocks.#.attn2.to_v", "c e"),
    inner("transformer_blocks.#.attn2.to_out.0", "c c"),
    inner("transformer_blocks.#.norm3", "c"),
    inner("transformer_blocks.#.ff.net.0.proj", "8c c"),
    inner("transformer_blocks.#.ff.net.2", "c 4c"),
];

const fn inner(name: &'static str, shape: &'static str) -> Row {
    same(name, shape).numbered(&[Count("b")])
}

/// Outside of all blocks; `m` is the width of the first level, `x` the channels of a latent.
pub(super) const ENDS: &[Row] = &[
    row("input_blocks.0.0", "conv_in", "m x 3 3"),
    row("time_embed.0", "time_embedding.linear_1", "t m"),
    row("time_embed.2", "time_embedding.linear_2", "t t"),
    row("out.0", "conv_norm_out", "m"),
    row("out.2", "conv_out", "4 m 3 3"),
];

/// The way down and the way up between levels.
pub(super) const DOWNSAMPLE: &[Row] = &[row("op", "conv", "c c 3 3")];
/// See [`DOWNSAMPLE`].
pub(super) const UPSAMPLE: &[Row] = &[same("conv", "c c 3 3")];

//! The text encoders of OpenCLIP, ViT-H and ViT-bigG: its own names in checkpoints (left), those of transformers in
//! adapters (right).
//!
//! Sources: mlfoundations/open_clip:src/open_clip/transformer.py, and
//! huggingface/diffusers:src/diffusers/loaders/single_file_utils.py for the way between the two.

use super::super::extent::{Count, Extent};
use super::super::part::{Home, Part, Role};
use super::super::table::{Row, TOP, Table, blocks, fused, group, row};

/// `w` width, `f` width of the feed-forward layer, `n` blocks. The last of the 24 blocks of ViT-H is in the checkpoints
/// and not in use.
pub(in super::super) const VIT_H: &[Extent] = &[("w", 1024), ("f", 4096), ("n", 23)];

/// See [`VIT_H`].
pub(in super::super) const VIT_BIG_G: &[Extent] = &[("w", 1280), ("f", 5120), ("n", 32)];

const BLOCK: &[Row] = &[
    fused("attn.in_proj_", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "3w w"),
    row("attn.out_proj", "self_attn.out_proj", "w w"),
    row("mlp.c_fc", "mlp.fc1", "f w"),
    row("mlp.c_proj", "mlp.fc2", "w f"),
    row("ln_1", "layer_norm1", "w"),
    row("ln_2", "layer_norm2", "w"),
];

const ENDS: &[Row] = &[
    row("token_embedding", "text_model.embeddings.token_embedding", "49408 w").embedding(),
    row("positional_embedding!", "text_model.embeddings.position_embedding", "77 w").embedding(),
    row("ln_final", "text_model.final_layer_norm", "w"),
    row("text_projection!", "text_projection", "w w").transposed(),
];

/// OpenCLIP on the left, transformers on the right.
static OPEN_CLIP: Table = Table::new(&[
    group(&[blocks("transformer.resblocks.#", "text_model.encoder.layers.#", &[Count("n")])], BLOCK),
    group(TOP, ENDS),
]);

/// The part of a family that keeps it here, of this size.
pub(in super::super) const fn part(size: &'static [Extent], homes: &'static [Home]) -> Part {
    Part::new(Role::OpenClip, &OPEN_CLIP, homes).optional("text_model").sized(size)
}

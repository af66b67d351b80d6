//! Spellings of old checkpoints of every kind.
//!
//! Source: huggingface/transformers:src/transformers/conversion_mapping.py (5.24).

use super::super::rewrite::{Set, rename};

/// The rule sets of this group.
pub(super) const SETS: &[Set] = &[Set::whole(
    &["legacy"],
    &[
        rename(r"LayerNorm\.gamma", "LayerNorm.weight"),
        rename(r"LayerNorm\.beta", "LayerNorm.bias"),
        rename(r"\.weight_g", ".parametrizations.weight.original0"),
        rename(r"\.weight_v", ".parametrizations.weight.original1"),
        rename(r"^model\.language_model\.model", "model.language_model"),
        rename(r"^language_model\.model\.model", "model.language_model"),
    ],
)];

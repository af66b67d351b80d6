//! Language models that encode the text: Llama, Qwen, Gemma. They have the names of transformers everywhere.
//!
//! Source: huggingface/transformers:src/transformers/models/{llama,qwen2,qwen3,gemma2}. The level `model` is missing in
//! the flat names of kohya-ss/sd-scripts.

use super::super::extent::{Count, Extent};
use super::super::part::{Home, Part, Role};
use super::super::table::{Row, TOP, Table, blocks, group, same};

/// `w` width, `q` rows of the queries, `k` of keys and values, `f` width of the feed-forward layer, `n` blocks, `v`
/// words; `a` size of a head where queries and keys have a norm, or zero; `g` whether the feed-forward layer has norms
/// on both sides. This is Gemma 2 2B.
pub(in super::super) const GEMMA2_2B: &[Extent] =
    &[("w", 2304), ("q", 2048), ("k", 1024), ("f", 9216), ("n", 26), ("v", 256_000), ("a", 0), ("g", 1)];
/// Qwen3 0.6B.
pub(in super::super) const QWEN3_06B: &[Extent] =
    &[("w", 1024), ("q", 2048), ("k", 1024), ("f", 3072), ("n", 28), ("v", 151_936), ("a", 128), ("g", 0)];
/// Qwen3 4B.
pub(in super::super) const QWEN3_4B: &[Extent] =
    &[("w", 2560), ("q", 4096), ("k", 1024), ("f", 9728), ("n", 36), ("v", 151_936), ("a", 128), ("g", 0)];
/// Qwen2.5-VL 3B.
pub(in super::super) const QWEN25_3B: &[Extent] =
    &[("w", 2048), ("q", 2048), ("k", 256), ("f", 11008), ("n", 36), ("v", 151_936), ("a", 0), ("g", 0)];
/// Qwen2.5-VL 7B.
pub(in super::super) const QWEN25_7B: &[Extent] =
    &[("w", 3584), ("q", 3584), ("k", 512), ("f", 18944), ("n", 28), ("v", 152_064), ("a", 0), ("g", 0)];
/// Llama 3 8B.
pub(in super::super) const LLAMA3_8B: &[Extent] =
    &[("w", 4096), ("q", 4096), ("k", 1024), ("f", 14336), ("n", 32), ("v", 128_320), ("a", 0), ("g", 0)];

const BLOCK: &[Row] = &[
    same("self_attn.q_proj", "q w"),
    same("self_attn.k_proj", "k w"),
    same("self_attn.v_proj", "k w"),
    same("self_attn.o_proj", "w q"),
    same("mlp.gate_proj", "f w"),
    same("mlp.up_proj", "f w"),
    same("mlp.down_proj", "w f"),
    same("input_layernorm", "w"),
    same("post_attention_layernorm", "w"),
];

const HEAD_NORMS: &[Row] = &[same("self_attn.q_norm", "a"), same("self_attn.k_norm", "a")];
const OUTER_NORMS: &[Row] = &[same("pre_feedforward_layernorm", "w"), same("post_feedforward_layernorm", "w")];
const ENDS: &[Row] = &[same("model.embed_tokens", "v w").embedding(), same("model.norm", "w")];

/// Both sides are the same.
static LLM: Table = Table::new(&[
    group(&[blocks("model.layers.#", "model.layers.#", &[Count("n")])], BLOCK),
    group(&[blocks("model.layers.#", "model.layers.#", &[Count("n")])], HEAD_NORMS).when("a"),
    group(&[blocks("model.layers.#", "model.layers.#", &[Count("n")])], OUTER_NORMS).when("g"),
    group(TOP, ENDS),
]);

/// The part of a family that keeps a model of this size here.
pub(in super::super) const fn part(size: &'static [Extent], homes: &'static [Home]) -> Part {
    Part::new(Role::Llm, &LLM, homes).optional("model").sized(size)
}

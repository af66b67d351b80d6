//! The architectures of llama.cpp whose adapters are read and written: names, paths, and what conversion does to weights.
//!
//! Source: ggml-org/llama.cpp, `gguf-py/gguf/tensor_mapping.py` for the names, `conversion/*.py` for the changes.

use super::change::{Change, Cut, Groups, Order, Part, neighbours};
use super::words::{
    self, HEADS, KEY_HEADS, LINEAR_KEY_HEADS, LINEAR_KEY_WIDTH, LINEAR_VALUE_HEADS, LINEAR_VALUE_ROWS, MAMBA_HEADS,
    MAMBA_ROWS, MAMBA_STATE_ROWS,
};
use crate::adapter::delta::low_rank::Facing;

/// An architecture of llama.cpp.
#[derive(Debug)]
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// Classes of transformers that become it.
    pub classes: &'static [&'static str],
    /// Names and paths. The first path of a name is the one it is read as.
    pub modules: &'static [&'static [Module]],
    /// What happens to the weights of modules whose paths end so.
    pub changes: &'static [(&'static str, Change)],
    /// Modules that cannot be adapted, by the end of their paths, and why.
    pub refused: &'static [(&'static str, &'static str)],
    /// Tensors that llama.cpp loads an adapter of and multiplies with past it (`ggml_mul_mat` and not `build_lora_mm` in
    /// `src/models/*.cpp`): their names behind the block's.
    pub idle: &'static [&'static str],
    /// Whether the linear layers of transformers' model are `Conv1D`, stored `[in, out]`.
    pub conv1d: bool,
    /// How its stacks of experts are stored.
    pub stacks: Stacks,
}

/// How a parameter with all experts of a layer is stored, and whether PEFT sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stacks {
    /// `[experts, out, in]`.
    OutIn,
    /// `[experts, in, out]`, and the module says so: `is_transposed`.
    InOut,
    /// `[experts, in, out]`, and the module does not say so.
    InOutUnsaid,
}

impl Stacks {
    /// Whether A faces the outputs of the experts (`get_param_delta` and what is before it in huggingface/peft,
    /// `tuners/lora/layer.py`, by version).
    pub fn turns(self, facing: Facing) -> Option<bool> {
        Some(match (self, facing) {
            (_, Facing::Unknown) => return None,
            (Stacks::OutIn, Facing::Input) | (Stacks::InOut, Facing::First | Facing::Input) => false,
            (Stacks::InOutUnsaid, Facing::First | Facing::FirstUnlessTransposed) => false,
            (Stacks::OutIn | Stacks::InOut | Stacks::InOutUnsaid, _) => true,
        })
    }
}

/// GGUF's names without `.weight`, those of several tensors with spaces between, and the path of the module.
pub type Module = (&'static str, &'static str);

const EMBEDDING: &[Module] = &[("token_embd", "model.embed_tokens")];
const ENDS: &[Module] = &[("token_embd", "model.embed_tokens"), ("output", "lm_head")];
const ATTENTION: &[Module] = &[
    ("blk.{}.attn_q", "model.layers.{}.self_attn.q_proj"),
    ("blk.{}.attn_k", "model.layers.{}.self_attn.k_proj"),
    ("blk.{}.attn_v", "model.layers.{}.self_attn.v_proj"),
    ("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
];
const GATED: &[Module] = &[
    ("blk.{}.ffn_gate", "model.layers.{}.mlp.gate_proj"),
    ("blk.{}.ffn_up", "model.layers.{}.mlp.up_proj"),
    ("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj"),
];
const UNGATED: &[Module] =
    &[("blk.{}.ffn_up", "model.layers.{}.mlp.up_proj"), ("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj")];
/// Gate and up in one tensor, there and here.
const FUSED: &[Module] =
    &[("blk.{}.ffn_up", "model.layers.{}.mlp.gate_up_proj"), ("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj")];
const STARCODER2: &[Module] =
    &[("blk.{}.ffn_up", "model.layers.{}.mlp.c_fc"), ("blk.{}.ffn_down", "model.layers.{}.mlp.c_proj")];
const PHI2: &[Module] = &[
    ("blk.{}.attn_output", "model.layers.{}.self_attn.dense"),
    ("blk.{}.ffn_up", "model.layers.{}.mlp.fc1"),
    ("blk.{}.ffn_down", "model.layers.{}.mlp.fc2"),
];
const PHI3: &[Module] = &[
    ("blk.{}.attn_qkv", "model.layers.{}.self_attn.qkv_proj"),
    ("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
];
const GPT2: &[Module] = &[
    ("token_embd", "transformer.wte"),
    ("position_embd", "transformer.wpe"),
    ("output", "lm_head"),
    ("blk.{}.attn_qkv", "transformer.h.{}.attn.c_attn"),
    ("blk.{}.attn_output", "transformer.h.{}.attn.c_proj"),
    ("blk.{}.ffn_up", "transformer.h.{}.mlp.c_fc"),
    ("blk.{}.ffn_down", "transformer.h.{}.mlp.c_proj"),
];
const QWEN: &[Module] = &[
    ("token_embd", "transformer.wte"),
    ("output", "lm_head"),
    ("blk.{}.attn_qkv", "transformer.h.{}.attn.c_attn"),
    ("blk.{}.attn_output", "transformer.h.{}.attn.c_proj"),
    ("blk.{}.ffn_gate", "transformer.h.{}.mlp.w2"),
    ("blk.{}.ffn_up", "transformer.h.{}.mlp.w1"),
    ("blk.{}.ffn_down", "transformer.h.{}.mlp.c_proj"),
];
const EXAONE: &[Module] = &[
    ("token_embd", "transformer.wte"),
    ("output", "lm_head"),
    ("blk.{}.attn_q", "transformer.h.{}.attn.attention.q_proj"),
    ("blk.{}.attn_k", "transformer.h.{}.attn.attention.k_proj"),
    ("blk.{}.attn_v", "transformer.h.{}.attn.attention.v_proj"),
    ("blk.{}.attn_output", "transformer.h.{}.attn.attention.out_proj"),
    ("blk.{}.ffn_gate", "transformer.h.{}.mlp.c_fc_0"),
    ("blk.{}.ffn_up", "transformer.h.{}.mlp.c_fc_1"),
    ("blk.{}.ffn_down", "transformer.h.{}.mlp.c_proj"),
];
const MPT: &[Module] = &[
    ("token_embd", "transformer.wte"),
    ("output", "lm_head"),
    ("blk.{}.attn_qkv", "transformer.blocks.{}.attn.Wqkv"),
    ("blk.{}.attn_output", "transformer.blocks.{}.attn.out_proj"),
    ("blk.{}.ffn_up", "transformer.blocks.{}.ffn.up_proj"),
    ("blk.{}.ffn_down", "transformer.blocks.{}.ffn.down_proj"),
];
/// Bloom and Falcon.
const BLOOM: &[Module] = &[
    ("token_embd", "transformer.word_embeddings"),
    ("output", "lm_head"),
    ("blk.{}.attn_qkv", "transformer.h.{}.self_attention.query_key_value"),
    ("blk.{}.attn_output", "transformer.h.{}.self_attention.dense"),
    ("blk.{}.ffn_up", "transformer.h.{}.mlp.dense_h_to_4h"),
    ("blk.{}.ffn_down", "transformer.h.{}.mlp.dense_4h_to_h"),
];
const GPT_NEOX: &[Module] = &[
    ("token_embd", "gpt_neox.embed_in"),
    ("output", "lm_head"),
    ("output", "embed_out"), // what transformers called it before 5
    ("blk.{}.attn_qkv", "gpt_neox.layers.{}.attention.query_key_value"),
    ("blk.{}.attn_output", "gpt_neox.layers.{}.attention.dense"),
    ("blk.{}.ffn_up", "gpt_neox.layers.{}.mlp.dense_h_to_4h"),
    ("blk.{}.ffn_down", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
];
const CHATGLM: &[Module] = &[
    ("token_embd", "transformer.embedding.word_embeddings"),
    ("output", "transformer.output_layer"),
    ("blk.{}.attn_qkv", "transformer.encoder.layers.{}.self_attention.query_key_value"),
    ("blk.{}.attn_output", "transformer.encoder.layers.{}.self_attention.dense"),
    ("blk.{}.ffn_up", "transformer.encoder.layers.{}.mlp.dense_h_to_4h"),
    ("blk.{}.ffn_down", "transformer.encoder.layers.{}.mlp.dense_4h_to_h"),
];
const INTERNLM2: &[Module] = &[
    ("token_embd", "model.tok_embeddings"),
    ("output", "output"),
    ("blk.{}.attn_q blk.{}.attn_k blk.{}.attn_v", "model.layers.{}.attention.wqkv"),
    ("blk.{}.attn_output", "model.layers.{}.attention.wo"),
    ("blk.{}.ffn_gate", "model.layers.{}.feed_forward.w1"),
    ("blk.{}.ffn_up", "model.layers.{}.feed_forward.w3"),
    ("blk.{}.ffn_down", "model.layers.{}.feed_forward.w2"),
];
const BAICHUAN: &[Module] = &[
    ("blk.{}.attn_q blk.{}.attn_k blk.{}.attn_v", "model.layers.{}.self_attn.W_pack"),
    ("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
];
/// Ernie 4.5 as its authors stored it first.
const ERNIE_FUSED: &[Module] = &[
    ("blk.{}.attn_q blk.{}.attn_k blk.{}.attn_v", "model.layers.{}.self_attn.qkv_proj"),
    ("blk.{}.ffn_gate blk.{}.ffn_up", "model.layers.{}.mlp.up_gate_proj"),
];
const LFM2: &[Module] = &[
    ("blk.{}.attn_q", "model.layers.{}.self_attn.q_proj"),
    ("blk.{}.attn_k", "model.layers.{}.self_attn.k_proj"),
    ("blk.{}.attn_v", "model.layers.{}.self_attn.v_proj"),
    ("blk.{}.attn_output", "model.layers.{}.self_attn.out_proj"),
    ("blk.{}.shortconv.in_proj", "model.layers.{}.conv.in_proj"),
    ("blk.{}.shortconv.out_proj", "model.layers.{}.conv.out_proj"),
    ("blk.{}.ffn_gate", "model.layers.{}.feed_forward.w1"),
    ("blk.{}.ffn_up", "model.layers.{}.feed_forward.w3"),
    ("blk.{}.ffn_down", "model.layers.{}.feed_forward.w2"),
];
const LFM2_EXPERTS: &[Module] = &[
    ("blk.{}.ffn_gate_inp", "model.layers.{}.feed_forward.gate"),
    ("blk.{}.ffn_gate_exps", "model.layers.{}.feed_forward.experts.{x}.w1"),
    ("blk.{}.ffn_up_exps", "model.layers.{}.feed_forward.experts.{x}.w3"),
    ("blk.{}.ffn_down_exps", "model.layers.{}.feed_forward.experts.{x}.w2"),
    ("blk.{}.ffn_gate_exps blk.{}.ffn_up_exps", "model.layers.{}.feed_forward.experts.gate_up_proj"),
    ("blk.{}.ffn_down_exps", "model.layers.{}.feed_forward.experts.down_proj"),
];
const MAMBA: &[Module] = &[
    ("token_embd", "backbone.embeddings"),
    ("output", "lm_head"),
    ("blk.{}.ssm_in", "backbone.layers.{}.mixer.in_proj"),
    ("blk.{}.ssm_x", "backbone.layers.{}.mixer.x_proj"),
    ("blk.{}.ssm_dt", "backbone.layers.{}.mixer.dt_proj"),
    ("blk.{}.ssm_out", "backbone.layers.{}.mixer.out_proj"),
];
const MAMBA_LAYERS: &[Module] = &[
    ("blk.{}.ssm_in", "model.layers.{}.mamba.in_proj"),
    ("blk.{}.ssm_x", "model.layers.{}.mamba.x_proj"),
    ("blk.{}.ssm_dt", "model.layers.{}.mamba.dt_proj"),
    ("blk.{}.ssm_out", "model.layers.{}.mamba.out_proj"),
];
const FORWARD: &[Module] = &[
    ("blk.{}.ffn_gate", "model.layers.{}.feed_forward.gate_proj"),
    ("blk.{}.ffn_up", "model.layers.{}.feed_forward.up_proj"),
    ("blk.{}.ffn_down", "model.layers.{}.feed_forward.down_proj"),
    ("blk.{}.ffn_gate_inp", "model.layers.{}.feed_forward.router"),
];
const JAMBA_EXPERTS: &[Module] = &[
    ("blk.{}.ffn_gate_exps", "model.layers.{}.feed_forward.experts.{x}.gate_proj"),
    ("blk.{}.ffn_up_exps", "model.layers.{}.feed_forward.experts.{x}.up_proj"),
    ("blk.{}.ffn_down_exps", "model.layers.{}.feed_forward.experts.{x}.down_proj"),
    ("blk.{}.ffn_gate_exps blk.{}.ffn_up_exps", "model.layers.{}.feed_forward.experts.gate_up_proj"),
    ("blk.{}.ffn_down_exps", "model.layers.{}.feed_forward.experts.down_proj"),
];
const LLAMA4: &[Module] = &[
    ("blk.{}.ffn_gate_exps blk.{}.ffn_up_exps", "model.layers.{}.feed_forward.experts.gate_up_proj"),
    ("blk.{}.ffn_down_exps", "model.layers.{}.feed_forward.experts.down_proj"),
    ("blk.{}.ffn_gate_shexp", "model.layers.{}.feed_forward.shared_expert.gate_proj"),
    ("blk.{}.ffn_up_shexp", "model.layers.{}.feed_forward.shared_expert.up_proj"),
    ("blk.{}.ffn_down_shexp", "model.layers.{}.feed_forward.shared_expert.down_proj"),
];
const AFMOE: &[Module] = &[
    ("blk.{}.attn_gate", "model.layers.{}.self_attn.gate_proj"),
    ("blk.{}.ffn_gate_inp", "model.layers.{}.mlp.router.gate"),
];
const HY_ROUTER: &[Module] = &[("blk.{}.ffn_gate_inp", "model.layers.{}.mlp.router.gate")];
const HY_SHARED: &[Module] = &[
    ("blk.{}.ffn_gate_shexp", "model.layers.{}.mlp.shared_mlp.gate_proj"),
    ("blk.{}.ffn_up_shexp", "model.layers.{}.mlp.shared_mlp.up_proj"),
    ("blk.{}.ffn_down_shexp", "model.layers.{}.mlp.shared_mlp.down_proj"),
];
const BAILING: &[Module] = &[
    ("token_embd", "model.word_embeddings"),
    ("output", "lm_head"),
    ("blk.{}.attn_q blk.{}.attn_k blk.{}.attn_v", "model.layers.{}.attention.query_key_value"),
    ("blk.{}.attn_output", "model.layers.{}.attention.dense"),
];
/// BERT and those like it, without their head.
const BERT: &[Module] = &[
    ("token_embd", "embeddings.word_embeddings"),
    ("blk.{}.attn_q", "encoder.layer.{}.attention.self.query"),
    ("blk.{}.attn_k", "encoder.layer.{}.attention.self.key"),
    ("blk.{}.attn_v", "encoder.layer.{}.attention.self.value"),
    ("blk.{}.attn_output", "encoder.layer.{}.attention.output.dense"),
    ("blk.{}.ffn_up", "encoder.layer.{}.intermediate.dense"),
    ("blk.{}.ffn_down", "encoder.layer.{}.output.dense"),
];
const DISTILBERT: &[Module] = &[
    ("token_embd", "embeddings.word_embeddings"),
    ("blk.{}.attn_q", "transformer.layer.{}.attention.q_lin"),
    ("blk.{}.attn_k", "transformer.layer.{}.attention.k_lin"),
    ("blk.{}.attn_v", "transformer.layer.{}.attention.v_lin"),
    ("blk.{}.attn_output", "transformer.layer.{}.attention.out_lin"),
    ("blk.{}.ffn_up", "transformer.layer.{}.ffn.lin1"),
    ("blk.{}.ffn_down", "transformer.layer.{}.ffn.lin2"),
];
const MODERN_BERT: &[Module] = &[
    ("token_embd", "embeddings.tok_embeddings"),
    ("blk.{}.attn_qkv", "layers.{}.attn.Wqkv"),
    ("blk.{}.attn_output", "layers.{}.attn.Wo"),
    ("blk.{}.ffn_up", "layers.{}.mlp.Wi"),
    ("blk.{}.ffn_down", "layers.{}.mlp.Wo"),
];
const ROUTER: &[Module] = &[("blk.{}.ffn_gate_inp", "model.layers.{}.mlp.gate")];
const EXPERTS: &[Module] = &[
    ("blk.{}.ffn_gate_exps", "model.layers.{}.mlp.experts.{x}.gate_proj"),
    ("blk.{}.ffn_up_exps", "model.layers.{}.mlp.experts.{x}.up_proj"),
    ("blk.{}.ffn_down_exps", "model.layers.{}.mlp.experts.{x}.down_proj"),
];
/// All experts of a layer in one parameter, as transformers has them since 5.
const STACKS: &[Module] = &[
    ("blk.{}.ffn_gate_exps blk.{}.ffn_up_exps", "model.layers.{}.mlp.experts.gate_up_proj"),
    ("blk.{}.ffn_down_exps", "model.layers.{}.mlp.experts.down_proj"),
];
/// The router where it is called so.
const MLP_ROUTER: &[Module] = &[("blk.{}.ffn_gate_inp", "model.layers.{}.mlp.router")];
const BLOCK_SPARSE: &[Module] = &[
    ("blk.{}.ffn_gate_inp", "model.layers.{}.block_sparse_moe.gate"),
    ("blk.{}.ffn_gate_exps", "model.layers.{}.block_sparse_moe.experts.{x}.w1"),
    ("blk.{}.ffn_up_exps", "model.layers.{}.block_sparse_moe.experts.{x}.w3"),
    ("blk.{}.ffn_down_exps", "model.layers.{}.block_sparse_moe.experts.{x}.w2"),
];
const GRANITE_MOE: &[Module] = &[
    ("blk.{}.ffn_gate_inp", "model.layers.{}.block_sparse_moe.router"),
    ("blk.{}.ffn_gate_inp", "model.layers.{}.block_sparse_moe.router.layer"),
    ("blk.{}.ffn_gate_exps blk.{}.ffn_up_exps", "model.layers.{}.block_sparse_moe.experts.gate_up_proj"),
    ("blk.{}.ffn_down_exps", "model.layers.{}.block_sparse_moe.experts.down_proj"),
    ("blk.{}.ffn_gate_exps blk.{}.ffn_up_exps", "model.layers.{}.block_sparse_moe.input_linear"),
    ("blk.{}.ffn_down_exps", "model.layers.{}.block_sparse_moe.output_linear"),
    ("blk.{}.ffn_gate_shexp blk.{}.ffn_up_shexp", "model.layers.{}.shared_mlp.input_linear"),
    ("blk.{}.ffn_down_shexp", "model.layers.{}.shared_mlp.output_linear"),
];
const GRANITE_DENSE: &[Module] = &[
    ("blk.{}.ffn_gate blk.{}.ffn_up", "model.layers.{}.shared_mlp.input_linear"),
    ("blk.{}.ffn_down", "model.layers.{}.shared_mlp.output_linear"),
];
const SHARED_EXPERT: &[Module] = &[
    ("blk.{}.ffn_gate_inp_shexp", "model.layers.{}.mlp.shared_expert_gate"),
    ("blk.{}.ffn_gate_shexp", "model.layers.{}.mlp.shared_expert.gate_proj"),
    ("blk.{}.ffn_up_shexp", "model.layers.{}.mlp.shared_expert.up_proj"),
    ("blk.{}.ffn_down_shexp", "model.layers.{}.mlp.shared_expert.down_proj"),
];
const SHARED_EXPERTS: &[Module] = &[
    ("blk.{}.ffn_gate_shexp", "model.layers.{}.mlp.shared_experts.gate_proj"),
    ("blk.{}.ffn_up_shexp", "model.layers.{}.mlp.shared_experts.up_proj"),
    ("blk.{}.ffn_down_shexp", "model.layers.{}.mlp.shared_experts.down_proj"),
];
const HUNYUAN_MOE: &[Module] = &[
    ("blk.{}.ffn_gate_inp", "model.layers.{}.mlp.gate.wg"),
    ("blk.{}.ffn_gate_shexp", "model.layers.{}.mlp.shared_mlp.gate_proj"),
    ("blk.{}.ffn_up_shexp", "model.layers.{}.mlp.shared_mlp.up_proj"),
    ("blk.{}.ffn_down_shexp", "model.layers.{}.mlp.shared_mlp.down_proj"),
];
/// Attention through a latent vector.
const LATENT: &[Module] = &[
    ("blk.{}.attn_q", "model.layers.{}.self_attn.q_proj"),
    ("blk.{}.attn_q_a", "model.layers.{}.self_attn.q_a_proj"),
    ("blk.{}.attn_q_b", "model.layers.{}.self_attn.q_b_proj"),
    ("blk.{}.attn_kv_a_mqa", "model.layers.{}.self_attn.kv_a_proj_with_mqa"),
    ("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
];
const KEY_VALUE_B: &[Module] = &[("blk.{}.attn_kv_b", "model.layers.{}.self_attn.kv_b_proj")];
const QWEN3_NEXT: &[Module] = &[
    ("blk.{}.attn_qkv blk.{}.attn_gate", "model.layers.{}.linear_attn.in_proj_qkvz"),
    ("blk.{}.ssm_ba", "model.layers.{}.linear_attn.in_proj_ba"),
    ("blk.{}.ssm_out", "model.layers.{}.linear_attn.out_proj"),
];
const QWEN3_5: &[Module] = &[
    ("blk.{}.attn_qkv", "model.layers.{}.linear_attn.in_proj_qkv"),
    ("blk.{}.attn_gate", "model.layers.{}.linear_attn.in_proj_z"),
    ("blk.{}.ssm_alpha", "model.layers.{}.linear_attn.in_proj_a"),
    ("blk.{}.ssm_beta", "model.layers.{}.linear_attn.in_proj_b"),
    ("blk.{}.ssm_out", "model.layers.{}.linear_attn.out_proj"),
];
const NEMOTRON_H: &[Module] = &[
    ("token_embd", "model.embeddings"),
    ("output", "lm_head"),
    ("blk.{}.attn_q", "model.layers.{}.mixer.q_proj"),
    ("blk.{}.attn_k", "model.layers.{}.mixer.k_proj"),
    ("blk.{}.attn_v", "model.layers.{}.mixer.v_proj"),
    ("blk.{}.attn_output", "model.layers.{}.mixer.o_proj"),
    ("blk.{}.ssm_in", "model.layers.{}.mixer.in_proj"),
    ("blk.{}.ssm_out", "model.layers.{}.mixer.out_proj"),
    ("blk.{}.ffn_up", "model.layers.{}.mixer.up_proj"),
    ("blk.{}.ffn_down", "model.layers.{}.mixer.down_proj"),
];
/// The same as their authors called it.
const NEMOTRON_H_OLD: &[Module] = &[
    ("token_embd", "backbone.embeddings"),
    ("blk.{}.attn_q", "backbone.layers.{}.mixer.q_proj"),
    ("blk.{}.attn_k", "backbone.layers.{}.mixer.k_proj"),
    ("blk.{}.attn_v", "backbone.layers.{}.mixer.v_proj"),
    ("blk.{}.attn_output", "backbone.layers.{}.mixer.o_proj"),
    ("blk.{}.ssm_in", "backbone.layers.{}.mixer.in_proj"),
    ("blk.{}.ssm_out", "backbone.layers.{}.mixer.out_proj"),
    ("blk.{}.ffn_up", "backbone.layers.{}.mixer.up_proj"),
    ("blk.{}.ffn_down", "backbone.layers.{}.mixer.down_proj"),
];
const NEMOTRON_H_EXPERTS: &[Module] = &[
    ("blk.{}.ffn_gate_inp", "backbone.layers.{}.mixer.gate"),
    ("blk.{}.ffn_up_exps", "backbone.layers.{}.mixer.experts.{x}.up_proj"),
    ("blk.{}.ffn_down_exps", "backbone.layers.{}.mixer.experts.{x}.down_proj"),
    ("blk.{}.ffn_up_shexp", "backbone.layers.{}.mixer.shared_experts.up_proj"),
    ("blk.{}.ffn_down_shexp", "backbone.layers.{}.mixer.shared_experts.down_proj"),
];
const GEMMA3N: &[Module] = &[
    ("per_layer_token_embd", "model.embed_tokens_per_layer"),
    ("per_layer_model_proj", "model.per_layer_model_projection"),
    ("blk.{}.altup_router", "model.layers.{}.altup.modality_router"),
    ("blk.{}.laurel_l", "model.layers.{}.laurel.linear_left"),
    ("blk.{}.laurel_r", "model.layers.{}.laurel.linear_right"),
    ("blk.{}.inp_gate", "model.layers.{}.per_layer_input_gate"),
    ("blk.{}.proj", "model.layers.{}.per_layer_projection"),
];

const DENSE: &[&[Module]] = &[ENDS, ATTENTION, GATED];
const MOE: &[&[Module]] = &[ENDS, ATTENTION, GATED, ROUTER, EXPERTS, STACKS];
/// A few dense layers, then experts with others beside them for all tokens.
const DEEPSEEK: &[&[Module]] = &[ENDS, LATENT, GATED, ROUTER, EXPERTS, STACKS, SHARED_EXPERTS];
const DOTS: &[&[Module]] = &[ENDS, ATTENTION, GATED, ROUTER, EXPERTS, STACKS, SHARED_EXPERTS];

const fn one(order: Order) -> Part {
    Part { to: 0, share: &[], order, times: &[] }
}

const fn piece(to: usize, share: &'static [&'static str]) -> Part {
    Part { to, share, order: Order::Same, times: &[] }
}

const fn ordered(to: usize, share: &'static [&'static str], order: Order) -> Part {
    Part { to, share, order, times: &[] }
}

const fn times(share: &'static [&'static str], times: &'static [&'static str]) -> Part {
    Part { to: 0, share, order: Order::Same, times }
}

const fn rows(groups: Groups, parts: &'static [Part]) -> Change {
    Change::Rows(Cut { groups, parts })
}

const QUERY: Part = one(Order::Neighbours(HEADS));
const KEY: Part = one(Order::Neighbours(KEY_HEADS));
const ROTATED: &[(&str, Change)] = &[("q_proj", neighbours(&[QUERY])), ("k_proj", neighbours(&[KEY]))];
/// Gate and up, in two tensors there: the first half of the rows is the gate.
const HALVES: Change = rows(Groups::One, &[piece(0, &[]), piece(1, &[])]);
/// Changes of every architecture.
pub const EVERYWHERE: &[(&str, Change)] = &[("experts.gate_up_proj", HALVES)];
const GRANITE: &[(&str, Change)] =
    &[("q_proj", neighbours(&[QUERY])), ("k_proj", neighbours(&[KEY])), ("input_linear", HALVES)];
/// Query, key and value of each head in turn, all in one tensor.
const BY_HEAD: &[(&str, Change)] =
    &[("query_key_value", rows(Groups::Of(HEADS), &[piece(0, &[]), piece(0, &[]), piece(0, &[])]))];
/// For each key, its queries, itself and its value.
const BY_KEY: &[(&str, Change)] = &[(
    "query_key_value",
    rows(Groups::Of(KEY_HEADS), &[piece(0, &[HEADS]), piece(0, &[KEY_HEADS]), piece(0, &[KEY_HEADS])]),
)];
const INTERNLM2_CHANGES: &[(&str, Change)] = &[(
    "wqkv",
    rows(
        Groups::Of(KEY_HEADS),
        &[
            ordered(0, &[HEADS], Order::Neighbours(HEADS)),
            ordered(1, &[KEY_HEADS], Order::Neighbours(KEY_HEADS)),
            piece(2, &[KEY_HEADS]),
        ],
    ),
)];
const BAICHUAN_CHANGES: &[(&str, Change)] = &[(
    "W_pack",
    rows(
        Groups::One,
        &[ordered(0, &[], Order::Neighbours(HEADS)), ordered(1, &[], Order::Neighbours(HEADS)), piece(2, &[])],
    ),
)];
const BAILING_CHANGES: &[(&str, Change)] = &[(
    "query_key_value",
    rows(
        Groups::One,
        &[
            ordered(0, &[HEADS], Order::Neighbours(HEADS)),
            ordered(1, &[KEY_HEADS], Order::Neighbours(KEY_HEADS)),
            piece(2, &[KEY_HEADS]),
        ],
    ),
)];
const ERNIE: &[(&str, Change)] = &[
    ("qkv_proj", rows(Groups::One, &[piece(0, &[HEADS]), piece(1, &[KEY_HEADS]), piece(2, &[KEY_HEADS])])),
    ("up_gate_proj", HALVES),
];
/// Gate and up row by row.
const GPT_OSS_CHANGES: &[(&str, Change)] =
    &[("experts.gate_up_proj", rows(Groups::Most, &[piece(0, &[]), piece(1, &[])]))];
const QWEN3_NEXT_CHANGES: &[(&str, Change)] = &[(
    "in_proj_qkvz",
    rows(
        Groups::Of(LINEAR_KEY_HEADS),
        &[
            piece(0, &[LINEAR_KEY_HEADS, LINEAR_KEY_WIDTH]),
            piece(0, &[LINEAR_KEY_HEADS, LINEAR_KEY_WIDTH]),
            piece(0, &[LINEAR_VALUE_ROWS]),
            piece(1, &[LINEAR_VALUE_ROWS]),
        ],
    ),
)];
const TURNS: Order = Order::Turns(LINEAR_KEY_HEADS, LINEAR_VALUE_HEADS);
const QWEN3_5_CHANGES: &[(&str, Change)] = &[
    (
        "linear_attn.in_proj_qkv",
        rows(
            Groups::One,
            &[
                piece(0, &[LINEAR_KEY_HEADS, LINEAR_KEY_WIDTH]),
                piece(0, &[LINEAR_KEY_HEADS, LINEAR_KEY_WIDTH]),
                ordered(0, &[LINEAR_VALUE_ROWS], TURNS),
            ],
        ),
    ),
    ("linear_attn.in_proj_z", rows(Groups::One, &[one(TURNS)])),
    ("linear_attn.in_proj_a", rows(Groups::One, &[one(TURNS)])),
    ("linear_attn.in_proj_b", rows(Groups::One, &[one(TURNS)])),
    ("linear_attn.out_proj", Change::Columns(Cut { groups: Groups::One, parts: &[one(TURNS)] })),
];
const FALCON_H1_CHANGES: &[(&str, Change)] = &[
    ("q_proj", rows(Groups::One, &[times(&[], &["attention_in_multiplier"])])),
    ("k_proj", rows(Groups::One, &[times(&[], &["key_multiplier", "attention_in_multiplier"])])),
    ("v_proj", rows(Groups::One, &[times(&[], &["attention_in_multiplier"])])),
    ("o_proj", rows(Groups::One, &[times(&[], &["attention_out_multiplier"])])),
    ("gate_proj", rows(Groups::One, &[times(&[], &["mlp_multipliers.0"])])),
    ("down_proj", rows(Groups::One, &[times(&[], &["mlp_multipliers.1"])])),
    ("out_proj", rows(Groups::One, &[times(&[], &["ssm_out_multiplier"])])),
    ("lm_head", rows(Groups::One, &[times(&[], &["lm_head_multiplier"])])),
    ("embed_tokens", rows(Groups::One, &[times(&[], &["embedding_multiplier"])])),
    (
        "in_proj",
        rows(
            Groups::One,
            &[
                times(&[MAMBA_ROWS], &["ssm_in_multiplier", "ssm_multipliers.0"]),
                times(&[MAMBA_ROWS], &["ssm_in_multiplier", "ssm_multipliers.1"]),
                times(&[MAMBA_STATE_ROWS], &["ssm_in_multiplier", "ssm_multipliers.2"]),
                times(&[MAMBA_STATE_ROWS], &["ssm_in_multiplier", "ssm_multipliers.3"]),
                times(&[MAMBA_HEADS], &["ssm_in_multiplier", "ssm_multipliers.4"]),
            ],
        ),
    ),
];
const LATENT_REFUSED: &[(&str, &str)] = &[(
    "kv_b_proj",
    "llama.cpp cuts its weight into attn_k_b and attn_v_b, and multiplies with those past all adapters",
)];

const fn plain(
    name: &'static str,
    classes: &'static [&'static str],
    modules: &'static [&'static [Module]],
) -> Architecture {
    changed(name, classes, modules, &[])
}

const fn changed(
    name: &'static str,
    classes: &'static [&'static str],
    modules: &'static [&'static [Module]],
    changes: &'static [(&'static str, Change)],
) -> Architecture {
    Architecture { name, classes, modules, changes, refused: &[], idle: &[], conv1d: false, stacks: Stacks::OutIn }
}

/// Classes in whose paths other words stand at the beginning than in the table: of the class, the table's and its own.
/// Models without a head have none; those of several kinds of input have a language model beside others.
pub const BEGINNINGS: &[(&str, &str, &str)] = &[
    ("LlamaModel", "model.", ""),
    ("Qwen2Model", "model.", ""),
    ("Qwen3Model", "model.", ""),
    ("Gemma3TextModel", "model.", ""),
    ("EuroBertModel", "model.", ""),
    ("BloomModel", "transformer.", ""),
    ("GPT2Model", "transformer.", ""),
    ("Gemma3ForConditionalGeneration", "model.", LANGUAGE_MODEL),
    ("Gemma3nForConditionalGeneration", "model.", LANGUAGE_MODEL),
    ("Gemma4ForConditionalGeneration", "model.", LANGUAGE_MODEL),
    ("LlavaForConditionalGeneration", "model.", LANGUAGE_MODEL),
    ("Mistral3ForConditionalGeneration", "model.", LANGUAGE_MODEL),
    ("Qwen2AudioForConditionalGeneration", "model.", LANGUAGE_MODEL),
    ("Qwen2VLForConditionalGeneration", "model.", LANGUAGE_MODEL),
    ("Qwen2_5_VLForConditionalGeneration", "model.", LANGUAGE_MODEL),
    ("Qwen3VLForConditionalGeneration", "model.", LANGUAGE_MODEL),
    ("Qwen3VLMoeForConditionalGeneration", "model.", LANGUAGE_MODEL),
    ("Qwen3_5ForConditionalGeneration", "model.", LANGUAGE_MODEL),
    ("Qwen3_5MoeForConditionalGeneration", "model.", LANGUAGE_MODEL),
    ("Llama4ForConditionalGeneration", "model.", "language_model.model."),
    ("Llama4ForConditionalGeneration", "lm_head", "language_model.lm_head"),
];
const LANGUAGE_MODEL: &str = "model.language_model.";

/// All that are known.
pub const ARCHITECTURES: &[Architecture] = &[
    changed(
        "llama",
        &[
            "LlamaForCausalLM",
            "LLaMAForCausalLM",
            "LlamaModel",
            "MistralForCausalLM",
            "MixtralForCausalLM",
            "InternLM3ForCausalLM",
            "LlavaForConditionalGeneration",
            "IQuestCoderForCausalLM",
        ],
        &[ENDS, ATTENTION, GATED, BLOCK_SPARSE, ROUTER, EXPERTS, STACKS],
        ROTATED,
    ),
    changed("mistral3", &["Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"], DENSE, ROTATED),
    changed("granite", &["GraniteForCausalLM"], DENSE, ROTATED),
    changed("granite", &[words::GRANITE_DENSE], &[ENDS, ATTENTION, GRANITE_DENSE], GRANITE),
    changed(
        "granitemoe",
        &["GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"],
        &[ENDS, ATTENTION, GRANITE_MOE],
        GRANITE,
    ),
    changed(
        "granitehybrid",
        &["GraniteMoeHybridForCausalLM", "BambaForCausalLM"],
        &[ENDS, ATTENTION, MAMBA_LAYERS, GRANITE_MOE, FORWARD],
        GRANITE,
    ),
    changed("smollm3", &["SmolLM3ForCausalLM"], DENSE, ROTATED),
    changed("arcee", &["ArceeForCausalLM"], &[ENDS, ATTENTION, UNGATED], ROTATED),
    changed("olmo", &["OlmoForCausalLM", "OLMoForCausalLM"], DENSE, ROTATED),
    changed("minicpm", &["MiniCPMForCausalLM"], DENSE, ROTATED),
    changed("xverse", &["XverseForCausalLM"], DENSE, ROTATED),
    changed("deepseek", &["DeepseekForCausalLM"], &[ENDS, ATTENTION, GATED, ROUTER, EXPERTS, SHARED_EXPERTS], ROTATED),
    changed("internlm2", &["InternLM2ForCausalLM"], &[INTERNLM2], INTERNLM2_CHANGES),
    changed("baichuan", &["BaichuanForCausalLM", "BaiChuanForCausalLM"], &[ENDS, BAICHUAN, GATED], BAICHUAN_CHANGES),
    plain("olmo2", &["Olmo2ForCausalLM", "Olmo3ForCausalLM"], DENSE),
    plain("olmoe", &["OlmoeForCausalLM"], MOE),
    plain("qwen", &["QWenLMHeadModel"], &[QWEN]),
    plain("qwen2", &["Qwen2ForCausalLM", "Qwen2Model", "Qwen2AudioForConditionalGeneration"], DENSE),
    plain("qwen2moe", &["Qwen2MoeForCausalLM"], &[ENDS, ATTENTION, GATED, ROUTER, EXPERTS, STACKS, SHARED_EXPERT]),
    plain("qwen2vl", &["Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"], DENSE),
    plain("qwen3", &["Qwen3ForCausalLM", "Qwen3Model"], DENSE),
    plain("qwen3moe", &["Qwen3MoeForCausalLM"], MOE),
    plain("qwen3vl", &["Qwen3VLForConditionalGeneration"], DENSE),
    plain("qwen3vlmoe", &["Qwen3VLMoeForConditionalGeneration"], MOE),
    changed(
        "qwen3next",
        &["Qwen3NextForCausalLM"],
        &[ENDS, ATTENTION, QWEN3_NEXT, GATED, ROUTER, EXPERTS, STACKS, SHARED_EXPERT],
        QWEN3_NEXT_CHANGES,
    ),
    changed(
        "qwen35",
        &["Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"],
        &[ENDS, ATTENTION, QWEN3_5, GATED],
        QWEN3_5_CHANGES,
    ),
    changed(
        "qwen35moe",
        &["Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"],
        &[ENDS, ATTENTION, QWEN3_5, ROUTER, EXPERTS, STACKS, SHARED_EXPERT],
        QWEN3_5_CHANGES,
    ),
    plain("gemma", &["GemmaForCausalLM"], DENSE),
    plain("gemma2", &["Gemma2ForCausalLM"], DENSE),
    plain("gemma3", &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"], DENSE),
    Architecture {
        idle: &["altup_router", "per_layer_token_embd"],
        ..plain(
            "gemma3n",
            &["Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"],
            &[ENDS, ATTENTION, GATED, GEMMA3N],
        )
    },
    plain("phi2", &["PhiForCausalLM"], &[ENDS, PHI2, ATTENTION]),
    plain("phi3", &["Phi3ForCausalLM"], &[ENDS, PHI3, FUSED]),
    plain(
        "phimoe",
        &["PhiMoEForCausalLM", "PhimoeForCausalLM"],
        &[ENDS, ATTENTION, BLOCK_SPARSE, MLP_ROUTER, EXPERTS, STACKS],
    ),
    plain("starcoder", &["GPTBigCodeForCausalLM"], &[GPT2]),
    plain("starcoder2", &["Starcoder2ForCausalLM"], &[ENDS, ATTENTION, STARCODER2]),
    changed("bloom", &["BloomForCausalLM", "BloomModel"], &[BLOOM], BY_HEAD),
    changed("gptneox", &["GPTNeoXForCausalLM"], &[GPT_NEOX], BY_HEAD),
    changed("falcon", &["FalconForCausalLM", "RWForCausalLM"], &[BLOOM], BY_KEY),
    plain("mpt", &["MPTForCausalLM", "MptForCausalLM"], &[MPT]),
    plain("command-r", &["CohereForCausalLM"], DENSE),
    plain("cohere2", &["Cohere2ForCausalLM"], DENSE),
    plain("stablelm", &["StableLmForCausalLM", "StableLMEpochForCausalLM"], DENSE),
    plain("nemotron", &["NemotronForCausalLM"], &[ENDS, ATTENTION, UNGATED]),
    plain("apertus", &["ApertusForCausalLM"], &[ENDS, ATTENTION, UNGATED]),
    plain("jais2", &["Jais2ForCausalLM"], &[ENDS, ATTENTION, UNGATED]),
    plain("seed_oss", &["SeedOssForCausalLM"], DENSE),
    plain("exaone", &["ExaoneForCausalLM"], &[EXAONE]),
    plain("exaone4", &["Exaone4ForCausalLM"], DENSE),
    plain("orion", &["OrionForCausalLM"], DENSE),
    plain("dream", &["DreamModel"], DENSE),
    plain("chatglm", &["GlmForCausalLM"], &[ENDS, ATTENTION, FUSED]),
    plain("chatglm", &["ChatGLMModel", "ChatGLMForConditionalGeneration"], &[CHATGLM]),
    plain("glm4", &["Glm4ForCausalLM"], &[ENDS, ATTENTION, FUSED]),
    plain("glm4moe", &["Glm4MoeForCausalLM", "SolarOpenForCausalLM"], DOTS),
    plain("dots1", &["Dots1ForCausalLM"], DOTS),
    plain("ernie4_5-moe", &["Ernie4_5_MoeForCausalLM"], DOTS),
    changed(
        "ernie4_5",
        &["Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"],
        &[ENDS, ATTENTION, GATED, ERNIE_FUSED],
        ERNIE,
    ),
    Architecture {
        refused: LATENT_REFUSED,
        idle: &["attn_q", "attn_q_a", "attn_q_b", "attn_kv_a_mqa", "output"],
        ..plain(
            "deepseek2",
            &["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "YoutuForCausalLM", "Glm4MoeLiteForCausalLM"],
            DEEPSEEK,
        )
    },
    Architecture {
        idle: &["attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_kv_b"],
        ..plain("minicpm3", &["MiniCPM3ForCausalLM"], &[ENDS, LATENT, KEY_VALUE_B, GATED])
    },
    plain("exaone-moe", &["ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"], DOTS),
    plain("cohere2moe", &["Cohere2MoeForCausalLM"], DOTS),
    plain("mimo2", &["MiMoV2FlashForCausalLM"], DOTS),
    plain("mellum", &["MellumForCausalLM"], MOE),
    plain("afmoe", &["AfmoeForCausalLM"], &[ENDS, ATTENTION, GATED, AFMOE, EXPERTS, STACKS, SHARED_EXPERTS]),
    plain(
        "hy_v3",
        &["HYV3ForCausalLM"],
        &[ENDS, ATTENTION, GATED, ROUTER, HY_ROUTER, EXPERTS, STACKS, SHARED_EXPERTS, HY_SHARED],
    ),
    changed(
        "bailingmoe",
        &["BailingMoeForCausalLM"],
        &[BAILING, GATED, ROUTER, EXPERTS, SHARED_EXPERTS],
        BAILING_CHANGES,
    ),
    changed("nanbeige", &["NanbeigeForCausalLM"], DENSE, ROTATED),
    Architecture {
        idle: &["altup_router", "per_layer_token_embd"],
        ..plain("gemma4", &["Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"], &[ENDS, ATTENTION, GATED, GEMMA3N])
    },
    plain("gemma-embedding", &["Gemma3TextModel"], DENSE),
    plain("bert", &["BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel"], &[BERT]),
    plain("bert", &["DistilBertModel"], &[DISTILBERT]),
    plain("modern-bert", &["ModernBertModel"], &[MODERN_BERT]),
    plain("eurobert", &["EuroBertModel"], DENSE),
    plain("hunyuan-dense", &["HunYuanDenseV1ForCausalLM"], DENSE),
    plain("hunyuan-moe", &["HunYuanMoEV1ForCausalLM"], &[ENDS, ATTENTION, HUNYUAN_MOE, EXPERTS, STACKS]),
    plain("minimax-m2", &["MiniMaxM2ForCausalLM"], &[ENDS, ATTENTION, BLOCK_SPARSE, ROUTER, EXPERTS, STACKS]),
    plain("lfm2", &["Lfm2ForCausalLM", "LFM2ForCausalLM"], &[ENDS, LFM2]),
    plain("lfm2moe", &["Lfm2MoeForCausalLM"], &[EMBEDDING, LFM2, LFM2_EXPERTS]),
    plain("mamba", &["MambaForCausalLM", "MambaLMHeadModel", "FalconMambaForCausalLM"], &[MAMBA]),
    changed("falcon-h1", &["FalconH1ForCausalLM"], &[ENDS, ATTENTION, MAMBA_LAYERS, FORWARD], FALCON_H1_CHANGES),
    changed("nemotron_h", &["NemotronHForCausalLM"], &[NEMOTRON_H, NEMOTRON_H_OLD], ROTATED),
    changed("nemotron_h_moe", &[], &[NEMOTRON_H, NEMOTRON_H_OLD, NEMOTRON_H_EXPERTS], ROTATED),
    plain("mamba2", &["Mamba2ForCausalLM"], &[MAMBA]),
    plain("jamba", &["JambaForCausalLM"], &[ENDS, ATTENTION, MAMBA_LAYERS, FORWARD, JAMBA_EXPERTS]),
    Architecture {
        stacks: Stacks::InOut,
        ..changed("gpt-oss", &["GptOssForCausalLM"], &[ENDS, ATTENTION, MLP_ROUTER, STACKS], GPT_OSS_CHANGES)
    },
    Architecture {
        stacks: Stacks::InOutUnsaid,
        ..plain("llama4", &["Llama4ForConditionalGeneration", "Llama4ForCausalLM"], &[ENDS, ATTENTION, FORWARD, LLAMA4])
    },
    Architecture { conv1d: true, ..plain("gpt2", &["GPT2LMHeadModel", "GPT2Model"], &[GPT2]) },
];

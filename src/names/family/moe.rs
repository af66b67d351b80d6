//! Language models whose experts are one tensor in memory and many on disk.
//!
//! Source: huggingface/transformers:src/transformers/conversion_mapping.py (5.24).

use super::super::rewrite::{Set, opaque, rename, stack, stack_transposed};

/// The rule sets of this group.
pub(super) const SETS: &[Set] = &[
    Set::whole(
        &[
            "qwen2_moe",
            "afmoe",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "dots1",
            "glm4_moe",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "glm4v_moe",
            "longcat_flash",
            "solar_open",
            "mellum",
            "qwen3_moe",
            "beam",
            "qwen3_omni_moe",
            "qwen3_omni_moe_thinker",
            "qwen3_omni_moe_text",
            "qwen3_next",
            "hunyuan_v1_moe",
            "flex_olmo",
            "olmoe",
            "sarvam_mla",
            "cohere2_moe",
            "qwen3_5_moe_text",
            "qwen3_5_moe",
        ],
        &[
            stack(
                &[r"mlp\.experts\.\d+\.gate_proj\.weight", r"mlp\.experts\.\d+\.up_proj\.weight"],
                &["mlp.experts.gate_up_proj"],
            ),
            stack(&[r"mlp\.experts\.\d+\.down_proj\.weight"], &["mlp.experts.down_proj"]),
        ],
    ),
    Set::whole(
        &["mixtral", "minimax"],
        &[
            rename(r"\.block_sparse_moe\.", ".mlp."),
            stack(&[r"\.experts\.\d+\.w1\.weight", r"\.experts\.\d+\.w3\.weight"], &[".experts.gate_up_proj"]),
            stack(&[r"\.experts\.\d+\.w2\.weight"], &[".experts.down_proj"]),
        ],
    ),
    Set::whole(
        &["phimoe"],
        &[
            rename(r"\.block_sparse_moe\.", ".mlp."),
            rename(r"\.gate\.weight", ".router.weight"),
            stack(&[r"\.experts\.\d+\.w1\.weight", r"\.experts\.\d+\.w3\.weight"], &[".experts.gate_up_proj"]),
            stack(&[r"\.experts\.\d+\.w2\.weight"], &[".experts.down_proj"]),
        ],
    ),
    Set::whole(
        &["minimax_m2"],
        &[
            rename(r"\.block_sparse_moe\.", ".mlp."),
            stack(&[r"\.experts\.\d+\.w1\.weight", r"\.experts\.\d+\.w3\.weight"], &[".experts.gate_up_proj"]),
            stack(&[r"\.experts\.\d+\.w2\.weight"], &[".experts.down_proj"]),
            rename(r"\.block_sparse_moe\.e_score_correction_bias", ".mlp.e_score_correction_bias"),
        ],
    ),
    Set::whole(
        &["granitemoe", "granitemoeshared", "granitemoehybrid"],
        &[
            rename(r"block_sparse_moe\.input_linear\.weight", "block_sparse_moe.experts.gate_up_proj"),
            rename(r"block_sparse_moe\.output_linear\.weight", "block_sparse_moe.experts.down_proj"),
            rename(r"block_sparse_moe\.router\.layer\.weight", "block_sparse_moe.router.weight"),
        ],
    ),
    Set::whole(
        &["lfm2_moe"],
        &[
            stack(
                &[r"feed_forward\.experts\.\d+\.w1\.weight", r"feed_forward\.experts\.\d+\.w3\.weight"],
                &["feed_forward.experts.gate_up_proj"],
            ),
            stack(&[r"feed_forward\.experts\.\d+\.w2\.weight"], &["feed_forward.experts.down_proj"]),
        ],
    ),
    Set::whole(
        &["ernie4_5_moe"],
        &[
            stack(
                &[r"mlp\.experts\.\d+\.gate_proj\.weight", r"mlp\.experts\.\d+\.up_proj\.weight"],
                &["mlp.experts.gate_up_proj"],
            ),
            stack(&[r"mlp\.experts\.\d+\.down_proj\.weight"], &["mlp.experts.down_proj"]),
            rename(r"mlp\.moe_statics\.e_score_correction_bias", "mlp.gate.moe_statics.e_score_correction_bias"),
        ],
    ),
    Set::whole(
        &["exaone_moe"],
        &[
            stack(
                &[r"mlp\.experts\.\d+\.gate_proj\.weight", r"mlp\.experts\.\d+\.up_proj\.weight"],
                &["mlp.experts.gate_up_proj"],
            ),
            stack(&[r"mlp\.experts\.\d+\.down_proj\.weight"], &["mlp.experts.down_proj"]),
            rename(r"mlp\.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),
        ],
    ),
    Set::whole(
        &["kolibri1"],
        &[
            stack(
                &[r"mlp\.experts\.\d+\.gate_proj\.weight", r"mlp\.experts\.\d+\.up_proj\.weight"],
                &["mlp.experts.gate_up_proj"],
            ),
            stack(&[r"mlp\.experts\.\d+\.down_proj\.weight"], &["mlp.experts.down_proj"]),
            rename(r"moe\.router\.expert_bias", "mlp.gate.e_score_correction_bias"),
            rename("post_attn_norm", "post_self_attn_layernorm"),
            rename("post_ffn_norm", "post_mlp_layernorm"),
        ],
    ),
    Set::whole(
        &["mimo_v2_flash"],
        &[
            stack(
                &[r"mlp\.experts\.\d+\.gate_proj\.weight", r"mlp\.experts\.\d+\.up_proj\.weight"],
                &["mlp.experts.gate_up_proj"],
            ),
            stack(&[r"mlp\.experts\.\d+\.down_proj\.weight"], &["mlp.experts.down_proj"]),
            rename(r"self_attn\.attention_sink_bias", "self_attn.sinks"),
        ],
    ),
    Set::whole(
        &["flint"],
        &[
            stack(
                &[r"mlp\.experts\.\d+\.gate_proj\.weight", r"mlp\.experts\.\d+\.up_proj\.weight"],
                &["mlp.experts.gate_up_proj"],
            ),
            stack(&[r"mlp\.experts\.\d+\.down_proj\.weight"], &["mlp.experts.down_proj"]),
            rename(r"self_attn\.softmax_offset", "self_attn.sinks"),
        ],
    ),
    Set::whole(
        &["hy_v3"],
        &[
            stack(
                &[r"mlp\.experts\.\d+\.gate_proj\.weight", r"mlp\.experts\.\d+\.up_proj\.weight"],
                &["mlp.experts.gate_up_proj"],
            ),
            stack(&[r"mlp\.experts\.\d+\.down_proj\.weight"], &["mlp.experts.down_proj"]),
            rename(r"mlp\.router\.gate\.weight", "mlp.gate.weight"),
            rename(r"mlp\.expert_bias", "mlp.e_score_correction_bias"),
            rename(r"mlp\.shared_mlp\.", "mlp.shared_experts."),
        ],
    ),
    Set::whole(
        &["laguna"],
        &[
            stack(
                &[r"mlp\.experts\.\d+\.gate_proj\.weight", r"mlp\.experts\.\d+\.up_proj\.weight"],
                &["mlp.experts.gate_up_proj"],
            ),
            stack(&[r"mlp\.experts\.\d+\.down_proj\.weight"], &["mlp.experts.down_proj"]),
            rename(r"mlp\.experts\.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),
            rename(r"mlp\.shared_expert\.", "mlp.shared_experts."),
        ],
    ),
    Set::whole(
        &["axk1"],
        &[
            stack(
                &[r"mlp\.experts\.\d+\.gate_proj\.weight", r"mlp\.experts\.\d+\.up_proj\.weight"],
                &["mlp.experts.gate_up_proj"],
            ),
            stack(&[r"mlp\.experts\.\d+\.down_proj\.weight"], &["mlp.experts.down_proj"]),
            rename("post_mlp_layernorm", "mlp.post_mlp_layernorm"),
        ],
    ),
    Set::whole(
        &["axk2"],
        &[
            stack(
                &[r"mlp\.experts\.\d+\.gate_proj\.weight", r"mlp\.experts\.\d+\.up_proj\.weight"],
                &["mlp.experts.gate_up_proj"],
            ),
            stack(&[r"mlp\.experts\.\d+\.down_proj\.weight"], &["mlp.experts.down_proj"]),
            rename("W_down", "mlp.fc1"),
            rename("W_up", "mlp.fc2"),
            rename(r"self_attn\.q_b_proj\.", "self_attn.q_gate_proj."),
        ],
    ),
    Set::whole(
        &["qwen4_exp_text"],
        &[
            stack(
                &[r"mlp\.experts\.\d+\.gate_proj\.weight", r"mlp\.experts\.\d+\.up_proj\.weight"],
                &["mlp.experts.gate_up_proj"],
            ),
            stack(&[r"mlp\.experts\.\d+\.down_proj\.weight"], &["mlp.experts.down_proj"]),
            opaque(&[r"ngram_embedding\.shard_\d+\.weight"], &["ngram_embedding.weight"]),
        ],
    ),
    Set::whole(
        &["sarvam_moe"],
        &[
            stack(
                &[r"mlp\.experts\.\d+\.gate_proj\.weight", r"mlp\.experts\.\d+\.up_proj\.weight"],
                &["mlp.experts.gate_up_proj"],
            ),
            stack(&[r"mlp\.experts\.\d+\.down_proj\.weight"], &["mlp.experts.down_proj"]),
            rename(r"^model\.word_embeddings\.", "model.embed_tokens."),
            rename(r"\.attention\.", ".self_attn."),
            opaque(&["query_key_value"], &["q_proj", "k_proj", "v_proj"]),
            rename(r"\.self_attn\.dense\.", ".self_attn.o_proj."),
            rename(r"\.self_attn\.query_layernorm\.", ".self_attn.q_norm."),
            rename(r"\.self_attn\.key_layernorm\.", ".self_attn.k_norm."),
            rename(r"\.mlp\.gate\.expert_bias", ".mlp.gate.e_score_correction_bias"),
        ],
    ),
    // The experts of these models stay (E, in, out) in memory; disk has them so too unless somebody took them apart.
    Set::whole(
        &["llama4", "llama4_text"],
        &[
            stack_transposed(
                &[r"feed_forward\.experts\.\d+\.gate_proj\.weight", r"feed_forward\.experts\.\d+\.up_proj\.weight"],
                &["feed_forward.experts.gate_up_proj"],
            ),
            stack_transposed(&[r"feed_forward\.experts\.\d+\.down_proj\.weight"], &["feed_forward.experts.down_proj"]),
        ],
    ),
];

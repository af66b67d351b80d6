//! Language models that mix attention with recurrent layers.
//!
//! Source: huggingface/transformers:src/transformers/conversion_mapping.py (5.24).

use super::super::rewrite::{Set, join, opaque, rename, stack};

/// The rule sets of this group.
pub(super) const SETS: &[Set] = &[
    Set::whole(
        &["nemotron_h"],
        &[
            rename(r"backbone\.", "model."),
            stack(&[r"mixer\.experts\.\d+\.up_proj\.weight"], &["mixer.experts.up_proj"]),
            stack(&[r"mixer\.experts\.\d+\.down_proj\.weight"], &["mixer.experts.down_proj"]),
        ],
    ),
    Set::whole(
        &["jamba"],
        &[
            stack(
                &[r"feed_forward\.experts\.\d+\.gate_proj\.weight", r"feed_forward\.experts\.\d+\.up_proj\.weight"],
                &["feed_forward.experts.gate_up_proj"],
            ),
            stack(&[r"feed_forward\.experts\.\d+\.down_proj\.weight"], &["feed_forward.experts.down_proj"]),
        ],
    ),
    Set::whole(
        &["olmo_hybrid"],
        &[
            rename("attention_layer_norm", "input_layernorm"),
            rename("feedforward_layer_norm", "post_attention_layernorm"),
            join(
                &[r"linear_attn\.q_conv1d\.weight", r"linear_attn\.k_conv1d\.weight", r"linear_attn\.v_conv1d\.weight"],
                &["linear_attn.conv1d.weight"],
            ),
        ],
    ),
    Set::whole(
        &["bailing_hybrid"],
        &[
            stack(
                &[r"mlp\.experts\.\d+\.gate_proj\.weight", r"mlp\.experts\.\d+\.up_proj\.weight"],
                &["mlp.experts.gate_up_proj"],
            ),
            stack(&[r"mlp\.experts\.\d+\.down_proj\.weight"], &["mlp.experts.down_proj"]),
            rename(r"^model\.word_embeddings\.", "model.embed_tokens."),
            rename(r"\.attention\.", ".self_attn."),
            rename(r"self_attn\.f_proj\.", "self_attn.forget_gate.f_proj."),
            rename(r"self_attn\.dt_bias", "self_attn.forget_gate.dt_bias"),
            rename(r"self_attn\.A_log", "self_attn.forget_gate.A_log"),
            join(&[r"q_conv1d\.weight", r"k_conv1d\.weight", r"v_conv1d\.weight"], &["conv1d.weight"]),
            rename(r"\.self_attn\.dense\.", ".self_attn.o_proj."),
            rename(r"\.mlp\.gate\.expert_bias", ".mlp.gate.e_score_correction_bias"),
        ],
    ),
    Set::whole(
        &["kimi_linear"],
        &[
            rename(r"self_attn\.f_a_proj\.", "self_attn.forget_gate.f_a_proj."),
            rename(r"self_attn\.f_b_proj\.", "self_attn.forget_gate.f_b_proj."),
            rename(r"self_attn\.dt_bias", "self_attn.forget_gate.dt_bias"),
            rename(r"self_attn\.A_log", "self_attn.forget_gate.A_log"),
            join(
                &[r"self_attn\.q_conv1d\.weight", r"self_attn\.k_conv1d\.weight", r"self_attn\.v_conv1d\.weight"],
                &["self_attn.conv1d.weight"],
            ),
            rename(r"\.block_sparse_moe\.", ".mlp."),
            stack(&[r"\.experts\.\d+\.w1\.weight", r"\.experts\.\d+\.w3\.weight"], &[".experts.gate_up_proj"]),
            stack(&[r"\.experts\.\d+\.w2\.weight"], &[".experts.down_proj"]),
        ],
    ),
    Set::whole(
        &["glm5_next", "glm5_next_text"],
        &[
            rename(r"self_attn\.f_a_proj\.", "self_attn.forget_gate.f_a_proj."),
            rename(r"self_attn\.f_b_proj\.", "self_attn.forget_gate.f_b_proj."),
            rename(r"self_attn\.dt_bias", "self_attn.forget_gate.dt_bias"),
            rename(r"self_attn\.A_log", "self_attn.forget_gate.A_log"),
            rename("hc_attn_fn", "attn_hc.fn"),
            rename("hc_attn_base", "attn_hc.base"),
            rename("hc_attn_scale", "attn_hc.scale"),
            rename("hc_ffn_fn", "ffn_hc.fn"),
            rename("hc_ffn_base", "ffn_hc.base"),
            rename("hc_ffn_scale", "ffn_hc.scale"),
            stack(
                &[r"mlp\.experts\.\d+\.gate_proj\.weight", r"mlp\.experts\.\d+\.up_proj\.weight"],
                &["mlp.experts.gate_up_proj"],
            ),
            stack(&[r"mlp\.experts\.\d+\.down_proj\.weight"], &["mlp.experts.down_proj"]),
            join(
                &[r"self_attn\.q_conv1d\.weight", r"self_attn\.k_conv1d\.weight", r"self_attn\.v_conv1d\.weight"],
                &["self_attn.conv1d.weight"],
            ),
        ],
    ),
    Set::whole(
        &["lara_mini"],
        &[
            rename(r"linear_attn\.out_norm\.", "linear_attn.norm."),
            opaque(
                &[r"linear_attn\.in_proj"],
                &["linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.in_proj_b", "linear_attn.in_proj_a"],
            ),
        ],
    ),
];

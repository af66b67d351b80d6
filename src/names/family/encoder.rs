//! Text encoders.
//!
//! Source: huggingface/transformers:src/transformers/conversion_mapping.py (5.24).

use super::super::rewrite::{Set, rename, split};

/// The rule sets of this group.
pub(super) const SETS: &[Set] = &[
    Set::whole(
        &["nomic_bert"],
        &[
            rename(r"encoder\.layers", "layers"),
            rename("emb_ln", "embeddings.LayerNorm"),
            rename(r"attn\.out_proj", "self_attn.o_proj"),
            rename("fc11", "up_proj"),
            rename("fc12", "gate_proj"),
            rename("fc2", "down_proj"),
            rename("norm1", "post_attention_layernorm"),
            rename("norm2", "post_mlp_layernorm"),
            split(&[r"attn\.Wqkv"], &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        ],
    ),
    Set::whole(
        &["gte"],
        &[
            rename(r"^new\.", ""),
            rename(r"encoder\.layer", "layers"),
            rename(r"attention\.o_proj", "self_attn.o_proj"),
            rename("attn_ln", "post_attention_layernorm"),
            rename("mlp_ln", "post_mlp_layernorm"),
            rename(r"lm_head\.norm", "lm_head.layer_norm"),
            split(&[r"attention\.qkv_proj"], &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            split(&[r"mlp\.up_gate_proj"], &["mlp.up_proj", "mlp.gate_proj"]),
        ],
    ),
    Set::whole(
        &["jina_embeddings_v3"],
        &[
            rename("emb_ln", "embeddings.LayerNorm"),
            rename(r"encoder\.layers", "layers"),
            rename(r"mixer\.out_proj", "self_attn.o_proj"),
            rename("norm1", "post_attention_layernorm"),
            rename("norm2", "post_mlp_layernorm"),
            split(&[r"mixer\.Wqkv"], &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        ],
    ),
    Set::whole(
        &["esm"],
        &[rename(r"LayerNorm\.gamma", "LayerNorm.weight"), rename(r"LayerNorm\.beta", "LayerNorm.bias")],
    ),
    Set::whole(
        &["UltrabertModel", "UltrabertForMaskedLM", "ultrabert"],
        &[rename(r"^ultrabert\.", "model."), rename(r"^cls\.", "head.decoder.")],
    ),
    Set::whole(
        &["UltraVBertForMaskedLM"],
        &[rename(r"^head\.decoder\.", "lm_head."), rename(r"^head\.", "projection_head.")],
    ),
    Set::whole(
        &["UltrabertForSequenceClassification", "UltrabertForTokenClassification", "UltrabertForQuestionAnswering"],
        &[rename(r"^ultrabert\.", "model.")],
    ),
];

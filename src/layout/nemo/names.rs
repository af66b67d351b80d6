//! What transformers calls Megatron's layers, by family of the model.
//!
//! From the mappings of NVIDIA/NeMo, `nemo/collections/llm/gpt/model/*.py`, and NVIDIA-NeMo/Megatron-Bridge,
//! `src/megatron/bridge/models/*/*_bridge.py`. Experts have the names of the base's files, one by one.

use super::keys::{Block, Linear};
use crate::error::{Error, Result};

/// The parts of a layer of Megatron's in the other model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Modules of their own.
    Apart(&'static [&'static str]),
    /// One module, one part after the other.
    Together(&'static str),
}

/// Names of the experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// The module they are in.
    pub holder: &'static str,
    /// Gate and up.
    pub first: &'static [&'static str],
    /// Down.
    pub second: &'static str,
    /// What chooses them.
    pub router: &'static str,
    /// The module of the expert that sees everything.
    pub shared: Option<&'static str>,
}

/// Names of a family.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The families of transformers.
    pub names: &'static [&'static str],
    /// Path of the layers.
    pub layers: &'static str,
    /// The attention in a layer.
    pub attention: &'static str,
    /// Query, key and value.
    pub qkv: Parts,
    /// The output of the attention.
    pub dense: &'static str,
    /// Gate and up, or the one there is without a gate.
    pub first: Parts,
    /// The second layer of the feed-forward.
    pub second: &'static str,
    /// Experts, where there are any.
    pub experts: Option<Experts>,
}

const QKV: Parts = Parts::Apart(&["q_proj", "k_proj", "v_proj"]);
const GATED: &[&str] = &["gate_proj", "up_proj"];

const fn experts(shared: Option<&'static str>) -> Option<Experts> {
    Some(Experts { holder: "mlp.experts", first: GATED, second: "down_proj", router: "mlp.gate", shared })
}

/// What most families are called.
const LLAMA: Family = Family {
    names: &[
        "llama",
        "mistral",
        "ministral",
        "ministral3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "qwen2",
        "qwen3",
        "exaone4",
        "mimo",
    ],
    layers: "model.layers",
    attention: "self_attn",
    qkv: QKV,
    dense: "o_proj",
    first: Parts::Apart(GATED),
    second: "down_proj",
    experts: None,
};

const FAMILIES: [Family; 12] = [
    LLAMA,
    Family { names: &["qwen3_moe", "olmoe"], experts: experts(None), ..LLAMA },
    Family { names: &["qwen2_moe"], experts: experts(Some("mlp.shared_expert")), ..LLAMA },
    Family {
        names: &["deepseek_v2", "deepseek_v3", "glm4_moe"],
        experts: experts(Some("mlp.shared_experts")),
        ..LLAMA
    },
    Family { names: &["mixtral", "minimax_m2"], experts: BLOCK_SPARSE, ..LLAMA },
    // Attention and router only: the experts' gate and up lie in turns.
    Family { names: &["gpt_oss"], ..LLAMA },
    Family { names: &["nemotron"], first: Parts::Apart(&["up_proj"]), ..LLAMA },
    Family { names: &["starcoder2"], first: Parts::Apart(&["c_fc"]), second: "c_proj", ..LLAMA },
    Family { names: &["phi3"], qkv: Parts::Together("qkv_proj"), first: Parts::Together("gate_up_proj"), ..LLAMA },
    Family { names: &["baichuan"], qkv: Parts::Together("W_pack"), ..LLAMA },
    Family {
        names: &["chatglm"],
        layers: "transformer.encoder.layers",
        attention: "self_attention",
        qkv: Parts::Together("query_key_value"),
        dense: "dense",
        first: Parts::Together("dense_h_to_4h"),
        second: "dense_4h_to_h",
        experts: None,
    },
    // With a gate in the query.
    Family { names: &["qwen3_next"], experts: experts(Some("mlp.shared_expert")), ..LLAMA },
];

const BLOCK_SPARSE: Option<Experts> = Some(Experts {
    holder: "block_sparse_moe.experts",
    first: &["w1", "w3"],
    second: "w2",
    router: "block_sparse_moe.gate",
    shared: None,
});

/// The family of this name; Llama's where none is known.
pub fn family(name: Option<&str>) -> Result<Family> {
    let Some(name) = name else { return Ok(LLAMA) };
    FAMILIES.iter().find(|family| family.names.contains(&name)).copied().ok_or_else(|| {
        let known: Vec<_> = FAMILIES.iter().flat_map(|family| family.names).copied().collect();
        Error::unsupported(format!("a base of the family `{name:.40}`, whose layers are not known by Megatron's names"))
            .hint(format!("known are {}", known.join(", ")))
    })
}

impl Family {
    /// Whether a gate precedes what it gates.
    pub fn is_gated(&self) -> bool {
        !matches!(self.first, Parts::Apart([_]))
    }

    /// The module around the layer, and the names of its parts.
    pub fn parts(&self, layer: usize, block: Block, linear: Linear) -> Result<(String, Parts)> {
        let at = |inside: &str| format!("{}.{layer}.{inside}", self.layers);
        let experts = || {
            self.experts.ok_or_else(|| {
                Error::unsupported("experts, and the base's family is not known to have them under known names")
                    .hint("--base tells the family")
            })
        };
        Ok(match (block, linear) {
            (Block::Attention, Linear::Qkv) => (at(self.attention), self.qkv),
            (Block::Attention, Linear::Latent(name)) => (at(self.attention), Parts::Together(name)),
            (Block::Attention, _) => (at(self.attention), Parts::Together(self.dense)),
            (Block::Mlp, Linear::Router) if self.names == ["gpt_oss"] => (at("mlp"), Parts::Together("router")),
            (Block::Mlp, Linear::Router) => {
                let (module, name) = experts()?.router.rsplit_once('.').unwrap_or_default();
                (at(module), Parts::Together(name))
            }
            (Block::Mlp, Linear::First) => (at("mlp"), self.first),
            (Block::Mlp, _) => (at("mlp"), Parts::Together(self.second)),
            (Block::Shared, linear) => {
                let module = experts()?
                    .shared
                    .ok_or_else(|| Error::unsupported("a shared expert, and the base's family has none"))?;
                let down = Parts::Together(self.second);
                (at(module), if linear == Linear::First { self.first } else { down })
            }
            (Block::Expert(number), linear) => {
                let experts = experts()?;
                let parts =
                    if linear == Linear::First { Parts::Apart(experts.first) } else { Parts::Together(experts.second) };
                (at(&format!("{}.{number}", experts.holder)), parts)
            }
            (Block::Experts, _) => return Err(Error::unsupported("experts that are not told apart")),
        })
    }
}

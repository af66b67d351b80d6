//! Megatron's keys taken apart: layer, module, part of it, tensor.
//!
//! NeMo 1 puts adapters into modules of their own beside the layers they adapt; Megatron-Bridge wraps the layers
//! (`linear_qkv.adapter`). Both stand under `decoder.layers`, NeMo before Megatron-Core under
//! `language_model.encoder.layers`, with any number of wrappers in front.

use crate::error::{Error, Result};

/// Adapters of NeMo 1: name, the layer they belong to, the part of it.
const FIRST: [(&str, Linear, Option<Part>); 9] = [
    ("lora_kqv_adapter", Linear::Qkv, None),
    ("lora_unfused_kqv_adapter.q_adapter", Linear::Qkv, Some(Part::Query)),
    ("lora_unfused_kqv_adapter.k_adapter", Linear::Qkv, Some(Part::Key)),
    ("lora_unfused_kqv_adapter.v_adapter", Linear::Qkv, Some(Part::Value)),
    ("lora_dense_attention_adapter", Linear::Dense, None),
    ("lora_hto4h_adapter", Linear::First, None),
    ("lora_unfused_hto4h_adapter.gate_adapter", Linear::First, Some(Part::Gate)),
    ("lora_unfused_hto4h_adapter.up_adapter", Linear::First, Some(Part::Up)),
    ("lora_4htoh_adapter", Linear::Second, None),
];
/// Those of experts, which have an adapter for each expert below them.
const FIRST_OF_EXPERTS: [(&str, Linear); 2] =
    [("lora_moe_hto4h_adapter", Linear::First), ("lora_moe_4htoh_adapter", Linear::Second)];
/// Layers of Megatron-Core.
const LINEARS: [(&str, Linear); 9] = [
    ("linear_qkv", Linear::Qkv),
    ("linear_proj", Linear::Dense),
    ("linear_fc1", Linear::First),
    ("linear_fc2", Linear::Second),
    ("linear_q_proj", Linear::Latent("q_proj")),
    ("linear_q_down_proj", Linear::Latent("q_a_proj")),
    ("linear_q_up_proj", Linear::Latent("q_b_proj")),
    ("linear_kv_down_proj", Linear::Latent("kv_a_proj_with_mqa")),
    ("linear_kv_up_proj", Linear::Latent("kv_b_proj")),
];
/// Parts in Megatron-Bridge's canonical form.
const PARTS: [(&str, Part); 5] = [
    ("adapter_q", Part::Query),
    ("adapter_k", Part::Key),
    ("adapter_v", Part::Value),
    ("adapter_gate", Part::Gate),
    ("adapter_up", Part::Up),
];
/// Adapters of NeMo 1 that are no LoRA, and LoRA of models that are not read.
const OTHERS: [(&str, &str); 8] = [
    ("infused_adapter", "(IA)³ of NeMo"),
    ("ptuning_adapter", "p-tuning, which changes no weight"),
    ("mlp_head_adapter", "a head of NeMo's"),
    ("lora_kv_adapter", "LoRA on the cross-attention of NeMo's encoder-decoder models"),
    ("lora_q_adapter", "LoRA on the cross-attention of NeMo's encoder-decoder models"),
    ("mm_linear_adapter", "an adapter of a multimodal projector"),
    ("mm_projector_adapter", "an adapter of a multimodal projector"),
    ("adapter_1", "bottleneck adapters, which change no weight"),
];

/// Where a layer stands inside its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Block {
    /// `self_attention`.
    Attention,
    /// `mlp`.
    Mlp,
    /// One expert.
    Expert(usize),
    /// All experts of a layer together.
    Experts,
    /// The expert that sees everything.
    Shared,
}

/// A layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Linear {
    /// Query, key and value.
    Qkv,
    /// The output of the attention.
    Dense,
    /// The first of a feed-forward, with its gate.
    First,
    /// The second.
    Second,
    /// What chooses experts.
    Router,
    /// A projection of latent attention, by transformers' name.
    Latent(&'static str),
}

/// A part of a fused layer that has factors of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Query.
    Query,
    /// Key.
    Key,
    /// Value.
    Value,
    /// What gates.
    Gate,
    /// What is gated.
    Up,
}

/// Where factors belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Number of the layer.
    pub layer: usize,
    /// Where in it.
    pub block: Block,
    /// Which.
    pub linear: Linear,
    /// Which part, where it has factors of its own.
    pub part: Option<Part>,
}

/// A tensor of an adapted layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leaf {
    /// A: [r, in].
    In,
    /// B: [out, r].
    Out,
    /// DoRA's magnitude: [out].
    Magnitude,
}

/// What a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// A tensor of the adapter.
    Tensor(Place, Leaf),
    /// What is not part of it, and why.
    Aside(&'static str),
}

/// True for keys that no other layout has.
pub fn is_ours(key: &str) -> bool {
    let ends = [".linear_in.weight", ".linear_out.weight", ".weight_magnitude"].iter().any(|end| key.ends_with(end));
    ends && (key.contains(".adapter_layer.lora_") || key.contains(".adapter."))
}

/// True for keys of NeMo 1.
pub fn is_first(key: &str) -> bool {
    key.contains(".adapter_layer.")
}

/// Takes a key without the folder of its rank apart.
pub fn parse(key: &str) -> Result<Named> {
    let unknown = || Error::unrecognised("a key that is none of Megatron's LoRA").at_key(key);
    if let Some((_, what)) = OTHERS.iter().find(|(name, _)| key.split('.').any(|part| part.ends_with(name))) {
        return Err(Error::unsupported(*what).at_key(key));
    }
    if key.ends_with("_extra_state") {
        return Ok(Named::Aside("state of the training's number format; left out"));
    }
    if key.contains(".to_wrap.") {
        return Ok(Named::Aside("a weight of the base; left out"));
    }
    let (layer, inside) = layer(key).ok_or_else(unknown)?;
    let (inside, leaf) =
        [("linear_in.weight", Leaf::In), ("linear_out.weight", Leaf::Out), ("weight_magnitude", Leaf::Magnitude)]
            .iter()
            .find_map(|(end, leaf)| Some((inside.strip_suffix(end)?.strip_suffix('.')?, *leaf)))
            .ok_or_else(unknown)?;
    if let Some((module, name)) = inside.split_once(".adapter_layer.") {
        return first(layer, module, name)
            .map(|place| place.map_or(Named::Aside(UNUSED), |place| Named::Tensor(place, leaf)))
            .ok_or_else(unknown);
    }
    let place = second(layer, inside).ok_or_else(unknown)?;
    Ok(Named::Tensor(place, leaf))
}

/// Why factors of NeMo 1's experts are left out.
const UNUSED: &str = "every expert has adapters for all, and uses its own only; left out";

/// The number of the layer and what follows.
fn layer(key: &str) -> Option<(usize, &str)> {
    let mut rest = key;
    while let Some(inner) = ["model.", "module.", "base_model."].iter().find_map(|wrapper| rest.strip_prefix(wrapper)) {
        rest = inner;
    }
    let rest = rest.strip_prefix("language_model.encoder.").or_else(|| rest.strip_prefix("decoder."))?;
    let (number, inside) = rest.strip_prefix("layers.")?.split_once('.')?;
    Some((number.parse().ok()?, inside))
}

/// A place by NeMo 1's names; nothing where the factors are never used.
fn first(layer: usize, module: &str, name: &str) -> Option<Option<Place>> {
    let place = |block, linear, part| Some(Some(Place { layer, block, linear, part }));
    if let Some(expert) = module.strip_prefix("mlp.experts.local_experts.") {
        let expert: usize = expert.parse().ok()?;
        let (adapter, number) = name.split_once(".expert_adapters.")?;
        let (_, linear) = FIRST_OF_EXPERTS.iter().find(|(known, _)| *known == adapter)?;
        let own = number.parse::<usize>().ok()? == expert;
        return if own { place(Block::Expert(expert), *linear, None) } else { Some(None) };
    }
    let (_, linear, part) = FIRST.iter().find(|(known, ..)| *known == name)?;
    let block = match (module, linear) {
        ("self_attention", Linear::Qkv | Linear::Dense) => Block::Attention,
        ("mlp", Linear::First | Linear::Second) => Block::Mlp,
        _ => return None,
    };
    place(block, *linear, *part)
}

/// A place by Megatron-Bridge's names.
fn second(layer: usize, inside: &str) -> Option<Place> {
    let (path, name) = match inside.split_once(".adapter.") {
        Some((path, part)) => (path, Some(part)),
        None => (inside.strip_suffix(".adapter")?, None),
    };
    let part = match name {
        None => None,
        Some(name) => Some(PARTS.iter().find(|(known, _)| *known == name)?.1),
    };
    if path == "mlp.router" {
        return Some(Place { layer, block: Block::Mlp, linear: Linear::Router, part });
    }
    let (module, linear) = path.rsplit_once('.')?;
    let (_, linear) = LINEARS.iter().find(|(known, _)| *known == linear)?;
    let feed = matches!(linear, Linear::First | Linear::Second);
    let block = match module {
        "self_attention" if !feed => Block::Attention,
        "mlp" if feed => Block::Mlp,
        "mlp.experts" if feed => Block::Experts,
        "mlp.shared_experts" if feed => Block::Shared,
        _ if feed => Block::Expert(module.strip_prefix("mlp.experts.local_experts.")?.parse().ok()?),
        _ => return None,
    };
    let fits = match part {
        None => true,
        Some(Part::Query | Part::Key | Part::Value) => *linear == Linear::Qkv,
        Some(Part::Gate | Part::Up) => *linear == Linear::First,
    };
    fits.then_some(Place { layer, block, linear: *linear, part })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(key: &str) -> Option<(Place, Leaf)> {
        match parse(key).ok()? {
            Named::Tensor(place, leaf) => Some((place, leaf)),
            Named::Aside(_) => None,
        }
    }

    #[test]
    fn both_generations_are_told() {
        for (key, block, linear, part, leaf) in [
            (
                "model.decoder.layers.3.self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight",
                Block::Attention,
                Linear::Qkv,
                None,
                Leaf::In,
            ),
            (
                "model.module.language_model.encoder.layers.3.mlp.adapter_layer.lora_unfused_hto4h_adapter.up_adapter.linear_out.weight",
                Block::Mlp,
                Linear::First,
                Some(Part::Up),
                Leaf::Out,
            ),
            (
                "model.decoder.layers.3.mlp.experts.local_experts.2.adapter_layer.lora_moe_4htoh_adapter.expert_adapters.2.linear_in.weight",
                Block::Expert(2),
                Linear::Second,
                None,
                Leaf::In,
            ),
            (
                "decoder.layers.3.self_attention.linear_qkv.adapter.weight_magnitude",
                Block::Attention,
                Linear::Qkv,
                None,
                Leaf::Magnitude,
            ),
            (
                "module.module.decoder.layers.3.self_attention.linear_qkv.adapter.adapter_k.linear_out.weight",
                Block::Attention,
                Linear::Qkv,
                Some(Part::Key),
                Leaf::Out,
            ),
            (
                "decoder.layers.3.mlp.experts.linear_fc1.adapter.linear_in.weight",
                Block::Experts,
                Linear::First,
                None,
                Leaf::In,
            ),
            ("decoder.layers.3.mlp.router.adapter.linear_in.weight", Block::Mlp, Linear::Router, None, Leaf::In),
        ] {
            assert_eq!(place(key), Some((Place { layer: 3, block, linear, part }, leaf)), "{key}");
            assert!(is_ours(key), "{key}");
        }
        let unused = "model.decoder.layers.3.mlp.experts.local_experts.2.adapter_layer.lora_moe_4htoh_adapter.expert_adapters.1.linear_in.weight";
        assert_eq!(parse(unused).unwrap(), Named::Aside(UNUSED));
        for key in [
            "decoder.layers.3.self_attention.linear_fc1.adapter.linear_in.weight",
            "decoder.layers.3.mlp.linear_fc1.adapter.adapter_q.linear_in.weight",
            "decoder.layers.x.mlp.linear_fc1.adapter.linear_in.weight",
            "model.decoder.layers.0.self_attention.adapter_layer.key_infused_adapter.linear_in.weight",
            "decoder.layers.3.mlp.linear_fc1.adapter.bias",
        ] {
            assert!(parse(key).is_err(), "{key}");
        }
    }
}

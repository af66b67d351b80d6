//! Keys of every era: which part, which module, and what the tensor is to it.

use super::PARTS;

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The factor at the inputs.
    A,
    /// The factor at the outputs.
    B,
    /// The bias of that.
    Bias,
    /// DoRA's magnitude.
    Magnitude,
    /// Alpha.
    Alpha,
    /// The weight of a norm, in the place of the base's.
    Norm,
}

/// A key, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The part of the pipeline.
    pub part: &'static str,
    /// The module in it, as diffusers and transformers call it.
    pub module: String,
    /// What the tensor is to it.
    pub role: Role,
}

/// Endings, with what stands between module and ending taken off: the first that fits counts.
const ENDINGS: [(&str, Role); 13] = [
    (".lora_A.weight", Role::A),
    (".lora_B.weight", Role::B),
    (".lora_B.bias", Role::Bias),
    (".lora_magnitude_vector.weight", Role::Magnitude),
    (".lora_magnitude_vector", Role::Magnitude),
    (".dora_scale", Role::Magnitude),
    (".lora_linear_layer.down.weight", Role::A),
    (".lora_linear_layer.up.weight", Role::B),
    (".lora.down.weight", Role::A),
    (".lora.up.weight", Role::B),
    ("_lora.down.weight", Role::A),
    ("_lora.up.weight", Role::B),
    (".alpha", Role::Alpha),
];
/// Norms of attention, which control adapters of FLUX.1 replace.
pub const NORMS: [&str; 4] = ["norm_q", "norm_k", "norm_added_q", "norm_added_k"];
/// First modules of a U-Net in files that name no part: those of the first releases.
const UNET_ROOTS: [&str; 3] = ["down_blocks.", "mid_block.", "up_blocks."];

/// Takes a key apart; none where it is no such key.
pub fn parse(key: &str) -> Option<Key> {
    let (part, rest) = part_of(key)?;
    let rest = rest.strip_prefix("base_model.model.").unwrap_or(rest);
    let (module, role) = ending(rest)?;
    let old = module.contains(".processor") || rest.contains("_lora.");
    let module = module.replace(".processor", "");
    let module = if old || rest.contains("_lora.") { renamed(part, module) } else { module };
    let module = if part.starts_with("text_encoder") { with_level(module) } else { module };
    (!module.is_empty()).then_some(Key { part, module, role })
}

fn part_of(key: &str) -> Option<(&'static str, &str)> {
    if UNET_ROOTS.iter().any(|root| key.starts_with(root)) {
        return Some(("unet", key));
    }
    PARTS.iter().find_map(|part| Some((*part, key.strip_prefix(part)?.strip_prefix('.')?)))
}

/// Module and role; an adapter's name between the factor and `weight` is left out.
fn ending(rest: &str) -> Option<(String, Role)> {
    if let Some((module, role)) = ENDINGS.iter().find_map(|(end, role)| Some((rest.strip_suffix(end)?, *role))) {
        return Some((module.to_string(), role));
    }
    let inner = rest.strip_suffix(".weight")?;
    let (head, leaf) = inner.rsplit_once('.')?;
    if NORMS.contains(&leaf) {
        return Some((inner.to_string(), Role::Norm));
    }
    let role = |end: &str| match end {
        "lora_A" => Some(Role::A),
        "lora_B" => Some(Role::B),
        _ => None,
    };
    let (module, factor) = head.rsplit_once('.')?;
    Some((module.to_string(), role(factor)?))
}

/// The module behind a name of the first releases: `to_out` is a list of which the first is meant, and text encoders had
/// the words of the U-Net.
fn renamed(part: &str, module: String) -> String {
    let Some((parent, leaf)) = module.rsplit_once('.') else { return module };
    let text = part.starts_with("text_encoder");
    let leaf = match (leaf, text) {
        ("to_out", false) => "to_out.0",
        ("to_q", true) => "q_proj",
        ("to_k", true) => "k_proj",
        ("to_v", true) => "v_proj",
        ("to_out", true) => "out_proj",
        (leaf, _) => leaf,
    };
    format!("{parent}.{leaf}")
}

/// CLIP's modules lie under `text_model`, a level that transformers dropped in version 5.
fn with_level(module: String) -> String {
    let bare = ["encoder.layers.", "embeddings.", "final_layer_norm"].iter().any(|start| module.starts_with(start));
    if bare { format!("text_model.{module}") } else { module }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_every_era_name_the_same_modules() {
        let to_q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
        let attention = to_q.strip_suffix(".to_q").unwrap();
        for (key, module, role) in [
            (format!("{attention}.processor.to_q_lora.down.weight"), to_q.to_string(), Role::A),
            (format!("unet.{attention}.processor.to_out_lora.up.weight"), format!("{attention}.to_out.0"), Role::B),
            (format!("unet.{to_q}.lora.up.weight"), to_q.to_string(), Role::B),
            (format!("unet.{to_q}.lora_A.weight"), to_q.to_string(), Role::A),
            (format!("unet.{to_q}.lora_B.default.weight"), to_q.to_string(), Role::B),
            (format!("unet.base_model.model.{to_q}.lora_A.weight"), to_q.to_string(), Role::A),
            (format!("unet.{to_q}.lora_magnitude_vector"), to_q.to_string(), Role::Magnitude),
            (format!("unet.{to_q}.dora_scale"), to_q.to_string(), Role::Magnitude),
            (format!("unet.{attention}.norm_q.weight"), format!("{attention}.norm_q"), Role::Norm),
            (format!("unet.{to_q}.alpha"), to_q.to_string(), Role::Alpha),
            (format!("unet.{attention}.processor.to_q_lora.alpha"), format!("{to_q}_lora"), Role::Alpha),
        ] {
            assert_eq!(parse(&key), Some(Key { part: "unet", module, role }), "{key}");
        }
        let q_proj = "text_model.encoder.layers.0.self_attn.q_proj";
        for (key, part) in [
            ("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight", "text_encoder"),
            ("text_encoder.encoder.layers.0.self_attn.q_proj.lora_B.weight", "text_encoder"),
            (
                "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
                "text_encoder_2",
            ),
        ] {
            assert_eq!(parse(key), Some(Key { part, module: q_proj.to_string(), role: Role::B }), "{key}");
        }
        for key in
            ["model.layers.0.q_proj.lora_A.weight", "unet.conv_in.weight", "unet..lora_A.weight", "transformer.x"]
        {
            assert_eq!(parse(key), None, "{key}");
        }
    }
}

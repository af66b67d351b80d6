//! LitGPT's keys, and the names of its modules in transformers' models.
//!
//! LitGPT has one model for all families; which names a family has in transformers is what its converter says
//! (Lightning-AI/litgpt:litgpt/scripts/convert_lit_checkpoint.py), which goes by the name of the model and the class of its
//! feed-forward layers, both in `model_config.yaml`.

use crate::adapter::Facts;
use crate::error::{Error, Result};
use crate::limits;

/// What the query, key and value of a family are in transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Three modules, `self_attn.q_proj` and so on.
    Apart,
    /// One, with the rows of query, key and value one after the other.
    InARow(&'static str),
    /// One, with the heads of a group and its key and value one after the other, group by group.
    ByGroup(&'static str),
}

/// Names of a family in transformers.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in transformers' configs.
    types: &'static [&'static str],
    /// What all layers lie in.
    root: &'static str,
    /// Query, key and value.
    pub attention: Attention,
    /// The attention's output.
    proj: &'static str,
    /// Feed-forward layers, LitGPT's name first.
    feed_forward: &'static [(&'static str, &'static str)],
    /// The module that holds both `fc_1` and `fc_2`.
    pub gate_up: Option<&'static str>,
    /// The module around the experts, and LitGPT's and transformers' names inside one.
    experts: Option<(&'static str, [(&'static str, &'static str); 3])>,
    /// The output embedding.
    head: &'static str,
}

const GATED: &[(&str, &str)] = &[("fc_1", "mlp.gate_proj"), ("fc_2", "mlp.up_proj"), ("proj", "mlp.down_proj")];
const FOUR_TIMES: &[(&str, &str)] = &[("fc", "mlp.dense_h_to_4h"), ("proj", "mlp.dense_4h_to_h")];
const PROJECTIONS: [(&str, &str); 3] = [("fc_1", "gate_proj"), ("fc_2", "up_proj"), ("proj", "down_proj")];
const NUMBERED: [(&str, &str); 3] = [("fc_1", "w1"), ("fc_2", "w3"), ("proj", "w2")];

const LLAMA: Family = Family {
    types: &[
        "llama",
        "mistral",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "qwen2",
        "qwen3",
        "olmo",
        "olmo2",
        "stablelm",
    ],
    root: "model.layers",
    attention: Attention::Apart,
    proj: "self_attn.o_proj",
    feed_forward: GATED,
    gate_up: None,
    experts: None,
    head: "lm_head",
};
const MIXTRAL: Family =
    Family { types: &["mixtral"], feed_forward: &[], experts: Some(("block_sparse_moe", NUMBERED)), ..LLAMA };
const QWEN_MOE: Family =
    Family { types: &["qwen3_moe"], feed_forward: &[], experts: Some(("mlp", PROJECTIONS)), ..LLAMA };
const PHI: Family = Family {
    types: &["phi"],
    proj: "self_attn.dense",
    feed_forward: &[("fc", "mlp.fc1"), ("proj", "mlp.fc2")],
    ..LLAMA
};
const PHI_3: Family = Family {
    types: &["phi3"],
    attention: Attention::InARow("self_attn.qkv_proj"),
    feed_forward: &[("proj", "mlp.down_proj")],
    gate_up: Some("mlp.gate_up_proj"),
    ..LLAMA
};
const FALCON: Family = Family {
    types: &["falcon"],
    root: "transformer.h",
    attention: Attention::ByGroup("self_attention.query_key_value"),
    proj: "self_attention.dense",
    feed_forward: FOUR_TIMES,
    ..LLAMA
};
const NEOX: Family = Family {
    types: &["gpt_neox"],
    root: "gpt_neox.layers",
    attention: Attention::ByGroup("attention.query_key_value"),
    proj: "attention.dense",
    feed_forward: FOUR_TIMES,
    head: "embed_out",
    ..LLAMA
};
static FAMILIES: [Family; 7] = [LLAMA, MIXTRAL, QWEN_MOE, PHI, PHI_3, FALCON, NEOX];

impl Family {
    /// Whether a layer has experts.
    pub fn has_experts(&self) -> bool {
        self.experts.is_some()
    }

    /// Whether a feed-forward layer has a gate.
    pub fn is_gated(&self) -> bool {
        self.gate_up.is_some() || self.feed_forward.iter().any(|(ours, _)| *ours == "fc_1")
    }
}

/// The family of this `model_type`.
pub fn family(model_type: &str) -> Result<&'static Family> {
    FAMILIES.iter().find(|f| f.types.contains(&model_type)).ok_or_else(|| {
        let known: Vec<_> = FAMILIES.iter().flat_map(|f| f.types).copied().collect();
        let what = format!("a base of the family `{model_type:.40}`, whose names in LitGPT are not known here");
        Error::unsupported(what).hint(format!("known: {}", known.join(", ")))
    })
}

/// The family that the converter takes for a model of this name and class of feed-forward layers.
pub fn family_of_model(name: &str, feed_forward: &str) -> Result<&'static Family> {
    let lower = name.to_lowercase();
    let starts = |word: &str| lower.starts_with(word);
    let model_type = match feed_forward {
        _ if name.contains("falcon") => "falcon",
        _ if starts("phi-3") || starts("phi-4") => "phi3",
        _ if starts("phi") => "phi",
        "LLaMAMoE" if starts("qwen3") => "qwen3_moe",
        "LLaMAMoE" => "mixtral",
        "LLaMAMLP" | "GemmaMLP" => "llama",
        "GptNeoxMLP" => "gpt_neox",
        other => {
            let what = format!("`{other:.40}`, expected GptNeoxMLP, LLaMAMLP, GemmaMLP or LLaMAMoE");
            return Err(Error::unsupported(what).at_key("mlp_class_name"));
        }
    };
    family(model_type)
}

/// Which factor a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `lora_A`.
    A,
    /// `lora_B`.
    B,
}

/// The parts of a fused attention, in LitGPT's order.
pub const PARTS: [&str; 3] = ["q", "k", "v"];
/// The output embedding, in LitGPT.
pub const HEAD: &str = "lm_head";
/// The fused attention of today, inside a layer.
pub const QKV: &str = "attn.qkv";
/// The same until December 2024.
pub const OLD_QKV: &str = "attn.attn";

/// The path of a module and the factor, of one of LitGPT's keys.
pub fn parse(key: &str) -> Option<(&str, Role)> {
    let (module, leaf) = key.rsplit_once('.')?;
    let role = match leaf {
        "lora_A" => Role::A,
        "lora_B" => Role::B,
        _ => return None,
    };
    let known = |inside: &str| {
        let in_mlp = |name: &str| ["fc", "fc_1", "fc_2", "proj"].contains(&name);
        [QKV, OLD_QKV, "attn.proj", "mlp.gate"].contains(&inside)
            || inside.strip_prefix("mlp.").is_some_and(in_mlp)
            || expert(inside).is_some_and(|(_, name)| in_mlp(name))
    };
    (module == HEAD || layer(module).is_some_and(|(_, inside)| known(inside))).then_some((module, role))
}

/// The number of a layer and the path inside it.
pub fn layer(module: &str) -> Option<(usize, &str)> {
    let (number, inside) = module.strip_prefix("transformer.h.")?.split_once('.')?;
    Some((plain_number(number)?, inside))
}

/// The number of an expert and the name of its layer, of a path inside a layer.
pub fn expert(inside: &str) -> Option<(usize, &str)> {
    let (number, name) = inside.strip_prefix("mlp.experts.")?.split_once('.')?;
    Some((plain_number(number)?, name))
}

/// The path of a module inside a layer.
pub fn in_layer(number: usize, inside: &str) -> String {
    format!("transformer.h.{number}.{inside}")
}

/// A number as it is written in paths: digits, without zeros in front; of something a model may have so many of.
fn plain_number(text: &str) -> Option<usize> {
    let number: usize = text.parse().ok()?;
    (number.to_string() == text && number < limits::COUNTED).then_some(number)
}

/// What the language model of a model with several parts is called.
const LANGUAGE_MODELS: [&str; 2] = ["model.language_model.layers", "language_model.model.layers"];

/// Paths of one family, there and back. Query, key and value are `attn.q` and so on.
pub struct Names<'f> {
    /// What is known of the base.
    pub facts: &'f Facts,
    /// Its family.
    pub family: &'static Family,
}

impl Names<'_> {
    fn root(&self) -> &'static str {
        let several = self.facts.class.as_deref().is_some_and(|class| class.ends_with("ForConditionalGeneration"));
        if several && self.family.root == LLAMA.root { LANGUAGE_MODELS[0] } else { self.family.root }
    }

    /// The path in transformers' model, of a module that is one there as well.
    pub fn theirs(&self, module: &str) -> Option<String> {
        if module == HEAD {
            return Some(self.family.head.to_string());
        }
        let (number, inside) = layer(module)?;
        let inside = self.inside(inside)?;
        Some(format!("{}.{number}.{inside}", self.root()))
    }

    fn inside(&self, inside: &str) -> Option<String> {
        if inside == "attn.proj" {
            return Some(self.family.proj.to_string());
        }
        if let Some(part) = inside.strip_prefix("attn.").filter(|part| PARTS.contains(part)) {
            return (self.family.attention == Attention::Apart).then(|| format!("self_attn.{part}_proj"));
        }
        if let Some((holder, names)) = self.family.experts {
            if inside == "mlp.gate" {
                return Some(format!("{holder}.gate"));
            }
            let (number, name) = expert(inside)?;
            let (_, theirs) = names.into_iter().find(|(ours, _)| *ours == name)?;
            return Some(format!("{holder}.experts.{number}.{theirs}"));
        }
        let name = inside.strip_prefix("mlp.")?;
        self.family.feed_forward.iter().find(|(ours, _)| *ours == name).map(|(_, theirs)| (*theirs).to_string())
    }

    /// The path of a module in a layer of transformers' model.
    pub fn their_layer(&self, number: usize, inside: &str) -> String {
        format!("{}.{number}.{inside}", self.root())
    }

    /// The number of a layer of transformers' model, and the path inside it.
    pub fn of_layer<'p>(&self, path: &'p str) -> Option<(usize, &'p str)> {
        let several = LANGUAGE_MODELS.iter().filter(|_| self.family.root == LLAMA.root);
        let root = several.chain([&self.family.root]).find_map(|root| path.strip_prefix(*root));
        let (number, inside) = root?.strip_prefix('.')?.split_once('.')?;
        Some((plain_number(number)?, inside))
    }

    /// The path in LitGPT's model, of a module that is one there as well; query, key and value apart.
    pub fn ours(&self, path: &str) -> Option<String> {
        if path == self.family.head {
            return Some(HEAD.to_string());
        }
        let (number, inside) = self.of_layer(path)?;
        Some(in_layer(number, &self.our_inside(inside)?))
    }

    fn our_inside(&self, inside: &str) -> Option<String> {
        if inside == self.family.proj {
            return Some("attn.proj".to_string());
        }
        let apart = self.family.attention == Attention::Apart;
        if let Some(part) = PARTS.iter().find(|part| apart && inside == format!("self_attn.{part}_proj")) {
            return Some(format!("attn.{part}"));
        }
        if self.family.experts.is_some() {
            // transformers calls them so in memory, and otherwise on disk.
            let inside = ["block_sparse_moe.", "mlp."].iter().find_map(|holder| inside.strip_prefix(holder))?;
            if inside == "gate" {
                return Some("mlp.gate".to_string());
            }
            let (number, name) = inside.strip_prefix("experts.")?.split_once('.')?;
            let both = NUMBERED.into_iter().chain(PROJECTIONS);
            let (ours, _) = both.into_iter().find(|(_, theirs)| *theirs == name)?;
            return Some(format!("mlp.experts.{}.{ours}", plain_number(number)?));
        }
        self.family.feed_forward.iter().find(|(_, theirs)| *theirs == inside).map(|(ours, _)| format!("mlp.{ours}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_apart() {
        assert_eq!(parse("transformer.h.0.attn.qkv.lora_A"), Some(("transformer.h.0.attn.qkv", Role::A)));
        assert_eq!(parse("transformer.h.12.attn.attn.lora_B"), Some(("transformer.h.12.attn.attn", Role::B)));
        assert!(parse("transformer.h.1.mlp.experts.3.fc_2.lora_B").is_some() && parse("lm_head.lora_A").is_some());
        for other in [
            "transformer.h.0.attn.c_attn.lora_A",
            "base_model.model.transformer.h.0.attn.qkv.lora_A",
            "transformer.h.00.attn.proj.lora_A",
            "transformer.h.0.attn.proj.lora_A.weight",
            "lora_A",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn paths_go_there_and_back() {
        let facts = Facts::default();
        for (model_type, ours, theirs) in [
            ("llama", "transformer.h.3.attn.k", "model.layers.3.self_attn.k_proj"),
            ("gemma2", "transformer.h.3.mlp.fc_2", "model.layers.3.mlp.up_proj"),
            ("mixtral", "transformer.h.3.mlp.experts.7.fc_2", "model.layers.3.block_sparse_moe.experts.7.w3"),
            ("mixtral", "transformer.h.3.mlp.gate", "model.layers.3.block_sparse_moe.gate"),
            ("qwen3_moe", "transformer.h.3.mlp.experts.7.proj", "model.layers.3.mlp.experts.7.down_proj"),
            ("phi", "transformer.h.3.attn.proj", "model.layers.3.self_attn.dense"),
            ("phi3", "transformer.h.3.mlp.proj", "model.layers.3.mlp.down_proj"),
            ("falcon", "transformer.h.3.mlp.fc", "transformer.h.3.mlp.dense_h_to_4h"),
            ("gpt_neox", "transformer.h.3.attn.proj", "gpt_neox.layers.3.attention.dense"),
            ("gpt_neox", "lm_head", "embed_out"),
        ] {
            let names = Names { facts: &facts, family: family(model_type).unwrap() };
            assert_eq!(names.theirs(ours).as_deref(), Some(theirs));
            assert_eq!(names.ours(theirs).as_deref(), Some(ours));
        }
        let names = Names { facts: &facts, family: family("mixtral").unwrap() };
        assert_eq!(
            names.ours("model.layers.0.mlp.experts.1.gate_proj").as_deref(),
            Some("transformer.h.0.mlp.experts.1.fc_1")
        );
        assert_eq!(names.ours("model.layers.0.mlp.gate_proj"), None);
        assert_eq!(names.theirs("transformer.h.0.mlp.fc_1"), None);
    }

    #[test]
    fn models_are_what_the_converter_takes_them_for() {
        for (name, class, wanted) in [
            ("falcon-7b", "GptNeoxMLP", "falcon"),
            ("Falcon3-1B-Base", "LLaMAMLP", "llama"),
            ("pythia-14m", "GptNeoxMLP", "gpt_neox"),
            ("phi-2", "GptNeoxMLP", "phi"),
            ("Phi-3-mini-4k-instruct", "LLaMAMLP", "phi3"),
            ("Gemma-2-2b", "GemmaMLP", "gemma2"),
            ("Mixtral-8x7B-v0.1", "LLaMAMoE", "mixtral"),
            ("Qwen3-30B-A3B", "LLaMAMoE", "qwen3_moe"),
        ] {
            assert!(family_of_model(name, class).unwrap().types.contains(&wanted), "{name}");
        }
        assert!(family_of_model("x", "MyMLP").is_err());
    }
}

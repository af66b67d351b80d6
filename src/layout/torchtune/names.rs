//! torchtune's keys, the names of its modules in transformers' models, and the order in which a family's query and key
//! have their rows.
//!
//! One class of decoder serves all families (meta-pytorch/torchtune:torchtune/modules/transformer.py), so the keys do not
//! tell them apart. What differs is what the converters of the base do (`torchtune/models/*/_convert_weights.py`).

use crate::adapter::Facts;
use crate::error::{Error, Result};
use crate::limits;

/// What torchtune does with the weights of a family of models.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in transformers' configs.
    types: &'static [&'static str],
    /// torchtune's packages with builders of it, `torchtune.models.<package>`.
    packages: &'static [&'static str],
    /// Whether query and key have their rows in Meta's order, the two halves of a head in turns.
    pub interleaved: bool,
    /// Whether transformers has query, key and value in one matrix, and gate and up.
    pub fused: bool,
    /// Whether the language model lies in a module called `decoder`.
    pub decoder: bool,
    /// Whether the output is the embedding in every model of the family, so that it cannot be adapted.
    pub ties: bool,
}

const PLAIN: Family =
    Family { types: &[], packages: &[], interleaved: false, fused: false, decoder: false, ties: false };

/// The families, by what their converter does:
///
/// * `hf_to_tune` of `models/convert_weights.py` permutes query and key. It serves every type of model that
///   `FullModelHFCheckpointer` has no other for: Llama, Mistral, Gemma. Gemma 2 has a converter of its own that does the
///   same.
/// * `qwen2_hf_to_tune`, `qwen3_hf_to_tune` and `phi3_hf_to_tune` leave the rows where they are: these models are built with
///   rotary embeddings in halves (`Qwen2RotaryPositionalEmbeddings`, `Phi3RotaryPositionalEmbeddings`).
/// * `llama4_hf_to_tune` does, too: transformers has Llama 4 in Meta's order itself.
const FAMILIES: [Family; 5] = [
    Family {
        types: &["llama", "mistral"],
        packages: &["llama2", "code_llama2", "llama3", "llama3_1", "llama3_2", "llama3_3", "mistral", "smol"],
        interleaved: true,
        ..PLAIN
    },
    Family { types: &["gemma", "gemma2"], packages: &["gemma", "gemma2"], interleaved: true, ties: true, ..PLAIN },
    Family { types: &["qwen2", "qwen3"], packages: &["qwen2", "qwen2_5", "qwen3"], ..PLAIN },
    Family { types: &["phi3"], packages: &["phi3", "phi4"], fused: true, ..PLAIN },
    Family { types: &["llama4", "llama4_text"], packages: &["llama4"], decoder: true, ..PLAIN },
];

/// The family of a model of transformers.
pub fn family(model_type: &str) -> Result<&'static Family> {
    FAMILIES.iter().find(|f| f.types.contains(&model_type)).ok_or_else(|| {
        let known: Vec<_> = FAMILIES.iter().flat_map(|f| f.types).copied().collect();
        let what = format!("a base of the family `{model_type:.40}`, whose names in torchtune are not known here");
        Error::unsupported(what).hint(format!("known: {}", known.join(", ")))
    })
}

/// The family that a builder such as `torchtune.models.llama3_2.lora_llama3_2_1b` makes.
pub fn family_of_builder(component: &str) -> Option<&'static Family> {
    let package = component.strip_prefix("torchtune.models.")?.split('.').next()?;
    FAMILIES.iter().find(|f| f.packages.contains(&package))
}

/// A part of what is saved of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// `lora_a.weight`, `[r, in]`.
    A,
    /// `lora_b.weight`, `[out, r]`.
    B,
    /// `magnitude`, `[out]`.
    Magnitude,
}

/// A key, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<'k> {
    /// Of a linear layer.
    Layer {
        /// Its path.
        module: &'k str,
        /// What of it.
        role: Role,
    },
    /// Of all experts of a layer, a stack of factors turned round.
    Experts {
        /// The path of the module that holds the experts.
        module: &'k str,
        /// `gate`, `up` or `down`.
        which: &'k str,
        /// A or B.
        role: Role,
    },
}

/// The projections of an expert, in torchtune's word.
pub const PROJECTIONS: [&str; 3] = ["gate", "down", "up"];

/// Names inside a layer's attention, and the same in transformers.
const ATTENTION: [(&str, &str); 4] =
    [("q_proj", "q_proj"), ("k_proj", "k_proj"), ("v_proj", "v_proj"), ("output_proj", "o_proj")];
/// Names inside a feed-forward layer, and the same in transformers.
const FEED_FORWARD: [(&str, &str); 3] = [("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")];
/// What the language model of a model with several parts is called in transformers' files and in memory.
const LANGUAGE_MODELS: [&str; 2] = ["language_model.model.", "model.language_model."];

/// Takes a key apart; none where it is none of torchtune's.
pub fn parse(key: &str) -> Option<Key<'_>> {
    let roles = [(".lora_a.weight", Role::A), (".lora_b.weight", Role::B), (".magnitude", Role::Magnitude)];
    if let Some((module, role)) = roles.iter().find_map(|(end, role)| Some((key.strip_suffix(end)?, *role))) {
        return is_module(module).then_some(Key::Layer { module, role });
    }
    let (module, leaf) = key.rsplit_once(".lora_")?;
    let (which, role) = leaf.split_once('_')?;
    let role = match role {
        "a" => Role::A,
        "b" => Role::B,
        _ => return None,
    };
    (module.ends_with(".experts") && PROJECTIONS.contains(&which)).then_some(Key::Experts { module, which, role })
}

/// Whether a path is that of a module that torchtune's models have, in any family.
fn is_module(module: &str) -> bool {
    let leaf = module.rsplit('.').next().unwrap_or_default();
    let known = |names: &[(&str, &str)]| names.iter().any(|(ours, _)| *ours == leaf);
    let inside = module.split('.').any(|part| part == "layers");
    inside && (known(&ATTENTION) || known(&FEED_FORWARD)) || leaf == "output"
}

/// A path inside a layer of the decoder, taken apart into the number of the layer and the rest.
pub fn layer(module: &str) -> Option<(usize, &str)> {
    let (number, inside) = module.strip_prefix("layers.")?.split_once('.')?;
    Some((plain_number(number)?, inside))
}

/// A number as it is written in paths: digits, without zeros in front; of something a model may have so many of.
fn plain_number(text: &str) -> Option<usize> {
    let number: usize = text.parse().ok()?;
    (number.to_string() == text && number < limits::COUNTED).then_some(number)
}

/// Paths of one family, there and back. Those of torchtune are without `decoder.`.
pub struct Names<'f> {
    /// What is known of the base.
    pub facts: &'f Facts,
    /// Its family, where that is known.
    pub family: Option<&'static Family>,
}

impl Names<'_> {
    fn decoder(&self) -> bool {
        self.family.is_some_and(|f| f.decoder)
    }

    /// What stands before a path in torchtune's keys.
    pub fn prefix(&self) -> &'static str {
        if self.decoder() { "decoder." } else { "" }
    }

    /// What transformers calls the feed-forward part of a layer.
    fn feed_forward(&self) -> &'static str {
        if self.decoder() { "feed_forward" } else { "mlp" }
    }

    /// What stands before `model.layers` in transformers.
    fn root(&self) -> &'static str {
        let alone = self.facts.class.as_deref().is_some_and(|class| class.ends_with("ForCausalLM"));
        if self.decoder() && !alone { "language_model." } else { "" }
    }

    fn output(&self) -> String {
        let scores = self.facts.class.as_deref().is_some_and(|class| class.ends_with("ForSequenceClassification"));
        if scores { "score".to_string() } else { format!("{}lm_head", self.root()) }
    }

    /// The path in transformers' model.
    pub fn theirs(&self, module: &str) -> Option<String> {
        if module == "output" {
            return Some(self.output());
        }
        let (number, inside) = layer(module)?;
        let (part, leaf) = inside.rsplit_once('.')?;
        let of =
            |names: &[(&str, &'static str)]| names.iter().find(|(ours, _)| *ours == leaf).map(|(_, theirs)| *theirs);
        let inside = match part {
            "attn" => format!("self_attn.{}", of(&ATTENTION)?),
            "mlp" => format!("{}.{}", self.feed_forward(), of(&FEED_FORWARD)?),
            "mlp.shared_expert" if self.decoder() => {
                format!("{}.shared_expert.{}", self.feed_forward(), of(&FEED_FORWARD)?)
            }
            _ => return None,
        };
        Some(format!("{}model.layers.{number}.{inside}", self.root()))
    }

    /// The path of one expert in transformers' model; `module` is the path of all of them.
    pub fn expert(&self, module: &str, number: usize, which: &str) -> Option<String> {
        let (layer, inside) = layer(module)?;
        let root = self.root();
        let known = self.decoder() && inside == "mlp.experts";
        known.then(|| format!("{root}model.layers.{layer}.{}.experts.{number}.{which}_proj", self.feed_forward()))
    }

    /// The path in torchtune's model.
    pub fn ours(&self, path: &str) -> Option<String> {
        if path == self.output() || path == "lm_head" {
            return Some("output".to_string());
        }
        let (number, inside) = self.inside(path)?;
        let (part, leaf) = inside.rsplit_once('.')?;
        let of =
            |names: &[(&'static str, &str)]| names.iter().find(|(_, theirs)| *theirs == leaf).map(|(ours, _)| *ours);
        let inside = match part.strip_prefix(self.feed_forward()) {
            Some("") => format!("mlp.{}", of(&FEED_FORWARD)?),
            Some(".shared_expert") if self.decoder() => format!("mlp.shared_expert.{}", of(&FEED_FORWARD)?),
            _ if part == "self_attn" => format!("attn.{}", of(&ATTENTION)?),
            _ => return None,
        };
        Some(format!("layers.{number}.{inside}"))
    }

    /// The expert at a path of transformers' model: the path of all of them, its number, `gate`, `up` or `down`.
    pub fn our_expert(&self, path: &str) -> Option<(String, usize, &'static str)> {
        let (layer, inside) = self.inside(path).filter(|_| self.decoder())?;
        let (number, leaf) = inside.strip_prefix(self.feed_forward())?.strip_prefix(".experts.")?.split_once('.')?;
        let which = leaf.strip_suffix("_proj").and_then(|leaf| PROJECTIONS.into_iter().find(|which| *which == leaf))?;
        Some((format!("layers.{layer}.mlp.experts"), plain_number(number)?, which))
    }

    /// The number of a layer of transformers' model and the path inside it.
    fn inside<'p>(&self, path: &'p str) -> Option<(usize, &'p str)> {
        let several = LANGUAGE_MODELS.iter().find_map(|prefix| path.strip_prefix(prefix)).filter(|_| self.decoder());
        let (number, inside) =
            several.or_else(|| path.strip_prefix("model."))?.strip_prefix("layers.")?.split_once('.')?;
        Some((plain_number(number)?, inside))
    }

    /// The two fused projections of a layer, in parts: path in transformers' model and torchtune's modules.
    pub fn fused(&self, number: usize) -> [(String, Vec<String>); 2] {
        let parts = |all: &[&str]| all.iter().map(|part| format!("layers.{number}.{part}")).collect();
        [
            (
                format!("model.layers.{number}.self_attn.qkv_proj"),
                parts(&["attn.q_proj", "attn.k_proj", "attn.v_proj"]),
            ),
            (format!("model.layers.{number}.mlp.gate_up_proj"), parts(&["mlp.w1", "mlp.w3"])),
        ]
    }

    /// The fused projection at a path of transformers' model: torchtune's modules.
    pub fn our_parts(&self, path: &str) -> Option<Vec<String>> {
        self.family.filter(|f| f.fused)?;
        let (number, _) = self.inside(path)?;
        self.fused(number).into_iter().find(|(theirs, _)| theirs == path).map(|(_, parts)| parts)
    }
}

/// Whether a module's rows are those of a query (with heads of its own number) or a key.
pub fn heads(module: &str, facts: &Facts) -> Option<Option<usize>> {
    let (_, inside) = layer(module)?;
    match inside {
        "attn.q_proj" => Some(facts.heads),
        "attn.k_proj" => Some(facts.key_heads),
        _ => None,
    }
}

/// What torchtune calls a module of this name in the config that it saves for PEFT.
pub fn target_module(module: &str) -> Option<&'static str> {
    let leaf = module.rsplit('.').next()?;
    let all = ATTENTION.into_iter().chain(FEED_FORWARD).chain([("output", "lm_head")]);
    all.into_iter().find(|(ours, _)| *ours == leaf).map(|(_, theirs)| theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(class: &str) -> Facts {
        Facts { class: Some(class.to_string()), ..Facts::default() }
    }

    #[test]
    fn keys_come_apart() {
        let layer = |module, role| Some(Key::Layer { module, role });
        assert_eq!(parse("layers.0.attn.q_proj.lora_a.weight"), layer("layers.0.attn.q_proj", Role::A));
        assert_eq!(parse("decoder.layers.11.mlp.w2.lora_b.weight"), layer("decoder.layers.11.mlp.w2", Role::B));
        assert_eq!(parse("output.magnitude"), layer("output", Role::Magnitude));
        let module = "decoder.layers.1.mlp.experts";
        let experts = Some(Key::Experts { module, which: "down", role: Role::A });
        assert_eq!(parse("decoder.layers.1.mlp.experts.lora_down_a"), experts);
        for other in ["layers.0.attn.q_proj.weight", "layers.0.attn.c_attn.lora_a.weight", "blk.0.attn_q.lora_a", ""] {
            assert_eq!(parse(other), None);
        }
    }

    #[test]
    fn paths_go_there_and_back() {
        let llama = facts("LlamaForCausalLM");
        let names = Names { facts: &llama, family: family("llama").ok() };
        for (ours, theirs) in [
            ("layers.3.attn.output_proj", "model.layers.3.self_attn.o_proj"),
            ("layers.12.mlp.w1", "model.layers.12.mlp.gate_proj"),
            ("output", "lm_head"),
        ] {
            assert_eq!(names.theirs(ours).as_deref(), Some(theirs));
            assert_eq!(names.ours(theirs).as_deref(), Some(ours));
        }
        for other in ["model.layers.0.self_attn.qkv_proj", "model.layers.00.mlp.up_proj", "model.embed_tokens", "x"] {
            assert_eq!(names.ours(other), None);
        }
        let scores = facts("MistralForSequenceClassification");
        let names = Names { facts: &scores, family: family("mistral").ok() };
        assert_eq!(names.theirs("output").as_deref(), Some("score"));
    }

    #[test]
    fn llama_4_has_a_decoder() {
        let facts = facts("Llama4ForConditionalGeneration");
        let names = Names { facts: &facts, family: family("llama4_text").ok() };
        let shared = "language_model.model.layers.0.feed_forward.shared_expert.up_proj";
        assert_eq!(names.theirs("layers.0.mlp.shared_expert.w3").as_deref(), Some(shared));
        assert_eq!(names.ours(shared).as_deref(), Some("layers.0.mlp.shared_expert.w3"));
        let expert = "language_model.model.layers.0.feed_forward.experts.7.gate_proj";
        assert_eq!(names.expert("layers.0.mlp.experts", 7, "gate").as_deref(), Some(expert));
        assert_eq!(names.our_expert(expert), Some(("layers.0.mlp.experts".to_string(), 7, "gate")));
    }

    #[test]
    fn families_are_found_by_builder() {
        assert!(family_of_builder("torchtune.models.llama3_2.lora_llama3_2_1b").is_some_and(|f| f.interleaved));
        assert!(family_of_builder("torchtune.models.qwen2_5.lora_qwen2_5_7b_base").is_some_and(|f| !f.interleaved));
        assert!(family_of_builder("mine.models.llama2.x").is_none() && family("gpt2").is_err());
    }
}

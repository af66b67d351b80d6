//! What has to be known of the base besides the adapter: its architecture, its numbers of heads and of experts.
//!
//! An adapter holds it in [`Adapter::about`]; a GGUF file in its metadata, where this program wrote it, or the base's
//! `config.json` beside it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::names::{self, Architecture};
use crate::adapter::Adapter;
use crate::error::{Error, Result};

/// The class of transformers, or llama.cpp's name.
pub const ARCHITECTURE: &str = "architecture";
/// Heads of the queries.
pub const HEADS: &str = "num_attention_heads";
/// Heads of keys and values.
pub const KEY_HEADS: &str = "num_key_value_heads";
/// Experts of a layer.
pub const EXPERTS: &str = "num_experts";

/// What a model's `config.json` says, in the words of [`Adapter::about`].
pub fn of_config(config: &Map<String, Value>) -> BTreeMap<String, String> {
    let text = config.get("text_config").and_then(Value::as_object);
    let field = |name: &str| text.and_then(|text| text.get(name)).or_else(|| config.get(name));
    let number = |names: &[&str]| names.iter().find_map(|name| field(name)?.as_u64()).map(|n| n.to_string());
    let class = field("architectures").and_then(|all| all.get(0)?.as_str()).map(str::to_string);
    let found = [
        (ARCHITECTURE, class),
        (HEADS, number(&[HEADS])),
        (KEY_HEADS, number(&[KEY_HEADS, HEADS])),
        (EXPERTS, number(&["num_local_experts", "num_experts", "n_routed_experts"])),
    ];
    found.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))).collect()
}

/// Adds to an adapter what the `config.json` of its base says.
pub fn tell(adapter: &mut Adapter, config: &Map<String, Value>) {
    adapter.about.extend(of_config(config));
}

/// The architecture of the adapter's base.
pub fn architecture(adapter: &Adapter) -> Result<&'static Architecture> {
    let carried = adapter.carried.fields.iter().find(|(name, _)| name == "auto_mapping");
    let carried = carried.and_then(|(_, text)| serde_json::from_str::<Value>(text).ok());
    let class = carried.as_ref().and_then(|mapping| mapping.get("base_model_class")?.as_str());
    let Some(name) = adapter.about.get(ARCHITECTURE).map(String::as_str).or(class) else {
        return Err(Error::missing("the architecture of the base is not known, and GGUF has other names for each")
            .at_key("general.architecture")
            .hint("the config.json of the base model says it"));
    };
    names::architecture(name).ok_or_else(|| unknown(name))
}

/// The error for an architecture that is not in the table.
pub fn unknown(name: &str) -> Error {
    let known: Vec<_> = names::ARCHITECTURES.iter().map(|a| a.name).collect();
    Error::unsupported(format!("architecture `{name:.60}`, whose names in GGUF are not known here"))
        .at_key("general.architecture")
        .hint(format!("known: {}", known.join(", ")))
}

/// A number out of [`Adapter::about`].
pub fn number(about: &BTreeMap<String, String>, name: &str) -> Option<usize> {
    about.get(name)?.parse().ok().filter(|n| *n > 0)
}

/// Which number of heads the rows of this tensor are in, where they are in another order than transformers'.
pub fn heads_of(architecture: &Architecture, name: &str) -> Option<&'static str> {
    let leaf = name.rsplit('.').next().filter(|_| architecture.permuted)?;
    match leaf {
        "attn_q" => Some(HEADS),
        "attn_k" => Some(KEY_HEADS),
        _ => None,
    }
}

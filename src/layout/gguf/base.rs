//! What has to be known of the base besides the adapter: its architecture, its numbers of heads and of experts.
//!
//! An adapter holds it in [`Adapter::about`]; a GGUF file in its metadata, where this program wrote it, or the base's
//! `config.json` beside it.

use serde_json::{Map, Value};

use super::names::{self, Architecture};
pub use super::words::{ARCHITECTURE, EXPERTS, HEADS, KEY_HEADS, KEYS, number, of_config};
use crate::adapter::Adapter;
use crate::error::{Error, Result};

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
            .hint("--base names the base model, whose config.json says it"));
    };
    names::architecture(name).ok_or_else(|| unknown(name))
}

/// The error for an architecture that is not in the table.
pub fn unknown(name: &str) -> Error {
    Error::unsupported(format!("architecture `{name:.60}`, whose names in GGUF are not known here"))
        .at_key("general.architecture")
        .hint("those that are known are listed in docs/layouts/gguf.md")
}

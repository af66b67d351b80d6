//! Tensors that PEFT saves whole, beside any tuner's own: `modules_to_save`, trained biases, resized embeddings, and
//! the rows of trainable tokens.

use serde_json::Value;

use super::Reader;
use crate::adapter::delta::{Delta, Full, TokenRows, full::Mode};
use crate::adapter::{Note, SiteKind, Target};
use crate::error::{Context, Error, Result};
use crate::names::ModulePath;

/// Takes all whole tensors. They come first in their targets: an embedding that was saved because it grew is
/// replaced before its own low-rank update is added.
pub fn read(reader: &mut Reader) -> Result<()> {
    for (name, part) in std::mem::take(&mut reader.modules.saved) {
        if name.split('.').any(|c| c == "original_module") {
            reader.notes.push(Note::info(&part.key, "the untrained copy of a saved module; left out"));
            continue;
        }
        if part.tensor.elements() == 0 {
            return Err(empty(&part.key));
        }
        let delta = Delta::Full(Full { tensor: part.tensor, mode: Mode::Replace });
        if let Some(path) = name.strip_suffix(".weight") {
            target(reader, path).weight.insert(0, delta);
        } else if let Some(path) = name.strip_suffix(".bias") {
            target(reader, path).bias.insert(0, delta);
        } else {
            let target = target(reader, &name);
            target.site = SiteKind::Parameter;
            target.weight.insert(0, delta);
        }
    }
    Ok(())
}

/// Takes the rows of trainable tokens. The config gives their ids, as one list or by module.
pub fn read_tokens(reader: &mut Reader) -> Result<()> {
    let places: Vec<_> = reader
        .modules
        .tuned
        .iter()
        .filter(|(_, parts)| parts.contains_key("trainable_tokens_delta"))
        .map(|(place, _)| place.clone())
        .collect();
    for place in places {
        let Some(parts) = reader.modules.tuned.get_mut(&place) else { continue };
        let Some(part) = parts.remove("trainable_tokens_delta") else { continue };
        let ids = token_ids(reader, &place.0)?;
        let delta = Delta::TokenRows(TokenRows { ids, rows: part.tensor });
        target(reader, place.0.as_str()).weight.push(delta);
    }
    Ok(())
}

fn token_ids(reader: &Reader, path: &ModulePath) -> Result<Vec<usize>> {
    let name = if reader.config.peft_type == "TRAINABLE_TOKENS" { "token_indices" } else { "trainable_token_indices" };
    let listed = match reader.config.value(name) {
        Some(Value::Object(by_module)) => by_module
            .iter()
            .find(|(module, _)| path.as_str() == *module || path.as_str().ends_with(&format!(".{module}")))
            .map(|(_, ids)| ids),
        other => other,
    };
    let ids = listed
        .and_then(Value::as_array)
        .ok_or_else(|| Error::missing(format!("no token ids for `{path}`, whose rows are in the file")).at_key(name))?;
    ids.iter()
        .map(|id| id.as_u64().and_then(|id| usize::try_from(id).ok()))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::malformed("expected a list of token ids"))
        .at_key(name)
}

/// The target at `path`, made if need be.
pub fn target<'r>(reader: &'r mut Reader, path: &str) -> &'r mut Target {
    reader.adapter.targets.entry(ModulePath::from(path)).or_default()
}

/// A tensor without elements: what is left when a sharded model is saved without gathering it first.
pub fn empty(key: &str) -> Error {
    Error::malformed("has no elements: the values are not in this file")
        .at_key(key)
        .hint("saved under ZeRO-3 or FSDP without gathering the weights? save the adapter again from the trainer")
}

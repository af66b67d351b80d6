//! Tensors that PEFT saves whole, beside any tuner's own: `modules_to_save`, trained biases, resized embeddings, and
//! the rows of trainable tokens.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;

use super::keys::Part;
use super::writer::Writer;
use super::{Reader, keys};
use crate::adapter::delta::{Delta, Full, TokenRows, full::Mode};
use crate::adapter::{Note, SiteKind, Target};
use crate::error::{Context, Error, Result};
use crate::names::ModulePath;
use crate::tensor::Tensor;

/// Field with the ids of token rows where they are all the tuner does, and where they lie beside what it does.
pub const TOKENS_OF_TUNER: &str = "token_indices";
/// See [`TOKENS_OF_TUNER`].
pub const TOKENS_BESIDE_TUNER: &str = "trainable_token_indices";

/// How components of names begin that are a tuner's or a program's own, and never a model's.
const OTHERS: [&str; 7] = ["lora_", "hada_", "lokr_", "oft_", "boft_", "ia3_", "vera_"];

/// Takes all whole tensors. They come first in their targets: an embedding that was saved because it grew is
/// replaced before its own low-rank update is added.
pub fn read(reader: &mut Reader) -> Result<()> {
    refuse_others(reader)?;
    note_unlisted(reader)?;
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

/// An error for a tensor that is of a tuner, but not of this one.
fn refuse_others(reader: &Reader) -> Result<()> {
    let of_others = |name: &str| name.split('.').any(|c| OTHERS.iter().any(|start| c.starts_with(start)));
    match reader.modules.saved.iter().find(|(name, _)| of_others(name)) {
        None => Ok(()),
        Some((_, part)) => {
            let what = format!("not a tensor of peft_type {}", reader.config.peft_type);
            Err(Error::unrecognised(what).at_key(&part.key))
        }
    }
}

/// Names tensors that nothing in the config of a LoRA speaks of: they may be the model's, or of another program.
fn note_unlisted(reader: &mut Reader) -> Result<()> {
    if reader.config.peft_type != "LORA" {
        return Ok(());
    }
    let listed: HashSet<_> = reader.config.names("modules_to_save")?.into_iter().collect();
    let lengths: BTreeSet<usize> = listed.iter().map(String::len).collect();
    let is_listed = |module: &str| {
        let ends = lengths.iter().filter_map(|length| module.get(module.len().checked_sub(*length)?..));
        ends.into_iter().any(|end| listed.contains(end))
    };
    let tuned: HashSet<&str> = reader.modules.tuned.keys().map(|(module, _)| module.as_str()).collect();
    let sizes: BTreeSet<usize> = tuned.iter().map(|module| module.len()).collect();
    let is_in_tuned =
        |path: &str| sizes.iter().any(|size| path.get(..*size).is_some_and(|start| tuned.contains(start)));
    let biases = reader.config.text("bias")?.is_some_and(|which| which != "none");
    let of_task = reader.config.text("task_type")?.is_some_and(|task| task.ends_with("_CLS") || task == "QUESTION_ANS");
    let spoken_of = |name: &str| {
        let path = name.trim_end_matches(".weight").trim_end_matches(".bias");
        let outer = path.match_indices('.').filter_map(|(at, _)| path.get(..at)).chain([path]);
        outer.into_iter().any(is_listed)
            || path.rsplit('.').next().is_some_and(|leaf| keys::EMBEDDINGS.contains(&leaf))
            || biases && name.ends_with(".bias")
            || of_task
            || is_in_tuned(path)
            || name.split('.').any(|c| c == "original_module")
    };
    // A name of one word is of no module, and where nothing is adapted nothing says that it is a LoRA at all.
    let stray = |part: &Part| !part.key.contains('.') || reader.modules.tuned.is_empty();
    if let Some((_, part)) = reader.modules.saved.iter().find(|(name, part)| stray(part) && !spoken_of(name)) {
        let what = "no tensor of a LoRA, and nothing in the config speaks of it as one of the model's";
        let hint = "modules that were trained whole are listed in modules_to_save";
        return Err(Error::unrecognised(what).at_key(&part.key).hint(hint));
    }
    let unknown: Vec<_> = reader.modules.saved.iter().filter(|(name, _)| !spoken_of(name)).collect();
    if let Some((_, first)) = unknown.first() {
        let what = "saved whole, and nothing in the config speaks of it; taken for one of the model's tensors";
        let more = if unknown.len() > 1 { format!(" ({} such tensors)", unknown.len()) } else { String::new() };
        reader.notes.push(Note::info(&first.key, format!("{what}{more}")));
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
    let own = reader.config.peft_type == "TRAINABLE_TOKENS";
    let name = if own { TOKENS_OF_TUNER } else { TOKENS_BESIDE_TUNER };
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

/// Writes every whole tensor and the rows of tokens; what is neither stays.
pub fn write(writer: &mut Writer) -> Result<()> {
    for (path, mut target) in std::mem::take(&mut writer.targets) {
        let replacement = take_replacement(&mut target.weight);
        let bias = take_replacement(&mut target.bias);
        let rows = match target.weight.first() {
            Some(Delta::TokenRows(rows)) => Some(rows.clone()),
            _ => None,
        };
        if let Some(rows) = rows {
            target.weight.remove(0);
            if replacement.is_some() {
                let what = "replaced as a whole and again by rows, of which PEFT does only one";
                return Err(Error::unsupported(what).at_key(path.as_str()));
            }
            write_rows(writer, path.as_str(), rows)?;
        }
        write_whole(writer, path.as_str(), target.site, replacement, bias)?;
        if !target.weight.is_empty() || !target.bias.is_empty() || target.magnitude.is_some() {
            writer.targets.insert(path, target);
        }
    }
    Ok(())
}

fn take_replacement(deltas: &mut Vec<Delta>) -> Option<Tensor> {
    let Some(Delta::Full(Full { tensor, mode: Mode::Replace })) = deltas.first() else { return None };
    let tensor = tensor.clone();
    deltas.remove(0);
    Some(tensor)
}

fn write_rows(writer: &mut Writer, path: &str, TokenRows { ids, rows }: TokenRows) -> Result<()> {
    let own = writer.fields.contains_key(TOKENS_OF_TUNER);
    if writer.adapts(path) && !own {
        let what = format!("rows of tokens and {} on one module, of which PEFT does only one", writer.peft_type);
        return Err(Error::unsupported(what).at_key(path).hint("write them as two adapters"));
    }
    let wrapper = if own { "" } else { ".token_adapter" };
    writer.selection.tokens.insert(path.to_string(), ids.into());
    writer.put(&format!("{path}{wrapper}"), 0, "trainable_tokens_delta", rows)
}

fn write_whole(
    writer: &mut Writer,
    path: &str,
    site: SiteKind,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
) -> Result<()> {
    // PEFT adapts an attention module as one: what it had lies a level further down.
    let (parent, leaf) = path.rsplit_once('.').unwrap_or(("", path));
    let inside = (leaf == "in_proj_bias" || leaf == "out_proj") && writer.adapts(parent);
    let place = if inside { format!("{parent}.base_layer.{leaf}") } else { path.to_string() };
    if site == SiteKind::Parameter {
        return weight.map_or(Ok(()), |tensor| writer.insert(keys::saved(&place), tensor));
    }
    let adapts = writer.adapts(path) || inside;
    let wrapper = if adapts { ".base_layer" } else { "" };
    match (adapts, weight.is_some(), bias.is_some()) {
        (false, true, _) => writer.selection.saved.push(path.to_string()),
        (false, false, true) => writer.selection.biases.1 += 1,
        (true, _, true) => writer.selection.biases.0 += 1,
        _ => {}
    }
    for (name, tensor) in [("weight", weight), ("bias", bias)] {
        if let Some(tensor) = tensor {
            writer.insert(keys::saved(&format!("{place}{wrapper}.{name}")), tensor)?;
        }
    }
    Ok(())
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

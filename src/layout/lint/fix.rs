//! Repairs: the adapter as it would be with every certain repair made, and nothing else changed.
//!
//! Tensors keep their bytes and their order; a config keeps its fields and their order. Where the adapter could be read
//! before, it has to read the same afterwards, or nothing is repaired at all.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::adapter::finding::Repair;
use crate::adapter::{Adapter, Finding};
use crate::container::json;
use crate::error::{Error, Result};
use crate::layout::{self, Draft, Source};
use crate::tensor::StateDict;

use super::Looked;

/// What PEFT calls the tensors.
const TENSOR_NAME: &str = "adapter_model.safetensors";
/// Rounds of repairs; a repair brings up no more than one other.
const MAX_ROUNDS: usize = 8;

/// What would be written.
#[derive(Debug)]
pub struct Fixed {
    /// The files.
    pub draft: Draft,
    /// What they repair.
    pub done: Vec<Finding>,
}

/// Makes the repairs of PEFT adapters, and those that show only once others are made; none where there is nothing that
/// can be repaired.
pub fn fix(looked: &Looked) -> Result<Option<Fixed>> {
    let Some(peft) = looked.layout.filter(|name| *name == "peft") else { return Ok(None) };
    let peft = layout::named(peft)?;
    let Some((first, mut done)) = looked.source.as_ref().and_then(|source| once(source, &looked.findings)) else {
        return Ok(None);
    };
    let mut again = super::look_at(first, Some(peft));
    for _ in 0..MAX_ROUNDS {
        let Some((next, more)) = again.source.as_ref().and_then(|now| once(now, &again.findings)) else { break };
        done.extend(more);
        again = super::look_at(next, Some(peft));
    }
    let Some(source) = again.source else { return Ok(None) };
    require_same(looked, again.adapter.as_ref(), &source.path)?;
    let Some((_, config)) = source.config else { return Ok(None) };
    let draft = Draft {
        tensor_file: TENSOR_NAME.to_string(),
        tensors: source.tensors,
        metadata: source.metadata,
        texts: vec![("adapter_config.json".to_string(), json::text(&Value::Object(config))?)],
        ..Draft::default()
    };
    Ok(Some(Fixed { draft, done }))
}

/// The adapter after one round of repairs, and those that were made; none where there were none.
fn once(source: &Source, findings: &[Finding]) -> Option<(Source, Vec<Finding>)> {
    let (config_path, raw) = source.config.as_ref()?;
    let wanted: Vec<&Finding> = findings.iter().filter(|f| f.repair.is_some()).collect();
    let (tensors, mut done) = tensors(source, &wanted);
    let mut config = raw.clone();
    done.extend(edit(&mut config, &wanted));
    if done.is_empty() {
        return None;
    }
    let fixed = Source {
        path: source.path.clone(),
        tensor_file: source.tensor_file.with_file_name(TENSOR_NAME),
        file: Arc::clone(&source.file),
        shards: source.shards.clone(),
        tensors,
        metadata: metadata(source),
        other_values: Vec::new(),
        gguf: None,
        config: Some((config_path.clone(), config)),
        settings: source.settings.clone(),
        given: source.given.clone(),
    };
    Some((fixed, done))
}

/// The tensors under the keys they shall have, and what was repaired by that.
fn tensors(source: &Source, wanted: &[&Finding]) -> (StateDict, Vec<Finding>) {
    let mut out = StateDict::new();
    let mut done = Vec::new();
    let mut by_key: HashMap<&str, Vec<&Finding>> = HashMap::new();
    wanted.iter().for_each(|f| by_key.entry(f.key.as_str()).or_default().push(f));
    for (key, tensor) in &source.tensors {
        let here = || by_key.get(key.as_str()).into_iter().flatten();
        if here().any(|f| f.repair == Some(Repair::Drop)) {
            done.extend(here().filter(|f| f.repair == Some(Repair::Drop)).map(|f| (*f).clone()));
            continue;
        }
        let renames = || here().filter(|f| matches!(f.repair, Some(Repair::Rename(_))));
        let plain = renames().find_map(|f| match &f.repair {
            Some(Repair::Rename(plain)) => Some(plain),
            _ => None,
        });
        // A key that another tensor has stays with that one.
        let free = |plain: &&String| !out.contains_key(*plain) && !source.tensors.contains_key(*plain);
        match plain.filter(free) {
            Some(plain) => {
                done.extend(renames().map(|f| (*f).clone()));
                out.insert(plain.clone(), tensor.clone());
            }
            None => drop(out.insert(key.clone(), tensor.clone())),
        }
    }
    let file = wanted.iter().filter(|f| matches!(f.repair, Some(Repair::Container | Repair::LeaveBehind)));
    done.extend(file.map(|f| (*f).clone()));
    (out, done)
}

/// Makes the repairs of the config, and gives those that change something.
fn edit(config: &mut Map<String, Value>, wanted: &[&Finding]) -> Vec<Finding> {
    let before = config.clone();
    let mut done = Vec::new();
    let mut listed = HashMap::new();
    let mut removals: BTreeMap<&str, Vec<(&str, &Finding)>> = BTreeMap::new();
    // What is added comes first, so that no list becomes empty on the way.
    for finding in wanted {
        let changes = match &finding.repair {
            Some(Repair::Set(field, value)) => {
                config.insert(field.clone(), value.clone());
                before.get(field) != Some(value)
            }
            Some(Repair::Append(field, entry)) => append(config, &mut listed, field, entry),
            Some(Repair::Remove(field, entry)) => {
                removals.entry(field).or_default().push((entry, finding));
                false
            }
            _ => false,
        };
        done.extend(changes.then(|| (*finding).clone()));
    }
    for (field, entries) in removals {
        done.extend(remove(config, field, &entries).into_iter().cloned());
    }
    done
}

/// `listed`: what the lists have that something was added to.
fn append<'f>(
    config: &mut Map<String, Value>,
    listed: &mut HashMap<&'f str, HashSet<String>>,
    field: &'f str,
    entry: &str,
) -> bool {
    let value = config.entry(field).or_insert(Value::Null);
    match value {
        Value::Null => *value = Value::Array(Vec::new()),
        Value::String(one) => *value = Value::Array(vec![Value::String(std::mem::take(one))]),
        _ => {}
    }
    let Some(list) = value.as_array_mut() else { return false };
    let known = match listed.entry(field) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(place) => {
            let names: Option<HashSet<_>> = list.iter().map(|v| v.as_str().map(str::to_string)).collect();
            let Some(names) = names else { return false };
            place.insert(names)
        }
    };
    let is_new = known.insert(entry.to_string());
    if is_new {
        list.push(Value::String(entry.to_string()));
    }
    is_new
}

/// Takes entries out of a field, and gives the findings of those that were there.
fn remove<'f>(config: &mut Map<String, Value>, field: &str, entries: &[(&str, &'f Finding)]) -> Vec<&'f Finding> {
    let mut names: HashSet<&str> = entries.iter().map(|(entry, _)| *entry).collect();
    let mut gone = HashSet::new();
    match config.get_mut(field) {
        Some(Value::Object(map)) => map.retain(|name, _| {
            let goes = names.contains(name.as_str());
            if goes {
                gone.insert(name.clone());
            }
            !goes
        }),
        Some(Value::Array(list)) => {
            let is_named = |names: &HashSet<&str>, v: &Value| v.as_str().is_some_and(|v| names.contains(v));
            // Without a single entry PEFT would choose by the kind of the model.
            if field == "target_modules" && list.iter().all(|v| is_named(&names, v)) {
                let is_there = |entry: &str| list.iter().any(|v| v.as_str() == Some(entry));
                entries.iter().rev().find(|(entry, _)| is_there(entry)).map(|(entry, _)| names.remove(entry));
            }
            list.retain(|v| {
                let goes = is_named(&names, v);
                if goes {
                    gone.extend(v.as_str().map(str::to_string));
                }
                !goes
            });
            if list.is_empty() {
                config.insert(field.to_string(), Value::Null);
            }
        }
        Some(Value::String(one)) if names.contains(one.as_str()) && field != "target_modules" => {
            gone.insert(std::mem::take(one));
            config.insert(field.to_string(), Value::Null);
        }
        _ => {}
    }
    entries.iter().filter(|(entry, _)| gone.contains(*entry)).map(|(_, finding)| *finding).collect()
}

fn metadata(source: &Source) -> Vec<(String, String)> {
    let kept = source.metadata.iter().filter(|(key, _)| key != "format").cloned();
    std::iter::once(("format".to_string(), "pt".to_string())).chain(kept).collect()
}

/// An error where an adapter that could be read would read in another way.
fn require_same(looked: &Looked, after: Option<&Adapter>, path: &Path) -> Result<()> {
    let Some(before) = &looked.adapter else { return Ok(()) };
    if after.is_some_and(|after| after.targets == before.targets && after.residual_base == before.residual_base) {
        return Ok(());
    }
    let what = "the repairs together would change what the adapter does; nothing is written";
    Err(Error::mismatch(what).in_file(path).hint("please report it"))
}

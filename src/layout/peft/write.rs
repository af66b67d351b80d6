//! An adapter as PEFT's files: which tuner holds it, and what of the config does not depend on that.
//!
//! The config is written in full, every field that PEFT itself writes. What the tensors decide comes first, then what
//! the adapter's own config said if it was one of the same tuner, then PEFT's defaults.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::config::compile_whole;
use super::tuner::{self, Tuner, supertuning};
use super::writer::{Selection, Writer};
use super::{keys, saved, scaling};
use crate::adapter::delta::sparse::{Positions, Sparse};
use crate::adapter::delta::{Delta, Derived, Full, Orthogonal, full::Mode};
use crate::adapter::selection::{Names, Selection as Choice};
use crate::adapter::{Adapter, Note};
use crate::container::json;
use crate::error::{Error, Result};
use crate::layout::Draft;
use crate::layout::source::BASE_FINGERPRINT;
use crate::tensor::Tensor;

/// The version of PEFT whose reading of the files is meant.
pub const PEFT_VERSION: &str = "0.21.2";
/// `target_modules` of an adapter that adapts no module.
const NO_MODULES: &str = "dummy-target-modules";

/// Fields of every tuner and their values where nothing else is said.
const COMMON_FIELDS: [(&str, &str); 6] = [
    ("auto_mapping", "null"),
    ("base_model_name_or_path", "null"),
    ("inference_mode", "true"),
    ("revision", "null"),
    ("target_modules", "null"),
    ("task_type", "null"),
];
/// Fields that choose modules. They are carried all together or made anew all together.
const SELECTING_FIELDS: [&str; 10] = [
    "bias",
    "exclude_modules",
    "feedforward_modules",
    "layers_pattern",
    "layers_to_transform",
    "modules_to_save",
    "target_modules",
    "target_parameters",
    saved::TOKENS_OF_TUNER,
    saved::TOKENS_BESIDE_TUNER,
];

/// The files of `adapter`.
pub fn write(adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
    let tuner = tuner_for(adapter)?;
    let Some(writing) = &tuner.writing else {
        return Err(Error::unsupported(format!("adapters of PEFT's tuner {} are read, not written", tuner.peft_type)));
    };
    let mut writer = Writer::new(adapter, tuner.peft_type);
    (writing.write)(&mut writer)?;
    saved::write(&mut writer)?;
    require_written(&writer, tuner)?;
    if writer.tensors.is_empty() {
        return Err(Error::missing("an adapter without tensors: there is nothing to write"));
    }
    for key in writer.tensors.keys() {
        keys::check(key, tuner.roles)?;
    }
    let config = config(&mut writer, tuner, writing.fields)?;
    let draft = Draft {
        tensor_file: "adapter_model.safetensors".to_string(),
        tensors: in_file_order(writer.tensors).into_iter().collect(),
        metadata: metadata(adapter),
        texts: vec![("adapter_config.json".to_string(), json::text(&Value::Object(config))?)],
        ..Draft::default()
    };
    Ok((draft, writer.notes))
}

/// The tuner whose files can hold all the adapter does; PEFT has one an adapter.
fn tuner_for(adapter: &Adapter) -> Result<&'static Tuner> {
    let mut found = BTreeSet::new();
    for (path, target) in &adapter.targets {
        for delta in target.weight.iter().chain(&target.bias) {
            match peft_type(delta) {
                Some(name) => drop(found.insert(name)),
                None if matches!(delta, Delta::Full(_) | Delta::TokenRows(_)) => {}
                None => {
                    let why =
                        if let Delta::Opaque(opaque) = delta { format!(": {}", opaque.reason) } else { String::new() };
                    let what = format!("{} cannot be written in PEFT's layout{why}", delta.kind());
                    return Err(Error::unsupported(what).at_key(path.as_str()));
                }
            }
        }
    }
    match found.iter().collect::<Vec<_>>().as_slice() {
        [] if ["LN_TUNING", "TRAINABLE_TOKENS", "BEFT"].contains(&adapter.declared.as_str()) => {
            tuner::by_type(&adapter.declared)
        }
        [] => tuner::by_type("LORA"),
        [one] => tuner::by_type(one),
        several => {
            let names: Vec<&str> = several.iter().map(|name| **name).collect();
            let what = format!("changes of several kinds: {}; PEFT has one kind an adapter", names.join(", "));
            Err(Error::unsupported(what).hint("write each kind as an adapter of its own"))
        }
    }
}

/// The tuner a change belongs to; none where any may have it, or none is written with it.
fn peft_type(delta: &Delta) -> Option<&'static str> {
    Some(match delta {
        Delta::LowRank(factors) if factors.name == supertuning::NAME => "SUPERTUNING",
        Delta::LowRank(_) | Delta::Kasa(_) | Delta::Qalora(_) => "LORA",
        Delta::Hadamard(_) => "LOHA",
        Delta::Kronecker(_) => "LOKR",
        Delta::Rescale(_) => "IA3",
        Delta::Orthogonal(Orthogonal::Oft(_)) => "OFT",
        Delta::Orthogonal(Orthogonal::Boft(_)) => "BOFT",
        Delta::Orthogonal(Orthogonal::Hra(_)) => "HRA",
        Delta::Derived(Derived::Vera(vera)) if vera.probabilistic => "PVERA",
        Delta::Derived(Derived::Vera(_)) => "VERA",
        Delta::Derived(Derived::RandLora(_)) => "RANDLORA",
        Delta::Fourier(_) => "FOURIERFT",
        Delta::Circulant(_) => "C3A",
        Delta::Hira(_) => "HIRA",
        Delta::Miss(_) => "MISS",
        Delta::Road(_) => "ROAD",
        Delta::Deft(_) => "DEFT",
        Delta::Osf(_) => "OSF",
        Delta::Sparse(Sparse { positions: Positions::Pairs(_), .. }) => "SHIRA",
        Delta::Sparse(Sparse { positions: Positions::Drawn { .. }, .. }) => "WAVEFT",
        Delta::Sparse(Sparse { positions: Positions::Sized { .. }, .. }) => return None,
        Delta::Sparse(_) => "SUPERTUNING",
        Delta::Glora(_) => "GLORA",
        Delta::Peanut(_) => "PEANUT",
        _ => return None,
    })
}

/// An error for the first change that neither the tuner nor the whole tensors took.
fn require_written(writer: &Writer, tuner: &Tuner) -> Result<()> {
    let Some((path, target)) = writer.targets.iter().next() else { return Ok(()) };
    let name = tuner.peft_type;
    let left: Vec<_> =
        target.weight.iter().map(|d| (d, "weight")).chain(target.bias.iter().map(|d| (d, "bias"))).collect();
    let error = match left.first() {
        Some((Delta::Full(Full { mode: Mode::Add(_), .. }), part)) => {
            Error::unsupported(format!("a full difference of the {part}, which PEFT's layout cannot hold"))
                .hint("PEFT holds whole tensors in place of the base's; merge this part into the base")
        }
        Some((delta, part)) => Error::unsupported(format!(
            "{} of the {part}, which a PEFT adapter of type {name} cannot hold here",
            delta.kind()
        )),
        None => Error::unsupported(format!("a magnitude, which a PEFT adapter of type {name} cannot hold here")),
    };
    Err(error.at_key(path.as_str()))
}

/// As safetensors lays tensors out: wide types first, then by name.
fn in_file_order(tensors: std::collections::BTreeMap<String, Tensor>) -> Vec<(String, Tensor)> {
    let mut out: Vec<_> = tensors.into_iter().collect();
    out.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype));
    out
}

fn metadata(adapter: &Adapter) -> Vec<(String, String)> {
    let carried = adapter.carried.metadata.iter().filter(|(key, _)| key != "format" && key != BASE_FINGERPRINT);
    let base = adapter.about.get(BASE_FINGERPRINT).map(|hash| (BASE_FINGERPRINT.to_string(), hash.clone()));
    std::iter::once(("format".to_string(), "pt".to_string())).chain(carried.cloned()).chain(base).collect()
}

fn config(writer: &mut Writer, tuner: &Tuner, own: &[(&str, &str)]) -> Result<Map<String, Value>> {
    let mut out = Map::new();
    for (name, text) in COMMON_FIELDS.iter().chain(own) {
        out.insert(name.to_string(), serde_json::from_str(text).map_err(|e| Error::malformed(e.to_string()))?);
    }
    let adapter = writer.adapter;
    let same_modules = writer.carried_fields().next().is_some() && adapter.carried.outline == adapter.outline();
    let carried: Map<_, _> = writer
        .carried_fields()
        .filter_map(|(name, text)| Some((name.to_string(), serde_json::from_str(text).ok()?)))
        .collect();
    // Rows of tokens follow a tied embedding to its other uses, which need not be named.
    let follow = tuner.peft_type == "TRAINABLE_TOKENS";
    let chosen = !same_modules || follow || chooses(&carried, &writer.selection.modules);
    if !chosen {
        let what = "does not choose all modules that the file has tensors for; their paths are written";
        writer.notes.push(Note::info("target_modules", what));
    }
    let same_modules = same_modules && chosen;
    for (name, text) in writer.carried_fields() {
        // Older words of the tuner mean what newer fields say; what nobody knows is carried as it is.
        let old = tuner.fields.contains(&name) || name == BASE_FINGERPRINT;
        if !old && let Ok(value) = serde_json::from_str(text) {
            out.insert(name.to_string(), value);
        }
    }
    if !same_modules {
        select(&mut out, &writer.selection, adapter);
    }
    for (name, value) in &writer.fields {
        let selects = SELECTING_FIELDS.contains(&name.as_str());
        if !(selects && same_modules) {
            out.insert(name.clone(), value.clone());
        }
    }
    for name in ["base_model_name_or_path", "revision", "task_type"] {
        if let Some(text) = adapter.about.get(name) {
            out.insert(name.to_string(), json!(text));
        }
    }
    out.insert("peft_type".to_string(), json!(tuner.peft_type));
    if !writer.fields.contains_key("peft_version") {
        out.insert("peft_version".to_string(), json!(PEFT_VERSION));
    }
    out.retain(|name, value| name != "peft_version" || !value.is_null());
    out.sort_keys();
    Ok(out)
}

/// Whether the carried fields choose each of these modules, as far as that can be told.
fn chooses(carried: &Map<String, Value>, modules: &BTreeSet<String>) -> bool {
    let names = |field: &str| match carried.get(field)? {
        Value::String(one) => compile_whole(one).ok().map(Names::Pattern),
        Value::Array(all) => Some(Names::Listed(all.iter().filter_map(|v| Some(v.as_str()?.to_string())).collect())),
        _ => None,
    };
    let included = match carried.get("target_modules") {
        Some(Value::String(word)) if word == NO_MODULES => return modules.is_empty(),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("all-linear") => return true,
        Some(Value::String(_)) => match names("target_modules") {
            Some(pattern) => pattern,
            None => return true, // an expression that is not evaluated here
        },
        _ => names("target_modules").unwrap_or(Names::Listed(BTreeSet::new())),
    };
    let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    let layers = carried.get("layers_to_transform").and_then(|layers| match layers {
        Value::Array(all) => Some(all.iter().filter_map(number).collect()),
        one => number(one).map(|n| vec![n]),
    });
    let layer_lists = match carried.get("layers_pattern") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(all)) => all.iter().filter_map(|v| Some(v.as_str()?.to_string())).collect(),
        _ => Vec::new(),
    };
    let selection = Choice { included, excluded: names("exclude_modules"), layers, layer_lists };
    // PEFT adapts every use of a tied embedding where it is asked for one.
    let follows = carried.get("ensure_weight_tying") == Some(&json!(true));
    let uses = |path: &str| path.rsplit('.').next().is_some_and(|leaf| keys::EMBEDDINGS.contains(&leaf));
    modules.iter().all(|path| selection.contains(&path.as_str().into()) || follows && uses(path))
}

/// The modules as a list of paths; as one expression where a path of the list is the end of another one of the model's,
/// which PEFT would take as well.
fn modules(selection: &Selection, adapter: &Adapter) -> Value {
    let all: BTreeSet<&str> = adapter
        .targets
        .keys()
        .flat_map(|path| {
            let path = path.as_str();
            path.match_indices('.').map(move |(at, _)| &path[..at]).chain([path])
        })
        .collect();
    let ends = |path: &&str| path.match_indices('.').any(|(at, _)| selection.modules.contains(&path[at + 1..]));
    if !all.iter().any(ends) {
        return json!(selection.modules);
    }
    let paths: Vec<_> = selection.modules.iter().map(|path| scaling::escaped(path, true)).collect();
    json!(paths.join("|"))
}

/// The fields that choose modules, by their full paths: what else the base has is not known here.
fn select(out: &mut Map<String, Value>, selection: &Selection, adapter: &Adapter) {
    let mut set = |name: &str, value: Value| {
        if out.contains_key(name) {
            out.insert(name.to_string(), value);
        }
    };
    let none_if = |empty: bool, value: Value| if empty { Value::Null } else { value };
    for name in ["exclude_modules", "layers_pattern", "layers_to_transform"] {
        set(name, Value::Null);
    }
    let nothing = selection.modules.is_empty() && selection.parameters.is_empty();
    set("target_modules", if nothing { json!(NO_MODULES) } else { modules(selection, adapter) });
    set("target_parameters", none_if(selection.parameters.is_empty(), json!(selection.parameters)));
    set("modules_to_save", none_if(selection.saved.is_empty(), json!(selection.saved)));
    set(
        "bias",
        json!(match selection.biases {
            (0, 0) => "none",
            (_, 0) => "lora_only",
            _ => "all",
        }),
    );
    set(saved::TOKENS_BESIDE_TUNER, none_if(selection.tokens.is_empty(), Value::Object(selection.tokens.clone())));
}

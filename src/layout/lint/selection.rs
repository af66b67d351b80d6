//! Which modules the config chooses, against those that the file has tensors for (PEFT).
//!
//! Rules of huggingface/peft, `src/peft/tuners/tuners_utils.py`, `check_target_module_exists`, and
//! `src/peft/utils/other.py`, `_set_trainable`.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::{Value, json};

use crate::adapter::Finding;
use crate::adapter::finding::Repair;
use crate::layout::peft::config::{Config, compile_whole};

use super::paths::{EMBEDDINGS, is_end, is_listed, leaf};
use super::{Seen, codes};

/// What writers put where no module is meant.
const NO_MODULES: &str = "dummy-target-modules";
/// Heads that PEFT adds by the task.
const HEADS_OF_TASKS: [&str; 3] = ["score", "classifier", "qa_outputs"];

pub(super) fn check(seen: &Seen) -> Vec<Finding> {
    let Some(config) = seen.config.as_ref().filter(|_| seen.tuner.is_some()) else { return Vec::new() };
    let mut out = saved(seen, config);
    let modules: BTreeSet<&str> = seen
        .tuned()
        .filter(|(_, role)| *role != "trainable_tokens_delta")
        .map(|(key, _)| of_wrapper(&key.spelling.path))
        .collect();
    if modules.is_empty() || modules.contains("") {
        return out;
    }
    out.extend(parameters(config, &modules));
    out.extend(no_targets(seen, config, &modules));
    out.extend(targets(seen, config, &modules));
    out.extend(layers(config, &modules));
    out
}

/// The module that PEFT wrapped: what lies inside its wrapper is none of its own.
fn of_wrapper(path: &str) -> &str {
    path.split(".base_layer").next().unwrap_or(path)
}

/// One of PEFT's fields that is a list of names, or one expression.
enum Choice {
    Names(Vec<String>),
    Expression(Regex),
}

impl Choice {
    /// None where nothing can be said: not given, a word of PEFT's own, or an expression that is not evaluated.
    fn of(config: &Config, field: &str) -> Option<Choice> {
        match config.value(field)? {
            Value::String(text) if text.eq_ignore_ascii_case("all-linear") || text == NO_MODULES => None,
            Value::String(text) => compile_whole(text).ok().map(Choice::Expression),
            _ => config.names(field).ok().filter(|names| !names.is_empty()).map(Choice::Names),
        }
    }

    fn takes(&self, path: &str) -> bool {
        match self {
            Choice::Names(names) => names.iter().any(|name| is_end(path, name)),
            Choice::Expression(expression) => expression.is_match(path),
        }
    }
}

/// Module and name of each entry of `target_parameters`.
fn entries(config: &Config) -> Vec<(String, String)> {
    let names = config.names("target_parameters").unwrap_or_default();
    let split = |entry: String| match entry.rsplit_once('.') {
        Some((module, _)) => (module.to_string(), entry.clone()),
        None => (String::new(), entry),
    };
    names.into_iter().map(split).collect()
}

fn parameters(config: &Config, modules: &BTreeSet<&str>) -> Vec<Finding> {
    let idle = |(module, entry): (String, String)| {
        let found = module.is_empty() || modules.iter().any(|path| is_end(path, &module));
        let what = format!("`{entry}` names no module that the file has tensors for");
        (!found).then(|| Finding::new(&codes::IDLE_PARAMETER, "target_parameters", what))
    };
    entries(config).into_iter().filter_map(idle).collect()
}

/// A LoRA whose config chooses nothing at all.
fn no_targets(seen: &Seen, config: &Config, modules: &BTreeSet<&str>) -> Option<Finding> {
    seen.lora()?;
    let given = match config.value("target_modules") {
        None | Some(Value::Null) => false,
        Some(Value::Array(all)) => !all.is_empty(),
        Some(_) => true,
    };
    let by_parameter = entries(config);
    let others: Vec<_> = modules
        .iter()
        .filter(|path| !by_parameter.iter().any(|(module, _)| module.is_empty() || is_end(path, module)))
        .collect();
    if given || others.is_empty() {
        return None;
    }
    let what = format!("missing or empty, and the file has tensors for {} modules", others.len());
    let finding = Finding::new(&codes::NO_TARGETS, "target_modules", what);
    Some(finding.repair(Repair::Set("target_modules".to_string(), json!(others))))
}

fn targets(seen: &Seen, config: &Config, modules: &BTreeSet<&str>) -> Vec<Finding> {
    let mut out = Vec::new();
    let Some(chosen) = Choice::of(config, "target_modules") else { return out };
    if let Choice::Names(names) = &chosen {
        let whole: BTreeSet<&str> = seen.saved().map(|key| parent(&key.spelling.path)).collect();
        let idle = |name: &&String| !modules.iter().chain(&whole).any(|path| is_end(path, name)) && *name != NO_MODULES;
        let repair = |name: &String| Repair::Remove("target_modules".to_string(), name.clone());
        out.extend(names.iter().filter(idle).map(|name| {
            let what = format!("`{name}` names no module that the file has tensors for");
            let certain = names.len() > 1 || modules.iter().any(|path| !chosen.takes(path));
            Finding::new(&codes::IDLE_TARGET, "target_modules", what).maybe(certain.then(|| repair(name)))
        }));
    }
    let excluded = Choice::of(config, "exclude_modules");
    let listed = listed_layers(config);
    let by_parameter = entries(config);
    let follows = config.flag("ensure_weight_tying").unwrap_or(false);
    for path in modules {
        if follows && EMBEDDINGS.contains(&leaf(path)) {
            continue; // PEFT adapts every use where it is asked for one
        }
        if by_parameter.iter().any(|(module, _)| module.is_empty() || is_end(path, module)) {
            continue;
        }
        let (what, certain) = if excluded.as_ref().is_some_and(|choice| choice.takes(path)) {
            ("excluded by exclude_modules, and the file has tensors for it", false)
        } else if !chosen.takes(path) {
            ("not among the target_modules, and the file has tensors for it", true)
        } else if listed.as_ref().is_some_and(|all| layer(config, path).is_none_or(|n| !all.contains(&n))) {
            ("in no layer of layers_to_transform, and the file has tensors for it", false)
        } else {
            continue;
        };
        let is_list = matches!(chosen, Choice::Names(_));
        let repair = (certain && is_list).then(|| Repair::Append("target_modules".to_string(), path.to_string()));
        out.push(Finding::new(&codes::UNSELECTED, *path, what).maybe(repair));
    }
    out
}

/// The numbers of `layers_to_transform`.
fn listed_layers(config: &Config) -> Option<Vec<u64>> {
    match config.value("layers_to_transform")? {
        Value::Array(all) => Some(all.iter().filter_map(Value::as_u64).collect()),
        one => one.as_u64().map(|n| vec![n]),
    }
}

/// The number of the layer a module lies in: behind a name of `layers_pattern`, or the first number below another module.
fn layer(config: &Config, path: &str) -> Option<u64> {
    let names = config.names("layers_pattern").unwrap_or_default();
    let parts: Vec<&str> = path.split('.').collect();
    parts.windows(3).enumerate().find_map(|(at, three)| {
        let [before, number, _] = three else { return None };
        let fits = if names.is_empty() { at > 0 } else { names.iter().any(|n| n == before) };
        number.parse().ok().filter(|_| fits)
    })
}

fn layers(config: &Config, modules: &BTreeSet<&str>) -> Vec<Finding> {
    let Some(listed) = listed_layers(config) else { return Vec::new() };
    let found: BTreeSet<u64> = modules.iter().filter_map(|path| layer(config, path)).collect();
    let kept: Vec<u64> = listed.iter().copied().filter(|n| found.contains(n)).collect();
    let repair = (!kept.is_empty()).then(|| Repair::Set("layers_to_transform".to_string(), json!(kept)));
    let finding = |n: &u64| {
        let what = format!("the file has no tensors for layer {n}");
        Finding::new(&codes::IDLE_LAYER, "layers_to_transform", what).maybe(repair.clone())
    };
    listed.iter().filter(|n| !found.contains(n)).map(finding).collect()
}

/// The path without the name of the tensor.
fn parent(name: &str) -> &str {
    let path = name.rsplit_once('.').map_or(name, |(path, _)| path);
    path.strip_suffix(".base_layer").unwrap_or(path)
}

/// Whole tensors against `modules_to_save`.
fn saved(seen: &Seen, config: &Config) -> Vec<Finding> {
    let listed = config.names("modules_to_save").unwrap_or_default();
    let whole: BTreeSet<&str> = seen.saved().map(|key| parent(&key.spelling.path)).collect();
    let mut out = Vec::new();
    let task = config.value("task_type").and_then(Value::as_str).unwrap_or_default();
    let of_task = task.ends_with("_CLS") || task == "QUESTION_ANS";
    for entry in &listed {
        if of_task && HEADS_OF_TASKS.contains(&entry.as_str()) {
            continue; // PEFT lists both names, and the model has one of them
        }
        if !whole.iter().any(|path| is_listed(path, std::slice::from_ref(entry))) {
            let what = format!("`{entry}` names no module that the file has a whole tensor for");
            let repair = Repair::Remove("modules_to_save".to_string(), entry.clone());
            out.push(Finding::new(&codes::IDLE_SAVED, "modules_to_save", what).repair(repair));
        }
    }
    if seen.lora().is_none() {
        return out;
    }
    for key in seen.saved() {
        let path = key.spelling.path.as_str();
        let Some(module) = path.strip_suffix(".weight").filter(|m| !m.ends_with(".base_layer")) else { continue };
        let head = of_task && module.split('.').any(|c| HEADS_OF_TASKS.contains(&c));
        if EMBEDDINGS.contains(&leaf(module)) || head || is_listed(module, &listed) {
            continue;
        }
        let what = "a whole weight, and modules_to_save does not list its module";
        let repair = Repair::Append("modules_to_save".to_string(), module.to_string());
        out.push(Finding::new(&codes::UNLISTED_SAVED, key.key, what).repair(repair));
    }
    out
}

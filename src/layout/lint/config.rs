//! `adapter_config.json` of PEFT, apart from ranks, scales and the choice of modules: fields that are unknown, that do not
//! fit the tensors, or that change what the adapter needs.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::adapter::Finding;
use crate::adapter::finding::Repair;
use crate::layout::peft::config::{Config, compile_whole, matchers};
use crate::layout::peft::saved::{TOKENS_BESIDE_TUNER, TOKENS_OF_TUNER};
use crate::limits;

use super::paths::{EMBEDDINGS, is_end, is_listed, leaf};
use super::{Seen, codes};

/// Initialisations that took their first factors out of the base.
const CHANGE_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];
/// Folders in which trainers put the same adapter for the base as it was.
const CONVERTED: [&str; 2] = ["pissa_converted", "../pissa_converted"];
/// Ends of the names of quantised models, the longest first.
const QUANTISED: [&str; 10] = [
    "-unsloth-bnb-4bit",
    "-gptq-int4",
    "-gptq-int8",
    "-bnb-4bit",
    "-bnb-8bit",
    "-4bit",
    "-8bit",
    "-gptq",
    "-awq",
    "-int4",
];
/// Heads of models that classify.
const HEADS: [&str; 2] = ["score", "classifier"];
/// Fields that hold a number, and fields that are true or false.
const NUMBERS: [&str; 2] = ["r", "lora_alpha"];
const SWITCHES: [&str; 5] = ["use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "inference_mode"];
/// What the field `bias` may be.
const BIASES: [&str; 3] = ["none", "all", "lora_only"];

pub(super) fn check(seen: &Seen) -> Vec<Finding> {
    let Some(config) = &seen.config else { return Vec::new() };
    let mut out = unknown(seen, config);
    out.extend(patterns(config));
    out.extend(spelt(seen, config));
    out.extend(base_name(config));
    out.extend(base_changed(seen, config));
    if config.value("inference_mode") == Some(&Value::Bool(false)) {
        let repair = Repair::Set("inference_mode".to_string(), json!(true));
        out.push(Finding::new(&codes::TRAINING_MODE, "inference_mode", "false, expected true").repair(repair));
    }
    out.extend(tokens(seen, config));
    out.extend(head(seen, config));
    out.extend(embeddings(seen));
    if let Some(config) = seen.lora() {
        out.extend(magnitudes(seen, config));
        out.extend(biases(seen, config));
        out.extend(stacks(seen, config));
    }
    out
}

fn unknown(seen: &Seen, config: &Config) -> Vec<Finding> {
    let Some(tuner) = seen.tuner else { return Vec::new() };
    let mut notes = Vec::new();
    let switch = config.report_unknown(&tuner.known_fields(), &mut notes).err();
    let fields = notes.into_iter().map(|note| Finding::new(&codes::UNKNOWN_FIELD, note.key, note.text));
    let switch = switch.map(|e| Finding::of_error(&codes::UNKNOWN_SWITCH, &e));
    fields.chain(switch).collect()
}

/// Values that mean something and are not written as PEFT wants them.
fn spelt(seen: &Seen, config: &Config) -> Vec<Finding> {
    let mut out = Vec::new();
    let capitals = config.peft_type.to_ascii_uppercase();
    if seen.tuner.is_some() && config.peft_type != capitals {
        let repair = Repair::Set("peft_type".to_string(), json!(capitals));
        let what = format!("`{}`, expected `{capitals}`", config.peft_type);
        out.push(Finding::new(&codes::PEFT_TYPE, "peft_type", what).repair(repair));
    }
    let text = |field: &str| config.value(field).and_then(Value::as_str);
    for field in NUMBERS {
        let Some(number) = text(field).and_then(|t| t.trim().parse::<serde_json::Number>().ok()) else { continue };
        let what = format!("the number {number} in quotation marks");
        out.push(Finding::new(&codes::QUOTED, field, what).repair(Repair::Set(field.to_string(), json!(number))));
    }
    for field in SWITCHES {
        let Some(on) = text(field).and_then(|t| t.trim().to_ascii_lowercase().parse::<bool>().ok()) else { continue };
        let what = format!("{on} in quotation marks");
        out.push(Finding::new(&codes::QUOTED, field, what).repair(Repair::Set(field.to_string(), json!(on))));
    }
    if let Some(word) = text("bias").filter(|word| seen.lora().is_some() && !BIASES.contains(word)) {
        out.push(Finding::new(&codes::BIAS_WORD, "bias", format!("`{word}`, expected {}", BIASES.join(", "))));
    }
    out
}

/// Patterns that are no regular expressions. PEFT's `target_modules` may look around, and is not needed to read.
fn patterns(config: &Config) -> Vec<Finding> {
    let mut out = Vec::new();
    for field in ["rank_pattern", "alpha_pattern"] {
        for (text, matcher) in matchers(config, field) {
            if let Err(e) = matcher {
                let finding = Finding::new(&codes::BAD_PATTERN, format!("{field}.{text}"), e.what());
                out.push(finding.hint("write the path of the module in full"));
            }
        }
    }
    if let Some(Value::String(text)) = config.value("target_modules")
        && let Err(e) = compile_whole(text)
        && !e.what().contains("look-around")
    {
        out.push(Finding::new(&codes::BAD_PATTERN, "target_modules", e.what()));
    }
    out
}

fn base_name(config: &Config) -> Vec<Finding> {
    let field = "base_model_name_or_path";
    let Some(name) = config.value(field).and_then(Value::as_str).filter(|name| !name.is_empty()) else {
        return vec![Finding::new(&codes::NO_BASE_NAME, field, "no name, expected that of the base")];
    };
    let mut out = Vec::new();
    let windows = name.contains('\\') || name.get(1..3) == Some(":/");
    if name.starts_with(['/', '.', '~']) || windows || name.matches('/').count() > 1 {
        out.push(Finding::new(&codes::LOCAL_BASE, field, format!("`{name}` is a path, expected the name of a model")));
    }
    let lower = name.to_ascii_lowercase();
    if let Some(end) = QUANTISED.iter().find(|end| lower.ends_with(**end)) {
        let finding = Finding::new(&codes::QUANTISED_NAME, field, format!("`{name}` is a quantised model"));
        let plain = lower.len().checked_sub(end.len()).and_then(|at| name.get(..at)).unwrap_or(name);
        out.push(finding.hint(format!("merge into the 16-bit model it was made from, perhaps `{plain}`")));
    }
    out
}

/// Whether the training started from factors taken out of the base.
pub(super) fn changes_base(config: &Config) -> bool {
    let init = config.value("init_lora_weights").and_then(Value::as_str);
    init.is_some_and(|init| CHANGE_BASE.contains(&init) || init.starts_with("pissa_niter"))
}

fn base_changed(seen: &Seen, config: &Config) -> Option<Finding> {
    let init = config.value("init_lora_weights")?.as_str()?;
    if !changes_base(config) {
        return None;
    }
    let what = format!("`{init}` took its first factors out of the base before the training");
    let finding = Finding::new(&codes::BASE_CHANGED, "init_lora_weights", what);
    let folder = seen.source.tensor_file.parent()?;
    let converted = CONVERTED.iter().find(|name| folder.join(name).is_dir());
    Some(match (converted, init) {
        (Some(name), _) => finding.hint(format!("use the adapter in {name}, which is for the base as it was")),
        (None, "pissa" | "olora") => finding.hint("this program finds the start again in the base when it merges"),
        (None, _) => finding.hint("convert it where it was trained (PEFT: path_initial_model_for_weight_conversion)"),
    })
}

/// Rows of tokens against the ids in the config.
fn tokens(seen: &Seen, config: &Config) -> Vec<Finding> {
    let own = config.peft_type.eq_ignore_ascii_case("TRAINABLE_TOKENS");
    let field = if own { TOKENS_OF_TUNER } else { TOKENS_BESIDE_TUNER };
    let mut out = Vec::new();
    for (key, _) in seen.tuned().filter(|(_, role)| *role == "trainable_tokens_delta") {
        let module = key.spelling.module();
        let listed = match config.value(field) {
            Some(Value::Object(by_module)) => by_module.iter().find(|(name, _)| is_end(module, name)).map(|(_, v)| v),
            other => other,
        };
        let ids = listed.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let rows = key.tensor.shape.dims().first().copied().unwrap_or(0);
        let different = ids.iter().map(Value::to_string).collect::<BTreeSet<_>>().len();
        let what = if ids.len() != rows {
            format!("{} ids for the {rows} rows of `{module}`", ids.len())
        } else if different < ids.len() {
            format!("an id stands twice in the list for `{module}`")
        } else {
            continue;
        };
        out.push(Finding::new(&codes::TOKEN_IDS, field, what));
    }
    out
}

fn head(seen: &Seen, config: &Config) -> Option<Finding> {
    if config.value("task_type").and_then(Value::as_str) != Some("CAUSAL_LM") {
        return None;
    }
    let is_head = |key: &&super::Key| key.spelling.path.split('.').any(|c| HEADS.contains(&c));
    let key = seen.saved().find(is_head)?;
    let what = format!("CAUSAL_LM, and the file has `{}`", key.spelling.path);
    Some(Finding::new(&codes::HEAD_TASK, "task_type", what).hint("SEQ_CLS or TOKEN_CLS may be meant"))
}

/// Each embedding once.
fn embeddings(seen: &Seen) -> Vec<Finding> {
    let mut found: BTreeSet<&str> = BTreeSet::new();
    for key in &seen.keys {
        let path = match key.spelling.role {
            Some(_) => key.spelling.module(),
            None => key.spelling.path.strip_suffix(".weight").unwrap_or_default(),
        };
        let path = path.strip_suffix(".base_layer").unwrap_or(path);
        if seen.tuner.is_some() && EMBEDDINGS.contains(&leaf(path)) {
            found.insert(path);
        }
    }
    let what = "changed by the adapter; whether the base ties it, and whether its vocabulary is the same, is not known";
    let finding = |path| Finding::new(&codes::EMBEDDINGS, path, what).hint("--base BASE checks it");
    found.into_iter().map(finding).map(|f| f.or_file(&seen.source.tensor_file)).collect()
}

fn magnitudes(seen: &Seen, config: &Config) -> Vec<Finding> {
    let Ok(wanted) = config.flag("use_dora") else { return Vec::new() };
    let with: BTreeSet<&str> = seen
        .tuned()
        .filter(|(_, role)| *role == "lora_magnitude_vector")
        .map(|(key, _)| key.spelling.path.as_str())
        .collect();
    let of_factors = seen.tuned().filter(|(_, role)| ["lora_A.weight", "lora_embedding_A"].contains(role));
    let factors: BTreeSet<&str> = of_factors.map(|(key, _)| key.spelling.path.as_str()).collect();
    let (paths, what): (Vec<&str>, _) = if wanted {
        (factors.difference(&with).copied().collect(), "use_dora is set, and the file has no lora_magnitude_vector")
    } else {
        (with.into_iter().collect(), "the file has a lora_magnitude_vector, and use_dora is not set")
    };
    let hint = if wanted {
        "save the adapter again with its magnitudes"
    } else {
        "set use_dora in a copy of the config if it is DoRA"
    };
    let finding = |path| Finding::new(&codes::MAGNITUDES, path, what).hint(hint).or_file(&seen.source.tensor_file);
    paths.into_iter().map(finding).collect()
}

fn biases(seen: &Seen, config: &Config) -> Option<Finding> {
    let says = config.value("bias").and_then(Value::as_str).unwrap_or("none");
    let listed = config.names("modules_to_save").unwrap_or_default();
    let mut found = seen.saved().filter(|key| {
        let path = key.spelling.path.strip_suffix(".bias");
        path.is_some_and(|path| !is_listed(path, &listed))
    });
    let what = match (says, found.next()) {
        ("none", Some(key)) => format!("none, and the file has `{}`", key.spelling.path),
        ("all" | "lora_only", None) => format!("{says}, and the file has no bias"),
        _ => return None,
    };
    Some(Finding::new(&codes::BIASES, "bias", what))
}

/// Stacks of experts: what only the config, or nothing, tells about them.
fn stacks(seen: &Seen, config: &Config) -> Vec<Finding> {
    if config.names("target_parameters").unwrap_or_default().is_empty() {
        return Vec::new();
    }
    let mut out = Vec::new();
    let packing = config.value("lora_B_layout").and_then(Value::as_str);
    let what = match packing {
        Some("grouped_by_expert") => {
            Some("grouped_by_expert: PEFT and serving engines read the columns in another order")
        }
        None if made_by_unsloth(seen, config) => {
            Some("made by Unsloth, and lora_B_layout does not say in which order the columns are")
        }
        _ => None,
    };
    if let Some(what) = what {
        let finding = Finding::new(&codes::EXPERT_PACKING, "lora_B_layout", what);
        let hint = if packing.is_some() {
            "`lora-tool convert --to peft` writes PEFT's order"
        } else {
            "if it was made before September 2026, set it to grouped_by_expert in a copy of the config"
        };
        out.push(finding.hint(hint));
    }
    if config.version().is_none() {
        let what = "missing, and stacks of experts were stored in another way before PEFT 0.19.1";
        out.push(Finding::new(&codes::EXPERT_FACING, "peft_version", what));
    }
    out
}

fn made_by_unsloth(seen: &Seen, config: &Config) -> bool {
    let base = config.value("base_model_name_or_path").and_then(Value::as_str).unwrap_or_default();
    let card = || {
        let path = seen.source.tensor_file.parent()?.join("README.md");
        let small = path.metadata().is_ok_and(|about| about.is_file() && about.len() <= limits::CARD_BYTES);
        if small { std::fs::read_to_string(path).ok() } else { None }
    };
    base.starts_with("unsloth/") || card().is_some_and(|text| text.to_ascii_lowercase().contains("unsloth"))
}

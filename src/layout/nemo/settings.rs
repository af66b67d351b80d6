//! What the settings of a training say: of the model, of alpha and rank.
//!
//! NeMo 1: `model_config.yaml` (NVIDIA/NeMo:nemo/collections/nlp/parts/peft_config.py). Megatron-Bridge:
//! `run_config.yaml`, whose `model` and `peft` have the same words (NVIDIA-NeMo/Megatron-Bridge:src/megatron/bridge/
//! peft/lora.py).

use serde_json::{Map, Value};

use crate::adapter::{Facts, Note};
use crate::container::json;
use crate::error::{Context, Error, Result};
use crate::layout::Source;

use super::archive::CONFIG;

/// Settings of Megatron-Bridge's trainings.
pub const RUN_CONFIG: &str = "run_config.yaml";
/// What stands before the names of what an adapter says about itself, in `model_config.yaml`.
pub const ABOUT: &str = "lora_tool.about.";
/// Schemes of NeMo 1 whose adapters are LoRA.
const SCHEMES: [&str; 3] = ["lora", "qlora", "canonical_lora"];
/// Alpha and rank of Megatron-Bridge where nothing else is said.
const BRIDGE_DEFAULT: f64 = 32.0;

/// What is said.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Of the model, and of the base where the settings are silent.
    pub base: Facts,
    /// Numerator of the scale.
    pub alpha: f64,
    /// The rank, where it is said; that of experts may be another.
    pub rank: Option<usize>,
    /// Whether the first layer of the feed-forward has a gate.
    pub gated: Option<bool>,
    /// Ranks of tensor and pipeline parallelism.
    pub ranks: [Option<usize>; 2],
}

impl Settings {
    /// Reads those beside the tensors; `first` is true for the keys of NeMo 1.
    pub fn of(source: &Source, first: bool, notes: &mut Vec<Note>) -> Result<Settings> {
        let name = if first { CONFIG } else { RUN_CONFIG };
        match (source.settings.get(name), source.given.alpha) {
            (Some((path, config)), _) if first => first_generation(config, source, notes).in_file(path),
            (Some((path, config)), _) => second_generation(config, source, notes).in_file(path),
            (None, Some(alpha)) => Ok(Settings { base: source.facts(), alpha, ..Settings::default() }),
            (None, None) => {
                let what = format!("no {name} beside the tensors, and alpha is only there");
                Err(Error::missing(what).in_file(&source.tensor_file).hint("--assume-alpha gives it"))
            }
        }
    }
}

fn first_generation(config: &Map<String, Value>, source: &Source, notes: &mut Vec<Note>) -> Result<Settings> {
    let empty = Map::new();
    let peft = object(config, "peft")?.unwrap_or(&empty);
    let scheme: Option<String> = json::field(peft, "peft_scheme", "a word").at_key("peft.peft_scheme")?;
    if let Some(other) = scheme.filter(|word| !SCHEMES.contains(&word.as_str())) {
        return Err(Error::unsupported(format!("`{other:.40}`, expected lora")).at_key("peft.peft_scheme"));
    }
    let lora = object(peft, "lora_tuning")?.unwrap_or(&empty);
    if lora.get("weight_tying").and_then(Value::as_bool) == Some(true) {
        let what = "one adapter for all layers, told apart by their position, which is no change of a weight";
        return Err(Error::unsupported(what).at_key("peft.lora_tuning.weight_tying"));
    }
    let rank = rank(lora, "adapter_dim").at_key("peft.lora_tuning.adapter_dim")?;
    let alpha = match (number(lora, "alpha").at_key("peft.lora_tuning.alpha")?, rank, source.given.alpha) {
        (Some(alpha), ..) => alpha,
        // NeMo's own default is the rank.
        (None, Some(rank), None) => {
            notes.push(Note::info(
                "peft.lora_tuning.alpha",
                format!("not in the settings; the rank {rank}, as in NeMo"),
            ));
            rank as f64
        }
        (None, _, Some(alpha)) => alpha,
        (None, None, None) => {
            let what = "neither alpha nor adapter_dim, expected the scale";
            return Err(Error::missing(what).at_key("peft.lora_tuning").hint("--assume-alpha gives alpha"));
        }
    };
    let gated = config
        .get("activation")
        .and_then(Value::as_str)
        .map(|word| ["fast-geglu", "fast-swiglu", "fast-reglu", "geglu", "swiglu", "reglu"].contains(&word));
    let ranks = ["tensor_model_parallel_size", "pipeline_model_parallel_size"].map(|name| size(config, name));
    if size(config, "virtual_pipeline_model_parallel_size").is_some_and(|n| n > 1) {
        let what = "layers dealt to ranks in turns, expected each rank's together";
        return Err(Error::unsupported(what).at_key("virtual_pipeline_model_parallel_size"));
    }
    Ok(Settings { base: facts(config).or(source.facts()), alpha, rank, gated, ranks })
}

fn second_generation(config: &Map<String, Value>, source: &Source, notes: &mut Vec<Note>) -> Result<Settings> {
    let empty = Map::new();
    let peft = object(config, "peft")?.unwrap_or(&empty);
    let normal = peft.get("normalize_moe_lora").and_then(Value::as_bool) != Some(true);
    let rank = rank(peft, "dim").at_key("peft.dim")?.filter(|_| normal);
    let alpha = match (number(peft, "alpha").at_key("peft.alpha")?, source.given.alpha) {
        (Some(alpha), _) | (None, Some(alpha)) => alpha,
        (None, None) if peft.is_empty() => {
            let what = "no section `peft`, and alpha is only there";
            return Err(Error::missing(what).hint("--assume-alpha gives it"));
        }
        (None, None) => {
            let what = format!("not in the settings; {BRIDGE_DEFAULT}, Megatron-Bridge's default");
            notes.push(Note::lossy("peft.alpha", what));
            BRIDGE_DEFAULT
        }
    };
    let model = object(config, "model")?.unwrap_or(&empty);
    let gated = model.get("gated_linear_unit").and_then(Value::as_bool);
    Ok(Settings { base: facts(model).or(source.facts()), alpha, rank, gated, ranks: [None; 2] })
}

/// What Megatron's settings say of the model, in its words.
fn facts(model: &Map<String, Value>) -> Facts {
    let heads = size(model, "num_attention_heads");
    let hidden = size(model, "hidden_size");
    Facts {
        heads,
        key_heads: size(model, "num_query_groups").or(heads),
        head_width: size(model, "kv_channels").or_else(|| hidden?.checked_div(heads?)),
        hidden,
        intermediate: size(model, "ffn_hidden_size"),
        layers: size(model, "num_layers"),
        experts: size(model, "num_moe_experts"),
        ..Facts::default()
    }
}

fn object<'a>(map: &'a Map<String, Value>, name: &str) -> Result<Option<&'a Map<String, Value>>> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(inner)) => Ok(Some(inner)),
        Some(other) => Err(json::unexpected(other, "a mapping").at_key(name)),
    }
}

/// A size that is at least 1. Settings may hold what is computed from others, which is no number here.
fn size(map: &Map<String, Value>, name: &str) -> Option<usize> {
    map.get(name)?.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0)
}

fn rank(map: &Map<String, Value>, name: &str) -> Result<Option<usize>> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => size(map, name).map(Some).ok_or_else(|| json::unexpected(value, "a rank of at least 1")),
    }
}

fn number(map: &Map<String, Value>, name: &str) -> Result<Option<f64>> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let found = value.as_f64().filter(|n| n.is_finite());
            found.map(Some).ok_or_else(|| json::unexpected(value, "a finite number"))
        }
    }
}

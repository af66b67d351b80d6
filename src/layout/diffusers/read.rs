//! From the file to an adapter.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::keys::{self, Role};
use super::{CONFIG, PARTS};
use crate::adapter::delta::{Delta, Full, LowRank, full::Mode};
use crate::adapter::{Adapter, Along, Carried, Note, Scale, ScaleRule, Target};
use crate::container::json;
use crate::error::{Context, Error, Result};
use crate::layout::peft::config::{Config, Patterns};
use crate::layout::{Source, spelling};
use crate::names::diffusion::Naming;
use crate::tensor::Tensor;

type Tensors = BTreeMap<Role, (String, Tensor)>;

/// See [`super::Diffusers`].
pub fn read(source: &Source) -> Result<(Adapter, Vec<Note>)> {
    let mut modules: BTreeMap<(&'static str, String), Tensors> = BTreeMap::new();
    for (key, tensor) in &source.tensors {
        let found = keys::parse(key).ok_or_else(|| {
            Error::unrecognised("not a factor of a module of a pipeline's part")
                .at_key(key)
                .in_file(&source.tensor_file)
        })?;
        // The alpha of an attention's processor stands behind the name its factors had.
        let module = match found.role {
            Role::Alpha => found.module.trim_end_matches("_lora").to_string(),
            _ => found.module,
        };
        let before = modules.entry((found.part, module)).or_default().insert(found.role, (key.clone(), tensor.clone()));
        if let Some((other, _)) = before {
            let what = format!("means the same as `{other}`");
            return Err(Error::malformed(what).at_key(key).in_file(&source.tensor_file));
        }
    }
    let config = config(source)?;
    let alphas = modules.values().any(|tensors| tensors.contains_key(&Role::Alpha));
    if let (true, Some(_)) = (alphas, &config) {
        let what = "alphas beside the tensors and in the header; diffusers takes one or the other";
        return Err(Error::mismatch(what).at_key(CONFIG).in_file(&source.tensor_file));
    }
    let scaling: BTreeMap<&str, (Patterns, Config)> = PARTS
        .iter()
        .filter_map(|part| {
            let own = of_part(config.as_ref()?, part)?;
            let read = Config::read(own).and_then(|config| Ok((config.patterns("lora_alpha", 8)?, config)));
            Some(read.map(|read| (*part, read)))
        })
        .collect::<Result<_>>()
        .in_file(&source.tensor_file)?;
    let mut adapter = Adapter { declared: "LORA".to_string(), ..Adapter::default() };
    for ((part, module), tensors) in modules {
        let path = format!("{part}.{module}");
        let target = target(&module, tensors, scaling.get(part)).at_key(&path).in_file(&source.tensor_file)?;
        adapter.targets.insert(path.as_str().into(), target);
    }
    let mut notes = Vec::new();
    if config.is_none() && !alphas {
        notes.push(Note::info(CONFIG, "no alpha anywhere: scale 1, as diffusers takes it"));
    }
    notes.extend(spelling::recognise(&mut adapter, Naming::Diffusers));
    adapter.carried = Carried {
        layout: "diffusers".to_string(),
        fields: Vec::new(),
        metadata: source.metadata.clone(),
        outline: adapter.outline(),
        tensors: Default::default(),
    };
    Ok((adapter, notes))
}

/// PEFT's config in the header.
fn config(source: &Source) -> Result<Option<Map<String, Value>>> {
    let text = source.metadata.iter().find(|(key, _)| key == CONFIG).map(|(_, text)| text);
    let read = |text: &String| json::parse_object(text).at_key(CONFIG).in_file(&source.tensor_file);
    text.map(read).transpose()
}

/// The fields of one part: behind its name, or all of them where none stands behind any.
fn of_part(config: &Map<String, Value>, part: &str) -> Option<Map<String, Value>> {
    let is_named = |key: &String| PARTS.iter().any(|part| key.starts_with(&format!("{part}.")));
    let start = format!("{part}.");
    let mut own: Map<String, Value> = if config.keys().any(is_named) {
        config.iter().filter_map(|(key, value)| Some((key.strip_prefix(&start)?.to_string(), value.clone()))).collect()
    } else {
        config.clone()
    };
    if own.is_empty() {
        return None;
    }
    own.insert("peft_type".to_string(), Value::from("LORA"));
    Some(own)
}

fn target(module: &str, mut tensors: Tensors, scaling: Option<&(Patterns, Config)>) -> Result<Target> {
    let mut take = |role| tensors.remove(&role).map(|(_, tensor)| tensor);
    if let Some(tensor) = take(Role::Norm) {
        if !tensors.is_empty() {
            return Err(Error::unsupported("factors of a norm beside the weight that replaces it"));
        }
        let replaced = Delta::Full(Full { tensor, mode: Mode::Replace });
        return Ok(Target { weight: vec![replaced], ..Target::default() });
    }
    let (Some(a), Some(b)) = (take(Role::A), take(Role::B)) else {
        return Err(Error::missing("one of two factors without the other"));
    };
    let rank = a.shape.dims().first().copied().unwrap_or(0);
    if rank == 0 || b.shape.dims().get(1) != Some(&rank) {
        return Err(Error::mismatch(format!("rank of A {} against rank of B {}", a.shape, b.shape)));
    }
    let (alpha, magnitude, bias) = (take(Role::Alpha), take(Role::Magnitude), take(Role::Bias));
    let scale = match (alpha, scaling) {
        (Some(alpha), _) => {
            let alpha = alpha.to_number().map_err(|e| Error::new(e.kind(), format!("alpha: {}", e.what())))?;
            Scale { alpha, rule: ScaleRule::AlphaOverRank }
        }
        (None, Some((patterns, _))) => {
            patterns.checked_rank(module, rank, &a.shape)?;
            patterns.scale_at(module)
        }
        (None, None) => Scale { alpha: rank as f64, rule: ScaleRule::AlphaOverRank },
    };
    let factors = LowRank { a, b, scale, experts: None, name: "LoRA" };
    let factor = factors.factor();
    if !factor.is_finite() {
        return Err(Error::malformed(format!("a scale of {factor}")));
    }
    // OneTrainer leaves magnitudes of inputs in its files, which diffusers passes over.
    let magnitude_along = match magnitude.as_ref().map(|tensor: &Tensor| tensor.shape.dims()) {
        Some([1, inputs, ..]) if *inputs != 1 => Along::Cols,
        _ => Along::Rows,
    };
    let bias = bias.map(|tensor| Delta::Full(Full { tensor, mode: Mode::Add(factor) }));
    Ok(Target {
        weight: vec![Delta::LowRank(factors)],
        magnitude,
        magnitude_along,
        bias: bias.into_iter().collect(),
        ..Target::default()
    })
}

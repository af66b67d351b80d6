//! From an adapter to the file: PEFT's words behind the parts' names, scales in the header where they are not 1.

use serde_json::{Map, Value, json};

use super::keys::NORMS;
use super::{CONFIG, PARTS};
use crate::adapter::delta::{Delta, Full, LowRank, full::Mode};
use crate::adapter::{Adapter, Along, Note, SiteKind, Target, fold};
use crate::error::{Context, Error, Result};
use crate::layout::Draft;
use crate::layout::peft::scaling::{Scaled, Scaling};
use crate::layout::source::BASE_FINGERPRINT;
use crate::names::diffusion::Naming;
use crate::tensor::{StateDict, Tensor};

/// The file of `adapter`.
pub fn write(adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
    if let Some(method) = &adapter.residual_base {
        let what = format!("an adapter for the base as `{method}` changed it, which this layout cannot say");
        return Err(Error::unsupported(what));
    }
    if adapter.spelling.is_some_and(|spelling| spelling.naming != Naming::Diffusers) {
        return Err(Error::unsupported(
            "an adapter in the names of the model's authors, and not in those of diffusers",
        ));
    }
    let (mut tensors, mut notes, mut norms) = (StateDict::new(), Vec::new(), 0);
    let mut scaled: Vec<(&'static str, Scaled)> = Vec::new();
    let mut dora: Vec<&'static str> = Vec::new();
    let mut biased: Vec<&'static str> = Vec::new();
    for (path, target) in &adapter.targets {
        let (part, module) = part_of(path.as_str()).at_key(path.as_str())?;
        if let Some(norm) = replaced_norm(module, target) {
            tensors.insert(format!("{path}.weight"), norm.clone());
            norms += 1;
            continue;
        }
        let factors = factors(target).at_key(path.as_str())?;
        if target.magnitude.is_some() && target.magnitude_along == Along::Cols {
            let what = "DoRA with a magnitude for each input; diffusers reads one for each output";
            return Err(Error::unsupported(what).at_key(path.as_str()));
        }
        tensors.insert(format!("{path}.lora_A.weight"), factors.a.clone());
        tensors.insert(format!("{path}.lora_B.weight"), factors.b.clone());
        if let Some(magnitude) = &target.magnitude {
            tensors.insert(format!("{path}.lora_magnitude_vector"), magnitude.clone());
            dora.push(part);
        }
        if let Some((bias, note)) = bias(path.as_str(), target, factors).at_key(path.as_str())? {
            tensors.insert(format!("{path}.lora_B.bias"), bias);
            notes.extend(note);
            biased.push(part);
        }
        scaled.push((part, Scaled { name: module.to_string(), rank: factors.rank(), scale: factors.scale }));
    }
    if tensors.is_empty() {
        return Err(Error::missing("an adapter without tensors: there is nothing to write"));
    }
    if norms > 0 {
        notes.push(Note::info(
            "",
            format!("{norms} norms replaced, as diffusers reads them of control adapters of FLUX.1"),
        ));
    }
    let mut config = Map::new();
    for part in PARTS {
        let own: Vec<Scaled> = scaled.iter().filter(|(p, _)| *p == part).map(|(_, s)| s.clone()).collect();
        if !own.is_empty() {
            config.extend(fields(part, &own, dora.contains(&part), biased.contains(&part))?);
        }
    }
    let plain = scaled.iter().all(|(_, s)| s.scale.factor(s.rank) == 1.0) && dora.is_empty() && biased.is_empty();
    let mut metadata = vec![("format".to_string(), "pt".to_string())];
    let own = ["format", CONFIG, BASE_FINGERPRINT];
    metadata.extend(adapter.carried.metadata.iter().filter(|(key, _)| !own.contains(&key.as_str())).cloned());
    metadata.extend(adapter.about.get(BASE_FINGERPRINT).map(|hash| (BASE_FINGERPRINT.to_string(), hash.clone())));
    if !plain {
        // The form of json.dumps(indent=2, sort_keys=True).
        config.sort_keys();
        let text = serde_json::to_string_pretty(&config).map_err(|e| Error::malformed(e.to_string()))?;
        metadata.push((CONFIG.to_string(), text));
        notes.push(Note::info(CONFIG, "scales stand in the header; programs that do not look there take them for 1"));
    }
    let draft =
        Draft { tensor_file: "pytorch_lora_weights.safetensors".to_string(), tensors, metadata, ..Draft::default() };
    Ok((draft, notes))
}

fn part_of(path: &str) -> Result<(&'static str, &str)> {
    let found = PARTS.iter().find_map(|part| Some((*part, path.strip_prefix(part)?.strip_prefix('.')?)));
    found.ok_or_else(|| Error::unsupported("a module of no part of a pipeline, whose names this layout has in front"))
}

/// The weight that takes the place of a norm's in attention.
fn replaced_norm<'t>(module: &str, target: &'t Target) -> Option<&'t Tensor> {
    let leaf = module.rsplit('.').next()?;
    match (target.weight.as_slice(), target.bias.as_slice()) {
        ([Delta::Full(Full { tensor, mode: Mode::Replace })], []) if NORMS.contains(&leaf) => Some(tensor),
        _ => None,
    }
}

fn factors(target: &Target) -> Result<&LowRank> {
    if target.site != SiteKind::Layer {
        return Err(Error::unsupported("no linear layer or convolution, which are all that this layout adapts"));
    }
    match target.weight.as_slice() {
        [Delta::LowRank(d)] if d.experts.is_none() => Ok(d),
        [] => Err(Error::unsupported("a bias alone, for which this layout has no word")),
        [other, ..] => Err(Error::unsupported(format!("{}, and diffusers reads plain LoRA and DoRA", other.kind()))),
    }
}

/// The bias of B, which is multiplied as the factors are.
fn bias(path: &str, target: &Target, factors: &LowRank) -> Result<Option<(Tensor, Option<Note>)>> {
    match target.bias.as_slice() {
        [] => Ok(None),
        [Delta::Full(Full { tensor, mode: Mode::Add(factor) })] => {
            let folded = fold::scaled(tensor, factor / factors.factor())?;
            let text = "its own scale folded into it, since it shares that of the factors";
            let note = (*factor != factors.factor()).then(|| match folded.exact {
                true => Note::info(path, text),
                false => Note::lossy(path, format!("{text}; rounded to {}", folded.tensor.dtype)),
            });
            Ok(Some((folded.tensor, note)))
        }
        [other, ..] => {
            Err(Error::unsupported(format!("{} of the bias, for which this layout has no word", other.kind())))
        }
    }
}

/// PEFT's config of a part, each field behind its name.
fn fields(part: &str, modules: &[Scaled], dora: bool, biased: bool) -> Result<Vec<(String, Value)>> {
    let scaling = Scaling::of(modules, true)?;
    let mut leaves: Vec<&str> = modules.iter().map(|m| m.name.as_str()).collect();
    leaves.sort_unstable();
    let all = [
        ("peft_type", json!("LORA")),
        ("r", json!(scaling.rank)),
        ("lora_alpha", scaling.alpha),
        ("rank_pattern", Value::Object(scaling.rank_pattern)),
        ("alpha_pattern", Value::Object(scaling.alpha_pattern)),
        ("use_rslora", json!(scaling.root)),
        ("use_dora", json!(dora)),
        ("lora_bias", json!(biased)),
        ("bias", json!("none")),
        ("lora_dropout", json!(0.0)),
        ("target_modules", json!(leaves)),
    ];
    Ok(all.into_iter().map(|(name, value)| (format!("{part}.{name}"), value)).collect())
}

//! LoRA as PEFT's tensors and config: the way back of what `mod.rs` reads.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::parameter::{self, Named};
use super::{MIXED_HINT, changes_base};
use crate::adapter::delta::{Delta, Full, LowRank, full::Mode};
use crate::adapter::{Note, Scale, SiteKind, Target};
use crate::error::{Context, Error, Result};
use crate::layout::peft::scaling::{self, Scaled};
use crate::layout::peft::writer::Writer;
use crate::names::ModulePath;
use crate::tensor::{Dtype, Tensor};

/// What one module has beyond two factors, which PEFT's config says for all modules at once.
#[derive(Clone, Debug, Default, PartialEq)]
struct Extras {
    magnitude: Option<Tensor>,
    diagonal: Option<Tensor>,
    group: Option<usize>,
}

/// One module with factors.
struct Module {
    path: ModulePath,
    /// The path its keys and patterns name, which differs for the output projection of attention.
    written: String,
    site: SiteKind,
    factors: LowRank,
    extras: Extras,
    bias: Option<(Tensor, f64)>,
}

/// Takes all low-rank changes, their magnitudes and the differences of biases.
pub fn write(writer: &mut Writer) -> Result<()> {
    let (mut modules, parameters) = take(writer)?;
    place_attention(&mut modules)?;
    say_extras(writer, &modules, !parameters.is_empty())?;
    let linear = |m: &&Module| m.factors.a.shape.rank() == 2 || m.site == SiteKind::FanInFanOut;
    writer.set_orientation(modules.iter().filter(linear).map(|m| m.site));
    let biases = say_biases(writer, &modules)?;
    let mut scaled = Vec::new();
    for (module, bias) in modules.into_iter().zip(biases) {
        scaled.push(Scaled { name: module.written.clone(), rank: module.factors.rank(), scale: module.factors.scale });
        put(writer, module, bias)?;
    }
    scaled.extend(parameter::write(writer, parameters)?);
    scaling::say(writer, &scaled, "lora_alpha", true)?;
    say_base(writer);
    Ok(())
}

/// Modules and parameters by name, out of the targets.
fn take(writer: &mut Writer) -> Result<(Vec<Module>, Vec<Named>)> {
    let (mut modules, mut parameters) = (Vec::new(), Vec::new());
    for (path, target) in &mut writer.targets {
        let Some((factors, mut extras)) = take_factors(&mut target.weight).at_key(path.as_str())? else { continue };
        if target.is_parameter() {
            if extras != Extras::default() || target.magnitude.is_some() {
                let what = "a parameter by its own name takes plain LoRA only in PEFT";
                return Err(Error::unsupported(what).at_key(path.as_str()));
            }
            parameters.push((path.clone(), factors));
            continue;
        }
        target.require_magnitude_of_outputs().at_key(path.as_str())?;
        extras.magnitude = target.magnitude.take();
        let bias = take_bias(target);
        let (written, site) = (path.to_string(), target.site);
        modules.push(Module { path: path.clone(), written, site, factors, extras, bias });
    }
    Ok((modules, parameters))
}

fn take_factors(deltas: &mut Vec<Delta>) -> Result<Option<(LowRank, Extras)>> {
    let is_ours = |d: &Delta| matches!(d, Delta::LowRank(_) | Delta::Kasa(_) | Delta::Qalora(_));
    let count = deltas.iter().filter(|d| is_ours(d)).count();
    if count > 1 {
        let what = format!("{count} LoRAs on one module; a PEFT adapter has one");
        return Err(Error::unsupported(what).hint("write them as adapters of their own"));
    }
    // Whole tensors come first in PEFT; a change after the factors is left for the check at the end to name.
    if !deltas.last().is_some_and(is_ours) {
        return match count {
            0 => Ok(None),
            _ => Err(Error::unsupported("a change that comes after LoRA; in PEFT nothing does")),
        };
    }
    let extras = |diagonal, group| Extras { magnitude: None, diagonal, group };
    Ok(match deltas.pop() {
        Some(Delta::LowRank(factors)) => Some((factors, Extras::default())),
        Some(Delta::Kasa(kasa)) => Some((kasa.factors, extras(Some(kasa.diagonal), None))),
        Some(Delta::Qalora(pooled)) => Some((pooled.factors, extras(None, Some(pooled.group)))),
        _ => None,
    })
}

/// The difference of the bias and its factor, if it is the last change of the bias.
fn take_bias(target: &mut Target) -> Option<(Tensor, f64)> {
    let Some(Delta::Full(Full { tensor, mode: Mode::Add(factor) })) = target.bias.last() else { return None };
    let out = (tensor.clone(), *factor);
    target.bias.pop();
    Some(out)
}

/// Attention modules: what adapts `X` and `X.out_proj` is one module to PEFT, which applies the second part twice and
/// has one rank and alpha for both.
fn place_attention(modules: &mut [Module]) -> Result<()> {
    let outer: BTreeMap<ModulePath, (usize, Scale)> =
        modules.iter().map(|m| (m.path.clone(), (m.factors.rank(), m.factors.scale))).collect();
    for module in modules {
        let Some(parent) = module.path.parent().filter(|_| module.path.leaf() == "out_proj") else { continue };
        let Some(&(rank, scale)) = outer.get(&parent) else { continue };
        if module.factors.rank() != rank || module.factors.factor() != 2.0 * scale.factor(rank) {
            let what = "the output projection of an attention module whose input is adapted with another rank or scale";
            return Err(Error::unsupported(what).at_key(module.path.as_str()));
        }
        module.factors.scale = scale;
        module.written = format!("{parent}.base_layer.out_proj");
    }
    Ok(())
}

/// DoRA, KaSA and QA-LoRA are switches of the whole adapter: all modules have them or none.
fn say_extras(writer: &mut Writer, modules: &[Module], has_parameters: bool) -> Result<()> {
    let all = |name: &str, has: &dyn Fn(&Module) -> bool, may: &dyn Fn(&Module) -> bool| {
        let on = modules.iter().any(has);
        let without = modules.iter().find(|m| on && may(m) && !has(m)).map(|m| m.path.as_str());
        let without = without.or((on && has_parameters).then_some("target_parameters"));
        match without {
            Some(path) => Err(Error::unsupported(format!("{name} for some modules and not for this one")).at_key(path))
                .map_err(|e: Error| e.hint(MIXED_HINT)),
            None => Ok(on),
        }
    };
    let layer = |m: &Module| m.site != SiteKind::Embedding;
    let dora = all("DoRA", &|m| m.extras.magnitude.is_some(), &|_| true)?;
    let kasa = all("KaSA", &|m| m.extras.diagonal.is_some(), &layer)?;
    let pooled = all("QA-LoRA", &|m| m.extras.group.is_some(), &layer)?;
    let mut groups: Vec<_> = modules.iter().filter_map(|m| m.extras.group).collect();
    groups.dedup();
    if groups.len() > 1 {
        return Err(Error::unsupported("QA-LoRA with groups of several sizes; PEFT has one an adapter"));
    }
    writer.set("use_dora", dora);
    writer.set("use_qalora", pooled);
    if let Some(group) = groups.first() {
        writer.set("qalora_group_size", *group);
    }
    let settings =
        if kasa { writer.carried("kasa_config").filter(Value::is_object).unwrap_or(json!({})) } else { Value::Null };
    writer.set("kasa_config", settings);
    for folded in ["use_bdlora", "velora_config", "monteclora_config"] {
        writer.set(folded, Value::Null);
    }
    Ok(())
}

/// The biases of `lora_B`, which PEFT multiplies by the module's scale.
fn say_biases(writer: &mut Writer, modules: &[Module]) -> Result<Vec<Option<Tensor>>> {
    let count = modules.iter().filter(|m| m.bias.is_some()).count();
    writer.set("lora_bias", count > 0);
    if count == 0 {
        return Ok(modules.iter().map(|_| None).collect());
    }
    for module in modules.iter().filter(|m| m.bias.is_some()) {
        let why = if module.extras.magnitude.is_some() { "DoRA" } else { "an embedding" };
        if module.extras.magnitude.is_some() || module.site == SiteKind::Embedding {
            let what = format!("a difference of the bias beside {why}, which PEFT does not take");
            return Err(Error::unsupported(what).at_key(module.path.as_str()));
        }
    }
    if count < modules.len() {
        let what = format!("{count} of {} modules have one; PEFT fills in zeros for the others", modules.len());
        writer.notes.push(Note::info("lora_bias", what));
    }
    let mut out = Vec::with_capacity(modules.len());
    for module in modules {
        let Some((tensor, factor)) = &module.bias else {
            out.push(None);
            continue;
        };
        let scale = module.factors.factor();
        let same = factor.to_bits() == scale.to_bits();
        let tensor = if same { tensor.clone() } else { rescaled(writer, module, tensor, factor / scale)? };
        out.push(Some(tensor));
    }
    Ok(out)
}

/// A bias whose factor is not that of the weight, multiplied so that it can have it.
fn rescaled(writer: &mut Writer, module: &Module, tensor: &Tensor, ratio: f64) -> Result<Tensor> {
    let path = module.path.as_str();
    if !ratio.is_finite() {
        return Err(Error::unsupported("a difference of the bias beside a weight of scale zero").at_key(path));
    }
    let values: Vec<f64> = tensor.to_f32()?.into_iter().map(|v| f64::from(v) * ratio).collect();
    let rounded: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    let exact = values.iter().zip(&rounded).all(|(v, r)| *v == f64::from(*r));
    let text = format!("multiplied by {ratio}, since PEFT scales it like the weight");
    writer.notes.push(if exact {
        Note::info(path, text)
    } else {
        Note::lossy(path, format!("{text}; rounded to f32"))
    });
    Tensor::from_f32(Dtype::F32, tensor.shape.dims(), &rounded)
}

fn put(writer: &mut Writer, module: Module, bias: Option<Tensor>) -> Result<()> {
    let Module { path, written, site, factors, extras, .. } = module;
    let (a, b) = (factors.a, factors.b);
    let parts = if site == SiteKind::Embedding {
        let magnitude = extras.magnitude.map(|m| m.reshaped([m.elements()])).transpose()?;
        [("lora_embedding_A", Some(a)), ("lora_embedding_B", Some(b)), ("lora_magnitude_vector", magnitude)].to_vec()
    } else {
        let kernel = a.shape.rank().saturating_sub(2);
        let ones = |dims: &[usize]| dims.iter().copied().chain(std::iter::repeat_n(1, kernel)).collect::<Vec<_>>();
        let b = if b.shape.rank() == 2 && kernel > 0 { b.reshaped(ones(b.shape.dims()))? } else { b };
        let magnitude = |m: Tensor| {
            let n = m.elements();
            m.reshaped(if kernel > 0 { ones(&[1, n]) } else { vec![n] })
        };
        vec![
            ("lora_A.weight", Some(a)),
            ("lora_B.weight", Some(b)),
            ("lora_B.bias", bias),
            ("lora_diag", extras.diagonal),
            ("lora_magnitude_vector", extras.magnitude.map(magnitude).transpose()?),
        ]
    };
    for (role, tensor) in parts {
        if let Some(tensor) = tensor {
            writer.put(&written, 0, role, tensor).at_key(path.as_str())?;
        }
    }
    if written == path.as_str() {
        writer.selection.modules.insert(written);
    }
    Ok(())
}

/// Which base the factors are meant for, and what becomes of a tied embedding.
fn say_base(writer: &mut Writer) {
    match &writer.adapter.residual_base {
        Some(name) => writer.set("init_lora_weights", name.as_str()),
        None if writer.carried("init_lora_weights").is_some_and(|v| v.as_str().is_some_and(changes_base)) => {
            writer.set("init_lora_weights", true);
        }
        None => {}
    }
    writer.set("ensure_weight_tying", writer.adapter.ties_embeddings);
}

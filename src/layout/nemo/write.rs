//! An adapter as a `.nemo` archive in NeMo's canonical form: factors of their own for query, key, value, gate and up,
//! with one alpha and one rank for all.
//!
//! NeMo makes the adapters of whole layers, by kind, from the settings and wants weights for all of them
//! (NVIDIA/NeMo:nemo/collections/nlp/parts/peft_config.py, `LoraPEFTConfig`): what an adapter leaves out is zero here.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::archive::{CONFIG, WEIGHTS};
use super::names::{self, Family, Parts};
use super::settings::ABOUT;
use crate::adapter::delta::{Delta, LowRank};
use crate::adapter::{Adapter, Note, Scale, ScaleRule, SiteKind, Target};
use crate::container::yaml;
use crate::error::{Context, Error, Result};
use crate::layout::source::BASE_FINGERPRINT;
use crate::layout::{Draft, Format};
use crate::names::ModulePath;
use crate::tensor::{StateDict, rearrange};

/// The adapters of a layer: the kind that the settings name, module and name of the adapter.
const SLOTS: [(&str, &str); 7] = [
    ("attention_qkv", "self_attention.adapter_layer.lora_unfused_kqv_adapter.q_adapter"),
    ("attention_qkv", "self_attention.adapter_layer.lora_unfused_kqv_adapter.k_adapter"),
    ("attention_qkv", "self_attention.adapter_layer.lora_unfused_kqv_adapter.v_adapter"),
    ("attention_dense", "self_attention.adapter_layer.lora_dense_attention_adapter"),
    ("mlp_fc1", "mlp.adapter_layer.lora_unfused_hto4h_adapter.gate_adapter"),
    ("mlp_fc1", "mlp.adapter_layer.lora_unfused_hto4h_adapter.up_adapter"),
    ("mlp_fc2", "mlp.adapter_layer.lora_4htoh_adapter"),
];

/// The archive of `adapter`.
pub fn write(adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
    if let Some(name) = &adapter.residual_base {
        let what = format!("meant for a base that `{name}` changed, which NeMo's settings have no word for");
        return Err(
            Error::unsupported(what).hint("convert it with PEFT first (path_initial_model_for_weight_conversion)")
        );
    }
    let family = names::family(adapter.base.family.as_deref())?;
    if family.qkv != names::family(None)?.qkv || !matches!(family.first, Parts::Apart([_, _])) {
        let what =
            "a base that has fused layers, or none with a gate: NeMo's canonical form does not hold its adapters";
        return Err(Error::unsupported(what));
    }
    let mut writer = Writer { adapter, notes: Vec::new() };
    let mut factors = writer.factors(&family)?;
    let (rank, scale) = writer.common(&factors)?;
    for ((layer, slot), d) in &mut factors {
        let key = key(*layer, *slot);
        *d = writer.fitted(&key, d, rank, scale).at_key(&key)?;
    }
    writer.fill(&mut factors)?;
    writer.check_queries(&factors)?;
    let mut tensors = StateDict::new();
    for ((layer, slot), d) in &factors {
        tensors.insert(format!("{}.linear_in.weight", key(*layer, *slot)), d.a.clone());
        tensors.insert(format!("{}.linear_out.weight", key(*layer, *slot)), d.b.clone());
    }
    let config = writer.config(&factors, rank, scale);
    let draft = Draft {
        tensor_file: "adapter.nemo".to_string(),
        tensors,
        format: Format::Tar {
            texts: vec![(format!("./{CONFIG}"), yaml::text(&config).into_bytes())],
            tensors: TENSORS,
        },
        ..Draft::default()
    };
    Ok((draft, writer.notes))
}

const TENSORS: &str = "./model_weights.ckpt";
const _: () = assert!(TENSORS.len() == WEIGHTS.len() + 2);

fn key(layer: usize, slot: usize) -> String {
    let name = SLOTS.get(slot).map_or("", |(_, name)| name);
    format!("model.decoder.layers.{layer}.{name}")
}

/// Factors by layer and place in [`SLOTS`].
type Slots = BTreeMap<(usize, usize), LowRank>;

struct Writer<'a> {
    adapter: &'a Adapter,
    notes: Vec<Note>,
}

impl Writer<'_> {
    fn factors(&self, family: &Family) -> Result<Slots> {
        let mut out = Slots::new();
        for (path, target) in &self.adapter.targets {
            let slot = slot(family, path).at_key(path.as_str())?;
            out.insert(slot, low_rank(target).at_key(path.as_str())?.clone());
        }
        if out.is_empty() {
            return Err(Error::missing("an adapter without tensors: there is nothing to write"));
        }
        Ok(out)
    }

    /// The largest rank, and the scale most modules have.
    fn common(&mut self, factors: &Slots) -> Result<(usize, Scale)> {
        let rank = factors.values().map(LowRank::rank).max().unwrap_or(1);
        let mut found: Vec<(Scale, usize)> = Vec::new();
        for d in factors.values() {
            let factor = d.factor();
            if !factor.is_finite() {
                return Err(Error::unsupported(format!("a scale of {factor}, expected a finite number")));
            }
            // Nothing can be folded into a factor of zero.
            if factor == 0.0 {
                continue;
            }
            let own = if d.rank() == rank && d.scale.rule == ScaleRule::AlphaOverRank {
                d.scale
            } else {
                over_rank(factor, rank)
            };
            match found.iter_mut().find(|(other, _)| other.factor(rank) == own.factor(rank)) {
                Some((_, count)) => *count += 1,
                None => found.push((own, 1)),
            }
        }
        let most = found.iter().rev().max_by_key(|(_, count)| *count);
        let one = Scale { alpha: rank as f64, rule: ScaleRule::AlphaOverRank };
        let scale = most.map_or(one, |(scale, _)| *scale);
        let next =
            factors.values().map(LowRank::factor).find(|f| *f != scale.factor(rank) && is_next(*f, scale.factor(rank)));
        if let Some(factor) = next {
            let what = format!("scale {factor} becomes {}: no alpha over rank {rank} is nearer", scale.factor(rank));
            self.notes.push(Note::info("alpha", what));
        }
        Ok((rank, scale))
    }

    /// Factors of the common rank and scale.
    fn fitted(&mut self, key: &str, d: &LowRank, rank: usize, scale: Scale) -> Result<LowRank> {
        let ((own, inputs), (outputs, other)) = (rearrange::matrix(&d.a)?, rearrange::matrix(&d.b)?);
        if own != other {
            return Err(Error::mismatch(format!("rank of A {} against rank of B {}", d.a.shape, d.b.shape)));
        }
        let mut out = LowRank { scale: Scale::direct(d.factor()), ..d.clone() };
        if own < rank {
            self.notes
                .push(Note::info(key, format!("rank {own} filled up with zeros to {rank}, NeMo has one rank a file")));
            out.a = rearrange::concat_rows(&[d.a.clone(), rearrange::zeros(&d.a, [rank - own, inputs])?])?;
            let more = rearrange::zeros(&d.b, [rank - own, outputs])?;
            out.b = rearrange::transposed(&rearrange::concat_rows(&[rearrange::transposed(&d.b)?, more])?)?;
        }
        if is_next(d.factor(), scale.factor(rank)) {
            return Ok(LowRank { scale, ..out });
        }
        let (out, folded) = out.rescaled(scale)?;
        if let Some(folded) = folded {
            let text = format!(
                "scale {} folded into linear_out, NeMo has one scale a file, here {}",
                d.factor(),
                scale.factor(rank)
            );
            self.notes.push(match folded.exact {
                true if !folded.widened => Note::info(key, text),
                true => Note::info(key, format!("{text}; it becomes {}", folded.tensor.dtype)),
                false => Note::lossy(key, format!("{text}; rounded to {}", folded.tensor.dtype)),
            });
        }
        Ok(out)
    }

    /// Zeros for the adapters that NeMo makes along with those there are.
    fn fill(&mut self, factors: &mut Slots) -> Result<()> {
        let layers: BTreeSet<usize> = match self.adapter.base.layers_to_fill()? {
            Some(count) => (0..count).chain(factors.keys().map(|(layer, _)| *layer)).collect(),
            None => factors.keys().map(|(layer, _)| *layer).collect(),
        };
        let kinds: BTreeSet<&str> = factors.keys().filter_map(|(_, slot)| Some(SLOTS.get(*slot)?.0)).collect();
        let mut added = 0;
        for (slot, (kind, name)) in SLOTS.iter().enumerate() {
            if !kinds.contains(kind) {
                continue;
            }
            let like = self.like(slot, factors).at_key(*name)?;
            for layer in &layers {
                factors.entry((*layer, slot)).or_insert_with(|| {
                    added += 1;
                    like.clone()
                });
            }
        }
        if added > 0 {
            let what =
                format!("{added} adapters of zeros added, since NeMo has one for every layer and part of a kind");
            self.notes.push(Note::info("", what));
        }
        Ok(())
    }

    /// Zeros in the shapes of the slot.
    fn like(&self, slot: usize, factors: &Slots) -> Result<LowRank> {
        let zeros = |d: &LowRank, outputs: usize| -> Result<LowRank> {
            let ((rank, inputs), _) = (rearrange::matrix(&d.a)?, ());
            Ok(LowRank {
                a: rearrange::zeros(&d.a, [rank, inputs])?,
                b: rearrange::zeros(&d.b, [outputs, rank])?,
                ..d.clone()
            })
        };
        let in_slot = |wanted: usize| factors.iter().find(|((_, slot), _)| *slot == wanted).map(|(_, d)| d);
        if let Some(own) = in_slot(slot) {
            return zeros(own, rearrange::matrix(&own.b)?.0);
        }
        let siblings: &[usize] = match slot {
            0 => &[1, 2],
            1 => &[2, 0],
            2 => &[1, 0],
            4 => &[5],
            _ => &[4],
        };
        let sibling = siblings.iter().find_map(|slot| Some((*slot, in_slot(*slot)?)));
        let (other, d) = sibling.ok_or_else(|| Error::missing("none of its parts is adapted"))?;
        let inputs = rearrange::matrix(&d.a)?.1;
        let outputs = match (slot, other) {
            // NeMo's queries are as wide as the model.
            (0, _) => Some(inputs),
            (1 | 2, 0) => self.adapter.base.attention_rows().and_then(|rows| rows.get(1).copied()),
            _ => Some(rearrange::matrix(&d.b)?.0),
        };
        let outputs = outputs.ok_or_else(|| {
            Error::missing("keys and values are not adapted and NeMo wants them; their rows are not known")
                .hint("--base tells them")
        })?;
        zeros(d, outputs)
    }

    fn check_queries(&self, factors: &Slots) -> Result<()> {
        for ((layer, slot), d) in factors {
            let ((_, inputs), (outputs, _)) = (rearrange::matrix(&d.a)?, rearrange::matrix(&d.b)?);
            if *slot == 0 && inputs != outputs {
                let what = format!(
                    "a query of {outputs} rows in a model of width {inputs}: NeMo's canonical form has as many"
                );
                return Err(Error::unsupported(what).at_key(key(*layer, *slot)));
            }
        }
        Ok(())
    }

    fn config(&mut self, factors: &Slots, rank: usize, scale: Scale) -> Map<String, Value> {
        let mut out = Map::new();
        if self.adapter.carried.layout == "nemo" {
            for (name, text) in &self.adapter.carried.fields {
                if let Ok(value) = serde_json::from_str(text) {
                    out.insert(name.clone(), value);
                }
            }
        }
        let base = &self.adapter.base;
        let sizes = [
            ("hidden_size", base.hidden),
            ("ffn_hidden_size", base.intermediate),
            ("num_attention_heads", base.heads),
            ("num_query_groups", base.key_heads),
            ("kv_channels", base.head_width),
            ("num_layers", base.layers),
        ];
        for (name, size) in sizes {
            if let Some(size) = size {
                out.entry(name).or_insert(json!(size));
            }
        }
        if base.heads.is_none() && !out.contains_key("num_attention_heads") {
            let what = "nothing is known of the base, and NeMo's settings say nothing of the model; --base tells";
            self.notes.push(Note::info(CONFIG, what));
        }
        out.entry("activation").or_insert(json!("fast-swiglu"));
        for name in ["tensor_model_parallel_size", "pipeline_model_parallel_size"] {
            out.insert(name.to_string(), json!(1));
        }
        let kinds = SLOTS.iter().enumerate().filter(|(slot, _)| factors.keys().any(|(_, own)| own == slot));
        let mut kinds: Vec<&str> = kinds.map(|(_, (kind, _))| *kind).collect();
        kinds.dedup();
        let mut peft = inner(&out, "peft");
        peft.entry("peft_scheme").or_insert(json!("lora"));
        let mut lora = inner(&peft, "lora_tuning");
        lora.insert("variant".to_string(), json!("canonical"));
        lora.insert("target_modules".to_string(), json!(kinds));
        lora.insert("adapter_dim".to_string(), json!(rank));
        let whole = (scale.alpha.fract() == 0.0 && scale.alpha.abs() < 1e15).then_some(scale.alpha as i64);
        lora.insert("alpha".to_string(), whole.map_or(json!(scale.alpha), |n| json!(n)));
        for (name, value) in [("adapter_dropout", json!(0.0)), ("weight_tying", json!(false))] {
            lora.entry(name).or_insert(value);
        }
        let layers: BTreeSet<usize> = factors.keys().map(|(layer, _)| *layer).collect();
        if layers.iter().copied().ne(0..layers.len()) {
            // Counted from 1.
            lora.insert("layer_selection".to_string(), json!(layers.iter().map(|n| n + 1).collect::<Vec<_>>()));
        }
        peft.insert("lora_tuning".to_string(), Value::Object(lora));
        out.insert("peft".to_string(), Value::Object(peft));
        for (name, text) in &self.adapter.about {
            let name = if name == BASE_FINGERPRINT { name.clone() } else { format!("{ABOUT}{name}") };
            out.insert(name, json!(text));
        }
        out
    }
}

fn inner(map: &Map<String, Value>, name: &str) -> Map<String, Value> {
    map.get(name).and_then(Value::as_object).cloned().unwrap_or_default()
}

/// Whether two scales differ in the last bit of f64 at most.
fn is_next(a: f64, b: f64) -> bool {
    (a - b).abs() <= f64::EPSILON * a.abs()
}

/// Alpha that gives this factor at this rank, to the last bit where there is one.
fn over_rank(factor: f64, rank: usize) -> Scale {
    let near = factor * rank as f64;
    let of = |alpha: f64| Scale { alpha, rule: ScaleRule::AlphaOverRank };
    let exact = [near, near.next_up(), near.next_down()].into_iter().find(|alpha| of(*alpha).factor(rank) == factor);
    of(exact.unwrap_or(near))
}

/// Layer and place in [`SLOTS`] of a module.
fn slot(family: &Family, path: &ModulePath) -> Result<(usize, usize)> {
    let unknown = || Error::unsupported("a module that NeMo 1 has no adapter for, or not under this name");
    let rest = path.as_str().strip_prefix(family.layers).and_then(|rest| rest.strip_prefix('.')).ok_or_else(unknown)?;
    let (layer, inside) = rest.split_once('.').ok_or_else(unknown)?;
    let layer = layer.parse().map_err(|_| unknown())?;
    let (Parts::Apart(qkv), Parts::Apart(first)) = (family.qkv, family.first) else { return Err(unknown()) };
    let attention = qkv.iter().chain([&family.dense]).map(|name| format!("{}.{name}", family.attention));
    let feed = first.iter().chain([&family.second]).map(|name| format!("mlp.{name}"));
    let found = attention.chain(feed).position(|name| name == inside);
    Ok((layer, found.ok_or_else(unknown)?))
}

/// The two factors that are all a target does to its weight.
fn low_rank(target: &Target) -> Result<&LowRank> {
    let cannot = |what: String| Err(Error::unsupported(what));
    if target.magnitude.is_some() {
        return cannot("DoRA, which NeMo 1 does not have".to_string());
    }
    if let Some(delta) = target.bias.first() {
        return cannot(format!("{} of the bias, which NeMo does not have", delta.kind()));
    }
    if matches!(target.site, SiteKind::Embedding | SiteKind::Parameter) {
        return cannot("factors of no linear layer, which NeMo does not have".to_string());
    }
    match target.weight.as_slice() {
        [Delta::LowRank(d)] if d.experts.is_none() && d.a.shape.rank() == 2 && d.b.shape.rank() == 2 => Ok(d),
        [Delta::LowRank(d)] => {
            cannot(format!("factors {} of experts or a convolution, which NeMo does not have", d.a.shape))
        }
        [Delta::Hadamard(_) | Delta::Kronecker(_)] => {
            let what = format!("{} cannot be written in NeMo's layout", target.kind());
            Err(Error::unsupported(what).hint("`lora-tool resize` makes a LoRA of it"))
        }
        [delta] => cannot(format!("{} cannot be written in NeMo's layout", delta.kind())),
        _ => cannot("several changes of one weight, of which NeMo holds one".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_gives_the_factor_back() {
        for (factor, rank) in [(2.5, 7), (1.0 / 3.0, 12), (0.7, 16), (0.1, 8)] {
            assert_eq!(over_rank(factor, rank).factor(rank), factor);
        }
        // There is none for this one.
        let near = over_rank(0.1, 3).factor(3);
        assert!(near != 0.1 && is_next(0.1, near));
    }

    #[test]
    fn modules_have_their_slots() {
        let family = names::family(None).unwrap();
        let slot = |path: &str| slot(&family, &ModulePath::from(path)).ok();
        assert_eq!(slot("model.layers.7.self_attn.v_proj"), Some((7, 2)));
        assert_eq!(slot("model.layers.7.mlp.down_proj"), Some((7, 6)));
        assert_eq!(slot("model.layers.7.mlp.gate"), None);
        assert_eq!(slot("model.embed_tokens"), None);
    }
}

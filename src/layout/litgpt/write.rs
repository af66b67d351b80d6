//! An adapter as LitGPT's files: its modules, one rank and one alpha, an adapter on every layer, and the settings that
//! `merge_lora` wants to see.
//!
//! LitGPT loads the factors strictly: every module that the switches name has to be there in every layer
//! (Lightning-AI/litgpt:litgpt/scripts/merge_lora.py), so what is missing becomes zeros.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::names::{self, Attention, Family, HEAD, Names, PARTS, QKV};
use super::qkv;
use super::settings::{self, BASE_NAME, HYPERPARAMETERS, MODEL, OWN, OWN_ABOUT, OWN_BASE, SWITCHES};
use crate::adapter::delta::LowRank;
use crate::adapter::{Adapter, Facts, Note, Target, fused};
use crate::container::yaml;
use crate::error::{Context, Error, Result};
use crate::layout::even::{self, Module, Scaling};
use crate::layout::source::BASE_FINGERPRINT;
use crate::layout::{Draft, Format, facts};
use crate::limits;
use crate::names::ModulePath;
use crate::tensor::{StateDict, Tensor, rearrange};

const WHO: &str = "LitGPT";
const LAYOUT: &str = "litgpt";
const TENSOR_FILE: &str = "lit_model.pth.lora";
const HINT_BASE: &str = "--base says it";

/// The files of `adapter`.
pub fn write(adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
    if let Some(name) = &adapter.residual_base {
        let what = format!("meant for a base that `{name}` changed, which LitGPT has no word for");
        return Err(
            Error::unsupported(what).hint("convert it with PEFT first (path_initial_model_for_weight_conversion)")
        );
    }
    if adapter.targets.is_empty() {
        return Err(Error::missing("an adapter without tensors: there is nothing to write"));
    }
    let family = family(adapter)?;
    let mut writer =
        Writer { facts: &adapter.base, family, modules: BTreeMap::new(), trained: [false; 3], notes: Vec::new() };
    for (path, target) in &adapter.targets {
        writer.target(path, target).at_key(path.as_str())?;
    }
    let (tensors, scaling) = writer.tensors()?;
    let mut texts = vec![(
        HYPERPARAMETERS.to_string(),
        yaml::text(&hyperparameters(adapter, &tensors, scaling, &writer)).into_bytes(),
    )];
    match carried(adapter, MODEL) {
        Some(Value::Object(model)) => texts.push((MODEL.to_string(), yaml::text(&model).into_bytes())),
        _ => {
            let what =
                "not written: it belongs beside, with the tokenizer's files, from the base's checkpoint for LitGPT";
            writer.notes.push(Note::info(MODEL, what));
        }
    }
    let draft = Draft {
        tensor_file: TENSOR_FILE.to_string(),
        tensors,
        texts,
        format: Format::Torch { under: Some("model") },
        ..Draft::default()
    };
    Ok((draft, writer.notes))
}

/// The family of the base, or that of the model's settings it was read with.
fn family(adapter: &Adapter) -> Result<&'static Family> {
    if let Some(model_type) = &adapter.base.family {
        return names::family(model_type);
    }
    if let Some(Value::Object(model)) = carried(adapter, MODEL) {
        let text = |name: &str| model.get(name).and_then(Value::as_str).unwrap_or_default();
        return names::family_of_model(text("name"), text("mlp_class_name"));
    }
    Err(Error::missing("the family of the base is not known, and LitGPT's names go by that").hint(HINT_BASE))
}

/// What the adapter's own files said, where they were LitGPT's.
fn carried(adapter: &Adapter, name: &str) -> Option<Value> {
    let carried = &adapter.carried;
    let (_, text) = carried.fields.iter().filter(|_| carried.layout == LAYOUT).find(|(field, _)| field == name)?;
    serde_json::from_str(text).ok()
}

struct Writer<'a> {
    facts: &'a Facts,
    family: &'static Family,
    /// By LitGPT's path; query, key and value apart.
    modules: BTreeMap<String, Module>,
    /// Which of query, key and value have factors.
    trained: [bool; 3],
    notes: Vec<Note>,
}

impl<'a> Writer<'a> {
    fn names(&self) -> Names<'a> {
        Names { facts: self.facts, family: self.family }
    }

    fn target(&mut self, path: &ModulePath, target: &Target) -> Result<()> {
        if target.magnitude.is_some() {
            return Err(Error::unsupported("DoRA's magnitude, and LitGPT's files hold plain LoRA only"));
        }
        if let Some(singles) = even::experts(path, target)? {
            self.notes.push(Note::info(path.as_str(), "a fused stack of experts, taken apart"));
            return singles.into_iter().try_for_each(|(path, factors)| self.put(self.name(&path)?, factors));
        }
        let factors = even::only_factors(target, WHO)?;
        if let Some((layer, inside)) = self.names().of_layer(path.as_str()) {
            let outputs = factors.b.shape.matrix().0;
            match self.family.attention {
                Attention::InARow(name) if name == inside => {
                    let rows = in_a_row(&self.rows_of(outputs)?);
                    return self.parts(layer, &["attn.q", "attn.k", "attn.v"], factors, &rows);
                }
                Attention::ByGroup(name) if name == inside => {
                    let sizes = self.rows_of(outputs)?;
                    let places = qkv::inverse(&self.heads()?.by_group());
                    let of = |rows: Vec<usize>| rows.iter().filter_map(|row| places.get(*row).copied()).collect();
                    let rows: Vec<Vec<usize>> = in_a_row(&sizes).into_iter().map(of).collect();
                    return self.parts(layer, &["attn.q", "attn.k", "attn.v"], factors, &rows);
                }
                _ => {}
            }
            if self.family.gate_up == Some(inside) {
                let half = outputs / 2;
                if !outputs.is_multiple_of(2) {
                    let what = format!("{outputs} outputs, expected those of gate and up projection");
                    return Err(Error::mismatch(what));
                }
                return self.parts(layer, &["mlp.fc_1", "mlp.fc_2"], factors, &in_a_row(&[half, half]));
            }
        }
        self.put(self.name(path.as_str())?, factors.clone())
    }

    fn name(&self, path: &str) -> Result<String> {
        self.names().ours(path).ok_or_else(|| {
            let what = "no module that LitGPT adapts in models of this family";
            Error::unsupported(what).hint("the attention, the feed-forward layers, the output embedding")
        })
    }

    fn heads(&self) -> Result<qkv::Heads> {
        settings::heads(self.facts)?
            .ok_or_else(|| Error::missing("the sizes of query, key and value are not known").hint(HINT_BASE))
    }

    /// The same, which together have to be the outputs of a fused attention.
    fn rows_of(&self, outputs: usize) -> Result<[usize; 3]> {
        let rows = self.rows()?;
        let wanted: usize = rows.iter().sum();
        if wanted != outputs {
            let what = format!("{outputs} outputs, query, key and value of the base have {wanted}");
            return Err(Error::mismatch(what).hint("is this the base model the adapter was trained on?"));
        }
        Ok(rows)
    }

    fn rows(&self) -> Result<[usize; 3]> {
        Ok(self.heads()?.rows())
    }

    /// A fused projection, taken apart. A part that is not changed need not be there, unless there is no other.
    fn parts(&mut self, layer: usize, names: &[&str], whole: &LowRank, rows: &[Vec<usize>]) -> Result<()> {
        let mut parts = Vec::new();
        for (name, part) in names.iter().zip(fused::split_factors(whole, rows)?) {
            parts.push((names::in_layer(layer, name), !even::is_zero(&part.b)?, part));
        }
        let none = parts.iter().all(|(_, changes, _)| !changes);
        for (name, changes, part) in parts {
            if changes || none {
                self.put(name, part)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, name: String, factors: LowRank) -> Result<()> {
        if let Some((_, inside)) = names::layer(&name)
            && let Some(part) = PARTS.iter().position(|part| inside == format!("attn.{part}"))
        {
            let (rows, outputs) = (self.rows()?, factors.b.shape.matrix().0);
            if rows.get(part) != Some(&outputs) {
                let what = format!("{outputs} outputs, the base has {} here", rows.get(part).copied().unwrap_or(0));
                return Err(Error::mismatch(what).hint("is this the base model the adapter was trained on?"));
            }
        }
        for (on, part) in self.trained.iter_mut().zip(PARTS) {
            *on |= name.ends_with(&format!(".attn.{part}"));
        }
        if self.modules.contains_key(&name) {
            let what = format!("two modules of the adapter would be `{name}` in LitGPT's model");
            return Err(Error::unsupported(what));
        }
        self.modules.insert(name, Module { factors, magnitude: None });
        Ok(())
    }

    fn tensors(&mut self) -> Result<(StateDict, Scaling)> {
        let mut all = std::mem::take(&mut self.modules);
        let scaling = even::level(&mut all, WHO, &mut self.notes)?;
        let wanted = self.wanted(&all)?;
        even::fill(&mut all, &wanted, scaling, WHO, &mut self.notes)?;
        let (mut names, mut tensors) = (Vec::new(), Vec::new());
        for (name, a, b) in self.together(all)? {
            names.extend([format!("{name}.lora_A"), format!("{name}.lora_B")]);
            tensors.extend([a, b]);
        }
        let one = even::same_type(&tensors)?;
        if one != tensors {
            let what = "all factors in f32, since their types differ: LitGPT takes all for that of the first";
            self.notes.push(Note::info("", what));
        }
        let number =
            |key: &str| names::layer(key).map_or((usize::MAX, key.to_string()), |(n, rest)| (n, rest.to_string()));
        let mut sorted: Vec<(String, Tensor)> = names.into_iter().zip(one).collect();
        sorted.sort_by_key(|(key, _)| number(key));
        Ok((sorted.into_iter().collect(), scaling))
    }

    /// Query, key and value of each layer in one.
    fn together(&self, mut all: BTreeMap<String, Module>) -> Result<Vec<(String, Tensor, Tensor)>> {
        let mut out = Vec::new();
        let layers: Vec<usize> = all.keys().filter_map(|name| Some(names::layer(name)?.0)).collect();
        for layer in std::collections::BTreeSet::from_iter(layers) {
            let part = |part: &&str| names::in_layer(layer, &format!("attn.{part}"));
            let (a, b): (Vec<_>, Vec<_>) =
                PARTS.iter().filter_map(|name| all.remove(&part(name))).map(|m| (m.factors.a, m.factors.b)).unzip();
            if !a.is_empty() {
                let name = names::in_layer(layer, QKV);
                let one = |parts: &[Tensor]| rearrange::concat_rows(&even::same_type(parts)?).at_key(&name);
                out.push((name.clone(), one(&a)?, one(&b)?));
            }
        }
        out.extend(all.into_iter().map(|(name, module)| (name, module.factors.a, module.factors.b)));
        Ok(out)
    }

    /// The modules that LitGPT has an adapter on, where it has these.
    fn wanted(&mut self, modules: &BTreeMap<String, Module>) -> Result<BTreeMap<String, (usize, usize)>> {
        let mut kinds: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        let mut layers = 0;
        let mut inner = None;
        let mut experts = self.facts.experts.unwrap_or(0).min(limits::COUNTED);
        for (name, module) in modules {
            let Some((number, inside)) = names::layer(name) else { continue };
            layers = layers.max(number + 1);
            let (outputs, inputs) = (module.factors.b.shape.matrix().0, module.factors.a.shape.matrix().1);
            if let Some((number, name)) = names::expert(inside) {
                experts = experts.max(number + 1);
                inner = Some(if name == "proj" { (inputs, outputs) } else { (outputs, inputs) });
            } else if inside == "mlp.gate" {
                experts = experts.max(outputs);
                kinds.insert(inside.to_string(), (outputs, inputs));
            } else if inside.starts_with("mlp.") {
                inner = Some(if inside == "mlp.proj" { (inputs, outputs) } else { (outputs, inputs) });
            } else {
                kinds.insert(inside.to_string(), (outputs, inputs));
            }
        }
        if let Some((inner, hidden)) = inner {
            self.feed_forward(&mut kinds, inner, hidden, experts);
        } else if kinds.contains_key("mlp.gate") {
            match self.facts.intermediate.filter(|inner| *inner <= limits::ATTENTION_ROWS) {
                Some(inner) => {
                    let hidden = kinds.get("mlp.gate").map_or(0, |(_, inputs)| *inputs);
                    self.feed_forward(&mut kinds, inner, hidden, experts);
                }
                None => {
                    let what = "experts that LitGPT adapts with their router, and whose size is not known; not added";
                    self.notes.push(Note::lossy("mlp.experts", what));
                }
            }
        }
        match self.facts.layers_to_fill()? {
            Some(known) => layers = layers.max(known),
            None if layers > 0 => {
                let what =
                    format!("the number of layers is not known; taken as {layers}, up to the last that is adapted");
                self.notes.push(Note::info("", what));
            }
            None => {}
        }
        if kinds.len().saturating_mul(layers) > limits::LITGPT_MODULES {
            let found = format!("{} modules in each of {layers} layers", kinds.len());
            return Err(Error::limit(found, format!("{} together", limits::LITGPT_MODULES)));
        }
        let of = |layer: usize| kinds.iter().map(move |(inside, shape)| (names::in_layer(layer, inside), *shape));
        Ok((0..layers).flat_map(of).collect())
    }

    /// All that `lora_mlp` switches on.
    fn feed_forward(&self, kinds: &mut BTreeMap<String, (usize, usize)>, inner: usize, hidden: usize, experts: usize) {
        let gated = [("fc_1", (inner, hidden)), ("fc_2", (inner, hidden)), ("proj", (hidden, inner))];
        let plain = [("fc", (inner, hidden)), ("proj", (hidden, inner))];
        if self.family.has_experts() {
            kinds.entry("mlp.gate".to_string()).or_insert((experts, hidden));
            for number in 0..experts {
                kinds.extend(gated.iter().map(|(name, shape)| (format!("mlp.experts.{number}.{name}"), *shape)));
            }
        } else if self.family.is_gated() {
            kinds.extend(gated.iter().map(|(name, shape)| (format!("mlp.{name}"), *shape)));
        } else {
            kinds.extend(plain.iter().map(|(name, shape)| (format!("mlp.{name}"), *shape)));
        }
    }
}

/// The numbers of this many rows, one after the other.
fn in_a_row(sizes: &[usize]) -> Vec<Vec<usize>> {
    let mut at = 0;
    let next = |size: &usize| {
        at += size;
        (at - size..at).collect()
    };
    sizes.iter().map(next).collect()
}

/// The training's settings: those that were read, and of them anew what the tensors decide.
fn hyperparameters(adapter: &Adapter, tensors: &StateDict, scaling: Scaling, writer: &Writer) -> Map<String, Value> {
    let mut out = Map::new();
    for (name, text) in adapter.carried.fields.iter().filter(|_| adapter.carried.layout == LAYOUT) {
        if let (true, Ok(value)) = (name != MODEL && name != OWN, serde_json::from_str(text)) {
            out.insert(name.clone(), value);
        }
    }
    let old = out.get("checkpoint_dir").and_then(Value::as_str).map(str::to_string);
    let base = adapter.about.get(BASE_NAME);
    let same = |old: &String| base.is_some_and(|name| old.strip_prefix("checkpoints/").unwrap_or(old) == name);
    let directory = old.filter(same).or(base.cloned()).unwrap_or_else(|| ".".to_string());
    out.insert("checkpoint_dir".to_string(), json!(directory));
    out.insert("lora_r".to_string(), json!(scaling.rank));
    out.insert("lora_alpha".to_string(), even::number(scaling.alpha));
    out.entry("lora_dropout").or_insert(json!(0.0));
    let has =
        |inside: &str| tensors.keys().any(|key| names::layer(key).is_some_and(|(_, rest)| rest.starts_with(inside)));
    let head = tensors.keys().any(|key| key.starts_with(HEAD));
    let [query, key, value] = writer.trained;
    for (name, on) in SWITCHES.into_iter().zip([query, key, value, has("attn.proj."), has("mlp."), head]) {
        out.insert(name.to_string(), json!(on));
    }
    let mut own = Map::new();
    if let Some(base) = facts::to_config(&adapter.base) {
        own.insert(OWN_BASE.to_string(), Value::Object(base));
    }
    let names = [BASE_NAME, "revision", "task_type", BASE_FINGERPRINT];
    let about: Map<_, _> =
        names.into_iter().filter_map(|name| Some((name.to_string(), json!(adapter.about.get(name)?)))).collect();
    if !about.is_empty() {
        own.insert(OWN_ABOUT.to_string(), Value::Object(about));
    }
    if !own.is_empty() {
        out.insert(OWN.to_string(), Value::Object(own));
    }
    out
}

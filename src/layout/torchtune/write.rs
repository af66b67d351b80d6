//! An adapter as torchtune's files: its modules and rows, one rank and one alpha, an adapter on every layer.
//!
//! torchtune builds its modules from a recipe's switches and refuses a file that lacks one of them
//! (meta-pytorch/torchtune:torchtune/modules/peft/_utils.py, `validate_missing_and_unexpected_for_lora`), so what has no
//! place there is an error here, and what is missing becomes zeros.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde_json::{Map, Value, json};

use super::TENSOR_FILE;
use super::config::BASE_FIELD;
use super::names::{self, Family, Names, PROJECTIONS};
use crate::adapter::{Adapter, Facts, Note, Target, fused};
use crate::container::json;
use crate::error::{Context, Error, Result};
use crate::layout::even::{self, Module, Scaling};
use crate::layout::source::BASE_FINGERPRINT;
use crate::layout::{Draft, Format, facts};
use crate::names::ModulePath;
use crate::tensor::rearrange::{self, Rotary};
use crate::tensor::{Shape, StateDict, Tensor};

const WHO: &str = "torchtune";
const HINT_BASE: &str = "--base says it";

/// The files of `adapter`.
pub fn write(adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
    if let Some(name) = &adapter.residual_base {
        let what = format!("meant for a base that `{name}` changed, which torchtune has no word for");
        return Err(
            Error::unsupported(what).hint("convert it with PEFT first (path_initial_model_for_weight_conversion)")
        );
    }
    if adapter.targets.is_empty() {
        return Err(Error::missing("an adapter without tensors: there is nothing to write"));
    }
    let family = adapter.base.family.as_deref().map(names::family).transpose()?;
    let mut writer =
        Writer { facts: &adapter.base, family, modules: BTreeMap::new(), experts: BTreeMap::new(), notes: Vec::new() };
    for (path, target) in &adapter.targets {
        writer.target(path, target).at_key(path.as_str())?;
    }
    if family.is_none() {
        let what = "the family of the base is not known; names as most models have them";
        writer.notes.push(Note::lossy("", what));
    }
    writer.require_one_kind()?;
    let (tensors, scaling) = writer.tensors()?;
    let config = config(adapter, &tensors, scaling);
    let draft = Draft {
        tensor_file: TENSOR_FILE.to_string(),
        tensors,
        texts: vec![("adapter_config.json".to_string(), json::text(&Value::Object(config))?)],
        format: Format::Torch { under: None },
        ..Draft::default()
    };
    Ok((draft, writer.notes))
}

/// The path of all experts of a layer, and which projection.
type Stack = (String, &'static str);

struct Writer<'a> {
    facts: &'a Facts,
    family: Option<&'static Family>,
    /// By torchtune's path, without `decoder.`.
    modules: BTreeMap<String, Module>,
    /// Of experts, by the path of all of them, projection and number.
    experts: BTreeMap<Stack, BTreeMap<usize, Module>>,
    notes: Vec<Note>,
}

impl<'a> Writer<'a> {
    fn names(&self) -> Names<'a> {
        Names { facts: self.facts, family: self.family }
    }

    fn target(&mut self, path: &ModulePath, target: &Target) -> Result<()> {
        if let Some(parts) = self.names().our_parts(path.as_str()) {
            return self.parts(&parts, target);
        }
        if let Some(singles) = even::experts(path, target)? {
            self.notes.push(Note::info(path.as_str(), "a fused stack of experts, taken apart"));
            return singles
                .into_iter()
                .try_for_each(|(path, factors)| self.module(&path, Module { factors, magnitude: None }));
        }
        let factors = even::only_factors(target, WHO)?.clone();
        self.module(path.as_str(), Module { factors, magnitude: target.magnitude.clone() })
    }

    fn module(&mut self, path: &str, module: Module) -> Result<()> {
        if let Some((holder, number, which)) = self.names().our_expert(path) {
            if module.magnitude.is_some() {
                return Err(Error::unsupported("a magnitude of an expert, which torchtune does not have"));
            }
            self.experts.entry((holder, which)).or_default().insert(number, module);
            return Ok(());
        }
        let name = self.names().ours(path).ok_or_else(|| {
            let what = "no module that torchtune adapts in models of this family";
            Error::unsupported(what)
                .hint("query, key, value and output of the attention, the feed-forward layers, the output")
        })?;
        self.put(name, module)
    }

    /// A fused projection, taken apart into torchtune's.
    fn parts(&mut self, names: &[String], target: &Target) -> Result<()> {
        let whole = even::only_factors(target, WHO)?;
        let rows =
            match names.len() {
                2 => halves(whole.b.shape.matrix().0)?,
                _ => in_a_row(self.facts.attention_rows().ok_or_else(|| {
                    Error::missing("the sizes of query, key and value are not known").hint(HINT_BASE)
                })?),
            };
        let (sum, outputs) = (rows.iter().map(Range::len).sum::<usize>(), whole.b.shape.matrix().0);
        if sum != outputs {
            return Err(Error::mismatch(format!("{outputs} outputs, query, key and value of the base have {sum}")));
        }
        let rows: Vec<Vec<usize>> = rows.into_iter().map(Iterator::collect).collect();
        let mut parts = Vec::new();
        for (name, part) in names.iter().zip(fused::split(target, &rows)?) {
            let factors = even::only_factors(&part, WHO)?.clone();
            let changes = part.magnitude.is_some() || !even::is_zero(&factors.b)?;
            parts.push((name.clone(), changes, Module { factors, magnitude: part.magnitude }));
        }
        // A part that is not changed need not be there, unless there is no other.
        let all = parts.iter().all(|(_, changes, _)| !changes);
        for (name, changes, module) in parts {
            if changes || all {
                self.put(name, module)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, name: String, mut module: Module) -> Result<()> {
        let outputs = module.factors.b.shape.matrix().0;
        if name == "output" && (self.facts.tied == Some(true) || self.family.is_some_and(|f| f.ties)) {
            let what = "the output, which torchtune cannot adapt where it is tied to the embedding";
            return Err(Error::unsupported(what));
        }
        if let Some(m) = module.magnitude.take() {
            module.magnitude = Some(m.reshaped([outputs])?);
        }
        if let Some(heads) = names::heads(&name, self.facts) {
            let family = self.family.ok_or_else(|| {
                let what = "the family of the base is not known, and of some torchtune has the rows of query and key in another order";
                Error::missing(what).hint(HINT_BASE)
            })?;
            if family.interleaved {
                let what = "the number of heads is not known, and torchtune has the rows in another order in each";
                let heads = heads.ok_or_else(|| Error::missing(what).hint(HINT_BASE))?;
                if let Some(width) = self.facts.head_width
                    && heads.checked_mul(width) != Some(outputs)
                {
                    let what = format!("{outputs} outputs, the base has {heads} heads of {width} here");
                    return Err(Error::mismatch(what).hint("is this the base model the adapter was trained on?"));
                }
                let order = rearrange::rotary_order(outputs, heads, Rotary::Interleave)?;
                module.factors.b = rearrange::pick_rows(&module.factors.b, &order)?;
                module.magnitude = module.magnitude.map(|m| rearrange::pick_rows(&m, &order)).transpose()?;
            }
        }
        if self.modules.insert(name.clone(), module).is_some() {
            let what = format!("two modules of the adapter would be `{name}` in torchtune's model");
            return Err(Error::unsupported(what));
        }
        Ok(())
    }

    /// torchtune has one kind of module for all.
    fn require_one_kind(&self) -> Result<()> {
        let all = self.modules.len() + self.experts.values().map(BTreeMap::len).sum::<usize>();
        let dora = self.modules.values().filter(|m| m.magnitude.is_some()).count();
        if dora > 0 && dora < all {
            let what = format!("DoRA on {dora} of {all} modules; torchtune has one word for all");
            return Err(Error::unsupported(what).hint("write them as two adapters"));
        }
        Ok(())
    }

    fn tensors(&mut self) -> Result<(StateDict, Scaling)> {
        // Experts are levelled with all others, and put together afterwards.
        let mut all = std::mem::take(&mut self.modules);
        for ((holder, which), experts) in &self.experts {
            for (number, module) in experts {
                all.insert(format!("{holder}.{number}.{which}"), module.clone());
            }
        }
        let scaling = even::level(&mut all, WHO, &mut self.notes)?;
        let mut tensors = Vec::new();
        for ((holder, which), experts) in self.whole_experts()? {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            for number in experts {
                let module = all.remove(&format!("{holder}.{number}.{which}"));
                let module = module.ok_or_else(|| Error::missing(format!("expert {number}")).at_key(&holder))?;
                a.push(rearrange::transposed(&module.factors.a)?);
                b.push(rearrange::transposed(&module.factors.b)?);
            }
            tensors.push((format!("{holder}.lora_{which}_a"), stacked(&a).at_key(&holder)?));
            tensors.push((format!("{holder}.lora_{which}_b"), stacked(&b).at_key(&holder)?));
        }
        let wanted = self.wanted(&all)?;
        even::fill(&mut all, &wanted, scaling, WHO, &mut self.notes)?;
        for (name, module) in all {
            tensors.push((format!("{name}.lora_a.weight"), module.factors.a));
            tensors.push((format!("{name}.lora_b.weight"), module.factors.b));
            tensors.extend(module.magnitude.map(|m| (format!("{name}.magnitude"), m)));
        }
        let prefix = self.names().prefix();
        let number =
            |key: &str| names::layer(key).map_or((usize::MAX, key.to_string()), |(n, rest)| (n, rest.to_string()));
        tensors.sort_by_key(|(key, _)| number(key));
        Ok((tensors.into_iter().map(|(key, tensor)| (format!("{prefix}{key}"), tensor)).collect(), scaling))
    }

    /// The numbers of the experts of each stack: all of them, in all three projections.
    fn whole_experts(&self) -> Result<Vec<(Stack, Range<usize>)>> {
        let holders: BTreeSet<_> = self.experts.keys().map(|(holder, _)| holder).collect();
        let mut out = Vec::new();
        for holder in holders {
            let count = PROJECTIONS
                .iter()
                .filter_map(|which| self.experts.get(&(holder.clone(), *which))?.keys().last())
                .max()
                .map_or(0, |last| last + 1);
            let count = self.facts.experts.map_or(count, |known| known.max(count));
            for which in PROJECTIONS {
                let found = self.experts.get(&(holder.clone(), which)).map_or(0, BTreeMap::len);
                if found != count {
                    let what =
                        format!("{found} of {count} experts have an adapted {which} projection; torchtune adapts all");
                    return Err(Error::unsupported(what).at_key(holder));
                }
                out.push(((holder.clone(), which), 0..count));
            }
        }
        Ok(out)
    }

    /// The modules that torchtune has an adapter on, where it has these.
    fn wanted(&mut self, modules: &BTreeMap<String, Module>) -> Result<BTreeMap<String, (usize, usize)>> {
        let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        let mut layers = 0;
        for (name, module) in modules {
            let Some((number, inside)) = names::layer(name) else { continue };
            layers = layers.max(number + 1);
            let (outputs, inputs) = (module.factors.b.shape.matrix().0, module.factors.a.shape.matrix().1);
            if inside.starts_with("attn.") {
                kinds.insert(inside, (outputs, inputs));
            } else if self.family.is_some_and(|f| f.decoder) {
                // Which layers have experts the base tells; these are left as they are.
            } else if inside == "mlp.w2" {
                kinds.extend([
                    (inside, (outputs, inputs)),
                    ("mlp.w1", (inputs, outputs)),
                    ("mlp.w3", (inputs, outputs)),
                ]);
            } else {
                kinds.extend([
                    ("mlp.w1", (outputs, inputs)),
                    ("mlp.w2", (inputs, outputs)),
                    ("mlp.w3", (outputs, inputs)),
                ]);
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
        let of = |layer: usize| kinds.iter().map(move |(inside, shape)| (format!("layers.{layer}.{inside}"), *shape));
        Ok((0..layers).flat_map(of).collect())
    }
}

/// Ranges of this many rows, one after the other.
fn in_a_row(sizes: [usize; 3]) -> Vec<Range<usize>> {
    let mut at = 0;
    let next = |size: usize| {
        at += size;
        at - size..at
    };
    sizes.into_iter().map(next).collect()
}

fn halves(rows: usize) -> Result<Vec<Range<usize>>> {
    if !rows.is_multiple_of(2) {
        return Err(Error::mismatch(format!("{rows} outputs, expected those of gate and up projection")));
    }
    Ok(vec![0..rows / 2, rows / 2..rows])
}

/// Matrices of one shape and type as one tensor.
fn stacked(parts: &[Tensor]) -> Result<Tensor> {
    let dims = parts.first().map(|part| part.shape.dims().to_vec()).unwrap_or_default();
    if let Some(other) = parts.iter().find(|part| part.shape.dims() != dims) {
        return Err(Error::mismatch(format!(
            "experts of different sizes, {} beside {}",
            other.shape,
            Shape::new(dims)
        )));
    }
    let all = rearrange::concat_rows(&even::same_type(parts)?)?;
    all.reshaped(std::iter::once(parts.len()).chain(dims).collect::<Vec<_>>())
}

/// What torchtune saves for PEFT: alpha is nowhere else. Fields that it had when it was read stay.
fn config(adapter: &Adapter, tensors: &StateDict, scaling: Scaling) -> Map<String, Value> {
    let mut out = Map::new();
    let carried = &adapter.carried;
    for (name, text) in carried.fields.iter().filter(|_| carried.layout == WHO) {
        if let Ok(value) = serde_json::from_str(text) {
            out.insert(name.clone(), value);
        }
    }
    let dora = tensors.keys().any(|key| key.ends_with(".magnitude"));
    let modules: BTreeSet<_> = tensors.keys().filter_map(|key| names::target_module(module_of(key)?)).collect();
    out.insert("r".to_string(), json!(scaling.rank));
    out.insert("lora_alpha".to_string(), even::number(scaling.alpha));
    out.insert("peft_type".to_string(), json!("LORA"));
    let same = carried.layout == WHO && carried.outline == adapter.outline();
    if !same || !out.contains_key("target_modules") {
        out.insert("target_modules".to_string(), json!(modules));
    }
    if dora {
        out.insert("use_dora".to_string(), json!(true));
    }
    for name in ["base_model_name_or_path", "revision", "task_type", BASE_FINGERPRINT] {
        if let Some(text) = adapter.about.get(name) {
            out.insert(name.to_string(), json!(text));
        }
    }
    if let Some(base) = facts::to_config(&adapter.base) {
        out.insert(BASE_FIELD.to_string(), Value::Object(base));
    }
    out.sort_keys();
    out
}

fn module_of(key: &str) -> Option<&str> {
    match names::parse(key)? {
        names::Key::Layer { module, .. } => Some(module),
        names::Key::Experts { .. } => None,
    }
}

//! An adapter as MLX's files: one rank and one scale for all modules, factors turned round, experts in stacks.
//!
//! mlx-lm makes the adapted modules from the config and refuses tensors that none of them has
//! (ml-explore/mlx-lm:mlx_lm/tuner/utils.py, `load_adapters`), so what has no place there is an error here.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::config::{ABOUT, DEFAULT_SCALE, EXPERTS_FIELD, Training};
use super::keys;
use crate::adapter::delta::{Delta, Full, LowRank, full::Mode};
use crate::adapter::fold::{self, Folded};
use crate::adapter::{Adapter, Note, SiteKind, Target, experts};
use crate::container::json;
use crate::error::{Context, Error, Result};
use crate::layout::source::BASE_FINGERPRINT;
use crate::layout::{Draft, stacks};
use crate::names::ModulePath;
use crate::tensor::{Tensor, rearrange};

/// The files of `adapter`.
pub fn write(adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
    require_plain_base(adapter)?;
    let mut writer = Writer { adapter, tensors: BTreeMap::new(), selectors: BTreeSet::new(), notes: Vec::new() };
    let is_whole = |target: &&Target| target.weight.iter().chain(&target.bias).all(is_replacement);
    let whole = adapter.targets.values().filter(is_whole).count();
    let (training, rank, scale) = match (whole, adapter.targets.len()) {
        (_, 0) => return Err(Error::missing("an adapter without tensors: there is nothing to write")),
        (whole, all) if whole == all => {
            writer.whole()?;
            (Training::Full, 0, DEFAULT_SCALE)
        }
        _ => writer.factors()?,
    };
    writer.note_names();
    let config = writer.config(training, rank, scale);
    let mut tensors: Vec<_> = writer.tensors.into_iter().collect();
    tensors.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype));
    let draft = Draft {
        tensor_file: "adapters.safetensors".to_string(),
        tensors: tensors.into_iter().collect(),
        metadata: metadata(adapter),
        texts: vec![("adapter_config.json".to_string(), json::text(&Value::Object(config))?)],
        ..Draft::default()
    };
    Ok((draft, writer.notes))
}

fn require_plain_base(adapter: &Adapter) -> Result<()> {
    let Some(name) = &adapter.residual_base else { return Ok(()) };
    let what = format!("meant for a base that `{name}` changed, which MLX's config has no word for");
    Err(Error::unsupported(what).hint("convert it with PEFT first (path_initial_model_for_weight_conversion)"))
}

fn is_replacement(delta: &Delta) -> bool {
    matches!(delta, Delta::Full(Full { mode: Mode::Replace, .. }))
}

struct Writer<'a> {
    adapter: &'a Adapter,
    tensors: BTreeMap<String, Tensor>,
    /// What the config's `keys` have to name.
    selectors: BTreeSet<String>,
    notes: Vec<Note>,
}

/// The factors of one module in the orientation of [`LowRank`], with the scale and rank of the file.
struct Module {
    site: SiteKind,
    a: Tensor,
    b: Tensor,
    magnitude: Option<Tensor>,
}

impl Writer<'_> {
    fn factors(&mut self) -> Result<(Training, usize, f64)> {
        let adapter = self.adapter;
        let mut all: Vec<(&ModulePath, &Target, &LowRank)> = Vec::new();
        for (path, target) in &adapter.targets {
            target.require_magnitude_of_outputs().at_key(path.as_str())?;
            all.push((path, target, low_rank(target).at_key(path.as_str())?));
        }
        let dora = all.iter().filter(|(_, target, _)| target.magnitude.is_some()).count();
        if dora > 0 && dora < all.len() {
            let what = format!("DoRA on {dora} of {} modules; MLX has one word for all", all.len());
            return Err(Error::unsupported(what).hint("write them as two adapters"));
        }
        let rank = all.iter().map(|(_, _, factors)| factors.rank()).max().unwrap_or(0);
        let scale = common_scale(all.iter().map(|(path, _, factors)| (*path, factors.factor())))?;
        let mut modules = BTreeMap::new();
        for (path, target, factors) in all {
            if factors.experts.is_some() {
                self.take_apart(path, factors, (rank, scale), &mut modules).at_key(path.as_str())?;
                continue;
            }
            let (a, b) = self.fitted(path.as_str(), factors, rank, scale).at_key(path.as_str())?;
            let module = Module { site: target.site, a, b, magnitude: target.magnitude.clone() };
            modules.insert(path.to_string(), module);
        }
        self.experts(&mut modules)?;
        for (path, module) in modules {
            self.module(&path, module).at_key(&path)?;
        }
        Ok((if dora > 0 { Training::Dora } else { Training::Lora }, rank, scale))
    }

    /// A fused stack as experts one by one, the gate apart from what it gates.
    fn take_apart(
        &mut self,
        path: &ModulePath,
        factors: &LowRank,
        (rank, scale): (usize, f64),
        modules: &mut BTreeMap<String, Module>,
    ) -> Result<()> {
        let base = self.base_name();
        let projections = stacks::projections(path, base.as_deref())?;
        let holder = stacks::holder(path, base.as_deref());
        if projections.len() > 1 {
            let what = "taken apart with the rows of the gate first, as all models but gpt-oss have them; --base tells";
            self.notes.push(Note::lossy(path.as_str(), what));
        } else {
            self.notes.push(Note::info(path.as_str(), "a fused stack, taken apart"));
        }
        for (number, single) in experts::singles(factors)?.into_iter().enumerate() {
            let (a, b) = self.fitted(path.as_str(), &single, rank, scale)?;
            for (projection, b) in projections.iter().zip(stacks::shares(&b, projections.len())?) {
                let module = Module { site: SiteKind::Layer, a: a.clone(), b, magnitude: None };
                modules.insert(format!("{holder}.{number}.{projection}"), module);
            }
        }
        Ok(())
    }

    /// Both factors with the rank and the scale of the file.
    fn fitted(&mut self, path: &str, factors: &LowRank, rank: usize, scale: f64) -> Result<(Tensor, Tensor)> {
        let ((own, inputs), (outputs, other)) = (rearrange::matrix(&factors.a)?, rearrange::matrix(&factors.b)?);
        if own != other {
            let what = format!("rank of A {} against rank of B {}", factors.a.shape, factors.b.shape);
            return Err(Error::mismatch(what));
        }
        let b = self.folded(path, &factors.b, factors.factor(), scale)?;
        if own < rank {
            self.notes
                .push(Note::info(path, format!("rank {own} filled up with zeros to {rank}, MLX has one rank a file")));
        }
        Ok((rearrange::padded(&factors.a, rank, inputs)?, rearrange::padded(&b, outputs, rank)?))
    }

    fn folded(&mut self, path: &str, b: &Tensor, own: f64, scale: f64) -> Result<Tensor> {
        if own == scale {
            return Ok(b.clone());
        }
        let Folded { tensor, exact, widened } = fold::scaled(b, own / scale)?;
        let text = format!("scale {own} folded into lora_b, MLX has one scale a file, here {scale}");
        self.note(match (exact, widened) {
            (true, false) => Note::info(path, text),
            (true, true) => Note::info(path, format!("{text}; lora_b becomes {}", tensor.dtype)),
            (false, _) => Note::lossy(path, format!("{text}; rounded to {}", tensor.dtype)),
        });
        Ok(tensor)
    }

    /// Notes what is the same for all experts of a module once.
    fn note(&mut self, note: Note) {
        if !self.notes.iter().rev().take(2).any(|other| *other == note) {
            self.notes.push(note);
        }
    }

    /// Takes the experts out of the modules, a stack for each projection of a layer.
    fn experts(&mut self, modules: &mut BTreeMap<String, Module>) -> Result<()> {
        let paths: Vec<_> = modules.keys().cloned().collect();
        let mut stacks: BTreeMap<String, BTreeMap<usize, Module>> = BTreeMap::new();
        for path in paths {
            let Some((stack, number)) = self.stack(&path) else { continue };
            let Some(module) = modules.remove(&path) else { continue };
            if module.magnitude.is_some() {
                let what = "a magnitude of an expert, which mlx-lm does not have";
                return Err(Error::unsupported(what).at_key(path));
            }
            stacks.entry(stack).or_default().insert(number, module);
        }
        for (path, experts) in stacks {
            require_all(&experts).at_key(&path)?;
            let (a, b): (Vec<_>, Vec<_>) = experts.into_values().map(|m| (m.a, m.b)).unzip();
            self.notes.push(Note::info(&path, format!("{} experts taken for all the model has", a.len())));
            let put = [("lora_a", rearrange::stacked(&a)), ("lora_b", rearrange::stacked(&b))];
            for (leaf, tensor) in put {
                self.put(&path, leaf, tensor.at_key(&path)?)?;
            }
        }
        Ok(())
    }

    fn stack(&self, path: &str) -> Option<(String, usize)> {
        let (stack, number) = keys::stack(path)?;
        if self.adapter.base.family.as_deref().is_some_and(keys::calls_it_experts) {
            return Some((keys::stack_called_experts(path)?, number));
        }
        let called = self.carried(EXPERTS_FIELD).and_then(|v| v.as_array().cloned()).unwrap_or_default();
        let other = keys::stack_called_experts(path).filter(|name| called.iter().any(|v| v.as_str() == Some(name)));
        Some((other.unwrap_or(stack), number))
    }

    fn module(&mut self, path: &str, module: Module) -> Result<()> {
        let Module { site, a, b, magnitude } = module;
        let own_name = self.own_name(path);
        let path = own_name.as_str();
        let (path, a, b) = match (site, &magnitude) {
            (SiteKind::Embedding, Some(_)) => {
                return Err(Error::unsupported("DoRA on an embedding with norms by column; MLX has norms by row"));
            }
            (SiteKind::Layer | SiteKind::FanInFanOut | SiteKind::Embedding, _) => {
                if (site == SiteKind::Embedding) != keys::is_embedding(path) {
                    return Err(Error::unsupported(
                        "factors whose orientation MLX's files tell by the module's name, and this name tells another",
                    ));
                }
                (path, rearrange::transposed(&a)?, rearrange::transposed(&b)?)
            }
            (SiteKind::Parameter, _) => match path.strip_suffix(".weight") {
                Some(embedding) if magnitude.is_some() && keys::is_embedding(embedding) => (embedding, b, a),
                // A router's matrix, which is a linear layer's in MLX's models.
                Some(module) if magnitude.is_none() && !keys::is_embedding(module) => {
                    (module, rearrange::transposed(&a)?, rearrange::transposed(&b)?)
                }
                _ => return Err(Error::unsupported("factors of a parameter by its own name, which MLX does not have")),
            },
        };
        if path == "lm_head" && self.adapter.base.tied == Some(true) {
            let what = "the output of a model that ties it to its embedding, for which mlx-lm's model has no module";
            return Err(Error::unsupported(what));
        }
        if site == SiteKind::Embedding && !self.adapter.ties_embeddings {
            let text = "where the model ties its output to this embedding, mlx-lm adapts both uses";
            self.notes.push(Note::info(path, text));
        }
        self.put(path, "lora_a", a)?;
        self.put(path, "lora_b", b)?;
        if let Some(m) = magnitude {
            self.put(path, "m", m.reshaped([m.elements()])?)?;
        }
        Ok(())
    }

    /// The name of the base, spelt alike.
    fn base_name(&self) -> Option<String> {
        Some(self.adapter.about.get("base_model_name_or_path")?.replace('_', "-").to_lowercase())
    }

    /// What the MLX model calls a module, where that is known to be another name.
    fn own_name(&self, path: &str) -> String {
        let is_gpt2 = self.adapter.base.family.as_deref() == Some("gpt2");
        let is_mixtral = self.base_name().is_some_and(|name| name.contains("mixtral"));
        if let Some(layer) = path.strip_suffix(".mlp.gate.weight").filter(|_| is_mixtral) {
            return format!("{layer}.block_sparse_moe.gate.weight");
        }
        match path.trim_start_matches("transformer.") {
            layer if is_gpt2 && layer.starts_with("h.") => format!("model.{layer}"),
            _ => path.to_string(),
        }
    }

    /// Whole tensors under their names.
    fn whole(&mut self) -> Result<()> {
        for (path, target) in &self.adapter.targets {
            if keys::stack(path.as_str()).is_some() {
                let what = "whole weights of single experts, which MLX has in stacks";
                return Err(Error::unsupported(what).at_key(path.as_str()));
            }
            let named = |name: &str| if target.is_parameter() { path.to_string() } else { path.tensor(name) };
            for (name, deltas) in [("weight", &target.weight), ("bias", &target.bias)] {
                let [delta] = deltas.as_slice() else {
                    if deltas.is_empty() {
                        continue;
                    }
                    return Err(Error::unsupported("replaced more than once").at_key(path.as_str()));
                };
                let Delta::Full(Full { tensor, .. }) = delta else { continue };
                keys::check_orientation(path.as_str(), tensor).at_key(path.as_str())?;
                self.insert(named(name), tensor.clone())?;
            }
        }
        Ok(())
    }

    fn put(&mut self, path: &str, leaf: &str, tensor: Tensor) -> Result<()> {
        self.selectors.insert(keys::selector(path).to_string());
        self.insert(format!("{path}.{leaf}"), tensor)
    }

    fn insert(&mut self, key: String, tensor: Tensor) -> Result<()> {
        if self.tensors.contains_key(&key) {
            return Err(
                Error::unsupported("two tensors of the adapter would have this name in MLX's layout").at_key(key)
            );
        }
        self.tensors.insert(key, tensor);
        Ok(())
    }

    fn note_names(&mut self) {
        if self.adapter.carried.layout == "mlx" {
            return;
        }
        let paths: BTreeSet<_> =
            self.tensors.keys().filter_map(|key| key.rsplit_once('.')).map(|(path, _)| path).collect();
        let other: Vec<_> = paths.into_iter().filter(|path| !keys::is_common(path)).collect();
        let Some(first) = other.first() else { return };
        let what = format!(
            "{} modules whose path may be another in mlx-lm's model; written as the adapter has it, or as most models do",
            other.len()
        );
        self.notes.push(Note::lossy(*first, what));
    }

    /// What the adapter's own config said, where that was MLX's.
    fn carried(&self, name: &str) -> Option<Value> {
        let (_, text) = self.carried_fields().find(|(field, _)| field == name)?;
        serde_json::from_str(text).ok()
    }

    fn carried_fields(&self) -> impl Iterator<Item = &(String, String)> {
        let carried = &self.adapter.carried;
        carried.fields.iter().filter(|_| carried.layout == "mlx")
    }

    fn config(&self, training: Training, rank: usize, scale: f64) -> Map<String, Value> {
        let mut out = Map::new();
        for (name, text) in self.carried_fields() {
            // Older words and what is carried for this side only; the fingerprint goes into the tensor file.
            let other = ["use_dora", "lora_layers", EXPERTS_FIELD, BASE_FINGERPRINT].contains(&name.as_str());
            if let (false, Ok(value)) = (other, serde_json::from_str(text)) {
                out.insert(name.clone(), value);
            }
        }
        let own = self.carried_fields().next().is_some();
        let same = own && self.adapter.carried.outline == self.adapter.outline();
        let layers = self.carried("num_layers").or_else(|| self.carried("lora_layers"));
        out.insert("num_layers".to_string(), layers.filter(|_| same).unwrap_or(json!(-1)));
        out.insert("fine_tune_type".to_string(), json!(training.word()));
        let old = self.carried("lora_parameters").and_then(|v| v.as_object().cloned()).unwrap_or_default();
        let parameters = match training {
            Training::Full => Value::Null,
            _ => self.parameters(&old, same, rank, scale),
        };
        out.insert("lora_parameters".to_string(), parameters);
        if let Some(model) = self.adapter.about.get("base_model_name_or_path") {
            out.insert("model".to_string(), json!(model));
        }
        out.sort_keys();
        out
    }

    fn parameters(&self, old: &Map<String, Value>, same: bool, rank: usize, scale: f64) -> Value {
        let mut out = old.clone();
        out.remove("alpha");
        out.entry("dropout").or_insert(json!(0.0));
        out.insert("rank".to_string(), json!(rank));
        out.insert("scale".to_string(), json!(scale));
        if !same {
            out.insert("keys".to_string(), json!(self.selectors));
        }
        out.sort_keys();
        Value::Object(out)
    }
}

/// The two factors that are all a target does to its weight.
fn low_rank(target: &Target) -> Result<&LowRank> {
    let cannot = |what: String| Err(Error::unsupported(what));
    if let Some(delta) = target.bias.first() {
        return cannot(format!("{} of the bias, which an MLX adapter with factors cannot hold", delta.kind()));
    }
    let factors = match target.weight.as_slice() {
        [Delta::LowRank(factors)] => factors,
        [Delta::Hadamard(_) | Delta::Kronecker(_)] => {
            let what = format!("{} cannot be written in MLX's layout", target.kind());
            return Err(Error::unsupported(what).hint("`lora-tool resize` makes a LoRA of it"));
        }
        [delta] if is_replacement(delta) => {
            let what = "a whole tensor beside factors of other modules, of which MLX holds only one kind";
            return Err(Error::unsupported(what).hint("write the whole tensors as an adapter of their own"));
        }
        [delta] => return cannot(format!("{} cannot be written in MLX's layout", delta.kind())),
        [whole, Delta::LowRank(_)] if is_replacement(whole) => {
            let what = "a whole weight and factors of one module, of which MLX holds one";
            return Err(Error::unsupported(what).hint(
                "PEFT saves the base's own embedding along with its factors; save it with save_embedding_layers=False",
            ));
        }
        _ => return cannot("several changes of one weight, of which MLX holds one".to_string()),
    };
    if factors.a.shape.rank() != 2 || factors.b.shape.rank() != 2 {
        return cannot(format!("factors {} of a convolution, which MLX cannot adapt", factors.a.shape));
    }
    Ok(factors)
}

/// The scale most modules have; where several are as frequent, that of the first.
fn common_scale<'p>(scales: impl Iterator<Item = (&'p ModulePath, f64)>) -> Result<f64> {
    let mut found: Vec<(f64, usize)> = Vec::new();
    for (path, scale) in scales {
        if !scale.is_finite() {
            return Err(
                Error::unsupported(format!("a scale of {scale}, expected a finite number")).at_key(path.as_str())
            );
        }
        // Nothing can be folded into a factor of zero.
        if scale == 0.0 {
            continue;
        }
        match found.iter_mut().find(|(other, _)| *other == scale) {
            Some((_, count)) => *count += 1,
            None => found.push((scale, 1)),
        }
    }
    let most = found.iter().rev().max_by_key(|(_, count)| *count);
    Ok(most.map_or(1.0, |(scale, _)| *scale))
}

fn require_all(experts: &BTreeMap<usize, Module>) -> Result<()> {
    match experts.keys().enumerate().find(|(i, number)| i != *number) {
        Some((missing, _)) => {
            Err(Error::unsupported(format!("expert {missing} is not adapted; MLX adapts all or none")))
        }
        None => Ok(()),
    }
}

fn metadata(adapter: &Adapter) -> Vec<(String, String)> {
    let carried = adapter.carried.metadata.iter().filter(|(key, _)| key != "format" && key != BASE_FINGERPRINT);
    let about =
        adapter.about.iter().filter(|(name, _)| *name != BASE_FINGERPRINT && *name != "base_model_name_or_path");
    let about = about.map(|(name, text)| (format!("{ABOUT}{name}"), text.clone()));
    let base = adapter.about.get(BASE_FINGERPRINT).map(|hash| (BASE_FINGERPRINT.to_string(), hash.clone()));
    let format = ("format".to_string(), "mlx".to_string());
    std::iter::once(format).chain(carried.cloned()).chain(about).chain(base).collect()
}

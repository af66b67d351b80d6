//! MLX's tensors as an adapter: factors turned round, stacks of experts taken apart, whole tensors.

use serde_json::{Value, json};

use super::config::{ABOUT, Config, DEFAULT_SCALE, EXPERTS_FIELD, Training};
use super::keys::{self, Parts};
use crate::adapter::delta::{Delta, Full, LowRank, full::Mode};
use crate::adapter::{Adapter, Carried, Note, SiteKind, Target};
use crate::error::{Context, Error, Result};
use crate::layout::Source;
use crate::layout::source::BASE_FINGERPRINT;
use crate::names::ModulePath;
use crate::tensor::{Tensor, dtype, rearrange};

/// The adapter in `source`.
pub fn read(source: &Source) -> Result<(Adapter, Vec<Note>)> {
    let mut notes = Vec::new();
    for value in &source.other_values {
        notes.push(Note::info(value, "not a tensor; left out"));
    }
    let config = config(source, &mut notes)?;
    let mut reader = Reader { config, adapter: Adapter::default(), notes, called_experts: Vec::new() };
    reader.adapter.declared = reader.config.training.word().to_string();
    match reader.config.training {
        Training::Full => reader.whole(source).in_file(&source.tensor_file)?,
        _ => reader.factors(source).in_file(&source.tensor_file)?,
    }
    let Reader { mut adapter, notes, called_experts, .. } = reader;
    say_about(&mut adapter, source)?;
    adapter.carried = carried(&adapter, source, &called_experts);
    Ok((adapter, notes))
}

fn config(source: &Source, notes: &mut Vec<Note>) -> Result<Config> {
    if let Some((path, raw)) = &source.config {
        return Config::read(raw, notes).in_file(path);
    }
    if source.tensor_file.extension().is_some_and(|e| e == "npz") {
        let what = format!("no adapter_config.json: scale {DEFAULT_SCALE}, as in the first version of mlx-examples");
        notes.push(Note::lossy("scale", what));
        return Ok(Config::of_first_version());
    }
    Err(Error::missing("no adapter_config.json beside the tensors, and the scale is only there")
        .in_file(&source.tensor_file)
        .hint("put the adapter's config into the same folder"))
}

struct Reader {
    config: Config,
    adapter: Adapter,
    notes: Vec<Note>,
    /// Stacks whose module is called `experts`.
    called_experts: Vec<String>,
}

impl Reader {
    fn factors(&mut self, source: &Source) -> Result<()> {
        for (path, parts) in keys::sort(&source.tensors)? {
            self.module(&path, parts).at_key(&path)?;
        }
        let tied = |(path, target): (&ModulePath, &Target)| {
            target.site == SiteKind::Embedding || path.as_str().strip_suffix(".weight").is_some_and(keys::is_embedding)
        };
        // An MLX model whose output embedding is tied calls the adapted module for both uses.
        self.adapter.ties_embeddings = self.adapter.targets.iter().any(tied);
        Ok(())
    }

    fn module(&mut self, path: &str, parts: Parts) -> Result<()> {
        let Parts { a, b, m } = parts;
        let half = |there: &str, missing: &str| Err(Error::missing(format!("has {there} and no {missing}")));
        let (a, b) = match (a, b) {
            (Some(a), Some(b)) => (a, b),
            (Some(_), None) => return half("lora_a", "lora_b"),
            (None, Some(_)) => return half("lora_b", "lora_a"),
            (None, None) => return half("m", "lora_a"),
        };
        let dora = self.config.training == Training::Dora;
        if dora != m.is_some() {
            let (has, kind) = if dora { ("no m", "dora") } else { ("a magnitude m", "lora") };
            return Err(Error::mismatch(format!("{has}, the config says {kind}")));
        }
        if b.shape.rank() == 3 {
            return self.experts(path, &a, &b, m.is_some());
        }
        let ((_, rank), (other, _)) = (rearrange::matrix(&a)?, rearrange::matrix(&b)?);
        self.require_rank(rank, other, &a, &b)?;
        let (path, site, a, b) = match (keys::is_embedding(path), &m) {
            (false, _) => (path.to_string(), SiteKind::Layer, rearrange::transposed(&a)?, rearrange::transposed(&b)?),
            (true, None) => {
                (path.to_string(), SiteKind::Embedding, rearrange::transposed(&a)?, rearrange::transposed(&b)?)
            }
            // The magnitude runs along the rows of the weight [n, d], as in no other program's embeddings: the weight
            // is taken as the parameter it is, with b as the factor that faces d.
            (true, Some(_)) => (format!("{path}.weight"), SiteKind::Parameter, b, a),
        };
        let delta = low_rank(a, b, &self.config);
        let target = self.target(path);
        target.site = site;
        target.magnitude = m;
        target.weight.push(delta);
        Ok(())
    }

    /// A stack: a [E, r, in] or [E · r, in], b [E, out, r], neither turned.
    fn experts(&mut self, path: &str, a: &Tensor, b: &Tensor, dora: bool) -> Result<()> {
        if dora {
            return Err(Error::unsupported("magnitudes of a stack of experts, which mlx-lm does not have"));
        }
        let [count, out, rank] = *b.shape.dims() else {
            return Err(Error::mismatch(format!("lora_b {}, expected [experts, out, rank]", b.shape)));
        };
        let (found, inputs) = match *a.shape.dims() {
            [experts, found, inputs] if experts == count => (found, inputs),
            // Before October 2025 the experts of A stood below each other.
            [rows, inputs] if count > 0 && rows % count == 0 => (rows / count, inputs),
            _ => {
                let what = format!("lora_a {} beside lora_b {}, expected [{count}, {rank}, in]", a.shape, b.shape);
                return Err(Error::mismatch(what));
            }
        };
        self.require_rank(found, rank, a, b)?;
        let (all_a, all_b) = (rearrange::cut(a, count, &[rank, inputs])?, rearrange::cut(b, count, &[out, rank])?);
        for (number, (a, b)) in all_a.into_iter().zip(all_b).enumerate() {
            let expert = self.expert(path, number)?;
            let delta = low_rank(a, b, &self.config);
            self.target(expert).weight.push(delta);
        }
        Ok(())
    }

    fn expert(&mut self, path: &str, number: usize) -> Result<String> {
        let expert = keys::expert(path, number)
            .ok_or_else(|| Error::unsupported("a stack of matrices in a module that is not known to hold experts"))?;
        if number == 0 && keys::stack_called_experts(&expert).as_deref() == Some(path) {
            self.called_experts.push(path.to_string());
        }
        Ok(expert)
    }

    fn require_rank(&self, of_a: usize, of_b: usize, a: &Tensor, b: &Tensor) -> Result<()> {
        if of_a != of_b || of_a == 0 {
            let what = format!("lora_a {} and lora_b {} have no rank in common", a.shape, b.shape);
            return Err(Error::mismatch(what).hint("the two halves may come from different adapters"));
        }
        match self.config.rank {
            Some(rank) if rank != of_a => {
                Err(Error::mismatch(format!("factors of rank {of_a}, the config says {rank}")))
            }
            _ => Ok(()),
        }
    }

    /// A fine-tune of all weights of some layers: every tensor takes the place of the base's.
    fn whole(&mut self, source: &Source) -> Result<()> {
        let quantised = source.tensors.keys().find(|key| key.ends_with(".scales"));
        if let Some(key) = quantised {
            return Err(Error::unsupported("quantised weights, expected floating-point numbers").at_key(key));
        }
        for (key, tensor) in &source.tensors {
            self.whole_tensor(key, tensor).at_key(key)?;
        }
        Ok(())
    }

    fn whole_tensor(&mut self, key: &str, tensor: &Tensor) -> Result<()> {
        if !dtype::is_float(tensor.dtype) {
            return Err(Error::unsupported(format!("type {}, expected floating-point numbers", tensor.dtype)));
        }
        let (path, name) = key.rsplit_once('.').unwrap_or(("", key));
        let of_experts = tensor.shape.rank() == if name == "weight" { 3 } else { 2 };
        if of_experts && ["weight", "bias"].contains(&name) && keys::expert(path, 0).is_some() {
            let Some((&count, shape)) = tensor.shape.dims().split_first() else { return Ok(()) };
            for (number, part) in rearrange::cut(tensor, count, shape)?.into_iter().enumerate() {
                let expert = self.expert(path, number)?;
                self.replace(expert, name, part);
            }
            return Ok(());
        }
        keys::check_orientation(path, tensor)?;
        match name {
            "weight" | "bias" => self.replace(path.to_string(), name, tensor.clone()),
            _ => self.replace(key.to_string(), "", tensor.clone()),
        }
        Ok(())
    }

    fn replace(&mut self, path: String, name: &str, tensor: Tensor) {
        let target = self.target(path);
        let delta = Delta::Full(Full { tensor, mode: Mode::Replace });
        match name {
            "weight" => target.weight.push(delta),
            "bias" => target.bias.push(delta),
            _ => {
                target.site = SiteKind::Parameter;
                target.weight.push(delta);
            }
        }
    }

    fn target(&mut self, path: String) -> &mut Target {
        self.adapter.targets.entry(ModulePath::from(path)).or_default()
    }
}

fn low_rank(a: Tensor, b: Tensor, config: &Config) -> Delta {
    Delta::LowRank(LowRank { a, b, scale: config.scale, experts: None, name: "LoRA" })
}

fn say_about(adapter: &mut Adapter, source: &Source) -> Result<()> {
    for (key, text) in &source.metadata {
        if let Some(name) = key.strip_prefix(ABOUT) {
            adapter.about.insert(name.to_string(), text.clone());
        }
    }
    let model = source.config.as_ref().and_then(|(_, raw)| raw.get("model")).and_then(Value::as_str);
    if let Some(model) = model {
        adapter.about.insert("base_model_name_or_path".to_string(), model.to_string());
    }
    if let Some(base) = source.base_fingerprint()? {
        adapter.about.insert(BASE_FINGERPRINT.to_string(), base.to_string());
    }
    Ok(())
}

fn carried(adapter: &Adapter, source: &Source, called_experts: &[String]) -> Carried {
    let raw = source.config.iter().flat_map(|(_, raw)| raw);
    let mut fields: Vec<_> = raw.map(|(name, value)| (name.clone(), value.to_string())).collect();
    if !called_experts.is_empty() {
        fields.push((EXPERTS_FIELD.to_string(), json!(called_experts).to_string()));
    }
    let metadata = source.metadata.iter().filter(|(key, _)| !key.starts_with(ABOUT)).cloned().collect();
    Carried { layout: "mlx".to_string(), fields, metadata, outline: adapter.outline(), ..Carried::default() }
}

//! LitGPT's tensors as an adapter: the fused attention in parts, or as the base has it.

use std::collections::{BTreeMap, BTreeSet};

use super::names::{self, Attention, Names, OLD_QKV, PARTS, QKV, Role};
use super::qkv::{self, Heads};
use super::settings::{HYPERPARAMETERS, MODEL, OWN, SWITCHES, Settings};
use crate::adapter::delta::{Delta, LowRank};
use crate::adapter::fused;
use crate::adapter::{Adapter, Carried, Note, Scale, ScaleRule, Target};
use crate::error::{Context, Error, Result};
use crate::layout::{Source, even};
use crate::names::ModulePath;
use crate::tensor::{Tensor, dtype, rearrange};

/// What keys of before December 2024 have in them, and none of later ones.
const OLD_KEY: &str = ".attn.attn.";

/// The adapter in `source`.
pub fn read(source: &Source) -> Result<(Adapter, Vec<Note>)> {
    let mut notes = Vec::new();
    for value in &source.other_values {
        notes.push(Note::info(value, "not a tensor; left out"));
    }
    let modules = sort(source).in_file(&source.tensor_file)?;
    let settings = Settings::read(source, &mut notes)?;
    let heads = settings.heads()?;
    if let Some(key) = source.tensors.keys().find(|key| key.contains(OLD_KEY)) {
        let what =
            "of LitGPT before December 2024; versions since then do not read it, nor always its model_config.yaml";
        notes.push(Note::info(key, what));
    }
    let mut reader = Reader { settings: &settings, heads, targets: BTreeMap::new(), notes, filling: Vec::new() };
    for (module, factors) in modules {
        reader.module(&module, factors).at_key(&module).in_file(&source.tensor_file)?;
    }
    reader.gates().in_file(&source.tensor_file)?;
    let Reader { targets, mut notes, filling, .. } = reader;
    if let Some(first) = filling.first() {
        let what = format!("{} modules of zeros, which change nothing; left out", filling.len());
        notes.push(Note::info(first, what));
    }
    let mut adapter = Adapter { targets, declared: "lora".to_string(), ..Adapter::default() };
    adapter.about.extend(settings.about);
    adapter.base = settings.facts;
    adapter.carried = carried(&adapter, source);
    Ok((adapter, notes))
}

/// Both factors by module.
fn sort(source: &Source) -> Result<BTreeMap<String, (Tensor, Tensor)>> {
    let mut halves: BTreeMap<&str, [Option<&Tensor>; 2]> = BTreeMap::new();
    for (key, tensor) in &source.tensors {
        let (module, role) = names::parse(key).ok_or_else(|| {
            let what = format!("a tensor {} that is no factor of LitGPT's model", tensor.shape);
            Error::unrecognised(what).at_key(key)
        })?;
        if !dtype::is_plain_float(tensor.dtype) {
            let what = format!("elements of {}, expected floating-point numbers", tensor.dtype);
            return Err(Error::unsupported(what).at_key(key));
        }
        if tensor.shape.dims().contains(&0) {
            return Err(Error::malformed(format!("shape {}, which is empty", tensor.shape)).at_key(key));
        }
        let place = halves.entry(module).or_default();
        let [a, b] = place;
        *(if role == Role::A { a } else { b }) = Some(tensor);
    }
    let whole = |(module, halves): (&str, [Option<&Tensor>; 2])| match halves {
        [Some(a), Some(b)] => Ok((module.to_string(), (a.clone(), b.clone()))),
        [Some(_), None] => Err(Error::missing("has lora_A and no lora_B").at_key(module)),
        _ => Err(Error::missing("has lora_B and no lora_A").at_key(module)),
    };
    halves.into_iter().map(whole).collect()
}

struct Reader<'s> {
    settings: &'s Settings,
    heads: Option<Heads>,
    targets: BTreeMap<ModulePath, Target>,
    notes: Vec<Note>,
    /// Modules of zeros.
    filling: Vec<String>,
}

impl Reader<'_> {
    fn names(&self) -> Names<'_> {
        Names { facts: &self.settings.facts, family: self.settings.family }
    }

    fn module(&mut self, module: &str, (a, b): (Tensor, Tensor)) -> Result<()> {
        let (_, rank) = rearrange::matrix(&b)?;
        if let Some(said) = self.settings.rank.filter(|said| *said != rank) {
            return Err(Error::mismatch(format!("factors of rank {rank}, {HYPERPARAMETERS} says {said}")));
        }
        if even::is_filling(&a, &b)? {
            self.filling.push(module.to_string());
            return Ok(());
        }
        match names::layer(module) {
            Some((layer, QKV)) => self.attention(layer, &a, &b, false),
            Some((layer, OLD_QKV)) => self.attention(layer, &a, &b, true),
            _ => self.layer(module, a, b, rank),
        }
    }

    fn layer(&mut self, module: &str, a: Tensor, b: Tensor, rank: usize) -> Result<()> {
        let (rows, _) = rearrange::matrix(&a)?;
        if rows != rank {
            let what = format!("lora_A {} and lora_B {} have no rank in common", a.shape, b.shape);
            return Err(Error::mismatch(what).hint("the two halves may come from different adapters"));
        }
        let switch = match names::layer(module) {
            None => 5,
            Some((_, "attn.proj")) => 3,
            Some(_) => 4,
        };
        self.require_on(switch)?;
        let gate_up = self.settings.family.gate_up.is_some();
        let path = match names::layer(module) {
            // Put together when both are there.
            Some((_, "mlp.fc_1" | "mlp.fc_2")) if gate_up => module.to_string(),
            _ => self.names().theirs(module).ok_or_else(|| {
                Error::unrecognised("not a module of LitGPT's models of this family that is known here")
            })?,
        };
        let delta = self.low_rank(a, b);
        self.put(path, delta)
    }

    fn low_rank(&self, a: Tensor, b: Tensor) -> LowRank {
        LowRank { a, b, scale: self.scale(), experts: None, name: "LoRA" }
    }

    fn scale(&self) -> Scale {
        Scale { alpha: self.settings.alpha, rule: ScaleRule::AlphaOverRank }
    }

    fn require_on(&self, switch: usize) -> Result<()> {
        if self.settings.switches.get(switch).copied().flatten() == Some(false) {
            let name = SWITCHES.get(switch).copied().unwrap_or_default();
            return Err(Error::mismatch(format!("factors, and {HYPERPARAMETERS} says {name}: false")));
        }
        Ok(())
    }

    fn put(&mut self, path: String, delta: LowRank) -> Result<()> {
        let target = Target { weight: vec![Delta::LowRank(delta)], ..Target::default() };
        if self.targets.insert(path.clone().into(), target).is_some() {
            return Err(Error::malformed(format!("two modules of the file are `{path}`")));
        }
        Ok(())
    }

    fn attention(&mut self, layer: usize, a: &Tensor, b: &Tensor, old: bool) -> Result<()> {
        let ((rows, _), (outputs, rank)) = (rearrange::matrix(a)?, rearrange::matrix(b)?);
        let heads = self.heads.ok_or_else(|| {
            let what = "the sizes of query, key and value are not known, which LitGPT has in one";
            Error::missing(what).hint(format!("--base says them, or the {MODEL} of the training, put beside the file"))
        })?;
        let sizes = heads.rows();
        let trained = self.trained(rows, rank, outputs, sizes)?;
        if old && trained == [true; 3] {
            return self.old_attention(layer, a, b, heads, rank);
        }
        let mut parts = qkv::parts(a, b, trained, sizes, self.scale())?;
        for (name, part) in PARTS.iter().zip(&mut parts) {
            if let Some(factors) = part
                && even::is_filling(&factors.a, &factors.b)?
            {
                self.filling.push(names::in_layer(layer, &format!("attn.{name}")));
                *part = None;
            }
        }
        let path = match self.settings.family.attention {
            Attention::Apart => {
                for (name, part) in PARTS.iter().zip(parts) {
                    let path = self.names().theirs(&names::in_layer(layer, &format!("attn.{name}")));
                    if let (Some(part), Some(path)) = (part, path) {
                        self.put(path, part)?;
                    }
                }
                return Ok(());
            }
            Attention::InARow(path) | Attention::ByGroup(path) => self.names().their_layer(layer, path),
        };
        if parts.iter().all(Option::is_none) {
            return Ok(());
        }
        let (mut whole, grown) = fused::fuse_factors(&parts.each_ref().map(Option::as_ref), &sizes)?;
        if matches!(self.settings.family.attention, Attention::ByGroup(_)) {
            whole.b = rearrange::pick_rows(&whole.b, &heads.by_group())?;
        }
        if grown {
            let what = "query, key and value put together, block by block, since their A differ";
            self.notes.push(Note::info(&path, what));
        }
        self.put(path, whole)
    }

    /// Which of query, key and value are trained: as the settings say, else as far as the sizes tell.
    fn trained(&self, rows: usize, rank: usize, outputs: usize, sizes: [usize; 3]) -> Result<[bool; 3]> {
        let [query, key, value, ..] = self.settings.switches;
        if let (Some(query), Some(key), Some(value)) = (query, key, value) {
            return Ok([query, key, value]);
        }
        let count = rows.checked_div(rank).unwrap_or(0);
        let fits = |parts: &[bool; 3]| {
            let of = |(size, on): (usize, &bool)| if *on { size } else { 0 };
            let sum: usize = sizes.into_iter().zip(parts).map(of).sum();
            parts.iter().filter(|on| **on).count() == count && sum == outputs
        };
        let all = (1..8).map(|bits: u8| [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0]);
        match all.filter(fits).collect::<Vec<_>>().as_slice() {
            [one] => Ok(*one),
            _ => Err(Error::missing("which of query, key and value are adapted does not show in the sizes")
                .hint(format!("the {HYPERPARAMETERS} of the training says it"))),
        }
    }

    fn old_attention(&mut self, layer: usize, a: &Tensor, b: &Tensor, heads: Heads, rank: usize) -> Result<()> {
        let whole = qkv::old_whole(a, b, heads.rows(), self.scale())?;
        let what = "all of query, key and value, of before December 2024: A goes by another order than B";
        let places = qkv::inverse(&heads.by_group());
        match self.settings.family.attention {
            Attention::ByGroup(path) => {
                let path = self.names().their_layer(layer, path);
                self.notes.push(Note::info(&path, what));
                self.put(path, whole)
            }
            Attention::InARow(path) => {
                let path = self.names().their_layer(layer, path);
                self.notes.push(Note::info(&path, what));
                let b = rearrange::pick_rows(&whole.b, &places)?;
                self.put(path, LowRank { b, ..whole })
            }
            Attention::Apart => {
                let mut top = 0;
                for (name, rows) in PARTS.iter().zip(heads.rows()) {
                    let own = places.get(top..top + rows).unwrap_or_default();
                    top += rows;
                    let path = self.names().theirs(&names::in_layer(layer, &format!("attn.{name}")));
                    let Some(path) = path else { continue };
                    self.notes.push(Note::info(&path, what));
                    self.put(path, qkv::some_rows(&whole, own, rank)?)?;
                }
                Ok(())
            }
        }
    }

    /// Gate and up projection in one, where the base has them so.
    fn gates(&mut self) -> Result<()> {
        let Some(name) = self.settings.family.gate_up else { return Ok(()) };
        let layers: BTreeSet<usize> =
            self.targets.keys().filter_map(|path| Some(names::layer(path.as_str())?.0)).collect();
        for layer in layers {
            let part = |name: &str| names::in_layer(layer, name);
            let parts =
                [self.targets.remove(part("mlp.fc_1").as_str()), self.targets.remove(part("mlp.fc_2").as_str())];
            let factors = parts.each_ref().map(|part| match part.as_ref().and_then(|t| t.weight.first()) {
                Some(Delta::LowRank(factors)) => Some(factors),
                _ => None,
            });
            // Both are of one size.
            let Some(rows) = factors.iter().flatten().map(|f| f.b.shape.matrix().0).next() else { continue };
            let path = self.names().their_layer(layer, name);
            let (whole, grown) = fused::fuse_factors(&factors, &[rows, rows]).at_key(&path)?;
            if grown {
                let what = "gate and up projection put together, block by block, since their A differ";
                self.notes.push(Note::info(&path, what));
            }
            self.put(path, whole)?;
        }
        Ok(())
    }
}

fn carried(adapter: &Adapter, source: &Source) -> Carried {
    let mut fields = Vec::new();
    if let Some((_, raw)) = source.settings.get(HYPERPARAMETERS) {
        let own = raw.iter().filter(|(name, _)| *name != OWN);
        fields.extend(own.map(|(name, value)| (name.clone(), value.to_string())));
    }
    if let Some((_, raw)) = source.settings.get(MODEL) {
        fields.push((MODEL.to_string(), serde_json::Value::Object(raw.clone()).to_string()));
    }
    Carried {
        layout: "litgpt".to_string(),
        fields,
        metadata: Vec::new(),
        outline: adapter.outline(),
        tensors: Default::default(),
    }
}

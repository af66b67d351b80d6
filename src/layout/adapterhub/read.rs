//! AdapterHub's tensors as an adapter.

use std::collections::BTreeMap;

use super::config::{Config, Mode};
use crate::adapter::delta::{Delta, LowRank, Rescale, rescale::Along};
use crate::adapter::{Adapter, Carried, Note, Scale, ScaleRule, SiteKind, Target, fold};
use crate::error::{Context, Error, Result};
use crate::layout::source::BASE_FINGERPRINT;
use crate::layout::{Source, grouped};
use crate::names::ModulePath;
use crate::tensor::{Dtype, Tensor, cast, rearrange};

/// Families whose layers are `Conv1D`.
const TURNED: [&str; 1] = ["gpt2"];
/// Files of a head beside the adapter.
const HEADS: [&str; 2] = ["pytorch_model_head.bin", "model_head.safetensors"];
/// What stands between a module and the name of an adapter.
const MARK: &str = "loras";
/// The same for what all modules of the model share.
const SHARED: &str = "shared_parameters";

/// The tensors of one module, or those shared by all.
#[derive(Debug, Default)]
struct Parts {
    tensors: BTreeMap<&'static str, Tensor>,
}

/// Tensors of an adapter.
const LEAVES: [&str; 6] = ["lora_A", "lora_B", "m.weight", "gate.weight", "vera_D", "vera_B"];

/// True for keys that no other layout has.
pub fn is_ours(key: &str) -> bool {
    let mark = format!(".{MARK}.");
    key.split_once(&mark).is_some_and(|(_, rest)| rest.split_once('.').is_some_and(|(_, leaf)| LEAVES.contains(&leaf)))
}

/// The adapter in `source`.
pub fn read(source: &Source) -> Result<(Adapter, Vec<Note>)> {
    let Some((path, raw)) = &source.config else {
        return Err(Error::missing("no adapter_config.json beside the tensors, and rank and alpha are only there")
            .in_file(&source.tensor_file)
            .hint("put the adapter's config into the same folder"));
    };
    let mut notes = Vec::new();
    for value in &source.other_values {
        notes.push(Note::info(value, "not a tensor; left out"));
    }
    let config = Config::read(raw, &mut notes).in_file(path)?;
    for name in HEADS {
        if source.tensor_file.parent().is_some_and(|folder| folder.join(name).exists()) {
            notes.push(Note::lossy(name, "a head beside the adapter, which is no part of it; left out"));
        }
    }
    let mut reader = Reader { config, adapter: Adapter::default(), notes, shared: None };
    reader.all(source).in_file(&source.tensor_file)?;
    let Reader { config, mut adapter, notes, .. } = reader;
    adapter.declared = match (config.mode, config.vera, config.dora) {
        (Mode::Scale, ..) => "IA3",
        (_, true, _) => "VeRA",
        (.., true) => "DoRA",
        _ => "LoRA",
    }
    .to_string();
    adapter.base.family = config.family;
    if let Some(base) = config.base {
        adapter.about.insert("base_model_name_or_path".to_string(), base);
    }
    if let Some(base) = source.base_fingerprint()? {
        adapter.about.insert(BASE_FINGERPRINT.to_string(), base.to_string());
    }
    adapter.carried = Carried {
        layout: "adapterhub".to_string(),
        fields: raw.iter().map(|(name, value)| (name.clone(), value.to_string())).collect(),
        metadata: source.metadata.clone(),
        outline: adapter.outline(),
        ..Carried::default()
    };
    Ok((adapter, notes))
}

struct Reader {
    config: Config,
    adapter: Adapter,
    notes: Vec<Note>,
    /// VeRA's matrices.
    shared: Option<(Tensor, Tensor)>,
}

impl Reader {
    fn all(&mut self, source: &Source) -> Result<()> {
        let mut modules: BTreeMap<String, Parts> = BTreeMap::new();
        let mut shared = Parts::default();
        let mut name: Option<&str> = None;
        for (key, tensor) in &source.tensors {
            let unknown =
                || Error::unrecognised(format!("a tensor {} that is none of LoRA's", tensor.shape)).at_key(key);
            let split = [MARK, SHARED].iter().find_map(|mark| {
                let (module, rest) = key.split_once(&format!(".{mark}."))?;
                let (adapter, leaf) = rest.split_once('.')?;
                Some((*mark, module, adapter, leaf))
            });
            let (mark, module, adapter, leaf) = split.ok_or_else(unknown)?;
            let leaf = LEAVES.into_iter().find(|known| *known == leaf).ok_or_else(unknown)?;
            if let Some(other) = name.replace(adapter).filter(|other| *other != adapter) {
                let what = format!("adapters `{other:.60}` and `{adapter:.60}` in one file, expected one");
                return Err(Error::unsupported(what).at_key(key));
            }
            let parts = if mark == MARK { modules.entry(module.to_string()).or_default() } else { &mut shared };
            if parts.tensors.insert(leaf, tensor.clone()).is_some() {
                return Err(Error::malformed("there twice").at_key(key));
            }
        }
        if self.config.vera {
            let mut take = |leaf| {
                let what = format!("no {SHARED}.NAME.{leaf}, of which VeRA's factors are made");
                shared.tensors.remove(leaf).ok_or_else(|| Error::missing(what))
            };
            self.shared = Some((take("lora_A")?, take("lora_B")?));
            self.notes.push(Note::info("", "VeRA's matrices multiplied out in f64 and rounded to f32"));
        }
        if let Some(leaf) = shared.tensors.keys().next() {
            return Err(Error::unrecognised(format!("shared {leaf}, which this method does not have")));
        }
        if self.config.dora && self.config.alpha != self.config.rank as f64 {
            let what =
                "DoRA as `adapters` merges it, without alpha / r; its adapted model has that in one place of two";
            self.notes.push(Note::lossy("config.alpha", what));
        }
        for (path, parts) in modules {
            self.module(&path, parts).at_key(&path)?;
        }
        Ok(())
    }

    fn module(&mut self, path: &str, parts: Parts) -> Result<()> {
        let leaf = path.rsplit('.').next().unwrap_or_default();
        let mut tensors = parts.tensors;
        if tensors.remove("gate.weight").is_some() {
            return Err(Error::unsupported("gates that depend on the input, so that it is no change of a weight"));
        }
        let turned = self.config.family.as_deref().is_some_and(|family| TURNED.contains(&family));
        let magnitude = tensors.remove("m.weight");
        if magnitude.is_some() != self.config.dora {
            let (has, says) =
                if self.config.dora { ("no magnitude", "use_dora") } else { ("a magnitude", "no use_dora") };
            return Err(Error::mismatch(format!("{has}, the config says {says}")));
        }
        // Its merge takes the norms of a weight [in, out] the other way round, or leaves magnitudes out.
        if magnitude.is_some() && (turned || grouped::is_attention(leaf)) {
            return Err(Error::unsupported(
                "DoRA on a Conv1D or a fused projection, which `adapters` merges to something else",
            ));
        }
        let mut take = |leaf: &str| tensors.remove(leaf).ok_or_else(|| Error::missing(format!("has no {leaf}")));
        let mut target = Target { magnitude, ..Target::default() };
        if turned {
            target.site = SiteKind::FanInFanOut;
        }
        match (self.config.mode, self.config.vera) {
            (Mode::Scale, _) => {
                let factors = self.rescaling(leaf, &take("lora_B")?)?;
                // The adapted model multiplies what the layer puts out, its bias included.
                target.bias.push(Delta::Rescale(Rescale {
                    factors: factors.clone(),
                    axis: Along::Rows,
                    less_one: false,
                }));
                target.weight.push(Delta::Rescale(Rescale { factors, axis: Along::Rows, less_one: false }));
            }
            (Mode::Add, true) => {
                let factors = self.vera(leaf, &take("vera_D")?, &take("vera_B")?)?;
                target.weight.push(Delta::LowRank(factors));
            }
            (Mode::Add, false) => {
                let factors = self.lora(leaf, &take("lora_A")?, &take("lora_B")?)?;
                target.weight.push(Delta::LowRank(factors));
            }
        }
        if let Some(leaf) = tensors.keys().next() {
            return Err(Error::unrecognised(format!("{leaf}, which this method does not have")));
        }
        self.adapter.targets.insert(ModulePath::from(path), target);
        Ok(())
    }

    fn scale(&self) -> Scale {
        // As `merge_adapter` has it: DoRA's product is added without a scale.
        if self.config.dora {
            Scale::direct(1.0)
        } else {
            Scale { alpha: self.config.alpha, rule: ScaleRule::AlphaOverRank }
        }
    }

    fn lora(&self, leaf: &str, a: &Tensor, b: &Tensor) -> Result<LowRank> {
        let groups = grouped::count(a, b)?;
        let rank = rearrange::matrix(b)?.1;
        if rank != self.config.rank {
            return Err(Error::mismatch(format!("factors of rank {rank}, the config says {}", self.config.rank)));
        }
        if grouped::is_attention(leaf) {
            return grouped::whole(a, b, &self.config.attention, self.config.alpha / rank as f64);
        }
        if groups != 1 {
            let what = format!("{groups} groups of factors on a layer that is not known to hold query, key and value");
            return Err(Error::unsupported(what));
        }
        Ok(LowRank { a: a.clone(), b: b.clone(), scale: self.scale(), experts: None, name: "LoRA" })
    }

    /// vera_B · lora_B and vera_D · lora_A, with all of the square matrices, which the training does not keep diagonal.
    fn vera(&self, leaf: &str, d: &Tensor, b: &Tensor) -> Result<LowRank> {
        if grouped::is_attention(leaf) {
            return Err(Error::unsupported("VeRA on a fused projection, which `adapters` cannot compute"));
        }
        let Some((shared_a, shared_b)) = &self.shared else { return Err(Error::missing("no shared matrices")) };
        let (a, b) = (product(d, shared_a)?, product(b, shared_b)?);
        Ok(LowRank { a, b, scale: self.scale(), experts: None, name: "VeRA" })
    }

    /// One factor an output; those of a fused projection that are not adapted are alpha as well, as in its merge.
    fn rescaling(&self, leaf: &str, b: &Tensor) -> Result<Tensor> {
        let (rows, one) = rearrange::matrix(b)?;
        if one != 1 || rows == 0 {
            return Err(Error::mismatch(format!("lora_B {}, expected one factor an output", b.shape)));
        }
        let mut factors = b.reshaped([rows])?;
        if grouped::is_attention(leaf) {
            let enabled = self.config.attention;
            let count = enabled.iter().filter(|on| **on).count();
            if count == 0 || !rows.is_multiple_of(count) {
                return Err(Error::mismatch(format!("lora_B {} for {count} of query, key and value", b.shape)));
            }
            let block = rows / count;
            let mut at = 0;
            let mut parts = Vec::with_capacity(enabled.len());
            for on in enabled {
                if on {
                    parts.push(rearrange::row_range(&factors, at..at + block)?);
                    at += block;
                } else {
                    parts.push(Tensor::from_f32(factors.dtype, [block], &vec![1.0; block])?);
                }
            }
            factors = rearrange::concat_rows(&parts)?;
        }
        Ok(fold::scaled(&factors, self.config.alpha)?.tensor)
    }
}

/// The product of a square matrix and another, summed in f64 and rounded to f32: as large as the other.
fn product(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let ((rows, inner), (other, cols)) = (rearrange::matrix(left)?, rearrange::matrix(right)?);
    if inner != other || rows != inner {
        return Err(Error::mismatch(format!("{} and {} do not multiply", left.shape, right.shape)));
    }
    let of = |t: &Tensor| cast::widen_f64(t.dtype, t.bytes.as_slice());
    let (left, right) = (of(left)?, of(right)?);
    let mut out = Vec::with_capacity(rows * cols);
    for row in left.chunks_exact(inner.max(1)) {
        let mut sums = vec![0.0; cols];
        for (factor, values) in row.iter().zip(right.chunks_exact(cols.max(1))) {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * value);
        }
        out.extend(sums.iter().map(|sum| *sum as f32));
    }
    Tensor::from_f32(Dtype::F32, [rows, cols], &out)
}

//! GGUF adapters of llama.cpp: one file, LoRA only.
//!
//! Defined by ggml-org/llama.cpp, `src/llama-adapter.cpp` (what is loaded) and `convert_lora_to_gguf.py` (what is
//! written); written down in `docs/layouts/gguf.md`. The container is `container/gguf`; names are in `names`.

pub mod base;
pub mod names;
mod rows;
mod write;

use std::collections::BTreeMap;

use crate::adapter::delta::{LowRank, Opaque};
use crate::adapter::{Adapter, Carried, Delta, Note, Scale, ScaleRule, SiteKind, Target};
use crate::container::gguf::{GgufFile, Metadata, Value};
use crate::error::{Context, Error, Result};
use crate::layout::source::BASE_FINGERPRINT;
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};
use crate::tensor::{Dtype, Tensor};

use names::{Architecture, EXPERT};
use rows::Way;

/// The layout.
pub struct Gguf;

const ARCHITECTURE: &str = "general.architecture";
const TYPE: &str = "general.type";
const ADAPTER_TYPE: &str = "adapter.type";
const ALPHA: &str = "adapter.lora.alpha";
const ALORA_TOKENS: &str = "adapter.alora.invocation_tokens";
const BASE_COUNT: &str = "general.base_model.count";
const BASE_NAME: &str = "general.base_model.0.name";
const BASE_URL: &str = "general.base_model.0.repo_url";
const QUANTISATION: &str = "general.quantization_version";
/// Keys of the base's own files, behind the architecture's name.
const HEADS: (&str, &str) = ("attention.head_count", "attention.head_count_kv");
/// Whose embedding stands transposed.
const TOKENS: &str = "token_embd";

impl Layout for Gguf {
    fn name(&self) -> &'static str {
        "gguf"
    }

    fn about(&self) -> &'static str {
        "llama.cpp: a GGUF file whose general.type is adapter"
    }

    fn looks_aside(&self) -> bool {
        true
    }

    fn holds(&self, content: Content) -> Holding {
        match content {
            Content::Linear | Content::Embeddings | Content::Experts => Holding::Yes,
            Content::Ranks | Content::Scales => Holding::Folded,
            _ => Holding::No,
        }
    }

    fn detect(&self, source: &Source) -> Verdict {
        match &source.gguf {
            Some(_) => Verdict::Likely { score: 100, because: "it begins with `GGUF`".to_string() },
            None => Verdict::No,
        }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        let Some(file) = &source.gguf else {
            return Err(Error::unrecognised("not a GGUF file").in_file(&source.tensor_file));
        };
        read(file, source).in_file(&source.tensor_file)
    }

    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
        write::write(adapter)
    }
}

fn read(file: &GgufFile, source: &Source) -> Result<(Adapter, Vec<Note>)> {
    let metadata = &file.metadata;
    require(metadata, TYPE, "adapter")
        .map_err(|e| e.hint("a model is no adapter; adapters have a file of their own"))?;
    require(metadata, ADAPTER_TYPE, "lora")?;
    if metadata.contains_key(ALORA_TOKENS) {
        return Err(Error::unsupported("an activated LoRA, which depends on the input").at_key(ALORA_TOKENS));
    }
    if let Some((name, kind)) = file.others.first() {
        let what = format!("quantised as {kind}; F32, F16 and BF16 are read");
        return Err(Error::unsupported(what).at_key(name).hint("convert the adapter anew with --outtype f16"));
    }
    let name = text(metadata, ARCHITECTURE)?.ok_or_else(|| Error::missing("not said").at_key(ARCHITECTURE))?;
    let architecture = names::architecture(name).filter(|a| a.name == name).ok_or_else(|| base::unknown(name))?;
    let about = about(metadata, architecture, source)?;
    let mut reader = Reader { architecture, scale: scale(metadata)?, adapter: Adapter::default(), about: &about };
    let (pairs, notes) = pairs(file)?;
    for (name, (a, b)) in pairs {
        reader.pair(&name, a, b).at_key(format!("{name}.weight"))?;
    }
    let mut adapter = reader.adapter;
    adapter.declared = "lora".to_string();
    adapter.about = about;
    if let Some(base) = source.base_fingerprint()? {
        adapter.about.insert(BASE_FINGERPRINT.to_string(), base.to_string());
    }
    adapter.carried = Carried {
        layout: "gguf".to_string(),
        fields: Vec::new(),
        metadata: source.metadata.iter().filter(|(key, _)| !write::is_own(key)).cloned().collect(),
        outline: adapter.outline(),
    };
    Ok((adapter, notes))
}

fn text<'a>(metadata: &'a Metadata, key: &str) -> Result<Option<&'a str>> {
    let wrong = |value: &Value| Error::malformed(format!("{}, expected text", value.type_name())).at_key(key);
    metadata.get(key).map(|value| value.text().ok_or_else(|| wrong(value))).transpose()
}

fn require(metadata: &Metadata, key: &str, wanted: &str) -> Result<()> {
    match text(metadata, key)? {
        Some(found) if found == wanted => Ok(()),
        Some(found) => Err(Error::unsupported(format!("`{found:.60}`, expected `{wanted}`")).at_key(key)),
        None => Err(Error::unrecognised(format!("not said, expected `{wanted}`")).at_key(key)),
    }
}

/// The scale of all tensors: alpha over the rank of each, or 1 where alpha is 0 or not there.
fn scale(metadata: &Metadata) -> Result<Scale> {
    let alpha = match metadata.get(ALPHA) {
        None => 0.0,
        Some(Value::F32(alpha)) => f64::from(*alpha),
        Some(Value::F64(alpha)) => *alpha,
        Some(other) => {
            let what = format!("{}, expected a float", other.type_name());
            return Err(Error::malformed(what).at_key(ALPHA));
        }
    };
    if !alpha.is_finite() {
        return Err(Error::malformed(format!("{alpha}, expected a finite number")).at_key(ALPHA));
    }
    Ok(if alpha == 0.0 { Scale::direct(1.0) } else { Scale { alpha, rule: ScaleRule::AlphaOverRank } })
}

/// What is known of the base: from the file, then from the base's config beside it.
fn about(metadata: &Metadata, architecture: &Architecture, source: &Source) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    if let Some((_, config)) = &source.given.base {
        let beside = base::of_config(config);
        let same = |class: &String| names::architecture(class).is_some_and(|a| a.name == architecture.name);
        if beside.get(base::ARCHITECTURE).is_some_and(same) {
            out = beside;
        }
    }
    for (key, name) in [(HEADS.0, base::HEADS), (HEADS.1, base::KEY_HEADS)] {
        if let Some(heads) = metadata.get(&format!("{}.{key}", architecture.name)).and_then(Value::whole) {
            out.insert(name.to_string(), heads.to_string());
        }
    }
    out.entry(base::ARCHITECTURE.to_string()).or_insert_with(|| architecture.name.to_string());
    let url = text(metadata, BASE_URL)?.and_then(|url| {
        let mut parts = url.trim_end_matches('/').rsplitn(3, '/');
        let (name, owner) = (parts.next()?, parts.next()?);
        Some(format!("{owner}/{name}"))
    });
    if let Some(name) = url.or(text(metadata, BASE_NAME)?.map(str::to_string)) {
        out.insert("base_model_name_or_path".to_string(), name);
    }
    Ok(out)
}

/// Both halves by the name of what they adapt, without `.weight`.
type Pairs = BTreeMap<String, (Tensor, Tensor)>;

fn pairs(file: &GgufFile) -> Result<(Pairs, Vec<Note>)> {
    let (mut halves, mut notes) = (BTreeMap::<String, (Option<Tensor>, Option<Tensor>)>::new(), Vec::new());
    for (key, tensor) in &file.tensors {
        if let Some(name) = key.strip_suffix(".weight.lora_a") {
            halves.entry(name.to_string()).or_default().0 = Some(tensor.clone());
        } else if let Some(name) = key.strip_suffix(".weight.lora_b") {
            halves.entry(name.to_string()).or_default().1 = Some(tensor.clone());
        } else if key.ends_with("_norm.weight") {
            notes.push(Note::lossy(key, "a norm, which llama.cpp passes over in an adapter; left out"));
            continue;
        } else {
            let what = "not a half of a LoRA: expected a name that ends in .weight.lora_a or .weight.lora_b";
            return Err(Error::unrecognised(what).at_key(key));
        }
        if tensor.shape.dims().contains(&0) {
            return Err(Error::malformed(format!("shape {}, which is empty", tensor.shape)).at_key(key));
        }
        if !matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let what = format!("elements of type {}, expected F32, F16 or BF16", tensor.dtype);
            return Err(Error::unsupported(what).at_key(key));
        }
    }
    let whole = |(name, halves): (String, (Option<Tensor>, Option<Tensor>))| match halves {
        (Some(a), Some(b)) => Ok((name, (a, b))),
        (a, _) => {
            let (there, missing) = if a.is_some() { ("lora_a", "lora_b") } else { ("lora_b", "lora_a") };
            Err(Error::missing(format!("{there} without {missing}")).at_key(format!("{name}.weight")))
        }
    };
    Ok((halves.into_iter().map(whole).collect::<Result<_>>()?, notes))
}

struct Reader<'a> {
    architecture: &'static Architecture,
    scale: Scale,
    adapter: Adapter,
    about: &'a BTreeMap<String, String>,
}

impl Reader<'_> {
    fn pair(&mut self, name: &str, a: Tensor, b: Tensor) -> Result<()> {
        let path = self.architecture.path(name).ok_or_else(|| {
            Error::unrecognised(format!(
                "not a tensor of the architecture {} that is known here",
                self.architecture.name
            ))
        })?;
        match (path.contains(EXPERT), a.shape.rank(), b.shape.rank()) {
            (true, 3, 3) => self.experts(&path, &a, &b),
            (false, 2, 2) => self.layer(name, path, a, b),
            (stack, ..) => {
                let wanted = if stack { "stacks of matrices" } else { "matrices" };
                Err(Error::mismatch(format!("lora_a {} and lora_b {}, expected {wanted}", a.shape, b.shape)))
            }
        }
    }

    fn layer(&mut self, name: &str, path: String, a: Tensor, b: Tensor) -> Result<()> {
        let is_embedding = name == TOKENS;
        let a = if is_embedding { rows::transposed(&a)? } else { a };
        let site = match (is_embedding, self.architecture.conv1d && name.starts_with("blk.")) {
            (true, _) => SiteKind::Embedding,
            (_, true) => SiteKind::FanInFanOut,
            _ => SiteKind::Layer,
        };
        let delta = match base::heads_of(self.architecture, name) {
            None => Delta::LowRank(self.factors(a, b)?),
            Some(heads) => match base::number(self.about, heads) {
                Some(heads) => {
                    let b = rows::permuted(&b, heads, Way::Separate)?;
                    Delta::LowRank(self.factors(a, b)?)
                }
                None => {
                    self.factors(a.clone(), b.clone())?;
                    Delta::Opaque(Opaque {
                        kind: "LoRA of a query or key",
                        reason: "llama.cpp has its rows in another order, and for the way back the number of heads is \
                                 needed: put the base's config.json beside the file",
                        tensors: vec![a, b],
                    })
                }
            },
        };
        self.adapter.targets.insert(path.into(), Target { weight: vec![delta], site, ..Target::default() });
        Ok(())
    }

    /// Each expert becomes a module of its own. A file may have one A for all.
    fn experts(&mut self, path: &str, a: &Tensor, b: &Tensor) -> Result<()> {
        let count = |t: &Tensor| t.shape.dims().first().copied().unwrap_or(0);
        let shared = count(a) == 1;
        if count(a) != count(b) && !shared {
            return Err(Error::mismatch(format!("lora_a {} and lora_b {} of different numbers", a.shape, b.shape)));
        }
        for number in 0..count(b) {
            let a = rows::slice(a, if shared { 0 } else { number })?;
            let factors = self.factors(a, rows::slice(b, number)?)?;
            let target = Target { weight: vec![Delta::LowRank(factors)], ..Target::default() };
            self.adapter.targets.insert(path.replace(EXPERT, &number.to_string()).into(), target);
        }
        Ok(())
    }

    fn factors(&self, a: Tensor, b: Tensor) -> Result<LowRank> {
        let ((rank, _), (_, other)) = (rows::matrix(&a)?, rows::matrix(&b)?);
        if rank != other || rank == 0 {
            let what = format!("rank {rank} of lora_a {} against rank {other} of lora_b {}", a.shape, b.shape);
            return Err(Error::mismatch(what));
        }
        Ok(LowRank { a, b, scale: self.scale, experts: None, name: "LoRA" })
    }
}

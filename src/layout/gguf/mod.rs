//! GGUF adapters of llama.cpp: one file, LoRA only.
//!
//! Defined by ggml-org/llama.cpp, `src/llama-adapter.cpp` (what is loaded) and `convert_lora_to_gguf.py` (what is
//! written); written down in `docs/layouts/gguf.md`. The container is `container/gguf`; names are in `names`.

pub mod architectures;
pub mod base;
pub mod change;
pub mod names;
mod rows;
pub mod words;
mod write;

use std::collections::BTreeMap;

use crate::adapter::delta::low_rank::Facing;
use crate::adapter::delta::{Experts, LowRank, Opaque, Packing};
use crate::adapter::{Adapter, Carried, Delta, Note, Scale, ScaleRule, SiteKind, Target};
use crate::container::gguf::{GgufFile, Metadata, Value};
use crate::error::{Context, Error, Result};
use crate::layout::source::BASE_FINGERPRINT;
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};
use crate::limits;
use crate::tensor::{Dtype, StateDict, Tensor, rearrange};

use change::{Change, Cut};
use names::{Architecture, EXPERT};

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

/// Whether a tensor of this name is an embedding of tokens, whose A stands transposed.
fn is_embedding(name: &str) -> bool {
    name.ends_with("token_embd")
}

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
    let tensors = tensors(file)?;
    let name = text(metadata, ARCHITECTURE)?.ok_or_else(|| Error::missing("not said").at_key(ARCHITECTURE))?;
    let architecture = names::architecture(name).filter(|a| a.name == name).ok_or_else(|| base::unknown(name))?;
    let about = about(metadata, architecture, source)?;
    let architecture =
        about.get(base::ARCHITECTURE).and_then(|class| names::architecture(class)).unwrap_or(architecture);
    let mut reader = Reader { architecture, scale: scale(metadata)?, adapter: Adapter::default(), about: &about };
    let (pairs, mut notes) = pairs(&tensors)?;
    if !file.others.is_empty() {
        let text = format!("{} factors in Q8_0, which are F32 from here on; no value changes", file.others.len());
        notes.push(Note::info("Q8_0", text));
    }
    for (path, module) in reader.modules(pairs)? {
        let name = module.name.clone();
        reader.module(path, module).at_key(format!("{name}.weight"))?;
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
        ..Carried::default()
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
        Some(other) => {
            let what = format!("{}, expected a float of 4 bytes", other.type_name());
            return Err(Error::malformed(what).at_key(ALPHA)); // llama.cpp ends at once for any other
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
    for (key, name) in base::KEYS {
        if let Some(number) = metadata.get(&format!("{}.{key}", architecture.name)).and_then(Value::whole) {
            out.insert((*name).to_string(), number.to_string());
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

/// All tensors, those of Q8_0 as F32.
fn tensors(file: &GgufFile) -> Result<StateDict> {
    let mut out = file.tensors.clone();
    for blocks in &file.others {
        let values = blocks.values().at_key(&blocks.name)?.ok_or_else(|| {
            let what = format!("quantised as {}; F32, F16, BF16 and Q8_0 are read", blocks.kind);
            Error::unsupported(what).at_key(&blocks.name).hint("convert the adapter anew with --outtype f16")
        })?;
        out.insert(blocks.name.clone(), values);
    }
    Ok(out)
}

fn pairs(tensors: &StateDict) -> Result<(Pairs, Vec<Note>)> {
    let (mut halves, mut notes) = (BTreeMap::<String, (Option<Tensor>, Option<Tensor>)>::new(), Vec::new());
    for (key, tensor) in tensors {
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

/// What a file has of one module.
struct Module {
    /// The first of its tensors that is there.
    name: String,
    /// A and B of each of its tensors.
    parts: Vec<Option<(Tensor, Tensor)>>,
    change: Option<&'static Change>,
}

impl Module {
    fn present(&self) -> impl Iterator<Item = (usize, &(Tensor, Tensor))> {
        self.parts.iter().enumerate().filter_map(|(number, part)| Some((number, part.as_ref()?)))
    }

    /// Whether all of its tensors have the same A.
    fn shares_a(&self) -> bool {
        let mut all = self.present().map(|(_, (a, _))| a);
        all.next().is_none_or(|first| all.all(|other| other == first))
    }
}

impl Reader<'_> {
    fn modules(&self, pairs: Pairs) -> Result<BTreeMap<String, Module>> {
        let mut out = BTreeMap::<String, Module>::new();
        for (name, pair) in pairs {
            let origin = self.architecture.origin(&name).ok_or_else(|| {
                let what = format!("not a tensor of the architecture {} that is known here", self.architecture.name);
                Error::unrecognised(what).at_key(format!("{name}.weight"))
            })?;
            let (part, count) = origin.part;
            let empty = || Module { name, parts: vec![None; count], change: origin.change };
            let class = self.about.get(base::ARCHITECTURE).map_or("", String::as_str);
            let module = out.entry(names::of_class(class, origin.path)).or_insert_with(empty);
            if let Some(place) = module.parts.get_mut(part) {
                *place = Some(pair);
            }
        }
        Ok(out)
    }

    fn module(&mut self, path: String, module: Module) -> Result<()> {
        let is_stack = |(_, (a, b)): (usize, &(Tensor, Tensor))| a.shape.rank() == 3 && b.shape.rank() == 3;
        let wants_stack = module.name.ends_with("_exps");
        for part in module.present() {
            if is_stack(part) != wants_stack || !wants_stack && (part.1.0.shape.rank(), part.1.1.shape.rank()) != (2, 2)
            {
                let wanted = if wants_stack { "stacks of matrices" } else { "matrices" };
                let (a, b) = part.1;
                let what = format!("lora_a {} and lora_b {}, expected {wanted}", a.shape, b.shape);
                return Err(Error::mismatch(what));
            }
        }
        match (wants_stack, path.contains(EXPERT)) {
            (true, true) => self.experts(&path, &module),
            (true, false) => self.stack(path, &module),
            _ => self.layer(path, module),
        }
    }

    fn layer(&mut self, path: String, mut module: Module) -> Result<()> {
        let is_embedding = is_embedding(&module.name);
        if is_embedding {
            for (a, _) in module.parts.iter_mut().flatten() {
                *a = rearrange::transposed(a)?;
            }
        }
        let site = match (is_embedding, self.architecture.conv1d && module.name.starts_with("blk.")) {
            (true, _) => SiteKind::Embedding,
            (_, true) => SiteKind::FanInFanOut,
            _ => SiteKind::Layer,
        };
        let missing = module.change.and_then(|change| change.cut().missing(self.about));
        let delta = match missing {
            None => Delta::LowRank(self.factors(&module.parts, &module)?),
            Some(_) => {
                for (_, (a, b)) in module.present() {
                    self.pair(a.clone(), b.clone())?;
                }
                Delta::Opaque(Opaque {
                    kind: "LoRA in the order of llama.cpp",
                    reason: "for the way back to transformers' order of rows, numbers of the base are needed, such as \
                             those of its heads: put its config.json beside the file",
                    tensors: module.parts.into_iter().flatten().flat_map(|(a, b)| [a, b]).collect(),
                })
            }
        };
        self.adapter.targets.insert(path.into(), Target { weight: vec![delta], site, ..Target::default() });
        Ok(())
    }

    /// The factors of a module, or of one of its experts, out of what its tensors have of it.
    fn factors(&self, parts: &[Option<(Tensor, Tensor)>], module: &Module) -> Result<LowRank> {
        let cut = match module.change {
            Some(Change::Rows(cut)) => return self.joined(parts, cut, module.shares_a()),
            Some(Change::Columns(cut)) => Some(cut),
            None => None,
        };
        let Some((a, b)) = parts.iter().flatten().next() else { return Err(Error::missing("a module of no tensors")) };
        let Some(cut) = cut else { return self.pair(a.clone(), b.clone()) };
        let a = rearrange::transposed(a)?;
        let (count, rank) = rearrange::matrix(&a)?;
        let plan = cut.plan(count, self.about)?;
        let order = plan.first().map_or(&[][..], Vec::as_slice);
        let a = rearrange::transposed(&rows::placed(&[(&a, order, 0)], (count, rank))?)?;
        self.pair(a, b.clone())
    }

    /// One pair of factors out of those of several tensors: with one A where they share it, and side by side otherwise.
    fn joined(&self, parts: &[Option<(Tensor, Tensor)>], cut: &Cut, shared: bool) -> Result<LowRank> {
        let present = || parts.iter().enumerate().filter_map(|(number, part)| Some((number, part.as_ref()?)));
        let Some((number, (a, b))) = present().next() else { return Err(Error::missing("a module of no tensors")) };
        let count = cut.rows(number, rearrange::matrix(b)?.0, self.about)?;
        let plan = cut.plan(count, self.about)?;
        let mut pairs = present().map(|(_, (a, b))| self.pair(a.clone(), b.clone())).collect::<Result<Vec<_>>>()?;
        if let Some(multipliers) = cut.multipliers(&plan, self.about)? {
            for ((number, _), pair) in present().zip(&mut pairs) {
                let inverse = multipliers.get(number).into_iter().flatten().map(|m| 1.0 / m).collect::<Vec<_>>();
                pair.b = rows::times(&pair.b, &inverse)?;
            }
        }
        let mut scale = self.scale;
        if !shared {
            scale = self.common(&mut pairs)?;
        }
        let (mut columns, mut placed, mut factors) = (0, Vec::new(), Vec::new());
        for ((number, _), pair) in present().zip(&pairs) {
            placed.push((&pair.b, plan.get(number).map_or(&[][..], Vec::as_slice), if shared { 0 } else { columns }));
            factors.push(pair.a.clone());
            columns += pair.rank();
        }
        let rank = if shared { pairs.first().map_or(0, LowRank::rank) } else { columns };
        if present().count() < parts.len() {
            refuse_growth(count, rank)?;
        }
        let b = rows::placed(&placed, (count, rank))?;
        let a = if shared { a.clone() } else { rearrange::concat_rows(&factors)? };
        Ok(LowRank { scale, ..self.pair(a, b)? })
    }

    /// Gives factors of several ranks one element type and one multiplier, which is returned.
    fn common(&self, pairs: &mut [LowRank]) -> Result<Scale> {
        let first = pairs.first().map_or(1.0, LowRank::factor);
        let dtypes: Vec<_> = pairs.iter().flat_map(|pair| [pair.a.dtype, pair.b.dtype]).collect();
        let alike = pairs.iter().all(|pair| pair.factor() == first);
        if alike && dtypes.windows(2).all(|two| two.first() == two.last()) {
            return Ok(Scale::direct(first));
        }
        for pair in pairs {
            pair.b = rows::folded(&pair.b, if alike { 1.0 } else { pair.factor() })?;
            pair.a = rows::as_type(&pair.a, Dtype::F32)?;
        }
        Ok(Scale::direct(if alike { first } else { 1.0 }))
    }

    /// Each expert becomes a module of its own. A file may have one A for all.
    fn experts(&mut self, path: &str, module: &Module) -> Result<()> {
        for number in 0..expert_count(module)? {
            let factors = self.factors(&expert_parts(module, number)?, module)?;
            let target = Target { weight: vec![Delta::LowRank(factors)], ..Target::default() };
            self.adapter.targets.insert(path.replace(EXPERT, &number.to_string()).into(), target);
        }
        Ok(())
    }

    /// All experts become one parameter, as the model has them.
    fn stack(&mut self, path: String, module: &Module) -> Result<()> {
        let count = expert_count(module)?;
        let all = (0..count).map(|number| self.factors(&expert_parts(module, number)?, module));
        let mut all = all.collect::<Result<Vec<_>>>()?;
        if self.architecture.stacks.turns(Facing::Input) == Some(true) {
            for expert in &mut all {
                (expert.a, expert.b) = (rearrange::transposed(&expert.b)?, rearrange::transposed(&expert.a)?);
            }
        }
        let Some(first) = all.first() else { return Err(Error::missing("a stack of no experts")) };
        let (rank, outputs) = (first.rank(), rearrange::matrix(&first.b)?.0);
        let columns = rank.checked_mul(count).ok_or_else(|| Error::mismatch("a stack that is too large"))?;
        refuse_growth(columns, rearrange::matrix(&first.a)?.1)?;
        let a = rearrange::concat_rows(&all.iter().map(|expert| expert.a.clone()).collect::<Vec<_>>())?;
        // PEFT has the number of the expert run fastest: column `k · experts + e`.
        let turned = all.iter().map(|expert| rearrange::transposed(&expert.b)).collect::<Result<Vec<_>>>()?;
        let order: Vec<Vec<usize>> = (0..count).map(|expert| (0..rank).map(|k| k * count + expert).collect()).collect();
        let placed: Vec<_> = turned.iter().zip(&order).map(|(b, order)| (b, order.as_slice(), 0)).collect();
        let b = rearrange::transposed(&rows::placed(&placed, (columns, outputs))?)?;
        let experts = Some(Experts { count, packing: Packing::RankMajor, facing: Facing::Input });
        let factors = LowRank { a, b, scale: first.scale, experts, name: "LoRA" };
        let target = Target { weight: vec![Delta::LowRank(factors)], site: SiteKind::Parameter, ..Target::default() };
        self.adapter.targets.insert(path.into(), target);
        Ok(())
    }

    fn pair(&self, a: Tensor, b: Tensor) -> Result<LowRank> {
        let ((rank, _), (_, other)) = (rearrange::matrix(&a)?, rearrange::matrix(&b)?);
        if rank != other || rank == 0 {
            let what = format!("rank {rank} of lora_a {} against rank {other} of lora_b {}", a.shape, b.shape);
            return Err(Error::mismatch(what));
        }
        Ok(LowRank { a, b, scale: self.scale, experts: None, name: "LoRA" })
    }
}

fn refuse_growth(rows: usize, cols: usize) -> Result<()> {
    match rows.checked_mul(cols) {
        Some(all) if all <= limits::GGUF_FACTOR => Ok(()),
        _ => Err(Error::limit(format!("a factor [{rows}, {cols}]"), format!("{} elements", limits::GGUF_FACTOR))),
    }
}

/// How many experts a stack has.
fn expert_count(module: &Module) -> Result<usize> {
    let count = |t: &Tensor| t.shape.dims().first().copied().unwrap_or(0);
    let counts: Vec<usize> = module.present().map(|(_, (_, b))| count(b)).collect();
    let first = counts.first().copied().unwrap_or(0);
    for (_, (a, b)) in module.present() {
        if count(b) != first || count(a) != first && count(a) != 1 {
            return Err(Error::mismatch(format!("lora_a {} and lora_b {} of different numbers", a.shape, b.shape)));
        }
    }
    Ok(first)
}

/// What belongs to one expert of a stack.
fn expert_parts(module: &Module, number: usize) -> Result<Vec<Option<(Tensor, Tensor)>>> {
    let one = |part: &Option<(Tensor, Tensor)>| {
        let Some((a, b)) = part else { return Ok(None) };
        let of_all = a.shape.dims().first() == Some(&1);
        Ok(Some((rearrange::slice(a, if of_all { 0 } else { number })?, rearrange::slice(b, number)?)))
    };
    module.parts.iter().map(one).collect()
}

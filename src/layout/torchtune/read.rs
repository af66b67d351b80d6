//! torchtune's tensors as an adapter: rows of query and key in transformers' order, experts one by one, fused projections
//! put together where the base has them so.

use std::collections::BTreeMap;

use super::config::{BASE_FIELD, Config};
use super::names::{self, Key, Names, Role};
use crate::adapter::delta::{Delta, LowRank, Opaque};
use crate::adapter::fused::{self, Part};
use crate::adapter::{Adapter, Carried, Note, Scale, ScaleRule, Target};
use crate::error::{Context, Error, Result};
use crate::layout::source::BASE_FINGERPRINT;
use crate::layout::{Source, even};
use crate::limits;
use crate::names::ModulePath;
use crate::tensor::rearrange::{self, Rotary};
use crate::tensor::{Tensor, dtype};

/// Why a query or key is not understood without the base.
const ORDER_UNKNOWN: &str = "torchtune has the rows of some families in another order, in heads; --base, or the base's \
                             config.json beside the file, says which they are";

/// The adapter in `source`.
pub fn read(source: &Source) -> Result<(Adapter, Vec<Note>)> {
    let mut notes = Vec::new();
    for value in &source.other_values {
        notes.push(Note::info(value, "not a tensor; left out"));
    }
    let sorted = Sorted::of(source).in_file(&source.tensor_file)?;
    let config = Config::read(source, &mut notes)?;
    sorted.require_known_model(&config).in_file(&source.tensor_file)?;
    let dora = sorted.layers.values().any(|parts| parts.magnitude.is_some());
    if config.dora && !dora {
        let what = "no magnitudes, the config beside it says DoRA";
        return Err(Error::mismatch(what).at_key("use_dora").in_file(&source.tensor_file));
    }
    note_export(source, &mut notes);
    let mut reader = Reader { config: &config, targets: BTreeMap::new(), notes, filling: Vec::new() };
    reader.all(sorted).in_file(&source.tensor_file)?;
    let mut adapter = Adapter { declared: if dora { "dora" } else { "lora" }.to_string(), ..Adapter::default() };
    (adapter.targets, notes) = reader.finish().in_file(&source.tensor_file)?;
    adapter.base = config.facts;
    say_about(&mut adapter, source)?;
    adapter.carried = carried(&adapter, source);
    Ok((adapter, notes))
}

/// The same adapter lies beside in PEFT's layout where torchtune saved it.
fn note_export(source: &Source, notes: &mut Vec<Note>) {
    let Some(folder) = source.tensor_file.parent() else { return };
    let names = ["adapter_model.safetensors", "adapter_model.bin"];
    if let Some(name) = names.into_iter().find(|name| folder.join(name).is_file()) {
        let what = "beside it, what torchtune saved of it for PEFT; not read, since it is wrong for some families";
        notes.push(Note::info(name, what));
    }
}

/// Tensors of one module.
#[derive(Debug, Default)]
struct Parts {
    a: Option<Tensor>,
    b: Option<Tensor>,
    magnitude: Option<Tensor>,
}

impl Parts {
    fn put(&mut self, role: Role, tensor: &Tensor) {
        let place = match role {
            Role::A => &mut self.a,
            Role::B => &mut self.b,
            Role::Magnitude => &mut self.magnitude,
        };
        *place = Some(tensor.clone());
    }

    fn factors(&mut self) -> Result<(Tensor, Tensor)> {
        let half = |there: &str, missing: &str| Err(Error::missing(format!("has {there} and no {missing}")));
        match (self.a.take(), self.b.take()) {
            (Some(a), Some(b)) => Ok((a, b)),
            (Some(_), None) => half("lora_a", "lora_b"),
            (None, Some(_)) => half("lora_b", "lora_a"),
            (None, None) => half("magnitude", "lora_a"),
        }
    }
}

/// All tensors by module, without `decoder.`.
#[derive(Debug, Default)]
struct Sorted {
    layers: BTreeMap<String, Parts>,
    experts: BTreeMap<(String, &'static str), Parts>,
    /// Whether the modules lie in a decoder.
    decoder: bool,
}

impl Sorted {
    fn of(source: &Source) -> Result<Sorted> {
        let mut out = Sorted::default();
        let (mut inside, mut alone) = (0, 0);
        for (key, tensor) in &source.tensors {
            if key.starts_with("encoders.") || key.contains(".fusion_layer.") || key.contains(".fusion_embedding.") {
                let what = "a part of a model that sees; of torchtune's adapters those of language models are read";
                return Err(Error::unsupported(what).at_key(key));
            }
            let short = key.strip_prefix("decoder.").unwrap_or(key);
            if short.len() < key.len() {
                inside += 1;
            } else {
                alone += 1;
            };
            if !dtype::is_plain_float(tensor.dtype) {
                let what = format!("elements of {}, expected floating-point numbers", tensor.dtype);
                return Err(Error::unsupported(what).at_key(key));
            }
            if tensor.shape.dims().contains(&0) {
                return Err(Error::malformed(format!("shape {}, which is empty", tensor.shape)).at_key(key));
            }
            match names::parse(short) {
                Some(Key::Layer { module, role }) => {
                    out.layers.entry(module.to_string()).or_default().put(role, tensor);
                }
                Some(Key::Experts { module, which, role }) => {
                    let which = names::PROJECTIONS.into_iter().find(|w| *w == which).unwrap_or_default();
                    out.experts.entry((module.to_string(), which)).or_default().put(role, tensor);
                }
                None => {
                    let what = format!("a tensor {} that is no parameter of an adapter of torchtune's", tensor.shape);
                    return Err(Error::unrecognised(what).at_key(key));
                }
            }
        }
        if inside > 0 && alone > 0 {
            return Err(Error::mismatch(format!("{inside} tensors of a decoder beside {alone} of a plain model")));
        }
        out.decoder = inside > 0;
        Ok(out)
    }

    /// An error where the keys are those of another kind of model than the base.
    fn require_known_model(&self, config: &Config) -> Result<()> {
        match config.family {
            Some(family) if family.decoder == self.decoder => Ok(()),
            None if !self.decoder => Ok(()),
            None => {
                Err(Error::missing("keys of a decoder, and the family of the base, which they go by, is not known")
                    .hint("--base says it, or the base's config.json beside the file"))
            }
            Some(_) => {
                let found = if self.decoder { "with" } else { "without" };
                let what = format!("keys {found} a decoder, which the models of the base's family do not have so");
                Err(Error::mismatch(what).hint("is this the base model the adapter was trained on?"))
            }
        }
    }
}

struct Reader<'c> {
    config: &'c Config,
    /// By torchtune's module, before fused projections are put together.
    targets: BTreeMap<String, (ModulePath, Target)>,
    notes: Vec<Note>,
    /// Modules of zeros.
    filling: Vec<String>,
}

impl Reader<'_> {
    fn names(&self) -> Names<'_> {
        Names { facts: &self.config.facts, family: self.config.family }
    }

    fn all(&mut self, sorted: Sorted) -> Result<()> {
        for (module, parts) in sorted.layers {
            self.layer(&module, parts).at_key(&module)?;
        }
        for ((module, which), parts) in sorted.experts {
            self.experts(&module, which, parts).at_key(format!("{module}.lora_{which}"))?;
        }
        Ok(())
    }

    fn layer(&mut self, module: &str, mut parts: Parts) -> Result<()> {
        let (a, b) = parts.factors()?;
        let outputs = self.checked(&a, &b)?;
        if let Some(m) = &parts.magnitude
            && m.shape.dims() != [outputs]
        {
            return Err(Error::mismatch(format!("magnitude {} for {outputs} outputs", m.shape)));
        }
        if parts.magnitude.is_none() && even::is_filling(&a, &b)? {
            self.filling.push(module.to_string());
            return Ok(());
        }
        let path = self.names().theirs(module).ok_or_else(|| {
            Error::unrecognised("not a module of torchtune's models of this family that is known here")
        })?;
        let mut target = Target { magnitude: parts.magnitude, ..Target::default() };
        target.weight.push(match self.order(module, outputs)? {
            Order::AsItIs => Delta::LowRank(self.low_rank(a, b)),
            Order::Rows(order) => {
                let b = rearrange::pick_rows(&b, &order)?;
                target.magnitude = target.magnitude.map(|m| rearrange::pick_rows(&m, &order)).transpose()?;
                Delta::LowRank(self.low_rank(a, b))
            }
            Order::Unknown => {
                let tensors = [a, b].into_iter().chain(target.magnitude.take()).collect();
                Delta::Opaque(Opaque { kind: "LoRA of a query or key", reason: ORDER_UNKNOWN, tensors })
            }
        });
        self.targets.insert(module.to_string(), (path.into(), target));
        Ok(())
    }

    fn low_rank(&self, a: Tensor, b: Tensor) -> LowRank {
        let scale = Scale { alpha: self.config.alpha, rule: ScaleRule::AlphaOverRank };
        LowRank { a, b, scale, experts: None, name: "LoRA" }
    }

    /// Outputs.
    fn checked(&self, a: &Tensor, b: &Tensor) -> Result<usize> {
        let ((rank, _), (outputs, other)) = (rearrange::matrix(a)?, rearrange::matrix(b)?);
        if rank != other {
            let what = format!("lora_a {} and lora_b {} have no rank in common", a.shape, b.shape);
            return Err(Error::mismatch(what).hint("the two halves may come from different adapters"));
        }
        self.require_rank(rank)?;
        Ok(outputs)
    }

    fn require_rank(&self, rank: usize) -> Result<()> {
        match self.config.rank {
            Some(said) if said != rank => {
                Err(Error::mismatch(format!("factors of rank {rank}, the config beside the file says {said}")))
            }
            _ => Ok(()),
        }
    }

    /// Where the rows of a module's outputs come from.
    fn order(&self, module: &str, rows: usize) -> Result<Order> {
        let Some(heads) = names::heads(module, &self.config.facts) else { return Ok(Order::AsItIs) };
        match (self.config.family, heads) {
            (Some(family), _) if !family.interleaved => Ok(Order::AsItIs),
            (Some(_), Some(heads)) => {
                if let Some(width) = self.config.facts.head_width
                    && heads.checked_mul(width) != Some(rows)
                {
                    let what = format!("{rows} outputs, the base has {heads} heads of {width} here");
                    return Err(Error::mismatch(what).hint("is this the base model the adapter was trained on?"));
                }
                Ok(Order::Rows(rearrange::rotary_order(rows, heads, Rotary::Separate)?))
            }
            _ => Ok(Order::Unknown),
        }
    }

    /// A stack: a `[experts, in, r]`, b `[experts, r, out]`.
    fn experts(&mut self, module: &str, which: &'static str, mut parts: Parts) -> Result<()> {
        let (a, b) = parts.factors()?;
        let ([count, _, rank], [others, other, _]) = (stack(&a)?, stack(&b)?);
        if count != others || rank != other {
            let what = format!("a {} and b {} of different numbers or ranks", a.shape, b.shape);
            return Err(Error::mismatch(what));
        }
        self.require_rank(rank)?;
        for number in 0..count {
            let path = self.names().expert(module, number, which);
            let path = path.ok_or_else(|| Error::unsupported("experts of a family that is not known to have any"))?;
            let a = rearrange::transposed(&rearrange::slice(&a, number)?)?;
            let b = rearrange::transposed(&rearrange::slice(&b, number)?)?;
            let key = format!("{module}.{number}.{which}");
            if even::is_filling(&a, &b)? {
                self.filling.push(key);
                continue;
            }
            let delta = Delta::LowRank(self.low_rank(a, b));
            self.targets.insert(key, (path.into(), Target { weight: vec![delta], ..Target::default() }));
        }
        Ok(())
    }

    /// Targets by the base's paths.
    fn finish(mut self) -> Result<(BTreeMap<ModulePath, Target>, Vec<Note>)> {
        if let Some(first) = self.filling.first() {
            let what = format!("{} modules of zeros, which change nothing; left out", self.filling.len());
            self.notes.push(Note::info(first, what));
        }
        if self.config.family.is_none() {
            let what = "the family of the base is not known; names as most models have them";
            self.notes.push(Note::lossy("", what));
        }
        let mut out = BTreeMap::new();
        if self.config.family.is_some_and(|f| f.fused) {
            self.fuse(&mut out)?;
        }
        out.extend(self.targets.into_values());
        Ok((out, self.notes))
    }

    fn fuse(&mut self, out: &mut BTreeMap<ModulePath, Target>) -> Result<()> {
        let layers: Vec<usize> = self.targets.keys().filter_map(|module| Some(names::layer(module)?.0)).collect();
        for layer in std::collections::BTreeSet::from_iter(layers) {
            for (path, modules) in self.names().fused(layer) {
                let parts: Vec<_> = modules.iter().map(|m| self.targets.remove(m).map(|(_, t)| t)).collect();
                if parts.iter().all(Option::is_none) {
                    continue;
                }
                let (target, grown) = self.together(&parts).at_key(&path)?;
                if grown {
                    let what = "its parts put together, block by block, since their A differ";
                    self.notes.push(Note::info(&path, what));
                }
                out.insert(path.into(), target);
            }
        }
        Ok(())
    }

    fn together(&self, parts: &[Option<Target>]) -> Result<(Target, bool)> {
        let of_base = self.config.facts.attention_rows();
        let own = |target: &Target| match target.weight.first() {
            Some(Delta::LowRank(factors)) => Some(factors.b.shape.matrix().0),
            _ => None,
        };
        let mut out = Vec::with_capacity(parts.len());
        for (at, part) in parts.iter().enumerate() {
            let known = match part {
                Some(target) => own(target),
                // Gate and up projection are of one size, query, key and value are not.
                None if parts.len() == 2 => parts.iter().flatten().find_map(own),
                None => of_base.and_then(|rows| rows.get(at).copied()).filter(|rows| *rows <= limits::ATTENTION_ROWS),
            };
            let rows = known.ok_or_else(|| {
                Error::missing("a part of a fused projection that is not adapted, and its size is not known")
                    .hint("--base says it, or the base's config.json beside the file")
            })?;
            out.push(Part { target: part.as_ref(), rows });
        }
        fused::fuse(&out)
    }
}

/// What becomes of the rows of a module.
enum Order {
    AsItIs,
    Rows(Vec<usize>),
    Unknown,
}

fn stack(tensor: &Tensor) -> Result<[usize; 3]> {
    let dims = tensor.shape.dims();
    <[usize; 3]>::try_from(dims).map_err(|_| Error::mismatch(format!("{}, expected a stack of matrices", tensor.shape)))
}

fn say_about(adapter: &mut Adapter, source: &Source) -> Result<()> {
    if let Some((_, raw)) = &source.config {
        for name in ["base_model_name_or_path", "revision", "task_type"] {
            if let Some(text) = raw.get(name).and_then(serde_json::Value::as_str) {
                adapter.about.insert(name.to_string(), text.to_string());
            }
        }
    }
    if let Some(base) = source.base_fingerprint()? {
        adapter.about.insert(BASE_FINGERPRINT.to_string(), base.to_string());
    }
    Ok(())
}

fn carried(adapter: &Adapter, source: &Source) -> Carried {
    let raw = source.config.iter().flat_map(|(_, raw)| raw).filter(|(name, _)| *name != BASE_FIELD);
    Carried {
        layout: "torchtune".to_string(),
        fields: raw.map(|(name, value)| (name.clone(), value.to_string())).collect(),
        metadata: Vec::new(),
        outline: adapter.outline(),
        tensors: Default::default(),
    }
}

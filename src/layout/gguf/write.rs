//! An adapter as llama.cpp reads it.
//!
//! A file has one alpha, and what a tensor is multiplied with is that over its own rank. Where the scales of an adapter
//! are not all of one alpha, each is folded into its B, and alpha is 0: llama.cpp takes that for a scale of 1.

use std::collections::BTreeMap;

use ndarray::Array2;

use super::change::Change;
use super::names::{Architecture, Found, Place};
use super::{
    ADAPTER_TYPE, ALPHA, ARCHITECTURE, BASE_COUNT, BASE_NAME, BASE_URL, QUANTISATION, TYPE, base, is_embedding, rows,
};
use crate::adapter::delta::low_rank::Facing;
use crate::adapter::delta::{Full, LowRank, full::Mode};
use crate::adapter::{Adapter, Delta, Note, ScaleRule, SiteKind, Target};
use crate::container::gguf::{Metadata, Value};
use crate::error::{Context, Error, Result};
use crate::layout::source::BASE_FINGERPRINT;
use crate::layout::{Draft, Format};
use crate::tensor::{Dtype, StateDict, Tensor, rearrange};

/// What ggml's quantised types are written by; converters put it into every file.
const QUANTISATION_VERSION: u32 = 2;

/// The file of `adapter`.
pub fn write(adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
    let architecture = base::architecture(adapter)?;
    refuse_whole(adapter)?;
    let mut writer = Writer { adapter, architecture, places: BTreeMap::new(), notes: Vec::new() };
    for (path, target) in &adapter.targets {
        writer.target(path.as_str(), target).at_key(path.as_str())?;
    }
    if writer.places.is_empty() {
        return Err(Error::missing("an adapter without tensors: there is nothing to write"));
    }
    if writer.places.keys().any(|place| place.name == "output") {
        let text = "llama.cpp refuses it where the output of the base is tied to its embedding";
        writer.notes.push(Note::info("output.weight", text));
    }
    for leaf in architecture.idle {
        let is_leaf = |place: &Place| place.name.rsplit('.').next() == Some(*leaf);
        if writer.places.keys().any(is_leaf) {
            let text = "llama.cpp loads this and multiplies with the weight past all adapters, so that it changes \
                        nothing; merge the adapter, and convert the merged model";
            writer.notes.push(Note::lossy(format!("{leaf}.weight"), text));
        }
    }
    let cuts_tokens = ["gemma3", "gemma4"].contains(&architecture.name);
    if cuts_tokens && writer.places.keys().any(|place| is_embedding(&place.name)) {
        let text = "llama.cpp cuts off the rows of the embedding that the tokenizer has no token for, and refuses an A \
                    with more of them";
        writer.notes.push(Note::info("token_embd.weight", text));
    }
    let pairs = writer.pairs()?;
    let alpha = common_alpha(&pairs);
    if alpha.is_none() {
        writer.notes.push(Note::info(ALPHA, "one for the whole file; the scales differ, and are folded into lora_b"));
    }
    let mut tensors = StateDict::new();
    for (place, pair) in pairs {
        let b = if alpha.is_none() { rows::folded(&pair.b, pair.factor)? } else { pair.b };
        tensors.insert(format!("{}.weight.lora_a", place.name), pair.a);
        tensors.insert(format!("{}.weight.lora_b", place.name), b);
    }
    let draft = Draft {
        tensor_file: "adapter.gguf".to_string(),
        tensors,
        format: Format::Gguf(metadata(adapter, architecture, alpha.unwrap_or(0.0))),
        ..Draft::default()
    };
    Ok((draft, writer.notes))
}

/// What of the adapter as a whole a file cannot say.
fn refuse_whole(adapter: &Adapter) -> Result<()> {
    if let Some(method) = &adapter.residual_base {
        let what = format!("an adapter for the base as `{method}` changed it, which GGUF cannot say");
        return Err(Error::unsupported(what).hint("merge it, and convert the merged model"));
    }
    if adapter.ties_embeddings && adapter.base.tied != Some(false) {
        let what = "an adapter of both uses of a tied embedding; llama.cpp would adapt only one of them";
        return Err(Error::unsupported(what).hint("merge it, and convert the merged model"));
    }
    Ok(())
}

/// Factors as the file has them, and the multiplier of their product.
#[derive(Clone)]
struct Pair {
    a: Tensor,
    b: Tensor,
    factor: f64,
    alpha: f64,
}

/// What comes to one place of the file.
enum Content {
    One(Pair),
    Experts(BTreeMap<usize, Pair>),
}

struct Writer<'a> {
    adapter: &'a Adapter,
    architecture: &'static Architecture,
    places: BTreeMap<Place, Content>,
    notes: Vec<Note>,
}

impl Writer<'_> {
    fn target(&mut self, path: &str, target: &Target) -> Result<()> {
        let factors = only_factors(target)?;
        if target.weight.len() > 1 {
            let text =
                "the whole embedding saved beside its factors is left out, which is right where it is the base's";
            self.notes.push(Note::lossy(path, text));
        }
        let path = if target.is_parameter() { path.strip_suffix(".weight").unwrap_or(path) } else { path };
        let found = self.architecture.place(path).ok_or_else(|| self.nameless(path))?;
        if factors.experts.is_some() {
            return self.stack(found, factors);
        }
        let pair =
            Pair { a: plain(&factors.a)?, b: plain(&factors.b)?, factor: factors.factor(), alpha: alpha_of(factors) };
        for (place, pair) in self.turned(&found, target.site, pair)? {
            self.put(place, found.expert, pair)?;
        }
        Ok(())
    }

    fn nameless(&self, path: &str) -> Error {
        let what = match self.architecture.refusal(path) {
            Some(why) => why.to_string(),
            None => format!("a module that has no name in GGUF for the architecture {}", self.architecture.name),
        };
        Error::unsupported(what).hint("leave it out, or merge the adapter and convert the merged model")
    }

    fn put(&mut self, place: Place, expert: Option<usize>, pair: Pair) -> Result<()> {
        let twice = || Error::mismatch("two modules of the adapter are the same tensor in GGUF");
        let Some(number) = expert else {
            return match self.places.insert(place, Content::One(pair)) {
                None => Ok(()),
                Some(_) => Err(twice()),
            };
        };
        match self.places.entry(place).or_insert_with(|| Content::Experts(BTreeMap::new())) {
            Content::Experts(all) if !all.contains_key(&number) => drop(all.insert(number, pair)),
            _ => return Err(twice()),
        }
        Ok(())
    }

    /// What the conversion of the base does to the weight, done to its factors.
    fn turned(&self, found: &Found, site: SiteKind, mut pair: Pair) -> Result<Vec<(Place, Pair)>> {
        let is_embedding = found.places.iter().any(|place| is_embedding(&place.name));
        if is_embedding != (site == SiteKind::Embedding) {
            return Err(Error::unsupported("an embedding and a linear layer in each other's place"));
        }
        if is_embedding {
            pair.a = rearrange::transposed(&pair.a)?;
        }
        let about = &self.adapter.about;
        let places = found.places.iter().cloned();
        match found.change {
            None => Ok(places.map(|place| (place, pair.clone())).collect()),
            Some(Change::Columns(cut)) => {
                let turned = rearrange::transposed(&pair.a)?;
                let plan = cut.plan(rearrange::matrix(&turned)?.0, about)?;
                let one = |(place, cols): (Place, Vec<usize>)| {
                    let a = rearrange::transposed(&rearrange::pick_rows(&turned, &cols)?)?;
                    Ok((place, Pair { a, ..pair.clone() }))
                };
                places.zip(plan).map(one).collect()
            }
            Some(Change::Rows(cut)) => {
                let plan = cut.plan(rearrange::matrix(&pair.b)?.0, about)?;
                let multipliers = cut.multipliers(&plan, about)?;
                let one = |(number, (place, rows)): (usize, (Place, Vec<usize>))| {
                    let b = rearrange::pick_rows(&pair.b, &rows)?;
                    let b = match multipliers.as_ref().and_then(|all| all.get(number)) {
                        Some(own) => rows::times(&b, own)?,
                        None => b,
                    };
                    Ok((place, Pair { b, ..pair.clone() }))
                };
                places.zip(plan).enumerate().map(one).collect()
            }
        }
    }

    /// All experts of a layer in one parameter. Gate and up share their A.
    fn stack(&mut self, found: Found, factors: &LowRank) -> Result<()> {
        let facing = factors.experts.map_or(Facing::Unknown, |experts| experts.facing);
        let turned = self.architecture.stacks.turns(facing).ok_or_else(|| {
            let what = "a stack of experts of which it is not known what its factors face";
            Error::unsupported(what).hint("the config's peft_version would say it")
        })?;
        let dtype = plain(&factors.a)?.dtype;
        let dtype = if plain(&factors.b)?.dtype == dtype { dtype } else { Dtype::F32 };
        let matrix = |values: &Array2<f32>| {
            Tensor::from_f32(dtype, vec![values.nrows(), values.ncols()], &values.iter().copied().collect::<Vec<_>>())
        };
        for (number, expert) in factors.expert_factors()?.into_iter().enumerate() {
            let expert = if turned { expert.transposed() } else { expert };
            let (a, b) = (matrix(&expert.a)?, matrix(&expert.b)?);
            let pair = Pair { a, b, factor: expert.scale, alpha: alpha_of(factors) };
            for (place, pair) in self.turned(&found, SiteKind::Layer, pair)? {
                self.put(place, Some(number), pair)?;
            }
        }
        Ok(())
    }

    /// One pair for each place, experts stacked.
    fn pairs(&mut self) -> Result<Vec<(Place, Pair)>> {
        let named = base::number(&self.adapter.about, base::EXPERTS);
        let most = |content: &Content| match content {
            Content::Experts(all) => all.keys().last().map_or(0, |n| n + 1),
            Content::One(_) => 0,
        };
        let seen = self.places.values().map(most).max().unwrap_or(0);
        let count = named.unwrap_or(seen);
        if seen > count {
            return Err(Error::mismatch(format!("an expert number {}, and the base has {count}", seen - 1)));
        }
        if named.is_none() && seen > 0 {
            let text = format!("not known; taken to be {seen}, since expert {} is adapted and no later one", seen - 1);
            self.notes.push(Note::lossy(base::EXPERTS, text));
        }
        let pair = |(place, content): (Place, Content)| {
            let pair = match content {
                Content::One(pair) => pair,
                Content::Experts(all) => stacked(all, count).at_key(&place.name)?,
            };
            Ok((place, pair))
        };
        std::mem::take(&mut self.places).into_iter().map(pair).collect()
    }
}

/// The experts of a layer as one pair: those that are not adapted are zero, lower ranks are filled up.
fn stacked(all: BTreeMap<usize, Pair>, count: usize) -> Result<Pair> {
    let first = |f: fn(&Pair) -> f64| all.values().next().map_or(0.0, f);
    let (factor, alpha) = (first(|p| p.factor), first(|p| p.alpha));
    let alike = all.values().all(|p| p.factor == factor);
    let mut dtypes = all.values().flat_map(|p| [p.a.dtype, p.b.dtype]);
    let dtype = dtypes.next().filter(|first| dtypes.all(|d| d == *first) && alike).unwrap_or(Dtype::F32);
    let (mut rank, mut inputs, mut outputs) = (0, 0, 0);
    for pair in all.values() {
        let ((r, i), (o, _)) = (rearrange::matrix(&pair.a)?, rearrange::matrix(&pair.b)?);
        if inputs != 0 && (i, o) != (inputs, outputs) {
            return Err(Error::mismatch(format!(
                "experts of different sizes, [{o}, {i}] beside [{outputs}, {inputs}]"
            )));
        }
        (rank, inputs, outputs) = (rank.max(r), i, o);
    }
    let even = all.values().all(|p| p.a.shape.dims().first() == Some(&rank));
    let (mut a, mut b) = (vec![None; count], vec![None; count]);
    for (number, pair) in all {
        let own = if alike { pair.b } else { rows::folded(&pair.b, pair.factor)? };
        if let (Some(a), Some(b)) = (a.get_mut(number), b.get_mut(number)) {
            (*a, *b) = (Some(rows::as_type(&pair.a, dtype)?), Some(rows::as_type(&own, dtype)?));
        }
    }
    let factor = if alike { factor } else { 1.0 };
    let alpha = match (alike, even) {
        (true, true) => alpha,
        (true, false) if factor != 1.0 => factor * rank as f64,
        _ => 0.0,
    };
    Ok(Pair { a: rows::stacked(&a, (rank, inputs))?, b: rows::stacked(&b, (outputs, rank))?, factor, alpha })
}

/// The two factors of a target that has nothing else.
fn only_factors(target: &Target) -> Result<&LowRank> {
    let other = |what: &str| {
        Err(Error::unsupported(format!("{what}, and a GGUF adapter holds plain LoRA only"))
            .hint("merge it, and convert the merged model"))
    };
    if target.magnitude.is_some() {
        return other("DoRA's magnitude");
    }
    if !target.bias.is_empty() {
        return other("a change of the bias");
    }
    match target.weight.as_slice() {
        [Delta::LowRank(factors)] => Ok(factors),
        // PEFT saves it with the factors; llama.cpp's converter passes over it, too.
        [Delta::Full(Full { mode: Mode::Replace, .. }), Delta::LowRank(factors)]
            if target.site == SiteKind::Embedding =>
        {
            Ok(factors)
        }
        [Delta::Opaque(opaque)] => Err(Error::unsupported(format!("{}: {}", opaque.kind, opaque.reason))),
        [Delta::Full(Full { mode: Mode::Replace, .. })] => other("a tensor saved whole"),
        [] => other("no change of the weight"),
        [delta] => other(delta.kind()),
        _ => other("several changes of one weight"),
    }
}

/// The alpha that gives these factors their multiplier, as it is divided by their rank; 0 where they need none.
fn alpha_of(factors: &LowRank) -> f64 {
    match factors.scale.rule {
        ScaleRule::AlphaOverRank => factors.scale.alpha,
        ScaleRule::Direct if factors.scale.alpha == 1.0 => 0.0,
        _ => factors.factor() * factors.rank() as f64,
    }
}

/// The one alpha of the file, where there is one.
fn common_alpha(pairs: &[(Place, Pair)]) -> Option<f32> {
    let first = pairs.first().map(|(_, pair)| pair.alpha as f32)?;
    let says = |pair: &Pair| pair.alpha as f32 == first && (first != 0.0 || pair.factor == 1.0);
    (first.is_finite() && pairs.iter().all(|(_, pair)| says(pair))).then_some(first)
}

/// A matrix of a type that llama.cpp has.
fn plain(tensor: &Tensor) -> Result<Tensor> {
    rearrange::matrix(tensor)?;
    match tensor.dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(tensor.clone()),
        _ => rows::as_type(tensor, Dtype::F32),
    }
}

/// Whether a key is made anew when a file is written.
pub fn is_own(key: &str) -> bool {
    [ARCHITECTURE, TYPE, ADAPTER_TYPE, ALPHA, BASE_COUNT, BASE_NAME, BASE_URL, QUANTISATION, BASE_FINGERPRINT]
        .contains(&key)
}

fn metadata(adapter: &Adapter, architecture: &Architecture, alpha: f32) -> Metadata {
    let mut out = Metadata::new();
    let text = |text: &str| Value::Text(text.to_string());
    let mut set = |key: &str, value: Value| drop(out.insert(key.to_string(), value));
    set(ARCHITECTURE, text(architecture.name));
    set(TYPE, text("adapter"));
    set(ADAPTER_TYPE, text("lora"));
    if adapter.carried.layout == "gguf" {
        for (key, value) in &adapter.carried.metadata {
            set(key, text(value));
        }
    }
    if let Some(name) = adapter.about.get("base_model_name_or_path") {
        set(BASE_COUNT, Value::u32(1));
        set(BASE_NAME, text(name));
    }
    set(ALPHA, Value::F32(alpha));
    let needed = architecture.needs();
    for (key, name) in base::KEYS.iter().filter(|(_, name)| needed.contains(name)) {
        if let Some(number) = base::number(&adapter.about, name).and_then(|n| u32::try_from(n).ok()) {
            set(&format!("{}.{key}", architecture.name), Value::u32(number));
        }
    }
    set(QUANTISATION, Value::u32(QUANTISATION_VERSION));
    if let Some(base) = adapter.about.get(BASE_FINGERPRINT) {
        set(BASE_FINGERPRINT, text(base));
    }
    out
}

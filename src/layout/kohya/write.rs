//! An adapter as a file of this layout.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::NAME;
use super::alpha;
use super::kind::{self, KINDS, Written};
use super::metadata::{self, Memory};
use crate::adapter::{Adapter, Along, Delta, Note, Scale, SiteKind, Target};
use crate::error::{Context, Error, Result};
use crate::layout::Draft;
use crate::tensor::{Dtype, Tensor};

/// The file of `adapter`, with these prefixes by component where the adapter's own file had none.
pub fn write(adapter: &Adapter, prefixes: Vec<(String, String)>) -> Result<(Draft, Vec<Note>)> {
    if let Some(name) = &adapter.residual_base {
        let what = format!("meant for a base that `{name}` changed, which this layout has no word for");
        return Err(
            Error::unsupported(what).hint("convert it with PEFT first (path_initial_model_for_weight_conversion)")
        );
    }
    if adapter.targets.is_empty() {
        return Err(Error::missing("an adapter without tensors: there is nothing to write"));
    }
    let own = adapter.carried.layout == NAME;
    let kept = adapter.carried.tensors.iter().filter(|_| own).map(|(key, tensor)| (key.as_str(), tensor)).collect();
    let mut memory = Memory::of(adapter);
    memory.spelling.fill(prefixes);
    let read = adapter.carried.outline.iter().filter_map(|line| line.split_once(": ")).map(|(path, _)| path).collect();
    let alphas = adapter.carried.tensors.iter().filter(|(key, _)| own && key.ends_with(".alpha"));
    let alpha = alphas.map(|(_, tensor)| tensor).next();
    let mut writer = Writer { memory, own, kept, read, alpha, ..Writer::default() };
    for (path, target) in &adapter.targets {
        writer.module(path.as_str(), target).at_key(path.as_str())?;
    }
    let Writer { memory, kept, tensors, modules, notes, .. } = writer;
    let others = kept.into_iter().filter(|(key, _)| is_of_the_file(key)).map(|(key, t)| (key.to_string(), t.clone()));
    let mut tensors: Vec<_> = tensors.into_iter().chain(others).collect();
    // As safetensors lays tensors out, which the hashes are of: wide types first, then by name.
    tensors.sort_by(|(a, s), (b, t)| t.dtype.cmp(&s.dtype).then_with(|| a.cmp(b)));
    let draft = Draft {
        tensor_file: "adapter.safetensors".to_string(),
        tensors: tensors.into_iter().collect(),
        metadata: metadata::written(adapter, &memory, &modules)?,
        seal: Some(metadata::seal),
        ..Draft::default()
    };
    Ok((draft, notes))
}

/// What belongs to no module.
fn is_of_the_file(key: &str) -> bool {
    key.starts_with(super::keys::EMBEDDINGS) || key.starts_with(super::keys::BOOKKEEPING)
}

#[derive(Default)]
struct Writer<'a> {
    memory: Memory,
    /// Whether the adapter was read from such a file.
    own: bool,
    /// Tensors that file had and no change holds.
    kept: HashMap<&'a str, &'a Tensor>,
    /// Paths that the file had. Others were renamed since, and what it had of them is not found by their names.
    read: HashSet<&'a str>,
    /// One of its alphas, as what they were like.
    alpha: Option<&'a Tensor>,
    tensors: BTreeMap<String, Tensor>,
    /// Paths by name.
    modules: BTreeMap<String, String>,
    notes: Vec<Note>,
}

impl Writer<'_> {
    fn module(&mut self, path: &str, target: &Target) -> Result<()> {
        let name = self.memory.spelling.name(path);
        if target.site == SiteKind::Embedding {
            return Err(Error::unsupported("factors of an embedding, which no network of this layout adapts"));
        }
        if target.is_parameter() && !name.contains('.') {
            return Err(Error::unsupported("a parameter by its own name, which flattened names have no room for"));
        }
        if let Some(other) = self.modules.insert(name.clone(), path.to_string()) {
            let what = format!("{other} would have the same name, {name}, in this layout");
            return Err(Error::unsupported(what));
        }
        let mut vector = false;
        match target.weight.as_slice() {
            [] => {}
            [main] => vector = self.weight(&name, path, main)?,
            [main, residual] => {
                vector = self.weight(&name, path, main)?;
                let residual = kind::write_residual(residual);
                let what = "several changes of one weight, of which a module of this layout has one";
                self.put(&name, path, residual.ok_or_else(|| Error::unsupported(what))?)?;
            }
            _ => {
                return Err(Error::unsupported(
                    "several changes of one weight, of which a module of this layout has one",
                ));
            }
        }
        match target.bias.as_slice() {
            [] => {}
            [bias] => {
                let flipped = target.weight.is_empty() && self.has_other_word(path);
                let words = if vector || flipped { kind::VECTOR } else { kind::WEIGHT };
                self.put(&name, path, kind::bias_word(bias, words[1])?)?;
            }
            _ => {
                return Err(Error::unsupported(
                    "several changes of one bias, of which a module of this layout has one",
                ));
            }
        }
        self.magnitude(&name, path, target)?;
        if let Some(tensor) = self.kept.get(format!("{name}.reshape_weight").as_str()) {
            self.tensors.insert(format!("{name}.reshape_weight"), (*tensor).clone());
        }
        Ok(())
    }

    /// Writes the change, and says whether it is called one of a norm.
    fn weight(&mut self, name: &str, path: &str, delta: &Delta) -> Result<bool> {
        let mut found = None;
        for kind in KINDS {
            found = found.or((kind.write)(delta)?);
        }
        let found = found.or_else(|| kind::write_residual(delta));
        let Some(mut written) = found else {
            return Err(Error::unsupported(format!("{} cannot be written in this layout", delta.kind())));
        };
        let other_word = self.has_other_word(path);
        for (suffix, _) in &mut written.tensors {
            if *suffix == kind::VECTOR[0] && other_word {
                *suffix = kind::WEIGHT[0];
            }
        }
        let vector = written.tensors.iter().any(|(suffix, _)| *suffix == kind::VECTOR[0]);
        self.put(name, path, written)?;
        Ok(vector)
    }

    fn has_other_word(&self, path: &str) -> bool {
        self.memory.other_words.iter().any(|other| other == path)
    }

    fn put(&mut self, name: &str, path: &str, written: Written) -> Result<()> {
        for (suffix, tensor) in written.tensors {
            let key = format!("{name}.{suffix}");
            // The same number in the type the trainer gave it.
            let same = |kept: &&Tensor| kept.to_number().ok() == tensor.to_number().ok();
            let kept = self.kept.get(key.as_str()).copied().filter(|_| suffix == "on_input").filter(same);
            self.tensors.insert(key, kept.unwrap_or(&tensor).clone());
        }
        for note in written.notes {
            self.notes.push(Note { key: path.to_string(), ..note });
        }
        match written.scale {
            Some((scale, rank, dtype)) => self.scale(name, path, scale, rank, dtype),
            None => {
                self.keep_alpha(name);
                Ok(())
            }
        }
    }

    /// The alpha of a module that has no use for it, as it was.
    fn keep_alpha(&mut self, name: &str) {
        for suffix in ["alpha", "scale"] {
            let key = format!("{name}.{suffix}");
            if let (Some(tensor), false) = (self.kept.get(key.as_str()), self.tensors.contains_key(&key)) {
                self.tensors.insert(key, (*tensor).clone());
            }
        }
    }

    fn scale(&mut self, name: &str, path: &str, scale: Scale, rank: usize, dtype: Dtype) -> Result<()> {
        let factor = scale.factor(rank);
        let whole = self.tensors.contains_key(&format!("{name}.lokr_w1"))
            && self.tensors.contains_key(&format!("{name}.lokr_w2"));
        // What the file had says the same: alpha, scale and scalar as they were, or nothing at all.
        let number = |suffix: &str| {
            let tensor = self.kept.get(format!("{name}.{suffix}").as_str())?;
            tensor.to_number().ok()
        };
        let scalar = number("scalar").unwrap_or(1.0);
        let before = match (number("scale"), number("alpha")) {
            _ if whole => 1.0,
            (Some(scale), _) => scale * scalar,
            (None, Some(alpha)) => alpha * scalar / rank as f64,
            (None, None) => scalar,
        };
        let renamed = self.own && !self.read.contains(path);
        let like = self.alpha.filter(|_| renamed);
        if self.own && before == factor && like.is_none() {
            for suffix in ["alpha", "scale", "scalar"] {
                let key = format!("{name}.{suffix}");
                if let Some(tensor) = self.kept.get(key.as_str()) {
                    self.tensors.insert(key, (*tensor).clone());
                }
            }
            return Ok(());
        }
        let (tensor, exact) = alpha::tensor(scale, rank, like.map_or(dtype, |alpha| alpha.dtype))?;
        let tensor = match like {
            Some(alpha) if alpha.elements() == 1 => tensor.reshaped(alpha.shape.dims().to_vec())?,
            _ => tensor,
        };
        if !exact {
            self.notes.push(Note::lossy(path, format!("scale {factor} rounded: alpha over the rank does not give it")));
        }
        self.tensors.insert(format!("{name}.alpha"), tensor);
        Ok(())
    }

    fn magnitude(&mut self, name: &str, path: &str, target: &Target) -> Result<()> {
        let Some(magnitude) = &target.magnitude else { return Ok(()) };
        let count = magnitude.elements();
        let as_it_was = self.own && magnitude.shape.rank() == 1 && target.magnitude_along == Along::Rows;
        if count == 1 && target.magnitude_along == Along::Cols {
            return Err(Error::unsupported("a magnitude of one input, which would be read as one of one output"));
        }
        let axes = axes(target).max(2);
        let mut dims = vec![1; if self.own { magnitude.shape.rank().max(2) } else { axes }];
        if let Some(extent) = dims.get_mut(usize::from(target.magnitude_along == Along::Cols)) {
            *extent = count;
        }
        let tensor = if as_it_was { magnitude.clone() } else { magnitude.reshaped(dims)? };
        self.put(name, path, Written { tensors: vec![("dora_scale", tensor)], ..Written::default() })
    }
}

/// Axes of the weight, as far as the change tells.
fn axes(target: &Target) -> usize {
    match target.weight.first() {
        Some(Delta::LowRank(d)) => d.a.shape.rank(),
        Some(Delta::Tucker(d)) => d.core.shape.rank(),
        Some(Delta::Hadamard(d)) => d.w1.core.as_ref().map_or(2, |core| core.shape.rank()),
        Some(Delta::Full(d)) => d.tensor.shape.rank(),
        _ => 2,
    }
}

//! The files of the merged model: the base's own, with changed tensors in their places.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value, json};

use super::fitting::Fitting;
use super::produce::{Merged, Scaling, Start};
use super::report::{Change, Totals};
use super::resolve::{Edits, New};
use super::scale_tensor::ScaleTensor;
use super::source::Edit;
use super::{Merge, Options, shards};
use crate::adapter::Note;
use crate::adapter::delta::{Delta, Full, full::Mode};
use crate::error::{Context, Error, Kind, Result};
use crate::limits;
use crate::model::scaled::{self, is_eight};
use crate::model::{BaseModel, Role, embedding};
use crate::stream::{Entry, FileMetadata, IndexFile, Job, Make, Output, Plan, PlannedFile, component_of};
use crate::tensor::{Dtype, Scales, Shape, Tensor, dtype};

/// Puts the plan together.
pub fn assemble(base: &BaseModel, mut edits: Edits, options: &Options, mut totals: Totals) -> Result<Merge> {
    let mut work = Assembly {
        base,
        options,
        totals: &mut totals,
        changes: Vec::new(),
        work: BTreeMap::new(),
        edited: edits.by_key.keys().cloned().collect(),
        scaled: BTreeMap::new(),
        dequantised: 0,
    };
    let mut files = Vec::with_capacity(base.shards().len());
    for (number, shard) in base.shards().iter().enumerate() {
        let (place, mut jobs) = (files.len(), Vec::with_capacity(shard.contents.tensors.len()));
        for (key, tensor) in &shard.contents.tensors {
            let own = edits.by_key.remove(key).unwrap_or_default();
            let shape = edits.reshaped.get(key).unwrap_or(&tensor.shape);
            jobs.extend(work.job((place, jobs.len()), key, tensor, shape, own)?);
        }
        let added: Vec<_> =
            edits.new.iter().filter(|(_, new)| shard.contents.tensors.contains_key(&new.anchor)).collect();
        for (key, new) in added {
            let own = edits.by_key.remove(key).unwrap_or_default();
            jobs.push(work.new_job((place, jobs.len()), key, new, own)?);
        }
        let metadata = work.metadata(number)?;
        let same = metadata == *base.metadata(number)
            && jobs.len() == shard.contents.tensors.len()
            && jobs
                .iter()
                .zip(&shard.contents.tensors)
                .all(|(j, (_, t))| j.entry.dtype == t.dtype && j.entry.shape == t.shape);
        let head = same.then(|| base.head(number).clone());
        // A file that held nothing but scales goes with them.
        if !jobs.is_empty() || shard.contents.tensors.is_empty() {
            files.push(PlannedFile { name: shard.name.clone(), metadata, head, jobs });
        }
    }
    if let Some((key, _)) = edits.by_key.first_key_value() {
        return Err(Error::missing("resolved to a tensor that is in no file of the base").at_key(key));
    }
    let dequantised = work.dequantised;
    if dequantised > 0 {
        let text = format!("8-bit weights multiplied by their scales, which are not written: {dequantised}");
        edits.notes.push(Note::info("--dtype", text));
    }
    let changes = std::mem::take(&mut work.changes);
    let computed = std::mem::take(&mut work.work);
    let mut merge = finish(base, files, edits, (options, dequantised > 0), changes)?;
    merge.work = computed;
    totals.bytes = merge.output.plan.data_bytes()?;
    merge.totals = totals;
    Ok(merge)
}

struct Assembly<'a> {
    base: &'a BaseModel,
    options: &'a Options,
    totals: &'a mut Totals,
    changes: Vec<Change>,
    work: BTreeMap<String, Arc<Merged>>,
    /// Keys of the tensors that are changed.
    edited: BTreeSet<String>,
    /// Weights whose scales are written with them, by key; filled in when their job is made.
    scaled: BTreeMap<String, Arc<OnceLock<Arc<Merged>>>>,
    /// How many weights are written without the scales they had.
    dequantised: usize,
}

impl Assembly<'_> {
    /// The job of a tensor; none where it is left out.
    fn job(
        &mut self,
        place: (usize, usize),
        key: &str,
        tensor: &Tensor,
        shape: &Shape,
        edits: Vec<Edit>,
    ) -> Result<Option<Job>> {
        if let Some(role) = self.base.scaled().role(key) {
            return Ok(self.beside(role, key, tensor));
        }
        self.own_job(place, key, tensor, shape, edits).map(Some)
    }

    /// The job of a tensor that goes with a weight in 8 bits; none where that weight is written in another type.
    fn beside(&mut self, role: &Role, key: &str, tensor: &Tensor) -> Option<Job> {
        if self.options.dtype.is_some() {
            return None;
        }
        self.totals.copied += 1;
        let entry = Entry { name: key.to_string(), dtype: tensor.dtype, shape: tensor.shape.clone() };
        let make = match role {
            Role::Scale(weight) if self.edited.contains(weight) => {
                let of = Arc::clone(self.scaled.entry(weight.clone()).or_default());
                Make::Compute(Arc::new(ScaleTensor { of, shape: tensor.shape.clone() }))
            }
            _ => Make::Copy(tensor.clone()),
        };
        Some(Job { entry, make })
    }

    fn own_job(
        &mut self,
        place: (usize, usize),
        key: &str,
        tensor: &Tensor,
        shape: &Shape,
        edits: Vec<Edit>,
    ) -> Result<Job> {
        let out = self.out_dtype(tensor.dtype);
        if edits.is_empty() && out == tensor.dtype {
            self.totals.copied += 1;
            let entry = Entry { name: key.to_string(), dtype: out, shape: shape.clone() };
            return Ok(Job { entry, make: Make::Copy(tensor.clone()) });
        }
        if let Some(other) = replacement(tensor, &edits) {
            self.totals.changed += 1;
            let entry = Entry { name: key.to_string(), dtype: out, shape: shape.clone() };
            return Ok(Job { entry, make: Make::Copy(other) });
        }
        if !edits.is_empty() && !dtype::is_float(tensor.dtype) {
            return Err(self.quantised(key, tensor.dtype).at_key(key));
        }
        let scales = self.base.scaled().of(key)?;
        if scales.is_some() && *shape != tensor.shape {
            let what = format!("a replacement of shape {shape} for a weight of {} with scales", tensor.shape);
            return Err(Error::unsupported(what).at_key(key).hint("--dtype bf16 does without scales"));
        }
        let start = match *shape == tensor.shape {
            true => Start::Stored(tensor.clone()),
            false if shape.dims().first() == tensor.shape.dims().first() => Start::Stored(widened(tensor, shape)?),
            false => Start::Zeros(tensor.dtype),
        };
        if edits.is_empty() {
            self.totals.cast += 1;
        } else {
            self.totals.changed += 1;
        }
        self.computed(place, key, (start, scales), out, shape, edits)
    }

    fn new_job(&mut self, place: (usize, usize), key: &str, new: &New, edits: Vec<Edit>) -> Result<Job> {
        let (_, anchor) = self
            .base
            .tensor(&new.anchor)
            .ok_or_else(|| Error::missing("the tensor it would stand beside is not in the base").at_key(key))?;
        // A tensor of its own has no scale to be stored with.
        let out = match self.out_dtype(anchor.dtype) {
            eight if is_eight(eight) && !new.copies_anchor => Dtype::BF16,
            out => out,
        };
        let scales = if new.copies_anchor { self.base.scaled().of(&new.anchor)? } else { None };
        if scales.is_some() && is_eight(out) {
            let what = format!("it would become a copy of `{}`, which has a scale", new.anchor);
            return Err(Error::unsupported(what).at_key(key).hint("--dtype bf16 does without scales"));
        }
        self.totals.added += 1;
        if edits.is_empty() && new.copies_anchor && out == anchor.dtype {
            let entry = Entry { name: key.to_string(), dtype: out, shape: new.shape.clone() };
            return Ok(Job { entry, make: Make::Copy(anchor.clone()) });
        }
        let start = if new.copies_anchor { Start::Stored(anchor.clone()) } else { Start::Zeros(out) };
        self.computed(place, key, (start, scales), out, &new.shape, edits)
    }

    fn computed(
        &mut self,
        place: (usize, usize),
        key: &str,
        (start, scales): (Start, Option<Arc<Scales>>),
        out: Dtype,
        shape: &Shape,
        edits: Vec<Edit>,
    ) -> Result<Job> {
        let fitting = scales.clone().filter(|_| is_eight(out)).map(|scales| Arc::new(Fitting::new(scales, out)));
        self.dequantised += usize::from(scales.is_some() && fitting.is_none());
        if !edits.is_empty() {
            let modules = edits.iter().map(|e| e.source.path.to_string()).collect();
            let kinds = edits.iter().map(|e| e.source.target.kind()).collect();
            let moved = crate::kernels::Moved::default();
            let fitting = fitting.clone();
            self.changes.push(Change { key: key.to_string(), place, modules, kinds, dtype: out, fitting, moved });
        }
        let merged = Merged::new(start, out, shape, edits, self.options.allow_nonfinite).at_key(key).map_err(|e| {
            match e.kind() {
                // The base is the right one, and has its weights otherwise.
                Kind::Unsupported => e,
                _ => e.hint("is this the base model the adapter was trained on?"),
            }
        })?;
        let entry = Entry { name: key.to_string(), dtype: out, shape: shape.clone() };
        let merged = Arc::new(merged.with_scales(scales, fitting.map_or(Scaling::None, Scaling::Fitted)));
        if self.base.scaled().of(key)?.is_some() {
            let _ = self.scaled.entry(key.to_string()).or_default().set(Arc::clone(&merged));
        }
        self.work.insert(key.to_string(), Arc::clone(&merged));
        Ok(Job { entry, make: Make::Compute(merged) })
    }

    fn out_dtype(&self, stored: Dtype) -> Dtype {
        match self.options.dtype {
            Some(wanted) if dtype::is_float(stored) => wanted,
            _ => stored,
        }
    }

    /// The metadata of a file, without what is said of weights whose scales are not written.
    fn metadata(&self, file: usize) -> Result<FileMetadata> {
        let mut metadata = self.base.metadata(file).clone();
        if let (Some(_), Some(text)) = (self.options.dtype, metadata.get(scaled::METADATA)) {
            let gone = |layer: &str| {
                let stored = self.base.tensor(&format!("{layer}.weight"));
                stored.is_some_and(|(_, tensor)| dtype::is_float(tensor.dtype))
            };
            match scaled::without(text, &gone)? {
                Some(text) => metadata.insert(scaled::METADATA.to_string(), text),
                None => metadata.shift_remove(scaled::METADATA),
            };
        }
        Ok(metadata)
    }

    fn quantised(&self, key: &str, stored: Dtype) -> Error {
        let scheme = self.base.format_of(key).or_else(|| self.base.quantisation().map(str::to_string));
        let scheme = scheme.map_or_else(String::new, |s| format!(" ({s})"));
        Error::unsupported(format!("the base weight is quantised{scheme}: dtype {stored} cannot be merged into"))
            .hint("merge into the 16-bit model it was made from")
    }
}

/// The tensor with zeros where its rows go on.
fn widened(tensor: &Tensor, shape: &Shape) -> Result<Tensor> {
    let (old, new) = (tensor.shape.matrix().1, shape.matrix().1);
    let size = dtype::byte_len(tensor.dtype, 1)?;
    let all = dtype::byte_len(tensor.dtype, shape.elements()?)?;
    if all > limits::WIDENED_BYTES {
        return Err(Error::limit(format!("a first layer of {all} bytes"), limits::WIDENED_BYTES));
    }
    let mut bytes = vec![0; all];
    for (into, from) in bytes.chunks_exact_mut(new * size).zip(tensor.bytes.as_slice().chunks_exact(old * size)) {
        into[..from.len()].copy_from_slice(from);
    }
    Tensor::new(tensor.dtype, shape.clone(), bytes.into())
}

/// The tensor that takes the place of one that holds no floating-point numbers, as the counter of a batch norm.
fn replacement(stored: &Tensor, edits: &[Edit]) -> Option<Tensor> {
    let source = &edits.last()?.source;
    let [Delta::Full(Full { tensor, mode: Mode::Replace })] = source.target.weight.as_slice() else { return None };
    let fits = tensor.dtype == stored.dtype && tensor.shape == stored.shape && source.total() == 1.0;
    (fits && !dtype::is_float(stored.dtype)).then(|| tensor.clone())
}

/// Files, index, config and side files.
fn finish(
    base: &BaseModel,
    mut files: Vec<PlannedFile>,
    edits: Edits,
    (options, dequantised): (&Options, bool),
    mut changes: Vec<Change>,
) -> Result<Merge> {
    let mut notes = edits.notes;
    let of_base = base.files.indexes.iter();
    let mut indexes: Vec<_> =
        of_base.map(|i| IndexFile { name: i.name.clone(), metadata: i.metadata.clone() }).collect();
    if let Some(limit) = options.max_shard_bytes {
        if !base.is_folder {
            let what = "--max-shard-size: the base is a single file, and so is the result";
            return Err(Error::new(Kind::Usage, what).hint("put the file into a folder to get shards"));
        }
        let dealt = shards::deal(files, indexes, limit, &mut changes)?;
        (files, indexes) = (dealt.files, dealt.indexes);
    }
    let mut side = base.side_files()?;
    let kept = untouched(&files);
    side.keep_where(|component| kept.contains(component));
    indexes.retain(|index| !component_of(&index.name).is_some_and(|component| kept.contains(component)));
    for left in &side.left {
        notes.push(Note::info(left.to_string_lossy(), "another copy of the base's weights; not copied"));
    }
    for broken in &side.broken {
        notes.push(Note::lossy(broken.to_string_lossy(), "a link that leads nowhere; not copied"));
    }
    for link in &side.elsewhere {
        notes.push(Note::lossy(link.to_string_lossy(), "a link to a folder; not followed"));
    }
    let texts = configs(base, &edits.reshaped, (edits.untied, dequantised), options, &mut notes)?;
    let copies = side.copied.into_iter().filter(|p| !texts.iter().any(|(name, _)| name == p)).collect();
    let inputs = base.shards().iter().map(|s| Arc::clone(&s.contents.file)).collect();
    let output = Output {
        plan: Plan { files },
        indexes,
        texts,
        copies,
        copied_from: base.path.clone(),
        is_folder: base.is_folder,
        inputs,
    };
    Ok(Merge { output, changes, notes, totals: Totals::default(), work: BTreeMap::new() })
}

/// The components of a pipeline of which all files are copies of the base's.
pub fn untouched(files: &[PlannedFile]) -> BTreeSet<String> {
    let touched = files.iter().filter(|f| f.whole_copy().is_none());
    let touched: BTreeSet<_> = touched.filter_map(|f| component_of(&f.name)).collect();
    let all = files.iter().filter_map(|f| component_of(&f.name));
    all.filter(|component| !touched.contains(component)).map(str::to_string).collect()
}

/// The texts of the configs in which the merge changes what they say, by their paths.
fn configs(
    base: &BaseModel,
    reshaped: &BTreeMap<String, Shape>,
    (untied, dequantised): (bool, bool),
    options: &Options,
    notes: &mut Vec<Note>,
) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut texts = Vec::new();
    for (path, original) in base.configs() {
        let mut config = original.clone();
        if untied {
            untie(&mut config, original);
        }
        let vocabulary = vocabulary(base, &path, reshaped);
        if let Some(rows) = vocabulary.and_then(|shape| shape.dims().first()) {
            set(&mut config, "vocab_size", json!(rows), false);
            notes.push(Note::info("vocab_size", format!("becomes {rows} in the config")));
        }
        if let Some(channels) = channels(base, &path, reshaped) {
            set(&mut config, "in_channels", json!(channels), false);
            notes.push(Note::info("in_channels", format!("becomes {channels} in the config")));
        }
        if let Some(name) = options.dtype.and_then(dtype::torch_name) {
            for field in ["torch_dtype", "dtype"] {
                set(&mut config, field, json!(name), false);
            }
        }
        if dequantised && config.shift_remove("quantization_config").is_some() {
            notes.push(Note::info("quantization_config", "left out of the config: no weight has a scale any more"));
        }
        if config != *original {
            texts.push((path, crate::model::config_text(config)?));
        }
    }
    Ok(texts)
}

/// Says that the uses of an embedding are apart.
fn untie(config: &mut Map<String, Value>, original: &Map<String, Value>) {
    set(config, "tie_word_embeddings", json!(false), true);
    // T5 reads from the tie whether it scales its output, unless the config has the word for it.
    if config.get("model_type").and_then(Value::as_str) == Some("t5") && !config.contains_key("scale_decoder_outputs") {
        config.insert(
            "scale_decoder_outputs".to_string(),
            json!(original.get("tie_word_embeddings") != Some(&json!(false))),
        );
    }
}

/// The inputs of the first layer of the denoiser that the config at this path is about, where they have become more.
fn channels(base: &BaseModel, config: &Path, reshaped: &BTreeMap<String, Shape>) -> Option<usize> {
    let component = base.components().iter().find(|component| component.config_path() == config);
    let is_in = |key: &str| component.is_none_or(|own| base.component_of(key).is_some_and(|c| c.name == own.name));
    let (_, shape) = reshaped.iter().find(|(key, _)| key.ends_with("x_embedder.weight") && is_in(key))?;
    shape.dims().get(1).copied()
}

/// The new shape of the embedding that the config at this path is about.
fn vocabulary<'a>(base: &BaseModel, config: &Path, reshaped: &'a BTreeMap<String, Shape>) -> Option<&'a Shape> {
    let component = base.components().iter().find(|component| component.config_path() == config);
    if let Some(component) = component {
        let own = |key: &str| key.strip_suffix(".weight").is_some_and(embedding::is_input);
        let is_in = |key: &str| base.component_of(key).is_some_and(|c| c.name == component.name);
        return reshaped.iter().find(|(key, _)| is_in(key) && own(key)).map(|(_, shape)| shape);
    }
    let embeddings = base.embeddings();
    [embeddings.input, embeddings.output].into_iter().flatten().find_map(|key| reshaped.get(&key))
}

/// Sets a field where it stands, in the config or its inner text config; with `create` also where it does not stand.
fn set(config: &mut Map<String, Value>, field: &str, value: Value, create: bool) {
    if let Some(Value::Object(text)) = config.get_mut("text_config")
        && text.contains_key(field)
    {
        text.insert(field.to_string(), value.clone());
    }
    if create || config.contains_key(field) {
        config.insert(field.to_string(), value);
    }
}

//! Taking adapters out with the base at hand: what merging them into it gives is compared with what is there.
//!
//! Where a tensor is what the merge gives, but for how another program rounds, the base's own bytes take its place. Where some of its elements are not,
//! those are found from what is there, if the kind of change allows it for each by itself, and the rest is the base's.
//! What the adapters do not touch stays as it is in the merged model.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

use super::back::{Back, Found};
use super::history::History;
use super::{Options, Removal, Restored, Tally, Unmerge, as_planned, copy, is_same_place, kinds, lossy, plan_as};
use crate::adapter::Note;
use crate::error::{Context, Error, Result};
use crate::kernels::{Kernels, Moved};
use crate::model::scaled::{self, is_eight};
use crate::model::{self, BaseModel, Role};
use crate::ops::merge::{self, Merge, Merged};
use crate::stream::{
    self, Budget, COPY_BYTES, Entry, Job, Limits, Make, Output, PlannedFile, Produce, Progress, rows_at_once,
};
use crate::tensor::ordinal::{ordinals, ulps};
use crate::tensor::{Dtype, Rows, Tensor, dtype};

/// Units that sums of f32 products in another order are allowed.
const F32_ULPS: u64 = 16;

/// A merged model, its base, and the merge that ought to lie between them.
pub struct Against<'a> {
    merged: &'a BaseModel,
    base: &'a BaseModel,
    removals: &'a [Removal<'a>],
    options: &'a Options,
    history: History,
    notes: Vec<Note>,
    dtype: Option<Dtype>,
    merge: Merge,
    output: Output,
}

/// A tensor of the merged model, and what it ought to be.
struct Pair {
    key: String,
    there: Tensor,
    given: Given,
    differing: AtomicU64,
    rounded: AtomicU64,
    first: AtomicU64,
}

enum Given {
    /// These bytes.
    Bytes(Tensor),
    /// What this makes.
    Rows(Arc<Merged>),
}

/// Rows of a pair, or bytes.
struct Step {
    pair: usize,
    range: Range<usize>,
}

impl<'a> Against<'a> {
    /// Plans the merge into the base. Nothing is compared yet.
    pub fn new(
        merged: &'a BaseModel,
        base: &'a BaseModel,
        removals: &'a [Removal<'a>],
        options: &'a Options,
    ) -> Result<Against<'a>> {
        let mut notes = Vec::new();
        let history = History::of(merged, removals, &mut notes)?;
        if merged.is_folder != base.is_folder {
            return Err(Error::mismatch("a folder against a file: the base has another form than the merged model")
                .in_file(&base.path));
        }
        let dtype = written_as(merged, base);
        let mut merge = plan_as(base, removals, &history.strengths, options, dtype)?;
        notes.extend(lossy(std::mem::take(&mut merge.notes)));
        let mut side = merged.side_files()?;
        let kept = merge::untouched(&merge.output.plan.files);
        side.keep_where(|component| kept.contains(component));
        let output = Output {
            plan: stream::Plan { files: as_planned(merged, |key, tensor| Ok(Some(copy(key, tensor))))? },
            indexes: side
                .indexes
                .into_iter()
                .map(|i| stream::IndexFile { name: i.name, metadata: i.metadata })
                .collect(),
            texts: Vec::new(),
            copies: side.copied,
            copied_from: merged.path.clone(),
            is_folder: merged.is_folder,
            inputs: merged.shards().iter().chain(base.shards()).map(|s| Arc::clone(&s.contents.file)).collect(),
        };
        Ok(Against { merged, base, removals, options, history, notes, dtype, merge, output })
    }

    /// An output of the same size and place as the one there will be, for checks before the work.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Bytes that will be compared.
    pub fn bytes(&self) -> Result<u64> {
        self.output.plan.data_bytes()
    }

    /// Compares all of it, and plans the model without the adapters.
    pub fn compare(mut self, kernels: &dyn Kernels, limits: Limits, progress: &dyn Progress) -> Result<Unmerge> {
        let (changed, rest) = self.pairs()?;
        let added: Vec<Pair> = self.added()?;
        compare_all(&changed, kernels, limits, progress)?;
        compare_all(&rest, kernels, limits, progress)?;
        compare_all(&added, kernels, limits, progress)?;
        self.judge(&changed)?;
        for pair in rest.iter().filter(|p| p.differing() > 0) {
            let text = "not as in the base, and no adapter changes it; left as it is";
            self.notes.push(Note::info(&pair.key, text));
        }
        for pair in &added {
            let note = if pair.differing() == 0 {
                Note::info(&pair.key, "added by the merge; left out")
            } else {
                Note::lossy(&pair.key, "added by the merge and changed since; left out")
            };
            self.notes.push(note);
        }
        self.finish(&changed, &rest, added.len())
    }

    /// Tensors that the merge changes, and those that it only copies.
    fn pairs(&self) -> Result<(Vec<Pair>, Vec<Pair>)> {
        let (mut changed, mut rest) = (Vec::new(), Vec::new());
        for job in self.merge.output.plan.files.iter().flat_map(|f| &f.jobs) {
            let key = &job.entry.name;
            let Some((_, before)) = self.base.tensor(key) else { continue };
            let missing = || Error::missing("the merged model does not have this tensor of the base").at_key(key);
            let (_, there) = self.merged.tensor(key).ok_or_else(missing).in_file(&self.merged.path)?;
            let copied = matches!(&job.make, Make::Copy(source) if is_same_place(source, before));
            if there.shape != job.entry.shape || there.dtype != job.entry.dtype {
                if copied {
                    rest.push(Pair::new(key, there, Given::Bytes(empty(there)?))); // equal to nothing: kept, and noted
                    continue;
                }
                let what = format!(
                    "not this base with these adapters: merging gives {} {}, the model has {} {}",
                    job.entry.dtype, job.entry.shape, there.dtype, there.shape
                );
                return Err(Error::mismatch(what).at_key(key).in_file(&self.merged.path));
            }
            let given = match (&job.make, self.merge.work.get(key)) {
                (Make::Copy(source), _) => Given::Bytes(source.clone()),
                // By the scales that are there: those of another program may be others.
                (_, Some(work)) => match self.merged.scaled().of(key).in_file(&self.merged.path)? {
                    Some(scales) => Given::Rows(Arc::new(work.rounded_to(there.dtype, Some(scales)))),
                    None => Given::Rows(Arc::clone(work)),
                },
                _ => continue,
            };
            let pair = Pair::new(key, there, given);
            if copied { rest.push(pair) } else { changed.push(pair) }
        }
        Ok((changed, rest))
    }

    /// Tensors that the merge adds, as far as the merged model has them.
    fn added(&self) -> Result<Vec<Pair>> {
        let mut out = Vec::new();
        for job in self.merge.output.plan.files.iter().flat_map(|f| &f.jobs) {
            let key = &job.entry.name;
            if self.base.tensor(key).is_some() {
                continue;
            }
            let what =
                "not this base with these adapters: merging them adds this tensor, and the model does not have it";
            let missing = || Error::mismatch(what).at_key(key);
            let (_, there) = self.merged.tensor(key).ok_or_else(missing).in_file(&self.merged.path)?;
            let same = there.shape == job.entry.shape && there.dtype == job.entry.dtype;
            let given = match (&job.make, self.merge.work.get(key)) {
                (Make::Copy(source), _) => Given::Bytes(source.clone()),
                (_, Some(work)) => Given::Rows(Arc::clone(work)),
                _ => continue,
            };
            let pair = Pair::new(key, there, if same { given } else { Given::Bytes(empty(there)?) });
            out.push(pair);
        }
        Ok(out)
    }

    /// Refuses what is not this base with these adapters, and notes what is not quite.
    fn judge(&mut self, changed: &[Pair]) -> Result<()> {
        for pair in changed.iter().filter(|p| p.rounded() > 0) {
            let text = format!(
                "{} of {} elements are rounded otherwise than by this program; taken for those of the base",
                pair.rounded(),
                pair.there.elements()
            );
            // In 8 bits a unit is as much as many a change of somebody else's.
            let note = if is_eight(pair.there.dtype) { Note::lossy } else { Note::info };
            self.notes.push(note(&pair.key, text));
        }
        let (mut all, mut differing, mut worst) = (0u64, 0u64, None::<&Pair>);
        for pair in changed {
            all += pair.there.elements() as u64;
            differing += pair.differing();
            worst = worst.filter(|w| w.differing() >= pair.differing()).or(Some(pair));
            if pair.differing() > 0 {
                self.require_by_element(pair).in_file(&self.merged.path)?;
            }
        }
        let Some(worst) = worst.filter(|w| w.differing() > 0) else { return Ok(()) };
        if differing > all / 2 {
            return Err(Error::mismatch(format!("not this base with these adapters: {}", worst.says()))
                .at_key(&worst.key)
                .in_file(&self.merged.path)
                .hint("are these all adapters that were merged, at their strengths? without --base they are taken off the model as it is"));
        }
        for pair in changed.iter().filter(|p| p.differing() > 0) {
            let text = format!(
                "{} from what the base and the adapters give; the change is taken off those as they are",
                pair.says()
            );
            self.notes.push(Note::lossy(&pair.key, text));
        }
        Ok(())
    }

    fn require_by_element(&self, pair: &Pair) -> Result<()> {
        let base = self.base.tensor(&pair.key).map(|(_, t)| t);
        let (what, ok) = match &pair.given {
            Given::Bytes(_) => ("a replacement".to_string(), false),
            Given::Rows(work) => (
                work.edits().first().map_or_else(String::new, kinds),
                work.inverses().iter().all(|i| i.is_by_element()) && base.is_some_and(|b| b.shape == pair.there.shape),
            ),
        };
        if ok {
            return Ok(());
        }
        let text = format!(
            "not this base with these adapters: {}, and {what} cannot be taken off an element by itself",
            pair.says()
        );
        Err(Error::mismatch(text)
            .at_key(&pair.key)
            .hint("are these all adapters that were merged, at their strengths?"))
    }

    fn finish(mut self, changed: &[Pair], rest: &[Pair], left_out: usize) -> Result<Unmerge> {
        let (base, merged) = (self.base, self.merged);
        // The merge that was compared has let go of what it made ready.
        let again = if changed.iter().any(|p| p.differing() > 0) {
            plan_as(base, self.removals, &self.history.strengths, self.options, self.dtype)?.work
        } else {
            std::collections::BTreeMap::new()
        };
        let of_merge: std::collections::BTreeSet<&str> =
            self.merge.output.plan.files.iter().flat_map(|f| &f.jobs).map(|j| j.entry.name.as_str()).collect();
        let same: std::collections::BTreeSet<&str> =
            rest.iter().filter(|p| p.differing() == 0).map(|p| p.key.as_str()).collect();
        let by_key: std::collections::BTreeMap<&str, &Pair> = changed.iter().map(|p| (p.key.as_str(), p)).collect();
        let (mut tensors, mut copied, mut foreign) = (Vec::new(), 0, Vec::new());
        let files = as_planned(merged, |key, there| {
            let before = base.tensor(key).map(|(_, t)| t);
            let Some(before) = before else {
                if of_merge.contains(key) {
                    return Ok(None);
                }
                foreign.push(Note::info(key, "not in the base, and not from the adapters; left as it is"));
                copied += 1;
                return Ok(Some(copy(key, there)));
            };
            let Some(pair) = by_key.get(key) else {
                copied += 1;
                if let Some(Role::Scale(weight)) = base.scaled().role(key)
                    && by_key.contains_key(weight.as_str())
                {
                    return Ok(Some(copy(key, before))); // it goes with the base's weight
                }
                // The base's own where it is the same: whole files may be copied as they are.
                return Ok(Some(copy(key, if same.contains(key) { before } else { there })));
            };
            let edits = self.merge.work.get(key).map_or(&[][..], |w| w.edits());
            let mixed = match again.get(key) {
                Some(work) if pair.differing() > 0 => {
                    let target = (before.dtype, &before.shape);
                    let scales = merged.scaled().of(key)?;
                    let work = &match &scales {
                        Some(scales) => Arc::new(work.rounded_to(there.dtype, Some(Arc::clone(scales)))),
                        None => Arc::clone(work),
                    };
                    let back = Back::new(there.clone(), target, Arc::clone(work));
                    let back = back.with_scales(scales, base.scaled().of(key)?);
                    let (before, there) = (before.clone(), there.clone());
                    Some(Arc::new(Mixed { before, there, work: Arc::clone(work), back, found: Mutex::default() }))
                }
                _ => None,
            };
            let tally = mixed.clone().map(|m| m as Arc<dyn Tally>);
            tensors.push(Restored::new(key, edits, before.elements(), tally));
            let entry = Entry { name: key.to_string(), dtype: before.dtype, shape: before.shape.clone() };
            let make = mixed.map_or_else(|| Make::Copy(before.clone()), |m| Make::Compute(m));
            Ok(Some(Job { entry, make }))
        })?;
        self.notes.append(&mut foreign);
        self.output.plan.files = files;
        self.scales_of_base(&by_key);
        let is_changed = |job: &Job| by_key.contains_key(job.entry.name.as_str());
        self.history.write(&mut self.output.plan.files, is_changed, &self.options.tool);
        self.heads_of_base();
        self.configs()?;
        let (others, base) = (self.history.others(), self.history.base_alone());
        let (notes, strengths) = (self.notes, self.history.strengths);
        Ok(Unmerge { output: self.output, tensors, strengths, notes, copied, left_out, others, base })
    }

    /// Scales that the merged model has no more, beside the weights of the base that need them, in the order of the base.
    fn scales_of_base(&mut self, changed: &std::collections::BTreeMap<&str, &Pair>) {
        let base = self.base;
        let is_back = |weight: &String| changed.contains_key(weight.as_str());
        for (number, shard) in base.shards().iter().enumerate() {
            let tensors = &shard.contents.tensors;
            let gone = tensors.iter().filter(|(key, _)| {
                let with_weight = match base.scaled().role(key) {
                    Some(Role::Scale(weight) | Role::About(weight)) => is_back(weight),
                    Some(Role::Marker) => self.dtype.is_some(),
                    None => false,
                };
                with_weight && self.merged.tensor(key).is_none()
            });
            let gone: Vec<Job> = gone.map(|(key, tensor)| copy(key, tensor)).collect();
            let files = &mut self.output.plan.files;
            let place = files.iter().position(|file| !base.is_folder || shard.name == file.name);
            let Some(file) = place.and_then(|place| files.get_mut(place)) else {
                if !gone.is_empty() {
                    let (name, metadata) = (shard.name.clone(), base.metadata(number).clone());
                    files.insert(number.min(files.len()), PlannedFile { name, metadata, head: None, jobs: gone });
                }
                continue;
            };
            if !gone.is_empty() {
                file.jobs.extend(gone);
                file.jobs.sort_by_key(|job| tensors.get_index_of(&job.entry.name).unwrap_or(usize::MAX));
                file.head = None;
            }
            if let Some(text) = base.metadata(number).get(scaled::METADATA).filter(|_| self.dtype.is_some()) {
                file.metadata.insert(scaled::METADATA.to_string(), text.clone());
                file.head = None;
            }
        }
    }

    /// A file that says and holds what one of the base says and holds gets its head, byte for byte.
    fn heads_of_base(&mut self) {
        for file in &mut self.output.plan.files {
            let shards = self.base.shards().iter().enumerate();
            let Some((number, shard)) = shards.into_iter().find(|(_, s)| !self.base.is_folder || s.name == file.name)
            else {
                continue;
            };
            let same =
                file.jobs.len() == shard.contents.tensors.len()
                    && file.metadata == *self.base.metadata(number)
                    && file.jobs.iter().zip(&shard.contents.tensors).all(|(j, (key, t))| {
                        j.entry.name == *key && j.entry.dtype == t.dtype && j.entry.shape == t.shape
                    });
            if same {
                file.head = Some(self.base.head(number).clone());
            }
        }
    }

    /// The configs, in which what the merge changes is as in the base.
    fn configs(&mut self) -> Result<()> {
        let (of_base, of_merged) = (self.base.configs(), self.merged.configs());
        let at = |all: &[(PathBuf, &'a Map<String, Value>)], name: &Path| {
            all.iter().find(|(other, _)| other == name).map(|(_, config)| *config)
        };
        for (name, text) in &self.merge.output.texts {
            let (Some(before), Some(there)) = (at(&of_base, name), at(&of_merged, name)) else { continue };
            let given: Map<String, Value> = serde_json::from_slice(text)
                .map_err(|e| Error::malformed(e.to_string()).at_key(name.to_string_lossy()))?;
            let mut config = there.clone();
            put_back(&mut config, before, &given);
            if config == *there {
                continue;
            }
            // Where nothing else changed, the base's own file.
            let text = if config == *before {
                let path = self.base.path.join(name);
                std::fs::read(&path).map_err(|e| Error::io("cannot read", e).in_file(&path))?
            } else {
                model::config_text(config)?
            };
            self.output.copies.retain(|copy| copy != name);
            self.output.texts.push((name.clone(), text));
        }
        Ok(())
    }
}

/// Sets the fields that are others in `given` than in `before` to what they were before.
fn put_back(config: &mut Map<String, Value>, before: &Map<String, Value>, given: &Map<String, Value>) {
    for (field, value) in given {
        match (before.get(field), value, config.get_mut(field)) {
            (Some(old), new, _) if old == new => {}
            (Some(Value::Object(old)), Value::Object(new), Some(Value::Object(inner))) => put_back(inner, old, new),
            (Some(old), ..) => {
                config.insert(field.clone(), old.clone());
            }
            (None, ..) => {
                config.shift_remove(field);
            }
        }
    }
    for (field, old) in before.iter().filter(|(field, _)| !given.contains_key(*field)) {
        if !config.contains_key(field) {
            config.insert(field.clone(), old.clone()); // left out by the merge
        }
    }
}

/// The type that all floating-point tensors were written in, where the merge wrote another than the base has.
fn written_as(merged: &BaseModel, base: &BaseModel) -> Option<Dtype> {
    base.files.tensors().filter(|(_, _, t)| dtype::is_float(t.dtype)).find_map(|(_, key, before)| {
        let (_, there) = merged.tensor(key)?;
        (there.dtype != before.dtype && dtype::is_float(there.dtype)).then_some(there.dtype)
    })
}

/// No tensor at all, that nothing is equal to.
fn empty(like: &Tensor) -> Result<Tensor> {
    Tensor::new(like.dtype, vec![0].as_slice().into(), Vec::new().into())
}

impl Pair {
    fn new(key: &str, there: &Tensor, given: Given) -> Pair {
        let (differing, rounded, first) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(u64::MAX));
        Pair { key: key.to_string(), there: there.clone(), given, differing, rounded, first }
    }

    /// Elements that are not what they ought to be.
    fn differing(&self) -> u64 {
        self.differing.load(Ordering::Relaxed)
    }

    /// Elements that are, but for how another program rounds.
    fn rounded(&self) -> u64 {
        self.rounded.load(Ordering::Relaxed)
    }

    /// The same in words.
    fn says(&self) -> String {
        let first = self.first.load(Ordering::Relaxed);
        let all = self.there.elements();
        format!("{} of {all} elements differ, the first is number {first},", self.differing())
            .trim_end_matches(',')
            .to_string()
    }

    fn note(&self, from: usize, there: &[u8], given: &[u8]) {
        if there == given {
            return;
        }
        let size = (self.there.dtype.bitsize() / 8).max(1);
        let others = there.chunks(size).zip(given.chunks(size)).enumerate().filter(|(_, (a, b))| a != b);
        let mut count = there.len().abs_diff(given.len()).div_ceil(size) as u64;
        for (i, (a, b)) in others {
            if matches!(self.given, Given::Rows(_)) && is_rounding(self.there.dtype, a, b) {
                self.rounded.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            count += 1;
            self.first.fetch_min((from + i) as u64, Ordering::Relaxed);
        }
        self.differing.fetch_add(count, Ordering::Relaxed);
    }

    fn compare(&self, kernels: &dyn Kernels, range: &Range<usize>, budget: &Budget) -> Result<()> {
        match &self.given {
            Given::Bytes(given) => {
                let of_given = range.start.min(given.bytes.len())..range.end.min(given.bytes.len());
                given.bytes.fetch(of_given.clone());
                self.there.bytes.fetch(range.clone());
                let size = (self.there.dtype.bitsize() / 8).max(1);
                let there = &self.there.bytes.as_slice()[range.clone()];
                self.note(range.start / size, there, &given.bytes.as_slice()[of_given.clone()]);
                given.bytes.release(of_given);
                self.there.bytes.release(range.clone());
            }
            Given::Rows(work) => {
                let (_, cols) = work.matrix();
                let row_bytes = dtype::byte_len(self.there.dtype, cols)?;
                let bytes = range.start * row_bytes..range.end * row_bytes;
                let _ticket = budget.admit(work.footprint(range.len()) + bytes.len() as u64);
                let mut given = vec![0u8; bytes.len()];
                work.produce(kernels, range.clone(), &mut given)?;
                work.release(range.clone());
                self.there.bytes.fetch(bytes.clone());
                let there = self.there.bytes.as_slice().get(bytes.clone());
                self.note(range.start * cols, there.unwrap_or_default(), &given);
                self.there.bytes.release(bytes);
            }
        }
        Ok(())
    }

    fn steps(&self, pair: usize) -> Vec<Step> {
        let (len, step) = match &self.given {
            Given::Bytes(_) => (self.there.bytes.len(), COPY_BYTES),
            Given::Rows(work) => {
                let rows = work.matrix().0;
                (rows, rows_at_once(work.rows(), rows, self.there.bytes.len()))
            }
        };
        (0..len).step_by(step.max(1)).map(|start| Step { pair, range: start..(start + step).min(len) }).collect()
    }
}

/// Whether two elements are no further apart than another order of operations, or one rounding more, brings about.
fn is_rounding(dtype: Dtype, a: &[u8], b: &[u8]) -> bool {
    let allowed = match dtype {
        Dtype::BF16 | Dtype::F16 | Dtype::F8_E4M3 | Dtype::F8_E5M2 => 1,
        Dtype::F32 => F32_ULPS,
        _ => return false,
    };
    let element = |bytes| ordinals(dtype, bytes).and_then(|mut o| o.next());
    matches!((element(a), element(b)), (Some(a), Some(b)) if ulps(a, b) <= allowed)
}

fn compare_all(pairs: &[Pair], kernels: &dyn Kernels, limits: Limits, progress: &dyn Progress) -> Result<()> {
    let steps: Vec<Step> = pairs.iter().enumerate().flat_map(|(number, pair)| pair.steps(number)).collect();
    let budget = Budget::new(limits.memory);
    stream::each(steps.len(), limits.threads, progress, |number| {
        let Step { pair, range } = &steps[number];
        let pair = &pairs[*pair];
        pair.compare(kernels, range, &budget).at_key(&pair.key)?;
        let all = match &pair.given {
            Given::Bytes(_) => pair.there.bytes.len(),
            Given::Rows(work) => work.matrix().0,
        };
        progress.advance((pair.there.bytes.len() as u64 * range.len() as u64).checked_div(all as u64).unwrap_or(0));
        Ok(())
    })
    .map(drop)
}

/// A tensor of the base, but for the elements that are not what the merge makes of them.
struct Mixed {
    before: Tensor,
    there: Tensor,
    work: Arc<Merged>,
    back: Back,
    found: Mutex<Found>,
}

impl Produce for Mixed {
    fn matrix(&self) -> (usize, usize) {
        self.work.matrix()
    }

    fn rows(&self) -> Rows {
        self.work.rows()
    }

    fn footprint(&self, rows: usize) -> u64 {
        self.work.footprint(rows) + self.back.guess_footprint(rows) + 16 * (rows * self.matrix().1) as u64
    }

    /// What differs is counted on the way.
    fn can_be_taken_up(&self) -> bool {
        false
    }

    fn produce(&self, kernels: &dyn Kernels, rows: Range<usize>, out: &mut [u8]) -> Result<Moved> {
        let cols = self.matrix().1;
        let bytes_of = |dtype: Dtype| -> Result<Range<usize>> {
            let row_bytes = dtype::byte_len(dtype, cols)?;
            Ok(rows.start * row_bytes..rows.end * row_bytes)
        };
        let (of_base, of_merged) = (bytes_of(self.before.dtype)?, bytes_of(self.there.dtype)?);
        let there = &self.there.bytes.as_slice()[of_merged.clone()];
        let guess = self.back.guess(kernels, rows.clone(), there, out)?;
        let mut given = vec![0u8; of_merged.len()];
        self.work.produce(kernels, rows.clone(), &mut given)?;
        let (size, size_there) = (self.before.dtype.bitsize() / 8, self.there.dtype.bitsize() / 8);
        let own = self.before.bytes.as_slice()[of_base].chunks(size);
        let mut differs = Vec::with_capacity(rows.len() * cols);
        for ((out, own), (a, b)) in
            out.chunks_mut(size).zip(own).zip(there.chunks(size_there).zip(given.chunks(size_there)))
        {
            let same = a == b || is_rounding(self.there.dtype, a, b);
            differs.push(!same);
            if same {
                out.copy_from_slice(own);
            }
        }
        let is_other = |i: u32| differs.get(i as usize) == Some(&true);
        let lost: Vec<_> = guess.lost.into_iter().filter(|(i, _)| is_other(*i)).collect();
        self.back.refuse_lost(&rows, &lost)?;
        let doubtful = guess.doubtful.iter().filter(|(i, _)| is_other(*i));
        let found = Found {
            elements: differs.len() as u64,
            in_doubt: doubtful.clone().count() as u64,
            at_most: doubtful.fold(0f64, |max, (_, by)| max.max(*by)),
            differing: differs.iter().filter(|d| **d).count() as u64,
        };
        self.found.lock().unwrap_or_else(PoisonError::into_inner).add(&found);
        Ok(Moved { elements: found.elements, ..Moved::default() })
    }

    fn release(&self, rows: Range<usize>) {
        let row_bytes = self.matrix().1 * self.there.dtype.bitsize() / 8;
        self.there.bytes.release(rows.start * row_bytes..rows.end * row_bytes);
        self.work.release(rows);
    }
}

impl Tally for Mixed {
    fn found(&self) -> Found {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_rounding_and_others_are_not() {
        let bf16 = |bits: u16| bits.to_le_bytes();
        assert!(is_rounding(Dtype::BF16, &bf16(0x3f80), &bf16(0x3f81)));
        assert!(!is_rounding(Dtype::BF16, &bf16(0x3f80), &bf16(0x3f82)));
        assert!(is_rounding(Dtype::BF16, &bf16(0x8000), &bf16(0x0001)), "across zero");
        assert!(is_rounding(Dtype::F32, &1f32.to_le_bytes(), &(1.0 + 16.0 * f32::EPSILON).to_le_bytes()));
        assert!(!is_rounding(Dtype::F32, &1f32.to_le_bytes(), &(1.0 + 17.0 * f32::EPSILON).to_le_bytes()));
        assert!(!is_rounding(Dtype::I16, &bf16(1), &bf16(2)));
    }
}

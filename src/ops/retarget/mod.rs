//! The same adapter on other modules: projections fused or split, experts in one parameter or one by one, names as a
//! base has them.
//!
//! The change of every weight stays what it is; nothing is rounded but where scales that differ meet in one factor. What
//! is taken apart shares its A. What is put together has a rank that is the sum of its parts' unless they share their A:
//! that is a note, and `resize` makes it smaller.

mod experts;
mod naming;
mod part;
mod projections;

pub use naming::{of_base, settle_family, spell, spell_for};
pub use part::{of_pipeline, one_of_two};

use std::collections::{BTreeMap, HashMap};

use crate::adapter::{Adapter, Facts, Note, SiteKind, Target};
use crate::error::{Error, Result};
use crate::model::{BaseModel, conv1d};
use crate::names::{Found, ModulePath};

pub use experts::settle_facing;

/// Which modules the adapter is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Those that the base has in memory.
    Base,
    /// Projections in parts, experts one by one.
    Split,
    /// Projections whole, experts in one parameter.
    Fused,
}

/// Which modules are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// All that have parts or are some.
    All,
    /// Experts only.
    Experts,
}

/// The adapter on its new modules.
#[derive(Clone, Debug)]
pub struct Retargeted {
    /// The adapter.
    pub adapter: Adapter,
    /// What was done, and what it cost.
    pub notes: Vec<Note>,
    /// Modules that were taken apart.
    pub split: usize,
    /// Modules that were put together, counted before.
    pub fused: usize,
    /// Modules that only changed their names.
    pub renamed: usize,
}

/// Puts the changes of `adapter` onto other modules. The base tells sizes and names; without it only what needs neither
/// can be done, and [`Form::Base`] nothing.
pub fn retarget(adapter: &Adapter, form: Form, parts: Parts, base: Option<&BaseModel>) -> Result<Retargeted> {
    if form == Form::Base && base.is_none() {
        return Err(Error::missing("whose modules it is to have is not known").hint("--base names the base model"));
    }
    if adapter.residual_base.is_some() {
        let what = "an adapter for a changed base, whose start is taken out of whole weights";
        return Err(Error::unsupported(what).hint("merge it into its base first"));
    }
    let memory = base.map(Memory::of);
    let mut work = Work {
        form,
        base,
        memory,
        facts: adapter.base.clone(),
        adapter: adapter.clone(),
        notes: Vec::new(),
        counts: Counts::default(),
        grown: None,
    };
    work.rename();
    experts::split(&mut work)?;
    experts::fuse(&mut work)?;
    if parts == Parts::All {
        projections::split(&mut work)?;
        projections::fuse(&mut work)?;
    }
    work.rename();
    work.settle();
    Ok(work.done())
}

/// Calls the modules as the files of `base` do, where their weights lie there whole; models that mirror the files and not
/// the classes of transformers have these names.
pub fn named_as_on_disk(adapter: &mut Adapter, base: &BaseModel) {
    for (path, target) in std::mem::take(&mut adapter.targets) {
        let suffix = if target.is_parameter() { "" } else { ".weight" };
        let found = base.names.find(&format!("{path}{suffix}"));
        let new = found.as_ref().and_then(|found| found.plain()?.strip_suffix(suffix));
        // Less than the path is a model saved without what is around it.
        let new = new.filter(|new| !path.as_str().ends_with(new)).map_or_else(|| path.clone(), ModulePath::from);
        let new = if adapter.targets.contains_key(&new) { path } else { new };
        adapter.targets.insert(new, target);
    }
}

/// Calls the modules as the model of `base` does in memory, where that means the same tensors; how many have a new name.
pub fn named_as_in_memory(adapter: &mut Adapter, base: &BaseModel) -> usize {
    let (targets, count) = in_memory(std::mem::take(&mut adapter.targets), base, &Memory::of(base));
    adapter.targets = targets;
    count
}

fn in_memory(targets: Targets, base: &BaseModel, memory: &Memory) -> (Targets, usize) {
    let mut renamed = BTreeMap::new();
    let mut count = 0;
    for (path, target) in targets {
        let suffix = if target.is_parameter() { "" } else { ".weight" };
        let name = format!("{path}{suffix}");
        let new = match memory.tensors.contains_key(&name) {
            true => None,
            false => base.names.find(&name).and_then(|found| memory.name_of(&found)?.strip_suffix(suffix)),
        };
        let new = new.map_or_else(|| path.clone(), ModulePath::from);
        count += usize::from(new != path);
        renamed.insert(new, target);
    }
    (renamed, count)
}

type Targets = BTreeMap<ModulePath, Target>;

#[derive(Clone, Copy, Default)]
struct Counts {
    split: usize,
    fused: usize,
    renamed: usize,
}

/// The tensors a base has in memory.
struct Memory {
    tensors: HashMap<String, Found>,
    /// Names in memory by the first key on disk they take.
    by_key: HashMap<String, Vec<String>>,
}

impl Memory {
    fn of(base: &BaseModel) -> Memory {
        let listing = base.names.memory();
        let mut by_key: HashMap<String, Vec<String>> = HashMap::new();
        for (name, found) in &listing.tensors {
            if let Some(piece) = found.pieces.first() {
                by_key.entry(piece.key.clone()).or_default().push(name.clone());
            }
        }
        Memory { tensors: listing.tensors.into_iter().collect(), by_key }
    }

    /// The name in memory of what lies there on disk.
    fn name_of(&self, found: &Found) -> Option<&str> {
        let candidates = self.by_key.get(&found.pieces.first()?.key)?;
        candidates
            .iter()
            .find(|name| self.tensors.get(*name).is_some_and(|f| f.pieces == found.pieces))
            .map(String::as_str)
    }
}

/// The adapter under way.
struct Work<'a> {
    form: Form,
    base: Option<&'a BaseModel>,
    memory: Option<Memory>,
    facts: Facts,
    adapter: Adapter,
    notes: Vec<Note>,
    counts: Counts,
    /// A module whose rank grew, and from what to what.
    grown: Option<(String, usize, usize)>,
}

impl Work<'_> {
    /// The shape in memory of a tensor of the base.
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.memory.as_ref()?.tensors.get(name).map(|found| found.memory_shape.as_slice())
    }

    /// Rows of a layer's weight, under whatever spelling the base has it.
    fn rows(&self, path: &str) -> Option<usize> {
        let name = format!("{path}.weight");
        let exact = self.shape(&name).and_then(|shape| shape.first().copied());
        exact.or_else(|| self.base?.names.find(&name)?.memory_shape.first().copied())
    }

    /// Whether the base has the layer, under whatever spelling.
    fn knows(&self, path: &str) -> bool {
        self.rows(path).is_some()
    }

    /// Whether the base has a module of this very name in memory.
    fn has(&self, path: &str) -> bool {
        self.shape(&format!("{path}.weight")).is_some()
    }

    /// Names as the base has them in memory, where they mean the same tensor.
    fn rename(&mut self) {
        let (Form::Base, Some(base), Some(memory)) = (self.form, self.base, &self.memory) else { return };
        let (renamed, count) = in_memory(std::mem::take(&mut self.adapter.targets), base, memory);
        self.adapter.targets = renamed;
        self.counts.renamed += count;
    }

    /// Puts a target into the place of others.
    fn put(&mut self, path: &str, target: Target) -> Result<()> {
        if self.adapter.targets.insert(path.into(), target).is_some() {
            let what = "adapted by itself, and within a module it is a part of or has parts in";
            return Err(Error::unsupported(what).at_key(path));
        }
        Ok(())
    }

    fn note_growth(&mut self, path: &str, before: usize, after: usize) {
        if after > before && self.grown.is_none() {
            self.grown = Some((path.to_string(), before, after));
        }
    }

    /// Which way round layers stand in the base.
    fn settle(&mut self) {
        let (Form::Base, Some(base)) = (self.form, self.base) else { return };
        for (path, target) in &mut self.adapter.targets {
            if matches!(target.site, SiteKind::Layer | SiteKind::FanInFanOut)
                && let Some(in_out) = conv1d::stores_in_out(base, path)
            {
                target.site = if in_out { SiteKind::FanInFanOut } else { SiteKind::Layer };
            }
        }
    }

    fn done(self) -> Retargeted {
        let Work { adapter, mut notes, counts, grown, .. } = self;
        if counts.renamed > 0 {
            notes.push(Note::info("", format!("{} modules called as the base calls them", counts.renamed)));
        }
        if counts.split > 0 {
            notes.push(Note::info("", format!("{} modules taken apart", counts.split)));
        }
        if counts.fused > 0 {
            notes.push(Note::info("", format!("{} modules put together with others", counts.fused)));
        }
        if let Some((path, before, after)) = grown {
            let text = format!(
                "parts with an A of their own make the rank of the whole their sum, here {after} of {before}; `lora-tool \
                 resize` makes it smaller"
            );
            notes.push(Note::info(path, text));
        }
        Retargeted { adapter, notes, split: counts.split, fused: counts.fused, renamed: counts.renamed }
    }
}

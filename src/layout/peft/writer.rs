//! What a tuner writes to: the targets that are still to be written, and the tensors and fields of the config that have
//! come of the others.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::keys;
use crate::adapter::{Adapter, Delta, Note, SiteKind, Target};
use crate::error::{Error, Result};
use crate::names::ModulePath;
use crate::tensor::Tensor;

/// An adapter on its way into PEFT's files.
pub struct Writer<'a> {
    /// The tuner it is written as.
    pub peft_type: &'static str,
    /// The adapter as it was given.
    pub adapter: &'a Adapter,
    /// What is still to be written. A tuner takes deltas out; whatever it leaves in here and is no whole tensor is an
    /// error.
    pub targets: BTreeMap<ModulePath, Target>,
    /// Tensors by key.
    pub tensors: BTreeMap<String, Tensor>,
    /// Fields of the config that the tensors decide. They come before what is carried.
    pub fields: Map<String, Value>,
    /// Which modules the config has to choose.
    pub selection: Selection,
    /// Remarks.
    pub notes: Vec<Note>,
}

/// Modules and parameters that the fields of the config have to name.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Modules of the tuner.
    pub modules: BTreeSet<String>,
    /// `module.parameter` of those adapted by name, as the tuner orders them.
    pub parameters: Vec<String>,
    /// Modules saved whole.
    pub saved: Vec<String>,
    /// Number of biases saved: of modules of the tuner, and of others that are not saved whole.
    pub biases: (usize, usize),
    /// Ids of token rows by module.
    pub tokens: Map<String, Value>,
}

impl<'a> Writer<'a> {
    /// With everything still to be written.
    pub fn new(adapter: &'a Adapter, peft_type: &'static str) -> Writer<'a> {
        Writer {
            peft_type,
            adapter,
            targets: adapter.targets.clone(),
            tensors: BTreeMap::new(),
            fields: Map::new(),
            selection: Selection::default(),
            notes: Vec::new(),
        }
    }

    /// Sets a field of the config.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.fields.insert(name.to_string(), value.into());
    }

    /// Adds the tensor `role` of a module, `depth` wrappers above it.
    pub fn put(&mut self, path: &str, depth: usize, role: &str, tensor: Tensor) -> Result<()> {
        self.insert(keys::tuned(path, depth, role), tensor)
    }

    /// Adds a tensor under its whole key.
    pub fn insert(&mut self, key: String, tensor: Tensor) -> Result<()> {
        if self.tensors.insert(key.clone(), tensor).is_some() {
            return Err(
                Error::unsupported("two tensors of the adapter would have this name in PEFT's layout").at_key(key)
            );
        }
        Ok(())
    }

    /// Whether the tuner has a tensor at this module.
    pub fn adapts(&self, path: &str) -> bool {
        self.selection.modules.contains(path)
    }

    /// The fields of the config the adapter was read with, where that was PEFT's and of the same tuner.
    pub fn carried_fields(&self) -> impl Iterator<Item = (&str, &str)> {
        let carried = &self.adapter.carried;
        let same = carried.layout == "peft" && self.adapter.declared.eq_ignore_ascii_case(self.peft_type);
        carried.fields.iter().filter(move |_| same).map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// One of [`Writer::carried_fields`].
    pub fn carried(&self, name: &str) -> Option<Value> {
        let (_, text) = self.carried_fields().find(|(field, _)| *field == name)?;
        serde_json::from_str(text).ok()
    }

    /// Fields that neither the tensors nor a config tell: what is written for them is PEFT's default, with a note.
    pub fn want_carried(&mut self, names: &[&str]) {
        for name in names {
            if self.carried(name).is_none() {
                let what = format!("not known of this adapter; the default of PEFT's {} is written", self.peft_type);
                self.notes.push(Note::lossy(*name, what));
            }
        }
    }

    /// Takes the last change of every weight where `pick` knows it. Each of these modules is one of the tuner's.
    pub fn take<T>(&mut self, pick: impl Fn(&Delta) -> Option<T>) -> Vec<Taken<T>> {
        let mut out = Vec::new();
        for (path, target) in &mut self.targets {
            let Some(change) = target.weight.last().and_then(&pick) else { continue };
            target.weight.pop();
            self.selection.modules.insert(path.to_string());
            out.push(Taken { path: path.to_string(), site: target.site, change });
        }
        out
    }

    /// Takes the change of a module's bias that goes with that of its weight.
    pub fn take_bias(&mut self, path: &str, is_it: impl Fn(&Delta) -> bool) -> bool {
        let Some(target) = self.targets.get_mut(path) else { return false };
        let found = target.bias.last().is_some_and(is_it);
        if found {
            target.bias.pop();
        }
        found
    }

    /// Says how the layers store their weights; an embedding has its own way and does not count.
    pub fn set_orientation(&mut self, sites: impl Iterator<Item = SiteKind>) {
        let sites: Vec<_> = sites.filter(|site| *site != SiteKind::Embedding).collect();
        let turned = sites.iter().filter(|site| **site == SiteKind::FanInFanOut).count();
        self.set("fan_in_fan_out", turned > 0 && turned == sites.len());
        if turned > 0 && turned < sites.len() {
            let what =
                format!("{turned} of {} layers store their weight [in, out]; PEFT has one word for all", sites.len());
            self.notes.push(Note::info("fan_in_fan_out", what));
        }
    }
}

/// A change taken from the targets.
#[derive(Clone, Debug)]
pub struct Taken<T> {
    /// The module.
    pub path: String,
    /// What kind of place it is.
    pub site: SiteKind,
    /// The change.
    pub change: T,
}

/// What PEFT's config says once for all modules, of modules that have to agree; none where there are none.
pub fn common<T, V: PartialEq>(taken: &[Taken<T>], name: &str, value: impl Fn(&T) -> V) -> Result<Option<V>> {
    let mut all = taken.iter().map(|t| (t.path.as_str(), value(&t.change)));
    let Some((_, first)) = all.next() else { return Ok(None) };
    match all.find(|(_, other)| *other != first) {
        None => Ok(Some(first)),
        Some((path, _)) => {
            let what = format!("another {name} than other modules; PEFT has one for the whole adapter");
            Err(Error::unsupported(what).at_key(path).hint("write the modules as two adapters"))
        }
    }
}

//! A base model: what its files hold, from their headers, and its fingerprint.

use std::collections::{BTreeMap, BTreeSet};

use super::{Share, layer_of};
use crate::adapter::Note;
use crate::model::{BaseModel, Component, Embeddings, Provenance};
use crate::tensor::Hash;

/// A base model in numbers.
#[derive(Clone, Debug)]
pub struct BaseSummary {
    /// `model_type` and `architectures` of the config.
    pub model_types: Vec<String>,
    /// The class of a pipeline, where it names one.
    pub pipeline: Option<String>,
    /// The components of a pipeline.
    pub components: Vec<ComponentSummary>,
    /// Number of files.
    pub files: usize,
    /// Number of different layers.
    pub layers: usize,
    /// Tensors by element type.
    pub dtypes: BTreeMap<String, Share>,
    /// All tensors together.
    pub total: Share,
    /// Tensors by name with layer numbers replaced by `N`: how many, and the shape of the first.
    pub groups: BTreeMap<String, Group>,
    /// How the weights are quantised.
    pub quantisation: Option<String>,
    /// Weights in 8-bit floats, and those of them with scales.
    pub eight_bit: (usize, usize),
    /// Input and output embeddings.
    pub embeddings: Embeddings,
    /// Header metadata of the first file.
    pub metadata: Vec<(String, String)>,
    /// What tells it from other models.
    pub fingerprint: Hash,
    /// What was merged into it, as far as its files say it.
    pub provenance: Option<Provenance>,
    /// Remarks.
    pub notes: Vec<Note>,
}

/// A component of a pipeline.
#[derive(Clone, Debug)]
pub struct ComponentSummary {
    /// Its name.
    pub name: String,
    /// Its class.
    pub class: String,
    /// Its tensors; none for one without weights that can be read.
    pub tensors: Option<Share>,
}

/// Tensors whose names differ only in numbers.
#[derive(Clone, Debug)]
pub struct Group {
    /// How many.
    pub count: usize,
    /// Shape of the first.
    pub shape: String,
    /// Element type of the first.
    pub dtype: String,
}

/// Looks at the headers, and at what of the weights goes into the fingerprint.
pub fn summarise(base: &BaseModel) -> BaseSummary {
    let carried = base.provenance();
    let mut out = BaseSummary {
        model_types: base.model_types(),
        pipeline: base.pipeline.as_ref().and_then(|pipeline| pipeline.class.clone()),
        components: base.components().iter().map(|c| component(base, c)).collect(),
        files: base.shards().len(),
        layers: 0,
        dtypes: BTreeMap::new(),
        total: Share::default(),
        groups: BTreeMap::new(),
        quantisation: base.quantisation().map(str::to_string),
        eight_bit: base.scaled().counts(),
        embeddings: base.embeddings(),
        metadata: base.shards().first().map_or_else(Vec::new, |s| s.contents.metadata.clone().into_iter().collect()),
        fingerprint: base.fingerprint(),
        provenance: carried.provenance,
        notes: carried.odd.into_iter().map(|(file, what)| Note::info(file, what)).collect(),
    };
    let mut layers = BTreeSet::new();
    for (_, key, tensor) in base.files.tensors() {
        layers.extend(layer_of(key));
        out.dtypes.entry(tensor.dtype.to_string()).or_default().add(tensor);
        out.total.add(tensor);
        let group = out.groups.entry(without_numbers(key)).or_insert_with(|| Group {
            count: 0,
            shape: tensor.shape.to_string(),
            dtype: tensor.dtype.to_string(),
        });
        group.count += 1;
    }
    out.layers = layers.len();
    out
}

fn component(base: &BaseModel, of: &Component) -> ComponentSummary {
    let mut tensors = Share::default();
    let is_in = |key: &str| base.component_of(key).is_some_and(|c| c.name == of.name);
    base.files.tensors().filter(|(_, key, _)| is_in(key)).for_each(|(_, _, tensor)| tensors.add(tensor));
    ComponentSummary {
        name: of.name.clone(),
        class: of.class.clone(),
        tensors: Some(tensors).filter(|_| of.has_tensors),
    }
}

/// A name with `N` for each component that is a number.
fn without_numbers(key: &str) -> String {
    let numbered = |c: &str| !c.is_empty() && c.bytes().all(|b| b.is_ascii_digit());
    key.split('.').map(|c| if numbered(c) { "N" } else { c }).collect::<Vec<_>>().join(".")
}

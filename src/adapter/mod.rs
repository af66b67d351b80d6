//! The representation everything meets in: what is adapted, by which delta, at which scale.
//!
//! No key spelling and no file is known here. Tensors are handles on mapped files, so an adapter of any size costs
//! its headers.

pub mod delta;
pub mod note;
mod prepare;
pub mod scale;

use std::collections::BTreeMap;

pub use delta::{Act, Action, Before, Delta, Site};
pub use note::{Note, Severity};
pub use scale::{Scale, ScaleRule};

use crate::names::ModulePath;
use crate::tensor::Tensor;

/// An adapter as a whole.
#[derive(Clone, Debug, Default)]
pub struct Adapter {
    /// What is adapted, by in-memory module path.
    pub targets: BTreeMap<ModulePath, Target>,
    /// The layout's word for what kind of adapter it says it is (`LORA`, `LOHA` …).
    pub declared: String,
    /// Base model, task, training notes: carried, never interpreted.
    pub about: BTreeMap<String, String>,
    /// Where the adapter needs another base than the one it names: the method that changed the base before training.
    pub residual_base: Option<String>,
    /// Whether the adapter says that the two uses of a tied embedding are adapted together.
    pub ties_embeddings: bool,
}

/// Everything an adapter does to one module.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// Changes of the weight, in the order they are applied.
    pub weight: Vec<Delta>,
    /// DoRA's magnitude, applied after them.
    pub magnitude: Option<Tensor>,
    /// Changes of the bias, in order.
    pub bias: Vec<Delta>,
    /// What kind of place the module path names.
    pub site: SiteKind,
}

/// What a module path names, as far as the adapter tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SiteKind {
    /// A layer whose weight is `[out, in]`, or a convolution `[out, in, kernel …]`.
    #[default]
    Layer,
    /// A layer whose weight the adapter says is stored `[in, out]`.
    FanInFanOut,
    /// An embedding: the weight `[n, d]` is the transpose of the delta.
    Embedding,
    /// A parameter by its own name, such as a stack of experts; no `.weight` follows.
    Parameter,
}

impl Target {
    /// Whether the module path names a parameter by its own name.
    pub fn is_parameter(&self) -> bool {
        self.site == SiteKind::Parameter
    }

    /// All tensors of the target with the words for their roles.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let mut out: Vec<_> = self.weight.iter().chain(&self.bias).flat_map(Delta::tensors).collect();
        out.extend(self.magnitude.iter().map(|m| ("magnitude", m)));
        out
    }

    /// The name of what is done to the weight, or to the bias where only that changes.
    pub fn kind(&self) -> &'static str {
        let main = self.weight.last().or(self.bias.last());
        match (main, &self.magnitude) {
            (Some(Delta::LowRank(_)), Some(_)) => "DoRA",
            (Some(delta), _) => delta.kind(),
            (None, _) => "none",
        }
    }
}

impl Adapter {
    /// Number of tensors used by its targets.
    pub fn tensor_count(&self) -> usize {
        self.targets.values().map(|t| t.tensors().len()).sum()
    }
}

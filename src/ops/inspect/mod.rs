//! What is in an adapter or a base model, as plain values.

pub mod adapter;
pub mod base;

pub use adapter::{AdapterSummary, TargetSummary};
pub use base::{BaseSummary, ComponentSummary};

use crate::tensor::Tensor;

/// Tensors of one element type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// How many.
    pub tensors: usize,
    /// Their elements.
    pub elements: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Share {
    /// Counts one tensor.
    pub fn add(&mut self, tensor: &Tensor) {
        self.tensors += 1;
        self.elements += tensor.elements() as u64;
        self.bytes += tensor.bytes.len() as u64;
    }
}

/// The number of the layer a path is in: its first component that is a number.
pub fn layer_of(path: &str) -> Option<usize> {
    path.split('.').find_map(|component| component.parse().ok())
}

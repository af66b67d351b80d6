//! A kind that cannot be merged: it depends on the input, or on something the file does not hold. It can still be
//! inspected, renamed and carried.

use super::Action;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Tensors of a kind that has a name and a reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Opaque {
    /// The name people use for it.
    pub kind: &'static str,
    /// Why it cannot be merged: one clause.
    pub reason: &'static str,
    /// Its tensors.
    pub tensors: Vec<Tensor>,
}

impl Opaque {
    /// Always an error, which names the kind.
    pub fn prepare(&self) -> Result<Action> {
        Err(Error::unsupported(format!("{} cannot be merged: {}", self.kind, self.reason)))
    }
}

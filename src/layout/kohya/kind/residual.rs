//! What an extraction left over: some elements of the weight, in 16 bits (KohakuBlueleaf/LyCORIS,
//! `lycoris/utils/__init__.py`). It stands beside another kind.

use super::super::keys::Parts;
use super::{Written, need};
use crate::adapter::Delta;
use crate::adapter::delta::{Sparse, sparse::Positions};
use crate::error::Result;

/// Takes it out of the parts, where there is any.
pub fn read(parts: &mut Parts) -> Result<Option<Delta>> {
    if !parts.keys().any(|suffix| suffix.starts_with("bias_")) {
        return Ok(None);
    }
    let (values, indices) = (need(parts, "bias_values")?, need(parts, "bias_indices")?);
    let positions = Positions::Sized { indices, size: need(parts, "bias_size")? };
    Ok(Some(Delta::Sparse(Sparse { values, positions, scaling: 1.0 })))
}

/// Its tensors; none where it is another change.
pub fn write(delta: &Delta) -> Option<Written> {
    match delta {
        Delta::Sparse(Sparse { values, positions: Positions::Sized { indices, size }, scaling }) if *scaling == 1.0 => {
            Some(Written::of([("bias_values", values), ("bias_indices", indices), ("bias_size", size)]))
        }
        _ => None,
    }
}

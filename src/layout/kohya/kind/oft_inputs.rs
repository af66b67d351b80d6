//! OFT on the inputs, of OneTrainer (`modules/module/oft_utils.py`): PEFT's, with the settings that its files do not say.

use super::super::keys::Parts;
use super::{Kind, Written, need};
use crate::adapter::delta::Orthogonal;
use crate::adapter::delta::orthogonal::Oft;
use crate::adapter::delta::orthogonal::oft::{Transform, block_size};
use crate::adapter::{Delta, fold};
use crate::error::{Error, Result};

pub const KIND: Kind = Kind { marks: &["oft_R.weight"], read, write };

/// Terms of the series that a block becomes a rotation by.
const TERMS: usize = 5;

fn read(parts: &mut Parts) -> Result<Delta> {
    let stored = need(parts, "oft_R.weight")?;
    let (count, entries) = stored.shape.matrix();
    let size = block_size(entries).filter(|_| stored.shape.rank() == 2).ok_or_else(|| {
        Error::mismatch(format!("rotation {}: {entries} is not b (b - 1) / 2 for any block size b", stored.shape))
    })?;
    // A marker, whatever its value: the numbers are larger than what is meant.
    let r = match parts.remove("oft_R.scaled_oft") {
        Some(_) => fold::scaled(&stored, 1.0 / (2.0 * ((size - 1) as f64).sqrt()))?.tensor,
        None => stored,
    };
    parts.remove("alpha");
    let delta = Oft { r, shared: count == 1, transform: Transform::Neumann(TERMS), limit: None, inverse: false };
    Ok(Delta::Orthogonal(Orthogonal::Oft(delta)))
}

/// Not written: the settings of others' OFT have no words here.
fn write(_: &Delta) -> Result<Option<Written>> {
    Ok(None)
}

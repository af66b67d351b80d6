//! Diag-OFT and BOFT on the outputs. Here `alpha` is the constraint and no scale.

use super::super::keys::Parts;
use super::{Kind, Written, need};
use crate::adapter::Delta;
use crate::adapter::delta::Orthogonal;
use crate::adapter::delta::orthogonal::Outputs;
use crate::adapter::delta::orthogonal::outputs::Stored;
use crate::error::{Error, Result};

pub const KIND: Kind = Kind { marks: &["oft_blocks", "oft_diag"], read, write };

fn read(parts: &mut Parts) -> Result<Delta> {
    let (blocks, stored) = match parts.remove("oft_diag") {
        Some(blocks) => (blocks, Stored::Rotation),
        None => (need(parts, "oft_blocks")?, Stored::Skew),
    };
    let &[.., height, width] = blocks.shape.dims() else {
        return Err(Error::mismatch(format!("rotation {}, expected blocks", blocks.shape)));
    };
    if height != width || !matches!(blocks.shape.rank(), 3 | 4) {
        return Err(Error::mismatch(format!("rotation {}, expected square blocks", blocks.shape)));
    }
    let (constraint, rescale) = (parts.remove("alpha"), parts.remove("rescale"));
    Ok(Delta::Orthogonal(Orthogonal::Outputs(Outputs { blocks, stored, constraint, rescale })))
}

fn write(delta: &Delta) -> Result<Option<Written>> {
    let Delta::Orthogonal(Orthogonal::Outputs(d)) = delta else { return Ok(None) };
    let blocks = if d.stored == Stored::Rotation { "oft_diag" } else { "oft_blocks" };
    let mut out = Written::of([(blocks, &d.blocks)]);
    let others = [("alpha", &d.constraint), ("rescale", &d.rescale)];
    out.tensors.extend(others.into_iter().filter_map(|(suffix, tensor)| Some((suffix, tensor.clone()?))));
    Ok(Some(out))
}

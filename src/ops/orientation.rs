//! Which way round a tensor of the base lies against the changes that an adapter has for it.

use crate::adapter::delta::{Delta, LowRank, low_rank::Facing};
use crate::adapter::{Adapter, SiteKind, Target};
use crate::error::{Error, Result};
use crate::model::{BaseModel, conv1d};
use crate::names::ModulePath;
use crate::tensor::Shape;

/// Whether the stored tensor is the transpose of what the deltas of the adapter's target at `path` are written for.
pub fn is_transposed(base: &BaseModel, adapter: &Adapter, path: &ModulePath, stored: &Shape) -> Result<bool> {
    let Some(target) = adapter.targets.get(path) else { return Ok(false) };
    match target.site {
        SiteKind::Embedding => Ok(true),
        SiteKind::Parameter => parameter(base, adapter, (path, target), stored),
        SiteKind::Layer | SiteKind::FanInFanOut => {
            if stored.rank() != 2 {
                return Ok(false);
            }
            if let Some(known) = conv1d::stores_in_out(base, path) {
                return Ok(known);
            }
            let says = target.site == SiteKind::FanInFanOut;
            Ok(says && target.weight.iter().all(|d| fits(d, stored, true)))
        }
    }
}

/// PEFT's reading of a parameter `[d1, d2]` or `[experts, d1, d2]`, which changed twice: shapes decide, then a sibling
/// whose shape is clear, then the version that wrote the file.
fn parameter(
    base: &BaseModel,
    adapter: &Adapter,
    (path, target): (&ModulePath, &Target),
    stored: &Shape,
) -> Result<bool> {
    let Some(delta) = target.weight.iter().find_map(low_rank) else { return Ok(false) };
    if let Some(clear) = clear_facing(delta, stored) {
        return Ok(clear);
    }
    // A matrix by itself is taken as a linear layer's weight.
    let Some(experts) = delta.experts.filter(|_| stored.rank() == 3) else { return Ok(false) };
    if let Some(sibling) = sibling(base, adapter, path) {
        return Ok(sibling);
    }
    let in_out = conv1d::experts_in_out(base);
    match experts.facing {
        Facing::First => Ok(true),
        Facing::FirstUnlessTransposed => Ok(!in_out),
        Facing::Input => Ok(in_out),
        Facing::Unknown => {
            Err(Error::mismatch(format!("the base parameter {stored} is square, and nothing says which axis A faces"))
                .at_key(path.as_str())
                .hint("add the peft_version that wrote the adapter to a copy of its config"))
        }
    }
}

/// The decision for another parameter of the same module, turned by how their roles face each other: `[in, out]`
/// against `[out, in]` is a property of the whole module.
fn sibling(base: &BaseModel, adapter: &Adapter, path: &ModulePath) -> Option<bool> {
    let parent = path.parent()?;
    adapter.targets.iter().filter(|(p, _)| *p != path && p.parent().as_ref() == Some(&parent)).find_map(|(p, t)| {
        let delta = t.weight.iter().find_map(low_rank)?;
        let shape = Shape::new(base.names.find(p.as_str())?.memory_shape);
        clear_facing(delta, &shape)
    })
}

fn low_rank(delta: &Delta) -> Option<&LowRank> {
    match delta {
        Delta::LowRank(d) => Some(d),
        _ => None,
    }
}

/// Whether the product has to be transposed to fit, where only one way fits.
fn clear_facing(delta: &LowRank, stored: &Shape) -> Option<bool> {
    let (out, inputs) = (*delta.b.shape.dims().first()?, *delta.a.shape.dims().get(1)?);
    let [.., d1, d2] = *stored.dims() else { return None };
    match ((out, inputs) == (d1, d2), (inputs, out) == (d1, d2)) {
        (true, false) => Some(false),
        (false, true) => Some(true),
        _ => None,
    }
}

/// Whether a delta's matrix fits the stored one this way round; unknown kinds are taken at their word.
fn fits(delta: &Delta, stored: &Shape, transposed: bool) -> bool {
    let Some(d) = low_rank(delta) else { return true };
    clear_facing(d, stored).is_none_or(|clear| clear == transposed)
}

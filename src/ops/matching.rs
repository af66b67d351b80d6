//! Whether an adapter can be for a base, by names and shapes alone: no weight is read.

use crate::adapter::{Adapter, Delta, Note, SiteKind, Target};
use crate::error::{Error, Result};
use crate::model::{BaseModel, conv1d, embedding};
use crate::names::{Found, ModulePath};

/// An error where none of the modules is in the base, or the factors of one have other sizes than its weight; a lossy
/// note for those that are not in the base, where others are. Of a quantised base the shapes say nothing.
pub fn check(adapter: &Adapter, base: &BaseModel) -> Result<Vec<Note>> {
    let mut nowhere = Vec::new();
    let mut asked = 0;
    for (path, target) in
        adapter.targets.iter().filter(|(path, target)| is_low_rank(target) && !path.as_str().is_empty())
    {
        asked += 1;
        match find(path, target, base) {
            // An output that is tied to its embedding has no tensor.
            None if embedding::is_output(path.as_str()) => {}
            None => nowhere.push(path),
            Some(found) if base.closed_by().is_none() => sizes(path, target, &found.memory_shape, base)?,
            Some(_) => {}
        }
    }
    let Some(first) = nowhere.first() else { return Ok(Vec::new()) };
    if base.closed_by().is_some() {
        return Ok(Vec::new()); // its tensors have other names
    }
    let nearest = base.names.nearest(&first.tensor("weight"));
    let nearest = nearest.map_or_else(String::new, |n| format!("; the nearest key is `{n}`"));
    if nowhere.len() == asked {
        let what = format!("this and all other modules match nothing in the base {}{nearest}", base.path.display());
        return Err(Error::missing(what)
            .at_key(first.as_str())
            .hint("is this the base model the adapter was trained on? --retarget base looks for the same layers"));
    }
    let text = format!("{} of {asked} modules match nothing in the base: this is the first{nearest}", nowhere.len());
    Ok(vec![Note::lossy(first.as_str(), text)])
}

/// Whether the base has this module in the size that its factors are for.
pub fn fits(path: &ModulePath, target: &Target, base: &BaseModel) -> bool {
    find(path, target, base).is_some_and(|found| sizes(path, target, &found.memory_shape, base).is_ok())
}

/// The weight of a module in the base.
fn find(path: &ModulePath, target: &Target, base: &BaseModel) -> Option<Found> {
    if target.is_parameter() {
        return base.names.find(path.as_str());
    }
    // The second is that of attention in torch, of which the module has one for query, key and value.
    [path.tensor("weight"), path.tensor("in_proj_weight")].iter().find_map(|name| base.names.find(name))
}

fn is_low_rank(target: &Target) -> bool {
    target.weight.iter().any(|delta| matches!(delta, Delta::LowRank(_)))
}

/// An error unless the factors fit the weight one way round.
fn sizes(path: &ModulePath, target: &Target, stored: &[usize], base: &BaseModel) -> Result<()> {
    for delta in &target.weight {
        let Delta::LowRank(d) = delta else { continue };
        let (outputs, inputs) = (d.b.shape.dims().first().copied(), d.a.shape.dims().get(1).copied());
        let fits = match (stored, target.site) {
            (&[d1, d2] | &[_, d1, d2], SiteKind::Parameter | SiteKind::FanInFanOut | SiteKind::Embedding) => {
                (outputs, inputs) == (Some(d1), Some(d2)) || (outputs, inputs) == (Some(d2), Some(d1))
            }
            (&[d1, d2], SiteKind::Layer) => {
                let in_out = conv1d::stores_in_out(base, path) == Some(true);
                (outputs, inputs) == if in_out { (Some(d2), Some(d1)) } else { (Some(d1), Some(d2)) }
            }
            // Kernels are looked at by whoever applies them.
            _ => true,
        };
        if !fits {
            let what = format!("A {} and B {} for a weight {stored:?} of the base", d.a.shape, d.b.shape);
            let error = Error::mismatch(what).at_key(path.as_str());
            return Err(error.hint("is this the base model the adapter was trained on?"));
        }
    }
    Ok(())
}

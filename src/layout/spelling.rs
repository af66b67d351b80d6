//! Which family of image models an adapter is for, by the names of its modules and the sizes of its factors.

use crate::adapter::{Adapter, Delta, Note, Spelling, Target};
use crate::names::diffusion::{self, Candidate, Naming, Seen};
use crate::tensor::Tensor;

/// Least share of modules that have to be a family's.
const LEAST: f64 = 0.5;

/// The likeliest family of modules of these names, given with the shapes of their weights, and a remark where they could
/// be of others. Models of sizes of their own are known by their names.
pub fn family(names: &[(String, Option<Vec<u64>>)], wanted: Option<Naming>) -> Option<(Candidate, Option<Note>)> {
    let detect = |with_shapes: bool| {
        let seen: Vec<Seen> =
            names.iter().map(|(path, shape)| Seen { path, shape: shape.as_deref().filter(|_| with_shapes) }).collect();
        let mut found = diffusion::detect(&seen);
        found.retain(|c| c.score > LEAST && wanted.is_none_or(|naming| c.naming == naming));
        found
    };
    let mut found = detect(true);
    if found.is_empty() {
        found = detect(false);
    }
    let first = found.first()?.clone();
    let others: Vec<_> = found.iter().skip(1).filter(|c| c.score >= first.score).map(|c| c.family.name).collect();
    let text = || {
        let name = first.family.name;
        format!("taken for an adapter of {name}; by its modules it could be for {} as well", others.join(", "))
    };
    let note = (!others.is_empty()).then(|| Note::info("", text()));
    Some((first, note))
}

/// Recognises the family of an adapter whose denoiser has names of this sort.
pub fn recognise(adapter: &mut Adapter, naming: Naming) -> Option<Note> {
    let names: Vec<_> = adapter.targets.iter().map(|(path, target)| (path.to_string(), shape(target))).collect();
    let (found, note) = family(&names, Some(naming))?;
    adapter.spelling = Some(Spelling::of(&found, naming));
    note
}

/// The shape of the weight that a change is for, where its tensors tell all of it.
pub fn shape(target: &Target) -> Option<Vec<u64>> {
    let rows = |tensor: &Tensor| tensor.shape.dims().first().copied();
    let dims = match target.weight.first()? {
        Delta::LowRank(d) if d.experts.is_none() => {
            std::iter::once(rows(&d.b)?).chain(d.a.shape.dims().iter().skip(1).copied()).collect()
        }
        Delta::Tucker(d) => {
            let inputs = d.down.shape.dims().get(1).copied();
            std::iter::once(rows(&d.up)?).chain(inputs).chain(d.core.shape.dims().iter().skip(2).copied()).collect()
        }
        Delta::Full(d) => d.tensor.shape.dims().to_vec(),
        // Of products the kernel is not seen.
        _ => return None,
    };
    Some(dims.into_iter().map(|n: usize| n as u64).collect())
}

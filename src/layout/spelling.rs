//! Which family of image models an adapter is for, by the names of its modules and the sizes of its factors.

use crate::adapter::{Adapter, Delta, Note, Spelling, Target};
use crate::names::diffusion::{self, Naming, Seen};

/// Recognises the family of an adapter whose denoiser has names of this sort; where several would fit, the likeliest one is
/// taken, with a note that says which.
pub fn recognise(adapter: &mut Adapter, naming: Naming) -> Option<Note> {
    let shapes: Vec<(String, Option<Vec<u64>>)> =
        adapter.targets.iter().map(|(path, target)| (path.to_string(), shape(target))).collect();
    let seen: Vec<Seen> = shapes.iter().map(|(path, shape)| Seen { path, shape: shape.as_deref() }).collect();
    let found: Vec<_> = diffusion::detect(&seen).into_iter().filter(|c| c.naming == naming).collect();
    let first = found.first().filter(|c| c.score > 0.5)?;
    adapter.spelling = Some(Spelling { family: first.family.name, naming });
    let others: Vec<_> = found.iter().skip(1).filter(|c| c.score >= first.score).map(|c| c.family.name).collect();
    if others.is_empty() {
        return None;
    }
    let text = format!(
        "taken for an adapter of {}; by its modules it could be for {} as well",
        first.family.name,
        others.join(", ")
    );
    Some(Note::info("", text))
}

/// The shape of the weight, where the factors tell all of it.
fn shape(target: &Target) -> Option<Vec<u64>> {
    let Some(Delta::LowRank(d)) = target.weight.first() else { return None };
    let outputs = *d.b.shape.dims().first()?;
    let inputs = d.a.shape.dims().get(1..)?;
    Some(std::iter::once(outputs).chain(inputs.iter().copied()).map(|n| n as u64).collect())
}

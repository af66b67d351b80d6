//! Which family of image models a base is of, and its other names.

use super::BaseModel;
use crate::names::diffusion::{self, Candidate, Container, Family, Naming, Seen};
use crate::names::{Found, Spelt};

/// Least share of a base's modules that are its family's.
const LEAST: f64 = 0.5;

/// The family of a base whose denoiser is known, by the names and sizes of all it has; and whose names those are.
pub(super) fn of(base: &BaseModel) -> Option<(Candidate, Naming)> {
    let naming = base.naming()?;
    let listing = base.names.memory();
    // Of a pipeline what takes the noise away tells; its text encoders are those of other families as well.
    let denoiser = base.denoiser().map(|component| component.name.as_str());
    let is_asked = |name: &str| base.pipeline.is_none() || base.component_of(name).map(|c| c.name.as_str()) == denoiser;
    let weight = |(name, found): &(String, Found)| {
        let shape: Vec<u64> = found.memory_shape.iter().map(|n| *n as u64).collect();
        Some((name.strip_suffix(".weight")?.to_string(), shape))
    };
    let weights: Vec<_> = listing.tensors.iter().filter(|(name, _)| is_asked(name)).filter_map(weight).collect();
    let seen = |with_shapes: bool| -> Vec<Seen<'_>> {
        weights.iter().map(|(path, shape)| Seen { path, shape: with_shapes.then_some(shape) }).collect()
    };
    let first = |with_shapes| {
        let alike = |c: &Candidate| c.family.denoiser().is_some_and(|part| part.alike(c.naming, naming));
        let found = diffusion::detect(&seen(with_shapes));
        let mut likely = found.into_iter().filter(|c| alike(c) && c.score > LEAST);
        let first = likely.next()?;
        if has_encoders(base, first.family) {
            Some(first)
        } else {
            likely.find(|c| has_encoders(base, c.family)).or(Some(first))
        }
    };
    // Models of sizes of their own are known by their names.
    first(true).or_else(|| first(false)).map(|found| (found, naming))
}

/// Whether models of this family have all text encoders that a pipeline has.
fn has_encoders(base: &BaseModel, family: &Family) -> bool {
    let has =
        |name: &str| family.parts.iter().any(|part| part.homes(Container::Diffusers).any(|home| home.prefix == name));
    let encoders = base.components().iter().filter(|c| c.has_tensors && c.name.starts_with("text_encoder"));
    encoders.into_iter().all(|component| has(&component.name))
}

/// The names that its denoiser has in the other naming.
pub(super) fn names(base: &BaseModel, (found, naming): &(Candidate, Naming)) -> Option<Spelt> {
    let part = found.family.denoiser()?;
    let component = part.homes(Container::Diffusers).next()?.prefix;
    let extents = match found.variants.as_slice() {
        [one, others @ ..] if others.iter().all(|other| other.extents == one.extents) => one.extents,
        _ => &[],
    };
    let prefix = match base.denoiser() {
        Some(_) => String::new(),
        None => format!("{component}."),
    };
    Some(Spelt { prefix, part, naming: *naming, extents })
}

//! The modules of an image model's denoiser by other names: those of its authors, or those of diffusers.
//!
//! Where one naming has a projection whole and the other in parts, changes are taken apart and put together as for any
//! other projection; where the halves of the rows have changed places, so do those of B.

use std::collections::BTreeMap;

use crate::adapter::fused::{self, Part};
use crate::adapter::{Adapter, Note, Spelling, Target};
use crate::error::{Context, Error, Result};
use crate::model::BaseModel;
use crate::names::diffusion::{self, Candidate, Container, Family, Naming, Order, Ratio, Rows, Seen};
use crate::names::{Found, ModulePath};

/// What a module becomes a part of.
struct Whole {
    of: Ratio,
    order: Order,
    parts: BTreeMap<usize, (ModulePath, Target)>,
}

/// Least share of a base's modules that are its family's.
const LEAST: f64 = 0.5;

/// The family of a base whose denoiser is known, by the names and sizes of all it has.
pub fn of_base(base: &BaseModel) -> Option<Spelling> {
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
    first(true).or_else(|| first(false)).map(|found| Spelling::of(&found, naming))
}

/// Whether models of this family have all text encoders that a pipeline has.
fn has_encoders(base: &BaseModel, family: &Family) -> bool {
    let has =
        |name: &str| family.parts.iter().any(|part| part.homes(Container::Diffusers).any(|home| home.prefix == name));
    let encoders = base.components().iter().filter(|c| c.has_tensors && c.name.starts_with("text_encoder"));
    encoders.into_iter().all(|component| has(&component.name))
}

/// Takes the family of the base for the adapter's, where all its modules can be of it: an adapter of attention alone can
/// be for one of many, and what it was taken for is the likeliest of them. A note says so where it is another one.
pub fn settle_family(adapter: &mut Adapter, base: &BaseModel) -> Option<Note> {
    let (own, of_base) = (adapter.spelling?, of_base(base)?);
    let part = diffusion::family(of_base.family).and_then(Family::denoiser)?;
    let prefix = prefix(part);
    let knows = |path: &ModulePath| {
        let inner = path.as_str().strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.'));
        inner.is_none_or(|inner| part.translate(own.naming, own.naming, inner, of_base.extents).is_some())
    };
    if !adapter.targets.keys().all(knows) {
        return None;
    }
    adapter.spelling = Some(Spelling { naming: own.naming, ..of_base });
    let family = of_base.family;
    (family != own.family)
        .then(|| Note::info("", format!("the base is of {family}, and so the adapter is taken for one")))
}

/// The word before the modules of a denoiser in memory.
fn prefix(part: &'static diffusion::Part) -> &'static str {
    part.homes(Container::Diffusers).next().map_or("transformer", |home| home.prefix)
}

/// The adapter with its denoiser's modules in this naming, and what that took. One that says nothing of its naming is none
/// of an image model and stays as it is.
pub fn spell(adapter: &Adapter, to: Naming) -> Result<(Adapter, Vec<Note>)> {
    let Some(spelling) = adapter.spelling.filter(|spelling| spelling.naming != to) else {
        return Ok((adapter.clone(), Vec::new()));
    };
    let part = diffusion::family(spelling.family).and_then(Family::denoiser);
    let Some(part) = part else { return Ok((adapter.clone(), Vec::new())) };
    let prefix = prefix(part);
    let mut out =
        Adapter { targets: BTreeMap::new(), spelling: Some(Spelling { naming: to, ..spelling }), ..adapter.clone() };
    let mut wholes: BTreeMap<String, Whole> = BTreeMap::new();
    let (mut split, mut unknown, mut grown) = (0, Vec::new(), Vec::new());
    for (path, target) in &adapter.targets {
        let inner = path.as_str().strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.'));
        let Some(inner) = inner else {
            out.targets.insert(path.clone(), target.clone());
            continue;
        };
        let Some(targets) = part.translate(spelling.naming, to, inner, spelling.extents) else {
            unknown.push(path.clone());
            out.targets.insert(path.clone(), target.clone());
            continue;
        };
        let named = |inner: &str| format!("{prefix}.{inner}");
        match targets.as_slice() {
            [one] => match (one.take, one.put) {
                (Rows::Whole, Rows::Whole) => {
                    let target = ordered(target, one.order).at_key(path.as_str())?;
                    put(&mut out, &named(&one.path), target)?;
                }
                (Rows::Whole, Rows::Part { number, of }) => {
                    let empty = || Whole { of, order: one.order, parts: BTreeMap::new() };
                    let whole = wholes.entry(named(&one.path)).or_insert_with(empty);
                    whole.parts.insert(number, (path.clone(), target.clone()));
                }
                _ => return Err(Error::unsupported("rows of a module alone").at_key(path.as_str())),
            },
            several => {
                let total =
                    fused::outputs(target).ok_or_else(|| fused::not_the_rows_of(target)).at_key(path.as_str())?;
                let mut rows = Vec::with_capacity(several.len());
                for one in several {
                    let range = one.take.range(total as u64);
                    let range = range
                        .ok_or_else(|| Error::mismatch(format!("{total} outputs, not those of {}", several.len())));
                    let range = range.at_key(path.as_str())?;
                    rows.push((range.start as usize..range.end as usize).collect::<Vec<_>>());
                }
                for (one, own) in several.iter().zip(fused::split(target, &rows).at_key(path.as_str())?) {
                    if !fused::does_nothing(&own) || fused::does_nothing(target) {
                        put(&mut out, &named(&one.path), ordered(&own, one.order)?)?;
                    }
                }
                split += 1;
            }
        }
    }
    let fused = wholes.values().map(|whole| whole.parts.len()).sum::<usize>();
    for (path, whole) in wholes {
        let (target, more) = together(&whole).at_key(&path)?;
        if more {
            grown.push(path.clone());
        }
        put(&mut out, &path, target)?;
    }
    Ok((out, notes(split, fused, &unknown, &grown)))
}

fn notes(split: usize, fused: usize, unknown: &[ModulePath], grown: &[String]) -> Vec<Note> {
    let mut notes = Vec::new();
    if split > 0 {
        notes.push(Note::info("", format!("{split} modules taken apart, as the other naming has them")));
    }
    if fused > 0 {
        notes.push(Note::info("", format!("{fused} modules put together, as the other naming has them")));
    }
    if let Some(first) = grown.first() {
        let text = format!(
            "parts with an A of their own make the rank of the whole their sum, in {} modules; `lora-tool resize` makes it \
             smaller",
            grown.len()
        );
        notes.push(Note::info(first, text));
    }
    if let Some(first) = unknown.first() {
        let text = format!(
            "{} modules have no other name that is known here, and keep theirs; this is the first",
            unknown.len()
        );
        notes.push(Note::lossy(first.as_str(), text));
    }
    notes
}

fn put(out: &mut Adapter, path: &str, target: Target) -> Result<()> {
    match out.targets.insert(path.into(), target) {
        None => Ok(()),
        Some(_) => Err(Error::unsupported("two modules of the adapter are one in the other naming").at_key(path)),
    }
}

/// The target with its rows in the other order.
fn ordered(target: &Target, order: Order) -> Result<Target> {
    match order {
        Order::Same => Ok(target.clone()),
        Order::SwapHalves => fused::swap_halves(target),
        Order::Transposed => Err(Error::unsupported("a weight that lies transposed in the other naming")),
    }
}

/// All parts of a whole; those that are not adapted have rows of zeros.
fn together(whole: &Whole) -> Result<(Target, bool)> {
    let known =
        whole.parts.iter().find_map(|(number, (_, target))| whole.of.total(*number, fused::outputs(target)? as u64));
    let total = known.ok_or_else(|| Error::unsupported("changes of parts whose outputs are not told apart"))?;
    let ranges =
        whole.of.ranges(total).ok_or_else(|| Error::mismatch(format!("{total} outputs in all, not those of parts")))?;
    let mut parts = Vec::with_capacity(ranges.len());
    for (number, range) in ranges.iter().enumerate() {
        let target = whole.parts.get(&number).map(|(_, target)| target);
        parts.push(Part { target, rows: (range.end - range.start) as usize });
    }
    let (target, grown) = fused::fuse(&parts)?;
    Ok((ordered(&target, whole.order)?, grown))
}

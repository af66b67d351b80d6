//! The modules of an image model's denoiser by other names: those of its authors, or those of diffusers.
//!
//! Where one naming has a projection whole and the other in parts, changes are taken apart and put together as for any
//! other projection; where the halves of the rows have changed places, so do those of B.

use std::collections::BTreeMap;

use crate::adapter::fused::{self, Part};
use crate::adapter::{Adapter, Along, Delta, Note, SiteKind, Spelling, Target};
use crate::error::{Context, Error, Result};
use crate::model::BaseModel;
use crate::names::ModulePath;
use crate::names::diffusion::{self, Container, Family, Naming, Order, Ratio, Rows};

/// What a module becomes a part of.
struct Whole {
    of: Ratio,
    order: Order,
    parts: BTreeMap<usize, (ModulePath, Target)>,
}

/// The family of a base whose denoiser is known.
pub fn of_base(base: &BaseModel) -> Option<Spelling> {
    base.family().map(|(found, naming)| Spelling::of(found, *naming))
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
    spell_but(adapter, to, &|_| false)
}

/// The same for a base. What can be neither taken apart nor put together keeps its name where the base knows that, too.
pub fn spell_for(adapter: &Adapter, to: Naming, base: &BaseModel) -> Result<(Adapter, Vec<Note>)> {
    spell_but(adapter, to, &|path| base.names.find(&path.tensor("weight")).is_some())
}

fn spell_but(adapter: &Adapter, to: Naming, may_stay: &dyn Fn(&ModulePath) -> bool) -> Result<(Adapter, Vec<Note>)> {
    let Some(spelling) = adapter.spelling.filter(|spelling| spelling.naming != to) else {
        return Ok((adapter.clone(), Vec::new()));
    };
    let part = diffusion::family(spelling.family).and_then(Family::denoiser);
    let Some(part) = part else { return Ok((adapter.clone(), Vec::new())) };
    let prefix = prefix(part);
    let mut out =
        Adapter { targets: BTreeMap::new(), spelling: Some(Spelling { naming: to, ..spelling }), ..adapter.clone() };
    let mut wholes: BTreeMap<String, Whole> = BTreeMap::new();
    let (mut split, mut stay, mut unknown, mut grown) = (0, 0, Vec::new(), Vec::new());
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
            several if !(is_by_rows(target) && has_rows_of(target, several)) && may_stay(path) => {
                put(&mut out, path.as_str(), target.clone())?;
                stay += 1;
            }
            several => {
                let total =
                    fused::outputs(target).ok_or_else(|| fused::not_the_rows_of(target)).at_key(path.as_str())?;
                let mut rows = Vec::with_capacity(several.len());
                for one in several {
                    let range = one.take.range(total as u64);
                    let what =
                        || format!("{total} outputs, which do not part into {} as the model has them", several.len());
                    let range = range.ok_or_else(|| Error::mismatch(what())).at_key(path.as_str())?;
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
    let mut fused = 0;
    for (path, whole) in wholes {
        let done = together(&whole).at_key(&path);
        if done.is_err() && whole.parts.values().all(|(own, _)| may_stay(own)) {
            stay += whole.parts.len();
            for (own, target) in whole.parts.into_values() {
                put(&mut out, own.as_str(), target)?;
            }
            continue;
        }
        fused += whole.parts.len();
        let (target, more) = done?;
        if more {
            grown.push(path.clone());
        }
        put(&mut out, &path, target)?;
    }
    let mut notes = notes(split, fused, &unknown, &grown);
    if stay > 0 {
        let text =
            format!("{stay} modules of kinds that are not taken apart or put together reach their rows as they are");
        notes.push(Note::info("", text));
    }
    Ok((out, notes))
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

/// Whether a change can be taken apart by rows.
fn is_by_rows(target: &Target) -> bool {
    let plain = |delta: &Delta| match delta {
        Delta::LowRank(d) => d.experts.is_none(),
        Delta::Full(_) => target.site == SiteKind::Layer,
        _ => false,
    };
    target.weight.iter().chain(&target.bias).all(plain) && target.magnitude_along == Along::Rows
}

/// Whether a change has as many rows as come apart into these.
fn has_rows_of(target: &Target, parts: &[diffusion::Target]) -> bool {
    let total = fused::outputs(target).map(|rows| rows as u64);
    total.is_some_and(|total| parts.iter().all(|part| part.take.range(total).is_some()))
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

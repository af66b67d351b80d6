//! Query, key and value, gate and up: as one module or several.

use std::collections::BTreeMap;

use super::{Form, Work};
use crate::adapter::facts::LATENT;
use crate::adapter::fused::{self, Part};
use crate::adapter::{Delta, SiteKind, Target};
use crate::error::{Context, Error, Result};
use crate::names::ModulePath;
use crate::names::fused::{FUSIONS, Fusion, Sizes, of_part, of_whole};

/// Takes whole projections apart.
pub fn split(work: &mut Work) -> Result<()> {
    let wholes: Vec<_> =
        work.adapter.targets.keys().filter_map(|path| Some((path.clone(), whole(work, path)?))).collect();
    for (path, fusion) in wholes {
        let Some(target) = work.adapter.targets.get(&path).cloned() else { continue };
        let sizes = sizes(work, &path, fusion, outputs(&target)).at_key(path.as_str())?;
        let mut next = 0;
        let mut rows = Vec::with_capacity(sizes.len());
        for size in sizes {
            rows.push((next..next + size).collect::<Vec<_>>());
            next += size;
        }
        let parts = fused::split(&target, &rows).at_key(path.as_str())?;
        work.adapter.targets.remove(&path);
        let changed = parts.iter().filter(|part| !fused::does_nothing(part)).count();
        let parent = path.parent().unwrap_or_default();
        for (name, part) in fusion.parts.iter().zip(parts) {
            // A part of which the whole says nothing is no target of its own.
            if changed == 0 || !fused::does_nothing(&part) {
                work.put(parent.join(name).as_str(), part)?;
            }
        }
        work.counts.split += 1;
    }
    Ok(())
}

/// The projection a module is the whole of, where it is to be taken apart.
fn whole(work: &Work, path: &ModulePath) -> Option<&'static Fusion> {
    let fusion = of_whole(path.leaf())?;
    let target = work.adapter.targets.get(path)?;
    if target.is_parameter() {
        return None;
    }
    let parent = path.parent().unwrap_or_default();
    let wanted = match work.form {
        Form::Split => true,
        Form::Fused => false,
        Form::Base => {
            !work.knows(path.as_str()) && fusion.parts.iter().all(|part| work.knows(parent.join(part).as_str()))
        }
    };
    wanted.then_some(fusion)
}

/// Outputs of what a target changes.
fn outputs(target: &Target) -> Option<usize> {
    let of = |delta: &Delta| match delta {
        Delta::LowRank(d) if d.experts.is_none() => Some(d.b.shape.matrix().0),
        Delta::Full(d) if target.site == SiteKind::Layer => d.tensor.shape.dims().first().copied(),
        _ => None,
    };
    target.weight.iter().chain(&target.bias).find_map(of)
}

/// Rows of each part of a whole with this many outputs.
fn sizes(work: &Work, path: &ModulePath, fusion: &Fusion, outputs: Option<usize>) -> Result<Vec<usize>> {
    let parent = path.parent().unwrap_or_default();
    let of_base: Option<Vec<_>> = fusion.parts.iter().map(|part| work.rows(parent.join(part).as_str())).collect();
    if let Some(sizes) = of_base {
        return Ok(sizes);
    }
    let outputs = outputs.ok_or_else(|| Error::unsupported("a change whose outputs are not told apart"))?;
    if fusion.sizes == Sizes::Equal {
        let count = fusion.parts.len();
        if outputs % count != 0 {
            return Err(Error::mismatch(format!("{outputs} outputs, which are not {count} equal parts")));
        }
        return Ok(vec![outputs / count; count]);
    }
    let rows = work.facts.attention_rows().ok_or_else(heads_unknown)?;
    if rows.iter().sum::<usize>() != outputs {
        let what = format!("{outputs} outputs, and by the config of the base query, key and value have {rows:?}");
        return Err(Error::mismatch(what));
    }
    Ok(rows.to_vec())
}

fn heads_unknown() -> Error {
    Error::missing("how many rows query, key and value have is not known")
        .hint("--base names the base model, whose config says how many heads there are")
}

/// Puts parts together.
pub fn fuse(work: &mut Work) -> Result<()> {
    let mut groups: BTreeMap<(ModulePath, &'static str), &'static Fusion> = BTreeMap::new();
    for (path, target) in &work.adapter.targets {
        if target.is_parameter() {
            continue;
        }
        if let Some(fusion) = wanted(work, path) {
            groups.insert((path.parent().unwrap_or_default(), fusion.whole), fusion);
        }
    }
    for ((parent, _), fusion) in groups {
        let path = parent.join(fusion.whole);
        let target = together(work, &parent, fusion).at_key(path.as_str())?;
        work.put(path.as_str(), target)?;
    }
    Ok(())
}

/// The projection that a module is to become a part of.
fn wanted(work: &Work, path: &ModulePath) -> Option<&'static Fusion> {
    let usual = of_part(path.leaf())?;
    let parent = path.parent().unwrap_or_default();
    let of_base = || {
        let has = |f: &&Fusion| f.parts == usual.parts && work.knows(parent.join(f.whole).as_str());
        FUSIONS.iter().find(has)
    };
    match work.form {
        Form::Split => None,
        Form::Base if work.knows(path.as_str()) => None,
        Form::Base => of_base(),
        // An expert's are put together with the experts.
        Form::Fused if parent.components().rev().nth(1).is_some_and(|c| c == "experts") => None,
        Form::Fused if path.leaf() == "q_proj" && has_latent_keys(work, &parent) => None,
        Form::Fused => of_base().or(Some(usual)),
    }
}

fn has_latent_keys(work: &Work, parent: &ModulePath) -> bool {
    let is_there = |path: ModulePath| work.adapter.targets.contains_key(&path) || work.knows(path.as_str());
    work.facts.has_latent_keys() || LATENT.iter().any(|leaf| is_there(parent.join(leaf)))
}

fn together(work: &mut Work, parent: &ModulePath, fusion: &Fusion) -> Result<Target> {
    let targets: Vec<_> = fusion.parts.iter().map(|part| work.adapter.targets.remove(&parent.join(part))).collect();
    let mut sizes = Vec::with_capacity(targets.len());
    for (number, target) in targets.iter().enumerate() {
        let size = match target {
            Some(target) => {
                outputs(target).ok_or_else(|| Error::unsupported("a change whose outputs are not told apart"))?
            }
            None => missing(work, parent, fusion, number, &targets)?,
        };
        sizes.push(size);
    }
    let parts: Vec<_> =
        targets.iter().zip(&sizes).map(|(target, rows)| Part { target: target.as_ref(), rows: *rows }).collect();
    let (whole, grown) = fused::fuse(&parts)?;
    if grown {
        let rank = |t: &Target| match t.weight.first() {
            Some(Delta::LowRank(d)) => d.rank(),
            _ => 0,
        };
        let before = targets.iter().flatten().map(rank).max().unwrap_or(0);
        work.note_growth(parent.join(fusion.whole).as_str(), before, rank(&whole));
    }
    work.counts.fused += targets.iter().flatten().count();
    Ok(whole)
}

/// Rows of a part that is not adapted.
fn missing(
    work: &Work,
    parent: &ModulePath,
    fusion: &Fusion,
    number: usize,
    targets: &[Option<Target>],
) -> Result<usize> {
    let others: Vec<_> = targets.iter().flatten().filter_map(outputs).collect();
    if fusion.sizes == Sizes::Equal {
        return others.first().copied().ok_or_else(heads_unknown);
    }
    if let Some(rows) = work.facts.attention_rows() {
        return Ok(rows[number.min(2)]);
    }
    // The whole's rows less those of the parts that are there, where only one is missing.
    let whole = work.rows(parent.join(fusion.whole).as_str()).ok_or_else(heads_unknown)?;
    let of_key_heads = |n: usize| targets.get(n).and_then(Option::as_ref).and_then(outputs).filter(|_| n > 0);
    match (number, of_key_heads(1).or(of_key_heads(2))) {
        (1 | 2, Some(rows)) => Ok(rows), // keys and values have as many
        _ if others.len() + 1 == targets.len() => {
            let known: usize = others.iter().sum();
            whole.checked_sub(known).ok_or_else(heads_unknown)
        }
        _ => Err(heads_unknown()),
    }
}

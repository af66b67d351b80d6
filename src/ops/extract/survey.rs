//! Which tensors of two models differ, and what becomes of each: found before any product is formed.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

use super::site::{Listed, Place};
use super::view::View;
use crate::adapter::Note;
use crate::error::{Context, Error, Kind, Result};
use crate::model::BaseModel;
use crate::names::Found;
use crate::stream::{Progress, each};
use crate::tensor::Shape;

/// Rows compared at a time where bytes do not tell.
const ROWS: usize = 64;
/// Names shown in an error.
const SHOWN: usize = 5;

/// What is asked of a survey.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only tensors whose name matches.
    pub include: Option<Regex>,
    /// No tensors whose name matches.
    pub exclude: Option<Regex>,
    /// Tensors that only one of the models has are no error.
    pub allow_unmatched: bool,
}

/// A tensor that differs.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Its name in the model in memory.
    pub name: String,
    /// Which part of which module it is.
    pub place: Place,
    /// Where it lies in the base; none where the base has no such tensor.
    pub before: Option<Found>,
    /// Where it lies in the other model.
    pub after: Found,
    /// The rows that differ, where it is an embedding and they are few.
    pub rows: Option<Vec<usize>>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Tensors that differ, in the order of the base.
    pub changed: Vec<Changed>,
    /// Tensors that are the same.
    pub equal: usize,
    /// Tensors that differ and were not asked for.
    pub not_asked: usize,
    /// Remarks.
    pub notes: Vec<Note>,
}

/// Compares every tensor of the two models. `few` is how many rows of an embedding are few, given its rows and columns.
pub fn survey(
    (base, tuned): (&BaseModel, &BaseModel),
    selection: &Selection,
    few: &(dyn Fn(usize, usize) -> usize + Sync),
    threads: usize,
    progress: &dyn Progress,
) -> Result<Survey> {
    let mut out = Survey::default();
    let pairs = pair(base, tuned, selection, &mut out)?;
    let seen = each(pairs.len(), threads, progress, |i| {
        let pair = &pairs[i];
        let difference = compare((base, tuned), pair, few).at_key(&pair.name)?;
        progress.advance(bytes(tuned, &pair.after));
        Ok(difference)
    })?;
    for (pair, difference) in pairs.into_iter().zip(seen) {
        let rows = match difference {
            Differs::No => {
                out.equal += 1;
                continue;
            }
            Differs::InRows(rows) => Some(rows),
            Differs::Yes => None,
        };
        if !is_asked(selection, &pair.name) {
            out.not_asked += 1;
            continue;
        }
        let Pair { name, place, before, after, twin } = pair;
        if twin.is_some() {
            let text = "the base ties it to the input embedding; taken as a change of its own copy of that";
            out.notes.push(Note::info(&name, text));
        }
        out.changed.push(Changed { name, place, before, after, rows });
    }
    Ok(out)
}

/// Bytes on disk of a tensor.
pub fn bytes(model: &BaseModel, found: &Found) -> u64 {
    let elements: usize = found.memory_shape.iter().product();
    let size = found.pieces.first().and_then(|p| model.tensor(&p.key)).map_or(4, |(_, t)| t.dtype.bitsize() / 8);
    (elements * size) as u64
}

fn is_asked(selection: &Selection, name: &str) -> bool {
    selection.include.as_ref().is_none_or(|r| r.is_match(name))
        && !selection.exclude.as_ref().is_some_and(|r| r.is_match(name))
}

struct Pair {
    name: String,
    place: Place,
    before: Option<Found>,
    after: Found,
    /// Where the other model has the same matrix once more, if it is the same.
    twin: Option<Found>,
}

/// The tensors of both by their names in memory.
fn pair(base: &BaseModel, tuned: &BaseModel, selection: &Selection, out: &mut Survey) -> Result<Vec<Pair>> {
    components(base, tuned, selection)?;
    let listed = |model| Listed::new(model).tensors.into_iter();
    let mut after: BTreeMap<String, (Found, Place)> =
        listed(tuned).map(|(name, found, place)| (name, (found, place))).collect();
    let mut pairs = Vec::new();
    let mut missing = Vec::new();
    for (name, found, place) in listed(base) {
        let other = after.remove(&name).map(|(other, _)| other).or_else(|| tied(base, tuned, &found));
        match other {
            Some(other) => pairs.push(Pair { name, place, before: Some(found), after: other, twin: None }),
            None if place.is_buffer() => {}
            None => missing.push(name),
        }
    }
    let asked = |name: &String| is_asked(selection, name);
    missing.retain(asked);
    unmatched(base, tuned, &missing, selection, "only in the base", out)?;
    // What only the other model has: the second copy of a tied embedding, or something new.
    let mut extra = Vec::new();
    for (name, (found, place)) in after {
        match tied(tuned, base, &found) {
            _ if place.is_buffer() => {}
            Some(shared) => {
                let twin = tuned.embeddings().input.and_then(|key| tuned.names.find(&key));
                pairs.push(Pair { name, place, before: Some(shared), after: found, twin });
            }
            None => extra.push((name, place, found)),
        }
    }
    extra.retain(|(name, ..)| asked(name));
    let names: Vec<_> = extra.iter().map(|(name, ..)| name.clone()).collect();
    unmatched(tuned, base, &names, selection, "only in the other model", out)?;
    pairs.extend(extra.into_iter().map(|(name, place, after)| Pair { name, place, before: None, after, twin: None }));
    Ok(pairs)
}

/// An error for a component that only one of two pipelines has, or of which only one has weights that can be read; and for
/// a pipeline beside a model by itself.
fn components(base: &BaseModel, tuned: &BaseModel, selection: &Selection) -> Result<()> {
    if base.pipeline.is_some() != tuned.pipeline.is_some() {
        let word = |model: &BaseModel| if model.pipeline.is_some() { "a pipeline" } else { "a model by itself" };
        let what = format!("this is {}, and {} is {}", word(base), tuned.path.display(), word(tuned));
        return Err(Error::mismatch(what).in_file(&base.path).hint("name the folder of the component"));
    }
    for (one, other) in [(base, tuned), (tuned, base)] {
        let has = |name: &str| other.components().iter().any(|c| c.name == name && c.has_tensors);
        let asked = |name: &str| {
            let tensors =
                one.files.tensors().filter(|(_, key, _)| one.component_of(key).is_some_and(|c| c.name == name));
            tensors.into_iter().any(|(_, key, _)| is_asked(selection, key))
        };
        let mut lacks = one.components().iter().filter(|c| c.has_tensors && !has(&c.name) && asked(&c.name));
        if let Some(component) = lacks.next().filter(|_| !selection.allow_unmatched) {
            let name = &component.name;
            let what = format!("no weights of the component {name}, which {} has", one.path.display());
            let hint = format!("--exclude '^{name}[.]' leaves it out");
            return Err(Error::missing(what).in_file(&other.path).hint(hint));
        }
    }
    Ok(())
}

/// For the output embedding of `one`, which is `found`, where `other` leaves it to the input embedding: that one.
fn tied(one: &BaseModel, other: &BaseModel, found: &Found) -> Option<Found> {
    let (own, theirs) = (one.embeddings(), other.embeddings());
    let is_output = own.output.is_some() && own.output.as_deref() == found.plain();
    let left_out = theirs.tied && theirs.output.is_none();
    if !is_output || !left_out {
        return None;
    }
    other.names.find(&theirs.input?)
}

/// An error for tensors that only one of the models has, or notes where that is allowed.
fn unmatched(
    one: &BaseModel,
    other: &BaseModel,
    names: &[String],
    selection: &Selection,
    which: &str,
    out: &mut Survey,
) -> Result<()> {
    let Some(first) = names.first() else { return Ok(()) };
    if selection.allow_unmatched {
        if which == "only in the base" {
            out.notes.extend(names.iter().map(|name| Note::lossy(name, "only in the base; not in the adapter")));
        }
        return Ok(());
    }
    let shown: Vec<_> = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect();
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    let what = format!("{} tensors are {which}: {}{more}", names.len(), shown.join(", "));
    let nearest = other.names.nearest(first).map_or_else(String::new, |n| format!("the nearest there is `{n}`; "));
    let hint = format!(
        "{nearest}--allow-unmatched keeps what is new and leaves out what is gone, --exclude leaves tensors out by name"
    );
    Err(Error::new(Kind::Missing, what).in_file(&one.path).hint(hint))
}

enum Differs {
    No,
    /// Only in these rows.
    InRows(Vec<usize>),
    Yes,
}

fn compare(
    (base, tuned): (&BaseModel, &BaseModel),
    pair: &Pair,
    few: &(dyn Fn(usize, usize) -> usize + Sync),
) -> Result<Differs> {
    let Some(found) = &pair.before else { return Ok(Differs::Yes) };
    if found.memory_shape != pair.after.memory_shape {
        return reshaped(pair, found).map(|()| Differs::Yes);
    }
    if let Some(twin) = &pair.twin
        && twin.memory_shape == pair.after.memory_shape
        && differing(&View::new(tuned, twin, None)?, &View::new(tuned, &pair.after, None)?, 0)?.is_some()
    {
        return Ok(Differs::No);
    }
    let stack = pair.place.is_stack().then(|| found.memory_shape.first().copied().unwrap_or(0));
    let numbers: Vec<_> = stack.map_or_else(|| vec![None], |count| (0..count).map(Some).collect());
    for expert in numbers {
        let (before, after) = (View::new(base, found, expert)?, View::new(tuned, &pair.after, expert)?);
        let most = if pair.place.is_embedding() { few(before.dim().0, before.dim().1) } else { 0 };
        let rows = differing(&before, &after, most);
        before.release();
        after.release();
        match rows? {
            Some(rows) if rows.is_empty() => {}
            Some(rows) if expert.is_none() && most > 0 => return Ok(Differs::InRows(rows.into_iter().collect())),
            _ => return Ok(Differs::Yes),
        }
    }
    Ok(Differs::No)
}

/// The rows that differ, none where they are more than `most`.
fn differing(before: &View, after: &View, most: usize) -> Result<Option<BTreeSet<usize>>> {
    let (height, width) = before.dim();
    let mut found = BTreeSet::new();
    let same_form =
        before.contiguous().zip(after.contiguous()).filter(|((a, _), (b, _))| a == b && before.is_scaled_like(after));
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for start in (0..height).step_by(ROWS) {
        let rows = start..(start + ROWS).min(height);
        if let Some(((_, a), (_, b))) = same_form {
            let size = a.len() / height.max(1);
            let (a, b) = (&a[rows.start * size..rows.end * size], &b[rows.start * size..rows.end * size]);
            if a != b {
                let each = a.chunks(size.max(1)).zip(b.chunks(size.max(1)));
                found.extend(rows.clone().zip(each).filter(|(_, (a, b))| a != b).map(|(row, _)| row));
            }
        } else {
            left.resize(rows.len() * width, 0.0);
            right.resize(rows.len() * width, 0.0);
            before.read(rows.clone(), &mut left)?;
            after.read(rows.clone(), &mut right)?;
            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let each = left.chunks(width.max(1)).zip(right.chunks(width.max(1)));
            found.extend(rows.clone().zip(each).filter(|(_, (a, b))| bits(a) != bits(b)).map(|(row, _)| row));
        }
        before.release_rows(&rows);
        after.release_rows(&rows);
        if found.len() > most {
            return Ok(None);
        }
    }
    Ok(Some(found))
}

/// Only the number of rows of an embedding may be another one.
fn reshaped(pair: &Pair, before: &Found) -> Result<()> {
    let (old, new) = (before.memory_shape.as_slice(), pair.after.memory_shape.as_slice());
    if pair.place.may_grow() && old.len() == new.len() && old.get(1..) == new.get(1..) {
        return Ok(());
    }
    let what = format!("shape {} against {} in the base", Shape::from(new), Shape::from(old));
    Err(Error::mismatch(what).hint("are these two models of the same kind?"))
}

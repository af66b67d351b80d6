//! Two models: which tensors are in one only, which have another form, and how far the others are apart.
//!
//! Every byte of both is read once, in pieces that are let go afterwards. Pieces with equal bytes are done with then,
//! unless their tensor differs elsewhere: its norm takes another look at them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::elements::{self, Apart};
use super::{Beyond, Tolerance};
use crate::error::{Context, Result};
use crate::model::BaseModel;
use crate::stream::{Progress, each};
use crate::tensor::{Dtype, Scales, Shape, Tensor, cast, dtype};

/// Bytes of one piece.
const PIECE_BYTES: usize = 4 << 20;

/// What two models have between them.
#[derive(Clone, Debug, Default)]
pub struct Models {
    /// Tensors in both.
    pub common: usize,
    /// Bytes of tensors of the first and of the second.
    pub bytes: (u64, u64),
    /// Keys in the first only.
    pub only_first: Vec<String>,
    /// Keys in the second only.
    pub only_second: Vec<String>,
    /// Tensors of another type or shape.
    pub unlike: Vec<Unlike>,
    /// Tensors of the same type and shape with other bytes, the furthest apart first.
    pub differing: Vec<Differing>,
    /// Sums over those.
    pub total: Apart,
}

/// Type and shape of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    /// Element type.
    pub dtype: Dtype,
    /// Extents.
    pub shape: Shape,
}

/// A tensor that has another type or shape in each model.
#[derive(Clone, Debug)]
pub struct Unlike {
    /// Its key.
    pub key: String,
    /// In the first.
    pub first: Form,
    /// In the second.
    pub second: Form,
    /// How far the values are apart, where both are floating-point numbers in one shape. Units in the last place are
    /// not counted.
    pub values: Option<Apart>,
}

/// A tensor with other bytes.
#[derive(Clone, Debug)]
pub struct Differing {
    /// Its key.
    pub key: String,
    /// Its type and shape in both.
    pub form: Form,
    /// How far its elements are apart.
    pub apart: Apart,
}

impl Differing {
    /// ‖A − B‖ / ‖A‖ over the elements; infinite where NaN or infinity is on one side only, or where the elements are
    /// no numbers.
    pub fn relative(&self) -> f64 {
        if elements::has_numbers(self.form.dtype) { relative(&self.apart) } else { f64::INFINITY }
    }

    /// Largest distance in units in the last place; none where there is no saying.
    pub fn max_ulps(&self) -> Option<u64> {
        (elements::has_numbers(self.form.dtype) && self.apart.nan == 0).then_some(self.apart.max_ulps)
    }
}

/// ‖A − B‖ / ‖A‖ of elements that are numbers.
pub fn relative(apart: &Apart) -> f64 {
    if apart.nan > 0 {
        f64::INFINITY
    } else if apart.difference == 0.0 {
        0.0
    } else {
        (apart.difference / apart.first).sqrt()
    }
}

impl Models {
    /// Whether every tensor of one is in the other with the same bytes.
    pub fn is_same(&self) -> bool {
        self.is_alike() && self.differing.is_empty()
    }

    /// Whether keys, types and shapes are those of the other.
    pub fn is_alike(&self) -> bool {
        self.only_first.is_empty() && self.only_second.is_empty() && self.unlike.is_empty()
    }

    /// Tensors with the same bytes in both.
    pub fn equal(&self) -> usize {
        self.common - self.unlike.len() - self.differing.len()
    }

    /// The first thing that lies beyond a tolerance. Another set of keys, another type or another shape lies beyond
    /// every one.
    pub fn beyond(&self, tolerance: Tolerance) -> Option<Beyond> {
        let found = |key: &str, what: String| Some(Beyond { key: key.to_string(), what });
        for (keys, which) in [(&self.only_first, "first"), (&self.only_second, "second")] {
            if let Some(key) = keys.first() {
                return found(key, format!("only in the {which} model{}", more(keys.len())));
            }
        }
        if let Some(u) = self.unlike.first() {
            let form = |f: &Form| format!("{} {}", f.dtype, f.shape);
            let more = more(self.unlike.len());
            return found(&u.key, format!("{} against {}{more}", form(&u.first), form(&u.second)));
        }
        match tolerance {
            Tolerance::Relative(most) => {
                let worst = self.differing.first()?;
                if most == 0.0 {
                    return found(&worst.key, format!("the bytes differ{}", more(self.differing.len())));
                }
                let relative = worst.relative();
                let within = relative <= most; // not so for NaN
                if within { None } else { found(&worst.key, format!("relative difference {relative:.4e}")) }
            }
            Tolerance::Ulps(most) => {
                let distance = |d: &Differing| d.max_ulps().unwrap_or(u64::MAX);
                let worst = self.differing.iter().max_by_key(|d| distance(d))?;
                if distance(worst) <= most {
                    return None;
                }
                let what = worst.max_ulps().map_or("NaN, or no numbers".to_string(), |n| format!("{n} ulps apart"));
                found(&worst.key, what)
            }
        }
    }
}

fn more(count: usize) -> String {
    if count > 1 { format!(", and {} more tensors", count - 1) } else { String::new() }
}

/// A tensor in both models whose elements can be compared.
struct Pair<'a> {
    key: &'a str,
    first: &'a Tensor,
    second: &'a Tensor,
    models: [&'a BaseModel; 2],
}

impl Pair<'_> {
    fn is_alike(&self) -> bool {
        self.first.dtype == self.second.dtype
    }

    /// What the elements of each are multiplied by; none where those of both are the numbers.
    fn scales(&self) -> Result<Option<[Option<Arc<Scales>>; 2]>> {
        let [one, two] = self.models.map(|model| model.scaled().of(self.key).in_file(&model.path));
        let both = [one?, two?];
        Ok(both.iter().any(Option::is_some).then_some(both))
    }
}

/// Some elements of a pair.
struct Piece {
    pair: usize,
    elements: Range<usize>,
}

/// Compares all tensors of two models on `threads` threads.
pub fn compare(first: &BaseModel, second: &BaseModel, threads: usize, progress: &dyn Progress) -> Result<Models> {
    let (a, b) = (by_key(first), by_key(second));
    let bytes = |all: &BTreeMap<&str, &Tensor>| all.values().map(|t| t.bytes.len() as u64).sum();
    let only = |all: &BTreeMap<&str, &Tensor>, other: &BTreeMap<&str, &Tensor>| -> Vec<String> {
        all.keys().filter(|key| !other.contains_key(*key)).map(ToString::to_string).collect()
    };
    let mut out = Models {
        bytes: (bytes(&a), bytes(&b)),
        only_first: only(&a, &b),
        only_second: only(&b, &a),
        ..Models::default()
    };
    let mut pairs = Vec::new();
    for (&key, &one) in &a {
        let Some(&two) = b.get(key) else { continue };
        out.common += 1;
        if one.shape == two.shape && (one.dtype == two.dtype || both_float(one, two)) {
            pairs.push(Pair { key, first: one, second: two, models: [first, second] });
        } else {
            let (first, second) = (form(one), form(two));
            out.unlike.push(Unlike { key: key.to_string(), first, second, values: None });
        }
    }
    let apart = apart(&pairs, threads, progress)?;
    for (pair, apart) in pairs.iter().zip(apart) {
        let key = pair.key.to_string();
        if !pair.is_alike() {
            let (first, second) = (form(pair.first), form(pair.second));
            out.unlike.push(Unlike { key, first, second, values: Some(apart.unwrap_or_default()) });
        } else if let Some(apart) = apart {
            out.total.add(&apart);
            out.differing.push(Differing { key, form: form(pair.first), apart });
        }
    }
    out.unlike.sort_by(|a, b| a.key.cmp(&b.key));
    out.differing.sort_by(|a, b| {
        let by_size = b.relative().total_cmp(&a.relative()).then(b.apart.max_ulps.cmp(&a.apart.max_ulps));
        by_size.then_with(|| a.key.cmp(&b.key))
    });
    first.unchanged()?;
    second.unchanged()?;
    Ok(out)
}

fn by_key(model: &BaseModel) -> BTreeMap<&str, &Tensor> {
    model.files.tensors().map(|(_, key, tensor)| (key.as_str(), tensor)).collect()
}

fn form(tensor: &Tensor) -> Form {
    Form { dtype: tensor.dtype, shape: tensor.shape.clone() }
}

fn both_float(first: &Tensor, second: &Tensor) -> bool {
    dtype::is_float(first.dtype) && dtype::is_float(second.dtype)
}

/// How far each pair is apart; none for equal bytes.
fn apart(pairs: &[Pair], threads: usize, progress: &dyn Progress) -> Result<Vec<Option<Apart>>> {
    let pieces = cut(pairs);
    let found = each(pieces.len(), threads, progress, |i| {
        let pair = &pairs[pieces[i].pair];
        let result = look(pair, &pieces[i]).at_key(pair.key)?;
        progress.advance(of(pair.first, &pieces[i]).len() as u64);
        Ok(result)
    })?;
    let mut out: Vec<Option<Apart>> = vec![None; pairs.len()];
    for (piece, apart) in pieces.iter().zip(&found) {
        if let Some(apart) = apart {
            out[piece.pair].get_or_insert_with(Apart::default).add(apart);
        }
    }
    // The equal pieces of tensors that differ elsewhere: their squares are needed after all.
    let left: Vec<&Piece> = pieces
        .iter()
        .zip(&found)
        .filter(|(p, apart)| apart.is_none() && out[p.pair].is_some())
        .map(|(p, _)| p)
        .collect();
    let squares = each(left.len(), threads, progress, |i| {
        let tensor = pairs[left[i].pair].first;
        let range = of(tensor, left[i]);
        tensor.bytes.fetch(range.clone());
        let stored = &tensor.bytes.as_slice()[range.clone()];
        let squares = match pairs[left[i].pair].scales()? {
            Some([scales, _]) => {
                let values = numbers(tensor.dtype, stored, scales.as_deref(), left[i].elements.start)?;
                values.iter().filter(|v| v.is_finite()).map(|v| v * v).sum()
            }
            None => elements::squares(tensor.dtype, stored)?,
        };
        tensor.bytes.release(range);
        Ok(squares)
    })?;
    for (piece, first) in left.into_iter().zip(squares) {
        if let Some(sum) = &mut out[piece.pair] {
            sum.add(&Apart { first, ..Apart::equal(piece.elements.len() as u64) });
        }
    }
    Ok(out)
}

/// Pieces of a size that depends on the tensors alone, so that sums do not depend on the number of threads.
fn cut(pairs: &[Pair]) -> Vec<Piece> {
    let mut out = Vec::new();
    for (pair, Pair { first, second, .. }) in pairs.iter().enumerate() {
        let bits = first.dtype.bitsize().max(second.dtype.bitsize()).max(1);
        let step = PIECE_BYTES / bits * 8; // a multiple of 8: whole bytes of every type
        let all = first.elements();
        out.extend((0..all).step_by(step).map(|start| Piece { pair, elements: start..(start + step).min(all) }));
    }
    out
}

/// The bytes of a piece in one of its tensors.
fn of(tensor: &Tensor, piece: &Piece) -> Range<usize> {
    let bits = tensor.dtype.bitsize();
    piece.elements.start * bits / 8..piece.elements.end * bits / 8
}

/// How far the elements of a piece are apart; none for equal bytes.
fn look(pair: &Pair, piece: &Piece) -> Result<Option<Apart>> {
    let Pair { first, second, .. } = pair;
    let (own, other) = (of(first, piece), of(second, piece));
    first.bytes.fetch(own.clone());
    second.bytes.fetch(other.clone());
    let (a, b) = (&first.bytes.as_slice()[own.clone()], &second.bytes.as_slice()[other.clone()]);
    let scales = pair.scales()?;
    let result = if let Some(scales) = scales {
        scaled(pair, (a, b), scales, piece.elements.start)?
    } else if !pair.is_alike() {
        Some(elements::values(first.dtype, a, second.dtype, b)?)
    } else if a == b {
        None
    } else {
        Some(elements::same_type(first.dtype, a, b)?)
    };
    first.bytes.release(own);
    second.bytes.release(other);
    Ok(result)
}

/// The same for elements with scales, from number `start` on.
fn scaled(
    pair: &Pair,
    (a, b): (&[u8], &[u8]),
    [one, two]: [Option<Arc<Scales>>; 2],
    start: usize,
) -> Result<Option<Apart>> {
    let dtype = pair.first.dtype;
    let same = match (&one, &two) {
        (Some(one), Some(two)) => one.is_same(two),
        _ => false,
    };
    if pair.is_alike() && same && a == b {
        return Ok(None);
    }
    let first = numbers(dtype, a, one.as_deref(), start)?;
    let second = numbers(pair.second.dtype, b, two.as_deref(), start)?;
    let mut out = elements::numbers(&first, &second);
    if pair.is_alike() {
        // Units are those of the first: what the second would be under its scales.
        let mut own = b.to_vec();
        match &one {
            _ if same => {}
            Some(scales) => scales.narrow_f64(dtype, start, &second, &mut own)?,
            None => cast::narrow_f64(dtype, &second, &mut own)?,
        }
        let by_units = elements::same_type(dtype, a, &own)?;
        (out.classes, out.max_ulps) = (by_units.classes, by_units.max_ulps);
    }
    Ok(Some(out))
}

/// The numbers that some elements stand for.
fn numbers(dtype: Dtype, stored: &[u8], scales: Option<&Scales>, start: usize) -> Result<Vec<f64>> {
    let mut out = cast::widen_f64(dtype, stored)?;
    if let Some(scales) = scales {
        scales.multiply_f64(start, &mut out);
    }
    Ok(out)
}

//! The weights of a base as far as merged ones and the changes tell, and how far that is.
//!
//! A merged element m is `round(g · w + d)`. Its weight is the value of the base's type that is nearest to
//! `(m − d) / g`, unless a neighbour of that would have been rounded to m as well: such an element is in doubt. Where
//! one is, the weight differs from what is found by at most ½ unit of m (over |g|) and ½ unit of what is found. What a
//! merge computes otherwise than by products in f32 is only known but for the roundings of f32; then an element counts
//! as in doubt as soon as those might matter. A weight that was turned with others is found but for the roundings of
//! all of them, and every one is in doubt.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::Array2;

use super::Tally;
use crate::adapter::{Inverse, Reversal};
use crate::error::{Error, Kind, Result};
use crate::kernels::{Kernels, Moved};
use crate::ops::merge::Merged;
use crate::ops::merge::source::Edit;
use crate::ops::undo::{How, Predictor};
use crate::stream::Produce;
use crate::tensor::{Dtype, Rows, Scales, Shape, Tensor, cast, dtype};

/// The roundings of a few operations in f32, as a share of the largest number in them.
const F32_NOISE: f64 = 1.0 / (1u64 << 22) as f64;

/// What is known of the elements of one tensor or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Found {
    /// Number of elements.
    pub elements: u64,
    /// Those that may differ from the base's.
    pub in_doubt: u64,
    /// By how much at most.
    pub at_most: f64,
    /// Elements that are not what the base and the adapters give, where that was asked.
    pub differing: u64,
}

impl Found {
    /// Adds those of another part.
    pub fn add(&mut self, other: &Found) {
        self.elements += other.elements;
        self.in_doubt += other.in_doubt;
        self.at_most = self.at_most.max(other.at_most);
        self.differing += other.differing;
    }
}

/// A tensor found from the merged one.
pub struct Back {
    merged: Tensor,
    base: Dtype,
    /// What the elements of the merged tensor and of the one that is found are multiplied by.
    scales: [Option<Arc<Scales>>; 2],
    way: Way,
    work: Arc<Merged>,
    found: Mutex<Found>,
}

enum Way {
    /// Products alone: the merge step backwards.
    Exact(Predictor),
    /// Each element by itself.
    Pointwise,
    /// By the acts themselves.
    Own,
}

/// What came of some rows.
#[derive(Default)]
pub struct Guess {
    /// Elements in doubt, and by how much they may differ.
    pub doubtful: Vec<(u32, f64)>,
    /// Elements that nothing is found for, and why.
    pub lost: Vec<(u32, &'static str)>,
}

impl Back {
    /// From `merged` to a tensor of this type and shape, which became it by `work`.
    pub fn new(merged: Tensor, (base, shape): (Dtype, &Shape), work: Arc<Merged>) -> Back {
        let edits = work.edits();
        let narrow = |d: Dtype| matches!(d, Dtype::F16 | Dtype::BF16);
        let single = |d: Dtype| d == Dtype::F32 || narrow(d);
        let products = work.inverses().iter().all(|i| *i == Inverse::Product);
        // In f32 the sum of several products is rounded at each.
        let known = (narrow(base) && narrow(merged.dtype)) || lie_apart(edits);
        let way = if products && known && single(base) && single(merged.dtype) {
            Way::Exact(Predictor::new(base, merged.dtype, shape, How::Sum, edits.to_vec()))
        } else if work.inverses().iter().all(|i| i.is_by_element()) {
            Way::Pointwise
        } else {
            Way::Own
        };
        Back { merged, base, scales: [None, None], way, work, found: Mutex::default() }
    }

    /// The same, with scales of the merged tensor and of the one that is found.
    #[must_use]
    pub fn with_scales(self, merged: Option<Arc<Scales>>, base: Option<Arc<Scales>>) -> Back {
        Back { scales: [merged, base], ..self }
    }

    /// The merged values of some rows.
    fn results(&self, rows: &Range<usize>, merged: &[u8]) -> Result<Vec<f64>> {
        let mut values = cast::widen_f64(self.merged.dtype, merged)?;
        if let [Some(scales), _] = &self.scales {
            scales.multiply_f64(rows.start * self.work.matrix().1, &mut values);
        }
        Ok(values)
    }

    /// Rounds values into the base's elements, and gives what those are.
    fn rounded(&self, rows: &Range<usize>, values: &[f64], out: &mut [u8]) -> Result<Vec<f64>> {
        let first = rows.start * self.work.matrix().1;
        let [_, Some(scales)] = &self.scales else {
            cast::narrow_f64(self.base, values, out)?;
            return cast::widen_f64(self.base, out);
        };
        scales.narrow_f64(self.base, first, values, out)?;
        let mut found = cast::widen_f64(self.base, out)?;
        scales.multiply_f64(first, &mut found);
        Ok(found)
    }

    /// What each element of some rows is multiplied by, of the merged tensor and of the base.
    fn scale(&self, rows: &Range<usize>, element: usize) -> [f64; 2] {
        let number = rows.start * self.work.matrix().1 + element;
        [0, 1].map(|side| self.scales[side].as_ref().map_or(1.0, |scales| f64::from(scales.of(number))))
    }

    /// Rows from the bytes of the same rows after the merge.
    pub fn guess(&self, kernels: &dyn Kernels, rows: Range<usize>, merged: &[u8], out: &mut [u8]) -> Result<Guess> {
        match &self.way {
            Way::Exact(predictor) => self.step_back(predictor, kernels, rows, merged, out),
            Way::Pointwise => self.by_element(kernels, rows, merged, out),
            Way::Own => self.turn_back(kernels, rows, merged, out),
        }
    }

    /// Memory that a guess of `rows` rows takes.
    pub fn guess_footprint(&self, rows: usize) -> u64 {
        let elements = (rows * self.work.matrix().1) as u64;
        match &self.way {
            Way::Exact(predictor) => predictor.footprint(rows) + 24 * elements,
            _ => self.work.footprint(rows) + 64 * elements,
        }
    }

    fn step_back(
        &self,
        predictor: &Predictor,
        kernels: &dyn Kernels,
        rows: Range<usize>,
        merged: &[u8],
        out: &mut [u8],
    ) -> Result<Guess> {
        let mut doubtful = Vec::new();
        predictor.predict(kernels, rows, (merged, &[]), out, &mut doubtful)?;
        let widened = |dtype: Dtype, bytes: &[u8]| -> Result<Vec<f32>> {
            let mut values = vec![0f32; bytes.len() * 8 / dtype.bitsize()];
            cast::widen(dtype, bytes, &mut values)?;
            Ok(values)
        };
        let (results, weights) = (widened(self.merged.dtype, merged)?, widened(self.base, out)?);
        let mut guess = Guess { lost: not_finite(&results), ..Guess::default() };
        guess.doubtful.reserve_exact(doubtful.len());
        for i in doubtful {
            let of = |values: &[f32]| values.get(i as usize).copied().map_or(f64::NAN, f64::from);
            let (m, w) = (of(&results), of(&weights));
            let of_result = half_unit(self.merged.dtype, m);
            // Zero is chosen wherever it is among the candidates, near or not.
            let of_weight = if w == 0.0 { of_result } else { half_unit(self.base, w) };
            guess.doubtful.push((i, of_result + of_weight));
        }
        Ok(guess)
    }

    /// What the changes make of each element: `g · w + d`; no factors where all of them are one.
    fn affine(&self, kernels: &dyn Kernels, rows: &Range<usize>) -> Result<(Option<Array2<f64>>, Array2<f64>)> {
        let dim = (rows.len(), self.work.matrix().1);
        let (zeros, ones) = (Array2::<f32>::zeros(dim), Array2::<f32>::ones(dim));
        let sums = self.work.reversal() == Reversal::Sum;
        let mut factors = (!sums).then(|| Array2::<f64>::ones(dim));
        let mut added = Array2::<f64>::zeros(dim);
        let mut strengths: Vec<(usize, f64)> =
            self.work.edits().iter().map(|e| (e.source.number, e.source.strength)).collect();
        strengths.sort_by_key(|(number, _)| *number);
        strengths.dedup_by_key(|(number, _)| *number);
        for (number, strength) in strengths {
            let of_zeros = self.work.delta(kernels, rows.clone(), number, &zeros)?;
            if let Some(factors) = &mut factors {
                let of_ones = self.work.delta(kernels, rows.clone(), number, &ones)?;
                ndarray::Zip::from(factors)
                    .and(&of_ones)
                    .and(&of_zeros)
                    .for_each(|g, &one, &zero| *g += strength * (f64::from(one) - f64::from(zero)));
            }
            added.zip_mut_with(&of_zeros, |d, &zero| *d += strength * f64::from(zero));
        }
        Ok((factors, added))
    }

    fn by_element(&self, kernels: &dyn Kernels, rows: Range<usize>, merged: &[u8], out: &mut [u8]) -> Result<Guess> {
        let (factors, added) = self.affine(kernels, &rows)?;
        let results = self.results(&rows, merged)?;
        let mut guess = Guess { lost: not_finite(&results), ..Guess::default() };
        let factor = |i: usize| factors.as_ref().and_then(|g| g.as_slice()).map_or(1.0, |g| g[i]);
        let added = added.as_slice().ok_or_else(|| Error::mismatch("rows are not contiguous"))?;
        let exact: Vec<f64> = results.iter().zip(added).enumerate().map(|(i, (m, d))| (m - d) / factor(i)).collect();
        let found = self.rounded(&rows, &exact, out)?;
        for (i, (&w, &v)) in found.iter().zip(&exact).enumerate() {
            let (m, d, g) = (results[i], added[i], factor(i));
            if !m.is_finite() {
                continue;
            }
            if g == 0.0 {
                guess.lost.push((i as u32, "was multiplied by zero"));
                continue;
            }
            if !w.is_finite() {
                guess.lost.push((i as u32, "comes out beyond the range of the type"));
                continue;
            }
            let noise = F32_NOISE * (m.abs() + d.abs() + w.abs() + (g * w).abs());
            let [of_merged, of_base] = self.scale(&rows, i);
            let width = (half_unit(self.merged.dtype, m / of_merged) * of_merged + noise) / g.abs();
            let near = |n: &f64| (n * of_base - v).abs() <= width;
            if w == 0.0 || neighbours(self.base, w / of_base).iter().any(near) {
                guess.doubtful.push((i as u32, width + half_unit(self.base, w / of_base) * of_base));
            }
        }
        Ok(guess)
    }

    fn turn_back(&self, kernels: &dyn Kernels, rows: Range<usize>, merged: &[u8], out: &mut [u8]) -> Result<Guess> {
        let results = self.results(&rows, merged)?;
        let mut guess = Guess { lost: not_finite(&results), ..Guess::default() };
        let before: Vec<f32> = results.iter().map(|&m| m as f32).collect();
        let dim = (rows.len(), self.work.matrix().1);
        let mut tile = Array2::from_shape_vec(dim, before.clone())
            .map_err(|e| Error::mismatch(format!("rows of another size: {e}")))?;
        let spread = self.work.undo(kernels, rows.clone(), &mut tile)?;
        // The difference alone is in f32; an f64 keeps its digits.
        let exact: Vec<f64> = results
            .iter()
            .zip(&before)
            .zip(&tile)
            .map(
                |((m, &old), &new)| {
                    if self.base == Dtype::F64 { m + (f64::from(new) - f64::from(old)) } else { new.into() }
                },
            )
            .collect();
        let found = self.rounded(&rows, &exact, out)?;
        let beyond = found.iter().zip(&exact).enumerate().filter(|(_, (w, v))| !w.is_finite() && v.is_finite());
        guess.lost.extend(beyond.map(|(i, _)| (i as u32, "comes out beyond the range of the type")));
        let most = |side: usize| self.scales[side].as_ref().map_or(1.0, |scales| f64::from(scales.largest()));
        let (of_merged, of_base) = (most(0), most(1));
        let largest = results.iter().filter(|m| m.is_finite()).fold(0f64, |max, m| max.max(m.abs()));
        let unit = half_unit(self.merged.dtype, largest / of_merged) * of_merged;
        let shared = spread * (unit + F32_NOISE * largest);
        let of_found = |w: f64| half_unit(self.base, w / of_base) * of_base;
        guess.doubtful = exact.iter().enumerate().map(|(i, &w)| (i as u32, shared + of_found(w))).collect();
        Ok(guess)
    }

    /// The error for the first element that nothing is found for.
    pub fn refuse_lost(&self, rows: &Range<usize>, lost: &[(u32, &'static str)]) -> Result<()> {
        let Some(&(first, why)) = lost.first() else { return Ok(()) };
        let cols = self.work.matrix().1.max(1);
        let (row, col) = (rows.start + first as usize / cols, first as usize % cols);
        let what = format!("{} values cannot be found again; that at [{row}, {col}] {why}", lost.len());
        Err(Error::new(Kind::Nonfinite, what).hint(super::HINT))
    }
}

impl Produce for Back {
    fn matrix(&self) -> (usize, usize) {
        self.work.matrix()
    }

    fn rows(&self) -> Rows {
        self.work.rows()
    }

    fn footprint(&self, rows: usize) -> u64 {
        self.guess_footprint(rows)
    }

    /// What is in doubt is counted on the way.
    fn can_be_taken_up(&self) -> bool {
        false
    }

    fn produce(&self, kernels: &dyn Kernels, rows: Range<usize>, out: &mut [u8]) -> Result<Moved> {
        let row_bytes = dtype::byte_len(self.merged.dtype, self.matrix().1)?;
        let range = rows.start * row_bytes..rows.end * row_bytes;
        self.merged.bytes.fetch(range.clone());
        let bytes = &self.merged.bytes.as_slice()[range];
        let guess = self.guess(kernels, rows.clone(), bytes, out)?;
        self.refuse_lost(&rows, &guess.lost)?;
        let elements = (rows.len() * self.matrix().1) as u64;
        let at_most = guess.doubtful.iter().fold(0f64, |max, (_, by)| max.max(*by));
        let found = Found { elements, in_doubt: guess.doubtful.len() as u64, at_most, differing: 0 };
        self.found.lock().unwrap_or_else(PoisonError::into_inner).add(&found);
        Ok(Moved { elements, ..Moved::default() })
    }

    fn release(&self, rows: Range<usize>) {
        let row_bytes = self.matrix().1 * self.merged.dtype.bitsize() / 8;
        self.merged.bytes.release(rows.start * row_bytes..rows.end * row_bytes);
        if !matches!(self.way, Way::Exact(_)) {
            self.work.finished(rows.len());
        }
    }
}

impl Tally for Back {
    fn found(&self) -> Found {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether no two of these changes are of the same element.
pub fn lie_apart(edits: &[Edit]) -> bool {
    let disjoint = |a: &Option<Range<usize>>, b: &Option<Range<usize>>| match (a, b) {
        (Some(a), Some(b)) => a.end <= b.start || b.end <= a.start,
        _ => false,
    };
    let apart = |a: &Edit, b: &Edit| {
        let (a, b) = (&a.piece.disk, &b.piece.disk);
        let experts = matches!((a.expert, b.expert), (Some(x), Some(y)) if x != y);
        experts || disjoint(&a.rows, &b.rows) || disjoint(&a.cols, &b.cols)
    };
    edits.iter().enumerate().all(|(i, a)| edits[..i].iter().all(|b| apart(a, b)))
}

/// Elements that are NaN or infinite.
fn not_finite<T: Copy + Into<f64>>(values: &[T]) -> Vec<(u32, &'static str)> {
    let odd = values.iter().enumerate().filter(|(_, v)| !(**v).into().is_finite());
    odd.map(|(i, _)| (i as u32, "is NaN or infinite in the merged model")).collect()
}

/// Digits behind the first and the exponent of the smallest normal number.
fn form(dtype: Dtype) -> (i32, i32) {
    match dtype {
        Dtype::F16 => (10, -14),
        Dtype::BF16 => (7, -126),
        Dtype::F32 => (23, -126),
        Dtype::F8_E4M3 => (3, -6),
        Dtype::F8_E5M2 => (2, -14),
        _ => (52, -1022),
    }
}

/// Half the distance to the next larger number of the type; of the smallest numbers of f64, a little more.
fn half_unit(dtype: Dtype, value: f64) -> f64 {
    let (digits, smallest) = form(dtype);
    let power = (exponent(value).max(smallest) - digits - 1).max(-1022);
    f64::from_bits(((power + 1023) as u64) << 52)
}

fn exponent(value: f64) -> i32 {
    (value.to_bits() >> 52 & 0x7ff) as i32 - 1023
}

/// The numbers of the type on both sides of one.
fn neighbours(dtype: Dtype, value: f64) -> [f64; 2] {
    let unit = 2.0 * half_unit(dtype, value);
    // Below a power of two they lie closer.
    let closer = value.to_bits() << 12 == 0 && exponent(value) > form(dtype).1;
    let towards = if closer { unit / 2.0 } else { unit };
    [value + unit.copysign(value), value - towards.copysign(value)]
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn neighbours_are_the_next_patterns() {
        for bits in (1..0x7f7fu16).chain(0x8001..0xff7f) {
            let v = |bits: u16| bf16::from_bits(bits).to_f64();
            assert_eq!(neighbours(Dtype::BF16, v(bits)), [v(bits + 1), v(bits - 1)], "{bits:#x}");
        }
        for bits in 1..0x7bffu16 {
            let v = |bits: u16| f16::from_bits(bits).to_f64();
            assert_eq!(neighbours(Dtype::F16, v(bits)), [v(bits + 1), v(bits - 1)], "{bits:#x}");
        }
        for bits in [1u32, 0x7fffff, 0x800000, 0x800001, 0x3f800000, 0x3f800001, 0x7f000000] {
            let v = |bits: u32| f64::from(f32::from_bits(bits));
            assert_eq!(neighbours(Dtype::F32, v(bits)), [v(bits + 1), v(bits - 1)], "{bits:#x}");
        }
        for bits in [0x3ff0_0000_0000_0000u64, 0x3ff0_0000_0000_0001] {
            let v = f64::from_bits;
            assert_eq!(neighbours(Dtype::F64, v(bits)), [v(bits + 1), v(bits - 1)], "{bits:#x}");
        }
    }
}

//! Some rows of a changed tensor: the file against the correctly rounded merge and against the adapters' changes.

use std::ops::Range;

use ndarray::Array2;

use super::sums::{Equations, Off, Sums};
use super::unit::Unit;
use crate::error::{Error, Result};
use crate::kernels::{Kernels, sum_of_squares};
use crate::ops::merge::Merged;
use crate::stream::Produce;
use crate::tensor::ordinal::{ordinal, ulps};
use crate::tensor::{Dtype, Tensor, cast};

/// Elements that are worked on together, small enough for all their arrays to stay in the nearest cache.
const BLOCK: usize = 512;
/// Lanes of a sum.
const LANES: usize = 4;
/// Units that f32 and f64 elements may be off by, of the largest value that took part: f32 sums in another order.
const F32_UNITS: f64 = 16.0;
/// The bits of 2⁰ twice: less those of 2ⁿ they are those of 2⁻ⁿ.
const TWICE_ONE: u64 = 2 * 1f64.to_bits();
/// What every element may be off by, of the root mean square of the change: the summands of a change may be far larger
/// than it is, and so may their errors. Against PEFT's merges in the fixtures half of it is enough; a quarter is not, for
/// PiSSA and KaSA, whose changes come out of a singular value decomposition.
const F32_SHARE: f64 = 1.0 / 16384.0;

/// Memory that comparing `rows` rows takes.
pub fn footprint(merged: &Merged, rows: usize) -> u64 {
    let tile = 4 * (rows * merged.matrix().1) as u64;
    // Base, file, expected values and their bytes, the wanted and the largest change, and each adapter's change.
    (6 + merged.adapters().len() as u64) * tile + merged.footprint(rows)
}

/// The values of some rows.
struct Tile<'a> {
    /// The base, the file and the correctly rounded merge.
    base: &'a [f32],
    file: &'a [f32],
    right: &'a [f32],
    /// Whether all elements of the last two are the same.
    is_exact: bool,
    /// The same in f64, where one of the types is.
    wide: Option<[Vec<f64>; 3]>,
    /// Each adapter's change at strength 1.
    deltas: Vec<&'a [f32]>,
    /// The largest that any partial sum of them can be, at the claimed strengths.
    largest: &'a [f32],
    /// Stored elements of the correctly rounded merge and of the file.
    right_bytes: &'a [u8],
    file_bytes: &'a [u8],
    dtype: Dtype,
    unit: Unit,
    /// What an element may be off by: units of rounding, and a value.
    allowed: (f64, f64),
}

/// Compares some rows of `found` with what `merged` says they should be at the claimed strengths.
pub fn compare(
    merged: &Merged,
    found: &Tensor,
    claimed: &[f64],
    kernels: &dyn Kernels,
    rows: Range<usize>,
) -> Result<Sums> {
    let cols = merged.matrix().1;
    let scales = merged.scales(kernels)?;
    let numbers_of = |stored: &[u8], out: &mut [f32]| -> Result<()> {
        cast::widen(found.dtype, stored, out)?;
        if let Some(scales) = &scales {
            scales.multiply(rows.start * cols, out);
        }
        Ok(())
    };
    let range = |dtype: Dtype| rows.start * cols * dtype.bitsize() / 8..rows.end * cols * dtype.bitsize() / 8;
    let unit = Unit::of(found.dtype)
        .ok_or_else(|| Error::unsupported(format!("dtype {} is none that a merge writes", found.dtype)))?;
    let unit = scales.as_ref().map_or(unit, |scales| unit.scaled(scales.largest()));
    let base = merged.widened(rows.clone())?;
    let numbers = merged.adapters();
    // Changes first: what was prepared for them is let go with the last rows that are produced.
    let mut deltas = Vec::with_capacity(numbers.len());
    let mut wanted = Array2::zeros(base.dim());
    let mut largest = Array2::zeros(if numbers.len() > 1 { base.dim() } else { (0, 0) });
    for &number in &numbers {
        let delta = merged.delta(kernels, rows.clone(), number, &base)?;
        let strength = claimed[number] as f32;
        wanted.scaled_add(strength, &delta);
        if numbers.len() > 1 {
            largest.zip_mut_with(&delta, |sum: &mut f32, d| *sum += (strength * d).abs());
        }
        deltas.push(delta);
    }
    let wide_base = merged.base().filter(|t| t.dtype == Dtype::F64);
    let wide_base = wide_base.map(|t| cast::widen_f64(t.dtype, &t.bytes.as_slice()[range(t.dtype)])).transpose()?;
    let file_bytes = &found.bytes.as_slice()[range(found.dtype)];
    let mut right_bytes = vec![0u8; file_bytes.len()];
    merged.produce(kernels, rows.clone(), &mut right_bytes)?;

    let (mut file, mut right) = (vec![0f32; base.len()], Vec::new());
    numbers_of(file_bytes, &mut file)?;
    let same = right_bytes == file_bytes;
    if !same {
        right.resize(base.len(), 0f32);
        numbers_of(&right_bytes, &mut right)?;
    }
    let wide = if wide_base.is_some() || found.dtype == Dtype::F64 {
        let base = wide_base.unwrap_or_else(|| base.iter().copied().map(f64::from).collect());
        Some([base, cast::widen_f64(found.dtype, file_bytes)?, cast::widen_f64(found.dtype, &right_bytes)?])
    } else {
        None
    };
    let units = match found.dtype {
        Dtype::BF16 | Dtype::F16 => numbers.len().max(1) as f64,
        // Others round to either side, so as to be right on average; and the unit is one for all scales.
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => 2.0 * numbers.len().max(1) as f64,
        _ => F32_UNITS,
    };
    let wanted = flat(&wanted)?;
    let mean = (sum_of_squares(wanted) / wanted.len().max(1) as f64).sqrt();
    let tile = Tile {
        base: flat(&base)?,
        file: &file,
        right: if same { &file } else { &right },
        is_exact: same,
        wide,
        deltas: deltas.iter().map(flat).collect::<Result<_>>()?,
        largest: if numbers.len() > 1 { flat(&largest)? } else { wanted },
        right_bytes: &right_bytes,
        file_bytes,
        dtype: found.dtype,
        unit,
        allowed: (units, F32_SHARE * mean),
    };
    let mut sums = Sums::new(numbers.len());
    let mut scratch = Scratch::new(numbers.len());
    for start in (0..base.len()).step_by(BLOCK) {
        let block = start..(start + BLOCK).min(base.len());
        tile.sum(block.clone(), &mut scratch, &mut sums);
        if !same {
            sums.off.add(&tile.distances(block, &scratch.unit, (rows.start * cols) as u64));
        }
    }
    Ok(sums)
}

fn flat(values: &Array2<f32>) -> Result<&[f32]> {
    values.as_slice().ok_or_else(|| Error::mismatch("rows are not contiguous"))
}

/// Arrays of one block.
struct Scratch {
    unit: Vec<f64>,
    per_unit: Vec<f64>,
    /// The file less the base; in units of value and of rounding.
    plain: Vec<f64>,
    scaled: Vec<f64>,
    /// The correctly rounded merge less the base, in units of rounding.
    right: Vec<f64>,
    /// Each change, in both.
    plains: Vec<Vec<f64>>,
    scaleds: Vec<Vec<f64>>,
    /// Its sums.
    part: Sums,
}

impl Scratch {
    fn new(count: usize) -> Scratch {
        let block = || vec![0f64; BLOCK];
        let blocks = || (0..count).map(|_| block()).collect();
        Scratch {
            unit: block(),
            per_unit: block(),
            plain: block(),
            scaled: block(),
            right: block(),
            plains: blocks(),
            scaleds: blocks(),
            part: Sums::new(count),
        }
    }

    /// Sums up the first `len` elements.
    fn sum(&mut self, len: usize, is_exact: bool) {
        let (unit, part) = (&self.unit[..len], &mut self.part);
        part.elements = len as u64;
        part.left_out = 0;
        part.noise = dot(unit, unit) / 12.0;
        equations(&self.plains, &self.plain[..len], &mut part.plain);
        equations(&self.scaleds, &self.scaled[..len], &mut part.units);
        for ((rounded, along), x) in part.rounded.iter_mut().zip(&part.units.along).zip(&self.scaleds) {
            *rounded = if is_exact { *along } else { dot(&x[..len], &self.right[..len]) };
        }
    }

    /// Takes elements out of the sums that are not finite on some side.
    fn leave_out(&mut self, len: usize) -> u64 {
        let mut count = 0;
        for i in 0..len {
            let changes = self.plains.iter().all(|p| p[i].is_finite());
            if changes && [self.plain[i], self.right[i]].iter().all(|v| v.is_finite()) {
                continue;
            }
            count += 1;
            for values in [&mut self.unit, &mut self.plain, &mut self.scaled, &mut self.right] {
                values[i] = 0.0;
            }
            self.plains.iter_mut().chain(&mut self.scaleds).for_each(|p| p[i] = 0.0);
        }
        count
    }
}

impl Tile<'_> {
    /// Adds the sums of a block.
    fn sum(&self, block: Range<usize>, scratch: &mut Scratch, sums: &mut Sums) {
        self.fill(block.clone(), scratch);
        scratch.sum(block.len(), self.is_exact);
        if !scratch.part.is_finite() {
            let left_out = scratch.leave_out(block.len());
            scratch.sum(block.len(), false);
            scratch.part.left_out = left_out;
        }
        sums.add(&scratch.part);
    }

    fn fill(&self, block: Range<usize>, s: &mut Scratch) {
        let len = block.len();
        let unit = &mut s.unit[..len];
        let (base, file, right) = (&self.base[block.clone()], &self.file[block.clone()], &self.right[block.clone()]);
        self.unit.measure(base, file, &self.largest[block.clone()], unit);
        match &self.wide {
            None => {
                difference(file, base, f64::from, &mut s.plain[..len]);
                if !self.is_exact {
                    difference(right, base, f64::from, &mut s.right[..len]);
                }
            }
            Some([base, file, right]) => {
                let (base, file, right) = (&base[block.clone()], &file[block.clone()], &right[block.clone()]);
                difference(file, base, |v| v, &mut s.plain[..len]);
                difference(right, base, |v| v, &mut s.right[..len]);
            }
        }
        // Units are powers of two, and so are their reciprocals.
        for (per, unit) in s.per_unit.iter_mut().zip(&*unit) {
            *per = f64::from_bits(TWICE_ONE.wrapping_sub(unit.to_bits()));
        }
        let per_unit = &s.per_unit[..len];
        for ((per, plain), scaled) in per_unit.iter().zip(&s.plain).zip(&mut s.scaled) {
            *scaled = plain * per;
        }
        if self.is_exact {
            s.right[..len].copy_from_slice(&s.scaled[..len]);
        } else {
            s.right.iter_mut().zip(per_unit).for_each(|(right, per)| *right *= per);
        }
        for ((delta, plain), scaled) in self.deltas.iter().zip(&mut s.plains).zip(&mut s.scaleds) {
            for (((p, x), d), per) in plain.iter_mut().zip(scaled).zip(&delta[block.clone()]).zip(per_unit) {
                *p = f64::from(*d);
                *x = *p * per;
            }
        }
    }

    /// How far the elements of a block are from the right ones; `first` is the number of the tile's first element.
    fn distances(&self, block: Range<usize>, unit: &[f64], first: u64) -> Off {
        let mut off = Off::default();
        let size = self.dtype.bitsize() / 8;
        let bytes = block.start * size..block.end * size;
        let (right, file) = (&self.right_bytes[bytes.clone()], &self.file_bytes[bytes]);
        if right == file {
            return off;
        }
        for (number, (i, unit)) in block.zip(unit).enumerate() {
            let (a, b) = (pattern(right, number, size), pattern(file, number, size));
            if a == b {
                continue;
            }
            let bits = 8 * size as u32;
            let ulps = ulps(ordinal(a, bits), ordinal(b, bits));
            if ulps == 0 || (self.file[i].is_nan() && self.right[i].is_nan()) {
                continue;
            }
            off.by_one += u64::from(ulps == 1);
            off.by_more += u64::from(ulps > 1);
            off.max_ulps = off.max_ulps.max(ulps);
            let distance = self.distance(i);
            let units = distance / unit;
            let units = if units.is_finite() { units } else { f64::INFINITY };
            let (allowed, slack) = self.allowed;
            // A NaN or an infinity on one side is never near.
            let near = units <= allowed || distance <= slack;
            off.beyond += u64::from(ulps > 1 && !near);
            if off.worst.is_none_or(|(worst, _)| units > worst) {
                off.worst = Some((units, first + i as u64));
            }
        }
        off
    }

    fn distance(&self, i: usize) -> f64 {
        match &self.wide {
            None => (f64::from(self.file[i]) - f64::from(self.right[i])).abs(),
            Some([_, file, right]) => (file[i] - right[i]).abs(),
        }
    }
}

/// The pattern of an element of `size` bytes.
fn pattern(bytes: &[u8], number: usize, size: usize) -> u64 {
    let element = &bytes[number * size..(number + 1) * size];
    match *element {
        [a] => u64::from(a),
        [a, b] => u64::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => 0, // no type that a merge writes
    }
}

fn difference<T: Copy>(a: &[T], b: &[T], wide: impl Fn(T) -> f64, out: &mut [f64]) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = wide(*a) - wide(*b);
    }
}

/// Sums of changes against a difference, over the first `len` elements.
fn equations(changes: &[Vec<f64>], difference: &[f64], out: &mut Equations) {
    let (len, count) = (difference.len(), changes.len());
    if count == 0 {
        out.square = dot(difference, difference);
    }
    for (k, x) in changes.iter().enumerate() {
        let x = &x[..len];
        let [square, along, own] = squares(difference, x);
        (out.square, out.along[k], out.gram[k * count + k]) = (square, along, own);
        for (l, other) in changes.iter().enumerate().skip(k + 1) {
            let product = dot(x, &other[..len]);
            out.gram[k * count + l] = product;
            out.gram[l * count + k] = product;
        }
    }
}

/// Σ a·b in lanes.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (chunks_a, rest_a) = a.as_chunks::<LANES>();
    let (chunks_b, rest_b) = b.as_chunks::<LANES>();
    let mut lanes = [0f64; LANES];
    for (a, b) in chunks_a.iter().zip(chunks_b) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f64>() + rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum::<f64>()
}

/// Σ a·a, Σ a·b and Σ b·b in lanes, in one pass.
fn squares(a: &[f64], b: &[f64]) -> [f64; 3] {
    let (chunks_a, rest_a) = a.as_chunks::<LANES>();
    let (chunks_b, rest_b) = b.as_chunks::<LANES>();
    let mut lanes = [[0f64; LANES]; 3];
    for (a, b) in chunks_a.iter().zip(chunks_b) {
        for lane in 0..LANES {
            lanes[0][lane] += a[lane] * a[lane];
            lanes[1][lane] += a[lane] * b[lane];
            lanes[2][lane] += b[lane] * b[lane];
        }
    }
    let rest = [dot(rest_a, rest_a), dot(rest_a, rest_b), dot(rest_b, rest_b)];
    std::array::from_fn(|i| lanes[i].iter().sum::<f64>() + rest[i])
}

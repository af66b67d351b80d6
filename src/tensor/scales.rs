//! Numbers that stored weights are multiplied by: 8-bit floats reach from 2⁻⁹ to 448 or 57344, and a scale moves that to
//! where the weights are. One for a whole tensor, one for each row, or one for each block of rows and columns.
//!
//! A weight is element × scale, in f32. The way back is a quotient in f64, rounded once: exact enough that an element
//! which did not change is the same afterwards. Where values no longer fit, a scale is multiplied by a power of two, and
//! by no more than it takes: all other elements keep their value then, unless they are among the very smallest. (A scale
//! that only just fits would move every weight of the tensor by a little, and rounding to nearest would not undo it.)

use std::ops::Range;

use super::{Dtype, Shape, Tensor, cast, dtype};
use crate::error::{Error, Result};

/// Quotients made at a time.
const RUN: usize = 256;

/// The scales of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    values: Vec<f32>,
    dtype: Dtype,
    shape: Shape,
    /// Rows and columns that have a scale in common.
    block: (usize, usize),
    /// Scales beside one another.
    across: usize,
    /// Columns of the tensor.
    cols: usize,
}

/// Scales that became larger.
#[derive(Clone, Debug, PartialEq)]
pub struct Grown {
    /// All scales afterwards.
    pub scales: Scales,
    /// How many of them are larger.
    pub count: usize,
    /// By what factor at most; infinite where one was zero.
    pub factor: f64,
}

impl Scales {
    /// The scales in `stored`, of a weight of this shape. `usual` are the extents of a block where their numbers leave it
    /// open.
    pub fn read(stored: &Tensor, weight: &Shape, usual: (usize, usize)) -> Result<Scales> {
        let (rows, cols) = weight.matrix();
        let misfit = || {
            let what = format!("scales of shape {} for a weight of shape {weight}, expected", stored.shape);
            Error::unsupported(format!("{what} one, one for each row, or one for each block"))
        };
        if !matches!(stored.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(Error::unsupported(format!("scales of dtype {}, expected F32, F16 or BF16", stored.dtype)));
        }
        let (down, across) = match *stored.shape.dims() {
            _ if stored.elements() == 1 => (1, 1),
            [n] if n == rows => (n, 1),
            [down, across] if weight.rank() == 2 => (down, across),
            [n, ref rest @ ..] if n == rows && rest.iter().all(|&d| d == 1) => (n, 1),
            _ => return Err(misfit()),
        };
        let block =
            (extent(rows, down, usual.0).ok_or_else(misfit)?, extent(cols, across, usual.1).ok_or_else(misfit)?);
        let values = stored.to_f32()?;
        if let Some(odd) = values.iter().find(|v| !(v.is_finite() && **v >= 0.0)) {
            return Err(Error::new(crate::error::Kind::Nonfinite, format!("a scale of {odd}")));
        }
        Ok(Scales { values, dtype: stored.dtype, shape: stored.shape.clone(), block, across, cols })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The largest of them.
    pub fn largest(&self) -> f32 {
        self.values.iter().copied().fold(0.0, f32::max)
    }

    /// Whether two tensors with these are multiplied by the same numbers.
    pub fn is_same(&self, other: &Scales) -> bool {
        self.values == other.values && self.block == other.block
    }

    /// The scale of an element, by its number in the tensor.
    pub fn of(&self, element: usize) -> f32 {
        let (row, col) = (element.checked_div(self.cols).unwrap_or(0), element.checked_rem(self.cols).unwrap_or(0));
        self.values.get(self.number(row, col)).copied().unwrap_or(1.0)
    }

    fn number(&self, row: usize, col: usize) -> usize {
        row / self.block.0 * self.across + col / self.block.1
    }

    /// Shows runs of elements that have one scale: its number, and which of the elements from `start` on they are.
    fn runs(&self, start: usize, count: usize, mut show: impl FnMut(usize, Range<usize>)) {
        if self.values.len() == 1 || self.cols == 0 {
            return show(0, 0..count);
        }
        let mut at = 0;
        while at < count {
            let (row, col) = ((start + at) / self.cols, (start + at) % self.cols);
            let end = (col / self.block.1 + 1).saturating_mul(self.block.1).min(self.cols);
            let next = (at + end - col).min(count);
            show(self.number(row, col), at..next);
            at = next;
        }
    }

    /// Multiplies elements, of which the first is number `start` of the tensor.
    pub fn multiply(&self, start: usize, values: &mut [f32]) {
        self.runs(start, values.len(), |number, run| {
            let scale = self.values.get(number).copied().unwrap_or(1.0);
            values[run].iter_mut().for_each(|v| *v *= scale);
        });
    }

    /// The same in f64; exact.
    pub fn multiply_f64(&self, start: usize, values: &mut [f64]) {
        self.runs(start, values.len(), |number, run| {
            let scale = f64::from(self.values.get(number).copied().unwrap_or(1.0));
            values[run].iter_mut().for_each(|v| *v *= scale);
        });
    }

    /// Elements whose product with their scale is next to `values`: to nearest even, once.
    pub fn narrow(&self, dtype: Dtype, start: usize, values: &[f32], out: &mut [u8]) -> Result<()> {
        self.divided(dtype, start, values, out)
    }

    /// The same for values in f64.
    pub fn narrow_f64(&self, dtype: Dtype, start: usize, values: &[f64], out: &mut [u8]) -> Result<()> {
        self.divided(dtype, start, values, out)
    }

    fn divided<T: Copy + Into<f64>>(&self, dtype: Dtype, start: usize, values: &[T], out: &mut [u8]) -> Result<()> {
        let (size, count) = (dtype::byte_len(dtype, 1)?, values.len());
        if out.len() != size * count {
            return Err(Error::mismatch(format!("{count} elements of {size} bytes for {} bytes", out.len())));
        }
        let (mut result, mut quotients) = (Ok(()), [0f64; RUN]);
        self.runs(start, count, |number, run| {
            let scale = f64::from(self.values.get(number).copied().unwrap_or(1.0));
            for from in run.clone().step_by(RUN) {
                let part = from..(from + RUN).min(run.end);
                let quotients = &mut quotients[..part.len()];
                for (q, v) in quotients.iter_mut().zip(&values[part.clone()]) {
                    let v: f64 = (*v).into();
                    *q = if v == 0.0 { v } else { v / scale }; // nothing is nothing of a scale of zero, too
                }
                if result.is_ok() {
                    result = cast::narrow_f64(dtype, quotients, &mut out[part.start * size..part.end * size]);
                }
            }
        });
        result
    }

    /// Raises the largest finite magnitude under each scale to what is among `values`.
    pub fn peaks(&self, start: usize, values: &[f32], peaks: &mut [f32]) {
        self.runs(start, values.len(), |number, run| {
            if let Some(peak) = peaks.get_mut(number) {
                *peak = peak.max(largest_finite(&values[run]));
            }
        });
    }

    /// The scales that elements of `dtype` need for such peaks, so that none is rounded beyond the largest number; none
    /// where these do.
    pub fn grown(&self, dtype: Dtype, peaks: &[f32]) -> Result<Option<Grown>> {
        let (mut scales, mut count, mut factor) = (self.clone(), 0, 1f64);
        for (scale, &peak) in scales.values.iter_mut().zip(peaks) {
            if fits(dtype, peak, f64::from(*scale))? {
                continue;
            }
            let mut wide = if *scale > 0.0 { f64::from(*scale) } else { f64::from(f32::MIN_POSITIVE) };
            while !fits(dtype, peak, wide)? {
                wide *= 2.0;
            }
            factor = factor.max(wide / f64::from(*scale));
            count += 1;
            *scale = wide as f32;
        }
        if count == 0 {
            return Ok(None);
        }
        let mut stored = vec![0; scales.bytes()?.len()];
        cast::narrow(self.dtype, &scales.values, &mut stored)?;
        if !cast::is_finite(self.dtype, &stored) {
            let what = format!("the merged weight is too large for a scale of {}", self.dtype);
            return Err(Error::new(crate::error::Kind::Nonfinite, what).hint("--dtype bf16 does without scales"));
        }
        Ok(Some(Grown { scales, count, factor }))
    }

    /// The bytes of the tensor that they are stored as.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut out = vec![0; dtype::byte_len(self.dtype, self.values.len())?];
        cast::narrow(self.dtype, &self.values, &mut out)?;
        Ok(out)
    }

    /// Type and shape of that tensor.
    pub fn form(&self) -> (Dtype, &Shape) {
        (self.dtype, &self.shape)
    }
}

/// Rows or columns under one scale, where `count` scales lie along `all` of them.
fn extent(all: usize, count: usize, usual: usize) -> Option<usize> {
    match count {
        0 => None,
        1 => Some(all.max(1)),
        _ if count == all => Some(1),
        _ => Some(usual).filter(|&n| n > 0 && all.div_ceil(n) == count),
    }
}

/// Whether a value is rounded to a finite element under this scale.
fn fits(dtype: Dtype, value: f32, scale: f64) -> Result<bool> {
    let mut out = [0u8; 1];
    let quotient = if value == 0.0 { 0.0 } else { f64::from(value) / scale };
    cast::narrow_f64(dtype, &[quotient], &mut out)?;
    Ok(cast::is_finite(dtype, &out))
}

/// The largest magnitude among those that are finite, in lanes: as bits, magnitudes are in the same order.
fn largest_finite(values: &[f32]) -> f32 {
    const LANES: usize = 16;
    const INFINITY: i32 = 0x7f80_0000;
    let magnitude = |v: f32| (v.to_bits() & 0x7fff_ffff).cast_signed();
    let larger = |max: i32, v: f32| {
        let own = magnitude(v);
        if own < INFINITY && own > max { own } else { max }
    };
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0i32; LANES];
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *v);
        }
    }
    let all = lanes.into_iter().fold(0, i32::max);
    f32::from_bits(rest.iter().fold(all, |max, v| larger(max, *v)).cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scales(shape: &[usize], values: &[f32], weight: &[usize]) -> Scales {
        let stored = Tensor::from_f32(Dtype::F32, shape, values).unwrap();
        Scales::read(&stored, &Shape::from(weight), (2, 3)).unwrap()
    }

    #[test]
    fn each_element_has_the_scale_of_its_block() {
        let one = scales(&[], &[3.0], &[4, 5]);
        let rows = scales(&[4, 1], &[1.0, 2.0, 3.0, 4.0], &[4, 5]);
        let blocks = scales(&[2, 2], &[1.0, 2.0, 3.0, 4.0], &[4, 5]); // 2 × 3 elements each, fewer at the edge
        for element in 0..20 {
            let (row, col) = (element / 5, element % 5);
            assert_eq!(one.of(element), 3.0);
            assert_eq!(rows.of(element), (row + 1) as f32);
            assert_eq!(blocks.of(element), (row / 2 * 2 + col / 3 + 1) as f32);
        }
        for scales in [one, rows, blocks] {
            for (start, count) in [(0, 20), (3, 9), (7, 1), (19, 1)] {
                let mut values = vec![1f32; count];
                scales.multiply(start, &mut values);
                assert_eq!(values, (start..start + count).map(|i| scales.of(i)).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn what_is_stored_comes_back_under_any_scale() {
        let patterns: Vec<u8> = (0..=255).collect();
        for dtype in [Dtype::F8_E4M3, Dtype::F8_E5M2] {
            for scale in [1.0, 0.1, 3.7e-5, 1.0 / 448.0, 2.3e-12, 1234.567] {
                let scales = scales(&[1], &[scale], &[256]);
                let (mut values, mut again) = (vec![0f32; 256], vec![0u8; 256]);
                cast::widen(dtype, &patterns, &mut values).unwrap();
                let finite: Vec<bool> = values.iter().map(|v| v.is_finite()).collect();
                scales.multiply(0, &mut values);
                scales.narrow(dtype, 0, &values, &mut again).unwrap();
                for i in 0..256 {
                    assert!(!finite[i] || again[i] == patterns[i], "{dtype} {i:#x} at {scale}");
                }
                let mut peaks = [0f32];
                scales.peaks(0, &values, &mut peaks);
                assert!(scales.grown(dtype, &peaks).unwrap().is_none(), "{dtype} at {scale}");
            }
        }
    }

    #[test]
    fn a_scale_grows_by_a_power_of_two_and_no_more_than_it_must() {
        let own = scales(&[2, 1], &[0.1, 0.3], &[2, 2]);
        let Grown { scales: grown, count, factor } =
            own.grown(Dtype::F8_E4M3, &[464.0 * 0.1 * 1.001, 100.0]).unwrap().unwrap();
        assert_eq!((grown.values.as_slice(), count, factor), (&[0.2f32, 0.3][..], 1, 2.0));
        let grown = own.grown(Dtype::F8_E4M3, &[448.0 * 0.1 * 4.5, 463.9 * 0.3]).unwrap().unwrap();
        assert_eq!((grown.scales.values.as_slice(), grown.factor), (&[0.8f32, 0.3][..], 8.0));
        let zero = scales(&[1], &[0.0], &[2, 2]).grown(Dtype::F8_E5M2, &[57344.0]).unwrap().unwrap();
        assert_eq!(zero.scales.values, [1.0]);
    }

    #[test]
    fn what_is_no_scale_is_refused() {
        let stored = |dtype, shape: &[usize], values: &[f32]| Tensor::from_f32(dtype, shape, values).unwrap();
        let weight = Shape::new([4, 6]);
        for (tensor, part) in [
            (stored(Dtype::F32, &[3], &[1.0; 3]), "shape [3]"),
            (stored(Dtype::F32, &[4, 2, 1], &[1.0; 8]), "shape [4, 2, 1]"),
            (stored(Dtype::F32, &[3, 1], &[1.0; 3]), "shape [3, 1]"),
            (stored(Dtype::F64, &[1], &[1.0]), "dtype F64"),
            (stored(Dtype::F32, &[1], &[-1.0]), "a scale of -1"),
            (stored(Dtype::F32, &[1], &[f32::NAN]), "a scale of NaN"),
        ] {
            let e = Scales::read(&tensor, &weight, (128, 128)).unwrap_err();
            assert!(e.what().contains(part), "{e}");
        }
    }
}

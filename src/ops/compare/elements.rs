//! How far the elements of two runs of bytes are apart: in units in the last place, and as numbers.
//!
//! Units are counted as [`ordinal::ulps`] counts them, which is between values of one type; integers are their own
//! units. Elements with NaN on one side or both are counted by themselves and are no part of the sums.

use crate::error::Result;
use crate::tensor::{Dtype, cast, dtype, ordinal};

/// Largest distance of each class of the histogram, in units in the last place; the last class is open.
pub const CLASSES: [(&str, u64); 7] =
    [("0", 0), ("1", 1), ("2", 2), ("3-4", 4), ("5-16", 16), ("17-256", 256), ("more", u64::MAX)];

/// Elements that are widened at a time.
const RUN: usize = 256;
/// Lanes of the sums, so that the compiler can turn them into vector code. Counts of a run wrap for the same reason: they
/// are at most [`RUN`], and a check for overflow would keep them one by one.
const LANES: usize = 8;

/// What two runs of elements have between them. It adds up over runs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Apart {
    /// Elements.
    pub elements: u64,
    /// Elements whose bytes differ; whose values differ, for unlike types. Bytes, for types whose elements are no
    /// whole bytes.
    pub differing: u64,
    /// Differing elements with NaN on one side or both.
    pub nan: u64,
    /// Elements in each of [`CLASSES`], those with NaN left out.
    pub classes: [u64; CLASSES.len()],
    /// Largest distance in units in the last place.
    pub max_ulps: u64,
    /// Σ a².
    pub first: f64,
    /// Σ (a − b)²; infinite where an infinity is on one side.
    pub difference: f64,
    /// Largest |a − b|.
    pub max: f64,
}

impl Apart {
    /// Adds another run.
    pub fn add(&mut self, other: &Apart) {
        self.elements += other.elements;
        self.differing += other.differing;
        self.nan += other.nan;
        self.classes.iter_mut().zip(other.classes).for_each(|(sum, n)| *sum += n);
        self.max_ulps = self.max_ulps.max(other.max_ulps);
        self.first += other.first;
        self.difference += other.difference;
        self.max = self.max.max(other.max);
    }

    /// `count` equal elements whose squares are not known (yet).
    pub fn equal(count: u64) -> Apart {
        let mut out = Apart { elements: count, ..Apart::default() };
        out.classes[0] = count;
        out
    }

    fn count(&mut self, ulps: u64) {
        let class = CLASSES.iter().position(|&(_, most)| ulps <= most).unwrap_or(CLASSES.len() - 1);
        self.classes[class] += 1;
        self.max_ulps = self.max_ulps.max(ulps);
    }

    fn number(&mut self, a: f64, b: f64) {
        let difference = if a == b { 0.0 } else { a - b };
        self.difference += difference * difference;
        self.max = self.max.max(difference.abs());
        if a.is_finite() {
            self.first += a * a;
        }
    }
}

/// Whether elements of this type are numbers that can be told apart by more than their bytes.
pub fn has_numbers(dtype: Dtype) -> bool {
    dtype::is_float(dtype) || is_integer(dtype)
}

fn is_integer(dtype: Dtype) -> bool {
    use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(dtype, BOOL | U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
}

/// Elements of one type against others of it.
pub fn same_type(dtype: Dtype, a: &[u8], b: &[u8]) -> Result<Apart> {
    match dtype {
        Dtype::F32 => floats(dtype, a, b, |w: [u8; 4]| u32::from_le_bytes(w)),
        Dtype::BF16 | Dtype::F16 => floats(dtype, a, b, |w: [u8; 2]| u32::from(u16::from_le_bytes(w))),
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => floats(dtype, a, b, |[w]: [u8; 1]| u32::from(w)),
        Dtype::F64 => Ok(doubles(a, b)),
        _ if is_integer(dtype) => Ok(integers(dtype, a, b)),
        _ => Ok(opaque(dtype, a, b)),
    }
}

/// Elements of one floating-point type against the values of another.
pub fn values(first: Dtype, a: &[u8], second: Dtype, b: &[u8]) -> Result<Apart> {
    Ok(numbers(&cast::widen_f64(first, a)?, &cast::widen_f64(second, b)?))
}

/// Numbers against others. Units in the last place are not counted.
pub fn numbers(a: &[f64], b: &[f64]) -> Apart {
    let mut out = Apart { elements: a.len() as u64, ..Apart::default() };
    for (&a, &b) in a.iter().zip(b) {
        if a.is_nan() || b.is_nan() {
            let differ = a.is_nan() != b.is_nan();
            out.nan += u64::from(differ);
            out.differing += u64::from(differ);
        } else {
            out.differing += u64::from(a != b);
            out.number(a, b);
        }
    }
    out
}

/// Σ a² over the finite elements, for a run that is equal on both sides.
pub fn squares(dtype: Dtype, bytes: &[u8]) -> Result<f64> {
    if !dtype::is_float(dtype) {
        let sum = bytes.chunks_exact((dtype.bitsize() / 8).max(1)).map(|w| (integer(dtype, w) as f64).powi(2)).sum();
        return Ok(if is_integer(dtype) { sum } else { 0.0 });
    }
    if dtype == Dtype::F64 {
        let finite = |v: f64| if v.is_finite() { v * v } else { 0.0 };
        return Ok(bytes.as_chunks::<8>().0.iter().map(|w| finite(f64::from_le_bytes(*w))).sum());
    }
    let size = dtype.bitsize() / 8;
    let (mut wide, mut sum) = ([0f32; RUN], 0.0);
    for run in bytes.chunks(RUN * size) {
        let wide = &mut wide[..run.len() / size];
        cast::widen(dtype, run, wide)?;
        let own = crate::kernels::sum_of_squares(wide);
        sum += if own.is_finite() {
            own
        } else {
            wide.iter().filter(|v| v.is_finite()).map(|&v| f64::from(v) * f64::from(v)).sum()
        };
    }
    Ok(sum)
}

fn floats<const N: usize>(dtype: Dtype, a: &[u8], b: &[u8], word: impl Fn([u8; N]) -> u32) -> Result<Apart> {
    let bits = dtype.bitsize() as u32;
    let (mut wide_a, mut wide_b, mut ulps) = ([0f32; RUN], [0f32; RUN], [0u32; RUN]);
    let mut out = Apart::default();
    for (a, b) in a.as_chunks::<N>().0.chunks(RUN).zip(b.as_chunks::<N>().0.chunks(RUN)) {
        let (wide_a, wide_b, ulps) = (&mut wide_a[..a.len()], &mut wide_b[..a.len()], &mut ulps[..a.len()]);
        cast::widen(dtype, a.as_flattened(), wide_a)?;
        cast::widen(dtype, b.as_flattened(), wide_b)?;
        let mut differing = 0u32;
        for ((ulps, &x), &y) in ulps.iter_mut().zip(a).zip(b) {
            let (x, y) = (word(x), word(y));
            *ulps = place_of(x, bits).abs_diff(place_of(y, bits));
            differing = differing.wrapping_add(u32::from(x != y));
        }
        let run = Run { a: wide_a, b: wide_b, ulps };
        let mut own = run.in_lanes();
        if !(own.first.is_finite() && own.difference.is_finite()) {
            own = run.one_by_one(a, b);
        }
        own.differing = u64::from(differing);
        out.add(&own);
    }
    Ok(out)
}

/// An element's place among the values of its type, as a number whose differences are [`ordinal::ulps`]: the magnitude
/// with its sign, so that the two zeros are one.
fn place_of(pattern: u32, bits: u32) -> i32 {
    let sign = pattern >> (bits - 1) & 1;
    let magnitude = (pattern & (u32::MAX >> (33 - bits))) as i32;
    if sign == 1 { magnitude.wrapping_neg() } else { magnitude }
}

/// Elements widened, and their distances.
struct Run<'a> {
    a: &'a [f32],
    b: &'a [f32],
    ulps: &'a [u32],
}

impl Run<'_> {
    /// Sums in lanes; they are not finite where an element is not.
    fn in_lanes(&self) -> Apart {
        let mut out = Apart { elements: self.a.len() as u64, ..Apart::default() };
        out.max_ulps = u64::from(self.ulps.iter().copied().fold(0, u32::max));
        // How many are at most so far apart; the classes are the differences of these. A loop for each, over all.
        let mut below = 0;
        for (class, &(_, most)) in out.classes.iter_mut().zip(&CLASSES) {
            let most = u32::try_from(most).unwrap_or(u32::MAX);
            let within = self.ulps.iter().fold(0u32, |n, &ulps| n.wrapping_add(u32::from(ulps <= most)));
            *class = u64::from(within - below);
            below = within;
        }
        let (mut first, mut difference, mut max) = ([0f64; LANES], [0f64; LANES], [0f64; LANES]);
        let (a, a_rest) = self.a.as_chunks::<LANES>();
        let (b, b_rest) = self.b.as_chunks::<LANES>();
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                let (x, y) = (f64::from(a[lane]), f64::from(b[lane]));
                let d = x - y;
                first[lane] += x * x;
                difference[lane] += d * d;
                max[lane] = if d.abs() > max[lane] { d.abs() } else { max[lane] };
            }
        }
        out.first = first.iter().sum();
        out.difference = difference.iter().sum();
        out.max = max.into_iter().fold(0.0, f64::max);
        for (&x, &y) in a_rest.iter().zip(b_rest) {
            let (x, y) = (f64::from(x), f64::from(y));
            out.first += x * x;
            out.difference += (x - y) * (x - y);
            out.max = out.max.max((x - y).abs());
        }
        out
    }

    fn one_by_one<const N: usize>(&self, words_a: &[[u8; N]], words_b: &[[u8; N]]) -> Apart {
        let mut out = Apart { elements: self.a.len() as u64, ..Apart::default() };
        for i in 0..self.a.len() {
            let (x, y) = (self.a[i], self.b[i]);
            if words_a[i] == words_b[i] {
                out.count(0);
                out.first += if x.is_finite() { f64::from(x) * f64::from(x) } else { 0.0 };
            } else if x.is_nan() || y.is_nan() {
                out.nan += 1;
            } else {
                out.count(u64::from(self.ulps[i]));
                out.number(f64::from(x), f64::from(y));
            }
        }
        out
    }
}

fn doubles(a: &[u8], b: &[u8]) -> Apart {
    let (a, b) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
    let mut out = Apart { elements: a.len() as u64, ..Apart::default() };
    for (&x, &y) in a.iter().zip(b) {
        out.differing += u64::from(x != y);
        let (p, q) = (u64::from_le_bytes(x), u64::from_le_bytes(y));
        let (x, y) = (f64::from_bits(p), f64::from_bits(q));
        if p != q && (x.is_nan() || y.is_nan()) {
            out.nan += 1;
            continue;
        }
        out.count(ordinal::ulps(ordinal::ordinal(p, 64), ordinal::ordinal(q, 64)));
        if !x.is_nan() {
            out.number(x, y);
        }
    }
    out
}

fn integers(dtype: Dtype, a: &[u8], b: &[u8]) -> Apart {
    let size = dtype.bitsize() / 8;
    let mut out = Apart::default();
    for (x, y) in a.chunks_exact(size).zip(b.chunks_exact(size)) {
        let (p, q) = (integer(dtype, x), integer(dtype, y));
        out.elements += 1;
        out.differing += u64::from(p != q);
        out.count(u64::try_from(p.abs_diff(q)).unwrap_or(u64::MAX));
        out.number(p as f64, q as f64);
    }
    out
}

/// A little-endian integer of any of the integer types.
fn integer(dtype: Dtype, word: &[u8]) -> i128 {
    let mut wide = [0u8; 8];
    for (to, from) in wide.iter_mut().zip(word) {
        *to = *from;
    }
    let pattern = u64::from_le_bytes(wide);
    match dtype {
        Dtype::I8 => i128::from(pattern as i8),
        Dtype::I16 => i128::from(pattern as i16),
        Dtype::I32 => i128::from(pattern as i32),
        Dtype::I64 => i128::from(pattern as i64),
        _ => i128::from(pattern),
    }
}

/// Types that are known by name only: equal or not.
fn opaque(dtype: Dtype, a: &[u8], b: &[u8]) -> Apart {
    let bits = dtype.bitsize();
    let size = if bits.is_multiple_of(8) { bits / 8 } else { 1 };
    let differing = a.chunks(size.max(1)).zip(b.chunks(size.max(1))).filter(|(a, b)| a != b).count() as u64;
    Apart { elements: (a.len() * 8 / bits.max(1)) as u64, differing, ..Apart::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    fn bytes<const N: usize, T: Copy>(values: &[T], f: impl Fn(T) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|&v| f(v)).collect()
    }

    #[test]
    fn places_are_as_far_apart_as_ordinals() {
        let patterns = [0u32, 1, 2, 0x3f80, 0x7f7f, 0x7f80, 0x8000, 0x8001, 0xbf80, 0xff7f, 0xff80];
        for &p in &patterns {
            for &q in &patterns {
                let wanted = ordinal::ulps(ordinal::ordinal(u64::from(p), 16), ordinal::ordinal(u64::from(q), 16));
                assert_eq!(u64::from(place_of(p, 16).abs_diff(place_of(q, 16))), wanted, "{p:#x} {q:#x}");
                let (p, q) = (p << 16 | 5, q << 16 | 3);
                let wanted = ordinal::ulps(ordinal::ordinal(u64::from(p), 32), ordinal::ordinal(u64::from(q), 32));
                assert_eq!(u64::from(place_of(p, 32).abs_diff(place_of(q, 32))), wanted, "{p:#x} {q:#x}");
            }
        }
    }

    #[test]
    fn every_class_is_counted() {
        // Neighbours of 1.0 at known distances: bf16 patterns follow one another.
        let steps = [0u16, 1, 2, 3, 4, 5, 16, 17, 256, 257, 5000];
        let a = bytes(&steps, |_| 0x3f80u16.to_le_bytes());
        let b = bytes(&steps, |s| (0x3f80 + s).to_le_bytes());
        let found = same_type(Dtype::BF16, &a, &b).unwrap();
        assert_eq!(found.classes, [1, 1, 1, 2, 2, 2, 2]);
        assert_eq!((found.max_ulps, found.differing, found.elements, found.nan), (5000, 10, 11, 0));
        let value = |s: u16| bf16::from_bits(0x3f80 + s).to_f64();
        let wanted: f64 = steps.iter().map(|&s| (1.0 - value(s)).powi(2)).sum();
        assert!((found.difference - wanted).abs() < 1e-12 * wanted);
        assert_eq!((found.max, found.first), (value(5000) - 1.0, 11.0));
    }

    /// All types against the definitions, over enough elements for lanes and rest.
    #[test]
    fn sums_are_those_of_the_values() {
        let x: Vec<f64> = (0..700u32).map(|i| (f64::from(i * 37 % 101) - 50.0) / 8.0).collect();
        let y: Vec<f64> = x.iter().enumerate().map(|(i, v)| v + if i % 3 == 0 { 0.125 } else { 0.0 }).collect();
        let sum = |f: &dyn Fn(usize) -> f64| (0..x.len()).map(f).sum::<f64>();
        for dtype in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
            let mut a = vec![0; x.len() * dtype.bitsize() / 8];
            let mut b = a.clone();
            cast::narrow_f64(dtype, &x, &mut a).unwrap();
            cast::narrow_f64(dtype, &y, &mut b).unwrap();
            let found = same_type(dtype, &a, &b).unwrap();
            let (p, q) = (cast::widen_f64(dtype, &a).unwrap(), cast::widen_f64(dtype, &b).unwrap());
            assert!((found.first - sum(&|i| p[i] * p[i])).abs() < 1e-9, "{dtype}");
            assert!((found.difference - sum(&|i| (p[i] - q[i]).powi(2))).abs() < 1e-12, "{dtype}");
            assert_eq!(found.differing, (0..x.len()).filter(|&i| p[i] != q[i]).count() as u64, "{dtype}");
            assert_eq!(found.classes.iter().sum::<u64>(), 700);
            assert!((squares(dtype, &a).unwrap() - found.first).abs() < 1e-9, "{dtype}");
            let other = values(dtype, &a, Dtype::F64, &bytes(&p, f64::to_le_bytes)).unwrap();
            assert_eq!((other.differing, other.difference, other.elements), (0, 0.0, 700));
        }
    }

    #[test]
    fn nan_and_infinity_stand_apart() {
        let a = [1.0f32, f32::NAN, f32::NAN, f32::INFINITY, f32::INFINITY, 2.0];
        let b = [1.0f32, f32::NAN, 3.0, f32::INFINITY, 5.0, 2.5];
        let found = same_type(Dtype::F32, &bytes(&a, f32::to_le_bytes), &bytes(&b, f32::to_le_bytes)).unwrap();
        assert_eq!((found.nan, found.differing, found.elements), (1, 3, 6));
        assert_eq!((found.first, found.difference, found.max), (5.0, f64::INFINITY, f64::INFINITY));
        assert_eq!(found.classes.iter().sum::<u64>(), 5);
        let wide = |v: &[f32]| bytes(v, |v: f32| f64::from(v).to_le_bytes());
        let doubles = same_type(Dtype::F64, &wide(&a), &wide(&b)).unwrap();
        assert_eq!((doubles.nan, doubles.differing, doubles.first), (1, 3, 5.0));
        let mixed = values(Dtype::F32, &bytes(&a, f32::to_le_bytes), Dtype::F64, &wide(&b)).unwrap();
        assert_eq!((mixed.nan, mixed.differing, mixed.first), (1, 3, 5.0));
    }

    #[test]
    fn the_zeros_differ_by_their_bytes_only() {
        let (a, b) = (bytes(&[0.0f32], f32::to_le_bytes), bytes(&[-0.0f32], f32::to_le_bytes));
        let found = same_type(Dtype::F32, &a, &b).unwrap();
        assert_eq!((found.differing, found.max_ulps, found.difference), (1, 0, 0.0));
    }

    #[test]
    fn finite_values_of_any_size_are_summed() {
        let (a, b) = (vec![3e38f32; 20], vec![-3e38f32; 20]);
        let found = same_type(Dtype::F32, &bytes(&a, f32::to_le_bytes), &bytes(&b, f32::to_le_bytes)).unwrap();
        let each = 2.0 * f64::from(3e38f32);
        assert!((found.difference - 20.0 * each * each).abs() < 1e-9 * found.difference);
        let (a, b) = (vec![1e-40f32; 20], vec![0f32; 20]);
        let found = same_type(Dtype::F32, &bytes(&a, f32::to_le_bytes), &bytes(&b, f32::to_le_bytes)).unwrap();
        assert!(found.difference > 0.0);
    }

    #[test]
    fn integers_are_their_own_units() {
        let (a, b) = (bytes(&[-1i8, 100, 5], |v: i8| v.to_le_bytes()), bytes(&[1i8, -100, 5], |v: i8| v.to_le_bytes()));
        let found = same_type(Dtype::I8, &a, &b).unwrap();
        assert_eq!((found.max_ulps, found.differing, found.max, found.first), (200, 2, 200.0, 10026.0));
        let (a, b) = (u64::MAX.to_le_bytes(), 0u64.to_le_bytes());
        assert_eq!(same_type(Dtype::U64, &a, &b).unwrap().max_ulps, u64::MAX);
        assert_eq!(squares(Dtype::I8, &[0xff, 2]).unwrap(), 5.0);
    }

    #[test]
    fn types_known_by_name_only_are_equal_or_not() {
        let found = same_type(Dtype::F4, &[0x12, 0x34], &[0x12, 0x35]).unwrap();
        assert_eq!((found.elements, found.differing, has_numbers(Dtype::F4)), (4, 1, false));
        let e4 = |v: f32| f16::from_f32(v).to_bits().to_le_bytes()[1]; // upper half of f16: E5M2
        assert_eq!(same_type(Dtype::F8_E5M2, &[e4(1.0)], &[e4(1.25)]).unwrap().max_ulps, 1);
    }
}

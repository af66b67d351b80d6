//! Tensors that no adapter changes: equal bit for bit, or the base's values rounded once to another type.

use std::ops::Range;

use crate::error::Result;
use crate::kernels::Kernels;
use crate::ops::merge::Merged;
use crate::stream::Produce;
use crate::tensor::ordinal::{ordinals, ulps};
use crate::tensor::{Tensor, cast, dtype};

/// Bytes that are compared at a time where a piece is not equal as a whole.
const STEP_BYTES: usize = 64 << 10;

/// What was found in a tensor that has to be as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Elements that are other ones.
    pub differing: u64,
    /// Most values between one of them and the right one; none for types whose elements are no whole bytes.
    pub max_ulps: u64,
    /// Number of the first of them.
    pub first: Option<u64>,
}

impl Kept {
    /// Adds a later part.
    pub fn add(&mut self, other: &Kept) {
        self.differing += other.differing;
        self.max_ulps = self.max_ulps.max(other.max_ulps);
        self.first = self.first.or(other.first);
    }
}

/// Elements as they are counted here: bytes where an element is smaller.
pub fn elements(tensor: &Tensor) -> usize {
    tensor.bytes.len() / size(tensor)
}

/// Bytes of an element.
fn size(tensor: &Tensor) -> usize {
    (tensor.dtype.bitsize() / 8).max(1)
}

/// Compares some elements and lets their pages go.
pub fn compare(expected: &Tensor, found: &Tensor, range: Range<usize>) -> Result<Kept> {
    let bytes = |tensor: &Tensor| range.start * size(tensor)..range.end * size(tensor);
    for tensor in [expected, found] {
        tensor.bytes.fetch(bytes(tensor));
    }
    let out = steps(expected, found, range.clone());
    for tensor in [expected, found] {
        tensor.bytes.release(bytes(tensor));
    }
    out
}

/// Compares some rows with what is made of the base's, and lets their pages go.
pub fn compare_rows(expected: &Merged, found: &Tensor, rows: Range<usize>, kernels: &dyn Kernels) -> Result<Kept> {
    let cols = expected.matrix().1;
    let bytes = rows.start * cols * size(found)..rows.end * cols * size(found);
    found.bytes.fetch(bytes.clone());
    let mut right = vec![0u8; bytes.len()];
    expected.produce(kernels, rows.clone(), &mut right)?;
    let out = each(found, &right, &found.bytes.as_slice()[bytes.clone()], rows.start * cols);
    found.bytes.release(bytes);
    Ok(out)
}

fn steps(expected: &Tensor, found: &Tensor, range: Range<usize>) -> Result<Kept> {
    let part = |tensor: &Tensor, range: &Range<usize>| -> Range<usize> {
        range.start * size(tensor)..range.end * size(tensor)
    };
    let mut out = Kept::default();
    let same_type = expected.dtype == found.dtype;
    let (all, here) = (expected.bytes.as_slice(), found.bytes.as_slice());
    if same_type && all[part(expected, &range)] == here[part(found, &range)] {
        return Ok(out);
    }
    let step = STEP_BYTES / size(found);
    let mut rounded = vec![0u8; step * size(found)];
    for start in range.clone().step_by(step) {
        let range = start..(start + step).min(range.end);
        let here = &here[part(found, &range)];
        let right = &all[part(expected, &range)];
        let right = if same_type {
            right
        } else {
            let rounded = &mut rounded[..here.len()];
            cast::narrow_f64(found.dtype, &cast::widen_f64(expected.dtype, right)?, rounded)?;
            &*rounded
        };
        if right != here {
            out.add(&each(found, right, here, start));
        }
    }
    Ok(out)
}

/// Counts the elements that differ; `start` is the number of the first.
fn each(tensor: &Tensor, right: &[u8], here: &[u8], start: usize) -> Kept {
    let mut out = Kept::default();
    let size = size(tensor);
    let far: Box<dyn Iterator<Item = u64>> = match (ordinals(tensor.dtype, right), ordinals(tensor.dtype, here)) {
        (Some(right), Some(here)) => Box::new(right.zip(here).map(|(a, b)| ulps(a, b))),
        _ => Box::new(std::iter::repeat(0)),
    };
    for (i, ((a, b), ulps)) in right.chunks(size).zip(here.chunks(size)).zip(far).enumerate() {
        if a != b {
            out.differing += 1;
            out.first.get_or_insert((start + i) as u64);
            if dtype::is_float(tensor.dtype) {
                out.max_ulps = out.max_ulps.max(ulps);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Dtype, Shape};

    fn tensor(dtype: Dtype, values: &[f32]) -> Tensor {
        Tensor::from_f32(dtype, vec![values.len()], values).unwrap()
    }

    #[test]
    fn equal_tensors_are_equal_and_one_bit_is_seen() {
        let values: Vec<f32> = (0..100_000).map(|i| i as f32).collect();
        let a = tensor(Dtype::F32, &values);
        assert_eq!(compare(&a, &a, 0..100_000).unwrap(), Kept::default());
        let mut other = values.clone();
        other[70_000] = f32::from_bits(values[70_000].to_bits() + 2);
        let b = tensor(Dtype::F32, &other);
        assert_eq!(compare(&a, &b, 0..100_000).unwrap(), Kept { differing: 1, max_ulps: 2, first: Some(70_000) });
        assert_eq!(compare(&a, &b, 0..70_000).unwrap(), Kept::default());
    }

    #[test]
    fn the_sign_of_a_zero_counts() {
        let (a, b) = (tensor(Dtype::F16, &[0.0, 1.0]), tensor(Dtype::F16, &[-0.0, 1.0]));
        assert_eq!(compare(&a, &b, 0..2).unwrap(), Kept { differing: 1, max_ulps: 0, first: Some(0) });
    }

    #[test]
    fn another_type_has_to_be_rounded_once() {
        let wide = tensor(Dtype::F32, &[1.0, 1.004, 3.0]);
        let right = tensor(Dtype::BF16, &[1.0, 1.007_812_5, 3.0]);
        let wrong = tensor(Dtype::BF16, &[1.0, 1.0, 3.0]);
        assert_eq!(compare(&wide, &right, 0..3).unwrap(), Kept::default());
        assert_eq!(compare(&wide, &wrong, 0..3).unwrap(), Kept { differing: 1, max_ulps: 1, first: Some(1) });
    }

    #[test]
    fn integers_and_small_types_are_compared_by_bytes() {
        let whole = |dtype, bytes: Vec<u8>, n: usize| Tensor::new(dtype, Shape::new([n]), bytes.into()).unwrap();
        let (a, b) = (whole(Dtype::I64, vec![1; 16], 2), whole(Dtype::I64, [vec![1; 8], vec![2; 8]].concat(), 2));
        assert_eq!(compare(&a, &b, 0..2).unwrap(), Kept { differing: 1, max_ulps: 0, first: Some(1) });
        let (a, b) = (whole(Dtype::F4, vec![1, 2], 4), whole(Dtype::F4, vec![1, 3], 4));
        assert_eq!(compare(&a, &b, 0..elements(&a)).unwrap(), Kept { differing: 1, max_ulps: 0, first: Some(1) });
    }
}

//! Shapes: element counts with overflow checked, and the two-dimensional view that deltas act on.

use std::fmt;
use std::ops::Range;

use crate::error::{Error, Result};

/// The extents of a tensor, outermost first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// A shape of these extents.
    pub fn new(dims: impl Into<Vec<usize>>) -> Self {
        Shape(dims.into())
    }

    /// The extents.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// Number of dimensions; a scalar has none.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Number of elements, or an error where the product does not fit.
    pub fn elements(&self) -> Result<usize> {
        self.0
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .ok_or_else(|| Error::malformed(format!("shape {self} overflows")))
    }

    /// The matrix a weight is treated as, `[rows, cols]`: a scalar is `[1, 1]`, a vector `[n, 1]` (one row an output
    /// feature), a matrix itself, a convolution `[out, in · kernel]`.
    pub fn matrix(&self) -> (usize, usize) {
        match self.0.as_slice() {
            [] => (1, 1),
            [n, rest @ ..] => (*n, rest.iter().fold(1, |all, &d| all.saturating_mul(d))), // no rows of any length
        }
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Shape(dims.to_vec())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Which rows of a matrix can be computed without the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Any range.
    Any,
    /// Ranges that start and end at multiples of this number (the last may end with the matrix).
    Multiple(usize),
    /// Only all of them together.
    Whole,
}

impl Rows {
    /// Whether these of `all` rows can be computed by themselves.
    pub fn admits(self, rows: &Range<usize>, all: usize) -> bool {
        match self {
            Rows::Any => true,
            Rows::Multiple(n) => [rows.start, rows.end].iter().all(|&at| at == all || at % n.max(1) == 0),
            Rows::Whole => *rows == (0..all),
        }
    }

    /// The rule that satisfies both.
    #[must_use]
    pub fn and(self, other: Rows) -> Rows {
        match (self, other) {
            (Rows::Whole, _) | (_, Rows::Whole) => Rows::Whole,
            (Rows::Any, rule) | (rule, Rows::Any) => rule,
            (Rows::Multiple(a), Rows::Multiple(b)) => Rows::Multiple(lcm(a, b)),
        }
    }
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a.max(1), b.max(1));
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a.max(1) / x).saturating_mul(b.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_rules_combine_to_the_stricter_one() {
        assert_eq!(Rows::Any.and(Rows::Multiple(8)), Rows::Multiple(8));
        assert_eq!(Rows::Multiple(6).and(Rows::Multiple(4)), Rows::Multiple(12));
        assert_eq!(Rows::Multiple(6).and(Rows::Whole), Rows::Whole);
    }
}

//! Which output rows of one module are those of another: where they lie, and in what order.

use std::ops::Range;

/// Rows of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// All of them.
    Whole,
    /// Those of one of its parts.
    Part {
        /// Which part, from zero.
        number: usize,
        /// How many rows the parts have.
        of: Ratio,
    },
}

impl Rows {
    /// The rows, in a module that has `total`. None if the parts do not come out even.
    pub fn range(self, total: u64) -> Option<Range<u64>> {
        match self {
            Rows::Whole => Some(0..total),
            Rows::Part { number, of } => of.range(number, total),
        }
    }
}

/// How many rows the parts of a module have, in relation to each other: `1:1:1`, or `3:1:1` where three queries share a
/// key and a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ratio(pub &'static [u64]);

impl Ratio {
    /// The rows of a part, in a module that has `total`. None if the parts do not come out even.
    pub fn range(self, part: usize, total: u64) -> Option<Range<u64>> {
        let sum: u64 = self.0.iter().sum();
        let unit = total.checked_div(sum).filter(|unit| unit * sum == total)?;
        let size = self.0.get(part)? * unit;
        let start = self.0.iter().take(part).sum::<u64>() * unit;
        Some(start..start + size)
    }

    /// The rows of all parts, one after the other.
    pub fn ranges(self, total: u64) -> Option<Vec<Range<u64>>> {
        (0..self.0.len()).map(|part| self.range(part, total)).collect()
    }

    /// The rows of the whole, if a part has `rows`.
    pub fn total(self, part: usize, rows: u64) -> Option<u64> {
        let share = *self.0.get(part)?;
        let unit = rows.checked_div(share).filter(|unit| unit * share == rows)?;
        unit.checked_mul(self.0.iter().sum())
    }
}

/// How the output rows of the one naming lie in the other. It concerns whatever has output rows (`B`, a bias, a full
/// difference, a magnitude along the output), never the input side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// As they are.
    Same,
    /// The two halves of the rows have changed places.
    SwapHalves,
    /// The weight is transposed.
    Transposed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_one_after_the_other() {
        let flux = Ratio(&[1, 1, 1, 4]);
        assert_eq!(flux.ranges(21504), Some(vec![0..3072, 3072..6144, 6144..9216, 9216..21504]));
        assert_eq!(Ratio(&[3, 1, 1]).ranges(3840), Some(vec![0..2304, 2304..3072, 3072..3840]));
        assert_eq!((flux.range(0, 21505), flux.range(4, 21504)), (None, None));
        assert_eq!((flux.total(3, 12288), flux.total(3, 12289), flux.total(0, u64::MAX)), (Some(21504), None, None));
        assert_eq!(Rows::Whole.range(7), Some(0..7));
    }
}

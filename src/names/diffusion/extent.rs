//! Sizes written as small formulas: `3d+f`, `n-1`, `64`, and shapes made of them: `3d d`, `o i 3 3`.
//!
//! A table gives the extents of a module in letters, for all sizes a family comes in. What the letters stand for is a
//! list of [`Extent`]s: those of a [`Variant`](super::Variant), or what the caller counted in a base model.

/// A letter (or a short word) of the formulas, and its number.
pub type Extent = (&'static str, u64);

/// The number a letter stands for; of several the last.
pub fn letter(name: &str, extents: &[Extent]) -> Option<u64> {
    extents.iter().rev().find(|(letter, _)| *letter == name).map(|(_, number)| *number)
}

/// The value of a formula, if all of its letters are known and nothing overflows or falls below zero.
pub(super) fn value(formula: &str, extents: &[Extent]) -> Option<u64> {
    let mut total = 0i128;
    let mut rest = formula;
    let mut sign = 1;
    loop {
        let end = rest.find(['+', '-']).unwrap_or(rest.len());
        let (term, tail) = rest.split_at_checked(end)?;
        total = total.checked_add(sign * i128::from(term_value(term, extents)?))?;
        let mut tail = tail.chars();
        match tail.next() {
            None => return u64::try_from(total).ok(),
            Some(operator) => sign = if operator == '+' { 1 } else { -1 },
        }
        rest = tail.as_str();
    }
}

/// The value of `3d`, `d` or `3`.
fn term_value(term: &str, extents: &[Extent]) -> Option<u64> {
    let start = term.find(|c: char| !c.is_ascii_digit()).unwrap_or(term.len());
    let (factor, name) = term.split_at_checked(start)?;
    let factor = if factor.is_empty() { 1 } else { factor.parse().ok()? };
    match name {
        "" if term.is_empty() => None,
        "" => Some(factor),
        name => letter(name, extents)?.checked_mul(factor),
    }
}

/// The extents of a shape, if all of its letters are known.
pub(super) fn shape(formulas: &str, extents: &[Extent]) -> Option<Vec<u64>> {
    formulas.split(' ').filter(|f| !f.is_empty()).map(|f| value(f, extents)).collect()
}

/// The numbers a block may have: `n` is any number, of which a whole model has those below `n`; `a..b` is exact, and
/// `a..b/3` is every third of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count(pub &'static str);

impl Count {
    /// The numbers a whole model has.
    pub(super) fn range(self, extents: &[Extent]) -> Option<impl Iterator<Item = u64> + Clone + use<>> {
        let bounds = self.bounds(extents);
        let step = usize::try_from(bounds.step).ok()?;
        Some((bounds.from?..bounds.to?).step_by(step.max(1)))
    }

    /// What is known of it.
    pub(super) fn bounds(self, extents: &[Extent]) -> Bounds {
        let (range, step) = self.0.split_once('/').unwrap_or((self.0, "1"));
        let (from, to) = range.split_once("..").unwrap_or(("0", range));
        let step = value(step, extents).unwrap_or(1).max(1);
        Bounds { from: value(from, extents), to: value(to, extents), step, exact: range.contains("..") }
    }
}

/// A count with numbers in it, as far as they are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    from: Option<u64>,
    /// The number after the last.
    to: Option<u64>,
    /// How far one is from the next, at least one.
    step: u64,
    exact: bool,
}

impl Bounds {
    /// Whether a block of a whole model has this number.
    pub(super) fn contain(self, number: u64) -> bool {
        let in_step = |from: u64| number.checked_sub(from).is_some_and(|n| n.is_multiple_of(self.step));
        self.from.is_none_or(in_step) && self.to.is_none_or(|to| number < to)
    }

    /// Whether a block of any model has it.
    pub(super) fn admit(self, number: u64) -> bool {
        !self.exact || self.contain(number)
    }

    /// Whether it is the last that a whole model has.
    pub(super) fn end(self, number: u64) -> bool {
        let next = number.checked_add(self.step);
        number > 0 && self.contain(number) && self.to.zip(next).is_some_and(|(to, next)| next >= to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: &[Extent] = &[("d", 3072), ("f", 12288), ("n", 19)];

    #[test]
    fn formulas_have_values() {
        assert_eq!(value("3d+f", SIZES), Some(21504));
        assert_eq!(value("n-1", SIZES), Some(18));
        assert_eq!(value("64", SIZES), Some(64));
        for bad in ["", "d+", "x", "1-n", "99999999999999999999d", "18446744073709551615d"] {
            assert_eq!(value(bad, SIZES), None, "{bad}");
        }
        assert_eq!(shape("3d d", SIZES), Some(vec![9216, 3072]));
        assert_eq!(shape("3d x", SIZES), None);
    }

    #[test]
    fn a_plain_count_is_open_and_a_range_is_not() {
        let numbers = |count| Count(count).range(SIZES).map(Iterator::collect::<Vec<u64>>);
        assert_eq!(numbers("n"), Some((0..19).collect()));
        assert_eq!((numbers("1..n/5"), numbers("x/2")), (Some(vec![1, 6, 11, 16]), None));
        let admit = |count, number| Count(count).bounds(SIZES).admit(number);
        assert!(admit("n", 40) && !Count("n").bounds(SIZES).contain(40));
        assert!(admit("0..n-1", 17) && !admit("0..n-1", 18));
        assert!(admit("n-1..n", 18) && !admit("n-1..n", 17));
        assert!(admit("1..n/5", 16) && !admit("1..n/5", 15) && !admit("1..n/5", 21) && !admit("1..n/5", 0));
        let end = |count, number| Count(count).bounds(SIZES).end(number);
        assert!(end("n", 18) && !end("n", 17) && !end("0..1", 0) && end("1..n/5", 16) && !end("1..n/5", 11));
        assert!(Count("n-1..n").bounds(&[]).admit(17), "nothing is known of n");
    }
}

//! What the conversion of a base does to a weight, as data that leads there and back: rows are put into parts, parts
//! into an order, and each part goes to one of the tensors that GGUF has for the module.
//!
//! Source: ggml-org/llama.cpp, `conversion/*.py`. Of an adapter only the rows of B, or the columns of A, move.

use std::collections::BTreeMap;

use super::words;
use crate::error::{Error, Result};
use crate::limits;

/// The change of one weight.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// Of its rows.
    Rows(Cut),
    /// Of its columns, which go to one tensor.
    Columns(Cut),
}

/// Rows in groups of one size, each of the same parts one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// How many groups there are.
    pub groups: Groups,
    /// The parts of a group.
    pub parts: &'static [Part],
}

/// A number of groups.
#[derive(Clone, Copy, Debug)]
pub enum Groups {
    /// All rows are one group.
    One,
    /// Every part of every group is one row.
    Most,
    /// As many as the base has of these, a name in [`crate::adapter::Adapter::about`].
    Of(&'static str),
}

/// A part of every group. Those of all groups together follow each other in the tensor.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Which tensor it goes to.
    pub to: usize,
    /// Its share of the rows, against the other parts: the product of these numbers of the base.
    pub share: &'static [&'static str],
    /// How its rows, of all groups together, stand in the tensor.
    pub order: Order,
    /// What they are multiplied with: the product of these multipliers of the base.
    pub times: &'static [&'static str],
}

/// An order of rows.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// As they are.
    Same,
    /// So many heads: of each, row `2j + t` is what was row `t·D/2 + j`, for the rotary embedding of neighbours
    /// (`permute` in `conversion/llama.py`).
    Neighbours(&'static str),
    /// Heads of the second number, which stood together by the first, take turns:
    /// `[keys, values / keys, D]` becomes `[values / keys, keys, D]` (`_reorder_v_heads` in `conversion/qwen.py`).
    Turns(&'static str, &'static str),
}

/// One tensor, whose rows are so many heads in the order of the rotary embedding of neighbours.
pub const fn neighbours(part: &'static [Part]) -> Change {
    Change::Rows(Cut { groups: Groups::One, parts: part })
}

impl Change {
    /// The cut, of whichever side.
    pub fn cut(&self) -> &Cut {
        match self {
            Change::Rows(cut) | Change::Columns(cut) => cut,
        }
    }
}

impl Cut {
    /// The numbers of the base it depends on.
    pub fn needs(&self) -> Vec<&'static str> {
        let groups = match self.groups {
            Groups::Of(name) => Some(name),
            _ => None,
        };
        let of_part = |part: &Part| {
            let order = match part.order {
                Order::Same => [None, None],
                Order::Neighbours(heads) => [Some(heads), None],
                Order::Turns(keys, values) => [Some(keys), Some(values)],
            };
            part.share.iter().copied().chain(order.into_iter().flatten()).collect::<Vec<_>>()
        };
        groups.into_iter().chain(self.parts.iter().flat_map(of_part)).collect()
    }

    /// The first of these numbers that is not known.
    pub fn missing(&self, about: &BTreeMap<String, String>) -> Option<&'static str> {
        let times = self.parts.iter().flat_map(|part| part.times.iter().copied());
        let unknown = times.filter(|name| words::multiplier(about, name).is_none());
        self.needs().into_iter().filter(|name| words::number(about, name).is_none()).chain(unknown).next()
    }

    /// For each tensor, what each of its rows is multiplied with; none where that is 1 for all.
    pub fn multipliers(&self, plan: &[Vec<usize>], about: &BTreeMap<String, String>) -> Result<Option<Vec<Vec<f64>>>> {
        if self.parts.iter().all(|part| part.times.is_empty()) {
            return Ok(None);
        }
        let shares = self.shares(about)?;
        let (sum, rows) = (total(&shares)?, plan.iter().map(Vec::len).sum::<usize>());
        let mut out = vec![Vec::new(); plan.len()];
        for (part, share) in self.parts.iter().zip(shares) {
            let product = part.times.iter().try_fold(1.0, |product, name| {
                let what = || Error::missing(format!("{name} is not known, and llama.cpp has it in the weight"));
                let multiplier = words::multiplier(about, name).ok_or_else(what)?;
                Ok::<f64, Error>(product * multiplier)
            })?;
            let count = rows / sum * share; // no overflow: `plan` was made of the same shares
            if let Some(all) = out.get_mut(part.to) {
                all.extend(std::iter::repeat_n(product, count));
            }
        }
        Ok(Some(out))
    }

    /// For each tensor, which of the weight's `rows` rows it has, in its order.
    pub fn plan(&self, rows: usize, about: &BTreeMap<String, String>) -> Result<Vec<Vec<usize>>> {
        let shares = self.shares(about)?;
        let sum = total(&shares)?;
        let groups = match self.groups {
            Groups::One => 1,
            Groups::Most => rows / sum,
            Groups::Of(name) => known(about, name)?,
        };
        let size = rows / groups.max(1);
        let width = |share: usize| share.checked_mul(size).filter(|all| all % sum == 0).map(|all| all / sum);
        let widths: Option<Vec<usize>> = shares.iter().map(|share| width(*share)).collect();
        let widths = widths.filter(|_| size > 0 && size.checked_mul(groups) == Some(rows));
        let widths = widths.ok_or_else(|| {
            let what = format!("{rows} rows, which are not {groups} times {shares:?} parts of one size");
            Error::mismatch(what).hint("is this the config of the base model the adapter was trained on?")
        })?;
        let count = self.parts.iter().map(|part| part.to + 1).max().unwrap_or(0);
        let (mut out, mut start) = (vec![Vec::new(); count], 0);
        for (part, width) in self.parts.iter().zip(widths) {
            let all = (0..groups).flat_map(|group| group * size + start..group * size + start + width).collect();
            out[part.to].extend(part.order.applied(all, about)?);
            start += width;
        }
        Ok(out)
    }

    /// How many rows a weight has that has `rows` in one of its tensors.
    pub fn rows(&self, tensor: usize, rows: usize, about: &BTreeMap<String, String>) -> Result<usize> {
        let shares = self.shares(about)?;
        let own = self.parts.iter().zip(&shares).filter(|(part, _)| part.to == tensor).map(|(_, share)| *share);
        let (own, sum) = (own.sum::<usize>().max(1), total(&shares)?);
        let all = rows.checked_mul(sum).filter(|all| all % own == 0).map(|all| all / own);
        let all = all.ok_or_else(|| Error::mismatch(format!("{rows} rows, which are not {own} parts of {sum}")))?;
        if own != sum && all > limits::GGUF_ROWS {
            return Err(Error::limit(format!("a weight of {all} rows"), limits::GGUF_ROWS));
        }
        Ok(all)
    }

    fn shares(&self, about: &BTreeMap<String, String>) -> Result<Vec<usize>> {
        let share = |part: &Part| {
            part.share.iter().try_fold(1usize, |product, name| {
                let number = known(about, name)?;
                product.checked_mul(number).ok_or_else(|| Error::malformed(format!("{name} is too large")))
            })
        };
        self.parts.iter().map(share).collect()
    }
}

fn total(shares: &[usize]) -> Result<usize> {
    let sum = shares.iter().try_fold(0usize, |sum, share| sum.checked_add(*share)).filter(|sum| *sum > 0);
    sum.ok_or_else(|| Error::malformed("numbers of the base that are too large"))
}

fn known(about: &BTreeMap<String, String>, name: &str) -> Result<usize> {
    words::number(about, name).ok_or_else(|| {
        let what = format!("{name} is not known, and llama.cpp has the rows in an order that depends on it");
        Error::missing(what).hint("the config.json of the base model says it")
    })
}

impl Order {
    fn applied(self, rows: Vec<usize>, about: &BTreeMap<String, String>) -> Result<Vec<usize>> {
        let heads = match self {
            Order::Same => return Ok(rows),
            Order::Neighbours(heads) => known(about, heads)?,
            Order::Turns(_, values) => known(about, values)?,
        };
        let width = rows.len() / heads;
        let fits = width > 0 && width * heads == rows.len();
        let from: Box<dyn Fn(usize) -> usize> = match self {
            Order::Turns(keys, _) => {
                let keys = known(about, keys)?;
                let each = heads / keys;
                if !fits || each * keys != heads {
                    return Err(unfit(rows.len(), &format!("{heads} heads by {keys}")));
                }
                Box::new(move |at| {
                    let (head, inside) = (at / width, at % width);
                    (head % keys * each + head / keys) * width + inside
                })
            }
            _ if fits && width.is_multiple_of(2) => {
                Box::new(move |at| at / width * width + at % width % 2 * (width / 2) + at % width / 2)
            }
            _ => return Err(unfit(rows.len(), &format!("{heads} heads of an even size"))),
        };
        Ok((0..rows.len()).filter_map(|at| rows.get(from(at)).copied()).collect())
    }
}

fn unfit(rows: usize, wanted: &str) -> Error {
    Error::mismatch(format!("{rows} rows, which are not {wanted}"))
        .hint("is this the config of the base model the adapter was trained on?")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(numbers: &[(&str, usize)]) -> BTreeMap<String, String> {
        numbers.iter().map(|(name, number)| ((*name).to_string(), number.to_string())).collect()
    }

    fn part(to: usize, share: &'static [&'static str], order: Order) -> Part {
        Part { to, share, order, times: &[] }
    }

    fn cut(groups: Groups, parts: Vec<Part>) -> Cut {
        Cut { groups, parts: Vec::leak(parts) }
    }

    #[test]
    fn neighbours_are_those_of_numpy() {
        // numpy's arange(8).reshape(2, 2, 2).swapaxes(1, 2).reshape(8): two heads of four
        let cut = cut(Groups::One, vec![part(0, &[], Order::Neighbours("h"))]);
        assert_eq!(cut.plan(8, &about(&[("h", 2)])).unwrap(), [[0, 2, 1, 3, 4, 6, 5, 7]]);
        for heads in [3, 8, 100] {
            assert!(cut.plan(8, &about(&[("h", heads)])).is_err());
        }
        assert!(cut.plan(8, &about(&[("h", 0)])).unwrap_err().to_string().contains("not known"));
        assert_eq!(cut.missing(&about(&[])), Some("h"));
    }

    #[test]
    fn parts_of_groups_follow_each_other() {
        // numpy's arange(12).reshape(2, 3, 2)[:, i].reshape(-1)
        let same = |to| part(to, &[], Order::Same);
        let qkv = cut(Groups::Of("h"), vec![same(0), same(1), same(1)]);
        assert_eq!(qkv.plan(12, &about(&[("h", 2)])).unwrap(), [vec![0, 1, 6, 7], vec![2, 3, 8, 9, 4, 5, 10, 11]]);
        assert_eq!(qkv.rows(0, 4, &about(&[])).unwrap(), 12);
        assert!(qkv.plan(13, &about(&[("h", 2)])).is_err());
        let stride = cut(Groups::Most, vec![same(0), same(1)]);
        assert_eq!(stride.plan(6, &about(&[])).unwrap(), [[0, 2, 4], [1, 3, 5]]);
        assert!(stride.plan(7, &about(&[])).is_err());
        let shares = cut(Groups::One, vec![part(0, &["a", "b"], Order::Same), part(0, &["b"], Order::Same)]);
        assert_eq!(shares.plan(9, &about(&[("a", 2), ("b", 3)])).unwrap(), [(0..9).collect::<Vec<_>>()]);
        assert!(shares.plan(9, &about(&[("a", usize::MAX), ("b", 3)])).is_err());
    }

    #[test]
    fn parts_have_their_multipliers() {
        let first = Part { to: 0, share: &["a"], order: Order::Same, times: &["x", "y"] };
        let second = Part { to: 0, share: &[], order: Order::Same, times: &["x"] };
        let cut = cut(Groups::One, vec![first, second]);
        let mut about = about(&[("a", 2)]);
        about.insert("x".to_string(), "0.5".to_string());
        let plan = cut.plan(3, &about).unwrap();
        assert_eq!(cut.missing(&about), Some("y"));
        assert!(cut.multipliers(&plan, &about).is_err());
        about.insert("y".to_string(), "3".to_string());
        assert_eq!(cut.multipliers(&plan, &about).unwrap().unwrap(), [[1.5, 1.5, 0.5]]);
        about.insert("y".to_string(), "0".to_string());
        assert_eq!(cut.missing(&about), Some("y"), "there is no way back from 0");
    }

    #[test]
    fn heads_take_turns() {
        // numpy's arange(8).reshape(2, 2, 2).transpose(1, 0, 2).reshape(-1): two keys, four values of two rows
        let cut = cut(Groups::One, vec![part(0, &[], Order::Turns("k", "v"))]);
        assert_eq!(cut.plan(8, &about(&[("k", 2), ("v", 4)])).unwrap(), [[0, 1, 4, 5, 2, 3, 6, 7]]);
        assert!(cut.plan(8, &about(&[("k", 3), ("v", 4)])).is_err());
    }
}

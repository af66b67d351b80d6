//! The fused attention of LitGPT: which of its rows and factors belong to query, key and value.
//!
//! A holds r rows for each part that is trained, B the rows of the outputs of each, in the order query, key, value
//! (Lightning-AI/litgpt:litgpt/lora.py, `LoRAQKVLinear`). Until December 2024 (fabf765b) the base's rows stood group by
//! group.

use crate::adapter::Scale;
use crate::adapter::delta::LowRank;
use crate::error::{Error, Result};
use crate::limits;
use crate::tensor::Tensor;
use crate::tensor::rearrange;

/// Heads of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Of the query.
    pub query: usize,
    /// Of key and value: the groups of the query's.
    pub groups: usize,
    /// Rows of one.
    pub width: usize,
}

impl Heads {
    /// From numbers that may make no sense together.
    pub fn new(query: usize, groups: usize, width: usize) -> Result<Heads> {
        let total = groups.checked_mul(2).and_then(|n| n.checked_add(query)).and_then(|n| n.checked_mul(width));
        if groups == 0
            || width == 0
            || !query.is_multiple_of(groups)
            || total.is_none_or(|n| n > limits::ATTENTION_ROWS)
        {
            let what = format!("{query} heads in {groups} groups of {width} rows, which make no attention");
            return Err(Error::mismatch(what));
        }
        Ok(Heads { query, groups, width })
    }

    /// Rows of query, key and value.
    pub fn rows(self) -> [usize; 3] {
        [self.query * self.width, self.groups * self.width, self.groups * self.width]
    }

    /// For each row of the order group by group its number in that of query, key, value.
    pub fn by_group(self) -> Vec<usize> {
        let each = self.query / self.groups;
        let mut heads = Vec::with_capacity(self.query + 2 * self.groups);
        for group in 0..self.groups {
            heads.extend(group * each..(group + 1) * each);
            heads.extend([self.query + group, self.query + self.groups + group]);
        }
        heads.into_iter().flat_map(|head| head * self.width..(head + 1) * self.width).collect()
    }
}

/// For each number where it stands in `order`, which holds each number once.
pub fn inverse(order: &[usize]) -> Vec<usize> {
    let mut out = vec![0; order.len()];
    for (at, row) in order.iter().enumerate() {
        if let Some(place) = out.get_mut(*row) {
            *place = at;
        }
    }
    out
}

/// Factors of the parts that are trained.
pub fn parts(
    a: &Tensor,
    b: &Tensor,
    trained: [bool; 3],
    rows: [usize; 3],
    scale: Scale,
) -> Result<[Option<LowRank>; 3]> {
    let rank = require_rank(a, b, trained, rows)?;
    let mut out = [None, None, None];
    let (mut top, mut first) = (0, 0);
    for ((place, rows), _) in out.iter_mut().zip(rows).zip(trained).filter(|(_, trained)| *trained) {
        let (a, b) = (rearrange::row_range(a, first..first + rank)?, rearrange::row_range(b, top..top + rows)?);
        *place = Some(LowRank { a, b, scale, experts: None, name: "LoRA" });
        (top, first) = (top + rows, first + rank);
    }
    Ok(out)
}

/// Factors of all rows, group by group, of a file of before December 2024 with all three parts trained. There the
/// product was not put into place: row i of B is row i of the base, while the rows of A that it is multiplied with go by
/// i in the order query, key, value.
pub fn old_whole(a: &Tensor, b: &Tensor, rows: [usize; 3], scale: Scale) -> Result<LowRank> {
    let rank = require_rank(a, b, [true; 3], rows)?;
    let mut blocks = Vec::with_capacity(3);
    let mut top = 0;
    for rows in rows {
        blocks.push(rearrange::row_range(b, top..top + rows)?);
        top += rows;
    }
    let b = rearrange::block_diagonal(&blocks)?;
    Ok(LowRank { a: a.clone(), b, scale: Scale::direct(scale.factor(rank)), experts: None, name: "LoRA" })
}

/// Some rows of a change, without the columns of B (in blocks of `rank`) that are zero in all of them.
pub fn some_rows(whole: &LowRank, rows: &[usize], rank: usize) -> Result<LowRank> {
    let b = rearrange::pick_rows(&whole.b, rows)?;
    let (_, cols) = rearrange::matrix(&b)?;
    let mut kept = Vec::new();
    for block in (0..cols).step_by(rank.max(1)) {
        let block: Vec<usize> = (block..(block + rank).min(cols)).collect();
        if !crate::layout::even::is_zero(&rearrange::pick_cols(&b, &block)?)? {
            kept.extend(block);
        }
    }
    if kept.is_empty() {
        kept.extend(0..rank.min(cols));
    }
    let (a, b) = (rearrange::pick_rows(&whole.a, &kept)?, rearrange::pick_cols(&b, &kept)?);
    Ok(LowRank { a, b, ..whole.clone() })
}

/// The rank, if the factors hold these parts.
fn require_rank(a: &Tensor, b: &Tensor, trained: [bool; 3], rows: [usize; 3]) -> Result<usize> {
    let ((all, _), (outputs, rank)) = (rearrange::matrix(a)?, rearrange::matrix(b)?);
    let count = trained.iter().filter(|t| **t).count();
    let wanted: usize = rows.iter().zip(trained).filter(|(_, t)| *t).map(|(rows, _)| rows).sum();
    if count == 0 || rank == 0 || rank.checked_mul(count) != Some(all) || outputs != wanted {
        let what = format!(
            "lora_A {} and lora_B {}, expected {count} times {rank} rows of A and {wanted} of B for {count} parts",
            a.shape, b.shape
        );
        return Err(Error::mismatch(what).hint("is this the base model the adapter was trained on?"));
    }
    Ok(rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_group_by_group() {
        // Four heads of the query in two groups, each head of one row: q q k v, q q k v.
        let heads = Heads::new(4, 2, 1).unwrap();
        assert_eq!(heads.by_group(), [0, 1, 4, 6, 2, 3, 5, 7]);
        assert_eq!(inverse(&heads.by_group()), [0, 1, 4, 5, 2, 6, 3, 7]);
        assert_eq!(heads.rows(), [4, 2, 2]);
        // One group of two heads is the plain order.
        assert_eq!(Heads::new(2, 1, 3).unwrap().by_group(), (0..12).collect::<Vec<_>>());
        for (query, groups, width) in [(3, 2, 1), (1, 0, 1), (1, 1, 0), (usize::MAX, 1, 2)] {
            assert!(Heads::new(query, groups, width).is_err());
        }
    }
}

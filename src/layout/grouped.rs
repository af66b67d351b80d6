//! Layers of equal blocks of outputs of which some have factors of their own, all in one pair of matrices: A has the
//! groups' rows one below the other, B the blocks' (microsoft/LoRA:loralib/layers.py, `MergedLinear`, a convolution with
//! groups).

use crate::adapter::delta::LowRank;
use crate::adapter::{Scale, fused};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, rearrange};

/// Names of layers that hold query, key and value.
const ATTENTION: [&str; 8] = ["c_attn", "in_proj", "Wqkv", "qkv", "qkv_proj", "query_key_value", "W_pack", "attn_qkv"];

/// More groups than any layer has.
const MAX_GROUPS: usize = 16;

/// True for the name of a layer that holds query, key and value.
pub fn is_attention(leaf: &str) -> bool {
    ATTENTION.contains(&leaf)
}

/// How many groups there are: A [r · m, in], B [m blocks, r].
pub fn count(a: &Tensor, b: &Tensor) -> Result<usize> {
    let ((rows, _), (outputs, rank)) = (rearrange::matrix(a)?, rearrange::matrix(b)?);
    let groups = rows
        .checked_div(rank)
        .filter(|m| (1..=MAX_GROUPS).contains(m) && m * rank == rows && outputs.is_multiple_of(*m));
    groups.ok_or_else(|| {
        let what = format!("lora_A {} and lora_B {} have no rank in common", a.shape, b.shape);
        Error::mismatch(what).hint("the two halves may come from different adapters")
    })
}

/// The factors of the whole layer, whose blocks have factors where `enabled` says so, with this multiplier.
pub fn whole(a: &Tensor, b: &Tensor, enabled: &[bool], scale: f64) -> Result<LowRank> {
    let groups = count(a, b)?;
    if enabled.iter().filter(|on| **on).count() != groups {
        let what = format!("lora_A {} and lora_B {} hold {groups} groups, expected another number", a.shape, b.shape);
        return Err(Error::mismatch(what));
    }
    let (rank, block) = (rearrange::matrix(b)?.1, rearrange::matrix(b)?.0 / groups);
    let mut own = Vec::with_capacity(groups);
    for group in 0..groups {
        let a = rearrange::row_range(a, group * rank..(group + 1) * rank)?;
        let b = rearrange::row_range(b, group * block..(group + 1) * block)?;
        own.push(LowRank { a, b, scale: Scale::direct(scale), experts: None, name: "LoRA" });
    }
    let mut next = own.iter();
    let parts: Vec<_> = enabled.iter().map(|on| if *on { next.next() } else { None }).collect();
    Ok(fused::fuse_factors(&parts, &vec![block; enabled.len()])?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    fn tensor(rows: usize, cols: usize) -> Tensor {
        let values: Vec<_> = (1..=rows * cols).map(|i| i as f32).collect();
        Tensor::from_f32(Dtype::F32, [rows, cols], &values).unwrap()
    }

    #[test]
    fn groups_go_to_their_blocks() {
        // Rank 1, two groups: rows of A are [1, 2] and [3, 4]; blocks of B are [1, 2] and [3, 4].
        let d = whole(&tensor(2, 2), &tensor(4, 1), &[true, false, true], 1.0).unwrap();
        assert_eq!(d.a, tensor(2, 2));
        assert_eq!(d.b.to_f32().unwrap(), [1., 0., 2., 0., 0., 0., 0., 0., 0., 3., 0., 4.]);
        assert!(whole(&tensor(2, 2), &tensor(4, 1), &[true, true, true], 1.0).is_err());
        assert!(count(&tensor(40, 2), &tensor(40, 1)).is_err());
        assert!(count(&tensor(3, 2), &tensor(4, 2)).is_err() && count(&tensor(4, 2), &tensor(5, 2)).is_err());
    }
}

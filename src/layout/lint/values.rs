//! Shapes and values of the tensors.

use std::collections::{BTreeMap, HashMap};

use crate::adapter::Finding;
use crate::tensor::{Dtype, Tensor, dtype};

use super::keys::{HALVES, partner};
use super::{Key, Seen, codes};

/// What to do about tensors whose values are elsewhere.
const GATHER: &str = "save the adapter again from the trainer, gathered";

pub(super) fn check(seen: &Seen) -> Vec<Finding> {
    let mut out = Vec::new();
    for key in &seen.keys {
        let half = partner(&key.spelling.plain).map(|(this, _)| this);
        out.extend(empty(key));
        out.extend(flat(seen, key, half));
        out.extend(nonfinite(key));
        out.extend(odd_dtype(seen, key, half));
        out.extend(zero(key, half));
    }
    nothing_at_all(seen, &mut out);
    out.extend(ranks(seen));
    out.extend(mixed(seen));
    out
}

fn empty(key: &Key) -> Option<Finding> {
    let what = format!("shape {}: no values", key.tensor.shape);
    (key.tensor.elements() == 0).then(|| Finding::new(&codes::EMPTY, key.key, what).hint(GATHER))
}

fn flat(seen: &Seen, key: &Key, half: Option<&str>) -> Option<Finding> {
    let is_matrix = seen.is_peft && half.is_some_and(|h| h.starts_with("lora_"));
    let what = format!("shape {}, expected two dimensions or more", key.tensor.shape);
    (is_matrix && key.tensor.elements() > 0 && key.tensor.shape.rank() < 2)
        .then(|| Finding::new(&codes::FLAT, key.key, what).hint(GATHER))
}

fn nonfinite(key: &Key) -> Option<Finding> {
    let found = key.tensor.nonfinite().ok().flatten();
    key.tensor.bytes.release(0..key.tensor.bytes.len());
    let (count, first) = found?;
    let what = format!("{count} of {} values are NaN or infinite, the first is number {first}", key.tensor.elements());
    Some(Finding::new(&codes::NONFINITE, key.key, what).hint("go back to an earlier checkpoint"))
}

fn odd_dtype(seen: &Seen, key: &Key, half: Option<&str>) -> Option<Finding> {
    let is_odd = seen.source.gguf.is_none() && half.is_some() && !dtype::is_plain_float(key.tensor.dtype);
    let what = format!("stored as {}, expected F32, F16 or BF16", key.tensor.dtype);
    is_odd.then(|| Finding::new(&codes::ODD_DTYPE, key.key, what))
}

fn zero(key: &Key, half: Option<&str>) -> Option<Finding> {
    let half = half?;
    let is_b = HALVES.iter().any(|(_, b)| *b == half);
    if key.tensor.elements() == 0 || !is_zero(key.tensor) {
        return None;
    }
    let (code, what) = if is_b {
        (&codes::ZERO_B, "every value is zero: this module is not changed")
    } else {
        (&codes::ZERO_A, "every value is zero: this module is not changed, and no training leaves it so")
    };
    Some(Finding::new(code, key.key, what))
}

/// Says it where not only some modules but all of them are left as they are.
fn nothing_at_all(seen: &Seen, findings: &mut [Finding]) {
    let is_b =
        |key: &&Key| partner(&key.spelling.plain).is_some_and(|(this, _)| HALVES.iter().any(|(_, b)| *b == this));
    let all = seen.keys.iter().filter(is_b).count();
    let zero = || findings.iter().filter(|f| f.code == &codes::ZERO_B);
    if all > 1 && zero().count() == all {
        let what = "every value is zero, in this B as in all others: the adapter changes nothing";
        findings.iter_mut().filter(|f| f.code == &codes::ZERO_B).for_each(|f| f.what = what.to_string());
    }
}

/// Whether every value is zero, of either sign.
fn is_zero(tensor: &Tensor) -> bool {
    let bytes = tensor.bytes.as_slice();
    let sign = match tensor.dtype {
        Dtype::F64 => 8,
        Dtype::F32 => 4,
        Dtype::F16 | Dtype::BF16 => 2,
        _ => return false,
    };
    bytes.iter().enumerate().all(|(i, b)| *b == 0 || *b == 0x80 && i % sign == sign - 1)
}

/// A: [r, in] against B: [out, r], where both are matrices.
fn ranks(seen: &Seen) -> Vec<Finding> {
    let Some(config) = seen.lora().filter(|config| config.value("use_bdlora").is_none()) else { return Vec::new() };
    let plain: HashMap<&str, &Key> = seen.keys.iter().map(|key| (key.spelling.plain.as_str(), key)).collect();
    let rank = config.integer("r").ok().flatten();
    let mut out = Vec::new();
    for (key, role) in seen.tuned().filter(|(_, role)| ["lora_A.weight", "lora_embedding_A"].contains(role)) {
        let b = partner(&key.spelling.plain).and_then(|(_, other)| plain.get(other.as_str()));
        let (Some(b), [a_rows, a_cols]) = (b, key.tensor.shape.dims()) else { continue };
        let [b_rows, b_cols] = b.tensor.shape.dims() else { continue };
        if key.tensor.elements() == 0 || b.tensor.elements() == 0 {
            continue;
        }
        let shapes = format!("A {} beside B {}", key.tensor.shape, b.tensor.shape);
        let turned = a_cols == b_rows && a_rows != b_cols && role == "lora_A.weight";
        if turned && rank.is_none_or(|r| r == *a_cols) {
            out.push(Finding::new(
                &codes::TRANSPOSED,
                key.key,
                format!("{shapes}, expected [rank, in] and [out, rank]"),
            ));
        } else if a_rows != b_cols {
            out.push(Finding::new(&codes::RANKS_DIFFER, key.key, format!("{shapes}: rank {a_rows} against {b_cols}")));
        }
    }
    out
}

/// Types that are not that of most of the tensors of low rank.
fn mixed(seen: &Seen) -> Option<Finding> {
    let factors = seen.keys.iter().filter(|key| partner(&key.spelling.plain).is_some());
    let mut counts: BTreeMap<String, (usize, &str)> = BTreeMap::new();
    for key in factors {
        counts.entry(key.tensor.dtype.to_string()).or_insert((0, key.key)).0 += 1;
    }
    if counts.len() < 2 {
        return None;
    }
    let words: Vec<_> = counts.iter().map(|(dtype, (count, _))| format!("{count} {dtype}")).collect();
    let (_, first) = counts.values().min_by_key(|(count, _)| *count)?;
    Some(Finding::new(&codes::MIXED_DTYPES, *first, format!("the factors are {}", words.join(", "))))
}

//! The full decomposition: eigenvectors of the Gram matrix of the shorter side, in f64.
//!
//! Products of two f32 are exact in f64, so the Gram matrix is good to 1e-16 of its size and a singular value to 1e-8
//! of the largest: below what storing the matrix in f32 has left of it. It costs m·n·min(m, n) operations in f64 and
//! about 4/3·min(m, n)³ for the eigenvalues, and holds min(m, n)² f64 and as much again.

use ndarray::s;

use super::field::Field;
use super::finish::{Factors, Known, finish};
use super::{Depth, Truncated};
use crate::error::{Error, Result};
use crate::limits;

/// The decomposition with the optimal error, cut at `depth`, at most at `ceiling`.
pub fn svd<F: Field>(field: &mut F, depth: Depth, ceiling: usize) -> Result<Truncated> {
    let (m, n) = field.dim();
    let short = m.min(n);
    if short > limits::GRAM_SIDE {
        return Err(Error::limit(
            format!("a full decomposition of [{m}, {n}]"),
            format!("{} on a side", limits::GRAM_SIDE),
        )
        .hint("ask for a lower rank, or leave out --exact"));
    }
    let (gram, energy, passes) = field.gram()?;
    let most = match depth {
        Depth::Rank(rank) => rank,
        _ => short,
    };
    let eigen = field.eigh(gram.view(), most.min(ceiling).min(short))?;
    drop(gram);
    let s: Vec<f64> = eigen.values.iter().map(|v| v.max(0.0).sqrt()).collect();
    let rank = depth.cut(&s, energy, (m, n), ceiling).rank;
    let known = field.of_host(eigen.vectors.slice(s![..rank, ..]).mapv(|v| v as f32))?;
    // With the right vectors V the left ones are d·V, and with the left vectors U the right ones are dᵀ·U, of the lengths s.
    let far = if m >= n { field.times(&known)? } else { field.transposed_times(&known)? };
    let (far, s) = field.unit(far)?;
    let factors = if m >= n { Factors { ut: far, s, vt: known } } else { Factors { ut: known, s, vt: far } };
    finish(field, factors, &Known { energy, passes: passes + 1, excess: 0.0, vectors: 0 })
}

//! VB-LoRA: `W + B · A`, both put together from vectors of a bank that all modules share; each piece is a mixture of the
//! k vectors with the largest logits (Li et al., <https://arxiv.org/abs/2405.15179>; huggingface/peft,
//! `src/peft/tuners/vblora`).

use ndarray::{Array2, s};

use super::{Tuner, need, owned, require_taken, take, take_integers, take_modules};
use crate::adapter::delta::{Delta, LowRank};
use crate::adapter::{Scale, SiteKind};
use crate::error::{Context, Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::keys::Parts;
use crate::layout::peft::saved::target;
use crate::limits;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "VBLORA",
    roles: &[
        ("vblora_logits_A", &[""]),
        ("vblora_logits_B", &[""]),
        ("vblora_logits_A_topk_indices", &[""]),
        ("vblora_logits_A_topk_weights", &[""]),
        ("vblora_logits_B_topk_indices", &[""]),
        ("vblora_logits_B_topk_weights", &[""]),
        ("vblora_vector_bank", &[""]),
    ],
    fields: &[
        "r",
        "num_vectors",
        "vector_length",
        "topk",
        "save_only_topk_weights",
        "fan_in_fan_out",
        "vblora_dropout",
        "init_vector_bank_bound",
        "init_logits_std",
    ],
    read,
    writing: None,
};

/// For each piece the vectors it is mixed of, with their shares. Pieces are in rows and columns.
struct Mixtures {
    rows: usize,
    cols: usize,
    pieces: Vec<Vec<(usize, f32)>>,
}

fn read(reader: &mut Reader) -> Result<()> {
    let transposed = reader.config.flag("fan_in_fan_out")?;
    let topk = reader.config.integer("topk")?.unwrap_or(2);
    let bank = need(&mut reader.modules.shared, "vblora_vector_bank")?.to_matrix()?;
    let (length, mut total) = (bank.ncols(), 0usize);
    for ((path, _), mut parts) in take_modules(reader) {
        let a = mixtures(&mut parts, "vblora_logits_A", topk, bank.nrows())?;
        let b = mixtures(&mut parts, "vblora_logits_B", topk, bank.nrows())?;
        require_taken(&parts, TUNER.peft_type)?;
        if a.rows != b.cols {
            return Err(
                Error::mismatch(format!("rank of A {} against rank of B {}", a.rows, b.cols)).at_key(path.as_str())
            );
        }
        total = [&a, &b].iter().fold(total, |n, factor| n.saturating_add(factor.pieces.len().saturating_mul(length)));
        if total > limits::VBLORA_ELEMENTS {
            let found = format!("{total} numbers in the factors so far, from a bank of {}", bank.nrows());
            return Err(Error::limit(found, limits::VBLORA_ELEMENTS).at_key(path.as_str()));
        }
        let (a, b) = (owned(&assemble_a(&a, &bank))?, owned(&assemble_b(&b, &bank))?);
        let delta = LowRank { a, b, scale: Scale::direct(1.0), experts: None, name: "VB-LoRA" };
        let target = target(reader, path.as_str());
        target.weight.push(Delta::LowRank(delta));
        if transposed {
            target.site = SiteKind::FanInFanOut;
        }
    }
    Ok(())
}

/// A: [r, in], each piece a stretch of its row.
fn assemble_a(mixtures: &Mixtures, bank: &Array2<f32>) -> Array2<f32> {
    let length = bank.ncols();
    let mut out = Array2::zeros((mixtures.rows, mixtures.cols * length));
    for (at, piece) in mixtures.pieces.iter().enumerate() {
        let (row, start) = (at / mixtures.cols, at % mixtures.cols * length);
        let mut stretch = out.slice_mut(s![row, start..start + length]);
        piece.iter().for_each(|&(vector, share)| stretch.scaled_add(share, &bank.row(vector)));
    }
    out
}

/// B: [out, r], each piece a stretch of its column.
fn assemble_b(mixtures: &Mixtures, bank: &Array2<f32>) -> Array2<f32> {
    let length = bank.ncols();
    let mut out = Array2::zeros((mixtures.rows * length, mixtures.cols));
    for (at, piece) in mixtures.pieces.iter().enumerate() {
        let (start, column) = (at / mixtures.cols * length, at % mixtures.cols);
        let mut stretch = out.slice_mut(s![start..start + length, column]);
        piece.iter().for_each(|&(vector, share)| stretch.scaled_add(share, &bank.row(vector)));
    }
    out
}

fn mixtures(parts: &mut Parts, role: &str, topk: usize, vectors: usize) -> Result<Mixtures> {
    match take(parts, role)? {
        Some(logits) => {
            let &[rows, cols, n] = logits.shape.dims() else {
                return Err(Error::mismatch(format!("{role} {}, expected three dimensions", logits.shape)));
            };
            if n != vectors || topk == 0 || topk > n {
                let what = format!("{role} {} with {topk} of {vectors} vectors to mix", logits.shape);
                return Err(Error::mismatch(what));
            }
            let pieces = logits.to_f32()?.chunks(n).map(|l| softmax_of_largest(l, topk)).collect();
            Ok(Mixtures { rows, cols, pieces })
        }
        None => stored_mixtures(parts, role, vectors),
    }
}

/// The k largest logits, made into shares.
fn softmax_of_largest(logits: &[f32], k: usize) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&i, &j| logits[j].total_cmp(&logits[i]));
    order.truncate(k);
    let largest = f64::from(logits[order[0]]);
    let powers: Vec<f64> = order.iter().map(|&i| (f64::from(logits[i]) - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    order.into_iter().zip(powers).map(|(i, p)| (i, (p / sum) as f32)).collect()
}

/// Indices and shares stored in place of logits; the last share is what is left of one.
fn stored_mixtures(parts: &mut Parts, role: &str, vectors: usize) -> Result<Mixtures> {
    let indices_role = format!("{role}_topk_indices");
    let Some(shape) = parts.get(&indices_role).map(|p| p.tensor.shape.clone()) else {
        return Err(need(parts, role).err().unwrap_or_else(|| Error::missing(format!("no {role}"))));
    };
    let indices = take_integers(parts, &indices_role)?.unwrap_or_default();
    let weights_role = format!("{role}_topk_weights");
    // One vector needs no share: the tensor is then empty.
    let weights = match shape.dims() {
        [.., 1] => {
            parts.remove(&weights_role);
            Vec::new()
        }
        _ => need(parts, &weights_role)?.to_f32()?,
    };
    let &[rows, cols, k] = shape.dims() else {
        return Err(Error::mismatch(format!("{shape}, expected three dimensions")).at_key(indices_role));
    };
    if k == 0 || weights.len() != rows * cols * (k - 1) {
        let what = format!("{} shares for indices {shape}", weights.len());
        return Err(Error::mismatch(what).at_key(weights_role));
    }
    let mut pieces = Vec::with_capacity(rows * cols);
    for (at, ids) in indices.chunks(k).enumerate() {
        let shares = &weights[at * (k - 1)..(at + 1) * (k - 1)];
        let last = 1.0 - shares.iter().sum::<f32>();
        let ids = ids.iter().map(|&id| usize::try_from(id).ok().filter(|&id| id < vectors));
        let ids: Option<Vec<usize>> = ids.collect();
        let ids = ids
            .ok_or_else(|| Error::malformed(format!("an index outside of the bank's {vectors} vectors")))
            .at_key(&indices_role)?;
        pieces.push(ids.into_iter().zip(shares.iter().copied().chain([last])).collect());
    }
    Ok(Mixtures { rows, cols, pieces })
}

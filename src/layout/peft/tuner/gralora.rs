//! GraLoRA: a small LoRA for every block of a weight cut into K × K (Jung et al., <https://arxiv.org/abs/2505.20355>;
//! huggingface/peft, `src/peft/tuners/gralora`). It is low rank, and becomes factors here.
//!
//! With A: [K, in/K, r], B: [K, r, out/K] and σ = r/K ranks a block, block (a, m) of the difference, a along the
//! outputs, is `s · (A[m][:, aσ..(a+1)σ] · B[a][mσ..(m+1)σ, :])ᵀ`. The hybrid form adds an ordinary pair over the whole
//! weight.

use ndarray::{Array2, s};

use super::{Tuner, need, owned, require_taken, take, take_modules};
use crate::adapter::delta::{Delta, LowRank};
use crate::adapter::{Scale, SiteKind};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::limits;
use crate::tensor::Tensor;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "GRALORA",
    roles: &[
        ("gralora_A", &[""]),
        ("gralora_B", &[""]),
        ("gralora_A_general", &["weight"]),
        ("gralora_B_general", &["weight"]),
    ],
    fields: &["r", "hybrid_r", "alpha", "gralora_dropout", "gralora_k", "fan_in_fan_out"],
    read,
    writing: None,
};

const DEFAULT_ALPHA: f64 = 64.0;

fn read(reader: &mut Reader) -> Result<()> {
    let alpha = reader.config.number("alpha")?.unwrap_or(DEFAULT_ALPHA);
    let transposed = reader.config.flag("fan_in_fan_out")?;
    for ((path, _), mut parts) in take_modules(reader) {
        let key = parts.values().next().map(|p| p.key.clone()).unwrap_or_default();
        let (a, b) = (need(&mut parts, "gralora_A")?, need(&mut parts, "gralora_B")?);
        let general = match take(&mut parts, "gralora_A_general.weight")? {
            Some(a) => Some((a, need(&mut parts, "gralora_B_general.weight")?)),
            None => None,
        };
        require_taken(&parts, TUNER.peft_type)?;
        let delta = factors(alpha, &a, &b, general.as_ref()).map_err(|e| e.at_key(key))?;
        let target = target(reader, path.as_str());
        target.weight.push(Delta::LowRank(delta));
        if transposed {
            target.site = SiteKind::FanInFanOut;
        }
    }
    Ok(())
}

/// Everything as one pair of factors of rank K · r (+ the hybrid's): row m · r + ρ of A holds column ρ of A[m] at the
/// inputs of block m, and the same column of B its partner from block ρ div σ.
fn factors(alpha: f64, a: &Tensor, b: &Tensor, general: Option<&(Tensor, Tensor)>) -> Result<LowRank> {
    let fault = || Error::mismatch(format!("gralora_A {} and gralora_B {} do not fit each other", a.shape, b.shape));
    let (&[blocks, inputs, rank], &[blocks_b, rank_b, outputs]) = (a.shape.dims(), b.shape.dims()) else {
        return Err(fault());
    };
    if blocks != blocks_b || rank != rank_b || !rank.is_multiple_of(blocks) {
        return Err(fault());
    }
    let hybrid = match general {
        None => None,
        Some((a, b)) => Some((a.to_matrix()?, b.to_matrix()?)),
    };
    let extra = hybrid.as_ref().map_or(0, |(a, _)| a.nrows());
    let (columns, height, total) = (blocks * inputs, blocks * outputs, blocks * rank + extra);
    if total.checked_mul(columns.max(height)).is_none_or(|n| n > limits::BLOCK_FACTOR) {
        return Err(Error::limit(
            format!("factors of rank {total} for [{height}, {columns}]"),
            format!("{} elements", limits::BLOCK_FACTOR),
        ));
    }
    let (a_values, b_values) = (a.to_f32()?, b.to_f32()?);
    let (mut wide, mut tall) = (Array2::<f32>::zeros((total, columns)), Array2::<f32>::zeros((height, total)));
    let share = rank / blocks;
    for m in 0..blocks {
        for k in 0..rank {
            let row = m * rank + k;
            for i in 0..inputs {
                wide[[row, m * inputs + i]] = a_values[(m * inputs + i) * rank + k];
            }
            let (out_block, inner) = (k / share, m * share + k % share);
            for o in 0..outputs {
                tall[[out_block * outputs + o, row]] = b_values[(out_block * rank + inner) * outputs + o];
            }
        }
    }
    if let Some((a, b)) = hybrid {
        if a.dim() != (extra, columns) || b.dim() != (height, extra) {
            let found = format!("{:?} and {:?}", a.dim(), b.dim());
            return Err(Error::mismatch(format!("general factors {found} for a weight [{height}, {columns}]")));
        }
        wide.slice_mut(s![total - extra.., ..]).assign(&a);
        tall.slice_mut(s![.., total - extra..]).assign(&b);
    }
    let scale = Scale::direct(alpha / (rank + extra) as f64);
    Ok(LowRank { a: owned(&wide)?, b: owned(&tall)?, scale, experts: None, name: "GraLoRA" })
}

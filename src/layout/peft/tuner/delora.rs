//! DeLoRA: `W + (B ∘ λ / (r ‖aᵢ‖ ‖bᵢ‖)) · A ∘ n`, rows of A and columns of B brought to length one, with the column norms
//! n the weight had when training began (Bini et al., <https://arxiv.org/abs/2503.18225>; huggingface/peft,
//! `src/peft/tuners/delora`).

use ndarray::{Array2, ArrayView1, Axis};

use super::{Tuner, need, owned, require_taken, take_modules};
use crate::adapter::Scale;
use crate::adapter::delta::{Delta, LowRank};
use crate::error::{Context, Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::names::ModulePath;
use crate::tensor::Tensor;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "DELORA",
    roles: &[("delora_A", &[""]), ("delora_B", &[""]), ("delora_lambda", &[""]), ("delora_w_norm", &[""])],
    fields: &["r", "delora_lambda", "lambda_pattern", "rank_pattern", "module_dropout"],
    read,
    writing: None,
};

/// Shorter vectors count as this long.
const SHORTEST: f64 = 1e-4;

fn read(reader: &mut Reader) -> Result<()> {
    let patterns = reader.config.patterns("delora_lambda", 8)?;
    let mut paths = Vec::new();
    for ((path, _), mut parts) in take_modules(reader) {
        let (a, b) = (need(&mut parts, "delora_A")?, need(&mut parts, "delora_B")?);
        let (lambda, norms) = (need(&mut parts, "delora_lambda")?, need(&mut parts, "delora_w_norm")?);
        require_taken(&parts, TUNER.peft_type)?;
        patterns.checked_rank(path.as_str(), a.shape.matrix().0, &a.shape)?;
        let delta = normalised(&a, &b, &lambda, &norms).at_key(path.as_str())?;
        target(reader, path.as_str()).weight.push(Delta::LowRank(delta));
        paths.push(path);
    }
    patterns.report_idle(paths.iter().map(ModulePath::as_str), &mut reader.notes);
    Ok(())
}

fn normalised(a: &Tensor, b: &Tensor, lambda: &Tensor, norms: &Tensor) -> Result<LowRank> {
    let (mut rows, mut columns) = (a.to_matrix()?, b.to_matrix()?);
    let (lambda, norms) = (lambda.to_f32()?, norms.to_f32()?);
    let rank = rows.nrows();
    let ([lambda], true, true) = (lambda.as_slice(), norms.len() == rows.ncols(), columns.ncols() == rank) else {
        return Err(Error::mismatch(format!(
            "A {}, B {}, {} lambdas and {} norms do not belong together",
            a.shape,
            b.shape,
            lambda.len(),
            norms.len()
        )));
    };
    for k in 0..rank {
        let length = |v: ArrayView1<f32>| v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt().max(SHORTEST);
        let both = length(rows.row(k)) * length(columns.column(k));
        columns.column_mut(k).mapv_inplace(|v| (f64::from(v) * f64::from(*lambda) / rank as f64 / both) as f32);
    }
    scale_columns(&mut rows, &norms);
    let (a, b) = (owned(&rows)?, owned(&columns)?);
    Ok(LowRank { a, b, scale: Scale::direct(1.0), experts: None, name: "DeLoRA" })
}

fn scale_columns(m: &mut Array2<f32>, factors: &[f32]) {
    for (mut column, factor) in m.axis_iter_mut(Axis(1)).zip(factors) {
        column *= *factor;
    }
}

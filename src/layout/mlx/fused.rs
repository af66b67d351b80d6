//! Factors of fused experts as factors of each expert, which is how MLX's stacks hold them.

use super::tensors;
use crate::adapter::delta::low_rank::{Facing, LowRank, Packing};
use crate::error::{Error, Result};
use crate::names::ModulePath;
use crate::tensor::Tensor;

/// The projections of one expert that a fused parameter holds, in the order of its outputs. Of gpt-oss, which has them
/// in turns, only the name of the base tells.
pub fn projections(path: &ModulePath, base: Option<&str>) -> Result<&'static [&'static str]> {
    let known: &[&str] = match path.leaf() {
        "gate_up_proj" => &["gate_proj", "up_proj"],
        "down_proj" => &["down_proj"],
        _ => return Err(Error::unsupported("a stack of matrices that is not known to be experts")),
    };
    if path.parent().is_none_or(|parent| parent.leaf() != "experts") {
        return Err(Error::unsupported("a stack of matrices outside of a module of experts"));
    }
    if known.len() > 1 && base.is_some_and(|name| name.contains("gpt-oss")) {
        let what = "experts of gpt-oss, whose gate and up projection lie in turns and cannot be adapted apart here";
        return Err(Error::unsupported(what));
    }
    Ok(known)
}

/// The factors of every expert, a: [r, in], b: [out, r], with the true inputs and outputs of the layer.
pub fn singles(factors: &LowRank) -> Result<Vec<LowRank>> {
    let Some(experts) = factors.experts else { return Ok(vec![factors.clone()]) };
    let ((rows, inputs), (_, cols)) = (tensors::matrix(&factors.a)?, tensors::matrix(&factors.b)?);
    let (count, rank) = (experts.count, factors.rank());
    if count == 0 || rows != cols || rows != rank * count {
        let what = format!("A {} and B {} do not hold {count} experts", factors.a.shape, factors.b.shape);
        return Err(Error::mismatch(what));
    }
    let faces_inputs = match experts.facing {
        Facing::Input => true,
        Facing::FirstUnlessTransposed => false,
        Facing::First | Facing::Unknown => {
            let what = "factors of which it depends on the base which axis they face";
            return Err(Error::unsupported(what).hint("load and save the adapter with PEFT 0.19 or later"));
        }
    };
    // Row i of the transpose is column i of B.
    let columns = tensors::turned(&factors.b)?;
    let outputs = factors.b.shape.matrix().0;
    let by_row = tensors::cut(&columns, cols, &[1, outputs])?;
    let mut out = Vec::with_capacity(count);
    for (expert, a) in tensors::cut(&factors.a, count, &[rank, inputs])?.into_iter().enumerate() {
        let column = |k: usize| match experts.packing {
            Packing::RankMajor => k * count + expert,
            Packing::ByExpert => expert * rank + k,
        };
        let own: Vec<_> = (0..rank).filter_map(|k| by_row.get(column(k)).cloned()).collect();
        let turned_b = tensors::stacked(&own)?.reshaped([rank, outputs])?;
        // (b · a)ᵀ = aᵀ · bᵀ
        let (a, b) = if faces_inputs { (a, tensors::turned(&turned_b)?) } else { (turned_b, tensors::turned(&a)?) };
        out.push(LowRank { a, b, experts: None, ..factors.clone() });
    }
    Ok(out)
}

/// B cut into as many equal shares of its outputs.
pub fn shares(b: &Tensor, count: usize) -> Result<Vec<Tensor>> {
    let (outputs, rank) = tensors::matrix(b)?;
    if outputs % count.max(1) != 0 {
        return Err(Error::mismatch(format!("{outputs} outputs, expected a multiple of {count}")));
    }
    tensors::cut(b, count, &[outputs / count.max(1), rank])
}

//! Whole tensors: differences of weights (`diff`) and norms (`w_norm`), biases beside either, and ComfyUI's `set_weight`
//! in place of the base's.

use super::super::keys::Parts;
use super::{Kind, Written, need};
use crate::adapter::delta::{Full, full::Mode};
use crate::adapter::fold::{self, Folded};
use crate::adapter::{Delta, Note};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

pub const KIND: Kind = Kind { marks: &["diff", "w_norm", "set_weight"], read, write };

/// Suffixes of the difference of a weight, and of the bias beside it.
pub const WEIGHT: [&str; 2] = ["diff", "diff_b"];
/// The same of a norm.
pub const VECTOR: [&str; 2] = ["w_norm", "b_norm"];

fn read(parts: &mut Parts) -> Result<Delta> {
    if let Some(tensor) = parts.remove("set_weight") {
        return Ok(Delta::Full(Full { tensor, mode: Mode::Replace }));
    }
    let tensor = match parts.remove("w_norm") {
        Some(tensor) => tensor,
        None => need(parts, "diff")?,
    };
    Ok(Delta::Full(Full { tensor, mode: Mode::Add(1.0) }))
}

/// Takes the change of the bias out of the parts. That of PEFT shares the scale of the factors, which is `scale`.
pub fn bias(parts: &mut Parts, scale: f64) -> Option<Delta> {
    let own = parts.remove("diff_b").or_else(|| parts.remove("b_norm")).map(|tensor| (tensor, 1.0));
    let (tensor, factor) = own.or_else(|| Some((parts.remove("lora_up.bias")?, scale)))?;
    Some(Delta::Full(Full { tensor, mode: Mode::Add(factor) }))
}

fn write(delta: &Delta) -> Result<Option<Written>> {
    let Delta::Full(full) = delta else { return Ok(None) };
    let mut out = Written::default();
    let suffix = match full.mode {
        Mode::Replace => {
            out.notes.push(Note::info("", "a whole tensor, which only ComfyUI reads from such a file"));
            "set_weight"
        }
        Mode::Add(_) if full.tensor.shape.rank() == 1 => VECTOR[0],
        Mode::Add(_) => WEIGHT[0],
    };
    let tensor = added(full, &mut out.notes)?;
    out.tensors.push((suffix, tensor));
    Ok(Some(out))
}

/// The tensors of what is done to a bias, with `suffix`.
pub fn bias_word(delta: &Delta, suffix: &'static str) -> Result<Written> {
    match delta {
        Delta::Full(full) if full.mode != Mode::Replace => {
            let mut out = Written::default();
            let tensor = added(full, &mut out.notes)?;
            out.tensors.push((suffix, tensor));
            Ok(out)
        }
        other => {
            Err(Error::unsupported(format!("{} of the bias, of which this layout has differences only", other.kind())))
        }
    }
}

fn added(full: &Full, notes: &mut Vec<Note>) -> Result<Tensor> {
    let factor = match full.mode {
        Mode::Replace => 1.0,
        Mode::Add(factor) => factor,
    };
    let Folded { tensor, exact, .. } = fold::scaled(&full.tensor, factor)?;
    if factor != 1.0 {
        let text = format!("factor {factor} folded into the difference");
        notes.push(if exact {
            Note::info("", text)
        } else {
            Note::lossy("", format!("{text}; rounded to {}", tensor.dtype))
        });
    }
    Ok(tensor)
}

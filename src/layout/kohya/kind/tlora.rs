//! T-LoRA: known by its tensors, and no more. What was subtracted in the training is a part of the base's singular value
//! decomposition that the file does not have (KohakuBlueleaf/LyCORIS, `lycoris/modules/tlora.py`).

use super::super::keys::Parts;
use super::{Kind, Written};
use crate::adapter::Delta;
use crate::adapter::delta::Opaque;
use crate::error::{Error, Result};

pub const KIND: Kind = Kind { marks: &["q_layer.weight", "p_layer.weight", "lambda_layer"], read, write };

/// Its name.
const NAME: &str = "T-LoRA";
const REASON: &str =
    "what it started from is subtracted from it, and that is a part of the base which the file does not name";

fn read(parts: &mut Parts) -> Result<Delta> {
    let tensors = KIND.marks.iter().chain(&["alpha"]).filter_map(|suffix| parts.remove(suffix)).collect();
    Ok(Delta::Opaque(Opaque { kind: NAME, reason: REASON, tensors }))
}

fn write(delta: &Delta) -> Result<Option<Written>> {
    match delta {
        Delta::Opaque(d) if d.kind == NAME => Err(Error::unsupported(format!("{NAME} cannot be written: {REASON}"))),
        _ => Ok(None),
    }
}

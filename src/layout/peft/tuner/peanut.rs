//! PEANuT: a network that is fed the weight (huggingface/peft, `src/peft/tuners/peanut`).

use super::{Tuner, need, require_taken, take, take_modules};
use crate::adapter::delta::Delta;
use crate::adapter::delta::peanut::{Activation, Peanut};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::keys::Parts;
use crate::layout::peft::saved::target;
use crate::tensor::Tensor;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "PEANUT",
    roles: &[
        ("peanut_A", &["weight"]),
        ("peanut_B", &["weight"]),
        ("peanut_encoders", &["*"]),
        ("peanut_decoders", &["*"]),
    ],
    fields: &["r", "depth", "act_fn", "scaling"],
    read,
};

fn read(reader: &mut Reader) -> Result<()> {
    let activation = Activation::named(reader.config.text("act_fn")?.as_deref().unwrap_or("relu"))?;
    let scaling = reader.config.number("scaling")?.unwrap_or(1.0);
    let depth = reader.config.integer("depth")?;
    for ((path, _), mut parts) in take_modules(reader) {
        let (a, b) = (need(&mut parts, "peanut_A.weight")?, need(&mut parts, "peanut_B.weight")?);
        let encoders = numbered(&mut parts, "peanut_encoders")?;
        let decoders = numbered(&mut parts, "peanut_decoders")?;
        require_taken(&parts, TUNER.peft_type)?;
        if depth.is_some_and(|d| d != encoders.len()) || encoders.len() != decoders.len() {
            let found = format!("{} encoders and {} decoders", encoders.len(), decoders.len());
            let expected = depth.map_or("as many of both".to_string(), |d| format!("{d} of each"));
            return Err(Error::mismatch(format!("{found}, expected {expected}")).at_key(path.as_str()));
        }
        let delta = Peanut { a, b, encoders, decoders, activation, scaling };
        target(reader, path.as_str()).weight.push(Delta::Peanut(delta));
    }
    Ok(())
}

/// The layers `<role>.0.weight`, `<role>.1.weight` … until one is missing.
fn numbered(parts: &mut Parts, role: &str) -> Result<Vec<Tensor>> {
    let mut out = Vec::new();
    while let Some(layer) = take(parts, &format!("{role}.{}.weight", out.len()))? {
        out.push(layer);
    }
    Ok(out)
}

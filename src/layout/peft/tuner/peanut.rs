//! PEANuT: a network that is fed the weight (huggingface/peft, `src/peft/tuners/peanut`).

use super::{Tuner, Writing, need, require_taken, take, take_modules};
use crate::adapter::delta::Delta;
use crate::adapter::delta::peanut::{Activation, Peanut};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::keys::Parts;
use crate::layout::peft::saved::target;
use crate::layout::peft::writer::{Taken, Writer, common};
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
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("act_fn", "\"relu\""),
    ("depth", "0"),
    ("exclude_modules", "null"),
    ("init_weights", "true"),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("modules_to_save", "null"),
    ("r", "32"),
    ("scaling", "1.0"),
];

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

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| if let Delta::Peanut(delta) = delta { Some(delta.clone()) } else { None });
    writer.set("r", common(&taken, "rank", |delta| delta.a.shape.matrix().0)?);
    writer.set("depth", common(&taken, "depth", |delta| delta.encoders.len())?);
    writer.set("scaling", common(&taken, "scaling", |delta| delta.scaling)?);
    if let Some(activation) = common(&taken, "act_fn", |delta| delta.activation)? {
        let carried = writer.carried("act_fn").and_then(|word| Activation::named(word.as_str()?).ok());
        if carried != Some(activation) {
            writer.set("act_fn", activation.name());
        }
    }
    for Taken { path, change, .. } in taken {
        writer.put(&path, 0, "peanut_A.weight", change.a)?;
        writer.put(&path, 0, "peanut_B.weight", change.b)?;
        for (role, layers) in [("peanut_encoders", change.encoders), ("peanut_decoders", change.decoders)] {
            for (number, layer) in layers.into_iter().enumerate() {
                writer.put(&path, 0, &format!("{role}.{number}.weight"), layer)?;
            }
        }
    }
    Ok(())
}

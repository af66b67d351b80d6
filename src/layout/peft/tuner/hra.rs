//! HRA: Householder reflections of the inputs (huggingface/peft, `src/peft/tuners/hra`).

use super::{Tuner, Writing, need, require_taken, take_modules};
use crate::adapter::delta::{Delta, Orthogonal, orthogonal::Hra};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::layout::peft::writer::{Taken, Writer, common};

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "HRA",
    roles: &[("hra_u", &[""])],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("apply_GS", "false"),
    ("bias", "\"none\""),
    ("exclude_modules", "null"),
    ("init_weights", "true"),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("modules_to_save", "null"),
    ("r", "8"),
];

fn read(reader: &mut Reader) -> Result<()> {
    let orthogonalised = reader.config.flag("apply_GS")?;
    for ((path, _), mut parts) in take_modules(reader) {
        let delta = Hra { u: need(&mut parts, "hra_u")?, orthogonalised };
        require_taken(&parts, TUNER.peft_type)?;
        target(reader, path.as_str()).weight.push(Delta::Orthogonal(Orthogonal::Hra(delta)));
    }
    Ok(())
}

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| match delta {
        Delta::Orthogonal(Orthogonal::Hra(hra)) => Some(hra.clone()),
        _ => None,
    });
    writer.set("apply_GS", common(&taken, "apply_GS", |hra| hra.orthogonalised)?);
    writer.set("r", common(&taken, "rank", |hra| hra.u.shape.matrix().1)?);
    for Taken { path, change, .. } in taken {
        writer.put(&path, 0, "hra_u", change.u)?;
    }
    Ok(())
}

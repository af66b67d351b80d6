//! BOFT: rotations of the inputs by butterfly factors (huggingface/peft, `src/peft/tuners/boft`).

use super::{Tuner, Writing, need, require_taken, take_modules};
use crate::adapter::delta::{Delta, Orthogonal, orthogonal::Boft};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::layout::peft::writer::{Taken, Writer, common};

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "BOFT",
    roles: &[("boft_R", &[""]), ("boft_s", &[""])],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("bias", "\"none\""),
    ("boft_block_num", "0"),
    ("boft_block_size", "4"),
    ("boft_dropout", "0.0"),
    ("boft_n_butterfly_factor", "1"),
    ("exclude_modules", "null"),
    ("fan_in_fan_out", "false"),
    ("init_weights", "true"),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("modules_to_save", "null"),
];

fn read(reader: &mut Reader) -> Result<()> {
    for ((path, _), mut parts) in take_modules(reader) {
        let delta = Boft { r: need(&mut parts, "boft_R")?, s: need(&mut parts, "boft_s")? };
        require_taken(&parts, TUNER.peft_type)?;
        target(reader, path.as_str()).weight.push(Delta::Orthogonal(Orthogonal::Boft(delta)));
    }
    Ok(())
}

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| match delta {
        Delta::Orthogonal(Orthogonal::Boft(boft)) => Some(boft.clone()),
        _ => None,
    });
    let axis = |boft: &Boft, axis: usize| boft.r.shape.dims().get(axis).copied();
    if let Some(Some(factors)) = common(&taken, "number of butterfly factors", |boft| axis(boft, 0))? {
        writer.set("boft_n_butterfly_factor", factors);
    }
    if let Ok(Some(Some(size))) = common(&taken, "block size", |boft| axis(boft, 3)) {
        writer.set("boft_block_size", size);
        writer.set("boft_block_num", 0);
    } else if let Some(Some(count)) = common(&taken, "number of blocks", |boft| axis(boft, 1))? {
        writer.set("boft_block_size", 0);
        writer.set("boft_block_num", count);
    }
    for Taken { path, change, .. } in taken {
        writer.put(&path, 0, "boft_R", change.r)?;
        writer.put(&path, 0, "boft_s", change.s)?;
    }
    Ok(())
}

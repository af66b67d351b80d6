//! MiSS, and Bone, its name before PEFT 0.18 (huggingface/peft, `src/peft/tuners/{miss,bone}`).

use super::{Tuner, Writing, need, require_taken, take_modules};
use crate::adapter::delta::{Delta, Miss, miss::Mode};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::layout::peft::writer::{Taken, Writer, common};

/// Bone: the same without the mini form.
pub static BONE: Tuner = Tuner {
    peft_type: "BONE",
    roles: &[("bone_block", &[""])],
    fields: &["r"],
    read: |reader| read(reader, "bone_block"),
    writing: None,
};

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "MISS",
    roles: &[("miss_block", &[""])],
    fields: &[],
    read: |reader| read(reader, "miss_block"),
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("bias", "\"none\""),
    ("exclude_modules", "null"),
    ("init_weights", "true"),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("mini_r", "1"),
    ("miss_dropout", "0.0"),
    ("modules_to_save", "null"),
    ("r", "64"),
];

/// Field that names the form, not only how training began.
const FORM: &str = "init_weights";

fn read(reader: &mut Reader, role: &str) -> Result<()> {
    let mode = match reader.config.value(FORM) {
        None | Some(serde_json::Value::Bool(_)) => Mode::Shared,
        Some(value) => match value.as_str() {
            Some("bat") => Mode::Bat,
            Some("mini") => Mode::Mini,
            _ => return Err(Error::unrecognised(format!("{value}, expected true, false, bat or mini")).at_key(FORM)),
        },
    };
    for ((path, _), mut parts) in take_modules(reader) {
        let block = need(&mut parts, role)?;
        require_taken(&parts, "MiSS")?;
        if let (Mode::Mini, Some(width)) = (mode, reader.config.integer("mini_r")?)
            && block.shape.dims().get(1) != Some(&width)
        {
            let what = format!("the config gives a width of {width}, the block is {}", block.shape);
            return Err(Error::mismatch(what).at_key("mini_r"));
        }
        target(reader, path.as_str()).weight.push(Delta::Miss(Miss { block, mode }));
    }
    Ok(())
}

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| if let Delta::Miss(delta) = delta { Some(delta.clone()) } else { None });
    let mode = common(&taken, "form", |delta| delta.mode)?.unwrap_or(Mode::Shared);
    let rank = |delta: &Miss| delta.block.shape.dims().get(usize::from(mode == Mode::Bat)).copied();
    writer.set("r", common(&taken, "rank", rank)?);
    match mode {
        Mode::Shared if writer.carried(FORM).is_some_and(|form| form.is_boolean()) => {}
        Mode::Shared => writer.set(FORM, true),
        Mode::Bat => writer.set(FORM, "bat"),
        Mode::Mini => {
            writer.set(FORM, "mini");
            writer.set("mini_r", common(&taken, "width", |delta| delta.block.shape.dims().get(1).copied())?);
        }
    }
    for Taken { path, change, .. } in taken {
        writer.put(&path, 0, "miss_block", change.block)?;
    }
    Ok(())
}

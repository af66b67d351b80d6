//! MiSS, and Bone, its name before PEFT 0.18 (huggingface/peft, `src/peft/tuners/{miss,bone}`).

use super::{Tuner, need, require_taken, take_modules};
use crate::adapter::delta::{Delta, Miss, miss::Mode};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;

/// Bone: the same without the mini form.
pub static BONE: Tuner = Tuner {
    peft_type: "BONE",
    roles: &[("bone_block", &[""])],
    fields: &["r"],
    read: |reader| read(reader, "bone_block"),
};

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "MISS",
    roles: &[("miss_block", &[""])],
    fields: &["r", "miss_dropout", "mini_r"],
    read: |reader| read(reader, "miss_block"),
};

fn read(reader: &mut Reader, role: &str) -> Result<()> {
    const FORM: &str = "init_weights"; // it names the form, not only how training began
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

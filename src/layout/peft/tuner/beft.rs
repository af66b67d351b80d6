//! BEFT: only biases are trained (Huang et al., <https://arxiv.org/abs/2509.15974>; huggingface/peft,
//! `src/peft/tuners/beft`). The stored vector is the difference, `[1, out]`.

use super::{Tuner, Writing, need, require_taken, take_modules};
use crate::adapter::delta::{Delta, Full, full::Mode};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::layout::peft::writer::Writer;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "BEFT",
    roles: &[("beft_bias", &[""])],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[("init_weights", "true"), ("modules_to_save", "null")];

fn read(reader: &mut Reader) -> Result<()> {
    for ((path, _), mut parts) in take_modules(reader) {
        let bias = need(&mut parts, "beft_bias")?;
        require_taken(&parts, TUNER.peft_type)?;
        let tensor = bias.reshaped(vec![bias.elements()])?;
        target(reader, path.as_str()).bias.push(Delta::Full(Full { tensor, mode: Mode::Add(1.0) }));
    }
    Ok(())
}

fn write(writer: &mut Writer) -> Result<()> {
    let mut found = Vec::new();
    for (path, target) in &mut writer.targets {
        if let Some(Delta::Full(Full { tensor, mode: Mode::Add(1.0) })) = target.bias.last() {
            found.push((path.to_string(), tensor.clone()));
            target.bias.pop();
        }
    }
    for (path, tensor) in found {
        writer.put(&path, 0, "beft_bias", tensor.reshaped([1, tensor.elements()])?)?;
        writer.selection.modules.insert(path);
    }
    Ok(())
}

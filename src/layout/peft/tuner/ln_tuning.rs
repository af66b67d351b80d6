//! LN tuning: the norms' weights and biases, trained and saved whole (huggingface/peft, `src/peft/tuners/ln_tuning`).

use super::{Tuner, Writing, require_taken, take, take_modules};
use crate::adapter::SiteKind;
use crate::adapter::delta::{Delta, Full, full::Mode};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::keys;
use crate::layout::peft::saved::target;
use crate::layout::peft::writer::Writer;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "LN_TUNING",
    roles: &[("ln_tuning_layers", &["weight", "bias"])],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[("exclude_modules", "null"), ("modules_to_save", "null")];

fn read(reader: &mut Reader) -> Result<()> {
    for ((path, _), mut parts) in take_modules(reader) {
        let replace = |tensor| Delta::Full(Full { tensor, mode: Mode::Replace });
        let weight = take(&mut parts, "ln_tuning_layers.weight")?.map(replace);
        let bias = take(&mut parts, "ln_tuning_layers.bias")?.map(replace);
        require_taken(&parts, TUNER.peft_type)?;
        let target = target(reader, path.as_str());
        target.weight.extend(weight);
        target.bias.extend(bias);
    }
    Ok(())
}

fn write(writer: &mut Writer) -> Result<()> {
    for (path, target) in &mut writer.targets {
        let replacement = |deltas: &mut Vec<Delta>| match deltas.as_slice() {
            [Delta::Full(Full { tensor, mode: Mode::Replace })] => {
                let tensor = tensor.clone();
                deltas.clear();
                Some(tensor)
            }
            _ => None,
        };
        if target.site != SiteKind::Layer {
            continue;
        }
        for (name, deltas) in [("weight", &mut target.weight), ("bias", &mut target.bias)] {
            if let Some(tensor) = replacement(deltas) {
                writer.tensors.insert(keys::tuned(path.as_str(), 0, &format!("ln_tuning_layers.{name}")), tensor);
                writer.selection.modules.insert(path.to_string());
            }
        }
    }
    Ok(())
}

//! LN tuning: the norms' weights and biases, trained and saved whole (huggingface/peft, `src/peft/tuners/ln_tuning`).

use super::{Tuner, require_taken, take, take_modules};
use crate::adapter::delta::{Delta, Full, full::Mode};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;

/// The tuner.
pub static TUNER: Tuner =
    Tuner { peft_type: "LN_TUNING", roles: &[("ln_tuning_layers", &["weight", "bias"])], fields: &[], read };

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

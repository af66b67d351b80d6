//! HRA: Householder reflections of the inputs (huggingface/peft, `src/peft/tuners/hra`).

use super::{Tuner, need, require_taken, take_modules};
use crate::adapter::delta::{Delta, Orthogonal, orthogonal::Hra};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;

/// The tuner.
pub static TUNER: Tuner = Tuner { peft_type: "HRA", roles: &[("hra_u", &[""])], fields: &["r", "apply_GS"], read };

fn read(reader: &mut Reader) -> Result<()> {
    let orthogonalised = reader.config.flag("apply_GS")?;
    for ((path, _), mut parts) in take_modules(reader) {
        let delta = Hra { u: need(&mut parts, "hra_u")?, orthogonalised };
        require_taken(&parts, TUNER.peft_type)?;
        target(reader, path.as_str()).weight.push(Delta::Orthogonal(Orthogonal::Hra(delta)));
    }
    Ok(())
}

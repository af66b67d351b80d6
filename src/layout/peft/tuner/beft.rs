//! BEFT: only biases are trained (Huang et al., <https://arxiv.org/abs/2509.15974>; huggingface/peft,
//! `src/peft/tuners/beft`). The stored vector is the difference, `[1, out]`.

use super::{Tuner, need, require_taken, take_modules};
use crate::adapter::delta::{Delta, Full, full::Mode};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;

/// The tuner.
pub static TUNER: Tuner = Tuner { peft_type: "BEFT", roles: &[("beft_bias", &[""])], fields: &[], read };

fn read(reader: &mut Reader) -> Result<()> {
    for ((path, _), mut parts) in take_modules(reader) {
        let bias = need(&mut parts, "beft_bias")?;
        require_taken(&parts, TUNER.peft_type)?;
        let tensor = bias.reshaped(vec![bias.elements()])?;
        target(reader, path.as_str()).bias.push(Delta::Full(Full { tensor, mode: Mode::Add(1.0) }));
    }
    Ok(())
}

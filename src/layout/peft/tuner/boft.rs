//! BOFT: rotations of the inputs by butterfly factors (huggingface/peft, `src/peft/tuners/boft`).

use super::{Tuner, need, require_taken, take_modules};
use crate::adapter::delta::{Delta, Orthogonal, orthogonal::Boft};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "BOFT",
    roles: &[("boft_R", &[""]), ("boft_s", &[""])],
    fields: &[
        // The tensors tell how many blocks, of which size, in how many factors.
        "boft_block_size",
        "boft_block_num",
        "boft_n_butterfly_factor",
        "boft_dropout",
        "fan_in_fan_out", // PEFT adapts no layer that stores its weight so
    ],
    read,
};

fn read(reader: &mut Reader) -> Result<()> {
    for ((path, _), mut parts) in take_modules(reader) {
        let delta = Boft { r: need(&mut parts, "boft_R")?, s: need(&mut parts, "boft_s")? };
        require_taken(&parts, TUNER.peft_type)?;
        target(reader, path.as_str()).weight.push(Delta::Orthogonal(Orthogonal::Boft(delta)));
    }
    Ok(())
}

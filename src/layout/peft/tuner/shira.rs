//! SHiRA: some elements of a weight, with their rows and columns (huggingface/peft, `src/peft/tuners/shira`).

use super::{Tuner, need, require_taken, take_modules};
use crate::adapter::delta::{Delta, Sparse, sparse::Positions};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "SHIRA",
    roles: &[("shira_weight", &[""]), ("shira_indices", &[""])],
    fields: &["r", "mask_type", "random_seed", "fan_in_fan_out"],
    read,
};

fn read(reader: &mut Reader) -> Result<()> {
    for ((path, _), mut parts) in take_modules(reader) {
        let values = need(&mut parts, "shira_weight")?;
        let Some(indices) = parts.remove("shira_indices") else {
            return Err(Error::missing("no shira_indices beside the weights").at_key(path.as_str()));
        };
        require_taken(&parts, TUNER.peft_type)?;
        let delta = Sparse { values, positions: Positions::Pairs(indices.tensor), scaling: 1.0 };
        target(reader, path.as_str()).weight.push(Delta::Sparse(delta));
    }
    Ok(())
}

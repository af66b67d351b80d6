//! SHiRA: some elements of a weight, with their rows and columns (huggingface/peft, `src/peft/tuners/shira`).

use super::{Tuner, Writing, need, require_taken, take_modules};
use crate::adapter::delta::{Delta, Sparse, sparse::Positions};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::layout::peft::writer::{Taken, Writer};

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "SHIRA",
    roles: &[("shira_weight", &[""]), ("shira_indices", &[""])],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("fan_in_fan_out", "false"),
    ("init_weights", "true"),
    ("mask_type", "\"random\""),
    ("modules_to_save", "null"),
    ("r", "32"),
    ("random_seed", "null"),
];

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

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| match delta {
        Delta::Sparse(Sparse { values, positions: Positions::Pairs(indices), scaling: 1.0 }) => {
            Some((values.clone(), indices.clone()))
        }
        _ => None,
    });
    // r · (out + in) is the number of values, so it takes the weight's shape to know r.
    writer.want_carried(&["r"]);
    for Taken { path, change: (values, indices), .. } in taken {
        writer.put(&path, 0, "shira_weight", values)?;
        writer.put(&path, 0, "shira_indices", indices)?;
    }
    Ok(())
}

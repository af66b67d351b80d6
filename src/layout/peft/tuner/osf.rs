//! OSF: the small singular components of a weight, trained (huggingface/peft, `src/peft/tuners/osf`). How many, the
//! tensors say.

use super::{Tuner, Writing, need, require_taken, take_modules};
use crate::adapter::delta::{Delta, Osf};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::layout::peft::writer::{Taken, Writer};

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "OSF",
    roles: &[("osf_svd_params", &["U_low", "S_low", "V_low"])],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("effective_rank", "null"),
    ("init_weights", "true"),
    ("modules_to_save", "null"),
    ("rank_pattern", "null"),
    ("target_svd_config", "null"),
];

const ROLES: [&str; 3] = ["osf_svd_params.U_low", "osf_svd_params.S_low", "osf_svd_params.V_low"];

fn read(reader: &mut Reader) -> Result<()> {
    for ((path, _), mut parts) in take_modules(reader) {
        let u = need(&mut parts, ROLES[0])?;
        let s = need(&mut parts, ROLES[1])?;
        let v = need(&mut parts, ROLES[2])?;
        require_taken(&parts, TUNER.peft_type)?;
        target(reader, path.as_str()).weight.push(Delta::Osf(Osf { u, s, v }));
    }
    Ok(())
}

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| if let Delta::Osf(delta) = delta { Some(delta.clone()) } else { None });
    // How many components are kept, so it takes the weight's shape to know it.
    writer.want_carried(&["effective_rank"]);
    for Taken { path, change, .. } in taken {
        for (role, tensor) in ROLES.iter().zip([change.u, change.s, change.v]) {
            writer.put(&path, 0, role, tensor)?;
        }
    }
    Ok(())
}

//! OSF: the small singular components of a weight, trained (huggingface/peft, `src/peft/tuners/osf`). How many, the
//! tensors say.

use super::{Tuner, need, require_taken, take_modules};
use crate::adapter::delta::{Delta, Osf};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "OSF",
    roles: &[("osf_svd_params", &["U_low", "S_low", "V_low"])],
    fields: &["effective_rank", "rank_pattern", "target_svd_config"],
    read,
};

fn read(reader: &mut Reader) -> Result<()> {
    for ((path, _), mut parts) in take_modules(reader) {
        let u = need(&mut parts, "osf_svd_params.U_low")?;
        let s = need(&mut parts, "osf_svd_params.S_low")?;
        let v = need(&mut parts, "osf_svd_params.V_low")?;
        require_taken(&parts, TUNER.peft_type)?;
        target(reader, path.as_str()).weight.push(Delta::Osf(Osf { u, s, v }));
    }
    Ok(())
}

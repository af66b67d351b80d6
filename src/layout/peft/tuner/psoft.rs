//! PSOFT: a rotation inside the weight's own principal subspace (huggingface/peft, `src/peft/tuners/psoft`). It can be
//! named and carried, not computed.
//!
//! `W + U S (R − 1) Vᵀ` over the first r singular vectors of W. An element of R off the diagonal couples two of them,
//! so its sign depends on theirs, which a decomposition leaves open: two builds of LAPACK disagree about many of them, and
//! the file says nothing of the vectors. PEFT itself decomposes the base anew when it loads such an adapter.

use super::{Tuner, take_modules};
use crate::adapter::delta::{Delta, Opaque};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "PSOFT",
    roles: &[("psoft_R", &["weight", "vector_a", "vector_b"])],
    fields: &[
        "r",
        "psoft_alpha",
        "psoft_dropout",
        "fan_in_fan_out",
        "ab_svd_init",
        "psoft_svd",
        "psoft_svd_lowrank_niter",
        "random_seed",
        "psoft_orth",
        "psoft_mag_b",
        "psoft_mag_a",
        "use_cayley_neumann",
        "num_cayley_neumann_terms",
        "cayley_neumann_eps",
    ],
    read,
};

const REASON: &str = "it depends on the signs of the base's singular vectors, which are not in the file and differ \
                      between the libraries that compute them";

fn read(reader: &mut Reader) -> Result<()> {
    for ((path, _), parts) in take_modules(reader) {
        let tensors = parts.into_values().map(|p| p.tensor).collect();
        let delta = Opaque { kind: "PSOFT", reason: REASON, tensors };
        target(reader, path.as_str()).weight.push(Delta::Opaque(delta));
    }
    Ok(())
}

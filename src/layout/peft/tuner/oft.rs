//! OFT: rotations of the inputs, in the form PEFT has had since 0.18 (huggingface/peft, `src/peft/tuners/oft`).

use super::{Tuner, need, require_taken, take, take_modules};
use crate::adapter::delta::orthogonal::{Oft, oft::Transform};
use crate::adapter::delta::{Delta, Orthogonal};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::config::Config;
use crate::layout::peft::saved::target;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "OFT",
    roles: &[("oft_R", &["weight"]), ("oft_embedding_R", &["weight"]), ("oft_r", &[""])],
    fields: &[
        "r",
        "oft_block_size",
        "block_share",
        "coft",
        "eps",
        "use_cayley_neumann",
        "num_cayley_neumann_terms",
        "fan_in_fan_out", // PEFT adapts no layer that stores its weight so
        "module_dropout",
        "rank_pattern",
        "alpha_pattern",
    ],
    read,
};

fn read(reader: &mut Reader) -> Result<()> {
    let (transform, limit) = (transform(reader.config)?, limit(reader.config)?);
    let shared = reader.config.flag("block_share")?;
    for ((path, _), mut parts) in take_modules(reader) {
        if let Some(part) = parts.get("oft_r") {
            return Err(Error::unsupported("an OFT adapter of PEFT before 0.18, whose rotations are stored otherwise")
                .at_key(&part.key)
                .hint("PEFT itself no longer reads it"));
        }
        // An embedding is turned the other way round, and along the columns of its weight as it is stored: [n, d].
        let (r, inverse) = match take(&mut parts, "oft_embedding_R.weight")? {
            Some(r) => (r, true),
            None => (need(&mut parts, "oft_R.weight")?, false),
        };
        require_taken(&parts, TUNER.peft_type)?;
        let delta = Oft { r, shared, transform, limit, inverse };
        target(reader, path.as_str()).weight.push(Delta::Orthogonal(Orthogonal::Oft(delta)));
    }
    Ok(())
}

fn transform(config: &Config) -> Result<Transform> {
    if !config.flag_or("use_cayley_neumann", true)? {
        return Ok(Transform::Cayley);
    }
    let terms = config.integer("num_cayley_neumann_terms")?.unwrap_or(5);
    if terms > MAX_TERMS {
        let what = format!("{terms} terms, expected {MAX_TERMS} or fewer");
        return Err(Error::new(crate::error::Kind::Limit, what).at_key("num_cayley_neumann_terms"));
    }
    Ok(Transform::Neumann(terms))
}

/// More terms of the series than this change nothing for a matrix the series converges for.
const MAX_TERMS: usize = 4096;

fn limit(config: &Config) -> Result<Option<f64>> {
    let eps = config.number("eps")?.unwrap_or(6e-5);
    Ok(config.flag("coft")?.then_some(eps))
}

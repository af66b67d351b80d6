//! OFT: rotations of the inputs, in the form PEFT has had since 0.18 (huggingface/peft, `src/peft/tuners/oft`).

use super::{Tuner, Writing, need, require_taken, take, take_modules};
use crate::adapter::delta::orthogonal::{Oft, oft::Transform, oft::block_size};
use crate::adapter::delta::{Delta, Orthogonal};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::config::Config;
use crate::layout::peft::saved::target;
use crate::layout::peft::writer::{Taken, Writer, common};
use crate::limits;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "OFT",
    roles: &[("oft_R", &["weight"]), ("oft_embedding_R", &["weight"]), ("oft_r", &[""])],
    fields: &["rank_pattern", "alpha_pattern"],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("bias", "\"none\""),
    ("block_share", "false"),
    ("coft", "false"),
    ("eps", "6e-05"),
    ("exclude_modules", "null"),
    ("fan_in_fan_out", "false"),
    ("init_weights", "true"),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("module_dropout", "0.0"),
    ("modules_to_save", "null"),
    ("num_cayley_neumann_terms", "5"),
    ("oft_block_size", "32"),
    ("r", "0"),
    ("use_cayley_neumann", "true"),
];

const OF_LAYER: &str = "oft_R.weight";
const OF_EMBEDDING: &str = "oft_embedding_R.weight";

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
        let (r, inverse) = match take(&mut parts, OF_EMBEDDING)? {
            Some(r) => (r, true),
            None => (need(&mut parts, OF_LAYER)?, false),
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
    if terms > limits::OFT_TERMS {
        return Err(Error::limit(format!("{terms} terms"), limits::OFT_TERMS).at_key("num_cayley_neumann_terms"));
    }
    Ok(Transform::Neumann(terms))
}

fn limit(config: &Config) -> Result<Option<f64>> {
    let eps = config.number("eps")?.unwrap_or(6e-5);
    Ok(config.flag("coft")?.then_some(eps))
}

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| match delta {
        Delta::Orthogonal(Orthogonal::Oft(oft)) => Some(oft.clone()),
        _ => None,
    });
    writer.set("block_share", common(&taken, "block_share", |oft| oft.shared)?);
    let limit = common(&taken, "limit (eps)", |oft| oft.limit)?.flatten();
    writer.set("coft", limit.is_some());
    if let Some(eps) = limit {
        writer.set("eps", eps);
    }
    let terms = match common(&taken, "transform", |oft| oft.transform)? {
        Some(Transform::Neumann(terms)) => Some(terms),
        _ => None,
    };
    writer.set("use_cayley_neumann", terms.is_some());
    if let Some(terms) = terms {
        writer.set("num_cayley_neumann_terms", terms);
    }
    say_blocks(writer, &taken);
    for Taken { path, change, .. } in taken {
        writer.put(&path, 0, if change.inverse { OF_EMBEDDING } else { OF_LAYER }, change.r)?;
    }
    Ok(())
}

/// PEFT has one block size or one number of blocks for the whole adapter.
fn say_blocks(writer: &mut Writer, taken: &[Taken<Oft>]) {
    let mut sizes: Vec<_> = taken.iter().map(|t| block_size(t.change.r.shape.matrix().1)).collect();
    let mut counts: Vec<_> = taken.iter().map(|t| t.change.r.shape.matrix().0).collect();
    sizes.dedup();
    counts.dedup();
    match (sizes.as_slice(), counts.as_slice()) {
        ([Some(size)], _) => {
            writer.set("oft_block_size", *size);
            writer.set("r", 0);
        }
        (_, [count]) if !taken.iter().any(|t| t.change.shared) => {
            writer.set("oft_block_size", 0);
            writer.set("r", *count);
        }
        _ => writer.want_carried(&["oft_block_size", "r"]),
    }
}

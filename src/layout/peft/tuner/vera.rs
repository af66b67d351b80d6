//! VeRA and PVeRA: trained vectors over random matrices that all modules share (huggingface/peft,
//! `src/peft/tuners/vera`, `src/peft/tuners/pvera`).

use super::{Tuner, Writing, need, require_taken, take, take_modules};
use crate::adapter::SiteKind;
use crate::adapter::delta::derived::projection::Scheme;
use crate::adapter::delta::{Delta, Derived, derived::Projection, derived::Seed, derived::Vera};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::config::Config;
use crate::layout::peft::keys;
use crate::layout::peft::saved::target;
use crate::layout::peft::writer::{Taken, Writer, common};

/// VeRA.
pub static VERA: Tuner = Tuner {
    peft_type: "VERA",
    roles: &[("vera_lambda_b", &[""]), ("vera_lambda_d", &[""]), ("vera_A", &[""]), ("vera_B", &[""])],
    fields: &[],
    read: |reader| read(reader, "vera", false),
    writing: Some(Writing { fields: VERA_FIELDS, write: |writer| write(writer, "vera") }),
};

/// The config as PEFT 0.21 writes it.
const VERA_FIELDS: &[(&str, &str)] = &[
    ("bias", "\"none\""),
    ("d_initial", "0.1"),
    ("fan_in_fan_out", "false"),
    ("init_weights", "true"),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("modules_to_save", "null"),
    ("projection_prng_key", "0"),
    ("r", "256"),
    ("save_projection", "true"),
    ("vera_dropout", "0.0"),
];

/// PVeRA.
pub static PVERA: Tuner = Tuner {
    peft_type: "PVERA",
    roles: &[("pvera_lambda_b", &[""]), ("pvera_lambda_d", &[""]), ("pvera_A", &[""]), ("pvera_B", &[""])],
    fields: &[],
    read: |reader| read(reader, "pvera", true),
    writing: Some(Writing { fields: PVERA_FIELDS, write: |writer| write(writer, "pvera") }),
};

/// The config as PEFT 0.21 writes it.
const PVERA_FIELDS: &[(&str, &str)] = &[
    ("bias", "\"none\""),
    ("d_initial", "0.1"),
    ("fan_in_fan_out", "false"),
    ("generator_seed", "null"),
    ("init_weights", "true"),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("modules_to_save", "null"),
    ("projection_prng_key", "0"),
    ("pvera_dropout", "0.0"),
    ("r", "256"),
    ("sample_at_inference", "false"),
    ("save_projection", "true"),
];

fn read(reader: &mut Reader, prefix: &str, probabilistic: bool) -> Result<()> {
    let transposed = reader.config.flag("fan_in_fan_out")?;
    let scheme = if probabilistic { Scheme::Pvera } else { Scheme::Vera };
    let rank = reader.config.rank("r", 256)?;
    let projection = projection(reader, prefix, rank, scheme)?;
    for ((path, _), mut parts) in take_modules(reader) {
        let b = need(&mut parts, &format!("{prefix}_lambda_b"))?;
        let d = need(&mut parts, &format!("{prefix}_lambda_d"))?;
        require_taken(&parts, &reader.config.peft_type)?;
        let expected = if probabilistic { 2 * rank } else { rank };
        if d.elements() != expected {
            let what = format!("lambda_d {}, the config gives rank {rank}", d.shape);
            return Err(Error::mismatch(what).at_key(path.as_str()).hint("the config may belong to another adapter"));
        }
        let delta = Vera { b, d, projection: projection.clone(), probabilistic };
        let target = target(reader, path.as_str());
        target.weight.push(Delta::Derived(Derived::Vera(delta)));
        if transposed {
            target.site = SiteKind::FanInFanOut;
        }
    }
    Ok(())
}

/// The shared matrices, or the seed to make them from.
pub fn projection(reader: &mut Reader, prefix: &str, rank: usize, scheme: Scheme) -> Result<Projection> {
    let a = take(&mut reader.modules.shared, &format!("{prefix}_A"))?;
    let b = take(&mut reader.modules.shared, &format!("{prefix}_B"))?;
    match (a, b) {
        (Some(a), Some(b)) => Ok(Projection::Stored { a, b }),
        (None, None) if reader.config.flag_or("save_projection", true)? => {
            Err(Error::missing(format!("neither {prefix}_A nor {prefix}_B is in the file, but save_projection is set")))
        }
        (None, None) => Ok(Projection::Seeded(Seed { key: key(reader.config)?, rank, scheme })),
        (a, _) => {
            let missing = if a.is_none() { "A" } else { "B" };
            Err(Error::missing(format!("only one of the shared matrices is in the file; {prefix}_{missing} is not")))
        }
    }
}

fn key(config: &Config) -> Result<u64> {
    Ok(config.integer("projection_prng_key")?.unwrap_or(0) as u64)
}

fn write(writer: &mut Writer, prefix: &str) -> Result<()> {
    let taken = writer.take(|delta| match delta {
        Delta::Derived(Derived::Vera(vera)) => Some(vera.clone()),
        _ => None,
    });
    writer.set_orientation(taken.iter().map(|t| t.site));
    let rank = common(&taken, "rank", |vera| vera.d.elements() / if vera.probabilistic { 2 } else { 1 })?;
    writer.set("r", rank);
    if let Some(projection) = common(&taken, "projection", |vera| vera.projection.clone())? {
        write_projection(writer, prefix, projection)?;
    }
    for Taken { path, change, .. } in taken {
        writer.put(&path, 0, &format!("{prefix}_lambda_b"), change.b)?;
        writer.put(&path, 0, &format!("{prefix}_lambda_d"), change.d)?;
    }
    Ok(())
}

/// The way back of [`projection`].
pub fn write_projection(writer: &mut Writer, prefix: &str, projection: Projection) -> Result<()> {
    match projection {
        Projection::Stored { a, b } => {
            writer.set("save_projection", true);
            writer.insert(keys::shared(&format!("{prefix}_A")), a)?;
            writer.insert(keys::shared(&format!("{prefix}_B")), b)
        }
        Projection::Seeded(seed) => {
            writer.set("save_projection", false);
            writer.set("projection_prng_key", seed.key);
            Ok(())
        }
    }
}

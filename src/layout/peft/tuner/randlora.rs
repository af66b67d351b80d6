//! RandLoRA: weighted sums of random low-rank products that all modules share (huggingface/peft,
//! `src/peft/tuners/randlora`).

use super::vera::{projection, write_projection};
use super::{Tuner, Writing, need, require_taken, take_modules};
use crate::adapter::delta::derived::projection::Scheme;
use crate::adapter::delta::{Delta, Derived, derived::Projection, derived::RandLora};
use crate::adapter::{Note, Scale, ScaleRule, SiteKind};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::layout::peft::scaling;
use crate::layout::peft::writer::{Taken, Writer, common};

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "RANDLORA",
    roles: &[("randlora_lambda", &[""]), ("randlora_gamma", &[""]), ("randlora_A", &[""]), ("randlora_B", &[""])],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("bias", "\"none\""),
    ("fan_in_fan_out", "false"),
    ("init_weights", "true"),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("modules_to_save", "null"),
    ("projection_prng_key", "0"),
    ("r", "32"),
    ("randlora_alpha", "640"),
    ("randlora_dropout", "0.0"),
    ("save_projection", "true"),
    ("sparse", "false"),
    ("very_sparse", "false"),
];

fn read(reader: &mut Reader) -> Result<()> {
    let transposed = reader.config.flag("fan_in_fan_out")?;
    let rank = reader.config.rank("r", 32)?;
    let scheme = match (reader.config.flag("very_sparse")?, reader.config.flag("sparse")?) {
        (false, false) => Scheme::RandLora,
        (very, _) => Scheme::RandLoraSparse { very },
    };
    let alpha = reader.config.number("randlora_alpha")?.unwrap_or(640.0);
    let scale = Scale { alpha, rule: ScaleRule::AlphaOverRank };
    let projection = projection(reader, "randlora", rank, scheme)?;
    let mut copies = 0;
    for ((path, _), mut parts) in take_modules(reader) {
        // PEFT 0.21 also writes the shared matrices once for each module.
        copies += ["randlora_A", "randlora_B"].iter().filter_map(|role| parts.remove(*role)).count();
        if !parts.contains_key("randlora_lambda") && parts.is_empty() {
            continue;
        }
        let lambda = need(&mut parts, "randlora_lambda")?;
        let gamma = need(&mut parts, "randlora_gamma")?;
        require_taken(&parts, TUNER.peft_type)?;
        if lambda.shape.matrix().0 != rank {
            let what = format!("lambda {}, the config gives rank {rank}", lambda.shape);
            return Err(Error::mismatch(what).at_key(path.as_str()).hint("the config may belong to another adapter"));
        }
        let delta = RandLora { lambda, gamma, projection: projection.clone(), scale };
        let target = target(reader, path.as_str());
        target.weight.push(Delta::Derived(Derived::RandLora(delta)));
        if transposed {
            target.site = SiteKind::FanInFanOut;
        }
    }
    if copies > 0 {
        let text = format!("{copies} copies of the shared matrices, one for each module; the shared ones are used");
        reader.notes.push(Note::info("randlora_A", text));
    }
    Ok(())
}

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| match delta {
        Delta::Derived(Derived::RandLora(delta)) => Some(delta.clone()),
        _ => None,
    });
    writer.set_orientation(taken.iter().map(|t| t.site));
    writer.set("r", common(&taken, "rank", |delta| delta.lambda.shape.matrix().0)?);
    let alpha = |delta: &RandLora| (delta.scale.rule == ScaleRule::AlphaOverRank).then_some(delta.scale.alpha);
    match common(&taken, "alpha", alpha)? {
        Some(Some(alpha)) => writer.set("randlora_alpha", scaling::number(alpha)),
        Some(None) => return Err(Error::unsupported("a scale of RandLoRA that is not alpha over the rank")),
        None => {}
    }
    if let Some(projection) = common(&taken, "projection", |delta| delta.projection.clone())? {
        if let Projection::Seeded(seed) = &projection {
            let sparse = matches!(seed.scheme, Scheme::RandLoraSparse { very: false });
            writer.set("sparse", sparse);
            writer.set("very_sparse", matches!(seed.scheme, Scheme::RandLoraSparse { very: true }));
        }
        write_projection(writer, "randlora", projection)?;
    }
    for Taken { path, change, .. } in taken {
        writer.put(&path, 0, "randlora_lambda", change.lambda)?;
        writer.put(&path, 0, "randlora_gamma", change.gamma)?;
    }
    Ok(())
}

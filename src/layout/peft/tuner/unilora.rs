//! UniLoRA: every entry of A and B is an entry of one trained vector, times a factor (huggingface/peft,
//! `src/peft/tuners/unilora`).
//!
//! Which entry goes where is drawn at random over all adapted modules of the model in their order. It can be saved with
//! the adapter; where it is not, the file has nothing but the vector and does not even say what is adapted.

use serde_json::Value;

use super::{Tuner, need, require_taken, take_integers, take_modules};
use crate::adapter::delta::{Delta, LowRank, Scattered};
use crate::adapter::selection::{Names, Selection};
use crate::adapter::{Scale, SiteKind};
use crate::error::{Context, Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::config::{Config, compile_whole};
use crate::layout::peft::keys::Parts;
use crate::layout::peft::saved::target;
use crate::tensor::{Dtype, Tensor};

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "UNILORA",
    roles: &[
        ("unilora_theta_d", &[""]),
        ("unilora_indices_A", &[""]),
        ("unilora_indices_B", &[""]),
        ("unilora_scales_A", &[""]),
        ("unilora_scales_B", &[""]),
    ],
    fields: &[
        "r",
        "theta_d_length",
        "proj_seed",
        "save_indices",
        "fan_in_fan_out",
        "unilora_dropout",
        "init_theta_d_bound",
    ],
    read,
    writing: None,
};

fn read(reader: &mut Reader) -> Result<()> {
    let transposed = reader.config.flag("fan_in_fan_out")?;
    let theta = need(&mut reader.modules.shared, "unilora_theta_d")?;
    let modules = take_modules(reader);
    if modules.is_empty() {
        let scattered = Scattered {
            theta,
            rank: reader.config.rank("r", 4)?,
            seed: reader.config.integer("proj_seed")?.unwrap_or(42) as u64,
            selection: selection(reader.config)?,
            transposed,
        };
        target(reader, "").weight.push(Delta::Scattered(scattered));
        return Ok(());
    }
    let theta = theta.to_f32()?;
    for ((path, _), mut parts) in modules {
        let a = entries(&mut parts, "A", &theta)?;
        let b = entries(&mut parts, "B", &theta)?;
        require_taken(&parts, TUNER.peft_type)?;
        let delta = LowRank { a, b, scale: Scale::direct(1.0), experts: None, name: "UniLoRA" };
        let target = target(reader, path.as_str());
        target.weight.push(Delta::LowRank(delta));
        if transposed {
            target.site = SiteKind::FanInFanOut;
        }
    }
    Ok(())
}

/// The modules that the config means.
fn selection(config: &Config) -> Result<Selection> {
    let included = names(config, "target_modules")?.ok_or_else(|| {
        Error::missing("the file does not list the adapted modules, and the config does not name them")
            .at_key("target_modules")
    })?;
    let layers = match config.value("layers_to_transform") {
        None => None,
        Some(one) if one.is_u64() => config.integer("layers_to_transform")?.map(|layer| vec![layer]),
        Some(_) => config.integers("layers_to_transform")?.filter(|layers| !layers.is_empty()),
    };
    let excluded = names(config, "exclude_modules")?;
    Ok(Selection { included, excluded, layers, layer_lists: config.names("layers_pattern")? })
}

/// A list of names, or one text that is an expression.
fn names(config: &Config, field: &str) -> Result<Option<Names>> {
    Ok(match config.value(field) {
        None => None,
        Some(Value::String(pattern)) => Some(Names::Pattern(compile_whole(pattern).at_key(field)?)),
        Some(_) => Some(Names::Listed(config.names(field)?.into_iter().collect())),
    })
}

/// One factor: entries of the vector, each times its scale.
fn entries(parts: &mut Parts, half: &str, theta: &[f32]) -> Result<Tensor> {
    let role = format!("unilora_indices_{half}");
    let shape = parts.get(&role).map(|p| p.tensor.shape.clone()).unwrap_or_default();
    let Some(indices) = take_integers(parts, &role)? else {
        return Err(need(parts, &role).err().unwrap_or_else(|| Error::missing(format!("no {role}"))));
    };
    let scales = need(parts, &format!("unilora_scales_{half}"))?;
    if scales.shape != shape || shape.rank() != 2 {
        return Err(Error::mismatch(format!("indices {shape} and scales {}, expected the same matrix", scales.shape))
            .at_key(role));
    }
    let picked = |index: &i64| usize::try_from(*index).ok().and_then(|i| theta.get(i));
    let values: Option<Vec<f32>> =
        indices.iter().zip(scales.to_f32()?).map(|(i, scale)| picked(i).map(|v| v * scale)).collect();
    let values = values
        .ok_or_else(|| Error::malformed(format!("an index outside of the vector of {} entries", theta.len())))
        .at_key(role)?;
    Tensor::from_f32(Dtype::F32, shape.dims(), &values)
}

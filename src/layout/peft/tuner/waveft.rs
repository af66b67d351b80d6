//! WaveFT: elements or wavelet coefficients at positions that are drawn with a seed (huggingface/peft,
//! `src/peft/tuners/waveft`).

use super::{Tuner, Writing, need, require_taken, seed, take_modules};
use crate::adapter::SiteKind;
use crate::adapter::delta::{Delta, Sparse, sparse::Positions, wavelet::Wavelet};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::layout::peft::scaling;
use crate::layout::peft::writer::{Taken, Writer, common};

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "WAVEFT",
    roles: &[("waveft_spectrum", &[""])],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("bias", "\"none\""),
    ("exclude_modules", "null"),
    ("fan_in_fan_out", "false"),
    ("init_weights", "true"),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("modules_to_save", "null"),
    ("n_frequency", "2592"),
    ("n_frequency_pattern", "{}"),
    ("proportional_parameters", "false"),
    ("random_loc_seed", "777"),
    ("scaling", "25.0"),
    ("use_idwt", "true"),
    ("wavelet_family", "\"db1\""),
];

const DEFAULT_SCALING: f64 = 25.0;
const DEFAULT_SEED: i64 = 777;

fn read(reader: &mut Reader) -> Result<()> {
    let config = reader.config;
    let wavelet = match config.flag_or("use_idwt", true)? {
        true => Some(Wavelet::named(config.text("wavelet_family")?.as_deref().unwrap_or("db1"))?),
        false => None,
    };
    let seed = seed(config, "random_loc_seed", DEFAULT_SEED)?;
    let scaling = config.number("scaling")?.unwrap_or(DEFAULT_SCALING);
    let transposed = config.flag("fan_in_fan_out")?;
    for ((path, _), mut parts) in take_modules(reader) {
        let values = need(&mut parts, "waveft_spectrum")?;
        require_taken(&parts, TUNER.peft_type)?;
        let positions = Positions::Drawn { seed, wavelet: wavelet.clone() };
        let target = target(reader, path.as_str());
        target.weight.push(Delta::Sparse(Sparse { values, positions, scaling }));
        if transposed {
            target.site = SiteKind::FanInFanOut;
        }
    }
    Ok(())
}

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| match delta {
        Delta::Sparse(Sparse { values, positions: Positions::Drawn { seed, wavelet }, scaling }) => {
            Some((values.clone(), *seed, wavelet.clone(), *scaling))
        }
        _ => None,
    });
    writer.set_orientation(taken.iter().map(|t| t.site));
    writer.set("random_loc_seed", common(&taken, "seed", |(_, seed, ..)| *seed as i64)?);
    writer.set("scaling", common(&taken, "scaling", |(.., scaling)| *scaling)?);
    let wavelet = common(&taken, "wavelet", |(_, _, wavelet, _)| wavelet.clone())?.flatten();
    writer.set("use_idwt", wavelet.is_some());
    if let Some(wavelet) = wavelet {
        writer.set("wavelet_family", wavelet.name());
    }
    writer.set("proportional_parameters", false);
    let names: Vec<_> = taken.iter().map(|t| t.path.as_str()).collect();
    let counts: Vec<_> = taken.iter().map(|t| t.change.0.elements()).collect();
    scaling::say_numbers(writer, &names, &counts, "n_frequency", "n_frequency_pattern")?;
    for Taken { path, change: (values, ..), .. } in taken {
        writer.put(&path, 0, "waveft_spectrum", values)?;
    }
    Ok(())
}

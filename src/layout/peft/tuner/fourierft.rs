//! FourierFT: spectra whose positions are drawn with a seed (huggingface/peft, `src/peft/tuners/fourierft`).

use super::{Tuner, Writing, need, require_taken, seed, take_modules};
use crate::adapter::SiteKind;
use crate::adapter::delta::{Delta, Fourier};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::layout::peft::scaling;
use crate::layout::peft::writer::{Taken, Writer, common};

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "FOURIERFT",
    roles: &[("fourierft_spectrum", &[""])],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("bias", "\"none\""),
    ("exclude_modules", "null"),
    ("fan_in_fan_out", "false"),
    ("init_weights", "false"),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("modules_to_save", "null"),
    ("n_frequency", "1000"),
    ("n_frequency_pattern", "{}"),
    ("random_loc_seed", "777"),
    ("scaling", "150.0"),
];

const DEFAULT_SCALING: f64 = 150.0;
const DEFAULT_SEED: i64 = 777;

fn read(reader: &mut Reader) -> Result<()> {
    let seed = seed(reader.config, "random_loc_seed", DEFAULT_SEED)?;
    let scaling = reader.config.number("scaling")?.unwrap_or(DEFAULT_SCALING);
    let transposed = reader.config.flag("fan_in_fan_out")?;
    for ((path, _), mut parts) in take_modules(reader) {
        let spectrum = need(&mut parts, "fourierft_spectrum")?;
        require_taken(&parts, TUNER.peft_type)?;
        let target = target(reader, path.as_str());
        target.weight.push(Delta::Fourier(Fourier { spectrum, seed, scaling }));
        if transposed {
            target.site = SiteKind::FanInFanOut;
        }
    }
    Ok(())
}

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| if let Delta::Fourier(delta) = delta { Some(delta.clone()) } else { None });
    writer.set_orientation(taken.iter().map(|t| t.site));
    writer.set("random_loc_seed", common(&taken, "seed", |delta| delta.seed as i64)?);
    writer.set("scaling", common(&taken, "scaling", |delta| delta.scaling)?);
    let names: Vec<_> = taken.iter().map(|t| t.path.as_str()).collect();
    let counts: Vec<_> = taken.iter().map(|t| t.change.spectrum.elements()).collect();
    scaling::say_numbers(writer, &names, &counts, "n_frequency", "n_frequency_pattern")?;
    for Taken { path, change, .. } in taken {
        writer.put(&path, 0, "fourierft_spectrum", change.spectrum)?;
    }
    Ok(())
}

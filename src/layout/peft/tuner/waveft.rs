//! WaveFT: elements or wavelet coefficients at positions that are drawn with a seed (huggingface/peft,
//! `src/peft/tuners/waveft`).

use super::{Tuner, need, require_taken, seed, take_modules};
use crate::adapter::SiteKind;
use crate::adapter::delta::{Delta, Sparse, sparse::Positions, wavelet::Wavelet};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "WAVEFT",
    roles: &[("waveft_spectrum", &[""])],
    fields: &[
        "n_frequency",
        "scaling",
        "wavelet_family",
        "use_idwt",
        "random_loc_seed",
        "fan_in_fan_out",
        "n_frequency_pattern",
        "proportional_parameters",
    ],
    read,
};

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

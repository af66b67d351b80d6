//! FourierFT: spectra whose positions are drawn with a seed (huggingface/peft, `src/peft/tuners/fourierft`).

use super::{Tuner, need, require_taken, seed, take_modules};
use crate::adapter::SiteKind;
use crate::adapter::delta::{Delta, Fourier};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "FOURIERFT",
    roles: &[("fourierft_spectrum", &[""])],
    fields: &["n_frequency", "scaling", "random_loc_seed", "fan_in_fan_out", "n_frequency_pattern"],
    read,
};

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

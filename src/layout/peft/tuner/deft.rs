//! DEFT: a projection of the weight, replaced (huggingface/peft, `src/peft/tuners/deft`).

use super::{Tuner, need, require_taken, take_modules};
use crate::adapter::SiteKind;
use crate::adapter::delta::{Deft, Delta, deft::Decomposition};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "DEFT",
    roles: &[("deft_P", &[""]), ("deft_R", &[""])],
    fields: &["r", "decomposition_method", "init_scale", "alpha", "para", "fan_in_fan_out", "deft_dropout"],
    read,
};

fn read(reader: &mut Reader) -> Result<()> {
    const METHOD: &str = "decomposition_method";
    let decomposition = match reader.config.text(METHOD)?.as_deref() {
        None | Some("relu") => Decomposition::Relu,
        Some("qr") => Decomposition::Qr,
        Some(other) => return Err(Error::unrecognised(format!("`{other}`, expected relu or qr")).at_key(METHOD)),
    };
    // As in PEFT, an alpha of zero says as little as none.
    let alpha = reader.config.number("alpha")?.filter(|a| *a != 0.0);
    let para = reader.config.flag("para")?;
    let transposed = reader.config.flag("fan_in_fan_out")?;
    for ((path, _), mut parts) in take_modules(reader) {
        let p = need(&mut parts, "deft_P")?;
        let r = if para { None } else { Some(need(&mut parts, "deft_R")?) };
        require_taken(&parts, TUNER.peft_type)?;
        let rank = p.shape.dims().last().copied().unwrap_or(1);
        let scale = alpha.map_or(1.0, |a| a / rank as f64);
        let target = target(reader, path.as_str());
        target.weight.push(Delta::Deft(Deft { p, r, decomposition, scale }));
        if transposed {
            target.site = SiteKind::FanInFanOut;
        }
    }
    Ok(())
}

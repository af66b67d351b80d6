//! DEFT: a projection of the weight, replaced (huggingface/peft, `src/peft/tuners/deft`).

use super::{Tuner, Writing, need, require_taken, take_modules};
use crate::adapter::SiteKind;
use crate::adapter::delta::{Deft, Delta, deft::Decomposition};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::layout::peft::scaling;
use crate::layout::peft::writer::{Taken, Writer, common};

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "DEFT",
    roles: &[("deft_P", &[""]), ("deft_R", &[""])],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("alpha", "null"),
    ("bias", "\"none\""),
    ("decomposition_method", "\"relu\""),
    ("deft_dropout", "0.0"),
    ("exclude_modules", "null"),
    ("fan_in_fan_out", "false"),
    ("init_scale", "1.0"),
    ("init_weights", "true"),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("modules_to_save", "null"),
    ("para", "false"),
    ("r", "8"),
];

const METHOD: &str = "decomposition_method";

fn read(reader: &mut Reader) -> Result<()> {
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

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| if let Delta::Deft(delta) = delta { Some(delta.clone()) } else { None });
    writer.set_orientation(taken.iter().map(|t| t.site));
    writer.set("para", common(&taken, "para", |delta| delta.r.is_none())?);
    let rank = common(&taken, "rank", |delta| delta.p.shape.dims().last().copied())?.flatten();
    writer.set("r", rank);
    let word = |delta: &Deft| if delta.decomposition == Decomposition::Qr { "qr" } else { "relu" };
    writer.set(METHOD, common(&taken, METHOD, word)?);
    let scale = common(&taken, "scale", |delta| delta.scale)?.unwrap_or(1.0);
    // An alpha of zero would say as little as none.
    let alpha = (scale != 1.0).then(|| scaling::number(scale * rank.unwrap_or(1) as f64));
    if scale == 0.0 {
        return Err(Error::unsupported("a scale of zero, which no alpha gives"));
    }
    match writer.carried("alpha").and_then(|alpha| alpha.as_f64()) {
        Some(old) if old / rank.unwrap_or(1) as f64 == scale => {}
        _ => writer.set("alpha", alpha),
    }
    for Taken { path, change, .. } in taken {
        writer.put(&path, 0, "deft_P", change.p)?;
        if let Some(tensor) = change.r {
            writer.put(&path, 0, "deft_R", tensor)?;
        }
    }
    Ok(())
}

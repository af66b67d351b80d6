//! (IA)³: one factor per output, or per input for feed-forward modules (huggingface/peft, `src/peft/tuners/ia3`).

use super::{Tuner, Writing, need, require_taken, take_modules};
use crate::adapter::SiteKind;
use crate::adapter::delta::{Delta, Rescale, rescale::Along};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::layout::peft::writer::{Taken, Writer};
use crate::names::ModulePath;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "IA3",
    roles: &[("ia3_l", &[""])],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("exclude_modules", "null"),
    ("fan_in_fan_out", "false"),
    ("feedforward_modules", "null"),
    ("init_ia3_weights", "true"),
    ("modules_to_save", "null"),
];

fn read(reader: &mut Reader) -> Result<()> {
    let feedforward = reader.config.names("feedforward_modules")?;
    let transposed = reader.config.flag("fan_in_fan_out")?;
    for ((path, _), mut parts) in take_modules(reader) {
        let factors = need(&mut parts, "ia3_l")?;
        require_taken(&parts, TUNER.peft_type)?;
        let is_feedforward = feedforward.iter().any(|name| matches(name, &path));
        let axis = if is_feedforward { Along::Cols } else { Along::Rows };
        let target = target(reader, path.as_str());
        if !is_feedforward {
            target.bias.push(Delta::Rescale(Rescale { factors: factors.clone(), axis: Along::Rows, less_one: false }));
        }
        target.weight.push(Delta::Rescale(Rescale { factors, axis, less_one: false }));
        if transposed {
            target.site = SiteKind::FanInFanOut;
        }
    }
    Ok(())
}

/// A list entry matches the end of the path; a single text is a regular expression for all of it, as in PEFT.
fn matches(name: &str, path: &ModulePath) -> bool {
    path.as_str() == name
        || path.as_str().ends_with(&format!(".{name}"))
        || regex::Regex::new(&format!("^(?:{name})$")).is_ok_and(|r| r.is_match(path.as_str()))
}

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| if let Delta::Rescale(delta) = delta { Some(delta.clone()) } else { None });
    writer.set_orientation(taken.iter().map(|t| t.site));
    let mut feedforward = Vec::new();
    for Taken { path, change, .. } in taken {
        if change.less_one {
            let what = "factors stored less one, as LyCORIS does; PEFT stores them as they are, which would round them";
            return Err(Error::unsupported(what).at_key(path));
        }
        let bias = writer.take_bias(&path, |delta| *delta == Delta::Rescale(change.clone()));
        match (change.axis, bias) {
            (Along::Rows, true) | (Along::Cols, false) => {}
            (Along::Rows, false) => {
                let what = "factors of the outputs for the weight alone; PEFT multiplies the bias by them, too";
                return Err(Error::unsupported(what).at_key(path));
            }
            (Along::Cols, true) => {
                let what = "factors of the inputs for the bias; PEFT does not multiply it by them";
                return Err(Error::unsupported(what).at_key(path));
            }
        }
        if change.axis == Along::Cols {
            feedforward.push(path.clone());
        }
        writer.put(&path, 0, "ia3_l", change.factors)?;
    }
    writer.set("feedforward_modules", feedforward);
    Ok(())
}

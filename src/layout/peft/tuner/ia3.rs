//! (IA)³: one factor per output, or per input for feed-forward modules (huggingface/peft, `src/peft/tuners/ia3`).

use super::{Tuner, need, require_taken, take_modules};
use crate::adapter::SiteKind;
use crate::adapter::delta::{Delta, Rescale, rescale::Along};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::names::ModulePath;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "IA3",
    roles: &[("ia3_l", &[""])],
    fields: &["fan_in_fan_out", "feedforward_modules", "init_ia3_weights"],
    read,
};

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
            target.bias.push(Delta::Rescale(Rescale { factors: factors.clone(), axis: Along::Rows }));
        }
        target.weight.push(Delta::Rescale(Rescale { factors, axis }));
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

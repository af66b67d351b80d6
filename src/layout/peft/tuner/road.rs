//! RoAd: pairs of outputs rotated and scaled, weight and bias alike (huggingface/peft, `src/peft/tuners/road`).

use super::{Tuner, need, require_taken, take_modules};
use crate::adapter::delta::{Delta, Road, road::Variant};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "ROAD",
    roles: &[("road_theta", &[""]), ("road_alpha", &[""])],
    fields: &["variant", "group_size"],
    read,
};

const DEFAULT_GROUP: usize = 64;

fn read(reader: &mut Reader) -> Result<()> {
    let variant = match reader.config.text("variant")?.as_deref() {
        None | Some("road_1") => Variant::One,
        Some("road_2") => Variant::Two,
        Some("road_4") => Variant::Four,
        Some(other) => {
            let what = format!("`{other}`, expected road_1, road_2 or road_4");
            return Err(Error::unrecognised(what).at_key("variant"));
        }
    };
    let group = reader.config.integer("group_size")?.unwrap_or(DEFAULT_GROUP);
    for ((path, _), mut parts) in take_modules(reader) {
        let (theta, alpha) = (need(&mut parts, "road_theta")?, need(&mut parts, "road_alpha")?);
        require_taken(&parts, TUNER.peft_type)?;
        let delta = Delta::Road(Road { theta, alpha, variant, group });
        let target = target(reader, path.as_str());
        target.weight.push(delta.clone());
        target.bias.push(delta);
    }
    Ok(())
}

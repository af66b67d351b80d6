//! RoAd: pairs of outputs rotated and scaled, weight and bias alike (huggingface/peft, `src/peft/tuners/road`).

use super::{Tuner, Writing, need, require_taken, take_modules};
use crate::adapter::delta::{Delta, Road, road::Variant};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::layout::peft::writer::{Taken, Writer, common};

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "ROAD",
    roles: &[("road_theta", &[""]), ("road_alpha", &[""])],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] =
    &[("group_size", "64"), ("init_weights", "true"), ("modules_to_save", "null"), ("variant", "\"road_1\"")];

/// The config's words.
const VARIANTS: [(&str, Variant); 3] = [("road_1", Variant::One), ("road_2", Variant::Two), ("road_4", Variant::Four)];
const DEFAULT_GROUP: usize = 64;

fn read(reader: &mut Reader) -> Result<()> {
    let variant = match reader.config.text("variant")? {
        None => Variant::One,
        Some(name) => match VARIANTS.iter().find(|(word, _)| *word == name) {
            Some((_, variant)) => *variant,
            None => {
                let what = format!("`{name}`, expected road_1, road_2 or road_4");
                return Err(Error::unrecognised(what).at_key("variant"));
            }
        },
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

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| if let Delta::Road(delta) = delta { Some(delta.clone()) } else { None });
    writer.set("group_size", common(&taken, "group size", |delta| delta.group)?);
    let variant = common(&taken, "variant", |delta| delta.variant)?;
    let word = VARIANTS.iter().find(|(_, v)| Some(*v) == variant).map(|(word, _)| *word);
    writer.set("variant", word);
    for Taken { path, change, .. } in taken {
        if !writer.take_bias(&path, |delta| *delta == Delta::Road(change.clone())) {
            return Err(Error::unsupported("a rotation of the weight alone; PEFT turns the bias with it").at_key(path));
        }
        writer.put(&path, 0, "road_theta", change.theta)?;
        writer.put(&path, 0, "road_alpha", change.alpha)?;
    }
    Ok(())
}

//! HiRA: the weight times a low-rank term (huggingface/peft, `src/peft/tuners/hira`). Linear layers, convolutions,
//! embeddings.

use super::{Tuner, Writing, need, require_taken, take_modules};
use crate::adapter::SiteKind;
use crate::adapter::delta::{Delta, Hira};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::layout::peft::scaling;
use crate::layout::peft::writer::{Taken, Writer};

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "HIRA",
    roles: &[("hira_A", &[""]), ("hira_B", &[""]), ("hira_embedding_A", &[""]), ("hira_embedding_B", &[""])],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("exclude_modules", "null"),
    ("fan_in_fan_out", "false"),
    ("hira_dropout", "0.0"),
    ("init_weights", "true"),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("modules_to_save", "null"),
    ("r", "32"),
    ("rank_pattern", "{}"),
];

/// Roles of A and B.
fn roles(embedding: bool) -> [&'static str; 2] {
    if embedding { ["hira_embedding_A", "hira_embedding_B"] } else { ["hira_A", "hira_B"] }
}

fn read(reader: &mut Reader) -> Result<()> {
    let transposed = reader.config.flag("fan_in_fan_out")?;
    for ((path, _), mut parts) in take_modules(reader) {
        let embedding = parts.contains_key("hira_embedding_A");
        let names = roles(embedding);
        let (a, b) = (need(&mut parts, names[0])?, need(&mut parts, names[1])?);
        require_taken(&parts, TUNER.peft_type)?;
        // The rank is the tensors' own: no scale depends on it, and PEFT follows rank_pattern for some layers only.
        let target = target(reader, path.as_str());
        if embedding {
            target.site = SiteKind::Embedding;
        } else if transposed && a.shape.rank() == 2 {
            target.site = SiteKind::FanInFanOut;
        }
        target.weight.push(Delta::Hira(Hira { a, b }));
    }
    Ok(())
}

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| if let Delta::Hira(delta) = delta { Some(delta.clone()) } else { None });
    let linear = |t: &&Taken<Hira>| t.change.a.shape.rank() == 2;
    writer.set_orientation(taken.iter().filter(linear).map(|t| t.site));
    let names: Vec<_> = taken.iter().map(|t| t.path.as_str()).collect();
    let ranks: Vec<_> = taken.iter().map(|t| t.change.a.shape.matrix().0).collect();
    scaling::say_numbers(writer, &names, &ranks, "r", "rank_pattern")?;
    for Taken { path, site, change } in taken {
        let [a, b] = roles(site == SiteKind::Embedding);
        writer.put(&path, 0, a, change.a)?;
        writer.put(&path, 0, b, change.b)?;
    }
    Ok(())
}

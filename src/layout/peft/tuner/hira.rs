//! HiRA: the weight times a low-rank term (huggingface/peft, `src/peft/tuners/hira`). Linear layers, convolutions,
//! embeddings.

use super::{Tuner, need, require_taken, take_modules};
use crate::adapter::SiteKind;
use crate::adapter::delta::{Delta, Hira};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "HIRA",
    roles: &[("hira_A", &[""]), ("hira_B", &[""]), ("hira_embedding_A", &[""]), ("hira_embedding_B", &[""])],
    fields: &["r", "hira_dropout", "fan_in_fan_out", "rank_pattern"],
    read,
};

fn read(reader: &mut Reader) -> Result<()> {
    let transposed = reader.config.flag("fan_in_fan_out")?;
    for ((path, _), mut parts) in take_modules(reader) {
        let embedding = parts.contains_key("hira_embedding_A");
        let names = if embedding { ["hira_embedding_A", "hira_embedding_B"] } else { ["hira_A", "hira_B"] };
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

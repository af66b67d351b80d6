//! GLoRA: five letters for weight and bias (huggingface/peft, `src/peft/tuners/glora`).

use super::{Tuner, need, require_taken, take, take_modules};
use crate::adapter::delta::{Delta, Glora, glora::Letter};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::keys::Parts;
use crate::layout::peft::saved::target;

const TAILS: &[&str] = &["Xd", "Xu", "X", "zeros"];

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "GLORA",
    roles: &[("glora_A", TAILS), ("glora_B", TAILS), ("glora_C", TAILS), ("glora_D", TAILS), ("glora_E", TAILS)],
    fields: &["r", "config_A_B", "config_C", "config_D_E"],
    read,
};

fn read(reader: &mut Reader) -> Result<()> {
    for ((path, _), mut parts) in take_modules(reader) {
        let (a, b) = (letter(&mut parts, "glora_A")?, letter(&mut parts, "glora_B")?);
        let (c, d, e) =
            (letter(&mut parts, "glora_C")?, letter(&mut parts, "glora_D")?, letter(&mut parts, "glora_E")?);
        require_taken(&parts, TUNER.peft_type)?;
        let target = target(reader, path.as_str());
        if a.is_some() || b.is_some() {
            target.weight.push(Delta::Glora(Glora::Weight { a, b }));
        }
        // PEFT fills the letters of the bias with zeros where the layer has none.
        if c.is_some() || d.is_some() || e.is_some() {
            target.bias.push(Delta::Glora(Glora::Bias { c, d, e }));
        }
    }
    Ok(())
}

/// The tensors of one letter; none where it is a placeholder of zeros.
fn letter(parts: &mut Parts, name: &str) -> Result<Option<Letter>> {
    let role = |tail: &str| format!("{name}.{tail}");
    if let Some(zeros) = take(parts, &role("zeros"))? {
        let all_zero = zeros.to_f32()?.iter().all(|v| *v == 0.0);
        return Ok((!all_zero).then_some(Letter::Plain(zeros)));
    }
    if let Some(down) = take(parts, &role("Xd"))? {
        return Ok(Some(Letter::Product(down, need(parts, &role("Xu"))?)));
    }
    Ok(take(parts, &role("X"))?.map(Letter::Plain))
}

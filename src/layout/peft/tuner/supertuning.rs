//! Super-Tuning: the elements of largest (or smallest) magnitude, and in the hybrid form (Supra) a LoRA beside them
//! (<https://arxiv.org/abs/2607.09287>; huggingface/peft, `src/peft/tuners/supertuning`).

use super::{Tuner, need, require_taken, take, take_modules};
use crate::adapter::Scale;
use crate::adapter::delta::{Delta, LowRank, Sparse, sparse::Positions};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "SUPERTUNING",
    roles: &[
        ("supertuning_values", &[""]),
        ("supertuning_indices", &[""]),
        ("supertuning_lora_A", &["weight"]),
        ("supertuning_lora_B", &["weight"]),
    ],
    fields: &["sparsity", "select_top", "r", "lora_alpha", "lora_dropout", "save_precomputed_indices"],
    read,
};

fn read(reader: &mut Reader) -> Result<()> {
    let alpha = reader.config.number("lora_alpha")?;
    let largest = reader.config.flag_or("select_top", true)?;
    for ((path, _), mut parts) in take_modules(reader) {
        let values = need(&mut parts, "supertuning_values")?;
        let indices = parts.remove("supertuning_indices").map(|p| p.tensor);
        let a = take(&mut parts, "supertuning_lora_A.weight")?;
        let low_rank = match a {
            None => None,
            Some(a) => {
                let b = need(&mut parts, "supertuning_lora_B.weight")?;
                let alpha =
                    alpha.ok_or_else(|| Error::missing("no lora_alpha for the factors").at_key("lora_alpha"))?;
                let rank = a.shape.dims().first().copied().unwrap_or(1);
                Some(LowRank {
                    a,
                    b,
                    scale: Scale::direct(alpha / rank.max(1) as f64),
                    experts: None,
                    name: "Super-Tuning",
                })
            }
        };
        require_taken(&parts, TUNER.peft_type)?;
        let target = target(reader, path.as_str());
        let positions = match indices {
            Some(indices) => Positions::Flat(indices),
            None if largest => Positions::Largest,
            None => Positions::Smallest,
        };
        target.weight.push(Delta::Sparse(Sparse { values, positions, scaling: 1.0 }));
        target.weight.extend(low_rank.map(Delta::LowRank));
    }
    Ok(())
}

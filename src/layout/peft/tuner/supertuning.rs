//! Super-Tuning: the elements of largest (or smallest) magnitude, and in the hybrid form (Supra) a LoRA beside them
//! (<https://arxiv.org/abs/2607.09287>; huggingface/peft, `src/peft/tuners/supertuning`).

use super::{Tuner, Writing, need, require_taken, take, take_modules};
use crate::adapter::Scale;
use crate::adapter::delta::{Delta, LowRank, Sparse, sparse::Positions};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::layout::peft::scaling;
use crate::layout::peft::writer::{Taken, Writer, common};

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "SUPERTUNING",
    roles: &[
        ("supertuning_values", &[""]),
        ("supertuning_indices", &[""]),
        ("supertuning_lora_A", &["weight"]),
        ("supertuning_lora_B", &["weight"]),
    ],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("init_weights", "true"),
    ("lora_alpha", "null"),
    ("lora_dropout", "0.0"),
    ("modules_to_save", "null"),
    ("r", "null"),
    ("save_precomputed_indices", "true"),
    ("select_top", "true"),
    ("sparsity", "0.99"),
];

/// What the factors are called.
pub const NAME: &str = "Super-Tuning";

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
                Some(LowRank { a, b, scale: Scale::direct(alpha / rank.max(1) as f64), experts: None, name: NAME })
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

fn write(writer: &mut Writer) -> Result<()> {
    let factors = writer.take(|delta| if let Delta::LowRank(delta) = delta { Some(delta.clone()) } else { None });
    let sparse = writer.take(|delta| if let Delta::Sparse(delta) = delta { Some(delta.clone()) } else { None });
    if let Some(module) = factors.iter().find(|f| !sparse.iter().any(|s| s.path == f.path)) {
        let what = "factors of Super-Tuning without its elements; PEFT has both";
        return Err(Error::unsupported(what).at_key(&module.path));
    }
    if !factors.is_empty() && factors.len() < sparse.len() {
        return Err(Error::unsupported("factors beside the elements of some modules only; PEFT has one word for all"));
    }
    writer.set("r", common(&factors, "rank", LowRank::rank)?);
    let alpha = common(&factors, "scale", LowRank::factor)?.zip(factors.first().map(|f| f.change.rank()));
    writer.set("lora_alpha", alpha.map(|(scale, rank)| scaling::number(scale * rank as f64)));
    let stored = common(&sparse, "way to store positions", |delta| std::mem::discriminant(&delta.positions))?;
    let first = sparse.first().filter(|_| stored.is_some()).map(|s| s.change.positions.clone());
    writer.set("save_precomputed_indices", matches!(first, Some(Positions::Flat(_))));
    match first {
        Some(Positions::Largest) => writer.set("select_top", true),
        Some(Positions::Smallest) => writer.set("select_top", false),
        _ => {}
    }
    // The share of elements that are left as they are, so it takes the weight's shape to know it.
    writer.want_carried(&["sparsity"]);
    for Taken { path, change, .. } in sparse {
        writer.put(&path, 0, "supertuning_values", change.values)?;
        if let Positions::Flat(indices) = change.positions {
            writer.put(&path, 0, "supertuning_indices", indices)?;
        }
    }
    for Taken { path, change, .. } in factors {
        writer.put(&path, 0, "supertuning_lora_A.weight", change.a)?;
        writer.put(&path, 0, "supertuning_lora_B.weight", change.b)?;
    }
    Ok(())
}

//! LoRA and LoCon: two factors, or three for a convolution whose kernel is a core of its own (`lora_mid`).

use super::super::alpha;
use super::super::keys::Parts;
use super::{Kind, Written, need};
use crate::adapter::Delta;
use crate::adapter::delta::{LowRank, Tucker};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

pub const KIND: Kind = Kind { marks: &["lora_up.weight", "lora_down.weight", "lora_mid.weight"], read, write };

fn read(parts: &mut Parts) -> Result<Delta> {
    let scale = alpha::take(parts)?;
    let core = parts.remove("lora_mid.weight");
    let (down, up) = (need(parts, "lora_down.weight")?, need(parts, "lora_up.weight")?);
    if let Some(core) = core {
        let delta = Tucker { up, down, core, scale };
        delta.matrix()?;
        return Ok(Delta::Tucker(delta));
    }
    require_rank(&down, &up)?;
    Ok(Delta::LowRank(LowRank { a: down, b: up, scale, experts: None, name: "LoRA" }))
}

/// Both factors have a rank, and the same.
fn require_rank(down: &Tensor, up: &Tensor) -> Result<()> {
    let rank = down.shape.dims().first().copied().unwrap_or(0);
    if rank > 0 && down.shape.rank() >= 2 && up.shape.rank() >= 2 && up.shape.matrix().1 == rank {
        return Ok(());
    }
    let what = format!("lora_down {} and lora_up {} have no rank in common", down.shape, up.shape);
    Err(Error::mismatch(what).hint("the two halves may come from different adapters"))
}

fn write(delta: &Delta) -> Result<Option<Written>> {
    let written = match delta {
        Delta::LowRank(d) if d.experts.is_some() => {
            let what = "factors of a whole stack of experts, and a module of this layout has one pair";
            return Err(
                Error::unsupported(what).hint("`lora-tool convert` takes them apart for a base that has them apart")
            );
        }
        Delta::LowRank(d) => {
            require_rank(&d.a, &d.b)?;
            Written::of([("lora_down.weight", &d.a), ("lora_up.weight", &d.b)]).scaled(d.scale, d.rank())
        }
        Delta::Tucker(d) => {
            Written::of([("lora_down.weight", &d.down), ("lora_up.weight", &d.up), ("lora_mid.weight", &d.core)])
                .scaled(d.scale, d.rank())
        }
        _ => return Ok(None),
    };
    Ok(Some(written))
}

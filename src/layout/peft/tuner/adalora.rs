//! AdaLoRA: `W + s · B · (E ∘ A)`, a LoRA in the form of a singular value decomposition whose ranks were pruned (Zhang
//! et al., <https://arxiv.org/abs/2303.10512>; huggingface/peft, `src/peft/tuners/adalora`).

use super::{Tuner, need, owned, require_taken, take_modules};
use crate::adapter::delta::{Delta, LowRank};
use crate::adapter::{Note, Scale, SiteKind};
use crate::error::{Context, Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::keys::Parts;
use crate::layout::peft::saved::target;
use crate::tensor::Tensor;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "ADALORA",
    roles: &[("lora_A", &[""]), ("lora_B", &[""]), ("lora_E", &[""])],
    fields: &[
        "r",
        "init_r",
        "target_r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "fan_in_fan_out",
        "beta1",
        "beta2",
        "deltaT",
        "orth_reg_weight",
        "tfinal",
        "tinit",
        "total_step",
        "lora_dropout",
        "use_rslora",
        "init_lora_weights",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
        "use_lora_fa",
        "velora_config",
        "monteclora_config",
        "kasa_config",
    ],
    read,
    writing: None,
};

/// What PEFT adds to the rank before it divides by it.
const EPSILON: f64 = 1e-5;

fn read(reader: &mut Reader) -> Result<()> {
    let transposed = reader.config.flag("fan_in_fan_out")?;
    let alpha = reader.config.number("lora_alpha")?.unwrap_or(8.0);
    let initial = reader.config.rank("init_r", 12)?;
    for ((path, _), mut parts) in take_modules(reader) {
        if pruned(&parts) {
            reader.notes.push(Note::info(path.as_str(), "pruned to rank 0: nothing is left to apply"));
            continue;
        }
        let (a, b) = (need(&mut parts, "lora_A")?, need(&mut parts, "lora_B")?);
        let e = need(&mut parts, "lora_E")?;
        require_taken(&parts, TUNER.peft_type)?;
        let a = weighted(&a, &b, &e).at_key(path.as_str())?;
        // Ranks may have been pruned; the divisor stays the one of the start. The stored factors are pruned already.
        let rank = a.shape.dims()[0] as f64;
        let scale = Scale::direct(if alpha > 0.0 { alpha } else { rank } / (initial as f64 + EPSILON));
        let target = target(reader, path.as_str());
        target.weight.push(Delta::LowRank(LowRank { a, b, scale, experts: None, name: "AdaLoRA" }));
        if transposed {
            target.site = SiteKind::FanInFanOut;
        }
    }
    Ok(())
}

/// True where all singular values of a module were pruned: A is [0, in].
fn pruned(parts: &Parts) -> bool {
    parts.get("lora_A").is_some_and(|p| matches!(p.tensor.shape.dims(), &[0, inputs] if inputs > 0))
}

/// E ∘ A, each row of A times its singular value.
fn weighted(a: &Tensor, b: &Tensor, e: &Tensor) -> Result<Tensor> {
    let (rank, _) = a.shape.matrix();
    let (values, mut a_matrix) = (e.to_f32()?, a.to_matrix()?);
    if values.len() != rank || b.shape.matrix().1 != rank {
        return Err(Error::mismatch(format!("A {}, B {} and E {} differ in rank", a.shape, b.shape, e.shape)));
    }
    for (mut row, value) in a_matrix.rows_mut().into_iter().zip(values) {
        row *= value;
    }
    owned(&a_matrix)
}

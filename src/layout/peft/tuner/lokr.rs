//! LoKr: a Kronecker product of two matrices, either of which may be a product itself (huggingface/peft,
//! `src/peft/tuners/lokr`).

use super::{Tuner, need, require_taken, take, take_modules};
use crate::adapter::Scale;
use crate::adapter::delta::kronecker::{Factor, Padding};
use crate::adapter::delta::{Delta, Kronecker, Product};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::keys::Parts;
use crate::layout::peft::saved::target;
use crate::names::ModulePath;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "LOKR",
    roles: &[
        ("lokr_w1", &[""]),
        ("lokr_w1_a", &[""]),
        ("lokr_w1_b", &[""]),
        ("lokr_w2", &[""]),
        ("lokr_w2_a", &[""]),
        ("lokr_w2_b", &[""]),
        ("lokr_t2", &[""]),
    ],
    fields: &[
        "r",
        "alpha",
        "rank_pattern",
        "alpha_pattern",
        "rank_dropout",
        "module_dropout",
        "rank_dropout_scale",
        // The tensors tell how they were decomposed.
        "use_effective_conv2d",
        "decompose_both",
        "decompose_factor",
    ],
    read,
};

fn read(reader: &mut Reader) -> Result<()> {
    let patterns = reader.config.patterns("alpha", 8)?;
    let mut paths = Vec::new();
    for ((path, _), mut parts) in take_modules(reader) {
        let w1 = factor(&mut parts, ["lokr_w1", "lokr_w1_a", "lokr_w1_b", ""])?;
        let w2 = factor(&mut parts, ["lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"])?;
        require_taken(&parts, TUNER.peft_type)?;
        // Divided by the rank of the config also where no factor was decomposed.
        let rank = patterns.rank_at(path.as_str())?;
        for product in [&w1, &w2] {
            if let Factor::Product(p) = product {
                patterns.checked_rank(path.as_str(), p.rank(), &p.b.shape)?;
            }
        }
        let scale = Scale::direct(patterns.scale_at(path.as_str()).factor(rank));
        let delta = Kronecker { w1, w2, scale, padding: Padding::Front };
        target(reader, path.as_str()).weight.push(Delta::Kronecker(delta));
        paths.push(path);
    }
    patterns.report_idle(paths.iter().map(ModulePath::as_str), &mut reader.notes);
    Ok(())
}

fn factor(parts: &mut Parts, [whole, a, b, core]: [&str; 4]) -> Result<Factor> {
    if let Some(tensor) = take(parts, whole)? {
        return Ok(Factor::Whole(tensor));
    }
    Ok(Factor::Product(Product { a: need(parts, a)?, b: need(parts, b)?, core: take(parts, core)? }))
}

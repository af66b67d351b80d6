//! LoHa: an elementwise product of two low-rank matrices (huggingface/peft, `src/peft/tuners/loha`).

use super::{Tuner, need, require_taken, take, take_modules};
use crate::adapter::delta::{Delta, Hadamard, Product};
use crate::error::{Context, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::keys::Parts;
use crate::layout::peft::saved::target;
use crate::names::ModulePath;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "LOHA",
    roles: &[
        ("hada_w1_a", &[""]),
        ("hada_w1_b", &[""]),
        ("hada_w2_a", &[""]),
        ("hada_w2_b", &[""]),
        ("hada_t1", &[""]),
        ("hada_t2", &[""]),
    ],
    fields: &[
        "r",
        "alpha",
        "rank_pattern",
        "alpha_pattern",
        "rank_dropout",
        "module_dropout",
        "use_effective_conv2d", // the tensors tell
    ],
    read,
};

fn read(reader: &mut Reader) -> Result<()> {
    let patterns = reader.config.patterns("alpha", 8)?;
    let mut paths = Vec::new();
    for ((path, _), mut parts) in take_modules(reader) {
        let w1 = product(&mut parts, ["hada_w1_a", "hada_w1_b", "hada_t1"])?;
        let w2 = product(&mut parts, ["hada_w2_a", "hada_w2_b", "hada_t2"])?;
        require_taken(&parts, TUNER.peft_type)?;
        patterns.checked_rank(path.as_str(), w1.rank(), &w1.b.shape).at_key(path.as_str())?;
        let delta = Hadamard { w1, w2, scale: patterns.scale_at(path.as_str()) };
        target(reader, path.as_str()).weight.push(Delta::Hadamard(delta));
        paths.push(path);
    }
    patterns.report_idle(paths.iter().map(ModulePath::as_str), &mut reader.notes);
    Ok(())
}

fn product(parts: &mut Parts, [a, b, core]: [&str; 3]) -> Result<Product> {
    Ok(Product { a: need(parts, a)?, b: need(parts, b)?, core: take(parts, core)? })
}

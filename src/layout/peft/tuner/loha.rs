//! LoHa: an elementwise product of two low-rank matrices (huggingface/peft, `src/peft/tuners/loha`).

use super::{Tuner, Writing, need, require_taken, take, take_modules};
use crate::adapter::delta::{Delta, Hadamard, Product};
use crate::error::{Context, Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::keys::Parts;
use crate::layout::peft::saved::target;
use crate::layout::peft::scaling::{self, Scaled};
use crate::layout::peft::writer::{Taken, Writer};
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
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("alpha", "8"),
    ("alpha_pattern", "{}"),
    ("exclude_modules", "null"),
    ("init_weights", "true"),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("module_dropout", "0.0"),
    ("modules_to_save", "null"),
    ("r", "8"),
    ("rank_dropout", "0.0"),
    ("rank_pattern", "{}"),
    ("use_effective_conv2d", "false"),
];

/// Roles of both products: a, b and the core.
const FIRST: [&str; 3] = ["hada_w1_a", "hada_w1_b", "hada_t1"];
const SECOND: [&str; 3] = ["hada_w2_a", "hada_w2_b", "hada_t2"];

fn read(reader: &mut Reader) -> Result<()> {
    let patterns = reader.config.patterns("alpha", 8)?;
    let mut paths = Vec::new();
    for ((path, _), mut parts) in take_modules(reader) {
        let w1 = product(&mut parts, FIRST)?;
        let w2 = product(&mut parts, SECOND)?;
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

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| if let Delta::Hadamard(delta) = delta { Some(delta.clone()) } else { None });
    let mut scaled = Vec::new();
    for Taken { path, change: Hadamard { w1, w2, scale }, .. } in taken {
        if w1.rank() != w2.rank() {
            let what = format!("products of rank {} and {}; PEFT has one rank a module", w1.rank(), w2.rank());
            return Err(Error::unsupported(what).at_key(path));
        }
        if w1.core.is_some() {
            writer.set("use_effective_conv2d", true);
        }
        scaled.push(Scaled { name: path.clone(), rank: w1.rank(), scale });
        for (product, [a, b, core]) in [(w1, FIRST), (w2, SECOND)] {
            writer.put(&path, 0, a, product.a)?;
            writer.put(&path, 0, b, product.b)?;
            if let Some(tensor) = product.core {
                writer.put(&path, 0, core, tensor)?;
            }
        }
    }
    scaling::say(writer, &scaled, "alpha", false)
}

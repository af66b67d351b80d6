//! LoKr: a Kronecker product of two matrices, either of which may be a product itself (huggingface/peft,
//! `src/peft/tuners/lokr`).

use std::collections::BTreeSet;

use super::{Tuner, Writing, need, require_taken, take, take_modules};
use crate::adapter::delta::kronecker::{Factor, Padding};
use crate::adapter::delta::{Delta, Kronecker, Product};
use crate::adapter::{Note, Scale};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::keys::Parts;
use crate::layout::peft::saved::target;
use crate::layout::peft::scaling::{self, Scaled};
use crate::layout::peft::writer::{Taken, Writer};
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
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("alpha", "8"),
    ("alpha_pattern", "{}"),
    ("decompose_both", "false"),
    ("decompose_factor", "-1"),
    ("exclude_modules", "null"),
    ("init_weights", "true"),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("module_dropout", "0.0"),
    ("modules_to_save", "null"),
    ("r", "8"),
    ("rank_dropout", "0.0"),
    ("rank_dropout_scale", "false"),
    ("rank_pattern", "{}"),
    ("use_effective_conv2d", "false"),
];

/// Roles of both factors: whole, a, b and the core.
const FIRST: [&str; 4] = ["lokr_w1", "lokr_w1_a", "lokr_w1_b", ""];
const SECOND: [&str; 4] = ["lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"];

fn read(reader: &mut Reader) -> Result<()> {
    let patterns = reader.config.patterns("alpha", 8)?;
    let mut paths = Vec::new();
    for ((path, _), mut parts) in take_modules(reader) {
        let w1 = factor(&mut parts, FIRST)?;
        let w2 = factor(&mut parts, SECOND)?;
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

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| if let Delta::Kronecker(delta) = delta { Some(delta.clone()) } else { None });
    let usual = writer.carried("r").and_then(|r| r.as_u64()).and_then(|r| usize::try_from(r).ok());
    let shapes = taken.iter().map(|t| Shapes::of(&t.change)).collect::<Result<Vec<_>>>()?;
    say_decomposition(writer, &taken, &shapes);
    let mut scaled = Vec::new();
    for (Taken { path, change, .. }, shapes) in taken.into_iter().zip(&shapes) {
        if change.padding == Padding::Behind && has_one_axis(&change.w2) {
            let what = "a Kronecker product of a 1-d convolution; PEFT multiplies such factors in another order";
            return Err(Error::unsupported(what).at_key(path));
        }
        let factor = change.scale.factor(change.rank());
        scaled.push(Scaled { name: path.clone(), rank: shapes.rank(usual), scale: Scale::direct(factor) });
        put(writer, &path, change.w1, FIRST)?;
        put(writer, &path, change.w2, SECOND)?;
    }
    scaling::say(writer, &scaled, "alpha", false)
}

/// Whether a factor is one of a 1-d convolution.
fn has_one_axis(factor: &Factor) -> bool {
    matches!(factor, Factor::Whole(tensor) if tensor.shape.rank() == 3)
}

fn put(writer: &mut Writer, path: &str, factor: Factor, [whole, a, b, core]: [&str; 4]) -> Result<()> {
    match factor {
        Factor::Whole(tensor) => writer.put(path, 0, whole, tensor),
        Factor::Product(product) => {
            writer.put(path, 0, a, product.a)?;
            writer.put(path, 0, b, product.b)?;
            product.core.map_or(Ok(()), |tensor| writer.put(path, 0, core, tensor))
        }
    }
}

/// What PEFT calculates from the weight's shape and the config, as it is in the file.
struct Shapes {
    /// Outputs and inputs of each factor, without the kernel.
    w1: (usize, usize),
    w2: (usize, usize),
    /// Ranks of those stored as products.
    ranks: [Option<usize>; 2],
    /// Whether the kernel has a core of its own.
    core: bool,
    /// Whether the inputs of w2 can be told from a kernel that is flattened into them.
    certain: bool,
}

impl Shapes {
    fn of(change: &Kronecker) -> Result<Shapes> {
        let rank = |factor: &Factor| if let Factor::Product(p) = factor { Some(p.rank()) } else { None };
        let plain = |factor: &Factor| match factor {
            Factor::Whole(t) => Ok((t.shape.matrix().0, t.shape.dims().get(1).copied().unwrap_or(1))),
            Factor::Product(p) if p.core.is_some() => Ok((p.a.shape.matrix().1, p.b.shape.matrix().1)),
            Factor::Product(p) => p.shape(),
        };
        let core = matches!(&change.w2, Factor::Product(Product { core: Some(_), .. }));
        Ok(Shapes {
            w1: plain(&change.w1)?,
            w2: plain(&change.w2)?,
            ranks: [rank(&change.w1), rank(&change.w2)],
            core,
            certain: core || matches!(&change.w2, Factor::Whole(_)),
        })
    }

    /// The rank the config has to have: that of the products; where there is none, one that is large enough for PEFT to
    /// store the factors whole.
    fn rank(&self, usual: Option<usize>) -> usize {
        let least = self.w2.0.max(self.w2.1).div_ceil(2).max(1);
        self.ranks[1].or(self.ranks[0]).unwrap_or_else(|| usual.filter(|&r| r >= least).unwrap_or(least.max(8)))
    }

    /// Whether PEFT would take a weight of this shape apart in this way.
    fn fits(&self, factor: i64) -> bool {
        let sides = [(self.w1.0, self.w2.0), (self.w1.1, self.w2.1)];
        sides.iter().all(|&(m, n)| m.checked_mul(n).is_some_and(|whole| factorised(whole, factor) == (m, n)))
    }
}

/// The fields by which PEFT takes the weights apart, found from what came of it.
fn say_decomposition(writer: &mut Writer, taken: &[Taken<Kronecker>], shapes: &[Shapes]) {
    writer.set("decompose_both", shapes.iter().any(|s| s.ranks[0].is_some()));
    if shapes.iter().any(|s| s.core) {
        writer.set("use_effective_conv2d", true);
    }
    if writer.carried("decompose_factor").is_some() {
        return;
    }
    let sides = shapes.iter().flat_map(|s| [s.w1.0, s.w1.1]).filter_map(|side| i64::try_from(side).ok());
    let candidates: BTreeSet<i64> = sides.chain([-1]).collect();
    let fits = |f: &&i64, which: &dyn Fn(&Shapes) -> bool| shapes.iter().filter(|s| which(s)).all(|s| s.fits(**f));
    let all = candidates.iter().find(|f| fits(f, &|_| true));
    if let Some(found) = all.or_else(|| candidates.iter().find(|f| fits(f, &|s| s.certain))) {
        writer.set("decompose_factor", *found);
    }
    if all.is_none() {
        let what =
            format!("no value was found that gives the factors of all {} modules; PEFT may not load them", taken.len());
        writer.notes.push(Note::lossy("decompose_factor", what));
    }
}

/// The two numbers PEFT makes of a dimension (`src/peft/tuners/lokr/layer.py`, `factorization`).
fn factorised(whole: usize, factor: i64) -> (usize, usize) {
    let wanted = usize::try_from(factor).ok().filter(|&f| f > 0);
    if let Some(f) = wanted.filter(|f| whole.is_multiple_of(*f)) {
        return (f, whole / f);
    }
    // Otherwise the largest divisor up to the factor and the root, while the sum of the two falls.
    let most = wanted.unwrap_or(whole);
    let root = whole.isqrt();
    let first = (1..=most.min(root)).rev().find(|d| whole.is_multiple_of(*d)).unwrap_or(1);
    (first, whole / first.max(1))
}
